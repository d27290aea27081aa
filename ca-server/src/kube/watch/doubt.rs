//! Which pods wait for word of their node: the three watches of a cluster are independent, and that of nodes may be silent
//! while a node is made anew under its old name. Pure.
//!
//! - A pod counts once nodes were heard of [`LEEWAY`] before it was first seen on its node, or later; or once its node was
//!   looked up, and is the one that is known.
//! - What counts goes on counting: what lets a pod wait no longer is never taken back.
//! - A node is looked up once at a time, and again [`RETRY`] after an answer that did not help.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use spiffe::id::SpiffeId;
use spiffe::time::Timestamp;

/// How much older than a pod the last word of nodes may be.
const LEEWAY: Duration = Duration::from_secs(10);
/// After which time a node is looked up again.
const RETRY: Duration = Duration::from_secs(10);

/// What waits, and for what.
#[derive(Debug, Default)]
pub(super) struct Doubt {
    /// When nodes were last heard of.
    heard: Timestamp,
    /// Which agents nodes had that were looked up since, and when these were asked for.
    vouched: HashMap<Arc<str>, (SpiffeId, Timestamp)>,
    /// The pods that wait, by the names of their nodes.
    waiting: HashMap<Arc<str>, HashSet<Arc<str>>>,
    /// When the last answer came for each node that pods wait for; `None`: there is none to the last question yet.
    asked: HashMap<Arc<str>, Option<Timestamp>>,
}

impl Doubt {
    /// Whether everything that was first seen at `since` counts, whatever its node.
    pub(super) fn is_settled(&self, since: Timestamp) -> bool {
        self.heard.plus(LEEWAY) >= since
    }

    /// Whether a pod counts that was first seen at `since` on the node `name`, which has this agent.
    pub(super) fn trusts(&self, name: &str, agent: &SpiffeId, since: Timestamp) -> bool {
        let is_vouched = |(of, at): &(SpiffeId, Timestamp)| of == agent && at.plus(LEEWAY) >= since;
        self.is_settled(since) || self.vouched.get(name).is_some_and(is_vouched)
    }

    /// Lets this pod wait for its node.
    pub(super) fn wait(&mut self, name: &Arc<str>, uid: &Arc<str>) {
        self.waiting.entry(Arc::clone(name)).or_default().insert(Arc::clone(uid));
    }

    /// This pod waits no longer.
    pub(super) fn forget(&mut self, name: &str, uid: &str) {
        if let Some(pods) = self.waiting.get_mut(name) {
            pods.remove(uid);
            if pods.is_empty() {
                self.waiting.remove(name);
            }
        }
    }

    /// No pod waits any longer.
    pub(super) fn forget_all(&mut self) {
        self.waiting.clear();
    }

    /// Nodes were heard of at `now`: the pods that wait no longer.
    pub(super) fn heard(&mut self, now: Timestamp) -> Vec<Arc<str>> {
        self.heard = now;
        self.vouched.retain(|_, (_, at)| *at > self.heard);
        self.asked.retain(|_, answered| answered.is_none());
        std::mem::take(&mut self.waiting).into_values().flatten().collect()
    }

    /// The nodes that are to be looked up at `now`, of those that `is_known`.
    pub(super) fn questions(&mut self, now: Timestamp, is_known: impl Fn(&str) -> bool) -> Vec<Arc<str>> {
        self.asked.retain(|name, answered| answered.is_none() || self.waiting.contains_key(name));
        let is_due = |name: &Arc<str>| match self.asked.get(name) {
            None => is_known(name),
            Some(answered) => answered.is_some_and(|at| at.plus(RETRY) <= now),
        };
        let due: Vec<_> = self.waiting.keys().filter(|name| is_due(name)).cloned().collect();
        self.asked.extend(due.iter().map(|name| (Arc::clone(name), None)));
        due
    }

    /// When the next node is to be looked up again.
    pub(super) fn next(&self) -> Option<Timestamp> {
        self.asked.values().flatten().min().map(|at| at.plus(RETRY))
    }

    /// The answer to a question put at `at` came at `now`: whether it is the agent that the node is `known` to have. Returns
    /// the pods that wait no longer.
    pub(super) fn answer(
        &mut self,
        name: &Arc<str>,
        (at, now): (Timestamp, Timestamp),
        found: Option<SpiffeId>,
        known: Option<&SpiffeId>,
    ) -> Vec<Arc<str>> {
        let Some(agent) = found.filter(|found| known == Some(found)) else {
            match self.waiting.contains_key(name) {
                true => self.asked.insert(Arc::clone(name), Some(now)),
                false => self.asked.remove(name),
            };
            return Vec::new();
        };
        self.asked.remove(name);
        if at > self.heard {
            self.vouched.insert(Arc::clone(name), (agent, at));
        }
        self.waiting.remove(name).into_iter().flatten().collect()
    }
}
