//! The agent as a whole: the only place that joins its rooms.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use spiffe::bundle::Bundle;
use spiffe::id::SpiffeId;
use spiffe::mtls::{CurrentBundles, CurrentSvid};
use spiffe::time::{Clock, System};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::api::broker::{self, Sockets};
use crate::api::operator::{self, Operator};
use crate::api::{self, ApiError, Endpoint, Listener};
use crate::attestor::k8s::client::AccessError;
use crate::attestor::k8s::{self, KnownPods, Source};
use crate::attestor::systemd::Systemd;
use crate::attestor::unix::Unix;
use crate::attestor::{Attestors, WorkloadAttestor};
use crate::cache::tokens::machine::Bounds;
use crate::cache::{self, run};
use crate::client::{self, Client, ClientError};
use crate::config::{self, Attest, Bootstrap, Config};
use crate::deliver::{Watchers, deliver};
use crate::health::{self, Health};
use crate::metrics::Metrics;
use crate::node::attest::{Attestor, read_bundle};
use crate::node::folder::Folder;
use crate::node::keep::{Keeper, attest_until_done};
use crate::node::{NodeError, NodeIdentity, k8s_psat};
use crate::status::Status;

/// Why the agent does not start, or has stopped.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The agent has no identity of its own.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The Node door cannot be set up.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// There is no way to the API server of the cluster, or to the kubelet.
    #[error(transparent)]
    Kubernetes(#[from] AccessError),
    /// The workload socket or the broker endpoint cannot be served.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The health address is taken, or is none of this machine.
    #[error("cannot listen on health_listen {address}: {source}; choose another port or leave it out")]
    Health {
        /// Where.
        address: std::net::SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// A part of the agent has ended although nobody asked it to.
    #[error("the agent's {0} has stopped: this is a mistake in the agent, please report it with its log")]
    Broken(&'static str),
}

/// A running agent. Dropping it stops it without grace; see [`Agent::shutdown`].
#[derive(Debug)]
pub struct Agent {
    id: SpiffeId,
    workload_socket: PathBuf,
    health_address: Option<std::net::SocketAddr>,
    broker_address: Option<std::net::SocketAddr>,
    metrics: Metrics,
    tasks: JoinSet<Result<(), AppError>>,
    shutdown: CancellationToken,
}

/// Whether an agent could start by `config`, as far as files go: the roots that it is to know its server by, the token of
/// its service account, and what leads to the API server or the kubelet. Changes nothing, and asks nobody. Must be called
/// within a tokio runtime.
pub fn check(config: &Config) -> Result<(), AppError> {
    if let Some(Bootstrap::Bundle(path)) = &config.bootstrap {
        read_bundle(path, &config.trust_domain)?;
    }
    if let Attest::K8sPsat { cluster, token_path } = &config.attest {
        k8s_psat::evidence(cluster, token_path)?;
    }
    if let Some(k8s) = &config.attestors.k8s {
        // The clock is for connections, and there is none.
        let clock: Arc<dyn Clock> = Arc::new(System);
        Source::of(k8s, &clock)?;
    }
    Ok(())
}

impl Agent {
    /// Starts the agent: returns once it has its own SVID (the stored one while that is valid, whether a server can be
    /// reached or not; else the node is attested, for as long as that takes) and the workload socket is bound.
    ///
    /// What only an operator can mend, such as a join token that is used up, is an error.
    pub async fn start(config: Config, clock: Arc<dyn Clock>) -> Result<Self, AppError> {
        // Before the attestation: a join token is not used up for an agent that then cannot serve.
        let listener = Listener::bind(&config.workload_socket, config.workload_socket_mode)?;
        let health = match config.health_listen {
            Some(address) => Some(health::bind(address).await.map_err(|source| AppError::Health { address, source })?),
            None => None,
        };
        let brokers = match &config.broker {
            Some(broker) => Some(Sockets::bind(broker).await?),
            None => None,
        };
        let broker_address = brokers.as_ref().and_then(Sockets::address);
        let health_address = health.as_ref().and_then(|listener| listener.local_addr().ok());
        let shutdown = CancellationToken::new();
        let (metrics, ready) = (Metrics::default(), Arc::new(AtomicBool::new(false)));
        let mut tasks: JoinSet<Result<(), AppError>> = JoinSet::new();
        if let Some(listener) = health {
            let health = Health { ready: ready.clone(), metrics: metrics.clone(), clock: clock.clone() };
            tasks.spawn(ended("health page", shutdown.clone(), health.serve(listener, shutdown.clone())));
        }

        let Attesting { attestors, pods, k8s } = attestors(&config.attestors, &clock, &metrics)?;
        if let Some(loops) = k8s {
            tasks.spawn(ended("watch of pods", shutdown.clone(), loops.run(shutdown.clone())));
        }
        let folder = Folder::open(&config.data_dir)?;
        // Behind the folder: that is where it usually is.
        let status_socket = Listener::bind(&config.status_socket, operator::MODE)?;
        let status = Status::default();
        let attestor = Attestor {
            trust_domain: config.trust_domain.clone(),
            servers: config.servers.clone(),
            bootstrap: config.bootstrap.clone(),
            method: config.attest.clone(),
            key_type: config.key_type,
            clock: clock.clone(),
        };
        let (identity, bundle) = own_identity(&folder, &attestor).await?;
        let id = identity.svid.id().clone();
        let current = CurrentSvid::default();
        current.set(&identity.svid, &[], &identity.key.0).map_err(NodeError::from)?;
        let bundles = CurrentBundles::new([bundle.clone()]);
        let client = Arc::new(Client::new(client::Parts {
            trust_domain: config.trust_domain.clone(),
            servers: config.servers.clone(),
            svid: current.clone(),
            bundles: bundles.clone(),
            clock: clock.clone(),
        })?);

        let (trust, trusted) = watch::channel(bundle);
        let (cache, mailbox) = cache::mailbox();
        let cache = cache.counting(metrics.jwt_hits.clone());
        let parts = run::Parts {
            mailbox,
            client: client.clone(),
            bundles: bundles.clone(),
            trust,
            clock: clock.clone(),
            key_type: config.key_type,
            prefetch: config.prefetch,
            tokens: Bounds { all: config.jwt.cache_entries, per_entry: config.jwt.cache_entries.div_ceil(4) },
            metrics: metrics.clone(),
        };
        tasks.spawn(ended("cache", shutdown.clone(), run::run(parts, shutdown.clone())));
        if let (Some(sockets), Some(broker)) = (brokers, config.broker) {
            let endpoint = broker::Endpoint {
                cache: cache.clone(),
                attestors: attestors.clone(),
                pods,
                allow: broker.allow,
                limits: broker.limits,
                first_answer: config.limits.first_answer,
                svid: current.clone(),
                bundles: bundles.clone(),
                trust: trusted.clone(),
                trust_domain: config.trust_domain,
                clock: clock.clone(),
            };
            let until = shutdown.clone();
            tasks.spawn(async move { served("broker endpoint", &until, endpoint.serve(sockets, until.clone()).await) });
        }
        let watchers = Watchers { clock: clock.clone(), status: status.clone(), metrics: metrics.clone() };
        let delivering = deliver(config.deliveries, cache.clone(), watchers, shutdown.clone());
        tasks.spawn(ended("deliveries", shutdown.clone(), delivering));
        let keeper = Keeper {
            identity,
            folder,
            current,
            bundles,
            trust: trusted,
            client,
            attestor,
            clock: clock.clone(),
            metrics: metrics.clone(),
        };
        tasks.spawn(ended("renewal", shutdown.clone(), keeper.run(shutdown.clone())));
        let operator = Operator {
            id: id.clone(),
            cache: cache.clone(),
            status: status.clone(),
            metrics: metrics.clone(),
            clock: clock.clone(),
        };
        let until = shutdown.clone();
        tasks.spawn(async move { served("status socket", &until, operator.serve(status_socket, until.clone()).await) });
        let endpoint = Endpoint {
            cache,
            attestors,
            limits: limits(&config.limits),
            claims: config.jwt.claims,
            sds: config.sds,
            status,
            metrics: metrics.clone(),
            clock,
        };
        let workload_socket = config.workload_socket;
        info!(spiffe_id = %id, socket = %workload_socket.display(), "agent is up");
        let until = shutdown.clone();
        tasks.spawn(async move { served("workload socket", &until, endpoint.serve(listener, until.clone()).await) });
        ready.store(true, Ordering::Relaxed);
        Ok(Self { id, workload_socket, health_address, broker_address, metrics, tasks, shutdown })
    }

    /// The agent's own SPIFFE ID.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Where workloads knock.
    pub fn workload_socket(&self) -> &Path {
        &self.workload_socket
    }

    /// Where the health page is, if anywhere.
    pub fn health_address(&self) -> Option<std::net::SocketAddr> {
        self.health_address
    }

    /// Where brokers knock over the network, if anywhere.
    pub fn broker_address(&self) -> Option<std::net::SocketAddr> {
        self.broker_address
    }

    /// What the agent counts.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Returns when the agent has ended: by [`Agent::shutdown`] elsewhere (through `stopper`), or by a mistake.
    pub async fn finished(&mut self) -> Result<(), AppError> {
        let mut result = Ok(());
        while let Some(ended) = self.tasks.join_next().await {
            let ended = ended.unwrap_or_else(|why| {
                error!(%why, "a part of the agent has panicked");
                Err(AppError::Broken("task"))
            });
            if let (Ok(()), Err(why)) = (&result, ended) {
                result = Err(why);
            }
            // One part gone, all are: half an agent helps nobody.
            self.shutdown.cancel();
        }
        result
    }

    /// Stops the agent when it is cancelled; for whoever does not hold the agent itself.
    pub fn stopper(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    /// Ends the streams of the workloads and stops.
    pub async fn shutdown(mut self) -> Result<(), AppError> {
        self.shutdown.cancel();
        self.finished().await
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

async fn own_identity(folder: &Folder, attestor: &Attestor) -> Result<(NodeIdentity, Bundle), NodeError> {
    let bundle = folder.bundle(&attestor.trust_domain)?;
    let stored = folder.identity()?;
    if let (Some(identity), Some(bundle)) = (&stored, &bundle) {
        if !identity.svid.id().is_member_of(&attestor.trust_domain) {
            warn!(stored = %identity.svid.id(), "the stored SVID is of another trust domain: it is not used");
        } else if identity.is_valid(attestor.clock.now()) {
            info!(spiffe_id = %identity.svid.id(), until = %identity.svid.lifetime().not_after, "using the stored SVID");
            return Ok((identity.clone(), bundle.clone()));
        } else {
            info!(expired = %identity.svid.lifetime().not_after, "the stored SVID has expired: attesting anew");
        }
    }
    let (identity, bundle) = attest_until_done(attestor, bundle.as_ref()).await?;
    folder.store_bundle(&bundle)?;
    folder.store(&identity, None)?;
    info!(spiffe_id = %identity.svid.id(), until = %identity.svid.lifetime().not_after, "this node is attested");
    Ok((identity, bundle))
}

/// All attestors; what one of them knows of pods, and what keeps that up to date.
struct Attesting {
    attestors: Arc<Attestors>,
    pods: Option<KnownPods>,
    k8s: Option<k8s::Loops>,
}

fn attestors(
    config: &config::attestors::Attestors,
    clock: &Arc<dyn Clock>,
    metrics: &Metrics,
) -> Result<Attesting, AppError> {
    let mut list: Vec<Box<dyn WorkloadAttestor>> = Vec::new();
    if let Some(unix) = &config.unix {
        list.push(Box::new(Unix::new(unix.sha256_limit.0, Arc::clone(clock))));
    }
    if config.systemd.is_some() {
        list.push(Box::new(Systemd));
    }
    let Some(k8s) = &config.k8s else {
        return Ok(Attesting { attestors: Arc::new(Attestors::new(list, Arc::clone(clock))), pods: None, k8s: None });
    };
    let (attestor, known, loops) = k8s::new(k8s::Parts {
        source: Source::of(k8s, clock)?,
        node: k8s.node_name.clone(),
        wait: k8s.wait,
        own_cgroup: std::fs::read("/proc/self/cgroup").unwrap_or_default(),
        clock: Arc::clone(clock),
        metrics: metrics.clone(),
    });
    list.push(Box::new(attestor));
    Ok(Attesting { attestors: Arc::new(Attestors::new(list, Arc::clone(clock))), pods: Some(known), k8s: Some(loops) })
}

fn limits(config: &config::Limits) -> api::Limits {
    api::Limits {
        connections: config.connections,
        connections_per_user: config.connections_per_user,
        streams: config.streams,
        streams_per_user: config.streams_per_user,
        first_answer: config.first_answer,
    }
}

/// A door of the agent that was served until `until` was cancelled; that it ends before is a mistake.
fn served(name: &'static str, until: &CancellationToken, result: Result<(), ApiError>) -> Result<(), AppError> {
    result?;
    if until.is_cancelled() { Ok(()) } else { Err(AppError::Broken(name)) }
}

/// A part of the agent: that it ends before it is asked to is a mistake.
async fn ended(
    name: &'static str,
    shutdown: CancellationToken,
    part: impl Future<Output = ()>,
) -> Result<(), AppError> {
    part.await;
    if shutdown.is_cancelled() { Ok(()) } else { Err(AppError::Broken(name)) }
}

#[cfg(test)]
mod tests;
