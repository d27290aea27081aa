//! The agent's own cache.

use std::collections::BTreeMap;
use std::sync::Arc;

use spiffe::audience::Audience;
use spiffe::bundle::Bundle;
use spiffe::entry::RegistrationEntry;
use spiffe::jwt_svid::JwtSvid;
use spiffe::selector::Selectors;
use spiffe::time::Timestamp;

use super::{Trouble, Wish};
use crate::cache::tokens::Told;
use crate::cache::{Cache, Subscription, WorkloadState};
use crate::config::deliver::{Delivery, SELECTOR_KIND};
use crate::deliver::material::Identity;

/// See the head of this file.
#[derive(Debug)]
pub(super) struct FromCache {
    cache: Cache,
    selectors: Selectors,
    subscription: Option<Subscription>,
    /// That of the identity that came last.
    entry: Option<Arc<RegistrationEntry>>,
}

impl FromCache {
    pub(super) fn new(cache: Cache, delivery: &Delivery) -> Self {
        Self { cache, selectors: delivery.selectors.clone(), subscription: None, entry: None }
    }

    /// Cancel safe.
    pub(super) async fn next(&mut self, wish: &Wish) -> Result<Identity, Trouble> {
        let subscription = match &mut self.subscription {
            Some(subscription) => subscription,
            None => {
                let new = self.cache.subscribe(self.selectors.clone()).await.map_err(|_| Trouble::Stopped)?;
                self.subscription.insert(new)
            }
        };
        let state = subscription.next().await.ok_or(Trouble::Stopped)?;
        let is_wished = |id| wish.spiffe_id.as_ref().is_none_or(|wished| wished == id);
        let Some(chosen) = state.identities.iter().find(|identity| is_wished(&identity.entry.spiffe_id)) else {
            return Err(Trouble::Nothing(none(wish)));
        };
        self.entry = Some(Arc::clone(&chosen.entry));
        let identity = Identity {
            svid: chosen.svid.clone(),
            key: Arc::clone(&chosen.key),
            roots: roots(&state),
            jwks: if wish.jwks { jwks(&state) } else { BTreeMap::new() },
        };
        Ok(identity)
    }

    /// Asked for as soon as it is polled, beside anything else.
    pub(super) fn token(
        &self,
        audience: Audience,
        now: Timestamp,
    ) -> impl Future<Output = Result<JwtSvid, String>> + use<> {
        let (cache, entry) = (self.cache.clone(), self.entry.clone());
        async move {
            let entry = entry.ok_or("there is no identity yet")?;
            if let Some(token) = cache.held_token(&entry, &audience, now) {
                return Ok(token.svid().clone());
            }
            match cache.token(&entry, &audience).await.map_err(|stopped| stopped.to_string())? {
                Told::Token(token) => Ok(token.svid().clone()),
                Told::Refused(why) => Err(format!("the server refuses it: {why}")),
                Told::Failed => Err("the server could not be asked".into()),
                Told::Gone => Err("its entry is gone".into()),
            }
        }
    }
}

fn none(wish: &Wish) -> String {
    let selector = format!("{SELECTOR_KIND}:{}", wish.name);
    match &wish.spiffe_id {
        None => format!(
            "no registration entry of this node has the selector {selector}: create one with --selector {selector}"
        ),
        Some(id) => format!(
            "no registration entry of this node gives {id} to the selector {selector}: create one with --spiffe-id {id} \
             --selector {selector}"
        ),
    }
}

/// The own bundle is there even when it is empty; others only with something in them.
fn bundles<T>(
    state: &WorkloadState,
    is_there: impl Fn(&Bundle) -> bool,
    of: impl Fn(&Bundle) -> T,
) -> Vec<(&Bundle, T)> {
    let others = state.federated.values().filter(|bundle| is_there(bundle));
    std::iter::once(&state.bundle).chain(others).map(|bundle| (bundle, of(bundle))).collect()
}

fn roots(state: &WorkloadState) -> BTreeMap<spiffe::id::TrustDomain, Vec<rustls_pki_types::CertificateDer<'static>>> {
    let ders = |bundle: &Bundle| bundle.x509_authorities().iter().map(|root| root.der().clone()).collect();
    let all = bundles(state, |bundle| !bundle.x509_authorities().is_empty(), ders);
    all.into_iter().map(|(bundle, roots)| (bundle.trust_domain().clone(), roots)).collect()
}

fn jwks(state: &WorkloadState) -> BTreeMap<spiffe::id::TrustDomain, String> {
    let all = bundles(state, |bundle| !bundle.jwt_authorities().is_empty(), Bundle::to_jwt_jwks);
    all.into_iter().map(|(bundle, keys)| (bundle.trust_domain().clone(), keys)).collect()
}
