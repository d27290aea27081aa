//! The loop, on a store in memory and a clock turned by hand.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use spiffe::time::Fake;

use super::*;
use crate::authority::issuer::Issuer;
use crate::authority::keys::Memory;
use crate::store::mem::MemStore;
use crate::store::{KeyValue, Watch};

const START: Timestamp = Timestamp::from_unix(1_800_000_000);

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

struct House {
    store: Arc<dyn Store>,
    keys: Arc<Memory>,
    clock: Fake,
    acknowledge: Arc<AtomicBool>,
}

impl House {
    fn new() -> Self {
        Self::on(Arc::new(MemStore::new()))
    }

    fn on(store: Arc<dyn Store>) -> Self {
        let acknowledge = Arc::new(AtomicBool::new(true));
        Self { store, keys: Arc::default(), clock: Fake::new(START), acknowledge }
    }

    fn rotator(&self) -> Rotator {
        let acknowledge = self.acknowledge.clone();
        Rotator::new(Parts {
            store: self.store.clone(),
            keys: self.keys.clone(),
            upstream: None,
            trust_domain: TrustDomain::parse("example.org").unwrap(),
            key_type: KeyType::P256,
            policy: Policy::new("ca-1".into(), secs(60), secs(10), None).unwrap(),
            clock: Arc::new(self.clock.clone()),
            acknowledged: Arc::new(move |prepared| {
                let all = acknowledge.load(Ordering::Relaxed);
                prepared.iter().filter(|(_, revision)| all && *revision > 0).map(|(id, _)| id.clone()).collect()
            }),
        })
    }

    async fn authorities(&self) -> Vec<Authority> {
        let (records, _) = self.store.range(PREFIX).await.unwrap();
        records.iter().map(|record| record::decode(&record.value).unwrap()).collect()
    }

    async fn in_state(&self, state: State) -> Vec<Arc<str>> {
        self.authorities().await.into_iter().filter(|a| a.state == state).map(|a| a.id).collect()
    }
}

#[tokio::test]
async fn the_first_start_can_sign_at_once_and_a_second_changes_nothing() {
    let house = House::new();
    let wake = house.rotator().rotate().await.unwrap();
    assert_eq!(wake, START.plus(secs(30)));
    let authorities = house.authorities().await;
    assert_eq!(authorities.len(), 1);
    let issuer = Issuer::active(&authorities, "ca-1", &*house.keys).await.unwrap().unwrap();
    assert_eq!(issuer.window().not_after, START.plus(secs(60)));
    house.rotator().rotate().await.unwrap();
    assert_eq!(house.authorities().await, authorities);
}

#[tokio::test]
async fn the_loop_rotates_for_an_hour_and_leaves_no_keys_behind() {
    let house = House::new();
    let rotator = Arc::new(house.rotator());
    let stop = CancellationToken::new();
    let running = tokio::spawn({
        let (rotator, stop) = (rotator.clone(), stop.clone());
        async move { rotator.run(stop).await }
    });
    let mut signers = BTreeSet::new();
    while house.clock.now() < START.plus(secs(3600)) {
        // Asleep again: it has done what there was to do.
        let next = loop {
            match house.clock.next_wake() {
                Some(at) if at > house.clock.now() => break at,
                _ => tokio::task::yield_now().await,
            }
        };
        let active = house.in_state(State::Active).await;
        assert_eq!(active.len(), 1);
        assert!(house.keys.load(&active[0]).await.unwrap().is_some());
        signers.extend(active);
        house.clock.set(next);
        tokio::task::yield_now().await;
    }
    assert!(signers.len() > 80, "{} authorities in an hour", signers.len());
    assert!(house.authorities().await.len() <= 3);
    assert!(house.keys.list().await.unwrap().len() <= 3);
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn a_lost_key_is_replaced_at_once() {
    let house = House::new();
    house.rotator().rotate().await.unwrap();
    let lost = house.in_state(State::Active).await.remove(0);
    house.keys.remove(&lost).await.unwrap();
    house.rotator().rotate().await.unwrap();
    let active = house.in_state(State::Active).await;
    assert_eq!(house.in_state(State::Retired).await, std::slice::from_ref(&lost));
    assert!(active.len() == 1 && active[0] != lost);
}

#[tokio::test]
async fn operators_prepare_activate_taint_and_revoke() {
    let house = House::new();
    house.acknowledge.store(false, Ordering::Relaxed);
    let rotator = house.rotator();
    rotator.rotate().await.unwrap();
    let first = house.in_state(State::Active).await.remove(0);
    assert!(matches!(rotator.taint(&first).await, Err(RotateError::Refused(Refusal::Active(_)))));

    let (second, prepared_at) = rotator.prepare().await.unwrap();
    assert_eq!(second.state, State::Prepared);
    let changes = rotator.next_changes().await.unwrap();
    assert_eq!(changes.get(&second.id), Some(&START.plus(secs(50))));
    let (active, activated_at) = rotator.activate(&second.id).await.unwrap();
    assert_eq!((active.id, active.state), (second.id.clone(), State::Active));
    assert!(activated_at > prepared_at);
    assert_eq!(house.in_state(State::Retired).await, std::slice::from_ref(&first));

    let (tainted, _) = rotator.taint(&first).await.unwrap();
    assert!(tainted.tainted);
    let (_, same) = rotator.taint(&first).await.unwrap();
    let (revoked, gone_at) = rotator.revoke(&first).await.unwrap();
    assert_eq!(revoked.id, first);
    assert!(gone_at > same);
    assert_eq!(house.authorities().await.len(), 1);
    rotator.rotate().await.unwrap();
    assert_eq!(house.keys.list().await.unwrap(), [second.id]);
}

#[tokio::test]
async fn keys_are_not_wiped_over_a_store_that_knows_none_of_them() {
    let house = House::new();
    house.rotator().rotate().await.unwrap();
    let key = house.in_state(State::Active).await.remove(0);
    let wrong_store = House { store: Arc::new(MemStore::new()), ..house };
    wrong_store.rotator().rotate().await.unwrap();
    assert!(wrong_store.keys.load(&key).await.unwrap().is_some());
}

#[tokio::test]
async fn a_damaged_record_is_named() {
    let house = House::new();
    house.store.commit(Txn::new().put("authority/x509/x", vec![9])).await.unwrap();
    let error = house.rotator().rotate().await.unwrap_err().to_string();
    assert!(error.starts_with("authority/x509/x: authority record has version 9"), "{error}");
}

/// A store in which somebody else writes just before our first commits.
#[derive(Debug)]
struct Meddled(MemStore, AtomicUsize);

#[async_trait]
impl Store for Meddled {
    async fn range(&self, prefix: &str) -> Result<(Vec<KeyValue>, Revision), StoreError> {
        self.0.range(prefix).await
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, StoreError> {
        let left = self.1.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if left.is_ok() {
            // The same value again: it counts as a change.
            let (records, _) = self.0.range(PREFIX).await?;
            for record in records {
                self.0.commit(Txn::new().put(record.key, record.value)).await?;
            }
        }
        self.0.commit(txn).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        self.0.watch(prefix, after).await
    }
}

#[tokio::test]
async fn on_a_conflict_it_plans_anew_and_keeps_no_key_of_the_vain_attempt() {
    let meddled = Arc::new(Meddled(MemStore::new(), AtomicUsize::new(0)));
    let house = House::on(meddled.clone());
    house.rotator().rotate().await.unwrap();
    meddled.1.store(3, Ordering::Relaxed);
    house.rotator().prepare().await.unwrap();
    assert_eq!(house.authorities().await.len(), 2);
    assert_eq!(house.keys.list().await.unwrap().len(), 2);
    meddled.1.store(1000, Ordering::Relaxed);
    house.clock.advance(secs(100));
    assert!(matches!(house.rotator().rotate().await, Err(RotateError::Contended)));
}
