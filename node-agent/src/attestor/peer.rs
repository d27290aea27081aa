//! A process, pinned: the one at the other end of a unix socket ([`Peer::of`]), or one that somebody else names by its
//! pid ([`Peer::named`]).
//!
//! - User and group are those with which it connected, from the kernel (`SO_PEERCRED`): no later `exec` changes them.
//! - The pidfd is of the process that connected (`SO_PEERPIDFD`, Linux 6.5), so that a pid that was given to another
//!   process meanwhile is noticed. Older kernels open it by number: the small time between connecting and that is
//!   guarded by the connection still being held open, and by the user and group being those that connected.
//! - Of a process that is named its pidfd is opened first and everything is read after: as long as the pidfd says that
//!   the process has not ended, the pid cannot have become another's. Threads are none, the kernel's least of all; nor is a
//!   setuid program: anybody may start one, and it acts for two users.
//! - Its `/proc/<pid>/status` is opened once, before the pidfd is looked at for the first time: from then on that file is of this
//!   very process, as the pidfd is, and tells of no other one that may get its number.
//! - [`Peer::check`] says whether it is still there (and so is what was read by its number its own) and still acts for the
//!   user and group that connected: a process that connects and then runs a setuid program proves nothing by it.
//! - A pid is one of the agent's own pid namespace. Whoever is in another one means another process by the same number.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt as _;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

use super::AttestError;
use super::process_file::{Credentials, is_kernel_thread, pid_namespaces};

/// More than any file of `/proc/<pid>` that is read has, with tens of thousands of groups in it.
const MOST_BYTES: usize = 1 << 20;

/// A process that has connected, or was named. See the head of this file.
#[derive(Debug)]
pub struct Peer {
    pid: u32,
    uid: u32,
    gid: u32,
    pidfd: AsyncFd<OwnedFd>,
    /// Its `/proc/<pid>/status`.
    status: File,
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
        let status = open(pid, "status")?;
        let peer = Self { pid, uid: credentials.uid(), gid: credentials.gid(), pidfd, status };
        peer.check()?;
        Ok(peer)
    }

    /// The process with this pid, which is somebody else's word. Must be called within a tokio runtime.
    pub fn named(pid: u32) -> Result<Self, AttestError> {
        let pidfd = watch(open_pidfd(pid)?).map_err(|source| AttestError::Pin { pid, source })?;
        let stat = read(pid, "stat")?;
        if is_kernel_thread(&stat).ok_or_else(|| malformed(pid, "stat"))? {
            return Err(AttestError::Thread(pid));
        }
        let status = open(pid, "status")?;
        let now = credentials(pid, &status)?;
        if !now.are_of_one() {
            return Err(AttestError::TwoUsers(pid));
        }
        let peer = Self { pid, uid: now.effective_uid, gid: now.effective_gid, pidfd, status };
        peer.check()?;
        Ok(peer)
    }

    /// Its pid, in the agent's namespace.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The user for whom it connected, or acted when it was named.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// The group for which it connected, or acted when it was named.
    pub fn gid(&self) -> u32 {
        self.gid
    }

    /// Its users and groups as they are now, if it is still there and still acts for the same user and group.
    pub fn check(&self) -> Result<Credentials, AttestError> {
        let now = self.credentials()?;
        // At the end: as long as it has not ended, its pid is nobody else's, and what was read until now was its own.
        if is_readable(self.pidfd.get_ref())? {
            return Err(AttestError::Gone(self.pid));
        }
        if (now.effective_uid, now.effective_gid) != (self.uid, self.gid) {
            return Err(AttestError::Changed(self.pid));
        }
        Ok(now)
    }

    /// Its users and groups as they are now.
    pub fn credentials(&self) -> Result<Credentials, AttestError> {
        credentials(self.pid, &self.status)
    }

    /// Whether it calls processes by the same pids as the agent.
    pub fn shares_pid_namespace(&self) -> Result<bool, AttestError> {
        Ok(pid_namespaces(&whole(self.pid, "status", &self.status)?) == 1)
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
    let pidfd = open_pidfd(pid)?;
    // Looked at after the pidfd was opened: whoever connected has not let go of the connection until then.
    let mut polled = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    poll(&mut polled, PollTimeout::ZERO).map_err(|errno| AttestError::Credentials(errno.into()))?;
    if polled.iter().any(|fd| fd.any().unwrap_or(true)) {
        return Err(AttestError::Gone(pid));
    }
    Ok(pidfd)
}

fn open_pidfd(pid: u32) -> Result<OwnedFd, AttestError> {
    use rustix::io::Errno;
    let number = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).ok_or(AttestError::Gone(pid))?;
    rustix::process::pidfd_open(number, rustix::process::PidfdFlags::empty()).map_err(|errno| match errno {
        Errno::SRCH => AttestError::Gone(pid),
        // Of a thread that does not lead its process: one or the other, by the age of the kernel.
        Errno::INVAL | Errno::NOENT => AttestError::Thread(pid),
        errno => AttestError::Pin { pid, source: errno.into() },
    })
}

fn is_readable(pidfd: &OwnedFd) -> Result<bool, AttestError> {
    let mut polled = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    let count = poll(&mut polled, PollTimeout::ZERO).map_err(|errno| AttestError::Credentials(errno.into()))?;
    Ok(count > 0)
}

fn credentials(pid: u32, status: &File) -> Result<Credentials, AttestError> {
    Credentials::parse(&whole(pid, "status", status)?).ok_or_else(|| malformed(pid, "status"))
}

/// A small file of `/proc/<pid>`; `Gone` when there is none.
pub(super) fn read(pid: u32, file: &'static str) -> Result<Vec<u8>, AttestError> {
    whole(pid, file, &open(pid, file)?)
}

fn open(pid: u32, file: &'static str) -> Result<File, AttestError> {
    File::open(format!("/proc/{pid}/{file}")).map_err(|error| unreadable(pid, file, &error))
}

/// What is in it now, from its beginning, however often it was read before.
fn whole(pid: u32, file: &'static str, opened: &File) -> Result<Vec<u8>, AttestError> {
    // Most are read in one piece: the kernel does not say how large they are.
    let mut content = vec![0; 4096];
    let mut read = 0;
    loop {
        match opened.read_at(&mut content[read..], read as u64) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(pid, file, &error)),
        }
        if read == content.len() {
            if read >= MOST_BYTES {
                break;
            }
            content.resize(2 * read, 0);
        }
    }
    content.truncate(read);
    Ok(content)
}

fn unreadable(pid: u32, file: &'static str, error: &io::Error) -> AttestError {
    if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ESRCH as i32) {
        AttestError::Gone(pid)
    } else {
        AttestError::ProcessFile { pid, file, reason: error.to_string() }
    }
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
        let status = open(child.id(), "status").unwrap();
        let peer = Peer { pid: child.id(), uid, gid, pidfd, status };
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
    async fn a_process_that_is_named_is_who_it_is() {
        let (mut child, expected) = child();
        let peer = Peer::named(child.id()).unwrap();
        assert_eq!((peer.pid(), peer.uid(), peer.gid()), (expected.pid(), expected.uid(), expected.gid()));
        assert!(peer.shares_pid_namespace().unwrap());
        child.kill().unwrap();
        peer.ended().await;
        assert!(matches!(peer.check(), Err(AttestError::Gone(_))));
        // Until it is reaped it has its pid still.
        assert!(matches!(Peer::named(child.id()), Err(AttestError::Gone(_))));
        child.wait().unwrap();
        assert!(matches!(Peer::named(child.id()), Err(AttestError::Gone(_))));
    }

    #[tokio::test]
    async fn a_named_process_that_has_ended_is_refused_although_another_has_its_pid() {
        let (mut first, peer) = child();
        let (mut second, _) = child();
        first.kill().unwrap();
        first.wait().unwrap();
        // As if the kernel had given its number to the second: what is read by number is the second's.
        let peer = Peer { pid: second.id(), ..peer };
        assert!(read(peer.pid(), "status").is_ok());
        assert!(matches!(peer.check(), Err(AttestError::Gone(_))));
        assert!(matches!(
            Attestors::new(Vec::new(), std::sync::Arc::new(spiffe::time::System)).attest(&peer).await,
            Err(AttestError::Gone(_))
        ));
        // And where all that was opened of the first was opened too late.
        let peer = Peer { status: open(second.id(), "status").unwrap(), ..peer };
        assert!(peer.credentials().is_ok());
        assert!(matches!(peer.check(), Err(AttestError::Gone(_))));
        second.kill().unwrap();
        second.wait().unwrap();
    }

    #[tokio::test]
    async fn a_thread_is_no_process() {
        assert!(matches!(Peer::named(0), Err(AttestError::Gone(_))));
        assert!(matches!(Peer::named(u32::MAX), Err(AttestError::Gone(_))));
        let (tell, told) = std::sync::mpsc::channel();
        let (_hold, held) = std::sync::mpsc::channel::<()>();
        std::thread::spawn(move || {
            tell.send(nix::unistd::gettid().as_raw()).unwrap();
            let _ = held.recv();
        });
        let thread = u32::try_from(told.recv().unwrap()).unwrap();
        assert!(std::fs::exists(format!("/proc/{thread}/stat")).unwrap());
        assert!(matches!(Peer::named(thread), Err(AttestError::Thread(_))));
        // On most machines, and not in every container: kthreadd.
        if std::fs::read("/proc/2/stat").is_ok_and(|stat| is_kernel_thread(&stat) == Some(true)) {
            assert!(matches!(Peer::named(2), Err(AttestError::Thread(2))));
        }
    }

    #[tokio::test]
    async fn without_the_kernels_pidfd_a_closed_connection_is_refused() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        assert!(pidfd_by_number(&theirs, std::process::id()).is_ok());
        drop(ours);
        assert!(matches!(pidfd_by_number(&theirs, std::process::id()), Err(AttestError::Gone(_))));
    }
}
