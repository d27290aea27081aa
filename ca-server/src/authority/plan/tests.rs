//! The laws of the plan, each over random walks and for every kind, and its words.

use proptest::prelude::*;
use rustls_pki_types::CertificateDer;

use super::super::{Chain, Public, TokenKey};
use super::*;

const START: Timestamp = Timestamp::from_unix(1_800_000_000);

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// What happens between two plannings.
#[derive(Clone, Debug)]
enum Event {
    /// A share of a CA's life passes, in thousandths; more than 1,000: asleep past its whole life.
    Pass(u64),
    /// The clock is turned back, by thousandths of a CA's life.
    Back(u64),
    /// The loop sleeps until there may be something to do.
    Wake,
    /// Every live agent acknowledges all that is prepared.
    Acknowledge,
    /// A key is lost.
    LoseKey(usize),
    Prepare,
    Activate(usize),
    Taint(usize),
    Revoke(usize),
    /// The active one is marked tainted behind our back.
    ForceTaint,
    /// Another server makes an authority.
    Foreign,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0u64..200).prop_map(Event::Pass),
        1 => (200u64..3500).prop_map(Event::Pass),
        1 => (1u64..1500).prop_map(Event::Back),
        6 => Just(Event::Wake),
        3 => Just(Event::Acknowledge),
        1 => (0usize..6).prop_map(Event::LoseKey),
        1 => Just(Event::Prepare),
        1 => (0usize..6).prop_map(Event::Activate),
        1 => (0usize..6).prop_map(Event::Taint),
        1 => (0usize..6).prop_map(Event::Revoke),
        1 => Just(Event::ForceTaint),
        1 => Just(Event::Foreign),
    ]
}

/// A kind, a CA life in seconds, and that of a leaf: from the shortest to ten years; and how long some do not ask.
fn lives() -> impl Strategy<Value = Lives> {
    let kind = prop_oneof![Just(Kind::X509), Just(Kind::Jwt), Just(Kind::Wit)];
    prop_oneof![Just(60u64), 10u64..200, Just(3600), Just(30 * 86_400), Just(315_360_000)].prop_flat_map(move |ca| {
        let asked_within = prop_oneof![Just(0), Just(ca / 6), 0..=ca];
        (kind.clone(), Just(ca), prop_oneof![1..=ca / 2, Just(ca / 6), Just(ca / 2)], asked_within)
    })
}

/// What is signed, how long a CA lives, how long what it signs, and within how long everyone has asked.
type Lives = (Kind, u64, u64, u64);

/// One round: before, what happened, the steps, after.
struct Round<'a> {
    before: &'a [Authority],
    keys: &'a BTreeSet<Arc<str>>,
    keys_before: &'a BTreeSet<Arc<str>>,
    acknowledged: &'a BTreeSet<Arc<str>>,
    steps: &'a [Step],
    after: &'a [Authority],
    /// Taken out by an operator in this round.
    revoked: &'a BTreeSet<Arc<str>>,
    policy: &'a Policy,
    now: Timestamp,
}

impl Round<'_> {
    fn facts(&self) -> Facts<'_> {
        Facts { authorities: self.after, acknowledged: self.acknowledged, keys: self.keys }
    }

    fn usable_before(&self) -> Option<&Authority> {
        let mut own = self.before.iter().filter(|a| self.policy.owns(a) && a.state == State::Active);
        own.find(|a| unusable(a, self.keys, self.now).is_none())
    }
}

/// The public half of the authority of that number: a key that nobody has the private half of.
fn public(kind: Kind, number: u64) -> Public {
    let key = |make: fn(TokenKey) -> Public| {
        let mut spki = P256_SPKI.to_vec();
        spki.extend([0; 56]);
        spki.extend(number.to_be_bytes());
        make(TokenKey::new(&spki).unwrap())
    };
    match kind {
        Kind::X509 => Public::X509(Chain::self_signed(CertificateDer::from(number.to_be_bytes().to_vec()))),
        Kind::Jwt => key(Public::Jwt),
        Kind::Wit => key(Public::Wit),
    }
}

/// What stands before the coordinates of a P-256 key (RFC 5480 section 2).
const P256_SPKI: [u8; 27] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04,
];

struct World {
    authorities: Vec<Authority>,
    keys: BTreeSet<Arc<str>>,
    acknowledged: BTreeSet<Arc<str>>,
    policy: Policy,
    now: Timestamp,
    made: u64,
}

impl World {
    fn new((kind, ca, leaf, asked_within): Lives) -> Self {
        let policy = Policy::new(kind, "me".into(), secs(ca), secs(leaf)).unwrap();
        Self {
            authorities: Vec::new(),
            keys: BTreeSet::new(),
            acknowledged: BTreeSet::new(),
            policy: Policy { asked_within: secs(asked_within), ..policy },
            now: START,
            made: 0,
        }
    }

    fn facts(&self) -> Facts<'_> {
        Facts { authorities: &self.authorities, acknowledged: &self.acknowledged, keys: &self.keys }
    }

    fn make(&mut self, owner: &str, kind: Kind) -> Authority {
        self.made += 1;
        let id: Arc<str> = format!("{:032x}", self.made).into();
        let not_after = self.policy.end_of_new(self.now);
        let lifetime = Lifetime { not_before: self.now.minus(secs(60)), not_after };
        Authority::prepared(id, owner.into(), public(kind, self.made), lifetime, self.now)
    }

    fn carry_out(&mut self, steps: &[Step]) {
        let kinds: Vec<Kind> = steps.iter().filter_map(Step::makes).collect();
        let made: Vec<Authority> = kinds.into_iter().map(|kind| self.make("me", kind)).collect();
        self.keys.extend(made.iter().map(|made| made.id.clone()));
        self.authorities = apply(&self.authorities, steps, &made, self.now);
    }

    /// One of ours, of every kind that the plan is not about; active, and without a key.
    fn add_strangers(&mut self) {
        let own = self.policy.kind;
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != own) {
            let stranger = Authority { state: State::Active, ..self.make("me", kind) };
            self.authorities.push(stranger);
        }
    }

    fn id(&self, index: usize) -> Arc<str> {
        let count = self.authorities.len().max(1);
        self.authorities.get(index % count).map_or_else(|| "none".into(), |authority| authority.id.clone())
    }

    fn happen(&mut self, event: &Event) {
        let life = self.policy.ca_ttl;
        let share = |thousandths: u64| secs(life.as_secs() * thousandths / 1000);
        let command = match event {
            Event::Pass(share_of_life) => {
                self.now = self.now.plus(share(*share_of_life));
                return;
            }
            Event::Back(share_of_life) => {
                self.now = self.now.minus(share(*share_of_life));
                return;
            }
            Event::Wake => {
                // The naps in between are those of `twice_is_once`.
                let next = next_point(&self.facts(), &self.policy, self.now);
                self.now = next.unwrap_or(self.now);
                return;
            }
            Event::Acknowledge => {
                let prepared = self.authorities.iter().filter(|a| a.state == State::Prepared);
                self.acknowledged = prepared.map(|a| a.id.clone()).collect();
                return;
            }
            Event::LoseKey(index) => {
                let id = self.id(*index);
                self.keys.remove(&id);
                return;
            }
            Event::Foreign => {
                let foreign = self.make("other", self.policy.kind);
                self.authorities.push(foreign);
                return;
            }
            Event::ForceTaint => {
                let policy = &self.policy;
                for active in self.authorities.iter_mut().filter(|a| a.state == State::Active && policy.owns(a)) {
                    active.tainted = true;
                }
                return;
            }
            Event::Prepare => prepare(&self.facts(), &self.policy, self.now),
            Event::Activate(index) => activate(&self.facts(), &self.policy, &self.id(*index), false, self.now),
            Event::Taint(index) => taint(&self.facts(), &self.id(*index)),
            Event::Revoke(index) => revoke(&self.facts(), &self.id(*index), self.now),
        };
        // A refusal is as good an end as any.
        if let Ok(steps) = command {
            self.carry_out(&steps);
        }
    }
}

/// Walks, and gives each round to `law`.
fn walk(
    lives: Lives,
    events: &[Event],
    mut law: impl FnMut(&Round<'_>) -> Result<(), TestCaseError>,
) -> Result<(), TestCaseError> {
    let mut world = World::new(lives);
    world.add_strangers();
    for event in [Event::Pass(0)].iter().chain(events) {
        let known: BTreeSet<Arc<str>> = world.authorities.iter().map(|a| a.id.clone()).collect();
        world.happen(event);
        let present: BTreeSet<Arc<str>> = world.authorities.iter().map(|a| a.id.clone()).collect();
        let revoked = known.difference(&present).cloned().collect();
        let (before, keys_before) = (world.authorities.clone(), world.keys.clone());
        let steps = plan(&world.facts(), &world.policy, world.now);
        world.carry_out(&steps);
        let acknowledged = world.acknowledged.clone();
        law(&Round {
            before: &before,
            keys: &world.keys,
            keys_before: &keys_before,
            acknowledged: &acknowledged,
            steps: &steps,
            after: &world.authorities,
            revoked: &revoked,
            policy: &world.policy,
            now: world.now,
        })?;
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_500, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn one_active(lives in lives(), events in prop::collection::vec(event(), 1..40)) {
        walk(lives, &events, |round| {
            let active: Vec<_> = round.after.iter().filter(|a| round.policy.owns(a) && a.state == State::Active).collect();
            prop_assert_eq!(active.len(), 1, "{:?}", round.after);
            prop_assert_eq!(unusable(active[0], round.keys, round.now), None);
            Ok(())
        })?;
    }

    #[test]
    fn known_before_active(lives in lives(), events in prop::collection::vec(event(), 1..40)) {
        walk(lives, &events, |round| {
            let Some(active) = round.usable_before() else { return Ok(()) };
            let life = active.lifetime.not_after.since(active.prepared_at);
            let leaf = round.policy.leaf_ttl_max.min(life / 2);
            // The earliest deadline that the law allows.
            let deadline = active.prepared_at.plus(life * 5 / 6).min(active.lifetime.not_after.minus(leaf));
            for step in round.steps {
                prop_assert_ne!(step.name(), "start");
                if let Step::Activate { id, .. } = step {
                    let next = round.before.iter().find(|next| next.id == *id).unwrap();
                    let asked = round.now >= next.prepared_at.plus(round.policy.asked_within);
                    let known = round.acknowledged.contains(id) && asked;
                    prop_assert!(known || round.now >= deadline, "{:?}", round.steps);
                }
            }
            Ok(())
        })?;
    }

    /// Only sleeping and acknowledging: whoever plans in time.
    #[test]
    fn the_deadline_leaves_a_leafs_life(lives in lives(), acknowledge in prop::collection::vec(any::<bool>(), 60)) {
        let events: Vec<_> = acknowledge.iter().map(|yes| if *yes { Event::Acknowledge } else { Event::Wake }).collect();
        let mut activations = 0;
        walk(lives, &events, |round| {
            if let Some(active) = round.usable_before() {
                let left = active.lifetime.not_after.since(round.now);
                let replaced = round.steps.iter().any(|step| matches!(step, Step::Activate { .. }));
                prop_assert!(!replaced || left >= round.policy.leaf_ttl_max, "{left:?} left");
                activations += usize::from(replaced);
            } else {
                prop_assert!(!round.before.iter().any(|a| round.policy.owns(a)), "nothing could sign");
            }
            Ok(())
        })?;
        let sleeps = acknowledge.iter().filter(|yes| !**yes).count();
        prop_assert!(activations >= sleeps / 8, "{activations} activations in {sleeps} sleeps");
    }

    #[test]
    fn roots_stay(lives in lives(), events in prop::collection::vec(event(), 1..40)) {
        let mut present = BTreeSet::new();
        let mut ends = std::collections::BTreeMap::<Arc<str>, Timestamp>::new();
        let mut leaves: Vec<(Arc<str>, Timestamp)> = Vec::new();
        walk(lives, &events, |round| {
            let after: BTreeSet<Arc<str>> = round.after.iter().map(|a| a.id.clone()).collect();
            for gone in present.difference(&after) {
                if round.revoked.contains(gone) {
                    continue;
                }
                prop_assert!(round.now > ends[gone]);
                // No leaf outlives it.
                prop_assert!(leaves.iter().all(|(issuer, end)| issuer != gone || *end < round.now));
            }
            ends.extend(round.after.iter().map(|a| (a.id.clone(), a.lifetime.not_after)));
            let signer = round.after.iter().find(|a| round.policy.owns(a) && a.state == State::Active);
            leaves.extend(signer.map(|a| {
                (a.id.clone(), round.now.plus(round.policy.leaf_ttl_max).min(a.lifetime.not_after))
            }));
            present = after;
            Ok(())
        })?;
    }

    #[test]
    fn twice_is_once(lives in lives(), events in prop::collection::vec(event(), 1..40), share in 0u64..1000) {
        walk(lives, &events, |round| {
            prop_assert_eq!(plan(&round.facts(), round.policy, round.now), vec![], "after {:?}", round.steps);
            let wake = next_wake(&round.facts(), round.policy, round.now);
            prop_assert!(wake > round.now);
            let sleep = wake.since(round.now).as_secs() - 1;
            let meanwhile = round.now.plus(secs(sleep * share / 1000));
            prop_assert_eq!(plan(&round.facts(), round.policy, meanwhile), vec![], "at {:?}", meanwhile);
            prop_assert_eq!(plan(&round.facts(), round.policy, round.now.plus(secs(sleep))), vec![]);
            Ok(())
        })?;
    }

    #[test]
    fn others_are_left_alone(lives in lives(), events in prop::collection::vec(event(), 1..40)) {
        walk(lives, &events, |round| {
            for other in round.before.iter().filter(|a| &*a.owner == "other") {
                match round.after.iter().find(|a| a.id == other.id) {
                    Some(after) => prop_assert_eq!(after, other),
                    None => prop_assert!(round.now > other.lifetime.not_after.plus(round.policy.ca_ttl)),
                }
            }
            Ok(())
        })?;
    }

    #[test]
    fn each_kind_by_itself(lives in lives(), events in prop::collection::vec(event(), 1..40)) {
        walk(lives, &events, |round| {
            let other = |authority: &&Authority| authority.kind() != round.policy.kind;
            let (before, after) = (round.before.iter().filter(other), round.after.iter().filter(other));
            prop_assert!(before.clone().count() == 2 && before.eq(after), "{:?}", round.steps);
            let alone: Vec<Authority> = round.before.iter().filter(|authority| !other(authority)).cloned().collect();
            let facts = Facts { authorities: &alone, acknowledged: round.acknowledged, keys: round.keys_before };
            prop_assert_eq!(&plan(&facts, round.policy, round.now), round.steps);
            Ok(())
        })?;
    }

    /// Below an upstream CA that ends: the same, until it does, and no frenzy before.
    #[test]
    fn an_upstream_ca_that_ends_is_used_to_its_end(lives in lives(), ends_after in 1u64..5000) {
        let mut world = World::new(lives);
        let ceiling = START.plus(secs(lives.1 * ends_after / 1000 + 2));
        world.policy.ceiling = Some(ceiling);
        while world.now <= ceiling {
            let steps = plan(&world.facts(), &world.policy, world.now);
            world.carry_out(&steps);
            let active = world.authorities.iter().filter(|a| a.state == State::Active).count();
            // In its very last second nothing new is made.
            prop_assert!(active == 1 || world.now == ceiling);
            world.happen(&Event::Acknowledge);
            world.now = next_point(&world.facts(), &world.policy, world.now).unwrap_or(ceiling.plus(secs(1)));
        }
        prop_assert!(world.made <= ends_after / 1000 * 3 + 8, "{} authorities", world.made);
    }
}

fn planned(world: &mut World) -> Vec<&'static str> {
    let steps = plan(&world.facts(), &world.policy, world.now);
    world.carry_out(&steps);
    steps.iter().map(Step::name).collect()
}

#[test]
fn a_life_of_a_minute() {
    let mut world = World::new((Kind::X509, 60, 10, 0));
    let mut seen = Vec::new();
    while world.now < START.plus(secs(115)) {
        let at = world.now.since(START).as_secs();
        seen.extend(planned(&mut world).into_iter().map(|step| (at, step)));
        world.happen(&Event::Acknowledge);
        world.now = next_wake(&world.facts(), &world.policy, world.now);
    }
    let wanted = [
        (0, "start"),
        (30, "prepare"),
        (40, "activate"),
        (40, "retire"),
        (61, "remove"),
        // The second lives from 30 to 90.
        (60, "prepare"),
        (70, "activate"),
        (70, "retire"),
        (91, "remove"),
        (90, "prepare"),
        (100, "activate"),
        (100, "retire"),
    ];
    let sorted = |mut list: Vec<(u64, &'static str)>| {
        list.sort_unstable();
        list
    };
    assert_eq!(sorted(seen), sorted(wanted.to_vec()));
}

#[test]
fn without_an_acknowledgement_the_deadline_decides() {
    let mut world = World::new((Kind::X509, 60, 10, 0));
    planned(&mut world);
    world.now = START.plus(secs(30));
    assert_eq!(planned(&mut world), ["prepare"]);
    for (at, steps) in [(40, &[] as &[&str]), (49, &[]), (50, &["activate", "retire"])] {
        world.now = START.plus(secs(at));
        assert_eq!(planned(&mut world), steps, "at {at}");
    }
}

#[test]
fn below_one_upstream_root_a_successor_is_known_from_the_start() {
    let mut world = World::new((Kind::X509, 60, 10, 0));
    planned(&mut world);
    world.now = START.plus(secs(30));
    planned(&mut world);
    let root = CertificateDer::from(vec![0]);
    for authority in &mut world.authorities {
        let Public::X509(chain) = &authority.public else { panic!("{authority:?}") };
        authority.public = Public::X509(Chain::new(chain.own().clone(), [root.clone()]));
    }
    world.now = START.plus(secs(40));
    assert_eq!(planned(&mut world), ["activate", "retire"]);
    let retired = world.authorities[0].id.clone();
    let refused = taint(&world.facts(), &retired).unwrap_err().to_string();
    assert!(refused.contains("has the same root as authority"), "{refused}");
}

#[test]
fn a_lost_key_starts_another_and_says_so() {
    let mut world = World::new((Kind::Jwt, 3600, 60, 0));
    planned(&mut world);
    world.keys.clear();
    let steps = plan(&world.facts(), &world.policy, world.now);
    assert_eq!(steps.iter().map(Step::name).collect::<Vec<_>>(), ["retire", "start"]);
    let reason = steps[1].reason().to_string();
    assert!(reason.contains("its private key is not in the key store"), "{reason}");
}

#[test]
fn what_proxies_have_had_no_time_to_ask_for_waits_unless_it_cannot() {
    let mut world = World::new((Kind::X509, 3600, 60, 600));
    planned(&mut world);
    let first = world.now;
    world.happen(&Event::Prepare);
    world.happen(&Event::Acknowledge);
    let second = world.authorities[1].clone();
    let activate = |world: &World, cannot_wait| {
        activate(&world.facts(), &world.policy, &second.id, cannot_wait, world.now).map(|steps| steps.len())
    };
    world.now = first.plus(secs(599));
    let refused = activate(&world, false).unwrap_err();
    assert_eq!(refused, Refusal::NotAsked { id: second.id.clone(), at: first.plus(secs(600)) });
    assert!(refused.to_string().contains("Wait, or activate it with --now"), "{refused}");
    assert_eq!(activate(&world, true), Ok(2));
    world.now = first.plus(secs(600));
    assert_eq!(activate(&world, false), Ok(2));

    // By itself: no sooner either, where it was prepared late.
    let mut world = World::new((Kind::X509, 3600, 60, 600));
    planned(&mut world);
    world.now = first.plus(secs(2100));
    world.happen(&Event::Prepare);
    world.happen(&Event::Acknowledge);
    let next = world.authorities[1].clone();
    let (facts, policy) = (world.facts(), &world.policy);
    assert_eq!(next_change(&next, &facts, policy, world.now), Some(first.plus(secs(2700))));
    assert_eq!(plan(&facts, policy, first.plus(secs(2699))), vec![]);
    assert_eq!(plan(&facts, policy, first.plus(secs(2700))).len(), 2);

    // Where nothing else can sign, nobody waits.
    world.keys.remove(&world.authorities[0].id.clone());
    assert_eq!(planned(&mut world)[..2], ["retire", "activate"]);
}

#[test]
fn operators_are_told_why_not() {
    let mut world = World::new((Kind::Jwt, 3600, 60, 0));
    planned(&mut world);
    let first = world.id(0);
    let why = |result: Result<Vec<Step>, Refusal>| result.unwrap_err().to_string();
    let (policy, now) = (world.policy.clone(), world.now);
    assert!(why(taint(&world.facts(), &first)).contains("is active: prepare and activate another first"));
    assert!(why(revoke(&world.facts(), &first, now)).contains("is active: prepare and activate another first"));
    assert!(why(activate(&world.facts(), &policy, &first, false, now)).contains("is active: only a prepared one"));
    assert!(why(activate(&world.facts(), &policy, "x", false, now)).contains("there is no authority x"));

    world.happen(&Event::Prepare);
    let second = world.authorities[1].id.clone();
    assert!(why(prepare(&world.facts(), &policy, now)).contains("is prepared already"));
    assert!(why(taint(&world.facts(), &second)).contains("revoke it instead"));
    world.happen(&Event::Activate(1));
    assert!(why(activate(&world.facts(), &policy, &first, false, now)).contains("is retired: only a prepared one"));
    assert!(why(revoke(&world.facts(), &first, now)).contains("taint it first"));
    world.happen(&Event::Taint(0));
    assert!(world.authorities[0].tainted);
    assert_eq!(taint(&world.facts(), &first), Ok(vec![]));
    world.happen(&Event::Revoke(0));
    assert_eq!(world.authorities.len(), 1);
    assert_eq!(planned(&mut world), Vec::<&str>::new());

    world.happen(&Event::Foreign);
    let foreign = world.authorities[1].id.clone();
    assert!(why(activate(&world.facts(), &policy, &foreign, false, now)).contains("is at the server other"));
}

#[test]
fn a_policy_that_cannot_be_kept_is_refused() {
    for kind in Kind::ALL {
        let policy = |ca, leaf| Policy::new(kind, "me".into(), secs(ca), secs(leaf));
        assert!(policy(60, 30).is_ok());
        assert_eq!(policy(60, 31), Err(PolicyError::LongLeaf { kind, leaf: secs(31), ca: secs(60) }));
        assert_eq!(policy(9, 1), Err(PolicyError::ShortCa(kind, secs(9))));
    }
}
