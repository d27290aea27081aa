//! One poll's request: a GET of a bundle endpoint, bounded in every way (SPIFFE_Federation.md sections 5.2.1.4, 5.2.2.4
//! and 7.5).
//!
//! - The whole of it, redirects included, has one deadline: who sends a byte a second is cut off like who sends none.
//! - A body of [`MAX_DOCUMENT_BYTES`] and a head of 64 KiB at most; nothing is decompressed.
//! - A redirect is followed three times at most, for this once: each is a URL by the rules, its address is looked at
//!   anew, and what it leads to is known by the same TLS. Only the status 200 brings a bundle.
//! - A redirect to another host leads to public addresses only: `federation.allow_networks` is the operator's word for
//!   the URL that he gave, not for one that its endpoint makes up.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, HOST, LOCATION, USER_AGENT};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use spiffe::bundle::{BundleError, MAX_DOCUMENT_BYTES};
use spiffe::federation::{EndpointUrl, UrlError};
use spiffe::id::TrustDomain;
use spiffe::settings::write_duration;
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use super::address::objection;
use crate::config::Network;
use crate::https::{self, ConnectError};

const MAX_HEAD_BYTES: usize = 64 << 10;
const MAX_HEADERS: usize = 128;
const MAX_REDIRECTS: usize = 3;
const AGENT: &str = concat!("chancery/", env!("CARGO_PKG_VERSION"));

/// Why a poll brought nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// There is no connection to the endpoint.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The bundle that would tell the endpoint is not known.
    #[error(
        "there is no bundle of {0} to know the endpoint by: give one with \"chancery bundle set {0}\", or form a \
         relationship with {0} first"
    )]
    NoBundle(TrustDomain),
    /// The bundle that would tell the endpoint has no roots.
    #[error(
        "the bundle of {0} has no X.509 roots, so that nothing tells its endpoint: if {0} lives, give its bundle with \
         \"chancery bundle set {0}\""
    )]
    EmptyBundle(TrustDomain),
    /// The endpoint does not speak HTTP.
    #[error("the endpoint's answer cannot be read: {0}")]
    Http(String),
    /// Another status than 200.
    #[error("the endpoint answers with status {0}, and only 200 brings a bundle: is its URL right?")]
    Status(u16),
    /// A redirect without a good target.
    #[error("the endpoint redirects to a URL that is refused: {0}")]
    Redirect(#[from] UrlError),
    /// A redirect to another host that is not public.
    #[error(
        "the endpoint redirects to {host}, which is at {address}, a {kind} address: redirects to other hosts are followed \
         to public addresses only; if it is meant, give its URL (\"chancery federation update\" with --url)"
    )]
    RedirectInside {
        /// The host.
        host: String,
        /// One of its addresses.
        address: IpAddr,
        /// Of which kind that is.
        kind: &'static str,
    },
    /// A redirect that says not where to.
    #[error("the endpoint redirects, and does not say where to")]
    NoLocation,
    /// One redirect after the other.
    #[error("the endpoint redirects more than 3 times")]
    TooManyRedirects,
    /// More than a bundle can be.
    #[error("the endpoint sends more than 4194304 bytes: this is no bundle")]
    TooLarge,
    /// The deadline has passed.
    #[error("the endpoint took longer than {}: see federation.timeout", write_duration(*.0))]
    TooSlow(Duration),
    /// What came is no bundle.
    #[error(transparent)]
    Bundle(#[from] BundleError),
}

/// What bounds a request beside what is the same for all.
#[derive(Clone, Debug)]
pub struct Limits {
    /// For the whole of it.
    pub timeout: Duration,
    /// Networks that are not public and may be polled.
    pub allow_networks: Vec<Network>,
}

/// The document at `url`, whose endpoint shows what `tls` asks for.
pub(super) async fn fetch(url: &EndpointUrl, tls: Arc<ClientConfig>, limits: &Limits) -> Result<Vec<u8>, FetchError> {
    #[expect(clippy::disallowed_methods, reason = "a time limit on network input")]
    let fetched = tokio::time::timeout(limits.timeout, follow(url, tls, limits)).await;
    fetched.unwrap_or(Err(FetchError::TooSlow(limits.timeout)))
}

async fn follow(given: &EndpointUrl, tls: Arc<ClientConfig>, limits: &Limits) -> Result<Vec<u8>, FetchError> {
    let mut url = given.clone();
    for _ in 0..=MAX_REDIRECTS {
        let is_elsewhere = url.host() != given.host();
        let allowed: &[Network] = if is_elsewhere { &[] } else { &limits.allow_networks };
        let connected = https::connect(&url, Arc::clone(&tls), &|address| objection(address, allowed)).await;
        let stream = connected.map_err(|error| match error {
            ConnectError::NotPublic { host, address, kind } if is_elsewhere => {
                FetchError::RedirectInside { host, address, kind }
            }
            other => other.into(),
        })?;
        let address = stream.get_ref().0.peer_addr().ok();
        let asking =
            http1::Builder::new().max_buf_size(MAX_HEAD_BYTES).max_headers(MAX_HEADERS).handshake(TokioIo::new(stream));
        let (mut sender, connection) = asking.await.map_err(|error| FetchError::Http(error.to_string()))?;
        // Ends with this hop. How it ended is in what the sender says.
        let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
        let response =
            sender.send_request(request(&url)?).await.map_err(|error| FetchError::Http(error.to_string()))?;
        debug!(%url, ?address, status = response.status().as_u16(), "asked a bundle endpoint");
        match response.status() {
            StatusCode::OK => return body(response.into_body()).await,
            status if is_redirect(status) => url = target(&url, &response)?,
            status => return Err(FetchError::Status(status.as_u16())),
        }
    }
    Err(FetchError::TooManyRedirects)
}

fn request(url: &EndpointUrl) -> Result<Request<Empty<Bytes>>, FetchError> {
    let request = Request::get(url.target())
        .header(HOST, url.authority())
        .header(ACCEPT, "application/json")
        .header(USER_AGENT, AGENT)
        .body(Empty::new());
    request.map_err(|error| FetchError::Http(error.to_string()))
}

/// Whether the answer is elsewhere (RFC 9110 section 15.4). What is permanent is taken as temporary (section 7.5.1).
fn is_redirect(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::MOVED_PERMANENTLY
            | StatusCode::FOUND
            | StatusCode::SEE_OTHER
            | StatusCode::TEMPORARY_REDIRECT
            | StatusCode::PERMANENT_REDIRECT
    )
}

fn target(from: &EndpointUrl, response: &Response<Incoming>) -> Result<EndpointUrl, FetchError> {
    let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
    Ok(from.redirected(location.ok_or(FetchError::NoLocation)?)?)
}

async fn body(mut body: Incoming) -> Result<Vec<u8>, FetchError> {
    if body.size_hint().lower() > MAX_DOCUMENT_BYTES as u64 {
        return Err(FetchError::TooLarge);
    }
    let mut document = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| FetchError::Http(error.to_string()))?;
        let Some(data) = frame.data_ref() else { continue };
        if document.len() + data.len() > MAX_DOCUMENT_BYTES {
            return Err(FetchError::TooLarge);
        }
        document.extend_from_slice(data);
    }
    Ok(document)
}
