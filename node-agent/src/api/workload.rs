//! The SPIFFE Workload API (SPIFFE_Workload_API.md), X.509-SVID profile.
//!
//! - A process is attested once for each RPC: between two of them it may have become another program.
//! - Each response is the whole state. What does not change a stream's response is not sent on it: a renewed SVID
//!   is silent on the stream of bundles.
//! - Without an identity there is `PermissionDenied`, at once or whenever the last one goes (sections 5.2.1, 5.2.2).
//! - While identities are still on their way there is no answer; after `first_answer` it is `Unavailable`.
//! - A stream that is not read costs its latest response: states are fetched when the transport asks for one.
//! - The end of the process ends its streams, whoever else holds the connection.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::unfold;
use spiffe::bundle::Bundle;
use spiffe::proto::workload::spiffe_workload_api_server::SpiffeWorkloadApi;
use spiffe::proto::workload::{
    JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, WitBundlesRequest, WitBundlesResponse, WitsvidRequest, WitsvidResponse,
    X509BundlesRequest, X509BundlesResponse, X509svid, X509svidRequest, X509svidResponse,
};
use spiffe::selector::Selectors;
use spiffe::time::Clock;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tracing::debug;
use zeroize::Zeroizing;

use super::places::{Place, Places};
use super::status;
use crate::attestor::{AttestError, Attestors, Peer};
use crate::cache::{Cache, Identity, Subscription, WorkloadState};

type Responses<R> = Pin<Box<dyn Stream<Item = Result<R, Status>> + Send>>;

/// What every RPC goes through.
pub(super) struct Door {
    pub(super) cache: Cache,
    pub(super) attestors: Attestors,
    pub(super) streams: Arc<Places>,
    pub(super) first_answer: Duration,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) shutdown: CancellationToken,
}

impl Door {
    /// Lets the caller of `request` in: its place, who it is, and the first state with an identity in it.
    async fn admit<T>(&self, request: &Request<T>) -> Result<(Watcher, WorkloadState), Status> {
        let peer = Arc::clone(request.extensions().get::<Arc<Peer>>().ok_or_else(status::no_peer)?);
        let place = self.streams.take(peer.uid()).map_err(status::full)?;
        let selectors = self.attestors.attest(&peer).await.map_err(|error| {
            debug!(pid = peer.pid(), uid = peer.uid(), %error, "process is refused");
            status::attest(&error)
        })?;
        let subscription = self.cache.subscribe(selectors.clone()).await.map_err(|_| status::stopping())?;
        let mut watcher = Watcher { peer, selectors, subscription, shutdown: self.shutdown.clone(), _place: place };
        let state = tokio::select! {
            state = watcher.next() => state?,
            () = self.clock.sleep(self.first_answer) => return Err(status::not_ready()),
        };
        Ok((watcher, state))
    }
}

/// One open stream's view of what its process is entitled to.
struct Watcher {
    peer: Arc<Peer>,
    selectors: Selectors,
    subscription: Subscription,
    shutdown: CancellationToken,
    _place: Place,
}

impl Watcher {
    /// The next state, which has an identity in it; or why there is none any more.
    async fn next(&mut self) -> Result<WorkloadState, Status> {
        tokio::select! {
            biased;
            () = self.peer.ended() => Err(status::attest(&AttestError::Gone(self.peer.pid()))),
            () = self.shutdown.cancelled() => Err(status::stopping()),
            state = self.subscription.next() => match state {
                None => Err(status::stopping()),
                Some(state) if state.identities.is_empty() => {
                    debug!(pid = self.peer.pid(), uid = self.peer.uid(), selectors = %self.selectors, "no identity");
                    Err(status::no_identity(&self.selectors))
                }
                Some(state) => Ok(state),
            },
        }
    }

    /// The stream of what `render` makes of each state, beginning with `first`; equal neighbours are sent once.
    fn responses<R>(self, first: WorkloadState, render: fn(&WorkloadState) -> R) -> Responses<R>
    where
        R: Clone + PartialEq + Send + 'static,
    {
        let next = move |(mut watcher, mut waiting, mut sent): (Self, Option<WorkloadState>, Option<R>)| async move {
            loop {
                let state = match waiting.take() {
                    Some(state) => Ok(state),
                    None => watcher.next().await,
                };
                match state.map(|state| render(&state)) {
                    Ok(response) if sent.as_ref() == Some(&response) => {}
                    Ok(response) => {
                        sent = Some(response.clone());
                        return Some((Ok(response), Some((watcher, None, sent))));
                    }
                    Err(status) => return Some((Err(status), None)),
                }
            }
        };
        Box::pin(unfold(Some((self, Some(first), None)), move |at| async move { next(at?).await }))
    }
}

/// The Workload API of this agent.
pub(super) struct WorkloadApi(pub(super) Arc<Door>);

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
        let (watcher, first) = self.0.admit(&request).await?;
        Ok(Response::new(watcher.responses(first, svids)))
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        let (watcher, first) = self.0.admit(&request).await?;
        Ok(Response::new(watcher.responses(first, bundles)))
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
    let bundle = Bytes::from(state.bundle.to_der());
    let svid = |identity: &Identity| X509svid {
        spiffe_id: identity.svid.id().to_string(),
        x509_svid: identity.svid.chain().iter().flat_map(|certificate| certificate.iter().copied()).collect(),
        x509_svid_key: Bytes::from_owner(Key(Arc::clone(&identity.key))),
        bundle: bundle.clone(),
        hint: identity.hint.as_ref().to_owned(),
    };
    X509svidResponse {
        svids: state.identities.iter().map(svid).collect(),
        crl: Vec::new(),
        federated_bundles: by_id(state.federated.values()),
    }
}

/// Section 5.2.2.
fn bundles(state: &WorkloadState) -> X509BundlesResponse {
    let mut bundles = by_id(state.federated.values());
    // Ours is there even when it is empty: clients are promised it.
    bundles.insert(state.bundle.trust_domain().id().to_string(), state.bundle.to_der().into());
    X509BundlesResponse { crl: Vec::new(), bundles }
}

/// By the SPIFFE ID of the trust domain. One without X.509 authorities is left out: clients refuse an empty value.
fn by_id<'a>(bundles: impl Iterator<Item = &'a Bundle>) -> HashMap<String, Bytes> {
    bundles
        .filter(|bundle| !bundle.x509_authorities().is_empty())
        .map(|bundle| (bundle.trust_domain().id().to_string(), bundle.to_der().into()))
        .collect()
}

/// Lets a response share the key with the cache, so that no copy of it is left behind in memory.
struct Key(Arc<Zeroizing<Vec<u8>>>);

impl AsRef<[u8]> for Key {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
