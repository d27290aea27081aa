//! Federation relationships: those of the store are made, changed and deleted; those of the config are shown beside
//! them. What their polls have come to is known to the server that is asked.

use spiffe::bundle::Bundle;
use spiffe::federation::Relationship;
use spiffe::id::TrustDomain;
use spiffe::proto::{trust_domain, v1};
use spiffe::time::Timestamp;

use super::{About, Call, bundles};
use crate::api::status::Refusal;
use crate::federation::{Source, Status};
use crate::store::Txn;
use crate::view::record::{bundle_to_record, relationship_to_record};
use crate::view::{View, keys};

fn unknown(name: &TrustDomain) -> Refusal {
    Refusal::not_found(format_args!(
        "there is no federation relationship with {name}: list them with \"chancery federation list\""
    ))
}

/// Refuses to touch what stands in the config.
fn refuse_configured(call: &Call<'_>, name: &TrustDomain) -> Result<(), Refusal> {
    match call.settings.federation.configured(name) {
        None => Ok(()),
        Some(_) => Err(Refusal::precondition(format_args!(
            "the relationship with {name} stands in the server's config: change it there ([[federation.relationship]])"
        ))),
    }
}

pub(super) async fn create(
    call: &Call<'_>,
    request: v1::CreateRelationshipRequest,
) -> Result<v1::ChangeResponse, Refusal> {
    let wire = request.relationship.ok_or_else(|| Refusal::invalid("relationship is missing"))?;
    let name = trust_domain("trust_domain", &wire.trust_domain)?;
    let work = async {
        let view = &call.admitted.view;
        let relationship = read(wire, view)?;
        refuse_configured(call, &name)?;
        if let Some(held) = view.relationship(&name) {
            return Err(Refusal::already_exists(format_args!(
                "there is a relationship with {name} already, at {}: change it with \"chancery federation update {name}\"",
                held.url
            )));
        }
        let most = call.settings.federation.most();
        if view.relationship_count() >= most {
            return Err(Refusal::precondition(format_args!(
                "there are {most} relationships: delete some, or raise federation.relationships in the server's config"
            )));
        }
        let bundle = request.bundle.map(|bundle| read_bundle(bundle, &name)).transpose()?;
        if relationship.is_self_serving() && bundle.is_none() && view.foreign_bundle(&name).is_none() {
            return Err(Refusal::precondition(format_args!(
                "the endpoint of {name} is known by the bundle that it serves, and there is none yet: give its bundle too \
                 (--bundle with --bundle-format)"
            )));
        }
        let key = keys::relationship(&name);
        let txn = Txn::new().absent(key.clone()).put(key, relationship_to_record(&relationship));
        Ok(((), call.doors.commit(with_bundle(txn, bundle.as_ref(), view)).await?))
    };
    let ((), revision) = call.change(About::subject(&name.id()), work).await?;
    Ok(v1::ChangeResponse { revision })
}

pub(super) async fn list(
    call: &Call<'_>,
    _: v1::ListRelationshipsRequest,
) -> Result<v1::ListRelationshipsResponse, Refusal> {
    let view = &call.admitted.view;
    let statuses = call.settings.federation.statuses(view).into_iter();
    Ok(v1::ListRelationshipsResponse { relationships: statuses.map(|status| to_wire(status, view)).collect() })
}

pub(super) async fn show(
    call: &Call<'_>,
    request: v1::ShowRelationshipRequest,
) -> Result<v1::RelationshipStatus, Refusal> {
    let name = trust_domain("trust_domain", &request.trust_domain)?;
    let view = &call.admitted.view;
    Ok(to_wire(call.settings.federation.status(view, &name).ok_or_else(|| unknown(&name))?, view))
}

pub(super) async fn update(
    call: &Call<'_>,
    request: v1::UpdateRelationshipRequest,
) -> Result<v1::ChangeResponse, Refusal> {
    let wire = request.relationship.ok_or_else(|| Refusal::invalid("relationship is missing"))?;
    let name = trust_domain("trust_domain", &wire.trust_domain)?;
    let work = async {
        let view = &call.admitted.view;
        let relationship = read(wire, view)?;
        refuse_configured(call, &name)?;
        let held = view.relationship(&name).ok_or_else(|| unknown(&name))?;
        let bundle = request.bundle.map(|bundle| read_bundle(bundle, &name)).transpose()?;
        let key = keys::relationship(&name);
        let txn = Txn::new().expect(key.clone(), held.revision).put(key, relationship_to_record(&relationship));
        Ok(((), call.doors.commit(with_bundle(txn, bundle.as_ref(), view)).await?))
    };
    let ((), revision) = call.change(About::subject(&name.id()), work).await?;
    Ok(v1::ChangeResponse { revision })
}

pub(super) async fn refresh(
    call: &Call<'_>,
    request: v1::RefreshRelationshipRequest,
) -> Result<v1::RelationshipStatus, Refusal> {
    let name = trust_domain("trust_domain", &request.trust_domain)?;
    let federation = &call.settings.federation;
    federation.status(&call.admitted.view, &name).ok_or_else(|| unknown(&name))?;
    federation.refresh(&name).await;
    // The poll may have changed it.
    let view = call.doors.views.load();
    Ok(to_wire(federation.status(&view, &name).ok_or_else(|| unknown(&name))?, &view))
}

pub(super) async fn delete(
    call: &Call<'_>,
    request: v1::DeleteRelationshipRequest,
) -> Result<v1::ChangeResponse, Refusal> {
    let name = trust_domain("trust_domain", &request.trust_domain)?;
    let work = async {
        refuse_configured(call, &name)?;
        let view = &call.admitted.view;
        let held = view.relationship(&name).ok_or_else(|| unknown(&name))?;
        bundles::dissociate(call, &name, request.dissociate).await?;
        let key = keys::relationship(&name);
        let txn = Txn::new().expect(key.clone(), held.revision).delete(key);
        // Whatever a poll has made of the bundle meanwhile.
        Ok(((), call.doors.commit(txn.delete(keys::bundle(&name))).await?))
    };
    let ((), revision) = call.change(About::subject(&name.id()), work).await?;
    Ok(v1::ChangeResponse { revision })
}

fn read(wire: v1::Relationship, view: &View) -> Result<Relationship, Refusal> {
    Relationship::try_from(wire)?.foreign_to(view.trust_domain()).map_err(Refusal::invalid)
}

fn read_bundle(wire: v1::Bundle, name: &TrustDomain) -> Result<Bundle, Refusal> {
    let bundle = Bundle::try_from(wire)?;
    if bundle.trust_domain() != name {
        return Err(Refusal::invalid(format_args!("the bundle is that of {}, not of {name}", bundle.trust_domain())));
    }
    if bundle.x509_authorities().is_empty() {
        return Err(Refusal::invalid(format_args!("the bundle of {name} has no X.509 authority to begin with")));
    }
    Ok(bundle)
}

fn with_bundle(txn: Txn, bundle: Option<&Bundle>, view: &View) -> Txn {
    let Some(bundle) = bundle else { return txn };
    let key = keys::bundle(bundle.trust_domain());
    let txn = match view.foreign_bundle(bundle.trust_domain()) {
        Some(held) => txn.expect(key.clone(), held.revision),
        None => txn.absent(key.clone()),
    };
    txn.put(key, bundle_to_record(bundle))
}

fn to_wire(status: Status, view: &View) -> v1::RelationshipStatus {
    let Status { relationship, source, last, last_success, next } = status;
    let bundle = view.foreign_bundle(&relationship.trust_domain);
    v1::RelationshipStatus {
        relationship: Some((&relationship).into()),
        source: Source::name(source).to_owned(),
        last_poll_at: last.as_ref().map_or(0, |last| last.at.unix()),
        last_success_at: last_success.map_or(0, Timestamp::unix),
        last_outcome: last.as_ref().map(|last| last.outcome.name().to_owned()).unwrap_or_default(),
        last_error: last.map(|last| last.error).unwrap_or_default(),
        next_poll_at: next.map_or(0, Timestamp::unix),
        has_bundle: bundle.is_some(),
        sequence: bundle.map_or(0, |held| held.sequence()),
        refresh_hint: bundle.and_then(|held| held.refresh_hint()).map_or(0, |hint| hint.as_secs()),
        x509_authorities: bundle.map_or(0, |held| u32::try_from(held.x509_authorities().len()).unwrap_or(u32::MAX)),
    }
}
