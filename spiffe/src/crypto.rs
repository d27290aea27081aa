//! The one room that names ring: the TLS provider, SHA-256, random bytes, key algorithms; `jws` has the signatures of
//! tokens.

pub mod jws;

use std::sync::Arc;

use ring::rand::{SecureRandom, SystemRandom};
use rustls::crypto::CryptoProvider;
use rustls_pki_types::SignatureVerificationAlgorithm;

use crate::entry::KeyType;

/// The operating system gave no random bytes, or ring refused to make or load a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CryptoError {
    /// No random bytes could be had.
    #[error("the operating system gave no random bytes")]
    NoRandomBytes,
    /// A key could not be generated.
    #[error("no {0} key could be generated")]
    KeyGeneration(KeyType),
    /// A private key could not be read.
    #[error("private key is not a PKCS#8 document of a P-256, P-384 or Ed25519 key")]
    PrivateKey,
}

/// The TLS provider of the whole house. Passed explicitly, never installed as the default of the process.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// SHA-256 of `data`.
pub fn sha256(data: &[u8]) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, data);
    let mut out = [0; 32];
    out.copy_from_slice(digest.as_ref());
    out
}

/// SHA-256 of `data` in lower-case hexadecimal, as fingerprints and store keys are written.
pub fn sha256_hex(data: &[u8]) -> String {
    hex(&sha256(data))
}

/// SHA-256 of everything that `reader` gives, in lower-case hexadecimal, without holding it in memory.
pub fn sha256_hex_of(mut reader: impl std::io::Read) -> std::io::Result<String> {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    let mut block = vec![0; 64 << 10];
    loop {
        match reader.read(&mut block) {
            Ok(0) => return Ok(hex(context.finish().as_ref())),
            Ok(count) => context.update(block.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// `bytes` in lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble & 15)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect()
}

/// `N` random bytes from the operating system.
pub fn random<const N: usize>() -> Result<[u8; N], CryptoError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| CryptoError::NoRandomBytes)?;
    Ok(bytes)
}

/// A new key pair of kind `key_type`.
pub fn generate_key(key_type: KeyType) -> Result<rcgen::KeyPair, CryptoError> {
    rcgen::KeyPair::generate_for(signature_algorithm(key_type)).map_err(|_| CryptoError::KeyGeneration(key_type))
}

/// Loads a key pair from PKCS#8 DER. Only the three kinds of [`KeyType`] are taken.
pub fn load_key(pkcs8_der: &[u8]) -> Result<rcgen::KeyPair, CryptoError> {
    let pkcs8 = rustls_pki_types::PrivatePkcs8KeyDer::from(pkcs8_der);
    [KeyType::P256, KeyType::P384, KeyType::Ed25519]
        .into_iter()
        .find_map(|kind| rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8, signature_algorithm(kind)).ok())
        .ok_or(CryptoError::PrivateKey)
}

/// What a key of kind `key_type` signs certificates and CSRs with.
pub fn signature_algorithm(key_type: KeyType) -> &'static rcgen::SignatureAlgorithm {
    match key_type {
        KeyType::P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
        KeyType::P384 => &rcgen::PKCS_ECDSA_P384_SHA384,
        KeyType::Ed25519 => &rcgen::PKCS_ED25519,
    }
}

/// What a key of kind `key_type` may have signed a CSR with.
pub fn csr_algorithms(key_type: KeyType) -> &'static [&'static dyn SignatureVerificationAlgorithm] {
    type Algorithms = &'static [&'static dyn SignatureVerificationAlgorithm];
    static P256: Algorithms = &[webpki::ring::ECDSA_P256_SHA256, webpki::ring::ECDSA_P256_SHA384];
    static P384: Algorithms = &[webpki::ring::ECDSA_P384_SHA384, webpki::ring::ECDSA_P384_SHA256];
    static ED25519: Algorithms = &[webpki::ring::ED25519];
    match key_type {
        KeyType::P256 => P256,
        KeyType::P384 => P384,
        KeyType::Ed25519 => ED25519,
    }
}

#[cfg(test)]
mod tests {
    use rustls::{CipherSuite, NamedGroup};

    use super::*;

    #[test]
    fn tls_has_no_more_than_mozillas_intermediate_compatibility() {
        // SPIFFE_Federation.md section 5 asks for it, and nothing of ours has less.
        const SUITES: [CipherSuite; 9] = [
            CipherSuite::TLS13_AES_128_GCM_SHA256,
            CipherSuite::TLS13_AES_256_GCM_SHA384,
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
            CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
            CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
            CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
        ];
        const GROUPS: [NamedGroup; 3] = [NamedGroup::X25519, NamedGroup::secp256r1, NamedGroup::secp384r1];
        let provider = provider();
        assert!(provider.cipher_suites.iter().all(|suite| SUITES.contains(&suite.suite())), "{provider:?}");
        assert!(provider.kx_groups.iter().all(|group| GROUPS.contains(&group.name())), "{provider:?}");
    }

    #[test]
    fn hexadecimal_of_a_known_hash() {
        assert_eq!(sha256_hex(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn a_key_of_each_kind_is_loaded_again_as_the_same_kind() {
        for kind in [KeyType::P256, KeyType::P384, KeyType::Ed25519] {
            let key = generate_key(kind).unwrap();
            let again = load_key(&key.serialize_der()).unwrap();
            assert!(again.is_compatible(signature_algorithm(kind)));
            assert_eq!(again.public_key_raw(), key.public_key_raw());
        }
        assert!(matches!(load_key(b"not a key"), Err(CryptoError::PrivateKey)));
    }
}
