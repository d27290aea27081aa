//! The loop that keeps what is known of the pods: it takes events in, has the owners of owners looked up, and tells everybody
//! what is known now.
//!
//! - An owner is looked up once for all of its pods, as long as one of them is there. What cannot be found out is tried again,
//!   from 5 seconds to 5 minutes later; meanwhile its pods are known without it. So they are when it takes too long, were it because
//!   others are looked up: a pod that wants no more than its namespace waits for nobody.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use spiffe::crypto;
use spiffe::selector::Selector;
use spiffe::time::{Backoff, Clock};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::warn;

use super::client::ApiServer;
use super::owners::{LIMIT, Owner, OwnerError};
use super::pods::{Event, Pods};

const FIRST_WAIT: Duration = Duration::from_secs(5);
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// Owners that are looked up at the same time.
const AT_ONCE: usize = 8;

/// What the loop works with.
pub(super) struct Keeper {
    pub(super) events: mpsc::Receiver<Event>,
    pub(super) told: watch::Sender<Arc<Pods>>,
    /// Who tells what owns an owner; `None`: nobody.
    pub(super) api_server: Option<Arc<ApiServer>>,
    pub(super) clock: Arc<dyn Clock>,
    /// How many pods are known.
    pub(super) count: Gauge,
}

/// What was found out of an owner, by its UID.
type Answer = (Arc<str>, Vec<Selector>);

impl Keeper {
    /// Keeps until `shutdown`.
    pub(super) async fn run(mut self, shutdown: CancellationToken) {
        let mut pods = Pods::default();
        let (to, mut answers) = mpsc::channel::<Answer>(AT_ONCE);
        let at_once = Arc::new(Semaphore::new(AT_ONCE));
        // Those that are looked up, or were, each until no pod has it any more.
        let mut asked: HashMap<Arc<str>, DropGuard> = HashMap::new();
        let mut lookups = JoinSet::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                Some(event) = self.events.recv() => {
                    let left_out = pods.apply(event);
                    if left_out > 0 {
                        warn!(left_out, "this node has too many pods: of some nothing is known");
                    }
                }
                Some((owner, selectors)) = answers.recv() => pods.settle(&owner, selectors),
                Some(_) = lookups.join_next() => continue,
            }
            asked.retain(|uid, _| pods.owners().any(|owner| owner.uid == *uid));
            if self.api_server.is_none() {
                let unknown: Vec<_> = pods.wanted().map(|owner| Arc::clone(&owner.uid)).collect();
                unknown.iter().for_each(|uid| pods.settle(uid, Vec::new()));
            }
            for (owner, api_server) in pods.wanted().zip(self.api_server.iter().cycle()) {
                if asked.contains_key(&owner.uid) {
                    continue;
                }
                let needless = CancellationToken::new();
                asked.insert(Arc::clone(&owner.uid), needless.clone().drop_guard());
                let lookup = Lookup {
                    owner: owner.clone(),
                    api_server: Arc::clone(api_server),
                    at_once: Arc::clone(&at_once),
                    clock: Arc::clone(&self.clock),
                    to: to.clone(),
                };
                lookups.spawn(async move {
                    tokio::select! {
                        () = needless.cancelled() => {}
                        () = lookup.run() => {}
                    }
                });
            }
            self.count.set(i64::try_from(pods.count()).unwrap_or(i64::MAX));
            self.told.send_replace(Arc::new(pods.clone()));
        }
    }
}

struct Lookup {
    owner: Owner,
    api_server: Arc<ApiServer>,
    at_once: Arc<Semaphore>,
    clock: Arc<dyn Clock>,
    to: mpsc::Sender<Answer>,
}

impl Lookup {
    /// Looks the owner up until that comes to something.
    async fn run(self) {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        let mut is_settled = false;
        let mut too_late = pin!(self.clock.sleep(LIMIT));
        loop {
            let mut asking = pin!(self.once());
            let asked = tokio::select! {
                biased;
                asked = &mut asking => asked,
                () = &mut too_late, if !is_settled => {
                    self.settle(Vec::new()).await;
                    is_settled = true;
                    asking.await
                }
            };
            match asked {
                Ok(selectors) => return self.settle(selectors).await,
                Err(error) => {
                    let Owner { kind, namespace, name, .. } = &self.owner;
                    warn!(%error, ?kind, ?namespace, ?name, "its owner is not known: its pods have no selectors of that");
                }
            }
            if !is_settled {
                self.settle(Vec::new()).await;
                is_settled = true;
            }
            let chance = crypto::random().map_or(0, u32::from_ne_bytes);
            self.clock.sleep(backoff.after_failure(chance)).await;
        }
    }

    async fn once(&self) -> Result<Vec<Selector>, OwnerError> {
        let _turn = self.at_once.acquire().await;
        self.owner.selectors(&self.api_server.client()?).await
    }

    async fn settle(&self, selectors: Vec<Selector>) {
        // Nobody listens only when the agent stops.
        let _ = self.to.send((Arc::clone(&self.owner.uid), selectors)).await;
    }
}
