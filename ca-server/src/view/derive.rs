//! Derived entries: what a pod gets by the rules. Pure. `rework` makes a View of it.
//!
//! - *below the own agent*: an entry of a pod has the agent of its node as its parent: it is there while such a pod is on
//!   that node, and what an agent may ask for is what pods it has.
//! - *named by what it is for*: the ID of a derived entry is a hash of its rule, its parent, its identity and its selectors.
//!   What else its rule says (lives, names, a hint) can change, and the entry is the same one: whoever has an SVID by it keeps
//!   that until he has another. Its revision is a hash of all its content.
//! - *the older rule first*: where two rules give one identity for the same selectors, the older one's entry counts.
//! - *no operators*: an identity that an entry marked admin gives is never a pod's.
//! - *no name of ours*: a DNS name of this server, or a wildcard over one, is never a pod's: whoever had it would be taken
//!   for this server by those who know it by its name.
//! - What it costs: a rule that names namespaces is held against the pods of those alone, each other one against all.

use std::collections::hash_map::Entry::{Occupied, Vacant};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use prost::Message as _;
use spiffe::crypto::sha256;
use spiffe::entry::{DnsName, EntryId, RegistrationEntry, RuleId};
use spiffe::id::SpiffeId;
use spiffe::proto::v1;
use spiffe::rule::{Facts, Mismatch, Refused, Rule};
use spiffe::selector::Selectors;
use spiffe::time::Timestamp;

use super::apply::Index;
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
    /// It would give a DNS name that is this server's.
    OwnName(DnsName),
    /// It would give this, and all rules together would give too much: the youngest give nothing.
    Limit,
}

impl Verdict {
    /// Whether the pod is one of the rule's, and yet gets nothing by it.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Operator(_) | Self::OwnName(_) | Self::Limit)
    }
}

/// Where a rule stands among the others: the older before the younger.
pub(super) type Place = (Timestamp, RuleId);

pub(super) fn place(rule: &Rule) -> Place {
    (rule.created_at, rule.id.clone())
}

/// The place of the rule that a derived entry comes from; `None`: no rule gives it.
pub(super) fn place_of(entry: &RegistrationEntry) -> Option<Place> {
    entry.rule.clone().map(|rule| (entry.created_at, rule))
}

/// Rules in order, found by the namespace that they are for.
#[derive(Debug, Default)]
pub(super) struct Book {
    rules: Vec<Arc<Held<Rule>>>,
    /// The numbers of those that name no namespace.
    anywhere: Vec<usize>,
    /// The numbers of those that name this one.
    by_namespace: HashMap<Arc<str>, Vec<usize>>,
}

impl Book {
    pub(super) fn new<'a>(rules: impl Iterator<Item = &'a Arc<Held<Rule>>>) -> Self {
        let mut rules: Vec<Arc<Held<Rule>>> = rules.cloned().collect();
        rules.sort_by(|one, other| (one.created_at, &one.id).cmp(&(other.created_at, &other.id)));
        let mut book = Self { rules, ..Self::default() };
        for (number, rule) in book.rules.iter().enumerate() {
            if rule.selection.namespaces.is_empty() {
                book.anywhere.push(number);
            }
            for namespace in &*rule.selection.namespaces {
                book.by_namespace.entry(Arc::clone(namespace)).or_default().push(number);
            }
        }
        book
    }

    /// Those that may be for a pod of `namespace`, in order.
    pub(super) fn of(&self, namespace: &str) -> impl Iterator<Item = &Arc<Held<Rule>>> {
        let here = self.by_namespace.get(namespace).into_iter().flatten();
        let mut numbers: Vec<usize> = self.anywhere.iter().chain(here).copied().collect();
        numbers.sort_unstable();
        numbers.into_iter().filter_map(|number| self.rules.get(number))
    }

    /// All of them, in order.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Held<Rule>>> {
        self.rules.iter()
    }

    /// Those of which `is_wanted` is true.
    pub(super) fn part(&self, is_wanted: impl Fn(&Rule) -> bool) -> Arc<Self> {
        Arc::new(Self::new(self.rules.iter().filter(|rule| is_wanted(rule))))
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.rules.len()
    }
}

/// By what pods are judged.
#[derive(Clone, Debug)]
pub(super) struct Law {
    pub(super) book: Arc<Book>,
    pub(super) admins: Index,
    pub(super) own_names: Arc<[DnsName]>,
}

impl Law {
    fn own_name<'a>(&self, entry: &'a RegistrationEntry) -> Option<&'a DnsName> {
        entry.dns_names.iter().find(|name| is_own_name(name, &self.own_names))
    }
}

/// Whether `name` is one of a server's `own`, or one is a wildcard over the other.
pub fn is_own_name(name: &DnsName, own: &[DnsName]) -> bool {
    own.iter().any(|own| covers(name, own) || covers(own, name))
}

/// Whether `name` is `own`, or a wildcard over it.
fn covers(name: &DnsName, own: &DnsName) -> bool {
    let below = own.as_str().split_once('.').map(|(_, below)| below);
    name == own || name.as_str().strip_prefix("*.").is_some_and(|over| Some(over) == below)
}

/// What each of `rules`, which are in order, comes to for `pod`; of a limit it knows nothing.
pub(super) fn judge<'a>(
    rules: impl Iterator<Item = &'a Arc<Held<Rule>>>,
    pod: &Pod,
    law: &Law,
    mut told: impl FnMut(&'a Arc<Held<Rule>>, Verdict),
) {
    let facts = facts(pod);
    let mut given: HashMap<(SpiffeId, Selectors), &RuleId> = HashMap::new();
    for rule in rules {
        let verdict = match rule.selects(&facts) {
            Err(mismatch) => Verdict::Differs(mismatch),
            Ok(()) => match rule.entry(&facts, &pod.agent, name) {
                Err(refused) => Verdict::Refused(refused),
                Ok(entry) if law.admins.contains_key(&entry.spiffe_id) => Verdict::Operator(entry.spiffe_id),
                Ok(entry) => {
                    match (law.own_name(&entry), given.entry((entry.spiffe_id.clone(), entry.selectors.clone()))) {
                        (Some(name), _) => Verdict::OwnName(name.clone()),
                        // What makes two stored entries one too many.
                        (None, Occupied(older)) => Verdict::Same((*older.get()).clone()),
                        (None, Vacant(free)) => {
                            free.insert(&rule.id);
                            Verdict::Gives(Box::new(entry))
                        }
                    }
                }
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
    /// How many pods it selects that an older rule gives the same already, by that rule.
    pub same: BTreeMap<RuleId, usize>,
    /// The first of the refused, at most as many as were asked for, and why.
    pub refusals: Vec<(Arc<Pod>, Verdict)>,
}

impl View {
    /// What each rule comes to for `pod`, the oldest rule first.
    pub fn explain(&self, pod: &Pod) -> Vec<(Arc<Held<Rule>>, Verdict)> {
        let mut verdicts = Vec::new();
        let law = self.law(Arc::clone(&self.book));
        judge(law.book.all(), pod, &law, |rule, verdict| {
            verdicts.push((Arc::clone(rule), self.within_limit(rule, verdict)));
        });
        verdicts
    }

    /// What the rule `id` has come to, with the first `most` refusals. Holds it and its rivals against every pod.
    pub fn account(&self, id: &RuleId, most: usize) -> Account {
        let (mut account, mut entries) = (Account::default(), HashSet::new());
        let Some(asked) = self.rule(id) else { return account };
        let law = self.law(self.book.part(|rule| rule.may_meet(asked)));
        for pod in self.pods.agents().flat_map(|agent| self.pods.of_agent(agent)) {
            judge(law.book.of(&pod.namespace), pod, &law, |rule, verdict| {
                if rule.id != *id || matches!(verdict, Verdict::Differs(_)) {
                    return;
                }
                let verdict = self.within_limit(rule, verdict);
                account.pods += 1;
                match &verdict {
                    Verdict::Gives(entry) => {
                        entries.insert(entry.id.clone());
                    }
                    Verdict::Same(older) => *account.same.entry(older.clone()).or_default() += 1,
                    _ => {}
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

    fn within_limit(&self, rule: &Rule, verdict: Verdict) -> Verdict {
        match verdict {
            Verdict::Gives(_) if !self.is_within_limit(&place(rule)) => Verdict::Limit,
            verdict => verdict,
        }
    }
}

#[cfg(test)]
mod tests;
