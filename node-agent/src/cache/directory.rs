//! The directory: which entries this node has and which bundles it knows, to be read by everyone at once. Pure.
//!
//! - A new state shares all that has not changed with the one before: whoever reads one keeps it as it was.
//! - An entry stands under one of its selectors, the one under which the fewest stand: what matches a process is found
//!   among few.
//! - *matching* is that of the machine: an entry that names nodes, or that has expired, gives nothing.

use std::sync::Arc;

use rpds::{HashTrieMapSync, RedBlackTreeMapSync};
use spiffe::bundle::Bundle;
use spiffe::entry::{EntryId, Place, RegistrationEntry};
use spiffe::id::TrustDomain;
use spiffe::selector::{Selector, Selectors};
use spiffe::time::Timestamp;

use crate::client::Update;

/// What this node knows. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Directory {
    synced: bool,
    own: Bundle,
    foreign: RedBlackTreeMapSync<TrustDomain, Bundle>,
    /// Each entry, and the selector under which it stands.
    entries: HashTrieMapSync<EntryId, (Arc<RegistrationEntry>, Selector)>,
    by_selector: HashTrieMapSync<Selector, Shelf>,
}

/// The default identity first.
type Shelf = RedBlackTreeMapSync<Place, Arc<RegistrationEntry>>;

/// What one process is entitled to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entitlement {
    /// The default identity first. Empty: it is entitled to nothing.
    pub entries: Vec<Arc<RegistrationEntry>>,
    /// Our own trust domain's first, then those that the entries federate with and that are known.
    pub bundles: Vec<Bundle>,
    /// When the first of the entries ceases.
    pub until: Option<Timestamp>,
}

impl Entitlement {
    /// Whether it is to nothing at all.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl Directory {
    /// Knows nothing but our own bundle.
    pub fn new(own: Bundle) -> Self {
        Self {
            synced: false,
            own,
            foreign: RedBlackTreeMapSync::new_sync(),
            entries: HashTrieMapSync::new_sync(),
            by_selector: HashTrieMapSync::new_sync(),
        }
    }

    /// Whether a server has said what there is.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// Takes in what the server said.
    pub fn apply(&mut self, update: &Update) {
        self.synced = true;
        if update.snapshot {
            self.foreign = RedBlackTreeMapSync::new_sync();
            self.entries = HashTrieMapSync::new_sync();
            self.by_selector = HashTrieMapSync::new_sync();
        }
        update.removed_entries.iter().for_each(|id| self.remove(id));
        update.entries.iter().for_each(|entry| self.put(entry));
        for domain in &update.removed_bundles {
            self.foreign.remove_mut(domain);
        }
        for bundle in &update.bundles {
            if bundle.trust_domain() == self.own.trust_domain() {
                self.own = bundle.clone();
            } else {
                self.foreign.insert_mut(bundle.trust_domain().clone(), bundle.clone());
            }
        }
    }

    /// Our own trust domain's bundle.
    pub fn own(&self) -> &Bundle {
        &self.own
    }

    /// The entry with this ID.
    pub fn entry(&self, id: &EntryId) -> Option<&Arc<RegistrationEntry>> {
        self.entries.get(id).map(|(entry, _)| entry)
    }

    /// What a process with these selectors is entitled to at `now`.
    pub fn entitlement(&self, selectors: &Selectors, now: Timestamp) -> Entitlement {
        let shelves = selectors.iter().filter_map(|selector| self.by_selector.get(selector));
        let gives = |entry: &&Arc<RegistrationEntry>| entry.is_live(now) && entry.selectors.is_subset_of(selectors);
        let mut entries: Vec<_> = shelves.flat_map(|shelf| shelf.values()).filter(gives).cloned().collect();
        entries.sort_by_cached_key(|entry| entry.place());
        let mut foreign: Vec<&TrustDomain> = entries.iter().flat_map(|entry| &entry.federates_with).collect();
        foreign.sort();
        foreign.dedup();
        let foreign = foreign.into_iter().filter_map(|domain| self.foreign.get(domain));
        let bundles = std::iter::once(&self.own).chain(foreign).cloned().collect();
        let until = entries.iter().filter_map(|entry| entry.expires_at).min();
        Entitlement { entries, bundles, until }
    }

    fn put(&mut self, entry: &Arc<RegistrationEntry>) {
        self.remove(&entry.id);
        if entry.is_node_alias() {
            return;
        }
        let standing = |selector: &&Selector| self.by_selector.get(selector).map_or(0, Shelf::size);
        // There is at least one: an entry without selectors is none.
        let Some(selector) = entry.selectors.iter().min_by_key(standing).cloned() else { return };
        let shelf = self.by_selector.get(&selector).cloned().unwrap_or_else(Shelf::new_sync);
        let shelf = shelf.insert(entry.place(), entry.clone());
        self.by_selector.insert_mut(selector.clone(), shelf);
        self.entries.insert_mut(entry.id.clone(), (entry.clone(), selector));
    }

    fn remove(&mut self, id: &EntryId) {
        let Some((entry, selector)) = self.entries.get(id).cloned() else { return };
        self.entries.remove_mut(id);
        let shelf = self.by_selector.get(&selector).map(|shelf| shelf.remove(&entry.place()));
        match shelf.filter(|shelf| !shelf.is_empty()) {
            Some(shelf) => self.by_selector.insert_mut(selector, shelf),
            None => drop(self.by_selector.remove_mut(&selector)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use spiffe::entry::RuleId;

    use super::*;

    const NOW: Timestamp = Timestamp::from_unix(1_800_000_000);

    fn domain(name: &str) -> TrustDomain {
        TrustDomain::parse(name).unwrap()
    }

    /// `selectors`: bits of a mask.
    fn selectors(mask: u8) -> Selectors {
        Selectors::parse((0..5).filter(|bit| mask & (1 << bit) != 0).map(|bit| format!("unix:uid:{bit}"))).unwrap()
    }

    fn entry(number: u8, mask: u8) -> RegistrationEntry {
        RegistrationEntry {
            id: EntryId::parse(&format!("e{number}")).unwrap(),
            spiffe_id: domain("example.org").member(&format!("/w{number}")).unwrap(),
            parent: domain("example.org").agent_id("join_token", "1").unwrap(),
            selectors: selectors(mask),
            x509_ttl: None,
            jwt_ttl: None,
            wit_ttl: None,
            jti: false,
            dns_names: Vec::new(),
            hint: String::new(),
            admin: false,
            federates_with: Vec::new(),
            expires_at: None,
            key_type: None,
            created_at: Timestamp::from_unix(u64::from(number % 3)),
            rule: (number % 2 == 1).then(|| RuleId::parse("pods").unwrap()),
        }
    }

    fn said(entries: Vec<RegistrationEntry>) -> Update {
        Update { entries: entries.into_iter().map(Arc::new).collect(), ..Update::default() }
    }

    fn directory(entries: Vec<RegistrationEntry>) -> Directory {
        let mut directory = Directory::new(Bundle::empty(domain("example.org")));
        directory.apply(&said(entries));
        directory
    }

    #[test]
    fn what_has_expired_and_what_names_nodes_gives_nothing() {
        let ends = RegistrationEntry { expires_at: Some(NOW), ..entry(1, 1) };
        let alias = RegistrationEntry { parent: domain("example.org").server_id(), ..entry(2, 1) };
        let directory = directory(vec![ends, alias]);
        let before = directory.entitlement(&selectors(1), NOW.minus(std::time::Duration::from_secs(1)));
        assert_eq!((before.entries.len(), before.until), (1, Some(NOW)));
        assert!(directory.entitlement(&selectors(1), NOW).is_empty());
    }

    #[test]
    fn bundles_are_our_own_and_those_that_entries_name_and_are_known() {
        let federates = |number, names: &[&str]| RegistrationEntry {
            federates_with: names.iter().map(|name| domain(name)).collect(),
            ..entry(number, 1 << number)
        };
        let mut directory = directory(vec![federates(1, &["b.org", "unknown.org"]), federates(2, &["a.org", "b.org"])]);
        let bundles = ["a.org", "b.org", "c.org"].map(|name| Bundle::empty(domain(name))).to_vec();
        directory.apply(&Update { bundles, ..Update::default() });
        let named = |directory: &Directory, mask| -> Vec<String> {
            let bundles = directory.entitlement(&selectors(mask), NOW).bundles;
            bundles.iter().map(|bundle| bundle.trust_domain().to_string()).collect()
        };
        assert_eq!(named(&directory, 0b010), ["example.org", "b.org"]);
        assert_eq!(named(&directory, 0b110), ["example.org", "a.org", "b.org"]);
        directory.apply(&Update { removed_bundles: vec![domain("b.org")], ..Update::default() });
        assert_eq!(named(&directory, 0b010), ["example.org"]);
    }

    proptest! {
        #[test]
        fn what_matches_is_found_whatever_has_happened(
            steps in prop::collection::vec((any::<bool>(), 0..8_u8, 1..32_u8, any::<bool>()), 0..40),
            mask in 0..32_u8,
        ) {
            let mut directory = directory(Vec::new());
            let mut known = BTreeMap::new();
            for (puts, number, mask, snapshot) in steps {
                let entry = entry(number, mask);
                if snapshot && number == 7 {
                    known.clear();
                    directory.apply(&Update { snapshot: true, ..Update::default() });
                } else if puts {
                    known.insert(entry.id.clone(), entry.clone());
                    directory.apply(&said(vec![entry]));
                } else {
                    known.remove(&entry.id);
                    directory.apply(&Update { removed_entries: vec![entry.id], ..Update::default() });
                }
            }
            let found = selectors(mask);
            let mut expected: Vec<_> = known.values().filter(|entry| entry.selectors.is_subset_of(&found)).collect();
            expected.sort_by_key(|entry| (entry.rule.is_some(), entry.created_at, entry.id.clone()));
            let entitlement = directory.entitlement(&found, NOW);
            prop_assert_eq!(entitlement.entries.iter().map(Arc::as_ref).collect::<Vec<_>>(), expected);
            prop_assert_eq!(directory.entries.size(), known.len());
            let standing: usize = directory.by_selector.values().map(Shelf::size).sum();
            prop_assert_eq!(standing, known.len(), "none stands twice, and no empty shelf is kept");
            prop_assert!(directory.by_selector.values().all(|shelf| !shelf.is_empty()));
        }
    }
}
