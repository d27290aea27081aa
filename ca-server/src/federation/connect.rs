//! How an endpoint is reached and known: by one of its addresses that has been looked at, and by TLS of its profile.
//!
//! - The address that was looked at is the one that is connected to: a name is resolved once for each hop.
//! - `https_web` (section 5.2.1.4): a path to a root of the operating system, or of the config, and the host of the URL
//!   among the certificate's names. TLS 1.2 and 1.3: the web's servers speak both.
//! - `https_spiffe` (section 5.2.2.4): an X.509-SVID of the endpoint's SPIFFE ID, below the latest bundle of that ID's
//!   trust domain. The host of the URL plays no part.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName};
use spiffe::bundle::Bundle;
use spiffe::crypto;
use spiffe::federation::{EndpointUrl, Host};
use spiffe::id::SpiffeId;
use spiffe::mtls::{self, CurrentBundles, Peers};
use spiffe::time::{Clock, Timestamp, TlsTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::address::objection;
use super::fetch::FetchError;
use crate::config::Network;

/// How long one address may take to answer, before the next one is tried.
const CONNECT: Duration = Duration::from_secs(5);
/// How many addresses of a name are tried.
const ADDRESSES: usize = 4;
/// How old the operating system's roots may be.
const ROOTS: Duration = Duration::from_secs(3600);
const HTTP_1: &[u8] = b"http/1.1";

/// The TLS of `https_web`: the roots of the operating system, read again when an hour old, and those of the config.
#[derive(Debug)]
pub struct WebRoots {
    extra: Vec<CertificateDer<'static>>,
    clock: Arc<dyn Clock>,
    read: Mutex<Option<(Timestamp, Arc<ClientConfig>)>>,
}

impl WebRoots {
    /// The operating system's roots and `extra`.
    pub fn new(extra: Vec<CertificateDer<'static>>, clock: Arc<dyn Clock>) -> Self {
        Self { extra, clock, read: Mutex::new(None) }
    }

    /// What an `https_web` endpoint is known by now.
    pub(super) async fn tls(self: &Arc<Self>) -> Result<Arc<ClientConfig>, FetchError> {
        let now = self.clock.now();
        let held = self.read.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((_, config)) = held.filter(|(at, _)| now.since(*at) < ROOTS && *at <= now) {
            return Ok(config);
        }
        let roots = Arc::clone(self);
        let config = tokio::task::spawn_blocking(move || roots.load()).await;
        let config = Arc::new(config.map_err(|error| FetchError::Roots(error.to_string()))??);
        *self.read.lock().unwrap_or_else(PoisonError::into_inner) = Some((now, Arc::clone(&config)));
        Ok(config)
    }

    fn load(&self) -> Result<ClientConfig, FetchError> {
        let system = rustls_native_certs::load_native_certs();
        for error in &system.errors {
            tracing::warn!(%error, "some web roots of the operating system cannot be read");
        }
        let mut roots = RootCertStore::empty();
        // Those that are no roots by our rules are passed over: there are always some.
        roots.add_parsable_certificates(system.certs.into_iter().chain(self.extra.iter().cloned()));
        if roots.is_empty() {
            let why =
                "the operating system has none: install its package of CA certificates, or set federation.web_roots";
            return Err(FetchError::Roots(why.into()));
        }
        let time = Arc::new(TlsTime(Arc::clone(&self.clock)));
        let builder = ClientConfig::builder_with_details(crypto::provider(), time)
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(|error| FetchError::Roots(error.to_string()))?;
        Ok(speaking_http(builder.with_root_certificates(roots).with_no_client_auth()))
    }
}

/// What the `https_spiffe` endpoint `id` is known by, where `bundle` is the latest of its trust domain.
pub(super) fn svid_tls(id: &SpiffeId, bundle: Bundle, clock: Arc<dyn Clock>) -> Result<Arc<ClientConfig>, FetchError> {
    let config = mtls::client_config(None, CurrentBundles::new([bundle]), Peers::Ids(vec![id.clone()]), clock);
    Ok(Arc::new(speaking_http(config.map_err(|error| FetchError::Roots(error.to_string()))?)))
}

fn speaking_http(mut config: ClientConfig) -> ClientConfig {
    config.alpn_protocols = vec![HTTP_1.to_vec()];
    // A resumed session would skip the verifier.
    config.resumption = rustls::client::Resumption::disabled();
    config
}

/// An open connection to the endpoint of `url`, which has shown what `tls` asks for.
pub(super) async fn connect(
    url: &EndpointUrl,
    tls: Arc<ClientConfig>,
    allowed: &[Network],
) -> Result<TlsStream<TcpStream>, FetchError> {
    let stream = dial(url, allowed).await?;
    let _ = stream.set_nodelay(true);
    let name = match url.host() {
        Host::Name(name) => ServerName::try_from(name.clone()).map_err(|_| FetchError::NoAddress(name.clone()))?,
        Host::Address(address) => ServerName::IpAddress((*address).into()),
    };
    TlsConnector::from(tls).connect(name, stream).await.map_err(|error| FetchError::Tls(error.to_string()))
}

async fn dial(url: &EndpointUrl, allowed: &[Network]) -> Result<TcpStream, FetchError> {
    let mut last = None;
    for address in permitted(url, allowed).await? {
        #[expect(clippy::disallowed_methods, reason = "a time limit on network input")]
        match tokio::time::timeout(CONNECT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = Some(FetchError::Connect { address, error: error.to_string() }),
            Err(_) => last = Some(FetchError::Connect { address, error: "no answer in 5 seconds".into() }),
        }
    }
    Err(last.unwrap_or_else(|| FetchError::NoAddress(url.host().to_string())))
}

/// The addresses of the host that may be connected to.
async fn permitted(url: &EndpointUrl, allowed: &[Network]) -> Result<Vec<SocketAddr>, FetchError> {
    let found: Vec<SocketAddr> = match url.host() {
        Host::Address(address) => vec![SocketAddr::new(*address, url.port())],
        Host::Name(name) => {
            let found = tokio::net::lookup_host((name.as_str(), url.port())).await;
            let found = found.map_err(|error| FetchError::Resolve { host: name.clone(), error: error.to_string() })?;
            found.take(64).collect()
        }
    };
    let refused = found.iter().find_map(|found| Some((found.ip(), objection(found.ip(), allowed)?)));
    let permitted = found.into_iter().filter(|found| objection(found.ip(), allowed).is_none());
    let permitted: Vec<SocketAddr> = permitted.take(ADDRESSES).collect();
    match refused {
        Some((address, kind)) if permitted.is_empty() => {
            Err(FetchError::NotPublic { host: url.host().to_string(), address, kind })
        }
        _ => Ok(permitted),
    }
}
