//! Which entries make operators: the Admin door knows an operator by his SPIFFE ID, so all entries of one SPIFFE ID are
//! marked admin, or none is. Else whoever has an SVID of the unmarked one would come in too.
//!
//! - Each entry is compared with those of the View, and with those of the same request before it.
//! - An ID that a rule could give, to whatever pod, is not marked: the rule gives it no more from then on (`view/derive`),
//!   but SVIDs live on, and pods come and go. No entry that is there now tells who holds one.
//! - Where Istio's door is open, no ID of a service account is marked, for the same reason: it gives any of them.
//! - What is marked already may be marked once more: since then nobody else was given it.
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
    gives_service_accounts: bool,
}

impl<'a> Operators<'a> {
    /// For a request that brings `entries`. Looks through the whole View, once, where one of them is marked.
    pub(super) fn new(view: &'a View, entries: &[v1::Entry], gives_service_accounts: bool) -> Self {
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
        Self { view, unmarked, asked: HashMap::new(), gives_service_accounts }
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
        if entry.admin && self.view.admins_of(id).next().is_none() {
            self.check_others_never_held(id)?;
        }
        self.asked.insert(id.clone(), (entry.id.clone(), entry.admin));
        Ok(())
    }

    /// Refuses an ID whose SVIDs pods may hold already, without an entry that says so.
    fn check_others_never_held(&self, id: &SpiffeId) -> Result<(), Refusal> {
        if let Some(rule) = self.view.rules().find(|rule| rule.could_give(id)) {
            return Err(Refusal::precondition(format_args!(
                "the rule {} could give {id} to a pod: whoever holds such an SVID would be an operator. Give operators an \
                 ID of their own, which no rule's template can make",
                rule.id
            )));
        }
        if self.gives_service_accounts && is_of_service_account(id) {
            return Err(Refusal::precondition(format_args!(
                "{id} is the ID of a service account, and Istio's door gives it to whoever is one: give operators an ID of \
                 another form"
            )));
        }
        Ok(())
    }
}

/// Whether Istio would give this ID: `/ns/<namespace>/sa/<service account>`.
fn is_of_service_account(id: &SpiffeId) -> bool {
    matches!(&id.path().split('/').collect::<Vec<_>>()[..], ["", "ns", _, "sa", _])
}

fn alias(id: &SpiffeId) -> Refusal {
    Refusal::invalid(format_args!(
        "admin on the node alias {id}: no SVID is issued for an alias; mark the entry of a workload instead"
    ))
}

fn marked(id: &SpiffeId, other: &EntryId) -> Refusal {
    let first = match other.is_derived() {
        true => "change the rule that it comes from",
        false => "delete that entry first, and wait until the last SVID that it gave has ended",
    };
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
