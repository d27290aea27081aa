//! The world around a machine, and walks through it: for the rules over random walks, and for the stories.

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

mod properties;
mod stories;

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

/// Whether the root of `svid` is tainted in `bundle`, or not in it.
fn has_fallen(svid: &X509Svid, bundle: &Bundle) -> bool {
    svid.is_tainted_by(bundle) || svid.clone().verify(bundle, svid.lifetime().not_before).is_err()
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
        jwt_ttl: None,
        wit_ttl: None,
        jti: false,
        dns_names: Vec::new(),
        hint: String::new(),
        admin: false,
        federates_with: Vec::new(),
        expires_at: None,
        key_type: None,
        created_at: Timestamp::from_unix(u64::from(number)),
        rule: None,
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
    /// Entries whose last answer was no SVID, or one below a root that is not trusted.
    in_vain: HashSet<EntryId>,
    acknowledged: u64,
    /// Entries that were gone, or another's, or nobody's when their last SVID had ended, since that was issued; perhaps while
    /// their subscribers' states were held back.
    begun_anew: HashSet<EntryId>,
    /// When the last SVID of each entry ends.
    ends: BTreeMap<EntryId, Timestamp>,
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
            in_vain: HashSet::new(),
            acknowledged: 0,
            begun_anew: HashSet::new(),
            ends: BTreeMap::new(),
            number: 0,
            actions: Vec::new(),
            told_before: BTreeMap::new(),
            asked_before: Vec::new(),
        }
    }

    fn handle(&mut self, event: Event) {
        self.told_before = self.told.clone();
        self.asked_before = self.asked.iter().map(|entry| entry.id.clone()).collect();
        for (id, end) in &self.ends {
            let matches = |found: &Selectors| self.known.get(id).is_some_and(|it| it.selectors.is_subset_of(found));
            if self.now > *end && !self.subscribers.values().any(matches) {
                self.begun_anew.insert(id.clone());
            }
        }
        self.actions = self.machine.handle(event, self.now);
        for action in &self.actions {
            match action {
                Action::Issue(entries) => self.asked.extend(entries.iter().cloned()),
                Action::Publish(id, state) => {
                    self.told.insert(*id, state.clone());
                }
                Action::Acknowledge(revision) => self.acknowledged = *revision,
                Action::Trust(_) => {}
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
            entries: self.server.values().cloned().map(Arc::new).collect(),
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
            let outcome: Outcome = match (how, entry) {
                (How::Issued, Some(entry)) => {
                    self.number = (self.number + 1) % 4;
                    let ttl = entry.x509_ttl.unwrap_or(Duration::from_secs(3600));
                    let svid = svid(&entry.spiffe_id, self.root, self.now, ttl, self.number);
                    Outcome::Issued { svid, key: key() }
                }
                (How::Issued | How::Failed, _) => Outcome::Failed,
                (How::Refused, _) => Outcome::Refused,
            };
            let helps = |svid: &VerifiedSvid| !has_fallen(svid, &self.machine.own);
            match &outcome {
                Outcome::Issued { svid, .. } if helps(svid) => self.in_vain.remove(&asked.id),
                _ => self.in_vain.insert(asked.id.clone()),
            };
            if let Outcome::Issued { svid, .. } = &outcome {
                self.begun_anew.remove(&asked.id);
                self.ends.insert(asked.id.clone(), svid.lifetime().not_after);
            }
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
                let before = self.server.insert(entry.id.clone(), entry.clone());
                if before.is_some_and(|before| before.spiffe_id != entry.spiffe_id) {
                    self.begun_anew.insert(entry.id.clone());
                }
                self.change(Update { entries: vec![Arc::new(entry)], ..Update::default() });
            }
            Op::Remove(number) => {
                let id = entry(number).id;
                self.begun_anew.insert(id.clone());
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
