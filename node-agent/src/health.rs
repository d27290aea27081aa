//! `/live`, `/ready` and `/metrics` over HTTP/1.1 on a loopback address.
//!
//! - Live as long as the process answers; ready while the workload socket is served, server gone or not.
//! - At most a few connections at once, each for one request.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use spiffe::time::Clock;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::metrics::Metrics;

const CONNECTIONS: usize = 16;
const CONNECTION_LIMIT: Duration = Duration::from_secs(10);

/// What is told about the agent.
#[derive(Clone, Debug)]
pub struct Health {
    /// Set once the workload socket is served.
    pub ready: Arc<AtomicBool>,
    /// The counters.
    pub metrics: Metrics,
    /// For a pause when no connection can be accepted.
    pub clock: Arc<dyn Clock>,
}

impl Health {
    /// Answers on `listener` until `shutdown`.
    pub async fn serve(self, listener: TcpListener, shutdown: CancellationToken) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = shutdown.cancelled() => return,
            };
            match accepted {
                Ok((stream, _)) => {
                    // Too many at once: the newest is dropped.
                    let Ok(place) = places.clone().try_acquire_owned() else { continue };
                    let health = self.clone();
                    tokio::spawn(async move {
                        health.answer_one(stream).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    warn!(%error, "health: no connection can be accepted");
                    self.clock.sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    #[expect(clippy::disallowed_methods, reason = "a limit on input and output of the network")]
    async fn answer_one(self, stream: TcpStream) {
        let service = service_fn(|request| {
            let response = self.answer(&request);
            async { Ok::<_, Infallible>(response) }
        });
        let connection = http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service);
        // A client that goes away, or does not finish, is not news.
        let _ = tokio::time::timeout(CONNECTION_LIMIT, connection).await;
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let ready = self.ready.load(Ordering::Relaxed);
        let (status, text) = match (request.method(), request.uri().path()) {
            (&Method::GET, "/live") => (StatusCode::OK, "live\n".to_owned()),
            (&Method::GET, "/ready") if ready => (StatusCode::OK, "ready\n".to_owned()),
            (&Method::GET, "/ready") => (StatusCode::SERVICE_UNAVAILABLE, "not ready yet\n".to_owned()),
            (&Method::GET, "/metrics") => (StatusCode::OK, self.metrics.render()),
            _ => (StatusCode::NOT_FOUND, "ask for /live, /ready or /metrics\n".to_owned()),
        };
        let kind = match request.uri().path() {
            "/metrics" => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            _ => "text/plain; charset=utf-8",
        };
        let mut response = Response::new(Full::new(text.into()));
        *response.status_mut() = status;
        response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
        response
    }
}

/// Binds the health address.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn live_before_ready() {
        let health =
            Health { ready: Arc::default(), metrics: Metrics::default(), clock: Arc::new(spiffe::time::System) };
        let (ready, shutdown) = (health.ready.clone(), CancellationToken::new());
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(health.serve(listener, shutdown.clone()));
        let ask = async |path: &str| {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer.get(9..12).unwrap().to_owned()
        };
        assert_eq!(ask("/live").await, "200");
        assert_eq!(ask("/ready").await, "503");
        ready.store(true, Ordering::Relaxed);
        assert_eq!(ask("/ready").await, "200");
        assert_eq!(ask("/metrics").await, "200");
        assert_eq!(ask("/other").await, "404");
        shutdown.cancel();
        server.await.unwrap();
    }
}
