//! The doors: who may come in, and what is behind each. A request climbs down from here to the View and comes back
//! signed; a change goes into the store and comes back as a new View.

pub mod admin;
pub mod caller;
pub mod limits;
pub mod listen;
pub mod node;
pub mod rights;
pub mod status;

use std::sync::Arc;
use std::time::Duration;

use spiffe::time::Clock;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::attest::Attestors;
use crate::audit::{Audit, Event, Outcome, Permit};
use crate::connected::Connected;
use crate::issuance::Profile;
use crate::metrics::{IssuedFor, Metrics};
use crate::rotate::Rotator;
use crate::store::Store;
use crate::view::follow::Views;
use limits::Bucket;

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
    /// What SVIDs look like.
    pub profile: Profile,
    /// What rotates the authorities, and does with them what operators say.
    pub rotator: Arc<Rotator>,
    /// Where agents are told to connect, "host:port".
    pub address: String,
    /// The most registration entries.
    pub entries: usize,
    /// The most unused join tokens.
    pub join_tokens: usize,
    /// The longest life of a join token.
    pub join_token_ttl: Duration,
    /// The record of every decision.
    pub audit: Audit,
    /// The numbers.
    pub metrics: Arc<Metrics>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// How many calls may sign at once.
    pub issuing: Semaphore,
    /// How many strangers may try to attest.
    pub attesting: Bucket,
    /// Cancelled when the server stops: open streams then end.
    pub stop: CancellationToken,
}

impl Doors {
    /// Counts a decision about an SVID of this kind and records it in a place of `record`.
    pub(crate) fn decided(&self, record: &mut Permit, kind: IssuedFor, event: Event) {
        match &event.outcome {
            Outcome::Issued => self.metrics.issued(kind),
            Outcome::Changed => {}
            Outcome::Refused(reason, _) => self.metrics.refused(*reason),
        }
        if !record.record(event) {
            tracing::error!("a decision had no place in the audit queue");
        }
    }
}
