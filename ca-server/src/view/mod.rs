//! The View: everything a reader needs, in memory, whole and unchanging. Writers commit to the store; `follow` folds
//! each commit into the next View; readers load the present one and take no lock.
//!
//! - A View is a value: `apply` makes the next one and shares everything that the commit did not touch.
//! - What one commit costs does not grow with the number of entries. That of a rule, or of an ID that becomes an operator's
//!   or is one no more, looks at every pod (`rework`), in bounded pieces; what is told of a pod, at that one alone.
//! - The own bundle is what the authorities say, and the entries of rules what rules and pods say; neither is stored.

mod apply;
pub mod derive;
pub mod follow;
pub mod keys;
pub mod nodes;
pub mod pods;
pub mod record;
mod rework;

use std::sync::Arc;

use rpds::{HashTrieMapSync, HashTrieSetSync, RedBlackTreeMapSync, RedBlackTreeSetSync};
use spiffe::bundle::Bundle;
use spiffe::entry::{EntryId, RegistrationEntry, RuleId};
use spiffe::federation::Relationship;
use spiffe::id::{SpiffeId, TrustDomain};
use spiffe::rule::Rule;
use spiffe::time::Timestamp;

use crate::authority::Authority;
use crate::authority::issuer::Issuer;
use crate::authority::token_issuer::{JwtIssuer, WitIssuer};
use crate::store::Revision;
pub use apply::Change;
use derive::{Book, Place};
use pods::Pods;
use record::{JoinToken, Node, RecordError};
use rework::Tally;
pub use rework::{Rework, Terms};

/// A key of the store whose value is no record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store's record {key} {error}")]
pub struct ViewError {
    /// The key.
    pub key: String,
    /// What is the matter with its value.
    pub error: RecordError,
}

/// A value and the revision that last wrote it, which a writer expects when it changes it.
#[derive(Debug)]
pub struct Held<T> {
    /// The value.
    pub value: T,
    /// When it was last written.
    pub revision: Revision,
}

impl<T> std::ops::Deref for Held<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

/// Everything known at one revision. Cheap to clone.
#[derive(Clone, Debug)]
pub struct View {
    trust_domain: TrustDomain,
    server_id: SpiffeId,
    revision: Revision,
    entries: RedBlackTreeMapSync<EntryId, Arc<Held<RegistrationEntry>>>,
    by_parent: HashTrieMapSync<SpiffeId, RedBlackTreeSetSync<EntryId>>,
    /// Node aliases by the identity that they give.
    aliases: HashTrieMapSync<SpiffeId, HashTrieSetSync<EntryId>>,
    /// Entries marked admin by the identity that they give.
    admins: HashTrieMapSync<SpiffeId, HashTrieSetSync<EntryId>>,
    nodes: RedBlackTreeMapSync<SpiffeId, Arc<Held<Node>>>,
    tokens: RedBlackTreeMapSync<String, Arc<Held<JoinToken>>>,
    authorities: Arc<[Held<Authority>]>,
    bundle: Bundle,
    foreign: RedBlackTreeMapSync<TrustDomain, Arc<Held<Bundle>>>,
    relationships: RedBlackTreeMapSync<TrustDomain, Arc<Held<Relationship>>>,
    issuers: Issuers,
    rules: RedBlackTreeMapSync<RuleId, Arc<Held<Rule>>>,
    pods: Pods,
    /// How many of the entries come from rules.
    derived: usize,
    /// The rules, in order.
    book: Arc<Book>,
    terms: Terms,
    /// What each rule would give, were there no limit; none: no place.
    tallies: RedBlackTreeMapSync<Place, Tally>,
    /// How many pods have a derived entry.
    holders: HashTrieMapSync<EntryId, u32>,
    /// How many entries rules give, counted pod by pod.
    given: usize,
    /// This rule and the younger ones give nothing: with them there would be too many.
    cut: Option<Place>,
}

/// What signs now, of each kind; `None` until this server has an active authority of that kind.
#[derive(Clone, Debug, Default)]
pub struct Issuers {
    /// X.509-SVIDs.
    pub x509: Option<Arc<Issuer>>,
    /// JWT-SVIDs.
    pub jwt: Option<Arc<JwtIssuer>>,
    /// WIT-SVIDs.
    pub wit: Option<Arc<WitIssuer>>,
}

impl View {
    /// The View of an empty store.
    pub fn empty(trust_domain: TrustDomain) -> Self {
        Self {
            server_id: trust_domain.server_id(),
            bundle: Bundle::empty(trust_domain.clone()),
            trust_domain,
            revision: 0,
            entries: RedBlackTreeMapSync::new_sync(),
            by_parent: HashTrieMapSync::new_sync(),
            aliases: HashTrieMapSync::new_sync(),
            admins: HashTrieMapSync::new_sync(),
            nodes: RedBlackTreeMapSync::new_sync(),
            tokens: RedBlackTreeMapSync::new_sync(),
            authorities: Arc::new([]),
            foreign: RedBlackTreeMapSync::new_sync(),
            relationships: RedBlackTreeMapSync::new_sync(),
            issuers: Issuers::default(),
            rules: RedBlackTreeMapSync::new_sync(),
            pods: Pods::default(),
            derived: 0,
            book: Arc::default(),
            terms: Terms::default(),
            tallies: RedBlackTreeMapSync::new_sync(),
            holders: HashTrieMapSync::new_sync(),
            given: 0,
            cut: None,
        }
    }

    /// Our trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The revision at which all of this was true.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The entry with this ID.
    pub fn entry(&self, id: &EntryId) -> Option<&Arc<Held<RegistrationEntry>>> {
        self.entries.get(id)
    }

    /// The entries whose IDs come after `after` (all, for `None`), in the order of their IDs.
    pub fn entries_after(&self, after: Option<&EntryId>) -> impl Iterator<Item = &Arc<Held<RegistrationEntry>>> {
        use std::ops::Bound;
        let from = after.map_or(Bound::Unbounded, |id| Bound::Excluded(id.clone()));
        self.entries.range((from, Bound::Unbounded)).map(|(_, entry)| entry)
    }

    /// How many entries there are, those of rules included.
    pub fn entry_count(&self) -> usize {
        self.entries.size()
    }

    /// How many of the entries come from rules.
    pub fn derived_count(&self) -> usize {
        self.derived
    }

    /// The entries right below `parent`.
    pub fn entries_of(&self, parent: &SpiffeId) -> impl Iterator<Item = &Arc<Held<RegistrationEntry>>> {
        self.by_parent.get(parent).into_iter().flat_map(|ids| ids.iter().filter_map(|id| self.entries.get(id)))
    }

    /// The node with this agent's ID.
    pub fn node(&self, agent: &SpiffeId) -> Option<&Arc<Held<Node>>> {
        self.nodes.get(agent)
    }

    /// The nodes whose IDs come after `after` (all, for `None`), in the order of their IDs.
    pub fn nodes_after(&self, after: Option<&SpiffeId>) -> impl Iterator<Item = &Arc<Held<Node>>> {
        use std::ops::Bound;
        let from = after.map_or(Bound::Unbounded, |id| Bound::Excluded(id.clone()));
        self.nodes.range((from, Bound::Unbounded)).map(|(_, node)| node)
    }

    /// How many nodes there are.
    pub fn node_count(&self) -> usize {
        self.nodes.size()
    }

    /// Whether `parent` is this node: its own ID, or a node alias all of whose selectors it has.
    pub fn is_parent(&self, parent: &SpiffeId, node: &Node, now: Timestamp) -> bool {
        *parent == node.id
            || self.aliases.get(parent).is_some_and(|ids| {
                ids.iter()
                    .filter_map(|id| self.entries.get(id))
                    .any(|alias| alias.is_live(now) && alias.selectors.is_subset_of(&node.selectors))
            })
    }

    /// Whether `parent` is the server, or the ID of a node or of a node alias.
    pub fn knows_parent(&self, parent: &SpiffeId) -> bool {
        *parent == self.server_id || self.nodes.contains_key(parent) || self.aliases.contains_key(parent)
    }

    /// The node's own ID and every node alias that it has at `now`.
    pub fn parents(&self, node: &Node, now: Timestamp) -> Vec<SpiffeId> {
        let aliases = self.entries_of(&self.server_id);
        let matching = aliases.filter(|alias| alias.is_live(now) && alias.selectors.is_subset_of(&node.selectors));
        let mut parents: Vec<SpiffeId> = matching.map(|alias| alias.spiffe_id.clone()).collect();
        parents.push(node.id.clone());
        parents.sort_unstable();
        parents.dedup();
        parents
    }

    /// Whether an SVID of `id` opens the Admin door at `now`.
    pub fn is_admin(&self, id: &SpiffeId, now: Timestamp) -> bool {
        self.admins
            .get(id)
            .is_some_and(|ids| ids.iter().filter_map(|id| self.entries.get(id)).any(|entry| entry.is_live(now)))
    }

    /// The entries marked admin that give the identity `id`.
    pub fn admins_of<'a>(&'a self, id: &SpiffeId) -> impl Iterator<Item = &'a EntryId> + use<'a> {
        self.admins.get(id).into_iter().flat_map(|ids| ids.iter())
    }

    /// The join token with this hexadecimal SHA-256.
    pub fn token(&self, hash: &str) -> Option<&Arc<Held<JoinToken>>> {
        self.tokens.get(hash)
    }

    /// The join tokens and their hashes.
    pub fn tokens(&self) -> impl Iterator<Item = (&String, &Arc<Held<JoinToken>>)> {
        self.tokens.iter()
    }

    /// The authorities of all servers.
    pub fn authorities(&self) -> &[Held<Authority>] {
        &self.authorities
    }

    /// Our own bundle. Its sequence is a revision: that of the last change of an authority, or the one loaded.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// The bundle of a foreign trust domain.
    pub fn foreign_bundle(&self, trust_domain: &TrustDomain) -> Option<&Arc<Held<Bundle>>> {
        self.foreign.get(trust_domain)
    }

    /// The bundles of foreign trust domains.
    pub fn foreign_bundles(&self) -> impl Iterator<Item = &Arc<Held<Bundle>>> {
        self.foreign.values()
    }

    /// The stored relationship with a foreign trust domain.
    pub fn relationship(&self, trust_domain: &TrustDomain) -> Option<&Arc<Held<Relationship>>> {
        self.relationships.get(trust_domain)
    }

    /// The stored relationships, in the order of their trust domains.
    pub fn relationships(&self) -> impl Iterator<Item = &Arc<Held<Relationship>>> {
        self.relationships.values()
    }

    /// How many relationships are stored.
    pub fn relationship_count(&self) -> usize {
        self.relationships.size()
    }

    /// The rule with this name.
    pub fn rule(&self, id: &RuleId) -> Option<&Arc<Held<Rule>>> {
        self.rules.get(id)
    }

    /// The rules, in the order of their names.
    pub fn rules(&self) -> impl Iterator<Item = &Arc<Held<Rule>>> {
        self.rules.values()
    }

    /// How many rules there are.
    pub fn rule_count(&self) -> usize {
        self.rules.size()
    }

    /// The pods on our nodes, as their API servers tell of them.
    pub fn pods(&self) -> &Pods {
        &self.pods
    }

    /// The cluster of `agent`, where there are rules for it and it has not told of all its pods yet: what entries the agent
    /// has is not known then.
    pub fn awaited_of(&self, agent: &SpiffeId) -> Option<&Arc<str>> {
        let awaited = self.pods.awaited_of(agent)?;
        self.rules().any(|rule| rule.selection.cluster.as_ref().is_none_or(|of| of == awaited)).then_some(awaited)
    }

    /// What signs now.
    pub fn issuers(&self) -> &Issuers {
        &self.issuers
    }

    /// What signs X.509-SVIDs now; `None` until this server has an active authority.
    pub fn issuer(&self) -> Option<&Arc<Issuer>> {
        self.issuers.x509.as_ref()
    }

    /// The same View with `issuers` in it: the private keys are in no commit.
    pub(crate) fn with_issuers(self, issuers: Issuers) -> Self {
        Self { issuers, ..self }
    }
}
