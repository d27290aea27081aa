//! An agent without the agent's code: each call of the Node door is made by hand, as well or as badly as a test wants.

use std::error::Error as _;
use std::net::SocketAddr;
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use spiffe::bundle::Bundle;
use spiffe::crypto::generate_key;
use spiffe::entry::KeyType;
use spiffe::id::SpiffeId;
use spiffe::mtls::{self, CurrentBundles, CurrentSvid, Peers};
use spiffe::proto::v1;
use spiffe::proto::v1::node_client::NodeClient;
use spiffe::x509_svid::X509Svid;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

use crate::house::House;

/// Someone with an SVID and its key, rightly or not.
#[derive(Clone, Debug)]
pub struct Caller {
    /// What is presented.
    pub svid: X509Svid,
    /// PKCS#8, DER.
    pub key: Vec<u8>,
}

impl Caller {
    /// Attests with a join token that is made for it.
    pub async fn attest(house: &House) -> Self {
        let token = house.operator().await.token("").await;
        let key = generate_key(KeyType::P256).unwrap();
        let csr = spiffe::csr::create(&key).unwrap();
        let mut door = stranger(house).await;
        let (svid, _) = attest(&mut door, "join_token", token.into_bytes(), csr).await.unwrap();
        Self { svid, key: key.serialize_der() }
    }

    /// Who it says it is.
    pub fn id(&self) -> &SpiffeId {
        self.svid.id()
    }

    /// The Node door, over a new connection.
    pub async fn door(&self, house: &House) -> Result<NodeClient<Channel>, String> {
        dial(house.address(), self.tls(house).await).await.map(NodeClient::new)
    }

    /// A channel over a new connection.
    pub async fn channel(&self, house: &House) -> Result<Channel, String> {
        dial(house.address(), self.tls(house).await).await
    }

    /// What the server's listener says to this SVID: nothing, or how it ends the handshake.
    pub async fn knock(&self, house: &House) -> Result<(), String> {
        knock(house, self.svid.chain().to_vec(), &self.key).await
    }

    async fn tls(&self, house: &House) -> Arc<ClientConfig> {
        let current = CurrentSvid::default();
        current.set(&self.svid, &[], &self.key).unwrap();
        tls(house, Some(current)).await
    }

    /// Opens a Sync stream; `acknowledge` sends what is acknowledged.
    pub async fn sync(&self, house: &House) -> Result<Syncing, Status> {
        let mut door = self.door(house).await.map_err(Status::unavailable)?;
        let (acknowledge, messages) = mpsc::channel(16);
        acknowledge.send(v1::SyncRequest { acknowledged: 0 }).await.unwrap();
        let incoming = door.sync(ReceiverStream::new(messages)).await?.into_inner();
        Ok(Syncing { acknowledge, incoming })
    }

    /// Asks for one SVID.
    pub async fn issue(&self, house: &House, entry: &str, csr: Vec<u8>) -> Result<X509Svid, v1::Refusal> {
        let mut door = self.door(house).await.unwrap();
        let request = v1::X509SvidRequest { entry_id: entry.into(), csr: csr.into() };
        let request = v1::IssueX509SvidsRequest { requests: vec![request] };
        let response = door.issue_x509_svids(request).await.unwrap().into_inner();
        let [result] = <[_; 1]>::try_from(response.results).unwrap();
        match result.outcome.unwrap() {
            v1::x509_svid_result::Outcome::Svid(wire) => Ok(parse(wire)),
            v1::x509_svid_result::Outcome::Refused(refusal) => Err(refusal),
        }
    }
}

impl Caller {
    /// Asks for one JWT-SVID.
    pub async fn issue_jwt(&self, house: &House, entry: &str, audience: &[&str]) -> Result<v1::Token, v1::Refusal> {
        let mut door = self.door(house).await.unwrap();
        let audience = audience.iter().map(ToString::to_string).collect();
        let request = v1::JwtSvidRequest { entry_id: entry.into(), audience };
        let request = v1::IssueJwtSvidsRequest { requests: vec![request] };
        only(door.issue_jwt_svids(request).await.unwrap().into_inner().results)
    }

    /// Asks for one WIT-SVID.
    pub async fn issue_wit(&self, house: &House, entry: &str, csr: Vec<u8>) -> Result<v1::Token, v1::Refusal> {
        let mut door = self.door(house).await.unwrap();
        let request = v1::WitSvidRequest { entry_id: entry.into(), csr: csr.into() };
        let request = v1::IssueWitSvidsRequest { requests: vec![request] };
        only(door.issue_wit_svids(request).await.unwrap().into_inner().results)
    }
}

fn only(results: Vec<v1::TokenResult>) -> Result<v1::Token, v1::Refusal> {
    let [result] = <[_; 1]>::try_from(results).unwrap();
    match result.outcome.unwrap() {
        v1::token_result::Outcome::Token(token) => Ok(token),
        v1::token_result::Outcome::Refused(refusal) => Err(refusal),
    }
}

/// An open Sync stream.
#[derive(Debug)]
pub struct Syncing {
    /// Sends what is acknowledged.
    pub acknowledge: mpsc::Sender<v1::SyncRequest>,
    /// What the server says.
    pub incoming: Streaming<v1::SyncResponse>,
}

impl Syncing {
    /// Acknowledges everything up to `revision`.
    pub async fn acknowledge(&self, revision: u64) {
        self.acknowledge.send(v1::SyncRequest { acknowledged: revision }).await.unwrap();
    }
}

/// What the server's listener says to this chain of certificates, whatever is in it: nothing, or how it ends the
/// handshake.
pub async fn knock(house: &House, chain: Vec<CertificateDer<'static>>, key: &[u8]) -> Result<(), String> {
    let mut config = (*tls(house, None).await).clone();
    let key = PrivatePkcs8KeyDer::from(key.to_vec());
    let certified = CertifiedKey::from_der(chain, key.into(), &spiffe::crypto::provider()).unwrap();
    config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(certified));
    let tcp = TcpStream::connect(house.address()).await.unwrap();
    let name = ServerName::try_from("a.test").unwrap();
    let connected = TlsConnector::from(Arc::new(config)).connect(name, tcp).await;
    let mut stream = connected.map_err(|error| error.to_string())?;
    // The server speaks first in HTTP/2, once it has accepted the certificate.
    stream.read_u8().await.map(|_| ()).map_err(|error| error.to_string())
}

async fn tls(house: &House, svid: Option<CurrentSvid>) -> Arc<ClientConfig> {
    let bundle = house.operator().await.bundle().await;
    let bundles = CurrentBundles::new([bundle]);
    let mut tls = mtls::client_config(svid, bundles, Peers::Any, house.clock()).unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(tls)
}

/// A connection of someone without a certificate, from this address of this machine, that has said nothing yet.
pub async fn silent(house: &House, from: [u8; 4]) -> TlsStream<TcpStream> {
    let tcp = connect(house.address(), from).await.unwrap();
    let name = ServerName::try_from("a.test").unwrap();
    TlsConnector::from(tls(house, None).await).connect(name, tcp).await.unwrap()
}

/// Connects from an address of this machine: each is another network to the server.
async fn connect(to: SocketAddr, from: [u8; 4]) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    socket.connect(to).await
}

/// The Node door for someone without a certificate.
pub async fn stranger(house: &House) -> NodeClient<Channel> {
    NodeClient::new(stranger_channel(house).await)
}

/// The Node door for someone without a certificate, from this address of this machine.
pub async fn stranger_from(house: &House, from: [u8; 4]) -> NodeClient<Channel> {
    NodeClient::new(dial_from(house.address(), tls(house, None).await, from).await.unwrap())
}

/// A channel for someone without a certificate.
pub async fn stranger_channel(house: &House) -> Channel {
    dial(house.address(), tls(house, None).await).await.unwrap()
}

async fn dial(address: SocketAddr, tls: Arc<ClientConfig>) -> Result<Channel, String> {
    dial_from(address, tls, [127, 0, 0, 1]).await
}

async fn dial_from(address: SocketAddr, tls: Arc<ClientConfig>, from: [u8; 4]) -> Result<Channel, String> {
    let connector = tower::service_fn(move |_: http::Uri| {
        let tls = tls.clone();
        async move {
            let tcp = connect(address, from).await?;
            let name = ServerName::try_from("a.test").unwrap();
            TlsConnector::from(tls).connect(name, tcp).await.map(TokioIo::new)
        }
    });
    let endpoint = Endpoint::from_static("http://localhost").connect_with_connector(connector).await;
    endpoint.map_err(|error| {
        let mut words = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            words = format!("{words}: {error}");
            source = error.source();
        }
        words
    })
}

/// Attests without a challenge.
pub async fn attest(
    door: &mut NodeClient<Channel>,
    attestor: &str,
    evidence: Vec<u8>,
    csr: Vec<u8>,
) -> Result<(X509Svid, Bundle), Status> {
    let start = v1::AttestStart { attestor: attestor.into(), evidence: evidence.into(), csr: csr.into() };
    let message = v1::AttestRequest { step: Some(v1::attest_request::Step::Start(start)) };
    // The stream stays open until the answer is there, as an agent's does.
    let (send, messages) = mpsc::channel(1);
    send.send(message).await.unwrap();
    let mut incoming = door.attest(ReceiverStream::new(messages)).await?.into_inner();
    match incoming.message().await?.and_then(|message| message.step) {
        Some(v1::attest_response::Step::Result(result)) => {
            Ok((parse(result.svid.unwrap()), result.bundle.unwrap().try_into().unwrap()))
        }
        Some(v1::attest_response::Step::Challenge(_)) => Err(Status::failed_precondition("a challenge")),
        None => Err(Status::cancelled("the stream was closed")),
    }
}

/// An SVID from the wire, its path not verified.
pub fn parse(wire: v1::X509Svid) -> X509Svid {
    let chain = wire.chain.into_iter().map(|der| CertificateDer::from(der.to_vec())).collect();
    X509Svid::parse(chain).unwrap()
}
