//! One connection to one of the servers: TCP, TLS, HTTP/2, and why there is none.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tracing::{debug, info};

use super::ClientError;
use crate::config::Address;

const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_LIMIT: Duration = Duration::from_secs(5);

pub(super) fn with_http2(mut tls: ClientConfig) -> Arc<ClientConfig> {
    tls.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(tls)
}

/// A connection to the first of `servers` that answers, beginning with the one at `first`; and which one it is.
pub(super) async fn connect_any(
    servers: &[Address],
    first: usize,
    tls: &Arc<ClientConfig>,
) -> Result<(Channel, usize), ClientError> {
    let (mut untrusted, mut unreached) = (Vec::new(), Vec::new());
    for at in (0..servers.len()).map(|step| (first + step) % servers.len()) {
        let Some(address) = servers.get(at) else { continue };
        match connect(address, tls).await {
            Ok(channel) => {
                info!(server = %address, "connected");
                return Ok((channel, at));
            }
            Err(Fault::Untrusted(why)) => {
                debug!(server = %address, why, "is not trusted");
                untrusted.push(format!(
                    "this agent reached {address} but does not trust it: {why}; compare the fingerprint or bundle with \
                     \"chancery authority list\" on the server"
                ));
            }
            Err(Fault::Unreached(why)) => {
                debug!(server = %address, why, "cannot be reached");
                unreached.push(format!("{address}: {why}"));
            }
        }
    }
    let others = if untrusted.is_empty() { "no server can be reached" } else { "no other server can be reached" };
    if !unreached.is_empty() {
        untrusted.push(format!("{others}: {}", unreached.join("; ")));
    }
    Err(ClientError::Unreachable(untrusted.join("; ")))
}

/// Why there is no connection to an address.
#[derive(Clone, Debug, thiserror::Error)]
enum Fault {
    #[error("its certificate is refused: {0}")]
    Untrusted(String),
    #[error("{0}")]
    Unreached(String),
}

async fn connect(address: &Address, tls: &Arc<ClientConfig>) -> Result<Channel, Fault> {
    let (tls, to) = (tls.clone(), address.clone());
    let connector = tower::service_fn(move |_: http::Uri| {
        let (tls, to) = (tls.clone(), to.clone());
        async move { open(&to, tls).await.map(TokioIo::new) }
    });
    // TLS is the connector's: the scheme only tells tonic to add none of its own.
    let endpoint =
        Endpoint::from_shared(format!("http://{address}")).map_err(|error| Fault::Unreached(error.to_string()))?;
    let endpoint = endpoint
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_LIMIT)
        .keep_alive_while_idle(true)
        .http2_adaptive_window(false)
        .tcp_nodelay(true);
    endpoint.connect_with_connector(connector).await.map_err(|error| innermost(&error))
}

/// The error that all others are about.
fn innermost(error: &(dyn std::error::Error + 'static)) -> Fault {
    let mut error = error;
    loop {
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(fault) = inner.and_then(|inner| inner.downcast_ref::<Fault>()) {
            return fault.clone();
        }
        match error.source() {
            Some(source) => error = source,
            None => return Fault::Unreached(error.to_string()),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a limit on input and output of the network")]
async fn open(address: &Address, tls: Arc<ClientConfig>) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    // The verifier goes by the SPIFFE ID alone; a name is what rustls asks for.
    let name = ServerName::try_from(address.host().to_owned()).map_err(io::Error::other)?;
    let connect = async {
        let tcp = TcpStream::connect((address.host(), address.port())).await?;
        tcp.set_nodelay(true)?;
        TlsConnector::from(tls).connect(name, tcp).await.map_err(plainly)
    };
    match tokio::time::timeout(CONNECT_LIMIT, connect).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer within 5 seconds")),
    }
}

/// A failed handshake in our verifier's own words, where it was that which said no.
fn plainly(error: io::Error) -> io::Error {
    use rustls::{CertificateError, Error, OtherError};
    let fault = match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(Error::InvalidCertificate(CertificateError::Other(OtherError(why)))) => Fault::Untrusted(why.to_string()),
        Some(Error::InvalidCertificate(why)) => Fault::Untrusted(why.to_string()),
        Some(Error::InvalidMessage(_) | Error::PeerIncompatible(_)) => {
            Fault::Unreached("no Chancery server at this port: what answers there does not speak its TLS".into())
        }
        _ if error.kind() == io::ErrorKind::UnexpectedEof => Fault::Unreached(
            "the connection was closed in the TLS handshake: is a Chancery server at this port?".into(),
        ),
        _ => return error,
    };
    io::Error::other(fault)
}
