//! Socket files, and the connections of workloads through theirs.
//!
//! - A socket file that nobody listens on any more is replaced; one that somebody listens on, and anything that is
//!   no socket, never is.
//! - Every process of the machine may connect (mode 0777 of the file, unless told otherwise): who it is decides what
//!   it gets.
//! - A connection for which there is no place, or whose process cannot be pinned, is closed at once.

use std::fs::{DirBuilder, Metadata, Permissions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use futures_util::stream::unfold;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use spiffe::time::Clock;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tonic::transport::server::Connected;
use tracing::{debug, info, warn};

use super::ApiError;
use super::authority::Authorities;
use super::places::{Holder, Place, Places};
use crate::attestor::Peer;

/// The longest path of a unix socket: `sun_path` less its closing zero.
pub const MAX_PATH_BYTES: usize = 107;
/// Every local process may ask.
pub const DEFAULT_MODE: u32 = 0o777;
/// How long to wait when the kernel gives no connection, for want of file descriptors for example.
pub(super) const ACCEPT_AGAIN: Duration = Duration::from_secs(1);

/// A bound unix socket. The file goes when this is dropped.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
    file: (u64, u64),
}

impl Listener {
    /// Binds `path` with the file mode `mode`; creates the folder (0755) where there is none. Must be called within
    /// a tokio runtime.
    pub fn bind(path: &Path, mode: u32) -> Result<Self, ApiError> {
        let bytes = path.as_os_str().len();
        if bytes > MAX_PATH_BYTES {
            return Err(ApiError::PathTooLong { path: path.to_owned(), bytes });
        }
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            let created = DirBuilder::new().recursive(true).mode(0o755).create(folder);
            created.map_err(|source| ApiError::Io { doing: "create the folder", path: folder.to_owned(), source })?;
        }
        let failed = |doing| move |source| ApiError::Io { doing, path: path.to_owned(), source };
        remove_stale(path)?;
        let listener = UnixListener::bind(path).map_err(|source| match source.kind() {
            // Somebody was faster between the two steps.
            io::ErrorKind::AddrInUse => ApiError::InUse(path.to_owned()),
            _ => failed("listen on")(source),
        })?;
        let file = std::fs::symlink_metadata(path).map_err(failed("look at"))?;
        let listener = Self { listener, path: path.to_owned(), file: device_and_inode(&file) };
        std::fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed("set the mode of"))?;
        Ok(listener)
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The connections, each with its pinned process and the place that it holds as `holder` says.
    pub(super) fn connections(
        self,
        places: Arc<Places>,
        holder: impl Fn(&Peer) -> Holder + Send + Sync + 'static,
        clock: Arc<dyn Clock>,
    ) -> impl Stream<Item = io::Result<Connection>> + Send + 'static {
        unfold((self, places, holder, clock), |(listener, places, holder, clock)| async move {
            let connection = listener.next(&places, &holder, clock.as_ref()).await;
            Some((Ok(connection), (listener, places, holder, clock)))
        })
    }

    async fn next(
        &self,
        places: &Arc<Places>,
        holder: &(impl Fn(&Peer) -> Holder + Sync),
        clock: &dyn Clock,
    ) -> Connection {
        loop {
            let (stream, peer) = self.accept(clock).await;
            match places.take(holder(&peer)) {
                Ok(place) => return Connection { stream, peer, names: Authorities::default(), _place: place },
                Err(full) => debug!(pid = peer.pid(), uid = peer.uid(), %full, "connection closed"),
            }
        }
    }

    /// The next connection, with its pinned process. Cancel safe.
    pub(super) async fn accept(&self, clock: &dyn Clock) -> (UnixStream, Arc<Peer>) {
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    warn!(socket = %self.path.display(), %error, "no connection can be accepted");
                    clock.sleep(ACCEPT_AGAIN).await;
                    continue;
                }
            };
            match Peer::of(&stream) {
                Ok(peer) => return (stream, Arc::new(peer)),
                Err(error) => debug!(%error, "connection closed: its process cannot be pinned"),
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Only our own: another agent may have put its socket there after somebody removed ours.
        if std::fs::symlink_metadata(&self.path).is_ok_and(|file| device_and_inode(&file) == self.file)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            warn!(path = %self.path.display(), %error, "socket file cannot be removed");
        }
    }
}

/// Makes sure that nothing is at `path`: removes a socket that nobody listens on, refuses everything else.
fn remove_stale(path: &Path) -> Result<(), ApiError> {
    let failed = |doing| move |source| ApiError::Io { doing, path: path.to_owned(), source };
    let file = match std::fs::symlink_metadata(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at")(error)),
    };
    if !file.file_type().is_socket() {
        return Err(ApiError::NotASocket(path.to_owned()));
    }
    match knock(path) {
        Err(Errno::ECONNREFUSED) => {}
        Err(Errno::ENOENT) => return Ok(()),
        // A full queue of connections is somebody's queue; a socket of another type is somebody's too.
        Ok(()) | Err(Errno::EAGAIN | Errno::EPROTOTYPE) => return Err(ApiError::InUse(path.to_owned())),
        Err(errno) => return Err(failed("find out who listens on")(errno.into())),
    }
    // Still the file that nobody answered on, not one that another agent has bound since.
    if std::fs::symlink_metadata(path).is_ok_and(|now| device_and_inode(&now) == device_and_inode(&file)) {
        info!(path = %path.display(), "socket file without a listener is replaced");
        std::fs::remove_file(path).map_err(failed("remove the old socket"))?;
    }
    Ok(())
}

/// Connects without waiting.
fn knock(path: &Path) -> Result<(), Errno> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let knocking = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(knocking.as_raw_fd(), &UnixAddr::new(path)?)
}

fn device_and_inode(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

/// A connection, the process at its other end, and its place.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    peer: Arc<Peer>,
    names: Authorities,
    _place: Place,
}

impl Connected for Connection {
    type ConnectInfo = Arc<Peer>;

    fn connect_info(&self) -> Arc<Peer> {
        Arc::clone(&self.peer)
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Some(fresh) = buf.filled_mut().get_mut(before..) {
            self.names.pass(fresh);
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_for_everyone_and_goes_with_its_listener() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("public/agent.sock");
        let listener = Listener::bind(&path, DEFAULT_MODE).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o777);
        assert_eq!(std::fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o022, 0);
        drop(listener);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let _listener = Listener::bind(&path, DEFAULT_MODE).unwrap();
        assert!(UnixStream::connect(&path).await.is_ok());
    }

    #[tokio::test]
    async fn a_live_socket_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let _first = Listener::bind(&path, DEFAULT_MODE).unwrap();
        let error = Listener::bind(&path, DEFAULT_MODE).unwrap_err();
        assert!(matches!(&error, ApiError::InUse(_)), "{error}");
        assert!(error.to_string().starts_with("another agent listens on "), "{error}");
        assert!(UnixStream::connect(&path).await.is_ok());
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(Listener::bind(&path, DEFAULT_MODE), Err(ApiError::NotASocket(_))));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }

    #[tokio::test]
    async fn a_path_that_is_too_long_is_refused_in_words() {
        let folder = tempfile::tempdir().unwrap();
        let longest = MAX_PATH_BYTES - folder.path().as_os_str().len() - 1;
        let error = Listener::bind(&folder.path().join("a".repeat(longest + 1)), DEFAULT_MODE).unwrap_err();
        assert!(error.to_string().contains("has 108 bytes: at most 107 are possible"), "{error}");
        Listener::bind(&folder.path().join("a".repeat(longest)), DEFAULT_MODE).unwrap();
    }

    #[tokio::test]
    async fn the_socket_of_another_agent_survives_our_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let first = Listener::bind(&path, DEFAULT_MODE).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _second = Listener::bind(&path, DEFAULT_MODE).unwrap();
        drop(first);
        assert!(path.exists());
    }
}
