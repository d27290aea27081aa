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
    is_asked_for: bool,
}

impl Tokens {
    /// None is held, and all are due.
    pub(super) fn new(audiences: impl IntoIterator<Item = Audience>) -> Self {
        Self(audiences.into_iter().map(|audience| (audience, Slot::default())).collect())
    }

    /// When the next is to be asked for.
    pub(super) fn next_wake(&self) -> Option<Timestamp> {
        self.0.values().filter(|slot| !slot.is_asked_for).map(|slot| slot.ask_at).min()
    }

    /// For whom one is to be asked for at `now`; none that is being asked for.
    pub(super) fn due(&self, now: Timestamp) -> Vec<Audience> {
        let due = |slot: &Slot| slot.ask_at <= now && !slot.is_asked_for;
        self.0.iter().filter(|(_, slot)| due(slot)).map(|(audience, _)| audience.clone()).collect()
    }

    /// It is being asked for, until it is answered.
    pub(super) fn asked(&mut self, audience: &Audience) {
        if let Some(slot) = self.0.get_mut(audience) {
            slot.is_asked_for = true;
        }
    }

    /// Whether there is one for each, of which none has ended.
    pub(super) fn are_there(&self, now: Timestamp) -> bool {
        self.0.values().all(|slot| slot.token.as_ref().is_some_and(|token| now < token.expires_at()))
    }

    /// What came of asking.
    pub(super) fn answered(&mut self, audience: &Audience, token: Option<JwtSvid>, now: Timestamp) {
        let Some(slot) = self.0.get_mut(audience) else { return };
        slot.is_asked_for = false;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deliver::test_material::{HOUR, NOW, token};

    fn audience(name: &str) -> Audience {
        Audience::parse(&[name.to_owned()]).unwrap()
    }

    #[test]
    fn a_token_is_asked_for_again_at_half_and_patiently_until_there_is_another() {
        let db = audience("db");
        let mut tokens = Tokens::new([db.clone()]);
        assert_eq!(tokens.due(NOW), std::slice::from_ref(&db));
        let first = token(&db, NOW);
        tokens.answered(&db, Some(first.clone()), NOW);
        assert_eq!((tokens.due(NOW), tokens.next_wake()), (vec![], Some(NOW.plus(HOUR / 2))));
        // The same again: an eighth of what it has left.
        let half = NOW.plus(HOUR / 2);
        tokens.answered(&db, Some(first.clone()), half);
        assert_eq!(tokens.next_wake(), Some(half.plus(HOUR / 16)));
        // None at all: what is held stays.
        tokens.answered(&db, None, half);
        assert_eq!(tokens.held()[&db], first);
        let second = token(&db, half);
        tokens.answered(&db, Some(second.clone()), half);
        assert_eq!((&tokens.held()[&db], tokens.next_wake()), (&second, Some(half.plus(HOUR / 2))));
    }

    #[test]
    fn what_is_being_asked_for_is_not_asked_for_again() {
        let (db, api) = (audience("db"), audience("api"));
        let mut tokens = Tokens::new([db.clone(), api.clone()]);
        tokens.asked(&db);
        assert_eq!(tokens.due(NOW), std::slice::from_ref(&api));
        tokens.answered(&api, Some(token(&api, NOW)), NOW);
        assert_eq!((tokens.next_wake(), tokens.are_there(NOW)), (Some(NOW.plus(HOUR / 2)), false));
        tokens.answered(&db, Some(token(&db, NOW)), NOW);
        assert!(tokens.are_there(NOW) && !tokens.are_there(NOW.plus(HOUR)));
        assert!(Tokens::new([]).are_there(NOW));
    }

    #[test]
    fn who_gets_none_asks_again_soon_and_not_at_once() {
        let (db, api) = (audience("db"), audience("api"));
        let mut tokens = Tokens::new([db.clone(), api.clone()]);
        tokens.answered(&db, None, NOW);
        assert_eq!(tokens.due(NOW), std::slice::from_ref(&api), "one that is missing holds up no other");
        tokens.answered(&api, Some(token(&api, NOW)), NOW);
        assert_eq!((tokens.next_wake(), tokens.held().len()), (Some(NOW.plus(SHORTEST_WAIT)), 1));
        // Long after its end it is still not asked for without a pause.
        let late = NOW.plus(4 * HOUR);
        tokens.answered(&api, None, late);
        assert!(tokens.next_wake() <= Some(late.plus(SHORTEST_WAIT)) && !tokens.due(late).contains(&api));
    }
}
