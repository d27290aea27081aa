//! The kubelet that is asked: one that behaves, and one that does not.

use serde_json::{Value, json};

use super::super::object::tests::{NODE, document, id};
use super::super::pods::Pods;
use super::super::test_api::{Api, Mood};
use super::super::tests::{Node, OTHER, POD, bare, has, soon};
use super::super::{Departure, Source, WorkloadAttestor as _};
use super::*;

/// Seldom enough for a test to notice who is asked in between.
const EVERY: Duration = Duration::from_secs(60);

fn node(api: &Api) -> Node {
    let source = Source::Kubelet { kubelet: api.server(), every: EVERY, owners: None };
    Node::of(api.clone(), source)
}

/// A pod that the kubelet has from a manifest.
fn fixed(uid: &str, container: char) -> Value {
    let mut pod = bare(uid, container);
    pod["metadata"]["annotations"] = json!({"kubernetes.io/config.source": "file"});
    pod
}

fn list(pods: &[Value]) -> List {
    let mut list = List::default();
    for pod in pods {
        list.take(serde_json::from_value(pod.clone()).unwrap(), NODE);
    }
    list
}

#[test]
fn a_list_is_believed_if_it_can_be_all_that_there_is() {
    let mut elsewhere = bare(OTHER, 'b');
    elsewhere["spec"]["nodeName"] = json!("node-b");
    let (here, fixed) = (bare(POD, 'a'), fixed("1", 'c'));
    for had_others in [false, true] {
        let both = list(&[here.clone(), elsewhere.clone(), fixed.clone()]);
        both.verdict(had_others).unwrap();
        assert_eq!((both.pods.len(), both.elsewhere), (2, 1), "of this node alone");
        let error = list(&[elsewhere.clone()]).verdict(had_others).unwrap_err().to_string();
        assert!(error.contains("kubelet of node \"node-b\": set address"), "{error}");
    }
    list(&[]).verdict(false).unwrap();
    list(std::slice::from_ref(&fixed)).verdict(false).unwrap();
    for young in [list(&[]), list(&[fixed])] {
        let error = young.verdict(true).unwrap_err().to_string();
        assert!(error.contains("has just started"), "{error}");
    }
}

#[tokio::test]
async fn a_process_is_known_by_what_the_kubelet_says() {
    let api = Api::default();
    api.put(document(POD, &id('a')));
    api.put(fixed("1", 'c'));
    let node = node(&api);
    let found = node.found(POD, 'a').await.unwrap();
    for selector in ["k8s:ns:shop", "k8s:pod-label:app:web", "k8s:owner:ReplicaSet:web-1", "k8s:container-name:web"] {
        assert!(has(&found, selector), "{found:?}");
    }
    assert!(!found.iter().any(|found| found.starts_with("k8s:owner:Deployment")), "nobody knows: {found:?}");
    assert_eq!((node.metrics.k8s_watching.get(), node.metrics.k8s_told.get()), (1, 1_800_000_000));
    assert_eq!(api.asked("/api"), 0, "no API server is asked for pods");
}

#[tokio::test]
async fn what_owns_an_owner_is_asked_of_the_api_server_if_there_is_one() {
    let api = Api::default();
    api.put(document(POD, &id('a')));
    let owner = json!({"metadata": {"name": "web-1", "namespace": "shop", "uid": "rs", "ownerReferences": [
        {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "d", "controller": true}]}});
    api.state().owners.insert("/apis/apps/v1/namespaces/shop/replicasets/web-1".into(), owner);
    let source = Source::Kubelet { kubelet: api.server(), every: EVERY, owners: Some(api.server()) };
    let found = Node::of(api, source).found(POD, 'a').await.unwrap();
    assert!(has(&found, "k8s:owner:Deployment:web"), "{found:?}");
}

#[tokio::test]
async fn whoever_waits_has_the_kubelet_asked_once_for_all_of_them() {
    let api = Api::default();
    let node = node(&api);
    node.until(Pods::is_told).await;
    let (looks, began) = (api.asked("/pods"), node.clock.now());
    assert_eq!(looks, 1);
    let waiting: Vec<_> = (0..50).map(|_| node.attest(POD, 'a')).collect();
    node.tick_until(|| api.asked("/pods") > looks + 1).await;
    api.put(bare(POD, 'a'));
    node.tick_until(|| waiting.iter().all(tokio::task::JoinHandle::is_finished)).await;
    for found in waiting {
        assert!(has(&found.await.unwrap().unwrap(), "k8s:ns:shop"));
    }
    let passed = node.clock.now().since(began);
    assert!(passed < EVERY, "{passed:?}");
    let most = usize::try_from(passed.as_secs()).unwrap();
    assert!(api.asked("/pods") <= looks + most, "more than once a second: {} in {passed:?}", api.asked("/pods"));
    // Nobody waits any more; who is known has nobody asked.
    node.found(POD, 'a').await.unwrap();
    let looks = api.asked("/pods");
    node.clock.advance(EVERY - Duration::from_secs(5));
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(api.asked("/pods"), looks);
    node.tick_until(|| api.asked("/pods") > looks).await;
}

#[tokio::test]
async fn a_kubelet_that_is_lost_or_talks_nonsense_changes_nothing() {
    let api = Api::default();
    api.put(bare(POD, 'a'));
    let node = node(&api);
    let before = node.found(POD, 'a').await.unwrap();
    let presence = node.attestor.presence(&spiffe::selector::Selectors::parse(&before).unwrap()).unwrap();
    for mood in [
        Mood::Refusing(401),
        Mood::Refusing(403),
        Mood::Refusing(302),
        Mood::Refusing(500),
        Mood::Saying(""),
        Mood::Saying("<html>"),
        Mood::Saying("{\"kind\":\"PodList\",\"items\":["),
        Mood::Saying("{\"kind\":\"Status\",\"items\":[]}"),
        Mood::Saying("{\"kind\":\"PodList\",\"items\":null}"),
        Mood::Hanging,
    ] {
        let looks = api.asked("/pods");
        api.become_now(mood);
        node.tick_until(|| api.asked("/pods") > looks).await;
        if mood != Mood::Hanging {
            node.tick_until(|| node.metrics.k8s_watching.get() == 0).await;
        }
        assert_eq!(node.found(POD, 'a').await.as_ref(), Ok(&before), "{mood:?}");
    }
    assert!(
        node.metrics.k8s_told.get() < i64::try_from(node.clock.now().unix()).unwrap(),
        "it is seen how old that is"
    );
    assert!(futures_util::FutureExt::now_or_never(presence.ended()).is_none());
}

#[tokio::test]
async fn a_kubelet_that_starts_anew_ends_nothing_and_a_pod_that_it_leaves_out_is_gone() {
    let api = Api::default();
    for pod in [bare(POD, 'a'), bare(OTHER, 'b'), fixed("1", 'c')] {
        api.put(pod);
    }
    let node = node(&api);
    let found = |found: Vec<String>| spiffe::selector::Selectors::parse(found).unwrap();
    let gone = node.attestor.presence(&found(node.found(OTHER, 'b').await.unwrap())).unwrap();
    api.delete(POD);
    api.delete(OTHER);
    node.tick_until(|| node.metrics.k8s_watching.get() == 0).await;
    assert_eq!(node.metrics.k8s_pods.get(), 3);
    api.put(bare(POD, 'a'));
    node.tick_until(|| node.metrics.k8s_watching.get() == 1).await;
    assert_eq!(soon(gone.ended()).await, Departure::Gone);
    node.found(POD, 'a').await.unwrap();
}

#[tokio::test]
async fn who_waits_in_vain_is_told_who_does_not_know_him() {
    let api = Api::default();
    api.become_now(Mood::Refusing(403));
    let node = node(&api);
    for words in ["the kubelet could not be asked for pods yet", "no such running container by the kubelet"] {
        let waiting = node.attest(POD, 'a');
        node.tick_until(|| waiting.is_finished()).await;
        let error = waiting.await.unwrap().unwrap_err();
        assert!(error.contains(words), "{error}");
        api.become_now(Mood::Well);
        node.tick_until(|| node.metrics.k8s_watching.get() == 1).await;
    }
}

#[test]
fn a_refusal_says_what_to_do() {
    for (code, words) in [(401, "see token_file"), (403, "needs get of nodes/pods"), (500, "refuses (500")] {
        let code = http::StatusCode::from_u16(code).unwrap();
        let error = LookError::from(AnswerError::Refused { code, words: "no".into() }).to_string();
        assert!(error.starts_with("the kubelet refuses") && error.contains(words), "{error}");
    }
}

#[tokio::test]
async fn an_answer_has_an_end() {
    let api = Api::default();
    api.become_now(Mood::Saying("{\"items\":[{}, {}]}"));
    let client = api.server().client().unwrap();
    let ask = || Answer::to(&client, PATH, WHOLE, Splitter::list());
    assert!(matches!(ask().await.unwrap().at_most(17), Err(AnswerError::TooLarge(17))), "it says how long it is");
    let mut answer = ask().await.unwrap().at_most(18).unwrap();
    assert!(answer.next::<PodObject>().await.unwrap().is_some());
}
