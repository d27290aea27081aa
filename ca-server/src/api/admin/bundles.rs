//! Bundles: our own, which the authorities make, and those of foreign trust domains, which operators set.

use std::sync::Arc;

use spiffe::bundle::Bundle;
use spiffe::entry::RegistrationEntry;
use spiffe::id::TrustDomain;
use spiffe::proto::{trust_domain, v1};
use spiffe::rule::Rule;

use super::{About, Call};
use crate::api::status::Refusal;
use crate::store::Txn;
use crate::view::record::{bundle_to_record, entry_to_record, rule_to_record};
use crate::view::{Held, keys};

/// How many entries one commit dissociates at most.
const BATCH: usize = 60;

fn unknown(name: &TrustDomain) -> Refusal {
    Refusal::not_found(format_args!("there is no bundle of {name}: list them with \"chancery bundle list\""))
}

pub(super) async fn show(call: &Call<'_>, request: v1::ShowBundleRequest) -> Result<v1::Bundle, Refusal> {
    let view = &call.admitted.view;
    if request.trust_domain.is_empty() {
        return Ok(view.bundle().into());
    }
    let name = trust_domain("trust_domain", &request.trust_domain)?;
    if name == *view.trust_domain() {
        return Ok(view.bundle().into());
    }
    Ok((&view.foreign_bundle(&name).ok_or_else(|| unknown(&name))?.value).into())
}

pub(super) async fn list(call: &Call<'_>, _: v1::ListBundlesRequest) -> Result<v1::ListBundlesResponse, Refusal> {
    let view = &call.admitted.view;
    let foreign = view.foreign_bundles().map(|held| v1::Bundle::from(&held.value));
    Ok(v1::ListBundlesResponse { bundles: std::iter::once(view.bundle().into()).chain(foreign).collect() })
}

pub(super) async fn set(call: &Call<'_>, request: v1::SetBundleRequest) -> Result<v1::ChangeResponse, Refusal> {
    let wire = request.bundle.ok_or_else(|| Refusal::invalid("bundle is missing"))?;
    let name = trust_domain("trust_domain", &wire.trust_domain)?;
    let work = async {
        let view = &call.admitted.view;
        if name == *view.trust_domain() {
            return Err(Refusal::precondition(format_args!(
                "the bundle of {name} is our own: its authorities make it, nobody sets it"
            )));
        }
        let bundle = Bundle::try_from(wire)?;
        if bundle.x509_authorities().is_empty() {
            return Err(Refusal::invalid(format_args!(
                "the bundle of {name} has no X.509 authority: nobody could be verified by it"
            )));
        }
        let key = keys::bundle(&name);
        let txn = match view.foreign_bundle(&name) {
            Some(held) => Txn::new().expect(key.clone(), held.revision),
            None => Txn::new().absent(key.clone()),
        };
        Ok(((), call.doors.commit(txn.put(key, bundle_to_record(&bundle))).await?))
    };
    let ((), revision) = call.change(About::subject(&name.id()), work).await?;
    Ok(v1::ChangeResponse { revision })
}

pub(super) async fn delete(call: &Call<'_>, request: v1::DeleteBundleRequest) -> Result<v1::ChangeResponse, Refusal> {
    let name = trust_domain("trust_domain", &request.trust_domain)?;
    let work = async {
        let view = &call.admitted.view;
        let held = view.foreign_bundle(&name).ok_or_else(|| unknown(&name))?;
        if let Some(url) = call.settings.federation.status(view, &name).map(|status| status.relationship.url) {
            return Err(Refusal::precondition(format_args!(
                "the bundle of {name} is fetched from {url} and would come back: use \"chancery federation delete {name}\""
            )));
        }
        dissociate(call, &name, request.dissociate).await?;
        let key = keys::bundle(&name);
        let txn = Txn::new().expect(key.clone(), held.revision).delete(key);
        Ok(((), call.doors.commit(txn).await?))
    };
    let ((), revision) = call.change(About::subject(&name.id()), work).await?;
    Ok(v1::ChangeResponse { revision })
}

/// Takes `name` out of the entries and rules that federate with it. Where it may not, they make this fail.
pub(super) async fn dissociate(call: &Call<'_>, name: &TrustDomain, may: bool) -> Result<(), Refusal> {
    let view = &call.admitted.view;
    let entries = view.entries_after(None).filter(|entry| entry.rule.is_none());
    let federated: Vec<&Arc<Held<RegistrationEntry>>> =
        entries.filter(|entry| entry.federates_with.contains(name)).collect();
    let rules: Vec<&Arc<Held<Rule>>> = view.rules().filter(|rule| rule.federates_with.contains(name)).collect();
    if let Some(first) = federated.first().filter(|_| !may) {
        return Err(Refusal::precondition(format_args!(
            "{} with {name}, the first is {}: update them, or delete with --dissociate",
            match federated.len() {
                1 => "1 entry federates".to_owned(),
                entries => format!("{entries} entries federate"),
            },
            first.id
        )));
    }
    if let Some(first) = rules.first().filter(|_| !may) {
        return Err(Refusal::precondition(format_args!(
            "the rule {} federates with {name}: update it, or delete with --dissociate",
            first.id
        )));
    }
    for batch in federated.chunks(BATCH) {
        let txn = batch.iter().fold(Txn::new(), |txn, entry| {
            let mut alone = entry.value.clone();
            alone.federates_with.retain(|other| other != name);
            let key = keys::entry(&entry.id);
            txn.expect(key.clone(), entry.revision).put(key, entry_to_record(&alone))
        });
        call.doors.commit(txn).await?;
    }
    for rule in rules {
        let mut alone = rule.value.clone();
        alone.federates_with.retain(|other| other != name);
        let key = keys::rule(&rule.id);
        let txn = Txn::new().expect(key.clone(), rule.revision).put(key, rule_to_record(&alone));
        call.doors.commit(txn).await?;
    }
    Ok(())
}
