//! PEM, 64 characters a line (RFC 7468).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use crate::deliver::material::Identity;

/// Certificates, one after the other.
pub(crate) fn certificates(certificates: &[CertificateDer<'_>]) -> String {
    let mut text = String::new();
    certificates.iter().for_each(|der| block(&mut text, "CERTIFICATE", der));
    text
}

/// A private key, PKCS#8.
pub(crate) fn private_key(pkcs8: &[u8]) -> Zeroizing<Vec<u8>> {
    // Room for everything at once: a text that grows leaves pieces of a key behind.
    let mut text = Zeroizing::new(String::with_capacity(2 * pkcs8.len() + 256));
    block(&mut text, "PRIVATE KEY", pkcs8);
    std::mem::take(&mut *text).into_bytes().into()
}

/// The chain, then the key: the order in which HAProxy reads them.
pub(crate) fn combined(identity: &Identity) -> Zeroizing<Vec<u8>> {
    let chain = certificates(identity.svid.chain());
    let key = private_key(&identity.key);
    let mut both = Zeroizing::new(Vec::with_capacity(chain.len() + key.len()));
    both.extend_from_slice(chain.as_bytes());
    both.extend_from_slice(&key);
    both
}

fn block(text: &mut String, label: &str, der: &[u8]) {
    text.push_str(&format!("-----BEGIN {label}-----\n"));
    // 48 bytes are a line of 64 characters.
    for line in der.chunks(48) {
        STANDARD.encode_string(line, text);
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
}
