//! The picture of one cluster that its watches make, and which events follow when it changes. Pure.
//!
//! - **Whole first**: nothing follows before pods, nodes and namespaces have all been listed; then one [`PodEvent::All`].
//!   A list that is made again is a gap, and says everything again.
//! - **A pod waits** for its node and its namespace: it is shown when both are known, and gone when either is.
//! - **Made anew is another**: a node with the same name and another UID is another agent's, and its pods with it.
//! - **Ended is gone**: a pod whose containers have ended for good, whose time after a deletion has passed, or which is
//!   bound to no node.
//! - **The same again** says nothing: what changes of a pod all the time is not part of the picture.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use spiffe::id::{SpiffeId, TrustDomain};
use spiffe::time::Timestamp;

use super::intern::Interned;
use crate::attest::k8s_psat;
use crate::kube::object::{self, Life};
use crate::view::pods::{Labels, Pod, PodEvent};

/// What a watch of one kind of object says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change<S> {
    /// These are all.
    All(Vec<S>),
    /// One is new, or is now like this.
    Put(S),
    /// This one is gone.
    Gone(S),
}

/// What one of the three watches says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Pods(Change<Seen>),
    Nodes(Change<Node>),
    Namespaces(Change<Namespace>),
}

/// What is needed of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    uid: Arc<str>,
    namespace: Arc<str>,
    name: Arc<str>,
    service_account: Arc<str>,
    /// Empty: it is on none yet.
    node_name: Arc<str>,
    labels: Labels,
    life: Life,
}

/// What is needed of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    name: Arc<str>,
    uid: Arc<str>,
}

/// What is needed of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Namespace {
    name: Arc<str>,
    labels: Labels,
}

impl Seen {
    pub(super) fn read(pod: object::Pod, interned: &mut Interned) -> Option<Self> {
        let life = pod.life();
        let object::Meta { name, namespace, uid, labels, .. } = pod.metadata;
        if uid.is_empty() || name.is_empty() || namespace.is_empty() {
            return None;
        }
        Some(Self {
            uid: uid.into(),
            namespace: interned.string(&namespace),
            name: name.into(),
            service_account: interned.string(&pod.spec.service_account_name),
            node_name: interned.string(&pod.spec.node_name),
            labels: interned.labels(labels),
            life,
        })
    }
}

impl Node {
    pub(super) fn read(node: object::Named, _: &mut Interned) -> Option<Self> {
        let object::Meta { name, uid, .. } = node.metadata;
        (!name.is_empty() && !uid.is_empty()).then(|| Self { name: name.into(), uid: uid.into() })
    }
}

impl Namespace {
    pub(super) fn read(namespace: object::Named, interned: &mut Interned) -> Option<Self> {
        let object::Meta { name, labels, .. } = namespace.metadata;
        (!name.is_empty()).then(|| Self { name: name.into(), labels: interned.labels(labels) })
    }
}

/// What is known of one cluster.
#[derive(Debug)]
pub(super) struct Picture {
    cluster: Arc<str>,
    trust_domain: TrustDomain,
    /// By UID; only such as are on a node and not over.
    pods: HashMap<Arc<str>, Seen>,
    /// The agent of each node, by the node's name.
    nodes: HashMap<Arc<str>, SpiffeId>,
    /// The labels of each namespace.
    namespaces: HashMap<Arc<str>, Labels>,
    /// When pods that have been deleted are over.
    ends: BTreeSet<(Timestamp, Arc<str>)>,
    /// Whether pods, nodes and namespaces have been listed.
    listed: [bool; 3],
}

impl Picture {
    /// Nothing is known of `cluster`, whose agents are in `trust_domain`.
    pub(super) fn new(cluster: Arc<str>, trust_domain: TrustDomain) -> Self {
        let (pods, nodes, namespaces) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { cluster, trust_domain, pods, nodes, namespaces, ends: BTreeSet::new(), listed: [false; 3] }
    }

    /// How many pods are known, those that wait included.
    pub(super) fn count(&self) -> usize {
        self.pods.len()
    }

    /// When the next pod is over that was deleted: [`Picture::pass`] wants to be called then.
    pub(super) fn next_end(&self) -> Option<Timestamp> {
        self.ends.first().map(|(end, _)| *end)
    }

    /// What follows from the time alone.
    pub(super) fn pass(&mut self, now: Timestamp) -> Vec<PodEvent> {
        let mut over = Vec::new();
        while let Some((end, _)) = self.ends.first()
            && *end <= now
            && let Some((_, uid)) = self.ends.pop_first()
        {
            over.push(uid);
        }
        let events = over.into_iter().filter_map(|uid| self.forget(&uid)).collect();
        self.shown(events)
    }

    /// What follows from what a watch says at `now`.
    pub(super) fn after(&mut self, told: Told, now: Timestamp) -> Vec<PodEvent> {
        let events = match told {
            Told::Pods(Change::All(pods)) => {
                (self.pods, self.ends) = (HashMap::with_capacity(pods.len()), BTreeSet::new());
                pods.into_iter().for_each(|pod| drop(self.put(pod, now)));
                return self.all(0);
            }
            Told::Nodes(Change::All(nodes)) => {
                self.nodes =
                    nodes.into_iter().filter_map(|node| Some((Arc::clone(&node.name), self.agent(&node)?))).collect();
                return self.all(1);
            }
            Told::Namespaces(Change::All(namespaces)) => {
                self.namespaces = namespaces.into_iter().map(|one| (one.name, one.labels)).collect();
                return self.all(2);
            }
            Told::Pods(Change::Put(pod)) => self.put(pod, now).into_iter().collect(),
            Told::Pods(Change::Gone(pod)) => self.forget(&pod.uid).into_iter().collect(),
            Told::Nodes(change) => self.node(change),
            Told::Namespaces(change) => self.namespace(change),
        };
        self.shown(events)
    }

    fn node(&mut self, change: Change<Node>) -> Vec<PodEvent> {
        let name = match change {
            Change::Gone(node) => {
                self.nodes.remove(&node.name);
                node.name
            }
            Change::Put(node) => {
                let agent = self.agent(&node);
                if self.nodes.get(&node.name) == agent.as_ref() {
                    return Vec::new();
                }
                match agent {
                    Some(agent) => self.nodes.insert(Arc::clone(&node.name), agent),
                    None => self.nodes.remove(&node.name),
                };
                node.name
            }
            Change::All(_) => return Vec::new(),
        };
        self.again(|pod| pod.node_name == name)
    }

    fn namespace(&mut self, change: Change<Namespace>) -> Vec<PodEvent> {
        let name = match change {
            Change::Gone(namespace) => {
                self.namespaces.remove(&namespace.name);
                namespace.name
            }
            Change::Put(Namespace { name, labels }) => {
                let before = self.namespaces.insert(Arc::clone(&name), Arc::clone(&labels));
                if before.is_some_and(|before| before == labels) {
                    return Vec::new();
                }
                name
            }
            Change::All(_) => return Vec::new(),
        };
        self.again(|pod| pod.namespace == name)
    }

    fn put(&mut self, pod: Seen, now: Timestamp) -> Option<PodEvent> {
        if pod.node_name.is_empty() || pod.life.is_over(now) {
            return self.forget(&pod.uid);
        }
        if let Life::Until(end) = pod.life {
            self.ends.insert((end, Arc::clone(&pod.uid)));
        }
        let event = self.tell(&pod);
        let Some(before) = self.pods.insert(Arc::clone(&pod.uid), pod.clone()) else { return Some(event) };
        if let Life::Until(end) = before.life
            && before.life != pod.life
        {
            self.ends.remove(&(end, Arc::clone(&before.uid)));
        }
        (Seen { life: pod.life, ..before } != pod).then_some(event)
    }

    fn forget(&mut self, uid: &Arc<str>) -> Option<PodEvent> {
        let before = self.pods.remove(uid)?;
        if let Life::Until(end) = before.life {
            self.ends.remove(&(end, Arc::clone(uid)));
        }
        Some(self.gone(uid))
    }

    /// What is to be said anew of those that `is_meant`, because of what is around them.
    fn again(&self, is_meant: impl Fn(&Seen) -> bool) -> Vec<PodEvent> {
        self.pods.values().filter(|pod| is_meant(pod)).map(|pod| self.tell(pod)).collect()
    }

    fn tell(&self, pod: &Seen) -> PodEvent {
        self.show(pod).map_or_else(|| self.gone(&pod.uid), PodEvent::Put)
    }

    /// The pod, if its node and its namespace are known.
    fn show(&self, pod: &Seen) -> Option<Pod> {
        let (agent, namespace_labels) = (self.nodes.get(&pod.node_name)?, self.namespaces.get(&pod.namespace)?);
        Some(Pod {
            cluster: Arc::clone(&self.cluster),
            uid: Arc::clone(&pod.uid),
            namespace: Arc::clone(&pod.namespace),
            name: Arc::clone(&pod.name),
            service_account: Arc::clone(&pod.service_account),
            node_name: Arc::clone(&pod.node_name),
            agent: agent.clone(),
            labels: Arc::clone(&pod.labels),
            namespace_labels: Arc::clone(namespace_labels),
        })
    }

    fn gone(&self, uid: &Arc<str>) -> PodEvent {
        PodEvent::Gone { cluster: Arc::clone(&self.cluster), uid: Arc::clone(uid) }
    }

    /// The ID of a node's agent. A UID that is no segment of an ID names none, and its pods wait.
    fn agent(&self, node: &Node) -> Option<SpiffeId> {
        self.trust_domain.agent_id(k8s_psat::KIND, &k8s_psat::node_path(&self.cluster, &node.uid)).ok()
    }

    fn all(&mut self, kind: usize) -> Vec<PodEvent> {
        if let Some(listed) = self.listed.get_mut(kind) {
            *listed = true;
        }
        if !self.is_whole() {
            return Vec::new();
        }
        let pods = self.pods.values().filter_map(|pod| self.show(pod)).collect();
        vec![PodEvent::All { cluster: Arc::clone(&self.cluster), pods }]
    }

    /// `events`, once they mean anything to somebody who has been told everything before them.
    fn shown(&self, events: Vec<PodEvent>) -> Vec<PodEvent> {
        if self.is_whole() { events } else { Vec::new() }
    }

    fn is_whole(&self) -> bool {
        self.listed.iter().all(|listed| *listed)
    }
}

#[cfg(test)]
mod tests;
