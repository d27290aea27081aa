//! Mutual TLS with SVIDs, for rustls: a verifier and a resolver that read the current bundles and the current SVID
//! at each handshake, so that nothing is rebuilt when they rotate. TLS 1.3, no session tickets: a resumed session
//! would skip the verifier.
//!
//! - The peer's chain is parsed and verified by [`X509Svid`]; host names play no part.
//! - Why a peer was refused is in the text of the [`rustls::Error`], in our words.
//! - ALPN is the caller's: set `alpn_protocols` on the configuration.

mod present;
mod verifier;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::Resumption;
use rustls::server::NoServerSessionStorage;
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::CertificateDer;

pub use self::present::CurrentSvid;
use self::verifier::{SvidVerifier, Trust};
use crate::bundle::Bundle;
use crate::crypto;
use crate::id::{SpiffeId, TrustDomain};
use crate::time::{Clock, TlsTime};
use crate::x509_svid::{SvidError, X509Svid};

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

impl Peers {
    /// Whether `id` is one of them.
    pub fn include(&self, id: &SpiffeId) -> bool {
        match self {
            Self::Any => true,
            Self::Ids(ids) => ids.contains(id),
            Self::TrustDomains(trust_domains) => trust_domains.iter().any(|domain| id.is_member_of(domain)),
        }
    }
}

impl fmt::Display for Peers {
    /// For messages: the first few.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 3;
        let (names, more): (Vec<String>, _) = match self {
            Self::Any => return f.write_str("members of known trust domains"),
            Self::Ids(ids) => (ids.iter().take(SHOWN).map(ToString::to_string).collect(), ids.len() > SHOWN),
            Self::TrustDomains(domains) => (
                domains.iter().take(SHOWN).map(|domain| format!("members of {domain}")).collect(),
                domains.len() > SHOWN,
            ),
        };
        f.write_str(&names.join(", "))?;
        if more { f.write_str(" and others") } else { Ok(()) }
    }
}

/// A server's side. `require` false lets a client without a certificate in (it is then a stranger).
pub fn server_config(
    svid: CurrentSvid,
    bundles: CurrentBundles,
    peers: Peers,
    require: bool,
    clock: Arc<dyn Clock>,
) -> Result<ServerConfig, rustls::Error> {
    let verifier = SvidVerifier::new(Trust::Bundles(bundles), peers, require, clock.clone());
    let mut config = ServerConfig::builder_with_details(crypto::provider(), Arc::new(TlsTime(clock)))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(svid));
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

/// A client's side. Without an SVID (`None`) it presents none.
pub fn client_config(
    svid: Option<CurrentSvid>,
    bundles: CurrentBundles,
    peers: Peers,
    clock: Arc<dyn Clock>,
) -> Result<ClientConfig, rustls::Error> {
    client_config_with(svid, Trust::Bundles(bundles), peers, clock)
}

/// A client's side that knows its server only by the SHA-256 of a certificate in the chain that the server
/// presents (its root): the path is verified with that certificate as the only root.
pub fn client_config_by_fingerprint(
    fingerprint: [u8; 32],
    peers: Peers,
    clock: Arc<dyn Clock>,
) -> Result<ClientConfig, rustls::Error> {
    client_config_with(None, Trust::Fingerprint(fingerprint), peers, clock)
}

fn client_config_with(
    svid: Option<CurrentSvid>,
    trust: Trust,
    peers: Peers,
    clock: Arc<dyn Clock>,
) -> Result<ClientConfig, rustls::Error> {
    let verifier = SvidVerifier::new(trust, peers, true, clock.clone());
    let builder = ClientConfig::builder_with_details(crypto::provider(), Arc::new(TlsTime(clock)))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match svid {
        Some(svid) => builder.with_client_cert_resolver(Arc::new(svid)),
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Who the peer of an established connection is: `certificates` are those of the finished handshake
/// (`peer_certificates()`), whose path this module's verifier has verified. Time goes on: see
/// [`X509Svid::lifetime`].
pub fn peer(certificates: &[CertificateDer<'_>]) -> Result<X509Svid, SvidError> {
    X509Svid::parse(certificates.iter().map(|certificate| certificate.clone().into_owned()).collect())
}

#[cfg(test)]
mod tests;
