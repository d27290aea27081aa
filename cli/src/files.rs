//! Files that are whole at every moment: written beside their place, flushed, and renamed into it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use crate::exit::{Failure, Outcome};

/// The mode of a file with a private key.
pub(crate) const PRIVATE: u32 = 0o600;
/// The mode of a file that everybody may read.
pub(crate) const PUBLIC: u32 = 0o644;
/// The most that is read from a file or from stdin, in bytes.
const MOST: u64 = 64 << 20;

/// Writes `content` to `folder/name` with `mode`. Readers see the old file or the new one, never a part; after a
/// power cut too.
pub(crate) fn write(folder: &Path, name: &str, mode: u32, content: &[u8]) -> Outcome {
    let place = folder.join(name);
    replace(folder, name, mode, content)
        .map_err(|error| Failure::Refused(format!("{} cannot be written: {error}", place.display())))
}

fn replace(folder: &Path, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
    let beside = folder.join(format!(".{name}.{}", std::process::id()));
    // One of the same name is left over from a process that was killed and had our number.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let written = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()
    });
    let placed = written.and_then(|()| fs::rename(&beside, folder.join(name)));
    if placed.is_err() {
        // The first failure is the one to tell.
        let _ = fs::remove_file(&beside);
    }
    placed?;
    File::open(folder)?.sync_all()
}

/// Makes `folder` and those above it, where they are missing, for this user alone.
pub(crate) fn make_private_folder(folder: &Path) -> Outcome {
    make_folder(folder, 0o700)
}

/// The same with another mode.
pub(crate) fn make_folder(folder: &Path, mode: u32) -> Outcome {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().recursive(true).mode(mode).create(folder).map_err(|error| {
        Failure::Refused(format!("the folder {} cannot be made: {error}: name another, or make it", folder.display()))
    })
}

/// Reads a file, or stdin for `-`, up to 64 MiB.
pub(crate) fn read(path: &Path) -> Outcome<Vec<u8>> {
    let mut content = Vec::new();
    let result = if path == Path::new("-") {
        io::stdin().lock().take(MOST + 1).read_to_end(&mut content)
    } else {
        File::open(path).and_then(|file| file.take(MOST + 1).read_to_end(&mut content))
    };
    result.map_err(|error| Failure::Refused(format!("{} cannot be read: {error}", path.display())))?;
    if content.len() as u64 > MOST {
        return Err(Failure::Refused(format!("{} is larger than 64 MiB: split it", path.display())));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_keys_are_private() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "key.pem", PRIVATE, b"one").unwrap();
        write(folder.path(), "key.pem", PRIVATE, b"two").unwrap();
        assert_eq!(read(&folder.path().join("key.pem")).unwrap(), b"two");
        let mode = fs::metadata(folder.path().join("key.pem")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let failure = write(&folder.path().join("gone"), "a", PUBLIC, b"").unwrap_err();
        assert!(failure.to_string().contains("gone/a cannot be written"), "{failure}");
    }
}
