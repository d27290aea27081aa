//! Connections of the web, bounded in every way: how many there are, in all and of one network; how long a handshake, a
//! head and a whole connection take; how large a head is. Beyond the bounds a connection is closed at once.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::answer::Site;
use super::print::Press;
use crate::origin::{Origin, Places};
use crate::view::follow::Views;

/// Connections of one network, so that one peer never holds all of them: behind one address there may be many pollers.
const OF_ONE: usize = 64;
/// For a handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// For the head of a request.
const HEAD: Duration = Duration::from_secs(10);
/// For a whole connection: a poller asks one thing, or two.
const CONNECTION: Duration = Duration::from_secs(60);
/// The most bytes of a request's head.
const MAX_HEAD_BYTES: usize = 16 << 10;
const MAX_HEADERS: usize = 64;
/// Requests at once on one connection.
const MAX_STREAMS: u32 = 16;

/// What a connection meets.
#[derive(Clone, Debug)]
pub(super) struct Door {
    pub(super) tls: Arc<ServerConfig>,
    pub(super) site: Arc<Site>,
    pub(super) press: Arc<Press>,
    pub(super) views: Arc<Views>,
}

/// Serves on `port` until `stop`, `most` connections at once, then lets open requests end.
pub(super) async fn accept(port: TcpListener, door: Door, most: usize, stop: CancellationToken) {
    let (places, connections) = (Places::new(most, OF_ONE), TaskTracker::new());
    loop {
        let accepted = tokio::select! {
            accepted = port.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, mostly: let others close some.
                warn!(%error, "web: a connection could not be accepted");
                pause().await;
                continue;
            }
        };
        let Some(place) = places.take(Origin::network(address.ip())) else {
            debug!(%address, "web: too many connections: turned away");
            continue;
        };
        let (door, stop) = (door.clone(), stop.clone());
        connections.spawn(async move {
            converse(stream, door, stop).await;
            drop(place);
        });
    }
    connections.close();
    connections.wait().await;
}

#[expect(clippy::disallowed_methods, reason = "a pause after a failed accept of the operating system")]
async fn pause() {
    tokio::time::sleep(Duration::from_millis(100)).await;
}

#[expect(clippy::disallowed_methods, reason = "limits how long a peer may hold a connection of the network")]
async fn converse(stream: TcpStream, door: Door, stop: CancellationToken) {
    let _ = stream.set_nodelay(true);
    let stream = tokio::select! {
        // Who went away or was too slow is his own affair.
        shaken = tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(door.tls).accept(stream)) => match shaken {
            Ok(Ok(stream)) => stream,
            _ => return,
        },
        () = stop.cancelled() => return,
    };
    if stream.get_ref().1.alpn_protocol() == Some(super::acme::PROTOCOL) {
        // The handshake was all of it (RFC 8737 section 4).
        return;
    }
    let (site, press, views) = (door.site, door.press, door.views);
    let service = service_fn(move |request: Request<Incoming>| {
        // The body is dropped unread.
        let (head, _) = request.into_parts();
        let response = site.answer(&head, &press.print(&site, views.load().bundle()));
        async move { Ok::<_, Infallible>(response) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS);
    let head = u32::try_from(MAX_HEAD_BYTES).unwrap_or(u32::MAX);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(MAX_STREAMS).max_header_list_size(head);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    let talk = async {
        tokio::select! {
            ended = connection.as_mut() => return ended,
            () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        connection.await
    };
    let _ = tokio::time::timeout(CONNECTION, talk).await;
}
