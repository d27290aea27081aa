//! IssueX509Svids: the hot path. One View for the whole request, no store, no lock: the caller's entry, the key out of
//! the CSR, a plan, a signature, a line of audit.
//!
//! - A place in the audit queue is reserved for every SVID before the first is signed: what cannot be recorded is
//!   not signed.
//! - Each request of a batch has a result of its own; one that is refused stops no other.

use spiffe::crypto;
use spiffe::csr::ProvenKey;
use spiffe::entry::EntryId;
use spiffe::proto::v1;

use crate::api::Doors;
use crate::api::rights::{Admitted, Denied};
use crate::api::status::Refusal;
use crate::audit::{Event, Outcome, Serial as AuditSerial};
use crate::authority::issuer::{Issuer, Serial, Signed};
use crate::issuance::{self, Request};
use crate::metrics::IssuedFor;
use crate::view::record::Node;

/// The most SVIDs in one request.
pub const MOST_REQUESTS: usize = 500;
/// After how many signatures other tasks get a turn: two milliseconds or so.
const TURN: usize = 32;

/// Answers a whole batch.
pub(super) async fn issue(
    doors: &Doors,
    admitted: &Admitted,
    requests: Vec<v1::X509SvidRequest>,
) -> Result<v1::IssueX509SvidsResponse, Refusal> {
    let caller = admitted.agent()?;
    if requests.len() > MOST_REQUESTS {
        let count = requests.len();
        return Err(Refusal::invalid(format!("{count} requests in one batch: at most {MOST_REQUESTS} are allowed")));
    }
    let Ok(_turn) = doors.issuing.try_acquire() else {
        return Err(Refusal::overloaded("too many batches are being signed"));
    };
    let mut record = doors.audit.reserve(requests.len())?;
    let node = admitted.view.node(&caller.id).ok_or_else(|| Denied::NotAttested(caller.id.to_string()))?;
    let issuer = admitted.view.issuer().ok_or_else(Refusal::no_authority)?;
    let mut results = Vec::with_capacity(requests.len());
    for (count, request) in requests.into_iter().enumerate() {
        if count % TURN == TURN - 1 {
            tokio::task::yield_now().await;
        }
        let csr_sha256 = crypto::sha256(&request.csr);
        let signed = sign(doors, admitted, node, issuer, &request);
        let mut event = Event::new(admitted.now, "IssueX509Svids", admitted.who(), outcome(&signed));
        event.address = Some(caller.address);
        event.entry = EntryId::parse(&request.entry_id).ok();
        event.csr_sha256 = Some(csr_sha256);
        event.revision = admitted.view.revision();
        let result = match signed {
            Ok(signed) => {
                event.subject = Some(signed.id.clone());
                event.serial = Some(AuditSerial::new(signed.serial.bytes()));
                event.not_after = Some(signed.lifetime.not_after);
                doors.metrics.issued(IssuedFor::Workload);
                v1::x509_svid_result::Outcome::Svid(super::to_wire(&signed))
            }
            Err(refusal) => v1::x509_svid_result::Outcome::Refused(refusal.to_wire()),
        };
        doors.decided(&mut record, event);
        results.push(v1::X509SvidResult { outcome: Some(result) });
    }
    Ok(v1::IssueX509SvidsResponse { results })
}

fn outcome(signed: &Result<Signed, Refusal>) -> Outcome {
    match signed {
        Ok(_) => Outcome::Issued,
        Err(refusal) => refusal.outcome(),
    }
}

fn sign(
    doors: &Doors,
    admitted: &Admitted,
    node: &Node,
    issuer: &Issuer,
    request: &v1::X509SvidRequest,
) -> Result<Signed, Refusal> {
    let (view, now) = (&admitted.view, admitted.now);
    let id = EntryId::parse(&request.entry_id)?;
    let entry = view.entry(&id).ok_or_else(|| Refusal::not_found(format_args!("there is no entry {id}")))?;
    if !view.is_parent(&entry.parent, node, now) {
        return Err(Refusal::forbidden(format_args!("entry {id} is not one of agent {}", node.id)));
    }
    // Last what costs most: nobody makes the server verify a signature for an entry that is not theirs.
    let key = ProvenKey::from_csr(&request.csr)?;
    let serial = Serial::from_random(crypto::random()?);
    let request = Request { key, serial, window: issuer.window(), now };
    Ok(issuer.sign(issuance::for_entry(entry, request, &doors.profile)?)?)
}
