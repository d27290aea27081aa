//! Which JWT-SVIDs are held, and which are asked for: events go in, actions come out. Pure, but that doors mark the tokens
//! that they use ([`Token::use_at`]).
//!
//! - *one for each*: for each entry and audience at most one token is held, and at most one request is queued or under
//!   way, however many wait for it.
//! - *batches*: at most [`MAX_CALLS`] calls to the server are under way; what is wanted meanwhile goes with the next, up
//!   to [`MAX_BATCH`] at once, those that somebody waits for first.
//! - *renewal*: a token that was used since it came is asked for anew before half of its life; one that was not is let
//!   go then. Without a server everything stays as long as it is good.
//! - *jti*: a token of an entry marked `jti` is never held: each call gets one of its own, or the first failure.
//! - *at once*: a token is dropped in the same step in which its entry goes or changes what is inside of it, or in which
//!   the key that signed it is tainted or leaves the bundle. In the last case one that was used is asked for anew.
//! - *never expired*: a token is not given out with less than a few seconds of life.
//! - *refusal*: those who wait are told; for a while nobody else is asked about it. What is held stays.
//! - *failure*: those who wait go on waiting (how long is their affair), and it is tried again after a while.
//! - *everyone is told*: once there is a token, a refusal or no entry, nobody waits for it any more.
//! - *clock*: a token that came in the future is renewed or let go, and a wait that began then is over: the clock was put
//!   back.
//! - *bounds*: there are at most so many names in all, and for one entry; the one that was used least lately makes room.
//!   Where none can, the call gets a token of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use spiffe::bundle::Bundle;
use spiffe::entry::{EntryId, RegistrationEntry};
use spiffe::jwt_svid::{Audience, VerifiedJwtSvid};
use spiffe::time::{Timestamp, renew_at};

use super::{Name, Token, Tokens, Told, is_the_same_for};
use crate::cache::attempts::{Attempts, Failure};
use crate::cache::directory::Directory;

/// The most requests in one [`Action::Issue`].
pub const MAX_BATCH: usize = 500;
/// The most calls to the server at once.
pub const MAX_CALLS: usize = 4;

/// Who waits; given by the loop, never used twice.
pub type WaiterId = u64;
/// A request to the server; never used twice.
pub type RequestId = u64;

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// This is what the server says now.
    Known(Box<Directory>),
    /// There is no connection to any server.
    ServerGone,
    /// These ask for tokens that a door has not found.
    Wanted(Vec<(WaiterId, EntryId, Audience)>),
    /// This one waits no longer.
    Left(WaiterId),
    /// The answers to one whole [`Action::Issue`].
    Answered(Vec<Answer>),
    /// Time has passed.
    Tick,
}

/// What came of one request.
#[derive(Debug)]
pub struct Answer {
    /// Of which.
    pub request: RequestId,
    /// What came.
    pub outcome: Outcome,
}

/// A token, or none.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Verified against the bundle as it was when the token arrived.
    Issued(VerifiedJwtSvid),
    /// The server said no, and why.
    Refused(Arc<str>),
    /// It went wrong on the way.
    Failed,
}

/// What is to be done.
#[derive(Debug)]
pub enum Action {
    /// Ask the server, and answer each request, whatever comes.
    Issue(Vec<Request>),
    /// Tell this one, who then waits no longer.
    Tell(WaiterId, Told),
}

/// One token to ask for.
#[derive(Clone, Debug)]
pub struct Request {
    /// To be named in the answer.
    pub id: RequestId,
    /// For this entry, as it was then.
    pub entry: Arc<RegistrationEntry>,
    /// For whom the token is to be.
    pub audience: Audience,
}

/// How many names there may be.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// In all.
    pub all: usize,
    /// For one entry.
    pub per_entry: usize,
}

/// The state of the cache. See the head of this file.
#[derive(Debug)]
pub struct Machine {
    bounds: Bounds,
    directory: Directory,
    connected: bool,
    shelves: BTreeMap<EntryId, Shelf>,
    /// How many slots there are on all shelves.
    slots: usize,
    tokens: Tokens,
    waiters: BTreeMap<WaiterId, Name>,
    /// In this order: what somebody waits for first, then by age.
    queue: BTreeMap<Place, Job>,
    under_way: BTreeMap<RequestId, Asked>,
    calls: usize,
    /// When to look at which slot again.
    agenda: BTreeSet<(Timestamp, Name)>,
    next_number: u64,
    last_look: Timestamp,
}

/// In the queue. `false`, which comes first: somebody waits.
type Place = (bool, u64);

/// For whom a request is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Job {
    Held(Name),
    /// For one call alone.
    Alone(WaiterId),
}

/// A request that is under way.
#[derive(Debug)]
struct Asked {
    job: Job,
    entry: Arc<RegistrationEntry>,
    /// Ours as it was then: what signs may have fallen meanwhile.
    bundle: Bundle,
}

/// The tokens of one entry.
#[derive(Debug)]
struct Shelf {
    entry: Arc<RegistrationEntry>,
    slots: BTreeMap<Audience, Slot>,
}

#[derive(Debug)]
struct Slot {
    held: Option<Arc<Token>>,
    renew_at: Timestamp,
    attempts: Attempts,
    refusal: Arc<str>,
    progress: Progress,
    waiters: BTreeSet<WaiterId>,
    /// A token that was used had to be dropped: get another although nobody waits.
    replace: bool,
    wanted_at: Timestamp,
    look_at: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Idle,
    Queued(Place),
    UnderWay(RequestId),
}

impl Slot {
    fn new(now: Timestamp) -> Self {
        Self {
            held: None,
            renew_at: now,
            attempts: Attempts::new(),
            refusal: Arc::from(""),
            progress: Progress::Idle,
            waiters: BTreeSet::new(),
            replace: false,
            wanted_at: now,
            look_at: None,
        }
    }

    fn last_used(&self) -> Timestamp {
        self.held.as_ref().map_or(self.wanted_at, |token| token.last_used().max(self.wanted_at))
    }

    fn can_make_room(&self) -> bool {
        self.progress == Progress::Idle && self.waiters.is_empty()
    }

    /// Whether the token that is held is to be renewed, or let go. One that came in the future is: the clock was put back.
    fn is_due(&self, now: Timestamp) -> bool {
        self.held.as_ref().is_some_and(|token| self.renew_at <= now || now < token.got_at)
    }

    /// What is to be asked for; `true`: somebody waits for it.
    fn wish(&self, now: Timestamp) -> Option<bool> {
        match &self.held {
            None if self.replace || !self.waiters.is_empty() => Some(true),
            Some(token) if self.is_due(now) && token.is_used() => Some(false),
            _ => None,
        }
    }
}

impl Machine {
    /// A cache that holds nothing.
    pub fn new(directory: Directory, bounds: Bounds) -> Self {
        Self {
            bounds,
            directory,
            connected: false,
            shelves: BTreeMap::new(),
            slots: 0,
            tokens: Tokens::new_sync(),
            waiters: BTreeMap::new(),
            queue: BTreeMap::new(),
            under_way: BTreeMap::new(),
            calls: 0,
            agenda: BTreeSet::new(),
            next_number: 0,
            last_look: Timestamp::default(),
        }
    }

    /// Takes in what happened, and says what is to be done.
    pub fn handle(&mut self, event: Event, now: Timestamp) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Known(directory) => self.learn(*directory, now, &mut actions),
            Event::ServerGone => self.connected = false,
            Event::Wanted(wanted) => {
                for (waiter, entry, audience) in wanted {
                    self.want(waiter, (entry, audience), now, &mut actions);
                }
            }
            Event::Left(waiter) => self.leave(waiter, now),
            Event::Answered(answers) => {
                self.calls = self.calls.saturating_sub(1);
                answers.into_iter().for_each(|answer| self.answered(answer, now, &mut actions));
            }
            Event::Tick => {}
        }
        if now < std::mem::replace(&mut self.last_look, now) {
            // The clock was put back: what was put on the agenda counts no more.
            self.names().iter().for_each(|name| self.review(name, now));
        }
        while self.agenda.first().is_some_and(|(at, _)| *at <= now)
            && let Some((_, name)) = self.agenda.pop_first()
        {
            self.review(&name, now);
        }
        self.issue(&mut actions);
        actions
    }

    /// When to send an [`Event::Tick`] at the latest, as of the last event.
    pub fn next_wake(&self) -> Option<Timestamp> {
        self.agenda.first().map(|(at, _)| *at)
    }

    /// What is held.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    fn learn(&mut self, directory: Directory, now: Timestamp, actions: &mut Vec<Action>) {
        self.directory = directory;
        let is_back = !std::mem::replace(&mut self.connected, true);
        let ids: Vec<EntryId> = self.shelves.keys().cloned().collect();
        for id in ids {
            let Some(shelf) = self.shelves.get_mut(&id) else { continue };
            let same = self.directory.entry(&id).filter(|entry| is_the_same_for(&shelf.entry, entry));
            let names: Vec<Name> = shelf.slots.keys().map(|audience| (id.clone(), audience.clone())).collect();
            if let Some(entry) = same {
                shelf.entry = entry.clone();
                for name in names {
                    let bundle = self.directory.own();
                    let Some(slot) = self.shelves.get_mut(&id).and_then(|shelf| shelf.slots.get_mut(&name.1)) else {
                        continue;
                    };
                    if is_back {
                        slot.attempts = Attempts::new();
                    }
                    if let Some(fallen) = slot.held.take_if(|token| !token.is_trusted_by(bundle)) {
                        slot.replace = fallen.is_used();
                        slot.attempts.end_wait();
                        self.tokens.remove_mut(&name);
                    }
                    self.review(&name, now);
                }
            } else {
                let gone: Vec<_> = names.into_iter().map(|name| (self.remove(&name), name)).collect();
                for (waiters, name) in gone {
                    for waiter in waiters {
                        self.waiters.remove(&waiter);
                        self.want(waiter, name.clone(), now, actions);
                    }
                }
            }
        }
    }

    fn want(&mut self, waiter: WaiterId, name: Name, now: Timestamp, actions: &mut Vec<Action>) {
        let Some(entry) = self.directory.entry(&name.0).filter(|entry| entry.is_live(now)).cloned() else {
            return actions.push(Action::Tell(waiter, Told::Gone));
        };
        if entry.jti || !self.has_room(&name) {
            self.waiters.insert(waiter, name);
            self.enqueue(Job::Alone(waiter), false);
            return;
        }
        let shelf = self.shelves.entry(name.0.clone()).or_insert_with(|| Shelf { entry, slots: BTreeMap::new() });
        let before = shelf.slots.len();
        let slot = shelf.slots.entry(name.1.clone()).or_insert_with(|| Slot::new(now));
        slot.wanted_at = now;
        if let Some(token) = slot.held.as_ref().filter(|token| token.is_good(now)) {
            token.use_at(now);
            actions.push(Action::Tell(waiter, Told::Token(token.clone())));
        } else if slot.attempts.failure() == Failure::Permanent && slot.attempts.wait(now).is_some() {
            actions.push(Action::Tell(waiter, Told::Refused(slot.refusal.clone())));
        } else {
            slot.waiters.insert(waiter);
            self.waiters.insert(waiter, name.clone());
        }
        self.slots += shelf.slots.len() - before;
        self.review(&name, now);
    }

    fn leave(&mut self, waiter: WaiterId, now: Timestamp) {
        let Some(name) = self.waiters.remove(&waiter) else { return };
        if self.slot(&name).is_some_and(|slot| slot.waiters.remove(&waiter)) {
            self.review(&name, now);
        } else {
            self.queue.retain(|_, job| *job != Job::Alone(waiter));
        }
    }

    fn answered(&mut self, answer: Answer, now: Timestamp, actions: &mut Vec<Action>) {
        let Some(asked) = self.under_way.remove(&answer.request) else { return };
        let token = self.token(&asked.entry, &answer.outcome, now);
        let name = match asked.job {
            Job::Held(name) => name,
            Job::Alone(waiter) => {
                return self.answered_alone((waiter, asked.entry), answer.outcome, token, now, actions);
            }
        };
        let is_outdated = asked.bundle != *self.directory.own();
        let Some(slot) = self.slot(&name).filter(|slot| slot.progress == Progress::UnderWay(answer.request)) else {
            // The entry has gone or changed meanwhile.
            return;
        };
        slot.progress = Progress::Idle;
        let replace = std::mem::take(&mut slot.replace);
        let mut told = None;
        match (answer.outcome, token) {
            (Outcome::Issued(_), Some(token)) => {
                if !slot.waiters.is_empty() {
                    token.use_at(now);
                }
                slot.renew_at = renewal(&token, now);
                slot.attempts = Attempts::new();
                slot.held = Some(token.clone());
                told = Some(Told::Token(token.clone()));
                self.tokens.insert_mut(name.clone(), token);
            }
            (Outcome::Refused(why), _) => {
                slot.refusal = why.clone();
                slot.attempts.fail(Failure::Permanent, name.0.as_str(), now);
                told = Some(Told::Refused(why));
            }
            // Signed by a key that has fallen since it was asked for.
            (Outcome::Issued(_), None) if is_outdated => slot.replace = replace,
            (Outcome::Issued(_) | Outcome::Failed, _) => {
                slot.attempts.fail(Failure::Transient, name.0.as_str(), now);
            }
        }
        if let Some(told) = told {
            let waiters = self.slot(&name).map(|slot| std::mem::take(&mut slot.waiters)).unwrap_or_default();
            for waiter in waiters {
                self.waiters.remove(&waiter);
                actions.push(Action::Tell(waiter, told.clone()));
            }
        }
        self.review(&name, now);
    }

    fn answered_alone(
        &mut self,
        (waiter, entry): (WaiterId, Arc<RegistrationEntry>),
        outcome: Outcome,
        token: Option<Arc<Token>>,
        now: Timestamp,
        actions: &mut Vec<Action>,
    ) {
        let Some(name) = self.waiters.remove(&waiter) else { return };
        if self.directory.entry(&name.0).is_none_or(|now| !is_the_same_for(&entry, now)) {
            return self.want(waiter, name, now, actions);
        }
        let told = match (outcome, token) {
            (Outcome::Issued(_), Some(token)) => Told::Token(token),
            (Outcome::Refused(why), _) => Told::Refused(why),
            (Outcome::Issued(_) | Outcome::Failed, _) => Told::Failed,
        };
        actions.push(Action::Tell(waiter, told));
    }

    /// What came for `entry`, if it may be given out.
    fn token(&self, entry: &RegistrationEntry, outcome: &Outcome, now: Timestamp) -> Option<Arc<Token>> {
        let Outcome::Issued(svid) = outcome else { return None };
        let token = Token::new(svid.clone().into_svid(), now);
        let fits = *svid.id() == entry.spiffe_id && token.is_trusted_by(self.directory.own());
        (fits && token.is_good(now)).then(|| Arc::new(token))
    }

    /// Looks at one slot: what is to be done about it now, and when to look again.
    fn review(&mut self, name: &Name, now: Timestamp) {
        let Some(slot) = self.slot(name) else { return };
        if slot.held.take_if(|token| !token.is_good(now)).is_some() {
            self.tokens.remove_mut(name);
        }
        let connected = self.connected;
        let Some(slot) = self.slot(name) else { return };
        let is_let_go = connected && slot.is_due(now) && slot.wish(now).is_none();
        let is_spent = slot.held.is_none() && slot.attempts.wait(now).is_none() && slot.wish(now).is_none();
        if slot.waiters.is_empty() && !matches!(slot.progress, Progress::UnderWay(_)) && (is_let_go || is_spent) {
            self.remove(name);
            return;
        }
        let (progress, wish, wait) = (slot.progress, slot.wish(now), slot.attempts.wait(now));
        match (progress, wish) {
            (Progress::Idle, Some(urgent)) if connected && wait.is_none() => {
                let place = self.enqueue(Job::Held(name.clone()), !urgent);
                if let Some(slot) = self.slot(name) {
                    slot.progress = Progress::Queued(place);
                }
            }
            // Its token has expired in the queue, and somebody waits now.
            (Progress::Queued(place @ (true, _)), Some(true)) => {
                self.queue.remove(&place);
                let place = self.enqueue(Job::Held(name.clone()), false);
                if let Some(slot) = self.slot(name) {
                    slot.progress = Progress::Queued(place);
                }
            }
            (Progress::Queued(place), None) => {
                self.queue.remove(&place);
                if let Some(slot) = self.slot(name) {
                    slot.progress = Progress::Idle;
                }
            }
            _ => {}
        }
        self.note(name, wait, now);
    }

    /// Puts the slot on the agenda for the next moment at which time alone changes something.
    fn note(&mut self, name: &Name, wait: Option<Timestamp>, now: Timestamp) {
        let Some(slot) = self.slot(name) else { return };
        let expiry = slot.held.as_ref().map(|token| token.given_until);
        let renewal = slot.held.as_ref().map(|_| slot.renew_at);
        let next = [expiry, renewal, wait].into_iter().flatten().filter(|at| *at > now).min();
        let before = std::mem::replace(&mut slot.look_at, next);
        before.map(|at| self.agenda.remove(&(at, name.clone())));
        self.agenda.extend(next.map(|at| (at, name.clone())));
    }

    fn enqueue(&mut self, job: Job, in_background: bool) -> Place {
        self.next_number += 1;
        let place = (in_background, self.next_number);
        self.queue.insert(place, job);
        place
    }

    fn issue(&mut self, actions: &mut Vec<Action>) {
        while self.connected && self.calls < MAX_CALLS {
            let mut batch = Vec::new();
            while batch.len() < MAX_BATCH
                && let Some((_, job)) = self.queue.pop_first()
            {
                batch.extend(self.request(job, actions));
            }
            if batch.is_empty() {
                return;
            }
            self.calls += 1;
            actions.push(Action::Issue(batch));
        }
    }

    fn request(&mut self, job: Job, actions: &mut Vec<Action>) -> Option<Request> {
        let (id, audience) = match &job {
            Job::Held(name) => name.clone(),
            Job::Alone(waiter) => self.waiters.get(waiter).cloned()?,
        };
        let Some(entry) = self.directory.entry(&id).cloned() else {
            if let Job::Alone(waiter) = job {
                self.waiters.remove(&waiter);
                actions.push(Action::Tell(waiter, Told::Gone));
            }
            return None;
        };
        self.next_number += 1;
        let request = Request { id: self.next_number, entry, audience };
        if let Job::Held(name) = &job {
            self.slot(name)?.progress = Progress::UnderWay(request.id);
        }
        let asked = Asked { job, entry: request.entry.clone(), bundle: self.directory.own().clone() };
        self.under_way.insert(request.id, asked);
        Some(request)
    }

    /// Whether there is, or can be made, a slot of this name.
    fn has_room(&mut self, name: &Name) -> bool {
        let slots = self.shelves.get(&name.0).map_or(0, |shelf| shelf.slots.len());
        if self.slot(name).is_some() {
            return true;
        }
        let full_shelf = slots >= self.bounds.per_entry;
        if !full_shelf && self.slots < self.bounds.all {
            return true;
        }
        let least = self
            .shelves
            .iter()
            .filter(|(id, _)| !full_shelf || **id == name.0)
            .flat_map(|(id, shelf)| shelf.slots.iter().map(move |(audience, slot)| (id, audience, slot)))
            .filter(|(_, _, slot)| slot.can_make_room())
            .min_by_key(|(_, _, slot)| slot.last_used());
        let Some((id, audience, _)) = least else { return false };
        let least = (id.clone(), audience.clone());
        self.remove(&least);
        true
    }

    /// Forgets a slot; who waited there.
    fn remove(&mut self, name: &Name) -> BTreeSet<WaiterId> {
        let Some(shelf) = self.shelves.get_mut(&name.0) else { return BTreeSet::new() };
        let Some(slot) = shelf.slots.remove(&name.1) else { return BTreeSet::new() };
        if shelf.slots.is_empty() {
            self.shelves.remove(&name.0);
        }
        self.slots -= 1;
        self.tokens.remove_mut(name);
        if let Progress::Queued(place) = slot.progress {
            self.queue.remove(&place);
        }
        if let Some(at) = slot.look_at {
            self.agenda.remove(&(at, name.clone()));
        }
        slot.waiters
    }

    fn names(&self) -> Vec<Name> {
        let names = |(id, shelf): (&EntryId, &Shelf)| {
            shelf.slots.keys().map(|audience| (id.clone(), audience.clone())).collect::<Vec<_>>()
        };
        self.shelves.iter().flat_map(names).collect()
    }

    fn slot(&mut self, name: &Name) -> Option<&mut Slot> {
        self.shelves.get_mut(&name.0)?.slots.get_mut(&name.1)
    }
}

/// Before half of the token's life, give or take a tenth.
fn renewal(token: &Token, now: Timestamp) -> Timestamp {
    let life = token.svid().expires_at().since(now);
    renew_at(now, now.plus(life * 4 / 5), token.svid().token().as_bytes()).max(now.plus(Duration::from_secs(1)))
}

#[cfg(test)]
mod tests;
