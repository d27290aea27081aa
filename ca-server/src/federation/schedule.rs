//! Which relationship is polled when (SPIFFE_Federation.md sections 4.1 and 6.2). Pure: the loop in `poll` carries it
//! out.
//!
//! - **Interval.** Between two polls of a trust domain lies its interval: what its last good bundle asks for
//!   (`spiffe_refresh_hint`), [`USUAL`] where that asks for nothing; never under [`SHORTEST`], never over [`LONGEST`];
//!   cut by chance by up to a tenth, so that those who started together part.
//! - **No hurry.** After a failure the next poll comes at the next interval: who is down is not helped by being asked.
//! - **New is soon.** A relationship that is made or changed while the server runs is polled at once.
//! - **No burst.** When the server starts, the first polls are spread over [`SHORTEST`] where nothing is known of the
//!   trust domain yet, and over the interval, [`USUAL`] at most, where something is.
//! - **Asked is now.** Who asks for a poll gets one at once, or the one that is under way.
//! - **One at a time.** Nobody is polled twice at once, and no more are polled at once than there is room for.
//! - **The clock may be put back.** Then nobody waits longer than an interval from the moment that it shows.

use std::collections::BTreeMap;
use std::time::Duration;

use spiffe::federation::Relationship;
use spiffe::id::TrustDomain;
use spiffe::time::Timestamp;

/// The interval where a bundle asks for none (section 4.1).
pub(super) const USUAL: Duration = Duration::from_secs(300);
/// The shortest interval: more polls would tell little sooner, and cost the other side much.
pub(super) const SHORTEST: Duration = Duration::from_secs(10);
/// The longest: a revocation should not take longer to arrive.
pub(super) const LONGEST: Duration = Duration::from_secs(86_400);

/// What a poll came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The bundle is as it was.
    Unchanged,
    /// There was a newer bundle, and it is stored.
    Updated,
    /// There was a newer bundle without any key, and it is stored.
    Emptied,
    /// What came was older than what is known, and is refused.
    RolledBack,
    /// Nothing came that could be used.
    Failed,
}

impl Outcome {
    /// All of them, for metrics.
    pub const ALL: [Self; 5] = [Self::Unchanged, Self::Updated, Self::Emptied, Self::RolledBack, Self::Failed];

    /// As metrics, documents and log lines have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unchanged => "unchanged",
            Self::Updated => "updated",
            Self::Emptied => "emptied",
            Self::RolledBack => "rolled_back",
            Self::Failed => "failed",
        }
    }

    /// Whether what is known is what the endpoint says.
    pub fn is_success(self) -> bool {
        matches!(self, Self::Unchanged | Self::Updated | Self::Emptied)
    }
}

/// One poll that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// When it ended.
    pub at: Timestamp,
    /// What it came to.
    pub outcome: Outcome,
    /// Why it brought nothing; empty: it did.
    pub error: String,
}

/// A poll that is to be made now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    /// Of what.
    pub(super) relationship: Relationship,
    /// So that the end of a poll of what has been changed meanwhile is told from that of what it is now.
    number: u64,
}

/// What is known of the polls of one relationship.
#[derive(Clone, Debug)]
pub(super) struct Poll {
    pub(super) relationship: Relationship,
    pub(super) due: Timestamp,
    pub(super) last: Option<Attempt>,
    pub(super) last_success: Option<Timestamp>,
    interval: Duration,
    running: Option<u64>,
}

/// All relationships and their next polls.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    polls: BTreeMap<TrustDomain, Poll>,
    turns: u64,
}

/// A relationship and the refresh hint of the bundle that is known of its trust domain; `None`: none is known.
pub(super) type Known = (Relationship, Option<Option<Duration>>);

impl Schedule {
    /// Sets out with what there is when the server starts.
    pub(super) fn start(known: Vec<Known>, now: Timestamp, mut chance: impl FnMut() -> u32) -> Self {
        let mut schedule = Self::default();
        for (relationship, bundle) in known {
            let interval = interval(bundle.flatten());
            let spread = if bundle.is_some() { interval.min(USUAL) } else { SHORTEST };
            let due = now.plus(share(spread, chance()));
            schedule.insert(relationship, due, interval);
        }
        schedule
    }

    /// Takes the relationships as they are from now on.
    pub(super) fn learn(&mut self, known: Vec<Known>, now: Timestamp) {
        let mut before = std::mem::take(&mut self.polls);
        for (relationship, bundle) in known {
            match before.remove(&relationship.trust_domain) {
                Some(poll) if poll.relationship == relationship => {
                    self.polls.insert(relationship.trust_domain.clone(), poll);
                }
                _ => self.insert(relationship, now, interval(bundle.flatten())),
            }
        }
    }

    fn insert(&mut self, relationship: Relationship, due: Timestamp, interval: Duration) {
        let name = relationship.trust_domain.clone();
        let poll = Poll { relationship, due, last: None, last_success: None, interval, running: None };
        self.polls.insert(name, poll);
    }

    /// Has a trust domain polled at once; `false`: there is no such relationship.
    pub(super) fn ask(&mut self, trust_domain: &TrustDomain, now: Timestamp) -> bool {
        let found = self.polls.get_mut(trust_domain);
        found.map(|poll| poll.due = now).is_some()
    }

    /// Begins the polls that are due, those that have waited longest first, `room` at most.
    pub(super) fn begin(&mut self, now: Timestamp, room: usize) -> Vec<Turn> {
        let mut due: Vec<&mut Poll> = self.polls.values_mut().filter(|poll| poll.is_due(now)).collect();
        due.sort_by_key(|poll| poll.due);
        let begin = |poll: &mut Poll| {
            self.turns += 1;
            poll.running = Some(self.turns);
            Turn { relationship: poll.relationship.clone(), number: self.turns }
        };
        due.into_iter().take(room).map(begin).collect()
    }

    /// Ends a poll. `hint` is that of the bundle that is known now.
    pub(super) fn end(&mut self, turn: &Turn, attempt: Attempt, hint: Option<Duration>, chance: u32) {
        let Some(poll) = self.polls.get_mut(&turn.relationship.trust_domain) else { return };
        if poll.running != Some(turn.number) {
            return;
        }
        poll.running = None;
        poll.interval = interval(hint);
        poll.due = attempt.at.plus(poll.interval - share(poll.interval / 10, chance));
        if attempt.outcome.is_success() {
            poll.last_success = Some(attempt.at);
        }
        poll.last = Some(attempt);
    }

    /// When somebody is due next; `None`: whoever waits for nothing but the end of a poll.
    pub(super) fn next_wake(&self, now: Timestamp) -> Option<Timestamp> {
        let waiting = self.polls.values().filter(|poll| poll.running.is_none());
        waiting.map(|poll| if poll.is_due(now) { now } else { poll.due }).min()
    }

    /// What is known of one.
    pub(super) fn poll(&self, trust_domain: &TrustDomain) -> Option<&Poll> {
        self.polls.get(trust_domain)
    }

    /// What is known of all.
    pub(super) fn polls(&self) -> impl Iterator<Item = &Poll> {
        self.polls.values()
    }
}

impl Poll {
    fn is_due(&self, now: Timestamp) -> bool {
        self.running.is_none() && (self.due <= now || self.due.since(now) > self.interval)
    }
}

fn interval(hint: Option<Duration>) -> Duration {
    hint.unwrap_or(USUAL).clamp(SHORTEST, LONGEST)
}

/// A random part of `whole`, in whole seconds.
fn share(whole: Duration, chance: u32) -> Duration {
    let part = u128::from(whole.as_secs() + 1) * u128::from(chance) / (u128::from(u32::MAX) + 1);
    Duration::from_secs(u64::try_from(part).unwrap_or_default())
}

#[cfg(test)]
mod tests;
