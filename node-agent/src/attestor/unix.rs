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
//! - Reading `/proc/<pid>/exe` of another user's process takes `CAP_SYS_PTRACE`: without it there is neither path
//!   nor hash.

use std::fs::File;
use std::os::unix::ffi::OsStringExt as _;

use async_trait::async_trait;
use nix::unistd::{Gid, Group, Uid, User};
use spiffe::selector::Selector;
use tracing::debug;

use self::hashing::{Hashing, Stamp};
use super::turns::Turns;
use super::{AttestError, Peer, WorkloadAttestor, selector};

mod hashing;

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
    looking: Turns,
}

/// What can be said without reading the executable, and the executable itself.
struct Facts {
    selectors: Vec<Selector>,
    executable: Option<(File, Stamp)>,
}

impl Unix {
    /// Executables of at most `hash_up_to` bytes get a `unix:sha256` selector; 0: none does, and none is read.
    pub fn new(hash_up_to: u64) -> Self {
        Self { hash_up_to, hashing: Hashing::new(hash_up_to), looking: Turns::new(LOOKING, LOOKING_OF_ONE) }
    }
}

#[async_trait]
impl WorkloadAttestor for Unix {
    fn kind(&self) -> &'static str {
        KIND
    }

    async fn attest(&self, peer: &Peer) -> Result<Vec<Selector>, AttestError> {
        let groups = peer.credentials()?.groups;
        let (pid, uid, gid, open) = (peer.pid(), peer.uid(), peer.gid(), self.hash_up_to > 0);
        // Names may come over the network (NSS), and files from slow disks.
        let turn = self.looking.take(uid).await.ok_or(AttestError::Interrupted)?;
        let looking = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            facts(pid, uid, gid, &groups, open)
        });
        let facts = looking.await.map_err(|_| AttestError::Interrupted)?;
        let mut selectors = facts.selectors;
        if let Some(executable) = facts.executable {
            let hash = self.hashing.hash(uid, executable).await?;
            selectors.extend(hash.and_then(|hash| selector(KIND, "sha256", hash)));
        }
        Ok(selectors)
    }
}

fn facts(pid: u32, uid: u32, gid: u32, groups: &[u32], open: bool) -> Facts {
    let user = || User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|user| user.name);
    let group = |gid| Group::from_gid(Gid::from_raw(gid)).ok().flatten().map(|group| group.name);
    let mut found = vec![selector(KIND, "uid", uid), selector(KIND, "gid", gid)];
    found.push(user().and_then(|name| selector(KIND, "user", name)));
    found.push(group(gid).and_then(|name| selector(KIND, "group", name)));
    let (path, executable) = executable(pid, open);
    found.push(path.and_then(|path| selector(KIND, "path", path)));
    for gid in groups.iter().take(MAX_SUPPLEMENTARY) {
        found.push(selector(KIND, "supplementary_gid", gid));
        found.push(group(*gid).and_then(|name| selector(KIND, "supplementary_group", name)));
    }
    Facts { selectors: found.into_iter().flatten().collect(), executable }
}

/// The path of the executable and, when `open`, the executable; neither when it was replaced between the two looks.
fn executable(pid: u32, open: bool) -> (Option<String>, Option<(File, Stamp)>) {
    let exe = format!("/proc/{pid}/exe");
    let link = || std::fs::read_link(&exe).inspect_err(|error| debug!(pid, %error, "executable cannot be seen")).ok();
    let Some(before) = link() else { return (None, None) };
    let path = executable_path(before.clone().into_os_string().into_vec());
    if !open {
        return (path, None);
    }
    let opened = File::open(&exe).and_then(|file| {
        let stamp = Stamp::of(&file.metadata()?);
        Ok((file, stamp))
    });
    if link().as_ref() != Some(&before) {
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
    use tokio::net::UnixStream;

    use super::*;

    async fn own(unix: &Unix) -> Vec<String> {
        let (_held, theirs) = UnixStream::pair().unwrap();
        let peer = Peer::of(&theirs).unwrap();
        unix.attest(&peer).await.unwrap().iter().map(ToString::to_string).collect()
    }

    #[tokio::test]
    async fn we_are_who_we_are() {
        let found = own(&Unix::new(0)).await;
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
        let exactly = Unix::new(content.len() as u64);
        assert!(own(&exactly).await.contains(&expected));
        assert!(own(&exactly).await.contains(&expected), "from memory");
        assert_eq!(exactly.hashing.remembered(), 1);
        let found = own(&Unix::new(content.len() as u64 - 1)).await;
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

    #[test]
    fn a_crowd_of_groups_is_cut_off() {
        let many: Vec<u32> = (3_000_000..3_000_400).collect();
        let found = facts(std::process::id(), 0, 0, &many, false).selectors;
        assert_eq!(found.iter().filter(|found| found.as_str().starts_with("unix:supplementary_gid:")).count(), 100);
    }
}
