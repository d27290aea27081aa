//! SDS: what one agent holds in memory for each of 1,000 streams of proxies, each on a connection of its own with its SVID and
//! its roots, and how long a new root takes from the operator's command to all of them.

#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a benchmark measures and prints")]

mod support;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use spiffe::proto::envoy::config::core::v3::Node;
use spiffe::proto::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use spiffe::proto::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use spiffe::proto::v1;
use support::{DOMAIN, Figures, Process, Server, binary, create, entry, unix_channel};
use tokio::sync::mpsc;

const STREAMS: usize = 1_000;
/// As many are opened at once.
const OPENING: usize = 50;
const ROUNDS: usize = 10;
const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let folder = Arc::new(tempfile::tempdir()?);
        let server = Server::start(&folder).await?;
        let (token, fingerprint) = server.token().await?;
        let root = folder.path();
        let config = format!(
            "trust_domain = '{DOMAIN}'\nservers = ['127.0.0.1:{}']\ndata_dir = '{1}/agent'\n\
             workload_socket = '{1}/w.sock'\nca_fingerprint = 'sha256:{fingerprint}'\n[attest]\nkind = 'join_token'\n\
             token = '{token}'\n",
            server.port,
            root.display()
        );
        fs::write(root.join("agent.toml"), config)?;
        let path = root.join("agent.toml");
        let arguments = ["agent", "run", "--config", path.to_str().context("path")?];
        let process = Process::spawn(&binary()?, &arguments, &root.join("agent.log"))?;
        let mut admin = server.admin().await?;
        let agent = loop {
            let agents = admin.list_agents(v1::ListAgentsRequest::default()).await?.into_inner().agents;
            if let Some(agent) = agents.into_iter().find(|agent| agent.connected) {
                break agent.id.parse()?;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        create(&mut admin, vec![entry("/proxy", &agent)]).await?;
        let (mut proxies, socket) = (Proxies::new(), root.join("w.sock"));
        proxies.open(&socket, 1).await?;
        let before = process.resident()?;
        while proxies.count < STREAMS {
            proxies.open(&socket, OPENING.min(STREAMS - proxies.count)).await?;
        }
        let with = process.resident()?;

        let (mut each, mut last) = (Figures::default(), Figures::default());
        for _ in 0..ROUNDS {
            let started = Instant::now();
            let made = admin.prepare_authority(v1::PrepareAuthorityRequest::default()).await?.into_inner();
            let made = made.authority.context("no authority")?.id;
            last.add(proxies.all(started, &mut each).await?);
            // It has signed nothing: it may go, and the bundle is as it was.
            admin.revoke_authority(v1::AuthorityRequest { id: made, force: false }).await?;
            proxies.all(Instant::now(), &mut Figures::default()).await?;
        }
        println!("| streams | resident MiB (with one) | KiB a stream | each has a new root, p50 ms | p99 ms | all, p50 ms | most ms |");
        println!("|---|---|---|---|---|---|---|");
        println!(
            "| {STREAMS} | {with:.1} ({before:.1}) | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} |",
            (with - before) * 1024.0 / (STREAMS - 1) as f64,
            each.percentile(50),
            each.percentile(99),
            last.percentile(50),
            last.percentile(100)
        );
        process.stop()?;
        server.process.stop()
    })
}

/// Proxies that take everything that they are given, and tell when they got it.
struct Proxies {
    count: usize,
    told: mpsc::UnboundedSender<Instant>,
    heard: mpsc::UnboundedReceiver<Instant>,
}

impl Proxies {
    fn new() -> Self {
        let (told, heard) = mpsc::unbounded_channel();
        Self { count: 0, told, heard }
    }

    /// Opens `more`, and returns when each has its first answer.
    async fn open(&mut self, socket: &Path, more: usize) -> Result<()> {
        for _ in 0..more {
            let (channel, told) = (unix_channel(socket.to_owned()).await?, self.told.clone());
            tokio::spawn(async move { talk(SecretDiscoveryServiceClient::new(channel), told).await });
        }
        for _ in 0..more {
            self.next().await?;
        }
        self.count += more;
        Ok(())
    }

    /// Waits until all have one more answer; how long the last one took. `each` gets them all.
    async fn all(&mut self, since: Instant, each: &mut Figures) -> Result<Duration> {
        let mut last = Duration::ZERO;
        for _ in 0..self.count {
            let took = self.next().await?.duration_since(since);
            each.add(took);
            last = last.max(took);
        }
        Ok(last)
    }

    async fn next(&mut self) -> Result<Instant> {
        match tokio::time::timeout(Duration::from_secs(30), self.heard.recv()).await {
            Ok(Some(moment)) => Ok(moment),
            _ => bail!("a stream is not answered"),
        }
    }
}

/// One stream, as long as it lasts: each answer is taken.
async fn talk(
    mut client: SecretDiscoveryServiceClient<tonic::transport::Channel>,
    told: mpsc::UnboundedSender<Instant>,
) -> Result<()> {
    let (requests, from) = mpsc::unbounded_channel();
    let names = vec!["default".into(), "ROOTCA".into()];
    let node = Some(Node { id: "bench".into(), ..Node::default() });
    let first =
        DiscoveryRequest { node, resource_names: names, type_url: SECRET.into(), ..DiscoveryRequest::default() };
    requests.send(first.clone())?;
    let from = tokio_stream::wrappers::UnboundedReceiverStream::new(from);
    let mut answers = client.stream_secrets(from).await?.into_inner();
    while let Some(DiscoveryResponse { version_info, nonce, .. }) = answers.message().await? {
        told.send(Instant::now())?;
        requests.send(DiscoveryRequest { version_info, response_nonce: nonce, node: None, ..first.clone() })?;
    }
    Ok(())
}
