//! Turns at slow work, for a number of users at once and for each of them few: whoever has much to be done waits for
//! himself, and hardly holds up anybody else.
//!
//! - A user waits for his own turn first, and only then for one of those that all share: of these he holds or waits for
//!   no more than his own.
//! - A turn is given back when the work has really ended, not when somebody has stopped waiting for it: it moves into
//!   the work.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Users that are remembered before those that want nothing any more are forgotten.
const MANY: usize = 256;

/// Turns for everybody.
pub(crate) struct Turns {
    of_one: usize,
    in_all: Arc<Semaphore>,
    by_uid: Mutex<HashMap<u32, Arc<Semaphore>>>,
}

/// A turn, until it is dropped.
#[must_use = "a turn that is dropped is over"]
pub(crate) struct Turn {
    _in_all: OwnedSemaphorePermit,
    _of_one: OwnedSemaphorePermit,
}

impl Turns {
    /// `in_all` at the same time, `of_one` of them for one user.
    pub(crate) fn new(in_all: usize, of_one: usize) -> Self {
        Self { of_one, in_all: Arc::new(Semaphore::new(in_all)), by_uid: Mutex::default() }
    }

    /// Waits for a turn for `uid`. `None`: the agent is stopping.
    pub(crate) async fn take(&self, uid: u32) -> Option<Turn> {
        let own = {
            let mut by_uid = self.by_uid.lock().unwrap_or_else(PoisonError::into_inner);
            if by_uid.len() >= MANY {
                // Whoever waits or works has a clone.
                by_uid.retain(|_, own| Arc::strong_count(own) > 1);
            }
            Arc::clone(by_uid.entry(uid).or_insert_with(|| Arc::new(Semaphore::new(self.of_one))))
        };
        let of_one = own.acquire_owned().await.ok()?;
        let in_all = Arc::clone(&self.in_all).acquire_owned().await.ok()?;
        Some(Turn { _in_all: in_all, _of_one: of_one })
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    /// The turn, if it is to be had without waiting.
    fn now(turns: &Turns, uid: u32) -> Option<Turn> {
        match pin!(turns.take(uid)).poll(&mut Context::from_waker(Waker::noop())) {
            std::task::Poll::Ready(turn) => turn,
            std::task::Poll::Pending => None,
        }
    }

    #[test]
    fn who_has_much_to_be_done_holds_up_nobody_else() {
        let turns = Turns::new(3, 1);
        let first = now(&turns, 1).unwrap();
        assert!(now(&turns, 1).is_none());
        let _second = now(&turns, 2).unwrap();
        let _third = now(&turns, 3).unwrap();
        assert!(now(&turns, 4).is_none(), "three are enough");
        drop(first);
        assert!(now(&turns, 1).is_some());
    }

    #[test]
    fn the_table_of_users_does_not_grow() {
        let turns = Turns::new(1000, 1);
        let held = now(&turns, 1).unwrap();
        for uid in 0..10_000 {
            drop(now(&turns, uid));
        }
        assert!(turns.by_uid.lock().unwrap().len() <= MANY);
        assert!(now(&turns, 1).is_none(), "who works is not forgotten");
        drop(held);
    }
}
