//! The disk is full, or refuses: nothing that was acknowledged is lost, the words are clear, and it works again afterwards
//! without a restart.
//!
//! Each case runs in a process of its own: this test binary once more, with the name of the case in the environment.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]
#![allow(clippy::disallowed_methods, reason = "a writer that hangs must fail the test, in real time")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use ca_server::store::sled::SledStore;
use ca_server::store::{Revision, Store, StoreError, Txn};
use nix::mount::{MsFlags, mount};

const CASE: &str = "STORE_DISK_CASE";

/// Runs the test `case` of this binary under `wrapper`, and fails when it fails.
fn run(wrapper: &[&str], case: &str) {
    let output = Command::new(wrapper[0])
        .args(&wrapper[1..])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", case, "--nocapture"])
        .env(CASE, case)
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    println!("{text}");
    assert!(output.status.success() && text.contains("1 passed"), "{case}: {}", output.status);
}

fn is_child(case: &str) -> bool {
    std::env::var(CASE).is_ok_and(|found| found == case)
}

/// A wrapper that gives a mount namespace of its own; what is mounted in it ends with it.
fn own_mounts() -> Option<&'static [&'static str]> {
    let choices: [&[&str]; 2] = [&["unshare", "--mount"], &["unshare", "--user", "--map-root-user", "--mount"]];
    let works = |choice: &&[&str]| {
        let mounts = ["sh", "-c", "mount -t tmpfs none /mnt"];
        Command::new(choice[0]).args(&choice[1..]).args(mounts).output().is_ok_and(|output| output.status.success())
    };
    let found = choices.into_iter().find(works);
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "cannot mount a small file system here, and CI must");
        println!("NOT RUN: cannot mount a small file system here");
    }
    found
}

/// What was acknowledged, and commits one more.
#[derive(Default)]
struct Acknowledged {
    keys: BTreeMap<String, (Bytes, Revision)>,
    n: usize,
}

impl Acknowledged {
    async fn commit(&mut self, store: &SledStore, bytes: usize) -> Result<Revision, StoreError> {
        let key = format!("key/{:04}", self.n % 3000);
        let value = Bytes::from(format!("{:08}", self.n).repeat(bytes / 8));
        self.n += 1;
        let revision = store.commit(Txn::new().put(key.clone(), value.clone())).await?;
        self.keys.insert(key, (value, revision));
        Ok(revision)
    }

    /// Exactly that is there, and no more.
    async fn check(&self, store: &SledStore) {
        let (found, _) = store.range("").await.unwrap();
        let found: BTreeMap<_, _> = found.into_iter().map(|kv| (kv.key, (kv.value, kv.revision))).collect();
        assert_eq!(found.len(), self.keys.len());
        assert!(found == self.keys, "what is there is not what was acknowledged");
    }

    /// All that is there; a commit that was not acknowledged may be, too, if it came later.
    async fn check_kept(&self, store: &SledStore) {
        let (found, _) = store.range("").await.unwrap();
        let found: BTreeMap<_, _> = found.into_iter().map(|kv| (kv.key, (kv.value, kv.revision))).collect();
        for (key, acknowledged) in &self.keys {
            let there = found.get(key).unwrap_or_else(|| panic!("{key} is gone"));
            assert!(there == acknowledged || there.1 > acknowledged.1, "{key} is older than what was acknowledged");
        }
    }
}

#[test]
fn a_full_disk_is_refused_with_the_reason() {
    if let Some(wrapper) = own_mounts() {
        run(wrapper, "full_disk");
    }
}

/// A case: see [`a_full_disk_is_refused_with_the_reason`].
#[tokio::test]
async fn full_disk() {
    if !is_child("full_disk") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    mount(Some("tmpfs"), folder.path(), Some("tmpfs"), MsFlags::empty(), Some("size=24m")).unwrap();
    let path = folder.path().join("store");
    let ballast = folder.path().join("ballast");
    fs::write(&ballast, vec![1; 8 << 20]).unwrap();
    let store = SledStore::open(&path).unwrap();
    let mut acknowledged = Acknowledged::default();
    for bytes in [4000, 40_000] {
        let refused = loop {
            if let Err(refused) = acknowledged.commit(&store, bytes).await {
                break refused;
            }
            assert!(acknowledged.n < 50_000, "a disk of 24 MiB is never full");
        };
        let words = refused.to_string();
        assert!(words.contains("no space left on the device that holds") && words.contains("free some"), "{words}");
        println!("{} commits, then: {words}", acknowledged.keys.len());
    }
    assert!(
        matches!(acknowledged.commit(&store, 8).await, Err(StoreError::Unavailable(_))),
        "small ones are refused too"
    );
    acknowledged.check(&store).await;
    drop(store);
    // Opens although it is full, and reads.
    let store = SledStore::open(&path).unwrap();
    acknowledged.check(&store).await;
    assert!(acknowledged.commit(&store, 8).await.is_err());
    fs::remove_file(&ballast).unwrap();
    for _ in 0..20 {
        acknowledged.commit(&store, 4000).await.expect("there is space again");
    }
    acknowledged.check(&store).await;
    drop(store);
    acknowledged.check(&SledStore::open(&path).unwrap()).await;

    // And a file system that somebody has made read-only.
    mount(None::<&str>, folder.path(), None::<&str>, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, None::<&str>).unwrap();
    let words = SledStore::open(&path).unwrap_err().to_string();
    assert!(words.contains("read-only file system: mount it writable"), "{words}");
}

#[test]
fn a_disk_that_fails_in_the_middle_of_a_write_loses_nothing_acknowledged() {
    // A file that may not grow any more fails as a disk does: under sled, where no check of ours has foreseen it.
    run(&["sh", "-c", "trap '' XFSZ; exec \"$0\" \"$@\""], "failing_disk");
}

fn limit_file_size(bytes: &str) {
    let pid = std::process::id().to_string();
    let limit = format!("--fsize={bytes}:unlimited");
    assert!(Command::new("prlimit").args(["--pid", &pid, &limit]).status().unwrap().success());
}

/// A case: see [`a_disk_that_fails_in_the_middle_of_a_write_loses_nothing_acknowledged`].
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failing_disk() {
    if !is_child("failing_disk") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let store = SledStore::open(&path).unwrap();
    let mut acknowledged = Acknowledged::default();
    let mut watch = store.watch("", 0).await.unwrap();
    for round in 1..=5 {
        limit_file_size(&(round * 900_000 + 1000).to_string());
        let mut failures = 0;
        while failures < 5 {
            let commit = acknowledged.commit(&store, 4000);
            match tokio::time::timeout(Duration::from_secs(20), commit).await.expect("hangs") {
                Ok(_) => {}
                Err(why) => {
                    assert!(matches!(why, StoreError::Unavailable(_)), "{why}");
                    println!("round {round}, {} commits: {why}", acknowledged.keys.len());
                    failures += 1;
                }
            }
        }
        limit_file_size("unlimited");
        for _ in 0..10 {
            acknowledged.commit(&store, 4000).await.expect("the disk works again");
        }
        acknowledged.check_kept(&store).await;
    }
    let before = store.range("").await.unwrap();
    // The watcher has seen every commit, with those that turned out to be there, in order and once.
    let (mut last, mut seen) = (0, BTreeMap::new());
    while last < before.1 {
        let commit = watch.next().await.unwrap();
        assert_eq!(commit.revision, last + 1);
        last = commit.revision;
        for write in commit.writes {
            seen.insert(write.key().to_owned(), last);
        }
    }
    assert_eq!(seen, before.0.iter().map(|kv| (kv.key.clone(), kv.revision)).collect());
    drop(store);
    let store = SledStore::open(&path).unwrap();
    assert!(store.range("").await.unwrap() == before);
    acknowledged.check_kept(&store).await;
}

#[test]
fn a_directory_of_somebody_else_is_refused_with_the_reason() {
    // The superuser may write anywhere.
    if nix::unistd::geteuid().is_root() {
        run(&["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--"], "forbidden_directory");
    } else {
        run(&["env"], "forbidden_directory");
    }
}

/// A case: see [`a_directory_of_somebody_else_is_refused_with_the_reason`].
#[tokio::test]
async fn forbidden_directory() {
    if !is_child("forbidden_directory") {
        return;
    }
    for path in ["/", "/etc", "/usr/chancery-store"] {
        let words = SledStore::open(Path::new(path)).unwrap_err().to_string();
        assert!(words.contains("give it to the user that the server runs as"), "{words}");
    }
}
