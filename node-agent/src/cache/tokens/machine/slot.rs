//! One slot: what the machine knows of the token for one entry and audience.

use std::collections::BTreeSet;
use std::sync::Arc;

use spiffe::time::Timestamp;

use super::{Place, RequestId, WaiterId};
use crate::cache::attempts::Attempts;
use crate::cache::tokens::Token;

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) held: Option<Arc<Token>>,
    pub(super) renew_at: Timestamp,
    pub(super) attempts: Attempts,
    pub(super) refusal: Arc<str>,
    pub(super) progress: Progress,
    pub(super) waiters: BTreeSet<WaiterId>,
    /// A token that was used had to be dropped: get another although nobody waits.
    pub(super) replace: bool,
    pub(super) wanted_at: Timestamp,
    pub(super) look_at: Option<Timestamp>,
    /// As what it stands among those that can make room.
    pub(super) spare_since: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Idle,
    Queued(Place),
    UnderWay(RequestId),
}

impl Slot {
    pub(super) fn new(now: Timestamp) -> Self {
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
            spare_since: None,
        }
    }

    pub(super) fn last_used(&self) -> Timestamp {
        self.held.as_ref().map_or(self.wanted_at, |token| token.last_used().max(self.wanted_at))
    }

    pub(super) fn can_make_room(&self) -> bool {
        self.progress == Progress::Idle && self.waiters.is_empty()
    }

    /// Whether the token that is held is to be renewed, or let go. One that came in the future is: the clock was put back.
    pub(super) fn is_due(&self, now: Timestamp) -> bool {
        self.held.as_ref().is_some_and(|token| self.renew_at <= now || now < token.got_at)
    }

    /// What is to be asked for; `true`: somebody waits for it.
    pub(super) fn wish(&self, now: Timestamp) -> Option<bool> {
        match &self.held {
            None if self.replace || !self.waiters.is_empty() => Some(true),
            Some(token) if self.is_due(now) && token.is_used() => Some(false),
            _ => None,
        }
    }
}
