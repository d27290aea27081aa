//! The picture of one cluster that its watches make, and which events follow when it changes. Pure.
//!
//! - **Whole first**: nothing follows before pods, nodes and namespaces have all been listed; then one [`PodEvent::All`].
//!   A list that is made again is a gap, and says everything again.
//! - **A pod waits** for its node and its namespace: it is shown when both are known, and gone when either is. One that is new
//!   waits too for a word of nodes that is no older than itself (`doubt`): the node may be another one by now.
//! - **Made anew is another**: a node with the same name and another UID is another agent's, and its pods with it.
//! - **Ended is gone**: a pod whose containers have ended for good, whose time after a deletion has passed, or which is
//!   bound to no node.
//! - **The same again** says nothing: what changes of a pod all the time is not part of the picture.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use spiffe::id::{SpiffeId, TrustDomain};
use spiffe::time::Timestamp;

use super::doubt::Doubt;
use super::intern::Interned;
use super::roster::Roster;
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
    /// There is nothing new.
    Heard,
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
    /// When it was first seen on its node: the picture knows.
    since: Timestamp,
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
            since: Timestamp::default(),
        })
    }

    /// Whether both are the same to whoever does not ask how long they live, or have lived.
    fn looks_like(&self, other: &Self) -> bool {
        Self { life: other.life, since: other.since, ..self.clone() } == *other
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
    nodes: Roster,
    /// The labels of each namespace.
    namespaces: HashMap<Arc<str>, Labels>,
    /// When pods that have been deleted are over.
    ends: BTreeSet<(Timestamp, Arc<str>)>,
    /// Whether pods, nodes and namespaces have been listed.
    listed: [bool; 3],
    /// When the pods were last listed.
    listed_at: Timestamp,
    is_whole: bool,
    doubt: Doubt,
}

impl Picture {
    /// Nothing is known of `cluster`, whose agents are in `trust_domain`.
    pub(super) fn new(cluster: Arc<str>, trust_domain: TrustDomain) -> Self {
        let (pods, nodes, namespaces) = (HashMap::new(), Roster::default(), HashMap::new());
        let (ends, doubt, listed_at) = (BTreeSet::new(), Doubt::default(), Timestamp::default());
        Self {
            cluster,
            trust_domain,
            pods,
            nodes,
            namespaces,
            ends,
            listed: [false; 3],
            listed_at,
            is_whole: false,
            doubt,
        }
    }

    /// How many pods, nodes and namespaces are known, those pods that wait included.
    pub(super) fn counts(&self) -> [usize; 3] {
        [self.pods.len(), self.nodes.count(), self.namespaces.len()]
    }

    /// When the next pod or node is over that was deleted, or a node is to be looked up again: [`Picture::pass`] wants to be
    /// called then.
    pub(super) fn next_end(&self) -> Option<Timestamp> {
        self.ends.first().map(|(end, _)| *end).into_iter().chain(self.nodes.next()).chain(self.doubt.next()).min()
    }

    /// What follows from the time alone.
    pub(super) fn pass(&mut self, now: Timestamp) -> Vec<PodEvent> {
        self.nodes.pass(now);
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
        let mut released = Vec::new();
        if let Told::Nodes(_) = told {
            self.nodes.heard(now);
            released = self.doubt.heard(now);
        }
        let was_whole = self.is_whole;
        let mut events = match told {
            Told::Pods(Change::All(pods)) => {
                let before = std::mem::replace(&mut self.pods, HashMap::with_capacity(pods.len()));
                (self.ends, self.listed_at) = (BTreeSet::new(), now);
                self.doubt.forget_all();
                for pod in pods {
                    let since = since(&pod, before.get(&pod.uid), now);
                    drop(self.put(Seen { since, ..pod }, now));
                }
                return self.all(0);
            }
            Told::Nodes(Change::All(nodes)) => {
                let agents: Vec<_> =
                    nodes.iter().filter_map(|node| Some((Arc::clone(&node.name), self.agent(node)?))).collect();
                self.nodes.all(agents, now);
                return self.all(1);
            }
            Told::Namespaces(Change::All(namespaces)) => {
                self.namespaces = namespaces.into_iter().map(|one| (one.name, one.labels)).collect();
                return self.all(2);
            }
            Told::Pods(Change::Put(pod)) => {
                let since = since(&pod, self.pods.get(&pod.uid), now);
                self.put(Seen { since, ..pod }, now).into_iter().collect()
            }
            Told::Pods(Change::Heard) => Vec::new(),
            Told::Pods(Change::Gone(pod)) => self.forget(&pod.uid).into_iter().collect(),
            Told::Nodes(change) => self.node(change, now),
            Told::Namespaces(change) => self.namespace(change),
        };
        if !was_whole && self.becomes_whole() {
            return self.everything();
        }
        events.extend(self.release(released));
        self.shown(events)
    }

    /// The names of the nodes that are to be looked up: pods wait for word of them.
    pub(super) fn questions(&mut self, now: Timestamp) -> Vec<Arc<str>> {
        if !self.is_whole {
            return Vec::new();
        }
        self.doubt.questions(now, |name| self.nodes.agent(name).is_some())
    }

    /// What follows from the answer to such a question, put at `at`: the node of that name, if there is one.
    pub(super) fn answer(
        &mut self,
        name: &Arc<str>,
        found: Option<Node>,
        at: Timestamp,
        now: Timestamp,
    ) -> Vec<PodEvent> {
        let found = found.and_then(|node| self.agent(&node));
        let released = self.doubt.answer(name, (at, now), found, self.nodes.agent(name));
        let events = self.release(released);
        self.shown(events)
    }

    /// What is to be said of pods that may have waited for long enough.
    fn release(&mut self, uids: Vec<Arc<str>>) -> Vec<PodEvent> {
        let mut events = Vec::new();
        for uid in uids {
            let Some(pod) = self.pods.get(&uid) else { continue };
            if !self.is_doubted(pod) {
                events.push(self.tell(pod));
            } else {
                self.doubt.wait(&pod.node_name, &uid);
            }
        }
        events
    }

    /// Whether it is not certain that the pod runs on the node that is known under its node's name.
    fn is_doubted(&self, pod: &Seen) -> bool {
        match self.nodes.agent(&pod.node_name) {
            Some(agent) => !self.doubt.trusts(&pod.node_name, agent, pod.since),
            None => !self.doubt.is_settled(pod.since),
        }
    }

    fn node(&mut self, change: Change<Node>, now: Timestamp) -> Vec<PodEvent> {
        let name = match change {
            Change::Gone(node) => {
                self.nodes.remove(&node.name, now);
                node.name
            }
            Change::Put(node) => {
                let is_news = match self.agent(&node) {
                    Some(agent) => self.nodes.put(Arc::clone(&node.name), agent, now),
                    None => self.nodes.remove(&node.name, now),
                };
                if !is_news {
                    return Vec::new();
                }
                node.name
            }
            Change::All(_) | Change::Heard => return Vec::new(),
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
            Change::All(_) | Change::Heard => return Vec::new(),
        };
        self.again(|pod| pod.namespace == name)
    }

    fn put(&mut self, pod: Seen, now: Timestamp) -> Option<PodEvent> {
        if pod.node_name.is_empty() || pod.life.is_over(now) {
            return self.forget(&pod.uid);
        }
        let is_news = self.pods.get(&pod.uid).is_none_or(|before| !before.looks_like(&pod));
        let event = is_news.then(|| self.tell(&pod));
        let (uid, life) = (Arc::clone(&pod.uid), pod.life);
        let doubted = self.is_doubted(&pod).then(|| Arc::clone(&pod.node_name));
        if let Some(before) = self.pods.insert(Arc::clone(&uid), pod) {
            self.doubt.forget(&before.node_name, &uid);
            if let Life::Until(end) = before.life {
                self.ends.remove(&(end, Arc::clone(&uid)));
            }
        }
        if let Some(node_name) = doubted {
            self.doubt.wait(&node_name, &uid);
        }
        if let Life::Until(end) = life {
            self.ends.insert((end, uid));
        }
        event
    }

    fn forget(&mut self, uid: &Arc<str>) -> Option<PodEvent> {
        let before = self.pods.remove(uid)?;
        self.doubt.forget(&before.node_name, uid);
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

    /// The pod, if its node and its namespace are known, and nobody doubts that it is this node.
    fn show(&self, pod: &Seen) -> Option<Pod> {
        if self.is_doubted(pod) {
            return None;
        }
        let (agent, namespace_labels) = (self.nodes.agent(&pod.node_name)?, self.namespaces.get(&pod.namespace)?);
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
        if self.becomes_whole() { self.everything() } else { Vec::new() }
    }

    fn everything(&mut self) -> Vec<PodEvent> {
        let pods = self.pods.values().filter_map(|pod| self.show(pod)).collect();
        self.shown(vec![PodEvent::All { cluster: Arc::clone(&self.cluster), pods }])
    }

    /// `events`, and what there is to say of nodes, once they mean anything to somebody who has been told everything before them.
    fn shown(&mut self, mut events: Vec<PodEvent>) -> Vec<PodEvent> {
        if !self.is_whole {
            return Vec::new();
        }
        let nodes = self.nodes.news().map(|nodes| PodEvent::Nodes { cluster: Arc::clone(&self.cluster), nodes });
        events.extend(nodes);
        events
    }

    /// Whether it is whole, or is now: everything was listed, and nodes not long before pods.
    fn becomes_whole(&mut self) -> bool {
        self.is_whole |= self.listed.iter().all(|listed| *listed) && self.doubt.is_settled(self.listed_at);
        self.is_whole
    }
}

/// Since when `pod`, which was like `before`, has been on its node, as far as can be told at `now`.
fn since(pod: &Seen, before: Option<&Seen>, now: Timestamp) -> Timestamp {
    before.filter(|before| before.node_name == pod.node_name).map_or(now, |before| before.since)
}

#[cfg(test)]
mod tests;
