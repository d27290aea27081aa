use spiffe::id::SpiffeId;
use spiffe::proto::v1;
use spiffe::rule::Rule;
use spiffe::time::{Fake, Timestamp};

use super::*;
use crate::authority::keys::Memory;
use crate::store::Txn;
use crate::store::mem::MemStore;
use crate::view::keys;
use crate::view::pods::{Labels, Pod};
use crate::view::record::rule_to_record;

struct Followed {
    store: Arc<MemStore>,
    views: Arc<Views>,
    tell: mpsc::Sender<PodEvent>,
}

fn agent() -> SpiffeId {
    SpiffeId::parse("spiffe://example.org/chancery/agent/k8s_psat/prod/n1").unwrap()
}

fn pod(uid: &str, service_account: &str) -> Pod {
    Pod {
        cluster: "prod".into(),
        uid: uid.into(),
        namespace: "shop".into(),
        name: uid.into(),
        service_account: service_account.into(),
        node_name: "n1".into(),
        agent: agent(),
        labels: Labels::default(),
        namespace_labels: Labels::default(),
    }
}

fn rule(id: &str) -> Txn {
    let wire = v1::Rule { id: id.into(), spiffe_id: "spiffe://example.org/{{sa}}".into(), ..v1::Rule::default() };
    let rule = Rule::try_from(wire).unwrap();
    Txn::new().put(keys::rule(&rule.id), rule_to_record(&rule))
}

impl Followed {
    async fn start() -> Self {
        let store = Arc::new(MemStore::new());
        let views = Views::new(View::empty(TrustDomain::parse("example.org").unwrap()));
        let signers = Signers { keys: Arc::new(Memory::default()), owner: "a".into() };
        let clock = Arc::new(Fake::new(Timestamp::from_unix(1_800_000_000)));
        let (tell, told) = mpsc::channel(64);
        tokio::spawn(follow(store.clone(), Arc::clone(&views), signers, clock, Some(told)));
        Self { store, views, tell }
    }
}

#[tokio::test]
async fn a_view_with_other_pods_reaches_who_listens_at_the_same_revision() {
    let house = Followed::start().await;
    let revision = house.store.commit(rule("pods")).await.unwrap();
    house.views.reached(revision).await;
    let (_, mut listener) = house.views.listen();
    house.tell.send(PodEvent::Put(pod("1", "web"))).await.unwrap();
    let first = listener.next().await.unwrap();
    assert_eq!((first.view.revision(), first.view.derived_count()), (revision, 1));
    assert!(matches!(first.changes.as_deref(), Some([Change::Entry { before: None, after: Some(_) }])));
    house.tell.send(PodEvent::Gone { cluster: "prod".into(), uid: "1".into() }).await.unwrap();
    let second = listener.next().await.unwrap();
    assert_eq!((second.view.revision(), second.view.entry_count()), (revision, 0));
    // Who begins to listen now is not told again of what he sees.
    let (view, mut late) = house.views.listen();
    assert_eq!(view.pods().count(), 0);
    house.tell.send(PodEvent::Put(pod("2", "db"))).await.unwrap();
    assert_eq!(late.next().await.unwrap().view.entry_count(), 1);
}

#[tokio::test]
async fn what_has_queued_up_is_one_view_and_what_concerns_nobody_is_told_to_nobody() {
    let house = Followed::start().await;
    let revision = house.store.commit(rule("pods")).await.unwrap();
    house.views.reached(revision).await;
    let (_, mut listener) = house.views.listen();
    // The test's one thread: the follower sees them together.
    for (uid, account) in [("1", "web"), ("2", "web"), ("3", "db")] {
        house.tell.try_send(PodEvent::Put(pod(uid, account))).unwrap();
    }
    let published = listener.next().await.unwrap();
    assert_eq!((published.view.pods().count(), published.changes.unwrap().len()), (3, 2));
    house.tell.try_send(PodEvent::Gone { cluster: "prod".into(), uid: "2".into() }).unwrap();
    while house.views.load().pods().count() == 3 {
        tokio::task::yield_now().await;
    }
    let revision = house.store.commit(rule("more")).await.unwrap();
    let next = listener.next().await.unwrap();
    assert_eq!((next.view.revision(), next.view.pods().count()), (revision, 2), "the View between was no news");
}

#[tokio::test]
async fn pods_that_come_one_by_one_are_one_view_but_for_the_first() {
    let house = Followed::start().await;
    let revision = house.store.commit(rule("pods")).await.unwrap();
    house.views.reached(revision).await;
    let (_, mut listener) = house.views.listen();
    house.tell.send(PodEvent::Put(pod("0", "a0"))).await.unwrap();
    let first = listener.next().await.unwrap();
    for uid in 1..=20 {
        house.tell.send(PodEvent::Put(pod(&uid.to_string(), &format!("a{uid}")))).await.unwrap();
        // The follower has its turn after each.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    }
    let second = listener.next().await.unwrap();
    assert_eq!((first.view.pods().count(), second.view.pods().count()), (1, 21));
    // A commit waits for nothing.
    let revision = house.store.commit(rule("more")).await.unwrap();
    assert_eq!(listener.next().await.unwrap().view.revision(), revision);
}

#[tokio::test]
async fn a_cluster_that_has_told_is_news_also_without_pods() {
    let store = Arc::new(MemStore::new());
    let view = View::empty(TrustDomain::parse("example.org").unwrap()).awaiting(["prod".into()]);
    let views = Views::new(view);
    let revision = store.commit(rule("pods")).await.unwrap();
    let signers = Signers { keys: Arc::new(Memory::default()), owner: "a".into() };
    let (tell, told) = mpsc::channel(1);
    let clock = Arc::new(Fake::new(Timestamp::from_unix(1_800_000_000)));
    tokio::spawn(follow(store, Arc::clone(&views), signers, clock, Some(told)));
    let view = views.reached(revision).await;
    assert_eq!(view.awaited_of(&agent()).map(|name| &**name), Some("prod"));
    let (_, mut listener) = views.listen();
    tell.send(PodEvent::All { cluster: "prod".into(), pods: vec![] }).await.unwrap();
    assert_eq!(listener.next().await.unwrap().view.awaited_of(&agent()), None);
}

#[tokio::test]
async fn others_run_while_a_rule_is_held_against_every_pod() {
    let house = Followed::start().await;
    let pods = (0..10_000).map(|uid| pod(&uid.to_string(), "web")).collect();
    house.tell.send(PodEvent::All { cluster: "prod".into(), pods }).await.unwrap();
    while house.views.load().pods().count() == 0 {
        tokio::task::yield_now().await;
    }
    let revision = house.store.commit(rule("pods")).await.unwrap();
    // The test's one thread: each turn of this is one in which the follower has let go.
    let mut turns = 0;
    while house.views.load().revision() < revision {
        tokio::task::yield_now().await;
        turns += 1;
    }
    assert!(turns >= 10, "{turns} turns");
    assert_eq!(house.views.load().derived_count(), 1);
}

/// A store whose watch has always fallen behind, and whose range is slow.
#[derive(Debug)]
struct Forgetful(MemStore);

#[async_trait::async_trait]
impl Store for Forgetful {
    async fn range(&self, prefix: &str) -> Result<(Vec<crate::store::KeyValue>, Revision), StoreError> {
        self.0.range(prefix).await
    }
    async fn commit(&self, txn: Txn) -> Result<Revision, StoreError> {
        self.0.commit(txn).await
    }
    async fn watch(&self, _: &str, _: Revision) -> Result<crate::store::Watch, StoreError> {
        Err(StoreError::Unavailable("away".into()))
    }
}

#[tokio::test]
async fn pods_go_on_while_the_store_is_away_and_stay_over_a_gap() {
    let store = Arc::new(Forgetful(MemStore::new()));
    let revision = store.commit(rule("pods")).await.unwrap();
    let (records, _) = store.range("").await.unwrap();
    let view = View::load(TrustDomain::parse("example.org").unwrap(), records, revision).unwrap();
    let views = Views::new(view);
    let signers = Signers { keys: Arc::new(Memory::default()), owner: "a".into() };
    let clock = Arc::new(Fake::new(Timestamp::from_unix(1_800_000_000)));
    let (tell, told) = mpsc::channel(64);
    let (_, mut listener) = views.listen();
    tokio::spawn(follow(store, Arc::clone(&views), signers, clock.clone(), Some(told)));
    tell.send(PodEvent::Put(pod("1", "web"))).await.unwrap();
    let published = listener.next().await.unwrap();
    assert_eq!((published.view.derived_count(), published.changes.is_some()), (1, true), "nobody's clock has moved");
    clock.advance(Duration::from_secs(10));
    let published = listener.next().await.unwrap();
    assert_eq!((published.view.derived_count(), published.changes.is_none()), (1, true), "read whole again");
}
