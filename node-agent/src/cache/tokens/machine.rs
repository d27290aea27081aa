//! Which JWT-SVIDs are held, and which are asked for: events go in, actions come out. Pure, but that doors mark the tokens
//! that they use ([`Token::use_at`]).
//!
//! - *one for each*: for each entry and audience at most one token is held, and at most one request is queued or under
//!   way, however many wait for it.
//! - *batches*: at most [`MAX_CALLS`] calls to the server are under way; what is wanted meanwhile goes with the next, up
//!   to [`MAX_BATCH`] and [`MAX_BATCH_BYTES`] at once, those that somebody waits for first.
//! - *renewal*: a token that was used since it came is asked for anew before half of its life; one that was not is let
//!   go then. Without a server everything stays as long as it is good.
//! - *alone*: a token of an entry marked `jti`, or for an audience larger than [`MAX_HELD_BYTES`], is never held: each call
//!   gets one of its own, or the first failure.
//! - *at once*: a token is dropped in the same step in which its entry goes or changes what is inside of it, or in which
//!   the key that signed it is tainted or leaves the bundle. In the last case one that was used is asked for anew.
//! - *never expired*: a token is not given out with less than a few seconds of life.
//! - *refusal*: those who wait are told; for a while nobody else is asked about it. What is held stays.
//! - *failure*: those who wait go on waiting (how long is their affair), and it is tried again after a while.
//! - *everyone is told*: once there is a token, a refusal or no entry, nobody waits for it any more.
//! - *clock*: a token that came in the future is renewed or let go, and a wait that began then is over: the clock was put
//!   back.
//! - *bounds*: there are at most so many names in all, and for one entry. Room is made by the entry that has the most
//!   names, if it has more than the one that needs room, and else by that one itself; there by the name that was used
//!   least lately. Where none can, and without a server, the call gets a token of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use spiffe::bundle::Bundle;
use spiffe::entry::{EntryId, RegistrationEntry};
use spiffe::jwt_svid::{Audience, VerifiedJwtSvid};
use spiffe::time::{Timestamp, renew_at};

use self::shelves::Shelves;
use self::slot::Progress;
use super::{Name, Token, Tokens, Told, is_the_same_for};
use crate::cache::attempts::{Attempts, Failure};
use crate::cache::directory::Directory;

mod shelves;
mod slot;

/// The most requests in one [`Action::Issue`]: a server takes no more.
pub const MAX_BATCH: usize = 500;
/// The most bytes of one, by [`Request::bytes`]; the last request may go beyond. A server takes 1 MiB, so half of it leaves
/// room. So does the answer: base64 makes a third more of it, and beside the audiences 500 tokens have less than 8 KiB each,
/// in all half of the 16 MiB that the client takes.
pub const MAX_BATCH_BYTES: usize = 512 << 10;
/// The largest audience, by [`Audience::json_bytes`], for which a token is held: what is held has a bound in bytes, too.
pub const MAX_HELD_BYTES: usize = 1 << 10;
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

impl Request {
    /// How much it adds to a batch. What its audience adds to the answer, before that is base64, is in it.
    pub fn bytes(&self) -> usize {
        // Protobuf puts no more around the parts than JSON does, and this.
        const FRAME: usize = 16;
        self.entry.id.as_str().len() + self.audience.json_bytes() + FRAME
    }
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
    directory: Directory,
    connected: bool,
    shelves: Shelves,
    tokens: Tokens,
    waiters: BTreeMap<WaiterId, Waiting>,
    /// In this order: what somebody waits for first, then by age.
    queue: BTreeMap<Place, Job>,
    under_way: BTreeMap<RequestId, Asked>,
    calls: usize,
    /// When to look at which slot again.
    agenda: BTreeSet<(Timestamp, Name)>,
    next_number: u64,
    last_look: Timestamp,
}

/// What one waits for.
#[derive(Debug)]
struct Waiting {
    name: Name,
    /// Where it was put in the queue, if it gets a token of its own.
    alone: Option<Place>,
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

impl Machine {
    /// A cache that holds nothing.
    pub fn new(directory: Directory, bounds: Bounds) -> Self {
        Self {
            directory,
            connected: false,
            shelves: Shelves::new(bounds),
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
            self.shelves.names().iter().for_each(|name| self.review(name, now));
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
        for id in self.shelves.ids() {
            let names = self.shelves.names_of(&id);
            let Some(shelf) = self.shelves.shelf(&id) else { continue };
            let same = self.directory.entry(&id).filter(|entry| is_the_same_for(&shelf.entry, entry));
            if let Some(entry) = same {
                shelf.entry = entry.clone();
                for name in names {
                    let bundle = self.directory.own();
                    let Some(slot) = self.shelves.slot(&name) else { continue };
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
        let is_never_held = entry.jti || name.1.json_bytes() > MAX_HELD_BYTES;
        if is_never_held || !self.has_room(&name) {
            let alone = Some(self.enqueue(Job::Alone(waiter), false));
            self.waiters.insert(waiter, Waiting { name, alone });
            return;
        }
        let slot = self.shelves.put(&name, entry, now);
        slot.wanted_at = now;
        if let Some(token) = slot.held.as_ref().filter(|token| token.is_good(now)) {
            token.use_at(now);
            actions.push(Action::Tell(waiter, Told::Token(token.clone())));
        } else if slot.attempts.failure() == Failure::Permanent && slot.attempts.wait(now).is_some() {
            actions.push(Action::Tell(waiter, Told::Refused(slot.refusal.clone())));
        } else {
            slot.waiters.insert(waiter);
            self.waiters.insert(waiter, Waiting { name: name.clone(), alone: None });
        }
        self.review(&name, now);
    }

    fn leave(&mut self, waiter: WaiterId, now: Timestamp) {
        let Some(Waiting { name, alone }) = self.waiters.remove(&waiter) else { return };
        if let Some(place) = alone {
            // Where it is under way already, nobody stands there: places are never used twice.
            self.queue.remove(&place);
        } else if self.shelves.slot(&name).is_some_and(|slot| slot.waiters.remove(&waiter)) {
            self.review(&name, now);
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
        let Some(slot) = self.shelves.slot(&name).filter(|slot| slot.progress == Progress::UnderWay(answer.request))
        else {
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
            let waiters = self.shelves.slot(&name).map(|slot| std::mem::take(&mut slot.waiters)).unwrap_or_default();
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
        let Some(Waiting { name, .. }) = self.waiters.remove(&waiter) else { return };
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
        let Some(slot) = self.shelves.slot(name) else { return };
        if slot.held.take_if(|token| !token.is_good(now)).is_some() {
            self.tokens.remove_mut(name);
        }
        let connected = self.connected;
        let Some(slot) = self.shelves.slot(name) else { return };
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
                if let Some(slot) = self.shelves.slot(name) {
                    slot.progress = Progress::Queued(place);
                }
            }
            // Its token has expired in the queue, and somebody waits now.
            (Progress::Queued(place @ (true, _)), Some(true)) => {
                self.queue.remove(&place);
                let place = self.enqueue(Job::Held(name.clone()), false);
                if let Some(slot) = self.shelves.slot(name) {
                    slot.progress = Progress::Queued(place);
                }
            }
            (Progress::Queued(place), None) => {
                self.queue.remove(&place);
                if let Some(slot) = self.shelves.slot(name) {
                    slot.progress = Progress::Idle;
                }
            }
            _ => {}
        }
        self.note(name, wait, now);
    }

    /// Puts the slot on the agenda for the next moment at which time alone changes something, and notes whether it can make
    /// room.
    fn note(&mut self, name: &Name, wait: Option<Timestamp>, now: Timestamp) {
        let Some(slot) = self.shelves.slot(name) else { return };
        let expiry = slot.held.as_ref().map(|token| token.given_until);
        let renewal = slot.held.as_ref().map(|_| slot.renew_at);
        let next = [expiry, renewal, wait].into_iter().flatten().filter(|at| *at > now).min();
        let before = std::mem::replace(&mut slot.look_at, next);
        before.map(|at| self.agenda.remove(&(at, name.clone())));
        self.agenda.extend(next.map(|at| (at, name.clone())));
        self.shelves.settle(name);
    }

    fn enqueue(&mut self, job: Job, in_background: bool) -> Place {
        self.next_number += 1;
        let place = (in_background, self.next_number);
        self.queue.insert(place, job);
        place
    }

    fn issue(&mut self, actions: &mut Vec<Action>) {
        while self.connected && self.calls < MAX_CALLS {
            let (mut batch, mut bytes) = (Vec::new(), 0);
            while batch.len() < MAX_BATCH
                && bytes < MAX_BATCH_BYTES
                && let Some((_, job)) = self.queue.pop_first()
            {
                let request = self.request(job, actions);
                bytes += request.as_ref().map_or(0, Request::bytes);
                batch.extend(request);
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
            Job::Alone(waiter) => self.waiters.get(waiter)?.name.clone(),
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
            self.shelves.slot(name)?.progress = Progress::UnderWay(request.id);
        }
        let asked = Asked { job, entry: request.entry.clone(), bundle: self.directory.own().clone() };
        self.under_way.insert(request.id, asked);
        Some(request)
    }

    /// Whether there is, or can be made, a slot of this name.
    fn has_room(&mut self, name: &Name) -> bool {
        if self.shelves.has_room(name) {
            return true;
        }
        // Without a server nothing can come for which something good would have to go.
        let spare = self.connected.then(|| self.shelves.spare_for(&name.0)).flatten();
        spare.is_some_and(|spare| {
            self.remove(&spare);
            true
        })
    }

    /// Forgets a slot; who waited there.
    fn remove(&mut self, name: &Name) -> BTreeSet<WaiterId> {
        let Some(slot) = self.shelves.remove(name) else { return BTreeSet::new() };
        self.tokens.remove_mut(name);
        if let Progress::Queued(place) = slot.progress {
            self.queue.remove(&place);
        }
        if let Some(at) = slot.look_at {
            self.agenda.remove(&(at, name.clone()));
        }
        slot.waiters
    }
}

/// Before half of the token's life, give or take a tenth.
fn renewal(token: &Token, now: Timestamp) -> Timestamp {
    let life = token.svid().expires_at().since(now);
    renew_at(now, now.plus(life * 4 / 5), token.svid().token().as_bytes()).max(now.plus(Duration::from_secs(1)))
}

#[cfg(test)]
mod tests;
