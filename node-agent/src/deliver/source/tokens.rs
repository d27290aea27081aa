//! Which tokens are held for a delivery, and when the next is asked for. Pure.
//!
//! - *at half*: a token is asked for again when half of what it had left is over.
//! - *patience*: who is given the same token again, or none, asks again a while later; what is held stays.

use std::collections::BTreeMap;
use std::time::Duration;

use spiffe::audience::Audience;
use spiffe::jwt_svid::JwtSvid;
use spiffe::time::Timestamp;

const SHORTEST_WAIT: Duration = Duration::from_secs(5);

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Tokens(BTreeMap<Audience, Slot>);

#[derive(Debug, Default)]
struct Slot {
    token: Option<JwtSvid>,
    ask_at: Timestamp,
}

impl Tokens {
    /// None is held, and all are due.
    pub(super) fn new(audiences: impl IntoIterator<Item = Audience>) -> Self {
        Self(audiences.into_iter().map(|audience| (audience, Slot::default())).collect())
    }

    /// When the next is to be asked for.
    pub(super) fn next_wake(&self) -> Option<Timestamp> {
        self.0.values().map(|slot| slot.ask_at).min()
    }

    /// For whom one is to be asked for at `now`.
    pub(super) fn due(&self, now: Timestamp) -> Vec<Audience> {
        self.0.iter().filter(|(_, slot)| slot.ask_at <= now).map(|(audience, _)| audience.clone()).collect()
    }

    /// What came of asking.
    pub(super) fn answered(&mut self, audience: &Audience, token: Option<JwtSvid>, now: Timestamp) {
        let Some(slot) = self.0.get_mut(audience) else { return };
        let left = |token: &JwtSvid| token.expires_at().since(now);
        let is_old = token.is_none() || token == slot.token;
        slot.token = token.or_else(|| slot.token.take());
        let left = slot.token.as_ref().map_or(Duration::ZERO, left);
        let wait = if is_old { left / 8 } else { left / 2 };
        slot.ask_at = now.plus(wait.max(SHORTEST_WAIT));
    }

    /// Those that are there.
    pub(super) fn held(&self) -> BTreeMap<Audience, JwtSvid> {
        let held = |(audience, slot): (&Audience, &Slot)| Some((audience.clone(), slot.token.clone()?));
        self.0.iter().filter_map(held).collect()
    }
}
