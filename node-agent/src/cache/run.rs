//! The loop around the machine: feeds it what happens, and carries out what it decides.
//!
//! - Keys are made here, fresh for each SVID, on threads of their own; they are never on disk.
//! - An SVID is verified against the bundle before the machine sees it.
//! - The clock is looked at every ten minutes at the latest, so that one that was put back strands no renewal.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use spiffe::bundle::Bundle;
use spiffe::crypto;
use spiffe::entry::{EntryId, KeyType, RegistrationEntry};
use spiffe::mtls::CurrentBundles;
use spiffe::proto::v1;
use spiffe::time::{Clock, Timestamp};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::WorkloadState;
use super::event::{Action, Answer, Event, Key, Outcome, SubscriberId};
use super::follow::{Followed, follow};
use super::machine::Machine;
use super::subscription::{Mailbox, Subscribe};
use crate::client::{self, Client};
use crate::metrics::Metrics;

const LOOK_AGAIN: Duration = Duration::from_secs(600);
/// gRPC codes by which a server says no to one entry, for the time being: NOT_FOUND, PERMISSION_DENIED,
/// FAILED_PRECONDITION, INVALID_ARGUMENT, UNIMPLEMENTED.
const REFUSALS: [i32; 5] = [5, 7, 9, 3, 12];

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
    /// What is counted.
    pub metrics: Metrics,
}

/// Runs the cache until `shutdown`. Its subscriptions end with it.
pub async fn run(parts: Parts, shutdown: CancellationToken) {
    let Parts { mut mailbox, client, bundles, trust, clock, key_type, prefetch, metrics } = parts;
    let own = trust.borrow().clone();
    // Room for one: the stream is read as fast as the machine keeps up.
    let (followed, mut news) = mpsc::channel(1);
    let mut tasks = JoinSet::new();
    tasks.spawn(follow(client.clone(), clock.clone(), followed));
    let mut cache = Running {
        machine: Machine::new(own, prefetch),
        subscribers: BTreeMap::new(),
        endings: FuturesUnordered::new(),
        next_subscriber: 0,
        acknowledged: None,
        issuing: JoinSet::new(),
        issue: Issue { client, bundles, clock: clock.clone(), key_type },
        trust,
        metrics,
    };
    loop {
        let wake = cache.machine.next_wake();
        let event = tokio::select! {
            () = shutdown.cancelled() => return,
            Some(subscribe) = mailbox.next() => cache.enter(subscribe),
            Some(gone) = cache.endings.next() => {
                cache.subscribers.remove(&gone);
                Event::Unsubscribed(gone)
            }
            Some(news) = news.recv() => match cache.hear(news) {
                Some(event) => event,
                None => continue,
            },
            Some(answers) = cache.issuing.join_next() => match answers {
                Ok(answers) => cache.count(answers),
                // A panic in there is a mistake of ours; whoever waits for these SVIDs must not wait for ever.
                Err(error) => {
                    warn!(%error, "issuing SVIDs broke off: the agent's cache stops");
                    return;
                }
            },
            () = clock.sleep_until(wake.unwrap_or(Timestamp::from_unix(u64::MAX))), if wake.is_some() => Event::Tick,
            () = clock.sleep(LOOK_AGAIN) => Event::Tick,
        };
        let actions = cache.machine.handle(event, clock.now());
        actions.into_iter().for_each(|action| cache.carry_out(action));
        cache.measure();
    }
}

struct Running {
    machine: Machine,
    subscribers: BTreeMap<SubscriberId, watch::Sender<Option<WorkloadState>>>,
    endings: FuturesUnordered<BoxFuture<'static, SubscriberId>>,
    next_subscriber: SubscriberId,
    acknowledged: Option<watch::Sender<u64>>,
    issuing: JoinSet<Vec<Answer>>,
    issue: Issue,
    trust: watch::Sender<Bundle>,
    metrics: Metrics,
}

impl Running {
    fn enter(&mut self, Subscribe { selectors, states }: Subscribe) -> Event {
        let id = self.next_subscriber;
        self.next_subscriber += 1;
        let listens = states.clone();
        self.endings.push(Box::pin(async move {
            listens.closed().await;
            id
        }));
        self.subscribers.insert(id, states);
        Event::Subscribed(id, selectors)
    }

    fn hear(&mut self, news: Followed) -> Option<Event> {
        match news {
            Followed::Opened(acknowledged) => {
                self.acknowledged = Some(acknowledged);
                None
            }
            Followed::Update(update) => {
                debug!(
                    revision = update.revision,
                    snapshot = update.snapshot,
                    entries = update.entries.len(),
                    "synced"
                );
                self.metrics.connected.set(1);
                Some(Event::Synced(update))
            }
            Followed::Gone => {
                self.acknowledged = None;
                self.metrics.connected.set(0);
                Some(Event::ServerGone)
            }
        }
    }

    fn count(&self, answers: Vec<Answer>) -> Event {
        for answer in &answers {
            match answer.outcome {
                Outcome::Issued { .. } => self.metrics.issued.inc(),
                Outcome::Refused => self.metrics.refused.inc(),
                Outcome::Failed => self.metrics.failed.inc(),
            };
        }
        Event::Answered(answers)
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Issue(entries) => {
                let issue = self.issue.clone();
                self.issuing.spawn(issue.batch(entries));
            }
            Action::Publish(subscriber, state) => {
                if let Some(states) = self.subscribers.get(&subscriber) {
                    states.send_replace(Some(state));
                }
            }
            Action::Trust(bundle) => {
                info!(sequence = bundle.sequence(), roots = bundle.x509_authorities().len(), "bundle has changed");
                self.issue.bundles.set([bundle.clone()]);
                self.trust.send_replace(bundle);
            }
            Action::Acknowledge(revision) => {
                if let Some(acknowledged) = &self.acknowledged {
                    acknowledged.send_replace(revision);
                }
            }
        }
    }

    fn measure(&self) {
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.metrics.svids.set(gauge(self.machine.held()));
        self.metrics.entries.set(gauge(self.machine.entries()));
        self.metrics.subscribers.set(gauge(self.machine.subscribers()));
    }
}

/// How SVIDs are had.
#[derive(Clone)]
struct Issue {
    client: Arc<Client>,
    bundles: CurrentBundles,
    clock: Arc<dyn Clock>,
    key_type: KeyType,
}

/// A key that waits for its SVID.
struct Asked {
    entry: Arc<RegistrationEntry>,
    key: Key,
    csr: Vec<u8>,
}

impl Issue {
    /// One answer for each entry, whatever happens.
    async fn batch(self, entries: Vec<Arc<RegistrationEntry>>) -> Vec<Answer> {
        let ids: Vec<EntryId> = entries.iter().map(|entry| entry.id.clone()).collect();
        match self.try_batch(entries).await {
            Ok(answers) => answers,
            Err(why) => {
                warn!(entries = ids.len(), why, "SVIDs could not be issued: trying again");
                ids.into_iter().map(|entry| Answer { entry, outcome: Outcome::Failed }).collect()
            }
        }
    }

    async fn try_batch(self, entries: Vec<Arc<RegistrationEntry>>) -> Result<Vec<Answer>, String> {
        let key_type = self.key_type;
        let made = tokio::task::spawn_blocking(move || {
            entries.into_iter().map(|entry| Asked::new(entry, key_type)).collect::<Result<Vec<_>, _>>()
        });
        let mut asked = made.await.map_err(|error| error.to_string())??;
        let requests = asked.iter_mut().map(|asked| (asked.entry.id.clone(), std::mem::take(&mut asked.csr))).collect();
        let outcomes = self.client.issue(requests).await.map_err(|error| error.to_string())?;
        let checked = tokio::task::spawn_blocking(move || {
            asked.into_iter().zip(outcomes).map(|(asked, outcome)| self.check(asked, outcome)).collect()
        });
        checked.await.map_err(|error| error.to_string())
    }

    fn check(&self, asked: Asked, outcome: v1::x509_svid_result::Outcome) -> Answer {
        let Asked { entry, key, .. } = asked;
        let outcome = match outcome {
            v1::x509_svid_result::Outcome::Svid(wire) => match self.verify(wire, &entry, &key) {
                Ok(svid) => Outcome::Issued { svid, key },
                Err(why) => {
                    warn!(entry = %entry.id, spiffe_id = %entry.spiffe_id, why, "SVID from the server is no good");
                    Outcome::Failed
                }
            },
            v1::x509_svid_result::Outcome::Refused(refusal) => {
                let v1::Refusal { code, message } = refusal;
                warn!(entry = %entry.id, spiffe_id = %entry.spiffe_id, code, why = message, "SVID was refused");
                if REFUSALS.contains(&code) { Outcome::Refused } else { Outcome::Failed }
            }
        };
        Answer { entry: entry.id.clone(), outcome }
    }

    fn verify(
        &self,
        wire: v1::X509Svid,
        entry: &RegistrationEntry,
        key: &Key,
    ) -> Result<spiffe::x509_svid::VerifiedSvid, String> {
        let svid = client::svid(wire).map_err(|error| error.to_string())?;
        svid.key_fits(&key.0).map_err(|error| error.to_string())?;
        let bundles = self.bundles.load();
        let bundle = bundles.get(&entry.spiffe_id.trust_domain());
        let bundle = bundle.ok_or_else(|| format!("no bundle of {} is known", entry.spiffe_id.trust_domain_name()))?;
        svid.verify(bundle, self.clock.now()).map_err(|error| error.to_string())
    }
}

impl Asked {
    fn new(entry: Arc<RegistrationEntry>, default: KeyType) -> Result<Self, String> {
        let key = crypto::generate_key(entry.key_type.unwrap_or(default)).map_err(|error| error.to_string())?;
        let csr = spiffe::csr::create(&key).map_err(|error| error.to_string())?;
        Ok(Self { entry, key: Key::new(key), csr })
    }
}
