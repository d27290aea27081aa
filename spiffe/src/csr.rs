//! A certificate signing request is a key, not a wish: what leaves this file is the public key, and the proof that
//! the requester holds its private half. Names, extensions and everything else that a CSR asks for is dropped.

use crate::entry::KeyType;

/// The largest CSR that is looked at, in bytes.
pub const MAX_CSR_BYTES: usize = 16 << 10;

/// Why a CSR is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// Not a DER PKCS#10 request.
    #[error("CSR cannot be read: send one PKCS#10 request in DER")]
    Malformed,
}

/// A public key whose private half the requester has been seen to hold.
#[derive(Debug)]
pub struct ProvenKey {
    spki: rcgen::SubjectPublicKeyInfo,
    key_type: KeyType,
}

impl ProvenKey {
    /// Parses `csr_der`, checks its kind of key and its signature, and takes the public key out of it.
    pub fn from_csr(csr_der: &[u8]) -> Result<Self, CsrError> {
        let _ = csr_der;
        Err(CsrError::Malformed)
    }

    /// The public key, ready to be signed.
    pub fn spki(&self) -> &rcgen::SubjectPublicKeyInfo {
        &self.spki
    }

    /// Which kind of key it is.
    pub fn key_type(&self) -> KeyType {
        self.key_type
    }
}

/// A CSR (DER) for `key` that asks for nothing.
pub fn create(key: &rcgen::KeyPair) -> Result<Vec<u8>, CsrError> {
    let _ = key;
    Err(CsrError::Malformed)
}
