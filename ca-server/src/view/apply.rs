//! A View from a store's range, and the next View from a commit or from what is told of pods.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use rpds::{HashTrieMapSync, HashTrieSetSync, RedBlackTreeSetSync};
use rustls_pki_types::CertificateDer;
use spiffe::bundle::{Bundle, X509Authority};
use spiffe::entry::{EntryId, RegistrationEntry, RuleId};
use spiffe::id::{SpiffeId, TrustDomain};
use spiffe::rule::Rule;

use super::derive::Book;
use super::pods::{PodEvent, Pods};
use super::record::{
    JoinToken, Node, RecordError, bundle_from_record, entry_from_record, relationship_from_record, rule_from_record,
};
use super::rework::{Rework, Visit, marked_or_not};
use super::{Held, View, ViewError, keys};
use crate::authority::{self, Authority, Public};
use crate::store::{Commit, KeyValue, Revision, Write};

/// What a commit changed, for those who are to be told.
#[derive(Clone, Debug)]
pub enum Change {
    /// An entry: as it was, as it is.
    Entry {
        /// `None`: it is new.
        before: Option<Arc<Held<RegistrationEntry>>>,
        /// `None`: it is gone.
        after: Option<Arc<Held<RegistrationEntry>>>,
    },
    /// A node attested, renewed, was banned or evicted.
    Node(SpiffeId),
    /// Our own bundle.
    Bundle,
    /// The bundle of a foreign trust domain.
    ForeignBundle(TrustDomain),
    /// The relationship with a foreign trust domain.
    Relationship(TrustDomain),
}

impl View {
    /// The View of everything in the store, as `range("")` gave it.
    pub fn load(trust_domain: TrustDomain, records: Vec<KeyValue>, revision: Revision) -> Result<Self, ViewError> {
        let mut view = Self::empty(trust_domain);
        let mut authorities = Vec::new();
        let mut changes = Vec::new();
        for KeyValue { key, value, revision } in records {
            view.put(&key, &value, revision, &mut authorities, &mut changes)
                .map_err(|error| ViewError { key, error })?;
            changes.clear();
        }
        if !authorities.is_empty() {
            view.set_authorities(authorities, revision);
        }
        view.book = Arc::new(Book::new(view.rules.values()));
        view.revision = revision;
        Ok(view)
    }

    /// The View after `commit`, and what changed. A record that cannot be read leaves this View as it is.
    pub fn apply(&self, commit: &Commit) -> Result<(Self, Vec<Change>), ViewError> {
        Ok(self.begin(commit)?.done())
    }

    /// The same, piece by piece.
    pub(super) fn begin(&self, commit: &Commit) -> Result<Rework, ViewError> {
        let mut view = self.clone();
        let mut changes = Vec::new();
        let of_authority = |write: &Write| write.key().starts_with(keys::AUTHORITIES);
        let mut authorities: Vec<Held<Authority>> = Vec::new();
        if commit.writes.iter().any(of_authority) {
            let held = |held: &Held<Authority>| Held { value: held.value.clone(), revision: held.revision };
            authorities = self.authorities.iter().map(held).collect();
        }
        for write in &commit.writes {
            match write {
                Write::Put { key, value } => view
                    .put(key, value, commit.revision, &mut authorities, &mut changes)
                    .map_err(|error| ViewError { key: key.clone(), error })?,
                Write::Delete { key } => view.delete(key, &mut authorities, &mut changes),
            }
        }
        if commit.writes.iter().any(of_authority) {
            view.set_authorities(authorities, commit.revision);
            changes.push(Change::Bundle);
        }
        view.revision = commit.revision;
        let is_rule = |write: &Write| write.key().strip_prefix(keys::RULES).and_then(|id| RuleId::parse(id).ok());
        let written: Vec<RuleId> = commit.writes.iter().filter_map(is_rule).collect();
        if !written.is_empty() {
            view.book = Arc::new(Book::new(view.rules.values()));
        }
        let marked = marked_or_not(&self.admins, &view.admins, &changes);
        if written.is_empty() && marked.is_empty() {
            let nobody = self.law(Arc::default());
            return Ok(Rework::new(view, changes, nobody.clone(), nobody, Vec::new()));
        }
        let versions = || [self, &view].into_iter().flat_map(|view| written.iter().filter_map(|id| view.rules.get(id)));
        let is_concerned = |rule: &Rule| {
            versions().any(|written| rule.may_meet(written)) || marked.iter().any(|id| rule.could_give(id))
        };
        let (before, after) = (self.law(self.book.part(is_concerned)), view.law(view.book.part(is_concerned)));
        let visits = match before.book.count() + after.book.count() {
            0 => Vec::new(),
            _ => view.every_pod(|pod| (Some(Arc::clone(&pod)), Some(pod))),
        };
        Ok(Rework::new(view, changes, before, after, visits))
    }

    /// This View, which was just loaded and has no pods, where these clusters are still to tell of theirs.
    pub(crate) fn awaiting(self, clusters: impl IntoIterator<Item = Arc<str>>) -> Self {
        Self { pods: Pods::awaiting(clusters), ..self }
    }

    /// This View, which was just loaded and has no pods, with those that are known.
    pub(super) fn with_pods(mut self, pods: Pods) -> Rework {
        self.pods = pods;
        let (law, visits) = (self.law(Arc::clone(&self.book)), self.every_pod(|pod| (None, Some(pod))));
        Rework::new(self, Vec::new(), law.clone(), law, visits)
    }

    /// The View after what was told of pods, and what changed. It is of the same revision: the store has no part in it.
    /// Judges those pods alone that are different.
    pub fn told(&self, events: impl IntoIterator<Item = PodEvent>) -> (Self, Vec<Change>) {
        self.begin_told(events).done()
    }

    /// The same, piece by piece.
    pub(super) fn begin_told(&self, events: impl IntoIterator<Item = PodEvent>) -> Rework {
        let mut view = self.clone();
        let mut concerned = Vec::new();
        for event in events {
            let (pods, agents) = view.pods.after(event);
            view.pods = pods;
            concerned.extend(agents);
        }
        concerned.sort_unstable();
        concerned.dedup();
        let mut visits: Vec<Visit> =
            concerned.iter().flat_map(|agent| differences(&self.pods, &view.pods, agent)).collect();
        // What goes first, so that nothing is over a limit on the way that is within it at the end.
        visits.sort_by_key(|(_, is)| is.is_some());
        let law = view.law(Arc::clone(&view.book));
        Rework::new(view, Vec::new(), law.clone(), law, visits)
    }

    fn put(
        &mut self,
        key: &str,
        value: &Bytes,
        revision: Revision,
        authorities: &mut Vec<Held<Authority>>,
        changes: &mut Vec<Change>,
    ) -> Result<(), RecordError> {
        if key.starts_with(keys::ENTRIES) {
            let after = Arc::new(Held { value: entry_from_record(value)?, revision });
            let before = self.forget_entry(&after.id);
            self.learn_entry(&after);
            changes.push(Change::Entry { before, after: Some(after) });
        } else if key.starts_with(keys::NODES) {
            let node = Node::from_record(value)?;
            changes.push(Change::Node(node.id.clone()));
            self.nodes.insert_mut(node.id.clone(), Arc::new(Held { value: node, revision }));
        } else if let Some(hash) = key.strip_prefix(keys::TOKENS) {
            self.tokens.insert_mut(hash.to_owned(), Arc::new(Held { value: JoinToken::from_record(value)?, revision }));
        } else if key.starts_with(keys::AUTHORITIES) {
            let authority = authority::record::decode(value)?;
            authorities.retain(|held| held.id != authority.id);
            authorities.push(Held { value: authority, revision });
        } else if key.starts_with(keys::BUNDLES) {
            let bundle = bundle_from_record(value)?;
            changes.push(Change::ForeignBundle(bundle.trust_domain().clone()));
            self.foreign.insert_mut(bundle.trust_domain().clone(), Arc::new(Held { value: bundle, revision }));
        } else if key.starts_with(keys::FEDERATION) {
            let relationship = relationship_from_record(value)?;
            let trust_domain = relationship.trust_domain.clone();
            changes.push(Change::Relationship(trust_domain.clone()));
            self.relationships.insert_mut(trust_domain, Arc::new(Held { value: relationship, revision }));
        } else if key.starts_with(keys::RULES) {
            let rule = rule_from_record(value)?;
            self.rules.insert_mut(rule.id.clone(), Arc::new(Held { value: rule, revision }));
        }
        // unique/ guards writers only; a prefix of a later release means nothing to this one.
        Ok(())
    }

    fn delete(&mut self, key: &str, authorities: &mut Vec<Held<Authority>>, changes: &mut Vec<Change>) {
        if let Some(id) = key.strip_prefix(keys::ENTRIES) {
            let before = EntryId::parse(id).ok().and_then(|id| self.forget_entry(&id));
            changes.push(Change::Entry { before, after: None });
        } else if let Some(path) = key.strip_prefix(keys::NODES) {
            let id = path.split_once('/').map(|(attestor, node)| self.trust_domain.agent_id(attestor, node));
            if let Some(Ok(id)) = id {
                self.nodes.remove_mut(&id);
                changes.push(Change::Node(id));
            }
        } else if let Some(hash) = key.strip_prefix(keys::TOKENS) {
            self.tokens.remove_mut(hash);
        } else if key.starts_with(keys::AUTHORITIES) {
            authorities.retain(|held| held.key() != key);
        } else if let Some(name) = key.strip_prefix(keys::BUNDLES)
            && let Ok(trust_domain) = TrustDomain::parse(name)
        {
            self.foreign.remove_mut(&trust_domain);
            changes.push(Change::ForeignBundle(trust_domain));
        } else if let Some(name) = key.strip_prefix(keys::FEDERATION)
            && let Ok(trust_domain) = TrustDomain::parse(name)
        {
            self.relationships.remove_mut(&trust_domain);
            changes.push(Change::Relationship(trust_domain));
        } else if let Some(id) = key.strip_prefix(keys::RULES)
            && let Ok(id) = RuleId::parse(id)
        {
            self.rules.remove_mut(&id);
        }
    }

    pub(super) fn learn_entry(&mut self, entry: &Arc<Held<RegistrationEntry>>) {
        let mut siblings = self.by_parent.get(&entry.parent).cloned().unwrap_or_else(RedBlackTreeSetSync::new_sync);
        siblings.insert_mut(entry.id.clone());
        self.by_parent.insert_mut(entry.parent.clone(), siblings);
        if entry.is_node_alias() {
            index(&mut self.aliases, &entry.spiffe_id, &entry.id);
        }
        if entry.admin {
            index(&mut self.admins, &entry.spiffe_id, &entry.id);
        }
        self.derived += usize::from(entry.rule.is_some());
        self.entries.insert_mut(entry.id.clone(), Arc::clone(entry));
    }

    pub(super) fn forget_entry(&mut self, id: &EntryId) -> Option<Arc<Held<RegistrationEntry>>> {
        let entry = self.entries.get(id).cloned()?;
        self.entries.remove_mut(id);
        if let Some(mut siblings) = self.by_parent.get(&entry.parent).cloned() {
            siblings.remove_mut(id);
            if siblings.is_empty() {
                self.by_parent.remove_mut(&entry.parent);
            } else {
                self.by_parent.insert_mut(entry.parent.clone(), siblings);
            }
        }
        if entry.is_node_alias() {
            unindex(&mut self.aliases, &entry.spiffe_id, id);
        }
        if entry.admin {
            unindex(&mut self.admins, &entry.spiffe_id, id);
        }
        self.derived -= usize::from(entry.rule.is_some());
        Some(entry)
    }

    /// `sequence` is a revision, so that it grows with each change and never goes back over a restart.
    fn set_authorities(&mut self, mut authorities: Vec<Held<Authority>>, sequence: u64) {
        authorities.sort_by(|a, b| (a.kind(), a.prepared_at, &a.id).cmp(&(b.kind(), b.prepared_at, &b.id)));
        self.bundle = own_bundle(&self.trust_domain, &authorities, sequence);
        self.authorities = authorities.into();
    }
}

/// The pods of one node that are not what they were.
fn differences(before: &Pods, after: &Pods, agent: &SpiffeId) -> Vec<Visit> {
    let mut pods: BTreeMap<&str, Visit> = BTreeMap::new();
    for pod in before.of_agent(agent) {
        pods.entry(&pod.uid).or_default().0 = Some(Arc::clone(pod));
    }
    for pod in after.of_agent(agent) {
        pods.entry(&pod.uid).or_default().1 = Some(Arc::clone(pod));
    }
    pods.into_values().filter(|(was, is)| was != is).collect()
}

/// The union of the roots and keys of all authorities. A tainted CA marks its root when it is that root, and itself when
/// it stands below one: what else is below that root stays good. A tainted key marks itself.
fn own_bundle(trust_domain: &TrustDomain, authorities: &[Held<Authority>], sequence: u64) -> Bundle {
    let (mut roots, mut tainted_below) = (Vec::new(), Vec::new());
    let (mut jwt, mut wit) = (Vec::new(), Vec::new());
    for held in authorities {
        // Every record was made from certificates that parse: passing over one that does not loses nothing.
        let parse = |der: &CertificateDer<'static>| X509Authority::from_der(der.clone()).ok();
        match &held.public {
            Public::X509(chain) => {
                let below = held.tainted && chain.is_upstream();
                roots.extend(parse(chain.root()).map(|root| root.with_taint(held.tainted && !below)));
                let own = Some(chain.own()).filter(|_| below).and_then(parse);
                tainted_below.extend(own.and_then(|own| own.subject_key_id().map(<[u8]>::to_vec)));
            }
            Public::Jwt(key) => jwt.push(key.jwk().clone().with_taint(held.tainted)),
            Public::Wit(key) => wit.push(key.jwk().clone().with_taint(held.tainted)),
        }
    }
    let bundle = Bundle::new(trust_domain.clone(), roots, sequence, None)
        .unwrap_or_else(|_| Bundle::empty(trust_domain.clone()))
        .with_tainted_intermediates(tainted_below);
    bundle.clone().with_jwk_authorities(jwt, wit).unwrap_or(bundle)
}

impl Held<Authority> {
    /// The key of the store that holds it.
    pub fn key(&self) -> String {
        authority::record::key(&self.value)
    }
}

pub(super) type Index = HashTrieMapSync<SpiffeId, HashTrieSetSync<EntryId>>;

fn index(map: &mut Index, at: &SpiffeId, id: &EntryId) {
    let mut ids = map.get(at).cloned().unwrap_or_else(HashTrieSetSync::new_sync);
    ids.insert_mut(id.clone());
    map.insert_mut(at.clone(), ids);
}

fn unindex(map: &mut Index, at: &SpiffeId, id: &EntryId) {
    if let Some(mut ids) = map.get(at).cloned() {
        ids.remove_mut(id);
        if ids.is_empty() {
            map.remove_mut(at);
        } else {
            map.insert_mut(at.clone(), ids);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use spiffe::entry::DnsName;
    use spiffe::selector::Selectors;
    use spiffe::time::Timestamp;

    use super::*;
    use crate::store::mem::MemStore;
    use crate::store::{Store, Txn};
    use crate::view::record::entry_to_record;

    const NOW: Timestamp = Timestamp::from_unix(1_800_000_000);

    fn domain() -> TrustDomain {
        TrustDomain::parse("example.org").unwrap()
    }

    fn node() -> Node {
        let id = domain().agent_id("join_token", "1").unwrap();
        Node {
            selectors: Selectors::parse(["x:1".to_owned(), "x:2".to_owned(), format!("agent_id:{id}")]).unwrap(),
            id,
            attestor: "join_token".into(),
            serial: vec![1],
            previous_serial: vec![],
            expires_at: NOW,
            attested_at: NOW,
            banned: false,
        }
    }

    /// One of few entries, so that a walk meets each again and again.
    fn entry(id: u8, shape: u8) -> RegistrationEntry {
        let parents = [
            node().id,
            domain().agent_id("join_token", "2").unwrap(),
            domain().member("/pool").unwrap(),
            domain().server_id(),
        ];
        let parent = parents[usize::from(shape % 4)].clone();
        let selector = if shape & 16 == 0 { "x:1" } else { "x:3" };
        RegistrationEntry {
            id: EntryId::parse(&format!("e{id}")).unwrap(),
            spiffe_id: domain().member(if parent.is_server() { "/pool" } else { "/web" }).unwrap(),
            parent,
            selectors: Selectors::parse([selector]).unwrap(),
            x509_ttl: None,
            jwt_ttl: None,
            wit_ttl: None,
            jti: false,
            dns_names: vec![DnsName::parse(&format!("s{shape}.example.org")).unwrap()],
            hint: String::new(),
            admin: shape & 4 == 0,
            federates_with: vec![],
            expires_at: (shape & 8 == 0).then_some(NOW),
            key_type: None,
            created_at: NOW,
            rule: None,
        }
    }

    /// Everything that a reader could ask this View.
    fn answers(view: &View) -> String {
        let entries: Vec<_> = view.entries_after(None).map(|held| (&held.value, held.revision)).collect();
        let parents = view.parents(&node(), NOW);
        let below: Vec<Vec<&EntryId>> =
            parents.iter().map(|parent| view.entries_of(parent).map(|held| &held.id).collect()).collect();
        let is_parent = view.is_parent(&domain().member("/pool").unwrap(), &node(), NOW);
        let is_admin = view.is_admin(&domain().member("/web").unwrap(), NOW);
        format!("{} {entries:?} {parents:?} {below:?} {is_parent} {is_admin}", view.revision())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]
        #[test]
        fn commit_by_commit_is_the_same_as_all_at_once(walk in prop::collection::vec((0u8..6, prop::option::of(0u8..32)), 1..40)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let store = MemStore::new();
                let mut watch = store.watch("", 0).await.unwrap();
                let mut view = View::empty(domain());
                for (id, shape) in walk {
                    let key = format!("entry/e{id}");
                    let txn = match shape {
                        Some(shape) => Txn::new().put(key, entry_to_record(&entry(id, shape))),
                        None => Txn::new().delete(key),
                    };
                    let revision = store.commit(txn).await.unwrap();
                    if revision > view.revision() {
                        view = view.apply(&watch.next().await.unwrap()).unwrap().0;
                    }
                }
                let (records, revision) = store.range("").await.unwrap();
                let whole = View::load(domain(), records, revision).unwrap();
                assert_eq!(answers(&view), answers(&whole));
                let parents = view.parents(&node(), NOW);
                assert_eq!(
                    view.is_parent(&domain().member("/pool").unwrap(), &node(), NOW),
                    parents.contains(&domain().member("/pool").unwrap()),
                );
            });
        }
    }

    #[test]
    fn a_relationship_comes_and_goes() {
        let other = TrustDomain::parse("other.org").unwrap();
        let url = spiffe::federation::EndpointUrl::parse("https://bundles.other.org/").unwrap();
        let web = spiffe::federation::ProfileName::HttpsWeb;
        let made = spiffe::federation::Relationship::new(other.clone(), url, web, None).unwrap();
        let (key, value) = (keys::relationship(&other), crate::view::record::relationship_to_record(&made));
        let commit = |revision, write| Commit { revision, writes: vec![write] };
        let put = Write::Put { key: key.clone(), value };
        let (view, changes) = View::empty(domain()).apply(&commit(1, put)).unwrap();
        assert!(matches!(&changes[..], [Change::Relationship(of)] if *of == other));
        assert_eq!(view.relationship(&other).unwrap().value, made);
        let (view, _) = view.apply(&commit(2, Write::Delete { key })).unwrap();
        assert_eq!((view.relationship_count(), view.relationship(&other).is_none()), (0, true));
    }

    #[test]
    fn a_record_that_cannot_be_read_is_named_and_leaves_the_view() {
        let view = View::empty(domain());
        let writes = vec![Write::Put { key: "entry/a".into(), value: Bytes::from_static(b"\x01junk") }];
        let error = view.apply(&Commit { revision: 1, writes }).unwrap_err();
        assert!(error.to_string().starts_with("the store's record entry/a cannot be decoded"), "{error}");
        assert_eq!(view.entry_count(), 0);
    }
}
