//! The SPIFFE Workload API (SPIFFE_Workload_API.md), X.509-SVID profile.
//!
//! - The process that asks is the one that connected: it asks for itself alone.
//! - Each response is the whole state. What does not change a stream's response is not sent on it: a renewed SVID
//!   is silent on the stream of bundles.
//! - Without an identity there is `PermissionDenied`, at once or whenever the last one goes (sections 5.2.1, 5.2.2).
//! - While identities are still on their way there is no answer; after a while it is `Unavailable` (see `door`).

use std::sync::Arc;

use spiffe::proto::workload::spiffe_workload_api_server::SpiffeWorkloadApi;
use spiffe::proto::workload::{
    JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, WitBundlesRequest, WitBundlesResponse, WitsvidRequest, WitsvidResponse,
    X509BundlesRequest, X509BundlesResponse, X509svid, X509svidRequest, X509svidResponse,
};
use tonic::{Request, Response, Status};

use super::answers::{self, X509Answer};
use super::door::{Admitted, Asker, Denial, Door, Responses, Watcher};
use super::places::{Holder, Places};
use super::status;
use crate::attestor::Peer;
use crate::cache::WorkloadState;

/// The Workload API of this agent.
pub(super) struct WorkloadApi {
    pub(super) door: Arc<Door>,
    /// Open streams.
    pub(super) streams: Arc<Places>,
}

impl WorkloadApi {
    /// Lets the caller of `request` in: its place, who it is, and the first state with an identity in it.
    async fn admit<T>(&self, request: &Request<T>) -> Result<(Watcher, WorkloadState), Status> {
        let peer = Arc::clone(request.extensions().get::<Arc<Peer>>().ok_or_else(status::no_peer)?);
        self.admit_peer(peer).await.map_err(|denial| status::denied(&denial))
    }

    async fn admit_peer(&self, peer: Arc<Peer>) -> Result<(Watcher, WorkloadState), Denial> {
        let place = self.streams.take(Holder::User(peer.uid()))?;
        let selectors = self.door.attest(&peer).await?;
        self.door.open(Admitted { peer, selectors, place, asker: Asker::Itself }).await
    }
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for WorkloadApi {
    type FetchX509SVIDStream = Responses<X509svidResponse>;
    type FetchX509BundlesStream = Responses<X509BundlesResponse>;
    type FetchJWTBundlesStream = Responses<JwtBundlesResponse>;
    type FetchWITSVIDStream = Responses<WitsvidResponse>;
    type FetchWITBundlesStream = Responses<WitBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        let (watcher, first) = self.admit(&request).await?;
        Ok(Response::new(watcher.responses(first, svids, status::denied)))
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        let (watcher, first) = self.admit(&request).await?;
        Ok(Response::new(watcher.responses(first, bundles, status::denied)))
    }

    async fn fetch_jwtsvid(&self, _: Request<JwtsvidRequest>) -> Result<Response<JwtsvidResponse>, Status> {
        Err(status::no_profile("JWT-SVID"))
    }

    async fn fetch_jwt_bundles(
        &self,
        _: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        Err(status::no_profile("JWT-SVID"))
    }

    async fn validate_jwtsvid(
        &self,
        _: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        Err(status::no_profile("JWT-SVID"))
    }

    async fn fetch_witsvid(&self, _: Request<WitsvidRequest>) -> Result<Response<Self::FetchWITSVIDStream>, Status> {
        Err(status::no_profile("WIT-SVID"))
    }

    async fn fetch_wit_bundles(
        &self,
        _: Request<WitBundlesRequest>,
    ) -> Result<Response<Self::FetchWITBundlesStream>, Status> {
        Err(status::no_profile("WIT-SVID"))
    }
}

/// Section 5.2.1.
fn svids(state: &WorkloadState) -> X509svidResponse {
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
fn bundles(state: &WorkloadState) -> X509BundlesResponse {
    X509BundlesResponse { crl: Vec::new(), bundles: answers::x509_bundles(state) }
}
