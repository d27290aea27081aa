//! The attestor and its loops, against an API server that behaves and against one that does not.

use futures_util::FutureExt as _;
use serde_json::{Value, json};
use spiffe::time::{Fake, Timestamp};
use tokio_util::sync::DropGuard;

use super::object::tests::{NODE, document, id};
use super::test_api::{Api, Mood};
use super::*;

pub(super) const POD: &str = "2c48913c-b29f-11e7-9350-020968147796";
pub(super) const OTHER: &str = "a2830d0d-b0f0-4ff0-81b5-0ee4e299cf80";
const WAIT: Duration = Duration::from_secs(5);

/// A node's attestor and the API server that it asks.
pub(super) struct Node {
    pub(super) api: Api,
    pub(super) clock: Fake,
    pub(super) attestor: Arc<K8s>,
    pub(super) known: KnownPods,
    pub(super) metrics: Metrics,
    _stop: DropGuard,
}

impl Node {
    fn new(api: Api) -> Self {
        let source = Source::Watch(api.server());
        Self::of(api, source)
    }

    pub(super) fn of(api: Api, source: Source) -> Self {
        let (clock, metrics) = (Fake::new(Timestamp::from_unix(1_800_000_000)), Metrics::default());
        let parts = Parts {
            source,
            node: NODE.into(),
            wait: WAIT,
            own_cgroup: Vec::new(),
            clock: Arc::new(clock.clone()),
            metrics: metrics.clone(),
        };
        let (attestor, known, loops) = new(parts);
        let stop = CancellationToken::new();
        tokio::spawn(loops.run(stop.clone()));
        Self { api, clock, attestor: Arc::new(attestor), known, metrics, _stop: stop.drop_guard() }
    }

    /// Attests a process in `container` of `pod`, in a task of its own.
    pub(super) fn attest(&self, pod: &str, container: char) -> tokio::task::JoinHandle<Result<Vec<String>, String>> {
        let (attestor, file) = (Arc::clone(&self.attestor), format!("0::/kubepods/pod{pod}/{}\n", id(container)));
        tokio::spawn(async move {
            let found = attestor.of_cgroup(file.as_bytes()).await.map_err(|error| error.to_string())?;
            Ok(found.iter().map(ToString::to_string).collect())
        })
    }

    pub(super) async fn found(&self, pod: &str, container: char) -> Result<Vec<String>, String> {
        soon(self.attest(pod, container)).await.unwrap()
    }

    pub(super) async fn until(&self, what: impl Fn(&Pods) -> bool) {
        let mut pods = self.known.pods.clone();
        soon(pods.wait_for(|pods| what(pods))).await.unwrap();
    }

    /// Lets time pass until `what` is so.
    pub(super) async fn tick_until(&self, what: impl Fn() -> bool) {
        soon(async {
            while !what() {
                self.clock.advance(Duration::from_secs(1));
                spiffe::time::System.sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    }
}

#[expect(clippy::disallowed_methods, reason = "a test that hangs should say so")]
pub(super) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("it takes too long")
}

/// A pod that nothing owns.
pub(super) fn bare(uid: &str, container: char) -> Value {
    let mut pod = document(uid, &id(container));
    pod["metadata"]["ownerReferences"] = json!([]);
    pod
}

pub(super) fn has(found: &[String], selector: &str) -> bool {
    found.iter().any(|found| found == selector)
}

#[tokio::test]
async fn a_process_is_known_by_its_container() {
    let api = Api::default();
    api.put(bare(POD, 'a'));
    let node = Node::new(api);
    let found = node.found(POD, 'a').await.unwrap();
    for selector in ["k8s:ns:shop", "k8s:sa:web", "k8s:container-name:web", "k8s:pod-label:app:web"] {
        assert!(has(&found, selector), "{found:?}");
    }
    assert_eq!(node.attestor.of_cgroup(b"0::/user.slice\n").await.unwrap(), [], "at once: it is in no container");
    assert_eq!((node.metrics.k8s_pods.get(), node.metrics.k8s_watching.get()), (1, 1));
    assert_eq!(node.metrics.k8s_told.get(), 1_800_000_000);
    assert_eq!(node.metrics.k8s_misplaced.get(), 0);
    let elsewhere = format!("0::/x/kubepods/pod{POD}/{}\n", id('a'));
    assert_eq!(node.attestor.of_cgroup(elsewhere.as_bytes()).await.unwrap(), []);
    assert_eq!(node.metrics.k8s_misplaced.get(), 1, "somebody may want to know why it has no selectors");
}

#[tokio::test]
async fn who_is_seen_before_his_pod_waits_for_it() {
    let node = Node::new(Api::default());
    node.until(Pods::is_told).await;
    let early = node.attest(POD, 'a');
    node.until(|pods| pods.count() == 0).await;
    let mut starting = bare(POD, 'a');
    starting["status"] = json!({});
    node.api.put(starting);
    node.until(|pods| pods.count() == 1).await;
    assert!(!early.is_finished(), "its container is not known");
    node.api.put(bare(POD, 'a'));
    assert!(has(&soon(early).await.unwrap().unwrap(), "k8s:ns:shop"));
}

#[tokio::test]
async fn waiting_has_an_end_that_says_why() {
    let node = Node::new(Api::default());
    node.until(Pods::is_told).await;
    let waiting = node.attest(POD, 'a');
    node.tick_until(|| waiting.is_finished()).await;
    let error = waiting.await.unwrap().unwrap_err();
    assert!(error.contains(POD) && error.contains("its pod has no such running container"), "{error}");
    let api = Api::default();
    api.become_now(Mood::Hanging);
    let node = Node::new(api);
    let waiting = node.attest(POD, 'a');
    node.tick_until(|| waiting.is_finished()).await;
    let error = waiting.await.unwrap().unwrap_err();
    assert!(error.contains("could not be asked for pods yet"), "{error}");
}

#[tokio::test]
async fn a_lost_api_server_changes_nothing() {
    let api = Api::default();
    api.put(bare(POD, 'a'));
    let node = Node::new(api);
    let before = node.found(POD, 'a').await.unwrap();
    for mood in [Mood::Refusing(403), Mood::Refusing(500), Mood::Flapping, Mood::Hanging] {
        let asked = node.api.asked("watch=true");
        node.api.become_now(mood);
        node.tick_until(|| node.api.asked("watch=true") > asked).await;
        assert_eq!(node.found(POD, 'a').await.as_ref(), Ok(&before), "{mood:?}");
    }
}

#[tokio::test]
async fn an_api_server_that_comes_back_is_listened_to() {
    let api = Api::default();
    api.put(bare(POD, 'a'));
    let node = Node::new(api);
    node.found(POD, 'a').await.unwrap();
    node.api.become_now(Mood::Refusing(503));
    node.tick_until(|| node.metrics.k8s_watching.get() == 0).await;
    node.api.state().mood = Mood::Well;
    node.tick_until(|| node.metrics.k8s_watching.get() == 1).await;
    node.api.put(bare(OTHER, 'b'));
    node.until(|pods| pods.count() == 2).await;
    assert_eq!(node.api.asked("resourceVersion=0&"), 1, "it goes on where it ended: {:?}", node.api.state().asked);
}

#[tokio::test]
async fn what_the_api_server_has_forgotten_is_listed_anew_in_one_piece() {
    let api = Api::default();
    api.put(bare(POD, 'a'));
    api.put(bare(OTHER, 'b'));
    let node = Node::new(api);
    let kept = node.found(POD, 'a').await.unwrap();
    let gone = node.attestor.presence(&Selectors::parse(node.found(OTHER, 'b').await.unwrap()).unwrap()).unwrap();
    node.until(|pods| pods.count() == 2).await;
    node.api.lose_history(OTHER);
    node.tick_until(|| node.api.asked("/api/v1/pods") >= 4).await;
    node.until(|pods| pods.count() == 1).await;
    assert_eq!(node.found(POD, 'a').await, Ok(kept));
    assert_eq!(soon(gone.ended()).await, Departure::Gone);
    let state = node.api.state();
    let lists: Vec<_> = state.asked.iter().filter(|path| !path.contains("watch=true")).collect();
    assert!(lists[0].contains("resourceVersion=0") && !lists[1].contains("resourceVersion="), "{lists:?}");
}

#[tokio::test]
async fn a_watch_that_ends_at_once_is_not_opened_over_and_over() {
    let api = Api::default();
    api.become_now(Mood::Flapping);
    let node = Node::new(api);
    node.until(Pods::is_told).await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(node.api.asked("watch=true") <= 1, "no time has passed");
    let began = node.clock.now();
    node.tick_until(|| node.api.asked("watch=true") >= 10).await;
    // The longest wait is half a minute, of which chance takes up to a half.
    assert!(node.clock.now().since(began) >= Duration::from_secs(30));
}

#[tokio::test]
async fn the_end_of_a_pod_is_told_to_whoever_rests_on_it() {
    let api = Api::default();
    api.put(bare(POD, 'a'));
    let node = Node::new(api);
    let found = node.found(POD, 'a').await.unwrap();
    let presence = node.attestor.presence(&Selectors::parse(found).unwrap()).unwrap();
    assert_eq!(presence.uid(), POD);
    let ended = tokio::spawn(async move { presence.ended().await });
    node.api.put(bare(POD, 'b'));
    node.found(POD, 'b').await.unwrap();
    assert!(!ended.is_finished(), "another container is no end");
    // What ends all of its containers is that of each process in it, too.
    let mut over = bare(POD, 'b');
    over["status"]["phase"] = json!("Succeeded");
    node.api.put(over);
    node.until(|pods| pods.by_uid(POD).is_some_and(|pod| pod.life == object::Life::Ended)).await;
    assert!(!ended.is_finished());
    node.api.delete(POD);
    assert_eq!(soon(ended).await.unwrap(), Departure::Gone);
    assert!(node.attestor.presence(&Selectors::parse(["unix:uid:0"]).unwrap()).is_none());
}

#[tokio::test]
async fn two_pods_with_one_container_have_it_neither_of_them() {
    let api = Api::default();
    api.put(bare(POD, 'a'));
    api.put(bare(OTHER, 'a'));
    let node = Node::new(api);
    node.until(|pods| pods.count() == 2).await;
    for pod in [POD, OTHER] {
        let error = node.found(pod, 'a').await.unwrap_err();
        assert!(error.contains("all claim the container"), "{error}");
    }
    // A cgroup that names another pod than the one that has the container.
    node.api.delete(OTHER);
    node.until(|pods| pods.count() == 1).await;
    let error = node.found(OTHER, 'a').await.unwrap_err();
    assert!(error.contains("by its status") && error.contains("by its cgroup"), "{error}");
}

const REPLICA_SET: &str = "/apis/apps/v1/namespaces/shop/replicasets/web-1";

fn replica_set(uid: &str) -> Value {
    json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": {
        "name": "web-1", "namespace": "shop", "uid": uid, "ownerReferences": [
            {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "d", "controller": true}]}})
}

#[tokio::test]
async fn the_owner_of_the_owner_is_looked_up_once_for_all_pods() {
    let api = Api::default();
    api.state().owners.insert(REPLICA_SET.into(), replica_set("rs"));
    api.put(document(POD, &id('a')));
    api.put(document(OTHER, &id('b')));
    let node = Node::new(api);
    for (pod, container) in [(POD, 'a'), (OTHER, 'b')] {
        let found = node.found(pod, container).await.unwrap();
        for selector in ["k8s:owner:ReplicaSet:web-1", "k8s:owner:Deployment:web", "k8s:owner-uid:Deployment:d"] {
            assert!(has(&found, selector), "{found:?}");
        }
    }
    assert_eq!(node.api.asked(REPLICA_SET), 1);
}

#[tokio::test]
async fn an_owner_that_is_gone_or_another_one_makes_no_selectors() {
    for owner in [None, Some(replica_set("created-again"))] {
        let api = Api::default();
        api.state().owners.extend(owner.map(|owner| (REPLICA_SET.to_owned(), owner)));
        api.put(document(POD, &id('a')));
        let found = Node::new(api).found(POD, 'a').await.unwrap();
        assert!(has(&found, "k8s:owner:ReplicaSet:web-1") && !has(&found, "k8s:owner:Deployment:web"), "{found:?}");
    }
}

#[tokio::test]
async fn what_may_not_be_looked_up_is_left_out_until_it_may() {
    let api = Api::default();
    api.put(document(POD, &id('a')));
    let node = Node::new(api);
    // The watch is open; from now on rights are taken away.
    node.until(Pods::is_told).await;
    node.api.state().mood = Mood::Refusing(403);
    node.api.put(document(OTHER, &id('b')));
    let mut other = document(OTHER, &id('b'));
    other["metadata"]["ownerReferences"][0]["uid"] = json!("rs-2");
    other["metadata"]["ownerReferences"][0]["name"] = json!("web-2");
    node.api.put(other);
    let found = node.found(OTHER, 'b').await.unwrap();
    assert!(!found.iter().any(|found| found.starts_with("k8s:owner:Deployment")), "{found:?}");
    let mut owner = replica_set("rs-2");
    owner["metadata"]["name"] = json!("web-2");
    node.api.state().owners.insert("/apis/apps/v1/namespaces/shop/replicasets/web-2".into(), owner);
    node.api.state().mood = Mood::Well;
    let settled = |pods: &Pods| {
        pods.by_uid(OTHER)
            .and_then(|pod| pods.of_pod(pod))
            .is_some_and(|found| found.iter().any(|found| found.as_str() == "k8s:owner:Deployment:web"))
    };
    let pods = node.known.pods.clone();
    node.tick_until(|| settled(&pods.borrow())).await;
}

#[tokio::test]
async fn a_broker_finds_a_pod_as_a_whole() {
    let api = Api::default();
    api.put(bare(POD, 'a'));
    let node = Node::new(api);
    let (presence, found) = soon(node.known.pod(|pod| &*pod.namespace == "shop")).await.unwrap();
    assert_eq!(presence.uid(), POD);
    let found: Vec<_> = found.iter().map(ToString::to_string).collect();
    assert!(has(&found, "k8s:sa:web") && !found.iter().any(|found| found.starts_with("k8s:container")), "{found:?}");
    let known = node.known.clone();
    let missing = tokio::spawn(async move { known.pod(|pod| &*pod.namespace == "mail").await.is_none() });
    node.tick_until(|| missing.is_finished()).await;
    assert!(missing.await.unwrap());
}

#[tokio::test]
async fn a_pod_that_cannot_be_read_and_one_that_is_too_large_harm_no_other() {
    let api = Api::default();
    let mut odd = bare(OTHER, 'b');
    odd["spec"]["containers"] = json!("secret");
    api.put(odd.clone());
    let mut fat = bare("1", 'c');
    fat["spec"]["containers"][0]["env"] = json!([{"name": "X", "value": "x".repeat(split::MOST_BYTES)}]);
    api.put(fat);
    api.put(bare(POD, 'a'));
    let node = Node::new(api);
    node.found(POD, 'a').await.unwrap();
    assert_eq!(node.known.pods.borrow().count(), 1);
    node.api.put(odd);
    node.api.put(bare(OTHER, 'b'));
    node.found(OTHER, 'b').await.unwrap();
    assert_eq!(node.metrics.k8s_watching.get(), 1, "the watch is still open");
}

#[tokio::test]
async fn after_an_hour_and_after_a_watch_that_brought_nothing_everything_is_listed_anew() {
    let api = Api::default();
    let node = Node::new(api);
    let lists = || node.api.asked("/api/v1/pods") - node.api.asked("watch=true");
    let watching = || node.metrics.k8s_watching.get() == 1;
    node.tick_until(watching).await;
    assert_eq!(lists(), 1);
    for (minutes, is_heard, expected) in [(5, true, 1), (5, false, 2), (61, true, 3)] {
        if is_heard {
            node.api.put(bare(POD, 'a'));
            node.until(|pods| pods.count() == 1).await;
            node.api.delete(POD);
            node.until(|pods| pods.count() == 0).await;
        }
        node.clock.advance(Duration::from_secs(60 * minutes));
        let watches = node.api.asked("watch=true");
        node.api.become_now(Mood::Well);
        node.tick_until(|| node.api.asked("watch=true") > watches && watching()).await;
        assert_eq!(lists(), expected, "{minutes} {is_heard}: {:?}", node.api.state().asked);
    }
}

#[tokio::test]
async fn a_label_that_is_taken_away_ends_what_rests_on_it() {
    let api = Api::default();
    api.put(bare(POD, 'a'));
    let node = Node::new(api);
    let found = Selectors::parse(node.found(POD, 'a').await.unwrap()).unwrap();
    let presence = node.attestor.presence(&found).unwrap();
    let (whole, _) = soon(node.known.pod(|pod| *pod.uid == *POD)).await.unwrap();
    let mut quarantined = bare(POD, 'a');
    quarantined["metadata"]["labels"] = json!({"empty": ""});
    node.api.put(quarantined);
    assert_eq!(soon(presence.ended()).await, Departure::Changed);
    assert_eq!(soon(whole.ended()).await, Departure::Changed);
    let again = Selectors::parse(node.found(POD, 'a').await.unwrap()).unwrap();
    let presence = node.attestor.presence(&again).unwrap();
    assert!(presence.ended().now_or_never().is_none(), "who asks again is told what is so now");
}

#[tokio::test]
async fn a_pod_that_has_ended_is_named_by_no_broker() {
    let api = Api::default();
    api.put(bare(POD, 'a'));
    let node = Node::new(api);
    let (presence, _) = soon(node.known.pod(|pod| *pod.uid == *POD)).await.unwrap();
    let mut over = bare(POD, 'a');
    over["status"]["phase"] = json!("Failed");
    node.api.put(over);
    assert_eq!(soon(presence.ended()).await, Departure::Gone);
    let known = node.known.clone();
    let missing = tokio::spawn(async move { known.pod(|pod| *pod.uid == *POD).await.is_none() });
    node.tick_until(|| missing.is_finished()).await;
    assert!(missing.await.unwrap());

    // Deleted, and given half a minute.
    let mut deleted = bare(OTHER, 'b');
    deleted["metadata"]["deletionTimestamp"] = json!("2100-01-01T00:00:30Z");
    node.api.put(deleted);
    let (presence, _) = soon(node.known.pod(|pod| *pod.uid == *OTHER)).await.unwrap();
    assert!(presence.ended().now_or_never().is_none());
    node.clock.set(Timestamp::from_unix(4_102_444_830));
    assert_eq!(soon(presence.ended()).await, Departure::Gone);
}

#[tokio::test]
async fn slow_owners_hold_up_nobody_for_long() {
    let node = Node::new(Api::default());
    node.until(Pods::is_told).await;
    // The watch is open; whatever else is asked is never answered.
    node.api.state().mood = Mood::Hanging;
    // By eight at once and three seconds each it would take too long.
    let count = 100;
    for n in 0..count {
        let mut pod = document(&n.to_string(), &format!("{n:064x}"));
        pod["metadata"]["ownerReferences"][0]["uid"] = json!(format!("rs-{n}"));
        node.api.put(pod);
    }
    node.until(|pods| pods.count() == count).await;
    let pods = node.known.pods.clone();
    let are_known = || pods.borrow().all().all(|pod| pods.borrow().of_pod(pod).is_some());
    assert!(!are_known());
    node.tick_until(are_known).await;
}
