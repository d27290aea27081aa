//! The certificate of the web and its key, from files that somebody else renews.
//!
//! - They are looked at every minute, and shown when they are others and fit each other: no restart, no signal.
//! - What does not fit (a renewal that is half done, mostly) is said once, and the last good pair stays.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject as _;
use spiffe::crypto;
use spiffe::time::Clock;
use tracing::{error, info};
use zeroize::Zeroizing;

use crate::config::{CertificateFiles, ConfigError, certificates, read_limited};

const CERTIFICATE: &str = "web.https_web.certificate";
const KEY: &str = "web.https_web.key";
const LOOK: Duration = Duration::from_secs(60);

/// Why files are no certificate with its key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// A file is no good by itself.
    #[error(transparent)]
    File(#[from] ConfigError),
    /// The key file holds none.
    #[error("web.https_web.key: {path}: holds no private key in PEM ({error}): put a PKCS#8, PKCS#1 or SEC1 key in it")]
    NoKey {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: String,
    },
    /// They do not fit.
    #[error("web.https_web: the key in {key} is not that of the first certificate in {certificate} ({error})")]
    Mismatch {
        /// The file of the key.
        key: PathBuf,
        /// The file of the certificate.
        certificate: PathBuf,
        /// What is wrong.
        error: String,
    },
}

/// What is shown now. Clones share it.
#[derive(Clone)]
struct Shown(Arc<ArcSwap<CertifiedKey>>);

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shown")
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

/// A certificate and its key in two files.
#[derive(Debug)]
pub(super) struct Files {
    config: CertificateFiles,
    /// SHA-256 of what was read last, good or not.
    seen: String,
    shown: Shown,
}

impl Files {
    /// Reads them for the first time.
    pub(super) fn open(config: &CertificateFiles) -> Result<Self, CertificateError> {
        let (seen, pair) = read(config);
        Ok(Self { config: config.clone(), seen, shown: Shown(Arc::new(ArcSwap::from_pointee(pair?))) })
    }

    /// What a listener shows.
    pub(super) fn shown(&self) -> Arc<dyn ResolvesServerCert> {
        Arc::new(self.shown.clone())
    }

    /// Looks at the files again and again until the task is dropped.
    pub(super) async fn keep(mut self, clock: Arc<dyn Clock>) {
        loop {
            clock.sleep(LOOK).await;
            let config = self.config.clone();
            if let Ok((seen, pair)) = tokio::task::spawn_blocking(move || read(&config)).await {
                self.take(seen, pair);
            }
        }
    }

    fn take(&mut self, seen: String, pair: Result<CertifiedKey, CertificateError>) {
        if seen == self.seen {
            return;
        }
        self.seen = seen;
        match pair {
            Ok(pair) => {
                self.shown.0.store(Arc::new(pair));
                info!(path = %self.config.certificate.display(), "the certificate of the web is another one now");
            }
            Err(error) => {
                error!(%error, "the certificate of the web was changed to one that is no good: the last one stays")
            }
        }
    }
}

/// What is in the files, as a digest and as what it means.
fn read(config: &CertificateFiles) -> (String, Result<CertifiedKey, CertificateError>) {
    let certificate = read_limited(CERTIFICATE, &config.certificate);
    let key = read_limited(KEY, &config.key).map(Zeroizing::new);
    let digest = |bytes: Result<&[u8], String>| bytes.map_or_else(|error| error, crypto::sha256_hex);
    let words = |error: &ConfigError| error.to_string();
    let seen = format!(
        "{} {}",
        digest(certificate.as_deref().map_err(words)),
        digest(key.as_ref().map(|key| key.as_slice()).map_err(words))
    );
    (seen, certificate.and(key).map_err(CertificateError::from).and_then(|key| pair(config, &key)))
}

pub(super) fn pair(config: &CertificateFiles, key: &[u8]) -> Result<CertifiedKey, CertificateError> {
    let chain = certificates(CERTIFICATE, &config.certificate)?;
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|error| CertificateError::NoKey { path: config.key.clone(), error: error.to_string() })?;
    CertifiedKey::from_der(chain, key, &crypto::provider()).map_err(|error| CertificateError::Mismatch {
        key: config.key.clone(),
        certificate: config.certificate.clone(),
        error: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(config: &CertificateFiles) -> Vec<u8> {
        let made = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
        std::fs::write(&config.certificate, made.cert.pem()).unwrap();
        std::fs::write(&config.key, made.signing_key.serialize_pem()).unwrap();
        made.cert.der().to_vec()
    }

    #[test]
    fn a_renewal_is_shown_and_half_of_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let [certificate, key] = ["web.pem", "web.key"].map(|name| folder.path().join(name));
        let config = CertificateFiles { certificate, key };
        assert!(Files::open(&config).unwrap_err().to_string().contains("cannot be read"));
        let first = write(&config);
        let mut files = Files::open(&config).unwrap();
        let shown = |files: &Files| files.shown.0.load().cert[0].to_vec();
        assert_eq!(shown(&files), first);
        let old_key = std::fs::read(&config.key).unwrap();
        let second = write(&config);
        let new_key = std::fs::read(&config.key).unwrap();
        std::fs::write(&config.key, old_key).unwrap();
        let (seen, pair) = read(&config);
        assert!(pair.as_ref().unwrap_err().to_string().contains("is not that of the first certificate"));
        files.take(seen, pair);
        assert_eq!(shown(&files), first, "the last good pair stays");
        std::fs::write(&config.key, new_key).unwrap();
        let (seen, pair) = read(&config);
        files.take(seen, pair);
        assert_eq!(shown(&files), second);
        std::fs::write(&config.key, "nothing").unwrap();
        assert!(read(&config).1.unwrap_err().to_string().contains("holds no private key"));
    }
}
