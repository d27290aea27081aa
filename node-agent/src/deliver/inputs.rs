//! What is read of this machine for the files of a delivery: passwords, and configs that an identity is put into.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use zeroize::Zeroizing;

/// The largest file that is read.
const MAX_BYTES: u64 = 16 << 20;

/// Why one of them cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// The kernel says no.
    #[error("cannot read {}: {source}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A pipe, a folder, a device.
    #[error("{} is no file: name one in the config", .0.display())]
    NoFile(PathBuf),
    /// Far more than any of them needs.
    #[error("{} is larger than 16 MiB: it is not what the config says", .0.display())]
    TooLarge(PathBuf),
}

/// The contents of files, by their paths.
#[derive(Default)]
pub(super) struct Inputs(BTreeMap<PathBuf, Zeroizing<Vec<u8>>>);

impl Inputs {
    /// Reads them.
    pub(super) fn read<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Result<Self, InputError> {
        paths.into_iter().map(|path| Ok((path.to_owned(), read(path)?))).collect::<Result<_, _>>().map(Self)
    }

    /// A file's content; empty for one that was not read.
    pub(super) fn content(&self, path: &Path) -> &[u8] {
        self.0.get(path).map_or(&[], |content| content.as_slice())
    }

    /// The first line of a file that holds a password.
    pub(super) fn first_line(&self, path: &Path) -> Option<&str> {
        first_line(self.content(path))
    }
}

/// The first line of a text, if there is anything in it.
pub(super) fn first_line(content: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(content).ok()?;
    text.lines().next().map(|line| line.trim_end_matches('\r')).filter(|line| !line.is_empty())
}

/// Reads a file of a sensible size. Blocks, but not for a pipe that nobody writes to.
pub(super) fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, InputError> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = openat(CWD, path, flags, Mode::empty());
    read_open(file.map_err(|errno| InputError::File { path: path.to_owned(), source: errno.into() })?, path)
}

/// The same of a file that is open; `path` is for errors alone.
pub(super) fn read_open(file: OwnedFd, path: &Path) -> Result<Zeroizing<Vec<u8>>, InputError> {
    let failed = |source| InputError::File { path: path.to_owned(), source };
    let file = File::from(file);
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(InputError::NoFile(path.to_owned()));
    }
    let mut content = Zeroizing::new(Vec::new());
    file.take(MAX_BYTES + 1).read_to_end(&mut content).map_err(failed)?;
    if content.len() as u64 > MAX_BYTES { Err(InputError::TooLarge(path.to_owned())) } else { Ok(content) }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn a_pipe_is_refused_and_not_waited_for() {
        let place = TempDir::new().unwrap();
        let path = place.path().join("token");
        rustix::fs::mkfifoat(CWD, &path, Mode::from_raw_mode(0o600)).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("token is no file"), "{error}");
        assert!(read(place.path()).unwrap_err().to_string().contains("is no file"));
        std::fs::write(place.path().join("file"), "secret\n").unwrap();
        assert_eq!(first_line(&read(&place.path().join("file")).unwrap()), Some("secret"));
    }
}
