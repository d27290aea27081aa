//! What follows from what the watches say; the tests bear the names of the rules.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::view::pods::Pods;

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
        since: Timestamp::default(),
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
            PodEvent::Nodes { .. } => {}
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
    assert_eq!(picture.counts()[0], 1);
}

#[test]
fn a_new_pod_waits_for_a_word_of_nodes_as_new_as_itself() {
    let at = |seconds| NOW.plus(Duration::from_secs(seconds));
    let late = |picture: &mut Picture, uid: &str, seconds| {
        short(&picture.after(Told::Pods(Change::Put(pod(uid, "n1"))), at(seconds)))
    };
    let mut picture = whole(&[pod("1", "n1")]);
    assert_eq!(late(&mut picture, "2", 10), ["+2@u1/a"]);
    // The watch of nodes is silent: n1 may be another one by now. What was there before stays.
    assert_eq!(late(&mut picture, "3", 11), ["-3"]);
    assert!(late(&mut picture, "1", 12).is_empty());
    assert_eq!(
        short(&picture.after(Told::Pods(Change::All(vec![pod("1", "n1"), pod("3", "n1")])), at(13))),
        ["=+1@u1/a"]
    );
    // It is looked up, once at a time. Another one lets the pod wait on; the watch will tell.
    let name: Arc<str> = "n1".into();
    assert_eq!((picture.questions(at(14)), picture.questions(at(15))), (vec![Arc::clone(&name)], vec![]));
    assert!(picture.answer(&name, Some(node("n1", "u9")), at(14), at(15)).is_empty());
    assert_eq!((picture.next_end(), picture.questions(at(24))), (Some(at(25)), vec![]));
    assert_eq!(picture.questions(at(25)), [Arc::clone(&name)]);
    let mut same = whole(&[]);
    assert_eq!(late(&mut same, "3", 11), ["-3"]);
    assert_eq!(same.questions(at(11)).len(), 1);
    assert_eq!(short(&same.answer(&name, Some(node("n1", "u1")), at(11), at(12))), ["+3@u1/a"]);
    // The watch is heard: it is another one.
    assert_eq!(short(&picture.after(Told::Nodes(Change::Put(node("n1", "u9"))), at(26)))[..2], ["+1@u9/a", "+3@u9/a"]);
    assert!(picture.questions(at(60)).is_empty());
    // At the beginning everything waits.
    let mut picture = empty();
    picture.after(Told::Nodes(Change::All(vec![node("n1", "u1")])), NOW);
    picture.after(Told::Namespaces(Change::All(vec![namespace("shop", "a")])), NOW);
    assert!(picture.after(Told::Pods(Change::All(vec![pod("1", "n1")])), at(11)).is_empty());
    assert_eq!(short(&picture.after(Told::Nodes(Change::Heard), at(60))), ["=+1@u1/a"]);
}

#[test]
fn made_anew_is_another() {
    let mut picture = whole(&[pod("1", "n1"), pod("2", "n2")]);
    assert_eq!(short(&picture.after(Told::Nodes(Change::Put(node("n1", "u9"))), NOW)), ["+1@u9/a"]);
    let strange = picture.after(Told::Nodes(Change::Put(node("n2", "../u2"))), NOW);
    assert_eq!(short(&strange), ["-2"], "a UID that is no segment of an ID names no agent");
}

/// The UIDs of the nodes of which the last event tells, if it does.
fn nodes(events: &[PodEvent]) -> Option<Vec<String>> {
    let Some(PodEvent::Nodes { nodes, .. }) = events.last() else { return None };
    let mut uids: Vec<_> = nodes.agents.iter().map(|id| id.path().rsplit('/').next().unwrap().to_owned()).collect();
    uids.sort();
    Some(uids)
}

#[test]
fn a_node_stays_for_a_while() {
    let mut picture = whole(&[]);
    let at = |seconds| NOW.plus(Duration::from_secs(seconds));
    let mut say = |change, seconds| nodes(&picture.after(Told::Nodes(change), at(seconds)));
    let words = |uids: &[&str]| Some(uids.iter().map(|uid| (*uid).to_owned()).collect::<Vec<_>>());
    assert_eq!(say(Change::Heard, 9), None, "that it was heard is told now and then");
    assert_eq!(say(Change::Heard, 10), words(&["u1", "u2"]));
    assert_eq!(say(Change::Put(node("n1", "u9")), 11), words(&["u1", "u2", "u9"]));
    say(Change::Gone(node("n2", "u2")), 12);
    say(Change::Put(node("n2", "u2")), 13);
    assert_eq!(say(Change::All(vec![node("n2", "u2"), node("n3", "u3")]), 14), words(&["u1", "u2", "u3", "u9"]));
    assert_eq!(picture.next_end(), Some(at(311)));
    assert_eq!(nodes(&picture.pass(at(311))), words(&["u2", "u3", "u9"]));
    assert_eq!(nodes(&picture.pass(at(314))), words(&["u2", "u3"]));
    assert_eq!(picture.next_end(), None);
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
    assert_eq!((picture.next_end(), picture.counts()[0]), (None, 0));
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

/// Anything that a watch may say of a few pods, nodes and namespaces, some time after the last.
fn anything() -> impl Strategy<Value = (Told, u64)> {
    let life = prop_oneof![
        3 => Just(Life::Open),
        1 => (0..60_u64).prop_map(|after| Life::Until(NOW.plus(Duration::from_secs(after)))),
        1 => Just(Life::Ended),
    ];
    let pods = ("[1-4]", "(n[12])?", "[ab]", life).prop_map(|(uid, on, space, life)| Seen {
        namespace: space.into(),
        life,
        ..pod(&uid, &on)
    });
    let nodes = ("n[12]", "u[12]").prop_map(|(name, uid)| node(&name, &uid));
    let spaces = ("[ab]", "[xy]").prop_map(|(name, team)| namespace(&name, &team));
    fn change<S: std::fmt::Debug + Clone + 'static>(
        one: impl Strategy<Value = S> + Clone + 'static,
    ) -> BoxedStrategy<Change<S>> {
        prop_oneof![
            1 => prop::collection::vec(one.clone(), 0..4).prop_map(Change::All),
            4 => one.clone().prop_map(Change::Put),
            2 => one.prop_map(Change::Gone),
        ]
        .boxed()
    }
    let told = prop_oneof![
        change(pods.boxed()).prop_map(Told::Pods),
        change(nodes.boxed()).prop_map(Told::Nodes),
        change(spaces.boxed()).prop_map(Told::Namespaces),
    ];
    (told, 0..5_u64)
}

proptest! {
    #[test]
    fn whoever_was_told_knows_what_the_picture_shows(said in prop::collection::vec(anything(), 0..60)) {
        let mut picture = empty();
        let (mut known, mut now) = (Pods::default(), NOW);
        for (told, after) in said {
            now = now.plus(Duration::from_secs(after));
            let events = picture.pass(now).into_iter().chain(picture.after(told, now));
            for event in events.collect::<Vec<_>>() {
                known = known.after(event).0;
            }
            let shown: Vec<Pod> = picture.pods.values().filter_map(|pod| picture.show(pod)).collect();
            if picture.is_whole {
                prop_assert_eq!(known.count(), shown.len());
                for pod in shown {
                    prop_assert_eq!(known.find("main", &pod.uid).map(|known| (**known).clone()), Some(pod));
                }
            } else {
                prop_assert_eq!(known.count(), 0);
            }
            prop_assert!(picture.pods.values().all(|pod| !pod.life.is_over(now) && !pod.node_name.is_empty()));
            prop_assert!(picture.ends.len() <= picture.pods.len());
        }
    }
}
