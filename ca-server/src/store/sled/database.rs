//! The database on disk: the only file that names the crate sled (0.34, pinned).
//!
//! Layout, all in sled's default tree: `k` + key -> revision of the key (8 bytes, big endian) + value; `h` -> the [`Head`].
//! Both are written in one atomic batch.
//!
//! What was found out about sled 0.34.7, and what stands against it here:
//!
//! - `flush` ends in `sync_file_range`, which orders no write cache and no metadata: `fdatasync` of the file `db` follows, on a
//!   second handle, before a commit is acknowledged. The 500 ms flusher thread stays on: it alone cleans up segments.
//! - A page of more than 128 KiB (a leaf holds up to 16 values) goes to a file of its own in `blobs/`, and sled syncs none: we do.
//! - A damaged message in the log, checksum wrong, is taken for the end of the log or of its segment: later writes vanish
//!   without an error, and the rest is overwritten with zeros. The head record's count and digest of all keys, and the file
//!   `acknowledged`, are compared on opening: what vanished is noticed.
//! - Of 4,200 single bits flipped in stores of 8 MiB, every one was harmless or answered as `Corrupt`, none panicked. sled has
//!   assertions that more unlikely damage can reach (two segments of the same number, for one); the process stops then.
//! - Dropping a `Db` syncs once more and panics when that fails: after a failed `fdatasync` it is kept, never dropped.
//! - A snapshot that was being written when the process died (`snap.*.generating`) is taken for the newest on the next opening,
//!   which then fails: such leftovers are removed first.
//! - After an error of the operating system a `Db` answers that error for ever: the caller drops it and opens it again.
//! - Its page cache grows far over its limit under load; a small limit keeps it at tens of MiB.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use sled::{Batch, Db, IVec};

use super::files::{self, Directory};
use crate::store::{Commit, KeyValue, Revision, StoreError, Txn, Write};

const CACHE_BYTES: u64 = 16 * 1024 * 1024;
const HEAD_KEY: &[u8] = b"h";
const USER_PREFIX: u8 = b'k';

/// What the database is, in one record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Head {
    revision: Revision,
    /// Of user keys.
    count: u64,
    /// The sum of the digests of every user key with its stored bytes.
    digest: u64,
}

impl Head {
    fn encode(self) -> Vec<u8> {
        let numbers = [self.revision, self.count, self.digest];
        std::iter::once(files::FORMAT).chain(numbers.into_iter().flat_map(u64::to_be_bytes)).collect()
    }

    fn decode(bytes: &[u8]) -> Option<Head> {
        let (format, numbers) = bytes.split_first()?;
        let mut numbers = numbers.chunks_exact(8).filter_map(|eight| Some(u64::from_be_bytes(eight.try_into().ok()?)));
        let head = Head { revision: numbers.next()?, count: numbers.next()?, digest: numbers.next()? };
        (*format == files::FORMAT && bytes.len() == 25).then_some(head)
    }

    fn add(&mut self, key: &[u8], stored: &[u8]) {
        self.count = self.count.wrapping_add(1);
        self.digest = self.digest.wrapping_add(files::digest(&[key, stored]));
    }

    fn subtract(&mut self, key: &[u8], stored: &[u8]) {
        self.count = self.count.wrapping_sub(1);
        self.digest = self.digest.wrapping_sub(files::digest(&[key, stored]));
    }
}

/// What became of a transaction.
#[derive(Debug)]
pub(super) enum Applied {
    /// Applied, not yet durable.
    Changed(Commit),
    /// There was nothing to change.
    Unchanged,
    /// Nothing was written.
    Refused(StoreError),
}

/// The database can no longer be used as it is.
#[derive(Debug)]
pub(super) enum Failure {
    /// sled has failed: drop it, open it again.
    Sled(StoreError),
    /// `fdatasync` has failed: leave all as it is.
    Sync(String),
}

impl Failure {
    pub(super) fn error(&self) -> StoreError {
        match self {
            Failure::Sled(error) => error.clone(),
            Failure::Sync(why) => StoreError::Unavailable(why.clone()),
        }
    }

    pub(super) fn into_error(self) -> StoreError {
        self.error()
    }
}

/// An open database. Its fields are dropped in order: sled first, the lock last.
#[derive(Debug)]
pub(super) struct Database {
    db: Db,
    path: PathBuf,
    /// The second handle on sled's file, for `fdatasync`.
    file: File,
    /// Spilled pages, and how many times each was synced.
    synced_blobs: HashMap<OsString, u8>,
    head: Head,
    acknowledged: Revision,
    directory: Directory,
}

impl Database {
    /// Locks, opens and verifies.
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let (directory, acknowledged) = Directory::open(path).map_err(Failure::Sled)?;
        let existed = path.join("db").exists();
        if !existed || acknowledged.is_none() {
            // sled writes when it opens; a new store would not get far without.
            directory.check_space().map_err(Failure::Sled)?;
        }
        let io = |error: std::io::Error| Failure::Sled(files::explain(path, &error));
        remove_unfinished_snapshots(path).map_err(io)?;
        let db = open_sled(path)?;
        let head = verify(path, &db)?;
        if let Some(acknowledged) = acknowledged
            && head.revision < acknowledged
        {
            return Err(corrupt(
                path,
                &format!("revision {acknowledged} was acknowledged, but the latest found is {}", head.revision),
            ));
        }
        let file = File::options().read(true).write(true).open(path.join("db")).map_err(io)?;
        let mut database = Database {
            db,
            path: path.to_path_buf(),
            file,
            synced_blobs: HashMap::new(),
            head,
            acknowledged: head.revision,
            directory,
        };
        // What recovery found may have been written, but not synced, by a process that was killed.
        if let Err(failure) = database.make_durable() {
            if matches!(failure, Failure::Sync(_)) {
                // To close sled is to sync once more, and it panics when that fails.
                std::mem::forget(database);
            }
            return Err(failure);
        }
        // sled's parameters, written once and synced by nobody.
        File::open(path.join("conf")).and_then(|file| file.sync_all()).map_err(io)?;
        database.directory.establish(head.revision).map_err(io)?;
        Ok(database)
    }

    /// The latest revision that was applied.
    pub(super) fn revision(&self) -> Revision {
        self.head.revision
    }

    /// The latest revision that was made durable.
    pub(super) fn acknowledged(&self) -> Revision {
        self.acknowledged
    }

    fn failed(&self, error: sled::Error) -> Failure {
        failure(&self.path, error)
    }

    fn stored(&self, key: &str) -> Result<Option<(IVec, Revision)>, Failure> {
        let Some(stored) = self.db.get(user_key(key)).map_err(|error| self.failed(error))? else { return Ok(None) };
        let revision = split(&stored).map(|(revision, _)| revision);
        let revision = revision.ok_or_else(|| corrupt(&self.path, &format!("the record of {key:?} is too short")))?;
        Ok(Some((stored, revision)))
    }

    /// Every key that starts with `prefix`.
    pub(super) fn range(&self, prefix: &str) -> Result<Vec<KeyValue>, Failure> {
        let mut found = Vec::new();
        for item in self.db.scan_prefix(user_key(prefix)) {
            let (key, stored) = item.map_err(|error| self.failed(error))?;
            let read = || {
                let (revision, value) = split(&stored)?;
                let key = std::str::from_utf8(key.get(1..)?).ok()?.to_owned();
                Some(KeyValue { key, value: Bytes::copy_from_slice(value), revision })
            };
            found.push(read().ok_or_else(|| corrupt(&self.path, "a record is too short"))?);
        }
        Ok(found)
    }

    /// Compares and applies; durable only after [`Database::make_durable`]. A failure comes with the commit that may or may not
    /// have reached the disk.
    pub(super) fn apply(&mut self, txn: &Txn) -> Result<Applied, (Failure, Option<Commit>)> {
        for (key, expected) in &txn.expect {
            let found = self.stored(key).map_err(|failure| (failure, None))?;
            if found.map(|(_, revision)| revision) != *expected {
                return Ok(Applied::Refused(StoreError::Conflict { key: key.clone() }));
            }
        }
        let mut head = Head { revision: self.head.revision + 1, ..self.head };
        let (mut batch, mut writes) = (Batch::default(), Vec::with_capacity(txn.writes.len()));
        for write in &txn.writes {
            let key = user_key(write.key());
            let old = self.stored(write.key()).map_err(|failure| (failure, None))?;
            if let Some((stored, _)) = &old {
                head.subtract(&key, stored);
            }
            match write {
                Write::Put { value, .. } => {
                    let stored = [&head.revision.to_be_bytes(), value.as_ref()].concat();
                    head.add(&key, &stored);
                    batch.insert(key, stored);
                }
                Write::Delete { .. } if old.is_none() => continue,
                Write::Delete { .. } => batch.remove(key),
            }
            writes.push(write.clone());
        }
        if writes.is_empty() {
            return Ok(Applied::Unchanged);
        }
        if let Err(why) = self.directory.check_space() {
            return Ok(Applied::Refused(why));
        }
        batch.insert(HEAD_KEY, head.encode());
        let commit = Commit { revision: head.revision, writes };
        match self.db.apply_batch(batch) {
            Ok(()) => {
                self.head = head;
                Ok(Applied::Changed(commit))
            }
            Err(error) => Err((self.failed(error), Some(commit))),
        }
    }

    /// Returns when all that was applied is on stable storage.
    pub(super) fn make_durable(&mut self) -> Result<(), Failure> {
        self.db.flush().map_err(|error| self.failed(error))?;
        self.sync_files().map_err(|error| {
            Failure::Sync(format!(
                "{} could not be synced ({error}): look at the device and the system's log, then restart the server",
                self.path.display()
            ))
        })?;
        self.acknowledged = self.head.revision;
        if let Err(error) = self.directory.acknowledge(self.head.revision) {
            tracing::warn!(%error, "cannot note the acknowledged revision beside the database");
        }
        Ok(())
    }

    /// Spilled pages first, then the log that points to them.
    ///
    /// sled's cleaner may be in the middle of writing a page when we see it for the first time; after the next `flush` it is
    /// complete, so each page is synced the first two times that it is seen.
    fn sync_files(&mut self) -> std::io::Result<()> {
        let folder = self.path.join("blobs");
        let mut synced = HashMap::new();
        let mut fresh = false;
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            let times = self.synced_blobs.get(&entry.file_name()).copied().unwrap_or(0);
            if times < 2 {
                match File::open(entry.path()).and_then(|file| file.sync_data()) {
                    // Replaced and removed by now.
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                    done => done?,
                }
                fresh = true;
            }
            synced.insert(entry.file_name(), (times + 1).min(2));
        }
        if fresh {
            File::open(&folder)?.sync_all()?;
        }
        self.synced_blobs = synced;
        self.file.sync_data()
    }
}

fn open_sled(path: &Path) -> Result<Db, Failure> {
    let mut tries = 40;
    loop {
        let config = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).mode(sled::Mode::LowSpace);
        match config.open() {
            // We hold our own lock, so this is a thread of the `Db` that we have just dropped.
            Err(sled::Error::Io(error)) if error.to_string().contains("could not acquire lock") && tries > 0 => {
                tries -= 1;
                files::pause();
            }
            opened => return opened.map_err(|error| failure(path, error)),
        }
    }
}

fn remove_unfinished_snapshots(path: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Reads all there is: each page's checksum is checked by sled on the way, and the sum of all must be what the head says.
fn verify(path: &Path, db: &Db) -> Result<Head, Failure> {
    let head = match db.get(HEAD_KEY).map_err(|error| failure(path, error))? {
        Some(bytes) => Head::decode(&bytes)
            .ok_or_else(|| corrupt(path, "the head record has a format that this program does not read"))?,
        None => Head::default(),
    };
    let mut found = Head { revision: head.revision, ..Head::default() };
    for item in db.iter() {
        let (key, stored) = item.map_err(|error| failure(path, error))?;
        if &*key == HEAD_KEY {
            continue;
        }
        if key.first() != Some(&USER_PREFIX) || split(&stored).is_none_or(|(revision, _)| revision > head.revision) {
            return Err(corrupt(path, "there is a record that was not written by this program"));
        }
        found.add(&key, &stored);
    }
    if found != head {
        return Err(corrupt(
            path,
            &format!("{} keys are found where {} were written, or others", found.count, head.count),
        ));
    }
    Ok(head)
}

fn user_key(key: &str) -> Vec<u8> {
    [&[USER_PREFIX], key.as_bytes()].concat()
}

fn split(stored: &[u8]) -> Option<(Revision, &[u8])> {
    let (revision, value) = stored.split_first_chunk::<8>()?;
    Some((Revision::from_be_bytes(*revision), value))
}

fn corrupt(path: &Path, found: &str) -> Failure {
    Failure::Sled(StoreError::Corrupt(format!("{}: {found}. Restore the directory from a backup", path.display())))
}

fn failure(path: &Path, error: sled::Error) -> Failure {
    match error {
        sled::Error::Io(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            corrupt(path, "a file is shorter than it was")
        }
        sled::Error::Io(error) => Failure::Sled(files::explain(path, &error)),
        sled::Error::Corruption { .. } => corrupt(path, "a checksum is wrong"),
        sled::Error::Unsupported(why) => {
            corrupt(path, &format!("another program, or another version of sled, wrote it ({why})"))
        }
        other => corrupt(path, &format!("sled says: {other}")),
    }
}
