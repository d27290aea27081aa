//! The SPIFFE Broker Endpoint: trusted components of the infrastructure ask on behalf of workloads that they name.
//!
//! | file | owns |
//! |---|---|
//! | `listen` | the socket and the port, TLS, who is at the other end |
//! | `policy` | which broker may ask for what |
//! | `reference` | what a broker calls a workload |
//! | `service` | the SPIFFE Broker API |
//! | `status` | the only file here that makes gRPC statuses of errors |
//!
//! - The agent presents the SVID with which it calls its server; a broker, one of the agent's own trust domain.
//! - A broker's right is looked at for each request, reflection too: the security header, its SVID against the present
//!   bundle at the present time, the allow list. Nobody is let in for having been so once. Open streams are asked for the
//!   SVID at each change of the bundle.

use std::sync::Arc;
use std::time::Duration;

use spiffe::bundle::Bundle;
use spiffe::id::TrustDomain;
use spiffe::mtls::{self, CurrentBundles, CurrentSvid, Peers};
use spiffe::proto::BROKER_DESCRIPTORS;
use spiffe::proto::broker::api_server::ApiServer;
use spiffe::time::Clock;
use spiffe::x509_svid::SvidError;
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::{Request, Status};
use tracing::{info, warn};

use super::door::Door;
use super::places::Places;
use super::tokens::WAITS_OF_ONE;
use super::{ApiError, MAX_HEADER_BYTES, MAX_REQUEST_BYTES, has_header, until_stopped};
use crate::attestor::Attestors;
use crate::attestor::k8s::KnownPods;
use crate::cache::Cache;
use crate::config::broker::{BrokerLimits, Rule};

mod listen;
mod policy;
pub mod reference;
mod service;
mod status;

pub use listen::Sockets;
use listen::{Caller, Porter};
use policy::Policy;
use service::BrokerApi;
use status::Refusal;

/// Connections that wait to be taken up.
const WAITING: usize = 16;
/// A connection that does not answer a ping in time is closed: a broker that has vanished from the network.
const PING_EVERY: Duration = Duration::from_secs(60);
const PING_ANSWER: Duration = Duration::from_secs(20);

/// What the Broker Endpoint is served with.
pub struct Endpoint {
    /// Who is entitled to what.
    pub cache: Cache,
    /// Who a process is.
    pub attestors: Arc<Attestors>,
    /// The pods of this node; `None`: it is none of a cluster.
    pub pods: Option<KnownPods>,
    /// Who may ask for what.
    pub allow: Vec<Rule>,
    /// How much at once.
    pub limits: BrokerLimits,
    /// A workload whose identities are not all there by then is said not to be ready (`Unavailable`).
    pub first_answer: Duration,
    /// The agent's own.
    pub svid: CurrentSvid,
    /// What brokers are verified against.
    pub bundles: CurrentBundles,
    /// The own trust domain's, told at each change: whether open streams may go on.
    pub trust: watch::Receiver<Bundle>,
    /// The agent's own.
    pub trust_domain: TrustDomain,
    /// Where the time comes from.
    pub clock: Arc<dyn Clock>,
}

impl Endpoint {
    /// Serves the Broker API and gRPC reflection on `sockets`, until `shutdown` is cancelled and the streams have been
    /// told so (five seconds at most). The socket file is then gone.
    pub async fn serve(self, sockets: Sockets, shutdown: CancellationToken) -> Result<(), ApiError> {
        let Self { cache, attestors, pods, allow, limits, first_answer, svid, bundles, trust, trust_domain, clock } =
            self;
        let peers = Peers::TrustDomains(vec![trust_domain.clone()]);
        let mut tls = mtls::server_config(svid, bundles.clone(), peers, true, Arc::clone(&clock))?;
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let policy = Arc::new(Policy::new(allow));

        let gate = Gate { policy: Arc::clone(&policy), bundles, trust_domain, clock: Arc::clone(&clock) };
        let door = Door {
            cache,
            attestors: Arc::clone(&attestors),
            first_answer,
            waits: Places::new(limits.streams, WAITS_OF_ONE),
            clock: Arc::clone(&clock),
            shutdown: shutdown.clone(),
        };
        let streams = Places::new(limits.streams, limits.streams_per_broker);
        let api = ApiServer::new(BrokerApi { door, policy: Arc::clone(&policy), pods, streams, trust });
        let api = api.max_decoding_message_size(MAX_REQUEST_BYTES);
        let reflection =
            || tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(BROKER_DESCRIPTORS);
        let v1 = reflection().build_v1()?.max_decoding_message_size(MAX_REQUEST_BYTES);
        let v1alpha = reflection().build_v1alpha()?.max_decoding_message_size(MAX_REQUEST_BYTES);
        let router = Server::builder()
            // All streams of a broker may be on one connection.
            .max_concurrent_streams(u32::try_from(limits.streams_per_broker).unwrap_or(u32::MAX))
            .http2_max_header_list_size(MAX_HEADER_BYTES)
            .http2_keepalive_interval(Some(PING_EVERY))
            .http2_keepalive_timeout(Some(PING_ANSWER))
            .add_service(InterceptedService::new(api, gate.clone()))
            .add_service(InterceptedService::new(v1, gate.clone()))
            .add_service(InterceptedService::new(v1alpha, gate));

        info!("brokers are served");
        if sockets.is_remote() {
            warn!("brokers have no unix socket, and over the network no process can be named: give broker.socket");
        }
        let (to, connections) = mpsc::channel(WAITING);
        let porter = Porter::new(listen::Parts {
            tls: TlsAcceptor::from(Arc::new(tls)),
            policy,
            attestors,
            limits,
            clock: Arc::clone(&clock),
            to,
            stop: shutdown.clone(),
        });
        let connections = ReceiverStream::new(connections);
        let server = router.serve_with_incoming_shutdown(connections, shutdown.clone().cancelled_owned());
        let taking = async {
            porter.work(sockets).await;
            std::future::pending().await
        };
        tokio::select! {
            served = until_stopped(server, clock.as_ref(), &shutdown, "broker endpoint") => served,
            never = taking => never,
        }
    }
}

/// What every request goes through.
#[derive(Clone)]
struct Gate {
    policy: Arc<Policy>,
    bundles: CurrentBundles,
    trust_domain: TrustDomain,
    clock: Arc<dyn Clock>,
}

impl Gate {
    fn check(&self, request: &Request<()>) -> Result<(), Refusal> {
        if !has_header(request, "broker.spiffe.io") {
            return Err(Refusal::NoHeader);
        }
        let caller = request.extensions().get::<Arc<Caller>>().ok_or(Refusal::NoCaller)?;
        self.policy.rights_of(caller.id())?;
        let bundles = self.bundles.load();
        let unknown = || SvidError::UnknownTrustDomain(caller.id().clone());
        let bundle = bundles.get(&self.trust_domain).ok_or_else(unknown)?;
        caller.svid.clone().verify(bundle, self.clock.now())?;
        Ok(())
    }
}

impl Interceptor for Gate {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        self.check(&request)?;
        Ok(request)
    }
}
