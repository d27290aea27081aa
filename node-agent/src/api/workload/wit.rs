//! The WIT-SVID profile (SPIFFE_Workload_API.md section 7).

use spiffe::proto::workload::{WitBundlesResponse, Witsvid, WitsvidResponse};

use crate::api::answers;
use crate::api::door::WitState;
use crate::cache::directory::Entitlement;

/// Section 7.2.1.
pub(super) fn svids(state: &WitState) -> WitsvidResponse {
    WitsvidResponse { svids: answers::wit_svids(state).collect::<Vec<Witsvid>>() }
}

/// Section 7.2.2.
pub(super) fn bundles(entitlement: &Entitlement) -> WitBundlesResponse {
    WitBundlesResponse { bundles: answers::wit_bundles(entitlement) }
}
