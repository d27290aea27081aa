//! How much of what the server takes on at once, and how many strangers in a second.

use std::sync::{Mutex, PoisonError};

use spiffe::time::Timestamp;

/// A bucket of tokens that fills up with each second that passes.
#[derive(Debug)]
pub struct Bucket {
    rate: u32,
    burst: u32,
    state: Mutex<(u32, Timestamp)>,
}

impl Bucket {
    /// Lets `rate` through in a second, and up to `burst` at once after a pause.
    pub fn new(rate: u32, burst: u32, now: Timestamp) -> Self {
        Self { rate, burst: burst.max(1), state: Mutex::new((burst.max(1), now)) }
    }

    /// Takes a token, if there is one.
    pub fn take(&self, now: Timestamp) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (tokens, at) = *state;
        let passed = u32::try_from(now.since(at).as_secs()).unwrap_or(u32::MAX);
        let tokens = tokens.saturating_add(passed.saturating_mul(self.rate)).min(self.burst);
        // A clock that goes back fills nothing, and does not lock out for as long as it went back.
        *state = (tokens.saturating_sub(1), now);
        tokens > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_the_rate() {
        let at = Timestamp::from_unix;
        let bucket = Bucket::new(2, 5, at(100));
        assert_eq!((0..7).filter(|_| bucket.take(at(100))).count(), 5);
        assert_eq!((0..7).filter(|_| bucket.take(at(101))).count(), 2);
        assert_eq!((0..7).filter(|_| bucket.take(at(50))).count(), 0);
        assert_eq!((0..7).filter(|_| bucket.take(at(51))).count(), 2);
        assert_eq!((0..99).filter(|_| bucket.take(at(1000))).count(), 5);
    }
}
