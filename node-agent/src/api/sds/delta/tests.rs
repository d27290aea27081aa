//! The laws at the head of the file, over random walks: bullets and properties have the same names.

use proptest::prelude::*;
use spiffe::proto::details;

use super::super::test_world::{STATES, names_of, seen, state};
use super::*;
use crate::api::test_office::NOW;

/// Names that the workload may have in each of the states.
const NAMES: [&str; 5] = ["ALL", "ROOTCA", "default", "spiffe://example.org", "spiffe://example.org/web"];

/// What happens on a stream.
#[derive(Clone, Debug)]
enum Step {
    State(u8),
    /// Bits of a mask of [`NAMES`].
    Request {
        subscribe: u8,
        unsubscribe: u8,
        nonce: Nonce,
        error: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Nonce {
    None,
    Last,
    Earlier,
}

/// A stream, a proxy that believes what it is told, and what has to be so: by the numbers of states alone.
struct Walk {
    delta: Delta,
    at: u8,
    everything: bool,
    names: BTreeSet<String>,
    /// What the proxy has: name to version.
    proxy: BTreeMap<String, String>,
    last: Option<DeltaDiscoveryResponse>,
    nonces: Vec<String>,
}

fn masked(mask: u8) -> Vec<String> {
    (0..NAMES.len()).filter(|bit| mask & (1 << bit) != 0).map(|bit| NAMES[bit].to_owned()).collect()
}

impl Walk {
    /// A stream whose first request names these, none for everything, and says what the proxy has.
    fn new(at: u8, subscribe: u8, has: BTreeMap<String, String>) -> (Self, Option<DeltaDiscoveryResponse>) {
        let mut delta = Delta::new(Arc::default());
        assert_eq!(delta.learn(state(at), NOW), Ok(None));
        let names = masked(subscribe);
        let request = DeltaDiscoveryRequest {
            type_url: SECRET_TYPE.into(),
            resource_names_subscribe: names.clone(),
            initial_resource_versions: has.clone().into_iter().collect(),
            ..DeltaDiscoveryRequest::default()
        };
        let heard = delta.hear(request, NOW).unwrap();
        let everything = names.is_empty();
        let names = names.into_iter().collect();
        let mut walk = Self { delta, at, everything, names, proxy: has, last: None, nonces: Vec::new() };
        walk.take(heard.response.as_ref());
        (walk, heard.response)
    }

    fn request(&self, step: &Step) -> DeltaDiscoveryRequest {
        let Step::Request { subscribe, unsubscribe, nonce, error } = step else { panic!("{step:?}") };
        let response_nonce = match nonce {
            Nonce::None => String::new(),
            Nonce::Last => self.last.as_ref().map_or("7".into(), |last| last.nonce.clone()),
            Nonce::Earlier => "0".into(),
        };
        DeltaDiscoveryRequest {
            resource_names_subscribe: masked(*subscribe),
            resource_names_unsubscribe: masked(*unsubscribe),
            response_nonce,
            error_detail: error.then(|| details::Status { message: "no".into(), ..Default::default() }),
            ..DeltaDiscoveryRequest::default()
        }
    }

    fn step(&mut self, step: &Step) -> (Option<DeltaDiscoveryResponse>, Vec<News>) {
        let (response, news) = match step {
            Step::State(number) => {
                self.at = *number;
                (self.delta.learn(state(*number), NOW).unwrap(), Vec::new())
            }
            Step::Request { subscribe, unsubscribe, .. } => {
                let heard = self.delta.hear(self.request(step), NOW).unwrap();
                let gone = masked(*unsubscribe);
                self.names.retain(|name| !gone.contains(name));
                self.names.extend(masked(*subscribe));
                (heard.response, heard.news)
            }
        };
        self.take(response.as_ref());
        (response, news)
    }

    fn take(&mut self, response: Option<&DeltaDiscoveryResponse>) {
        let Some(response) = response else { return };
        for resource in &response.resources {
            self.proxy.insert(resource.name.clone(), resource.version.clone());
        }
        response.removed_resources.iter().for_each(|name| drop(self.proxy.remove(name)));
        self.nonces.push(response.nonce.clone());
        self.last = Some(response.clone());
    }

    /// What the proxy has.
    fn has(&self) -> BTreeSet<String> {
        self.proxy.keys().cloned().collect()
    }

    /// What the proxy should have of what it subscribes to.
    fn expected(&self) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        if self.everything {
            all.extend(seen(self.at, &[]));
        }
        if !self.names.is_empty() {
            all.extend(seen(self.at, &self.names.iter().cloned().collect::<Vec<_>>()));
        }
        all
    }
}

/// The versions of what is there in a state.
fn versions(number: u8) -> BTreeMap<String, String> {
    let (everything, _) = Walk::new(number, 0, BTreeMap::new());
    let (named, _) = Walk::new(number, 0b11111, BTreeMap::new());
    everything.proxy.into_iter().chain(named.proxy).collect()
}

fn step() -> impl Strategy<Value = Step> {
    let nonce = prop_oneof![Just(Nonce::None), Just(Nonce::Last), Just(Nonce::Last), Just(Nonce::Earlier)];
    let request = (0..32_u8, 0..32_u8, nonce, any::<bool>());
    prop_oneof![
        (0..STATES).prop_map(Step::State),
        request.prop_map(|(subscribe, unsubscribe, nonce, error)| {
            // Nobody does both at once with one name.
            Step::Request { subscribe, unsubscribe: unsubscribe & !subscribe, nonce, error }
        }),
        any::<bool>().prop_map(|error| Step::Request { subscribe: 0, unsubscribe: 0, nonce: Nonce::Last, error }),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 0..16)
}

proptest! {
    #[test]
    fn first(number in 0..STATES, had in 0..STATES, subscribe in 0..32_u8) {
        let asked = |versions: BTreeMap<String, String>| -> BTreeMap<String, String> {
            let names = masked(subscribe);
            versions.into_iter().filter(|(name, _)| names.is_empty() || names.contains(name)).collect()
        };
        let has = if subscribe == 0 { Walk::new(had, 0, BTreeMap::new()).0.proxy } else { asked(versions(had)) };
        let (walk, response) = Walk::new(number, subscribe, has.clone());
        let sent = response.map(|response| names_of(response.resources.iter().map(|resource| &resource.resource)));
        let expected: Vec<String> =
            walk.proxy.iter().filter(|(name, version)| has.get(*name) != Some(version)).map(|(name, _)| name.clone()).collect();
        prop_assert_eq!(sent.unwrap_or_default(), expected);
        prop_assert_eq!(walk.has(), walk.expected().into_keys().collect());
    }

    #[test]
    fn subscription(number in 0..STATES, begin in 1..32_u8, steps in steps()) {
        let (mut walk, _) = Walk::new(number, begin, BTreeMap::new());
        for step in steps {
            let (response, _) = walk.step(&step);
            let Step::Request { subscribe, .. } = step else { continue };
            let sent = response.map(|response| response.resources.into_iter().map(|resource| resource.name).collect());
            let expected: Vec<String> = masked(subscribe);
            prop_assert_eq!(sent.unwrap_or_else(Vec::new), expected);
        }
    }

    #[test]
    fn change(number in 0..STATES, begin in 0..32_u8, steps in steps()) {
        let (mut walk, _) = Walk::new(number, begin, BTreeMap::new());
        for step in steps {
            let before = walk.expected();
            let (response, _) = walk.step(&step);
            if let Step::State(_) = step {
                let now = walk.expected();
                let changed: Vec<_> = now.iter().filter(|(name, word)| before.get(*name) != Some(word)).collect();
                let sent = response.map(|response| response.resources.into_iter().map(|resource| resource.name).collect());
                let expected: Vec<String> = changed.into_iter().map(|(name, _)| name.clone()).collect();
                prop_assert_eq!(sent.unwrap_or_else(Vec::new), expected);
            }
            // Whatever has happened: what it subscribes to, it has as it is now.
            let known = versions(walk.at);
            for name in walk.expected().keys() {
                prop_assert_eq!(walk.proxy.get(name), known.get(name), "{}", name);
            }
        }
    }

    #[test]
    fn removal(number in 0..STATES, steps in steps()) {
        let (mut walk, _) = Walk::new(number, 0, BTreeMap::new());
        for step in steps {
            walk.step(&step);
            prop_assert_eq!(walk.has(), walk.expected().into_keys().collect());
        }
    }

    #[test]
    fn reply(number in 0..STATES, begin in 0..32_u8, steps in steps()) {
        let (mut walk, _) = Walk::new(number, begin, BTreeMap::new());
        for step in steps {
            let last = walk.last.clone();
            let (response, news) = walk.step(&step);
            let Step::Request { subscribe: 0, unsubscribe: 0, nonce, error } = step else { continue };
            prop_assert_eq!(response, None);
            let version = last.filter(|_| nonce == Nonce::Last).map(|last| last.system_version_info);
            let expected = version.map(|version| match error {
                true => News::Rejected { version, words: "no".into() },
                false => News::Acknowledged { version },
            });
            prop_assert_eq!(news, expected.into_iter().collect::<Vec<_>>());
            // What was rejected is silent until it changes.
            prop_assert_eq!(walk.step(&Step::State(walk.at)).0, None);
        }
    }

    #[test]
    fn stale(number in 0..STATES, begin in 1..32_u8, subscribe in 1..32_u8, error: bool) {
        let (mut walk, _) = Walk::new(number, begin, BTreeMap::new());
        let (response, news) = walk.step(&Step::Request { subscribe, unsubscribe: 0, nonce: Nonce::Earlier, error });
        prop_assert!(matches!(&news[..], [News::Asked { .. }]), "{news:?}");
        prop_assert_eq!(response.unwrap().resources.len(), masked(subscribe).len());
    }

    #[test]
    fn nonce(number in 0..STATES, begin in 0..32_u8, steps in steps()) {
        let (mut walk, _) = Walk::new(number, begin, BTreeMap::new());
        steps.iter().for_each(|step| drop(walk.step(step)));
        let different: BTreeSet<_> = walk.nonces.iter().collect();
        prop_assert!(different.len() == walk.nonces.len() && !different.contains(&String::new()));
    }

    #[test]
    fn refusal(number in 0..STATES, begin in 0..32_u8, name in "[a-zA-Z/:.]{1,20}") {
        prop_assume!(!NAMES.contains(&name.as_str()));
        let (mut walk, _) = Walk::new(number, begin, BTreeMap::new());
        let of = |name: &str| DeltaDiscoveryRequest {
            resource_names_subscribe: vec![name.to_owned()],
            ..DeltaDiscoveryRequest::default()
        };
        let unknown = walk.delta.hear(of(&name), NOW).unwrap_err();
        prop_assert!(matches!(unknown, Refusal::Unknown { .. }), "{unknown}");
        let (mut walk, _) = Walk::new(number, begin, BTreeMap::new());
        let foreign = walk.delta.hear(of("spiffe://example.org/db"), NOW).unwrap_err();
        prop_assert!(matches!(foreign, Refusal::NotEntitled { .. }), "{foreign}");
        let other = DeltaDiscoveryRequest { type_url: "x".into(), ..DeltaDiscoveryRequest::default() };
        prop_assert!(matches!(walk.delta.hear(other, NOW), Err(Refusal::Type(_))));
    }
}

#[test]
fn what_a_proxy_brings_along_counts_as_taken() {
    let (walk, response) = Walk::new(0, 0b110, BTreeMap::new());
    let taken = response.unwrap().system_version_info;
    let mut delta = Delta::new(Arc::default());
    delta.learn(state(0), NOW).unwrap();
    let request = DeltaDiscoveryRequest {
        resource_names_subscribe: masked(0b110),
        initial_resource_versions: walk.proxy.into_iter().collect(),
        ..DeltaDiscoveryRequest::default()
    };
    let heard = delta.hear(request, NOW).unwrap();
    assert_eq!(heard.response, None);
    assert_eq!(heard.news[1..], [News::Acknowledged { version: taken }]);
}

#[test]
fn the_wildcard_is_everything_and_can_be_unsubscribed_from() {
    let (mut walk, _) = Walk::new(0, 0b100, BTreeMap::new());
    let ask = |subscribe: &[&str], unsubscribe: &[&str]| DeltaDiscoveryRequest {
        resource_names_subscribe: subscribe.iter().map(ToString::to_string).collect(),
        resource_names_unsubscribe: unsubscribe.iter().map(ToString::to_string).collect(),
        ..DeltaDiscoveryRequest::default()
    };
    let response = walk.delta.hear(ask(&["*"], &[]), NOW).unwrap().response.unwrap();
    let names: Vec<_> = response.resources.iter().map(|resource| resource.name.as_str()).collect();
    assert_eq!(names, ["spiffe://example.org", "spiffe://example.org/web"], "and not again what it has");
    assert_eq!(walk.delta.hear(ask(&[], &["*"]), NOW).unwrap().response, None);
    let changed = walk.delta.learn(state(5), NOW).unwrap().unwrap();
    assert_eq!(changed.resources.iter().map(|resource| resource.name.as_str()).collect::<Vec<_>>(), ["default"]);
}

#[test]
fn there_is_a_most_of_names_over_all_requests() {
    let mut delta = Delta::new(Arc::default());
    let ask = |from: usize| DeltaDiscoveryRequest {
        resource_names_subscribe: (from..from + MAX_NAMES).map(|number| format!("n{number}")).collect(),
        ..DeltaDiscoveryRequest::default()
    };
    assert!(delta.hear(ask(0), NOW).is_ok(), "before there is a state nothing can be missing");
    assert_eq!(delta.hear(ask(1), NOW), Err(Refusal::TooManyNames(MAX_NAMES + 1)));
}
