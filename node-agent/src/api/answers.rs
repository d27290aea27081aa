//! What a [`WorkloadState`] holds, in the form in which every door sends it: texts, and DER in one run of bytes.
//!
//! - A bundle without X.509 authorities is left out: clients refuse an empty value. Ours is there even then: clients
//!   are promised it (SPIFFE_Workload_API.md section 5.2.2).
//! - A response shares the private key with the cache, or wipes its own (of a WIT-SVID) when it is dropped: no copy of it
//!   is left behind in memory but what gRPC has encoded.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use spiffe::bundle::Bundle;
use spiffe::jose;
use spiffe::proto::workload::Witsvid;
use zeroize::Zeroizing;

use super::door::WitState;
use crate::cache::directory::Entitlement;
use crate::cache::{Identity, WorkloadState};

/// One X.509-SVID and what belongs to it.
pub(super) struct X509Answer {
    pub(super) spiffe_id: String,
    /// The SVID first, then intermediates.
    pub(super) chain: Bytes,
    /// PKCS#8.
    pub(super) key: Bytes,
    /// The roots of its own trust domain.
    pub(super) bundle: Bytes,
    /// Empty: none.
    pub(super) hint: String,
}

/// Each identity's X.509-SVID, the default one first.
pub(super) fn x509_svids(state: &WorkloadState) -> impl Iterator<Item = X509Answer> {
    let bundle = Bytes::from(state.bundle.to_der());
    state.identities.iter().map(move |identity: &Identity| X509Answer {
        spiffe_id: identity.svid.id().to_string(),
        chain: identity.svid.chain().iter().flat_map(|certificate| certificate.iter().copied()).collect(),
        key: Bytes::from_owner(Key(Arc::clone(&identity.key))),
        bundle: bundle.clone(),
        hint: identity.hint.as_ref().to_owned(),
    })
}

/// The X.509 bundles of foreign trust domains, by the SPIFFE ID of the trust domain.
pub(super) fn foreign_x509_bundles(state: &WorkloadState) -> HashMap<String, Bytes> {
    let bundles = state.federated.values().filter(|bundle| !bundle.x509_authorities().is_empty());
    bundles.map(|bundle| (name(bundle), bundle.to_der().into())).collect()
}

/// The X.509 bundles of all trust domains, ours among them.
pub(super) fn x509_bundles(state: &WorkloadState) -> HashMap<String, Bytes> {
    let mut bundles = foreign_x509_bundles(state);
    bundles.insert(name(&state.bundle), state.bundle.to_der().into());
    bundles
}

/// Each identity's WIT-SVID, the default one first.
pub(super) fn wit_svids(state: &WitState) -> impl Iterator<Item = Witsvid> {
    state.identities.iter().filter_map(|identity| {
        // Made in this agent, of a kind that has a JWK.
        let mut key = jose::private_jwk(&identity.key).ok()?;
        Some(Witsvid {
            spiffe_id: identity.svid.id().to_string(),
            wit_svid: identity.svid.token().to_owned(),
            wit_svid_key: std::mem::take(&mut *key),
            hint: identity.hint.as_ref().to_owned(),
        })
    })
}

/// The keys for JWT-SVIDs of all trust domains, ours among them: a JWK set each.
pub(super) fn jwt_bundles(entitlement: &Entitlement) -> HashMap<String, Bytes> {
    let known = |bundle: &&Bundle| is_own(entitlement, bundle) || !bundle.jwt_authorities().is_empty();
    let bundles = entitlement.bundles.iter().filter(known);
    bundles.map(|bundle| (name(bundle), bundle.to_jwt_jwks().into())).collect()
}

/// The keys for WIT-SVIDs of all trust domains, ours among them: a JWK set each.
pub(super) fn wit_bundles(entitlement: &Entitlement) -> HashMap<String, String> {
    let known = |bundle: &&Bundle| is_own(entitlement, bundle) || !bundle.wit_authorities().is_empty();
    let bundles = entitlement.bundles.iter().filter(known);
    bundles.map(|bundle| (name(bundle), bundle.to_wit_jwks())).collect()
}

fn is_own(entitlement: &Entitlement, bundle: &Bundle) -> bool {
    entitlement.bundles.first().is_some_and(|own| own.trust_domain() == bundle.trust_domain())
}

fn name(bundle: &Bundle) -> String {
    bundle.trust_domain().id().to_string()
}

/// A key that is shared with the cache.
struct Key(Arc<Zeroizing<Vec<u8>>>);

impl AsRef<[u8]> for Key {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
