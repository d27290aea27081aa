//! The rotation law: which authorities of this server are prepared, activated, retired and removed, when, and why.
//! Pure: the loop in `rotate` carries it out. An authority goes from prepared to active to retired, and never back.
//! It is one law for every kind: what is called a CA here is also a key for tokens, a leaf also a token, a root also the
//! key itself as it stands in the bundle.
//!
//! After the steps of [`plan`] are applied:
//!
//! - **One active.** Exactly one authority of this owner is active, and it can sign: its key is here, it is valid now
//!   and not tainted. (Only an upstream CA that has itself ended can prevent that.)
//! - **Known before active.** None is activated before every live agent has acknowledged it, and whoever acknowledges nothing
//!   has had the time to ask, or its deadline has come; but when nothing else can sign, it is activated at once.
//! - **The deadline leaves a leaf's life.** Whoever plans in time replaces an authority while it still lives as long as
//!   the longest SVID, so that no SVID is cut short.
//! - **Roots stay.** A root leaves the bundle only after its `not_after`, which no SVID below it outlives, or by an
//!   operator's revoke.
//! - **Twice is once.** Planning again plans nothing, until [`next_wake`] or until something else changes.
//! - **Each kind by itself.** A plan sees the authorities of its own kind and no others.
//! - **Others are left alone.** Another server's authority is only ever removed, and only when it ended longer ago than
//!   a CA lives: then its server is gone.
//!
//! The points in the life of an active authority, the same for a CA of a minute and of ten years:
//!
//! | at | what | why |
//! |---|---|---|
//! | 1/2 | the next is prepared | half of a life is left to get an operator out of bed |
//! | 2/3 | the next is activated, if it is known | agents know within seconds; those who are no agents (federated trust domains that poll our bundle, proxies of Istio) get a sixth of a life |
//! | 5/6 | the next is activated, known or not | one lost agent must not hold up all others |
//!
//! When the longest SVID lives longer than a sixth of the CA, all three move forward, so that the last point leaves its
//! life. An authority whose root is already in use, as below an upstream CA, is known from the start.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use spiffe::time::{Lifetime, Timestamp};

pub use super::step::{Reason, Step, Unusable, apply};
use super::{Authority, Kind, State};

/// The shortest life of a CA: below it whole seconds leave no room for the points of its life.
pub const SHORTEST_CA: Duration = Duration::from_secs(10);
/// Planning again is cheap, and finds what nobody told of: a key file that was lost, a record that was restored.
const LONGEST_SLEEP: Duration = Duration::from_secs(600);

/// Why a policy is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// The CA lives too short.
    #[error("{0} authorities live {1:?}: it has to be 10s at least")]
    ShortCa(Kind, Duration),
    /// SVIDs live too long for the CA.
    #[error(
        "SVIDs of kind {kind} may live {leaf:?}, which is more than half of the life of their authority ({ca:?}): \
         shorten the one or lengthen the other"
    )]
    LongLeaf {
        /// What is signed.
        kind: Kind,
        /// The longest life of an SVID.
        leaf: Duration,
        /// The life of a CA.
        ca: Duration,
    },
}

/// What the config says about the rotation of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// What the authorities sign.
    pub kind: Kind,
    /// The name of this server.
    pub owner: Arc<str>,
    /// How long a CA, or a key for tokens, lives.
    pub ca_ttl: Duration,
    /// The longest life of anything that it signs: of the SVIDs of workloads, of agents and of servers.
    pub leaf_ttl_max: Duration,
    /// How long those who acknowledge nothing may go without asking: Istio's proxies, which learn of a root when they renew.
    pub asked_within: Duration,
    /// The end of the upstream CA, which none of ours outlives; `None`: there is none.
    pub ceiling: Option<Timestamp>,
}

impl Policy {
    /// A policy that the law can keep: a leaf lives half as long as a CA at most. Without a ceiling, and for those who
    /// acknowledge.
    pub fn new(kind: Kind, owner: Arc<str>, ca_ttl: Duration, leaf_ttl_max: Duration) -> Result<Self, PolicyError> {
        if ca_ttl < SHORTEST_CA {
            return Err(PolicyError::ShortCa(kind, ca_ttl));
        }
        if leaf_ttl_max > ca_ttl / 2 {
            return Err(PolicyError::LongLeaf { kind, leaf: leaf_ttl_max, ca: ca_ttl });
        }
        Ok(Self { kind, owner, ca_ttl, leaf_ttl_max, asked_within: Duration::ZERO, ceiling: None })
    }

    fn owns(&self, authority: &Authority) -> bool {
        authority.owner == self.owner && authority.kind() == self.kind
    }

    /// When an authority made at `now` would end.
    pub fn end_of_new(&self, now: Timestamp) -> Timestamp {
        let end = now.plus(self.ca_ttl);
        self.ceiling.map_or(end, |ceiling| ceiling.min(end))
    }

    /// What a replacement must live longer than what it replaces; without it, the last days of an upstream CA would be
    /// spent in ever faster rotation.
    fn gain(&self) -> Duration {
        self.ca_ttl / 6
    }
}

/// What a plan is made of.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// All authorities, of all servers and kinds.
    pub authorities: &'a [Authority],
    /// The IDs of prepared ones that every live agent has acknowledged.
    pub acknowledged: &'a BTreeSet<Arc<str>>,
    /// The names of the keys in this server's key store.
    pub keys: &'a BTreeSet<Arc<str>>,
}

impl<'a> Facts<'a> {
    /// Those that a plan by `policy` is about.
    fn of_kind(&self, policy: &Policy) -> impl Iterator<Item = &'a Authority> {
        let kind = policy.kind;
        self.authorities.iter().filter(move |authority| authority.kind() == kind)
    }
}

/// Why an operator's command is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is none of that name.
    #[error("there is no authority {0}: \"chancery authority list\" shows all")]
    Unknown(String),
    /// One is prepared already.
    #[error("authority {0} is prepared already: activate it, or revoke it first")]
    AlreadyPrepared(Arc<str>),
    /// The upstream CA ends.
    #[error("the upstream CA ends {0}: renew it first")]
    UpstreamEnds(Timestamp),
    /// Another server has the key.
    #[error("the key of authority {id} is at the server {owner}: ask that server")]
    Foreign {
        /// The authority.
        id: Arc<str>,
        /// Its server.
        owner: Arc<str>,
    },
    /// Active or retired.
    #[error("authority {id} is {state}: only a prepared one can be activated, prepare another first")]
    NotPrepared {
        /// The authority.
        id: Arc<str>,
        /// What it is.
        state: State,
    },
    /// Proxies may not know it.
    #[error(
        "proxies of Istio learn of a new root when they renew: all know that of authority {id} at {at}, and those that do \
         not would refuse what it signs. Wait, or activate it with --now if the active one may not sign any longer"
    )]
    NotAsked {
        /// The authority.
        id: Arc<str>,
        /// When all have asked since.
        at: Timestamp,
    },
    /// It cannot sign.
    #[error("authority {0} cannot be activated: {1}")]
    Unusable(Arc<str>, Unusable),
    /// It signs.
    #[error("authority {0} is active: prepare and activate another first")]
    Active(Arc<str>),
    /// It has signed nothing.
    #[error("authority {0} is only prepared and has signed nothing: revoke it instead")]
    TaintPrepared(Arc<str>),
    /// What it signed may be in use.
    #[error(
        "authority {0} has signed SVIDs that are good until {1} at most: taint it first, so that they are replaced, then revoke it"
    )]
    NotTainted(Arc<str>, Timestamp),
    /// Its root is another one's too.
    #[error(
        "authority {id} has the same root as authority {other}, which stays in the bundle: change the upstream CA and rotate first"
    )]
    SharedRoot {
        /// The authority.
        id: Arc<str>,
        /// The other one.
        other: Arc<str>,
    },
}

/// The points in the life of an active authority.
struct Points {
    prepare: Timestamp,
    activate: Timestamp,
    deadline: Timestamp,
}

impl Points {
    fn of(active: &Authority, policy: &Policy) -> Self {
        let (start, end) = (active.prepared_at, active.lifetime.not_after);
        let life = end.since(start);
        // One that an upstream CA has cut short may live shorter than the policy says.
        let leaf = policy.leaf_ttl_max.min(life / 2);
        let deadline = start.plus(life * 5 / 6).min(end.minus(leaf));
        // Never so early that the successor would not be worth it, as when ca_ttl was shortened.
        let worth = end.plus(policy.gain()).minus(policy.ca_ttl);
        Self {
            prepare: start.plus(life / 2).min(deadline.minus(life / 6)).max(worth),
            activate: start.plus(life * 2 / 3).min(deadline.minus(life / 12)),
            deadline,
        }
    }

    /// When `next` is activated without being known. One that was prepared late gets half of what is left.
    fn deadline_of(&self, next: &Authority, active: &Authority) -> Timestamp {
        if next.prepared_at < self.deadline {
            return self.deadline;
        }
        let left = active.lifetime.not_after.since(next.prepared_at).as_secs();
        next.prepared_at.plus(Duration::from_secs(left.div_ceil(2).max(1)))
    }
}

/// Our own authorities as one plan sees them.
struct Own<'a> {
    facts: &'a Facts<'a>,
    policy: &'a Policy,
    now: Timestamp,
    active: Option<&'a Authority>,
    /// Prepared ones that can sign.
    waiting: Vec<&'a Authority>,
}

impl<'a> Own<'a> {
    fn of(facts: &'a Facts<'a>, policy: &'a Policy, now: Timestamp) -> Self {
        let usable = || {
            let own = facts.authorities.iter().filter(|authority| policy.owns(authority));
            own.filter(move |authority| unusable(authority, facts.keys, now).is_none())
        };
        let active = usable()
            .filter(|authority| authority.state == State::Active)
            .max_by_key(|authority| (authority.activated_at, &authority.id));
        let waiting = usable().filter(|authority| authority.state == State::Prepared).collect();
        Self { facts, policy, now, active, waiting }
    }

    fn is_known(&self, next: &Authority) -> bool {
        self.is_acknowledged(next) && self.now >= self.asked_at(next)
    }

    fn is_acknowledged(&self, next: &Authority) -> bool {
        self.is_in_use(next) || self.facts.acknowledged.contains(&next.id)
    }

    /// Whether the root of `next` is that of the active one too.
    fn is_in_use(&self, next: &Authority) -> bool {
        self.active.is_some_and(|active| active.public.is_known_with(&next.public))
    }

    /// When everyone who acknowledges nothing has asked since `next` was prepared.
    fn asked_at(&self, next: &Authority) -> Timestamp {
        let wait = if self.is_in_use(next) { Duration::ZERO } else { self.policy.asked_within };
        next.prepared_at.plus(wait)
    }

    /// The one that comes next: the one that lives longest. It must live as long as the active one; when there is
    /// none, a leaf's life, unless a new one would not either.
    fn next(&self) -> Option<&'a Authority> {
        let leaf = self.now.plus(self.policy.leaf_ttl_max).min(self.policy.end_of_new(self.now));
        let fits = |next: &&&Authority| match self.active {
            Some(active) => next.lifetime.not_after >= active.lifetime.not_after,
            None => next.lifetime.not_after >= leaf,
        };
        let order = |next: &&&Authority| {
            (self.active.is_none() && self.is_known(next), next.lifetime.not_after, next.id.clone())
        };
        self.waiting.iter().filter(fits).max_by_key(order).copied()
    }

    /// Why `next` is to be activated now, if it is.
    fn due(&self, next: &Authority) -> Option<Reason> {
        let Some(active) = self.active else { return Some(self.why_none()) };
        let points = Points::of(active, self.policy);
        let deadline = points.deadline_of(next, active);
        if self.is_known(next) && self.now >= points.activate {
            return Some(Reason::Known);
        }
        (self.now >= deadline).then_some(Reason::Deadline(deadline))
    }

    /// Why no authority can sign.
    fn why_none(&self) -> Reason {
        let own = self.facts.authorities.iter().filter(|authority| self.policy.owns(authority));
        own.filter(|authority| authority.state == State::Active)
            .max_by_key(|authority| (authority.activated_at, &authority.id))
            .and_then(|active| {
                let why = unusable(active, self.facts.keys, self.now)?;
                Some(Reason::ActiveUnusable(active.id.clone(), why))
            })
            .unwrap_or(Reason::First)
    }

    /// When a successor of `active` is to be prepared; `None` when it would not live longer.
    fn prepare_at(&self, active: &Authority) -> Option<Timestamp> {
        let least = active.lifetime.not_after.plus(self.policy.gain());
        let possible = self.policy.ceiling.is_none_or(|ceiling| ceiling >= least);
        possible.then(|| Points::of(active, self.policy).prepare)
    }
}

fn unusable(authority: &Authority, keys: &BTreeSet<Arc<str>>, now: Timestamp) -> Option<Unusable> {
    let Lifetime { not_before, not_after } = authority.lifetime;
    if authority.tainted {
        Some(Unusable::Tainted)
    } else if now > not_after {
        Some(Unusable::Ended)
    } else if now < not_before {
        Some(Unusable::NotYetValid)
    } else if !keys.contains(&authority.id) {
        Some(Unusable::KeyMissing)
    } else {
        None
    }
}

/// The first moment at which `authority` is removed.
fn remove_at(authority: &Authority, policy: &Policy) -> Timestamp {
    let ended = authority.lifetime.not_after.plus(Duration::from_secs(1));
    if policy.owns(authority) { ended } else { ended.plus(policy.ca_ttl) }
}

/// What is to be done at `now` for the kind of `policy`. At most one step makes a new authority.
pub fn plan(facts: &Facts<'_>, policy: &Policy, now: Timestamp) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut own = Own::of(facts, policy, now);
    for authority in facts.of_kind(policy) {
        let id = authority.id.clone();
        if now >= remove_at(authority, policy) {
            let reason = if policy.owns(authority) {
                Reason::Ended(authority.lifetime.not_after)
            } else {
                Reason::OwnerGone(authority.owner.clone())
            };
            steps.push(Step::Remove { id, reason });
        } else if policy.owns(authority) {
            let why = unusable(authority, facts.keys, now);
            match (authority.state, why, own.active) {
                // A second one that can sign: from a restored backup, or another server with the same name.
                (State::Active, None, Some(active)) if active.id != id => {
                    steps.push(Step::Retire { id, reason: Reason::ReplacedBy(active.id.clone()) });
                }
                (State::Active, Some(why), _) => steps.push(Step::Retire { id, reason: Reason::Unusable(why) }),
                // A clock that was turned back comes forward again: that one may still be of use.
                (State::Prepared, Some(why @ (Unusable::Tainted | Unusable::KeyMissing)), _) => {
                    steps.push(Step::Retire { id, reason: Reason::Unusable(why) });
                }
                _ => {}
            }
        }
    }
    // Asleep for long, one successor may be past its own time too: go on until one stays.
    while let Some(next) = own.next()
        && let Some(reason) = own.due(next)
    {
        steps.push(Step::Activate { id: next.id.clone(), reason });
        if let Some(old) = own.active.replace(next) {
            steps.push(Step::Retire { id: old.id.clone(), reason: Reason::ReplacedBy(next.id.clone()) });
        }
        own.waiting.retain(|waiting| waiting.id != next.id);
    }
    match own.active {
        None if policy.end_of_new(now) > now => {
            steps.push(Step::Start { kind: policy.kind, reason: own.why_none() });
        }
        Some(active) if own.next().is_none() && own.prepare_at(active).is_some_and(|at| now >= at) => {
            steps.push(Step::Prepare { kind: policy.kind, reason: Reason::SuccessorDue(active.id.clone()) });
        }
        _ => {}
    }
    steps
}

/// When to plan again, after the steps of [`plan`] were applied. Always later than `now`, within ten minutes.
pub fn next_wake(facts: &Facts<'_>, policy: &Policy, now: Timestamp) -> Timestamp {
    let own = Own::of(facts, policy, now);
    let waits_for_agents = own
        .active
        .zip(own.next())
        .is_some_and(|(active, next)| !own.is_acknowledged(next) && now >= Points::of(active, policy).activate);
    let longest = if waits_for_agents {
        // They acknowledge at any time.
        (policy.ca_ttl / 120).clamp(Duration::from_secs(1), Duration::from_secs(10))
    } else {
        LONGEST_SLEEP
    };
    let latest = now.plus(longest);
    next_point(facts, policy, now).map_or(latest, |at| at.min(latest))
}

/// The next moment after `now` at which there may be something to do.
fn next_point(facts: &Facts<'_>, policy: &Policy, now: Timestamp) -> Option<Timestamp> {
    let own = Own::of(facts, policy, now);
    let mut times: Vec<Timestamp> = facts.of_kind(policy).map(|authority| remove_at(authority, policy)).collect();
    times.extend(facts.of_kind(policy).map(|authority| authority.lifetime.not_before));
    if let Some(active) = own.active {
        let points = Points::of(active, policy);
        match own.next() {
            None => times.extend(own.prepare_at(active)),
            Some(next) => times.extend([points.activate, own.asked_at(next), points.deadline_of(next, active)]),
        }
    }
    times.into_iter().filter(|at| *at > now).min()
}

/// When `authority` changes state by itself, as far as that is known; `None`: not planned, or another server's or kind's.
pub fn next_change(authority: &Authority, facts: &Facts<'_>, policy: &Policy, now: Timestamp) -> Option<Timestamp> {
    if !policy.owns(authority) {
        return None;
    }
    let own = Own::of(facts, policy, now);
    let end = remove_at(authority, policy);
    let Some(active) = own.active else { return Some(end) };
    let points = Points::of(active, policy);
    let next = own.next();
    let change_of_guard = next.map(|next| {
        let deadline = points.deadline_of(next, active);
        let known = points.activate.max(own.asked_at(next));
        if own.is_acknowledged(next) { known.min(deadline).max(now) } else { deadline.max(now) }
    });
    match authority.state {
        State::Active if authority.id == active.id => Some(change_of_guard.unwrap_or(points.activate.max(now))),
        State::Prepared if next.is_some_and(|next| next.id == authority.id) => change_of_guard,
        _ => Some(end),
    }
}

/// An operator's "prepare": a successor now, whatever the hour.
pub fn prepare(facts: &Facts<'_>, policy: &Policy, now: Timestamp) -> Result<Vec<Step>, Refusal> {
    let own = Own::of(facts, policy, now);
    if let Some(next) = own.next() {
        return Err(Refusal::AlreadyPrepared(next.id.clone()));
    }
    let end = policy.end_of_new(now);
    if end <= now {
        return Err(Refusal::UpstreamEnds(end));
    }
    Ok(vec![Step::Prepare { kind: policy.kind, reason: Reason::Operator }])
}

/// An operator's "activate": a prepared one signs from now on, whether agents know it or not; whether those do who have had
/// no time to ask, only when it `cannot_wait`.
pub fn activate(
    facts: &Facts<'_>,
    policy: &Policy,
    id: &str,
    cannot_wait: bool,
    now: Timestamp,
) -> Result<Vec<Step>, Refusal> {
    let authority = find(facts, id)?;
    let id = authority.id.clone();
    if !policy.owns(authority) {
        return Err(Refusal::Foreign { id, owner: authority.owner.clone() });
    }
    if authority.state != State::Prepared {
        return Err(Refusal::NotPrepared { id, state: authority.state });
    }
    if let Some(why) = unusable(authority, facts.keys, now) {
        return Err(Refusal::Unusable(id, why));
    }
    let own = Own::of(facts, policy, now);
    let at = own.asked_at(authority);
    if own.active.is_some() && at > now && !cannot_wait {
        return Err(Refusal::NotAsked { id, at });
    }
    let active = facts.authorities.iter().filter(|other| policy.owns(other) && other.state == State::Active);
    let retire = active.map(|old| Step::Retire { id: old.id.clone(), reason: Reason::ReplacedBy(id.clone()) });
    Ok(std::iter::once(Step::Activate { id: id.clone(), reason: Reason::Operator }).chain(retire).collect())
}

/// An operator's "taint": every SVID below it is replaced at once. Only a retired one, as in SPIRE: below an active one
/// the new SVIDs would be tainted again. Tainting twice changes nothing.
pub fn taint(facts: &Facts<'_>, id: &str) -> Result<Vec<Step>, Refusal> {
    let authority = find(facts, id)?;
    let id = authority.id.clone();
    match authority.state {
        State::Active => return Err(Refusal::Active(id)),
        State::Prepared => return Err(Refusal::TaintPrepared(id)),
        State::Retired => own_root(facts, authority)?,
    }
    if authority.tainted {
        return Ok(Vec::new());
    }
    Ok(vec![Step::Taint { id, reason: Reason::Operator }])
}

/// An operator's "revoke": it leaves the bundle, and nothing below it is trusted any more. Never the active one; a
/// retired one only when it is tainted, so that nobody is left without an SVID.
pub fn revoke(facts: &Facts<'_>, id: &str, now: Timestamp) -> Result<Vec<Step>, Refusal> {
    let authority = find(facts, id)?;
    let id = authority.id.clone();
    match authority.state {
        State::Active => return Err(Refusal::Active(id)),
        State::Prepared => {}
        State::Retired => {
            own_root(facts, authority)?;
            let signed = authority.activated_at.is_some() && now <= authority.lifetime.not_after;
            if signed && !authority.tainted {
                return Err(Refusal::NotTainted(id, authority.lifetime.not_after));
            }
        }
    }
    Ok(vec![Step::Remove { id, reason: Reason::Operator }])
}

fn find<'a>(facts: &Facts<'a>, id: &str) -> Result<&'a Authority, Refusal> {
    let found = facts.authorities.iter().find(|authority| *authority.id == *id);
    found.ok_or_else(|| Refusal::Unknown(id.chars().take(64).collect()))
}

/// Refuses what would have no effect, or too great a one: the root of `authority` is also that of one in use.
fn own_root(facts: &Facts<'_>, authority: &Authority) -> Result<(), Refusal> {
    let shares = |other: &&Authority| {
        other.id != authority.id && other.state != State::Retired && other.public.is_known_with(&authority.public)
    };
    match facts.authorities.iter().find(shares) {
        Some(other) => Err(Refusal::SharedRoot { id: authority.id.clone(), other: other.id.clone() }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
