//! What of an identity is written as PEM, and in which order.

use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use crate::deliver::material::Identity;

/// Certificates, one after the other.
pub(crate) fn certificates(certificates: &[CertificateDer<'_>]) -> String {
    certificates.iter().map(|der| spiffe::pem::certificate(der)).collect()
}

/// A private key, PKCS#8.
pub(crate) fn private_key(pkcs8: &[u8]) -> Zeroizing<Vec<u8>> {
    std::mem::take(&mut *spiffe::pem::private_key(pkcs8)).into_bytes().into()
}

/// The chain, then the key: the order in which HAProxy reads them.
pub(crate) fn combined(identity: &Identity) -> Zeroizing<Vec<u8>> {
    let chain = certificates(identity.svid.chain());
    let key = private_key(&identity.key);
    // Room for both at once: a text that grows leaves pieces of a key behind.
    let mut both = Zeroizing::new(Vec::with_capacity(chain.len() + key.len()));
    both.extend_from_slice(chain.as_bytes());
    both.extend_from_slice(&key);
    both
}
