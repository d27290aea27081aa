//! The broker socket and port: mutual TLS on both (SPIFFE_Broker_Endpoint.md section 3.1), and who is at the other end.
//!
//! - A handshake runs in a task of its own, with a time limit and a bound on how many run at once, in all and from one
//!   user or network. Beyond it a connection is closed at once: those who mean it come again. The socket and the port have
//!   each their own: whoever comes from afar, and from however many addresses, takes nothing from the brokers beside us.
//! - Who has no SVID of the trust domain is turned away in the handshake. Who has one and is no broker may stay to be
//!   told so, with few others at a time.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use spiffe::id::SpiffeId;
use spiffe::mtls;
use spiffe::time::Clock;
use spiffe::x509_svid::{SvidError, X509Svid};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

use super::policy::Policy;
use super::reference::Whence;
use crate::api::ApiError;
use crate::api::authority::Authorities;
use crate::api::listen::{ACCEPT_AGAIN, Listener};
use crate::api::places::{Holder, Place, Places};
use crate::attestor::Attestors;
use crate::config;

/// How many handshakes may run at once on the socket, and as many on the port; in all, and from one user or network.
const HANDSHAKES: usize = 256;
const HANDSHAKES_OF_ONE: usize = 64;
/// How many connections those may have together who are no brokers of this agent.
const UNLISTED: usize = 16;
/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Where brokers knock: a socket, a port, or both.
#[derive(Debug)]
pub struct Sockets {
    unix: Option<Listener>,
    tcp: Option<TcpListener>,
}

impl Sockets {
    /// Binds what the config names.
    pub async fn bind(config: &config::broker::Broker) -> Result<Self, ApiError> {
        let unix = config.socket.as_ref().map(|path| Listener::bind(path, config.socket_mode)).transpose()?;
        let tcp = match config.listen {
            Some(address) => {
                let bound = TcpListener::bind(address).await;
                Some(bound.map_err(|source| ApiError::Port { key: "broker.listen", address, source })?)
            }
            None => None,
        };
        Ok(Self { unix, tcp })
    }

    /// Whether there is no way in for brokers of this machine.
    pub(super) fn is_remote(&self) -> bool {
        self.unix.is_none()
    }

    /// The address of the port, if there is one.
    pub fn address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().and_then(|listener| listener.local_addr().ok())
    }
}

/// Who asks: the holder of an SVID whose path was verified in the handshake.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) svid: X509Svid,
    pub(super) whence: Whence,
}

impl Caller {
    pub(super) fn id(&self) -> &SpiffeId {
        self.svid.id()
    }
}

/// What makes connections of what knocks.
pub(super) struct Porter {
    tls: TlsAcceptor,
    policy: Arc<Policy>,
    attestors: Arc<Attestors>,
    /// Of handshakes.
    near: Arc<Places>,
    far: Arc<Places>,
    brokers: Arc<Places>,
    others: Arc<Places>,
    clock: Arc<dyn Clock>,
    to: mpsc::Sender<io::Result<Connection>>,
    stop: CancellationToken,
}

/// What a porter works with.
pub(super) struct Parts {
    pub(super) tls: TlsAcceptor,
    pub(super) policy: Arc<Policy>,
    /// In which pod a process is.
    pub(super) attestors: Arc<Attestors>,
    pub(super) limits: config::broker::BrokerLimits,
    pub(super) clock: Arc<dyn Clock>,
    /// Where connections go.
    pub(super) to: mpsc::Sender<io::Result<Connection>>,
    pub(super) stop: CancellationToken,
}

impl Porter {
    pub(super) fn new(parts: Parts) -> Arc<Self> {
        let Parts { tls, policy, attestors, limits, clock, to, stop } = parts;
        Arc::new(Self {
            tls,
            policy,
            attestors,
            near: Places::new(HANDSHAKES, HANDSHAKES_OF_ONE),
            far: Places::new(HANDSHAKES, HANDSHAKES_OF_ONE),
            brokers: Places::new(limits.connections, limits.connections_per_broker),
            others: Places::new(UNLISTED, UNLISTED),
            clock,
            to,
            stop,
        })
    }

    /// Takes connections until it is stopped; the socket's file is then gone.
    pub(super) async fn work(self: Arc<Self>, sockets: Sockets) {
        let Sockets { unix, tcp } = sockets;
        let unix = async {
            if let Some(listener) = unix {
                self.open_unix(&listener).await;
            }
        };
        let tcp = async {
            if let Some(listener) = tcp {
                self.open_tcp(&listener).await;
            }
        };
        tokio::select! {
            () = self.stop.cancelled() => {}
            ((), ()) = async { tokio::join!(unix, tcp) } => {}
        }
    }

    async fn open_unix(self: &Arc<Self>, listener: &Listener) {
        loop {
            let (stream, peer) = listener.accept(self.clock.as_ref()).await;
            let whence = match peer.shares_pid_namespace() {
                Ok(true) => Whence::ThisMachine,
                Ok(false) => Whence::OtherPidNamespace,
                Err(error) => {
                    debug!(%error, "connection closed: its process cannot be looked at");
                    continue;
                }
            };
            self.greet(Box::new(stream), Holder::local(&peer, &self.attestors), whence);
        }
    }

    async fn open_tcp(self: &Arc<Self>, listener: &TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, address)) => {
                    // Answers are small and awaited.
                    let _ = stream.set_nodelay(true);
                    self.greet(Box::new(stream), Holder::network(address.ip()), Whence::Network);
                }
                Err(error) => {
                    warn!(%error, "no connection can be accepted on the port for brokers");
                    self.clock.sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    }

    fn greet(self: &Arc<Self>, stream: Box<dyn Wire>, from: Holder, whence: Whence) {
        let handshakes = if matches!(whence, Whence::Network) { &self.far } else { &self.near };
        let turn = match handshakes.take(from.clone()) {
            Ok(turn) => turn,
            Err(full) => return debug!(%from, %full, "too many handshakes: turned away"),
        };
        let porter = Arc::clone(self);
        tokio::spawn(async move {
            let _turn = turn;
            let connection = tokio::select! {
                connection = porter.shake_hands(stream, whence) => connection,
                () = porter.clock.sleep(HANDSHAKE) => return debug!(%from, "handshake took too long"),
                () = porter.stop.cancelled() => return,
            };
            match connection {
                // Nobody to take it: the agent is stopping.
                Ok(connection) => drop(porter.to.send(Ok(connection)).await),
                Err(error) => debug!(%from, %error, "turned away"),
            }
        });
    }

    async fn shake_hands(&self, stream: Box<dyn Wire>, whence: Whence) -> io::Result<Connection> {
        let stream = self.tls.accept(stream).await?;
        let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let svid = mtls::peer(certificates).map_err(|error: SvidError| io::Error::other(error))?;
        let caller = Arc::new(Caller { svid, whence });
        let places = if self.policy.rights_of(caller.id()).is_ok() { &self.brokers } else { &self.others };
        let place = places.take(Holder::Broker(caller.id().clone())).map_err(io::Error::other)?;
        Ok(Connection { stream, caller, names: Authorities::default(), _place: place })
    }
}

/// A connection before TLS.
trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// A connection, who is at its other end, and its place.
pub(super) struct Connection {
    stream: TlsStream<Box<dyn Wire>>,
    caller: Arc<Caller>,
    names: Authorities,
    _place: Place,
}

impl Connected for Connection {
    type ConnectInfo = Arc<Caller>;

    fn connect_info(&self) -> Arc<Caller> {
        Arc::clone(&self.caller)
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, into);
        if let Some(fresh) = into.filled_mut().get_mut(before..) {
            self.names.pass(fresh);
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
