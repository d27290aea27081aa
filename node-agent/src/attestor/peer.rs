//! The process at the other end of a unix socket, pinned.
//!
//! - User and group are those with which it connected, from the kernel (`SO_PEERCRED`): no later `exec` changes them.
//! - The pidfd is of the process that connected (`SO_PEERPIDFD`, Linux 6.5), so that a pid that was given to another
//!   process meanwhile is noticed. Older kernels open it by number: the small time between connecting and that is
//!   guarded by the connection still being held open, and by the user and group being those that connected.
//! - [`Peer::check`] says whether it is still the same process (not ended, same start time) and still acts for the
//!   user and group that connected: a process that connects and then runs a setuid program proves nothing by it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

use super::AttestError;
use super::process_file::{Credentials, start_time};

/// A process that has connected. See the head of this file.
#[derive(Debug)]
pub struct Peer {
    pid: u32,
    uid: u32,
    gid: u32,
    start_time: u64,
    pidfd: AsyncFd<OwnedFd>,
}

impl Peer {
    /// Who is at the other end of `stream`. Must be called within a tokio runtime.
    pub fn of(stream: &UnixStream) -> Result<Self, AttestError> {
        let credentials = getsockopt(stream, sockopt::PeerCredentials)
            .map_err(|errno| AttestError::Credentials(io::Error::from(errno)))?;
        let pid = match u32::try_from(credentials.pid()) {
            Ok(pid) if pid > 0 => pid,
            _ => return Err(AttestError::Hidden),
        };
        let pidfd = match getsockopt(stream, sockopt::PeerPidfd) {
            Ok(pidfd) => pidfd,
            Err(Errno::ENOPROTOOPT) => pidfd_by_number(stream, pid)?,
            Err(_) => return Err(AttestError::Gone(pid)),
        };
        let pidfd = watch(pidfd).map_err(AttestError::Credentials)?;
        let start_time = read_start_time(pid)?;
        let peer = Self { pid, uid: credentials.uid(), gid: credentials.gid(), start_time, pidfd };
        peer.check()?;
        Ok(peer)
    }

    /// Its pid, in the agent's namespace.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The user for whom it connected.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// The group for which it connected.
    pub fn gid(&self) -> u32 {
        self.gid
    }

    /// Whether it is still there, is still the same process, and still acts for the same user and group.
    pub fn check(&self) -> Result<(), AttestError> {
        if is_readable(self.pidfd.get_ref())? {
            return Err(AttestError::Gone(self.pid));
        }
        if read_start_time(self.pid)? != self.start_time {
            return Err(AttestError::Reused(self.pid));
        }
        let now = self.credentials()?;
        if (now.effective_uid, now.effective_gid) != (self.uid, self.gid) {
            return Err(AttestError::Changed(self.pid));
        }
        Ok(())
    }

    /// Its users and groups as they are now.
    pub fn credentials(&self) -> Result<Credentials, AttestError> {
        Credentials::parse(&read(self.pid, "status")?).ok_or_else(|| malformed(self.pid, "status"))
    }

    /// Returns when it has ended.
    pub async fn ended(&self) {
        // An error means that the runtime is going down, and every stream with it.
        let _ = self.pidfd.readable().await;
    }
}

#[expect(
    deprecated,
    reason = "the successor is unsafe for the sake of types whose descriptor can change; that of an OwnedFd cannot"
)]
fn watch(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(pidfd, Interest::READABLE)
}

/// For kernels that do not hand out the pidfd of a socket's peer.
fn pidfd_by_number(stream: &UnixStream, pid: u32) -> Result<OwnedFd, AttestError> {
    let number = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).ok_or(AttestError::Hidden)?;
    let pidfd = rustix::process::pidfd_open(number, rustix::process::PidfdFlags::empty()).map_err(|errno| {
        if errno == rustix::io::Errno::SRCH { AttestError::Gone(pid) } else { AttestError::Credentials(errno.into()) }
    })?;
    // Looked at after the pidfd was opened: whoever connected has not let go of the connection until then.
    let mut polled = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    poll(&mut polled, PollTimeout::ZERO).map_err(|errno| AttestError::Credentials(errno.into()))?;
    if polled.iter().any(|fd| fd.any().unwrap_or(true)) {
        return Err(AttestError::Gone(pid));
    }
    Ok(pidfd)
}

fn is_readable(pidfd: &OwnedFd) -> Result<bool, AttestError> {
    let mut polled = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    let count = poll(&mut polled, PollTimeout::ZERO).map_err(|errno| AttestError::Credentials(errno.into()))?;
    Ok(count > 0)
}

fn read_start_time(pid: u32) -> Result<u64, AttestError> {
    start_time(&read(pid, "stat")?).ok_or_else(|| malformed(pid, "stat"))
}

/// A small file of `/proc/<pid>`; `Gone` when there is none.
pub(super) fn read(pid: u32, file: &'static str) -> Result<Vec<u8>, AttestError> {
    std::fs::read(format!("/proc/{pid}/{file}")).map_err(|error| {
        if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ESRCH as i32) {
            AttestError::Gone(pid)
        } else {
            AttestError::ProcessFile { pid, file, reason: error.to_string() }
        }
    })
}

fn malformed(pid: u32, file: &'static str) -> AttestError {
    AttestError::ProcessFile { pid, file, reason: "it does not have the form that proc(5) describes".into() }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;
    use crate::attestor::Attestors;

    fn ourselves() -> (UnixStream, Peer) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let peer = Peer::of(&theirs).unwrap();
        (ours, peer)
    }

    /// A child process, and the peer that it would be.
    fn child() -> (std::process::Child, Peer) {
        let child = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap();
        let (_held, theirs) = UnixStream::pair().unwrap();
        let pidfd = pidfd_by_number(&theirs, child.id()).unwrap();
        let pidfd = watch(pidfd).unwrap();
        let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        let start_time = read_start_time(child.id()).unwrap();
        let peer = Peer { pid: child.id(), uid, gid, start_time, pidfd };
        (child, peer)
    }

    #[tokio::test]
    async fn a_peer_is_who_connected() {
        let (_held, peer) = ourselves();
        assert_eq!(peer.pid(), std::process::id());
        assert_eq!((peer.uid(), peer.gid()), (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw()));
        peer.check().unwrap();
    }

    #[tokio::test]
    async fn pid_reuse_is_refused() {
        let (_held, mut peer) = ourselves();
        peer.start_time += 1;
        assert!(matches!(peer.check(), Err(AttestError::Reused(_))));
        assert!(matches!(Attestors::new(Vec::new()).attest(&peer).await, Err(AttestError::Reused(_))));
    }

    #[tokio::test]
    async fn a_process_that_has_changed_its_user_is_refused() {
        let (_held, mut peer) = ourselves();
        peer.uid += 1;
        assert!(matches!(peer.check(), Err(AttestError::Changed(_))));
        peer.uid -= 1;
        peer.gid += 1;
        assert!(matches!(peer.check(), Err(AttestError::Changed(_))));
    }

    #[tokio::test]
    async fn the_end_of_a_process_is_noticed_even_before_it_is_reaped() {
        let (mut child, peer) = child();
        peer.check().unwrap();
        child.kill().unwrap();
        peer.ended().await;
        assert!(matches!(peer.check(), Err(AttestError::Gone(_))));
        child.wait().unwrap();
        assert!(matches!(peer.check(), Err(AttestError::Gone(_))));
        assert!(matches!(read(child.id(), "stat"), Err(AttestError::Gone(_))));
    }

    #[tokio::test]
    async fn without_the_kernels_pidfd_a_closed_connection_is_refused() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        assert!(pidfd_by_number(&theirs, std::process::id()).is_ok());
        drop(ours);
        assert!(matches!(pidfd_by_number(&theirs, std::process::id()), Err(AttestError::Gone(_))));
    }
}
