//! A bundle endpoint that behaves as badly as it is told: raw answers over real TLS.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::version::{TLS12, TLS13};
use rustls::{ServerConfig, SupportedProtocolVersion};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use spiffe::crypto;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// What an endpoint answers with.
#[derive(Clone, Debug)]
pub enum Answer {
    /// The status 200 and this body.
    Document(String),
    /// This status and these further header lines.
    Head(u16, String),
    /// The status 200 and a body without end, as fast as it goes.
    Flood,
    /// The status 200 and a byte a second.
    Drip,
    /// Nothing at all.
    Silence,
}

/// A running endpoint; gone when it is dropped.
#[derive(Debug)]
pub struct BundleEndpoint {
    address: SocketAddr,
    answer: Arc<ArcSwap<Answer>>,
    asked: Arc<AtomicUsize>,
    sent: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for BundleEndpoint {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl BundleEndpoint {
    /// Answers on 127.0.0.1 with this certificate and key (PEM), by TLS 1.2 and 1.3.
    pub async fn start(certificate: &(String, String), answer: Answer) -> Self {
        Self::speaking(&[&TLS13, &TLS12], certificate, answer).await
    }

    /// The same by these versions of TLS only.
    pub async fn speaking(
        versions: &[&'static SupportedProtocolVersion],
        (certificate, key): &(String, String),
        answer: Answer,
    ) -> Self {
        let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let config = ServerConfig::builder_with_provider(crypto::provider())
            .with_protocol_versions(versions)
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer = Arc::new(ArcSwap::from_pointee(answer));
        let (asked, sent) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let task = tokio::spawn({
            let (answer, asked, sent) = (Arc::clone(&answer), Arc::clone(&asked), Arc::clone(&sent));
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let (acceptor, answer, asked, sent) =
                        (acceptor.clone(), Arc::clone(&answer), Arc::clone(&asked), Arc::clone(&sent));
                    tokio::spawn(async move {
                        let Ok(stream) = acceptor.accept(stream).await else { return };
                        asked.fetch_add(1, Ordering::SeqCst);
                        serve(stream, &answer.load_full(), &sent).await;
                    });
                }
            }
        });
        Self { address, answer, asked, sent, task }
    }

    /// Answers otherwise from now on.
    pub fn set(&self, answer: Answer) {
        self.answer.store(Arc::new(answer));
    }

    /// The URL of the bundle.
    pub fn url(&self) -> String {
        format!("https://{}/bundle", self.address)
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// How often somebody shook hands.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// How many bytes of bodies without end were taken.
    pub fn sent(&self) -> usize {
        self.sent.load(Ordering::SeqCst)
    }
}

async fn serve(mut stream: TlsStream<TcpStream>, answer: &Answer, sent: &AtomicUsize) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) if head.len() < 16 << 10 => head.push(byte),
            _ => return,
        }
    }
    let endless = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1073741824\r\n\r\n";
    let text = match answer {
        Answer::Document(body) => format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()),
        Answer::Head(status, lines) => format!("HTTP/1.1 {status} x\r\nContent-Length: 0\r\n{lines}\r\n"),
        // Without a length: that would be refused at once.
        Answer::Flood => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".into(),
        Answer::Drip => endless.replace("1073741824", "1000"),
        Answer::Silence => String::new(),
    };
    if stream.write_all(text.as_bytes()).await.is_err() || stream.flush().await.is_err() {
        return;
    }
    match answer {
        Answer::Flood => {
            let chunk = [b"10000\r\n".as_slice(), &[b' '; 0x10000], b"\r\n"].concat();
            while sent.load(Ordering::SeqCst) < 1 << 30 && stream.write_all(&chunk).await.is_ok() {
                sent.fetch_add(0x10000, Ordering::SeqCst);
            }
        }
        Answer::Drip => {
            while stream.write_all(b" ").await.is_ok() && stream.flush().await.is_ok() {
                second().await;
            }
        }
        Answer::Silence => drop(stream.read_u8().await),
        Answer::Document(_) | Answer::Head(..) => drop(stream.shutdown().await),
    }
}

#[expect(clippy::disallowed_methods, reason = "a peer on the network does not know our clock")]
async fn second() {
    tokio::time::sleep(Duration::from_secs(1)).await;
}
