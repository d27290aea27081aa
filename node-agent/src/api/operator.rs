//! The status socket: how this agent is, for `chancery agent status`.
//!
//! - The file has mode 0600, and only root and the agent's own user are answered: asked of the kernel for each connection.
//! - Nothing can be changed here, and nothing secret is told: no key, no token, no certificate.

use std::sync::Arc;

use prometheus_client::metrics::gauge::Gauge;
use spiffe::id::SpiffeId;
use spiffe::proto::v1;
use spiffe::proto::v1::agent_status_server::{AgentStatus, AgentStatusServer};
use spiffe::time::{Clock, Timestamp};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response};

use super::places::{Holder, Places};
use super::{ApiError, Listener, status, until_stopped};
use crate::attestor::Peer;
use crate::cache::{Cache, Look};
use crate::metrics::Metrics;
use crate::status::{Delivery, Failure, Proxy, Status};

/// Of the socket file: the agent's own user, and root.
pub const MODE: u32 = 0o600;
/// A few operators at once.
const CONNECTIONS: usize = 16;
const MAX_REQUEST_BYTES: usize = 1 << 10;

/// What is told of.
#[derive(Debug)]
pub struct Operator {
    /// The agent's own SPIFFE ID.
    pub id: SpiffeId,
    /// What is held.
    pub cache: Cache,
    /// What the rooms report.
    pub status: Status,
    /// What is counted.
    pub metrics: Metrics,
    /// For a pause when no connection can be accepted.
    pub clock: Arc<dyn Clock>,
}

impl Operator {
    /// Answers on `listener` until `shutdown` is cancelled. The socket file is then gone.
    pub async fn serve(self, listener: Listener, shutdown: CancellationToken) -> Result<(), ApiError> {
        let clock = Arc::clone(&self.clock);
        let connections = listener.connections(Places::new(CONNECTIONS, CONNECTIONS), Holder::user, Arc::clone(&clock));
        let service = AgentStatusServer::new(self).max_decoding_message_size(MAX_REQUEST_BYTES);
        let server = Server::builder().add_service(service);
        let server = server.serve_with_incoming_shutdown(connections, shutdown.clone().cancelled_owned());
        until_stopped(server, clock.as_ref(), &shutdown, "status socket").await
    }
}

#[tonic::async_trait]
impl AgentStatus for Operator {
    async fn show(
        &self,
        request: Request<v1::ShowAgentStatusRequest>,
    ) -> Result<Response<v1::ShowAgentStatusResponse>, tonic::Status> {
        let peer = request.extensions().get::<Arc<Peer>>().ok_or_else(status::no_peer)?;
        if peer.uid() != 0 && peer.uid() != nix::unistd::geteuid().as_raw() {
            return Err(status::no_operator(peer.uid()));
        }
        let Look { connected, revision, svids } =
            self.cache.look().await.map_err(|stopped| status::stopping(&stopped))?;
        let svid = |(entry, expires_at): (Arc<spiffe::entry::RegistrationEntry>, Timestamp)| v1::HeldSvid {
            entry_id: entry.id.to_string(),
            spiffe_id: entry.spiffe_id.to_string(),
            expires_at: expires_at.unix(),
        };
        let measured = |gauge: &Gauge| u64::try_from(gauge.get()).unwrap_or_default();
        Ok(Response::new(v1::ShowAgentStatusResponse {
            id: self.id.to_string(),
            svid_expires_at: measured(&self.metrics.own_expiry),
            connected,
            revision,
            svids: svids.into_iter().map(svid).collect(),
            proxies: self.status.proxies(self.clock.now()).into_iter().map(Proxy::into).collect(),
            deliveries: self.status.deliveries().into_iter().map(Delivery::into).collect(),
            pods: measured(&self.metrics.k8s_pods),
            pods_told_at: measured(&self.metrics.k8s_told),
        }))
    }
}

impl From<Proxy> for v1::Proxy {
    fn from(proxy: Proxy) -> Self {
        let Proxy { pid, node, names, sent, acknowledged, rejection } = proxy;
        Self { pid, node, names, sent, acknowledged, rejection: rejection.map(Failure::into) }
    }
}

impl From<Delivery> for v1::Delivery {
    fn from(delivery: Delivery) -> Self {
        let Delivery { name, spiffe_id, version, succeeded_at, failure, next_try } = delivery;
        let seconds = |at: Option<Timestamp>| at.map(Timestamp::unix).unwrap_or_default();
        Self {
            name,
            spiffe_id,
            version,
            succeeded_at: seconds(succeeded_at),
            failure: failure.map(Failure::into),
            next_try: seconds(next_try),
        }
    }
}

impl From<Failure> for v1::Failure {
    fn from(Failure { at, words }: Failure) -> Self {
        Self { at: at.unix(), words }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use spiffe::proto::v1::agent_status_client::AgentStatusClient;
    use spiffe::time::Fake;

    use super::*;
    use crate::api::test_office::{NOW, Office};
    use crate::api::tests::channel;
    use crate::cache::mailbox;

    #[tokio::test]
    async fn the_operator_is_told_what_is_held_and_what_is_reported() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("status.sock");
        let (cache, mut mailbox) = mailbox();
        let (status, metrics, shutdown) = (Status::default(), Metrics::default(), CancellationToken::new());
        metrics.own_expiry.set(1_800_003_600);
        metrics.k8s_pods.set(110);
        metrics.k8s_told.set(1_800_000_001);
        let id = SpiffeId::parse("spiffe://example.org/chancery/agent/join_token/1").unwrap();
        let clock = Arc::new(Fake::new(NOW));
        let operator = Operator { id, cache, status: status.clone(), metrics, clock };
        let listener = Listener::bind(&path, MODE).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let served = tokio::spawn(operator.serve(listener, shutdown.clone()));

        let failure = Some(Failure { at: NOW, words: "no such pid".into() });
        let proxy = Proxy { pid: 7, node: "front".into(), rejection: failure.clone(), ..Proxy::default() };
        let _proxy = status.report_proxy(proxy);
        let next_try = Some(NOW.plus(std::time::Duration::from_secs(5)));
        let _delivery =
            status.report_delivery(Delivery { name: "nginx".into(), failure, next_try, ..Delivery::default() });
        let identity = Office::new().identity("web", "", 1);
        let ends = identity.svid.lifetime().not_after;
        let look = Look { connected: true, revision: 9, svids: vec![(identity.entry, ends)] };

        let mut client = AgentStatusClient::new(channel(path.clone()).await.unwrap());
        let (shown, ()) = tokio::join!(client.show(v1::ShowAgentStatusRequest {}), async {
            mailbox.looks.recv().await.unwrap().send(look).unwrap();
        });
        let shown = shown.unwrap().into_inner();
        assert_eq!((shown.svid_expires_at, shown.connected, shown.revision), (1_800_003_600, true, 9));
        assert_eq!((shown.pods, shown.pods_told_at), (110, 1_800_000_001));
        assert_eq!((shown.svids[0].entry_id.as_str(), shown.svids[0].expires_at), ("web", ends.unix()));
        assert_eq!((shown.proxies[0].pid, shown.proxies[0].node.as_str()), (7, "front"));
        assert_eq!(shown.proxies[0].rejection.as_ref().unwrap().words, "no such pid");
        assert_eq!((shown.deliveries[0].next_try, shown.deliveries[0].succeeded_at), (NOW.unix() + 5, 0));
        shutdown.cancel();
        drop(client);
        served.await.unwrap().unwrap();
        assert!(!path.exists());
    }
}
