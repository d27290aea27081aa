//! A broker: an SVID of its own, mutual TLS to the broker endpoint of an agent, and workloads that it names.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use prost::Message;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use spiffe::bundle::Bundle;
use spiffe::id::SpiffeId;
use spiffe::mtls::{self, CurrentBundles, CurrentSvid, Peers};
use spiffe::proto::broker::api_client::ApiClient;
use spiffe::proto::broker::{WorkloadPidReference, WorkloadReference};
use spiffe::proto::details;
use spiffe::time::Clock;
use spiffe::x509_svid::X509Svid;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

pub mod scene;

/// Where an agent listens for brokers.
#[derive(Clone, Debug)]
pub enum Door {
    /// Its socket.
    Socket(PathBuf),
    /// Its port.
    Port(SocketAddr),
}

/// Someone who presents an SVID to the broker endpoint of the agent `agent`; or none.
#[derive(Clone, Debug)]
pub struct Broker {
    /// Its SVID and its key (PKCS#8, DER).
    pub svid: Option<(X509Svid, Vec<u8>)>,
    /// What it verifies the agent against.
    pub bundle: Bundle,
    /// Whom it takes for its agent, and for nobody else.
    pub agent: SpiffeId,
    /// Everybody's clock.
    pub clock: Arc<dyn Clock>,
}

trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

impl Broker {
    /// The Broker API over a new connection.
    pub async fn api(&self, door: &Door) -> ApiClient<Channel> {
        ApiClient::new(self.channel(door).await)
    }

    /// A channel over a new connection.
    pub async fn channel(&self, door: &Door) -> Channel {
        let (door, tls) = (door.clone(), self.tls());
        let connector = tower::service_fn(move |_: http::Uri| {
            let (door, tls) = (door.clone(), tls.clone());
            async move { connect(&door, tls).await.map(TokioIo::new) }
        });
        Endpoint::from_static("http://localhost").connect_with_connector(connector).await.unwrap()
    }

    /// What the agent's listener says to this SVID: nothing, or how it ends the handshake.
    pub async fn knock(&self, door: &Door) -> Result<(), String> {
        let words = |error: std::io::Error| error.to_string();
        let mut stream = connect(door, self.tls()).await.map_err(words)?;
        // The server speaks first in HTTP/2, once it has accepted the certificate.
        stream.read_u8().await.map(|_| ()).map_err(words)
    }

    fn tls(&self) -> Arc<ClientConfig> {
        let svid = self.svid.as_ref().map(|(svid, key)| {
            let current = CurrentSvid::default();
            current.set(svid, &[], key).unwrap();
            current
        });
        let (bundles, agent) = (CurrentBundles::new([self.bundle.clone()]), Peers::Ids(vec![self.agent.clone()]));
        let mut tls = mtls::client_config(svid, bundles, agent, self.clock.clone()).unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(tls)
    }
}

async fn connect(door: &Door, tls: Arc<ClientConfig>) -> std::io::Result<TlsStream<Box<dyn Wire>>> {
    let stream: Box<dyn Wire> = match door {
        Door::Socket(path) => Box::new(UnixStream::connect(path).await?),
        Door::Port(address) => Box::new(TcpStream::connect(address).await?),
    };
    TlsConnector::from(tls).connect(ServerName::try_from("a.test").unwrap(), stream).await
}

/// The message with the security header of SPIFFE_Broker_Endpoint.md.
pub fn with_header<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("broker.spiffe.io", "true".parse().unwrap());
    request
}

/// A process, as a broker names it.
pub fn pid(pid: i32) -> Option<WorkloadReference> {
    reference("spiffe.broker.WorkloadPIDReference", &WorkloadPidReference { pid })
}

/// Anything, as a broker names it.
pub fn reference(type_name: &str, message: &impl Message) -> Option<WorkloadReference> {
    let any = prost_types::Any { type_url: format!("type.googleapis.com/{type_name}"), value: message.encode_to_vec() };
    Some(WorkloadReference { reference: Some(any) })
}

/// The reason, the domain and the pid that a refusal has beside its text, if it has any.
pub fn error_info(status: &Status) -> Option<(String, String, Option<String>)> {
    if status.details().is_empty() {
        return None;
    }
    let whole = details::Status::decode(status.details()).unwrap();
    assert_eq!((whole.code, whole.message.as_str()), (i32::from(status.code()), status.message()));
    let [info] = <[_; 1]>::try_from(whole.details).unwrap();
    assert_eq!(info.type_url, "type.googleapis.com/google.rpc.ErrorInfo");
    let mut info = details::ErrorInfo::decode(&*info.value).unwrap();
    Some((info.reason, info.domain, info.metadata.remove("pid")))
}

/// A workload that knows nothing of identities: a process that sleeps until it is dropped.
#[derive(Debug)]
pub struct Sleeper(Child);

impl Sleeper {
    /// Starts one.
    pub fn start() -> Self {
        Self(Command::new(Self::program()).arg("600").spawn().unwrap())
    }

    /// Its executable.
    pub fn program() -> PathBuf {
        let found = ["/usr/bin/sleep", "/bin/sleep"].into_iter().map(Path::new).find(|path| path.exists());
        found.unwrap().canonicalize().unwrap()
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        self.0.id().try_into().unwrap()
    }

    /// Ends it.
    pub fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
