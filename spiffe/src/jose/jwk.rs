//! JSON Web Keys (RFC 7517), public ones only.
//!
//! - A key with a private part is refused: it must not get about.
//! - Numbers are base64url without padding, and as long as RFC 7518 section 6 asks for.
//! - The thumbprint (RFC 7638) is over the members that make the key, nothing else.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Deserializer, Serialize};
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_NIST_EC_P521, OID_PKCS1_RSAENCRYPTION,
    OID_SIG_ED25519,
};
use x509_parser::prelude::FromDer;
use x509_parser::public_key;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::json::ObjectOnly;
use crate::crypto;
use crate::crypto::jws::{Algorithm, Curve, PublicKey};

/// The longest key ID that is taken, in bytes.
pub const MAX_KID_BYTES: usize = 256;
/// The longest number of a key, in bytes: RSA of 8192 bits.
const MAX_NUMBER_BYTES: usize = 1024;

/// Why something is no public key that we take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwkError {
    /// It is no JSON of this form.
    #[error("JWK cannot be read: {0}")]
    Json(String),
    /// It has a private part.
    #[error("JWK has a private key in it (\"d\"): publish the public members only, and replace the key")]
    Private,
    /// A member that a key of its kind has to have is not there or is malformed.
    #[error("JWK member \"{0}\" is missing, or is not base64url without padding of the right length")]
    Member(&'static str),
    /// The kind of key is none that we know: readers of bundles pass over it.
    #[error("JWK is of a kind that is not known here: kty EC (P-256, P-384, P-521), RSA and OKP (Ed25519) are")]
    UnknownKind,
    /// The key ID is too long.
    #[error("JWK has a kid of {0} bytes: at most 256 are allowed")]
    LongKid(usize),
    /// A SubjectPublicKeyInfo cannot be read.
    #[error("public key is not the DER of a SubjectPublicKeyInfo")]
    Spki,
    /// `alg` says something that the key cannot do.
    #[error("JWK says alg {0:?}, which a key of its kind does not sign with")]
    Algorithm(String),
}

/// A public key with its name, as it stands in bundles and in `cnf`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Jwk {
    key: PublicKey,
    kid: Option<String>,
    algorithm: Option<Algorithm>,
}

/// The members of a public JWK as they are written. What is not here is passed over when one is read.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct JwkMembers {
    /// The kind of key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kty: Option<String>,
    /// What the key is for.
    #[serde(rename = "use", skip_serializing_if = "Option::is_none")]
    pub usage: Option<String>,
    /// The name of the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kid: Option<String>,
    /// What it signs with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alg: Option<String>,
    /// The curve.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crv: Option<String>,
    /// The first coordinate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x: Option<String>,
    /// The second one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub y: Option<String>,
    /// The modulus.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n: Option<String>,
    /// The exponent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub e: Option<String>,
    /// A chain of certificates, standard base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x5c: Option<Vec<String>>,
    /// A private part, which no public key has.
    #[serde(skip_serializing)]
    pub d: Option<serde::de::IgnoredAny>,
}

impl Serialize for JwkMembers {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for JwkMembers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::deserialize(ObjectOnly(deserializer))
    }
}

impl Jwk {
    /// A key without a name.
    pub fn new(key: PublicKey) -> Self {
        Self { key, kid: None, algorithm: None }
    }

    /// From a DER SubjectPublicKeyInfo; its name is its thumbprint, its algorithm the usual one of its kind.
    pub fn from_spki(der: &[u8]) -> Result<Self, JwkError> {
        let (rest, spki) = SubjectPublicKeyInfo::from_der(der).map_err(|_| JwkError::Spki)?;
        if !rest.is_empty() {
            return Err(JwkError::Spki);
        }
        let mut jwk = Self::new(PublicKey::from_spki(&spki)?);
        jwk.kid = Some(jwk.thumbprint());
        jwk.algorithm = jwk.key.usual_algorithm();
        Ok(jwk)
    }

    /// Reads one JWK.
    pub fn from_json(text: &[u8]) -> Result<Self, JwkError> {
        let members: JwkMembers = serde_json::from_slice(text).map_err(|error| JwkError::Json(error.to_string()))?;
        Self::from_members(&members)
    }

    /// From members that were read already.
    pub fn from_members(members: &JwkMembers) -> Result<Self, JwkError> {
        if members.d.is_some() {
            return Err(JwkError::Private);
        }
        let kid = members.kid.clone().filter(|kid| !kid.is_empty());
        if let Some(long) = kid.as_ref().filter(|kid| kid.len() > MAX_KID_BYTES) {
            return Err(JwkError::LongKid(long.len()));
        }
        let key = match members.kty.as_deref() {
            Some("EC") => {
                let named = |curve: &Curve| Some(curve.name()) == members.crv.as_deref();
                let curve = [Curve::P256, Curve::P384, Curve::P521].into_iter().find(named);
                let curve = curve.ok_or(JwkError::UnknownKind)?;
                let whole = |number: &Vec<u8>| number.len() == curve.coordinate_bytes();
                let coordinate = |name, text| {
                    number(name, text).and_then(|it| if whole(&it) { Ok(it) } else { Err(JwkError::Member(name)) })
                };
                PublicKey::Ec { curve, x: coordinate("x", &members.x)?, y: coordinate("y", &members.y)? }
            }
            Some("OKP") if members.crv.as_deref() == Some("Ed25519") => PublicKey::Ed25519 {
                x: number("x", &members.x)
                    .and_then(|x| if x.len() == 32 { Ok(x) } else { Err(JwkError::Member("x")) })?,
            },
            Some("RSA") => PublicKey::Rsa { n: number("n", &members.n)?, e: number("e", &members.e)? },
            _ => return Err(JwkError::UnknownKind),
        };
        let unfit = || JwkError::Algorithm(members.alg.iter().flat_map(|name| name.chars()).take(32).collect());
        let algorithm = match &members.alg {
            Some(name) => Some(Algorithm::from_name(name).filter(|algorithm| key.fits(*algorithm)).ok_or_else(unfit)?),
            None => None,
        };
        Ok(Self { key, kid, algorithm })
    }

    /// The same key under this name.
    #[must_use]
    pub fn with_kid(self, kid: String) -> Self {
        Self { kid: Some(kid), ..self }
    }

    /// The key.
    pub fn key(&self) -> &PublicKey {
        &self.key
    }

    /// Its name.
    pub fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    /// What it signs with, where it says so.
    pub fn algorithm(&self) -> Option<Algorithm> {
        self.algorithm
    }

    /// Its members, without a `use`.
    pub fn members(&self) -> JwkMembers {
        let write = |bytes: &[u8]| Some(URL_SAFE_NO_PAD.encode(bytes));
        let rest = JwkMembers {
            kid: self.kid.clone(),
            alg: self.algorithm.map(|algorithm| algorithm.name().to_owned()),
            ..JwkMembers::default()
        };
        let kty = |name: &str| Some(name.to_owned());
        match &self.key {
            PublicKey::Ec { curve, x, y } => {
                JwkMembers { kty: kty("EC"), crv: kty(curve.name()), x: write(x), y: write(y), ..rest }
            }
            PublicKey::Ed25519 { x } => JwkMembers { kty: kty("OKP"), crv: kty("Ed25519"), x: write(x), ..rest },
            PublicKey::Rsa { n, e } => JwkMembers { kty: kty("RSA"), n: write(n), e: write(e), ..rest },
        }
    }

    /// The JSON of [`Jwk::members`].
    pub fn to_json(&self) -> String {
        // Strings only: there is nothing in it that JSON cannot say.
        serde_json::to_string(&self.members()).unwrap_or_default()
    }

    /// The SHA-256 thumbprint (RFC 7638 section 3), base64url.
    pub fn thumbprint(&self) -> String {
        let number = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        // The members in the order of their names, and not a blank between them.
        let text = match &self.key {
            PublicKey::Ec { curve, x, y } => {
                format!(r#"{{"crv":"{}","kty":"EC","x":"{}","y":"{}"}}"#, curve.name(), number(x), number(y))
            }
            PublicKey::Ed25519 { x } => format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#, number(x)),
            PublicKey::Rsa { n, e } => format!(r#"{{"e":"{}","kty":"RSA","n":"{}"}}"#, number(e), number(n)),
        };
        URL_SAFE_NO_PAD.encode(crypto::sha256(text.as_bytes()))
    }
}

fn number(name: &'static str, text: &Option<String>) -> Result<Vec<u8>, JwkError> {
    let bytes = text.as_ref().and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
    bytes.filter(|bytes| (1..=MAX_NUMBER_BYTES).contains(&bytes.len())).ok_or(JwkError::Member(name))
}

impl PublicKey {
    /// Out of a certificate. [`JwkError::UnknownKind`] for kinds that no JWK of ours has.
    pub fn from_spki(spki: &SubjectPublicKeyInfo<'_>) -> Result<Self, JwkError> {
        let algorithm = &spki.algorithm;
        let bytes = &*spki.subject_public_key.data;
        if algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
            let curve = algorithm.parameters.as_ref().and_then(|any| any.as_oid().ok()).ok_or(JwkError::Spki)?;
            let curve = if curve == OID_EC_P256 {
                Curve::P256
            } else if curve == OID_NIST_EC_P384 {
                Curve::P384
            } else if curve == OID_NIST_EC_P521 {
                Curve::P521
            } else {
                return Err(JwkError::UnknownKind);
            };
            // Only the uncompressed form is taken: no verifier that we know takes another.
            let length = curve.coordinate_bytes();
            let point = bytes.strip_prefix(&[4]).filter(|point| point.len() == 2 * length);
            let (x, y) = point.and_then(|point| point.split_at_checked(length)).ok_or(JwkError::Spki)?;
            Ok(Self::Ec { curve, x: x.to_vec(), y: y.to_vec() })
        } else if algorithm.algorithm == OID_SIG_ED25519 {
            if bytes.len() != 32 {
                return Err(JwkError::Spki);
            }
            Ok(Self::Ed25519 { x: bytes.to_vec() })
        } else if algorithm.algorithm == OID_PKCS1_RSAENCRYPTION {
            let Ok(public_key::PublicKey::RSA(key)) = spki.parsed() else {
                return Err(JwkError::Spki);
            };
            let number = |bytes: &[u8]| bytes.iter().copied().skip_while(|byte| *byte == 0).collect::<Vec<u8>>();
            let (n, e) = (number(key.modulus), number(key.exponent));
            if n.is_empty() || e.is_empty() {
                return Err(JwkError::Spki);
            }
            Ok(Self::Rsa { n, e })
        } else {
            Err(JwkError::UnknownKind)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::KeyType;

    #[test]
    fn the_thumbprint_of_rfc_7638() {
        // Section 3.1.
        let key = br#"{"kty": "RSA", "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw", "e": "AQAB", "alg": "RS256", "kid": "2011-04-29"}"#;
        let key = Jwk::from_json(key).unwrap();
        assert_eq!(key.thumbprint(), "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs");
        assert_eq!((key.kid(), key.algorithm()), (Some("2011-04-29"), Some(Algorithm::Rs256)));
    }

    #[test]
    fn a_key_of_each_kind_survives_json() {
        for kind in [KeyType::P256, KeyType::P384, KeyType::Ed25519] {
            let pair = crypto::generate_key(kind).unwrap();
            let jwk = Jwk::from_spki(&rcgen::PublicKeyData::subject_public_key_info(&pair)).unwrap();
            assert_eq!(jwk.kid(), Some(jwk.thumbprint().as_str()));
            assert_eq!(Jwk::from_json(jwk.to_json().as_bytes()), Ok(jwk));
        }
    }

    #[test]
    fn each_mistake_is_named() {
        let pair = crypto::generate_key(KeyType::P256).unwrap();
        let good = Jwk::from_spki(&rcgen::PublicKeyData::subject_public_key_info(&pair)).unwrap();
        let wrong = |change: fn(&mut JwkMembers)| {
            let mut members = good.members();
            change(&mut members);
            Jwk::from_members(&members).unwrap_err()
        };
        assert_eq!(wrong(|m| m.crv = Some("secp256k1".into())), JwkError::UnknownKind);
        assert_eq!(wrong(|m| m.kty = Some("oct".into())), JwkError::UnknownKind);
        assert_eq!(wrong(|m| m.x = Some("AA".into())), JwkError::Member("x"));
        assert_eq!(wrong(|m| m.y = None), JwkError::Member("y"));
        assert_eq!(wrong(|m| m.alg = Some("RS256".into())), JwkError::Algorithm("RS256".into()));
        assert_eq!(wrong(|m| m.alg = Some("none".into())), JwkError::Algorithm("none".into()));
        assert_eq!(wrong(|m| m.kid = Some("k".repeat(257))), JwkError::LongKid(257));
        let private = good.to_json().replace('{', "{\"d\":\"AA\",");
        assert_eq!(Jwk::from_json(private.as_bytes()), Err(JwkError::Private));
        assert!(matches!(Jwk::from_json(br#"["EC"]"#), Err(JwkError::Json(_))), "an array is no object");
        let twice = good.to_json().replace('{', "{\"kty\":\"EC\",");
        assert!(matches!(Jwk::from_json(twice.as_bytes()), Err(JwkError::Json(_))));
    }
}
