//! Authorities: listed from the View; changed by the rotation alone, by command.

use std::future::Future;

use spiffe::crypto::sha256_hex;
use spiffe::proto::v1;
use spiffe::time::Timestamp;

use super::{About, Call};
use crate::api::status::Refusal;
use crate::authority::{Authority, State, plan};
use crate::rotate::RotateError;
use crate::store::Revision;

impl From<RotateError> for Refusal {
    fn from(error: RotateError) -> Self {
        match error {
            RotateError::Refused(plan::Refusal::Unknown(_)) => Self::not_found(error),
            RotateError::Refused(_) => Self::precondition(error),
            RotateError::Store(error) => error.into(),
            RotateError::Contended | RotateError::UpstreamEnded(_) => Self::unavailable(error),
            other => Self::internal(other),
        }
    }
}

pub(super) async fn list(
    call: &Call<'_>,
    _: v1::ListAuthoritiesRequest,
) -> Result<v1::ListAuthoritiesResponse, Refusal> {
    let mut authorities = Vec::new();
    for held in call.admitted.view.authorities() {
        authorities.push(to_wire(call, &held.value, held.revision).await?);
    }
    Ok(v1::ListAuthoritiesResponse { authorities })
}

pub(super) async fn prepare(call: &Call<'_>, _: v1::PrepareAuthorityRequest) -> Result<v1::AuthorityResponse, Refusal> {
    command(call, "new", call.doors.rotator.prepare()).await
}

pub(super) async fn activate(call: &Call<'_>, request: v1::AuthorityRequest) -> Result<v1::AuthorityResponse, Refusal> {
    command(call, &request.id, call.doors.rotator.activate(&request.id)).await
}

pub(super) async fn taint(call: &Call<'_>, request: v1::AuthorityRequest) -> Result<v1::AuthorityResponse, Refusal> {
    command(call, &request.id, call.doors.rotator.taint(&request.id)).await
}

pub(super) async fn revoke(call: &Call<'_>, request: v1::AuthorityRequest) -> Result<v1::AuthorityResponse, Refusal> {
    command(call, &request.id, call.doors.rotator.revoke(&request.id)).await
}

async fn command(
    call: &Call<'_>,
    about: &str,
    rotation: impl Future<Output = Result<(Authority, Revision), RotateError>>,
) -> Result<v1::AuthorityResponse, Refusal> {
    let work = async { Ok(rotation.await?) };
    let (authority, revision) = call.change(About::object(about), work).await?;
    Ok(v1::AuthorityResponse { authority: Some(to_wire(call, &authority, revision).await?), revision })
}

async fn to_wire(call: &Call<'_>, authority: &Authority, revision: Revision) -> Result<v1::Authority, Refusal> {
    let all: Vec<Authority> = call.doors.views.load().authorities().iter().map(|held| held.value.clone()).collect();
    let next_change = call.doors.rotator.next_change(authority, &all).await?;
    let prepared = authority.state == State::Prepared;
    Ok(v1::Authority {
        id: authority.id.to_string(),
        owner: authority.owner.to_string(),
        kind: authority.kind.name().to_owned(),
        state: authority.state.name().to_owned(),
        tainted: authority.tainted,
        not_before: authority.lifetime.not_before.unix(),
        not_after: authority.lifetime.not_after.unix(),
        fingerprint: authority.root().map(|root| sha256_hex(root)).unwrap_or_default(),
        upstream: authority.is_upstream(),
        unacknowledged: if prepared { call.doors.connected.behind(revision).len() as u64 } else { 0 },
        next_change_at: next_change.map_or(0, Timestamp::unix),
    })
}
