//! The pods that run on our nodes, as the API servers of the clusters tell of them: what rules are applied to, and what
//! a caller's word for its node is held against.
//!
//! - A value, as the View that it is part of: a change shares everything that it does not touch.
//! - A pod is known only while it is bound to a node and has not ended; whoever tells of pods sees to that.
//! - What an API server does not say any more, because it cannot be reached, stays as it was last said.
//! - A cluster is *awaited* from the start of this process until it has told everything once: till then that no pods of it
//!   are known says nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rpds::{HashTrieMapSync, RedBlackTreeMapSync};
use spiffe::id::SpiffeId;

use super::nodes::Nodes;

/// Labels of a pod or of a namespace. Cheap to clone.
pub type Labels = Arc<BTreeMap<String, String>>;

/// A pod that is bound to a node and has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// The cluster, by the name that our config gives it.
    pub cluster: Arc<str>,
    /// `metadata.uid`: unique over space and time.
    pub uid: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Its service account.
    pub service_account: Arc<str>,
    /// The name of the node that it is bound to.
    pub node_name: Arc<str>,
    /// The ID that the agent on this node has when it attests by `k8s_psat`: of the node's UID, not of its name.
    pub agent: SpiffeId,
    /// Its own labels.
    pub labels: Labels,
    /// The labels of its namespace.
    pub namespace_labels: Labels,
}

/// What an API server tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodEvent {
    /// These pods are all that a cluster has now: at start, and after a gap.
    All {
        /// The cluster.
        cluster: Arc<str>,
        /// Its pods.
        pods: Vec<Pod>,
    },
    /// A pod is new, or is now like this.
    Put(Pod),
    /// A pod has ended, was deleted, or lost its node.
    Gone {
        /// The cluster.
        cluster: Arc<str>,
        /// The pod's UID.
        uid: Arc<str>,
    },
    /// These are the nodes of a cluster now.
    Nodes {
        /// The cluster.
        cluster: Arc<str>,
        /// Its nodes.
        nodes: Nodes,
    },
}

/// The pods of one node by their UIDs.
type OfNode = RedBlackTreeMapSync<Arc<str>, Arc<Pod>>;

/// Every pod that is known. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Pods {
    by_agent: HashTrieMapSync<SpiffeId, OfNode>,
    /// The agent below which a pod is, by cluster and UID.
    agents: HashTrieMapSync<(Arc<str>, Arc<str>), SpiffeId>,
    /// The clusters that have not told everything yet.
    awaited: Arc<BTreeSet<Arc<str>>>,
    /// The nodes of each cluster that has told of any.
    nodes: HashTrieMapSync<Arc<str>, Nodes>,
}

impl Pods {
    /// No pods, where these clusters are still to tell of theirs.
    pub fn awaiting(clusters: impl IntoIterator<Item = Arc<str>>) -> Self {
        Self { awaited: Arc::new(clusters.into_iter().collect()), ..Self::default() }
    }

    /// The clusters that have not told everything yet, in order.
    pub fn awaited(&self) -> impl ExactSizeIterator<Item = &Arc<str>> {
        self.awaited.iter()
    }

    /// Whether this cluster has not told everything yet.
    pub fn awaits(&self, cluster: &str) -> bool {
        self.awaited.contains(cluster)
    }

    /// The cluster of this agent, where it has not told everything yet. `None` too for agents that are not of a cluster.
    pub fn awaited_of(&self, agent: &SpiffeId) -> Option<&Arc<str>> {
        let (cluster, _) = agent.agent_path()?.strip_prefix("k8s_psat/")?.split_once('/')?;
        self.awaited.get(cluster)
    }

    /// The pod with this UID.
    pub fn find(&self, cluster: &str, uid: &str) -> Option<&Arc<Pod>> {
        let agent = self.agents.get(&(Arc::from(cluster), Arc::from(uid)))?;
        self.by_agent.get(agent)?.get(uid)
    }

    /// The pods on the node of `agent`, in the order of their UIDs.
    pub fn of_agent<'a>(&'a self, agent: &SpiffeId) -> impl Iterator<Item = &'a Arc<Pod>> + use<'a> {
        self.by_agent.get(agent).into_iter().flat_map(OfNode::values)
    }

    /// The agents on whose nodes there are pods.
    pub fn agents(&self) -> impl Iterator<Item = &SpiffeId> {
        self.by_agent.keys()
    }

    /// The nodes of `cluster`; `None`: it has told of none yet.
    pub fn nodes(&self, cluster: &str) -> Option<&Nodes> {
        self.nodes.get(cluster)
    }

    /// How many pods there are.
    pub fn count(&self) -> usize {
        self.agents.size()
    }

    /// These pods after `event`, and the agents on whose nodes something is different now, each once and in order.
    pub fn after(&self, event: PodEvent) -> (Self, Vec<SpiffeId>) {
        let mut next = self.clone();
        let mut concerned = Vec::new();
        match event {
            PodEvent::Put(pod) => next.put(pod, &mut concerned),
            PodEvent::Gone { cluster, uid } => next.forget(&(cluster, uid), &mut concerned),
            PodEvent::Nodes { cluster, nodes } => next.nodes.insert_mut(cluster, nodes),
            PodEvent::All { cluster, pods } => {
                let stay: std::collections::HashSet<&str> = pods.iter().map(|pod| &*pod.uid).collect();
                let gone = self.agents.keys().filter(|(of, uid)| *of == cluster && !stay.contains(&**uid));
                gone.for_each(|key| next.forget(key, &mut concerned));
                pods.into_iter().for_each(|pod| next.put(pod, &mut concerned));
                if next.awaited.contains(&cluster) {
                    Arc::make_mut(&mut next.awaited).remove(&cluster);
                }
            }
        }
        concerned.sort_unstable();
        concerned.dedup();
        (next, concerned)
    }

    fn put(&mut self, pod: Pod, concerned: &mut Vec<SpiffeId>) {
        let key = (Arc::clone(&pod.cluster), Arc::clone(&pod.uid));
        if self.find(&pod.cluster, &pod.uid).is_some_and(|known| **known == pod) {
            return;
        }
        self.forget(&key, concerned);
        let mut siblings = self.by_agent.get(&pod.agent).cloned().unwrap_or_default();
        concerned.push(pod.agent.clone());
        self.agents.insert_mut(key, pod.agent.clone());
        let agent = pod.agent.clone();
        siblings.insert_mut(Arc::clone(&pod.uid), Arc::new(pod));
        self.by_agent.insert_mut(agent, siblings);
    }

    fn forget(&mut self, key: &(Arc<str>, Arc<str>), concerned: &mut Vec<SpiffeId>) {
        let Some(agent) = self.agents.get(key).cloned() else { return };
        self.agents.remove_mut(key);
        if let Some(mut siblings) = self.by_agent.get(&agent).cloned() {
            siblings.remove_mut(&key.1);
            if siblings.is_empty() {
                self.by_agent.remove_mut(&agent);
            } else {
                self.by_agent.insert_mut(agent.clone(), siblings);
            }
        }
        concerned.push(agent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(cluster: &str, uid: &str, node: &str) -> Pod {
        Pod {
            cluster: cluster.into(),
            uid: uid.into(),
            namespace: "shop".into(),
            name: format!("web-{uid}").into(),
            service_account: "web".into(),
            node_name: node.into(),
            agent: SpiffeId::parse(&format!("spiffe://example.org/chancery/agent/k8s_psat/{cluster}/{node}")).unwrap(),
            labels: Labels::default(),
            namespace_labels: Labels::default(),
        }
    }

    fn all(cluster: &str, pods: Vec<Pod>) -> PodEvent {
        PodEvent::All { cluster: cluster.into(), pods }
    }

    #[test]
    fn a_cluster_is_awaited_until_it_has_told_everything_once() {
        let (one, other) = (pod("a", "1", "n1"), pod("b", "1", "n1"));
        let pods = Pods::awaiting(["a".into(), "b".into()]);
        let (pods, _) = pods.after(PodEvent::Put(one.clone()));
        assert_eq!(pods.awaited_of(&one.agent).map(|name| &**name), Some("a"), "one pod is not all of them");
        let (pods, concerned) = pods.after(all("a", vec![one.clone()]));
        assert_eq!((concerned, pods.awaits("a"), pods.awaits("b"), pods.awaited().len()), (vec![], false, true, 1));
        assert_eq!((pods.awaited_of(&one.agent), pods.awaited_of(&other.agent).is_some()), (None, true));
        for (path, whose) in [("/chancery/agent/join_token/b", "of none"), ("/chancery/agent/k8s_psat/c/n1", "unknown")]
        {
            let id = SpiffeId::parse(&format!("spiffe://example.org{path}")).unwrap();
            assert_eq!(pods.awaited_of(&id), None, "{whose}");
        }
    }

    fn uids(pods: &Pods, of: &Pod) -> Vec<String> {
        pods.of_agent(&of.agent).map(|pod| pod.uid.to_string()).collect()
    }

    #[test]
    fn a_pod_is_on_one_node_and_a_change_names_the_agents_that_it_concerns() {
        let (one, two) = (pod("a", "1", "n1"), pod("a", "2", "n1"));
        let (pods, concerned) = Pods::default().after(all("a", vec![one.clone(), two.clone()]));
        assert_eq!(
            (uids(&pods, &one), concerned, pods.count()),
            (vec!["1".into(), "2".into()], vec![one.agent.clone()], 2)
        );
        let moved = pod("a", "1", "n2");
        let (pods, concerned) = pods.after(PodEvent::Put(moved.clone()));
        assert_eq!((uids(&pods, &one), uids(&pods, &moved)), (vec!["2".to_owned()], vec!["1".to_owned()]));
        assert_eq!(concerned, [one.agent.clone(), moved.agent.clone()]);
        let (pods, concerned) = pods.after(PodEvent::Gone { cluster: "a".into(), uid: "2".into() });
        assert_eq!((pods.agents().count(), concerned), (1, vec![one.agent]));
        assert_eq!(pods.find("a", "1").map(|pod| pod.node_name.to_string()), Some("n2".to_owned()));
        assert!(pods.find("b", "1").is_none());
    }

    #[test]
    fn what_is_told_again_concerns_nobody_and_a_new_list_is_all_of_its_own_cluster() {
        let (one, other) = (pod("a", "1", "n1"), pod("b", "1", "n1"));
        let (pods, _) = Pods::default().after(PodEvent::Put(one.clone()));
        let (pods, _) = pods.after(PodEvent::Put(other.clone()));
        let (same, concerned) = pods.after(all("a", vec![one.clone()]));
        assert_eq!((same.count(), concerned), (2, vec![]));
        let (fewer, concerned) = same.after(all("a", vec![]));
        assert_eq!((fewer.count(), concerned, uids(&fewer, &other)), (1, vec![one.agent], vec!["1".to_owned()]));
    }
}
