//! Which nodes a cluster has, as its API server tells: what the renewals of agents are held against.
//!
//! - A value, made by whoever watches, who keeps a node in it for [`GRACE`] after it was deleted.
//! - **Only what is fresh counts against an agent**: an API server that is lost ends no agent's right.
//! - **Only what is settled does**: the nodes have been known for a while, and the agent attested a while before the word.

use std::time::Duration;

use rpds::HashTrieSetSync;
use spiffe::id::SpiffeId;
use spiffe::time::Timestamp;

use super::record::Node;

/// For how long a node that was deleted counts as there still.
pub const GRACE: Duration = Duration::from_secs(300);
/// How old the last word of nodes may be: an API server that is well says something each minute.
const FRESH: Duration = Duration::from_secs(180);

/// The nodes of one cluster. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nodes {
    /// The IDs of their agents.
    pub agents: HashTrieSetSync<SpiffeId>,
    /// Since when all of them have been known.
    pub since: Timestamp,
    /// When their watch last brought anything.
    pub as_of: Timestamp,
}

impl Nodes {
    /// Whether it is certain at `now` that the node which has attested as `node` was deleted.
    pub fn has_lost(&self, node: &Node, now: Timestamp) -> bool {
        let settled = self.since.max(node.attested_at).plus(GRACE);
        // A word of the future is one of a clock that has been put back since.
        let is_fresh = self.as_of <= now && now.since(self.as_of) <= FRESH;
        self.as_of >= settled && is_fresh && !self.agents.contains(&node.id)
    }
}

#[cfg(test)]
mod tests {
    use spiffe::selector::Selectors;

    use super::*;

    const NOW: Timestamp = Timestamp::from_unix(1_795_218_000);

    fn ago(seconds: u64) -> Timestamp {
        NOW.minus(Duration::from_secs(seconds))
    }

    fn node(uid: &str, attested_at: Timestamp) -> Node {
        Node {
            id: SpiffeId::parse(&format!("spiffe://example.org/chancery/agent/k8s_psat/main/{uid}")).unwrap(),
            attestor: "k8s_psat".into(),
            selectors: Selectors::default(),
            serial: Vec::new(),
            previous_serial: Vec::new(),
            expires_at: NOW,
            attested_at,
            banned: false,
        }
    }

    #[test]
    fn only_a_word_that_is_fresh_and_settled_says_that_a_node_is_gone() {
        let (here, gone) = (node("1", ago(3600)), node("2", ago(3600)));
        let nodes = |since, as_of| Nodes { agents: [here.id.clone()].into_iter().collect(), since, as_of };
        let known = nodes(ago(3600), ago(10));
        assert!(known.has_lost(&gone, NOW) && !known.has_lost(&here, NOW));
        assert!(!nodes(ago(3600), ago(181)).has_lost(&gone, NOW), "nobody has heard of the cluster for a while");
        let later = NOW.plus(Duration::from_secs(1));
        assert!(!nodes(ago(3600), later).has_lost(&gone, NOW), "the clock was ahead when it was heard of last");
        assert!(!nodes(ago(200), ago(10)).has_lost(&gone, NOW), "the server has just started");
        assert!(!known.has_lost(&node("2", ago(200)), NOW), "it was there when it attested");
    }
}
