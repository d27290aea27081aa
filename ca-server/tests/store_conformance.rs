//! The stores of one process against the conformance suite.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::sync::Arc;

use ca_server::store::mem::MemStore;
use ca_server::store::sled::SledStore;
use ca_server::store::{Store, Txn, conformance};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn mem() {
    conformance::all(Arc::new(MemStore::new())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sled() {
    let folder = tempfile::tempdir().unwrap();
    conformance::all(Arc::new(SledStore::open(folder.path()).unwrap())).await;
    // And once more with what the first run left.
    let reopened = SledStore::open(folder.path()).unwrap();
    let (found, revision) = reopened.range("").await.unwrap();
    assert!(found.len() > 60 && revision > 300, "{} keys at {revision}", found.len());
}

#[tokio::test]
async fn sled_across_a_reopen() {
    let folder = tempfile::tempdir().unwrap();
    conformance::across_a_reopen(async || Arc::new(SledStore::open(folder.path()).unwrap()) as Arc<dyn Store>).await;
}

#[tokio::test]
async fn sled_forgets_the_way_but_not_the_place_when_it_is_reopened() {
    let folder = tempfile::tempdir().unwrap();
    let store = SledStore::open(folder.path()).unwrap();
    let first = store.commit(Txn::new().put("a", "1")).await.unwrap();
    store.commit(Txn::new().put("a", "2")).await.unwrap();
    let mut watch = store.watch("", first).await.unwrap();
    assert!(watch.next().await.is_ok());
    drop(store);
    assert_eq!(watch.next().await.unwrap_err().to_string(), "the store, or this watch of it, is closed");
    conformance::compacted(&SledStore::open(folder.path()).unwrap(), first).await;
}

#[tokio::test]
async fn mem_forgets_what_is_long_ago() {
    let store = MemStore::new();
    for _ in 0..5000 {
        store.commit(Txn::new().put("a", "1")).await.unwrap();
    }
    conformance::compacted(&store, 1).await;
}

/// What it costs is printed: commits that wait together share one sync.
#[expect(clippy::disallowed_methods, reason = "measures real time")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sled_commits_many_together() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(SledStore::open(folder.path()).unwrap());
    let started = std::time::Instant::now();
    for n in 0..200 {
        store.commit(Txn::new().put(format!("one/{n}"), vec![1; 200])).await.unwrap();
    }
    let alone = started.elapsed() / 200;
    let tasks: Vec<_> = (0..64)
        .map(|task| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for n in 0..50 {
                    store.commit(Txn::new().put(format!("many/{task}/{n}"), vec![1; 200])).await.unwrap();
                }
            })
        })
        .collect();
    let started = std::time::Instant::now();
    for task in tasks {
        task.await.unwrap();
    }
    let together = started.elapsed() / 3200;
    println!("a commit alone takes {alone:?}, one of many {together:?}");
    assert_eq!(store.range("").await.unwrap().1, 3400);
}
