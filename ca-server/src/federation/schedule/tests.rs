//! The rules at the head of `schedule`, each a test that bears its name.

use proptest::prelude::*;
use spiffe::federation::{EndpointUrl, ProfileName};

use super::*;

const NOW: Timestamp = Timestamp::from_unix(1_800_000_000);

fn relationship(name: &str) -> Relationship {
    let url = EndpointUrl::parse("https://bundles.example.net/").unwrap();
    Relationship::new(TrustDomain::parse(name).unwrap(), url, ProfileName::HttpsWeb, None).unwrap()
}

fn attempt(at: Timestamp, outcome: Outcome) -> Attempt {
    Attempt { at, outcome, error: String::new() }
}

/// A linear congruential generator: chance that is the same in every run.
fn dice() -> impl FnMut() -> u32 {
    let mut state = 1_u64;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 32) as u32
    }
}

fn many(count: usize, bundle: Option<Option<Duration>>) -> Vec<Known> {
    (0..count).map(|n| (relationship(&format!("d{n}.org")), bundle)).collect()
}

/// When each of those that are due within `within` is polled, if each poll takes no time and fails.
fn run(schedule: &mut Schedule, within: Duration, hint: Option<Duration>) -> Vec<(Timestamp, TrustDomain)> {
    let (mut polled, mut chance, mut now) = (Vec::new(), dice(), NOW);
    while let Some(at) = schedule.next_wake(now).filter(|at| *at <= NOW.plus(within)) {
        now = at;
        for turn in schedule.begin(at, usize::MAX) {
            polled.push((at, turn.relationship.trust_domain.clone()));
            schedule.end(&turn, attempt(at, Outcome::Failed), hint, chance());
        }
    }
    polled
}

#[test]
fn new_is_soon() {
    let mut schedule = Schedule::default();
    assert_eq!(schedule.next_wake(NOW), None);
    schedule.learn(many(1, None), NOW);
    assert_eq!(schedule.begin(NOW, 9).len(), 1);
    // One that was changed is as good as new, and the end of the poll of what it was is nothing to it.
    let mut changed = relationship("d0.org");
    changed.url = EndpointUrl::parse("https://elsewhere.example.net/").unwrap();
    let old = Turn { relationship: relationship("d0.org"), number: 1 };
    schedule.learn(vec![(changed.clone(), None)], NOW);
    schedule.end(&old, attempt(NOW, Outcome::Updated), None, 0);
    assert!(schedule.poll(&changed.trust_domain).unwrap().last.is_none());
    assert_eq!(schedule.begin(NOW, 9)[0].relationship, changed);
    schedule.learn(Vec::new(), NOW);
    assert_eq!((schedule.next_wake(NOW), schedule.polls().count()), (None, 0));
}

#[test]
fn no_burst() {
    let mut unknown = Schedule::start(many(1000, None), NOW, dice());
    let in_one_second = |polled: &[(Timestamp, TrustDomain)], second| {
        polled.iter().filter(|(at, _)| *at == NOW.plus(Duration::from_secs(second))).count()
    };
    let polled = run(&mut unknown, SHORTEST, None);
    assert_eq!(polled.len(), 1000, "all within the shortest interval");
    let most = (0..=10).map(|second| in_one_second(&polled, second)).max().unwrap();
    assert!(most <= 140, "{most} in one second, of 91 on average");
    // With bundles that may be a day old, and with those that are known already.
    let day = Some(Some(Duration::from_secs(86_400)));
    let polled = run(&mut Schedule::start(many(1000, day), NOW, dice()), USUAL, day.flatten());
    assert_eq!(polled.len(), 1000);
    let most = (0..=300).map(|second| in_one_second(&polled, second)).max().unwrap();
    assert!(most <= 15, "{most} in one second, of 3.3 on average");
}

#[test]
fn no_hurry_after_a_failure() {
    let mut schedule = Schedule::start(many(1, Some(None)), NOW, || 0);
    let polled = run(&mut schedule, Duration::from_secs(3600), None);
    assert!((12..=14).contains(&polled.len()), "{} polls in an hour of failures", polled.len());
}

#[test]
fn asked_is_now_and_one_at_a_time() {
    let mut schedule = Schedule::start(many(3, None), NOW, || u32::MAX);
    let name = TrustDomain::parse("d1.org").unwrap();
    assert!(schedule.begin(NOW, 9).is_empty());
    assert!(schedule.ask(&name, NOW) && !schedule.ask(&TrustDomain::parse("x.org").unwrap(), NOW));
    let turns = schedule.begin(NOW, 9);
    assert_eq!(turns.len(), 1);
    assert!(schedule.ask(&name, NOW));
    assert!(schedule.begin(NOW, 9).is_empty(), "it is under way");
    assert_eq!(schedule.begin(NOW.plus(SHORTEST), 1).len(), 1, "no more than there is room for");
    assert_eq!(schedule.next_wake(NOW.plus(SHORTEST)), Some(NOW.plus(SHORTEST)));
}

#[test]
fn the_clock_may_be_put_back() {
    let mut schedule = Schedule::start(many(1, Some(None)), NOW, || u32::MAX);
    let before = NOW.minus(Duration::from_secs(30 * 86_400));
    assert_eq!(schedule.next_wake(before), Some(before));
    assert_eq!(schedule.begin(before, 1).len(), 1);
}

#[test]
fn every_outcome_has_a_name_of_its_own() {
    let names: std::collections::BTreeSet<_> = Outcome::ALL.map(Outcome::name).into();
    assert_eq!(names.len(), Outcome::ALL.len());
}

proptest! {
    #[test]
    fn interval(hint in prop::option::of(0..1_000_000_u64), chance: u32, failed: bool) {
        let hint = hint.map(Duration::from_secs);
        let mut schedule = Schedule::start(many(1, None), NOW, || 0);
        let turn = schedule.begin(NOW, 1).remove(0);
        let outcome = if failed { Outcome::Failed } else { Outcome::Unchanged };
        schedule.end(&turn, attempt(NOW, outcome), hint, chance);
        let wanted = hint.unwrap_or(USUAL).clamp(SHORTEST, LONGEST);
        let wait = schedule.next_wake(NOW).unwrap().since(NOW);
        prop_assert!(wait <= wanted && wait >= wanted - wanted / 10, "{wait:?} of {wanted:?}");
        prop_assert!(schedule.begin(NOW.plus(wait).minus(Duration::from_secs(1)), 1).is_empty());
        prop_assert_eq!(schedule.begin(NOW.plus(wait), 1).len(), 1);
    }
}
