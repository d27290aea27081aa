//! The SPIFFE Broker API (SPIFFE_Broker_API.md): what a workload would be told, told to a broker that may act for it.
//!
//! - In this order: may the broker ask at all, what does it name, may it name that so, is it there, who is it, may the
//!   broker act for such a one (and towards that audience). Only then the workload's state is looked at.
//! - The process is pinned before anything of it is read, and stays so as long as the stream lasts: a pid that is given
//!   to another process never leads to that one's identities.
//! - A pod that is named is one of this node, as the API server tells of it, and gets what is true of all that runs in it: nothing
//!   of one of its containers.
//! - A stream ends with its process or its pod, and with the broker's SVID: with its time, or when its root leaves the bundle.

use std::sync::Arc;

use spiffe::audience::Audience;
use spiffe::bundle::Bundle;
use spiffe::id::SpiffeId;
use spiffe::proto::broker::api_server::Api;
use spiffe::proto::broker::{
    FetchJwtsvidRequest, FetchJwtsvidResponse, Jwtsvid, SubscribeToJwtBundlesRequest, SubscribeToJwtBundlesResponse,
    SubscribeToX509BundlesRequest, SubscribeToX509BundlesResponse, SubscribeToX509svidRequest,
    SubscribeToX509svidResponse, WorkloadReference, X509svid,
};
use spiffe::selector::Selectors;
use tokio::sync::watch;
use tonic::{Extensions, Request, Response, Status};
use tracing::{debug, info};

use super::listen::Caller;
use super::policy::Policy;
use super::reference::{KubernetesIdentifier, Reference, Target};
use super::status::{Refusal, denied};
use crate::api::answers::{self, X509Answer};
use crate::api::door::{Admitted, Asker, Denial, Door, Responses, Standing};
use crate::api::places::{Holder, Places};
use crate::api::subject::Subject;
use crate::api::tokens::{JwtAnswer, JwtWish};
use crate::attestor::Peer;
use crate::attestor::k8s::KnownPods;
use crate::attestor::k8s::object::Pod;
use crate::cache::WorkloadState;
use crate::cache::directory::Entitlement;
use crate::config::broker::ReferenceKind;

/// The Broker API of this agent.
pub(super) struct BrokerApi {
    pub(super) door: Door,
    pub(super) policy: Arc<Policy>,
    /// The pods of this node; `None`: it is none of a cluster.
    pub(super) pods: Option<KnownPods>,
    /// Open streams.
    pub(super) streams: Arc<Places>,
    /// What the SVIDs of brokers rest on. Its changes are never seen here: streams begin with a look at it.
    pub(super) trust: watch::Receiver<Bundle>,
}

impl BrokerApi {
    /// Lets the caller of a request act for the workload that it names; towards `audience`, if it wants a JWT-SVID.
    async fn admit(
        &self,
        extensions: &Extensions,
        reference: Option<WorkloadReference>,
        audience: Option<&Audience>,
    ) -> Result<Admitted, Status> {
        let caller = extensions.get::<Arc<Caller>>().ok_or(Refusal::NoCaller)?;
        let admitted = self.admit_caller(caller, reference, audience).await;
        Ok(admitted.inspect_err(|refusal| debug!(broker = %caller.id(), %refusal, "broker is refused"))?)
    }

    async fn admit_caller(
        &self,
        caller: &Caller,
        reference: Option<WorkloadReference>,
        audience: Option<&Audience>,
    ) -> Result<Admitted, Refusal> {
        let rights = self.policy.rights_of(caller.id())?;
        let target = Reference::parse(reference)?.resolve(caller.whence, self.pods.is_some())?;
        let kind = match &target {
            Target::Process(_) => ReferenceKind::Pid,
            Target::Pod(_) => ReferenceKind::Pod,
        };
        let mut rights = rights.by(kind)?;
        if let Some(audience) = audience {
            rights = rights.to(audience)?;
        }
        let place = self.streams.take(Holder::Broker(caller.id().clone())).map_err(Denial::from)?;
        let (subject, selectors) = match target {
            Target::Process(pid) => self.door.process(Arc::new(Peer::named(pid).map_err(Denial::from)?)).await?,
            Target::Pod(identifier) => self.pod(identifier).await?,
        };
        rights.over(subject.whom(), &selectors)?;
        info!(broker = %caller.id(), whom = %subject.whom(), "broker acts for a workload");
        let asker = Asker::Broker(Standing { svid: caller.svid.clone(), bundle: self.trust.clone() });
        Ok(Admitted { subject, selectors, place, asker })
    }

    /// The pod of this node that `identifier` means, and what is true of everything in it.
    async fn pod(&self, identifier: KubernetesIdentifier) -> Result<(Subject, Selectors), Refusal> {
        let means = |pod: &Pod| identifier.means(&pod.namespace, &pod.name, &pod.uid);
        let found = match &self.pods {
            Some(pods) => pods.pod(means).await,
            None => None,
        };
        match found {
            Some((presence, selectors)) => Ok((Subject::Pod(presence), selectors)),
            None => Err(Refusal::NoPod(identifier)),
        }
    }
}

#[tonic::async_trait]
impl Api for BrokerApi {
    type SubscribeToX509SVIDStream = Responses<SubscribeToX509svidResponse>;
    type SubscribeToX509BundlesStream = Responses<SubscribeToX509BundlesResponse>;
    type SubscribeToJWTBundlesStream = Responses<SubscribeToJwtBundlesResponse>;

    async fn subscribe_to_x509svid(
        &self,
        request: Request<SubscribeToX509svidRequest>,
    ) -> Result<Response<Self::SubscribeToX509SVIDStream>, Status> {
        let (_, extensions, message) = request.into_parts();
        let admitted = self.admit(&extensions, message.reference, None).await?;
        let (watcher, first) = self.door.open(admitted).await.map_err(|denial| denied(&denial))?;
        Ok(Response::new(watcher.responses(first, svids, denied)))
    }

    async fn subscribe_to_x509_bundles(
        &self,
        request: Request<SubscribeToX509BundlesRequest>,
    ) -> Result<Response<Self::SubscribeToX509BundlesStream>, Status> {
        let (_, extensions, message) = request.into_parts();
        let admitted = self.admit(&extensions, message.reference, None).await?;
        let (watcher, first) = self.door.open(admitted).await.map_err(|denial| denied(&denial))?;
        Ok(Response::new(watcher.responses(first, bundles, denied)))
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<FetchJwtsvidRequest>,
    ) -> Result<Response<FetchJwtsvidResponse>, Status> {
        let (_, extensions, message) = request.into_parts();
        let wish = wish(&message)?;
        let admitted = self.admit(&extensions, message.reference, Some(&wish.audience)).await?;
        let answers = self.door.jwt_svids(&admitted, wish).await.map_err(|denial| denied(&denial))?;
        Ok(Response::new(jwt_svids(answers)))
    }

    async fn subscribe_to_jwt_bundles(
        &self,
        request: Request<SubscribeToJwtBundlesRequest>,
    ) -> Result<Response<Self::SubscribeToJWTBundlesStream>, Status> {
        let (_, extensions, message) = request.into_parts();
        let admitted = self.admit(&extensions, message.reference, None).await?;
        let (watcher, first) = self.door.open_entitlement(admitted).await.map_err(|denial| denied(&denial))?;
        Ok(Response::new(watcher.responses(first, jwt_bundles, denied)))
    }
}

/// Section 5.2.1.
fn svids(state: &WorkloadState) -> SubscribeToX509svidResponse {
    let svid = |answer: X509Answer| {
        let X509Answer { spiffe_id, chain, key, bundle, hint } = answer;
        X509svid { spiffe_id, x509_svid: chain, x509_svid_key: key, bundle, hint }
    };
    SubscribeToX509svidResponse {
        svids: answers::x509_svids(state).map(svid).collect(),
        crl: Vec::new(),
        federated_bundles: answers::foreign_x509_bundles(state),
    }
}

/// Section 5.2.2.
fn bundles(state: &WorkloadState) -> SubscribeToX509BundlesResponse {
    SubscribeToX509BundlesResponse { crl: Vec::new(), bundles: answers::x509_bundles(state) }
}

/// Section 6.2.1: the request.
fn wish(request: &FetchJwtsvidRequest) -> Result<JwtWish, Refusal> {
    let id = request.spiffe_id.as_str();
    let id = if id.is_empty() { None } else { Some(SpiffeId::parse(id)?) };
    Ok(JwtWish { audience: Audience::parse(&request.audience)?, id })
}

/// Section 6.2.1: the response.
fn jwt_svids(answers: Vec<JwtAnswer>) -> FetchJwtsvidResponse {
    let svid = |JwtAnswer { spiffe_id, svid, hint }| Jwtsvid { spiffe_id, svid, hint };
    FetchJwtsvidResponse { svids: answers.into_iter().map(svid).collect() }
}

/// Section 6.2.2.
fn jwt_bundles(entitlement: &Entitlement) -> SubscribeToJwtBundlesResponse {
    SubscribeToJwtBundlesResponse { bundles: answers::jwt_bundles(entitlement) }
}
