//! Namespaces, nodes, owners, and pods that run: what controllers and kubelets would write.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU16, Ordering};

use ring::digest::{SHA256, digest};
use serde_json::{Value, json};

use super::{Cluster, path_of, uid};

/// A container of a pod.
#[derive(Clone, Debug)]
pub struct Container {
    /// Its ID at the runtime: 64 hex digits, no other container's.
    pub id: String,
    name: String,
    image: String,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Main,
    Init,
    Ephemeral,
}

impl Container {
    /// One of this name and image.
    pub fn new(name: &str, image: &str) -> Self {
        let mut random = [0; 32];
        ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut random).expect("chance");
        Self { id: hex(&random), name: name.into(), image: image.into(), kind: Kind::Main }
    }

    /// As one that runs before the others.
    #[must_use]
    pub fn init(mut self) -> Self {
        self.kind = Kind::Init;
        self
    }

    /// As one that is added to a pod that runs.
    #[must_use]
    pub fn ephemeral(mut self) -> Self {
        self.kind = Kind::Ephemeral;
        self
    }

    /// The digest of its image, as a runtime names it.
    pub fn image_id(&self) -> String {
        let repository = self.image.split_once(':').map_or(&*self.image, |(repository, _)| repository);
        format!("{repository}@sha256:{}", hex(digest(&SHA256, self.image.as_bytes()).as_ref()))
    }

    fn spec(&self) -> Value {
        json!({ "name": self.name, "image": self.image })
    }

    fn status(&self) -> Value {
        json!({
            "name": self.name,
            "image": self.image,
            "imageID": self.image_id(),
            "containerID": format!("containerd://{}", self.id),
            "ready": true,
            "started": true,
            "restartCount": 0,
            "state": { "running": { "startedAt": "2026-01-01T00:00:00Z" } },
        })
    }
}

/// A pod to be created: `Pod::new("shop", "web-1", "web").on("node-1").label("app", "web")`. Without a container it has
/// one, `main`.
#[derive(Clone, Debug)]
pub struct Pod {
    metadata: Value,
    account: String,
    node: Option<String>,
    containers: Vec<Container>,
}

impl Pod {
    /// One of this namespace, name and service account, which have to be there but for the name.
    pub fn new(namespace: &str, name: &str, account: &str) -> Self {
        let metadata = json!({ "namespace": namespace, "name": name, "labels": {} });
        Self { metadata, account: account.into(), node: None, containers: Vec::new() }
    }

    /// On this node.
    #[must_use]
    pub fn on(mut self, node: &str) -> Self {
        self.node = Some(node.into());
        self
    }

    /// With a label (too).
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.metadata["labels"][key] = value.into();
        self
    }

    /// Controlled by this object.
    #[must_use]
    pub fn owned_by(mut self, object: &Value) -> Self {
        self.metadata["ownerReferences"] = json!([owner(object)]);
        self
    }

    /// With this container (too).
    #[must_use]
    pub fn container(mut self, container: &Container) -> Self {
        self.containers.push(container.clone());
        self
    }

    /// As it is created, for [`Cluster::create_all`].
    pub fn object(&self) -> Value {
        let mut containers = self.of(Kind::Main, Container::spec);
        if containers.is_empty() {
            containers.push(json!({ "name": "main", "image": "example/main:1" }));
        }
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": self.metadata,
            "spec": {
                "serviceAccountName": self.account,
                "nodeName": self.node,
                "containers": containers,
                "initContainers": self.of(Kind::Init, Container::spec),
            },
        })
    }

    fn of(&self, kind: Kind, tell: impl Fn(&Container) -> Value) -> Vec<Value> {
        self.containers.iter().filter(|container| container.kind == kind).map(tell).collect()
    }
}

impl Cluster {
    /// Creates a namespace.
    #[track_caller]
    pub fn namespace(&self, name: &str, labels: &[(&str, &str)]) -> Value {
        self.create(&plain("Namespace", name, labels))
    }

    /// Creates a node.
    #[track_caller]
    pub fn node(&self, name: &str, labels: &[(&str, &str)]) -> Value {
        self.create(&plain("Node", name, labels))
    }

    /// Creates a Deployment, for the ReplicaSets that it owns.
    #[track_caller]
    pub fn deployment(&self, namespace: &str, name: &str) -> Value {
        self.create(&workload("Deployment", json!({ "namespace": namespace, "name": name })))
    }

    /// Creates a ReplicaSet, which may have an owner.
    #[track_caller]
    pub fn replica_set(&self, namespace: &str, name: &str, of: Option<&Value>) -> Value {
        let owners: Vec<Value> = of.map(owner).into_iter().collect();
        let metadata = json!({ "namespace": namespace, "name": name, "ownerReferences": owners });
        self.create(&workload("ReplicaSet", metadata))
    }

    /// Creates a pod of which no kubelet has said anything yet.
    #[track_caller]
    pub fn pod(&self, pod: &Pod) -> Value {
        self.create(&pod.object())
    }

    /// Creates a pod that runs.
    #[track_caller]
    pub fn run(&self, pod: &Pod) -> Value {
        let created = self.pod(pod);
        self.report(&created, pod)
    }

    /// Says of a pod that was created what a kubelet says when all of its containers run, and returns it as it is then.
    #[track_caller]
    pub fn report(&self, created: &Value, pod: &Pod) -> Value {
        let ephemeral = pod.of(Kind::Ephemeral, Container::spec);
        if !ephemeral.is_empty() {
            let path = format!("{}/ephemeralcontainers", path_of(created));
            self.change_at(&path, &json!({ "spec": { "ephemeralContainers": ephemeral } }));
        }
        let ip = next_address();
        let status = json!({
            "phase": "Running",
            "podIP": ip,
            "podIPs": [{ "ip": ip }],
            "containerStatuses": pod.of(Kind::Main, Container::status),
            "initContainerStatuses": pod.of(Kind::Init, Container::status),
            "ephemeralContainerStatuses": pod.of(Kind::Ephemeral, Container::status),
        });
        self.change_status(created, &status)
    }
}

/// An owner reference to a controller.
///
/// # Panics
/// When it was not created.
pub fn owner(object: &Value) -> Value {
    let Value::String(name) = &object["metadata"]["name"] else { panic!("no name: {object}") };
    json!({
        "apiVersion": object["apiVersion"], "kind": object["kind"], "name": name, "uid": uid(object), "controller": true,
    })
}

fn plain(kind: &str, name: &str, labels: &[(&str, &str)]) -> Value {
    let labels: BTreeMap<_, _> = labels.iter().copied().collect();
    json!({ "apiVersion": "v1", "kind": kind, "metadata": { "name": name, "labels": labels } })
}

fn workload(kind: &str, metadata: Value) -> Value {
    let labels = json!({ "app": metadata["name"] });
    let spec = json!({ "containers": [{ "name": "main", "image": "example/main:1" }] });
    json!({
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": metadata,
        "spec": {
            "selector": { "matchLabels": labels },
            "template": { "metadata": { "labels": labels }, "spec": spec },
        },
    })
}

/// An address that no other pod of this process has.
fn next_address() -> String {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let [high, low] = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    format!("10.244.{high}.{low}")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
