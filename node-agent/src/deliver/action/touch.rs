//! `kind = "touch"`: the modification time of a file becomes now. Traefik reads its dynamic file again when that happens,
//! and with it the certificates that it names.

use std::path::Path;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, utimensat};

use super::{ActionError, failed};

/// Touches what is at `path`; nothing is made, and no link is followed in the last step.
pub(super) fn touch(path: &Path) -> Result<(), ActionError> {
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let times = Timestamps { last_access: now, last_modification: now };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(|errno| failed("touch", path, errno))
}
