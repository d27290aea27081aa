//! A pod as an API server or a kubelet tells of it, as what can be true of a process in it. Pure.
//!
//! - Of an image counts what the container runtime says that it runs, not what the pod asks for: that can be changed while
//!   another one runs.
//! - A field that is missing makes fewer selectors, never others.
//! - However much stands in an object, only so much of it is read, and of that only so much is kept.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde::de::IgnoredAny;
use spiffe::selector::Selector;
use spiffe::time::Timestamp;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::KIND;
use super::cgroup::is_container_id;
use super::owners::Owner;
use crate::attestor::selector;

/// Labels of one pod that become selectors: a set has room for 256.
const MAX_LABELS: usize = 100;
const MAX_OWNERS: usize = 8;
const MAX_CONTAINERS: usize = 128;

/// `metadata` of any object, as far as it is read.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Meta {
    pub(super) name: Option<String>,
    pub(super) namespace: Option<String>,
    pub(super) uid: Option<String>,
    pub(super) resource_version: Option<String>,
    pub(super) labels: Option<BTreeMap<String, String>>,
    pub(super) owner_references: Option<Vec<OwnerReference>>,
    annotations: Option<Annotations>,
    deletion_timestamp: Option<String>,
}

/// What an object is owned by.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OwnerReference {
    pub(super) api_version: String,
    pub(super) kind: String,
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) controller: Option<bool>,
}

/// The first two are set on the API object of a static pod, to the UID that the kubelet calls it by; the third by the kubelet, to
/// where it has a pod from.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Annotations {
    #[serde(rename = "kubernetes.io/config.mirror")]
    mirror: Option<String>,
    #[serde(rename = "kubernetes.io/config.hash")]
    hash: Option<String>,
    #[serde(rename = "kubernetes.io/config.source")]
    source: Option<String>,
}

/// An object of which no more is needed than who it is.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Named {
    pub(super) metadata: Meta,
}

/// A pod on the wire, as far as it is read.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodObject {
    pub(super) metadata: Meta,
    spec: PodSpec,
    status: Option<PodStatus>,
}

impl PodObject {
    /// The name of its node.
    pub(super) fn node(&self) -> Option<&str> {
        self.spec.node_name.as_deref()
    }

    /// Whether the kubelet has it from a manifest of its own, and not from the API server.
    pub(super) fn is_static(&self) -> bool {
        let source = self.metadata.annotations.as_ref().and_then(|annotations| annotations.source.as_deref());
        matches!(source, Some("file" | "http"))
    }
}

impl From<PodObject> for Named {
    fn from(PodObject { metadata, .. }: PodObject) -> Self {
        Self { metadata }
    }
}

/// What a pod should be.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSpec {
    service_account_name: Option<String>,
    node_name: Option<String>,
    containers: Option<Vec<IgnoredAny>>,
}

/// What a pod is.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    phase: Option<String>,
    container_statuses: Option<Vec<ContainerStatus>>,
    init_container_statuses: Option<Vec<ContainerStatus>>,
    ephemeral_container_statuses: Option<Vec<ContainerStatus>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerStatus {
    name: String,
    #[serde(default)]
    image: String,
    #[serde(default, rename = "imageID")]
    image_id: String,
    #[serde(default, rename = "containerID")]
    container_id: String,
    #[serde(default)]
    state: Option<ContainerState>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ContainerState {
    running: Option<IgnoredAny>,
}

/// A pod of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// `metadata.uid`.
    pub uid: Arc<str>,
    /// The UID in the paths of its cgroups: another one for a static pod.
    pub cgroup_uid: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// What is true of everything in it.
    pub selectors: Vec<Selector>,
    /// What may itself be owned by something: further selectors come from there.
    pub owner: Option<Owner>,
    /// Those that run or have run.
    pub containers: Vec<Container>,
    /// How many more there are: too many.
    pub left_out: usize,
    /// Until when it counts as a whole. Whatever runs in it counts as long as it runs.
    pub life: Life,
}

/// Until when a pod counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Until further notice.
    Open,
    /// It was deleted, and its containers have until then to end.
    Until(Timestamp),
    /// All of its containers have ended for good.
    Ended,
}

impl Life {
    fn of(deletion: Option<&str>, phase: Option<&str>) -> Self {
        match (phase, deletion) {
            (Some("Succeeded" | "Failed"), _) => Self::Ended,
            (_, None) => Self::Open,
            // A moment that cannot be read has passed.
            (_, Some(text)) => moment(text).map_or(Self::Ended, Self::Until),
        }
    }

    /// Whether it is over at `now`.
    pub fn is_over(self, now: Timestamp) -> bool {
        match self {
            Self::Open => false,
            Self::Until(end) => now >= end,
            Self::Ended => true,
        }
    }
}

/// A moment as Kubernetes writes one.
fn moment(text: &str) -> Option<Timestamp> {
    let seconds = OffsetDateTime::parse(text, &Rfc3339).ok()?.unix_timestamp();
    Some(Timestamp::default().plus(Duration::from_secs(u64::try_from(seconds).ok()?)))
}

/// A container of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its ID: 64 hexadecimal digits.
    pub id: Arc<str>,
    /// What is true of everything in it, beside what is true of its pod.
    pub selectors: Vec<Selector>,
}

impl Pod {
    /// `None`: `object` has no UID, no name or no namespace, or is of another node than `node`.
    pub fn of(object: PodObject, node: &str) -> Option<Self> {
        let PodObject { metadata, spec, status } = object;
        let named = |text: &Option<String>| text.as_deref().filter(|text| !text.is_empty()).map(Arc::<str>::from);
        let (uid, name, namespace) = (named(&metadata.uid)?, named(&metadata.name)?, named(&metadata.namespace)?);
        if spec.node_name.as_deref() != Some(node) {
            return None;
        }
        let owner = Owner::to_walk(&metadata);
        let cgroup_uid = static_uid(&metadata).map_or_else(|| Arc::clone(&uid), Arc::from);
        let status = status.unwrap_or_default();
        let life = Life::of(metadata.deletion_timestamp.as_deref(), status.phase.as_deref());
        let containers = [
            (None, status.container_statuses),
            (Some("init-container"), status.init_container_statuses),
            (Some("ephemeral-container"), status.ephemeral_container_statuses),
        ];
        let containers = containers.into_iter().flat_map(|(kind, statuses)| {
            statuses.into_iter().flatten().filter_map(move |status| {
                let runs = status.state.as_ref().is_some_and(|state| state.running.is_some());
                Some((runs, Container::of(&status, kind)?))
            })
        });
        let mut containers: Vec<_> = containers.collect();
        // The ephemeral ones of a pod are never taken away: of those that have ended there may be any number.
        containers.sort_by_key(|(runs, _)| Reverse(*runs));
        let left_out = containers.len().saturating_sub(MAX_CONTAINERS);
        let containers = containers.into_iter().take(MAX_CONTAINERS).map(|(_, container)| container).collect();
        let mut selectors = vec![selector(KIND, "ns", &namespace)];
        selectors.push(spec.service_account_name.and_then(|account| selector(KIND, "sa", account)));
        selectors.push(selector(KIND, "pod-name", &name));
        selectors.push(selector(KIND, "pod-uid", &uid));
        selectors.push(selector(KIND, "node-name", node));
        selectors.push(spec.containers.and_then(|containers| selector(KIND, "pod-image-count", containers.len())));
        for owner in metadata.owner_references.iter().flatten().take(MAX_OWNERS) {
            selectors.extend(of_owner(&owner.kind, &owner.name, &owner.uid).map(Some));
        }
        for (key, value) in metadata.labels.into_iter().flatten().take(MAX_LABELS) {
            selectors.push(selector(KIND, "pod-label", format_args!("{key}:{value}")));
        }
        let selectors = selectors.into_iter().flatten().collect();
        Some(Self { uid, cgroup_uid, namespace, name, selectors, owner, containers, left_out, life })
    }
}

/// What is true of everything that has this owner.
pub(super) fn of_owner(kind: &str, name: &str, uid: &str) -> impl Iterator<Item = Selector> + use<> {
    // A colon would let one owner pass for another.
    let legal = !kind.contains(':') && ![kind, name, uid].contains(&"");
    let by_name = selector(KIND, "owner", format_args!("{kind}:{name}"));
    let by_uid = selector(KIND, "owner-uid", format_args!("{kind}:{uid}"));
    [by_name, by_uid].into_iter().flatten().filter(move |_| legal)
}

/// The UID that the kubelet has for a static pod, of which `metadata` is the mirror.
fn static_uid(metadata: &Meta) -> Option<&str> {
    let Annotations { mirror, hash, .. } = metadata.annotations.as_ref()?;
    hash.as_deref().filter(|hash| mirror.as_deref() == Some(hash) && !hash.is_empty())
}

impl Container {
    fn of(status: &ContainerStatus, kind: Option<&str>) -> Option<Self> {
        // containerd://<ID>, cri-o://<ID>, docker://<ID>
        let (_, id) = status.container_id.split_once("://")?;
        if !is_container_id(id) {
            return None;
        }
        let selectors = [
            selector(KIND, "container-name", &status.name),
            Some(&status.image)
                .filter(|image| !image.is_empty())
                .and_then(|image| selector(KIND, "container-image", image)),
            digest(&status.image_id).and_then(|digest| selector(KIND, "container-image-digest", digest)),
            kind.and_then(|kind| selector(KIND, kind, true)),
        ];
        Some(Self { id: id.into(), selectors: selectors.into_iter().flatten().collect() })
    }
}

/// `sha256:<64 digits>` behind an at sign. Without one it is the hash of an image's config, which is no digest of an image.
fn digest(image_id: &str) -> Option<&str> {
    let (_, digest) = image_id.rsplit_once('@')?;
    digest.strip_prefix("sha256:").filter(|hash| is_container_id(hash)).map(|_| digest)
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::*;

    pub(in crate::attestor::k8s) const NODE: &str = "node-a";

    pub(in crate::attestor::k8s) fn id(digit: char) -> String {
        std::iter::repeat_n(digit, 64).collect()
    }

    /// A pod of the replica set `web-1`, with one running container.
    pub(in crate::attestor::k8s) fn document(uid: &str, container: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "uid": uid, "name": format!("web-{uid}"), "namespace": "shop", "resourceVersion": "7",
                "labels": {"app": "web", "empty": ""},
                "ownerReferences": [
                    {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-1", "uid": "rs", "controller": true}],
            },
            "spec": {"nodeName": NODE, "serviceAccountName": "web", "containers": [{"name": "web", "image": "asked/for"}]},
            "status": {"containerStatuses": [{
                "name": "web", "image": "docker.io/library/web:1", "ready": true, "restartCount": 0,
                "imageID": format!("docker.io/library/web@sha256:{}", id('d')),
                "containerID": format!("containerd://{container}"),
            }]},
        })
    }

    pub(in crate::attestor::k8s) fn pod(document: Value) -> Option<Pod> {
        Pod::of(serde_json::from_value(document).unwrap(), NODE)
    }

    fn words(selectors: &[Selector]) -> Vec<&str> {
        // What is found here may be registered.
        assert_eq!(selectors.iter().find_map(Selector::fault), None);
        selectors.iter().map(Selector::as_str).collect()
    }

    #[test]
    fn everything_that_is_known_of_a_pod_becomes_selectors() {
        let pod = pod(document("u1", &id('a'))).unwrap();
        let expected = [
            "k8s:ns:shop",
            "k8s:sa:web",
            "k8s:pod-name:web-u1",
            "k8s:pod-uid:u1",
            "k8s:node-name:node-a",
            "k8s:pod-image-count:1",
            "k8s:owner:ReplicaSet:web-1",
            "k8s:owner-uid:ReplicaSet:rs",
            "k8s:pod-label:app:web",
            "k8s:pod-label:empty:",
        ];
        assert_eq!(words(&pod.selectors), expected);
        let [container] = &pod.containers[..] else { panic!("{:?}", pod.containers) };
        let digest = format!("k8s:container-image-digest:sha256:{}", id('d'));
        let expected = ["k8s:container-name:web", "k8s:container-image:docker.io/library/web:1", digest.as_str()];
        assert_eq!((&*container.id, words(&container.selectors)), (id('a').as_str(), expected.to_vec()));
        assert_eq!(pod.cgroup_uid, pod.uid);
        assert_eq!(pod.owner.unwrap().uid.as_ref(), "rs");
    }

    #[test]
    fn init_and_ephemeral_containers_say_so() {
        let mut document = document("u1", &id('a'));
        let status = |name: &str, container: char| {
            json!([{"name": name, "image": "", "imageID": format!("sha256:{}", id('e')),
                    "containerID": format!("cri-o://{}", id(container))}])
        };
        document["status"]["initContainerStatuses"] = status("setup", 'b');
        document["status"]["ephemeralContainerStatuses"] = status("debug", 'c');
        let containers = pod(document).unwrap().containers;
        assert_eq!(words(&containers[1].selectors), ["k8s:container-name:setup", "k8s:init-container:true"]);
        assert_eq!(words(&containers[2].selectors), ["k8s:container-name:debug", "k8s:ephemeral-container:true"]);
    }

    #[test]
    fn what_is_missing_makes_fewer_selectors() {
        let bare = json!({"metadata": {"uid": "u", "name": "n", "namespace": "s"}, "spec": {"nodeName": NODE}});
        let pod_of = |document: &Value| pod(document.clone());
        let found = pod_of(&bare).unwrap();
        let expected = ["k8s:ns:s", "k8s:pod-name:n", "k8s:pod-uid:u", "k8s:node-name:node-a"];
        assert_eq!((words(&found.selectors), found.containers.len()), (expected.to_vec(), 0));
        for (field, value) in [("uid", json!(null)), ("name", json!("")), ("namespace", json!(null))] {
            let mut wrong = bare.clone();
            wrong["metadata"][field] = value;
            assert_eq!(pod_of(&wrong), None, "{field}");
        }
        let mut elsewhere = bare.clone();
        elsewhere["spec"]["nodeName"] = json!("node-b");
        assert_eq!(pod_of(&elsewhere), None);
        let mut starting = bare;
        starting["status"] = json!({"containerStatuses": [{"name": "web", "image": "web", "imageID": "", "ready": false},
            {"name": "odd", "containerID": "containerd://short"}], "initContainerStatuses": null});
        assert_eq!(pod_of(&starting).unwrap().containers, []);
    }

    #[test]
    fn a_static_pod_has_the_uid_of_its_manifest_in_cgroups() {
        let mut mirror = document("u1", &id('a'));
        mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.hash": "h"});
        assert_eq!(&*pod(mirror.clone()).unwrap().cgroup_uid, "u1", "any user may write that one");
        mirror["metadata"]["annotations"] =
            json!({"kubernetes.io/config.hash": "h", "kubernetes.io/config.mirror": "h"});
        assert_eq!(&*pod(mirror.clone()).unwrap().cgroup_uid, "h");
        mirror["metadata"]["annotations"] =
            json!({"kubernetes.io/config.hash": "h", "kubernetes.io/config.mirror": "other"});
        assert_eq!(&*pod(mirror).unwrap().cgroup_uid, "u1");
    }

    #[test]
    fn an_owner_passes_for_no_other_and_a_crowd_of_labels_is_cut_off() {
        let mut many = document("u1", &id('a'));
        many["metadata"]["ownerReferences"] = json!([{"apiVersion": "x/v1", "kind": "A:B", "name": "c", "uid": "u"}, {"apiVersion": "x/v1", "kind": "A", "name": "", "uid": "u"}]);
        many["metadata"]["labels"] =
            (0..1000).map(|n| (format!("l{n}"), json!("v"))).collect::<serde_json::Map<_, _>>().into();
        let pod = pod(many).unwrap();
        assert_eq!(pod.selectors.len(), 6 + MAX_LABELS, "{:?}", pod.selectors);
        assert_eq!(pod.owner, None);
    }

    #[test]
    fn of_too_many_containers_those_that_run_are_kept() {
        let mut many = document("u1", &id('a'));
        let status = |n: usize| json!({"name": "debug", "containerID": format!("containerd://{n:064x}"), "state": {"terminated": {}}});
        let mut statuses: Vec<Value> = (0..MAX_CONTAINERS + 10).map(status).collect();
        statuses.push(
            json!({"name": "debug", "containerID": format!("containerd://{}", id('c')), "state": {"running": {}}}),
        );
        many["status"]["ephemeralContainerStatuses"] = json!(statuses);
        let pod = pod(many).unwrap();
        assert_eq!((pod.containers.len(), pod.left_out), (MAX_CONTAINERS, 12));
        assert_eq!(*pod.containers[0].id, *id('c'));
    }
}
