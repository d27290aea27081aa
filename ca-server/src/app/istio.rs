//! The door for Istio's proxies: what it is made of, and its server.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use spiffe::proto::istio::istio_certificate_service_server::IstioCertificateServiceServer;
use spiffe::time::Timestamp;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tracing::error;

use super::{AppError, KEEPALIVE, KEEPALIVE_ANSWER, lives};
use crate::api::istio::{IstioDoor, IstioSettings, MAX_HEADERS, MAX_REQUEST};
use crate::api::limits::Attempts;
use crate::api::listen::Connection;
use crate::api::rights::Guard;
use crate::config::{Config, Istio};
use crate::kube::review::TokenReviewer;
use crate::origin::Places;

/// How many requests may be open at once, in all and of one origin: with their sizes, what strangers hold.
const OPEN: usize = 512;
const OPEN_OF_ONE: usize = OPEN / 4;
/// The most calls open on one connection: a ztunnel has eight.
const STREAMS_PER_CONNECTION: u32 = 64;
/// When a proxy is told to come again on another connection, after its calls: so that servers share the load, and nobody
/// stays who is not seen to be there.
const CONNECTION_AGE: Duration = Duration::from_secs(1800);
const CONNECTION_AGE_GRACE: Duration = Duration::from_secs(60);

/// What the config says of the door, and whom it asks.
pub(super) fn settings(
    config: &Config,
    istio: &Istio,
    reviewers: Vec<Arc<dyn TokenReviewer>>,
    now: Timestamp,
) -> Result<IstioSettings, AppError> {
    let reviewers = reviewers.into_iter().map(|reviewer| (reviewer.cluster().to_owned(), reviewer));
    let settings = IstioSettings {
        clusters: istio.clusters.clone(),
        default_cluster: istio.default_cluster.clone(),
        reviewers: reviewers.collect(),
        audience: istio.audience.clone(),
        profile: lives::service_accounts(config, istio),
        trusted_node_accounts: istio.trusted_node_accounts.clone(),
        client_certificates: istio.client_certificates,
        asking: Attempts::new(istio.requests_per_second, istio.requests_burst, now),
        open: Places::new(OPEN, OPEN_OF_ONE),
    };
    match istio.clusters.values().find(|name| !settings.reviewers.contains_key(*name)) {
        Some(unknown) => Err(AppError::IstioCluster(unknown.clone())),
        None => Ok(settings),
    }
}

/// Serves the door on these connections until the server stops.
pub(super) async fn serve(
    door: IstioDoor,
    guard: Guard,
    request_timeout: Duration,
    connections: mpsc::Receiver<io::Result<Connection>>,
) {
    let stop = door.doors.stop.clone();
    let service = IstioCertificateServiceServer::new(door).max_decoding_message_size(MAX_REQUEST);
    let served = tonic::transport::Server::builder()
        .timeout(request_timeout)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_ANSWER))
        .http2_max_header_list_size(MAX_HEADERS)
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .max_connection_age(CONNECTION_AGE)
        .max_connection_age_grace(CONNECTION_AGE_GRACE)
        .layer(guard)
        .add_service(service)
        .serve_with_incoming_shutdown(ReceiverStream::new(connections), stop.cancelled_owned())
        .await;
    if let Err(error) = served {
        error!(%error, "the listener for Istio's proxies failed");
    }
}
