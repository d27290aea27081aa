//! The listeners: TLS on the network, and the admin unix socket. Each accepted connection carries its [`Caller`] to
//! every request on it.
//!
//! - A handshake runs in a task of its own, with a time limit and a bound on how many run at once (`handshakes`).
//!   Beyond a bound a connection is closed at once: those who mean it come again.
//! - A peer whose certificate does not verify is turned away in the handshake; one without a certificate is a stranger.
//! - Strangers shut out no agent, and other users of the machine no operator (`room`); who says nothing does not stay
//!   (`patience`).

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use spiffe::time::Clock;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

use self::handshakes::Handshakes;
use self::patience::{End, Patient};
use self::room::{AdminRoom, Held};
use super::caller::Caller;
use super::rights::Operators;

mod handshakes;
mod patience;
mod room;

pub use self::handshakes::HANDSHAKES;
pub use self::room::NetworkRoom;

/// The longest path of a unix socket that the kernel takes, in bytes.
pub const SOCKET_PATH_LIMIT: usize = 107;

/// Why a listener could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The port is in use, not ours to take, or the address is not of this machine.
    #[error("cannot listen on {key} {address}: {error}{hint}")]
    Port {
        /// The key of the config.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system said.
        error: io::Error,
        /// What to do.
        hint: &'static str,
    },
    /// The path is longer than the kernel takes.
    #[error("socket path {0} has {1} bytes, and at most 107 are possible: choose a shorter one")]
    PathTooLong(PathBuf, usize),
    /// Something that answers listens there.
    #[error("another server answers on {0}: stop it, or choose another admin_socket")]
    InUse(PathBuf),
    /// There is a file that is no socket.
    #[error("{0} exists and is no socket: remove it, or choose another admin_socket")]
    NotASocket(PathBuf),
    /// The file system refused.
    #[error("cannot make the socket {path}: {error}")]
    Socket {
        /// Where.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

/// A connection and its caller.
#[derive(Debug)]
pub struct Connection {
    io: Patient<Io>,
    caller: Caller,
    /// Given back when the connection closes.
    _place: Held,
}

#[derive(Debug)]
enum Io {
    Tls(Box<tokio_rustls::server::TlsStream<TcpStream>>),
    Unix(UnixStream),
}

impl Connected for Connection {
    type ConnectInfo = Caller;
    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(context, into)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(context)
    }
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Io::Tls(stream) => Pin::new(stream).poll_read(context, into),
            Io::Unix(stream) => Pin::new(stream).poll_read(context, into),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Io::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
            Io::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Io::Tls(stream) => Pin::new(stream).poll_flush(context),
            Io::Unix(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Io::Tls(stream) => Pin::new(stream).poll_shutdown(context),
            Io::Unix(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

/// Binds a TCP port; `key` is where it stands in the config.
pub async fn bind_tcp(key: &'static str, address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::AddrInUse => ": another process has this port; stop it, or choose another one",
            io::ErrorKind::PermissionDenied => ": ports below 1024 need rights; choose a higher one",
            io::ErrorKind::AddrNotAvailable => ": this machine does not have that address",
            _ => "",
        };
        ListenError::Port { key, address, error, hint }
    })
}

/// Binds the admin socket with these permission bits (who may act is decided by uid). A socket that nobody answers on
/// is replaced.
pub async fn bind_unix(path: &Path, mode: u32) -> Result<UnixListener, ListenError> {
    let length = path.as_os_str().len();
    if length > SOCKET_PATH_LIMIT {
        return Err(ListenError::PathTooLong(path.to_owned(), length));
    }
    let failed = |error| ListenError::Socket { path: path.to_owned(), error };
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    if let Ok(found) = std::fs::symlink_metadata(path) {
        if !found.file_type().is_socket() {
            return Err(ListenError::NotASocket(path.to_owned()));
        }
        if UnixStream::connect(path).await.is_ok() {
            return Err(ListenError::InUse(path.to_owned()));
        }
        std::fs::remove_file(path).map_err(failed)?;
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(failed)?;
    Ok(listener)
}

/// What listeners need to know.
#[derive(Clone, Debug)]
pub struct Arrivals {
    /// Where connections go.
    pub to: mpsc::Sender<io::Result<Connection>>,
    /// How long a handshake may take, and then the first bytes of HTTP/2.
    pub opening: Duration,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// Ends the listeners.
    pub stop: CancellationToken,
}

impl Arrivals {
    /// Hands a connection on; nobody takes it when the server is stopping.
    async fn hand_on(&self, io: Io, caller: Caller, (place, end): (Held, End)) {
        let io = Patient::new(io, Arc::clone(&self.clock), self.opening, end);
        let _ = self.to.send(Ok(Connection { io, caller, _place: place })).await;
    }
}

/// Accepts TLS connections until told to stop, as many as there is room for, and hands them on.
pub async fn accept_tls(listener: TcpListener, config: Arc<ServerConfig>, room: NetworkRoom, arrivals: Arrivals) {
    let acceptor = TlsAcceptor::from(config);
    let handshakes = Handshakes::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = arrivals.stop.cancelled() => return,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, mostly: the listener stays good.
                warn!(%error, "cannot accept a connection");
                pause().await;
                continue;
            }
        };
        let Some(turn) = handshakes.begin(address.ip()) else {
            debug!(%address, "too many handshakes: turned away");
            continue;
        };
        let (acceptor, arrivals, room) = (acceptor.clone(), arrivals.clone(), room.clone());
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            #[expect(clippy::disallowed_methods, reason = "a time limit on network input")]
            let accepting = tokio::time::timeout(arrivals.opening, acceptor.accept(stream));
            let accepted = tokio::select! {
                accepted = accepting => accepted,
                () = turn.over() => return debug!(%address, "handshake gave way to another"),
            };
            let stream = match accepted {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return debug!(%address, %error, "handshake failed"),
                Err(_) => return debug!(%address, "handshake took too long"),
            };
            drop(turn);
            let caller = match Caller::of_tls(stream.get_ref().1.peer_certificates(), address) {
                Ok(caller) => caller,
                Err(error) => return debug!(%address, %error, "turned away"),
            };
            match room.take(&caller) {
                Some(held) => arrivals.hand_on(Io::Tls(Box::new(stream)), caller, held).await,
                None => debug!(%caller, "too many connections: turned away"),
            }
        });
    }
}

/// After a failed accept (out of file descriptors, mostly): let others close some, and do not fill the log.
#[expect(clippy::disallowed_methods, reason = "a pause after a failed accept of the operating system")]
async fn pause() {
    tokio::time::sleep(Duration::from_secs(1)).await;
}

/// Accepts connections on the admin socket until told to stop, and hands them on.
pub async fn accept_unix(listener: UnixListener, operators: Operators, arrivals: Arrivals) {
    let room = AdminRoom::new(operators);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = arrivals.stop.cancelled() => return,
        };
        let Ok((stream, _)) = accepted.inspect_err(|error| warn!(%error, "cannot accept on the admin socket")) else {
            pause().await;
            continue;
        };
        let peer = match stream.peer_cred() {
            Ok(peer) => peer,
            Err(error) => {
                warn!(%error, "the kernel does not say who called on the admin socket");
                continue;
            }
        };
        let caller = Caller::Local { uid: peer.uid(), pid: peer.pid() };
        match room.take(peer.uid()) {
            Some(held) => arrivals.hand_on(Io::Unix(stream), caller, held).await,
            None => debug!(%caller, "too many connections on the admin socket: turned away"),
        }
    }
}
