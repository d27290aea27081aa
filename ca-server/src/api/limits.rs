//! How often strangers may try to attest: all together, and those of one origin a quarter of that, so that whoever
//! tries without end holds up nobody from elsewhere.
//!
//! - The table of origins is bounded. One whose bucket is full again is forgotten; when there is no room for another,
//!   those without a bucket of their own share one.
//! - A clock that is put back fills nothing, and locks nobody out for as long as it went back. A call that took its time
//!   and comes with an older moment is no clock that was put back.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use spiffe::time::Timestamp;

use crate::origin::Origin;

/// What share one origin may take.
const SHARE: u32 = 4;
/// How many origins have a bucket of their own.
const MOST_ORIGINS: usize = 4096;
/// How far apart the moments of two calls at once may be: more is a clock that was put back.
const APART: Duration = Duration::from_secs(10);

/// Why an attempt has to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooMany {
    /// From where it came.
    #[error("too many nodes attest at once from your address")]
    FromOne,
    /// From everywhere.
    #[error("too many nodes attest at once")]
    InAll,
}

/// Buckets of tokens that fill up with each second that passes.
#[derive(Debug)]
pub struct Attempts {
    in_all: Rate,
    of_one: Rate,
    levels: Mutex<Levels>,
}

#[derive(Debug)]
struct Levels {
    in_all: Level,
    /// `None`: those for whom there was no room.
    by_origin: HashMap<Option<Origin>, Level>,
}

#[derive(Clone, Copy, Debug)]
struct Rate {
    per_second: u32,
    burst: u32,
}

#[derive(Clone, Copy, Debug)]
struct Level {
    tokens: u32,
    at: Timestamp,
}

impl Rate {
    fn new(per_second: u32, burst: u32) -> Self {
        Self { per_second: per_second.max(1), burst: burst.max(1) }
    }

    fn full(self, now: Timestamp) -> Level {
        Level { tokens: self.burst, at: now }
    }

    /// What `level` has become by `now`.
    fn fill(self, level: Level, now: Timestamp) -> Level {
        let passed = u32::try_from(now.since(level.at).as_secs()).unwrap_or(u32::MAX);
        let tokens = level.tokens.saturating_add(passed.saturating_mul(self.per_second)).min(self.burst);
        let at = if level.at.since(now) <= APART { level.at.max(now) } else { now };
        Level { tokens, at }
    }
}

impl Level {
    fn take(&mut self) -> bool {
        let had = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        had
    }
}

impl Attempts {
    /// Lets `per_second` through, and up to `burst` at once after a pause.
    pub fn new(per_second: u32, burst: u32, now: Timestamp) -> Self {
        let in_all = Rate::new(per_second, burst);
        let levels = Mutex::new(Levels { in_all: in_all.full(now), by_origin: HashMap::new() });
        Self { in_all, of_one: Rate::new(per_second / SHARE, burst / SHARE), levels }
    }

    /// Whether one more attempt of `origin` is let through.
    pub fn take(&self, origin: Origin, now: Timestamp) -> Result<(), TooMany> {
        let mut levels = self.levels.lock().unwrap_or_else(PoisonError::into_inner);
        let Levels { in_all, by_origin } = &mut *levels;
        let mut origin = Some(origin);
        if by_origin.len() >= MOST_ORIGINS && !by_origin.contains_key(&origin) {
            by_origin.retain(|_, level| self.of_one.fill(*level, now).tokens < self.of_one.burst);
            if by_origin.len() >= MOST_ORIGINS {
                origin = None;
            }
        }
        let of_one = by_origin.entry(origin).or_insert_with(|| self.of_one.full(now));
        *of_one = self.of_one.fill(*of_one, now);
        *in_all = self.in_all.fill(*in_all, now);
        // In this order: what one is refused takes nothing from the others.
        if !of_one.take() {
            return Err(TooMany::FromOne);
        }
        if !in_all.take() {
            return Err(TooMany::InAll);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_unix(seconds)
    }

    fn through(attempts: &Attempts, uids: impl Iterator<Item = u32>, now: u64) -> usize {
        uids.filter(|uid| attempts.take(Origin::Uid(*uid), at(now)).is_ok()).count()
    }

    #[test]
    fn a_burst_then_the_rate() {
        let attempts = Attempts::new(2, 5, at(100));
        assert_eq!(through(&attempts, 0..7, 100), 5);
        assert_eq!(through(&attempts, 10..17, 101), 2);
        assert_eq!(through(&attempts, 20..27, 50), 0, "a clock that was put back fills nothing");
        assert_eq!(through(&attempts, 30..37, 51), 2, "and locks nobody out");
        assert_eq!(through(&attempts, 100..199, 1000), 5);
    }

    #[test]
    fn a_call_with_an_older_moment_does_not_fill_the_bucket_twice() {
        let attempts = Attempts::new(4, 4, at(100));
        assert_eq!(through(&attempts, 0..4, 100), 4);
        assert_eq!(through(&attempts, 10..14, 101), 4);
        assert_eq!(through(&attempts, 20..24, 100), 0);
        assert_eq!(through(&attempts, 30..34, 101), 0);
    }

    #[test]
    fn who_tries_without_end_holds_up_nobody_from_elsewhere() {
        let attempts = Attempts::new(8, 16, at(100));
        assert_eq!(through(&attempts, std::iter::repeat_n(1, 1000), 100), 4);
        assert_eq!(attempts.take(Origin::Uid(1), at(100)), Err(TooMany::FromOne));
        assert_eq!(through(&attempts, 10..100, 100), 12, "of 16");
        assert_eq!(attempts.take(Origin::Uid(200), at(100)), Err(TooMany::InAll));
        assert_eq!(through(&attempts, std::iter::repeat_n(1, 1000), 101), 2);
    }

    #[test]
    fn the_table_of_origins_does_not_grow_and_those_without_room_share_one_bucket() {
        let attempts = Attempts::new(4 << 20, 4 << 20, at(100));
        let per_origin = 1 << 20;
        for uid in 0..10_000 {
            attempts.take(Origin::Uid(uid), at(100)).unwrap();
        }
        let held = |attempts: &Attempts| attempts.levels.lock().unwrap().by_origin.len();
        assert_eq!(held(&attempts), MOST_ORIGINS + 1);
        let shared = attempts.levels.lock().unwrap().by_origin[&None].tokens;
        assert_eq!(shared as usize, per_origin - (10_000 - MOST_ORIGINS));
        // A second later all are full again, and forgotten.
        attempts.take(Origin::Uid(70_000), at(101)).unwrap();
        assert_eq!(held(&attempts), 1);
    }
}
