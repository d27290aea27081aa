//! The SPIFFE Workload API (SPIFFE_Workload_API.md), a file for each profile.
//!
//! - The process that asks is the one that connected: it asks for itself alone.
//! - Each response is the whole state. What does not change a stream's response is not sent on it: a renewed SVID
//!   is silent on the stream of bundles.
//! - Without an identity there is `PermissionDenied`, at once or whenever the last one goes (section 3).
//! - While identities are still on their way there is no answer; after a while it is `Unavailable` (see `door`).
//! - A call that ends with its answer takes the place of a stream while it lasts.

use std::sync::Arc;

use spiffe::id::SpiffeId;
use spiffe::proto::workload::spiffe_workload_api_server::SpiffeWorkloadApi;
use spiffe::proto::workload::{
    JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, WitBundlesRequest, WitBundlesResponse, WitsvidRequest, WitsvidResponse,
    X509BundlesRequest, X509BundlesResponse, X509svidRequest, X509svidResponse,
};
use tonic::{Request, Response, Status};

use super::door::{Admitted, Door, Responses};
use super::places::Places;
use super::status;
use crate::attestor::Peer;
use crate::config::jwt::Claims;

mod jwt;
mod wit;
mod x509;

/// The Workload API of this agent.
pub(super) struct WorkloadApi {
    pub(super) door: Arc<Door>,
    /// Open streams.
    pub(super) streams: Arc<Places>,
    /// Which claims of a token are shown to who has it validated.
    pub(super) claims: Claims,
}

impl WorkloadApi {
    /// Lets the caller of `request` in: its place, and who it is.
    async fn admit<T>(&self, request: &Request<T>) -> Result<Admitted, Status> {
        let peer = Arc::clone(request.extensions().get::<Arc<Peer>>().ok_or_else(status::no_peer)?);
        self.door.admit(peer, &self.streams).await.map_err(|denial| status::denied(&denial))
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
        let admitted = self.admit(&request).await?;
        let (watcher, first) = self.door.open(admitted).await.map_err(|denial| status::denied(&denial))?;
        Ok(Response::new(watcher.responses(first, x509::svids, status::denied)))
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        let admitted = self.admit(&request).await?;
        let (watcher, first) = self.door.open(admitted).await.map_err(|denial| status::denied(&denial))?;
        Ok(Response::new(watcher.responses(first, x509::bundles, status::denied)))
    }

    async fn fetch_jwtsvid(&self, request: Request<JwtsvidRequest>) -> Result<Response<JwtsvidResponse>, Status> {
        let wish = jwt::wish(request.get_ref()).map_err(|why| status::invalid(&why))?;
        let admitted = self.admit(&request).await?;
        let answers = self.door.jwt_svids(&admitted, wish).await.map_err(|denial| status::denied(&denial))?;
        Ok(Response::new(jwt::svids(answers)))
    }

    async fn fetch_jwt_bundles(
        &self,
        request: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        let admitted = self.admit(&request).await?;
        let (watcher, first) = self.door.open_entitlement(admitted).await.map_err(|denial| status::denied(&denial))?;
        Ok(Response::new(watcher.responses(first, jwt::bundles, status::denied)))
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        let admitted = self.admit(&request).await?;
        let entitlement = self.door.entitlement(&admitted).await.map_err(|denial| status::denied(&denial))?;
        let validated = jwt::validate(request.get_ref(), &entitlement, &self.claims, self.door.clock.now());
        validated.map(Response::new).map_err(|why| status::invalid(&why))
    }

    async fn fetch_witsvid(
        &self,
        request: Request<WitsvidRequest>,
    ) -> Result<Response<Self::FetchWITSVIDStream>, Status> {
        let id = request.get_ref().spiffe_id.as_str();
        let id = (!id.is_empty()).then(|| SpiffeId::parse(id)).transpose();
        let id = id.map_err(|why| status::invalid(&format_args!("spiffe_id: {why}")))?;
        let admitted = self.admit(&request).await?;
        let (watcher, first) = self.door.open_wit(admitted, id).await.map_err(|denial| status::denied(&denial))?;
        Ok(Response::new(watcher.responses(first, wit::svids, status::denied)))
    }

    async fn fetch_wit_bundles(
        &self,
        request: Request<WitBundlesRequest>,
    ) -> Result<Response<Self::FetchWITBundlesStream>, Status> {
        let admitted = self.admit(&request).await?;
        let (watcher, first) = self.door.open_entitlement(admitted).await.map_err(|denial| status::denied(&denial))?;
        Ok(Response::new(watcher.responses(first, wit::bundles, status::denied)))
    }
}
