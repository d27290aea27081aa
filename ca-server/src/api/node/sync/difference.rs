//! What an agent is to be told, cut up into messages that it takes.
//!
//! - **Nothing is lost.** The messages together have everything, each thing once and in its order; `more` is on all but
//!   the last, `snapshot` on the first alone.
//! - **None is too large.** A message has at most [`MOST`] things, and at most [`BYTES`] of them, or one thing alone. The
//!   largest thing is a bundle of [`MAX_DOCUMENT_BYTES`](spiffe::bundle::MAX_DOCUMENT_BYTES): far less than the 16 MiB
//!   that an agent takes, however many trust domains it federates with.

use std::collections::VecDeque;

use prost::Message as _;
use spiffe::proto::v1;

use crate::store::Revision;

/// The most entries and bundles in one message, those that are gone included.
const MOST: usize = 500;
/// How many bytes of them.
const BYTES: usize = 4 << 20;
/// What a thing costs in a message beside its own bytes: a tag and a length.
const FRAME: usize = 6;

/// What an agent is to be told.
#[derive(Debug, Default)]
pub(super) struct Difference {
    pub(super) entries: Vec<v1::Entry>,
    pub(super) removed_entries: Vec<String>,
    pub(super) bundles: Vec<v1::Bundle>,
    pub(super) removed_bundles: Vec<String>,
}

/// One thing of it.
enum Thing {
    Entry(v1::Entry),
    RemovedEntry(String),
    Bundle(v1::Bundle),
    RemovedBundle(String),
}

impl Thing {
    /// How many bytes of a message it takes, at most.
    fn size(&self) -> usize {
        FRAME
            + match self {
                Self::Entry(entry) => entry.encoded_len(),
                Self::Bundle(bundle) => bundle.encoded_len(),
                Self::RemovedEntry(name) | Self::RemovedBundle(name) => name.len(),
            }
    }

    fn put(self, message: &mut v1::SyncResponse) {
        match self {
            Self::Entry(entry) => message.entries.push(entry),
            Self::RemovedEntry(id) => message.removed_entries.push(id),
            Self::Bundle(bundle) => message.bundles.push(bundle),
            Self::RemovedBundle(name) => message.removed_bundles.push(name),
        }
    }
}

impl Difference {
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
            && self.removed_entries.is_empty()
            && self.bundles.is_empty()
            && self.removed_bundles.is_empty()
    }

    /// As messages; one without anything in it where there is nothing to tell.
    pub(super) fn into_messages(self, revision: Revision, snapshot: bool) -> VecDeque<v1::SyncResponse> {
        let things = self.bundles.into_iter().map(Thing::Bundle);
        let things = things.chain(self.removed_bundles.into_iter().map(Thing::RemovedBundle));
        let things = things.chain(self.entries.into_iter().map(Thing::Entry));
        let things = things.chain(self.removed_entries.into_iter().map(Thing::RemovedEntry));
        let mut messages = VecDeque::new();
        let mut message = v1::SyncResponse { revision, snapshot, more: true, ..Default::default() };
        let (mut count, mut bytes) = (0, 0);
        for thing in things {
            let size = thing.size();
            if count == MOST || (count > 0 && bytes + size > BYTES) {
                let next = v1::SyncResponse { revision, more: true, ..Default::default() };
                messages.push_back(std::mem::replace(&mut message, next));
                (count, bytes) = (0, 0);
            }
            (count, bytes) = (count + 1, bytes + size);
            thing.put(&mut message);
        }
        message.more = false;
        messages.push_back(message);
        messages
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A bundle of about so many bytes.
    fn bundle(name: usize, bytes: usize) -> v1::Bundle {
        let root = v1::X509Authority { certificate: vec![0; bytes].into(), tainted: false };
        v1::Bundle { trust_domain: format!("{name}.org"), x509_authorities: vec![root], ..Default::default() }
    }

    fn difference(bundles: &[usize], entries: &[usize], removed: usize) -> Difference {
        let entry = |(id, bytes): (usize, &usize)| v1::Entry {
            id: id.to_string(),
            hint: "x".repeat(*bytes),
            ..Default::default()
        };
        Difference {
            bundles: bundles.iter().enumerate().map(|(name, bytes)| bundle(name, *bytes)).collect(),
            removed_bundles: (0..removed).map(|name| format!("gone-{name}.org")).collect(),
            entries: entries.iter().enumerate().map(entry).collect(),
            removed_entries: (0..removed).map(|id| format!("gone-{id}")).collect(),
        }
    }

    #[test]
    fn bundles_of_many_trust_domains_come_one_after_the_other() {
        let messages = difference(&[4 << 20; 8], &[1], 0).into_messages(7, true);
        assert_eq!(messages.len(), 9);
        assert!(messages.iter().all(|message| message.encoded_len() < 5 << 20));
        assert_eq!(messages[8].entries.len(), 1);
    }

    #[test]
    fn a_revision_that_changes_nothing_is_told_too() {
        let messages = Difference::default().into_messages(7, true);
        assert_eq!(messages, [v1::SyncResponse { revision: 7, snapshot: true, ..Default::default() }]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn nothing_is_lost_and_none_is_too_large(
            bundles in prop::collection::vec(0..(5_usize << 20), 0..6),
            entries in prop::collection::vec(0_usize..20_000, 0..1100),
            removed in 0_usize..1100,
            snapshot: bool,
        ) {
            let whole = difference(&bundles, &entries, removed);
            let messages = difference(&bundles, &entries, removed).into_messages(7, snapshot);
            for (at, message) in messages.iter().enumerate() {
                let count = message.entries.len() + message.removed_entries.len()
                    + message.bundles.len() + message.removed_bundles.len();
                prop_assert!(count <= MOST && (count > 0 || messages.len() == 1));
                // Beside the things themselves there are a revision and two flags.
                prop_assert!(count == 1 || message.encoded_len() <= BYTES + 16);
                prop_assert_eq!(message.revision, 7);
                prop_assert_eq!(message.snapshot, snapshot && at == 0);
                prop_assert_eq!(message.more, at + 1 < messages.len());
            }
            let mut told = Difference::default();
            for message in messages {
                told.bundles.extend(message.bundles);
                told.removed_bundles.extend(message.removed_bundles);
                told.entries.extend(message.entries);
                told.removed_entries.extend(message.removed_entries);
            }
            prop_assert!(told.bundles == whole.bundles && told.entries == whole.entries);
            prop_assert!(told.removed_bundles == whole.removed_bundles);
            prop_assert!(told.removed_entries == whole.removed_entries);
        }
    }
}
