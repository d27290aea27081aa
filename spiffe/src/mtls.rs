//! Mutual TLS with SVIDs, for rustls: a verifier and a resolver that read the current bundles and the current SVID
//! at each handshake, so that nothing is rebuilt when they rotate. TLS 1.3, no session tickets: a resumed session
//! would skip the verifier.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig};

use crate::bundle::Bundle;
use crate::id::{SpiffeId, TrustDomain};
use crate::time::Clock;
use crate::x509_svid::{SvidError, X509Svid};

/// The SVID and key that a side presents now. Clones share it; `set` is seen by the next handshake.
#[derive(Clone, Debug, Default)]
pub struct CurrentSvid(Arc<ArcSwapOption<CertifiedKey>>);

impl CurrentSvid {
    /// Presents `svid` from now on. `key_der` is PKCS#8. Refused where the key does not fit the certificate.
    /// `extra` is appended to the chain that goes over the wire (the root, for those who know it by fingerprint).
    pub fn set(
        &self,
        svid: &X509Svid,
        extra: &[rustls_pki_types::CertificateDer<'static>],
        key_der: &[u8],
    ) -> Result<(), SvidError> {
        let _ = (svid, extra, key_der, &self.0);
        Err(SvidError::Empty)
    }
}

/// The bundles that peers are verified against now. Clones share them; `set` is seen by the next handshake.
#[derive(Clone, Debug)]
pub struct CurrentBundles(Arc<ArcSwap<BTreeMap<TrustDomain, Bundle>>>);

impl CurrentBundles {
    /// Starts with `bundles`.
    pub fn new(bundles: impl IntoIterator<Item = Bundle>) -> Self {
        let map = bundles.into_iter().map(|bundle| (bundle.trust_domain().clone(), bundle)).collect();
        Self(Arc::new(ArcSwap::from_pointee(map)))
    }

    /// Verifies against `bundles` from now on.
    pub fn set(&self, bundles: impl IntoIterator<Item = Bundle>) {
        self.0.store(Arc::new(bundles.into_iter().map(|bundle| (bundle.trust_domain().clone(), bundle)).collect()));
    }

    /// The bundles as they are now.
    pub fn load(&self) -> Arc<BTreeMap<TrustDomain, Bundle>> {
        self.0.load_full()
    }
}

/// Which peers are let in, once their SVID is verified.
#[derive(Clone, Debug)]
pub enum Peers {
    /// Every identity of every trust domain whose bundle is known.
    Any,
    /// These identities.
    Ids(Vec<SpiffeId>),
    /// Every identity of these trust domains.
    TrustDomains(Vec<TrustDomain>),
}

/// A server's side. `require` false lets a client without a certificate in (it is then a stranger).
pub fn server_config(
    svid: CurrentSvid,
    bundles: CurrentBundles,
    peers: Peers,
    require: bool,
    clock: Arc<dyn Clock>,
) -> Result<ServerConfig, rustls::Error> {
    let _ = (svid, bundles, peers, require, clock);
    Err(rustls::Error::General(String::new()))
}

/// A client's side. Without an SVID (`None`) it presents none.
pub fn client_config(
    svid: Option<CurrentSvid>,
    bundles: CurrentBundles,
    peers: Peers,
    clock: Arc<dyn Clock>,
) -> Result<ClientConfig, rustls::Error> {
    let _ = (svid, bundles, peers, clock);
    Err(rustls::Error::General(String::new()))
}

/// A client's side that knows its server only by the SHA-256 of a certificate in the chain that the server
/// presents (its root): the path is verified with that certificate as the only root.
pub fn client_config_by_fingerprint(
    fingerprint: [u8; 32],
    peers: Peers,
    clock: Arc<dyn Clock>,
) -> Result<ClientConfig, rustls::Error> {
    let _ = (fingerprint, peers, clock);
    Err(rustls::Error::General(String::new()))
}
