//! The files of a delivery on disk: all of one version, or all of another.
//!
//! ```text
//! <dir>/..<version>/tls.crt        one folder for each version, the present and the one before
//! <dir>/..data -> ..<version>      its one rename swaps all files at once
//! <dir>/tls.crt -> ..data/tls.crt
//! ```
//!
//! - *whole*: `plan` says what is done in which order, and an end after any step leaves a whole version behind `..data`.
//!   What was begun is cleared away when the folder is opened again.
//! - *the version before stays* until the next swap: who has resolved `..data` reads on.
//! - *flushed*: files and folders are synced before the rename, and the rename after it.
//! - *nobody's trick*: the folder is opened once, every step of its path looked at (`walk`), and all that follows is
//!   relative to it, without following any link. A folder that others may write to is refused; so is something else in the
//!   place of a file. Access lists that a parent hands down are taken away: the mode alone says who reads a key.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Uid, fchmod, fchown, fremovexattr, fstat, fsync, mkdirat, openat,
    readlinkat, renameat, symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::owner::{self, OwnerError};
use super::render::{Rendered, RenderedFile};

mod plan;
pub(super) mod walk;

use plan::{DATA, Found, POINTER, Seen, Step};

/// Why files are not delivered.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The kernel says no.
    #[error("cannot {doing} {}: {source}", .path.display())]
    File {
        /// What was tried, as a verb.
        doing: &'static str,
        /// Where.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The folder is somebody else's.
    #[error(
        "dir {} belongs to uid {owner}, and its files are written by uid {ours}: run chown {ours} on it; the files in it \
         may belong to others (owner, group)",
        .path.display()
    )]
    Foreign {
        /// The folder.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Ours.
        ours: u32,
    },
    /// Others can put in it what they like.
    #[error("dir {} has mode {mode:04o}: others than its owner can write to it: run chmod go-w on it", .path.display())]
    Writable {
        /// The folder.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A link on the way that another user has put there.
    #[error("{} is a symbolic link of uid {owner}: it is not followed; write the path without it", .path.display())]
    Link {
        /// The link.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// More links than anybody needs.
    #[error("dir {} goes through too many symbolic links: write where it leads", .0.display())]
    TooManyLinks(PathBuf),
    /// Something is in the place of a file.
    #[error(
        "{} is there, and no delivery has put it there: remove it, or give the file of the delivery another name",
        .0.display()
    )]
    Taken(PathBuf),
    /// A user or group that is none.
    #[error("file {name:?}: {source}")]
    Owner {
        /// Which file.
        name: String,
        /// What is wrong with its owner.
        source: OwnerError,
    },
}

/// The folder of one delivery.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    folder: OwnedFd,
}

impl Folder {
    /// Opens `path`, makes it where only it is missing, and clears away what an earlier end has left half done.
    pub(super) fn open(path: &Path) -> Result<Self, FolderError> {
        let folder = walk::open(path)?;
        let found = fstat(&folder).map_err(|errno| failed("look at", path, errno))?;
        let ours = nix::unistd::geteuid().as_raw();
        if found.st_uid != ours && found.st_uid != 0 {
            return Err(FolderError::Foreign { path: path.to_owned(), owner: found.st_uid, ours });
        }
        if found.st_mode & 0o022 != 0 {
            return Err(FolderError::Writable { path: path.to_owned(), mode: found.st_mode & 0o7777 });
        }
        let this = Self { path: path.to_owned(), folder };
        for step in plan::clear(&this.look()?) {
            this.take(&step)?;
        }
        Ok(this)
    }

    /// Puts these files in the place of those before, all at once.
    pub(super) fn swap(&self, rendered: &Rendered) -> Result<(), FolderError> {
        for step in self.steps(rendered)? {
            self.take(&step)?;
        }
        Ok(())
    }

    fn steps<'a>(&self, rendered: &'a Rendered) -> Result<Vec<Step<'a>>, FolderError> {
        plan::swap(&self.look()?, rendered).map_err(|name| FolderError::Taken(self.path.join(name)))
    }

    /// What is in the folder.
    fn look(&self) -> Result<Seen, FolderError> {
        let wrong = |errno| self.failed("list", ".", errno);
        let mut seen = Seen::default();
        for entry in Dir::read_from(&self.folder).map_err(wrong)? {
            let entry = entry.map_err(wrong)?;
            // A name that is no text is none of ours.
            let Ok(name) = entry.file_name().to_str() else { continue };
            if name == "." || name == ".." {
                continue;
            }
            let found = match self.link(name)? {
                Some(target) => Found::Link(target),
                None if self.is_folder(name)? => Found::Folder,
                None => Found::Other,
            };
            seen.insert(name.to_owned(), found);
        }
        Ok(seen)
    }

    /// Where the link `name` leads; `None` where it is no link.
    fn link(&self, name: &str) -> Result<Option<String>, FolderError> {
        match readlinkat(&self.folder, name, Vec::new()) {
            Ok(target) => Ok(Some(target.to_string_lossy().into_owned())),
            Err(Errno::INVAL | Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.failed("read the link", name, errno)),
        }
    }

    fn is_folder(&self, name: &str) -> Result<bool, FolderError> {
        match rustix::fs::statat(&self.folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => Ok(FileType::from_raw_mode(found.st_mode) == FileType::Directory),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(self.failed("look at", name, errno)),
        }
    }

    fn take(&self, step: &Step<'_>) -> Result<(), FolderError> {
        let folder = &self.folder;
        match step {
            Step::Make(name) => {
                mkdirat(folder, name, Mode::from_raw_mode(0o700)).map_err(|errno| self.failed("make", name, errno))?;
                // The mode of the call is cut by the umask.
                let made = self.enter(name)?;
                without_lists(&made)
                    .and_then(|()| fchmod(&made, Mode::from_raw_mode(0o755)))
                    .map_err(|errno| self.failed("set the mode of", name, errno))
            }
            Step::Write(name, file) => self.write(name, file),
            Step::Finish(partial, name) => {
                fsync(self.enter(partial)?).map_err(|errno| self.failed("flush", partial, errno))?;
                renameat(folder, partial, folder, name).map_err(|errno| self.failed("rename", partial, errno))
            }
            Step::Link(name) => symlinkat(format!("{DATA}/{name}"), folder, *name)
                .map_err(|errno| self.failed("make the link", name, errno)),
            Step::Point(name) => {
                symlinkat(name, folder, POINTER).map_err(|errno| self.failed("make the link", POINTER, errno))?;
                self.flush()
            }
            Step::Swap => {
                renameat(folder, POINTER, folder, DATA).map_err(|errno| self.failed("rename", POINTER, errno))?;
                self.flush()
            }
            Step::Unlink(name) => {
                unlinkat(folder, name, AtFlags::empty()).map_err(|errno| self.failed("remove", name, errno))
            }
            Step::Forget(name) => self.forget(name),
        }
    }

    fn write(&self, into: &str, file: &RenderedFile) -> Result<(), FolderError> {
        let number = |source| FolderError::Owner { name: file.name.clone(), source };
        let owner = file.owner.as_deref().map(owner::user).transpose().map_err(number)?;
        let group = file.group.as_deref().map(owner::group).transpose().map_err(number)?;
        let place = format!("{into}/{}", file.name);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = openat(self.enter(into)?, &file.name, flags, Mode::from_raw_mode(0o600));
        let mut opened = File::from(opened.map_err(|errno| self.failed("create", &place, errno))?);
        opened.write_all(&file.content).map_err(|error| self.failed("write", &place, error))?;
        if owner.is_some() || group.is_some() {
            fchown(&opened, owner.map(Uid::from_raw), group.map(Gid::from_raw)).map_err(|errno| {
                self.failed("set owner and group (only root may give files away) of", &place, errno)
            })?;
        }
        without_lists(&opened)
            .and_then(|()| fchmod(&opened, Mode::from_raw_mode(file.mode)))
            .map_err(|errno| self.failed("set the mode of", &place, errno))?;
        opened.sync_all().map_err(|error| self.failed("flush", &place, error))
    }

    /// Removes the folder of a version and what is in it.
    fn forget(&self, name: &str) -> Result<(), FolderError> {
        let version = self.enter(name)?;
        for entry in Dir::read_from(&version).map_err(|errno| self.failed("list", name, errno))? {
            let entry = entry.map_err(|errno| self.failed("list", name, errno))?;
            let file = entry.file_name();
            if file != c"." && file != c".." {
                unlinkat(&version, file, AtFlags::empty()).map_err(|errno| self.failed("empty", name, errno))?;
            }
        }
        unlinkat(&self.folder, name, AtFlags::REMOVEDIR).map_err(|errno| self.failed("remove", name, errno))
    }

    fn enter(&self, name: &str) -> Result<OwnedFd, FolderError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(&self.folder, name, flags, Mode::empty()).map_err(|errno| self.failed("open", name, errno))
    }

    fn flush(&self) -> Result<(), FolderError> {
        fsync(&self.folder).map_err(|errno| self.failed("flush", ".", errno))
    }

    fn failed(&self, doing: &'static str, name: &str, source: impl Into<io::Error>) -> FolderError {
        let path = if name == "." { self.path.clone() } else { self.path.join(name) };
        FolderError::File { doing, path, source: source.into() }
    }
}

/// A file as it was last delivered to `dir`, read on the way that it was written: no link counts that is not a delivery's.
pub(super) fn delivered(dir: &Path, file: &str) -> Result<OwnedFd, FolderError> {
    let folder = walk::enter(dir)?.folder;
    let path = dir.join(file);
    let wrong = |errno| failed("read", &path, errno);
    let version = readlinkat(&folder, DATA, Vec::new()).map_err(wrong)?;
    // A link or a name that leads on is none of ours: a version is a folder beside it.
    let into = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    if version.as_bytes().contains(&b'/') || version.as_bytes() == b".." {
        return Err(FolderError::Taken(dir.join(DATA)));
    }
    let version = openat(&folder, &version, into | OFlags::DIRECTORY, Mode::empty()).map_err(wrong)?;
    openat(&version, file, into, Mode::empty()).map_err(wrong)
}

/// Takes away what a parent folder of somebody else gives to everything that is made below it: the mode alone counts.
/// Before the mode is set, and with it what an access list may give.
fn without_lists(made: impl AsFd) -> rustix::io::Result<()> {
    for list in [c"system.posix_acl_access", c"system.posix_acl_default"] {
        match fremovexattr(&made, list) {
            // It has none, or lies where there are none.
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn failed(doing: &'static str, path: &Path, source: impl Into<io::Error>) -> FolderError {
    FolderError::File { doing, path: path.to_owned(), source: source.into() }
}

#[cfg(test)]
mod tests;
