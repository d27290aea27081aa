//! From the root of the file system to a folder, step by step, so that no link is followed that another user has put
//! there: a link counts only if root or we have made it. What was passed is told: whoever owns a folder on the way can put
//! another thing into the place of what comes behind it.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, fchmod, fstat, mkdirat, openat, readlinkat};
use rustix::io::Errno;

use super::{FolderError, failed, without_lists};

/// As many as the kernel follows.
const MAX_LINKS: usize = 40;
const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A folder that was walked to.
pub(in crate::deliver) struct Walked {
    /// The folder, held.
    pub(in crate::deliver) folder: OwnedFd,
    /// Every folder on the way, itself as the last.
    pub(in crate::deliver) passed: Vec<Passed>,
}

/// A folder that was passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::deliver) struct Passed {
    /// Where.
    pub(in crate::deliver) path: PathBuf,
    /// Whose it is.
    pub(in crate::deliver) owner: u32,
    /// Who may do what in it.
    pub(in crate::deliver) mode: u32,
}

/// Opens the folder at `path`, which is absolute; the last one is made where it is missing.
pub(super) fn open(path: &Path) -> Result<OwnedFd, FolderError> {
    Ok(walk(path, true)?.folder)
}

/// Opens the folder at `path`, which is absolute and there.
pub(in crate::deliver) fn enter(path: &Path) -> Result<Walked, FolderError> {
    walk(path, false)
}

fn walk(path: &Path, makes: bool) -> Result<Walked, FolderError> {
    let ours = nix::unistd::geteuid().as_raw();
    let root = || openat(CWD, "/", FOLDER, Mode::empty()).map_err(|errno| failed("open", Path::new("/"), errno));
    let (mut at, mut place, mut links) = (root()?, PathBuf::from("/"), 0);
    let mut ahead: VecDeque<OsString> = names(path).collect();
    let mut passed = vec![look(&at, &place)?];
    while let Some(name) = ahead.pop_front() {
        let next = place.join(&name);
        let entered = match openat(&at, &name, FOLDER, Mode::empty()) {
            Err(Errno::NOENT) if ahead.is_empty() && makes => make(&at, &name, &next),
            Err(Errno::LOOP | Errno::NOTDIR) => {
                let target = follow(&at, &name, &next, ours)?;
                links += 1;
                if links > MAX_LINKS {
                    return Err(FolderError::TooManyLinks(path.to_owned()));
                }
                if target.is_absolute() {
                    (at, place) = (root()?, PathBuf::from("/"));
                }
                names(&target).rev().for_each(|name| ahead.push_front(name));
                continue;
            }
            opened => opened.map_err(|errno| failed("open", &next, errno)),
        };
        (at, place) = (entered?, next);
        passed.push(look(&at, &place)?);
    }
    Ok(Walked { folder: at, passed })
}

fn look(at: &OwnedFd, place: &Path) -> Result<Passed, FolderError> {
    let found = fstat(at).map_err(|errno| failed("look at", place, errno))?;
    Ok(Passed { path: place.to_owned(), owner: found.st_uid, mode: found.st_mode & 0o7777 })
}

fn names(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    let name = |component: Component<'_>| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().filter_map(name)
}

/// Where the link leads, if it may be followed.
fn follow(at: &OwnedFd, name: &OsStr, place: &Path, ours: u32) -> Result<PathBuf, FolderError> {
    // The link itself, held: it cannot become another one between the look at its owner and the reading.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let link = openat(at, name, flags, Mode::empty()).map_err(|errno| failed("open", place, errno))?;
    let found = fstat(&link).map_err(|errno| failed("look at", place, errno))?;
    if FileType::from_raw_mode(found.st_mode) != FileType::Symlink {
        return Err(failed("open as a folder", place, Errno::NOTDIR));
    }
    if found.st_uid != ours && found.st_uid != 0 {
        return Err(FolderError::Link { path: place.to_owned(), owner: found.st_uid });
    }
    let target = readlinkat(&link, c"", Vec::new()).map_err(|errno| failed("read the link", place, errno))?;
    Ok(OsString::from_vec(target.into_bytes()).into())
}

fn make(at: &OwnedFd, name: &OsStr, place: &Path) -> Result<OwnedFd, FolderError> {
    mkdirat(at, name, Mode::from_raw_mode(0o755)).map_err(|errno| failed("make the folder", place, errno))?;
    let folder = openat(at, name, FOLDER, Mode::empty()).map_err(|errno| failed("open", place, errno))?;
    // The mode of the call is cut by the umask; whoever reads the files has to get through.
    without_lists(&folder)
        .and_then(|()| fchmod(&folder, Mode::from_raw_mode(0o755)))
        .map_err(|errno| failed("set the mode of", place, errno))?;
    Ok(folder)
}
