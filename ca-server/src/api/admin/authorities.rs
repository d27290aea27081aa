//! Authorities: listed from the View; changed by the rotation alone, by command.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use spiffe::proto::v1;
use spiffe::time::Timestamp;

use super::{About, Call};
use crate::api::status::Refusal;
use crate::authority::{Authority, Kind, State};
use crate::store::Revision;

/// How long a revoke waits for agents that have not said yet that they are through with the authority.
const A_MOMENT: Duration = Duration::from_secs(5);

pub(super) async fn list(
    call: &Call<'_>,
    _: v1::ListAuthoritiesRequest,
) -> Result<v1::ListAuthoritiesResponse, Refusal> {
    let changes = call.settings.rotator.next_changes().await?;
    let held = call.admitted.view.authorities().iter();
    let authorities = held.map(|held| to_wire(call, &held.value, held.revision, &changes)).collect();
    Ok(v1::ListAuthoritiesResponse { authorities })
}

pub(super) async fn prepare(
    call: &Call<'_>,
    request: v1::PrepareAuthorityRequest,
) -> Result<v1::AuthorityResponse, Refusal> {
    let kind = match request.kind.as_str() {
        "" => Kind::X509,
        name => Kind::from_name(name).ok_or_else(|| {
            let name: String = name.chars().take(32).collect();
            Refusal::invalid(format_args!("there are no authorities of kind {name:?}: use x509, jwt or wit"))
        })?,
    };
    change(call, &format!("new {kind}"), call.settings.rotator.prepare(kind)).await
}

pub(super) async fn activate(call: &Call<'_>, request: v1::AuthorityRequest) -> Result<v1::AuthorityResponse, Refusal> {
    change(call, &request.id, call.settings.rotator.activate(&request.id, request.force)).await
}

pub(super) async fn taint(call: &Call<'_>, request: v1::AuthorityRequest) -> Result<v1::AuthorityResponse, Refusal> {
    change(call, &request.id, call.settings.rotator.taint(&request.id)).await
}

pub(super) async fn revoke(call: &Call<'_>, request: v1::AuthorityRequest) -> Result<v1::AuthorityResponse, Refusal> {
    let work = async {
        if !request.force {
            refuse_while_in_use(call, &request.id).await?;
        }
        Ok::<_, Refusal>(call.settings.rotator.revoke(&request.id).await?)
    };
    change(call, &request.id, work).await
}

/// An agent acknowledges a taint when it has replaced what the tainted authority signed: until then a revoke would leave
/// its workloads with SVIDs that verify nowhere. One that has just connected anew has acknowledged nothing yet: it gets a moment.
async fn refuse_while_in_use(call: &Call<'_>, id: &str) -> Result<(), Refusal> {
    let held = call.admitted.view.authorities().iter().find(|held| *held.id == *id && held.tainted);
    let Some(tainted) = held.map(|held| held.revision) else { return Ok(()) };
    match call.behind(tainted, A_MOMENT).await.len() {
        0 => Ok(()),
        behind => Err(Refusal::precondition(format_args!(
            "{behind} agents have not yet replaced the SVIDs below authority {id}: wait (authority taint --wait), or \
             revoke with --force"
        ))),
    }
}

async fn change<E: Into<Refusal>>(
    call: &Call<'_>,
    about: &str,
    work: impl Future<Output = Result<(Authority, Revision), E>>,
) -> Result<v1::AuthorityResponse, Refusal> {
    let work = async { work.await.map_err(Into::into) };
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
        kind: authority.kind().name().to_owned(),
        state: authority.state.name().to_owned(),
        tainted: authority.tainted,
        not_before: authority.lifetime.not_before.unix(),
        not_after: authority.lifetime.not_after.unix(),
        fingerprint: authority.public.fingerprint(),
        upstream: authority.is_upstream(),
        unacknowledged: if prepared { call.doors.connected.behind(revision).len() as u64 } else { 0 },
        next_change_at: changes.get(&authority.id).map_or(0, |at| at.unix()),
    }
}
