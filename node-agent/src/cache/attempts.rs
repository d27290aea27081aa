//! How often something is asked for in vain: each failure waits longer than the one before; a refusal longer than a
//! failure on the way.
//!
//! - A wait that began in the future is over: the clock was put back.

use std::time::Duration;

use spiffe::time::{Backoff, Timestamp};

const SECOND: Duration = Duration::from_secs(1);
const TRANSIENT_FIRST: Duration = Duration::from_secs(1);
const TRANSIENT_MOST: Duration = Duration::from_secs(30);
const PERMANENT_FIRST: Duration = Duration::from_secs(15);
const PERMANENT_MOST: Duration = Duration::from_secs(300);

/// What came of the last attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    None,
    Transient,
    Permanent,
}

/// The attempts to get one thing, since the last that succeeded.
#[derive(Debug)]
pub(super) struct Attempts {
    failure: Failure,
    backoff: Backoff,
    wait: Option<Wait>,
}

#[derive(Debug)]
struct Wait {
    since: Timestamp,
    until: Timestamp,
}

impl Attempts {
    pub(super) fn new() -> Self {
        Self { failure: Failure::None, backoff: Backoff::new(TRANSIENT_FIRST, TRANSIENT_MOST), wait: None }
    }

    pub(super) fn failure(&self) -> Failure {
        self.failure
    }

    /// Until when to wait; `None`: no longer.
    pub(super) fn wait(&self, now: Timestamp) -> Option<Timestamp> {
        self.wait.as_ref().filter(|wait| wait.since <= now && now < wait.until).map(|wait| wait.until)
    }

    /// Ends the wait, and forgets nothing else.
    pub(super) fn end_wait(&mut self) {
        self.wait = None;
    }

    /// One more attempt has come to `failure`. `name`: of what was asked for, so that waits spread.
    pub(super) fn fail(&mut self, failure: Failure, name: &str, now: Timestamp) {
        if self.failure != failure {
            self.backoff = match failure {
                Failure::Permanent => Backoff::new(PERMANENT_FIRST, PERMANENT_MOST),
                _ => Backoff::new(TRANSIENT_FIRST, TRANSIENT_MOST),
            };
        }
        self.failure = failure;
        let wait = self.backoff.after_failure(chance(name, now));
        // A wait of less than a second would be none.
        self.wait = Some(Wait { since: now, until: now.plus(wait.max(SECOND)) });
    }
}

/// A number that differs between names and moments. Nobody gains by choosing it.
fn chance(name: &str, now: Timestamp) -> u32 {
    let seed = 0xcbf2_9ce4_8422_2325_u64 ^ now.unix();
    let hash = name.bytes().fold(seed, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    u32::try_from(hash >> 32).unwrap_or(u32::MAX)
}
