//! `kill -9` in the middle of writing: every acknowledged commit is there afterwards.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use ca_server::store::sled::SledStore;
use ca_server::store::{Revision, Store, Txn};

const CHILD: &str = "STORE_KILL_CHILD";

/// Not a test of its own: the process that is killed. Prints each acknowledged commit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Ok(path) = std::env::var(CHILD) else { return };
    let store = Arc::new(SledStore::open(Path::new(&path)).unwrap());
    let tasks: Vec<_> = (0..4)
        .map(|task| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for n in 0_u64.. {
                    // Two keys in one commit; sometimes a large value, sometimes a delete.
                    let size = if n % 20 == 7 { 60_000 } else { 100 };
                    let (one, two) = (format!("one/{task}/{}", n % 50), format!("two/{task}/{}", n % 50));
                    let value = format!("{n:08}").repeat(size / 8);
                    let txn = if n % 9 == 8 {
                        Txn::new().delete(one.clone()).put(two, value)
                    } else {
                        Txn::new().put(one.clone(), value.clone()).put(two, value)
                    };
                    let revision = store.commit(txn).await.unwrap();
                    // One write to the pipe, whole lines.
                    let line = format!("ack {revision} {task} {n}\n");
                    std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn every_acknowledged_commit_survives_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let mut acknowledged: BTreeMap<Revision, (u64, u64)> = BTreeMap::new();
    let (mut base, mut total) = (0, 0);
    for round in 0..6_usize {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env(CHILD, folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        acknowledged.clear();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let enough = 40 + 170 * round;
        while let Some(Ok(line)) = lines.next() {
            // The harness prints on the same line before the first.
            let Some((_, ack)) = line.split_once("ack ") else { continue };
            let numbers: Vec<u64> = ack.split(' ').map(|word| word.parse().unwrap()).collect();
            let [revision, task, n] = numbers[..] else { panic!("{line}") };
            acknowledged.insert(revision, (task, n));
            if acknowledged.len() == enough {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(acknowledged.len() >= enough, "the child stopped by itself in round {round}");
        total += acknowledged.len();

        let store = SledStore::open(folder.path()).unwrap();
        let (found, head) = store.range("").await.unwrap();
        let latest = *acknowledged.last_key_value().unwrap().0;
        assert!(head >= latest, "revision {latest} was acknowledged, {head} is the latest after round {round}");
        assert!(*acknowledged.first_key_value().unwrap().0 > base);
        base = head;
        let at: BTreeMap<_, _> = found.iter().map(|kv| (kv.key.as_str(), kv)).collect();
        for (revision, (task, n)) in &acknowledged {
            let two = at.get(format!("two/{task}/{}", n % 50).as_str()).expect("never deleted");
            assert!(two.revision >= *revision, "commit {revision} was acknowledged and is gone");
            if two.revision == *revision {
                assert!(two.value.starts_with(format!("{n:08}").as_bytes()));
                let one = at.get(format!("one/{task}/{}", n % 50).as_str());
                let whole = if n % 9 == 8 { one.is_none() } else { one.is_some_and(|one| one.revision == *revision) };
                assert!(whole, "half of commit {revision}: {one:?}");
            }
        }
    }
    println!("{total} acknowledged commits, 6 kills");
}
