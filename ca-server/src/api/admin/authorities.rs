//! Authorities: listed from the View; changed by the rotation alone, by command.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use spiffe::crypto::sha256_hex;
use spiffe::proto::v1;
use spiffe::time::Timestamp;

use super::{About, Call};
use crate::api::status::Refusal;
use crate::authority::{Authority, State};
use crate::rotate::RotateError;
use crate::store::Revision;

pub(super) async fn list(
    call: &Call<'_>,
    _: v1::ListAuthoritiesRequest,
) -> Result<v1::ListAuthoritiesResponse, Refusal> {
    let changes = call.settings.rotator.next_changes().await?;
    let held = call.admitted.view.authorities().iter();
    let authorities = held.map(|held| to_wire(call, &held.value, held.revision, &changes)).collect();
    Ok(v1::ListAuthoritiesResponse { authorities })
}

pub(super) async fn prepare(call: &Call<'_>, _: v1::PrepareAuthorityRequest) -> Result<v1::AuthorityResponse, Refusal> {
    change(call, "new", call.settings.rotator.prepare()).await
}

pub(super) async fn activate(call: &Call<'_>, request: v1::AuthorityRequest) -> Result<v1::AuthorityResponse, Refusal> {
    change(call, &request.id, call.settings.rotator.activate(&request.id)).await
}

pub(super) async fn taint(call: &Call<'_>, request: v1::AuthorityRequest) -> Result<v1::AuthorityResponse, Refusal> {
    change(call, &request.id, call.settings.rotator.taint(&request.id)).await
}

pub(super) async fn revoke(call: &Call<'_>, request: v1::AuthorityRequest) -> Result<v1::AuthorityResponse, Refusal> {
    change(call, &request.id, call.settings.rotator.revoke(&request.id)).await
}

async fn change(
    call: &Call<'_>,
    about: &str,
    work: impl Future<Output = Result<(Authority, Revision), RotateError>>,
) -> Result<v1::AuthorityResponse, Refusal> {
    let work = async { Ok(work.await?) };
    let (authority, revision) = call.change(About::object(about), work).await?;
    let changes = call.settings.rotator.next_changes().await?;
    Ok(v1::AuthorityResponse { authority: Some(to_wire(call, &authority, revision, &changes)), revision })
}

fn to_wire(
    call: &Call<'_>,
    authority: &Authority,
    revision: Revision,
    changes: &BTreeMap<Arc<str>, Timestamp>,
) -> v1::Authority {
    let prepared = authority.state == State::Prepared;
    v1::Authority {
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
        next_change_at: changes.get(&authority.id).map_or(0, |at| at.unix()),
    }
}
