//! What of the bundle has to be written where, given what is there. Pure.
//!
//! - **Only what differs is written**, and of a ConfigMap only our own keys count: what others keep beside them is theirs.
//! - **Nothing is written before it is known what is there**: at start, and whenever a session with the API server begins anew.
//! - **New content goes at once**, to every place, whatever was there before.
//! - **Nobody is fought**: who changes a place again and again, and a place that cannot be written, is met at growing
//!   intervals, from `FIRST` to `MOST`; a place that was left alone for `FORGET` is repaired at once again.
//! - **Nothing is deleted**: a namespace that is not meant any more keeps what it has.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use spiffe::time::Timestamp;

/// How long a place is left alone after it was written or could not be.
const FIRST: Duration = Duration::from_secs(10);
/// The longest that a place is left alone.
const MOST: Duration = Duration::from_secs(320);
/// After this time a place begins anew.
const FORGET: Duration = Duration::from_secs(900);

/// What identifies content: a hash of it.
pub type Digest = [u8; 32];

/// A ConfigMap.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

/// What an API server tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// These are all the namespaces that are meant.
    Namespaces(BTreeSet<Arc<str>>),
    /// This one is meant, too.
    Namespace(Arc<str>),
    /// This one is gone, or is not meant any more.
    NamespaceGone(Arc<str>),
    /// These are all ConfigMaps of one name in the namespaces that are asked for.
    Maps {
        /// The name.
        name: Arc<str>,
        /// By namespace, what they hold.
        held: BTreeMap<Arc<str>, Digest>,
    },
    /// What this ConfigMap holds; `None`: it is gone.
    Map(Place, Option<Digest>),
}

/// The last time that a place was written, or could not be.
#[derive(Clone, Copy, Debug)]
struct Try {
    of: Digest,
    at: Timestamp,
    count: u32,
}

/// Where the bundle is, and where it has to be.
#[derive(Clone, Debug, Default)]
pub struct Publication {
    wanted: BTreeMap<Arc<str>, Digest>,
    namespaces: BTreeSet<Arc<str>>,
    /// The names whose ConfigMaps are all known: what is not among `held` is not there.
    listed: BTreeSet<Arc<str>>,
    held: BTreeMap<Place, Option<Digest>>,
    /// Those whose content is known, and not what it should be.
    wrong: BTreeSet<Place>,
    tries: BTreeMap<Place, Try>,
}

impl Publication {
    /// From now on each ConfigMap, by its name, is to hold this.
    pub fn want(&mut self, wanted: BTreeMap<Arc<str>, Digest>) {
        self.wanted = wanted;
        self.judge_all();
    }

    /// Begins anew: nothing is known of what is there. Whom to leave alone is remembered.
    pub fn forget(&mut self) {
        self.listed.clear();
        self.held.clear();
        self.wrong.clear();
    }

    /// Takes in what the API server tells.
    pub fn see(&mut self, seen: Seen) {
        match seen {
            Seen::Namespaces(namespaces) => {
                self.namespaces = namespaces;
                self.judge_all();
            }
            Seen::Namespace(namespace) => {
                if self.namespaces.insert(Arc::clone(&namespace)) {
                    self.judge_namespace(&namespace);
                }
            }
            Seen::NamespaceGone(namespace) => {
                self.namespaces.remove(&namespace);
                self.judge_namespace(&namespace);
            }
            Seen::Maps { name, held } => {
                self.held.retain(|place, _| place.name != name);
                let place = |namespace| Place { namespace, name: Arc::clone(&name) };
                self.held.extend(held.into_iter().map(|(namespace, digest)| (place(namespace), Some(digest))));
                self.listed.insert(name);
                self.judge_all();
            }
            Seen::Map(place, digest) => {
                self.held.insert(place.clone(), digest);
                self.judge(place);
            }
        }
    }

    /// What has to be written at `now`, at most `most` of it.
    pub fn due(&self, now: Timestamp, most: usize) -> Vec<Place> {
        self.wrong
            .iter()
            .filter(|place| self.not_before(place).is_none_or(|at| at <= now))
            .take(most)
            .cloned()
            .collect()
    }

    /// When something is due next; `None`: not before something else happens.
    pub fn next(&self) -> Option<Timestamp> {
        let mut soonest = None;
        for place in &self.wrong {
            // What was never tried is due at once: the others need not be looked at.
            let Some(at) = self.not_before(place) else { return Some(Timestamp::from_unix(0)) };
            soonest = Some(soonest.map_or(at, |other: Timestamp| other.min(at)));
        }
        soonest
    }

    /// `place` was written at `now`, and holds `content`.
    pub fn wrote(&mut self, place: Place, content: Digest, now: Timestamp) {
        self.tried(&place, content, now);
        self.held.insert(place.clone(), Some(content));
        self.judge(place);
    }

    /// `content` could not be written to `place` at `now`.
    pub fn failed(&mut self, place: &Place, content: Digest, now: Timestamp) {
        self.tried(place, content, now);
    }

    /// How many places do not hold what they should.
    pub fn wrong(&self) -> usize {
        self.wrong.len()
    }

    fn tried(&mut self, place: &Place, of: Digest, now: Timestamp) {
        let before = self.tries.get(place).filter(|last| last.of == of && now.since(last.at) < FORGET);
        let count = before.map_or(1, |last| last.count.saturating_add(1));
        self.tries.insert(place.clone(), Try { of, at: now, count });
    }

    fn not_before(&self, place: &Place) -> Option<Timestamp> {
        let last = self.tries.get(place).filter(|last| self.wanted.get(&place.name) == Some(&last.of))?;
        let factor = 1_u32.checked_shl(last.count.saturating_sub(1).min(30)).unwrap_or(u32::MAX);
        Some(last.at.plus(FIRST.saturating_mul(factor).min(MOST)))
    }

    /// Whether it is known that `place` does not hold what it should.
    fn differs(&self, place: &Place) -> bool {
        let Some(wanted) = self.wanted.get(&place.name) else { return false };
        match self.held.get(place) {
            Some(held) => held.as_ref() != Some(wanted),
            None => self.listed.contains(&place.name),
        }
    }

    fn judge_all(&mut self) {
        let places = self.namespaces.iter().flat_map(|namespace| {
            self.wanted.keys().map(|name| Place { namespace: Arc::clone(namespace), name: Arc::clone(name) })
        });
        self.wrong = places.filter(|place| self.differs(place)).collect();
        let namespaces = &self.namespaces;
        self.tries.retain(|place, _| namespaces.contains(&place.namespace));
    }

    fn judge_namespace(&mut self, namespace: &Arc<str>) {
        let names: Vec<_> = self.wanted.keys().cloned().collect();
        for name in names {
            self.judge(Place { namespace: Arc::clone(namespace), name });
        }
    }

    fn judge(&mut self, place: Place) {
        let is_meant = self.namespaces.contains(&place.namespace);
        if !is_meant {
            self.tries.remove(&place);
        }
        if is_meant && self.differs(&place) {
            self.wrong.insert(place);
        } else {
            self.wrong.remove(&place);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OLD: Digest = [1; 32];
    const NEW: Digest = [2; 32];

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_unix(1_000_000 + seconds)
    }

    fn place(namespace: &str) -> Place {
        Place { namespace: namespace.into(), name: "bundle".into() }
    }

    fn namespaces(names: &[&str]) -> Seen {
        Seen::Namespaces(names.iter().map(|name| Arc::from(*name)).collect())
    }

    fn wanting(digest: Digest, names: &[&str]) -> Publication {
        let mut publication = Publication::default();
        publication.want([("bundle".into(), digest)].into());
        publication.see(namespaces(names));
        assert_eq!(publication.wrong(), 0, "it is not known what is there");
        publication.see(Seen::Maps { name: "bundle".into(), held: BTreeMap::new() });
        publication
    }

    #[test]
    fn only_what_differs_is_written() {
        let mut publication = wanting(NEW, &["a", "b", "c"]);
        let held = [("a".into(), NEW), ("b".into(), OLD), ("elsewhere".into(), OLD)].into();
        publication.see(Seen::Maps { name: "bundle".into(), held });
        assert_eq!(publication.due(at(0), 9), [place("b"), place("c")]);
        assert_eq!(publication.due(at(0), 1), [place("b")]);
        for written in ["b", "c"] {
            publication.wrote(place(written), NEW, at(0));
        }
        assert_eq!((publication.wrong(), publication.next()), (0, None));
        // The word of our own write comes later, and is no news.
        publication.see(Seen::Map(place("b"), Some(NEW)));
        assert_eq!(publication.wrong(), 0);
        // Of one namespace alone, too, it has to be known first.
        publication.forget();
        publication.see(namespaces(&["a", "b"]));
        publication.see(Seen::Map(place("b"), None));
        assert_eq!(publication.wrong.iter().collect::<Vec<_>>(), [&place("b")]);
    }

    #[test]
    fn new_content_and_new_namespaces_are_served_at_once() {
        let mut publication = wanting(OLD, &["a"]);
        publication.wrote(place("a"), OLD, at(0));
        publication.want([("bundle".into(), NEW)].into());
        assert_eq!(publication.due(at(1), 9), [place("a")], "although it was written a moment ago");
        publication.wrote(place("a"), NEW, at(1));
        publication.see(Seen::Namespace("z".into()));
        assert_eq!(publication.due(at(1), 9), [place("z")]);
        publication.see(Seen::NamespaceGone("z".into()));
        assert_eq!(publication.wrong(), 0);
    }

    #[test]
    fn who_changes_it_again_and_again_is_met_less_and_less_often() {
        let mut publication = wanting(NEW, &["a"]);
        let mut writes = Vec::new();
        for second in 0..3600 {
            publication.see(Seen::Map(place("a"), Some(OLD)));
            for place in publication.due(at(second), 9) {
                publication.wrote(place, NEW, at(second));
                writes.push(second);
            }
        }
        assert_eq!(writes[..6], [0, 10, 30, 70, 150, 310]);
        assert!(writes.len() < 18, "{writes:?}");
        // Left alone for long enough, it is repaired at once.
        publication.see(Seen::Map(place("a"), Some(NEW)));
        publication.see(Seen::Map(place("a"), None));
        assert_eq!(publication.due(at(5000), 9), [place("a")]);
        publication.wrote(place("a"), NEW, at(5000));
        publication.see(Seen::Map(place("a"), None));
        assert_eq!(publication.next(), Some(at(5010)), "and begins anew");
    }

    #[test]
    fn what_cannot_be_written_holds_up_nothing_else() {
        let mut publication = wanting(NEW, &["a", "b"]);
        publication.failed(&place("a"), NEW, at(0));
        assert_eq!(publication.due(at(1), 9), [place("b")]);
        publication.wrote(place("b"), NEW, at(1));
        assert_eq!((publication.due(at(9), 9), publication.next()), (vec![], Some(at(10))));
        assert_eq!(publication.due(at(10), 9), [place("a")]);
    }

    fn seen() -> impl Strategy<Value = Seen> {
        let name = || prop_oneof![Just("a"), Just("b"), Just("c")].prop_map(Arc::<str>::from);
        let digest = || prop_oneof![Just(OLD), Just(NEW)];
        prop_oneof![
            proptest::collection::btree_set(name(), 0..4).prop_map(Seen::Namespaces),
            name().prop_map(Seen::Namespace),
            name().prop_map(Seen::NamespaceGone),
            proptest::collection::btree_map(name(), digest(), 0..4)
                .prop_map(|held| Seen::Maps { name: "bundle".into(), held }),
            (name(), proptest::option::of(digest()))
                .prop_map(|(namespace, digest)| Seen::Map(place(&namespace), digest)),
        ]
    }

    proptest! {
        /// However events come: what is due is exactly what is meant and differs, and once it is written nothing is.
        #[test]
        fn it_ends_with_everything_in_place(events in proptest::collection::vec((seen(), any::<bool>()), 0..40)) {
            let mut publication = wanting(OLD, &["a"]);
            for (number, (seen, rotate)) in events.into_iter().enumerate() {
                publication.see(seen);
                if rotate {
                    let wanted = if number % 2 == 0 { NEW } else { OLD };
                    publication.want([("bundle".into(), wanted)].into());
                }
                let by_hand = publication.namespaces.iter().map(|namespace| place(namespace));
                let held = |place: &Place| publication.held.get(place).copied().flatten();
                let by_hand: BTreeSet<_> =
                    by_hand.filter(|place| held(place).as_ref() != publication.wanted.get(&place.name)).collect();
                prop_assert_eq!(&by_hand, &publication.wrong);
            }
            let wanted = publication.wanted["bundle"];
            for place in publication.due(at(0), usize::MAX) {
                publication.wrote(place, wanted, at(0));
            }
            prop_assert_eq!((publication.wrong(), publication.next()), (0, None));
        }
    }
}
