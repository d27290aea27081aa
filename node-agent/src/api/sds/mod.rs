//! Envoy's Secret Discovery Service v3, for proxies that get their mTLS identity from this agent.
//!
//! | file | owns |
//! |---|---|
//! | `names` | what a proxy asks for |
//! | `client` | what it says of itself |
//! | `secrets` | what the workload may have, as secrets |
//! | `dialogue` | what both kinds of stream have in common |
//! | `stream`, `delta` | the two kinds of stream: pure machines |
//! | `slim` | requests made small before they take up room |
//!
//! - The proxy is the process that connected, as for the Workload API: it is attested once for each stream.
//! - No security header is asked for, as Envoy sends none: `SECURITY.md` says why that is no hole.
//! - Requests are read one at a time, when the response before has been taken: a proxy that does not read is not read.
//! - What a proxy rejects is logged with its words, counted, and shown by `chancery agent status`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::stream::unfold;
use prometheus_client::metrics::gauge::Gauge;
use spiffe::proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use spiffe::proto::envoy::service::secret::v3::secret_discovery_service_server::SecretDiscoveryService;
use spiffe::time::Clock;
use tonic::{Request, Response, Status as GrpcStatus, Streaming};
use tracing::{debug, warn};

use super::door::{Denial, Door, Responses, Watcher};
use super::places::Places;
use super::status;
use crate::attestor::{AttestError, Peer};
use crate::cache::WorkloadState;
use crate::config::sds::Sds;
use crate::metrics::Metrics;
use crate::status::{Failure, Proxy, Reporter, Status, words};

pub mod client;
pub mod delta;
pub mod dialogue;
pub mod names;
pub mod secrets;
pub mod slim;
pub mod stream;

use delta::Delta;
use dialogue::{Dialogue, Heard, News};
use stream::Stream;

/// The only type of resource that is served.
pub const SECRET_TYPE: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
/// How many names of a proxy are shown.
const MAX_SHOWN: usize = 16;

/// Why a proxy does not get what it asks for. The stream ends with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It asks for something else than secrets.
    #[error("resources of the type {0:?} are not served here: SDS has {SECRET_TYPE}")]
    Type(String),
    /// It asks for more than is good.
    #[error("{0} names are too many: at most {most} are possible, or none for everything", most = names::MAX_NAMES)]
    TooManyNames(usize),
    /// It asks for a name that is none.
    #[error("a name has {0} bytes: at most {most} are possible", most = names::MAX_NAME_BYTES)]
    LongName(usize),
    /// The names mean nothing.
    #[error("nothing is called {missing}; this workload may have: {may}")]
    Unknown {
        /// Those names.
        missing: String,
        /// What it may ask for.
        may: String,
    },
    /// The names are not for this workload.
    #[error("this workload is not entitled to {missing}; it may have: {may}")]
    NotEntitled {
        /// Those names.
        missing: String,
        /// What it may ask for.
        may: String,
    },
    /// All roots in one heap.
    #[error(
        "{0} needs the SPIFFE validator (Envoy 1.18 or later, and no disable_spiffe_cert_validation): as plain roots anyone of \
         one trust domain could speak for another; ask for one trust domain by its SPIFFE ID"
    )]
    RootsOfAll(String),
}

/// SDS on this agent.
pub(super) struct SdsApi {
    pub(super) door: Arc<Door>,
    /// Open streams, those of the Workload API among them.
    pub(super) streams: Arc<Places>,
    pub(super) config: Arc<Sds>,
    pub(super) journal: Journal,
}

/// Tells the operator what happens: by the log, the metrics and the status.
#[derive(Clone)]
pub(super) struct Journal {
    clock: Arc<dyn Clock>,
    status: Status,
    metrics: Metrics,
    /// The second of the last warning: any local process can cause them, so there is one in a second.
    warned: Arc<AtomicU64>,
}

impl Journal {
    pub(super) fn new(clock: Arc<dyn Clock>, status: Status, metrics: Metrics) -> Self {
        Self { clock, status, metrics, warned: Arc::default() }
    }

    /// Says something of a process: as a warning, if there was none in this second.
    fn say(&self, pid: u32, what: &str, words: &str) -> Failure {
        let now = self.clock.now();
        if self.warned.swap(now.unix(), Ordering::Relaxed) == now.unix() {
            debug!(pid, words, "{what}");
        } else {
            warn!(pid, words, "{what}");
        }
        Failure { at: now, words: words.to_owned() }
    }

    /// `proxy` gets nothing, or nothing more.
    fn refused(&self, proxy: Proxy, why: &dyn std::fmt::Display) {
        self.metrics.sds_refused.inc();
        let failure = self.say(proxy.pid, "proxy is refused its secrets", &words(&why.to_string()));
        self.status.refuse(Proxy { rejection: Some(failure), ..proxy });
    }
}

impl SdsApi {
    /// Lets the caller in: its first state, the way to the next ones, and its pid.
    async fn open<T>(&self, request: &Request<T>) -> Result<(Watcher, WorkloadState, u32), GrpcStatus> {
        let peer = Arc::clone(request.extensions().get::<Arc<Peer>>().ok_or_else(status::no_peer)?);
        let pid = peer.pid();
        let denied = |denial: Denial| {
            self.journal.refused(Proxy { pid, ..Proxy::default() }, &denial);
            status::denied(&denial)
        };
        let admitted = self.door.admit(peer, &self.streams).await.map_err(denied)?;
        let (watcher, first) = self.door.open(admitted).await.map_err(denied)?;
        Ok((watcher, first, pid))
    }

    async fn converse<D: Dialogue>(
        &self,
        request: Request<Streaming<D::Request>>,
        mut dialogue: D,
    ) -> Result<Response<Responses<D::Response>>, GrpcStatus> {
        let (watcher, first, pid) = self.open(&request).await?;
        let door = Arc::clone(&self.door);
        // Nothing has been asked for: nothing is answered.
        dialogue.learn(first, door.clock.now()).map_err(|refusal| status::refused(&refusal))?;
        let report = Report::new(pid, self.journal.clone());
        let conversation = Conversation { dialogue, watcher, requests: request.into_inner(), report, door };
        let next = |conversation: Option<Conversation<D>>| async move {
            let mut conversation = conversation?;
            match conversation.next().await? {
                Ok(response) => Some((Ok(response), Some(conversation))),
                Err(status) => Some((Err(status), None)),
            }
        };
        Ok(Response::new(Box::pin(unfold(Some(conversation), next))))
    }
}

#[tonic::async_trait]
impl SecretDiscoveryService for SdsApi {
    type StreamSecretsStream = Responses<DiscoveryResponse>;
    type DeltaSecretsStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, GrpcStatus> {
        self.converse(request, Stream::new(Arc::clone(&self.config))).await
    }

    async fn delta_secrets(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, GrpcStatus> {
        self.converse(request, Delta::new(Arc::clone(&self.config))).await
    }

    async fn fetch_secrets(
        &self,
        request: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, GrpcStatus> {
        let (_watcher, first, pid) = self.open(&request).await?;
        let (mut stream, now) = (Stream::new(Arc::clone(&self.config)), self.door.clock.now());
        let answered = stream.learn(first, now).and_then(|_| stream.hear(request.into_inner(), now));
        let heard = answered.map_err(|refusal| {
            self.journal.refused(Proxy { pid, ..Proxy::default() }, &refusal);
            status::refused(&refusal)
        })?;
        let response = heard.response.ok_or_else(|| status::denied(&Denial::NotReady))?;
        self.journal.metrics.sds_responses.inc();
        Ok(Response::new(DiscoveryResponse { nonce: String::new(), ..response }))
    }
}

/// One stream that is open.
struct Conversation<D: Dialogue> {
    dialogue: D,
    watcher: Watcher,
    requests: Streaming<D::Request>,
    report: Report,
    door: Arc<Door>,
}

impl<D: Dialogue> Conversation<D> {
    /// The next response, or why there are no more; `None`: the proxy is gone.
    async fn next(&mut self) -> Option<Result<D::Response, GrpcStatus>> {
        loop {
            let step = tokio::select! {
                biased;
                state = self.watcher.next() => match state {
                    Ok(state) => self.dialogue.learn(state, self.door.clock.now()),
                    Err(denial) => {
                        // Its own end, and ours, is no news.
                        if !matches!(denial, Denial::Stopping(_) | Denial::Attest(AttestError::Gone(_))) {
                            self.report.refused(&denial);
                        }
                        return Some(Err(status::denied(&denial)));
                    }
                },
                request = self.requests.message() => {
                    let request = request.ok().flatten()?;
                    self.dialogue.hear(request, self.door.clock.now()).map(|Heard { response, news }| {
                        news.into_iter().for_each(|news| self.report.tell(news));
                        response
                    })
                }
            };
            match step {
                Ok(None) => {}
                Ok(Some(response)) => {
                    self.report.sent(D::version(&response));
                    return Some(Ok(response));
                }
                Err(refusal) => {
                    self.dialogue.asked().into_iter().for_each(|news| self.report.tell(news));
                    self.report.refused(&refusal);
                    return Some(Err(status::refused(&refusal)));
                }
            }
        }
    }
}

/// Tells what happens on one stream: to the log, the metrics and the status.
struct Report {
    pid: u32,
    journal: Journal,
    status: Reporter<Proxy>,
    _open: Open,
}

impl Report {
    fn new(pid: u32, journal: Journal) -> Self {
        let status = journal.status.report_proxy(Proxy { pid, ..Proxy::default() });
        let open = Open::new(journal.metrics.sds_streams.clone());
        Self { pid, journal, status, _open: open }
    }

    fn tell(&self, news: News) {
        let pid = self.pid;
        match news {
            News::Asked { node, names } => {
                debug!(pid, node, names = names.len(), "proxy asks for secrets");
                let shown = shown(&names);
                self.status.update(|proxy| (proxy.node, proxy.names) = (node, shown));
            }
            News::Acknowledged { version } => self.status.update(|proxy| {
                proxy.acknowledged = version;
                proxy.rejection = None;
            }),
            News::Rejected { version, words } => {
                debug!(pid, version, "proxy rejects a version");
                let rejection = self.journal.say(pid, "proxy rejects its secrets: it goes on with what it had", &words);
                self.journal.metrics.sds_rejected.inc();
                self.status.update(|proxy| proxy.rejection = Some(rejection));
            }
        }
    }

    fn sent(&self, version: &str) {
        self.journal.metrics.sds_responses.inc();
        self.status.update(|proxy| version.clone_into(&mut proxy.sent));
    }

    fn refused(&self, why: &dyn std::fmt::Display) {
        self.journal.refused(self.status.report(), why);
    }
}

/// The first names, fit to be shown.
fn shown(names: &[String]) -> Vec<String> {
    let mut shown: Vec<String> = names.iter().take(MAX_SHOWN).map(|name| words(name)).collect();
    if names.len() > MAX_SHOWN {
        shown.push(format!("and {} more", names.len() - MAX_SHOWN));
    }
    shown
}

/// Counted as long as it is there.
struct Open(Gauge);

impl Open {
    fn new(gauge: Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod test_world;
#[cfg(test)]
mod tests;
