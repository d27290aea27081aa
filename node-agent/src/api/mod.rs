//! The workload socket: whoever knocks is pinned, attested, and told what it is entitled to as long as it listens.
//!
//! | file | owns |
//! |---|---|
//! | `listen` | the socket file, connections, who is at the other end |
//! | `authority` | names of the socket that h2 would refuse |
//! | `places` | how many may be served at once, in all, for one user and for one pod |
//! | `door` | how a process that is known is attested, admitted and told each new state |
//! | `answers` | what a state holds, as doors send it |
//! | `tokens` | JWT-SVIDs, as doors hand them out |
//! | `workload` | the SPIFFE Workload API |
//! | `sds` | Envoy's Secret Discovery Service, on the same socket |
//! | `status` | the only file that makes gRPC statuses of errors |
//! | `broker` | a door of its own: the SPIFFE Broker Endpoint, with the Broker API |
//! | `operator` | a door of its own: how the agent is, for the operator of the machine |
//!
//! - Every service of the Workload API asks for the security header of SPIFFE_Workload_Endpoint.md section 3, reflection
//!   too: the standard exempts nothing ("every client request"). SDS is none of them, and proxies cannot send it.
//! - Every stream ends with the process that opened it, and when the agent stops.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use spiffe::proto::WORKLOAD_DESCRIPTORS;
use spiffe::proto::envoy::service::secret::v3::secret_discovery_service_server::SecretDiscoveryServiceServer;
use spiffe::proto::workload::spiffe_workload_api_server::SpiffeWorkloadApiServer;
use spiffe::time::Clock;
use tokio_util::sync::CancellationToken;
use tonic::Request;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tracing::{info, warn};

use crate::attestor::{Attestors, Peer};
use crate::cache::Cache;
use crate::config::jwt::Claims;
use crate::config::sds::Sds;
use crate::metrics::Metrics;
use crate::status::Status;

mod answers;
pub mod authority;
pub mod broker;
mod door;
pub mod listen;
pub mod operator;
mod places;
pub mod sds;
mod status;
mod subject;
mod tokens;
mod workload;

use door::Door;
pub use listen::Listener;
use places::{Holder, Places};
use sds::SdsApi;
use sds::slim::{self, Slim};
use workload::WorkloadApi;

/// How long streams may take to end once the agent stops.
const GRACE: Duration = Duration::from_secs(5);
/// The largest request: a token of the greatest length that is looked at, and an audience.
const MAX_REQUEST_BYTES: usize = 80 << 10;
/// The most streams of one connection.
const MAX_STREAMS_OF_CONNECTION: u32 = 64;
/// The largest headers of one request.
const MAX_HEADER_BYTES: u32 = 8 << 10;

/// Why the workload socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The path does not fit into a socket address.
    #[error("socket path {path} has {bytes} bytes: at most 107 are possible, choose a shorter one")]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        bytes: usize,
    },
    /// Somebody answers there.
    #[error("another agent listens on {0}: stop it, or choose another socket path")]
    InUse(PathBuf),
    /// Something else than a socket is there.
    #[error("{0} exists and is no socket: move it away, or choose another socket path")]
    NotASocket(PathBuf),
    /// A system call failed.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// What was tried, as a verb.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The descriptors that reflection serves are broken.
    #[error("gRPC reflection cannot be served: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The port is taken, or the address is none of this machine.
    #[error("cannot listen on {key} {address}: {source}; choose another one")]
    Port {
        /// The key of the config.
        key: &'static str,
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// TLS cannot be set up.
    #[error("TLS cannot be set up for brokers: {0}")]
    Tls(#[from] rustls::Error),
    /// The gRPC server failed.
    #[error("the {what} cannot be served: {source}")]
    Server {
        /// Which one.
        what: &'static str,
        /// Why not.
        source: tonic::transport::Error,
    },
}

/// How much is served at once, and how long a workload waits for its first answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections in all.
    pub connections: usize,
    /// Connections of one user.
    pub connections_per_user: usize,
    /// Open streams in all.
    pub streams: usize,
    /// Open streams of one user.
    pub streams_per_user: usize,
    /// A workload whose identities are not all there by then is told to try again (`Unavailable`).
    pub first_answer: Duration,
}

impl Default for Limits {
    /// For a node with some hundreds of workloads that share few users: a user can take half of everything, so that
    /// no single one can shut the others out.
    fn default() -> Self {
        Self {
            connections: 4096,
            connections_per_user: 2048,
            streams: 8192,
            streams_per_user: 4096,
            // Long enough for a first SVID from a busy server, shorter than clients wait before they give up.
            first_answer: Duration::from_secs(10),
        }
    }
}

/// What the workload socket is served with.
pub struct Endpoint {
    /// Who is entitled to what.
    pub cache: Cache,
    /// Who a process is.
    pub attestors: Arc<Attestors>,
    /// How much at once.
    pub limits: Limits,
    /// Which claims of a token are shown to who has it validated.
    pub claims: Claims,
    /// How proxies name what they get.
    pub sds: Sds,
    /// Where it is told which proxies there are.
    pub status: Status,
    /// What is counted.
    pub metrics: Metrics,
    /// For the wait of `limits.first_answer`.
    pub clock: Arc<dyn Clock>,
}

impl Endpoint {
    /// Serves the Workload API, gRPC reflection for it, and SDS on `listener`, until `shutdown` is cancelled and the streams have
    /// been told so (five seconds at most). The socket file is then gone.
    pub async fn serve(self, listener: Listener, shutdown: CancellationToken) -> Result<(), ApiError> {
        let Self { cache, attestors, limits, claims, sds, status, metrics, clock } = self;
        let door = Arc::new(Door {
            cache,
            attestors: Arc::clone(&attestors),
            first_answer: limits.first_answer,
            waits: Places::new(limits.streams, tokens::WAITS_OF_ONE),
            clock: Arc::clone(&clock),
            shutdown: shutdown.clone(),
        });
        let streams = Places::local(limits.streams, limits.streams_per_user);
        let sds = SdsApi {
            door: Arc::clone(&door),
            streams: Arc::clone(&streams),
            config: Arc::new(sds),
            journal: sds::Journal::new(Arc::clone(&clock), status, metrics),
        };
        let sds = SecretDiscoveryServiceServer::new(sds).max_decoding_message_size(slim::MAX_BYTES);
        let workload = WorkloadApi { door, streams, claims };
        let workload = SpiffeWorkloadApiServer::new(workload).max_decoding_message_size(MAX_REQUEST_BYTES);
        let reflection = || {
            tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(WORKLOAD_DESCRIPTORS)
        };
        let v1 = reflection().build_v1()?.max_decoding_message_size(MAX_REQUEST_BYTES);
        let v1alpha = reflection().build_v1alpha()?.max_decoding_message_size(MAX_REQUEST_BYTES);
        let router = Server::builder()
            .max_concurrent_streams(MAX_STREAMS_OF_CONNECTION)
            .http2_max_header_list_size(MAX_HEADER_BYTES)
            .add_service(InterceptedService::new(workload, security_header))
            .add_service(InterceptedService::new(v1, security_header))
            .add_service(InterceptedService::new(v1alpha, security_header))
            .add_service(Slim::new(InterceptedService::new(sds, grpc_alone)));

        info!(socket = %listener.path().display(), "workloads are served");
        let places = Places::local(limits.connections, limits.connections_per_user);
        let holder = move |peer: &Peer| Holder::local(peer, &attestors);
        let connections = listener.connections(places, holder, Arc::clone(&clock));
        let server = router.serve_with_incoming_shutdown(connections, shutdown.clone().cancelled_owned());
        until_stopped(server, clock.as_ref(), &shutdown, "workload socket").await
    }
}

/// Runs `server`, which ends after `shutdown`; and does not wait for it longer than the streams may take to end.
async fn until_stopped(
    server: impl Future<Output = Result<(), tonic::transport::Error>>,
    clock: &dyn Clock,
    shutdown: &CancellationToken,
    what: &'static str,
) -> Result<(), ApiError> {
    let deadline = async {
        shutdown.cancelled().await;
        clock.sleep(GRACE).await;
    };
    tokio::select! {
        served = server => served.map_err(|source| ApiError::Server { what, source }),
        () = deadline => {
            warn!(what, "some streams did not end in time and were cut off");
            Ok(())
        }
    }
}

/// Refuses a request without exactly one `workload.spiffe.io: true` (SPIFFE_Workload_Endpoint.md section 3).
fn security_header(request: Request<()>) -> Result<Request<()>, tonic::Status> {
    if has_header(&request, "workload.spiffe.io") { Ok(request) } else { Err(status::no_security_header()) }
}

/// Refuses a request that is not said to be gRPC: in the place of the security header, which proxies cannot send.
fn grpc_alone(request: Request<()>) -> Result<Request<()>, tonic::Status> {
    let mut values = request.metadata().get_all("content-type").iter();
    let is_grpc = |value: &[u8]| value == b"application/grpc" || value == b"application/grpc+proto";
    let one = values.next().is_some_and(|value| is_grpc(value.as_bytes())) && values.next().is_none();
    if one { Ok(request) } else { Err(status::no_grpc()) }
}

/// Whether `name: true` is there, exactly once.
fn has_header(request: &Request<()>, name: &str) -> bool {
    let mut values = request.metadata().get_all(name).iter();
    values.next().is_some_and(|value| value.as_bytes() == b"true") && values.next().is_none()
}

#[cfg(test)]
mod test_office;
#[cfg(test)]
mod tests;
