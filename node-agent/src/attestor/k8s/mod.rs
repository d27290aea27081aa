//! The pod and the container that a process is in.
//!
//! | selector | from |
//! |---|---|
//! | `k8s:ns:shop`, `k8s:sa:web` | namespace and service account of the pod |
//! | `k8s:pod-name:web-0`, `k8s:pod-uid:<uid>`, `k8s:node-name:node-a` | the pod itself |
//! | `k8s:pod-label:app:web` | each label of the pod |
//! | `k8s:pod-image-count:1` | how many containers the pod is made of, init and ephemeral ones aside |
//! | `k8s:owner:ReplicaSet:web-1`, `k8s:owner-uid:ReplicaSet:<uid>` | each owner, and what owns a ReplicaSet or a Job |
//! | `k8s:container-name:web`, `k8s:container-image:<image>` | the container |
//! | `k8s:container-image-digest:sha256:<hex>` | what it runs, where the container runtime knows that |
//! | `k8s:init-container:true`, `k8s:ephemeral-container:true` | a container of that kind |
//!
//! | file | owns |
//! |---|---|
//! | `cgroup` | which container a process is in, out of the kernel's word (pure) |
//! | `object` | a pod of the API as what is true of it (pure) |
//! | `pods` | what is known of this node's pods (a value) |
//! | `presence` | a pod on which answers rest, as long as what was found of it is true |
//! | `owners` | what owns the owner of a pod |
//! | `client` | the API server and the kubelet; `unverified`, a kubelet on this machine that nothing vouches for |
//! | `answer`, `split` | what they answer, object by object, and never more of it than one (`split` is pure) |
//! | `watch` or `kubelet`, `keep` | the loops |
//!
//! - A process in no container has no such selectors, at once.
//! - One in a container that is not known yet waits until it is, woken by what is told of pods, and no longer than `wait`: then
//!   the attestor fails, and it is to come again.
//! - What is known stays known when the API server, or the kubelet, is lost.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use prometheus_client::metrics::counter::Counter;
use spiffe::selector::{MAX_SELECTORS, Selector, Selectors};
use spiffe::time::Clock;
use tokio::sync::mpsc;
use tokio::sync::watch::Receiver;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::cgroup::{Container, Top};
use self::client::{AccessError, ApiServer};
use self::keep::Keeper;
use self::kubelet::{Looks, Waiting};
use self::object::Pod;
use self::pods::{Found, Pods};
pub use self::presence::{Departure, Presence};
use self::watch::Watch;
use super::process_file::Credentials;
use super::{AttestError, Peer, WorkloadAttestor, peer};
use crate::config::attestors::K8sAttestor;
use crate::metrics::Metrics;

pub mod answer;
pub mod cgroup;
pub mod client;
mod keep;
mod kubelet;
pub mod object;
pub mod owners;
pub mod pods;
mod presence;
mod split;
mod unverified;
mod watch;

const KIND: &str = "k8s";
/// Events that wait to be taken up.
const WAITING: usize = 64;
/// Layouts of cgroups that are complained of: anybody may make up some.
const MOST_LAYOUTS: usize = 8;

/// Why a process in a container, or a pod, is not known.
#[derive(Debug, thiserror::Error)]
pub enum K8sError {
    /// Its cgroups contradict one another.
    #[error(transparent)]
    Cgroup(#[from] cgroup::CgroupError),
    /// What is known of pods contradicts itself, or its cgroup.
    #[error(transparent)]
    Pod(#[from] pods::PodError),
    /// Nobody tells of it.
    #[error(
        "container {} of pod {} is not known on this node: {}", .container.id, .container.pod_uid, .lack.hint(*.teller)
    )]
    Unknown {
        /// Where the process is.
        container: Container,
        /// Who should tell of it.
        teller: Teller,
        /// What is not known of it.
        lack: Lack,
    },
}

/// What is not known of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// Anything: no pods were told of yet.
    Everything,
    /// Whose it is.
    Pod,
    /// What owns the owner of its pod.
    Owner,
}

impl Lack {
    fn hint(self, teller: Teller) -> String {
        let who = match teller {
            Teller::ApiServer => "the API server",
            Teller::Kubelet => "the kubelet",
        };
        match self {
            Self::Everything => format!("{who} could not be asked for pods yet: see the agent's log"),
            Self::Pod => format!("its pod has no such running container by {who}, which may be behind; try again"),
            Self::Owner => "its pod's owner is still being looked up; try again".into(),
        }
    }
}

/// Who tells of the pods of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Teller {
    /// The API server.
    ApiServer,
    /// The kubelet.
    Kubelet,
}

/// How the pods of this node are known.
pub enum Source {
    /// By a watch of the API server.
    Watch(Arc<ApiServer>),
    /// By asking the kubelet.
    Kubelet {
        /// Where it is.
        kubelet: Arc<ApiServer>,
        /// How often it is asked, if nobody waits.
        every: Duration,
        /// Who knows what owns the owner of a pod: a kubelet does not. `None`: nobody does.
        owners: Option<Arc<ApiServer>>,
    },
}

impl Source {
    /// As the config has it. What its files say that is no good is said at once.
    pub fn of(config: &K8sAttestor, clock: &Arc<dyn Clock>) -> Result<Self, AccessError> {
        let (cluster, of_files) = (config.cluster.clone(), Arc::clone(clock));
        let api_server = ApiServer::new(Box::new(move || client::connect(&cluster, &of_files)));
        let is_reached = api_server.client().map(drop);
        let Some(kubelet) = config.kubelet.clone() else {
            return is_reached.map(|()| Self::Watch(api_server));
        };
        let owners = match is_reached {
            Ok(()) => Some(api_server),
            Err(AccessError::NoPod(_)) => {
                info!(
                    "no API server is named beside the kubelet: no selector has the Deployment or the CronJob of a pod"
                );
                None
            }
            Err(error) => return Err(error),
        };
        let (every, of_files) = (kubelet.every, Arc::clone(clock));
        let kubelet = ApiServer::new(Box::new(move || client::connect_kubelet(&kubelet, &of_files)));
        kubelet.client()?;
        Ok(Self::Kubelet { kubelet, every, owners })
    }
}

/// What the attestor and its loops are made of.
pub struct Parts {
    /// Where pods are asked for.
    pub source: Source,
    /// The name of this node.
    pub node: String,
    /// How long a process waits for its container to be known.
    pub wait: Duration,
    /// The agent's own `/proc/self/cgroup`.
    pub own_cgroup: Vec<u8>,
    /// Where the time comes from.
    pub clock: Arc<dyn Clock>,
    /// What is counted.
    pub metrics: Metrics,
}

/// The attestor, what it reads, and the loops that keep that.
pub fn new(parts: Parts) -> (K8s, KnownPods, Loops) {
    let Parts { source, node, wait, own_cgroup, clock, metrics } = parts;
    let (to, events) = mpsc::channel(WAITING);
    let (told, pods) = tokio::sync::watch::channel(Arc::default());
    let (waiting, waited_for) = Waiting::new();
    let (watching, told_at) = (metrics.k8s_watching, metrics.k8s_told);
    let (teller, asking, api_server) = match source {
        Source::Watch(api_server) => {
            let owners = Some(Arc::clone(&api_server));
            let watch = Watch { api_server, node, to, clock: Arc::clone(&clock), watching, told: told_at };
            (Teller::ApiServer, Asking::Watch(watch), owners)
        }
        Source::Kubelet { kubelet, every, owners } => {
            let (waiting, clock) = (waited_for, Arc::clone(&clock));
            let looks = Looks { kubelet, node, every, waiting, to, clock, watching, told: told_at };
            (Teller::Kubelet, Asking::Kubelet(looks), owners)
        }
    };
    let keeper = Keeper { events, told, api_server, clock: Arc::clone(&clock), count: metrics.k8s_pods };
    let known = KnownPods { pods, waiting, teller, wait, clock };
    let attestor = K8s {
        top: Top::of_agent(&own_cgroup),
        known: known.clone(),
        misplaced: metrics.k8s_misplaced,
        layouts: Mutex::default(),
    };
    (attestor, known, Loops { asking, keeper })
}

/// What keeps the attestor up to date.
pub struct Loops {
    asking: Asking,
    keeper: Keeper,
}

/// The loop that asks for pods.
enum Asking {
    Watch(Watch),
    Kubelet(Looks),
}

impl Loops {
    /// Runs until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let keeping = self.keeper.run(shutdown.clone());
        match self.asking {
            Asking::Watch(watch) => tokio::join!(watch.run(shutdown), keeping),
            Asking::Kubelet(looks) => tokio::join!(looks.run(shutdown), keeping),
        };
    }
}

/// The `k8s` attestor.
pub struct K8s {
    top: Top,
    known: KnownPods,
    misplaced: Counter,
    /// Where processes of pods were found that cannot be taken for such.
    layouts: Mutex<BTreeSet<String>>,
}

#[async_trait]
impl WorkloadAttestor for K8s {
    fn kind(&self) -> &'static str {
        KIND
    }

    async fn attest(&self, peer: &Peer, _: &Credentials) -> Result<Vec<Selector>, AttestError> {
        let file = peer::read(peer.pid(), "cgroup")?;
        tokio::select! {
            biased;
            found = self.of_cgroup(&file) => Ok(found?),
            () = peer.ended() => Err(AttestError::Gone(peer.pid())),
        }
    }

    fn pod(&self, peer: &Peer) -> Option<String> {
        let file = peer::read(peer.pid(), "cgroup").ok()?;
        Some(self.top.container(&file).ok()??.pod_uid)
    }

    fn presence(&self, found: &Selectors) -> Option<Presence> {
        let uid = found.iter().find_map(|found| found.as_str().strip_prefix("k8s:pod-uid:"))?;
        Some(self.known.presence(uid, found.clone(), false))
    }
}

impl K8s {
    /// What is true of a process with this `/proc/<pid>/cgroup`.
    async fn of_cgroup(&self, file: &[u8]) -> Result<Vec<Selector>, K8sError> {
        let Some(container) = self.top.container(file)? else {
            if let Some(layout) = self.top.misplaced(file) {
                self.complain(layout);
            }
            return Ok(Vec::new());
        };
        let at_once = known(&self.known.pods.borrow(), &container)?;
        match at_once {
            Some(found) => Ok(found),
            None => self.known.until_known(&container).await,
        }
    }
}

impl K8s {
    /// Says that processes of pods seem to be where none is believed to be.
    fn complain(&self, layout: String) {
        self.misplaced.inc();
        let mut layouts = self.layouts.lock().unwrap_or_else(PoisonError::into_inner);
        if layouts.len() < MOST_LAYOUTS && !layouts.contains(&layout) {
            warn!(
                ?layout,
                "processes of what looks like a pod are in cgroups where no kubelet makes any: they count as processes of \
                 the machine, and have no selectors of pods"
            );
            layouts.insert(layout);
        }
    }
}

fn known(pods: &Pods, container: &Container) -> Result<Option<Vec<Selector>>, K8sError> {
    match pods.find(container)? {
        Found::Here(selectors) => Ok(Some(selectors)),
        Found::NotYet | Found::OwnerNotYet => Ok(None),
    }
}

/// What is known of the pods of this node at each moment. Cheap to clone.
#[derive(Clone)]
pub struct KnownPods {
    pods: Receiver<Arc<Pods>>,
    /// Whoever waits says so here.
    waiting: Waiting,
    teller: Teller,
    wait: Duration,
    clock: Arc<dyn Clock>,
}

impl KnownPods {
    /// The pod that is meant and has not ended, and what is true of everything in it, once that is known; `None`: it is not, within `wait`.
    pub async fn pod(&self, means: impl Fn(&Pod) -> bool) -> Option<(Presence, Selectors)> {
        let mut pods = self.pods.clone();
        let waiting = async {
            let mut waiter = None;
            loop {
                let known = Arc::clone(&pods.borrow_and_update());
                let now = self.clock.now();
                let is_meant = |pod: &&Arc<Pod>| means(pod) && !pod.life.is_over(now);
                let found = known.all().find(is_meant).and_then(|pod| Some((pod.uid.clone(), known.of_pod(pod)?)));
                if found.is_some() {
                    return found;
                }
                waiter.get_or_insert_with(|| self.waiting.one());
                if pods.changed().await.is_err() {
                    return None;
                }
            }
        };
        let (uid, selectors) = tokio::select! {
            biased;
            found = waiting => found,
            () = self.clock.sleep(self.wait) => None,
        }?;
        let selectors = Selectors::new(selectors.into_iter().take(MAX_SELECTORS)).ok()?;
        Some((self.presence(&uid, selectors.clone(), true), selectors))
    }

    /// The pod with this UID, as long as what was `found` of it is true; as a whole, or of a process in it.
    fn presence(&self, uid: &str, found: Selectors, is_whole: bool) -> Presence {
        Presence { uid: uid.into(), found, is_whole, pods: self.pods.clone(), clock: Arc::clone(&self.clock) }
    }

    async fn until_known(&self, container: &Container) -> Result<Vec<Selector>, K8sError> {
        let mut pods = self.pods.clone();
        let _waiter = self.waiting.one();
        let waiting = async {
            loop {
                let now = Arc::clone(&pods.borrow_and_update());
                if let Some(found) = known(&now, container)? {
                    return Ok::<_, K8sError>(Some(found));
                }
                if pods.changed().await.is_err() {
                    return Ok(None);
                }
            }
        };
        let found = tokio::select! {
            biased;
            found = waiting => found?,
            () = self.clock.sleep(self.wait) => None,
        };
        let lack = || {
            let pods = self.pods.borrow();
            match pods.find(container) {
                Ok(Found::OwnerNotYet) => Lack::Owner,
                _ if pods.is_told() => Lack::Pod,
                _ => Lack::Everything,
            }
        };
        found.ok_or_else(|| K8sError::Unknown { container: container.clone(), teller: self.teller, lack: lack() })
    }
}

#[cfg(test)]
mod test_api;
#[cfg(test)]
mod tests;
