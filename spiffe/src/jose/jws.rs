//! The compact serialization of JSON Web Signatures (RFC 7515 section 3.1): taken apart, and put together.
//!
//! - Three parts, base64url without padding, in the one way each can be written.
//! - A header or payload that has a member twice, or is no object, is refused.
//! - `crit` is refused: there is no extension that we know (RFC 7515 section 4.1.11).
//! - An algorithm that the standards do not permit is refused before anything is verified: `none` and shared secrets
//!   above all (JWT-SVID.md section 2.1).

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::json::{JsonError, parse_object};
use crate::crypto::jws::{Algorithm, PublicKey, SignatureError, Signer};

/// The longest token that is looked at, in bytes.
pub const MAX_TOKEN_BYTES: usize = 64 << 10;

/// Why something is no token, or its signature no good.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwsError {
    /// It is longer than [`MAX_TOKEN_BYTES`].
    #[error("token has {0} bytes: at most 65536 are allowed")]
    TooLong(usize),
    /// Not three parts with dots between them.
    #[error("token has {0} parts: the compact serialization has three, with dots between them")]
    Parts(usize),
    /// A part is no base64url.
    #[error("the {0} of the token is not base64url without padding")]
    Base64(&'static str),
    /// A part is no JSON object.
    #[error("the {0} of the token is {1}")]
    Json(&'static str, JsonError),
    /// There is no `alg`, or one that is not permitted.
    #[error("token has alg {0:?}: only RS256, RS384, RS512, ES256, ES384, ES512, PS256, PS384 and PS512 are permitted")]
    Algorithm(String),
    /// A header parameter has another type than it must have.
    #[error("header parameter \"{0}\" of the token is no string")]
    Parameter(&'static str),
    /// There are extensions that must be understood.
    #[error("token has critical header parameters (\"crit\"), of which none is known here")]
    Critical,
    /// The signature.
    #[error(transparent)]
    Signature(#[from] SignatureError),
}

/// What the header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// How the token was signed.
    pub algorithm: Algorithm,
    /// With which key.
    pub kid: Option<String>,
    /// What kind of token it is.
    pub typ: Option<String>,
    /// The names of all other parameters.
    pub others: Vec<String>,
}

/// A token that was taken apart; nobody has looked at its signature yet. Never shown whole by `Debug`: many a token is
/// good for whoever has it.
#[derive(Clone, PartialEq, Eq)]
pub struct Parsed {
    /// What its header says.
    pub header: Header,
    /// Its claims.
    pub claims: Map<String, Value>,
    token: String,
    /// How long the part of the token is that is signed.
    signed: usize,
    signature: Vec<u8>,
}

impl Parsed {
    /// Takes a token apart.
    pub fn read(token: &str) -> Result<Self, JwsError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(JwsError::TooLong(token.len()));
        }
        let mut parts = token.split('.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(JwsError::Parts(token.split('.').count()));
        };
        let signed = header.len() + 1 + payload.len();
        let header = read_header(header)?;
        let claims = parse_object(&decode("payload", payload)?).map_err(|error| JwsError::Json("payload", error))?;
        let signature = decode("signature", signature)?;
        Ok(Self { header, claims, token: token.to_owned(), signed, signature })
    }

    /// The token, as it was given.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Whether it was signed by the private half of `key`.
    pub fn verify(&self, key: &PublicKey) -> Result<(), JwsError> {
        let signed = self.token.get(..self.signed).unwrap_or_default();
        Ok(key.verify(self.header.algorithm, signed.as_bytes(), &self.signature)?)
    }
}

impl fmt::Debug for Parsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parsed").field("header", &self.header).finish_non_exhaustive()
    }
}

/// Signs `claims`. The header has `alg`, `typ` and, if there is one, `kid`, nothing else.
pub fn write(
    typ: &str,
    kid: Option<&str>,
    claims: &Map<String, Value>,
    signer: &Signer,
) -> Result<String, SignatureError> {
    let mut header = serde_json::json!({ "alg": signer.algorithm().name(), "typ": typ });
    if let Some(kid) = kid {
        header["kid"] = kid.into();
    }
    let mut token = String::with_capacity(512);
    URL_SAFE_NO_PAD.encode_string(header.to_string(), &mut token);
    token.push('.');
    // Values of this type have no map with other keys than strings: it is always written.
    URL_SAFE_NO_PAD.encode_string(serde_json::to_vec(claims).unwrap_or_default(), &mut token);
    let signature = signer.sign(token.as_bytes())?;
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(signature, &mut token);
    Ok(token)
}

fn read_header(part: &str) -> Result<Header, JwsError> {
    let mut header = parse_object(&decode("header", part)?).map_err(|error| JwsError::Json("header", error))?;
    let mut text = |name: &'static str| match header.remove(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(JwsError::Parameter(name)),
    };
    let name = text("alg")?.unwrap_or_default();
    let (kid, typ) = (text("kid")?, text("typ")?);
    let refused = || JwsError::Algorithm(name.chars().take(32).collect());
    let algorithm = Algorithm::from_name(&name).ok_or_else(refused)?;
    if header.contains_key("crit") {
        return Err(JwsError::Critical);
    }
    Ok(Header { algorithm, kid, typ, others: header.keys().cloned().collect() })
}

fn decode(name: &'static str, part: &str) -> Result<Vec<u8>, JwsError> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| JwsError::Base64(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto;
    use crate::entry::KeyType;
    use crate::jose::Jwk;

    fn signed(kind: KeyType) -> (String, Jwk) {
        let pair = crypto::generate_key(kind).unwrap();
        let jwk = Jwk::from_spki(&rcgen::PublicKeyData::subject_public_key_info(&pair)).unwrap();
        let signer = Signer::from_pkcs8(&pair.serialize_der()).unwrap();
        let claims = parse_object(br#"{"sub":"spiffe://example.org/web","exp":12}"#).unwrap();
        (write("JWT", jwk.kid(), &claims, &signer).unwrap(), jwk)
    }

    fn with_header(header: &str) -> String {
        format!("{}.e30.AA", URL_SAFE_NO_PAD.encode(header))
    }

    #[test]
    fn what_is_signed_is_read_and_verified() {
        for (kind, algorithm) in [(KeyType::P256, Algorithm::Es256), (KeyType::P384, Algorithm::Es384)] {
            let (token, jwk) = signed(kind);
            let parsed = Parsed::read(&token).unwrap();
            assert_eq!(parsed.header.algorithm, algorithm);
            assert_eq!(parsed.header.kid.as_deref(), jwk.kid());
            assert_eq!((parsed.header.typ.as_deref(), parsed.header.others.len()), (Some("JWT"), 0));
            assert_eq!(parsed.claims["exp"], 12);
            assert!(!format!("{parsed:?}").contains(token.rsplit('.').next().unwrap()), "it may be a secret");
            parsed.verify(jwk.key()).unwrap();
            let (_, other) = signed(kind);
            assert_eq!(parsed.verify(other.key()), Err(SignatureError::Wrong.into()));
        }
    }

    #[test]
    fn algorithms_that_are_not_permitted_are_refused_before_any_key_is_looked_at() {
        for alg in ["none", "NONE", "HS256", "EdDSA", ""] {
            let token = with_header(&format!(r#"{{"alg":"{alg}"}}"#));
            assert_eq!(Parsed::read(&token), Err(JwsError::Algorithm(alg.into())));
        }
        assert_eq!(Parsed::read(&with_header("{}")), Err(JwsError::Algorithm(String::new())));
        assert_eq!(Parsed::read(&with_header(r#"{"alg":1}"#)), Err(JwsError::Parameter("alg")));
        assert_eq!(Parsed::read(&with_header(r#"{"alg":"ES256","crit":[]}"#)), Err(JwsError::Critical));
    }

    #[test]
    fn other_forms_are_refused() {
        let (token, _) = signed(KeyType::P256);
        assert_eq!(Parsed::read(""), Err(JwsError::Parts(1)));
        assert_eq!(Parsed::read(&format!("{token}.x")), Err(JwsError::Parts(4)));
        assert_eq!(Parsed::read(&format!("{token}=")), Err(JwsError::Base64("signature")));
        assert_eq!(Parsed::read(&"a".repeat(MAX_TOKEN_BYTES + 1)), Err(JwsError::TooLong(MAX_TOKEN_BYTES + 1)));
        let twice = with_header(r#"{"alg":"ES256","alg":"ES256"}"#);
        assert!(matches!(Parsed::read(&twice), Err(JwsError::Json("header", _))));
        // The bits behind the last byte have to be zero, so that no token can be written in two ways.
        assert_eq!(Parsed::read("e30.e30.AB"), Err(JwsError::Algorithm(String::new())));
        let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256"}"#);
        assert_eq!(Parsed::read(&format!("{header}.e30.AB")), Err(JwsError::Base64("signature")));
    }
}
