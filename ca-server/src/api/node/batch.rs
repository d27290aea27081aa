//! What the calls that sign have in common. One View for the whole request, no store, no lock: the caller's entry, then
//! what the kind of SVID asks for, a signature, a line of audit.
//!
//! - A place in the audit queue is reserved for every SVID before the first is signed: what cannot be recorded is
//!   not signed.
//! - Each request of a batch has a result of its own; one that is refused stops no other.

use std::sync::Arc;

use spiffe::entry::{EntryId, RegistrationEntry};
use spiffe::proto::v1;

use crate::api::Doors;
use crate::api::rights::{Admitted, Denied};
use crate::api::status::Refusal;
use crate::audit::{Event, Message, Outcome};
use crate::metrics::IssuedFor;
use crate::view::Held;
use crate::view::record::Node;

/// The most SVIDs in one request.
pub const MOST_REQUESTS: usize = 500;
/// After how many signatures other tasks get a turn: two milliseconds or so.
const TURN: usize = 32;

/// One call, and what it signs for whom.
pub(super) struct Batch<'a> {
    pub(super) doors: &'a Doors,
    pub(super) admitted: &'a Admitted,
    pub(super) rpc: &'static str,
    pub(super) counted_as: IssuedFor,
}

impl Batch<'_> {
    /// Answers a whole batch: `sign` is asked for each request, and writes into the event what the record has to say.
    pub(super) async fn answer<Q, A>(
        &self,
        requests: Vec<Q>,
        sign: impl Fn(&Node, &mut Event, Q) -> Result<A, Refusal>,
    ) -> Result<Vec<Result<A, v1::Refusal>>, Refusal> {
        let Self { doors, admitted, rpc, counted_as } = self;
        let caller = admitted.agent()?;
        if requests.len() > MOST_REQUESTS {
            let count = requests.len();
            return Err(Refusal::invalid(format!(
                "{count} requests in one batch: at most {MOST_REQUESTS} are allowed"
            )));
        }
        let Ok(_turn) = doors.issuing.try_acquire() else {
            return Err(Refusal::overloaded("too many batches are being signed"));
        };
        let mut record = doors.audit.reserve(requests.len())?;
        let node = admitted.view.node(&caller.id).ok_or_else(|| Denied::NotAttested(caller.id.to_string()))?;
        let mut results = Vec::with_capacity(requests.len());
        for (count, request) in requests.into_iter().enumerate() {
            if count % TURN == TURN - 1 {
                tokio::task::yield_now().await;
            }
            let mut event = Event::new(admitted.now, rpc, admitted.who(), Outcome::Issued);
            event.address = Some(caller.address);
            event.revision = admitted.view.revision();
            let signed = sign(node, &mut event, request);
            match &signed {
                Ok(_) => doors.metrics.issued(*counted_as),
                Err(refusal) => event.outcome = refusal.outcome(),
            }
            doors.decided(&mut record, event);
            results.push(signed.map_err(|refusal| refusal.to_wire()));
        }
        Ok(results)
    }

    /// The entry of that ID, if it is one of this node's.
    pub(super) fn entry(
        &self,
        node: &Node,
        event: &mut Event,
        id: &str,
    ) -> Result<&Arc<Held<RegistrationEntry>>, Refusal> {
        let view = &self.admitted.view;
        let id = EntryId::parse(id)?;
        event.entry = Some(id.clone());
        let Some(entry) = view.entry(&id) else {
            return Err(match view.awaited_of(&node.id).filter(|_| id.is_derived()) {
                Some(cluster) => Refusal::unavailable(format_args!("cluster {cluster} has not told of its pods yet")),
                None => Refusal::not_found(format_args!("there is no entry {id}")),
            });
        };
        // The entry of a rule is in memory only, and named by a hash: the line says where it came from.
        event.object = entry.rule.as_ref().map(|rule| Message::new(&format!("rule {rule}")));
        if !view.is_parent(&entry.parent, node, self.admitted.now) {
            return Err(Refusal::forbidden(format_args!("entry {id} is not one of agent {}", node.id)));
        }
        Ok(entry)
    }
}
