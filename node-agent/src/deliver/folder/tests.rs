use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use proptest::prelude::*;
use tempfile::TempDir;
use zeroize::Zeroizing;

use super::*;

/// A version of which every file has the same content, `number` of them.
fn version(content: u32, number: usize) -> Rendered {
    let file = |name: String| RenderedFile {
        name,
        content: Zeroizing::new(content.to_string().repeat(5000).into_bytes()),
        owner: None,
        group: None,
        mode: 0o640,
    };
    let files = (0..number).map(|number| file(format!("file{number}"))).collect();
    Rendered { version: format!("{content:016x}"), files }
}

/// What a reader sees who resolves `..data` once: the contents of all files, or `None` while there is nothing.
fn seen(dir: &Path) -> Option<Vec<String>> {
    let target = fs::read_link(dir.join("..data")).ok()?;
    let Ok(files) = fs::read_dir(dir.join(target)) else { return None };
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    Some(files.iter().map(|file| fs::read_to_string(file).unwrap()).collect())
}

fn is_whole(seen: &[String], content: u32, number: usize) -> bool {
    seen.len() == number && seen.iter().all(|text| *text == content.to_string().repeat(5000))
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_swap_replaces_all_and_keeps_the_version_before() {
    let place = TempDir::new().unwrap();
    let dir = place.path().join("made");
    let folder = Folder::open(&dir).unwrap();
    folder.swap(&version(1, 2)).unwrap();
    assert_eq!(fs::read_link(dir.join("file0")).unwrap(), Path::new("..data/file0"));
    assert_eq!(fs::metadata(dir.join("file0")).unwrap().permissions().mode() & 0o777, 0o640);
    assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o755);
    let opened = fs::canonicalize(dir.join("..data")).unwrap();
    folder.swap(&version(2, 3)).unwrap();
    assert!(is_whole(&seen(&dir).unwrap(), 2, 3));
    assert!(opened.join("file0").exists(), "whoever has resolved the version before reads on");
    folder.swap(&version(3, 1)).unwrap();
    assert!(!opened.exists());
    // What is not delivered any more is gone, the links too.
    assert_eq!(names(&dir), ["..0000000000000002", "..0000000000000003", "..data", "file0"]);
}

#[test]
fn the_same_version_can_be_written_again() {
    let place = TempDir::new().unwrap();
    for _ in 0..3 {
        // As after starts of the agent.
        Folder::open(place.path()).unwrap().swap(&version(1, 2)).unwrap();
        assert!(is_whole(&seen(place.path()).unwrap(), 1, 2));
    }
    assert_eq!(names(place.path()).len(), 5, "two versions, the pointer, two links");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn an_end_at_any_step_leaves_a_whole_version(
        ends in prop::collection::vec((0..14_usize, 1..4_usize), 1..6)
    ) {
        let place = TempDir::new().unwrap();
        let dir = place.path();
        let mut last = None;
        for (content, (end, number)) in (1..).zip(ends) {
            let folder = Folder::open(dir).unwrap();
            prop_assert!(names(dir).iter().all(|name| !name.ends_with(".partial") && name != "..data.new"));
            let rendered = version(content, number);
            for step in folder.steps(&rendered).unwrap().iter().take(end) {
                folder.take(step).unwrap();
            }
            match seen(dir) {
                Some(now) if is_whole(&now, content, number) => last = Some((content, number)),
                now => {
                    let is_the_last = match (&now, last) {
                        (Some(now), Some((content, number))) => is_whole(now, content, number),
                        (None, None) => true,
                        _ => false,
                    };
                    prop_assert!(is_the_last, "{:?}", now);
                }
            }
        }
        // And the next start mends it all.
        Folder::open(dir).unwrap().swap(&version(99, 2)).unwrap();
        prop_assert!(is_whole(&seen(dir).unwrap(), 99, 2));
        let visible: Vec<String> = names(dir).into_iter().filter(|name| !name.starts_with("..")).collect();
        prop_assert_eq!(visible, ["file0", "file1"]);
    }
}

#[test]
fn no_reader_ever_sees_files_of_two_versions() {
    let place = TempDir::new().unwrap();
    let dir = place.path();
    Folder::open(dir).unwrap().swap(&version(1, 3)).unwrap();
    let (done, looks) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                // A reader that is overtaken twice finds the folder gone, and looks again: it never sees a mixture.
                let Some(target) = fs::read_link(dir.join("..data")).ok() else { panic!("..data is always there") };
                let texts: Vec<_> = (0..3).map(|n| fs::read(dir.join(&target).join(format!("file{n}")))).collect();
                let Ok(texts) = texts.into_iter().collect::<Result<Vec<_>, _>>() else { continue };
                assert!(texts[0] == texts[1] && texts[1] == texts[2] && !texts[0].is_empty());
                looks.fetch_add(1, Ordering::Relaxed);
            }
        });
        for content in 2..200 {
            Folder::open(dir).unwrap().swap(&version(content, 3)).unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(looks.load(Ordering::Relaxed) > 0);
}

#[test]
fn a_folder_that_others_may_write_to_is_refused() {
    let place = TempDir::new().unwrap();
    let dir = place.path().join("open");
    fs::create_dir(&dir).unwrap();
    for mode in [0o777, 0o775, 0o1777] {
        fs::set_permissions(&dir, fs::Permissions::from_mode(mode)).unwrap();
        let error = Folder::open(&dir).unwrap_err().to_string();
        assert!(error.contains(&format!("mode {mode:04o}")) && error.contains("chmod go-w"), "{error}");
    }
}

#[test]
fn a_folder_of_another_user_is_refused_and_so_is_his_link() {
    if !nix::unistd::geteuid().is_root() {
        // Only root can give something away to try it; for others the kernel refuses to write there anyway.
        assert!(Folder::open(Path::new("/root/chancery-test")).is_err());
        return;
    }
    let place = TempDir::new().unwrap();
    let (dir, link) = (place.path().join("his"), place.path().join("link"));
    fs::create_dir(&dir).unwrap();
    symlink(&dir, &link).unwrap();
    Folder::open(&link).unwrap();
    std::os::unix::fs::lchown(&link, Some(4711), None).unwrap();
    let error = Folder::open(&link.join("below")).unwrap_err().to_string();
    assert!(error.contains("symbolic link of uid 4711"), "{error}");
    std::os::unix::fs::chown(&dir, Some(4711), None).unwrap();
    let error = Folder::open(&dir).unwrap_err().to_string();
    assert!(error.contains("belongs to uid 4711") && error.contains("chown 0"), "{error}");
}

#[test]
fn access_lists_that_a_parent_hands_down_open_no_key() {
    let (access, default) = (c"system.posix_acl_access", c"system.posix_acl_default");
    let place = TempDir::new().unwrap();
    // Of acl(5): the user 4711 may do everything with what is made below. Tag, permissions, number.
    let entries: [(u16, u16, u32); 5] =
        [(1, 7, u32::MAX), (2, 7, 4711), (4, 7, u32::MAX), (16, 7, u32::MAX), (32, 0, u32::MAX)];
    let mut list = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, number) in entries {
        list.extend(tag.to_le_bytes().into_iter().chain(permissions.to_le_bytes()).chain(number.to_le_bytes()));
    }
    let set = rustix::fs::setxattr(place.path(), default, &list, rustix::fs::XattrFlags::empty());
    if set == Err(Errno::OPNOTSUPP) {
        return;
    }
    set.unwrap();
    let dir = place.path().join("dir");
    Folder::open(&dir).unwrap().swap(&version(1, 1)).unwrap();
    let version = dir.join("..0000000000000001");
    for (path, mode) in [(dir, 0o755), (version.clone(), 0o755), (version.join("file0"), 0o640)] {
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, mode);
        for list in [access, default] {
            let found = rustix::fs::getxattr(&path, list, &mut [0_u8; 256][..]);
            assert!(found.is_err(), "{} {list:?}", path.display());
        }
    }
}

#[test]
fn links_that_we_made_are_followed_but_not_for_ever() {
    let place = TempDir::new().unwrap();
    fs::create_dir(place.path().join("real")).unwrap();
    symlink("real", place.path().join("relative")).unwrap();
    symlink(place.path().join("relative/../relative"), place.path().join("absolute")).unwrap();
    Folder::open(&place.path().join("absolute/dir")).unwrap().swap(&version(1, 1)).unwrap();
    assert!(place.path().join("real/dir/file0").exists());
    symlink("loop", place.path().join("loop")).unwrap();
    let error = Folder::open(&place.path().join("loop")).unwrap_err().to_string();
    assert!(error.contains("too many symbolic links"), "{error}");
    fs::write(place.path().join("file"), "").unwrap();
    assert!(Folder::open(&place.path().join("file")).unwrap_err().to_string().contains("Not a directory"));
}

#[test]
fn what_somebody_else_has_put_there_is_left_alone() {
    let place = TempDir::new().unwrap();
    let dir = place.path();
    let secret = dir.join("secret");
    fs::write(&secret, "theirs").unwrap();
    for target in ["secret", "..data/other", "/etc/passwd"] {
        symlink(target, dir.join("file0")).unwrap();
        let error = Folder::open(dir).unwrap().swap(&version(1, 1)).unwrap_err().to_string();
        assert!(error.contains("file0 is there, and no delivery has put it there"), "{error}");
        fs::remove_file(dir.join("file0")).unwrap();
    }
    fs::write(dir.join("file0"), "theirs").unwrap();
    Folder::open(dir).unwrap().swap(&version(1, 1)).unwrap_err();
    assert_eq!(fs::read_to_string(dir.join("file0")).unwrap(), "theirs");
    fs::remove_file(dir.join("file0")).unwrap();
    fs::create_dir(dir.join("..2026_11_21")).unwrap();
    let folder = Folder::open(dir).unwrap();
    for content in 1..4 {
        folder.swap(&version(content, 1)).unwrap();
    }
    assert!(dir.join("..2026_11_21").exists() && secret.exists());
}

#[test]
fn owners_are_set_and_unknown_ones_are_named() {
    let place = TempDir::new().unwrap();
    let mut rendered = version(1, 1);
    rendered.files[0].owner = Some("no-such-user".into());
    let error = Folder::open(place.path()).unwrap().swap(&rendered).unwrap_err().to_string();
    assert!(error.contains("there is no user \"no-such-user\" on this machine"), "{error}");
    rendered.files[0].owner = None;
    rendered.files[0].group = Some("no-such-group".into());
    let error = Folder::open(place.path()).unwrap().swap(&rendered).unwrap_err().to_string();
    assert!(error.contains("file \"file0\": there is no group \"no-such-group\""), "{error}");
    assert_eq!(seen(place.path()), None);
    if nix::unistd::geteuid().is_root() {
        rendered.files[0].owner = Some("4711".into());
        rendered.files[0].group = Some("4712".into());
        Folder::open(place.path()).unwrap().swap(&rendered).unwrap();
        let found = fs::metadata(place.path().join("file0")).unwrap();
        assert_eq!((found.uid(), found.gid(), found.mode() & 0o777), (4711, 4712, 0o640));
    }
}
