//! A damaged, foreign, locked or forbidden directory: clear words, never lost commits that nobody notices.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use ca_server::store::sled::SledStore;
use ca_server::store::{KeyValue, Revision, Store, StoreError, Txn};

type Content = (Vec<KeyValue>, Revision);

fn content(store: &SledStore) -> Content {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(store.range("")).unwrap()
}

/// A store of some hundred commits; `reopened` adds a snapshot of sled, and more commits after it.
fn filled(path: &Path, reopened: bool) -> Content {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for round in 0..=u64::from(reopened) {
        let store = SledStore::open(path).unwrap();
        for n in 0..300_u64 {
            let key = format!("key/{:03}", n * 7 % 120);
            let size = usize::try_from(n % 5 * 700).unwrap();
            let txn = if n % 10 == 9 { Txn::new().delete(key) } else { Txn::new().put(key, vec![round as u8; size]) };
            runtime.block_on(store.commit(txn)).unwrap();
        }
    }
    content(&SledStore::open(path).unwrap())
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.join("blobs")).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

fn refused(path: &Path) -> StoreError {
    SledStore::open(path).map(|store| content(&store)).unwrap_err()
}

#[test]
fn a_flipped_bit_never_goes_unnoticed() {
    let (mut noticed, mut harmless, mut panicked) = (0, 0, 0);
    for reopened in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let whole = folder.path().join("whole");
        let before = filled(&whole, reopened);
        for name in ["db", "acknowledged", "conf", "snap"] {
            let Some(name) = fs::read_dir(&whole)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .find(|found| found.starts_with(name))
            else {
                continue;
            };
            let bytes = fs::read(whole.join(&name)).unwrap();
            let used = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0) + 1;
            let tries = if name == "db" { 80 } else { 10 };
            for n in 0..tries {
                // The first bytes of all, the segment header, one by one; then spread over what is used.
                let at = if n < 24 { n.min(used - 1) } else { n * (used - 1) / tries };
                let damaged = folder.path().join("damaged");
                copy(&whole, &damaged);
                let mut bytes = bytes.clone();
                bytes[at] ^= 1 << (n % 8);
                fs::write(damaged.join(&name), &bytes).unwrap();
                let path = damaged.clone();
                match std::thread::spawn(move || SledStore::open(&path).map(|store| content(&store))).join() {
                    Ok(Ok(after)) => {
                        assert_eq!(after, before, "{name} at {at}: something is gone, and nobody noticed");
                        harmless += 1;
                    }
                    Ok(Err(StoreError::Corrupt(why))) => {
                        assert!(why.contains("estore the directory from a backup"), "{why}");
                        noticed += 1;
                    }
                    Ok(Err(other)) => println!("{name} at {at}: {other}"),
                    Err(panic) => {
                        println!("{name} at {at}: panic {:?}", panic.downcast_ref::<String>());
                        panicked += 1;
                    }
                }
                fs::remove_dir_all(&damaged).unwrap();
            }
        }
    }
    println!("noticed {noticed}, harmless {harmless}, panicked {panicked}");
    assert!(noticed > 30, "the damage was not where it matters");
}

fn words(path: &Path) -> String {
    refused(path).to_string()
}

#[test]
fn a_shortened_or_missing_file_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    filled(&whole, true);
    let length = fs::metadata(whole.join("db")).unwrap().len();
    for keep in [0, 1, 19, 4096, length / 4, length / 2] {
        let damaged = folder.path().join(format!("{keep}"));
        copy(&whole, &damaged);
        fs::OpenOptions::new().write(true).open(damaged.join("db")).unwrap().set_len(keep).unwrap();
        assert!(words(&damaged).contains("corrupt"), "cut to {keep} of {length}: {}", words(&damaged));
    }
    let damaged = folder.path().join("missing");
    copy(&whole, &damaged);
    fs::remove_file(damaged.join("db")).unwrap();
    assert!(words(&damaged).contains("corrupt"), "{}", words(&damaged));
}

#[test]
fn garbage_and_foreign_formats_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let garbage: Vec<u8> = (0..1_500_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let whole = folder.path().join("whole");
    filled(&whole, false);
    for name in ["db", "conf", "acknowledged"] {
        let damaged = folder.path().join(name);
        copy(&whole, &damaged);
        fs::write(damaged.join(name), &garbage).unwrap();
        assert!(words(&damaged).contains("corrupt"), "{name}: {}", words(&damaged));
    }
    let foreign = folder.path().join("foreign");
    sled_of_somebody_else(&foreign);
    assert!(words(&foreign).contains("not written by this program"), "{}", words(&foreign));

    let newer = folder.path().join("newer");
    copy(&whole, &newer);
    let text = fs::read_to_string(newer.join("acknowledged")).unwrap();
    fs::write(newer.join("acknowledged"), text.replace("store 1 ", "store 2 ")).unwrap();
    assert!(words(&newer).contains("has format 2, and this program reads format 1"), "{}", words(&newer));

    let file = folder.path().join("file");
    fs::write(&file, "x").unwrap();
    assert!(words(&file).contains("is not a directory: name another"), "{}", words(&file));
}

fn sled_of_somebody_else(path: &Path) {
    let db = sled::open(path).unwrap();
    db.insert("x", "y").unwrap();
    db.flush().unwrap();
}

#[test]
fn a_process_that_died_while_it_opened_the_store_leaves_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    let before = filled(folder.path(), true);
    fs::write(folder.path().join("snap.00000000FFFFFFFF.generating"), "half a snapsh").unwrap();
    assert_eq!(content(&SledStore::open(folder.path()).unwrap()), before);
}

#[test]
fn an_older_copy_of_the_database_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let (path, old) = (folder.path().join("store"), folder.path().join("old"));
    filled(&path, false);
    copy(&path, &old);
    filled(&path, false);
    // All but the file beside it.
    fs::copy(path.join("acknowledged"), old.join("acknowledged")).unwrap();
    assert!(words(&old).contains("was acknowledged, but the latest found is"), "{}", words(&old));
    // Whoever accepts the loss says so.
    fs::remove_file(old.join("acknowledged")).unwrap();
    assert!(SledStore::open(&old).is_ok());
}

const CHILD: &str = "STORE_LOCK_CHILD";

/// Not a test of its own: the process that has the store open until its input ends.
#[test]
fn lock_child() {
    let Ok(path) = std::env::var(CHILD) else { return };
    let store = SledStore::open(&path).unwrap();
    println!("\nopen");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    drop(store);
}

#[test]
fn a_directory_in_use_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "lock_child", "--nocapture"])
        .env(CHILD, folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "open"));
    assert!(
        words(folder.path()).contains("in use by another process: stop that server first"),
        "{}",
        words(folder.path())
    );
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    assert!(SledStore::open(folder.path()).is_ok());
}
