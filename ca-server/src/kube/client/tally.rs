//! What reviews of tokens have come to, for metrics.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a review came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reviewed {
    /// The API server vouches for the token.
    Accepted,
    /// It does not, or need not be asked: by its own words the token is good for nothing here.
    Refused,
    /// It could not be asked.
    Unavailable,
    /// It was not asked again: it had vouched for the token a moment ago, or does so for another caller now.
    Remembered,
}

/// How often each was.
#[derive(Debug, Default)]
pub struct Tally([AtomicU64; 4]);

impl Tally {
    /// Counts one.
    pub fn count(&self, outcome: Reviewed) {
        if let Some(counter) = self.0.get(outcome as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Each by its name, and how often it was.
    pub fn counts(&self) -> [(&'static str, u64); 4] {
        let count = |at: Reviewed| self.0.get(at as usize).map_or(0, |counter| counter.load(Ordering::Relaxed));
        [
            ("accepted", count(Reviewed::Accepted)),
            ("refused", count(Reviewed::Refused)),
            ("unavailable", count(Reviewed::Unavailable)),
            ("remembered", count(Reviewed::Remembered)),
        ]
    }
}
