//! What follows from what the watches say; the tests bear the names of the rules.

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;

const NOW: Timestamp = Timestamp::from_unix(1_795_218_000);

fn pod(uid: &str, node: &str) -> Seen {
    let labels = Labels::new(BTreeMap::from([("app".to_owned(), "web".to_owned())]));
    Seen {
        uid: uid.into(),
        namespace: "shop".into(),
        name: format!("web-{uid}").into(),
        service_account: "web".into(),
        node_name: node.into(),
        labels,
        life: Life::Open,
    }
}

fn node(name: &str, uid: &str) -> Node {
    Node { name: name.into(), uid: uid.into() }
}

fn namespace(name: &str, team: &str) -> Namespace {
    Namespace { name: name.into(), labels: Labels::new(BTreeMap::from([("team".to_owned(), team.to_owned())])) }
}

fn empty() -> Picture {
    Picture::new("main".into(), TrustDomain::parse("example.org").unwrap())
}

/// One with two nodes, one namespace and these pods.
fn whole(pods: &[Seen]) -> Picture {
    let mut picture = empty();
    picture.after(Told::Nodes(Change::All(vec![node("n1", "u1"), node("n2", "u2")])), NOW);
    picture.after(Told::Namespaces(Change::All(vec![namespace("shop", "a")])), NOW);
    picture.after(Told::Pods(Change::All(pods.to_vec())), NOW);
    picture
}

/// Events in short: `+1@u1/a` is pod 1 on node u1 in a namespace of team a, `-1` is pod 1 gone, `=` stands before all.
fn short(events: &[PodEvent]) -> Vec<String> {
    let one = |pod: &Pod| {
        let node = pod.agent.as_str().rsplit('/').next().unwrap();
        format!("+{}@{node}/{}", pod.uid, pod.namespace_labels["team"])
    };
    let mut words = Vec::new();
    for event in events {
        match event {
            PodEvent::All { pods, .. } => {
                let mut all: Vec<_> = pods.iter().map(one).collect();
                all.sort();
                words.push(format!("={}", all.join("")));
            }
            PodEvent::Put(pod) => words.push(one(pod)),
            PodEvent::Gone { uid, .. } => words.push(format!("-{uid}")),
        }
    }
    words.sort();
    words
}

fn put(picture: &mut Picture, pod: Seen) -> Vec<String> {
    short(&picture.after(Told::Pods(Change::Put(pod)), NOW))
}

#[test]
fn whole_first() {
    let mut picture = empty();
    assert!(picture.after(Told::Pods(Change::All(vec![pod("1", "n1")])), NOW).is_empty());
    assert!(put(&mut picture, pod("2", "n1")).is_empty());
    assert!(picture.after(Told::Namespaces(Change::All(vec![namespace("shop", "a")])), NOW).is_empty());
    assert!(picture.after(Told::Nodes(Change::Put(node("n1", "u1"))), NOW).is_empty());
    let events = picture.after(Told::Nodes(Change::All(vec![node("n1", "u1")])), NOW);
    assert_eq!(short(&events), ["=+1@u1/a+2@u1/a"]);
    let PodEvent::All { pods, .. } = &events[0] else { panic!("{events:?}") };
    assert_eq!(pods[0].agent.as_str(), "spiffe://example.org/chancery/agent/k8s_psat/main/u1");
    // A list that is made again says everything again, whichever it is.
    let again = picture.after(Told::Pods(Change::All(vec![pod("2", "n1")])), NOW);
    assert_eq!(short(&again), ["=+2@u1/a"]);
    assert_eq!(short(&picture.after(Told::Nodes(Change::All(vec![])), NOW)), ["="]);
}

#[test]
fn a_pod_waits() {
    let mut picture = whole(&[]);
    assert_eq!(put(&mut picture, pod("1", "n3")), ["-1"], "nobody knew it: to say that it is gone does no harm");
    assert_eq!(short(&picture.after(Told::Nodes(Change::Put(node("n3", "u3"))), NOW)), ["+1@u3/a"]);
    assert_eq!(short(&picture.after(Told::Nodes(Change::Gone(node("n3", "u3"))), NOW)), ["-1"]);
    assert_eq!(short(&picture.after(Told::Nodes(Change::Put(node("n3", "u3"))), NOW)), ["+1@u3/a"]);
    assert_eq!(short(&picture.after(Told::Namespaces(Change::Gone(namespace("shop", "a"))), NOW)), ["-1"]);
    assert_eq!(short(&picture.after(Told::Namespaces(Change::Put(namespace("shop", "b"))), NOW)), ["+1@u3/b"]);
    assert_eq!(picture.count(), 1);
}

#[test]
fn made_anew_is_another() {
    let mut picture = whole(&[pod("1", "n1"), pod("2", "n2")]);
    assert_eq!(short(&picture.after(Told::Nodes(Change::Put(node("n1", "u9"))), NOW)), ["+1@u9/a"]);
    let strange = picture.after(Told::Nodes(Change::Put(node("n2", "../u2"))), NOW);
    assert_eq!(short(&strange), ["-2"], "a UID that is no segment of an ID names no agent");
}

#[test]
fn ended_is_gone() {
    let mut picture = whole(&[pod("1", "n1"), pod("2", "n1"), pod("3", "n1")]);
    assert_eq!(put(&mut picture, Seen { life: Life::Ended, ..pod("1", "n1") }), ["-1"]);
    assert!(put(&mut picture, Seen { life: Life::Ended, ..pod("1", "n1") }).is_empty());
    assert_eq!(put(&mut picture, pod("3", "")), ["-3"]);
    let end = NOW.plus(Duration::from_secs(30));
    assert!(put(&mut picture, Seen { life: Life::Until(end), ..pod("2", "n1") }).is_empty(), "it still runs");
    assert_eq!(picture.next_end(), Some(end));
    let sooner = NOW.plus(Duration::from_secs(10));
    assert!(put(&mut picture, Seen { life: Life::Until(sooner), ..pod("2", "n1") }).is_empty());
    assert_eq!((picture.next_end(), picture.ends.len()), (Some(sooner), 1));
    assert!(picture.pass(NOW).is_empty());
    assert_eq!(short(&picture.pass(sooner)), ["-2"]);
    assert_eq!((picture.next_end(), picture.count()), (None, 0));
    assert_eq!(short(&picture.after(Told::Pods(Change::Gone(pod("2", "n1"))), NOW)), [""; 0]);
}

#[test]
fn the_same_again() {
    let mut picture = whole(&[pod("1", "n1")]);
    assert!(put(&mut picture, pod("1", "n1")).is_empty());
    assert!(picture.after(Told::Nodes(Change::Put(node("n1", "u1"))), NOW).is_empty());
    assert!(picture.after(Told::Namespaces(Change::Put(namespace("shop", "a"))), NOW).is_empty());
    assert_eq!(put(&mut picture, Seen { labels: Labels::default(), ..pod("1", "n1") }), ["+1@u1/a"]);
    assert_eq!(short(&picture.after(Told::Pods(Change::Gone(pod("1", "n1"))), NOW)), ["-1"]);
}
