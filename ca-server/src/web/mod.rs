//! What other trust domains may fetch: our bundle (SPIFFE_Federation.md section 5.2), on listeners of its own, off by
//! default.
//!
//! | file | owns |
//! |---|---|
//! | `answer` | which request gets what (pure) |
//! | `print` | the documents of a bundle, made once |
//! | `discovery` | OpenID Connect Discovery, for verifiers of JWT-SVIDs that know no SPIFFE (pure) |
//! | `acme` | the certificate of the web by ACME |
//! | `certificate` | the certificate of the web, read again when its files change |
//! | `listen` | connections, bounded in every way |
//!
//! - `https_web` shows a certificate of the web, `https_spiffe` the server's own SVID; both may be served at once.
//! - Nobody is asked who he is: neither by TLS nor by HTTP (sections 5.2.1.3 and 5.2.2.3).
//! - An answer is made of the View of its moment: a root that is prepared is there before anything is signed with it.

mod acme;
mod answer;
mod certificate;
mod discovery;
mod listen;
mod print;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::{NoServerSessionStorage, ResolvesServerCert};
use rustls::version::{TLS12, TLS13};
use spiffe::crypto;
use spiffe::federation::ProfileName;
use spiffe::mtls::CurrentSvid;
use spiffe::time::{Clock, TlsTime};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;

use crate::config::{self, ConfigError, WebCertificate};
use crate::view::follow::Views;
pub use acme::AcmeError;
use acme::Keeper;
use answer::Site;
pub use certificate::CertificateError;
use certificate::Files;
use print::Press;

/// Why nothing can be served.
#[derive(Debug, thiserror::Error)]
pub enum WebError {
    /// The certificate of the web is no good.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// ACME cannot be set up.
    #[error(transparent)]
    Acme(#[from] AcmeError),
    /// A file cannot be read.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// TLS could not be set up.
    #[error("TLS of the web listener cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    /// A port has no address.
    #[error("the web listener has no address: {0}")]
    Address(#[from] std::io::Error),
}

/// Ports that are ours and not yet served.
#[derive(Debug, Default)]
pub struct Ports {
    /// Of `https_web`.
    pub https_web: Option<TcpListener>,
    /// Of `https_spiffe`.
    pub https_spiffe: Option<TcpListener>,
}

/// Where the bundle is served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// By `https_web`.
    pub https_web: Option<SocketAddr>,
    /// By `https_spiffe`.
    pub https_spiffe: Option<SocketAddr>,
}

/// What serving is made of.
#[derive(Debug)]
pub struct Parts<'a> {
    /// What the config says.
    pub config: &'a config::Web,
    /// Where the ACME account and what came of it are kept.
    pub acme_dir: PathBuf,
    /// What `https_spiffe` shows.
    pub svid: CurrentSvid,
    /// Where the bundle is.
    pub views: Arc<Views>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// Where its loops run.
    pub loops: &'a TaskTracker,
    /// When they end.
    pub stop: &'a CancellationToken,
}

/// Serves on `ports` until `stop`.
pub fn serve(ports: Ports, parts: &Parts<'_>) -> Result<Addresses, WebError> {
    let (path, refresh_hint) = (parts.config.path.clone(), parts.config.refresh_hint);
    let site = Site { path, refresh_hint, oidc: None };
    let mut addresses = Addresses::default();
    if let (Some(port), Some(web)) = (ports.https_web, &parts.config.https_web) {
        let site = Site { oidc: parts.config.oidc.clone(), ..site.clone() };
        let address = match &web.certificate {
            WebCertificate::Files(files) => {
                let files = Files::open(files)?;
                let address = begin(port, tls(files.shown(), parts)?, site, parts)?;
                keep(files.keep(Arc::clone(&parts.clock)), parts);
                address
            }
            WebCertificate::Acme(acme) => {
                let keeper = Keeper::open(acme, parts.acme_dir.clone(), Arc::clone(&parts.clock))?;
                let mut tls = tls(keeper.shown(), parts)?;
                tls.alpn_protocols.push(acme::PROTOCOL.to_vec());
                let address = begin(port, tls, site, parts)?;
                keep(keeper.keep(), parts);
                address
            }
        };
        info!(%address, profile = %ProfileName::HttpsWeb, "the bundle is served");
        addresses.https_web = Some(address);
    }
    if let Some(port) = ports.https_spiffe {
        let tls = tls(Arc::new(parts.svid.clone()), parts)?;
        let address = begin(port, tls, site, parts)?;
        info!(%address, profile = %ProfileName::HttpsSpiffe, "the bundle is served");
        addresses.https_spiffe = Some(address);
    }
    Ok(addresses)
}

/// Runs a loop until the server stops.
fn keep(work: impl Future<Output = ()> + Send + 'static, parts: &Parts<'_>) {
    let stop = parts.stop.clone();
    parts.loops.spawn(async move {
        tokio::select! {
            () = work => {}
            () = stop.cancelled() => {}
        }
    });
}

fn begin(port: TcpListener, tls: ServerConfig, site: Site, parts: &Parts<'_>) -> Result<SocketAddr, WebError> {
    let address = port.local_addr()?;
    let door = listen::Door {
        tls: Arc::new(tls),
        site: Arc::new(site),
        press: Arc::new(Press::default()),
        views: Arc::clone(&parts.views),
    };
    parts.loops.spawn(listen::accept(port, door, parts.config.connections, parts.stop.clone()));
    Ok(address)
}

/// TLS 1.2 and 1.3 with forward secrecy and authenticated ciphers only, as Mozilla's intermediate compatibility asks.
fn tls(shown: Arc<dyn ResolvesServerCert>, parts: &Parts<'_>) -> Result<ServerConfig, rustls::Error> {
    let time = Arc::new(TlsTime(Arc::clone(&parts.clock)));
    let mut config = ServerConfig::builder_with_details(crypto::provider(), time)
        .with_protocol_versions(&[&TLS13, &TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(shown);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // A poller comes once in minutes: a session that could be resumed would be memory for nothing.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}
