//! A certificate signing request is a key, not a wish: what leaves this file is the public key, and the proof that
//! the requester holds its private half. Names, extensions and everything else that a CSR asks for is dropped.

use rcgen::{CertificateParams, DistinguishedName};
use rustls_pki_types::SignatureVerificationAlgorithm;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_NIST_EC_P521, OID_PKCS1_RSAENCRYPTION,
    OID_SIG_ED25519,
};
use x509_parser::prelude::FromDer;
use x509_parser::x509::AlgorithmIdentifier;

use crate::crypto;
use crate::entry::KeyType;

/// The largest CSR that is looked at, in bytes.
pub const MAX_CSR_BYTES: usize = 16 << 10;

/// Why a CSR is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// Not a DER PKCS#10 request.
    #[error("CSR cannot be read: send one PKCS#10 request in DER")]
    Malformed,
    /// There are bytes behind the end of the request.
    #[error("CSR has {0} bytes behind its end: send one PKCS#10 request in DER and nothing else")]
    TrailingBytes(usize),
    /// The request is longer than [`MAX_CSR_BYTES`].
    #[error("CSR has {0} bytes: at most 16384 are allowed")]
    TooLarge(usize),
    /// The public key is of a kind that we give no certificate for; it is named.
    #[error("CSR has a key of kind {0}: use P-256, P-384 or Ed25519")]
    Key(String),
    /// The signature algorithm is none that a key of this kind signs with; both are named.
    #[error(
        "CSR is signed by algorithm {algorithm}, which does not fit its {key_type} key: sign it with SHA-256 or SHA-384 (ECDSA), or Ed25519"
    )]
    Algorithm {
        /// The kind of key.
        key_type: KeyType,
        /// The OID of the signature algorithm.
        algorithm: String,
    },
    /// The signature does not verify by the key in the request: no proof that the requester holds the private key.
    #[error("signature of the CSR is wrong: sign it with the private half of the key that is in it")]
    Signature,
    /// No CSR could be made for a key.
    #[error("no CSR could be made for this key")]
    Creation,
}

/// A public key whose private half the requester has been seen to hold. As rcgen's [`rcgen::PublicKeyData`] it is ready
/// to be signed.
#[derive(Debug)]
pub struct ProvenKey {
    /// The one DER form that a key of this kind has.
    spki_der: Box<[u8]>,
    key_type: KeyType,
}

impl ProvenKey {
    /// Parses `csr_der`, checks its kind of key and its signature, and takes the public key out of it.
    pub fn from_csr(csr_der: &[u8]) -> Result<Self, CsrError> {
        if csr_der.len() > MAX_CSR_BYTES {
            return Err(CsrError::TooLarge(csr_der.len()));
        }
        let (rest, csr) = X509CertificationRequest::from_der(csr_der).map_err(|_| CsrError::Malformed)?;
        if !rest.is_empty() {
            return Err(CsrError::TrailingBytes(rest.len()));
        }
        let info = &csr.certification_request_info;
        let key = &info.subject_pki;
        let key_type = key_type(&key.algorithm)?;
        let algorithm = algorithm(key_type, &csr.signature_algorithm)?;
        if key.subject_public_key.unused_bits != 0 || csr.signature_value.unused_bits != 0 {
            return Err(CsrError::Malformed);
        }
        algorithm
            .verify_signature(&key.subject_public_key.data, info.raw, &csr.signature_value.data)
            .map_err(|_| CsrError::Signature)?;
        // Parsers forgive more than DER allows: what is signed has the one right form. Nor is it rcgen's reading of a
        // CSR, which takes the kind of key from the signature's algorithm.
        let (before, length) = spki_form(key_type);
        if !key.raw.starts_with(before) || key.raw.len() != before.len() + length {
            return Err(CsrError::Malformed);
        }
        Ok(Self { spki_der: key.raw.into(), key_type })
    }

    /// The SubjectPublicKeyInfo, DER.
    pub fn spki_der(&self) -> &[u8] {
        &self.spki_der
    }

    /// The bits of the key itself: an uncompressed point, or the 32 bytes of Ed25519.
    pub fn bits(&self) -> &[u8] {
        self.spki_der.get(spki_form(self.key_type).0.len()..).unwrap_or_default()
    }

    /// Which kind of key it is.
    pub fn key_type(&self) -> KeyType {
        self.key_type
    }
}

impl rcgen::PublicKeyData for ProvenKey {
    fn der_bytes(&self) -> &[u8] {
        self.bits()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        crypto::signature_algorithm(self.key_type)
    }
}

/// What stands before the key's bits in a SubjectPublicKeyInfo (RFC 5480 section 2, RFC 8410 section 4), and how many
/// bits follow, in bytes.
fn spki_form(key_type: KeyType) -> (&'static [u8], usize) {
    const P256: &[u8] = &[
        0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48,
        0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
    ];
    const P384: &[u8] = &[
        0x30, 0x76, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b, 0x81, 0x04,
        0x00, 0x22, 0x03, 0x62, 0x00,
    ];
    const ED25519: &[u8] = &[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
    match key_type {
        KeyType::P256 => (P256, 65),
        KeyType::P384 => (P384, 97),
        KeyType::Ed25519 => (ED25519, 32),
    }
}

/// The kind of key by its own algorithm identifier, parameters included.
fn key_type(key: &AlgorithmIdentifier<'_>) -> Result<KeyType, CsrError> {
    if key.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = key.parameters.as_ref().and_then(|any| any.as_oid().ok()).ok_or(CsrError::Malformed)?;
        if curve == OID_EC_P256 {
            Ok(KeyType::P256)
        } else if curve == OID_NIST_EC_P384 {
            Ok(KeyType::P384)
        } else if curve == OID_NIST_EC_P521 {
            Err(CsrError::Key("P-521".into()))
        } else {
            Err(CsrError::Key(format!("EC, curve {curve}")))
        }
    } else if key.algorithm == OID_SIG_ED25519 {
        if key.parameters.is_none() { Ok(KeyType::Ed25519) } else { Err(CsrError::Malformed) }
    } else if key.algorithm == OID_PKCS1_RSAENCRYPTION {
        Err(CsrError::Key("RSA".into()))
    } else {
        Err(CsrError::Key(key.algorithm.to_string()))
    }
}

/// The algorithm that `named` names, if a key of kind `key_type` signs with it.
fn algorithm(
    key_type: KeyType,
    named: &AlgorithmIdentifier<'_>,
) -> Result<&'static dyn SignatureVerificationAlgorithm, CsrError> {
    // The ones that we know are an OID (tag 6, one byte of length) without parameters.
    let is_named = |known: &&&'static dyn SignatureVerificationAlgorithm| {
        let id = known.signature_alg_id();
        named.parameters.is_none()
            && matches!(id.as_ref(), [6, length, oid @ ..] if oid.len() == usize::from(*length) && oid == named.algorithm.as_bytes())
    };
    let unfit = || CsrError::Algorithm { key_type, algorithm: named.algorithm.to_string() };
    crypto::csr_algorithms(key_type).iter().find(is_named).copied().ok_or_else(unfit)
}

/// A CSR (DER) for `key` that asks for nothing.
pub fn create(key: &rcgen::KeyPair) -> Result<Vec<u8>, CsrError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(key).map_err(|_| CsrError::Creation)?;
    Ok(request.der().to_vec())
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use proptest::prelude::*;
    use rcgen::PublicKeyData;

    use super::*;

    fn decode(text: &str) -> Vec<u8> {
        let text: String = text.split_whitespace().collect();
        base64::engine::general_purpose::STANDARD.decode(text).unwrap()
    }

    fn p256_csr() -> Vec<u8> {
        create(&crypto::generate_key(KeyType::P256).unwrap()).unwrap()
    }

    #[test]
    fn our_own_csr_of_each_kind_gives_the_key_back() {
        for kind in [KeyType::P256, KeyType::P384, KeyType::Ed25519] {
            let key = crypto::generate_key(kind).unwrap();
            let csr = create(&key).unwrap();
            let proven = ProvenKey::from_csr(&csr).unwrap();
            assert_eq!(proven.key_type(), kind);
            assert_eq!(proven.spki_der(), key.subject_public_key_info());
            let (_, parsed) = X509CertificationRequest::from_der(&csr).unwrap();
            assert_eq!(parsed.certification_request_info.subject.iter().count(), 0);
            assert_eq!(parsed.requested_extensions().map_or(0, Iterator::count), 0);
        }
    }

    #[test]
    fn a_p384_key_with_a_sha256_signature_is_a_p384_key_and_its_wishes_are_dropped() {
        let proven = ProvenKey::from_csr(&decode(P384_SHA256_WITH_WISHES)).unwrap();
        assert_eq!(proven.key_type(), KeyType::P384);
        assert_eq!(proven.bits().len(), 97);
    }

    #[test]
    fn each_rule_has_its_error() {
        assert_eq!(ProvenKey::from_csr(b"").unwrap_err(), CsrError::Malformed);
        assert_eq!(ProvenKey::from_csr(b"-----BEGIN CERTIFICATE REQUEST-----").unwrap_err(), CsrError::Malformed);
        assert_eq!(ProvenKey::from_csr(&[0; MAX_CSR_BYTES + 1]).unwrap_err(), CsrError::TooLarge(16385));
        assert_eq!(ProvenKey::from_csr(&decode(RSA)).unwrap_err(), CsrError::Key("RSA".into()));
        assert_eq!(ProvenKey::from_csr(&decode(P521)).unwrap_err(), CsrError::Key("P-521".into()));
        assert_eq!(
            ProvenKey::from_csr(&decode(P256_SHA512)).unwrap_err(),
            CsrError::Algorithm { key_type: KeyType::P256, algorithm: "1.2.840.10045.4.3.4".into() }
        );

        let mut csr = p256_csr();
        csr.extend([1, 2]);
        assert_eq!(ProvenKey::from_csr(&csr).unwrap_err(), CsrError::TrailingBytes(2));
    }

    #[test]
    fn a_key_of_another_is_not_proven() {
        let (one, other) = (crypto::generate_key(KeyType::P256).unwrap(), crypto::generate_key(KeyType::P256).unwrap());
        let mut csr = create(&one).unwrap();
        let at = csr.windows(64).position(|window| window == &one.der_bytes()[1..]).unwrap();
        csr[at..at + 64].copy_from_slice(&other.der_bytes()[1..]);
        assert_eq!(ProvenKey::from_csr(&csr).unwrap_err(), CsrError::Signature);
    }

    #[test]
    fn a_broken_signature_is_refused() {
        let mut csr = create(&crypto::generate_key(KeyType::Ed25519).unwrap()).unwrap();
        *csr.last_mut().unwrap() ^= 1;
        assert_eq!(ProvenKey::from_csr(&csr).unwrap_err(), CsrError::Signature);
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(random: Vec<u8>, at: prop::sample::Index, byte: u8, cut: prop::sample::Index) {
            let _ = ProvenKey::from_csr(&random);
            let mut csr = decode(P384_SHA256_WITH_WISHES);
            let key = ProvenKey::from_csr(&csr).unwrap().bits().to_vec();
            let at = at.index(csr.len());
            csr[at] = byte;
            // What is not signed is the frame: a flaw in it may pass, but never with another key.
            if let Ok(proven) = ProvenKey::from_csr(&csr) {
                prop_assert_eq!(proven.bits(), key);
            }
            csr.truncate(cut.index(csr.len()));
            prop_assert!(ProvenKey::from_csr(&csr).is_err());
        }
    }

    // These kinds ring does not make; made by OpenSSL.
    const RSA: &str = "
        MIICRTCCAS0CAQAwADCCASIwDQYJKoZIhvcNAQEBBQADggEPADCCAQoCggEBALVq+HdQkqq48QAkaBi7wCijj0eHJCthbhX0w/nM
        2xnVzIWy7iOb2xGbaHyczERsmvf54UiVm1KI3y4YK5gPE440W/3Q7RN9VmcYgvNkAkio6vT9+8tob7GmJ/5vdX6azbnasgNfPeJr
        IBXbBiW/sWJmtgbdxUJ3QGcLz1G5JwUFj4JocIl+lj0SOeEl1jUCuH+uNLAXwtD6z61Xmao/FE6NejhLWuiWvSJP4B4bYcnNofFf
        VeGjp/EhaqmDAd2M4KQu638NsaEmLVPACu5qLxpnfCDjoL2N8v1xcgflKYu5K9qDQ6+GVGsmiiqQrtK+CvpZbC+qm+x4ONyl0WUi
        ZOcCAwEAAaAAMA0GCSqGSIb3DQEBCwUAA4IBAQBenUNBpJpfHB10JvNuc1IJ+e0dGnkWFiziDkpflSUnv4sdHWSHOP78AVpnifEg
        ia5sjuAxKRsVdIwFQqYLrS2NkZx60w8qeSMqPv7xMXQt0rWgwZEB7ATwrHyMQqetP4Yi3ZdRFqiTyxYVVKuSZficvVM1//hRgnmJ
        pA5eV1awNyea5483niB2QJ61xmJYjGgJVqm8rPiCSajjjB2RMoj4zj2HTA819XdPyL4uF4TdR7PyclpW/iV60fFWfbQM719uw0BQ
        MyxyRTeoO2TBzQRVkKb2ZZXljIXYn+wx2s9oHhtHx+6WiTXBqPAqVcDfl8SO/JKWM8xYeuZyLo8+lLum";
    const P521: &str = "
        MIIBQzCBpQIBADAAMIGbMBAGByqGSM49AgEGBSuBBAAjA4GGAAQAhnYh5q8jIYPxbpRoEDXOEioehko5YJOcAfUZfFT4reL60i3c
        5U6Io1H7mwhGqtS8Q3NFzUjiwXhXiiUFcrUvmIkA0PmEhuahktt9pzIIndvOeZsA8cBZA5yt0vqOr3o5Em2DmNkDPSDXJM3DLITj
        4wuzWWSIX7r9YIfb6pAS8PL5zSCgADAKBggqhkjOPQQDAgOBjAAwgYgCQgF64jb8S6TsQk8mS+d0jnguuDpgLT0KgZ0HTUIenVHy
        r1FwK8WHv4+ezYNT+L27v4WJvT5Lh4VLsjFWt2WZGfaW6gJCAIdVQsznnIHytxV+klWxWNzbtMqK3Ux5Y4YWUpZVhE8dgzrEUAcY
        RUf9TB2VxfaOzjbmAx8heTFKl/ZOb5v0PiCF";
    const P256_SHA512: &str = "
        MIG5MGICAQAwADBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABEZbxEVgdirovrkHj32PJuSO1Xa50vG+5RjK5tzDRpuod14J6A9T
        vnfNxKtt5iyJa326PDBlgoPFf+FXd1BkIm+gADAKBggqhkjOPQQDBANHADBEAiBv7Q5ZhRLy2tTUXgnsDagDfFyztBHKfgHlIxDq
        r4y3FwIgUuPZ2R190COfMG79FusuZMCEeYlcRy2AoVUDSqwmRWo=";
    /// Asks for a name, a SPIFFE ID, CA:TRUE and an extension that no one knows.
    const P384_SHA256_WITH_WISHES: &str = "
        MIIBSzCB0QIBADAMMQowCAYDVQQDDAF4MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAEDqF1pK5pISW43X+wDbMY8NiQNfzA6C3+RZ0u
        7Hf7hh74oxMzKv7zOjzoeZPN6lGszP7zMEqfU0RR5WcCiS8V7Jfb+cPQOkoAZrB8VkhxCPLztuZ59Hmoc97pnH4RhqbEoEYwRAYJ
        KoZIhvcNAQkOMTcwNTAaBgNVHREEEzARhg9zcGlmZmU6Ly9ldmlsL3gwDAYDVR0TBAUwAwEB/zAJBgMqAwQEAgUAMAoGCCqGSM49
        BAMCA2kAMGYCMQD44QoHVCA28l3Ddcxt4uvFPfbCEJklDjp8KxWRmlaLYWMqquNN32D4wW0r0gO+jsYCMQCKtZUUUXmx+y3Q1ezg
        bnqwpwAwlSntWKunHO9SkFBI6QLp8Cdhj1tslELWe2Y6U8o=";
}
