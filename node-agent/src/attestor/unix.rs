//! What every process has: user, groups, executable.
//!
//! | selector | from |
//! |---|---|
//! | `unix:uid:1000`, `unix:user:alice` | the user for whom it connected |
//! | `unix:gid:100`, `unix:group:users` | the group for which it connected |
//! | `unix:supplementary_gid:27`, `unix:supplementary_group:sudo` | its supplementary groups, the first 100 |
//! | `unix:path:/usr/bin/web` | `/proc/<pid>/exe` |
//! | `unix:sha256:<hex>` | the content behind `/proc/<pid>/exe`, where hashing is on |
//!
//! - A path is what the process's own mount namespace calls its executable, and whoever may run a program under a
//!   user may do so with other content mounted there: put the user (or the hash) beside the path in an entry.
//! - A deleted executable has no path. The kernel marks one by " (deleted)" behind the path, so a file whose
//!   name really ends so has none either.
//! - Names of users and groups are believed for a few seconds after they were looked up.
//! - The hash of an executable that is known is given without opening it: by what the kernel knows of the file, which
//!   for a file on the network may be some seconds old.
//! - Reading `/proc/<pid>/exe` of another user's process takes `CAP_SYS_PTRACE`: without it there is neither path
//!   nor hash.

use std::fs::File;
use std::os::unix::ffi::OsStringExt as _;
use std::sync::Arc;

use async_trait::async_trait;
use spiffe::selector::Selector;
use spiffe::time::Clock;
use tracing::debug;

use self::hashing::{Hashing, Stamp};
use self::names::{Name, Names};
use super::process_file::Credentials;
use super::turns::Turns;
use super::{AttestError, Peer, WorkloadAttestor, selector};

mod hashing;
mod names;

const KIND: &str = "unix";
/// Each of them makes up to two selectors, and a set holds 256.
const MAX_SUPPLEMENTARY: usize = 100;
/// Processes looked at at the same time, in all and of one user: an executable may lie on a file system that hangs.
const LOOKING: usize = 64;
const LOOKING_OF_ONE: usize = 4;

/// The `unix` attestor.
pub struct Unix {
    hash_up_to: u64,
    hashing: Hashing,
    names: Arc<Names>,
    looking: Turns,
    clock: Arc<dyn Clock>,
}

/// For whom a process acts.
struct User {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

/// What can be said without reading the executable, and the executable itself.
struct Facts {
    selectors: Vec<Selector>,
    executable: Option<(File, Stamp)>,
}

impl Unix {
    /// Executables of at most `hash_up_to` bytes get a `unix:sha256` selector; 0: none does, and none is read.
    pub fn new(hash_up_to: u64, clock: Arc<dyn Clock>) -> Self {
        let names = Arc::new(Names::new(Arc::clone(&clock)));
        let (hashing, looking) = (Hashing::new(hash_up_to), Turns::new(LOOKING, LOOKING_OF_ONE));
        Self { hash_up_to, hashing, names, looking, clock }
    }

    /// Everything, if nothing of it can make us wait: names that were looked up lately, a hash that is known.
    fn at_once(&self, pid: u32, user: &User) -> Option<Vec<Selector>> {
        let mut found = user.selectors(|name| self.names.known(name))?;
        let before = link(pid)?;
        let stamp = match self.hash_up_to {
            0 => None,
            _ => Some(Stamp::of_executable(pid).filter(|_| link(pid).as_ref() == Some(&before))?),
        };
        let hash = match stamp {
            Some(stamp) if stamp.size() <= self.hash_up_to => Some(self.hashing.known(&stamp)?),
            _ => None,
        };
        found.extend(executable_path(before).and_then(|path| selector(KIND, "path", path)));
        found.extend(hash.and_then(|hash| selector(KIND, "sha256", hash)));
        Some(found)
    }
}

#[async_trait]
impl WorkloadAttestor for Unix {
    fn kind(&self) -> &'static str {
        KIND
    }

    async fn attest(&self, peer: &Peer, credentials: &Credentials) -> Result<Vec<Selector>, AttestError> {
        let groups = credentials.groups.iter().copied().take(MAX_SUPPLEMENTARY).collect();
        let user = User { uid: peer.uid(), gid: peer.gid(), groups };
        if let Some(found) = self.at_once(peer.pid(), &user) {
            return Ok(found);
        }
        let (pid, uid, names, open) = (peer.pid(), peer.uid(), Arc::clone(&self.names), self.hash_up_to > 0);
        // Names may come over the network (NSS), and files from slow disks.
        let turn = self.looking.take(uid).await.ok_or(AttestError::Interrupted)?;
        let looking = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            facts(pid, &user, &names, open)
        });
        let facts = looking.await.map_err(|_| AttestError::Interrupted)?;
        let mut selectors = facts.selectors;
        if let Some(executable) = facts.executable {
            let hash = self.hashing.hash(uid, executable, self.clock.now()).await?;
            selectors.extend(hash.and_then(|hash| selector(KIND, "sha256", hash)));
        }
        Ok(selectors)
    }
}

impl User {
    /// What is true of every process of the user; `None` when `named` does not know about one of the names.
    fn selectors(&self, named: impl Fn(Name) -> Option<Option<Arc<str>>>) -> Option<Vec<Selector>> {
        let Self { uid, gid, groups } = self;
        let mut found = vec![selector(KIND, "uid", uid), selector(KIND, "gid", gid)];
        found.push(named(Name::User(*uid))?.and_then(|name| selector(KIND, "user", name)));
        found.push(named(Name::Group(*gid))?.and_then(|name| selector(KIND, "group", name)));
        for gid in groups {
            found.push(selector(KIND, "supplementary_gid", gid));
            found.push(named(Name::Group(*gid))?.and_then(|name| selector(KIND, "supplementary_group", name)));
        }
        Some(found.into_iter().flatten().collect())
    }
}

fn facts(pid: u32, user: &User, names: &Names, open: bool) -> Facts {
    let mut selectors = user.selectors(|name| Some(names.look_up(name))).unwrap_or_default();
    let (path, executable) = executable(pid, open);
    selectors.extend(path.and_then(|path| selector(KIND, "path", path)));
    Facts { selectors, executable }
}

/// What `/proc/<pid>/exe` leads to.
fn link(pid: u32) -> Option<Vec<u8>> {
    let link = std::fs::read_link(format!("/proc/{pid}/exe"));
    let link = link.inspect_err(|error| debug!(pid, %error, "executable cannot be seen"));
    link.ok().map(|link| link.into_os_string().into_vec())
}

/// The path of the executable and, when `open`, the executable; neither when it was replaced between the two looks.
fn executable(pid: u32, open: bool) -> (Option<String>, Option<(File, Stamp)>) {
    let Some(before) = link(pid) else { return (None, None) };
    let path = executable_path(before.clone());
    if !open {
        return (path, None);
    }
    let opened = File::open(format!("/proc/{pid}/exe")).and_then(|file| {
        let stamp = Stamp::of(&file.metadata()?);
        Ok((file, stamp))
    });
    if link(pid).as_ref() != Some(&before) {
        return (None, None);
    }
    (path, opened.inspect_err(|error| debug!(pid, %error, "executable cannot be read")).ok())
}

/// The path in the link `/proc/<pid>/exe`, unless the executable was deleted or its path is no UTF-8.
fn executable_path(link: Vec<u8>) -> Option<String> {
    let path = String::from_utf8(link).ok()?;
    (path.starts_with('/') && !path.ends_with(" (deleted)")).then_some(path)
}

#[cfg(test)]
mod tests {
    use nix::unistd::{Group, User};
    use spiffe::time::{Fake, Timestamp};
    use tokio::net::UnixStream;

    use super::*;

    fn unix(hash_up_to: u64) -> Unix {
        Unix::new(hash_up_to, Arc::new(Fake::new(Timestamp::from_unix(1_800_000_000))))
    }

    async fn own(unix: &Unix) -> Vec<String> {
        let (_held, theirs) = UnixStream::pair().unwrap();
        let peer = Peer::of(&theirs).unwrap();
        unix.attest(&peer, &peer.credentials().unwrap()).await.unwrap().iter().map(ToString::to_string).collect()
    }

    #[tokio::test]
    async fn we_are_who_we_are() {
        let found = own(&unix(0)).await;
        let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
        let exe = std::env::current_exe().unwrap().canonicalize().unwrap();
        let mut expected =
            vec![format!("unix:uid:{uid}"), format!("unix:gid:{gid}"), format!("unix:path:{}", exe.display())];
        expected.extend(User::from_uid(uid).unwrap().map(|user| format!("unix:user:{}", user.name)));
        expected.extend(Group::from_gid(gid).unwrap().map(|group| format!("unix:group:{}", group.name)));
        for gid in nix::unistd::getgroups().unwrap() {
            expected.push(format!("unix:supplementary_gid:{gid}"));
        }
        for selector in expected {
            assert!(found.contains(&selector), "{selector} is not in {found:?}");
        }
        assert!(!found.iter().any(|selector| selector.starts_with("unix:sha256:")), "{found:?}");
    }

    #[tokio::test]
    async fn the_hash_is_that_of_the_executable_up_to_the_limit() {
        let content = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let expected = format!("unix:sha256:{}", spiffe::crypto::sha256_hex(&content));
        let exactly = unix(content.len() as u64);
        assert!(own(&exactly).await.contains(&expected));
        let again = own(&exactly).await;
        assert!(again.contains(&expected) && again.iter().any(|found| found.starts_with("unix:path:")), "from memory");
        assert_eq!(exactly.hashing.remembered(), 1);
        let found = own(&unix(content.len() as u64 - 1)).await;
        assert!(!found.iter().any(|selector| selector.starts_with("unix:sha256:")), "{found:?}");
    }

    #[test]
    fn a_deleted_executable_has_no_path() {
        assert_eq!(executable_path(b"/usr/bin/web".to_vec()), Some("/usr/bin/web".into()));
        assert_eq!(executable_path(b"/usr/bin/web (deleted)".to_vec()), None);
        assert_eq!(executable_path(b"web".to_vec()), None);
        assert_eq!(executable_path(b"/usr/bin/\xff".to_vec()), None);
    }

    #[tokio::test]
    async fn a_running_program_that_was_deleted_has_no_path_but_its_hash() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("sleeper");
        std::fs::copy("/bin/sleep", &program).unwrap();
        let mut child = std::process::Command::new(&program).arg("600").spawn().unwrap();
        std::fs::remove_file(&program).unwrap();
        let (path, opened) = executable(child.id(), true);
        let (file, stamp) = opened.unwrap();
        assert_eq!(path, None);
        assert_eq!(
            hashing::hash_unchanged(&file, &stamp),
            Some(spiffe::crypto::sha256_hex(&std::fs::read("/bin/sleep").unwrap()))
        );
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn what_was_looked_up_once_is_there_at_once_and_says_the_same() {
        for hash_up_to in [0, u64::MAX] {
            let unix = unix(hash_up_to);
            let (_held, theirs) = UnixStream::pair().unwrap();
            let peer = Peer::of(&theirs).unwrap();
            let user = super::User { uid: peer.uid(), gid: peer.gid(), groups: peer.credentials().unwrap().groups };
            assert_eq!(unix.at_once(peer.pid(), &user), None);
            let mut first = own(&unix).await;
            let at_once = unix.at_once(peer.pid(), &user).unwrap();
            let mut second: Vec<String> = at_once.iter().map(ToString::to_string).collect();
            first.sort();
            second.sort();
            assert_eq!(first, second);
        }
    }

    #[tokio::test]
    async fn another_program_under_the_same_pid_is_never_taken_for_the_first() {
        let unix = unix(u64::MAX);
        let mut child = std::process::Command::new("/bin/sh")
            .args(["-c", "read go; exec sleep 600"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let peer = Peer::named(child.id()).unwrap();
        let look = async || unix.attest(&peer, &peer.credentials().unwrap()).await.unwrap();
        let shell = look().await;
        assert_eq!(look().await.len(), shell.len());
        std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"\n").unwrap();
        let is_shell = |found: &[Selector]| found.iter().any(|found| shell.last() == Some(found));
        let mut found = look().await;
        while is_shell(&found) {
            tokio::task::yield_now().await;
            found = look().await;
        }
        let expected = format!("unix:sha256:{}", spiffe::crypto::sha256_hex(&std::fs::read("/bin/sleep").unwrap()));
        assert!(found.iter().any(|found| found.as_str() == expected), "{found:?}");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn a_crowd_of_groups_is_cut_off() {
        let (_held, theirs) = UnixStream::pair().unwrap();
        let peer = Peer::of(&theirs).unwrap();
        let many = Credentials { groups: (3_000_000..3_000_400).collect(), ..peer.credentials().unwrap() };
        let found = unix(0).attest(&peer, &many).await.unwrap();
        assert_eq!(found.iter().filter(|found| found.as_str().starts_with("unix:supplementary_gid:")).count(), 100);
    }
}
