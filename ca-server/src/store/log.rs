//! The recent commits of a store that lives in this process, for its watchers.
//!
//! - A ring, bounded in commits and in bytes; the oldest make room.
//! - Writers never wait for watchers: each watcher reads from the ring at its own pace, and wakes when the head moves.
//! - A watcher whose next commit has left the ring is told `Compacted`.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::stream;
use tokio::sync::watch;

use super::{Commit, Revision, StoreError, Watch, Write};

/// Commits kept at most.
const COMMITS_LIMIT: usize = 4096;
/// Bytes of keys and values kept at most; the newest commit is always kept.
const BYTES_LIMIT: usize = 16 * 1024 * 1024;

/// The ring and its watchers.
#[derive(Debug)]
pub(super) struct CommitLog {
    ring: Mutex<Ring>,
    head: watch::Sender<Revision>,
}

#[derive(Debug)]
struct Ring {
    /// Every commit after `floor`, without gaps.
    commits: VecDeque<Arc<Commit>>,
    floor: Revision,
    bytes: usize,
}

impl Ring {
    /// The commit that follows `after`: `None` when `after` is the latest.
    fn following(&self, after: Revision) -> Result<Option<Arc<Commit>>, StoreError> {
        let index = after.checked_sub(self.floor).ok_or(StoreError::Compacted)?;
        let index = usize::try_from(index).map_err(|_| StoreError::Compacted)?;
        if index > self.commits.len() {
            return Err(StoreError::Compacted);
        }
        Ok(self.commits.get(index).cloned())
    }
}

fn size(commit: &Commit) -> usize {
    commit.writes.iter().map(Write::size).sum()
}

impl CommitLog {
    /// An empty log of a store whose latest revision is `head`.
    pub(super) fn new(head: Revision) -> Self {
        let ring = Ring { commits: VecDeque::new(), floor: head, bytes: 0 };
        CommitLog { ring: Mutex::new(ring), head: watch::Sender::new(head) }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows `commit`, the one after the latest, to the watchers.
    pub(super) fn publish(&self, commit: Commit) {
        let revision = commit.revision;
        let mut ring = self.ring();
        debug_assert_eq!(revision, ring.floor + ring.commits.len() as u64 + 1, "commits follow one another");
        ring.bytes += size(&commit);
        ring.commits.push_back(Arc::new(commit));
        while ring.commits.len() > COMMITS_LIMIT || (ring.bytes > BYTES_LIMIT && ring.commits.len() > 1) {
            if let Some(oldest) = ring.commits.pop_front() {
                ring.bytes -= size(&oldest);
                ring.floor = oldest.revision;
            }
        }
        drop(ring);
        self.head.send_replace(revision);
    }

    /// The commits after `after` that touch `prefix`.
    pub(super) fn watch(self: &Arc<Self>, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        self.ring().following(after)?;
        let watcher = Watcher {
            head: self.head.subscribe(),
            log: Arc::downgrade(self),
            prefix: prefix.to_owned(),
            after,
            ended: false,
        };
        Ok(Watch::new(stream::unfold(watcher, |mut watcher| async move {
            if watcher.ended {
                return None;
            }
            let next = watcher.next().await;
            watcher.ended = next.is_err();
            Some((next, watcher))
        })))
    }
}

struct Watcher {
    /// Weak, so that a forgotten watch does not keep a closed store's commits.
    log: std::sync::Weak<CommitLog>,
    head: watch::Receiver<Revision>,
    prefix: String,
    after: Revision,
    ended: bool,
}

impl Watcher {
    async fn next(&mut self) -> Result<Commit, StoreError> {
        loop {
            // Marked as seen before the ring is read: a commit that comes between the two wakes us again.
            self.head.borrow_and_update();
            let following = self.log.upgrade().ok_or(StoreError::Closed)?.ring().following(self.after)?;
            let Some(commit) = following else {
                self.head.changed().await.map_err(|_| StoreError::Closed)?;
                continue;
            };
            self.after = commit.revision;
            let writes: Vec<Write> =
                commit.writes.iter().filter(|write| write.key().starts_with(&self.prefix)).cloned().collect();
            if !writes.is_empty() {
                return Ok(Commit { revision: commit.revision, writes });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(revision: Revision, key: &str, bytes: usize) -> Commit {
        Commit { revision, writes: vec![Write::Put { key: key.to_owned(), value: vec![0; bytes].into() }] }
    }

    #[tokio::test]
    async fn a_watcher_that_falls_behind_is_told_so_and_no_writer_waits() {
        let log = Arc::new(CommitLog::new(7));
        let mut slow = log.watch("k", 7).unwrap();
        let newest = 7 + COMMITS_LIMIT as u64 + 1;
        for revision in 8..=newest {
            log.publish(commit(revision, "k", 1));
        }
        assert_eq!(slow.next().await, Err(StoreError::Compacted));
        assert_eq!(slow.next().await, Err(StoreError::Closed));
        assert_eq!(log.watch("k", 7).unwrap_err(), StoreError::Compacted);
        assert_eq!(log.watch("k", newest + 1).unwrap_err(), StoreError::Compacted, "the future is not known either");
        let mut oldest = log.watch("k", 8).unwrap();
        for revision in 9..=newest {
            assert_eq!(oldest.next().await.unwrap().revision, revision);
        }
    }

    #[tokio::test]
    async fn the_ring_is_bounded_in_bytes() {
        let log = Arc::new(CommitLog::new(0));
        for revision in 1..=40 {
            log.publish(commit(revision, "k", BYTES_LIMIT / 10));
        }
        assert!(log.ring().bytes <= BYTES_LIMIT);
        log.publish(commit(41, "k", BYTES_LIMIT * 2));
        assert_eq!(log.ring().commits.len(), 1, "the newest is always there");
    }

    #[tokio::test]
    async fn a_watch_ends_with_its_store() {
        let log = Arc::new(CommitLog::new(0));
        let mut watch = log.watch("k", 0).unwrap();
        log.publish(commit(1, "other", 1));
        drop(log);
        assert_eq!(watch.next().await, Err(StoreError::Closed));
    }
}
