//! The loop that watches the pods of this node at the API server: a list, then what changes, told on as [`Event`]s.
//!
//! - A watch that ends is opened where it ended. Where the API server has forgotten that (410 Gone) it begins with a list,
//!   which replaces what was known in one piece.
//! - So it does after a watch that has brought nothing at all, not even a bookmark, and after 30 to 60 minutes in any case: an API
//!   server that was set back to a backup tells nothing to whoever asks for what comes after a future that it no longer has.
//! - Nothing is taken away because the API server is gone, hangs, or refuses: what was told last stays.
//! - A failure is tried again, from a fifth of a second to 30 seconds later. A watch that ends at once is one.
//! - Each answer has a time limit; so has silence.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use kube::Client;
use prometheus_client::metrics::gauge::Gauge;
use serde::Deserialize;
use spiffe::crypto;
use spiffe::time::{Backoff, Clock, Timestamp};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::answer::{Answer, AnswerError, WHOLE, encoded, in_time};
use super::client::{AccessError, ApiServer};
use super::object::{Named, Pod, PodObject};
use super::pods::{Event, MAX_PODS};
use super::split::{MOST_BYTES, Splitter};

const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// A watch that was open for so long has worked.
const WORKED: Duration = Duration::from_secs(5);
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// Pods that are asked for at once: whatever their size, only one of them is held.
const PAGE: u32 = 100;
/// The API server ends a watch then.
const WATCH_SECONDS: u32 = 290;
/// Longer than that: a watch that nobody ends is broken.
const SILENCE_LIMIT: Duration = Duration::from_secs(300);
/// Everything is listed anew so long after the last list, and up to twice as long by chance.
const LIST_AFTER: Duration = Duration::from_secs(1800);
const PATH: &str = "/api/v1/pods";

/// Why a watch has ended.
#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error("the API server {0}")]
    Answer(AnswerError),
    #[error("the API server ends the watch ({code}): {message:?}")]
    Ended { code: u16, message: String },
    #[error("the API server has forgotten where the watch ended (410 Gone)")]
    Gone,
    #[error("nothing was heard of the API server for 5 minutes")]
    Silent,
    #[error("the API server lists pods without a version: they cannot be watched")]
    NoVersion,
    /// The agent is stopping.
    #[error("nobody listens any more")]
    Stopping,
}

impl From<AnswerError> for WatchError {
    fn from(error: AnswerError) -> Self {
        match error {
            AnswerError::Refused { code: StatusCode::GONE, .. } => Self::Gone,
            error => Self::Answer(error),
        }
    }
}

/// A list, without its items.
#[derive(Deserialize)]
struct List {
    metadata: ListMeta,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ListMeta {
    resource_version: String,
    #[serde(rename = "continue")]
    more: String,
}

/// An event of a watch.
#[derive(Deserialize)]
#[serde(tag = "type", content = "object", rename_all = "UPPERCASE")]
enum Told {
    Added(PodObject),
    Modified(PodObject),
    Deleted(Named),
    Bookmark(Named),
    Error(Status),
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    code: u16,
    message: String,
}

/// Where the watch goes on.
struct At {
    version: String,
    /// When everything is to be listed anew.
    until: Timestamp,
}

/// What the loop works with.
pub(super) struct Watch {
    pub(super) api_server: Arc<ApiServer>,
    /// The name of this node.
    pub(super) node: String,
    pub(super) to: mpsc::Sender<Event>,
    pub(super) clock: Arc<dyn Clock>,
    /// 1 while the watch is open.
    pub(super) watching: Gauge,
    /// When something was last told, in Unix seconds.
    pub(super) told: Gauge,
}

impl Watch {
    /// Watches until `shutdown`.
    pub(super) async fn run(self, shutdown: CancellationToken) {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.watch() => {}
        }
    }

    async fn watch(self) {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        let (mut at, mut is_told) = (None, false);
        loop {
            let began = self.clock.now();
            let result = self.follow(&mut at, &mut is_told).await;
            self.watching.set(0);
            if self.clock.now().since(began) >= WORKED {
                backoff.reset();
                if result.is_ok() {
                    continue;
                }
            }
            match result {
                Ok(()) => debug!("the watch of pods has ended at once"),
                Err(WatchError::Stopping) => return,
                Err(error @ WatchError::Gone) => info!(%error, "listing the pods of this node anew"),
                Err(error) => {
                    warn!(%error, node = self.node, "pods are not watched: what is known of them stays; trying again");
                    self.api_server.forget();
                }
            }
            self.clock.sleep(backoff.after_failure(chance())).await;
        }
    }

    /// One watch, from where the last one was or from a list.
    async fn follow(&self, at: &mut Option<At>, is_told: &mut bool) -> Result<(), WatchError> {
        let client = self.api_server.client()?;
        if at.as_ref().is_some_and(|at| self.clock.now() >= at.until) {
            *at = None;
        }
        let place = match at {
            Some(at) => at,
            None => {
                let (pods, version) = in_time(ANSWER_LIMIT, self.list(&client, *is_told)).await?;
                if version.is_empty() {
                    return Err(WatchError::NoVersion);
                }
                self.hear();
                self.tell(Event::All(pods)).await?;
                *is_told = true;
                let later = LIST_AFTER.mul_f64(1.0 + f64::from(chance()) / f64::from(u32::MAX));
                at.insert(At { version, until: self.clock.now().plus(later) })
            }
        };
        let began = self.clock.now();
        let result = self.changes(&client, &mut place.version).await;
        let is_deaf = matches!(result, Ok(false)) && self.clock.now().since(began) >= WORKED;
        if is_deaf || matches!(result, Err(WatchError::Gone)) {
            *at = None;
        }
        result.map(drop)
    }

    /// The pods of this node, and the version at which they are so.
    async fn list(&self, client: &Client, is_told: bool) -> Result<(Vec<Pod>, String), AnswerError> {
        let (mut pods, mut more) = (Vec::new(), String::new());
        loop {
            let how = if is_told {
                format!("limit={PAGE}&continue={}", encoded(&more))
            } else {
                // As the kubelet does: out of the API server's memory, which is good enough where nothing is known yet. Later it
                // would be a step back.
                "resourceVersion=0&resourceVersionMatch=NotOlderThan".into()
            };
            let mut page = Answer::to(client, &self.path(&how), WHOLE, Splitter::list()).await?;
            while let Some(object) = page.next::<PodObject>().await? {
                if pods.len() < MAX_PODS {
                    pods.extend(self.read(object));
                } else {
                    let Named { metadata } = object.into();
                    warn!(pod = ?metadata.name, "this node has too many pods: this one is left out");
                }
            }
            let List { metadata } = page.around()?;
            if metadata.more.is_empty() || pods.len() >= MAX_PODS {
                return Ok((pods, metadata.resource_version));
            }
            more = metadata.more;
        }
    }

    /// Tells of changes since `version`, which goes along, until the watch ends. Says whether it has brought anything.
    async fn changes(&self, client: &Client, version: &mut String) -> Result<bool, WatchError> {
        let how = format!(
            "watch=true&allowWatchBookmarks=true&timeoutSeconds={WATCH_SECONDS}&resourceVersion={}",
            encoded(version)
        );
        let (path, splitter) = (self.path(&how), Splitter::one_by_one(MOST_BYTES));
        let mut events = in_time(ANSWER_LIMIT, Answer::to(client, &path, WHOLE, splitter)).await?;
        info!(node = self.node, "the pods of this node are watched");
        self.watching.set(1);
        let mut has_brought = false;
        loop {
            #[expect(clippy::disallowed_methods, reason = "a limit on input of the network")]
            let event = tokio::time::timeout(SILENCE_LIMIT, events.next()).await.map_err(|_| WatchError::Silent)?;
            let Some(event) = event? else { return Ok(has_brought) };
            has_brought = true;
            if !matches!(event, Told::Error(_)) {
                self.hear();
            }
            let reached = match event {
                Told::Added(object) | Told::Modified(object) => {
                    let reached = object.metadata.resource_version.clone();
                    if let Some(pod) = self.read(object) {
                        self.tell(Event::Put(pod)).await?;
                    }
                    reached
                }
                Told::Deleted(Named { metadata }) => {
                    if let Some(uid) = &metadata.uid {
                        self.tell(Event::Gone(uid.as_str().into())).await?;
                    }
                    metadata.resource_version
                }
                Told::Bookmark(Named { metadata }) => metadata.resource_version,
                Told::Error(status) if status.code == StatusCode::GONE.as_u16() => return Err(WatchError::Gone),
                Told::Error(Status { code, message }) => return Err(WatchError::Ended { code, message }),
            };
            if let Some(reached) = reached.filter(|reached| !reached.is_empty()) {
                *version = reached;
            }
        }
    }

    fn read(&self, object: PodObject) -> Option<Pod> {
        let pod = Pod::of(object, &self.node)?;
        if pod.left_out > 0 {
            let (namespace, name, count) = (&pod.namespace, &pod.name, pod.left_out);
            warn!(%namespace, %name, count, "this pod has too many containers: those that do not run are left out first");
        }
        Some(pod)
    }

    fn hear(&self) {
        self.told.set(i64::try_from(self.clock.now().unix()).unwrap_or(i64::MAX));
    }

    async fn tell(&self, event: Event) -> Result<(), WatchError> {
        self.to.send(event).await.map_err(|_| WatchError::Stopping)
    }

    fn path(&self, how: &str) -> String {
        format!("{PATH}?fieldSelector=spec.nodeName%3D{}&{how}", encoded(&self.node))
    }
}

fn chance() -> u32 {
    crypto::random().map_or(0, u32::from_ne_bytes)
}
