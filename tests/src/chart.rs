//! The Helm chart, rendered by Helm's own library (`tests/interop/python/chart.py`), and what is in it.

use std::path::PathBuf;

use serde_json::Value;

use crate::binary::{Command, Output, interop, place};

/// Every part of the chart switched on.
const EVERYTHING: &str = "\
trustDomain: prod.example.org
clusterName: eu-1.prod
image: { repository: registry.example.org/chancery, tag: v1, digest: 'sha256:0000000000000000000000000000000000000000000000000000000000000000', pullSecrets: [{ name: a }] }
server:
  listen: '[::]'
  dnsNames: [ca.example.org]
  joinTokens: true
  extraToml: |
    [federation]
    timeout = \"10s\"
  env: { CHANCERY_SERVER__SVID__TTL: 30m }
  extraVolumes: [{ name: more, emptyDir: {} }]
  extraVolumeMounts: [{ name: more, mountPath: /more }]
  persistence: { storageClassName: fast, size: 10Gi }
  metrics: { enabled: true }
  priorityClassName: high
  nodeSelector: { a: b }
  tolerations: [{ operator: Exists }]
  affinity: { nodeAffinity: {} }
  podAnnotations: { a: b }
agent:
  socketDir: /run/spiffe
  unixAttestor: true
  kubelet: { enabled: true, right: nodes/proxy, extraToml: 'every = \"2s\"' }
  extraToml: |
    [limits]
    streams = 100
  env: { CHANCERY_AGENT__PREFETCH: '50' }
  seLinuxOptions: { type: spc_t }
  priorityClassName: system-node-critical
  podAnnotations: { a: b }
publish: { namespaces: all, istio: true, clusterTrustBundle: prod.example.org }
istio: { enabled: true, service: { enabled: true } }
networkPolicy:
  apiServer: [{ ipBlock: { cidr: 192.0.2.0/24 } }]
  nodes: [{ ipBlock: { cidr: 192.0.2.0/24 } }]
  serverFrom: [{ ipBlock: { cidr: 198.51.100.0/24 } }]
  serverEgress: [{ to: [{ ipBlock: { cidr: 0.0.0.0/0 } }], ports: [{ port: 443 }] }]
";

/// What Helm makes of one set of values.
#[derive(Clone, Debug)]
pub struct Chart {
    name: &'static str,
    text: String,
    documents: Vec<Value>,
}

impl Chart {
    /// With the defaults, with each sample, and with everything.
    ///
    /// # Panics
    /// When Helm refuses one of them.
    pub fn all() -> Vec<Self> {
        let sample = |name| (name, std::fs::read_to_string(deploy(name)).expect("a sample"));
        let sets = [
            ("defaults", String::new()),
            sample("istio/chancery-sidecar.yaml"),
            sample("istio/chancery-ambient.yaml"),
            ("everything", EVERYTHING.to_owned()),
        ];
        sets.into_iter().map(|(name, values)| Self::new(name, &values)).collect()
    }

    fn new(name: &'static str, values: &str) -> Self {
        let text = Self::try_with(values).succeeded().stdout;
        let documents = documents(&text);
        Self { name, text, documents }
    }

    /// What Helm says to these values.
    ///
    /// # Panics
    /// When there is no Helm.
    pub fn try_with(values: &str) -> Output {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), values).expect("it can be written");
        Self::run(&["render", &file.path().display().to_string()], "")
    }

    /// Runs the script with these words.
    ///
    /// # Panics
    /// When there is no Helm.
    pub fn run(words: &[&str], stdin: &str) -> Output {
        let script = interop("python/chart.py").display().to_string();
        Command::new(place("CHANCERY_HELM").join("python")).args([script]).args(words).stdin(stdin).run()
    }

    /// Which values it is of.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The manifests as they are.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The objects.
    pub fn documents(&self) -> &[Value] {
        &self.documents
    }

    /// One of them.
    ///
    /// # Panics
    /// When it is not there.
    pub fn object(&self, kind: &str, name: &str) -> &Value {
        find(&self.documents, kind, name).unwrap_or_else(|| panic!("{}: no {kind} {name}", self.name))
    }
}

/// A file of `deploy`.
pub fn deploy(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(name)
}

/// The objects in YAML.
///
/// # Panics
/// When it is none.
pub fn documents(text: &str) -> Vec<Value> {
    serde_json::from_str(&Chart::run(&["documents"], text).succeeded().stdout).expect("JSON")
}

/// The object of this kind and name.
pub fn find<'a>(documents: &'a [Value], kind: &str, name: &str) -> Option<&'a Value> {
    documents.iter().find(|one| one["kind"] == kind && one["metadata"]["name"] == name)
}

/// Each container, with the object that makes its pods and the spec of the pod.
pub fn containers(documents: &[Value]) -> Vec<(&Value, &Value, &Value)> {
    let mut found = Vec::new();
    for of in documents {
        let pod = &of["spec"]["template"]["spec"];
        let all = ["initContainers", "containers"].map(|kind| pod[kind].as_array().into_iter().flatten());
        found.extend(all.into_iter().flatten().map(|container| (of, pod, container)));
    }
    found
}

/// The configs of server and agent, by their own parsers, with the variables that their pods have.
///
/// # Panics
/// When one of them is refused.
pub fn configs(documents: &[Value]) -> (ca_server::config::Config, node_agent::config::Config) {
    let text = |name: &str, file: &str| {
        let map = find(documents, "ConfigMap", name).unwrap_or_else(|| panic!("no ConfigMap {name}"));
        map["data"][file].as_str().unwrap_or_else(|| panic!("no {file}")).to_owned()
    };
    let (server, agent) = (text("chancery-server", "server.toml"), text("chancery-agent", "agent.toml"));
    let server = ca_server::config::Config::parse(&server, variables(documents, "StatefulSet"));
    let agent = node_agent::config::Config::parse(&agent, variables(documents, "DaemonSet"));
    (
        server.unwrap_or_else(|error| panic!("server.toml: {error}")),
        agent.unwrap_or_else(|error| panic!("agent.toml: {error}")),
    )
}

/// The environment of the one container of the `kind`; what the cluster fills in is `node-1`, at 192.0.2.7.
fn variables(documents: &[Value], kind: &str) -> Vec<(String, String)> {
    let found = containers(documents).into_iter().find(|(of, ..)| of["kind"] == kind).expect("a container");
    let variables = found.2["env"].as_array().into_iter().flatten();
    let value = |one: &Value| match (&one["value"], &one["valueFrom"]["fieldRef"]["fieldPath"]) {
        (Value::String(value), _) => value.clone(),
        (_, path) if path == "status.hostIP" => "192.0.2.7".into(),
        _ => "node-1".into(),
    };
    variables.map(|one| (one["name"].as_str().expect("a name").to_owned(), value(one))).collect()
}
