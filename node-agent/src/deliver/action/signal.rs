//! `kind = "signal"`: to the process that a pid file names in its first line, as nginx, PostgreSQL (`postmaster.pid`) and
//! most others write it.
//!
//! - *no tool for others*: whoever could have written the file, or put another one in its place, reaches processes of his
//!   own alone. That is its owner, and the owner of each folder on the way. What more than its owner may write to reaches none.
//! - *that very file*: the way to it is walked, no link is followed in its place, and it has no other name.
//! - *that very process*: it is pinned before anything is looked at, and the signal goes to what was pinned.

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use rustix::fs::{FileType, Mode, OFlags, PROC_SUPER_MAGIC, Stat, fstat, fstatfs, openat};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};

use super::{ActionError, failed, shown};
use crate::deliver::folder::walk::{self, Passed};
use crate::deliver::inputs;

/// Sends it. Blocks.
pub(super) fn send(pid_file: &Path, signal: Signal) -> Result<(), ActionError> {
    let path = pid_file.to_owned();
    let (file, writers) = open(pid_file)?;
    let content = inputs::read_open(file, pid_file)?;
    let text = String::from_utf8_lossy(&content);
    let first = text.lines().next().unwrap_or_default();
    let number = first.trim().parse::<i32>().ok().filter(|pid| *pid > 1);
    let Some((number, pid)) = number.and_then(|number| Some((number, Pid::from_raw(number)?))) else {
        return Err(ActionError::NoPid { path, found: shown(first) });
    };
    let gone = |errno| match errno {
        Errno::SRCH => ActionError::NotRunning { path: path.clone(), pid: number },
        errno => failed("signal the process of", pid_file, errno),
    };
    let process = pidfd_open(pid, PidfdFlags::empty()).map_err(gone)?;
    let user = std::fs::metadata(format!("/proc/{number}")).map_err(|_| gone(Errno::SRCH))?.uid();
    if let Some((path, writer)) = writers.into_iter().find(|(_, writer)| *writer != user) {
        return Err(ActionError::Foreign { path, writer, pid: number, user });
    }
    let signal = rustix::process::Signal::from_named_raw(signal as i32).ok_or_else(|| gone(Errno::INVAL))?;
    pidfd_send_signal(process, signal).map_err(gone)
}

/// The file, and what on the way to it belongs to whom besides root and us.
fn open(pid_file: &Path) -> Result<(OwnedFd, Vec<(PathBuf, u32)>), ActionError> {
    let not_a_file = || ActionError::NoFile(pid_file.to_owned());
    let (Some(parent), Some(name)) = (pid_file.parent(), pid_file.file_name()) else { return Err(not_a_file()) };
    let walked = walk::enter(parent)?;
    // A pipe that nobody writes to would be waited for.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = openat(&walked.folder, name, flags, Mode::empty()).map_err(|errno| match errno {
        Errno::LOOP => not_a_file(),
        errno => failed("read", pid_file, errno),
    })?;
    let looked = fstat(&file).and_then(|found| Ok((found, fstatfs(&file)?)));
    let (found, system) = looked.map_err(|errno| failed("look at", pid_file, errno))?;
    if !is_plain(&found) || system.f_type == PROC_SUPER_MAGIC {
        return Err(not_a_file());
    }
    let last = Passed { path: pid_file.to_owned(), owner: found.st_uid, mode: found.st_mode & 0o7777 };
    let ours = nix::unistd::geteuid().as_raw();
    let writers = writers(&walked.passed, &last, ours)?;
    Ok((file, writers))
}

/// A second name could have been given to a pid file of somebody else.
fn is_plain(found: &Stat) -> bool {
    FileType::from_raw_mode(found.st_mode) == FileType::RegularFile && found.st_nlink == 1
}

/// Who, besides root and us, could have written `file` or put it there. Pure.
fn writers(passed: &[Passed], file: &Passed, ours: u32) -> Result<Vec<(PathBuf, u32)>, ActionError> {
    let parent = passed.len().saturating_sub(1);
    let is_shared = |(number, folder): &(usize, &Passed)| {
        // What is in a sticky folder stays with its owner, but everybody can move a file into it that he finds elsewhere.
        let is_kept = folder.mode & 0o1000 != 0 && *number < parent;
        folder.mode & 0o022 != 0 && !is_kept
    };
    let folder = passed.iter().enumerate().find(is_shared).map(|(_, folder)| folder);
    if let Some(Passed { path, mode, .. }) = folder.or(Some(file).filter(|file| file.mode & 0o022 != 0)) {
        return Err(ActionError::Shared { path: path.clone(), mode: *mode });
    }
    let others = passed.iter().chain([file]).filter(|passed| ![0, ours].contains(&passed.owner));
    Ok(others.map(|passed| (passed.path.clone(), passed.owner)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(path: &str, owner: u32, mode: u32) -> Passed {
        Passed { path: path.into(), owner, mode }
    }

    #[test]
    fn whoever_could_have_put_the_file_there_is_counted() {
        let judged = |folders: &[(u32, u32)], file: (u32, u32)| {
            let folders: Vec<_> = folders.iter().map(|(owner, mode)| passed("/d", *owner, *mode)).collect();
            let all = writers(&folders, &passed("/d/f", file.0, file.1), 7);
            all.map(|all| all.into_iter().map(|(_, owner)| owner).collect::<Vec<_>>()).map_err(|why| why.to_string())
        };
        assert_eq!(judged(&[(0, 0o755), (7, 0o755)], (0, 0o644)), Ok(vec![]));
        assert_eq!(judged(&[(0, 0o755), (70, 0o700)], (70, 0o600)), Ok(vec![70, 70]));
        // His folder, root's file: he has put it there.
        assert_eq!(judged(&[(0, 0o755), (70, 0o700)], (0, 0o644)), Ok(vec![70]));
        assert_eq!(judged(&[(0, 0o1777), (0, 0o755)], (0, 0o644)), Ok(vec![]));
        for (folders, file) in [
            (vec![(0, 0o755)], (0, 0o664)),
            (vec![(0, 0o755)], (0, 0o646)),
            (vec![(0, 0o775), (0, 0o755)], (0, 0o644)),
            (vec![(0, 0o755), (0, 0o1777)], (0, 0o644)),
        ] {
            let error = judged(&folders, file).unwrap_err();
            assert!(error.contains("anybody could have any process signalled"), "{folders:?} {file:?}: {error}");
        }
    }
}
