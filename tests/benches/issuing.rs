//! Issuing over gRPC with mTLS, client on the same machine: X.509-SVIDs and JWT-SVIDs per second, latency, and the server's
//! CPU time for each against the limit, measured in the same run: the work with ring alone that nobody can leave out.

#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a benchmark measures and prints")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use spiffe::proto::v1;
use spiffe::proto::v1::node_client::NodeClient;
use support::limit::{self, csrs};
use support::{Figures, Identity, Server, create, entry};
use tonic::transport::Channel;

const CONNECTIONS: usize = 4;
const WARM_UP: Duration = Duration::from_secs(1);
const MEASURED: Duration = Duration::from_secs(5);

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let folder = Arc::new(tempfile::tempdir()?);
        let server = Server::start(&folder).await?;
        let identity = server.attest().await?;
        let ids = create(&mut server.admin().await?, vec![entry("/bench", &identity.id)]).await?;
        let entry_id = ids.first().context("no entry")?.clone();
        for kind in [Kind::X509(Arc::new(csrs(200)?)), Kind::Jwt] {
            println!("\n| batch | {kind}s/s | p50 ms | p99 ms | server CPU us/SVID | ring alone us | of the limit |");
            println!("|---|---|---|---|---|---|---|");
            for (batch, at_once) in [(1, 8), (10, 2), (100, 1)] {
                let (kind, entry_id) = (kind.clone(), entry_id.clone());
                Run { server: &server, identity: &identity, order: Order { kind, entry_id, batch }, at_once }
                    .measure()
                    .await?;
            }
        }
        server.process.stop()
    })
}

/// What is issued.
#[derive(Clone)]
enum Kind {
    /// For these CSRs.
    X509(Arc<Vec<Vec<u8>>>),
    Jwt,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::X509(_) => "X.509-SVID",
            Self::Jwt => "JWT-SVID",
        })
    }
}

impl Kind {
    /// The limit: microseconds of CPU time for what ring does for one SVID.
    fn limit(&self) -> Result<f64> {
        match self {
            Self::X509(csrs) => limit::of_x509(csrs),
            Self::Jwt => limit::of_jwt(),
        }
    }
}

/// What one call asks for.
#[derive(Clone)]
struct Order {
    kind: Kind,
    entry_id: String,
    batch: usize,
}

impl Order {
    async fn send(&self, node: &mut NodeClient<Channel>) -> Result<()> {
        let signed = match &self.kind {
            Kind::X509(csrs) => {
                let csrs = csrs.iter().take(self.batch).map(|csr| csr.clone().into());
                let requests = csrs.map(|csr| v1::X509SvidRequest { entry_id: self.entry_id.clone(), csr }).collect();
                let answer = node.issue_x509_svids(v1::IssueX509SvidsRequest { requests }).await?.into_inner();
                let is_signed = |result: &&v1::X509SvidResult| {
                    matches!(result.outcome, Some(v1::x509_svid_result::Outcome::Svid(_)))
                };
                answer.results.iter().filter(is_signed).count()
            }
            Kind::Jwt => {
                let audience = vec!["https://reports.example.org".to_owned()];
                let request = v1::JwtSvidRequest { entry_id: self.entry_id.clone(), audience };
                let request = v1::IssueJwtSvidsRequest { requests: vec![request; self.batch] };
                let answer = node.issue_jwt_svids(request).await?.into_inner();
                let is_signed =
                    |result: &&v1::TokenResult| matches!(result.outcome, Some(v1::token_result::Outcome::Token(_)));
                answer.results.iter().filter(is_signed).count()
            }
        };
        if signed != self.batch {
            bail!("only {signed} of {} were issued", self.batch);
        }
        Ok(())
    }
}

struct Run<'a> {
    server: &'a Server,
    identity: &'a Identity,
    order: Order,
    at_once: usize,
}

impl Run<'_> {
    async fn measure(&self) -> Result<()> {
        let before = self.order.kind.limit()?;
        let (counting, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let count = Arc::new(AtomicU64::new(0));
        let mut tasks = Vec::new();
        for _ in 0..CONNECTIONS {
            let node = self.server.node(self.identity).await?;
            for _ in 0..self.at_once {
                let (mut node, order) = (node.clone(), self.order.clone());
                let (counting, stop, count) = (Arc::clone(&counting), Arc::clone(&stop), Arc::clone(&count));
                tasks.push(tokio::spawn(async move {
                    let mut figures = Figures::default();
                    while !stop.load(Ordering::Relaxed) {
                        let started = Instant::now();
                        order.send(&mut node).await?;
                        if counting.load(Ordering::Relaxed) {
                            count.fetch_add(order.batch as u64, Ordering::Relaxed);
                            figures.add(started.elapsed());
                        }
                    }
                    anyhow::Ok(figures)
                }));
            }
        }
        tokio::time::sleep(WARM_UP).await;
        counting.store(true, Ordering::Relaxed);
        let (started, cpu) = (Instant::now(), self.server.process.cpu()?);
        tokio::time::sleep(MEASURED).await;
        let (signed, cpu) = (count.load(Ordering::Relaxed), self.server.process.cpu()? - cpu);
        let elapsed = started.elapsed();
        stop.store(true, Ordering::Relaxed);
        let mut figures = Figures::default();
        for task in tasks {
            figures.extend(task.await??);
        }
        // Before and after, so that a machine whose speed drifts is measured at the same speed.
        let limit = (before + self.order.kind.limit()?) / 2.0;
        let each = cpu.as_secs_f64() * 1e6 / signed as f64;
        println!(
            "| {} | {:.0} | {:.2} | {:.2} | {each:.1} | {limit:.1} | {:.2} |",
            self.order.batch,
            signed as f64 / elapsed.as_secs_f64(),
            figures.percentile(50),
            figures.percentile(99),
            limit / each
        );
        Ok(())
    }
}
