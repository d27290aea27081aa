//! RSA keys are made here, and nowhere else: ring signs with them, and makes none.
//!
//! - Only the making is the `rsa` crate's. Its private-key operations, whose time tells of the key (RUSTSEC-2023-0071),
//!   are called by nobody: the key leaves this file as a document that ring reads.

use rsa::RsaPrivateKey;
use rsa::pkcs8::EncodePrivateKey as _;
use rsa::rand_core::OsRng;
use zeroize::Zeroizing;

/// What every validator takes, and the shortest that the standard allows (RFC 7518 section 3.3).
const BITS: usize = 2048;

/// A new key as PKCS#8, DER; `None` when none could be made. Takes some tenths of a second.
pub(super) fn generate() -> Option<Zeroizing<Vec<u8>>> {
    let key = RsaPrivateKey::new(&mut OsRng, BITS).ok()?;
    Some(Zeroizing::new(key.to_pkcs8_der().ok()?.as_bytes().to_vec()))
}
