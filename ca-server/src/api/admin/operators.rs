//! Which entries make operators: the Admin door knows an operator by his SPIFFE ID, so all entries of one SPIFFE ID are
//! marked admin, or none is. Else whoever has an SVID of the unmarked one would come in too.
//!
//! - Each entry is compared with those of the View, and with those of the same request before it.
//! - An entry of a rule is none of an operator: the rule gives it no more once its SPIFFE ID is marked (`view/derive`), but
//!   the SVIDs that it had live on. So the mark is refused while there is one.
//! - Node aliases give no SVID: they cannot be marked, and do not count.

use std::collections::{HashMap, HashSet};

use spiffe::entry::{EntryId, RegistrationEntry};
use spiffe::id::SpiffeId;
use spiffe::proto::v1;

use crate::api::status::Refusal;
use crate::view::View;

/// The entries that those of one request are compared with.
pub(super) struct Operators<'a> {
    view: &'a View,
    /// Unmarked entries of the View with an ID that the request marks.
    unmarked: HashMap<SpiffeId, Vec<EntryId>>,
    asked: HashMap<SpiffeId, (EntryId, bool)>,
}

impl<'a> Operators<'a> {
    /// For a request that brings `entries`. Looks through the whole View, once, where one of them is marked.
    pub(super) fn new(view: &'a View, entries: &[v1::Entry]) -> Self {
        let marked = entries.iter().filter(|entry| entry.admin);
        // What is no ID is refused elsewhere.
        let marked: HashSet<SpiffeId> = marked.filter_map(|entry| SpiffeId::parse(&entry.spiffe_id).ok()).collect();
        let mut unmarked: HashMap<SpiffeId, Vec<EntryId>> = HashMap::new();
        if !marked.is_empty() {
            let others = view.entries_after(None).filter(|entry| !entry.admin && !entry.is_node_alias());
            for entry in others.filter(|entry| marked.contains(&entry.spiffe_id)) {
                unmarked.entry(entry.spiffe_id.clone()).or_default().push(entry.id.clone());
            }
        }
        Self { view, unmarked, asked: HashMap::new() }
    }

    /// Refuses an entry that is marked where another one of its SPIFFE ID is not, or the other way round.
    pub(super) fn check(&mut self, entry: &RegistrationEntry) -> Result<(), Refusal> {
        let id = &entry.spiffe_id;
        if entry.is_node_alias() {
            return if entry.admin { Err(alias(id)) } else { Ok(()) };
        }
        let mut others: Box<dyn Iterator<Item = &EntryId>> = if entry.admin {
            Box::new(self.unmarked.get(id).into_iter().flatten())
        } else {
            Box::new(self.view.admins_of(id))
        };
        let asked = self.asked.get(id).filter(|(_, admin)| *admin != entry.admin).map(|(other, _)| other);
        if let Some(other) = others.find(|other| **other != entry.id).or(asked) {
            return Err(if entry.admin { marked(id, other) } else { unmarked(id, other) });
        }
        drop(others);
        self.asked.insert(id.clone(), (entry.id.clone(), entry.admin));
        Ok(())
    }
}

fn alias(id: &SpiffeId) -> Refusal {
    Refusal::invalid(format_args!(
        "admin on the node alias {id}: no SVID is issued for an alias; mark the entry of a workload instead"
    ))
}

fn marked(id: &SpiffeId, other: &EntryId) -> Refusal {
    let first = if other.is_derived() { "change the rule that it comes from" } else { "delete that entry first" };
    Refusal::precondition(format_args!(
        "entry {other} has the SPIFFE ID {id} too and is not marked admin: whoever gets its SVID would be an operator. \
         Give operators an ID of their own, or {first}"
    ))
}

fn unmarked(id: &SpiffeId, other: &EntryId) -> Refusal {
    Refusal::precondition(format_args!(
        "{id} is an operator's, by entry {other}: whoever gets an SVID of this entry would be one too. Choose another \
         ID, or mark this entry admin as well"
    ))
}
