//! The Sync stream from the agent's side: messages become whole revisions.

use std::sync::Arc;

use spiffe::bundle::Bundle;
use spiffe::entry::{EntryId, RegistrationEntry};
use spiffe::id::TrustDomain;
use spiffe::proto::{WireError, v1};
use tokio::sync::watch;
use tonic::Streaming;
use tracing::warn;

use super::ClientError;

/// More entries for one node than this are a mistake, not a node.
const MAX_ENTRIES: usize = 200_000;
const MAX_BUNDLES: usize = 10_000;

/// One revision of what this node has to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// What this brings the agent to.
    pub revision: u64,
    /// Forget everything that is not in here.
    pub snapshot: bool,
    /// New entries, and those that have changed.
    pub entries: Vec<Arc<RegistrationEntry>>,
    /// Entries that are gone.
    pub removed_entries: Vec<EntryId>,
    /// New bundles, and those that have changed.
    pub bundles: Vec<Bundle>,
    /// Bundles that are gone.
    pub removed_bundles: Vec<TrustDomain>,
}

/// An open Sync stream.
#[derive(Debug)]
pub struct Session {
    incoming: Streaming<v1::SyncResponse>,
    acknowledged: watch::Sender<u64>,
    pending: Pending,
}

#[derive(Debug, Default)]
struct Pending(Update);

impl Session {
    pub(super) fn new(incoming: Streaming<v1::SyncResponse>, acknowledged: watch::Sender<u64>) -> Self {
        Self { incoming, acknowledged, pending: Pending::default() }
    }

    /// Where acknowledged revisions go. The stream stays open as long as the session or this is held.
    pub fn acknowledged(&self) -> watch::Sender<u64> {
        self.acknowledged.clone()
    }

    /// The next whole revision. Cancel safe.
    pub async fn next(&mut self) -> Result<Update, ClientError> {
        loop {
            let message = self.incoming.message().await?.ok_or(ClientError::Closed)?;
            if let Some(update) = self.pending.take_in(message)? {
                return Ok(update);
            }
        }
    }
}

impl Pending {
    /// Adds one message; the whole revision when it was the last of it.
    ///
    /// An entry that this agent does not understand (of a newer server) is left out, and an older form of it is
    /// removed: better no identity than a wrong one.
    fn take_in(&mut self, message: v1::SyncResponse) -> Result<Option<Update>, ClientError> {
        let update = &mut self.0;
        update.revision = message.revision;
        update.snapshot |= message.snapshot;
        for wire in message.entries {
            let id = wire.id.clone();
            match RegistrationEntry::try_from(wire) {
                Ok(entry) => update.entries.push(Arc::new(entry)),
                Err(error) => {
                    warn!(entry = id, %error, "entry from the server is left out");
                    update.removed_entries.extend(EntryId::parse(&id).ok());
                }
            }
        }
        for id in &message.removed_entries {
            update.removed_entries.push(EntryId::parse(id).map_err(WireError::from)?);
        }
        for bundle in message.bundles {
            update.bundles.push(Bundle::try_from(bundle)?);
        }
        for name in &message.removed_bundles {
            update.removed_bundles.push(spiffe::proto::trust_domain("removed_bundles", name)?);
        }
        let entries = update.entries.len() + update.removed_entries.len();
        let bundles = update.bundles.len() + update.removed_bundles.len();
        if entries > MAX_ENTRIES || bundles > MAX_BUNDLES {
            return Err(ClientError::Answer(format!("one revision has {entries} entries and {bundles} bundles")));
        }
        Ok((!message.more).then(|| std::mem::take(update)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_is_whole_once_no_more_follows() {
        let mut pending = Pending::default();
        let entry = |id: &str, spiffe_id: &str| v1::Entry {
            id: id.into(),
            spiffe_id: spiffe_id.into(),
            parent: "spiffe://example.org/chancery/agent/join_token/1".into(),
            selectors: vec!["unix:uid:1000".into()],
            ..Default::default()
        };
        let first = v1::SyncResponse {
            revision: 7,
            snapshot: true,
            more: true,
            entries: vec![entry("a", "spiffe://example.org/a")],
            ..Default::default()
        };
        let second = v1::SyncResponse {
            revision: 7,
            entries: vec![entry("b", "spiffe://example.org/b"), entry("new", "from the future")],
            ..Default::default()
        };
        assert_eq!(pending.take_in(first).unwrap(), None);
        let update = pending.take_in(second).unwrap().unwrap();
        assert!(update.snapshot && update.revision == 7);
        assert_eq!(update.entries.iter().map(|entry| entry.id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(update.removed_entries, [EntryId::parse("new").unwrap()]);
        assert_eq!(pending.0, Update::default());
    }
}
