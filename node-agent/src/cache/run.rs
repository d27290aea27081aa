//! The loop around the machines: feeds them what happens, and carries out what they decide. One keeps X.509-SVIDs, one
//! WIT-SVIDs, which are issued only while someone listens, and one holds JWT-SVIDs.
//!
//! - What the server says reaches all of them in one step. A revision is acknowledged once each has applied it.
//! - Keys are made here, fresh for each SVID, on threads of their own; they are never on disk.
//! - An SVID is verified against the bundle before the machine sees it.
//! - The clock is looked at every ten minutes at the latest, so that one that was put back strands no renewal.

use std::sync::Arc;
use std::time::Duration;

use spiffe::bundle::Bundle;
use spiffe::entry::KeyType;
use spiffe::mtls::CurrentBundles;
use spiffe::time::{Clock, Timestamp};
use spiffe::wit_svid::WitSvid;
use spiffe::x509_svid::X509Svid;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::desk::Desk;
use self::issue::Issue;
use self::keeping::{Keeping, count};
use super::directory::Directory;
use super::event::{Action, Event};
use super::follow::{Followed, follow};
use super::machine::Machine;
use super::subscription::{Look, Mailbox};
use super::tokens;
use crate::client::{Client, Update};
use crate::metrics::Metrics;

mod desk;
mod issue;
mod keeping;

const LOOK_AGAIN: Duration = Duration::from_secs(600);
/// What the loop works with.
#[derive(Debug)]
pub struct Parts {
    /// Serves the handles of the doors.
    pub mailbox: Mailbox,
    /// The Node door.
    pub client: Arc<Client>,
    /// Set at each change of the own bundle.
    pub bundles: CurrentBundles,
    /// The bundle as it is at the start; told at each change.
    pub trust: watch::Sender<Bundle>,
    /// Where the time comes from.
    pub clock: Arc<dyn Clock>,
    /// Of SVIDs whose entry names none.
    pub key_type: KeyType,
    /// How many entries have their SVID before anyone asks.
    pub prefetch: usize,
    /// How many JWT-SVIDs are held.
    pub tokens: tokens::machine::Bounds,
    /// What is counted.
    pub metrics: Metrics,
}

/// Runs the cache until `shutdown`. Its subscriptions end with it.
pub async fn run(parts: Parts, shutdown: CancellationToken) {
    let Parts { mailbox, client, bundles, trust, clock, key_type, prefetch, tokens, metrics } = parts;
    let Mailbox { x509: mut x509_mailbox, wit: mut wit_mailbox, mut wants, mut looks, directory, tokens: held } =
        mailbox;
    let own = trust.borrow().clone();
    // Room for one: the stream is read as fast as the machines keep up.
    let (followed, mut news) = mpsc::channel(1);
    let mut tasks = JoinSet::new();
    tasks.spawn(follow(client.clone(), clock.clone(), followed));
    let issue = Issue { client, bundles: bundles.clone(), clock: clock.clone(), key_type };
    let known = Directory::new(own.clone());
    let mut cache = Running {
        x509: Keeping::new(Machine::new(own.clone(), prefetch), issue.clone()),
        wit: Keeping::new(Machine::new(own, 0), issue.clone()),
        desk: Desk::new(tokens::machine::Machine::new(known.clone(), tokens), issue, held, metrics.clone()),
        known,
        directory,
        acknowledged: None,
        applied: Applied::default(),
        bundles,
        trust,
        metrics,
    };
    let mut wanted = Vec::new();
    loop {
        let wake = cache.next_wake();
        let happened = tokio::select! {
            () = shutdown.cancelled() => return,
            Some(subscribe) = x509_mailbox.recv() => Happened::X509(cache.x509.enter(subscribe)),
            Some(subscribe) = wit_mailbox.recv() => Happened::Wit(cache.wit.enter(subscribe)),
            1.. = wants.recv_many(&mut wanted, tokens::machine::MAX_BATCH) => {
                Happened::Desk(cache.desk.enter(std::mem::take(&mut wanted)))
            }
            Some(told) = looks.recv() => {
                // Whoever asked may be gone.
                let _ = told.send(cache.look());
                continue;
            }
            Some(news) = news.recv() => Happened::News(news),
            Some(event) = cache.x509.next() => event.map_or_else(broken, Happened::X509),
            Some(event) = cache.wit.next() => event.map_or_else(broken, Happened::Wit),
            Some(ended) = tasks.join_next() => Happened::Broken(ended.err()),
            Some(event) = cache.desk.next() => event.map_or_else(broken, Happened::Desk),
            () = clock.sleep_until(wake.unwrap_or(Timestamp::from_unix(u64::MAX))), if wake.is_some() => Happened::Tick,
            () = clock.sleep(LOOK_AGAIN) => Happened::Tick,
        };
        if let Happened::Broken(error) = happened {
            // A panic in there is a mistake of ours; whoever waits for SVIDs, or news, must not wait for ever.
            warn!(error = error.map(tracing::field::display), "a task broke off: the agent's cache stops");
            return;
        }
        cache.take_in(happened, clock.now());
        cache.measure();
    }
}

/// What the loop has waited for.
enum Happened {
    X509(Event),
    Wit(Event<WitSvid>),
    Desk(tokens::machine::Event),
    News(Followed),
    Tick,
    /// `None`: it ended, and should not have.
    Broken(Option<JoinError>),
}

fn broken(error: JoinError) -> Happened {
    Happened::Broken(Some(error))
}

struct Running {
    x509: Keeping<X509Svid>,
    wit: Keeping<WitSvid>,
    desk: Desk,
    known: Directory,
    directory: watch::Sender<Option<Directory>>,
    acknowledged: Option<watch::Sender<u64>>,
    applied: Applied,
    bundles: CurrentBundles,
    trust: watch::Sender<Bundle>,
    metrics: Metrics,
}

/// The revision up to which each machine has applied everything: what both have, is acknowledged.
#[derive(Default)]
struct Applied {
    x509: u64,
    wit: u64,
}

impl Applied {
    fn by_both(&self) -> u64 {
        self.x509.min(self.wit)
    }
}

impl Running {
    fn next_wake(&self) -> Option<Timestamp> {
        [self.x509.machine.next_wake(), self.wit.machine.next_wake(), self.desk.next_wake()].into_iter().flatten().min()
    }

    fn take_in(&mut self, happened: Happened, now: Timestamp) {
        match happened {
            Happened::X509(event) => self.x509(event, now),
            Happened::Wit(event) => self.wit(event, now),
            Happened::Desk(event) => self.desk.handle(event, now),
            Happened::News(Followed::Opened(acknowledged)) => {
                self.applied = Applied::default();
                self.acknowledged = Some(acknowledged);
            }
            Happened::News(Followed::Update(update)) => self.learn(update, now),
            Happened::News(Followed::Gone) => {
                self.acknowledged = None;
                self.metrics.connected.set(0);
                self.desk.handle(tokens::machine::Event::ServerGone, now);
                self.wit(Event::ServerGone, now);
                self.x509(Event::ServerGone, now);
            }
            Happened::Tick => {
                self.desk.handle(tokens::machine::Event::Tick, now);
                self.wit(Event::Tick, now);
                self.x509(Event::Tick, now);
            }
            Happened::Broken(_) => {}
        }
    }

    /// Tokens first: what is dropped is dropped before anybody can see the reason.
    fn learn(&mut self, update: Update, now: Timestamp) {
        debug!(revision = update.revision, snapshot = update.snapshot, entries = update.entries.len(), "synced");
        self.metrics.connected.set(1);
        self.known.apply(&update);
        self.desk.handle(tokens::machine::Event::Known(Box::new(self.known.clone())), now);
        self.directory.send_replace(Some(self.known.clone()));
        self.wit(Event::Synced(update.clone()), now);
        self.x509(Event::Synced(update), now);
    }

    fn x509(&mut self, event: Event, now: Timestamp) {
        count(&event, &self.metrics);
        for action in self.x509.handle(event, now) {
            match action {
                Action::Trust(bundle) => {
                    info!(sequence = bundle.sequence(), roots = bundle.x509_authorities().len(), "bundle has changed");
                    self.bundles.set([bundle.clone()]);
                    self.trust.send_replace(bundle);
                }
                Action::Acknowledge(revision) => {
                    self.applied.x509 = revision;
                    self.acknowledge();
                }
                Action::Issue(_) | Action::Publish(..) => {}
            }
        }
    }

    fn wit(&mut self, event: Event<WitSvid>, now: Timestamp) {
        count(&event, &self.metrics);
        for action in self.wit.handle(event, now) {
            // The machine of the X.509-SVIDs says whom to trust.
            if let Action::Acknowledge(revision) = action {
                self.applied.wit = revision;
                self.acknowledge();
            }
        }
    }

    fn look(&self) -> Look {
        let svids = self.x509.machine.svids().map(|(entry, svid)| (Arc::clone(entry), svid.lifetime().not_after));
        Look { connected: self.acknowledged.is_some(), revision: self.applied.by_both(), svids: svids.collect() }
    }

    fn acknowledge(&self) {
        let both = self.applied.by_both();
        if let Some(acknowledged) = self.acknowledged.as_ref().filter(|known| *known.borrow() < both) {
            acknowledged.send_replace(both);
        }
    }

    fn measure(&self) {
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.metrics.svids.set(gauge(self.x509.machine.held()));
        self.metrics.wit_svids.set(gauge(self.wit.machine.held()));
        self.metrics.entries.set(gauge(self.x509.machine.entries()));
        self.metrics.subscribers.set(gauge(self.x509.machine.subscribers() + self.wit.machine.subscribers()));
    }
}
