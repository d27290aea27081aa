//! What the agent can tell of its work: a registry to which the rooms report, and which `chancery agent status` shows.
//!
//! - Whoever does something worth seeing puts a report up ([`Status::report_proxy`], [`Status::report_delivery`]), keeps
//!   the [`Reporter`] as long as it does so, and changes the report as things happen. Dropping the reporter takes it down.
//! - A report is what is so now. It has no history, and so does not grow; words of others are cut by [`words`].
//! - A proxy that was refused has no stream any more: what was told to it stays up for a while, the last few of those.
//! - Reporting never waits for whoever looks: a look copies the reports, one shelf at a time.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use spiffe::time::Timestamp;

/// The most characters of somebody else's words that are kept, or logged.
const MAX_WORDS: usize = 400;

/// How long a refusal stays up: several times as long as an Envoy waits before it asks again.
const REFUSED_FOR: Duration = Duration::from_secs(300);
/// How many refusals are up.
const MAX_REFUSED: usize = 32;

/// The registry. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Status {
    proxies: Shelf<Proxy>,
    refused: Arc<Mutex<VecDeque<Proxy>>>,
    deliveries: Shelf<Delivery>,
}

impl Status {
    /// Puts up a report on a proxy, as long as the reporter is held.
    pub fn report_proxy(&self, proxy: Proxy) -> Reporter<Proxy> {
        self.proxies.put(proxy)
    }

    /// Puts up a report on a delivery, as long as the reporter is held.
    pub fn report_delivery(&self, delivery: Delivery) -> Reporter<Delivery> {
        self.deliveries.put(delivery)
    }

    /// Puts up that a proxy was refused, in its `rejection`. It takes the place of what was told to the same process about the
    /// same names.
    pub fn refuse(&self, proxy: Proxy) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.retain(|before| (before.pid, &before.names) != (proxy.pid, &proxy.names));
        refused.push_back(proxy);
        let over = refused.len().saturating_sub(MAX_REFUSED);
        refused.drain(..over);
    }

    /// The proxies, the oldest stream first; then those that were refused lately.
    pub fn proxies(&self, now: Timestamp) -> Vec<Proxy> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let is_recent = |proxy: &&Proxy| {
            proxy.rejection.as_ref().is_some_and(|failure| failure.at <= now && now < failure.at.plus(REFUSED_FOR))
        };
        let recent: Vec<Proxy> = refused.iter().filter(is_recent).cloned().collect();
        drop(refused);
        self.proxies.look().into_iter().chain(recent).collect()
    }

    /// The deliveries, by name.
    pub fn deliveries(&self) -> Vec<Delivery> {
        let mut deliveries = self.deliveries.look();
        deliveries.sort_by(|one, other| one.name.cmp(&other.name));
        deliveries
    }
}

/// One stream of a proxy that gets its secrets by SDS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxy {
    /// The process.
    pub pid: u32,
    /// What it calls itself (`node.id`); it may say anything.
    pub node: String,
    /// The names that it has asked for. Empty: everything.
    pub names: Vec<String>,
    /// The version that was last sent. Empty: none yet.
    pub sent: String,
    /// The version that it has last taken. Empty: none yet.
    pub acknowledged: String,
    /// What it said to the last version that it would not take; or what it was told when it was refused.
    pub rejection: Option<Failure>,
}

/// One delivery of files, and what is done after a swap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delivery {
    /// Its name in the config.
    pub name: String,
    /// The identity that is delivered. Empty: none yet.
    pub spiffe_id: String,
    /// What lies in the folder now. Empty: nothing yet.
    pub version: String,
    /// When all actions after a swap were last done.
    pub succeeded_at: Option<Timestamp>,
    /// What went wrong last; gone again after a success.
    pub failure: Option<Failure>,
    /// When what went wrong is tried again.
    pub next_try: Option<Timestamp>,
}

/// Something that went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// When.
    pub at: Timestamp,
    /// In the words of whoever noticed; see [`words`].
    pub words: String,
}

/// Somebody else's words, fit to be kept, logged and shown: a few hundred characters, all on one line.
pub fn words(text: &str) -> String {
    let text = text.trim();
    let mut fit: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_WORDS).collect();
    if text.chars().nth(MAX_WORDS).is_some() {
        fit.push_str("...");
    }
    fit
}

/// Keeps one report up. Dropped, it takes it down.
#[derive(Debug)]
pub struct Reporter<T> {
    shelf: Shelf<T>,
    place: u64,
}

impl<T> Reporter<T> {
    /// Changes the report.
    pub fn update(&self, change: impl FnOnce(&mut T)) {
        if let Some(report) = self.shelf.lock().reports.get_mut(&self.place) {
            change(report);
        }
    }
}

impl<T: Clone + Default> Reporter<T> {
    /// The report as it is.
    pub fn report(&self) -> T {
        self.shelf.lock().reports.get(&self.place).cloned().unwrap_or_default()
    }
}

impl<T> Drop for Reporter<T> {
    fn drop(&mut self) {
        self.shelf.lock().reports.remove(&self.place);
    }
}

/// Reports of one kind. Clones share them.
#[derive(Debug)]
struct Shelf<T>(Arc<Mutex<Reports<T>>>);

#[derive(Debug)]
struct Reports<T> {
    next: u64,
    reports: BTreeMap<u64, T>,
}

impl<T> Shelf<T> {
    fn put(&self, report: T) -> Reporter<T> {
        let mut reports = self.lock();
        let place = reports.next;
        reports.next += 1;
        reports.reports.insert(place, report);
        Reporter { shelf: self.clone(), place }
    }

    fn look(&self) -> Vec<T>
    where
        T: Clone,
    {
        self.lock().reports.values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Reports<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Clone for Shelf<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Reports { next: 0, reports: BTreeMap::new() })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_unix(1_800_000_000);

    #[test]
    fn who_was_refused_is_seen_for_a_while_and_once() {
        let status = Status::default();
        let refused = |pid, name: &str, at: Timestamp| Proxy {
            pid,
            names: vec![name.into()],
            rejection: Some(Failure { at, words: "no".into() }),
            ..Proxy::default()
        };
        for second in 0..3 {
            status.refuse(refused(7, "wbe", NOW.plus(Duration::from_secs(second))));
        }
        status.refuse(refused(7, "default", NOW));
        let names = |after| {
            let seen = status.proxies(NOW.plus(Duration::from_secs(after)));
            seen.into_iter().flat_map(|proxy| proxy.names).collect::<Vec<_>>()
        };
        assert_eq!(names(10), ["wbe", "default"]);
        assert_eq!(names(301), ["wbe"]);
        assert!(names(400).is_empty());
        for pid in 100..200 {
            status.refuse(refused(pid, "x", NOW));
        }
        assert_eq!(names(0).len(), MAX_REFUSED);
    }

    #[test]
    fn a_report_is_up_as_long_as_its_reporter_is_held() {
        let status = Status::default();
        let first = status.report_proxy(Proxy { pid: 7, ..Proxy::default() });
        let second = status.clone().report_proxy(Proxy { pid: 8, ..Proxy::default() });
        first.update(|proxy| proxy.acknowledged = "v1".into());
        let seen: Vec<_> = status.proxies(NOW).into_iter().map(|proxy| (proxy.pid, proxy.acknowledged)).collect();
        assert_eq!(seen, [(7, "v1".to_owned()), (8, String::new())]);
        drop(first);
        assert_eq!(status.proxies(NOW).len(), 1);
        drop(second);
        assert!(status.proxies(NOW).is_empty() && status.deliveries().is_empty());
    }

    #[test]
    fn deliveries_stand_in_the_order_of_their_names() {
        let status = Status::default();
        let named = |name: &str| Delivery { name: name.into(), ..Delivery::default() };
        let reporters = ["nginx", "haproxy"].map(|name| status.report_delivery(named(name)));
        reporters[0].update(|delivery| {
            delivery.failure = Some(Failure { at: Timestamp::from_unix(5), words: words("no such pid\n") });
        });
        let seen = status.deliveries();
        assert_eq!((seen[0].name.as_str(), seen[1].name.as_str()), ("haproxy", "nginx"));
        assert_eq!(seen[1].failure.as_ref().unwrap().words, "no such pid");
    }

    #[test]
    fn words_of_others_are_one_short_line() {
        assert_eq!(words(" two\nlines\u{1b}[2J "), "two lines [2J");
        assert_eq!(words(&"\u{e9}".repeat(401)), format!("{}...", "\u{e9}".repeat(400)));
    }
}
