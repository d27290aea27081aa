//! One watch of one kind of object: list in pages, watch from there on, and come back after whatever happens.
//!
//! - A watch lasts `watch_timeout` and is opened anew where it got to; its server tells by a bookmark where that is.
//! - `410 Gone` is a gap: everything is listed again.
//! - Anything else that fails (no answer, no right any more, a connection that breaks, silence) is tried again where it
//!   was, after a while that grows to half a minute; every fifth time everything is listed.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use ::kube::core::WatchEvent;
use futures_util::TryStreamExt as _;
use http::Request;
use http::header::ACCEPT;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use spiffe::crypto;
use spiffe::time::{Backoff, Clock};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::intern::Interned;
use super::picture::{Change, Told};
use super::{Place, is_suspicious};
use crate::kube::client::{ApiError, Cluster, Watched};
use crate::kube::object::Object;

/// How many objects come at once in a list; and where they are so large that an answer cannot hold them.
const PAGE: usize = 500;
const LEAST: usize = 6;
/// Between failures: at first, and at most.
const FIRST: Duration = Duration::from_secs(1);
const MOST: Duration = Duration::from_secs(30);

/// How often a watch is tried where it was: the version may be one that an API server made of a backup never has.
const TRIES: u32 = 5;

/// Of pods, those that are on a node and have not ended: an API server tells of one that no longer is so as deleted.
const RUNNING: &str = "fieldSelector=spec.nodeName!%3D,status.phase!%3DSucceeded,status.phase!%3DFailed";
/// Of nodes and namespaces, who they are: what nodes say of themselves is large, and changes all the time.
const WHO_LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
const WHO: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";

/// One watch.
pub(super) struct Feed {
    pub(super) cluster: Arc<Cluster>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) tell: mpsc::Sender<Told>,
    pub(super) path: &'static str,
    pub(super) of: Watched,
}

/// Why a watch goes on no longer.
enum Stop {
    /// Nobody listens.
    Alone,
    /// It went wrong.
    Failed(ApiError),
}

impl From<ApiError> for Stop {
    fn from(error: ApiError) -> Self {
        Self::Failed(error)
    }
}

impl From<::kube::Error> for Stop {
    fn from(error: ::kube::Error) -> Self {
        Self::Failed(error.into())
    }
}

#[derive(Deserialize)]
struct List<T> {
    metadata: ListMeta,
    // Go writes an empty list as null.
    items: Option<Vec<T>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ListMeta {
    resource_version: String,
    #[serde(rename = "continue")]
    next: String,
}

impl Feed {
    /// Runs until nobody listens. `read` takes of an object what is needed, or nothing; `tell` says of which kind it is.
    pub(super) async fn run<T, S>(self, read: fn(T, &mut Interned) -> Option<S>, tell: fn(Change<S>) -> Told)
    where
        T: Object + DeserializeOwned + Clone,
    {
        let mut interned = Interned::default();
        let mut place = Place::Nowhere;
        let (mut backoff, mut failures) = (Backoff::new(FIRST, MOST), 0);
        loop {
            let turn = match &mut place {
                Place::Nowhere => self.list(&mut interned, read, tell).await.map(Place::At),
                Place::At(version) => self.watch(version, &mut interned, read, tell).await,
            };
            let error = match turn {
                Ok(next) => {
                    place = next;
                    backoff.reset();
                    failures = 0;
                    continue;
                }
                Err(Stop::Alone) => return,
                Err(Stop::Failed(error)) => error,
            };
            let (cluster, path) = (self.cluster.name(), self.path);
            failures += 1;
            if error.is_gone() {
                debug!(%cluster, path, "the API server has forgotten where this watch was: it lists anew");
                place = Place::Nowhere;
            } else {
                let meaning = meaning(&error, self.of, cluster, self.cluster.last_heard().is_some());
                warn!(%cluster, path, %error, "{meaning}");
            }
            if failures % TRIES == 0 {
                place = Place::Nowhere;
            }
            let chance = crypto::random().map_or(0, u32::from_be_bytes);
            self.clock.sleep(backoff.after_failure(chance)).await;
        }
    }

    /// Lists everything, tells of it as a whole, and returns the version that it is of.
    async fn list<T: Object + DeserializeOwned, S>(
        &self,
        interned: &mut Interned,
        read: fn(T, &mut Interned) -> Option<S>,
        tell: fn(Change<S>) -> Told,
    ) -> Result<String, Stop> {
        let (mut all, mut next, mut size, mut told) = (Vec::new(), String::new(), PAGE, 0);
        loop {
            let asked = self.cluster.ask(self.request(&page(&next, size), WHO_LIST)?).await;
            let List::<T> { metadata, items } = match asked {
                // Large objects: fewer at once, down to as many as fit however large they are.
                Err(error) if error.is_too_large() && size > LEAST => {
                    size = (size / 8).max(LEAST);
                    continue;
                }
                asked => asked?,
            };
            let items = items.unwrap_or_default();
            // Each page brings something, and all of it counts: there is an end to them.
            if items.is_empty() && !metadata.next.is_empty() {
                return Err(ApiError::Unreachable("it sends an empty page, and says that more follow".into()).into());
            }
            told += items.len();
            self.cluster.refuse_too_many(self.of, told)?;
            all.extend(items.into_iter().filter_map(|object| read(self.cut(object), interned)));
            if metadata.next.is_empty() {
                self.heard();
                self.tell(tell(Change::All(all))).await?;
                return Ok(metadata.resource_version);
            }
            next = metadata.next;
        }
    }

    /// Watches from `version` on, which goes along, until the API server ends it. Returns where to go on.
    async fn watch<T: Object + DeserializeOwned + Clone, S>(
        &self,
        version: &mut String,
        interned: &mut Interned,
        read: fn(T, &mut Interned) -> Option<S>,
        tell: fn(Change<S>) -> Told,
    ) -> Result<Place, Stop> {
        let length = self.cluster.watch_timeout();
        let (began, mut brought) = (self.clock.now(), false);
        let query = format!(
            "watch=true&allowWatchBookmarks=true&resourceVersion={version}&timeoutSeconds={}",
            length.as_secs()
        );
        let request = self.request(&query, WHO)?;
        let client = self.cluster.client().await?;
        let mut events = pin!(client.request_events::<T>(request).await?);
        loop {
            let change = match events.try_next().await? {
                Some(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                    self.cluster.refuse_too_many(self.of, self.cluster.known(self.of))?;
                    version.clone_from(&object.metadata().resource_version);
                    read(self.cut(object), interned).map(Change::Put)
                }
                Some(WatchEvent::Deleted(object)) => {
                    version.clone_from(&object.metadata().resource_version);
                    read(self.cut(object), interned).map(Change::Gone)
                }
                Some(WatchEvent::Bookmark(bookmark)) => {
                    *version = bookmark.metadata.resource_version;
                    Some(Change::Heard)
                }
                Some(WatchEvent::Error(status)) => return Err(::kube::Error::Api(status).into()),
                None if is_suspicious(brought, began, self.clock.now(), length) => {
                    return Err(ApiError::Unreachable("the watch ended before its time".into()).into());
                }
                // Not even a bookmark: a version that is not there yet (etcd was set back) is watched without a word.
                None if !brought => return Ok(Place::Nowhere),
                None => return Ok(Place::At(std::mem::take(version))),
            };
            brought = true;
            self.heard();
            if let Some(change) = change {
                self.tell(tell(change)).await?;
            }
        }
    }

    /// `object` with no more than can be kept of it, and a word where that is less than there was.
    fn cut<T: Object>(&self, mut object: T) -> T {
        if object.cut() {
            let (cluster, path, meta) = (self.cluster.name(), self.path, object.metadata());
            let (namespace, name) = (&meta.namespace, &meta.name);
            warn!(%cluster, path, namespace, name, "its labels are too large to be kept: it counts as having none, a pod as not being there");
        }
        object
    }

    fn request(&self, query: &str, accept: &'static str) -> Result<Request<Vec<u8>>, ApiError> {
        let is_of_pods = self.of == Watched::Pods;
        let (path, only) = (self.path, if is_of_pods { RUNNING } else { "" });
        Request::get(format!("{path}?{query}&{only}"))
            .header(ACCEPT, if is_of_pods { "application/json" } else { accept })
            .body(Vec::new())
            .map_err(|error| ApiError::Unreadable(error.to_string()))
    }

    fn heard(&self) {
        self.cluster.heard(self.of, self.clock.now());
    }

    async fn tell(&self, told: Told) -> Result<(), Stop> {
        self.tell.send(told).await.map_err(|_| Stop::Alone)
    }
}

/// What `error` means, and what is to be done where that is known.
fn meaning(error: &ApiError, of: Watched, cluster: &str, has_heard: bool) -> String {
    let of = of.name();
    let stays = match has_heard {
        true => "what was last seen of this cluster stays as it was",
        false => "not all of this cluster is known yet: its agents are told nothing until it is",
    };
    match error.is_forbidden() {
        true => {
            format!("the server may not list {of} in cluster {cluster}: apply the chart's ClusterRole again; {stays}")
        }
        false => stays.to_owned(),
    }
}

/// The query of a page of so many objects; `next` is from the page before it.
fn page(next: &str, size: usize) -> String {
    let hexadecimal =
        |byte: u8| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    let next: String = next.bytes().map(hexadecimal).collect();
    format!("limit={size}&continue={next}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube::object::{Named, Pod};

    #[test]
    fn a_watch_that_is_refused_says_what_it_needs_and_what_is_known() {
        let status = |code| ApiError::Status { code, reason: "Forbidden".into(), message: "no".into() };
        let forbidden = meaning(&status(403), Watched::Pods, "main", false);
        let advice = "the server may not list pods in cluster main: apply the chart's ClusterRole again; not all of";
        assert!(forbidden.starts_with(advice), "{forbidden}");
        let later = meaning(&status(500), Watched::Pods, "main", true);
        assert_eq!(later, "what was last seen of this cluster stays as it was");
    }

    #[test]
    fn lists_and_events_are_read_as_an_api_server_writes_them() {
        let list = r#"{"kind":"PodList","metadata":{"resourceVersion":"7","continue":"eyJ+/="},"items":[{"metadata":{"name":"a"}}]}"#;
        let list: List<Pod> = serde_json::from_str(list).unwrap();
        assert_eq!((&*list.metadata.resource_version, list.items.unwrap().len()), ("7", 1));
        assert_eq!(page(&list.metadata.next, PAGE), "limit=500&continue=eyJ%2B%2F%3D");
        let empty: List<Pod> = serde_json::from_str(r#"{"metadata":{"resourceVersion":"7"},"items":null}"#).unwrap();
        assert!(empty.items.is_none() && empty.metadata.next.is_empty());
        let bookmark = r#"{"type":"BOOKMARK","object":{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{"resourceVersion":"12746"}}}"#;
        let event: WatchEvent<Named> = serde_json::from_str(bookmark).unwrap();
        assert!(matches!(event, WatchEvent::Bookmark(bookmark) if bookmark.metadata.resource_version == "12746"));
        let gone = r#"{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"too old","reason":"Expired","code":410}}"#;
        let event: WatchEvent<Named> = serde_json::from_str(gone).unwrap();
        let WatchEvent::Error(status) = event else { panic!("{event:?}") };
        assert!(ApiError::from(::kube::Error::Api(status)).is_gone());
    }
}
