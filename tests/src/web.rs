//! A browser of few words: TLS to a port of this machine, or none, one request by hand, and what came.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use rustls_pki_types::{CertificateDer, ServerName};
use spiffe::crypto;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Who asks for `name` at 127.0.0.1:`port`, and what he trusts.
#[derive(Clone, Debug)]
pub struct Browser {
    /// The port.
    pub port: u16,
    /// The host that he takes it for.
    pub name: String,
    /// His CAs.
    pub roots: Vec<CertificateDer<'static>>,
    /// The versions of TLS that he speaks.
    pub versions: &'static [&'static SupportedProtocolVersion],
}

impl Browser {
    /// A browser that speaks TLS 1.2 and 1.3.
    pub fn new(port: u16, name: &str, roots: Vec<CertificateDer<'static>>) -> Self {
        Self { port, name: name.into(), roots, versions: rustls::ALL_VERSIONS }
    }

    /// An open connection.
    pub async fn connect(&self) -> Result<TlsStream<TcpStream>, String> {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(self.roots.iter().cloned());
        let config = ClientConfig::builder_with_provider(crypto::provider())
            .with_protocol_versions(self.versions)
            .unwrap()
            .with_root_certificates(store)
            .with_no_client_auth();
        let words = |error: std::io::Error| error.to_string();
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await.map_err(words)?;
        let server = ServerName::try_from(self.name.clone()).unwrap();
        TlsConnector::from(Arc::new(config)).connect(server, stream).await.map_err(words)
    }

    /// The certificate that is shown, and what a GET of `path` brings.
    pub async fn get(&self, path: &str) -> Result<(Vec<u8>, String), String> {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.name)).await
    }

    /// The certificate that is shown, and what this request brings.
    pub async fn ask(&self, request: &str) -> Result<(Vec<u8>, String), String> {
        let mut stream = self.connect().await?;
        let shown = stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
        stream.write_all(request.as_bytes()).await.map_err(|error| error.to_string())?;
        let mut answer = Vec::new();
        // Whoever closes without a word is no concern here.
        let _ = stream.read_to_end(&mut answer).await;
        Ok((shown, String::from_utf8_lossy(&answer).into_owned()))
    }
}

/// The whole answer of a plain HTTP port, such as that of health.
pub async fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}
