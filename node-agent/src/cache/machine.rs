//! Who needs what, when: events go in, actions come out. Pure. The same for all SVIDs that have a key of their own ([`Svid`]):
//! X.509-SVIDs, and WIT-SVIDs, whose *root* is the key that signs them.
//!
//! Entries and SVIDs
//! - *matching*: an entry gives its identity to a subscriber whose selectors include all of the entry's; an entry
//!   that names nodes, or that has expired, gives nothing.
//! - *prefetch*: the oldest entries up to a limit have their SVID before anyone asks; beyond it an entry is issued
//!   only while a subscriber matches it.
//! - *one in flight*: an entry is never asked for twice at once; a batch has at most [`MAX_BATCH`] entries, and
//!   only missing SVIDs that a subscriber waits for are asked for while a whole batch is out.
//! - *renewal*: an SVID is asked for anew at `renew_at(issued, not_after, serial)`, and at once when it has expired,
//!   when what is inside of it has changed in its entry, or when its root is tainted or gone from the bundle.
//! - *refusal*: the old SVID stays until it expires; the entry alone backs off. A change of the entry, and a server
//!   that has come back, end the wait.
//! - *clock*: a clock put back before an SVID's `not_before`, or before the beginning of a wait, makes it due at
//!   once. The SVID itself goes on being published until it is replaced: more likely the clock is wrong than it.
//!
//! States
//! - *whole*: a subscriber gets everything it is entitled to each time, sorted by (created, ID).
//! - *first state*: comes once each matching entry has its SVID, or has been refused one, or cannot get one because
//!   the server is gone. Before the first snapshot nobody is told anything.
//! - *never expired*: an expired SVID is not in any state. A state changes when an SVID in it expires.
//! - *at once*: what is removed, expired, or has another SPIFFE ID now, is gone from the next state, which is
//!   published in the same step.
//! - *no empty state by haste*: a state without any identity is held back while the first answer for a matching
//!   entry is still to come; a subscriber that never had a state waits on while all that fails is transient.
//! - *hints*: unique within a state; the oldest identity keeps it, later ones have none.
//! - *no repeats*: nothing is published twice unchanged.
//! - *server gone*: everything valid goes on being served, to new subscribers too.
//! - *acknowledge*: a revision is acknowledged behind everything that follows from it (trust, states), and not while a
//!   live entry's SVID is below a root that the bundle marks tainted, or has no more, and its replacement is still to
//!   come: whoever then takes the root away breaks nothing. The newest revision is acknowledged as soon as that has
//!   ended. One attempt at the replacement that was refused or failed ends it too: a refusal blocks nothing for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use spiffe::bundle::Bundle;
use spiffe::entry::{EntryId, Place, RegistrationEntry};
use spiffe::id::TrustDomain;
use spiffe::selector::Selectors;
use spiffe::time::{Timestamp, renew_at};
use spiffe::x509_svid::X509Svid;

use super::attempts::{Attempts, Failure};
use super::event::{Action, Answer, Event, Key, Outcome, SubscriberId};
use super::{Identity, Svid, WorkloadState};
use crate::client::Update;

/// The most entries in one [`Action::Issue`].
pub const MAX_BATCH: usize = 500;

const SECOND: Duration = Duration::from_secs(1);

/// The state of the cache. See the head of this file.
#[derive(Debug)]
pub struct Machine<S: Svid = X509Svid> {
    prefetch: usize,
    own: Bundle,
    foreign: BTreeMap<TrustDomain, Bundle>,
    /// As [`Place`] has it: this is the order of identities and of prefetching.
    order: BTreeSet<Place>,
    slots: BTreeMap<EntryId, Slot<S>>,
    /// What has been asked for, as it was then. Kept apart from the slots: an entry may go and come back meanwhile.
    asked: BTreeMap<EntryId, Asked>,
    subscribers: BTreeMap<SubscriberId, Subscriber<S>>,
    changed: BTreeSet<SubscriberId>,
    synced: bool,
    connected: bool,
    /// The newest revision, until it is acknowledged.
    unacknowledged: Option<u64>,
    next_wake: Option<Timestamp>,
}

#[derive(Debug)]
struct Asked {
    entry: Arc<RegistrationEntry>,
    /// A root was tainted or taken away meanwhile: look at what comes more closely.
    distrust: bool,
}

#[derive(Debug)]
struct Slot<S> {
    entry: Arc<RegistrationEntry>,
    held: Option<Held<S>>,
    attempts: Attempts,
    matched_by: BTreeSet<SubscriberId>,
    /// Whether the entry gave an identity when it was last looked at.
    shown: bool,
}

#[derive(Debug)]
struct Held<S> {
    svid: S,
    key: Key,
    renew_at: Timestamp,
    /// To be replaced at once.
    stale: bool,
    root: Root,
}

/// What became of an SVID's root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Root {
    Good,
    /// Tainted, or gone: the SVID is to be replaced.
    Fallen,
    /// The same, and an attempt to replace the SVID has come to nothing.
    FallenAndTried,
}

#[derive(Debug)]
struct Subscriber<S> {
    selectors: Selectors,
    matching: BTreeSet<Place>,
    published: Option<WorkloadState<S>>,
}

impl<S: Svid> Slot<S> {
    fn new(entry: Arc<RegistrationEntry>) -> Self {
        Self { entry, held: None, attempts: Attempts::new(), matched_by: BTreeSet::new(), shown: false }
    }

    fn place(&self) -> Place {
        self.entry.place()
    }

    /// Whether there is an SVID to give at `now`.
    fn is_good(&self, now: Timestamp) -> bool {
        self.held.as_ref().is_some_and(|held| now <= held.svid.lifetime().not_after)
    }

    fn due_at(&self, now: Timestamp) -> Timestamp {
        let wish = match &self.held {
            Some(held) if !held.stale && held.svid.lifetime().contains(now) => held.renew_at,
            _ => Timestamp::default(),
        };
        self.attempts.wait(now).map_or(wish, |until| wish.max(until))
    }

    fn try_again_at_once(&mut self) {
        self.attempts = Attempts::new();
    }

    fn back_off(&mut self, failure: Failure, now: Timestamp) {
        if let Some(held) = self.held.as_mut().filter(|held| held.root == Root::Fallen) {
            held.root = Root::FallenAndTried;
        }
        self.attempts.fail(failure, self.entry.id.as_str(), now);
    }
}

impl<S: Svid> Machine<S> {
    /// A cache that knows nothing but its own bundle. `prefetch`: how many entries get their SVID before anyone asks.
    pub fn new(own: Bundle, prefetch: usize) -> Self {
        Self {
            prefetch,
            own,
            foreign: BTreeMap::new(),
            order: BTreeSet::new(),
            slots: BTreeMap::new(),
            asked: BTreeMap::new(),
            subscribers: BTreeMap::new(),
            changed: BTreeSet::new(),
            synced: false,
            connected: false,
            unacknowledged: None,
            next_wake: None,
        }
    }

    /// Takes in what happened, and says what is to be done, in this order.
    pub fn handle(&mut self, event: Event<S>, now: Timestamp) -> Vec<Action<S>> {
        let mut actions = Vec::new();
        match event {
            Event::Synced(update) => {
                self.unacknowledged = Some(update.revision);
                actions.extend(self.apply(update, now));
            }
            Event::ServerGone => {
                self.connected = false;
                // The next stream begins with a revision of its own.
                self.unacknowledged = None;
                self.changed.extend(self.subscribers.keys());
            }
            Event::Answered(answers) => answers.into_iter().for_each(|answer| self.answered(answer, now)),
            Event::Subscribed(id, selectors) => self.subscribe(id, selectors),
            Event::Unsubscribed(id) => self.unsubscribe(id),
            Event::Tick => {}
        }
        self.look_at_the_clock(now);
        actions.extend(self.issue(now));
        actions.extend(self.publish(now));
        if self.unacknowledged.is_some() && !self.is_held_up(now) {
            actions.extend(self.unacknowledged.take().map(Action::Acknowledge));
        }
        self.next_wake = self.find_next_wake(now);
        actions
    }

    /// When to send a [`Event::Tick`] at the latest, as of the last event.
    pub fn next_wake(&self) -> Option<Timestamp> {
        self.next_wake
    }

    /// How many SVIDs are held.
    pub fn held(&self) -> usize {
        self.slots.values().filter(|slot| slot.held.is_some()).count()
    }

    /// The SVIDs that are held, each with its entry, the oldest entry first.
    pub fn svids(&self) -> impl Iterator<Item = (&Arc<RegistrationEntry>, &S)> {
        let slots = self.order.iter().filter_map(|place| self.slots.get(place.id()));
        slots.filter_map(|slot| Some((&slot.entry, &slot.held.as_ref()?.svid)))
    }

    /// How many entries this node has.
    pub fn entries(&self) -> usize {
        self.slots.len()
    }

    /// How many subscribers there are.
    pub fn subscribers(&self) -> usize {
        self.subscribers.len()
    }

    fn apply(&mut self, update: Update, now: Timestamp) -> Option<Action<S>> {
        if !self.connected {
            self.connected = true;
            self.slots.values_mut().for_each(Slot::try_again_at_once);
        }
        if !self.synced || !update.bundles.is_empty() || !update.removed_bundles.is_empty() || update.snapshot {
            self.changed.extend(self.subscribers.keys());
        }
        self.synced = true;
        if update.snapshot {
            let stay: BTreeSet<&EntryId> = update.entries.iter().map(|entry| &entry.id).collect();
            let gone: Vec<EntryId> = self.slots.keys().filter(|id| !stay.contains(id)).cloned().collect();
            gone.iter().for_each(|id| self.remove(id));
            self.foreign.clear();
        }
        update.removed_entries.iter().for_each(|id| self.remove(id));
        for entry in update.entries {
            self.put(&entry);
        }
        for domain in &update.removed_bundles {
            self.foreign.remove(domain);
        }
        let mut trust = None;
        for bundle in update.bundles {
            if bundle.trust_domain() != self.own.trust_domain() {
                self.foreign.insert(bundle.trust_domain().clone(), bundle);
            } else if bundle != self.own {
                self.trust(bundle.clone(), now);
                trust = Some(Action::Trust(bundle));
            }
        }
        trust
    }

    fn trust(&mut self, bundle: Bundle, now: Timestamp) {
        let lost = S::lost_authority(&self.own, &bundle);
        self.own = bundle;
        for slot in self.slots.values_mut() {
            let Some(held) = &mut slot.held else { continue };
            if held.root == Root::Good && held.svid.has_fallen(&self.own, lost, now) {
                (held.stale, held.root) = (true, Root::Fallen);
                slot.attempts.end_wait();
            }
        }
        self.asked.values_mut().for_each(|asked| asked.distrust = true);
    }

    fn put(&mut self, entry: &Arc<RegistrationEntry>) {
        if entry.is_node_alias() {
            return self.remove(&entry.id);
        }
        match self.slots.get_mut(&entry.id) {
            Some(slot) if slot.entry == *entry => return,
            Some(slot) => {
                let old = std::mem::replace(&mut slot.entry, entry.clone());
                if old.spiffe_id != entry.spiffe_id {
                    slot.held = None;
                } else if let Some(held) = &mut slot.held {
                    held.stale |= !S::is_the_same_for(&old, entry);
                }
                slot.try_again_at_once();
                let place = old.place();
                self.order.remove(&place);
                for id in std::mem::take(&mut slot.matched_by) {
                    if let Some(subscriber) = self.subscribers.get_mut(&id) {
                        subscriber.matching.remove(&place);
                    }
                    self.changed.insert(id);
                }
            }
            None => {
                self.slots.insert(entry.id.clone(), Slot::new(entry.clone()));
            }
        }
        let Some(slot) = self.slots.get_mut(&entry.id) else { return };
        self.order.insert(slot.place());
        for (id, subscriber) in &mut self.subscribers {
            if entry.selectors.is_subset_of(&subscriber.selectors) {
                slot.matched_by.insert(*id);
                subscriber.matching.insert(slot.place());
                self.changed.insert(*id);
            }
        }
    }

    fn remove(&mut self, id: &EntryId) {
        let Some(slot) = self.slots.remove(id) else { return };
        let place = slot.place();
        self.order.remove(&place);
        for id in slot.matched_by {
            if let Some(subscriber) = self.subscribers.get_mut(&id) {
                subscriber.matching.remove(&place);
            }
            self.changed.insert(id);
        }
    }

    fn answered(&mut self, answer: Answer<S>, now: Timestamp) {
        let Some(asked) = self.asked.remove(&answer.entry) else { return };
        let Some(slot) = self.slots.get_mut(&answer.entry) else { return };
        self.changed.extend(&slot.matched_by);
        let outdated = !S::is_the_same_for(&asked.entry, &slot.entry);
        match answer.outcome {
            Outcome::Issued { svid, .. } if *svid.id() != slot.entry.spiffe_id => {
                // An answer to what the entry was before; or a server that is mistaken, which must not be hammered.
                if !outdated {
                    slot.back_off(Failure::Transient, now);
                }
            }
            Outcome::Issued { svid, key } => {
                let svid = S::clone(&svid);
                let distrusted = svid.has_fallen(&self.own, asked.distrust, now);
                // A life of no length must not become a loop without a pause.
                let renew_at = renew_at(now, svid.lifetime().not_after, svid.mark()).max(now.plus(SECOND));
                let stale = outdated || distrusted;
                let root = if distrusted { Root::Fallen } else { Root::Good };
                slot.held = Some(Held { svid, key, renew_at, stale, root });
                // What was asked for before the root fell is asked for anew at once; a server that goes on signing
                // below it is not.
                if distrusted && !asked.distrust {
                    slot.back_off(Failure::Transient, now);
                } else {
                    slot.try_again_at_once();
                }
            }
            // What was refused is not what is wanted now: ask for that.
            Outcome::Refused | Outcome::Failed if outdated => {}
            Outcome::Refused => slot.back_off(Failure::Permanent, now),
            Outcome::Failed => slot.back_off(Failure::Transient, now),
        }
    }

    fn subscribe(&mut self, id: SubscriberId, selectors: Selectors) {
        let mut matching = BTreeSet::new();
        for slot in self.slots.values_mut() {
            if slot.entry.selectors.is_subset_of(&selectors) {
                slot.matched_by.insert(id);
                matching.insert(slot.place());
            }
        }
        self.subscribers.insert(id, Subscriber { selectors, matching, published: None });
        self.changed.insert(id);
    }

    fn unsubscribe(&mut self, id: SubscriberId) {
        let Some(subscriber) = self.subscribers.remove(&id) else { return };
        for place in &subscriber.matching {
            if let Some(slot) = self.slots.get_mut(place.id()) {
                slot.matched_by.remove(&id);
            }
        }
        self.changed.remove(&id);
    }

    /// Finds the entries and SVIDs that have expired (or, the clock put back, have not) since the last look.
    fn look_at_the_clock(&mut self, now: Timestamp) {
        for slot in self.slots.values_mut() {
            let shown = slot.entry.is_live(now) && slot.is_good(now);
            if shown != slot.shown {
                slot.shown = shown;
                self.changed.extend(&slot.matched_by);
            }
            if slot.matched_by.is_empty() && !slot.is_good(now) {
                // A key that nobody can use any more.
                slot.held = None;
            }
        }
    }

    /// The places of the entries that are to have an SVID, each with whether somebody waits for it.
    fn wanted(&self) -> impl Iterator<Item = (&Slot<S>, bool)> {
        let slots = self.order.iter().filter_map(|place| self.slots.get(place.id()));
        slots.enumerate().filter_map(|(age, slot)| {
            let asked_for = !slot.matched_by.is_empty();
            (asked_for || age < self.prefetch).then_some((slot, asked_for))
        })
    }

    fn issue(&mut self, now: Timestamp) -> Vec<Action<S>> {
        if !self.connected {
            return Vec::new();
        }
        let due = |(slot, _): &(&Slot<S>, bool)| {
            slot.entry.is_live(now) && !self.asked.contains_key(&slot.entry.id) && slot.due_at(now) <= now
        };
        let is_urgent = |(slot, asked_for): &(&Slot<S>, bool)| *asked_for && !slot.is_good(now);
        let (urgent, rest): (Vec<_>, Vec<_>) = self.wanted().filter(due).partition(is_urgent);
        let room = MAX_BATCH.saturating_sub(self.asked.len() + urgent.len());
        let chosen: Vec<Arc<RegistrationEntry>> =
            urgent.into_iter().chain(rest.into_iter().take(room)).map(|(slot, _)| slot.entry.clone()).collect();
        for entry in &chosen {
            self.asked.insert(entry.id.clone(), Asked { entry: entry.clone(), distrust: false });
        }
        chosen.chunks(MAX_BATCH).map(|batch| Action::Issue(batch.to_vec())).collect()
    }

    /// Whether an SVID that is given out, or under way, is below a root that is tainted or gone, and its replacement
    /// still to come.
    fn is_held_up(&self, now: Timestamp) -> bool {
        let waits_for_another = |(slot, _): (&Slot<S>, bool)| {
            let held_up = slot.held.as_ref().is_some_and(|held| held.root == Root::Fallen) && slot.is_good(now);
            let under_way = self.asked.get(&slot.entry.id).is_some_and(|asked| asked.distrust);
            slot.entry.is_live(now) && (held_up || under_way)
        };
        self.wanted().any(waits_for_another)
    }

    fn publish(&mut self, now: Timestamp) -> Vec<Action<S>> {
        let changed = std::mem::take(&mut self.changed);
        if !self.synced {
            // The first snapshot looks at everyone.
            return Vec::new();
        }
        let mut actions = Vec::new();
        for id in changed {
            let Some(subscriber) = self.subscribers.get(&id) else { continue };
            if self.is_held_back(subscriber, now) {
                // Time alone may end the reason.
                self.changed.insert(id);
                continue;
            }
            let state = self.state(subscriber, now);
            let Some(subscriber) = self.subscribers.get_mut(&id) else { continue };
            if subscriber.published.as_ref() != Some(&state) {
                subscriber.published = Some(state.clone());
                actions.push(Action::Publish(id, state));
            }
        }
        actions
    }

    fn is_held_back(&self, subscriber: &Subscriber<S>, now: Timestamp) -> bool {
        let matching = subscriber.matching.iter().filter_map(|place| self.slots.get(place.id()));
        let live: Vec<&Slot<S>> = matching.filter(|slot| slot.entry.is_live(now)).collect();
        let answer_to_come =
            |slot: &&Slot<S>| self.connected && !slot.is_good(now) && slot.attempts.failure() == Failure::None;
        let is_empty = !live.iter().any(|slot| slot.is_good(now));
        let is_first = subscriber.published.is_none();
        if (is_first || is_empty) && live.iter().any(answer_to_come) {
            return true;
        }
        let refused_for_good = |slot: &&Slot<S>| slot.attempts.failure() == Failure::Permanent;
        is_first && is_empty && !live.iter().all(refused_for_good)
    }

    fn state(&self, subscriber: &Subscriber<S>, now: Timestamp) -> WorkloadState<S> {
        let mut identities = Vec::new();
        let mut hints = BTreeSet::new();
        let mut federated = BTreeMap::new();
        for slot in subscriber.matching.iter().filter_map(|place| self.slots.get(place.id())) {
            let Some(held) = slot.held.as_ref().filter(|_| slot.entry.is_live(now) && slot.is_good(now)) else {
                continue;
            };
            let hint = if hints.insert(slot.entry.hint.as_str()) { slot.entry.hint.as_str() } else { "" };
            identities.push(Identity {
                entry: slot.entry.clone(),
                hint: hint.into(),
                svid: held.svid.clone(),
                key: held.key.0.clone(),
            });
            for domain in &slot.entry.federates_with {
                if let Some(bundle) = self.foreign.get(domain) {
                    federated.insert(domain.clone(), bundle.clone());
                }
            }
        }
        WorkloadState { identities: identities.into(), bundle: self.own.clone(), federated: federated.into() }
    }

    fn find_next_wake(&self, now: Timestamp) -> Option<Timestamp> {
        let renewals = self
            .wanted()
            .filter(|(slot, _)| self.connected && slot.entry.is_live(now) && !self.asked.contains_key(&slot.entry.id))
            .map(|(slot, _)| slot.due_at(now));
        let ends = self.slots.values().filter_map(|slot| slot.entry.expires_at);
        let expiries = self
            .slots
            .values()
            .filter_map(|slot| slot.held.as_ref())
            .map(|held| held.svid.lifetime().not_after.plus(SECOND));
        // What is due already waits for answers, not for time.
        renewals.chain(ends).chain(expiries).filter(|at| *at > now).min()
    }
}

#[cfg(test)]
mod tests;
