//! What rules and pods say, made anew where something has changed: a machine that does a bounded piece at a time. Pure.
//!
//! - *only what a change concerns*: for a pod, that pod alone; for a rule, that rule and those whose templates can meet its
//!   own; for an operator's ID, the rules whose templates can give it. What was true is judged once more, what is true is
//!   judged, and the difference is applied.
//! - *piece by piece*: [`step`](Rework::step) does some thousand judgements (one rule, one pod) and returns, so that whoever
//!   drives it can let others run. Nothing is seen of it before [`done`](Rework::done).
//! - *bounded*: rules give at most `most` entries, counted pod by pod. Above it the youngest rules give nothing at all, until
//!   what they would give fits again with a sixteenth to spare: a pod more or less does not turn a rule on and off.
//! - What it costs: a change of one rule is a judgement for each pod (for each rival too, where there are any), a change of
//!   one pod two for each rule that may be for its namespace.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use spiffe::entry::{DnsName, EntryId, RegistrationEntry};

use super::apply::{Change, Index};
use super::derive::{self, Book, Law, Place, Verdict};
use super::pods::Pod;
use super::{Held, View};

/// About how many judgements one step makes: a few milliseconds.
const PIECE: usize = 2048;

/// What bounds the entries of rules, beside the rules.
#[derive(Clone, Debug)]
pub struct Terms {
    /// The most entries that rules give, counted pod by pod.
    pub most: usize,
    /// This server's own DNS names, which no pod gets.
    pub own_names: Arc<[DnsName]>,
}

impl Default for Terms {
    fn default() -> Self {
        Self { most: usize::MAX, own_names: Arc::new([]) }
    }
}

/// What a rule would give if there were no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) gives: usize,
    pub(super) refused: usize,
}

/// A pod as it was, and as it is.
pub(super) type Visit = (Option<Arc<Pod>>, Option<Arc<Pod>>);

/// A View on its way to the next. See the head of this file.
#[derive(Debug)]
pub struct Rework {
    view: View,
    changes: Vec<Change>,
    before: Law,
    after: Law,
    visits: std::vec::IntoIter<Visit>,
    /// Rules from here on up to there are about to give again.
    raised: Option<(Place, Option<Place>)>,
    /// The entries that were touched, as they were.
    touched: BTreeMap<EntryId, Option<Arc<Held<RegistrationEntry>>>>,
}

impl Rework {
    /// `view` has the rules, pods and operators that are true now; `before` says what was.
    pub(super) fn new(view: View, changes: Vec<Change>, before: Law, after: Law, visits: Vec<Visit>) -> Self {
        let visits = visits.into_iter();
        Self { view, changes, before, after, visits, raised: None, touched: BTreeMap::new() }
    }

    /// Does a piece; `true`: that was the last.
    pub fn step(&mut self) -> bool {
        let mut judged = 0;
        while judged < PIECE {
            let Some((before, after)) = self.visits.next() else {
                if !self.raise() {
                    return true;
                }
                continue;
            };
            judged += 1 + self.before.book.count() + self.after.book.count();
            match self.raised.clone() {
                None => self.visit(before.as_deref(), after.as_deref()),
                Some((from, to)) => self.give_again(after.as_deref(), &from, to.as_ref()),
            }
        }
        false
    }

    /// How many pods are still to be visited, at least.
    pub fn left(&self) -> usize {
        self.visits.len()
    }

    /// The View, and what changed. Does what is still to be done.
    pub fn done(mut self) -> (View, Vec<Change>) {
        while !self.step() {}
        for (id, before) in std::mem::take(&mut self.touched) {
            let after = self.view.entries.get(&id).cloned();
            match (&before, &after) {
                (None, None) => {}
                // It went and came back: it is what it was.
                (Some(was), Some(is)) if was.value == is.value => self.view.entries.insert_mut(id, Arc::clone(was)),
                _ => self.changes.push(Change::Entry { before, after }),
            }
        }
        (self.view, self.changes)
    }

    /// The difference that one pod makes.
    fn visit(&mut self, before: Option<&Pod>, after: Option<&Pod>) {
        let mut tallies: HashMap<Place, (isize, isize)> = HashMap::new();
        let mut was = judged(&self.before, before, -1, &mut tallies);
        let mut is = judged(&self.after, after, 1, &mut tallies);
        for (place, (gives, refused)) in tallies.into_iter().filter(|(_, change)| *change != (0, 0)) {
            let old = self.view.tallies.get(&place).copied().unwrap_or_default();
            let new = Tally {
                gives: old.gives.saturating_add_signed(gives),
                refused: old.refused.saturating_add_signed(refused),
            };
            match new == Tally::default() {
                true => drop(self.view.tallies.remove_mut(&place)),
                false => self.view.tallies.insert_mut(place, new),
            }
        }
        was.retain(|_, entry| self.view.is_given(entry));
        is.retain(|_, entry| self.view.is_given(entry));
        self.view.given = (self.view.given + is.len()).saturating_sub(was.len());
        let gone: Vec<EntryId> =
            was.iter().filter(|(id, entry)| is.get(*id) != Some(entry)).map(|(id, _)| id.clone()).collect();
        is.retain(|id, entry| was.get(id) != Some(entry));
        // First what is held, so that an entry that both have never goes in between.
        is.into_iter().for_each(|(id, entry)| self.hold(&id, entry));
        gone.iter().for_each(|id| self.release(id));
        if self.view.given > self.view.terms.most {
            self.withdraw();
        }
    }

    /// One pod more has this entry.
    fn hold(&mut self, id: &EntryId, value: RegistrationEntry) {
        let holders = self.view.holders.get(id).copied().unwrap_or_default();
        self.view.holders.insert_mut(id.clone(), holders + 1);
        let known = self.view.entries.get(id).cloned();
        if known.as_ref().is_some_and(|known| known.value == value) {
            return;
        }
        self.touched.entry(id.clone()).or_insert(known);
        self.view.forget_entry(id);
        self.view.learn_entry(&Arc::new(Held { revision: derive::revision(&value), value }));
    }

    /// One pod fewer has this entry.
    fn release(&mut self, id: &EntryId) {
        match self.view.holders.get(id).copied().unwrap_or_default() {
            0 | 1 => self.forget(id),
            holders => self.view.holders.insert_mut(id.clone(), holders - 1),
        }
    }

    fn forget(&mut self, id: &EntryId) {
        self.view.holders.remove_mut(id);
        if let Some(known) = self.view.forget_entry(id) {
            self.touched.entry(id.clone()).or_insert(Some(known));
        }
    }

    /// Takes back what the youngest rules give, until the rest is well below the limit.
    fn withdraw(&mut self) {
        let (cut, given) = self.view.fitting();
        self.view.cut = cut;
        self.view.given = given;
        let beyond = self.view.entries.values().filter(|entry| !self.view.is_given(entry));
        let beyond: Vec<EntryId> = beyond.map(|entry| entry.id.clone()).collect();
        beyond.iter().for_each(|id| self.forget(id));
    }

    /// Whether rules that gave nothing fit again: every pod is visited once more for them.
    fn raise(&mut self) -> bool {
        if let Some((_, to)) = self.raised.take() {
            self.view.cut = to;
            return false;
        }
        let Some(from) = self.view.cut.clone() else { return false };
        let (to, given) = self.view.fitting();
        if to.as_ref().is_some_and(|to| *to <= from) {
            return false;
        }
        self.view.given = given;
        self.after = self.view.law(Arc::clone(&self.view.book));
        self.visits = self.view.every_pod(|pod| (None, Some(pod))).into_iter();
        self.raised = Some((from, to));
        true
    }

    fn give_again(&mut self, pod: Option<&Pod>, from: &Place, to: Option<&Place>) {
        for (id, entry) in judged(&self.after, pod, 0, &mut HashMap::new()) {
            let is_raised = |place: Place| place >= *from && to.is_none_or(|to| place < *to);
            if derive::place_of(&entry).is_some_and(is_raised) {
                self.hold(&id, entry);
            }
        }
    }
}

/// What `law` gives the pod, counted `times` over.
fn judged(
    law: &Law,
    pod: Option<&Pod>,
    times: isize,
    tallies: &mut HashMap<Place, (isize, isize)>,
) -> BTreeMap<EntryId, RegistrationEntry> {
    let mut given = BTreeMap::new();
    let Some(pod) = pod else { return given };
    derive::judge(law.book.of(&pod.namespace), pod, law, |rule, verdict| match verdict {
        Verdict::Gives(entry) => {
            tallies.entry(derive::place(rule)).or_default().0 += times;
            given.insert(entry.id.clone(), *entry);
        }
        verdict if verdict.is_refusal() => tallies.entry(derive::place(rule)).or_default().1 += times,
        _ => {}
    });
    given
}

impl View {
    /// The same View on these terms. It has no pods yet.
    pub fn on_terms(self, terms: Terms) -> Self {
        Self { terms, ..self }
    }

    /// On what terms rules give.
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    pub(super) fn law(&self, book: Arc<Book>) -> Law {
        Law { book, admins: self.admins.clone(), own_names: Arc::clone(&self.terms.own_names) }
    }

    pub(super) fn every_pod(&self, visit: impl Fn(Arc<Pod>) -> Visit) -> Vec<Visit> {
        self.pods.agents().flat_map(|agent| self.pods.of_agent(agent)).map(|pod| visit(Arc::clone(pod))).collect()
    }

    /// Whether the rule of this place gives anything.
    pub(super) fn is_within_limit(&self, place: &Place) -> bool {
        self.cut.as_ref().is_none_or(|cut| place < cut)
    }

    /// Whether no limit is in the way of this entry, stored or derived.
    fn is_given(&self, entry: &RegistrationEntry) -> bool {
        self.cut.is_none() || derive::place_of(entry).is_none_or(|place| self.is_within_limit(&place))
    }

    /// From which rule on nothing is given if what is given has to fit with a sixteenth to spare, and how much that is.
    fn fitting(&self) -> (Option<Place>, usize) {
        let most = self.terms.most - self.terms.most / 16;
        let mut given: usize = 0;
        for (place, tally) in &self.tallies {
            if given.saturating_add(tally.gives) > most {
                return (Some(place.clone()), given);
            }
            given += tally.gives;
        }
        (None, given)
    }

    /// How many times a pod does not get what a rule says, because a template or an operator's ID refuses it.
    pub fn refused_count(&self) -> usize {
        self.tallies.values().map(|tally| tally.refused).sum()
    }

    /// The rules that would give something, and give nothing because there is a limit, the oldest first.
    pub fn rules_over_limit(&self) -> impl Iterator<Item = &spiffe::entry::RuleId> {
        let over = self.tallies.iter().filter(|(place, tally)| tally.gives > 0 && !self.is_within_limit(place));
        over.map(|(place, _)| &place.1)
    }
}

/// The identities that are an operator's in one of them and not in the other.
pub(super) fn marked_or_not(before: &Index, after: &Index, changes: &[Change]) -> Vec<spiffe::id::SpiffeId> {
    let of = |change: &Change| match change {
        Change::Entry { before, after } => {
            [before, after].map(|entry| entry.as_ref().map(|it| it.spiffe_id.clone())).to_vec()
        }
        _ => Vec::new(),
    };
    let mut ids: Vec<_> = changes.iter().flat_map(of).flatten().collect();
    ids.sort_unstable();
    ids.dedup();
    ids.retain(|id| before.contains_key(id) != after.contains_key(id));
    ids
}
