//! The loop that asks the kubelet of this node for its pods, where an operator prefers that to a watch of the API server.
//!
//! - It is asked every few seconds; and, as long as anybody waits for a pod or a container that is not known, at once and each
//!   second: however many wait, each look is for all of them.
//! - A list counts as a whole, or not at all: a pod that is not in it is gone. Whatever comes instead of one changes nothing:
//!   what was told last stays.
//! - A kubelet that starts tells of its static pods alone until it has heard of the API server: a list without any other is not
//!   believed, where the one before had some.
//! - A pod of another node is not believed; and a list of such pods alone is another kubelet's.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use serde::Deserialize;
use spiffe::time::Clock;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::answer::{Answer, AnswerError, WHOLE, in_time};
use super::client::{AccessError, ApiServer};
use super::object::{Pod, PodObject};
use super::pods::{Event, MAX_PODS};
use super::split::Splitter;

/// Between two looks, whoever waits.
const LEAST_PAUSE: Duration = Duration::from_secs(1);
const LIMIT: Duration = Duration::from_secs(10);
/// Of a whole list, of which one pod is held at a time: more than 110 pods as large as an API server stores them.
const MOST_BYTES: u64 = 256 << 20;
const PATH: &str = "/pods";
/// The longest name of a node.
const MAX_NODE: usize = 253;

/// Why a look has brought nothing.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error("the kubelet {}{}", .0, hint(.0))]
    Answer(#[from] AnswerError),
    #[error(
        "the kubelet tells of static pods alone, and told of others before: it has just started, or lost its API server"
    )]
    Starting,
    #[error("this is the kubelet of node {0:?}: set address in [attestors.k8s.kubelet] to the one of this node")]
    Elsewhere(String),
    /// The agent is stopping.
    #[error("nobody listens any more")]
    Stopping,
}

fn hint(error: &AnswerError) -> &'static str {
    match error {
        AnswerError::Refused { code, .. } if code.as_u16() == 401 => ": it does not know the token, see token_file",
        AnswerError::Refused { code, .. } if code.as_u16() == 403 => {
            ": the agent's account needs get of nodes/pods, or of nodes/proxy before Kubernetes 1.33"
        }
        _ => "",
    }
}

/// How many wait for what is not known. Clones share it.
#[derive(Clone)]
pub(super) struct Waiting(Arc<watch::Sender<usize>>);

/// One who waits, as long as it is held.
pub(super) struct Waiter(Waiting);

impl Waiting {
    /// Nobody, and what tells of it.
    pub(super) fn new() -> (Self, watch::Receiver<usize>) {
        let (count, told) = watch::channel(0);
        (Self(Arc::new(count)), told)
    }

    /// One more.
    pub(super) fn one(&self) -> Waiter {
        self.0.send_modify(|count| *count += 1);
        Waiter(self.clone())
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count -= 1);
    }
}

/// What the loop works with.
pub(super) struct Looks {
    pub(super) kubelet: Arc<ApiServer>,
    /// The name of this node.
    pub(super) node: String,
    pub(super) every: Duration,
    pub(super) waiting: watch::Receiver<usize>,
    pub(super) to: mpsc::Sender<Event>,
    pub(super) clock: Arc<dyn Clock>,
    /// 1 while the last look has brought a list.
    pub(super) watching: Gauge,
    /// When a list was last brought, in Unix seconds.
    pub(super) told: Gauge,
}

impl Looks {
    /// Looks until `shutdown`.
    pub(super) async fn run(self, shutdown: CancellationToken) {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.look_on() => {}
        }
    }

    async fn look_on(mut self) {
        let (mut has_others, mut said) = (false, None);
        loop {
            match self.look(&mut has_others).await {
                Ok(()) => {
                    if self.watching.set(1) == 0 {
                        info!(node = self.node, "the kubelet tells of the pods of this node");
                    }
                    said = None;
                }
                Err(LookError::Stopping) => return,
                Err(error) => {
                    self.watching.set(0);
                    self.kubelet.forget();
                    let words = error.to_string();
                    // Not every few seconds.
                    if said.as_ref() != Some(&words) {
                        warn!(%error, node = self.node, "what is known of pods stays; trying again");
                        said = Some(words);
                    }
                }
            }
            self.pause().await;
        }
    }

    /// Asks, and tells what is answered.
    async fn look(&self, has_others: &mut bool) -> Result<(), LookError> {
        let client = self.kubelet.client()?;
        let list = in_time(LIMIT, async {
            let mut answer = Answer::to(&client, PATH, WHOLE, Splitter::list()).await?.at_most(MOST_BYTES)?;
            let mut list = List::default();
            while let Some(object) = answer.next().await? {
                list.take(object, &self.node);
            }
            let Around { kind } = answer.around()?;
            if kind == "PodList" { Ok(list) } else { Err(AnswerError::Malformed) }
        });
        let list = list.await?;
        list.verdict(*has_others)?;
        let List { pods, left_out, elsewhere, .. } = list;
        if left_out > 0 || elsewhere > 0 {
            warn!(
                left_out,
                elsewhere, "the kubelet tells of too many pods, or of pods of other nodes: these are left out"
            );
        }
        *has_others = list.has_others;
        self.told.set(i64::try_from(self.clock.now().unix()).unwrap_or(i64::MAX));
        self.to.send(Event::All(pods)).await.map_err(|_| LookError::Stopping)
    }

    /// Returns when it is time for the next look.
    async fn pause(&mut self) {
        let Self { clock, every, waiting, .. } = self;
        let wanted = async {
            clock.sleep(LEAST_PAUSE).await;
            if waiting.wait_for(|count| *count > 0).await.is_err() {
                // The agent is stopping.
                std::future::pending().await
            }
        };
        tokio::select! {
            () = clock.sleep(*every) => {}
            () = wanted => {}
        }
    }
}

/// What stands around the pods.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Around {
    kind: String,
}

/// What a kubelet tells, pod by pod.
#[derive(Default)]
struct List {
    pods: Vec<Pod>,
    /// Whether there are pods of this node that are not static.
    has_others: bool,
    /// Too many.
    left_out: usize,
    /// Of other nodes.
    elsewhere: usize,
    /// One of these nodes.
    other_node: Option<String>,
}

impl List {
    fn take(&mut self, object: PodObject, node: &str) {
        let of = object.node().unwrap_or_default();
        if of != node {
            self.elsewhere += 1;
            self.other_node.get_or_insert_with(|| of.chars().take(MAX_NODE).collect());
            return;
        }
        self.has_others |= !object.is_static();
        if self.pods.len() < MAX_PODS {
            self.pods.extend(Pod::of(object, node));
        } else {
            self.left_out += 1;
        }
    }

    /// The list, if it is to be believed. `had_others`: the last one had pods that are not static.
    fn verdict(&self, had_others: bool) -> Result<(), LookError> {
        match &self.other_node {
            Some(other) if self.pods.is_empty() => Err(LookError::Elsewhere(other.clone())),
            _ if had_others && !self.has_others => Err(LookError::Starting),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
