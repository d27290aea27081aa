//! The JWK of a private key (RFC 7517 section 4, RFC 7518 section 6.2.2): how the Workload API hands out the key of a
//! WIT-SVID.

use std::fmt::Write as _;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use super::{Jwk, JwkError, PublicKey};
use crate::crypto;

const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const SEQUENCE: u8 = 0x30;
/// More than the longest JWK has: three numbers of 88 characters, a thumbprint, and the names.
const ROOM: usize = 512;

/// The public half of a private key in PKCS#8, DER.
pub fn public_jwk(pkcs8: &[u8]) -> Result<Jwk, JwkError> {
    let pair = crypto::load_key(pkcs8).map_err(|_| JwkError::UnknownKind)?;
    Jwk::from_spki(&rcgen::PublicKeyData::subject_public_key_info(&pair))
}

/// The private JWK of an elliptic-curve key in PKCS#8, DER, with its `kid` and the `alg` that it signs with.
pub fn private_jwk(pkcs8: &[u8]) -> Result<Zeroizing<String>, JwkError> {
    let public = public_jwk(pkcs8)?;
    let PublicKey::Ec { curve, x, y } = public.key() else { return Err(JwkError::UnknownKind) };
    let algorithm = public.key().usual_algorithm().ok_or(JwkError::UnknownKind)?;
    let scalar =
        scalar(pkcs8).filter(|scalar| scalar.len() == curve.coordinate_bytes()).ok_or(JwkError::UnknownKind)?;
    let number = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let secret = Zeroizing::new(number(scalar));
    // Room for all of it: a text that grows leaves what it was behind.
    let mut text = Zeroizing::new(String::with_capacity(ROOM));
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        r#"{{"kty":"EC","crv":"{}","x":"{}","y":"{}","d":"{}","alg":"{algorithm}","kid":"{}"}}"#,
        curve.name(),
        number(x),
        number(y),
        secret.as_str(),
        public.thumbprint(),
    );
    Ok(text)
}

/// The private number in a PrivateKeyInfo (RFC 5208 section 5) that holds an ECPrivateKey (RFC 5915 section 3).
fn scalar(pkcs8: &[u8]) -> Option<&[u8]> {
    let (info, _) = element(pkcs8, SEQUENCE)?;
    let (_version, rest) = element(info, INTEGER)?;
    let (_algorithm, rest) = element(rest, SEQUENCE)?;
    let (key, _) = element(rest, OCTET_STRING)?;
    let (key, _) = element(key, SEQUENCE)?;
    let (_version, rest) = element(key, INTEGER)?;
    element(rest, OCTET_STRING).map(|(scalar, _)| scalar)
}

/// The content of the DER element that `der` begins with, and what stands behind it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&[found, length], rest) = der.split_first_chunk::<2>()?;
    let (length, rest) = match length {
        0..=0x7f => (usize::from(length), rest),
        0x81 => rest.split_first().map(|(length, rest)| (usize::from(*length), rest))?,
        _ => return None,
    };
    (found == tag).then(|| rest.split_at_checked(length)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::jws::Signer;
    use crate::entry::KeyType;

    #[test]
    fn a_private_jwk_has_the_key_and_its_public_half() {
        for (kind, curve, algorithm, length) in
            [(KeyType::P256, "P-256", "ES256", 32), (KeyType::P384, "P-384", "ES384", 48)]
        {
            let pkcs8 = crypto::generate_key(kind).unwrap().serialize_der();
            let jwk: serde_json::Value = serde_json::from_str(&private_jwk(&pkcs8).unwrap()).unwrap();
            let public = public_jwk(&pkcs8).unwrap().members();
            assert_eq!((&jwk["kty"], &jwk["crv"], &jwk["alg"]), (&"EC".into(), &curve.into(), &algorithm.into()));
            assert_eq!((jwk["x"].as_str(), jwk["y"].as_str()), (public.x.as_deref(), public.y.as_deref()));
            assert_eq!(jwk["kid"].as_str(), public.kid.as_deref());
            let d = URL_SAFE_NO_PAD.decode(jwk["d"].as_str().unwrap()).unwrap();
            assert_eq!(d.len(), length);
            assert!(pkcs8.windows(length).any(|window| window == d));
            assert_eq!(Signer::from_pkcs8(&pkcs8).unwrap().algorithm().name(), algorithm);
        }
        let other = crypto::generate_key(KeyType::Ed25519).unwrap().serialize_der();
        assert_eq!(private_jwk(&other).unwrap_err(), JwkError::UnknownKind);
        assert!(private_jwk(b"0").is_err());
    }
}
