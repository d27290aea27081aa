//! What every store must do, as checks over `Arc<dyn Store>`; they panic when it does not.
//!
//! Each check works under a prefix of its own and takes no revision for granted, so that all of them can run against one
//! store, at the same time, and against one that others use too.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "checks, called by tests only"
)]

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use super::{Commit, KeyValue, Revision, Store, StoreError, Txn, VALUE_LIMIT, Write};

/// All checks that need one open store.
pub async fn all(store: Arc<dyn Store>) {
    create_only(&*store).await;
    stale_write_is_refused(&*store).await;
    a_conflict_leaves_all_untouched(&*store).await;
    nothing_to_change_takes_no_revision(&*store).await;
    delete_then_create(&*store).await;
    prefixes_end_where_they_end(&*store).await;
    whole_commits_of_the_prefix_only(&*store).await;
    a_dropped_next_loses_nothing(&*store).await;
    limits(&*store).await;
    one_of_eight_wins(Arc::clone(&store)).await;
    range_is_one_moment(store).await;
}

fn conflict(key: &str) -> Result<Revision, StoreError> {
    Err(StoreError::Conflict { key: key.to_owned() })
}

async fn found(store: &dyn Store, prefix: &str) -> Vec<(String, String)> {
    let (found, _) = store.range(prefix).await.unwrap();
    found.into_iter().map(|kv| (kv.key, String::from_utf8(kv.value.to_vec()).unwrap())).collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

pub async fn create_only(store: &dyn Store) {
    let key = "create/a";
    let first = store.commit(Txn::new().absent(key).put(key, "1")).await.unwrap();
    assert!(first > 0, "0 means that nothing was ever written");
    assert_eq!(store.commit(Txn::new().absent(key).put(key, "2")).await, conflict(key));
    let (found, revision) = store.range("create/").await.unwrap();
    assert_eq!(found, [KeyValue { key: key.to_owned(), value: "1".into(), revision: first }]);
    assert!(revision >= first);
}

pub async fn stale_write_is_refused(store: &dyn Store) {
    let key = "stale/a";
    let first = store.commit(Txn::new().put(key, "1")).await.unwrap();
    let second = store.commit(Txn::new().expect(key, first).put(key, "2")).await.unwrap();
    assert!(second > first);
    assert_eq!(store.commit(Txn::new().expect(key, first).put(key, "3")).await, conflict(key));
    assert_eq!(store.commit(Txn::new().expect(key, first).delete(key)).await, conflict(key));
    assert_eq!(store.commit(Txn::new().expect("stale/none", first).put(key, "3")).await, conflict("stale/none"));
    assert_eq!(found(store, "stale/").await, pairs(&[(key, "2")]));
    // The same value again is a write all the same.
    let third = store.commit(Txn::new().expect(key, second).put(key, "2")).await.unwrap();
    assert!(third > second);
    assert_eq!(store.range(key).await.unwrap().0.first().unwrap().revision, third);
}

pub async fn a_conflict_leaves_all_untouched(store: &dyn Store) {
    let made = store.commit(Txn::new().put("atomic/a", "1").put("atomic/b", "1")).await.unwrap();
    let txn = Txn::new().expect("atomic/a", made).absent("atomic/b");
    let txn = txn.put("atomic/a", "2").put("atomic/c", "2").delete("atomic/b");
    assert_eq!(store.commit(txn).await, conflict("atomic/b"));
    assert_eq!(found(store, "atomic/").await, pairs(&[("atomic/a", "1"), ("atomic/b", "1")]));
    let txn = Txn::new().expect("atomic/a", made).expect("atomic/b", made).absent("atomic/c");
    let changed = store.commit(txn.put("atomic/a", "2").put("atomic/c", "2").delete("atomic/b")).await.unwrap();
    let (found, _) = store.range("atomic/").await.unwrap();
    let keys: Vec<_> = found.iter().map(|kv| (kv.key.as_str(), kv.revision)).collect();
    assert_eq!(keys, [("atomic/a", changed), ("atomic/c", changed)], "one commit, one revision");
}

pub async fn nothing_to_change_takes_no_revision(store: &dyn Store) {
    let made = store.commit(Txn::new().put("nothing/a", "1")).await.unwrap();
    let mut watch = store.watch("nothing/", made).await.unwrap();
    store.commit(Txn::new()).await.unwrap();
    store.commit(Txn::new().expect("nothing/a", made)).await.unwrap();
    store.commit(Txn::new().delete("nothing/none")).await.unwrap();
    assert_eq!(store.commit(Txn::new().absent("nothing/a")).await, conflict("nothing/a"), "expectations alone count");
    let next = store.commit(Txn::new().put("nothing/a", "2").delete("nothing/none")).await.unwrap();
    let put = Write::Put { key: "nothing/a".to_owned(), value: "2".into() };
    assert_eq!(watch.next().await, Ok(Commit { revision: next, writes: vec![put] }));
}

pub async fn delete_then_create(store: &dyn Store) {
    let key = "again/a";
    let first = store.commit(Txn::new().absent(key).put(key, "1")).await.unwrap();
    store.commit(Txn::new().expect(key, first).delete(key)).await.unwrap();
    assert_eq!(found(store, "again/").await, []);
    assert_eq!(store.commit(Txn::new().expect(key, first).put(key, "2")).await, conflict(key));
    let again = store.commit(Txn::new().absent(key).put(key, "2")).await.unwrap();
    assert!(again > first, "the second life of a key is not mistaken for its first");
    assert_eq!(store.commit(Txn::new().expect(key, first).delete(key)).await, conflict(key));
}

pub async fn prefixes_end_where_they_end(store: &dyn Store) {
    let mut start = store.range("").await.unwrap().1;
    let txn = Txn::new().put("edge/entry/b", "1").put("edge/entry-x/a", "2").put("edge/entry", "3");
    store.commit(txn.put("edge/entry/a", "4").put("edge/entry0", "5").put("edge/entry/\u{10ffff}", "6")).await.unwrap();
    let expected = [("edge/entry/a", "4"), ("edge/entry/b", "1"), ("edge/entry/\u{10ffff}", "6")];
    assert_eq!(found(store, "edge/entry/").await, pairs(&expected));
    assert_eq!(found(store, "edge/entry-x/").await, pairs(&[("edge/entry-x/a", "2")]));
    assert_eq!(found(store, "edge/entry").await.len(), 6);
    assert_eq!(found(store, "edge/none/").await, []);
    let everything = found(store, "").await;
    assert!(everything.windows(2).all(|two| two.first() < two.last()), "in order");
    assert!(everything.iter().all(|(key, _)| key.contains('/')), "and nothing but what was put: {everything:?}");
    let mut watch = store.watch("edge/entry/", start).await.unwrap();
    let commit = watch.next().await.unwrap();
    start = commit.revision;
    let mut keys: Vec<_> = commit.writes.iter().map(Write::key).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["edge/entry/a", "edge/entry/b", "edge/entry/\u{10ffff}"]);
    store.commit(Txn::new().put("edge/entry-x/a", "7")).await.unwrap();
    let next = store.commit(Txn::new().delete("edge/entry/a")).await.unwrap();
    assert!(next > start);
    assert_eq!(
        watch.next().await,
        Ok(Commit { revision: next, writes: vec![Write::Delete { key: "edge/entry/a".to_owned() }] })
    );
}

pub async fn whole_commits_of_the_prefix_only(store: &dyn Store) {
    let (_, start) = store.range("watch/").await.unwrap();
    let mut early = store.watch("watch/a/", start).await.unwrap();
    let mut revisions = Vec::new();
    for round in 0..20 {
        let txn =
            Txn::new().put("watch/a/1", format!("{round}")).put("watch/b/1", "x").put("watch/a/2", format!("{round}"));
        revisions.push(store.commit(txn).await.unwrap());
        store.commit(Txn::new().put("watch/b/2", "x")).await.unwrap();
    }
    let mut late = store.watch("watch/a/", start).await.unwrap();
    for (round, revision) in revisions.iter().enumerate() {
        let commit = early.next().await.unwrap();
        assert_eq!(commit.revision, *revision);
        let mut writes = commit.writes.clone();
        writes.sort_by(|a, b| a.key().cmp(b.key()));
        let put = |key: &str| Write::Put { key: key.to_owned(), value: format!("{round}").into() };
        assert_eq!(writes, [put("watch/a/1"), put("watch/a/2")]);
        assert_eq!(late.next().await.unwrap(), commit, "those who come later see the same");
    }
    let middle = *revisions.get(10).unwrap();
    assert_eq!(
        store.watch("watch/a/", middle).await.unwrap().next().await.unwrap().revision,
        *revisions.get(11).unwrap()
    );
}

pub async fn a_dropped_next_loses_nothing(store: &dyn Store) {
    let (_, start) = store.range("drop/").await.unwrap();
    let mut watch = store.watch("drop/", start).await.unwrap();
    for round in 0..20 {
        // Polled once, and dropped.
        let early = futures_util::future::poll_immediate(watch.next()).await;
        assert_eq!(early, None);
        let revision = store.commit(Txn::new().put("drop/a", format!("{round}"))).await.unwrap();
        assert_eq!(watch.next().await.unwrap().revision, revision);
    }
}

pub async fn limits(store: &dyn Store) {
    let too_large = store.commit(Txn::new().put("limit/a", vec![7; VALUE_LIMIT + 1]).put("limit/b", "x")).await;
    assert!(matches!(too_large, Err(StoreError::TooLarge { .. })), "{too_large:?}");
    let twice = store.commit(Txn::new().put("limit/a", "x").delete("limit/a")).await;
    assert!(matches!(twice, Err(StoreError::Invalid(_))), "{twice:?}");
    assert_eq!(found(store, "limit/").await, []);
    for round in 0..40 {
        store.commit(Txn::new().put(format!("limit/{round}"), vec![7; VALUE_LIMIT])).await.unwrap();
    }
    store.commit(Txn::new().put("limit/empty", "")).await.unwrap();
    let (found, _) = store.range("limit/").await.unwrap();
    assert_eq!(found.iter().filter(|kv| kv.value == vec![7; VALUE_LIMIT]).count(), 40);
    assert_eq!(found.len(), 41);
}

pub async fn one_of_eight_wins(store: Arc<dyn Store>) {
    let key = "race/a";
    let mut revision = store.commit(Txn::new().put(key, "start")).await.unwrap();
    for round in 0..20 {
        let tasks: Vec<_> = (0..8)
            .map(|racer| {
                let (store, value) = (Arc::clone(&store), format!("{round}/{racer}"));
                let txn =
                    Txn::new().expect(key, revision).put(key, value.clone()).put(format!("race/by/{racer}"), value);
                tokio::spawn(async move { store.commit(txn).await })
            })
            .collect();
        let mut won = Vec::new();
        for (racer, task) in tasks.into_iter().enumerate() {
            match task.await.unwrap() {
                Ok(revision) => won.push((racer, revision)),
                lost => assert_eq!(lost, conflict(key)),
            }
        }
        let [(winner, made)] = won[..] else { panic!("{won:?} won") };
        revision = made;
        let value = format!("{round}/{winner}");
        assert_eq!(found(&*store, key).await, pairs(&[(key, &value)]));
        assert_eq!(
            found(&*store, &format!("race/by/{winner}")).await,
            pairs(&[(&format!("race/by/{winner}"), &value)])
        );
    }
}

/// Under concurrent writes a range is all of one revision, and range + watch is the whole story.
pub async fn range_is_one_moment(store: Arc<dyn Store>) {
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for round in 0..60 {
                    let value = format!("{writer}/{round}");
                    let txn = Txn::new().put("moment/a", value.clone()).put("moment/b", value.clone());
                    store.commit(txn.put(format!("moment/of/{writer}"), value)).await.unwrap();
                }
            })
        })
        .collect();
    let mut readers = Vec::new();
    for _ in 0..4 {
        let store = Arc::clone(&store);
        readers.push(tokio::spawn(async move {
            let mut table = BTreeMap::new();
            for _ in 0..25 {
                let (found, revision) = store.range("moment/").await.unwrap();
                table = found.into_iter().map(|kv| (kv.key, (kv.value, kv.revision))).collect();
                assert_eq!(table.get("moment/a"), table.get("moment/b"), "a commit was seen in part");
                if let Some((_, written)) = table.get("moment/a") {
                    assert!(*written <= revision);
                }
                let mut watch = store.watch("moment/", revision).await.unwrap();
                tokio::task::yield_now().await;
                // Fold what has come since; the last round goes on until the end.
                while let Some(commit) = futures_util::future::poll_immediate(watch.next()).await {
                    fold(&mut table, &commit.unwrap());
                }
            }
            table.clear();
            let (found, revision) = store.range("moment/").await.unwrap();
            table.extend(found.into_iter().map(|kv| (kv.key, (kv.value, kv.revision))));
            let mut watch = store.watch("moment/", revision).await.unwrap();
            while !table.contains_key("moment/end") {
                fold(&mut table, &watch.next().await.unwrap());
            }
            table
        }));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    store.commit(Txn::new().put("moment/end", "")).await.unwrap();
    let (found, _) = store.range("moment/").await.unwrap();
    let truth: BTreeMap<_, _> = found.into_iter().map(|kv| (kv.key, (kv.value, kv.revision))).collect();
    for reader in readers {
        assert_eq!(reader.await.unwrap(), truth);
    }
}

fn fold(table: &mut BTreeMap<String, (bytes::Bytes, Revision)>, commit: &Commit) {
    for write in &commit.writes {
        match write {
            Write::Put { key, value } => table.insert(key.clone(), (value.clone(), commit.revision)),
            Write::Delete { key } => table.remove(key),
        };
    }
}

/// A store that was closed and is opened again knows all, goes on counting, and its watch goes on in order.
pub async fn across_a_reopen<F: Future<Output = Arc<dyn Store>>>(open: impl Fn() -> F) {
    let store = open().await;
    for round in 0..50 {
        store.commit(Txn::new().put(format!("reopen/{}", round % 7), format!("{round}"))).await.unwrap();
    }
    store.commit(Txn::new().delete("reopen/3")).await.unwrap();
    let before = store.range("reopen/").await.unwrap();
    drop(store);
    let store = open().await;
    assert_eq!(store.range("reopen/").await.unwrap(), before);
    let mut watch = store.watch("reopen/", before.1).await.unwrap();
    let mut expected = Vec::new();
    for round in 0..50 {
        expected.push(store.commit(Txn::new().put("reopen/3", format!("{round}"))).await.unwrap());
    }
    assert!(expected.first() > Some(&before.1));
    for revision in expected {
        assert_eq!(watch.next().await.unwrap().revision, revision);
    }
}

/// To be called when the commits after `after` are known to be gone.
pub async fn compacted(store: &dyn Store, after: Revision) {
    let error = match store.watch("", after).await {
        Ok(mut watch) => watch.next().await.unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(error, StoreError::Compacted);
    // The cure.
    let (_, revision) = store.range("").await.unwrap();
    let mut watch = store.watch("", revision).await.unwrap();
    let next = store.commit(Txn::new().put("compacted/a", "1")).await.unwrap();
    assert_eq!(watch.next().await.unwrap().revision, next);
}
