//! The laws at the head of the file, over random walks: bullets and properties have the same names.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use spiffe::proto::details;

use super::super::test_world::{LISTS, STATES, list_of, names_of, seen, state};
use super::*;
use crate::api::test_office::NOW;

/// What happens on a stream.
#[derive(Clone, Debug)]
enum Step {
    State(u8),
    Request { list: usize, nonce: Nonce, fits: bool, error: bool },
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Nonce {
    None,
    Last,
    Earlier,
}

/// One step of a walk, and what was so before it.
#[derive(Debug)]
struct Moment {
    step: Step,
    /// What the proxy had last been sent, and in which state.
    sent: Option<(DiscoveryResponse, u8)>,
    /// The names that it had asked for.
    asked: Option<Vec<String>>,
    state: Option<u8>,
    /// What follows.
    response: Option<DiscoveryResponse>,
    news: Vec<News>,
}

impl Moment {
    /// The names that are asked for behind it.
    fn asks(&self) -> Option<Vec<String>> {
        match &self.step {
            Step::Request { list, .. } if !self.is_stale() => Some(list_of(*list)),
            _ => self.asked.clone(),
        }
    }

    fn is_stale(&self) -> bool {
        let Step::Request { nonce, .. } = &self.step else { return false };
        self.asked.is_some() && (*nonce == Nonce::Earlier || (*nonce == Nonce::Last && self.sent.is_none()))
    }

    /// Whether it answers the last response with the names that it had.
    fn replies(&self) -> bool {
        let Step::Request { list, nonce: Nonce::Last, .. } = &self.step else { return false };
        self.sent.is_some() && self.asked == Some(list_of(*list))
    }
}

fn request(step: &Step, last: Option<&DiscoveryResponse>) -> DiscoveryRequest {
    let Step::Request { list, nonce, fits, error } = step else { panic!("{step:?}") };
    let version = last.map(|last| last.version_info.clone()).unwrap_or_default();
    let response_nonce = match nonce {
        Nonce::None => String::new(),
        Nonce::Last => last.map_or("7".into(), |last| last.nonce.clone()),
        Nonce::Earlier => "0".into(),
    };
    DiscoveryRequest {
        version_info: if *fits { version } else { "old".into() },
        resource_names: list_of(*list),
        type_url: SECRET_TYPE.into(),
        response_nonce,
        error_detail: error.then(|| details::Status { message: "no\nroom".into(), ..Default::default() }),
        node: None,
    }
}

fn walk(steps: Vec<Step>) -> Vec<Moment> {
    let mut stream = Stream::new(Arc::default());
    let (mut sent, mut asked, mut at) = (None, None, None);
    let mut moments = Vec::new();
    for step in steps {
        let (response, news) = match &step {
            Step::State(number) => {
                at = Some(*number);
                (stream.learn(state(*number), NOW).unwrap(), Vec::new())
            }
            Step::Request { .. } => {
                let last = sent.as_ref().map(|(response, _)| response);
                let heard = stream.hear(request(&step, last), NOW).unwrap();
                (heard.response, heard.news)
            }
        };
        let moment = Moment { step, sent: sent.clone(), asked: asked.clone(), state: at, response, news };
        asked = moment.asks();
        sent = moment.response.clone().zip(at).or(sent);
        moments.push(moment);
    }
    moments
}

fn step() -> impl Strategy<Value = Step> {
    let nonce = prop_oneof![Just(Nonce::None), Just(Nonce::Last), Just(Nonce::Last), Just(Nonce::Earlier)];
    let request = (0..LISTS.len(), nonce, any::<bool>(), any::<bool>());
    prop_oneof![
        (0..STATES).prop_map(Step::State),
        request.prop_map(|(list, nonce, fits, error)| Step::Request { list, nonce, fits, error }),
    ]
}

/// Walks, most of which begin with a state, as streams do.
fn moments() -> impl Strategy<Value = Vec<Moment>> {
    (prop::option::weighted(0.8, 0..STATES), prop::collection::vec(step(), 0..24))
        .prop_map(|(first, steps)| walk(first.map(Step::State).into_iter().chain(steps).collect()))
}

proptest! {
    #[test]
    fn first(moments in moments()) {
        for moment in moments {
            let Step::Request { nonce, .. } = moment.step else { continue };
            if moment.state.is_some() && (moment.asked.is_none() || nonce == Nonce::None) {
                prop_assert!(moment.response.is_some(), "{moment:?}");
            }
        }
    }

    #[test]
    fn acknowledgement(moments in moments()) {
        for moment in moments.iter().filter(|moment| moment.replies()) {
            let Step::Request { error: false, fits, .. } = moment.step else { continue };
            let version = moment.sent.clone().unwrap().0.version_info;
            let news = if fits { vec![News::Acknowledged { version }] } else { Vec::new() };
            prop_assert_eq!((&moment.response, &moment.news), (&None, &news));
        }
    }

    #[test]
    fn rejection(moments in moments()) {
        let mut rejected: Option<String> = None;
        for moment in moments {
            if let Step::State(_) = moment.step {
                let version = moment.response.as_ref().map(|response| response.version_info.clone());
                prop_assert!(version.is_none() || version != rejected, "{moment:?}");
            }
            if moment.response.is_some() {
                rejected = None;
            }
            if moment.replies() && matches!(moment.step, Step::Request { error: true, .. }) {
                let version = moment.sent.clone().unwrap().0.version_info;
                rejected = Some(version.clone());
                let news = vec![News::Rejected { version, words: "no room".into() }];
                prop_assert_eq!((&moment.response, &moment.news), (&None, &news));
            }
        }
    }

    #[test]
    fn stale(moments in moments()) {
        for moment in moments.iter().filter(|moment| moment.is_stale()) {
            prop_assert!(moment.response.is_none() && moment.news.is_empty(), "{moment:?}");
        }
    }

    #[test]
    fn names(moments in moments()) {
        for moment in moments {
            if moment.state.is_some() && moment.asks() != moment.asked {
                prop_assert!(moment.response.is_some(), "{moment:?}");
            }
            if let Some(response) = &moment.response {
                let expected: Vec<_> = seen(moment.state.unwrap(), &moment.asks().unwrap()).into_keys().collect();
                prop_assert_eq!(names_of(&response.resources), expected);
                prop_assert_eq!(&response.type_url, SECRET_TYPE);
            }
        }
    }

    #[test]
    fn change(moments in moments()) {
        for moment in moments {
            let (Step::State(now), Some((_, before)), Some(asked)) = (&moment.step, &moment.sent, &moment.asked) else {
                continue;
            };
            let differs = seen(*now, asked) != seen(*before, asked);
            prop_assert_eq!(moment.response.is_some(), differs, "{:?}", moment);
        }
    }

    #[test]
    fn version(one in moments(), other in moments()) {
        let mut known: BTreeMap<BTreeMap<String, String>, String> = BTreeMap::new();
        for moment in one.into_iter().chain(other) {
            let (Some(response), Some(asked)) = (&moment.response, moment.asks()) else { continue };
            let content = seen(moment.state.unwrap(), &asked);
            let version = known.entry(content).or_insert_with(|| response.version_info.clone());
            prop_assert_eq!(&response.version_info, version);
        }
        let different: BTreeSet<_> = known.values().collect();
        prop_assert_eq!(different.len(), known.len());
    }

    #[test]
    fn nonce(moments in moments()) {
        let nonces: Vec<_> = moments.iter().filter_map(|moment| Some(moment.response.as_ref()?.nonce.clone())).collect();
        let different: BTreeSet<_> = nonces.iter().collect();
        prop_assert!(different.len() == nonces.len() && !different.contains(&String::new()), "{nonces:?}");
    }

    #[test]
    fn patience(steps in prop::collection::vec(step(), 0..12), number in 0..STATES) {
        let waiting: Vec<_> = steps.into_iter().filter(|step| matches!(step, Step::Request { .. })).collect();
        let asked = !waiting.is_empty();
        let moments = walk(waiting.into_iter().chain([Step::State(number)]).collect());
        let (last, before) = moments.split_last().unwrap();
        prop_assert!(before.iter().all(|moment| moment.response.is_none()));
        prop_assert_eq!(last.response.is_some(), asked);
    }

    #[test]
    fn refusal(number in 0..STATES, list in 0..LISTS.len(), name in "[a-zA-Z/:.]{1,20}", after: bool) {
        prop_assume!(!LISTS.concat().contains(&name.as_str()));
        let mut stream = Stream::new(Arc::default());
        stream.learn(state(number), NOW).unwrap();
        let good = DiscoveryRequest { resource_names: list_of(list), ..DiscoveryRequest::default() };
        if after {
            prop_assert!(stream.hear(good.clone(), NOW).is_ok());
        }
        let with = |name: &str| {
            let resource_names = good.resource_names.iter().cloned().chain([name.to_owned()]).collect();
            DiscoveryRequest { resource_names, ..good.clone() }
        };
        let error = stream.hear(with(&name), NOW).unwrap_err();
        prop_assert!(matches!(error, Refusal::Unknown { .. }), "{error}");
        prop_assert!(error.to_string().contains("may have: default (spiffe://example.org/web), ROOTCA, ALL"), "{error}");
        let error = stream.hear(with("spiffe://example.org/db"), NOW).unwrap_err();
        prop_assert!(matches!(error, Refusal::NotEntitled { .. }), "{error}");
        let other = DiscoveryRequest { type_url: "type.googleapis.com/x.Cluster".into(), ..good };
        prop_assert!(matches!(stream.hear(other, NOW), Err(Refusal::Type(_))));
    }
}

#[test]
fn a_name_that_ceases_ends_the_stream() {
    let mut stream = Stream::new(Arc::default());
    stream.learn(state(2), NOW).unwrap();
    let resource_names = vec!["spiffe://example.org/api".into()];
    let heard = stream.hear(DiscoveryRequest { resource_names, ..DiscoveryRequest::default() }, NOW).unwrap();
    assert!(heard.response.is_some());
    assert!(matches!(stream.learn(state(0), NOW), Err(Refusal::NotEntitled { .. })));
}
