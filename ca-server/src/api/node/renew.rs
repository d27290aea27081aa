//! Renew: a fresh SVID for the calling agent. The one it calls with stays good; older ones are good no more.
//!
//! An agent of a Kubernetes node has to attest again once its node was deleted: nobody is asked, the View has its cluster's nodes.

use spiffe::crypto;
use spiffe::csr::ProvenKey;
use spiffe::proto::v1;

use crate::api::Doors;
use crate::api::rights::{Admitted, Denied};
use crate::api::status::Refusal;
use crate::attest::k8s_psat;
use crate::audit::{Event, Outcome, Serial as AuditSerial};
use crate::authority::issuer::{Serial, Signed};
use crate::issuance::{self, Request};
use crate::metrics::IssuedFor;
use crate::store::Txn;
use crate::view::keys;
use crate::view::record::Node;

/// Signs, and commits the new serial number before the SVID leaves: on a conflict it is dropped, never sent.
pub(super) async fn renew(doors: &Doors, admitted: &Admitted, csr: &[u8]) -> Result<v1::X509Svid, Refusal> {
    let caller = admitted.agent()?;
    let mut record = doors.audit.reserve(1)?;
    let renewed = sign_and_commit(doors, admitted, csr).await;
    let outcome = renewed.as_ref().map_or_else(Refusal::outcome, |_| Outcome::Issued);
    let mut event = Event::new(admitted.now, "Renew", admitted.who(), outcome);
    event.address = Some(caller.address);
    event.subject = Some(caller.id.clone());
    event.csr_sha256 = Some(crypto::sha256(csr));
    event.revision = admitted.view.revision();
    if let Ok(signed) = &renewed {
        event.serial = Some(AuditSerial::new(signed.serial.bytes()));
        event.not_after = Some(signed.lifetime.not_after);
        doors.metrics.issued(IssuedFor::Agent);
    }
    doors.decided(&mut record, event);
    renewed.map(|signed| super::to_wire(&signed))
}

async fn sign_and_commit(doors: &Doors, admitted: &Admitted, csr: &[u8]) -> Result<Signed, Refusal> {
    let (view, now, caller) = (&admitted.view, admitted.now, admitted.agent()?);
    let node = view.node(&caller.id).ok_or_else(|| Denied::NotAttested(caller.id.to_string()))?;
    let listed = k8s_psat::cluster_of(&caller.id).and_then(|cluster| view.pods().nodes(cluster));
    if listed.is_some_and(|nodes| nodes.has_lost(node, now)) {
        return Err(Denied::NodeGone(caller.id.to_string()).into());
    }
    let issuer = view.issuer().ok_or_else(Refusal::no_authority)?;
    let request = Request {
        key: ProvenKey::from_csr(csr)?,
        serial: Serial::from_random(crypto::random()?),
        window: issuer.window(),
        now,
    };
    let signed = issuer.sign(issuance::for_agent(caller.id.clone(), request, &doors.profile)?)?;
    let renewed = Node {
        serial: signed.serial.bytes().to_vec(),
        previous_serial: caller.serial().to_vec(),
        expires_at: signed.lifetime.not_after,
        ..node.value.clone()
    };
    let key = keys::node(&caller.id).ok_or_else(|| Refusal::internal("an agent without a key in the store"))?;
    let txn = Txn::new().expect(key.clone(), node.revision).put(key, renewed.to_record());
    let revision = doors.commit(txn).await?;
    // The agent will come with its new SVID at once: the View has to know it by then.
    doors.views.reached(revision).await;
    Ok(signed)
}
