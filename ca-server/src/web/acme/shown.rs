//! What an ACME listener shows: its certificate, and to the CA that asks for a proof the answer to its challenge.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwapOption;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// The protocol of a connection that is a proof (RFC 8737 section 4).
pub(crate) const PROTOCOL: &[u8] = b"acme-tls/1";

/// See the head of this file. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Shown {
    certificate: Arc<ArcSwapOption<CertifiedKey>>,
    answers: Arc<Mutex<BTreeMap<String, Arc<CertifiedKey>>>>,
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shown")
    }
}

impl Shown {
    /// Shows this certificate from now on.
    pub(super) fn show(&self, pair: CertifiedKey) {
        self.certificate.store(Some(Arc::new(pair)));
    }

    /// Proves `name` from now on.
    pub(super) fn answer(&self, name: String, pair: CertifiedKey) {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).insert(name, Arc::new(pair));
    }

    /// Proves nothing any more.
    pub(super) fn forget_challenges(&self) {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let mut protocols = hello.alpn().into_iter().flatten();
        if protocols.next() == Some(PROTOCOL) && protocols.next().is_none() {
            let name = hello.server_name()?;
            return self.answers.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        }
        self.certificate.load_full()
    }
}
