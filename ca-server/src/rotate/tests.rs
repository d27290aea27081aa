//! The loop, on a store in memory and a clock turned by hand.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use spiffe::time::Fake;

use super::*;
use crate::authority::issuer::Issuer;
use crate::authority::keys::Memory;
use crate::authority::token_issuer::{JwtIssuer, WitIssuer};
use crate::store::mem::MemStore;
use crate::store::{KeyValue, Watch};

const START: Timestamp = Timestamp::from_unix(1_800_000_000);

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn rule(kind: Kind) -> Rule {
    Rule { key: KeySpec::P256, policy: Policy::new(kind, "ca-1".into(), secs(60), secs(10)).unwrap() }
}

struct House {
    /// Of which kinds it has authorities: most tests tell the story of one.
    kinds: Vec<Kind>,
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
        Self { kinds: vec![Kind::X509], store, keys: Arc::default(), clock: Fake::new(START), acknowledge }
    }

    fn rotator(&self) -> Rotator {
        let acknowledge = self.acknowledge.clone();
        Rotator::new(Parts {
            store: self.store.clone(),
            keys: self.keys.clone(),
            upstream: None,
            trust_domain: TrustDomain::parse("example.org").unwrap(),
            rules: self.kinds.iter().copied().map(rule).collect(),
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
    let key = house.keys.load(&authorities[0].id).await.unwrap().unwrap();
    let issuer = Issuer::new(authorities[0].clone(), key).unwrap();
    assert_eq!(issuer.window().not_after, START.plus(secs(60)));
    house.rotator().rotate().await.unwrap();
    assert_eq!(house.authorities().await, authorities);
}

#[tokio::test]
async fn an_installation_of_the_first_release_gets_its_keys_for_tokens_in_one_commit() {
    let mut house = House::new();
    house.rotator().rotate().await.unwrap();
    let (before, old) = (house.authorities().await, house.store.range("").await.unwrap().1);
    house.kinds = Kind::ALL.to_vec();
    house.rotator().rotate().await.unwrap();
    let (authorities, revision) = (house.authorities().await, house.store.range("").await.unwrap().1);
    assert_eq!(revision, old + 1);
    assert!(authorities.len() == 3 && authorities.contains(&before[0]), "what was there stays as it is");
    for authority in authorities {
        assert_eq!((authority.state, authority.lifetime.not_after), (State::Active, START.plus(secs(60))));
        let key = house.keys.load(&authority.id).await.unwrap().unwrap();
        match authority.kind() {
            Kind::X509 => drop(Issuer::new(authority, key).unwrap()),
            Kind::Jwt => drop(JwtIssuer::new(authority, &key).unwrap()),
            Kind::Wit => drop(WitIssuer::new(authority, &key).unwrap()),
        }
    }
}

#[tokio::test]
async fn a_key_for_tokens_is_never_made_of_a_kind_that_signs_none() {
    let house = House::new();
    let rotator = house.rotator();
    let mut parts = rotator.parts;
    parts.rules = vec![rule(Kind::X509), Rule { key: KeySpec::Ed25519, ..rule(Kind::Jwt) }];
    let refused = Rotator::new(parts).rotate().await.unwrap_err();
    assert!(matches!(refused, RotateError::NoTokenKey(Kind::Jwt)), "{refused}");
    assert!(house.keys.list().await.unwrap().is_empty(), "and no key stays behind");
}

#[tokio::test]
async fn all_kinds_rotate_for_an_hour_each_by_itself() {
    let mut house = House::new();
    house.kinds = Kind::ALL.to_vec();
    let rotator = house.rotator();
    while house.clock.now() < START.plus(secs(3600)) {
        let wake = rotator.rotate().await.unwrap();
        let authorities = house.authorities().await;
        for kind in Kind::ALL {
            let active = authorities.iter().filter(|held| held.kind() == kind && held.state == State::Active);
            assert_eq!(active.count(), 1, "{kind}");
        }
        assert!(authorities.len() <= 9 && house.keys.list().await.unwrap().len() <= 9);
        house.clock.set(wake);
    }
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

    let (second, prepared_at) = rotator.prepare(Kind::X509).await.unwrap();
    assert_eq!(second.state, State::Prepared);
    let changes = rotator.next_changes().await.unwrap();
    assert_eq!(changes.get(&second.id), Some(&START.plus(secs(50))));
    let (active, activated_at) = rotator.activate(&second.id, false).await.unwrap();
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
    house.rotator().prepare(Kind::X509).await.unwrap();
    assert_eq!(house.authorities().await.len(), 2);
    assert_eq!(house.keys.list().await.unwrap().len(), 2);
    meddled.1.store(1000, Ordering::Relaxed);
    house.clock.advance(secs(100));
    assert!(matches!(house.rotator().rotate().await, Err(RotateError::Contended)));
}
