//! Istio's CA protocol over TLS, client on the same machine: certificates per second as ztunnels ask for them, each with a
//! token and the identity of a pod of its node, and the server's CPU time for each against the limit, measured in the same
//! run: the work with ring alone that nobody can leave out.
//!
//! The server is this program once more, in a process of its own, with 30,000 pods on 300 nodes. Whose a token is, it is told
//! by a stand-in for the API server: at once, as from a cache, or after a while, as over a network.

#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a benchmark measures and prints")]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use arc_swap::ArcSwap;
use async_trait::async_trait;
use ca_server::app::Server;
use ca_server::config::Config;
use ca_server::kube::Told;
use ca_server::kube::review::{Bound, ReviewError, ServiceAccount, TokenReviewer};
use ca_server::view::pods::{Labels, Pod, PodEvent};
use spiffe::id::TrustDomain;
use spiffe::time::System;
use support::limit::{self, csrs};
use support::{DOMAIN, Figures, Process};
use tests::ztunnel::{Ca, ISTIOD, Way, request, with_token};
use tokio::sync::mpsc;

const NODES: usize = 300;
const PODS_OF_ONE: usize = 100;
const CONNECTIONS: usize = 4;
const AT_ONCE: usize = 8;
const WARM_UP: Duration = Duration::from_secs(1);
const MEASURED: Duration = Duration::from_secs(5);
/// What an API server takes to answer, in milliseconds.
const DELAYS: [u64; 2] = [0, 2];

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let words: Vec<String> = std::env::args().skip_while(|word| word != "serve").collect();
    match words.as_slice() {
        [_, folder, delay] => runtime.block_on(serve(folder, Duration::from_millis(delay.parse()?))),
        _ => runtime.block_on(measure()),
    }
}

/// The stand-in for an API server: each token names the node of a ztunnel.
#[derive(Debug)]
struct StandIn(Duration);

#[async_trait]
impl TokenReviewer for StandIn {
    fn cluster(&self) -> &str {
        "main"
    }

    async fn review(&self, token: &str, _: &str) -> Result<ServiceAccount, ReviewError> {
        if !self.0.is_zero() {
            tokio::time::sleep(self.0).await;
        }
        let node = token.strip_prefix("node.").ok_or_else(|| ReviewError::Refused("nobody made it".into()))?;
        let bound = Bound { name: format!("ztunnel-{node}"), uid: format!("ztunnel-{node}") };
        let (namespace, name) = ("istio-system".to_owned(), "ztunnel".to_owned());
        Ok(ServiceAccount { namespace, name, uid: "1".into(), pod: Some(bound), node: None })
    }
}

fn pods() -> Result<Vec<Pod>> {
    let trust_domain = TrustDomain::parse(DOMAIN)?;
    let mut pods = Vec::new();
    for node in 0..NODES {
        let agent = trust_domain.agent_id("k8s_psat", &format!("main/{node}"))?;
        let pod = |namespace: &str, account: &str, name: String| Pod {
            cluster: "main".into(),
            uid: name.as_str().into(),
            namespace: namespace.into(),
            name: name.into(),
            service_account: account.into(),
            node_name: node.to_string().into(),
            agent: agent.clone(),
            labels: Labels::default(),
            namespace_labels: Labels::default(),
        };
        pods.push(pod("istio-system", "ztunnel", format!("ztunnel-{node}")));
        pods.extend((1..PODS_OF_ONE).map(|app| pod("shop", &format!("app-{app}"), format!("app-{node}-{app}"))));
    }
    Ok(pods)
}

/// A server until it is told to end; where it answers, and its root, are then in the folder.
async fn serve(folder: &str, delay: Duration) -> Result<()> {
    let config = format!(
        "trust_domain = '{DOMAIN}'\ndata_dir = '{folder}/server'\nlisten = '127.0.0.1:0'\nhealth_listen = '127.0.0.1:0'\n\
         [limits]\nissue_concurrency = 1024\n[istio]\nlisten = '127.0.0.1:0'\nclusters = {{ Kubernetes = 'main' }}\n\
         trusted_node_accounts = ['istio-system/ztunnel']\nrequests_per_second = 1000000\nrequests_burst = 1000000\n"
    );
    let (tell, pods) = mpsc::channel(1);
    let told = Told { reviewers: vec![Arc::new(StandIn(delay))], pods: Some(pods) };
    let server = Server::start_told(Config::parse(&config, [])?, Arc::new(System), told).await?;
    tell.send(PodEvent::All { cluster: "main".into(), pods: self::pods()? }).await?;
    while server.doors().views.load().pods().count() < NODES * PODS_OF_ONE {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let roots = server.doors().views.load().bundle().to_pem();
    std::fs::write(format!("{folder}/roots.pem"), roots)?;
    std::fs::write(format!("{folder}/address.new"), server.istio_address().context("no door")?.to_string())?;
    std::fs::rename(format!("{folder}/address.new"), format!("{folder}/address"))?;
    server.finished().await;
    Ok(())
}

async fn measure() -> Result<()> {
    println!("\n| whose a token is | CSRs/s | p50 ms | p99 ms | server CPU us/CSR | ring alone us | of the limit |");
    println!("|---|---|---|---|---|---|---|");
    for delay in DELAYS {
        let folder = tempfile::tempdir()?;
        let path = folder.path().to_str().context("path")?;
        let arguments = ["serve", path, &delay.to_string()];
        let process = Process::spawn(&std::env::current_exe()?, &arguments, &folder.path().join("server.log"))?;
        let way = way(folder.path()).await?;
        let csrs = Arc::new(csrs(200)?);
        let before = limit::of_x509(&csrs)?;
        let (count, elapsed, cpu, mut figures) = run(&process, &way, &csrs).await?;
        // Before and after, so that a machine whose speed drifts is measured at the same speed.
        let limit = (before + limit::of_x509(&csrs)?) / 2.0;
        let each = cpu.as_secs_f64() * 1e6 / count as f64;
        let told = if delay == 0 { "known at once".to_owned() } else { format!("said after {delay} ms") };
        println!(
            "| {told} | {:.0} | {:.2} | {:.2} | {each:.1} | {limit:.1} | {:.2} |",
            count as f64 / elapsed.as_secs_f64(),
            figures.percentile(50),
            figures.percentile(99),
            limit / each
        );
        process.stop()?;
    }
    Ok(())
}

/// To the server that has told where it is.
async fn way(folder: &Path) -> Result<Way> {
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(60) {
        if let Ok(address) = std::fs::read_to_string(folder.join("address")) {
            let roots = std::fs::read_to_string(folder.join("roots.pem"))?;
            let mounted = Arc::new(ArcSwap::from_pointee(roots));
            let address = address.parse()?;
            return Ok(Way { address, name: ISTIOD, mounted, shown: None, clock: Arc::new(System) });
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    bail!("the server does not answer: {}", std::fs::read_to_string(folder.join("server.log"))?)
}

async fn run(process: &Process, way: &Way, csrs: &Arc<Vec<Vec<u8>>>) -> Result<(u64, Duration, Duration, Figures)> {
    let (counting, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let count = Arc::new(AtomicU64::new(0));
    let pem = |csr: &Vec<u8>| spiffe::pem::certificate(csr).replace("CERTIFICATE", "CERTIFICATE REQUEST");
    let pems: Arc<Vec<String>> = Arc::new(csrs.iter().map(pem).collect());
    let mut tasks = Vec::new();
    for connection in 0..CONNECTIONS {
        let ca = Ca::at(way.clone());
        for place in 0..AT_ONCE {
            let (ca, pems, count) = (ca.clone(), Arc::clone(&pems), Arc::clone(&count));
            let (counting, stop) = (Arc::clone(&counting), Arc::clone(&stop));
            tasks.push(tokio::spawn(async move {
                let mut figures = Figures::default();
                let mut turn = connection * AT_ONCE + place;
                while !stop.load(Ordering::Relaxed) {
                    turn += 1;
                    let identity = format!("spiffe://{DOMAIN}/ns/shop/sa/app-{}", 1 + turn % (PODS_OF_ONE - 1));
                    let csr = pems.get(turn % pems.len()).context("csr")?.clone();
                    let token = format!("node.{}", turn % NODES);
                    let request = with_token(request(csr, 3600, Some(&identity)), &token, "Kubernetes");
                    let started = Instant::now();
                    if ca.ask(request).await?.len() < 2 {
                        bail!("an answer without a chain");
                    }
                    if counting.load(Ordering::Relaxed) {
                        count.fetch_add(1, Ordering::Relaxed);
                        figures.add(started.elapsed());
                    }
                }
                anyhow::Ok(figures)
            }));
        }
    }
    tokio::time::sleep(WARM_UP).await;
    counting.store(true, Ordering::Relaxed);
    let (started, cpu) = (Instant::now(), process.cpu()?);
    tokio::time::sleep(MEASURED).await;
    let (signed, cpu, elapsed) = (count.load(Ordering::Relaxed), process.cpu()? - cpu, started.elapsed());
    stop.store(true, Ordering::Relaxed);
    let mut figures = Figures::default();
    for task in tasks {
        figures.extend(task.await??);
    }
    Ok((signed, elapsed, cpu, figures))
}
