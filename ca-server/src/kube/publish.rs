//! Our bundle in the namespaces of a cluster: a ConfigMap in each that is meant, and a ClusterTrustBundle where the API
//! server has that kind. Those who have to know this trust domain find it there, agents at first contact among them.
//!
//! - What is to be written where is decided in `publication`; here it is carried out, and the API server listened to.
//! - Everything is written by server-side apply, by force, under one name: what others keep in the same object stays.
//! - A ConfigMap is watched by its name, so that the right to read others is not needed.
//! - A session with the API server lasts `SESSION` at most, with the credentials of its beginning; each begins by looking at
//!   everything anew, which mends what a watch may have missed.
//! - A lost API server, or a right that was taken away, is logged, and tried again until it is back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ::kube::api::Api;
use ::kube::core::PartialObjectMeta;
use ::kube::runtime::watcher::{self, watcher};
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use serde::de::IgnoredAny;
use spiffe::bundle::Bundle;
use spiffe::crypto;
use spiffe::time::{Backoff, Clock, Timestamp};
use tracing::{info, warn};

use self::content::Content;
use self::listing::Listing;
use self::publication::{Digest, Place, Publication, Seen};
use super::client::{ApiError, Cluster};
use crate::config::publish::Publish;
use crate::view::follow::Views;

mod content;
mod listing;
pub mod publication;
mod trust_bundle;

/// How long a session with an API server lasts: shorter than what is left of a projected token when the kubelet replaces it
/// (a fifth of an hour).
const SESSION: Duration = Duration::from_secs(600);
/// How long after it could not be written the ClusterTrustBundle is tried again.
const AGAIN: Duration = Duration::from_secs(30);
/// How many ConfigMaps are written at once.
const AT_ONCE: usize = 8;
/// How many are written before the API server is listened to again.
const BATCH: usize = 64;

/// What is published where.
#[derive(Debug)]
pub struct Publisher {
    /// The cluster.
    pub cluster: Arc<Cluster>,
    /// What its config says.
    pub publish: Publish,
    /// Where the bundle is read.
    pub views: Arc<Views>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
}

type Events = BoxStream<'static, Result<Seen, watcher::Error>>;

impl Publisher {
    /// Publishes until the task is dropped.
    pub async fn run(self) {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        let mut publication = Publication::default();
        loop {
            publication.forget();
            match self.session(&mut publication).await {
                Ok(()) => backoff.reset(),
                Err(error) => {
                    let pause = backoff.after_failure(crypto::random().map_or(0, u32::from_ne_bytes));
                    warn!(cluster = %self.cluster.name(), %error, ?pause, "the bundle cannot be published: trying again");
                    self.clock.sleep(pause).await;
                }
            }
        }
    }

    async fn session(&self, publication: &mut Publication) -> Result<(), ApiError> {
        let (mut view, mut listener) = self.views.listen();
        let mut events = self.events(publication).await?;
        let mut content = self.content(view.bundle());
        publication.want(content.digests());
        let mut again = self.trust_bundle(&content).await;
        let end = self.clock.now().plus(SESSION);
        while self.clock.now() < end {
            if again.is_some_and(|at| at <= self.clock.now()) {
                again = self.trust_bundle(&content).await;
            }
            let wake = publication.next().into_iter().chain(again).fold(end, Timestamp::min);
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(seen)) => publication.see(seen),
                    Some(Err(error)) => return Err(told(error)),
                    None => return Ok(()),
                },
                published = listener.next() => {
                    let Some(published) = published else { return std::future::pending().await };
                    let is_new = published.view.bundle().sequence() != view.bundle().sequence();
                    view = published.view;
                    if is_new {
                        content = self.content(view.bundle());
                        publication.want(content.digests());
                        again = self.trust_bundle(&content).await;
                    }
                }
                () = self.clock.sleep_until(wake) => self.write(publication, &content).await,
            }
        }
        Ok(())
    }

    /// What the API server tells of namespaces and of our ConfigMaps.
    async fn events(&self, publication: &mut Publication) -> Result<Events, ApiError> {
        let client = self.cluster.client().await?;
        let timeout = u32::try_from(self.cluster.watch_timeout().as_secs()).unwrap_or(u32::MAX);
        let config = watcher::Config::default().timeout(timeout);
        let named: Vec<Arc<str>> = self.publish.namespaces.iter().map(|name| name.as_str().into()).collect();
        let only_named = !named.is_empty() && self.publish.namespace_label.is_none();
        let mut all: Vec<Events> = Vec::new();
        if only_named {
            publication.see(Seen::Namespaces(named.iter().cloned().collect()));
        } else {
            let labelled = match &self.publish.namespace_label {
                Some(label) => config.clone().labels(&label.to_string()),
                None => config.clone(),
            };
            let namespaces = watcher(Api::<PartialObjectMeta<Namespace>>::all(client.clone()), labelled);
            all.push(listing::gathered(namespaces, Listing::namespaces(named.clone())));
        }
        for name in self.names() {
            let config = config.clone().fields(&format!("metadata.name={name}"));
            let apis: Vec<(Option<Arc<str>>, Api<ConfigMap>)> = if only_named {
                named.iter().map(|of| (Some(Arc::clone(of)), Api::namespaced(client.clone(), of))).collect()
            } else {
                vec![(None, Api::all(client.clone()))]
            };
            for (namespace, api) in apis {
                let listing = Listing::maps(Arc::clone(&name), namespace);
                all.push(listing::gathered(watcher(api, config.clone()), listing));
            }
        }
        Ok(stream::select_all(all).boxed())
    }

    fn names(&self) -> impl Iterator<Item = Arc<str>> {
        let istio = self.publish.istio.then_some(crate::config::publish::ISTIO_CONFIG_MAP);
        std::iter::once(self.publish.config_map.as_str()).chain(istio).map(Arc::from)
    }

    fn content(&self, bundle: &Bundle) -> Content {
        Content::new(bundle, self.publish.config_map.as_str(), self.publish.istio)
    }

    /// Writes what is due.
    async fn write(&self, publication: &mut Publication, content: &Content) {
        let digests: BTreeMap<Arc<str>, Digest> = content.digests();
        let due = publication.due(self.clock.now(), BATCH);
        let written = stream::iter(due).map(|place: Place| async move {
            let outcome = match content.apply(&place) {
                Some(request) => self.cluster.ask::<IgnoredAny>(request).await.map(drop),
                None => Ok(()),
            };
            (place, outcome)
        });
        let written: Vec<_> = written.buffer_unordered(AT_ONCE).collect().await;
        for (place, outcome) in written {
            let Some(digest) = digests.get(&place.name).copied() else { continue };
            let (cluster, now) = (self.cluster.name(), self.clock.now());
            match outcome {
                Ok(()) => {
                    info!(%cluster, namespace = %place.namespace, name = %place.name, "the bundle is published");
                    publication.wrote(place, digest, now);
                }
                Err(error) => {
                    warn!(%cluster, namespace = %place.namespace, name = %place.name, %error, "the bundle cannot be written: trying again later");
                    publication.failed(&place, digest, now);
                }
            }
        }
    }

    /// Brings the ClusterTrustBundle up to date, and says when to try again what could not be done.
    async fn trust_bundle(&self, content: &Content) -> Option<Timestamp> {
        let name = self.publish.cluster_trust_bundle.as_ref().filter(|_| !content.pem().is_empty())?;
        let name = name.as_str();
        let cluster = self.cluster.name();
        match trust_bundle::bring(&self.cluster, name, content.pem()).await {
            Ok(trust_bundle::Done::Written) => {
                info!(%cluster, %name, "the bundle is published as a ClusterTrustBundle")
            }
            Ok(trust_bundle::Done::Same) => {}
            Ok(trust_bundle::Done::NoSuchKind) => {
                warn!(%cluster, "this API server has no ClusterTrustBundle: leave cluster_trust_bundle out, or switch it on there");
            }
            Err(error) => {
                warn!(%cluster, %name, %error, "the ClusterTrustBundle cannot be written: trying again later");
                return Some(self.clock.now().plus(AGAIN));
            }
        }
        None
    }
}

fn told(error: watcher::Error) -> ApiError {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => error.into(),
        watcher::Error::WatchError(status) => ::kube::Error::Api(status).into(),
        error @ watcher::Error::NoResourceVersion => ApiError::Unreadable(error.to_string()),
    }
}
