//! Strings and labels that many objects share, held once: of 30,000 pods there are a few hundred namespaces, accounts and
//! sets of labels.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use crate::view::pods::Labels;

/// How many are held before anybody looks whether they are still used.
const FEW: usize = 1024;

/// What is held once.
#[derive(Debug, Default)]
pub(super) struct Interned {
    strings: HashSet<Arc<str>>,
    labels: HashSet<Labels>,
    /// How many there were when the unused ones were last dropped.
    kept: usize,
}

impl Interned {
    /// The one `text`.
    pub(super) fn string(&mut self, text: &str) -> Arc<str> {
        if let Some(held) = self.strings.get(text) {
            return Arc::clone(held);
        }
        self.sweep();
        let text: Arc<str> = text.into();
        self.strings.insert(Arc::clone(&text));
        text
    }

    /// The one set of these labels.
    pub(super) fn labels(&mut self, labels: BTreeMap<String, String>) -> Labels {
        if let Some(held) = self.labels.get(&labels) {
            return Arc::clone(held);
        }
        self.sweep();
        let labels = Labels::new(labels);
        self.labels.insert(Arc::clone(&labels));
        labels
    }

    /// Drops what nobody else holds, once it may be half of all.
    fn sweep(&mut self) {
        if self.strings.len() + self.labels.len() < 2 * self.kept.max(FEW) {
            return;
        }
        self.strings.retain(|text| Arc::strong_count(text) > 1);
        self.labels.retain(|labels| Arc::strong_count(labels) > 1);
        self.kept = self.strings.len() + self.labels.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_the_same_is_held_once_and_what_is_not_used_not_at_all() {
        let mut interned = Interned::default();
        let (one, two) = (interned.string("shop"), interned.string("shop"));
        assert!(Arc::ptr_eq(&one, &two));
        let labels = || BTreeMap::from([("app".to_owned(), "web".to_owned())]);
        let held = interned.labels(labels());
        assert!(Arc::ptr_eq(&held, &interned.labels(labels())));
        for number in 0..10 * FEW {
            interned.string(&number.to_string());
        }
        assert!(interned.strings.len() <= 2 * FEW, "{}", interned.strings.len());
        assert!(Arc::ptr_eq(&one, &interned.string("shop")) && Arc::ptr_eq(&held, &interned.labels(labels())));
    }
}
