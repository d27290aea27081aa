//! Each rule of the machine's head, as a property over random walks or as a story where its moments matter.

use std::collections::{HashMap, HashSet};
use std::sync::{LazyLock, Mutex};

use proptest::prelude::*;
use spiffe::entry::KeyType;
use spiffe::id::SpiffeId;
use spiffe::time::Lifetime;
use spiffe::x509_svid::VerifiedSvid;
use zeroize::Zeroizing;

use super::*;
use crate::test_house::Authority;

const START: Timestamp = Timestamp::from_unix(1_800_000_000);
/// Moments are multiples of this, so that certificates can be made once for all walks.
const STEP: u64 = 300;

static ROOTS: LazyLock<[Authority; 2]> = LazyLock::new(|| [Authority::new("a", START), Authority::new("b", START)]);

fn domain(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

/// `tainted`: the first root is. `only_second`: the first root is gone.
fn own_bundle(tainted: bool, only_second: bool, sequence: u64) -> Bundle {
    let first = ROOTS[0].x509_authority().with_taint(tainted);
    let roots = if only_second { vec![ROOTS[1].x509_authority()] } else { vec![first, ROOTS[1].x509_authority()] };
    Bundle::new(domain("example.org"), roots, sequence, None).unwrap()
}

fn foreign_bundle(sequence: u64) -> Bundle {
    Bundle::new(domain("other.org"), vec![ROOTS[1].x509_authority()], sequence, None).unwrap()
}

/// An SVID that is verified at `now`. `number` tells those of one moment apart.
fn svid(id: &SpiffeId, root: usize, now: Timestamp, ttl: Duration, number: u8) -> VerifiedSvid {
    type Made = Mutex<HashMap<(SpiffeId, usize, Timestamp, Duration, u8), VerifiedSvid>>;
    static MADE: LazyLock<Made> = LazyLock::new(Mutex::default);
    static KEY: LazyLock<rcgen::KeyPair> = LazyLock::new(|| spiffe::crypto::generate_key(KeyType::P256).unwrap());
    let mut made = MADE.lock().unwrap();
    let make = || {
        let life = Lifetime { not_before: now.minus(Duration::from_secs(60)), not_after: now.plus(ttl) };
        let chain = ROOTS[root].sign(id, &*KEY, life);
        X509Svid::parse(chain).unwrap().verify(&own_bundle(false, false, 1), now).unwrap()
    };
    made.entry((id.clone(), root, now, ttl, number)).or_insert_with(make).clone()
}

fn key() -> Key {
    Key(Arc::new(Zeroizing::new(vec![1])))
}

/// `selectors`: bits of a mask.
fn selectors(mask: u8) -> Selectors {
    Selectors::parse((0..4).filter(|bit| mask & (1 << bit) != 0).map(|bit| format!("unix:uid:{bit}"))).unwrap()
}

fn entry(number: u8) -> RegistrationEntry {
    RegistrationEntry {
        id: EntryId::parse(&format!("e{number}")).unwrap(),
        spiffe_id: domain("example.org").member(&format!("/w{number}")).unwrap(),
        parent: domain("example.org").agent_id("join_token", "1").unwrap(),
        selectors: selectors(1),
        x509_ttl: None,
        dns_names: Vec::new(),
        hint: String::new(),
        admin: false,
        federates_with: Vec::new(),
        expires_at: None,
        key_type: None,
        created_at: Timestamp::from_unix(u64::from(number)),
    }
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Put { number: u8, other_id: bool, mask: u8, hint: u8, short: bool, federates: bool, expires: Option<u8> },
    Remove(u8),
    Snapshot,
    Gone,
    Subscribe(u8),
    Unsubscribe(u8),
    Answer { which: u8, how: How },
    AnswerAll,
    Advance(u8),
    Back(u8),
    ToNextWake,
    Taint,
    RemoveRoot,
    Foreign,
}

#[derive(Clone, Copy, Debug)]
enum How {
    Issued,
    Refused,
    Failed,
}

fn op() -> impl Strategy<Value = Op> {
    let put = (
        0..6_u8,
        any::<bool>(),
        1..16_u8,
        0..3_u8,
        any::<bool>(),
        any::<bool>(),
        prop::option::weighted(0.2, 1..20_u8),
    );
    prop_oneof![
        6 => put.prop_map(|(number, other_id, mask, hint, short, federates, expires)| {
            // Few selectors match much.
            let mask = mask & (mask >> 1) | 1 << (mask % 4);
            Op::Put { number, other_id: other_id && number < 2, mask, hint, short, federates, expires }
        }),
        2 => (0..6_u8).prop_map(Op::Remove),
        2 => Just(Op::Snapshot),
        1 => Just(Op::Gone),
        4 => (1..16_u8).prop_map(Op::Subscribe),
        1 => any::<u8>().prop_map(Op::Unsubscribe),
        4 => (any::<u8>(), prop_oneof![2 => Just(How::Issued), 1 => Just(How::Refused), 1 => Just(How::Failed)])
            .prop_map(|(which, how)| Op::Answer { which, how }),
        4 => Just(Op::AnswerAll),
        3 => (1..16_u8).prop_map(Op::Advance),
        1 => (1..30_u8).prop_map(Op::Back),
        3 => Just(Op::ToNextWake),
        1 => Just(Op::Taint),
        1 => Just(Op::RemoveRoot),
        1 => Just(Op::Foreign),
    ]
}

/// The world around a machine: what the server knows, what the agent was told, what is under way.
struct World {
    machine: Machine,
    now: Timestamp,
    server: BTreeMap<EntryId, RegistrationEntry>,
    known: BTreeMap<EntryId, RegistrationEntry>,
    bundle: Bundle,
    foreign: Option<Bundle>,
    root: usize,
    connected: bool,
    synced: bool,
    revision: u64,
    next_subscriber: SubscriberId,
    subscribers: BTreeMap<SubscriberId, Selectors>,
    told: BTreeMap<SubscriberId, WorkloadState>,
    asked: Vec<Arc<RegistrationEntry>>,
    answered: HashSet<EntryId>,
    number: u8,
    /// Of the last step.
    actions: Vec<Action>,
    told_before: BTreeMap<SubscriberId, WorkloadState>,
    asked_before: Vec<EntryId>,
}

impl World {
    fn new() -> Self {
        let bundle = own_bundle(false, false, 1);
        Self {
            machine: Machine::new(bundle.clone(), 3),
            now: START,
            server: BTreeMap::new(),
            known: BTreeMap::new(),
            bundle,
            foreign: None,
            root: 0,
            connected: false,
            synced: false,
            revision: 0,
            next_subscriber: 0,
            subscribers: BTreeMap::new(),
            told: BTreeMap::new(),
            asked: Vec::new(),
            answered: HashSet::new(),
            number: 0,
            actions: Vec::new(),
            told_before: BTreeMap::new(),
            asked_before: Vec::new(),
        }
    }

    fn handle(&mut self, event: Event) {
        self.told_before = self.told.clone();
        self.asked_before = self.asked.iter().map(|entry| entry.id.clone()).collect();
        self.actions = self.machine.handle(event, self.now);
        for action in &self.actions {
            match action {
                Action::Issue(entries) => self.asked.extend(entries.iter().cloned()),
                Action::Publish(id, state) => {
                    self.told.insert(*id, state.clone());
                }
                Action::Trust(_) | Action::Acknowledge(_) => {}
            }
        }
    }

    fn snapshot(&mut self) {
        self.revision += 1;
        (self.connected, self.synced) = (true, true);
        self.known = self.server.clone();
        let update = Update {
            revision: self.revision,
            snapshot: true,
            entries: self.server.values().cloned().collect(),
            bundles: [Some(self.bundle.clone()), self.foreign.clone()].into_iter().flatten().collect(),
            ..Update::default()
        };
        self.handle(Event::Synced(update));
    }

    /// A change by revision where there is a connection.
    fn change(&mut self, update: Update) {
        if self.connected {
            self.revision += 1;
            self.known = self.server.clone();
            self.handle(Event::Synced(Update { revision: self.revision, ..update }));
        }
    }

    fn answer(&mut self, entries: Vec<Arc<RegistrationEntry>>, how: How) {
        let mut answers = Vec::new();
        for asked in entries {
            // The server issues by what it knows itself, which may be newer or older than what was asked for.
            let entry = self.server.get(&asked.id).cloned().filter(|_| self.connected);
            let outcome = match (how, entry) {
                (How::Issued, Some(entry)) => {
                    self.number = (self.number + 1) % 4;
                    let ttl = entry.x509_ttl.unwrap_or(Duration::from_secs(3600));
                    let svid = svid(&entry.spiffe_id, self.root, self.now, ttl, self.number);
                    Outcome::Issued { svid, key: key() }
                }
                (How::Issued | How::Failed, _) => Outcome::Failed,
                (How::Refused, _) => Outcome::Refused,
            };
            self.answered.insert(asked.id.clone());
            answers.push(Answer { entry: asked.id.clone(), outcome });
        }
        let ids: Vec<_> = answers.iter().map(|answer| answer.entry.clone()).collect();
        self.asked.retain(|entry| !ids.contains(&entry.id));
        self.handle(Event::Answered(answers));
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Put { number, other_id, mask, hint, short, federates, expires } => {
                let mut entry = entry(number);
                if other_id {
                    entry.spiffe_id = domain("example.org").member("/other").unwrap();
                }
                entry.selectors = selectors(mask);
                entry.hint = ["", "a", "b"][usize::from(hint)].to_owned();
                entry.x509_ttl = short.then_some(Duration::from_secs(900));
                entry.federates_with = if federates { vec![domain("other.org")] } else { Vec::new() };
                entry.expires_at = expires.map(|steps| self.now.plus(Duration::from_secs(u64::from(steps) * STEP)));
                self.server.insert(entry.id.clone(), entry.clone());
                self.change(Update { entries: vec![entry], ..Update::default() });
            }
            Op::Remove(number) => {
                let id = entry(number).id;
                self.server.remove(&id);
                self.change(Update { removed_entries: vec![id], ..Update::default() });
            }
            Op::Snapshot => self.snapshot(),
            Op::Gone => {
                self.connected = false;
                self.handle(Event::ServerGone);
            }
            Op::Subscribe(mask) => {
                let id = self.next_subscriber;
                self.next_subscriber += 1;
                self.subscribers.insert(id, selectors(mask));
                self.handle(Event::Subscribed(id, selectors(mask)));
            }
            Op::Unsubscribe(which) => {
                if let Some(id) = pick(self.subscribers.keys().copied(), which) {
                    self.subscribers.remove(&id);
                    self.told.remove(&id);
                    self.handle(Event::Unsubscribed(id));
                }
            }
            Op::Answer { which, how } => {
                if let Some(asked) = pick(self.asked.iter().cloned(), which) {
                    self.answer(vec![asked], how);
                }
            }
            Op::AnswerAll => self.answer(self.asked.clone(), How::Issued),
            Op::Advance(steps) => self.pass(self.now.plus(Duration::from_secs(u64::from(steps) * STEP))),
            Op::Back(steps) => self.pass(self.now.minus(Duration::from_secs(u64::from(steps) * STEP))),
            Op::ToNextWake => {
                if let Some(at) = self.machine.next_wake() {
                    self.pass(Timestamp::from_unix(at.unix().div_ceil(STEP) * STEP));
                }
            }
            Op::Taint => {
                self.root = 1;
                self.bundle = own_bundle(true, false, self.bundle.sequence() + 1);
                self.change(Update { bundles: vec![self.bundle.clone()], ..Update::default() });
            }
            Op::RemoveRoot => {
                self.root = 1;
                self.bundle = own_bundle(false, true, self.bundle.sequence() + 1);
                self.change(Update { bundles: vec![self.bundle.clone()], ..Update::default() });
            }
            Op::Foreign => {
                let bundle = foreign_bundle(self.foreign.as_ref().map_or(1, |bundle| bundle.sequence() + 1));
                self.foreign = Some(bundle.clone());
                self.change(Update { bundles: vec![bundle], ..Update::default() });
            }
        }
    }

    fn pass(&mut self, to: Timestamp) {
        self.now = to;
        self.handle(Event::Tick);
    }

    /// What gives an identity to this subscriber, oldest first.
    fn entitling(&self, subscriber: SubscriberId) -> Vec<&RegistrationEntry> {
        let found = &self.subscribers[&subscriber];
        let live = |entry: &&RegistrationEntry| entry.selectors.is_subset_of(found) && entry.is_live(self.now);
        let mut entries: Vec<_> = self.known.values().filter(live).collect();
        entries.sort_by_key(|entry| (entry.created_at, entry.id.clone()));
        entries
    }

    fn published(&self) -> impl Iterator<Item = (SubscriberId, &WorkloadState)> {
        self.actions.iter().filter_map(|action| match action {
            Action::Publish(id, state) => Some((*id, state)),
            _ => None,
        })
    }

    fn issued(&self) -> impl Iterator<Item = &Arc<RegistrationEntry>> {
        self.actions
            .iter()
            .filter_map(|action| if let Action::Issue(batch) = action { Some(batch) } else { None })
            .flatten()
    }

    /// From here on nothing goes wrong.
    fn come_to_rest(&mut self) {
        self.snapshot();
        for _ in 0..40 {
            if self.asked.is_empty() {
                // What has failed lately waits: let it.
                self.pass(self.now.plus(Duration::from_secs(STEP)));
            } else {
                self.answer(self.asked.clone(), How::Issued);
            }
        }
        self.answer(self.asked.clone(), How::Issued);
    }
}

fn pick<T>(from: impl Iterator<Item = T>, which: u8) -> Option<T> {
    let all: Vec<T> = from.collect();
    let at = usize::from(which).checked_rem(all.len())?;
    all.into_iter().nth(at)
}

fn walk(ops: Vec<Op>, check: impl Fn(&World)) -> World {
    let mut world = World::new();
    for op in ops {
        world.step(op);
        check(&world);
    }
    world
}

macro_rules! rule {
    ($name:ident, $check:expr) => {
        proptest! {
            #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]
            #[test]
            fn $name(ops in prop::collection::vec(op(), 1..60)) {
                walk(ops, $check);
            }
        }
    };
}

rule!(matching, |world| {
    for (id, state) in world.published() {
        let entitling = world.entitling(id);
        for identity in state.identities.iter() {
            let entry = entitling.iter().find(|entry| entry.id == identity.entry.id).expect("entitled");
            assert_eq!(entry.spiffe_id, *identity.svid.id());
        }
    }
});

rule!(prefetch, |world| {
    let mut order: Vec<_> = world.known.values().map(|entry| (entry.created_at, &entry.id)).collect();
    order.sort();
    for asked in world.issued() {
        let age = order.iter().position(|(_, id)| **id == asked.id).unwrap();
        let somebody = world.subscribers.values().any(|found| asked.selectors.is_subset_of(found));
        assert!(age < 3 || somebody, "{} is nobody's, and number {age}", asked.id);
        assert!(asked.is_live(world.now) && world.connected);
    }
});

rule!(one_in_flight, |world| {
    let mut asked: Vec<_> = world.issued().map(|entry| entry.id.clone()).collect();
    assert!(asked.iter().all(|id| !world.asked_before.contains(id) || world.answered.contains(id)));
    let count = asked.len();
    asked.sort();
    asked.dedup();
    assert_eq!(count, asked.len());
    let mut under_way: Vec<_> = world.asked.iter().map(|entry| &entry.id).collect();
    under_way.sort();
    assert!(under_way.windows(2).all(|pair| pair[0] != pair[1]), "{under_way:?}");
});

rule!(renewal, |world| {
    // Whatever has happened, the machine wants to wake before the oldest SVID it holds is old.
    if !world.connected {
        return;
    }
    let idle = |id: &EntryId| !world.asked.iter().any(|asked| asked.id == *id);
    let mut order: Vec<_> = world.known.values().filter(|entry| entry.is_live(world.now)).collect();
    order.sort_by_key(|entry| (entry.created_at, entry.id.clone()));
    let wanted = |entry: &&&RegistrationEntry| {
        world.subscribers.values().any(|found| entry.selectors.is_subset_of(found)) && idle(&entry.id)
    };
    if order.iter().any(|entry| wanted(&entry)) {
        let wake = world.machine.next_wake().expect("something is to be renewed");
        assert!(wake > world.now && wake <= world.now.plus(Duration::from_secs(2220)), "{wake} at {}", world.now);
    }
});

rule!(whole, |world| {
    for (id, state) in world.published() {
        let order: Vec<_> = state.identities.iter().map(|one| (one.entry.created_at, one.entry.id.clone())).collect();
        assert!(order.is_sorted(), "{order:?}");
        // What it had and is still entitled to, it has again.
        let Some(before) = world.told_before.get(&id) else { continue };
        for had in before.identities.iter().filter(|had| world.now <= had.svid.lifetime().not_after) {
            let still =
                world.entitling(id).iter().any(|entry| entry.id == had.entry.id && entry.spiffe_id == *had.svid.id());
            assert!(
                !still || state.identities.iter().any(|one| one.entry.id == had.entry.id),
                "{} is lost",
                had.entry.id
            );
        }
        assert_eq!(state.bundle.sequence(), world.machine.own.sequence());
    }
});

rule!(first_state, |world| {
    for (id, state) in world.published().filter(|(id, _)| !world.told_before.contains_key(id)) {
        assert!(world.synced, "told before anything was known");
        for entry in world.entitling(id) {
            let has = state.identities.iter().any(|one| one.entry.id == entry.id);
            assert!(has || !world.connected || world.answered.contains(&entry.id), "{} is not settled", entry.id);
        }
    }
});

rule!(never_expired, |world| {
    for (id, state) in world.published() {
        assert!(state.identities.iter().all(|one| world.now <= one.svid.lifetime().not_after), "to {id}");
    }
});

rule!(at_once, |world| {
    for (id, state) in &world.told {
        let entitling = world.entitling(*id);
        let gone = |one: &&Identity| {
            world.now > one.svid.lifetime().not_after
                || !entitling.iter().any(|entry| entry.id == one.entry.id && entry.spiffe_id == *one.svid.id())
        };
        let (gone, good): (Vec<_>, Vec<_>) = state.identities.iter().partition(gone);
        // The one exception: nothing else is left, and an answer is to come.
        let awaited =
            good.is_empty() && world.asked.iter().any(|asked| entitling.iter().any(|entry| entry.id == asked.id));
        assert!(gone.is_empty() || awaited, "{id} still has {gone:?}");
    }
});

rule!(no_empty_state_by_haste, |world| {
    for (id, _) in world.published().filter(|(_, state)| state.identities.is_empty()) {
        for entry in world.entitling(id) {
            assert!(!world.connected || world.answered.contains(&entry.id), "{} had no answer yet", entry.id);
        }
    }
});

rule!(hints, |world| {
    for (_, state) in world.published() {
        let mut seen = HashSet::new();
        for one in state.identities.iter() {
            let first = seen.insert(one.entry.hint.clone());
            assert_eq!(*one.hint, *if first { one.entry.hint.as_str() } else { "" });
        }
    }
});

rule!(no_repeats, |world| {
    for (id, state) in world.published() {
        assert_ne!(world.told_before.get(&id), Some(state));
    }
});

rule!(acknowledge, |world| {
    let at = world.actions.iter().position(|action| matches!(action, Action::Acknowledge(_)));
    if let Some(at) = at {
        assert_eq!(at + 1, world.actions.len(), "something follows");
        assert!(matches!(world.actions[at], Action::Acknowledge(revision) if revision == world.revision));
    }
});

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn everyone_gets_everything_in_the_end(ops in prop::collection::vec(op(), 1..60)) {
        let mut world = walk(ops, |_| {});
        // Long wins: a clock that was put back must not leave SVIDs of the future behind.
        world.server.values_mut().for_each(|entry| entry.expires_at = None);
        world.come_to_rest();
        for id in world.subscribers.keys() {
            let state = world.told.get(id).expect("told");
            let has: Vec<_> = state.identities.iter().map(|one| one.svid.id()).collect();
            let wants: Vec<_> = world.entitling(*id).into_iter().map(|entry| &entry.spiffe_id).collect();
            prop_assert_eq!(has, wants);
            for one in state.identities.iter() {
                prop_assert!(one.svid.lifetime().contains(world.now), "{:?} at {}", one.svid.lifetime(), world.now);
                prop_assert!(one.svid.clone().verify(&world.bundle, world.now).is_ok());
                prop_assert!(!one.svid.is_tainted_by(&world.bundle));
            }
            prop_assert_eq!(&state.bundle, &world.bundle);
        }
    }

    #[test]
    fn server_gone(ops in prop::collection::vec(op(), 1..60), mask in 1..16_u8) {
        let mut world = walk(ops, |_| {});
        world.step(Op::Gone);
        world.step(Op::Subscribe(mask));
        let id = world.next_subscriber - 1;
        prop_assert_eq!(world.issued().count(), 0);
        // Whoever asks now gets all that is held and valid for it.
        let good = |entry: &&RegistrationEntry| world.machine.slots[&entry.id].is_good(world.now);
        let held: Vec<_> = world.entitling(id).into_iter().filter(good).map(|entry| entry.id.clone()).collect();
        let told = world.told.get(&id).map(|state| state.identities.iter().map(|one| one.entry.id.clone()).collect());
        prop_assert_eq!(told.unwrap_or_else(Vec::new), held);
    }
}

/// A world with one entry and one subscriber, told.
fn settled() -> World {
    let mut world = World::new();
    world.server.insert(entry(1).id, entry(1));
    world.snapshot();
    world.step(Op::AnswerAll);
    world.step(Op::Subscribe(1));
    assert_eq!(world.told[&0].identities.len(), 1);
    world
}

#[test]
fn refusal() {
    let mut world = settled();
    let first = world.told[&0].clone();
    let end = first.identities[0].svid.lifetime().not_after;
    let second = RegistrationEntry { selectors: selectors(2), ..entry(2) };
    let mut attempts = 0;
    while world.now < end {
        world.pass(world.machine.next_wake().unwrap().min(end));
        attempts += world.asked.len();
        // Nobody waits for another's refusal.
        if attempts == 3 {
            world.server.insert(second.id.clone(), second.clone());
            world.change(Update { entries: vec![second.clone()], ..Update::default() });
            assert_eq!(world.issued().map(|entry| &entry.id).collect::<Vec<_>>(), [&second.id]);
            world.answer(vec![Arc::new(second.clone())], How::Issued);
        }
        world.answer(world.asked.clone(), How::Refused);
        assert_eq!(world.told[&0], first, "the old SVID stays");
    }
    assert!((4..40).contains(&attempts), "{attempts}");
    world.pass(end.plus(SECOND));
    world.answer(world.asked.clone(), How::Refused);
    assert!(world.told[&0].identities.is_empty(), "expired, and told so");
    // A change of the entry is tried at once.
    let changed = RegistrationEntry { dns_names: vec!["web".parse().unwrap()], ..entry(1) };
    world.server.insert(changed.id.clone(), changed.clone());
    world.change(Update { entries: vec![changed], ..Update::default() });
    assert_eq!(world.asked.len(), 1);
}

#[test]
fn clock() {
    let mut world = settled();
    let issued = world.told[&0].identities[0].svid.lifetime();
    // Put forward past the end: gone and asked for in the same step, and held back while the answer is to come.
    world.pass(issued.not_after.plus(Duration::from_secs(7200)));
    assert_eq!(world.asked.len(), 1);
    world.step(Op::AnswerAll);
    assert!(world.told[&0].identities[0].svid.lifetime().contains(world.now));
    // Put back before the beginning: asked for at once, and served meanwhile.
    let before = world.told[&0].clone();
    world.pass(START);
    assert_eq!((world.asked.len(), &world.told[&0]), (1, &before));
    // A wait that began in the future is over.
    world.answer(world.asked.clone(), How::Failed);
    world.pass(world.now.minus(Duration::from_secs(86_400 / 2)));
    assert_eq!(world.asked.len(), 1);
    world.step(Op::AnswerAll);
    assert!(world.told[&0].identities[0].svid.lifetime().contains(world.now));
}

#[test]
fn what_is_inside_an_svid_is_reissued_and_what_is_not_is_told() {
    let mut world = settled();
    let put = |world: &mut World, entry: RegistrationEntry| {
        world.server.insert(entry.id.clone(), entry.clone());
        world.change(Update { entries: vec![entry], ..Update::default() });
    };
    put(&mut world, RegistrationEntry { hint: "new".into(), ..entry(1) });
    assert_eq!((world.asked.len(), &*world.told[&0].identities[0].hint), (0, "new"));
    let with_name = RegistrationEntry { dns_names: vec!["web".parse().unwrap()], ..entry(1) };
    put(&mut world, with_name.clone());
    assert_eq!((world.asked.len(), world.told[&0].identities.len()), (1, 1), "the old one stays meanwhile");
    world.step(Op::AnswerAll);
    put(&mut world, RegistrationEntry { spiffe_id: domain("example.org").member("/new").unwrap(), ..with_name });
    world.step(Op::AnswerAll);
    assert_eq!(world.told[&0].identities[0].svid.id().path(), "/new");
}

#[test]
fn a_taint_replaces_everything_by_batches() {
    let mut world = World::new();
    world.machine = Machine::new(own_bundle(false, false, 1), 2000);
    for number in 0..1200_u32 {
        let id = EntryId::parse(&format!("e{number}")).unwrap();
        world.server.insert(id.clone(), RegistrationEntry { id, ..entry(1) });
    }
    world.snapshot();
    let mut rounds = Vec::new();
    while !world.asked.is_empty() {
        rounds.push(world.asked.len());
        world.step(Op::AnswerAll);
    }
    assert_eq!(rounds, [500, 500, 200]);
    world.step(Op::Taint);
    assert_eq!(world.asked.len(), 500);
    while !world.asked.is_empty() {
        world.step(Op::AnswerAll);
    }
    let tainted = |slot: &Slot| slot.held.as_ref().unwrap().svid.is_tainted_by(&world.bundle);
    assert!(!world.machine.slots.values().any(tainted));
}

#[test]
fn a_server_that_goes_on_signing_with_a_tainted_root_is_not_hammered() {
    let mut world = settled();
    world.step(Op::Taint);
    world.root = 0;
    let mut attempts = 0;
    let end = world.now.plus(Duration::from_secs(60));
    while world.now < end {
        attempts += world.asked.len();
        world.answer(world.asked.clone(), How::Issued);
        world.pass(world.machine.next_wake().unwrap());
    }
    assert!((2..15).contains(&attempts), "{attempts}");
}
