//! PKCS#12 (RFC 7292) as OpenSSL 3 and Java read it: PBES2 with AES-256 and PBKDF2, a MAC with SHA-256, nothing older.

use p12_keystore::{Certificate, KeyStore, KeyStoreEntry, PrivateKey, PrivateKeyChain};
use zeroize::Zeroizing;

use crate::deliver::material::Identity;

/// Chain and key under the alias `alias`, and each root of the own trust domain as a trusted certificate, closed with
/// `password`. An error is in the words of the crate.
pub(super) fn render(identity: &Identity, alias: &str, password: &str) -> Result<Zeroizing<Vec<u8>>, String> {
    let words = |error: p12_keystore::error::Error| error.to_string();
    let certificate = |der: &rustls_pki_types::CertificateDer<'_>| Certificate::from_der(der).map_err(words);
    let chain: Vec<Certificate> = identity.svid.chain().iter().map(certificate).collect::<Result<_, _>>()?;
    let key = PrivateKey::from_der(&identity.key).map_err(words)?;
    let mut store = KeyStore::new();
    let local_key_id = spiffe::crypto::sha256(identity.svid.serial());
    store.add_entry(alias, KeyStoreEntry::PrivateKeyChain(PrivateKeyChain::new(&local_key_id[..], key, chain)));
    for (number, root) in (1..).zip(identity.own_roots()) {
        store.add_entry(&format!("ca-{number}"), KeyStoreEntry::Certificate(certificate(root)?));
    }
    Ok(store.writer(password).write().map_err(words)?.into())
}
