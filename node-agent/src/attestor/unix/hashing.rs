//! The hash of an executable, remembered as long as the file is the same.
//!
//! - One executable of one user is hashed at a time, and a few in all: large ones of one user hold up only his own.
//! - Nobody waits for a hash without end: after a while there is none, which only ever takes identities away. The work
//!   goes on, and whoever comes again finds it done.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, StatxFlags, StatxTimestamp};
use spiffe::time::Timestamp;
use tracing::{debug, warn};

use crate::attestor::AttestError;
use crate::attestor::turns::Turns;

/// Hashes that are remembered; when there are more, all are forgotten.
const MAX_HASHES: usize = 1024;
/// Executables hashed at the same time, each of another user.
const HASHING: usize = 4;
/// How long a process waits for the hash of its executable: twenty times as long as the largest takes by default.
const PATIENCE: Duration = Duration::from_secs(10);

/// Hashes of executables.
pub(super) struct Hashing {
    up_to: u64,
    patience: Duration,
    hashes: Arc<Hashes>,
    turns: Turns,
}

#[derive(Default)]
struct Hashes(Mutex<HashMap<Stamp, String>>);

/// What is the same as long as a file's content is the same.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// Of what `/proc/<pid>/exe` leads to, as far as the kernel knows it: no other machine is asked.
    pub(super) fn of_executable(pid: u32) -> Option<Self> {
        let flags = AtFlags::STATX_DONT_SYNC;
        let found = rustix::fs::statx(CWD, format!("/proc/{pid}/exe"), flags, StatxFlags::BASIC_STATS).ok()?;
        let time = |time: StatxTimestamp| (time.tv_sec, i64::from(time.tv_nsec));
        Some(Self {
            device: rustix::fs::makedev(found.stx_dev_major, found.stx_dev_minor),
            inode: found.stx_ino,
            size: found.stx_size,
            modified: time(found.stx_mtime),
            changed: time(found.stx_ctime),
        })
    }

    /// Whether a change from now on would make another stamp: file systems keep time in steps of some milliseconds.
    fn is_settled(&self, now: Timestamp) -> bool {
        u64::try_from(self.changed.0).is_ok_and(|changed| changed.saturating_add(2) <= now.unix())
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl Hashes {
    fn find(&self, stamp: &Stamp) -> Option<String> {
        self.lock().get(stamp).cloned()
    }

    fn remember(&self, stamp: Stamp, hash: String) {
        let mut hashes = self.lock();
        if hashes.len() >= MAX_HASHES {
            hashes.clear();
        }
        hashes.insert(stamp, hash);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Stamp, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hashing {
    /// Of files of at most `up_to` bytes.
    pub(super) fn new(up_to: u64) -> Self {
        Self { up_to, patience: PATIENCE, hashes: Arc::default(), turns: Turns::new(HASHING, 1) }
    }

    /// The hash, if it is remembered.
    pub(super) fn known(&self, stamp: &Stamp) -> Option<String> {
        self.hashes.find(stamp)
    }

    /// The hash of a process of `uid`, in lower-case hexadecimal; `None` where it is too large, changes meanwhile, or
    /// takes too long. One that has changed just before `now` is not remembered.
    pub(super) async fn hash(
        &self,
        uid: u32,
        (file, stamp): (File, Stamp),
        now: Timestamp,
    ) -> Result<Option<String>, AttestError> {
        if stamp.size > self.up_to {
            debug!(size = stamp.size, limit = self.up_to, "executable is too large to be hashed");
            return Ok(None);
        }
        if let Some(hash) = self.hashes.find(&stamp) {
            return Ok(Some(hash));
        }
        let size = stamp.size;
        #[expect(clippy::disallowed_methods, reason = "a time limit on what a local process has the agent read")]
        let hashed = tokio::time::timeout(self.patience, self.in_turn(uid, (file, stamp), now)).await;
        hashed.unwrap_or_else(|_| {
            warn!(uid, size, "an executable was not hashed in time: its process has no unix:sha256 for now");
            Ok(None)
        })
    }

    async fn in_turn(
        &self,
        uid: u32,
        (file, stamp): (File, Stamp),
        now: Timestamp,
    ) -> Result<Option<String>, AttestError> {
        let turn = self.turns.take(uid).await.ok_or(AttestError::Interrupted)?;
        if let Some(hash) = self.hashes.find(&stamp) {
            return Ok(Some(hash));
        }
        let hashes = Arc::clone(&self.hashes);
        let hashing = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let hash = hash_unchanged(&file, &stamp)?;
            if stamp.is_settled(now) {
                hashes.remember(stamp, hash.clone());
            }
            Some(hash)
        });
        hashing.await.map_err(|_| AttestError::Interrupted)
    }

    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.hashes.lock().len()
    }
}

/// The hash of the whole file, unless it changed while it was read.
pub(super) fn hash_unchanged(file: &File, stamp: &Stamp) -> Option<String> {
    // One more byte than it should have shows that it grew.
    let mut content = file.take(stamp.size.saturating_add(1));
    let hash = spiffe::crypto::sha256_hex_of(&mut content).ok()?;
    let whole = content.limit() == 1;
    (whole && Stamp::of(&file.metadata().ok()?) == *stamp).then_some(hash)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::time::Duration;

    use super::*;

    const NOW: Timestamp = Timestamp::from_unix(4_000_000_000);

    /// A file that does not end before its other end does, as one on a file system that hangs.
    fn endless(inode: u64) -> (std::io::PipeWriter, (File, Stamp)) {
        let (reader, writer) = std::io::pipe().unwrap();
        let stamp = Stamp { device: 0, inode, size: 7, modified: (0, 0), changed: (0, 0) };
        (writer, (File::from(std::os::fd::OwnedFd::from(reader)), stamp))
    }

    fn file(content: &[u8]) -> (File, Stamp) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        let stamp = Stamp::of(&file.metadata().unwrap());
        (file, stamp)
    }

    #[tokio::test]
    async fn executables_of_one_user_hold_up_only_his_own() {
        let hashing = Arc::new(Hashing::new(100));
        let (mut held, mut waiting) = (Vec::new(), Vec::new());
        for inode in 0..8 {
            let (writer, executable) = endless(inode);
            held.push(writer);
            let hashing = Arc::clone(&hashing);
            waiting.push(tokio::spawn(async move { hashing.hash(1, executable, NOW).await }));
        }
        tokio::task::yield_now().await;
        let another = hashing.hash(2, file(b"web"), NOW).await.unwrap();
        assert_eq!(another, Some(spiffe::crypto::sha256_hex(b"web")));
        assert!(waiting.iter().all(|waiting| !waiting.is_finished()));
        drop(held);
        for one in waiting {
            assert_eq!(one.await.unwrap().unwrap(), None);
        }
    }

    #[tokio::test]
    async fn nobody_waits_without_end_and_who_comes_again_finds_it_done() {
        let hashing = Hashing { patience: Duration::from_millis(50), ..Hashing::new(100) };
        let (writer, executable) = endless(1);
        assert_eq!(hashing.hash(1, executable, NOW).await.unwrap(), None);
        // It hangs still, and has its user's turn.
        assert_eq!(hashing.hash(1, file(b"web"), NOW).await.unwrap(), None);
        drop(writer);
        let hashing = Hashing { patience: PATIENCE, ..hashing };
        assert!(hashing.hash(1, file(b"web"), NOW).await.unwrap().is_some());
        // What is known takes no turn.
        let (_writer, executable) = endless(2);
        let known = file(b"web");
        hashing.hashes.remember(known.1.clone(), "known".into());
        let impatient = Hashing { patience: Duration::from_millis(50), ..hashing };
        assert_eq!(impatient.hash(1, executable, NOW).await.unwrap(), None);
        assert_eq!(impatient.hash(1, known, NOW).await.unwrap(), Some("known".into()));
    }

    #[test]
    fn a_file_that_changes_while_it_is_hashed_has_no_hash() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program");
        std::fs::write(&path, b"one").unwrap();
        let file = File::open(&path).unwrap();
        let stamp = Stamp::of(&file.metadata().unwrap());
        std::fs::write(&path, b"three").unwrap();
        assert_eq!(hash_unchanged(&file, &stamp), None);
        let (file, stamp) = (File::open(&path).unwrap(), Stamp::of(&std::fs::metadata(&path).unwrap()));
        assert_eq!(hash_unchanged(&file, &stamp), Some(spiffe::crypto::sha256_hex(b"three")));
    }

    #[tokio::test]
    async fn a_file_that_has_just_changed_is_hashed_again() {
        let hashing = Hashing::new(100);
        let (opened, stamp) = file(b"web");
        let changed = u64::try_from(stamp.changed.0).unwrap();
        let soon = Timestamp::from_unix(changed + 1);
        let again = opened.try_clone().unwrap();
        assert!(hashing.hash(1, (opened, stamp.clone()), soon).await.unwrap().is_some());
        assert_eq!(hashing.known(&stamp), None);
        std::io::Seek::rewind(&mut &again).unwrap();
        let later = Timestamp::from_unix(changed + 2);
        assert!(hashing.hash(1, (again, stamp.clone()), later).await.unwrap().is_some());
        assert!(hashing.known(&stamp).is_some());
    }
}
