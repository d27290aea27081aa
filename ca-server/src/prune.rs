//! What is forgotten by itself: agents whose SVIDs have been expired for long, expired join tokens, expired entries.
//!
//! - What to forget is read from a View; each is deleted only while it is still as the View had it: an agent that
//!   renews meanwhile stays.
//! - Banned agents stay: to forget them would let them attest again.
//! - Every server prunes; who comes second finds nothing to do.

use std::sync::Arc;
use std::time::Duration;

use spiffe::time::{Clock, Timestamp};

use crate::audit::{Audit, Event, Message, Outcome, Who};
use crate::store::{Revision, Store, StoreError, Txn};
use crate::view::follow::Views;
use crate::view::{View, keys};

/// How often there is a look for something to forget.
const EVERY: Duration = Duration::from_secs(600);
/// How many keys one commit deletes at most, and expects at most: an entry has two.
const BATCH: usize = 60;
/// How long an expired token is still known.
const TOKENS_EXPIRED_FOR: Duration = Duration::from_secs(86_400);
/// How much one round forgets at most, so that a round ends.
const ROUND: usize = 10_000;

/// One thing to forget: the keys to delete, and the one that has to be unchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forget {
    key: String,
    revision: Revision,
    also: Option<String>,
}

/// Agents that are not banned and whose SVID expired at least `expired_for` before `now`.
pub fn agents(view: &View, now: Timestamp, expired_for: Duration) -> Vec<Forget> {
    let old = view.nodes_after(None).filter(|node| !node.banned && node.expires_at.plus(expired_for) < now);
    let forget = |node: &Arc<crate::view::Held<crate::view::record::Node>>| {
        Some(Forget { key: keys::node(&node.id)?, revision: node.revision, also: None })
    };
    old.filter_map(forget).take(ROUND).collect()
}

/// Join tokens that have been good no more for a day: until then whoever comes with one is told that it expired.
pub fn tokens(view: &View, now: Timestamp) -> Vec<Forget> {
    let old = view.tokens().filter(|(_, token)| token.expires_at.plus(TOKENS_EXPIRED_FOR) <= now);
    old.map(|(hash, token)| Forget { key: keys::token(hash), revision: token.revision, also: None })
        .take(ROUND)
        .collect()
}

/// Entries of the store that have ceased to give anything.
pub fn entries(view: &View, now: Timestamp) -> Vec<Forget> {
    let old = view.entries_after(None).filter(|entry| !entry.is_live(now) && entry.rule.is_none());
    let forget = |entry: &Arc<crate::view::Held<spiffe::entry::RegistrationEntry>>| Forget {
        key: keys::entry(&entry.id),
        revision: entry.revision,
        also: Some(keys::unique(entry)),
    };
    old.map(forget).take(ROUND).collect()
}

/// Deletes `what`, but for what has changed meanwhile. How many are gone, and the last revision that a commit made.
pub async fn forget(store: &dyn Store, what: Vec<Forget>) -> Result<(u64, Revision), StoreError> {
    let (mut gone, mut revision) = (0, 0);
    for batch in what.chunks(BATCH) {
        let mut batch = batch.to_vec();
        while !batch.is_empty() {
            match store.commit(deletion(&batch)).await {
                Ok(at) => {
                    gone += batch.len() as u64;
                    revision = at;
                    break;
                }
                Err(StoreError::Conflict { key }) => {
                    let before = batch.len();
                    batch.retain(|one| one.key != key);
                    if batch.len() == before {
                        return Err(StoreError::Conflict { key });
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok((gone, revision))
}

fn deletion(batch: &[Forget]) -> Txn {
    batch.iter().fold(Txn::new(), |txn, one| {
        let txn = txn.expect(one.key.clone(), one.revision).delete(one.key.clone());
        one.also.iter().fold(txn, |txn, key| txn.delete(key.clone()))
    })
}

/// Forgets, every ten minutes, until the task is dropped.
pub async fn run(
    store: Arc<dyn Store>,
    views: Arc<Views>,
    audit: Audit,
    clock: Arc<dyn Clock>,
    agents_after: Duration,
) {
    loop {
        let (view, now) = (views.load(), clock.now());
        let kinds = [
            ("agents", agents(&view, now, agents_after)),
            ("tokens", tokens(&view, now)),
            ("entries", entries(&view, now)),
        ];
        for (kind, what) in kinds {
            if what.is_empty() {
                continue;
            }
            let Ok(mut record) = audit.reserve(1) else { break };
            match forget(store.as_ref(), what).await {
                Ok((0, _)) => {}
                Ok((count, revision)) => {
                    tracing::info!(kind, count, "forgot what had expired");
                    let object = Some(Message::new(&format!("{count} {kind}")));
                    let event = Event::new(now, "Prune", Who::Server, Outcome::Changed);
                    record.record(Event { revision, object, ..event });
                }
                Err(error) => {
                    tracing::warn!(kind, %error, "what has expired could not be forgotten: tried again later")
                }
            }
        }
        clock.sleep(EVERY).await;
    }
}
