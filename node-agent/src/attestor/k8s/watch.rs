//! The loop that watches the pods of this node at the API server: a list, then what changes, told on as [`Event`]s.
//!
//! - A watch that ends is opened where it ended. Where the API server has forgotten that (410 Gone), and only there, it begins
//!   with a list, which replaces what was known in one piece.
//! - Nothing is taken away because the API server is gone, hangs, or refuses: what was told last stays.
//! - A failure is tried again, from a fifth of a second to 30 seconds later. A watch that ends at once is one.
//! - Each answer has a time limit; so has silence.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, pin_mut};
use k8s_openapi::api::core::v1::Pod as ApiPod;
use kube::Api;
use kube::core::params::{ListParams, VersionMatch, WatchParams};
use kube::core::{ApiResource, ObjectList, WatchEvent};
use prometheus_client::metrics::gauge::Gauge;
use spiffe::crypto;
use spiffe::time::{Backoff, Clock};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::client::{AccessError, ApiServer};
use super::object::{Pod, PodObject};
use super::pods::{Event, MAX_PODS};

const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// A watch that was open for so long has worked.
const WORKED: Duration = Duration::from_secs(5);
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
const PAGE: u32 = 500;
/// The API server ends a watch then.
const WATCH_SECONDS: u32 = 290;
/// Longer than that: a watch that nobody ends is broken.
const SILENCE_LIMIT: Duration = Duration::from_secs(300);
const GONE: u16 = 410;

/// Why a watch has ended.
#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error("the API server: {0}")]
    Api(#[from] kube::Error),
    #[error("the API server ends the watch: {0}")]
    Ended(String),
    #[error("the API server has forgotten where the watch ended (410 Gone)")]
    Gone,
    #[error("the API server does not answer within 30 seconds")]
    TooLong,
    #[error("nothing was heard of the API server for 5 minutes")]
    Silent,
    #[error("the API server lists pods without a version: they cannot be watched")]
    NoVersion,
    /// The agent is stopping.
    #[error("nobody listens any more")]
    Stopping,
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
        let (mut version, mut is_told) = (None, false);
        loop {
            let began = self.clock.now();
            let result = self.follow(&mut version, &mut is_told).await;
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
            let chance = crypto::random().map_or(0, u32::from_ne_bytes);
            self.clock.sleep(backoff.after_failure(chance)).await;
        }
    }

    /// One watch, from `version` on or from a list.
    async fn follow(&self, version: &mut Option<String>, is_told: &mut bool) -> Result<(), WatchError> {
        let resource = ApiResource::erase::<ApiPod>(&());
        let api: Api<PodObject> = Api::all_with(self.api_server.client()?, &resource);
        let from = match version {
            Some(version) => version.clone(),
            None => {
                let (pods, listed) = self.list(&api, *is_told).await?;
                self.tell(Event::All(pods)).await?;
                (*version, *is_told) = (Some(listed.clone()), true);
                listed
            }
        };
        let result = self.changes(&api, &from, version).await;
        if matches!(result, Err(WatchError::Gone)) {
            *version = None;
        }
        result
    }

    /// The pods of this node, and the version at which they are so.
    async fn list(&self, api: &Api<PodObject>, is_told: bool) -> Result<(Vec<Pod>, String), WatchError> {
        let mut params = ListParams::default().fields(&self.fields()).limit(PAGE);
        if !is_told {
            // As the kubelet does: out of the API server's memory, which is good enough where nothing is known yet. Later it
            // would be a step back.
            (params.resource_version, params.version_match) = (Some("0".into()), Some(VersionMatch::NotOlderThan));
        }
        let mut pods = Vec::new();
        loop {
            let page: ObjectList<PodObject> = in_time(api.list(&params)).await?;
            pods.extend(page.items.into_iter().filter_map(|object| Pod::of(object, &self.node)));
            if pods.len() > MAX_PODS {
                warn!(count = pods.len(), "this node has too many pods: the last are left out");
                pods.truncate(MAX_PODS);
            }
            let more = page.metadata.continue_.filter(|token| !token.is_empty() && pods.len() < MAX_PODS);
            if more.is_none() {
                let version = page.metadata.resource_version.filter(|version| !version.is_empty());
                return version.map(|version| (pods, version)).ok_or(WatchError::NoVersion);
            }
            (params.resource_version, params.version_match, params.continue_token) = (None, None, more);
        }
    }

    /// Tells of changes since `from`, until the watch ends.
    async fn changes(&self, api: &Api<PodObject>, from: &str, at: &mut Option<String>) -> Result<(), WatchError> {
        let params = WatchParams::default().fields(&self.fields()).timeout(WATCH_SECONDS);
        let events = in_time(api.watch(&params, from)).await?;
        pin_mut!(events);
        info!(node = self.node, "the pods of this node are watched");
        self.watching.set(1);
        loop {
            #[expect(clippy::disallowed_methods, reason = "a limit on input of the network")]
            let event = tokio::time::timeout(SILENCE_LIMIT, events.next()).await.map_err(|_| WatchError::Silent)?;
            let Some(event) = event else { return Ok(()) };
            match event {
                Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                    let version = object.metadata.resource_version.clone();
                    if let Some(pod) = Pod::of(object, &self.node) {
                        self.tell(Event::Put(pod)).await?;
                    }
                    step(at, version);
                }
                Ok(WatchEvent::Deleted(object)) => {
                    if let Some(uid) = &object.metadata.uid {
                        self.tell(Event::Gone(uid.as_str().into())).await?;
                    }
                    step(at, object.metadata.resource_version);
                }
                Ok(WatchEvent::Bookmark(bookmark)) => step(at, Some(bookmark.metadata.resource_version)),
                Ok(WatchEvent::Error(status)) if status.code == GONE => return Err(WatchError::Gone),
                Ok(WatchEvent::Error(status)) => return Err(WatchError::Ended(status.message)),
                // Of one pod that cannot be understood the others do not suffer.
                Err(error @ kube::Error::SerdeError(_)) => warn!(%error, "what is told of a pod cannot be understood"),
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn tell(&self, event: Event) -> Result<(), WatchError> {
        self.to.send(event).await.map_err(|_| WatchError::Stopping)
    }

    fn fields(&self) -> String {
        format!("spec.nodeName={}", self.node)
    }
}

fn step(at: &mut Option<String>, version: Option<String>) {
    if let Some(version) = version.filter(|version| !version.is_empty()) {
        *at = Some(version);
    }
}

async fn in_time<T>(answer: impl Future<Output = kube::Result<T>>) -> Result<T, WatchError> {
    #[expect(clippy::disallowed_methods, reason = "a limit on input and output of the network")]
    let answer = tokio::time::timeout(ANSWER_LIMIT, answer).await.map_err(|_| WatchError::TooLong)?;
    answer.map_err(|error| match error {
        kube::Error::Api(status) if status.code == GONE => WatchError::Gone,
        error => error.into(),
    })
}
