//! k8s_psat: a node's agent shows the projected service-account token of its own pod.
//!
//! - Evidence: JSON `{"cluster": "<name>", "token": "<JWT>"}`, 16 KiB at most.
//! - The cluster's API server says whose the token is (a TokenReview, for our audience, asked each time), which pod it is
//!   bound to, and what pod and node are now: the pod is the one of the token by its UID, runs as the token's service
//!   account, has not ended, and its node is the one of the token by its UID where the token says one.
//! - The service account is on the list of the config: what may be an agent is decided by who may use it.
//! - The node's own UID names the agent: a node that is made anew under the same name is another agent.
//! - A token is no proof of a key: whoever has the token of an agent can attest as it. It leaves the node for this server
//!   alone, in TLS, and is bound to a pod of an account that may be an agent on that node.
//! - An API server that does not answer costs a stranger's place its `request_timeout`, and [`AT_ONCE`] places at most:
//!   the other kinds of attestation have theirs.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use spiffe::id::SpiffeId;
use spiffe::jose::parse_object;
use spiffe::selector::{Selector, SelectorError, Selectors};
use spiffe::time::Timestamp;
use tokio::sync::Semaphore;
use tracing::warn;

use super::{Attempt, AttestError, Attested, NodeAttestor, Step};
use crate::config::kubernetes::K8sPsat;
use crate::kube::client::{ApiError, Cluster};
use crate::kube::lookup;
use crate::kube::object::{Named, Pod};
use crate::kube::review::{ApiReviewer, Bound, ReviewError, ServiceAccount, TokenReviewer};

/// The name of this kind.
pub const KIND: &str = "k8s_psat";
/// The largest evidence, in bytes.
pub const MAX_EVIDENCE_BYTES: usize = 16 << 10;
/// How many attestations may ask one API server at once: a quarter of all that may be open.
pub const AT_ONCE: usize = 32;

/// Why a service-account token does not make a node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum K8sPsatError {
    /// Evidence beyond [`MAX_EVIDENCE_BYTES`].
    #[error("k8s_psat evidence has {0} bytes: at most {MAX_EVIDENCE_BYTES} are allowed")]
    EvidenceTooLarge(usize),
    /// Evidence in another form.
    #[error("k8s_psat evidence cannot be read ({0}): send JSON {{\"cluster\": \"<name>\", \"token\": \"<JWT>\"}}")]
    Evidence(String),
    /// No such cluster.
    #[error(
        "cluster {0:?} is not one whose agents are taken here: name it as attest.k8s_psat of the server's config does"
    )]
    UnknownCluster(String),
    /// The API server is asked too much at once.
    #[error("too many agents of cluster {0} attest at once")]
    Busy(String),
    /// The API server could not be asked. Why is the operator's affair, and in the server's log.
    #[error("the API server of cluster {0} could not be asked: try again, the log of the server says why")]
    Unavailable(String),
    /// The API server does not vouch for the token.
    #[error(
        "cluster {cluster} refuses the service-account token ({reason}): mount a projected token for audience \
         {audience:?}, of this cluster"
    )]
    Token {
        /// The cluster.
        cluster: String,
        /// What it says.
        reason: String,
        /// The audience that is asked for.
        audience: String,
    },
    /// Not an account that agents run as.
    #[error(
        "service account {namespace}:{name} is not on the list of those that agents run as: run the agent as another, \
         or add it to attest.k8s_psat.{cluster}.service_accounts"
    )]
    Account {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The cluster.
        cluster: String,
    },
    /// A token that was asked for by itself.
    #[error(
        "the service-account token is bound to no pod: mount a projected one (serviceAccountToken) into the agent's pod"
    )]
    NoPod,
    /// The pod of the token is not there, or is another one.
    #[error("pod {0} of the service-account token is gone: attest with the token of a pod that runs")]
    PodGone(String),
    /// It is there, and has ended.
    #[error("pod {0} of the service-account token has ended: attest with the token of a pod that runs")]
    PodEnded(String),
    /// It runs as somebody else than its token says.
    #[error("pod {0} does not run as the service account of the token")]
    PodAccount(String),
    /// It is on no node.
    #[error("pod {0} is bound to no node yet: try again")]
    Unbound(String),
    /// The node is not there, or is another one than when the token was made.
    #[error("node {0} of the service-account token is gone, or was made anew: start the agent's pod anew")]
    NodeGone(String),
    /// More selectors than can be.
    #[error("the node has too much to select by: {0}")]
    Selectors(#[from] SelectorError),
}

/// Takes projected service-account tokens.
#[derive(Debug)]
pub struct K8sPsatAttestor(BTreeMap<String, Known>);

#[derive(Debug)]
struct Known {
    cluster: Arc<Cluster>,
    reviewer: ApiReviewer,
    config: K8sPsat,
    places: Semaphore,
}

impl K8sPsatAttestor {
    /// Takes tokens of these clusters, each as its config says.
    pub fn new(clusters: impl IntoIterator<Item = (Arc<Cluster>, K8sPsat)>) -> Self {
        let known = clusters.into_iter().map(|(cluster, config)| {
            let reviewer = ApiReviewer::new(Arc::clone(&cluster));
            (cluster.name().to_string(), Known { cluster, reviewer, config, places: Semaphore::new(AT_ONCE) })
        });
        Self(known.collect())
    }

    async fn check(&self, evidence: &[u8], now: Timestamp) -> Result<Attested, K8sPsatError> {
        let Evidence { cluster, token } = parse_evidence(evidence)?;
        let Some(known) = self.0.get(&cluster) else {
            return Err(K8sPsatError::UnknownCluster(cluster.chars().take(64).collect()));
        };
        known.check(&token, now).await
    }
}

#[async_trait]
impl NodeAttestor for K8sPsatAttestor {
    fn kind(&self) -> &'static str {
        KIND
    }

    async fn start(&self, attempt: Attempt<'_>) -> Result<Step, AttestError> {
        Ok(Step::Done(self.check(attempt.evidence, attempt.now).await?))
    }
}

impl Known {
    async fn check(&self, token: &str, now: Timestamp) -> Result<Attested, K8sPsatError> {
        let name = self.cluster.name();
        let _turn = self.places.try_acquire().map_err(|_| K8sPsatError::Busy(name.to_string()))?;
        let audience = self.config.audience.as_str();
        let account = self.reviewer.review(token, audience).await.map_err(|error| match error {
            ReviewError::Refused(reason) => {
                K8sPsatError::Token { cluster: name.to_string(), reason, audience: audience.to_owned() }
            }
            ReviewError::Unavailable { reason, .. } => self.unavailable(&reason),
        })?;
        let bound = self.admit(&account)?;
        let not_asked = |error: ApiError| self.unavailable(&error.to_string());
        let pod = lookup::pod(&self.cluster, &account.namespace, &bound.name).await.map_err(not_asked)?;
        let pod = judge_pod(&account, bound, pod, now)?;
        let node = lookup::node(&self.cluster, &pod.spec.node_name).await.map_err(not_asked)?;
        let node = judge_node(&account, &pod, node)?;
        let selectors = selectors(name, &self.config, &pod, &node)?;
        let node = node_path(name, &node.metadata.uid);
        Ok(Attested { node, selectors, token: None, alias: None, may_reattest: true })
    }

    /// The pod that the token of an account that may be an agent is bound to.
    fn admit<'a>(&self, account: &'a ServiceAccount) -> Result<&'a Bound, K8sPsatError> {
        let ServiceAccount { namespace, name, .. } = account;
        let mut listed = self.config.service_accounts.iter();
        if !listed.any(|one| one.is(namespace, name)) {
            let (namespace, name, cluster) = (namespace.clone(), name.clone(), self.cluster.name().to_string());
            return Err(K8sPsatError::Account { namespace, name, cluster });
        }
        account.pod.as_ref().ok_or(K8sPsatError::NoPod)
    }

    fn unavailable(&self, reason: &str) -> K8sPsatError {
        warn!(cluster = %self.cluster.name(), reason, "an agent could not be attested");
        K8sPsatError::Unavailable(self.cluster.name().to_string())
    }
}

/// The agent's path behind `/chancery/agent/k8s_psat/`: of the node's UID, not of its name.
pub fn node_path(cluster: &str, node_uid: &str) -> String {
    format!("{cluster}/{node_uid}")
}

/// The cluster of an agent of this kind.
pub fn cluster_of(agent: &SpiffeId) -> Option<&str> {
    let (cluster, _) = agent.agent_path()?.strip_prefix(KIND)?.strip_prefix('/')?.split_once('/')?;
    Some(cluster)
}

/// Evidence within its limits; nobody has looked at the token yet.
pub struct Evidence {
    cluster: String,
    token: String,
}

impl fmt::Debug for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Evidence").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

/// Parses evidence. Meets bytes from strangers.
pub fn parse_evidence(bytes: &[u8]) -> Result<Evidence, K8sPsatError> {
    if bytes.len() > MAX_EVIDENCE_BYTES {
        return Err(K8sPsatError::EvidenceTooLarge(bytes.len()));
    }
    let mut members = parse_object(bytes).map_err(|error| K8sPsatError::Evidence(error.to_string()))?;
    let mut text = |name: &str| match members.remove(name) {
        Some(serde_json::Value::String(text)) => Ok(text),
        _ => Err(K8sPsatError::Evidence(format!("{name:?} is missing, or no text"))),
    };
    let (cluster, token) = (text("cluster")?, text("token")?);
    if !members.is_empty() {
        return Err(K8sPsatError::Evidence("it has other members too".into()));
    }
    Ok(Evidence { cluster, token: token.trim().to_owned() })
}

/// The pod that was found under the name of the one that the token is bound to: the same one, and running.
fn judge_pod(account: &ServiceAccount, bound: &Bound, found: Option<Pod>, now: Timestamp) -> Result<Pod, K8sPsatError> {
    let name = || format!("{}/{}", account.namespace, bound.name);
    let pod = found.filter(|pod| pod.metadata.uid == bound.uid).ok_or_else(|| K8sPsatError::PodGone(name()))?;
    if pod.spec.service_account_name != account.name {
        return Err(K8sPsatError::PodAccount(name()));
    }
    if pod.life().is_over(now) {
        return Err(K8sPsatError::PodEnded(name()));
    }
    if pod.spec.node_name.is_empty() {
        return Err(K8sPsatError::Unbound(name()));
    }
    Ok(pod)
}

/// The node that was found under the name of the one that the pod is on: the one of the token, where that says one.
fn judge_node(account: &ServiceAccount, pod: &Pod, found: Option<Named>) -> Result<Named, K8sPsatError> {
    let gone = || K8sPsatError::NodeGone(pod.spec.node_name.clone());
    let node = found.filter(|node| !node.metadata.uid.is_empty()).ok_or_else(gone)?;
    match &account.node {
        Some(said) if said.uid != node.metadata.uid || said.name != pod.spec.node_name => Err(gone()),
        _ => Ok(node),
    }
}

fn selectors(cluster: &str, config: &K8sPsat, pod: &Pod, node: &Named) -> Result<Selectors, SelectorError> {
    let mut found = vec![
        format!("cluster:{cluster}"),
        format!("agent_ns:{}", pod.metadata.namespace),
        format!("agent_sa:{}", pod.spec.service_account_name),
        format!("agent_pod_name:{}", pod.metadata.name),
        format!("agent_pod_uid:{}", pod.metadata.uid),
        format!("agent_node_ip:{}", pod.status.host_ip),
        format!("agent_node_name:{}", pod.spec.node_name),
        format!("agent_node_uid:{}", node.metadata.uid),
    ];
    for (kind, allowed, labels) in [
        ("agent_pod_label", &config.pod_labels, &pod.metadata.labels),
        ("agent_node_label", &config.node_labels, &node.metadata.labels),
    ] {
        for key in allowed {
            found.extend(labels.get(key.as_str()).map(|value| format!("{kind}:{}:{value}", key.as_str())));
        }
    }
    let selectors: Result<Vec<_>, _> = found
        .iter()
        .filter(|text| !text.ends_with("_ip:"))
        .map(|text| Selector::parse(&format!("{KIND}:{text}")))
        .collect();
    Selectors::new(selectors?)
}

#[cfg(test)]
mod tests;
