//! HTTPS from this side: what servers of the web are known by, and a connection to one of them.
//!
//! - A name is resolved once, its addresses are shown to whoever asked for the connection, and one of those that he has
//!   nothing against is connected to.
//! - A server of the web shows a certificate for the host of the URL below a root of the operating system, or of the config.
//!   TLS 1.2 and 1.3: the web's servers speak both.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::version::{TLS12, TLS13};
use rustls::{CertificateError, ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName};
use spiffe::crypto;
use spiffe::federation::{EndpointUrl, Host};
use spiffe::time::{Clock, Timestamp, TlsTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How long one address may take to answer, before the next one is tried.
const CONNECT: Duration = Duration::from_secs(5);
/// How many addresses of a name are tried.
const ADDRESSES: usize = 4;
/// How old the operating system's roots may be.
const ROOTS: Duration = Duration::from_secs(3600);
const HTTP_1: &[u8] = b"http/1.1";

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// There is nothing to know a server by.
    #[error("the TLS of the web cannot be set up: {0}")]
    Roots(String),
    /// The host's addresses cannot be had.
    #[error("{host} cannot be resolved: {error}")]
    Resolve {
        /// The host.
        host: String,
        /// What the resolver said.
        error: String,
    },
    /// The host has no address.
    #[error("{0} has no address")]
    NoAddress(String),
    /// All addresses of the host are of kinds that are not polled.
    #[error(
        "{host} is at {address}, a {kind} address, and only public ones are polled: if it is meant, add its network to \
         federation.allow_networks in the server's config"
    )]
    NotPublic {
        /// The host.
        host: String,
        /// One of its addresses.
        address: IpAddr,
        /// Of which kind that is.
        kind: &'static str,
    },
    /// Nobody answers.
    #[error("{address} does not answer: {error}")]
    Connect {
        /// The last address that was tried.
        address: SocketAddr,
        /// What the system said.
        error: String,
    },
    /// The server is not who it should be, or speaks no TLS that we do.
    #[error("the endpoint is refused: {0}")]
    Tls(String),
}

/// What may be said against an address: a word for its kind.
pub type Objection<'a> = &'a (dyn Fn(IpAddr) -> Option<&'static str> + Send + Sync);

/// What servers of the web are known by: the roots of the operating system, read again when an hour old, and further ones.
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

    /// What a server of the web is known by now.
    pub async fn tls(self: &Arc<Self>) -> Result<Arc<ClientConfig>, ConnectError> {
        let now = self.clock.now();
        let held = self.read.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((_, config)) = held.filter(|(at, _)| now.since(*at) < ROOTS && *at <= now) {
            return Ok(config);
        }
        let roots = Arc::clone(self);
        let config = tokio::task::spawn_blocking(move || roots.load()).await;
        let config = Arc::new(config.map_err(|error| ConnectError::Roots(error.to_string()))??);
        *self.read.lock().unwrap_or_else(PoisonError::into_inner) = Some((now, Arc::clone(&config)));
        Ok(config)
    }

    fn load(&self) -> Result<ClientConfig, ConnectError> {
        let system = rustls_native_certs::load_native_certs();
        for error in &system.errors {
            tracing::warn!(%error, "some web roots of the operating system cannot be read");
        }
        let mut roots = RootCertStore::empty();
        // Those that are no roots by our rules are passed over: there are always some.
        roots.add_parsable_certificates(system.certs.into_iter().chain(self.extra.iter().cloned()));
        if roots.is_empty() {
            let why =
                "the operating system has none: install its package of CA certificates, or name roots in the config";
            return Err(ConnectError::Roots(why.into()));
        }
        let time = Arc::new(TlsTime(Arc::clone(&self.clock)));
        let builder = ClientConfig::builder_with_details(crypto::provider(), time)
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(|error| ConnectError::Roots(error.to_string()))?;
        Ok(speaking_http(builder.with_root_certificates(roots).with_no_client_auth()))
    }
}

/// The same, for a server that is to speak HTTP.
pub fn speaking_http(mut config: ClientConfig) -> ClientConfig {
    config.alpn_protocols = vec![HTTP_1.to_vec()];
    // A resumed session would skip the verifier.
    config.resumption = rustls::client::Resumption::disabled();
    config
}

/// An open connection to the endpoint of `url`, which has shown what `tls` asks for.
pub async fn connect(
    url: &EndpointUrl,
    tls: Arc<ClientConfig>,
    objection: Objection<'_>,
) -> Result<TlsStream<TcpStream>, ConnectError> {
    let stream = dial(url, objection).await?;
    let _ = stream.set_nodelay(true);
    let name = match url.host() {
        Host::Name(name) => ServerName::try_from(name.clone()).map_err(|_| ConnectError::NoAddress(name.clone()))?,
        Host::Address(address) => ServerName::IpAddress((*address).into()),
    };
    TlsConnector::from(tls).connect(name, stream).await.map_err(|error| ConnectError::Tls(in_words(&error)))
}

/// Why there is no TLS: our own words where the verifier is ours, and what to do where rustls says none.
fn in_words(error: &io::Error) -> String {
    use rustls::Error::{InvalidCertificate, InvalidMessage};
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(InvalidCertificate(CertificateError::Other(ours))) => ours.to_string(),
        Some(InvalidCertificate(CertificateError::UnknownIssuer)) => {
            "its certificate is below no CA that is known here (UnknownIssuer): if it is meant, name that CA in the \
             server's config (federation.web_roots; for an ACME CA web.https_web.acme.roots)"
                .into()
        }
        Some(InvalidMessage(_)) => format!("it does not speak TLS, or no good one: {error}"),
        _ => error.to_string(),
    }
}

async fn dial(url: &EndpointUrl, objection: Objection<'_>) -> Result<TcpStream, ConnectError> {
    let mut last = None;
    for address in permitted(url, objection).await? {
        #[expect(clippy::disallowed_methods, reason = "a time limit on network input")]
        match tokio::time::timeout(CONNECT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = Some(ConnectError::Connect { address, error: error.to_string() }),
            Err(_) => last = Some(ConnectError::Connect { address, error: "no answer in 5 seconds".into() }),
        }
    }
    Err(last.unwrap_or_else(|| ConnectError::NoAddress(url.host().to_string())))
}

/// The addresses of the host that may be connected to.
async fn permitted(url: &EndpointUrl, objection: Objection<'_>) -> Result<Vec<SocketAddr>, ConnectError> {
    let found: Vec<SocketAddr> = match url.host() {
        Host::Address(address) => vec![SocketAddr::new(*address, url.port())],
        Host::Name(name) => {
            let found = tokio::net::lookup_host((name.as_str(), url.port())).await;
            let found =
                found.map_err(|error| ConnectError::Resolve { host: name.clone(), error: error.to_string() })?;
            found.take(64).collect()
        }
    };
    let refused = found.iter().find_map(|found| Some((found.ip(), objection(found.ip())?)));
    let permitted = found.into_iter().filter(|found| objection(found.ip()).is_none());
    let permitted: Vec<SocketAddr> = permitted.take(ADDRESSES).collect();
    match refused {
        Some((address, kind)) if permitted.is_empty() => {
            Err(ConnectError::NotPublic { host: url.host().to_string(), address, kind })
        }
        _ => Ok(permitted),
    }
}
