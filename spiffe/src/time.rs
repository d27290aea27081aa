//! Time as values: instants in whole seconds, lifetimes, when to renew, how long to back off; and the clock.
//!
//! - Everything that decides takes `now` as an argument. Only loops hold an `Arc<dyn Clock>`.
//! - The moment of a renewal is fixed by the serial number, so that asking again gives the same answer.
//! - [`System`] sleeps a minute at most and looks again: a clock that jumps, or a machine that was
//!   suspended, strands no renewal.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rustls_pki_types::UnixTime;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

/// A moment, in whole seconds since 1970-01-01T00:00:00Z. Never negative.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The moment `seconds` after the epoch.
    pub const fn from_unix(seconds: u64) -> Self {
        Self(seconds)
    }

    /// Seconds since the epoch.
    pub const fn unix(self) -> u64 {
        self.0
    }

    /// This moment and `duration` (fractions of a second are dropped); stops at the ends of the scale.
    pub const fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration.as_secs()))
    }

    /// `duration` before this moment; the epoch at the earliest.
    pub const fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(duration.as_secs()))
    }

    /// How long it is from `earlier` to this moment; zero when `earlier` is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_secs(self.0.saturating_sub(earlier.0))
    }

    /// For certificates and for people. Moments past the year 9999 become its last second, as X.509 has it.
    pub fn to_date_time(self) -> time::OffsetDateTime {
        const LAST: i64 = 253_402_300_799;
        let seconds = i64::try_from(self.0).unwrap_or(LAST).min(LAST);
        time::OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
    }

    /// For rustls.
    pub fn to_unix_time(self) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(self.0))
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC, whole seconds: `2026-11-20T23:40:00Z`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.to_date_time();
        write!(
            f,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
            at.year(),
            u8::from(at.month()),
            at.day(),
            at.hour(),
            at.minute(),
            at.second()
        )
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How much earlier than the moment of its issue a certificate of ours is valid, for clocks that differ.
pub const BACKDATE: Duration = Duration::from_secs(60);

/// From when to when something is valid, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lifetime {
    /// The first valid second.
    pub not_before: Timestamp,
    /// The last valid second.
    pub not_after: Timestamp,
}

impl Lifetime {
    /// Whether `now` is within.
    pub fn contains(&self, now: Timestamp) -> bool {
        self.not_before <= now && now <= self.not_after
    }

    /// When a certificate of ours with this lifetime was issued: [`BACKDATE`] after its first valid second.
    pub fn issued(&self) -> Timestamp {
        self.not_before.plus(BACKDATE).min(self.not_after)
    }

    /// How long it lasts.
    pub fn length(&self) -> Duration {
        self.not_after.since(self.not_before)
    }
}

/// When something issued at `issued` and valid until `not_after` is renewed: at half of its life, give or
/// take a tenth of it, so that what was issued together is not renewed together. The jitter comes from the
/// serial number alone.
pub fn renew_at(issued: Timestamp, not_after: Timestamp, serial: &[u8]) -> Timestamp {
    let life = not_after.since(issued).as_secs();
    // FNV-1a: spreads well, and no one gains anything by choosing the outcome.
    let hash = serial
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    let tenth = life / 10;
    let jitter = (hash >> 16).checked_rem(2 * tenth + 1).unwrap_or(0);
    issued.plus(Duration::from_secs(life / 2 + jitter - tenth))
}

/// How long to wait before trying again: doubles from `first` to at most `most`, each wait cut by a random
/// share of up to a half, so that many that failed together do not come back together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    failures: u32,
}

impl Backoff {
    /// Starts at `first`; never waits longer than `most`.
    pub const fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, failures: 0 }
    }

    /// Counts one more failure and says how long to wait. `chance` is any random number.
    pub fn after_failure(&mut self, chance: u32) -> Duration {
        let factor = 1_u32.checked_shl(self.failures.min(30)).unwrap_or(u32::MAX);
        self.failures = self.failures.saturating_add(1);
        let full = self.first.saturating_mul(factor).min(self.most);
        full - full.mul_f64(f64::from(chance) / f64::from(u32::MAX) / 2.0)
    }

    /// Forgets the failures: it went well.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Where loops get the time from. Values get it as an argument.
#[async_trait]
pub trait Clock: Send + Sync + fmt::Debug {
    /// The present moment.
    fn now(&self) -> Timestamp;

    /// Returns when `now()` is at or after `at`.
    async fn sleep_until(&self, at: Timestamp);

    /// Returns after `duration`; a fake clock rounds it up to whole seconds.
    async fn sleep(&self, duration: Duration);
}

/// The clock of the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct System;

const LONGEST_NAP: Duration = Duration::from_secs(60);

#[async_trait]
impl Clock for System {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the system clock")]
    fn now(&self) -> Timestamp {
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Timestamp(since_epoch.map_or(0, |duration| duration.as_secs()))
    }

    #[expect(clippy::disallowed_methods, reason = "the one place that sleeps on real time")]
    async fn sleep_until(&self, at: Timestamp) {
        loop {
            let left = at.since(self.now());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(LONGEST_NAP)).await;
        }
    }

    #[expect(clippy::disallowed_methods, reason = "the one place that sleeps on real time")]
    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

/// A clock that a test turns by hand. Clones share the time.
#[derive(Clone, Debug)]
pub struct Fake(Arc<Mutex<FakeState>>);

#[derive(Debug)]
struct FakeState {
    now: Timestamp,
    sleepers: BTreeMap<(Timestamp, u64), Sleeper>,
    next_sleeper: u64,
}

#[derive(Debug)]
struct Sleeper {
    wake: oneshot::Sender<()>,
    /// Sleeps for a while, whatever the clock says: a clock that is put back does not make the while longer.
    for_a_while: bool,
}

impl Fake {
    /// A clock that stands at `now`.
    pub fn new(now: Timestamp) -> Self {
        Self(Arc::new(Mutex::new(FakeState { now, sleepers: BTreeMap::new(), next_sleeper: 0 })))
    }

    /// Moves the time forward and wakes whoever has slept long enough.
    pub fn advance(&self, duration: Duration) {
        let to = self.lock().now.plus(duration);
        self.set(to);
    }

    /// Sets the time, backwards too, and wakes whoever has slept long enough. Forwards it is time that passes;
    /// backwards it is the clock alone that is put back, as with [`System`]: who sleeps for a while sleeps no longer.
    pub fn set(&self, now: Timestamp) {
        let mut state = self.lock();
        let back = state.now.since(now);
        if !back.is_zero() {
            let sleepers = std::mem::take(&mut state.sleepers).into_iter();
            state.sleepers = sleepers
                .map(|((at, number), sleeper)| {
                    let at = if sleeper.for_a_while { at.minus(back) } else { at };
                    ((at, number), sleeper)
                })
                .collect();
        }
        state.now = now;
        let later = state.sleepers.split_off(&(now.plus(Duration::from_secs(1)), 0));
        let due = std::mem::replace(&mut state.sleepers, later);
        drop(state);
        for sleeper in due.into_values() {
            // A sleeper that was cancelled no longer listens: nothing to wake.
            let _ = sleeper.wake.send(());
        }
    }

    /// When the next sleeper wants to wake; `None` when nobody sleeps.
    pub fn next_wake(&self) -> Option<Timestamp> {
        let mut state = self.lock();
        state.sleepers.retain(|_, sleeper| !sleeper.wake.is_closed());
        state.sleepers.keys().next().map(|(at, _)| *at)
    }

    async fn sleep_as(&self, until: impl FnOnce(Timestamp) -> Timestamp + Send, for_a_while: bool) {
        let woken = {
            let mut state = self.lock();
            let at = until(state.now);
            if state.now >= at {
                return;
            }
            let (wake, woken) = oneshot::channel();
            let number = state.next_sleeper;
            state.next_sleeper += 1;
            state.sleepers.insert((at, number), Sleeper { wake, for_a_while });
            woken
        };
        // An error means that the clock is gone, and with it the test.
        let _ = woken.await;
    }

    fn lock(&self) -> MutexGuard<'_, FakeState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Clock for Fake {
    fn now(&self) -> Timestamp {
        self.lock().now
    }

    async fn sleep_until(&self, at: Timestamp) {
        self.sleep_as(|_| at, false).await;
    }

    async fn sleep(&self, duration: Duration) {
        let whole = Duration::from_secs(duration.as_secs() + u64::from(duration.subsec_nanos() > 0));
        self.sleep_as(|now| now.plus(whole), true).await;
    }
}

/// A clock as the source of time of rustls.
#[derive(Clone, Debug)]
pub struct TlsTime(pub Arc<dyn Clock>);

impl rustls::time_provider::TimeProvider for TlsTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.0.now().to_unix_time())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn prints_as_rfc_3339() {
        assert_eq!(Timestamp::from_unix(1_795_218_000).to_string(), "2026-11-20T23:40:00Z");
        assert_eq!(Timestamp::from_unix(u64::MAX).to_string(), "9999-12-31T23:59:59Z");
    }

    #[test]
    fn backoff_doubles_to_its_most_and_starts_again() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        let waits: Vec<u64> = (0..7).map(|_| backoff.after_failure(0).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(backoff.after_failure(u32::MAX).as_secs(), 15);
        backoff.reset();
        assert_eq!(backoff.after_failure(0).as_secs(), 1);
    }

    #[tokio::test]
    async fn a_fake_clock_wakes_its_sleepers_in_time() {
        let clock = Fake::new(Timestamp::from_unix(1000));
        let sleeper = tokio::spawn({
            let clock = clock.clone();
            async move {
                clock.sleep_until(Timestamp::from_unix(1060)).await;
                clock.now()
            }
        });
        while clock.next_wake().is_none() {
            tokio::task::yield_now().await;
        }
        clock.advance(Duration::from_secs(59));
        tokio::task::yield_now().await;
        assert!(!sleeper.is_finished());
        clock.advance(Duration::from_secs(1));
        assert_eq!(sleeper.await.unwrap(), Timestamp::from_unix(1060));
    }

    #[tokio::test]
    async fn a_fake_clock_that_is_put_back_lengthens_no_while() {
        let clock = Fake::new(Timestamp::from_unix(10_000));
        let (a_while, a_moment) = (clock.clone(), clock.clone());
        let a_while = tokio::spawn(async move { a_while.sleep(Duration::from_secs(60)).await });
        let a_moment = tokio::spawn(async move { a_moment.sleep_until(Timestamp::from_unix(10_060)).await });
        tokio::task::yield_now().await;
        clock.set(Timestamp::from_unix(5_000));
        assert_eq!(clock.next_wake(), Some(Timestamp::from_unix(5_060)));
        clock.advance(Duration::from_secs(60));
        a_while.await.unwrap();
        assert!(!a_moment.is_finished());
        clock.set(Timestamp::from_unix(10_060));
        a_moment.await.unwrap();
    }

    proptest! {
        #[test]
        fn a_renewal_is_near_half_of_life_and_never_re_rolled(issued in 0u64..4_000_000_000, life in 0u64..40_000_000, serial: [u8; 16]) {
            let (issued, not_after) = (Timestamp::from_unix(issued), Timestamp::from_unix(issued + life));
            let at = renew_at(issued, not_after, &serial);
            prop_assert_eq!(at, renew_at(issued, not_after, &serial));
            prop_assert!(at >= issued.plus(Duration::from_secs(life / 10 * 4)));
            prop_assert!(at <= issued.plus(Duration::from_secs(life / 2 + life / 10)));
        }
    }

    #[test]
    fn the_renewal_of_a_short_life_is_not_over_when_it_is_issued() {
        let now = Timestamp::from_unix(1_000);
        let lifetime = Lifetime { not_before: now.minus(BACKDATE), not_after: now.plus(Duration::from_secs(20)) };
        assert_eq!(lifetime.issued(), now);
        assert!(renew_at(lifetime.issued(), lifetime.not_after, b"serial") >= now.plus(Duration::from_secs(8)));
    }

    #[test]
    fn renewals_spread() {
        let at = |n: u32| renew_at(Timestamp::from_unix(0), Timestamp::default().plus(HOUR), &n.to_be_bytes()).unix();
        let minutes: std::collections::BTreeSet<u64> = (0..200).map(|n| at(n) / 60).collect();
        assert!(minutes.len() > 8, "{minutes:?}");
    }
}
