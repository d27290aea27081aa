//! IssueX509Svids: the key out of the CSR, a plan, a signature.

use spiffe::crypto;
use spiffe::csr::ProvenKey;
use spiffe::proto::v1;
use spiffe::proto::v1::x509_svid_result::Outcome;

use super::batch::Batch;
use crate::api::Doors;
use crate::api::rights::Admitted;
use crate::api::status::Refusal;
use crate::audit::{Event, Serial as AuditSerial};
use crate::authority::issuer::Serial;
use crate::issuance::{self, Request};
use crate::metrics::IssuedFor;
use crate::view::record::Node;

/// Answers a whole batch.
pub(super) async fn issue(
    doors: &Doors,
    admitted: &Admitted,
    requests: Vec<v1::X509SvidRequest>,
) -> Result<v1::IssueX509SvidsResponse, Refusal> {
    let batch = Batch { doors, admitted, rpc: "IssueX509Svids", counted_as: IssuedFor::Workload };
    let issuer = admitted.view.issuer().ok_or_else(Refusal::no_authority)?;
    let sign = |node: &Node, event: &mut Event, request: v1::X509SvidRequest| {
        event.csr_sha256 = Some(crypto::sha256(&request.csr));
        let entry = batch.entry(node, event, &request.entry_id)?;
        // Last what costs most: nobody makes the server verify a signature for an entry that is not theirs.
        let key = ProvenKey::from_csr(&request.csr)?;
        let serial = Serial::from_random(crypto::random()?);
        let request = Request { key, serial, window: issuer.window(), now: admitted.now };
        let signed = issuer.sign(issuance::for_entry(entry, request, &doors.profile)?)?;
        event.subject = Some(signed.id.clone());
        event.serial = Some(AuditSerial::new(signed.serial.bytes()));
        event.not_after = Some(signed.lifetime.not_after);
        Ok(super::to_wire(&signed))
    };
    let results = batch.answer(requests, sign).await?.into_iter();
    let outcome = |result: Result<_, _>| result.map_or_else(Outcome::Refused, Outcome::Svid);
    let results = results.map(|result| v1::X509SvidResult { outcome: Some(outcome(result)) }).collect();
    Ok(v1::IssueX509SvidsResponse { results })
}
