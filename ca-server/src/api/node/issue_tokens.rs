//! IssueJwtSvids and IssueWitSvids: an audience, or the key out of a CSR; a plan, a signature.

use spiffe::crypto;
use spiffe::csr::ProvenKey;
use spiffe::jwt_svid::Audience;
use spiffe::proto::v1;
use spiffe::proto::v1::token_result::Outcome;

use super::batch::Batch;
use crate::api::Doors;
use crate::api::rights::Admitted;
use crate::api::status::Refusal;
use crate::api::token::{self, signed};
use crate::audit::Event;
use crate::issuance::tokens::{self, TokenRequest};
use crate::metrics::IssuedFor;
use crate::view::record::Node;

/// Answers a whole batch.
pub(super) async fn jwt(
    doors: &Doors,
    admitted: &Admitted,
    requests: Vec<v1::JwtSvidRequest>,
) -> Result<v1::IssueJwtSvidsResponse, Refusal> {
    let batch = Batch { doors, admitted, rpc: "IssueJwtSvids", counted_as: IssuedFor::WorkloadJwt };
    let issuer = admitted.view.issuers().jwt.as_ref().ok_or_else(Refusal::no_authority)?;
    let sign = |node: &Node, event: &mut Event, request: v1::JwtSvidRequest| {
        let entry = batch.entry(node, event, &request.entry_id)?;
        let audience = Audience::parse(&request.audience)?;
        let request =
            TokenRequest { window: issuer.authority().lifetime, now: admitted.now, chance: crypto::random()? };
        let plan = tokens::jwt_for_entry(entry, audience.clone(), &request, &doors.jwt)?;
        let token = issuer.sign(plan)?;
        signed(event, issuer.kid(), Some(&audience), &token);
        Ok(token::to_wire(token))
    };
    Ok(v1::IssueJwtSvidsResponse { results: results(batch.answer(requests, sign).await?) })
}

/// Answers a whole batch.
pub(super) async fn wit(
    doors: &Doors,
    admitted: &Admitted,
    requests: Vec<v1::WitSvidRequest>,
) -> Result<v1::IssueWitSvidsResponse, Refusal> {
    let batch = Batch { doors, admitted, rpc: "IssueWitSvids", counted_as: IssuedFor::WorkloadWit };
    let issuer = admitted.view.issuers().wit.as_ref().ok_or_else(Refusal::no_authority)?;
    let sign = |node: &Node, event: &mut Event, request: v1::WitSvidRequest| {
        event.csr_sha256 = Some(crypto::sha256(&request.csr));
        let entry = batch.entry(node, event, &request.entry_id)?;
        let key = ProvenKey::from_csr(&request.csr)?;
        let request =
            TokenRequest { window: issuer.authority().lifetime, now: admitted.now, chance: crypto::random()? };
        let plan = tokens::wit_for_entry(entry, &key, &request, &doors.wit)?;
        let token = issuer.sign(plan)?;
        signed(event, issuer.kid(), None, &token);
        Ok(token::to_wire(token))
    };
    Ok(v1::IssueWitSvidsResponse { results: results(batch.answer(requests, sign).await?) })
}

fn results(results: Vec<Result<v1::Token, v1::Refusal>>) -> Vec<v1::TokenResult> {
    let outcome = |result: Result<_, _>| result.map_or_else(Outcome::Refused, Outcome::Token);
    results.into_iter().map(|result| v1::TokenResult { outcome: Some(outcome(result)) }).collect()
}
