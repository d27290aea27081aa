//! The doors: who may come in, and what is behind each. A request climbs down from here to the View and comes back
//! signed; a change goes into the store and comes back as a new View.

pub mod admin;
pub mod caller;
pub mod chain;
pub mod istio;
pub mod limits;
pub mod listen;
pub mod node;
pub mod rights;
pub mod status;
mod token;

use std::sync::Arc;

use spiffe::time::Clock;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::attest::Attestors;
use crate::audit::{Audit, Event, Outcome, Permit};
use crate::connected::Connected;
use crate::issuance::Profile;
use crate::issuance::tokens::TokenProfile;
use crate::metrics::Metrics;
use crate::origin::Places;
use crate::store::{Revision, Store, StoreError, Txn};
use crate::view::follow::Views;
use limits::Attempts;

/// What every door has behind it.
#[derive(Debug)]
pub struct Doors {
    /// Where changes go.
    pub store: Arc<dyn Store>,
    /// Where changes come back.
    pub views: Arc<Views>,
    /// Which agents are connected.
    pub connected: Connected,
    /// How nodes prove who they are.
    pub attestors: Attestors,
    /// What X.509-SVIDs look like.
    pub profile: Profile,
    /// What JWT-SVIDs look like.
    pub jwt: TokenProfile,
    /// What WIT-SVIDs look like.
    pub wit: TokenProfile,
    /// The record of every decision.
    pub audit: Audit,
    /// The numbers.
    pub metrics: Arc<Metrics>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// How many calls may sign at once.
    pub issuing: Semaphore,
    /// How many exchanges of attestation may be open at once: each may hold a message of a stranger's.
    pub open_attestations: Places,
    /// How many Sync streams each agent may have, those included that were replaced and that it has not read to the end.
    pub syncing: Places,
    /// How often strangers may try to attest.
    pub attesting: Attempts,
    /// Cancelled when the server stops: open streams then end.
    pub stop: CancellationToken,
}

impl Doors {
    /// Commits to the store, and measures how long that takes.
    pub(crate) async fn commit(&self, txn: Txn) -> Result<Revision, StoreError> {
        let _timer = self.metrics.store_commit();
        self.store.commit(txn).await
    }

    /// Counts a refusal, and records a decision in a place of `record`.
    pub(crate) fn decided(&self, record: &mut Permit, event: Event) {
        if let Outcome::Refused(reason, _) = &event.outcome {
            self.metrics.refused(*reason);
        }
        if !record.record(event) {
            tracing::error!("a decision had no place in the audit queue");
        }
    }
}
