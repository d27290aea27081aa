//! `/live`, `/ready` and `/metrics`, on a loopback port.
//!
//! - `/live` says that the process answers; it never asks the store or anything else that could be slow, and is there
//!   before the store is open: however long that takes, it is no reason to end the process.
//! - `/ready` is 503 while something is missing to sign SVIDs, or for a while to know whose they are, and says what in JSON.
//! - Nobody can hold it up: few connections, small headers, short times.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::metrics::Metrics;

/// The most connections at a time; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 32;
/// The most bytes of a request's head.
const MAX_HEAD_BYTES: usize = 8 << 10;
/// For the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// For a whole connection, so that nobody keeps one for ever.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// What the server needs to sign SVIDs, each either there or missing for a reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readiness(Vec<(&'static str, Result<(), String>)>);

impl Readiness {
    /// One more need: its name, and why it is missing, if it is.
    #[must_use]
    pub fn with(mut self, name: &'static str, state: Result<(), String>) -> Self {
        self.0.push((name, state));
        self
    }

    /// Whether everything is there.
    pub fn is_ready(&self) -> bool {
        self.0.iter().all(|(_, state)| state.is_ok())
    }

    /// `{"ready": false, "audit": "ok", "view": "not loaded yet"}`.
    pub fn to_json(&self) -> String {
        let mut json = serde_json::Map::new();
        json.insert("ready".into(), self.is_ready().into());
        for (name, state) in &self.0 {
            json.insert((*name).into(), state.as_ref().err().map_or("ok", String::as_str).into());
        }
        serde_json::Value::Object(json).to_string()
    }
}

/// Asks whether the server is ready. Has to be cheap and must not block.
pub type Ready = Arc<dyn Fn() -> Readiness + Send + Sync>;

/// What only a server that has started knows.
#[derive(Clone)]
pub struct Known {
    /// Whether it is ready.
    pub ready: Ready,
    /// Its numbers.
    pub metrics: Arc<Metrics>,
}

/// The same, from the moment at which there is something to know.
pub type Starting = Arc<OnceLock<Known>>;

/// Serves on `listener` until `stop`, then lets open requests end.
pub async fn serve(listener: TcpListener, starting: Starting, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let connections = TaskTracker::new();
    loop {
        let accepted = async {
            let place = places.clone().acquire_owned().await.ok()?;
            match listener.accept().await {
                Ok((stream, _)) => Some((stream, place)),
                Err(error) => {
                    // Out of file descriptors, mostly: let others close some.
                    tracing::warn!(%error, "health: a connection could not be accepted");
                    pause().await;
                    None
                }
            }
        };
        let (stream, place) = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accepted => match accepted {
                Some(accepted) => accepted,
                None => continue,
            },
        };
        let (starting, stop) = (starting.clone(), stop.clone());
        connections.spawn(async move {
            converse(stream, starting, stop).await;
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
async fn converse(stream: TcpStream, starting: Starting, stop: CancellationToken) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = answer(&request, starting.get());
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(64)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let talk = async {
        tokio::select! {
            ended = connection.as_mut() => return ended,
            () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        connection.await
    };
    // Whether the peer went away or was too slow is its own affair.
    let _ = tokio::time::timeout(CONNECTION_TIMEOUT, talk).await;
}

fn answer(request: &Request<Incoming>, known: Option<&Known>) -> Response<Full<Bytes>> {
    const TEXT: &str = "text/plain; charset=utf-8";
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = respond(StatusCode::METHOD_NOT_ALLOWED, TEXT, "use GET\n".into());
        response.headers_mut().insert(ALLOW, http::HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/live" => respond(StatusCode::OK, TEXT, "alive\n".into()),
        "/ready" => {
            let opening =
                || Readiness::default().with("store", Err("not open yet: this server is starting".to_owned()));
            let readiness = known.map_or_else(opening, |known| (known.ready)());
            let status = if readiness.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            respond(status, "application/json", readiness.to_json() + "\n")
        }
        "/metrics" => match known.map(|known| known.metrics.encode()) {
            Some(Ok(text)) => {
                respond(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", text)
            }
            Some(Err(error)) => respond(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("metrics: {error}\n")),
            None => respond(StatusCode::SERVICE_UNAVAILABLE, TEXT, "this server is starting\n".into()),
        },
        _ => respond(StatusCode::NOT_FOUND, TEXT, "there are /live, /ready and /metrics\n".into()),
    }
}

fn respond(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response.headers_mut().insert(CACHE_CONTROL, http::HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::metrics::Observed;

    async fn ask(address: SocketAddr, head: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // A refused head may end in a reset, after the answer.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    }

    async fn fetch(address: SocketAddr, path: &str) -> String {
        ask(address, &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await
    }

    #[tokio::test]
    async fn live_ready_and_metrics() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let loaded = Arc::new(AtomicBool::new(false));
        let ready: Ready = {
            let loaded = loaded.clone();
            Arc::new(move || {
                let view = if loaded.load(Ordering::Relaxed) { Ok(()) } else { Err("not loaded yet".to_owned()) };
                Readiness::default().with("view", view).with("audit", Ok(()))
            })
        };
        let metrics = Arc::new(Metrics::new("0", Arc::new(Observed::default)));
        let stop = CancellationToken::new();
        let starting = Starting::default();
        let server = tokio::spawn(serve(listener, starting.clone(), stop.clone()));

        // The store is being opened, and that may take its time.
        assert!(fetch(address, "/live").await.starts_with("HTTP/1.1 200 OK"));
        let answer = fetch(address, "/ready").await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("this server is starting"), "{answer}");
        assert!(fetch(address, "/metrics").await.starts_with("HTTP/1.1 503 "));
        assert!(starting.set(Known { ready, metrics }).is_ok());

        assert!(fetch(address, "/live").await.starts_with("HTTP/1.1 200 OK"));
        let answer = fetch(address, "/ready").await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.ends_with("{\"audit\":\"ok\",\"ready\":false,\"view\":\"not loaded yet\"}\n"), "{answer}");
        loaded.store(true, Ordering::Relaxed);
        assert!(fetch(address, "/ready").await.starts_with("HTTP/1.1 200 OK"));
        let answer = fetch(address, "/metrics").await;
        assert!(answer.contains("application/openmetrics-text") && answer.ends_with("# EOF\n"), "{answer}");
        assert!(fetch(address, "/").await.starts_with("HTTP/1.1 404 "));
        let post = "POST /live HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        assert!(ask(address, post).await.starts_with("HTTP/1.1 405 "));
        let large = format!("GET /live HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "a".repeat(20_000));
        assert!(ask(address, &large).await.starts_with("HTTP/1.1 431 "));

        // A connection that says nothing does not hold up the end.
        let idle = TcpStream::connect(address).await.unwrap();
        stop.cancel();
        server.await.unwrap();
        drop(idle);
    }
}
