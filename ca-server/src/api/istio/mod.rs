//! The door for Istio's proxies: ztunnel, sidecars and gateways ask here for their certificates, as they would ask istiod
//! (`istio.v1.auth.IstioCertificateService`). It has a listener of its own, for proxies come without a certificate and stay.
//!
//! | file | owns |
//! |---|---|
//! | `credentials` | what the headers say of the caller (pure) |
//! | `account` | service accounts and their identities (pure) |
//! | `impersonation` | whose identity the proxy of a node may have (pure) |
//! | `request` | the key and the life that are asked for (pure) |
//! | `answer` | the chain as a proxy wants it (pure) |
//! | `refusal` | why there is none, and what of it is told |
//!
//! - Who calls is what an API server says of the token, or, where the config lets it, a certificate of a service account.
//! - Limits come first, then a place in the audit queue, then everything else: what cannot be recorded is not signed.
//! - What is known when the API server has answered counts, not what was known before.
//! - An identity that an entry marks as an operator's is given to nobody here, as rules give it to no pod: whoever may make
//!   service accounts in a cluster would be an operator of the CA.

mod account;
mod answer;
mod credentials;
mod impersonation;
mod refusal;
mod request;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use rustls_pki_types::CertificateSigningRequestDer;
use spiffe::crypto;
use spiffe::id::SpiffeId;
use spiffe::proto::istio::istio_certificate_service_server::IstioCertificateService;
use spiffe::proto::istio::{IstioCertificateRequest, IstioCertificateResponse};
use tonic::{Request, Response, Status};

use self::account::Account;
use self::credentials::CredentialError;
use self::impersonation::Wish;
use self::refusal::Failure;
use self::request::RequestError;
use super::Doors;
use super::caller::{Caller, Holder};
use super::limits::Attempts;
use super::rights::{self, Admitted};
use super::status::Refusal;
use crate::audit::{Event, Message, Outcome, Serial as AuditSerial, Who};
use crate::authority::issuer::{Serial, Signed};
use crate::config::kubernetes::AccountName;
use crate::issuance;
use crate::issuance::service_account::{ServiceAccounts, for_service_account};
use crate::kube::review::{Bound, ServiceAccount, TokenReviewer};
use crate::metrics::IssuedFor;
use crate::origin::Places;
use crate::view::View;

/// The largest request, in bytes: thirty times what a proxy sends.
pub const MAX_REQUEST: usize = 32 << 10;
/// The most bytes of headers: a token, and what proxies add.
pub const MAX_HEADERS: u32 = 16 << 10;
/// How long an API server may take to say whose a token is.
const REVIEW_LIMIT: Duration = Duration::from_secs(10);
/// The name of the call, in the record and in metrics.
const RPC: &str = "CreateCertificate";

/// What the config says of this door, and whom it asks.
#[derive(Debug)]
pub struct IstioSettings {
    /// Our names of clusters, by those that proxies give.
    pub clusters: BTreeMap<String, String>,
    /// The cluster of a proxy that names none, by our name.
    pub default_cluster: Option<String>,
    /// Who knows whose a token is, by our names of clusters.
    pub reviewers: BTreeMap<String, Arc<dyn TokenReviewer>>,
    /// What a token has to be made for.
    pub audience: String,
    /// What certificates look like.
    pub profile: ServiceAccounts,
    /// Who may ask for the identities of other pods of its node.
    pub trusted_node_accounts: Vec<AccountName>,
    /// Whether a certificate of a service account is as good as a token.
    pub client_certificates: bool,
    /// How often proxies may ask.
    pub asking: Attempts,
    /// How many requests may be open at once: each may wait for an API server.
    pub open: Places,
}

/// The service of `istio/ca.proto`.
#[derive(Clone, Debug)]
pub struct IstioDoor {
    /// What every door has behind it.
    pub doors: Arc<Doors>,
    /// What only this one has.
    pub settings: Arc<IstioSettings>,
}

#[tonic::async_trait]
impl IstioCertificateService for IstioDoor {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let admitted = request.extensions().get::<Admitted>().cloned();
        let admitted = admitted.ok_or_else(|| Status::internal("the request was not admitted"))?;
        let _timer = self.doors.metrics.time(RPC);
        let (metadata, _, wish) = request.into_parts();
        let call = Call { doors: &self.doors, settings: &self.settings, admitted, headers: metadata.into_headers() };
        Ok(Response::new(call.answer(wish).await?))
    }
}

/// One request.
struct Call<'a> {
    doors: &'a Doors,
    settings: &'a IstioSettings,
    admitted: Admitted,
    headers: HeaderMap,
}

/// Who calls, proved.
enum Proven<'a> {
    /// By a token.
    Account(&'a str, ServiceAccount),
    /// By a certificate of a service account.
    Holder(SpiffeId),
}

impl Call<'_> {
    async fn answer(&self, wish: IstioCertificateRequest) -> Result<IstioCertificateResponse, Failure> {
        let Self { doors, settings, admitted, .. } = self;
        let busy = |what| {
            let failure = Failure::overloaded(what);
            doors.metrics.refused(failure.reason());
            failure
        };
        let origin = admitted.caller.origin();
        let often = |_| busy("too many certificates are asked for at once");
        settings.asking.take(origin.clone(), admitted.now).map_err(often)?;
        let place = settings.open.take(origin);
        let _place = place.ok_or_else(|| busy("too many requests wait for the API server"))?;
        let mut record = doors.audit.reserve_spare().map_err(Failure::unrecorded)?;
        let mut event = Event::new(admitted.now, RPC, admitted.who(), Outcome::Issued);
        event.address = match &admitted.caller {
            Caller::Stranger(address) => Some(*address),
            other => other.holder().map(|holder| holder.address),
        };
        let csr = request::csr(&wish.csr);
        event.csr_sha256 = csr.as_ref().ok().map(|csr| crypto::sha256(csr));
        event.revision = admitted.view.revision();
        let answer = self.decide(&mut event, wish, csr).await;
        match &answer {
            Ok(_) => doors.metrics.issued(IssuedFor::ServiceAccount),
            Err(failure) => event.outcome = failure.outcome(),
        }
        doors.decided(&mut record, event);
        Ok(IstioCertificateResponse { cert_chain: answer? })
    }

    async fn decide(
        &self,
        event: &mut Event,
        wish: IstioCertificateRequest,
        csr: Result<CertificateSigningRequestDer<'static>, RequestError>,
    ) -> Result<Vec<String>, Failure> {
        let proven = self.prove(event).await?;
        let (view, now) = (self.doors.views.load(), self.doors.clock.now());
        event.revision = view.revision();
        let asked = request::impersonated(wish.metadata).map_err(Failure::impersonation)?;
        let id = self.identity(&proven, asked.as_deref(), &view)?;
        event.subject = Some(id.clone());

        let Ok(_turn) = self.doors.issuing.try_acquire() else {
            return Err(Failure::overloaded("too many batches are being signed"));
        };
        let issuer = view.issuer().ok_or_else(|| Failure::signing(Refusal::no_authority()))?;
        // Last what costs most: nobody without a right makes the server verify a signature.
        let key = csr.and_then(|csr| request::key(&csr)).map_err(|error| Failure::signing(Refusal::csr(error)))?;
        let serial = Serial::from_random(crypto::random().map_err(Failure::signing)?);
        let request = issuance::Request { key, serial, window: issuer.window(), now };
        let ttl = request::ttl(wish.validity_duration);
        let plan = for_service_account(id, ttl, request, &self.settings.profile).map_err(Failure::signing)?;
        let signed: Signed = issuer.sign(plan).map_err(Failure::signing)?;
        event.serial = Some(AuditSerial::new(signed.serial.bytes()));
        event.not_after = Some(signed.lifetime.not_after);
        let without = || Failure::signing(Refusal::internal("the bundle has no root"));
        answer::chain(&signed, view.bundle()).ok_or_else(without)
    }

    /// Who calls. A certificate comes before a token, as at istiod: a proxy that has one may have an old token, too.
    async fn prove(&self, event: &mut Event) -> Result<Proven<'_>, Failure> {
        let settings = self.settings;
        if let Some(holder) = self.holder() {
            let (view, now) = (self.doors.views.load(), self.doors.clock.now());
            rights::admit_svid(holder, &view, now).map_err(Failure::authentication)?;
            return Ok(Proven::Holder(holder.id.clone()));
        }
        let token = credentials::token(&self.headers).map_err(Failure::authentication)?;
        let default = settings.default_cluster.as_deref();
        let cluster = credentials::cluster(&self.headers, &settings.clusters, default);
        let cluster = cluster.map_err(Failure::authentication)?;
        let unknown = || Failure::authentication(CredentialError::UnknownCluster(cluster.to_owned()));
        let reviewer = settings.reviewers.get(cluster).ok_or_else(unknown)?;
        #[expect(clippy::disallowed_methods, reason = "a time limit on an answer from the network")]
        let reviewed = tokio::time::timeout(REVIEW_LIMIT, reviewer.review(token, &settings.audience)).await;
        let late = |_| Failure::unanswered(format_args!("cluster {cluster} did not answer within 10 seconds"));
        let account = reviewed.map_err(late)??;
        event.who = Who::ServiceAccount(Message::new(&format!("{cluster}/{}/{}", account.namespace, account.name)));
        let pod = |Bound { name, uid }: &Bound| Message::new(&format!("pod {name} {uid}"));
        event.object = account.pod.as_ref().map(pod);
        Ok(Proven::Account(cluster, account))
    }

    /// The holder of a certificate that counts here.
    fn holder(&self) -> Option<&Holder> {
        match &self.admitted.caller {
            Caller::Workload(holder) if self.settings.client_certificates => Account::of_id(&holder.id).map(|_| holder),
            _ => None,
        }
    }

    /// The identity that the caller gets: its own, or the one that it asks for and may have; an operator's never.
    fn identity(&self, proven: &Proven<'_>, asked: Option<&str>, view: &View) -> Result<SpiffeId, Failure> {
        let id = self.claimed(proven, asked, view)?;
        if view.admins_of(&id).next().is_some() {
            return Err(Failure::operator(&id, asked.is_some()));
        }
        Ok(id)
    }

    /// The identity that is the caller's, or that it asks for and speaks for.
    fn claimed(&self, proven: &Proven<'_>, asked: Option<&str>, view: &View) -> Result<SpiffeId, Failure> {
        let trust_domain = view.trust_domain();
        match (proven, asked) {
            (Proven::Holder(id), None) => Ok(id.clone()),
            (Proven::Account(_, ServiceAccount { namespace, name, .. }), None) => {
                Account { namespace, name }.id(trust_domain).map_err(Failure::authentication)
            }
            // None of its pods are known yet: that says nothing of the caller.
            (Proven::Account(cluster, _), Some(_)) if view.pods().awaits(cluster) => Err(Failure::not_yet(cluster)),
            (Proven::Account(cluster, caller), Some(asked)) => {
                let (trusted, wish) = (&self.settings.trusted_node_accounts, Wish { caller, cluster, asked });
                impersonation::allowed(wish, trusted, trust_domain, view.pods()).map_err(Failure::impersonation)
            }
            (Proven::Holder(id), Some(_)) => {
                Err(Failure::impersonation(format!("{id} asks for the identity of another without a token")))
            }
        }
    }
}
