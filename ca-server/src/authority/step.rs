//! The steps of a plan, their reasons in words, and what they make of the authorities.

use std::fmt;
use std::sync::Arc;

use spiffe::time::Timestamp;

use super::{Authority, Kind, State};

/// One change. Its reason is the log line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make an authority that will sign later.
    Prepare {
        /// What it will sign.
        kind: Kind,
        /// Why.
        reason: Reason,
    },
    /// Make an authority that signs at once.
    Start {
        /// What it signs.
        kind: Kind,
        /// Why.
        reason: Reason,
    },
    /// Let a prepared one sign.
    Activate {
        /// Which.
        id: Arc<str>,
        /// Why.
        reason: Reason,
    },
    /// Let it sign no more; it stays in the bundle.
    Retire {
        /// Which.
        id: Arc<str>,
        /// Why.
        reason: Reason,
    },
    /// Mark it, so that every SVID below it is replaced at once.
    Taint {
        /// Which.
        id: Arc<str>,
        /// Why.
        reason: Reason,
    },
    /// Take it out of the bundle, and forget it.
    Remove {
        /// Which.
        id: Arc<str>,
        /// Why.
        reason: Reason,
    },
}

impl Step {
    /// What is done, for the log.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Prepare { .. } => "prepare",
            Self::Start { .. } => "start",
            Self::Activate { .. } => "activate",
            Self::Retire { .. } => "retire",
            Self::Taint { .. } => "taint",
            Self::Remove { .. } => "remove",
        }
    }

    /// To which authority; `None` for one that has yet to be made.
    pub fn id(&self) -> Option<&Arc<str>> {
        match self {
            Self::Prepare { .. } | Self::Start { .. } => None,
            Self::Activate { id, .. } | Self::Retire { id, .. } | Self::Taint { id, .. } | Self::Remove { id, .. } => {
                Some(id)
            }
        }
    }

    /// What the authority signs that it makes, if it makes one.
    pub fn makes(&self) -> Option<Kind> {
        match self {
            Self::Prepare { kind, .. } | Self::Start { kind, .. } => Some(*kind),
            _ => None,
        }
    }

    /// Why.
    pub fn reason(&self) -> &Reason {
        match self {
            Self::Prepare { reason, .. }
            | Self::Start { reason, .. }
            | Self::Activate { reason, .. }
            | Self::Retire { reason, .. }
            | Self::Taint { reason, .. }
            | Self::Remove { reason, .. } => reason,
        }
    }
}

/// Why an authority cannot sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// After its `not_after`.
    Ended,
    /// Before its `not_before`: the clock was turned back.
    NotYetValid,
    /// Its key is not in the key store: it was lost, or the store comes from a backup.
    KeyMissing,
    /// An operator has marked it.
    Tainted,
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ended => "it has ended",
            Self::NotYetValid => "it is not valid yet: the clock was turned back",
            Self::KeyMissing => {
                "its private key is not in the key store: it was lost, or the store comes from a backup"
            }
            Self::Tainted => "it is tainted",
        })
    }
}

/// Why a step is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// This server has none.
    First,
    /// The active one cannot sign.
    ActiveUnusable(Arc<str>, Unusable),
    /// The active one has come to the point where its successor is prepared.
    SuccessorDue(Arc<str>),
    /// Every live agent knows the new one, and it is time.
    Known,
    /// It is time whether known or not.
    Deadline(Timestamp),
    /// Another one took its place.
    ReplacedBy(Arc<str>),
    /// It cannot sign itself.
    Unusable(Unusable),
    /// It has ended.
    Ended(Timestamp),
    /// It has ended so long ago that its server must be gone.
    OwnerGone(Arc<str>),
    /// An operator said so.
    Operator,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::First => f.write_str("this server has no authority yet"),
            Self::ActiveUnusable(id, why) => write!(f, "the active authority {id} cannot sign: {why}"),
            Self::SuccessorDue(id) => write!(f, "the active authority {id} needs a successor soon"),
            Self::Known => f.write_str("every live agent knows it, and its time has come"),
            Self::Deadline(at) => {
                write!(f, "its deadline {at} has come, though not every live agent has acknowledged it")
            }
            Self::ReplacedBy(id) => write!(f, "authority {id} signs in its place"),
            Self::Unusable(why) => write!(f, "it cannot sign: {why}"),
            Self::Ended(at) => write!(f, "it ended {at}, and with it all that it signed"),
            Self::OwnerGone(owner) => write!(f, "it ended long ago, and its server {owner} has not removed it"),
            Self::Operator => f.write_str("an operator asked for it"),
        }
    }
}

/// `authorities` after `steps`. `made` is what the steps that make one have made: one of a kind at most.
pub fn apply(authorities: &[Authority], steps: &[Step], made: &[Authority], now: Timestamp) -> Vec<Authority> {
    let mut after = authorities.to_vec();
    let new = |kind: &Kind| made.iter().find(|made| made.kind() == *kind).cloned();
    for step in steps {
        match step {
            Step::Prepare { kind, .. } => after.extend(new(kind)),
            Step::Start { kind, .. } => {
                let start = |made| Authority { state: State::Active, activated_at: Some(now), ..made };
                after.extend(new(kind).map(start));
            }
            Step::Remove { id, .. } => after.retain(|authority| authority.id != *id),
            Step::Activate { id, .. } | Step::Retire { id, .. } | Step::Taint { id, .. } => {
                for authority in after.iter_mut().filter(|authority| authority.id == *id) {
                    match step {
                        Step::Activate { .. } => {
                            authority.state = State::Active;
                            authority.activated_at = Some(now);
                        }
                        Step::Retire { .. } => authority.state = State::Retired,
                        _ => authority.tainted = true,
                    }
                }
            }
        }
    }
    after
}
