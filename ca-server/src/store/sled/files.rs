//! Our own watch over the store's directory, beside sled's files.
//!
//! - One process at a time: the file `acknowledged` is locked.
//! - `acknowledged` holds the format, and the latest revision that was answered for. sled repairs a damaged log by cutting it
//!   off; with this file that is noticed. It is written after each `fdatasync` of the database and is itself not synced: after a
//!   power cut it may be behind the database, never ahead.
//! - Space: a reserve is left on the device, so that sled does not meet the end of it in the middle of a write.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::store::{Revision, StoreError};

/// Writes are refused when the device has less than this left, in bytes: some segments of sled (512 KiB each), a spilled leaf
/// of 16 large values, and the snapshot that sled writes when it opens.
const RESERVE: u64 = 6 * 1024 * 1024;

/// Of what is on the disk: this file and the records in sled.
pub(super) const FORMAT: u8 = 1;

const NAME: &str = "acknowledged";
const MAGIC: &str = "chancery-store";

/// Tries for the lock, a pause apart: the process that was just stopped may still be closing.
const LOCK_TRIES: u32 = 40;
const LOCK_PAUSE: Duration = Duration::from_millis(25);

/// The locked directory.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    file: File,
}

impl Directory {
    /// Creates and locks the directory. Answers the latest acknowledged revision too: `None` when there is no such file yet.
    pub(super) fn open(path: &Path) -> Result<(Self, Option<Revision>), StoreError> {
        let failed = |error: io::Error| explain(path, &error);
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(path.join(NAME)).map_err(failed)?;
        lock(path, &file)?;
        let mut text = String::new();
        let read = Read::by_ref(&mut file).take(256).read_to_string(&mut text);
        if let Err(error) = read
            && error.kind() != ErrorKind::InvalidData
        {
            return Err(failed(error));
        }
        let directory = Directory { path: path.to_path_buf(), file };
        let length = directory.file.metadata().map_err(failed)?.len();
        if length == 0 {
            return Ok((directory, None));
        }
        let revision = parse(&text).map_err(|found| {
            StoreError::Corrupt(format!(
                "{}/{NAME} {found}: restore the directory from a backup, or use the version of this program that wrote it",
                path.display()
            ))
        })?;
        Ok((directory, Some(revision)))
    }

    /// Makes the names in the directory durable, and writes `revision` durably: for a directory that is new.
    pub(super) fn establish(&self, revision: Revision) -> io::Result<()> {
        self.acknowledge(revision)?;
        self.file.sync_all()?;
        File::open(&self.path)?.sync_all()?;
        match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
            _ => Ok(()),
        }
    }

    /// Notes that `revision` was made durable. Not synced.
    pub(super) fn acknowledge(&self, revision: Revision) -> io::Result<()> {
        self.file.write_all_at(text(revision).as_bytes(), 0)
    }

    /// Refuses when the device is nearly full.
    pub(super) fn check_space(&self) -> Result<(), StoreError> {
        let failed = |error: nix::Error| explain(&self.path, &error.into());
        let device = nix::sys::statvfs::statvfs(&self.path).map_err(failed)?;
        let free = device.blocks_available() as u64 * device.fragment_size() as u64;
        if free < RESERVE { Err(no_space(&self.path, free)) } else { Ok(()) }
    }
}

/// The lock goes with the file, when the process ends at the latest.
fn lock(path: &Path, file: &File) -> Result<(), StoreError> {
    for _ in 0..LOCK_TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(explain(path, &error)),
            Err(TryLockError::WouldBlock) => pause(),
        }
    }
    Err(StoreError::Unavailable(format!(
        "{} is in use by another process: stop that server first, or give this one a directory of its own",
        path.display()
    )))
}

/// A moment for another process, or for a thread of sled, to let go of a lock.
#[expect(clippy::disallowed_methods, reason = "waits for a lock of the operating system, not for a time of the domain")]
pub(super) fn pause() {
    std::thread::sleep(LOCK_PAUSE);
}

/// The whole content of the file: of one length always, so that it is overwritten in place.
fn text(revision: Revision) -> String {
    let line = format!("{MAGIC} {FORMAT} revision {revision:020}");
    format!("{line} {:016x}\n", digest(&[line.as_bytes()]))
}

fn parse(text_found: &str) -> Result<Revision, String> {
    let words: Vec<&str> = text_found.split_ascii_whitespace().collect();
    let [MAGIC, format, "revision", revision, _] = words[..] else {
        return Err("is not a file of this program".to_owned());
    };
    if format != FORMAT.to_string() {
        return Err(format!("has format {format}, and this program reads format {FORMAT}"));
    }
    match revision.parse() {
        Ok(revision) if text(revision) == text_found => Ok(revision),
        _ => Err("is damaged".to_owned()),
    }
}

/// FNV-1a, 64 bits, of the parts and their lengths: against accidents, not against an adversary.
pub(super) fn digest(parts: &[&[u8]]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    parts.iter().fold(0xcbf2_9ce4_8422_2325, |hash, part| {
        let hash = part.iter().fold(hash, step);
        (part.len() as u64).to_be_bytes().iter().fold(hash, step)
    })
}

/// What an error of the operating system means for the store, and what to do.
pub(super) fn explain(path: &Path, error: &io::Error) -> StoreError {
    let path = path.display();
    StoreError::Unavailable(match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            format!("no space left on the device that holds {path}: free some, and writes work again ({error})")
        }
        ErrorKind::PermissionDenied => {
            format!("{path} is not accessible: give it to the user that the server runs as ({error})")
        }
        ErrorKind::ReadOnlyFilesystem => format!("{path} is on a read-only file system: mount it writable ({error})"),
        ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
            format!("{path} is not a directory: name another for the store ({error})")
        }
        _ => format!("{path}: input or output failed, look at the device and the system's log ({error})"),
    })
}

fn no_space(path: &Path, free: u64) -> StoreError {
    StoreError::Unavailable(format!(
        "no space left on the device that holds {}: {} KiB are free and {} KiB are needed; free some, and writes work again",
        path.display(),
        free / 1024,
        RESERVE / 1024,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_says_what_is_wrong_with_it() {
        assert_eq!(parse(&text(42)), Ok(42));
        assert!(parse("").unwrap_err().contains("not a file of this program"));
        assert!(parse(&text(42).replace("store 1", "store 9")).unwrap_err().contains("format 9"));
        assert!(parse(&text(42).replace("42", "43")).unwrap_err().contains("damaged"));
        assert_eq!(text(0).len(), text(u64::MAX).len());
    }
}
