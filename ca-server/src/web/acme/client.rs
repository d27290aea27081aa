//! How the ACME client's requests travel: one connection for each, to what the config calls the CA.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{HOST, USER_AGENT};
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Uri};
use http_body_util::{BodyExt as _, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use spiffe::federation::EndpointUrl;
use tokio_util::task::AbortOnDropHandle;

use crate::https::{self, WebRoots};

/// The most bytes of an answer: a chain of certificates is a hundredth of it.
const MAX_BODY_BYTES: usize = 1 << 20;
const AGENT: &str = concat!("chancery/", env!("CARGO_PKG_VERSION"));

/// Asks servers of the web.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) roots: Arc<WebRoots>,
}

impl HttpClient for Client {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        Box::pin(ask(Arc::clone(&self.roots), request))
    }
}

async fn ask(roots: Arc<WebRoots>, mut request: Request<BodyWrapper<Bytes>>) -> Result<BytesResponse, Error> {
    let url = EndpointUrl::parse(&request.uri().to_string()).map_err(other)?;
    let host = HeaderValue::from_str(&url.authority()).map_err(other)?;
    request.headers_mut().insert(HOST, host);
    request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(AGENT));
    *request.uri_mut() = Uri::from(PathAndQuery::try_from(url.target()).map_err(other)?);
    // The config names the CA, and the CA its URLs: no stranger chooses where this goes.
    let tls = roots.tls().await.map_err(other)?;
    let stream = https::connect(&url, tls, &|_| None).await.map_err(other)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(other)?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let (parts, body) = sender.send_request(request).await.map_err(other)?.into_parts();
    let body = Limited::new(body, MAX_BODY_BYTES).collect().await.map_err(Error::Other)?.to_bytes();
    Ok(BytesResponse { parts, body: Box::new(body) })
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Other(Box::new(error))
}
