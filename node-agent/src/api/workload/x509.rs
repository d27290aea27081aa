//! The X.509-SVID profile (SPIFFE_Workload_API.md section 5).

use spiffe::proto::workload::{X509BundlesResponse, X509svid, X509svidResponse};

use crate::api::answers::{self, X509Answer};
use crate::cache::WorkloadState;

/// Section 5.2.1.
pub(super) fn svids(state: &WorkloadState) -> X509svidResponse {
    let svid = |answer: X509Answer| {
        let X509Answer { spiffe_id, chain, key, bundle, hint } = answer;
        X509svid { spiffe_id, x509_svid: chain, x509_svid_key: key, bundle, hint }
    };
    X509svidResponse {
        svids: answers::x509_svids(state).map(svid).collect(),
        crl: Vec::new(),
        federated_bundles: answers::foreign_x509_bundles(state),
    }
}

/// Section 5.2.2.
pub(super) fn bundles(state: &WorkloadState) -> X509BundlesResponse {
    X509BundlesResponse { crl: Vec::new(), bundles: answers::x509_bundles(state) }
}
