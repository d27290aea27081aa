//! The listeners: TLS on the network, and the admin unix socket. Each accepted connection carries its [`Caller`] to
//! every request on it.
//!
//! - A handshake runs in a task of its own, with a time limit and a bound on how many run at once, in all and from one
//!   address. Beyond it a connection is closed at once: those who mean it come again.
//! - A peer whose certificate does not verify is turned away in the handshake; one without a certificate is a stranger.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

use super::caller::Caller;

/// How many handshakes may run at once, in all and from one address: whoever opens connections and says nothing holds up
/// nobody else.
const HANDSHAKES: usize = 1024;
const HANDSHAKES_OF_ONE: usize = 256;
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
    io: Io,
    caller: Caller,
    /// Given back when the connection closes.
    _place: Option<OwnedSemaphorePermit>,
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
        match &mut self.get_mut().io {
            Io::Tls(stream) => Pin::new(stream).poll_read(context, into),
            Io::Unix(stream) => Pin::new(stream).poll_read(context, into),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().io {
            Io::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
            Io::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Tls(stream) => Pin::new(stream).poll_flush(context),
            Io::Unix(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
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

/// How much the TLS listener takes on.
#[derive(Clone, Copy, Debug)]
pub struct TlsLimits {
    /// Connections that may be open at once.
    pub connections: usize,
    /// How long a handshake may take.
    pub handshake: Duration,
}

/// Accepts TLS connections until `stop`, within `limits`, and hands them on.
pub async fn accept_tls(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    limits: TlsLimits,
    to: mpsc::Sender<io::Result<Connection>>,
    stop: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(config);
    let handshakes = Handshakes::default();
    let open = Arc::new(Semaphore::new(limits.connections));
    loop {
        // No place for one more connection: let the kernel's queue hold them, which is bounded too.
        let place = tokio::select! {
            place = Arc::clone(&open).acquire_owned() => place,
            () = stop.cancelled() => return,
        };
        let Ok(place) = place else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
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
        let (acceptor, to) = (acceptor.clone(), to.clone());
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            #[expect(clippy::disallowed_methods, reason = "a time limit on network input")]
            let stream = match tokio::time::timeout(limits.handshake, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return debug!(%address, %error, "handshake failed"),
                Err(_) => return debug!(%address, "handshake took too long"),
            };
            drop(turn);
            match Caller::of_tls(stream.get_ref().1.peer_certificates(), address) {
                Ok(caller) => {
                    let io = Io::Tls(Box::new(stream));
                    // Nobody to take it: the server is stopping.
                    let _ = to.send(Ok(Connection { io, caller, _place: Some(place) })).await;
                }
                Err(error) => debug!(%address, %error, "turned away"),
            }
        });
    }
}

/// After a failed accept (out of file descriptors, mostly): let others close some, and do not fill the log.
#[expect(clippy::disallowed_methods, reason = "a pause after a failed accept of the operating system")]
async fn pause() {
    tokio::time::sleep(Duration::from_secs(1)).await;
}

/// The handshakes that run now, by the address that they come from. Clones share them.
#[derive(Clone, Debug, Default)]
struct Handshakes(Arc<Mutex<HashMap<IpAddr, usize>>>);

impl Handshakes {
    /// A turn for a handshake from `address`, given back when it is dropped; `None`: there are enough.
    fn begin(&self, address: IpAddr) -> Option<Turn> {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = running.values().sum();
        let of_one = running.get(&address).copied().unwrap_or(0);
        if all >= HANDSHAKES || of_one >= HANDSHAKES_OF_ONE {
            return None;
        }
        running.insert(address, of_one + 1);
        Some(Turn { handshakes: self.clone(), address })
    }
}

struct Turn {
    handshakes: Handshakes,
    address: IpAddr,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut running = self.handshakes.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = running.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                running.remove(&self.address);
            }
        }
    }
}

/// Accepts connections on the admin socket until `stop`, and hands them on.
pub async fn accept_unix(listener: UnixListener, to: mpsc::Sender<io::Result<Connection>>, stop: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let Ok((stream, _)) = accepted.inspect_err(|error| warn!(%error, "cannot accept on the admin socket")) else {
            pause().await;
            continue;
        };
        match stream.peer_cred() {
            Ok(peer) => {
                let caller = Caller::Local { uid: peer.uid(), pid: peer.pid() };
                if to.send(Ok(Connection { io: Io::Unix(stream), caller, _place: None })).await.is_err() {
                    return;
                }
            }
            Err(error) => warn!(%error, "the kernel does not say who called on the admin socket"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_opens_connections_and_says_nothing_holds_up_nobody_else() {
        let handshakes = Handshakes::default();
        let address = |last| IpAddr::from([192, 0, 2, last]);
        let mut held: Vec<Turn> = (0..HANDSHAKES_OF_ONE).map(|_| handshakes.begin(address(1)).unwrap()).collect();
        assert!(handshakes.begin(address(1)).is_none());
        assert!(handshakes.begin(address(2)).is_some());
        held.pop();
        assert!(handshakes.begin(address(1)).is_some());
        drop(held);
        assert!(handshakes.0.lock().unwrap().is_empty());
    }
}
