//! The API server of one cluster: where it is, what it is known by, and who we are to it.
//!
//! - **TLS** always, 1.2 or 1.3, by our own provider, and known by the CA that the cluster's files name: neither the
//!   web's roots nor a server that is not verified will do.
//! - **No program is run** to log in, and no proxy is used: a kubeconfig that asks for one is refused.
//! - **Files are read again** when what was read is a minute old: tokens, client certificates and CAs rotate while a
//!   server runs. Files that are no good any more, or cannot be read in time, leave what was read last.
//! - **Everything that comes has an end**, in time and in bytes, whoever reads it: `bounds`.
//!
//! For a request with an answer there is [`Cluster::ask`]; for what kube has ready ([`Api`](::kube::Api), watches)
//! [`Cluster::client`].

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::kube::Client;
use ::kube::client::{Body, ConfigExt as _};
use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt as _;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use spiffe::time::{Clock, Timestamp};
use tower::BoxError;
use tracing::{info, warn};

pub use self::access::{Access, AccessError};
use self::bounds::Bounds;
pub use self::bounds::Exceeded;
pub use self::tally::{Reviewed, Tally};
use crate::config::kubernetes::{self as config, ClusterName};

mod access;
mod bounds;
mod tally;

/// How old what was read from files may be.
const FILES: Duration = Duration::from_secs(60);
/// The most characters of what an API server says that are told on.
const MAX_WORDS: usize = 512;
/// How long a connection that nobody uses stays open.
const IDLE: Duration = Duration::from_secs(60);

/// Why an API server has given no answer, or none that helps.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// There is no connection, or it broke.
    #[error("the API server cannot be reached: {0}")]
    Unreachable(String),
    /// It answers with an error.
    #[error("the API server answers {code} {reason}: {message}")]
    Status {
        /// The status of HTTP.
        code: u16,
        /// Its own word: `Forbidden`, `NotFound`.
        reason: String,
        /// Its own words.
        message: String,
    },
    /// What came is not what was asked for.
    #[error("the answer of the API server cannot be read: {0}")]
    Unreadable(String),
    /// What came was too much, or too late.
    #[error(transparent)]
    Exceeded(#[from] Exceeded),
    /// There is more of something than the config lets a cluster have.
    #[error(
        "the API server of cluster {cluster} tells of more than {most} {of}: see whether they are meant, and raise kubernetes.{cluster}.max_pods"
    )]
    TooMany {
        /// The cluster.
        cluster: Arc<str>,
        /// Of what.
        of: &'static str,
        /// How many there may be.
        most: usize,
    },
}

impl ApiError {
    /// Whether it says that there is no such thing.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Status { code: 404, .. })
    }

    /// Whether it says that we may not ask.
    pub fn is_forbidden(&self) -> bool {
        matches!(self, Self::Status { code: 403, .. })
    }

    /// Whether it is larger than an answer may be: less has to be asked for at once.
    pub fn is_too_large(&self) -> bool {
        matches!(self, Self::Exceeded(Exceeded::Bytes(..)))
    }

    /// What `error`, of whatever is between us and the API server, comes to.
    fn between(error: &(dyn std::error::Error + 'static)) -> Self {
        Exceeded::below(error).map_or_else(|| Self::Unreachable(in_words(error)), Self::Exceeded)
    }

    /// Whether it says that the past that was asked for is forgotten.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Status { code: 410, .. })
    }
}

impl From<::kube::Error> for ApiError {
    fn from(error: ::kube::Error) -> Self {
        match error {
            ::kube::Error::Api(status) => Self::Status {
                code: status.code,
                reason: shortened(&status.reason),
                message: shortened(&status.message),
            },
            ::kube::Error::SerdeError(error) => Self::Unreadable(error.to_string()),
            other => Self::between(&other),
        }
    }
}

/// One cluster.
pub struct Cluster {
    name: Arc<str>,
    request_timeout: Duration,
    watch_timeout: Duration,
    max_pods: usize,
    source: config::Cluster,
    clock: Arc<dyn Clock>,
    held: Mutex<Held>,
    /// When it was made, which is when this server started.
    began: Timestamp,
    /// When each of the watches last brought anything, in seconds since the epoch; 0: never.
    heard: [AtomicU64; 3],
    /// How many there are of what is watched, and whether there were too many when it was last looked.
    known: [AtomicUsize; 3],
    too_many: [AtomicBool; 3],
    reviews: Tally,
}

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watched {
    /// The pods.
    Pods,
    /// The nodes.
    Nodes,
    /// The namespaces.
    Namespaces,
}

impl Watched {
    /// As the API server calls them.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pods => "pods",
            Self::Nodes => "nodes",
            Self::Namespaces => "namespaces",
        }
    }
}

/// What was made of the files, and when they were read.
struct Held {
    access: Access,
    read_at: Timestamp,
    client: Option<Client>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Cluster").field(&self.name).finish()
    }
}

impl Cluster {
    /// The cluster `name`, reached as `source` says, which `access` was read from just now. Connects to nothing yet.
    pub fn new(name: &ClusterName, source: &config::Cluster, access: Access, clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self {
            name: name.as_str().into(),
            request_timeout: source.request_timeout,
            watch_timeout: source.watch_timeout,
            max_pods: source.max_pods,
            source: source.clone(),
            held: Mutex::new(Held { access, read_at: clock.now(), client: None }),
            began: clock.now(),
            clock,
            heard: Default::default(),
            known: Default::default(),
            too_many: Default::default(),
            reviews: Tally::default(),
        })
    }

    /// The name that our config gives it.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// What time it is.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// How long one watch lasts.
    pub fn watch_timeout(&self) -> Duration {
        self.watch_timeout
    }

    /// A client of the API server, made of the files as they were a minute ago at most. Cheap while they are the same.
    pub async fn client(&self) -> Result<Client, ApiError> {
        let now = self.clock.now();
        if self.is_to_be_read(now) {
            let source = self.source.clone();
            let reading = tokio::task::spawn_blocking(move || Access::read(&source));
            #[expect(clippy::disallowed_methods, reason = "a time limit on files, which may lie on the network")]
            let read = match tokio::time::timeout(self.request_timeout, reading).await {
                Ok(Ok(read)) => read.map_err(|error| error.to_string()),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => {
                    Err("the files that lead to the API server cannot be read in time: see where they lie".into())
                }
            };
            let mut held = self.held();
            match read {
                Ok(access) if access.same_as(&held.access) => {}
                Ok(access) => {
                    info!(cluster = %self.name, "the files that lead to the API server have changed: they are used from now on");
                    (held.access, held.client) = (access, None);
                }
                Err(error) => warn!(cluster = %self.name, error, "what was read last stays in use"),
            }
        }
        let mut held = self.held();
        if let Some(client) = &held.client {
            return Ok(client.clone());
        }
        let client = self.connect(&held.access).map_err(|error| ApiError::Unreachable(in_words(&*error)))?;
        held.client = Some(client.clone());
        Ok(client)
    }

    /// Sends `request`, whose URI is a path, and reads the answer.
    pub async fn ask<T: DeserializeOwned>(&self, request: Request<Vec<u8>>) -> Result<T, ApiError> {
        let bytes = self.exchange(request).await?;
        serde_json::from_slice(&bytes).map_err(|error| ApiError::Unreadable(error.to_string()))
    }

    /// What reviews of tokens have come to here.
    pub fn reviews(&self) -> &Tally {
        &self.reviews
    }

    /// Remembers that the watch of `what` has brought something at `now`.
    pub fn heard(&self, what: Watched, now: Timestamp) {
        if let Some(heard) = self.heard.get(what as usize) {
            heard.store(now.unix(), Ordering::Relaxed);
        }
    }

    /// Since when all watches of this cluster have brought something; `None`: not all have yet.
    pub fn last_heard(&self) -> Option<Timestamp> {
        let oldest = self.heard.iter().map(|heard| heard.load(Ordering::Relaxed)).min().filter(|at| *at > 0)?;
        Some(Timestamp::from_unix(oldest))
    }

    /// How long ago all watches of this cluster had brought something; where not all have yet, how long this server waits.
    pub fn watch_age(&self, now: Timestamp) -> Duration {
        now.since(self.last_heard().unwrap_or(self.began))
    }

    /// Remembers how many pods, nodes and namespaces are known.
    pub fn set_known(&self, counts: [usize; 3]) {
        for (known, count) in self.known.iter().zip(counts) {
            known.store(count, Ordering::Relaxed);
        }
    }

    /// How many pods are known.
    pub fn pods(&self) -> usize {
        self.known(Watched::Pods)
    }

    /// How many of `what` are known.
    pub fn known(&self, what: Watched) -> usize {
        self.known.get(what as usize).map_or(0, |known| known.load(Ordering::Relaxed))
    }

    /// Refuses `count` of `what` where that is more than `max_pods`: what has no pods is not counted in greater numbers.
    pub fn refuse_too_many(&self, what: Watched, count: usize) -> Result<(), ApiError> {
        let (most, is_too_many) = (self.max_pods, count > self.max_pods);
        if let Some(too_many) = self.too_many.get(what as usize) {
            too_many.store(is_too_many, Ordering::Relaxed);
        }
        let cluster = Arc::clone(&self.name);
        if is_too_many { Err(ApiError::TooMany { cluster, of: what.name(), most }) } else { Ok(()) }
    }

    /// Whether more pods, nodes or namespaces were told of than `max_pods`, so that nothing new is taken.
    pub fn has_too_many(&self) -> bool {
        self.too_many.iter().any(|too_many| too_many.load(Ordering::Relaxed))
    }

    async fn exchange(&self, request: Request<Vec<u8>>) -> Result<Bytes, ApiError> {
        let response = self.client().await?.send(request.map(Body::from)).await?;
        let status = response.status();
        let body = response.into_body().collect().await;
        let bytes = body.map_err(ApiError::from)?.to_bytes();
        if status.is_success() { Ok(bytes) } else { Err(said_no(status.as_u16(), &bytes)) }
    }

    fn connect(&self, access: &Access) -> Result<Client, BoxError> {
        let config = access.config();
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(self.request_timeout));
        let mut https = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(access.tls(Arc::clone(&self.clock))?)
            .https_only();
        if let Some(name) = config.tls_server_name.clone() {
            let name = rustls_pki_types::ServerName::try_from(name)?;
            https = https.with_server_name_resolver(hyper_rustls::FixedServerNameResolver::new(name));
        }
        let connections = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .build(https.enable_http1().wrap_connector(tcp));
        let bounds = Bounds {
            cluster: Arc::clone(&self.name),
            request_timeout: self.request_timeout,
            watch_limit: self.watch_timeout + bounds::LATE,
        };
        let bounded = tower::service_fn(move |request| {
            let (bounds, connections) = (bounds.clone(), connections.clone());
            bounds.ask(request, move |request: Request<Body>| connections.request(request))
        });
        let service = tower::ServiceBuilder::new()
            .layer(config.base_uri_layer())
            .option_layer(config.auth_layer()?)
            .layer(config.extra_headers_layer()?)
            .service(bounded);
        Ok(Client::new(service, config.default_namespace.clone()))
    }

    /// Whether it is time to read the files again: for one caller; the others use what is there.
    fn is_to_be_read(&self, now: Timestamp) -> bool {
        let mut held = self.held();
        let is_old = held.read_at > now || now.since(held.read_at) >= FILES;
        if is_old {
            held.read_at = now;
        }
        is_old
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an API server says when it says no.
fn said_no(code: u16, body: &[u8]) -> ApiError {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Status {
        reason: String,
        message: String,
    }
    let Status { reason, message } = serde_json::from_slice(body).unwrap_or_default();
    ApiError::Status { code, reason: shortened(&reason), message: shortened(&message) }
}

/// The first of what an API server says, without what a terminal would obey.
pub(super) fn shortened(words: &str) -> String {
    words.chars().take(MAX_WORDS).map(|char| if char.is_control() { ' ' } else { char }).collect()
}

/// An error and what is below it: the outermost alone says little.
fn in_words(error: &(dyn std::error::Error + 'static)) -> String {
    let mut words = error.to_string();
    let mut below = error.source();
    for _ in 0..8 {
        let Some(error) = below else { break };
        let more = error.to_string();
        if !words.contains(&more) {
            words = format!("{words}: {more}");
        }
        below = error.source();
    }
    shortened(&words)
}

#[cfg(test)]
pub(crate) mod tests;
