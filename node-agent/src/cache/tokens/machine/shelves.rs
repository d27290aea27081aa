//! The shelves: for each entry the slots of its tokens, and which of them makes room for another.
//!
//! - A slot for which nobody waits and nothing is under way can make room. These stand in the order of their last use. Doors
//!   use tokens without a word to the machine, so the order is put right where it is looked at: what that costs was
//!   paid for by a use, and otherwise nothing here looks at more than a few slots, however many there are.
//! - Room is made on the shelf that holds the most; of several such, where a token was used least lately. But only on one
//!   that holds more than the shelf that needs it, and else on that one itself: nobody loses to one who has as much.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::collections::btree_map::{BTreeMap, Entry};
use std::sync::Arc;

use spiffe::entry::{EntryId, RegistrationEntry};
use spiffe::jwt_svid::Audience;
use spiffe::time::Timestamp;

use super::Bounds;
use super::slot::Slot;
use crate::cache::tokens::Name;

#[derive(Debug)]
pub(super) struct Shelves {
    pub(super) bounds: Bounds,
    /// None is empty.
    shelves: BTreeMap<EntryId, Shelf>,
    /// On all shelves.
    slots: usize,
    /// The shelves that can make room; the first that should, last.
    ranks: BTreeSet<Rank>,
}

/// How much a shelf holds, when the first token of it that can make room was used, and whose it is.
type Rank = (usize, Reverse<Timestamp>, EntryId);

/// The tokens of one entry.
#[derive(Debug)]
pub(super) struct Shelf {
    pub(super) entry: Arc<RegistrationEntry>,
    slots: BTreeMap<Audience, Slot>,
    /// Those that can make room, by their last use as it was known last.
    spare: BTreeSet<(Timestamp, Audience)>,
    rank: Option<Rank>,
}

impl Shelves {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { bounds, shelves: BTreeMap::new(), slots: 0, ranks: BTreeSet::new() }
    }

    pub(super) fn ids(&self) -> Vec<EntryId> {
        self.shelves.keys().cloned().collect()
    }

    pub(super) fn names(&self) -> Vec<Name> {
        self.shelves.keys().flat_map(|id| self.names_of(id)).collect()
    }

    pub(super) fn names_of(&self, id: &EntryId) -> Vec<Name> {
        let slots = self.shelves.get(id).into_iter().flat_map(|shelf| shelf.slots.keys());
        slots.map(|audience| (id.clone(), audience.clone())).collect()
    }

    pub(super) fn shelf(&mut self, id: &EntryId) -> Option<&mut Shelf> {
        self.shelves.get_mut(id)
    }

    pub(super) fn slot(&mut self, name: &Name) -> Option<&mut Slot> {
        self.shelves.get_mut(&name.0)?.slots.get_mut(&name.1)
    }

    /// The slot of this name, a new one where there is none; `entry`: as it is now.
    pub(super) fn put(&mut self, name: &Name, entry: Arc<RegistrationEntry>, now: Timestamp) -> &mut Slot {
        let shelf = self.shelves.entry(name.0.clone()).or_insert_with(|| Shelf {
            entry,
            slots: BTreeMap::new(),
            spare: BTreeSet::new(),
            rank: None,
        });
        match shelf.slots.entry(name.1.clone()) {
            Entry::Occupied(slot) => slot.into_mut(),
            Entry::Vacant(place) => {
                self.slots += 1;
                place.insert(Slot::new(now))
            }
        }
    }

    pub(super) fn remove(&mut self, name: &Name) -> Option<Slot> {
        let shelf = self.shelves.get_mut(&name.0)?;
        let slot = shelf.slots.remove(&name.1)?;
        self.slots -= 1;
        if let Some(since) = slot.spare_since {
            shelf.spare.remove(&(since, name.1.clone()));
        }
        self.rank(&name.0);
        if self.shelves.get(&name.0).is_some_and(|shelf| shelf.slots.is_empty()) {
            self.shelves.remove(&name.0);
        }
        Some(slot)
    }

    /// Notes whether this slot can make room as it is now.
    pub(super) fn settle(&mut self, name: &Name) {
        let Some(shelf) = self.shelves.get_mut(&name.0) else { return };
        let Some(slot) = shelf.slots.get_mut(&name.1) else { return };
        let since = slot.can_make_room().then(|| slot.last_used());
        let before = std::mem::replace(&mut slot.spare_since, since);
        if before != since {
            before.map(|since| shelf.spare.remove(&(since, name.1.clone())));
            shelf.spare.extend(since.map(|since| (since, name.1.clone())));
        }
        self.rank(&name.0);
    }

    /// Whether there is a slot of this name, or one is free.
    pub(super) fn has_room(&self, name: &Name) -> bool {
        let shelf = self.shelves.get(&name.0);
        shelf.is_some_and(|shelf| shelf.slots.contains_key(&name.1))
            || self.slots < self.bounds.all && self.held_by(&name.0) < self.bounds.per_entry
    }

    /// Which slot makes room for another of the entry `id`; `None`: none may.
    pub(super) fn spare_for(&mut self, id: &EntryId) -> Option<Name> {
        let own = self.held_by(id);
        while own < self.bounds.per_entry
            && let Some(rank) = self.ranks.last().filter(|rank| rank.0 > own).cloned()
        {
            let least = self.least_used(&rank.2);
            // Else it was not the first, now that its order is right.
            if self.ranks.last() == Some(&rank) {
                return least.map(|audience| (rank.2, audience));
            }
        }
        self.least_used(id).map(|audience| (id.clone(), audience))
    }

    fn held_by(&self, id: &EntryId) -> usize {
        self.shelves.get(id).map_or(0, |shelf| shelf.slots.len())
    }

    /// Of those on this shelf that can make room, the one that was used least lately. What was used meanwhile is put in
    /// its place.
    fn least_used(&mut self, id: &EntryId) -> Option<Audience> {
        loop {
            let shelf = self.shelves.get(id)?;
            let (since, audience) = shelf.spare.first().cloned()?;
            if shelf.slots.get(&audience).is_none_or(|slot| slot.last_used() == since) {
                return Some(audience);
            }
            self.settle(&(id.clone(), audience));
        }
    }

    fn rank(&mut self, id: &EntryId) {
        let Some(shelf) = self.shelves.get_mut(id) else { return };
        let rank = shelf.spare.first().map(|(since, _)| (shelf.slots.len(), Reverse(*since), id.clone()));
        let before = std::mem::replace(&mut shelf.rank, rank.clone());
        if before != rank {
            before.map(|before| self.ranks.remove(&before));
            self.ranks.extend(rank);
        }
    }
}

#[cfg(test)]
impl Shelves {
    pub(super) fn at(&self, name: &Name) -> Option<&Slot> {
        self.shelves.get(&name.0)?.slots.get(&name.1)
    }

    pub(super) fn all_slots(&self) -> impl Iterator<Item = &Slot> {
        self.shelves.values().flat_map(|shelf| shelf.slots.values())
    }

    /// How many slots each shelf has; what is counted is right, and what can make room stands where it should.
    pub(super) fn sizes(&self) -> Vec<usize> {
        assert_eq!(self.slots, self.all_slots().count());
        for (id, shelf) in &self.shelves {
            let spare = shelf.slots.iter().filter(|(_, slot)| slot.can_make_room());
            let spare: BTreeSet<_> =
                spare.map(|(audience, slot)| (slot.spare_since.unwrap(), audience.clone())).collect();
            assert_eq!(spare, shelf.spare);
            let rank = spare.first().map(|(since, _)| (shelf.slots.len(), Reverse(*since), id.clone()));
            assert_eq!(rank, shelf.rank);
        }
        assert_eq!(self.ranks, self.shelves.values().filter_map(|shelf| shelf.rank.clone()).collect());
        self.shelves.values().map(|shelf| shelf.slots.len()).collect()
    }
}
