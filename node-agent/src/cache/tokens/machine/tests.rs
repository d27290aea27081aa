//! The world around a machine, and walks through it: for the rules over random walks, and for the stories.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use spiffe::bundle::JwkAuthority;
use spiffe::id::TrustDomain;
use spiffe::jwt_svid::JwtSvid;
use spiffe::selector::Selectors;

use super::*;
use crate::client::Update;
use crate::test_tokens::{TokenKey, audience};

mod properties;
mod stories;

const START: Timestamp = Timestamp::from_unix(1_800_000_000);
const LIFE: Duration = Duration::from_secs(300);
const BOUNDS: Bounds = Bounds { all: 5, per_entry: 3 };
const AUDIENCES: [&[&str]; 5] = [&["a"], &["b"], &["c"], &["a", "b"], &[LARGE, "a"]];
/// Too large to be held.
const LARGE: &str = match str::from_utf8(&[b'"'; 512]) {
    Ok(text) => text,
    Err(_) => panic!(),
};

static KEYS: LazyLock<[TokenKey; 2]> = LazyLock::new(|| [TokenKey::new(), TokenKey::new()]);

fn domain() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

fn bundle(keys: Vec<JwkAuthority>) -> Bundle {
    Bundle::empty(domain()).with_jwk_authorities(keys, Vec::new()).unwrap()
}

fn entry(number: u8) -> RegistrationEntry {
    RegistrationEntry {
        id: EntryId::parse(&format!("e{number}")).unwrap(),
        spiffe_id: domain().member(&format!("/w{number}")).unwrap(),
        parent: domain().agent_id("join_token", "1").unwrap(),
        selectors: Selectors::parse(["unix:uid:1"]).unwrap(),
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

/// A token as the server makes it, verified when it arrives.
fn issued(entry: &RegistrationEntry, audience: &Audience, key: usize, now: Timestamp) -> VerifiedJwtSvid {
    type Made = Mutex<HashMap<(RegistrationKey, Audience, usize, Timestamp), VerifiedJwtSvid>>;
    type RegistrationKey = (String, Option<Duration>);
    static MADE: LazyLock<Made> = LazyLock::new(Mutex::default);
    let make = || {
        let life = entry.jwt_ttl.unwrap_or(LIFE);
        let token = KEYS[key].jwt_svid(&entry.spiffe_id, audience, (now, life), None);
        let svid = JwtSvid::parse(&token).unwrap();
        svid.verify(&bundle(vec![KEYS[key].authority()]), &audience.values()[0], now).unwrap()
    };
    let name = ((entry.spiffe_id.to_string(), entry.jwt_ttl), audience.clone(), key, now);
    MADE.lock().unwrap().entry(name).or_insert_with(make).clone()
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Put {
        number: u8,
        other_id: bool,
        short: bool,
        jti: bool,
        hint: bool,
    },
    Remove(u8),
    Gone,
    Back,
    Taint,
    RemoveKey,
    Want {
        entry: u8,
        audience: u8,
    },
    Leave(u8),
    /// As a door does that finds a token.
    Use(u8),
    Answer {
        which: u8,
        how: How,
    },
    Advance(u16),
    PutBack(u16),
    ToNextWake,
}

#[derive(Clone, Copy, Debug)]
enum How {
    Issued,
    Refused,
    Failed,
}

fn op() -> impl Strategy<Value = Op> {
    let put = (0..4_u8, any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    prop_oneof![
        3 => put.prop_map(|(number, other_id, short, jti, hint)| {
            Op::Put { number, other_id: other_id && number == 0, short: short && number == 1, jti: jti && number == 2, hint }
        }),
        1 => (0..4_u8).prop_map(Op::Remove),
        1 => Just(Op::Gone),
        1 => Just(Op::Back),
        1 => Just(Op::Taint),
        1 => Just(Op::RemoveKey),
        10 => (0..4_u8, 0..5_u8).prop_map(|(entry, audience)| Op::Want { entry, audience }),
        1 => any::<u8>().prop_map(Op::Leave),
        4 => any::<u8>().prop_map(Op::Use),
        8 => (any::<u8>(), prop_oneof![4 => Just(How::Issued), 1 => Just(How::Refused), 1 => Just(How::Failed)])
            .prop_map(|(which, how)| Op::Answer { which, how }),
        4 => (1..200_u16).prop_map(Op::Advance),
        1 => (1..600_u16).prop_map(Op::PutBack),
        4 => Just(Op::ToNextWake),
    ]
}

/// The world around a machine: what the server knows, what is under way, who waits.
struct World {
    machine: Machine,
    now: Timestamp,
    entries: BTreeMap<EntryId, RegistrationEntry>,
    keys: Vec<JwkAuthority>,
    /// The key that signs.
    key: usize,
    connected: bool,
    was_put_back: bool,
    next_waiter: WaiterId,
    waiting: BTreeMap<WaiterId, Name>,
    calls: Vec<Vec<Request>>,
    /// Of the last step.
    actions: Vec<Action>,
    held_before: Vec<(Name, Arc<Token>)>,
    answered: Vec<Name>,
    told: Vec<(Name, Told)>,
    /// For which entry somebody has asked in the last step.
    wanted: Option<EntryId>,
    /// The marks of everything that anyone was told.
    given: Vec<Arc<Token>>,
}

impl World {
    fn new() -> Self {
        let keys: Vec<_> = KEYS.iter().map(TokenKey::authority).collect();
        let mut world = Self {
            machine: Machine::new(Directory::new(bundle(keys.clone())), BOUNDS),
            now: START,
            entries: (0..4).map(|number| (entry(number).id, entry(number))).collect(),
            keys,
            key: 0,
            connected: false,
            was_put_back: false,
            next_waiter: 0,
            waiting: BTreeMap::new(),
            calls: Vec::new(),
            actions: Vec::new(),
            held_before: Vec::new(),
            answered: Vec::new(),
            told: Vec::new(),
            wanted: None,
            given: Vec::new(),
        };
        world.learn();
        world
    }

    fn handle(&mut self, event: Event) {
        self.held_before = self.held();
        self.actions = self.machine.handle(event, self.now);
        self.told.clear();
        for action in &self.actions {
            match action {
                Action::Issue(requests) => self.calls.push(requests.clone()),
                Action::Tell(waiter, told) => {
                    let name = self.waiting.remove(waiter).expect("told once, and only who waits");
                    if let Told::Token(token) = told {
                        self.given.push(token.clone());
                    }
                    self.told.push((name, told.clone()));
                }
            }
        }
    }

    fn held(&self) -> Vec<(Name, Arc<Token>)> {
        self.machine.tokens().iter().map(|(name, token)| (name.clone(), token.clone())).collect()
    }

    fn slot(&self, name: &Name) -> &slot::Slot {
        self.machine.shelves.at(name).unwrap()
    }

    fn directory(&self) -> Directory {
        let mut directory = Directory::new(bundle(self.keys.clone()));
        let entries = self.entries.values().cloned().map(Arc::new).collect();
        directory.apply(&Update { entries, ..Update::default() });
        directory
    }

    fn learn(&mut self) {
        self.connected = true;
        self.handle(Event::Known(Box::new(self.directory())));
    }

    /// A change that arrives where there is a connection.
    fn change(&mut self) {
        if self.connected {
            self.learn();
        }
    }

    fn want(&mut self, number: u8, which: usize) -> WaiterId {
        self.want_for(number, audience(AUDIENCES[which]))
    }

    fn want_for(&mut self, number: u8, audience: Audience) -> WaiterId {
        self.next_waiter += 1;
        let name = (entry(number).id, audience);
        self.wanted = Some(name.0.clone());
        self.waiting.insert(self.next_waiter, name.clone());
        self.handle(Event::Wanted(vec![(self.next_waiter, name.0, name.1)]));
        self.next_waiter
    }

    fn answer(&mut self, call: usize, how: How) {
        let requests = self.calls.remove(call);
        self.answered = requests.iter().map(|request| (request.entry.id.clone(), request.audience.clone())).collect();
        let outcome = |request: &Request| match (how, self.entries.get(&request.entry.id)) {
            (How::Issued, Some(entry)) if self.connected => {
                Outcome::Issued(issued(entry, &request.audience, self.key, self.now))
            }
            (How::Refused, _) => Outcome::Refused("not this one".into()),
            _ => Outcome::Failed,
        };
        let answers =
            requests.iter().map(|request| Answer { request: request.id, outcome: outcome(request) }).collect();
        self.handle(Event::Answered(answers));
    }

    fn answer_all(&mut self) {
        while !self.calls.is_empty() {
            self.answer(0, How::Issued);
        }
    }

    fn pass(&mut self, to: Timestamp) {
        self.now = to;
        self.handle(Event::Tick);
    }

    fn step(&mut self, op: Op) {
        self.answered.clear();
        self.wanted = None;
        match op {
            Op::Put { number, other_id, short, jti, hint } => {
                let mut entry = entry(number);
                if other_id {
                    entry.spiffe_id = domain().member("/other").unwrap();
                }
                entry.jwt_ttl = short.then_some(Duration::from_secs(60));
                entry.jti = jti;
                entry.hint = if hint { "x".into() } else { String::new() };
                self.entries.insert(entry.id.clone(), entry);
                self.change();
            }
            Op::Remove(number) => {
                self.entries.remove(&entry(number).id);
                self.change();
            }
            Op::Gone => {
                self.connected = false;
                self.handle(Event::ServerGone);
            }
            Op::Back => self.learn(),
            Op::Taint => {
                self.key = 1;
                self.keys = vec![KEYS[0].authority().with_taint(true), KEYS[1].authority()];
                self.change();
            }
            Op::RemoveKey => {
                self.key = 1;
                self.keys = vec![KEYS[1].authority()];
                self.change();
            }
            Op::Want { entry, audience } => drop(self.want(entry, usize::from(audience))),
            Op::Leave(which) => {
                if let Some(waiter) = pick(self.waiting.keys().copied(), which) {
                    self.waiting.remove(&waiter);
                    self.handle(Event::Left(waiter));
                }
            }
            Op::Use(which) => {
                if let Some((_, token)) = pick(self.held().into_iter(), which)
                    && token.is_good(self.now)
                {
                    token.use_at(self.now);
                }
            }
            Op::Answer { which, how } => {
                if !self.calls.is_empty() {
                    self.answer(usize::from(which) % self.calls.len(), how);
                }
            }
            Op::Advance(seconds) => self.pass(self.now.plus(Duration::from_secs(seconds.into()))),
            Op::PutBack(seconds) => {
                self.was_put_back = true;
                self.pass(self.now.minus(Duration::from_secs(seconds.into())));
            }
            Op::ToNextWake => {
                if let Some(at) = self.machine.next_wake() {
                    self.pass(at);
                }
            }
        }
    }

    /// What is queued or under way for the tokens that are held, and for single calls.
    fn jobs(&self) -> Vec<&Job> {
        self.machine.queue.values().chain(self.machine.under_way.values().map(|asked| &asked.job)).collect()
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
