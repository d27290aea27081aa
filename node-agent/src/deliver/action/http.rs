//! One request at a time to an Admin API: HTTP/1.1, with TLS 1.3 where the URL says https.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::{Method, Request, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::{ActionError, aside, listener};
use crate::config::deliver::kong::KongAdmin;
use crate::deliver::inputs::{self, first_line};

/// The most that is read of an answer.
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// What is asked.
pub(super) struct Ask<'a> {
    pub(super) method: Method,
    /// Below the path of the URL, with its slash.
    pub(super) path: &'a str,
    /// JSON; empty: none. Wiped where the caller's bytes are.
    pub(super) body: Bytes,
}

/// What is answered.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

/// Asks it.
pub(super) async fn ask(admin: &KongAdmin, ask: Ask<'_>) -> Result<Answer, ActionError> {
    let unreachable = |why: String| ActionError::Unreachable { url: admin.url.to_string(), why };
    let host = admin.url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let held = admin.clone();
    let Files { tls, token } = aside(move || Files::read(&held)).await?;
    let port = admin.url.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
    if tls.is_none() {
        listener::check(admin, host, port).await?;
    }
    let stream = TcpStream::connect((host, port)).await.map_err(|error| unreachable(error.to_string()))?;
    let request = request(admin, token, ask)?;
    let answer = if let Some(tls) = tls {
        let name = ServerName::try_from(host.to_owned()).map_err(|error| unreachable(error.to_string()))?;
        let connector = TlsConnector::from(Arc::new(tls));
        exchange(connector.connect(name, stream).await.map_err(|error| unreachable(error.to_string()))?, request).await
    } else {
        // Once more: it may have been another one that the connection has reached.
        listener::check(admin, host, port).await?;
        exchange(stream, request).await
    };
    answer.map_err(unreachable)
}

/// What is read of this machine for a request.
struct Files {
    /// With https.
    tls: Option<ClientConfig>,
    token: Option<(HeaderName, HeaderValue)>,
}

impl Files {
    /// Blocks.
    fn read(admin: &KongAdmin) -> Result<Self, ActionError> {
        let wrong = |why: String| ActionError::Unreachable { url: admin.url.to_string(), why };
        let token = admin.token.as_ref().map(|(name, path)| {
            let content = inputs::read(path)?;
            let token = first_line(&content).ok_or_else(|| wrong(format!("{} has no token in it", path.display())))?;
            let mut value = HeaderValue::from_str(token).map_err(|error| wrong(error.to_string()))?;
            value.set_sensitive(true);
            Ok::<_, ActionError>((name.clone(), value))
        });
        let tls = (admin.url.scheme_str() == Some("https")).then(|| tls(admin));
        Ok(Self { tls: tls.transpose()?, token: token.transpose()? })
    }
}

fn request(
    admin: &KongAdmin,
    token: Option<(HeaderName, HeaderValue)>,
    ask: Ask<'_>,
) -> Result<Request<Full<Bytes>>, ActionError> {
    let wrong = |why: String| ActionError::Unreachable { url: admin.url.to_string(), why };
    let path = format!("{}{}", admin.url.path().trim_end_matches('/'), ask.path);
    let uri: Uri = path.parse().map_err(|error: http::uri::InvalidUri| wrong(error.to_string()))?;
    let host = admin.url.authority().map_or("", |authority| authority.as_str());
    let mut request = Request::builder().method(ask.method).uri(uri).header(header::HOST, host);
    if !ask.body.is_empty() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    if let Some((name, value)) = token {
        request = request.header(name, value);
    }
    request.body(Full::new(ask.body)).map_err(|error| wrong(error.to_string()))
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<Answer, String> {
    let words = |error: hyper::Error| error.to_string();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(words)?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let (head, body) = sender.send_request(request).await.map_err(words)?.into_parts();
    let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await.map_err(|error| error.to_string())?;
    Ok(Answer { status: head.status.as_u16(), body: body.to_bytes().to_vec() })
}

fn tls(admin: &KongAdmin) -> Result<ClientConfig, ActionError> {
    let wrong = |path: &Path, why: String| ActionError::Unreachable {
        url: admin.url.to_string(),
        why: format!("{} is not what the config says: {why}", path.display()),
    };
    let certificates = |path: &Path| -> Result<Vec<CertificateDer<'static>>, ActionError> {
        let content = inputs::read(path)?;
        CertificateDer::pem_slice_iter(&content)
            .collect::<Result<_, _>>()
            .map_err(|error| wrong(path, error.to_string()))
    };
    let mut roots = RootCertStore::empty();
    if let Some(path) = &admin.ca_file {
        for root in certificates(path)? {
            roots.add(root).map_err(|error| wrong(path, error.to_string()))?;
        }
    }
    let builder = ClientConfig::builder_with_provider(spiffe::crypto::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| ActionError::Unreachable { url: admin.url.to_string(), why: error.to_string() })?
        .with_root_certificates(roots);
    let Some((certificate, key)) = &admin.client else { return Ok(builder.with_no_client_auth()) };
    let chain = certificates(certificate)?;
    let content = inputs::read(key)?;
    let private_key = PrivateKeyDer::from_pem_slice(&content).map_err(|error| wrong(key, error.to_string()))?;
    builder.with_client_auth_cert(chain, private_key).map_err(|error| wrong(certificate, error.to_string()))
}
