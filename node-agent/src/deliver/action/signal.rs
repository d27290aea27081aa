//! `kind = "signal"`: to the process that a pid file names in its first line, as nginx, PostgreSQL (`postmaster.pid`) and
//! most others write it.
//!
//! - *no tool for others*: a pid file that is neither root's nor ours reaches processes of its own owner alone, and one
//!   that everybody may write reaches none.
//! - *that very process*: it is pinned before anything is looked at, and the signal goes to what was pinned.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::sys::signal::Signal;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};

use super::{ActionError, failed, shown};

/// More than any first line that holds a number.
const MAX_BYTES: u64 = 4096;

/// Sends it.
pub(super) fn send(pid_file: &Path, signal: Signal) -> Result<(), ActionError> {
    let path = pid_file.to_owned();
    let file = File::open(pid_file).map_err(|error| failed("read", pid_file, error))?;
    let found = file.metadata().map_err(|error| failed("look at", pid_file, error))?;
    let mut text = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut text).map_err(|error| failed("read", pid_file, error))?;
    let text = String::from_utf8_lossy(&text);
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
    let trusted = [0, nix::unistd::geteuid().as_raw()].contains(&found.uid());
    if found.mode() & 0o002 != 0 || (!trusted && found.uid() != user) {
        return Err(ActionError::Foreign { path, writer: found.uid(), pid: number, user });
    }
    // Unwrap safety: none: a signal of nix that rustix does not know could not have been configured.
    let signal = rustix::process::Signal::from_named_raw(signal as i32).ok_or_else(|| gone(Errno::INVAL))?;
    pidfd_send_signal(process, signal).map_err(gone)
}
