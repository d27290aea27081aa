//! The tables `[attestors.*]`: who works out what a process is. Only those that are named work; none named: `unix`.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use spiffe::settings;

use super::Size;
use super::kubelet::{self, Kubelet, KubeletError};

/// The variable that names the node, as the downward API sets it.
pub const NODE_NAME: &str = "CHANCERY_NODE_NAME";
/// The longest name of an object in Kubernetes.
const MAX_NAME_BYTES: usize = 253;
/// Less than an attestor may take in all.
const MOST_WAIT: Duration = Duration::from_secs(10);

/// Why a table is refused.
#[derive(Debug, thiserror::Error)]
pub enum AttestorError {
    /// Nothing says which node this is.
    #[error(
        "[attestors.k8s] does not know the name of this node: set the variable {NODE_NAME} (from spec.nodeName, by the \
         downward API), or give node_name"
    )]
    NoNode,
    /// What says so is no name.
    #[error(
        "[attestors.k8s] node_name {0:?} is no name of a node: it has a-z, 0-9, dashes and dots, and at most 253 bytes"
    )]
    Node(String),
    /// Too long, or nothing.
    #[error("[attestors.k8s] wait is {}: use \"1s\" to \"10s\"", settings::write_duration(*.0))]
    Wait(Duration),
    /// Which context, of what?
    #[error("[attestors.k8s] has context and no kubeconfig: a context is a part of one")]
    ContextAlone,
    /// The kubelet cannot be asked like that.
    #[error(transparent)]
    Kubelet(#[from] KubeletError),
}

/// The attestors that work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attestors {
    /// Users, groups, path and hash of the executable.
    pub unix: Option<UnixAttestor>,
    /// The systemd unit and slice.
    pub systemd: Option<SystemdAttestor>,
    /// The pod and the container.
    pub k8s: Option<K8sAttestor>,
}

/// The `unix` attestor.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UnixAttestor {
    /// Larger executables are not hashed; `"0B"`: none is.
    pub sha256_limit: Size,
}

impl Default for UnixAttestor {
    fn default() -> Self {
        // Hashing this much takes about half a second, once for each version of the file.
        Self { sha256_limit: Size(256 << 20) }
    }
}

/// The `systemd` attestor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SystemdAttestor {}

/// The `k8s` attestor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct K8sAttestor {
    /// Only pods of this node are asked for.
    pub node_name: String,
    /// Where.
    pub cluster: Cluster,
    /// Who is asked for them instead; the API server is then asked for owners alone.
    pub kubelet: Option<Kubelet>,
    /// How long a process waits for its container to be known.
    pub wait: Duration,
}

/// How the API server of the cluster is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// The kubeconfig that leads there; `None`: the agent is a pod of the cluster.
    pub kubeconfig: Option<PathBuf>,
    /// Which context of it; `None`: its current one.
    pub context: Option<String>,
}

/// The tables as they are written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tables {
    unix: Option<UnixAttestor>,
    systemd: Option<SystemdAttestor>,
    k8s: Option<K8sTable>,
}

impl Default for Tables {
    fn default() -> Self {
        Self { unix: Some(UnixAttestor::default()), systemd: None, k8s: None }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct K8sTable {
    node_name: Option<String>,
    kubeconfig: Option<PathBuf>,
    context: Option<String>,
    #[serde(default = "default_wait", with = "settings::duration")]
    wait: Duration,
    kubelet: Option<kubelet::Table>,
}

/// What the environment says of this node.
#[derive(Default)]
pub(super) struct Surroundings {
    name: Option<String>,
    ip: Option<String>,
}

impl Surroundings {
    /// Remembers a variable, if it is of that.
    pub(super) fn note(&mut self, variable: &str, value: &str) {
        match variable {
            NODE_NAME => self.name = Some(value.to_owned()),
            kubelet::NODE_IP => self.ip = Some(value.to_owned()),
            _ => {}
        }
    }
}

/// A kubelet tells the API server of a container about a second after it has started it; and the workload is told to come
/// again.
fn default_wait() -> Duration {
    Duration::from_secs(5)
}

impl Tables {
    /// Reads them, with what the environment says.
    pub(super) fn parse(self, around: &Surroundings) -> Result<Attestors, AttestorError> {
        let k8s = self.k8s.map(|table| table.parse(around)).transpose()?;
        Ok(Attestors { unix: self.unix, systemd: self.systemd, k8s })
    }
}

impl K8sTable {
    fn parse(self, around: &Surroundings) -> Result<K8sAttestor, AttestorError> {
        let Self { node_name, kubeconfig, context, wait, kubelet } = self;
        let node_name = node_name.or_else(|| around.name.clone()).filter(|name| !name.is_empty());
        let node_name = node_name.ok_or(AttestorError::NoNode)?;
        let is_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
        if node_name.len() > MAX_NAME_BYTES || !node_name.bytes().all(is_name) {
            return Err(AttestorError::Node(node_name.chars().take(MAX_NAME_BYTES).collect()));
        }
        if wait < Duration::from_secs(1) || wait > MOST_WAIT {
            return Err(AttestorError::Wait(wait));
        }
        if context.is_some() && kubeconfig.is_none() {
            return Err(AttestorError::ContextAlone);
        }
        let kubelet = kubelet.map(|table| table.parse(around.ip.as_deref())).transpose()?;
        Ok(K8sAttestor { node_name, cluster: Cluster { kubeconfig, context }, kubelet, wait })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, node_name: Option<&str>) -> Result<Attestors, String> {
        let tables: Tables = toml::from_str(text).map_err(|error| error.to_string())?;
        let mut around = Surroundings::default();
        around.note(kubelet::NODE_IP, "192.0.2.7");
        if let Some(name) = node_name {
            around.note(NODE_NAME, name);
        }
        tables.parse(&around).map_err(|error| error.to_string())
    }

    #[test]
    fn only_what_is_named_works() {
        let none = Tables::default().parse(&Surroundings::default()).unwrap();
        assert!(none.unix.is_some() && none.systemd.is_none() && none.k8s.is_none());
        let systemd = parse("[systemd]", None).unwrap();
        assert!(systemd.unix.is_none() && systemd.systemd.is_some());
    }

    #[test]
    fn a_node_is_named_by_its_config_or_by_its_environment() {
        let k8s = |text: &str, variable| parse(&format!("[k8s]\n{text}"), variable).map(|found| found.k8s.unwrap());
        let found = k8s("", Some("node-a")).unwrap();
        assert_eq!((found.node_name.as_str(), found.wait), ("node-a", Duration::from_secs(5)));
        assert_eq!(found.cluster, Cluster::default());
        let found = k8s("node_name = 'b.example'\nkubeconfig = '/k'\ncontext = 'c'\nwait = '2s'", Some("a")).unwrap();
        assert_eq!((found.node_name.as_str(), found.wait), ("b.example", Duration::from_secs(2)));
        assert_eq!((found.cluster.context.as_deref(), found.kubelet), (Some("c"), None));
        let kubelet = k8s("[k8s.kubelet]", Some("a")).unwrap().kubelet.unwrap();
        assert_eq!(kubelet.address, "https://192.0.2.7:10250");
        for (text, variable, words) in [
            ("", None, "set the variable CHANCERY_NODE_NAME"),
            ("", Some(""), "set the variable CHANCERY_NODE_NAME"),
            ("", Some("a,metadata.name!=b"), "is no name of a node"),
            ("wait = '11s'", Some("a"), "use \"1s\" to \"10s\""),
            ("wait = '0s'", Some("a"), "use \"1s\""),
            ("context = 'c'", Some("a"), "no kubeconfig"),
            ("kubelets = true", Some("a"), "unknown field `kubelets`"),
            ("kubelet = { every = '0s' }", Some("a"), "every is 0s"),
        ] {
            let error = k8s(text, variable).unwrap_err();
            assert!(error.contains(words), "{error}\n(wanted: {words})");
        }
    }
}
