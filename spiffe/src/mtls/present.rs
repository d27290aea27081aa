//! What a side presents: the SVID of the moment.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::client::ResolvesClientCert;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use crate::crypto::CryptoError;
use crate::x509_svid::{SvidError, X509Svid};

/// The SVID and key that a side presents now. Clones share it; `set` is seen by the next handshake.
#[derive(Clone, Debug, Default)]
pub struct CurrentSvid(Arc<ArcSwapOption<CertifiedKey>>);

impl CurrentSvid {
    /// Presents `svid` from now on. `key_der` is PKCS#8. Refused where the key does not fit the certificate; what was
    /// presented before then stays.
    /// `extra` is appended to the chain that goes over the wire (the root, for those who know it by fingerprint).
    pub fn set(&self, svid: &X509Svid, extra: &[CertificateDer<'static>], key_der: &[u8]) -> Result<(), SvidError> {
        let chain = [svid.chain(), extra].concat();
        // Borrowed: `CertifiedKey::from_der` would want a copy of its own, and leave it in memory.
        let key = any_supported_type(&PrivatePkcs8KeyDer::from(key_der).into());
        let certified = CertifiedKey::new(chain, key.map_err(|_| SvidError::PrivateKey(CryptoError::PrivateKey))?);
        match certified.keys_match() {
            Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
            Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
                return Err(SvidError::KeyMismatch(svid.id().clone()));
            }
            Err(_) => return Err(SvidError::PrivateKey(CryptoError::PrivateKey)),
        }
        self.0.store(Some(Arc::new(certified)));
        Ok(())
    }

    /// Whether there is anything to present yet.
    pub fn is_set(&self) -> bool {
        self.0.load().is_some()
    }
}

impl ResolvesServerCert for CurrentSvid {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

impl ResolvesClientCert for CurrentSvid {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }

    fn has_certs(&self) -> bool {
        self.is_set()
    }
}
