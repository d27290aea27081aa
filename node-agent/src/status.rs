//! What the agent can tell of its work: a registry to which the rooms report, and which `chancery agent status` shows.
//!
//! - Whoever does something worth seeing puts a report up ([`Status::report_proxy`], [`Status::report_delivery`]), keeps
//!   the [`Reporter`] as long as it does so, and changes the report as things happen. Dropping the reporter takes it down.
//! - A report is what is so now. It has no history, and so does not grow; words of others are cut by [`words`].
//! - Reporting never waits for whoever looks: a look copies the reports, one shelf at a time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use spiffe::time::Timestamp;

/// The most characters of somebody else's words that are kept, or logged.
const MAX_WORDS: usize = 400;

/// The registry. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Status {
    proxies: Shelf<Proxy>,
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

    /// The proxies, the oldest stream first.
    pub fn proxies(&self) -> Vec<Proxy> {
        self.proxies.look()
    }

    /// The deliveries, in the order in which they were begun.
    pub fn deliveries(&self) -> Vec<Delivery> {
        self.deliveries.look()
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
    /// What it said to the last version that it would not take.
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

    #[test]
    fn a_report_is_up_as_long_as_its_reporter_is_held() {
        let status = Status::default();
        let first = status.report_proxy(Proxy { pid: 7, ..Proxy::default() });
        let second = status.clone().report_proxy(Proxy { pid: 8, ..Proxy::default() });
        first.update(|proxy| proxy.acknowledged = "v1".into());
        let seen: Vec<_> = status.proxies().into_iter().map(|proxy| (proxy.pid, proxy.acknowledged)).collect();
        assert_eq!(seen, [(7, "v1".to_owned()), (8, String::new())]);
        drop(first);
        assert_eq!(status.proxies().len(), 1);
        drop(second);
        assert!(status.proxies().is_empty() && status.deliveries().is_empty());
    }

    #[test]
    fn deliveries_stand_in_their_order() {
        let status = Status::default();
        let named = |name: &str| Delivery { name: name.into(), ..Delivery::default() };
        let reporters = ["nginx", "haproxy"].map(|name| status.report_delivery(named(name)));
        reporters[0].update(|delivery| {
            delivery.failure = Some(Failure { at: Timestamp::from_unix(5), words: words("no such pid\n") });
        });
        let seen = status.deliveries();
        assert_eq!((seen[0].name.as_str(), seen[1].name.as_str()), ("nginx", "haproxy"));
        assert_eq!(seen[0].failure.as_ref().unwrap().words, "no such pid");
    }

    #[test]
    fn words_of_others_are_one_short_line() {
        assert_eq!(words(" two\nlines\u{1b}[2J "), "two lines [2J");
        assert_eq!(words(&"\u{e9}".repeat(401)), format!("{}...", "\u{e9}".repeat(400)));
    }
}
