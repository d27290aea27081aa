//! Derived entries: what the pods of a node get by the rules. Pure.
//!
//! - *below the own agent*: an entry of a pod has the agent of its node as its parent: it is there while such a pod is on
//!   that node, and what an agent may ask for is what pods it has.
//! - *named by what it is for*: the ID of a derived entry is a hash of its rule, its parent, its identity and its selectors.
//!   What else its rule says (lives, names, a hint) can change, and the entry is the same one: whoever has an SVID by it keeps
//!   that until he has another. Its revision is a hash of all its content.
//! - *the older rule first*: where two rules give one identity for the same selectors, the older one's entry counts.
//! - *no operators*: an identity that an entry marked admin gives is never a pod's.
//! - What it costs: each rule is held against each pod of the nodes that are looked at, once.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use prost::Message as _;
use spiffe::crypto::sha256;
use spiffe::entry::{EntryId, RegistrationEntry, RuleId};
use spiffe::id::SpiffeId;
use spiffe::proto::v1;
use spiffe::rule::{Facts, Mismatch, Refused, Rule};
use spiffe::selector::Selectors;

use super::pods::Pod;
use super::{Held, View};
use crate::store::Revision;

/// What a rule comes to for a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It gives this entry.
    Gives(Box<RegistrationEntry>),
    /// An older rule gives the same identity for the same selectors already.
    Same(RuleId),
    /// It is for other pods.
    Differs(Mismatch),
    /// It is for this pod, and a template refuses it.
    Refused(Refused),
    /// It would give an identity that is an operator's.
    Operator(SpiffeId),
}

impl Verdict {
    /// Whether the pod is one of the rule's, and yet gets nothing by it.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Operator(_))
    }
}

/// What the pods of one node get.
#[derive(Debug, Default)]
pub(super) struct Derived {
    /// Each distinct entry once, however many pods have it.
    pub(super) entries: BTreeMap<EntryId, RegistrationEntry>,
    /// How many times a pod that is selected gets nothing.
    pub(super) refused: usize,
}

/// The rules, the older before the younger.
pub(super) fn in_order<'a>(rules: impl Iterator<Item = &'a Arc<Held<Rule>>>) -> Vec<Arc<Held<Rule>>> {
    let mut rules: Vec<Arc<Held<Rule>>> = rules.cloned().collect();
    rules.sort_by(|one, other| (one.created_at, &one.id).cmp(&(other.created_at, &other.id)));
    rules
}

/// What the pods of a node get by `rules`, which are in order.
pub(super) fn of_node<'a>(
    rules: &[Arc<Held<Rule>>],
    pods: impl Iterator<Item = &'a Arc<Pod>>,
    is_operator: impl Fn(&SpiffeId) -> bool,
) -> Derived {
    let mut derived = Derived::default();
    if rules.is_empty() {
        return derived;
    }
    for pod in pods {
        judge(rules, pod, &is_operator, |_, verdict| match verdict {
            Verdict::Gives(entry) => drop(derived.entries.insert(entry.id.clone(), *entry)),
            verdict => derived.refused += usize::from(verdict.is_refusal()),
        });
    }
    derived
}

/// What each of `rules`, which are in order, comes to for `pod`.
fn judge(
    rules: &[Arc<Held<Rule>>],
    pod: &Pod,
    is_operator: impl Fn(&SpiffeId) -> bool,
    mut told: impl FnMut(&Arc<Held<Rule>>, Verdict),
) {
    let facts = facts(pod);
    let mut given: Vec<(SpiffeId, Selectors, RuleId)> = Vec::new();
    for rule in rules {
        let verdict = match rule.selects(&facts) {
            Err(mismatch) => Verdict::Differs(mismatch),
            Ok(()) => match rule.entry(&facts, &pod.agent, name) {
                Err(refused) => Verdict::Refused(refused),
                Ok(entry) if is_operator(&entry.spiffe_id) => Verdict::Operator(entry.spiffe_id),
                // What makes two stored entries one too many.
                Ok(entry) => match given.iter().find(|(id, of, _)| *id == entry.spiffe_id && *of == entry.selectors) {
                    Some((_, _, older)) => Verdict::Same(older.clone()),
                    None => {
                        given.push((entry.spiffe_id.clone(), entry.selectors.clone(), rule.id.clone()));
                        Verdict::Gives(Box::new(entry))
                    }
                },
            },
        };
        told(rule, verdict);
    }
}

fn facts(pod: &Pod) -> Facts<'_> {
    Facts {
        cluster: &pod.cluster,
        namespace: &pod.namespace,
        namespace_labels: &pod.namespace_labels,
        service_account: &pod.service_account,
        pod_name: &pod.name,
        pod_uid: &pod.uid,
        pod_labels: &pod.labels,
        node_name: &pod.node_name,
    }
}

/// The ID of this entry.
fn name(entry: &RegistrationEntry) -> EntryId {
    let v1::Entry { rule, parent, spiffe_id, selectors, .. } = v1::Entry::from(entry);
    let what_for = v1::Entry { rule, parent, spiffe_id, selectors, ..v1::Entry::default() };
    EntryId::derived(sha256(&what_for.encode_to_vec()))
}

/// What tells an entry from the same one with other content, as its revision tells a stored one. The same after a restart,
/// and never a revision of the store: no writer expects it.
pub(super) fn revision(entry: &RegistrationEntry) -> Revision {
    let [a, b, c, d, e, f, g, h, ..] = sha256(&v1::Entry::from(entry).encode_to_vec());
    Revision::from_be_bytes([a, b, c, d, e, f, g, h])
}

/// What a rule has come to, over all pods.
#[derive(Debug, Default)]
pub struct Account {
    /// How many pods it selects.
    pub pods: usize,
    /// How many entries it gives, each distinct one once.
    pub entries: usize,
    /// How many pods it selects and gives nothing.
    pub refused: usize,
    /// The first of those, at most as many as were asked for, and why.
    pub refusals: Vec<(Arc<Pod>, Verdict)>,
}

impl View {
    /// What each rule comes to for `pod`, the oldest rule first.
    pub fn explain(&self, pod: &Pod) -> Vec<(Arc<Held<Rule>>, Verdict)> {
        let mut verdicts = Vec::new();
        let is_operator = |id: &SpiffeId| self.admins.contains_key(id);
        judge(&in_order(self.rules()), pod, is_operator, |rule, verdict| verdicts.push((Arc::clone(rule), verdict)));
        verdicts
    }

    /// What the rule `id` has come to, with the first `most` refusals. Holds every rule against every pod.
    pub fn account(&self, id: &RuleId, most: usize) -> Account {
        let rules = in_order(self.rules());
        let is_operator = |id: &SpiffeId| self.admins.contains_key(id);
        let (mut account, mut entries) = (Account::default(), HashSet::new());
        for pod in self.pods.agents().flat_map(|agent| self.pods.of_agent(agent)) {
            judge(&rules, pod, is_operator, |rule, verdict| {
                if rule.id != *id || matches!(verdict, Verdict::Differs(_)) {
                    return;
                }
                account.pods += 1;
                if let Verdict::Gives(entry) = &verdict {
                    entries.insert(entry.id.clone());
                }
                if verdict.is_refusal() {
                    account.refused += 1;
                    if account.refusals.len() < most {
                        account.refusals.push((Arc::clone(pod), verdict));
                    }
                }
            });
        }
        account.entries = entries.len();
        account
    }
}

#[cfg(test)]
mod tests;
