//! The nodes of one cluster and their agents, as the picture has them and as the View is told of them. Pure.
//!
//! - A node that goes stays in what the View is told for [`GRACE`]; one that comes back meanwhile never left.
//! - The View is told when something is different, and every [`AGAIN`] at most that the watch was heard.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use spiffe::id::SpiffeId;
use spiffe::time::Timestamp;

use crate::view::nodes::{GRACE, Nodes};

/// How much later the nodes must have been heard of to say that alone.
const AGAIN: Duration = Duration::from_secs(10);
/// The most nodes that went and are still told of: the oldest make way.
const MOST_LEAVING: usize = 10_000;

/// The nodes of one cluster.
#[derive(Debug, Default)]
pub(super) struct Roster {
    /// The agent of each node, by the node's name.
    by_name: HashMap<Arc<str>, SpiffeId>,
    /// What the View is to be told; `None`: not all nodes are known.
    nodes: Option<Nodes>,
    /// When agents of nodes that went are to go.
    leaving: BTreeSet<(Timestamp, SpiffeId)>,
    left: HashMap<SpiffeId, Timestamp>,
    /// When the View was last told; `None`: something is different since.
    told: Option<Timestamp>,
}

impl Roster {
    /// The agent of the node `name`.
    pub(super) fn agent(&self, name: &str) -> Option<&SpiffeId> {
        self.by_name.get(name)
    }

    /// How many nodes there are.
    pub(super) fn count(&self) -> usize {
        self.by_name.len()
    }

    /// When the watch of nodes was last heard.
    pub(super) fn heard(&mut self, now: Timestamp) {
        if let Some(nodes) = &mut self.nodes {
            nodes.as_of = now;
        }
    }

    /// These are all nodes.
    pub(super) fn all(&mut self, nodes: impl IntoIterator<Item = (Arc<str>, SpiffeId)>, now: Timestamp) {
        self.told = None;
        self.nodes.get_or_insert_with(|| Nodes { agents: Default::default(), since: now, as_of: now });
        let before = std::mem::take(&mut self.by_name);
        for (name, agent) in nodes {
            self.put(name, agent, now);
        }
        for (name, agent) in before {
            if self.by_name.get(&name) != Some(&agent) {
                self.leave(agent, now);
            }
        }
    }

    /// The node `name` is there with this agent. Whether that is news.
    pub(super) fn put(&mut self, name: Arc<str>, agent: SpiffeId, now: Timestamp) -> bool {
        if self.by_name.get(&name) == Some(&agent) {
            return false;
        }
        if let Some(end) = self.left.remove(&agent) {
            self.leaving.remove(&(end, agent.clone()));
        }
        if let Some(nodes) = &mut self.nodes {
            nodes.agents.insert_mut(agent.clone());
        }
        self.told = None;
        if let Some(before) = self.by_name.insert(name, agent) {
            self.leave(before, now);
        }
        true
    }

    /// The node `name` is gone. Whether that is news.
    pub(super) fn remove(&mut self, name: &str, now: Timestamp) -> bool {
        let before = self.by_name.remove(name);
        let is_news = before.is_some();
        before.into_iter().for_each(|agent| self.leave(agent, now));
        is_news
    }

    /// When [`Roster::pass`] wants to be called.
    pub(super) fn next(&self) -> Option<Timestamp> {
        self.leaving.first().map(|(end, _)| *end)
    }

    /// Forgets those that have been gone for long enough.
    pub(super) fn pass(&mut self, now: Timestamp) {
        while self.leaving.first().is_some_and(|(end, _)| *end <= now || self.leaving.len() > MOST_LEAVING)
            && let Some((_, agent)) = self.leaving.pop_first()
        {
            self.left.remove(&agent);
            if let Some(nodes) = &mut self.nodes {
                nodes.agents.remove_mut(&agent);
            }
            self.told = None;
        }
    }

    /// What the View is to be told at this point, if anything.
    pub(super) fn news(&mut self) -> Option<Nodes> {
        let nodes = self.nodes.as_ref()?;
        if self.told.is_some_and(|told| nodes.as_of.since(told) < AGAIN) {
            return None;
        }
        self.told = Some(nodes.as_of);
        Some(nodes.clone())
    }

    fn leave(&mut self, agent: SpiffeId, now: Timestamp) {
        let end = now.plus(GRACE);
        self.leaving.insert((end, agent.clone()));
        if let Some(before) = self.left.insert(agent.clone(), end).filter(|before| *before != end) {
            self.leaving.remove(&(before, agent));
        }
        self.pass(now);
    }
}
