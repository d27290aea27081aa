//! `[kubernetes.<cluster>]`, how the API server of a cluster is reached, and `[attest.k8s_psat.<cluster>]`, which of its
//! service accounts node agents may attest with.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::ConfigError;
use super::document::{in_range, lifetime_in_range};
use super::publish::{self, Publish};

/// The most clusters of one server.
const MAX_CLUSTERS: usize = 64;
/// The most service accounts, and labels of each kind, that one cluster names.
const MAX_NAMES: usize = 64;

/// The clusters by their names.
pub type Clusters = BTreeMap<ClusterName, Cluster>;

/// `[kubernetes.<cluster>]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cluster {
    /// The kubeconfig that leads to the API server; `None`: this server is a pod of the cluster itself.
    pub kubeconfig: Option<PathBuf>,
    /// Which context of the kubeconfig; `None`: its current one.
    pub context: Option<String>,
    /// How long the API server may take for one answer.
    #[serde(with = "spiffe::settings::duration")]
    pub request_timeout: Duration,
    /// How long one watch lasts before it is opened anew: a silent API server is noticed at its end.
    #[serde(with = "spiffe::settings::duration")]
    pub watch_timeout: Duration,
    /// The most pods that it may tell of; of nodes and of namespaces too. With more, what was known before stays as it was.
    pub max_pods: usize,
    /// Where our bundle is written; `None`: nowhere.
    pub publish: Option<Publish>,
}

impl Default for Cluster {
    /// Five seconds: an attestation asks three times, and has 30 seconds. A minute: what an API server that hangs would
    /// have said is missed no longer, and one that is well is asked no more often. Pods: more than Kubernetes itself is
    /// tested with in one cluster (150,000).
    fn default() -> Self {
        Self {
            kubeconfig: None,
            context: None,
            request_timeout: Duration::from_secs(5),
            watch_timeout: Duration::from_secs(60),
            max_pods: 200_000,
            publish: None,
        }
    }
}

/// `[attest.k8s_psat.<cluster>]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct K8sPsat {
    /// Whom the tokens of agents are for.
    #[serde(default)]
    pub audience: TokenAudience,
    /// The service accounts that node agents run as.
    pub service_accounts: Vec<AccountName>,
    /// Labels of the agent's pod that become selectors.
    #[serde(default)]
    pub pod_labels: Vec<LabelKey>,
    /// Labels of its node that become selectors.
    #[serde(default)]
    pub node_labels: Vec<LabelKey>,
}

/// The name of a cluster: a segment of the IDs of its agents.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct ClusterName(String);

impl ClusterName {
    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for ClusterName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let is_dots = text.bytes().all(|byte| byte == b'.');
        if is_dots || text.len() > 63 || !text.bytes().all(is_name_byte) {
            return Err(format!("{text:?} is no cluster name: use 1 to 63 of a-z, 0-9, dot and dash, not dots alone"));
        }
        Ok(Self(text))
    }
}

/// Whom a token is for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct TokenAudience(String);

impl TokenAudience {
    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for TokenAudience {
    /// A word of our own: a token for it is good for nothing else.
    fn default() -> Self {
        Self("chancery".into())
    }
}

impl TryFrom<String> for TokenAudience {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.is_empty() || text.len() > 253 || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!("{text:?} is no audience: use 1 to 253 printable characters without a space"));
        }
        Ok(Self(text))
    }
}

/// A service account: its namespace and its name, written `namespace:name`, or as Istio does `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct AccountName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl AccountName {
    /// Whether it is the account `name` of `namespace`.
    pub fn is(&self, namespace: &str, name: &str) -> bool {
        self.namespace == namespace && self.name == name
    }
}

impl TryFrom<String> for AccountName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let parts =
            text.split_once([':', '/']).filter(|(namespace, name)| is_object_name(namespace) && is_object_name(name));
        let (namespace, name) = parts.ok_or_else(|| {
            format!(
                "{text:?} is no service account: write it as namespace:name or namespace/name, for example chancery:chancery-agent"
            )
        })?;
        Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

/// The key of a label.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct LabelKey(String);

impl LabelKey {
    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for LabelKey {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let is_key_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let (prefix, name) = text.split_once('/').map_or((None, text.as_str()), |(left, right)| (Some(left), right));
        let is_name = (1..=63).contains(&name.len()) && name.bytes().all(is_key_byte);
        if !is_name || !prefix.is_none_or(is_object_name) {
            return Err(format!(
                "{text:?} is no key of a label: write it as Kubernetes does, for example app or a.org/b"
            ));
        }
        Ok(Self(text))
    }
}

/// Whether `text` has the form of a name of a namespace, pod, node or service account: it can stand in a path as it is.
pub fn is_object_name(text: &str) -> bool {
    let ends_well = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    text.len() <= 253
        && text.bytes().all(is_name_byte)
        && ends_well(text.bytes().next())
        && ends_well(text.bytes().next_back())
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.'
}

/// Holds both tables to their limits, and to each other.
pub(super) fn check(clusters: &Clusters, psat: &BTreeMap<ClusterName, K8sPsat>) -> Result<(), ConfigError> {
    let second = Duration::from_secs(1);
    in_range("kubernetes (how many clusters)", clusters.len(), 0, MAX_CLUSTERS)?;
    for (name, cluster) in clusters {
        lifetime_in_range("kubernetes.<cluster>.request_timeout", cluster.request_timeout, second, 10 * second)?;
        lifetime_in_range("kubernetes.<cluster>.watch_timeout", cluster.watch_timeout, 5 * second, 600 * second)?;
        in_range("kubernetes.<cluster>.max_pods", cluster.max_pods, 16, 10_000_000)?;
        if cluster.context.is_some() && cluster.kubeconfig.is_none() {
            return Err(ConfigError::ContextWithoutKubeconfig(name.clone()));
        }
        cluster.publish.iter().try_for_each(|publish| publish::check(name, publish))?;
    }
    for (name, psat) in psat {
        if !clusters.contains_key(name) {
            return Err(ConfigError::UnknownCluster(name.clone()));
        }
        if psat.service_accounts.is_empty() {
            return Err(ConfigError::NoAgentAccounts(name.clone()));
        }
        in_range("attest.k8s_psat.<cluster>.service_accounts (how many)", psat.service_accounts.len(), 1, MAX_NAMES)?;
        in_range("attest.k8s_psat.<cluster>.pod_labels (how many)", psat.pod_labels.len(), 0, MAX_NAMES)?;
        in_range("attest.k8s_psat.<cluster>.node_labels (how many)", psat.node_labels.len(), 0, MAX_NAMES)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, ConfigError};

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(&format!("trust_domain = 'example.org'\n{text}"), [])
    }

    fn error(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn clusters_and_the_accounts_of_their_agents() {
        let config = parse(
            "[kubernetes.eu-1]\n[kubernetes.'us.2']\nkubeconfig = '/etc/us'\ncontext = 'us'\nrequest_timeout = '3s'\n\
             [attest.k8s_psat.eu-1]\nservice_accounts = ['chancery:agent', 'kube-system/agent']\nnode_labels = ['topology.kubernetes.io/zone']",
        )
        .unwrap();
        let names: Vec<_> = config.kubernetes.iter().map(|(name, cluster)| (name.as_str(), cluster)).collect();
        assert_eq!((names[0].0, names[1].0), ("eu-1", "us.2"));
        assert_eq!((names[0].1.kubeconfig.is_none(), names[1].1.context.as_deref()), (true, Some("us")));
        let psat = config.attest.k8s_psat.values().next().unwrap();
        assert_eq!((psat.audience.as_str(), &*psat.service_accounts[0].name), ("chancery", "agent"));
        assert_eq!((&*psat.service_accounts[1].namespace, &*psat.service_accounts[1].name), ("kube-system", "agent"));
        assert_eq!(psat.node_labels[0].as_str(), "topology.kubernetes.io/zone");
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert!(error("[kubernetes.EU]").contains("\"EU\" is no cluster name"));
        assert!(error("[kubernetes.'..']").contains("not dots alone"));
        assert!(error("[kubernetes.a]\ncontext = 'x'").contains("kubernetes.a.context"));
        assert!(error("[kubernetes.a]\nrequest_timeout = '1m'").contains("use \"1s\" to \"10s\""));
        assert!(error("[kubernetes.a]\nmax_pods = 0").contains("kubernetes.<cluster>.max_pods"));
        let psat = |rest: &str| error(&format!("[kubernetes.a]\n[attest.k8s_psat.a]\n{rest}"));
        assert!(psat("").contains("missing field `service_accounts`"));
        let empty = psat("service_accounts = []");
        assert!(empty.contains("k8s_psat.a.service_accounts is empty") && empty.contains("chancery-agent"), "{empty}");
        for bad in ["agent", "a:b:c", ":b", "a:", "A:b", "a:b/c", "a:-b"] {
            assert!(psat(&format!("service_accounts = ['{bad}']")).contains("write it as namespace:name"), "{bad}");
        }
        assert!(psat("service_accounts = ['a:b']\npod_labels = ['a/b/c']").contains("is no key of a label"));
        assert!(psat("service_accounts = ['a:b']\naudience = ''").contains("is no audience"));
        let unknown = error("[attest.k8s_psat.a]\nservice_accounts = ['a:b']");
        assert!(unknown.contains("add [kubernetes.a]"), "{unknown}");
    }
}
