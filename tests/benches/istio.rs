//! Istio's CA protocol over TLS, client on the same machine: certificates per second as ztunnels ask for them, each with a
//! token and the identity of a pod of its node, and the server's CPU time for each against the limit, measured in the same
//! run: the work with ring alone that nobody can leave out.
//!
//! The server is this program once more, in a process of its own, with 30,000 pods on 300 nodes, each with the token of its
//! ztunnel. Whose a token is, it is told by a real kube-apiserver on the same machine, where `CHANCERY_KUBE_APISERVER` and
//! `CHANCERY_ETCD` name the programs: with a yes remembered, as the server does it, and asked for each CSR, as istiod does it (the
//! API server itself remembers a token for ten seconds, for both). Where they are not set, and to compare with, a stand-in
//! says it: at once, or after a while, as over a network.

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
use ca_server::config::{Config, kubernetes};
use ca_server::kube::Told;
use ca_server::kube::client::{Access, Cluster as ApiServer};
use ca_server::kube::review::{ApiReviewer, Bound, ReviewError, ServiceAccount, TokenReviewer, remembering};
use ca_server::view::pods::{Labels, Pod, PodEvent};
use serde::{Deserialize, Serialize};
use serde_json::json;
use spiffe::id::TrustDomain;
use spiffe::time::{Clock, System};
use support::limit::{self, csrs};
use support::{DOMAIN, Figures, Process};
use tests::cluster::{Cluster, Pod as Running, Token, uid};
use tests::ztunnel::{Ca, ISTIOD, Way, request, with_token};
use tokio::sync::mpsc;

const NODES: usize = 300;
const PODS_OF_ONE: usize = 100;
const CONNECTIONS: usize = 4;
const AT_ONCE: usize = 8;
const WARM_UP: Duration = Duration::from_secs(1);
const MEASURED: Duration = Duration::from_secs(5);

/// Who says whose a token is.
const AT_ONCE_BY_PAPER: &str = "a stand-in, at once";
const LATE_BY_PAPER: &str = "a stand-in, after 2 ms";
const REMEMBERED: &str = "kube-apiserver, a yes remembered for 5 s";
const EACH_TIME: &str = "kube-apiserver, asked for each CSR";

/// The namespace and the service account of the proxies, and the server's account there.
const NAMESPACE: &str = "istio-system";
const ZTUNNEL: &str = "ztunnel";
const SERVER: &str = "server";

/// The ztunnel of a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Proxy {
    node: String,
    node_uid: String,
    uid: String,
    token: String,
}

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let words: Vec<String> = std::env::args().skip_while(|word| word != "serve").collect();
    match words.as_slice() {
        [_, folder, who, kubeconfig] => runtime.block_on(serve(Path::new(folder), reviewer(who, kubeconfig)?)),
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
        let bound = Bound { name: ZTUNNEL.to_owned() + node, uid: node.to_owned() };
        let (namespace, name) = (NAMESPACE.to_owned(), ZTUNNEL.to_owned());
        Ok(ServiceAccount { namespace, name, uid: "1".into(), pod: Some(bound), node: None })
    }
}

/// The proxies of nodes that only the stand-in knows.
fn on_paper() -> Vec<Proxy> {
    let proxy = |node: usize| Proxy {
        node: node.to_string(),
        node_uid: node.to_string(),
        uid: node.to_string(),
        token: format!("node.{node}"),
    };
    (0..NODES).map(proxy).collect()
}

/// The proxies of nodes of a real cluster.
fn in_cluster(cluster: &Cluster) -> Vec<Proxy> {
    cluster.namespace(NAMESPACE, &[]);
    cluster.service_account(NAMESPACE, ZTUNNEL);
    cluster.service_account(NAMESPACE, SERVER);
    let review = json!({ "apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"] });
    cluster.grant(NAMESPACE, SERVER, &json!([review]));
    let proxy = |number: usize| {
        let node = number.to_string();
        let made = cluster.node(&node, &[]);
        let pod = cluster.pod(&Running::new(NAMESPACE, &(ZTUNNEL.to_owned() + &node), ZTUNNEL).on(&node));
        let token = cluster.token(&Token::of(NAMESPACE, ZTUNNEL).audience("istio-ca").bound_to(&pod));
        Proxy { node, node_uid: uid(&made).to_owned(), uid: uid(&pod).to_owned(), token }
    };
    (0..NODES).map(proxy).collect()
}

/// Who says whose a token is, by its name here.
fn reviewer(who: &str, kubeconfig: &str) -> Result<Arc<dyn TokenReviewer>> {
    let cluster = || {
        let source = kubernetes::Cluster { kubeconfig: Some(kubeconfig.into()), ..kubernetes::Cluster::default() };
        let name = kubernetes::ClusterName::try_from("main".to_owned()).map_err(anyhow::Error::msg)?;
        anyhow::Ok(ApiServer::new(&name, &source, Access::read(&source)?, Arc::new(System)))
    };
    let clock: Arc<dyn Clock> = Arc::new(System);
    Ok(match who {
        AT_ONCE_BY_PAPER => Arc::new(StandIn(Duration::ZERO)),
        LATE_BY_PAPER => Arc::new(StandIn(Duration::from_millis(2))),
        REMEMBERED => remembering(&[cluster()?], &clock).pop().context("no reviewer")?,
        EACH_TIME => Arc::new(ApiReviewer::new(cluster()?)),
        other => bail!("{other}?"),
    })
}

fn pods(proxies: &[Proxy]) -> Result<Vec<Pod>> {
    let trust_domain = TrustDomain::parse(DOMAIN)?;
    let mut pods = Vec::new();
    for Proxy { node, node_uid, uid, .. } in proxies {
        let agent = trust_domain.agent_id("k8s_psat", &format!("main/{node_uid}"))?;
        let pod = |namespace: &str, account: &str, name: String, uid: &str| Pod {
            cluster: "main".into(),
            uid: uid.into(),
            namespace: namespace.into(),
            name: name.into(),
            service_account: account.into(),
            node_name: node.as_str().into(),
            agent: agent.clone(),
            labels: Labels::default(),
            namespace_labels: Labels::default(),
        };
        pods.push(pod(NAMESPACE, ZTUNNEL, ZTUNNEL.to_owned() + node, uid));
        let app = |number: usize| {
            let name = format!("app-{node}-{number}");
            pod("shop", &format!("app-{number}"), name.clone(), &name)
        };
        pods.extend((1..PODS_OF_ONE).map(app));
    }
    Ok(pods)
}

/// A server until it is told to end; where it answers, and its root, are then in the folder.
async fn serve(folder: &Path, reviewer: Arc<dyn TokenReviewer>) -> Result<()> {
    let proxies: Vec<Proxy> = serde_json::from_slice(&std::fs::read(folder.join("proxies"))?)?;
    let config = format!(
        "trust_domain = '{DOMAIN}'\ndata_dir = '{}/server'\nlisten = '127.0.0.1:0'\nhealth_listen = '127.0.0.1:0'\n\
         [limits]\nissue_concurrency = 1024\n[istio]\nlisten = '127.0.0.1:0'\nclusters = {{ Kubernetes = 'main' }}\n\
         trusted_node_accounts = ['istio-system/ztunnel']\nrequests_per_second = 1000000\nrequests_burst = 1000000\n",
        folder.display()
    );
    let (tell, pods) = mpsc::channel(1);
    let told = Told { reviewers: vec![reviewer], pods: Some(pods) };
    let server = Server::start_told(Config::parse(&config, [])?, Arc::new(System), told).await?;
    tell.send(PodEvent::All { cluster: "main".into(), pods: self::pods(&proxies)? }).await?;
    while server.doors().views.load().pods().count() < NODES * PODS_OF_ONE {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let roots = server.doors().views.load().bundle().to_pem();
    std::fs::write(folder.join("roots.pem"), roots)?;
    std::fs::write(folder.join("address.new"), server.istio_address().context("no door")?.to_string())?;
    std::fs::rename(folder.join("address.new"), folder.join("address"))?;
    server.finished().await;
    Ok(())
}

async fn measure() -> Result<()> {
    println!(
        "\n| who says whose a token is | CSRs/s | p50 ms | p99 ms | server CPU us/CSR | ring alone us | of the limit |"
    );
    println!("|---|---|---|---|---|---|---|");
    let proxies = on_paper();
    for who in [AT_ONCE_BY_PAPER, LATE_BY_PAPER] {
        measure_one(who, &proxies, "").await?;
    }
    if ["CHANCERY_KUBE_APISERVER", "CHANCERY_ETCD"].iter().any(|variable| std::env::var_os(variable).is_none()) {
        println!("\nNo kube-apiserver was asked: CHANCERY_KUBE_APISERVER and CHANCERY_ETCD do not say where it is.");
        return Ok(());
    }
    let cluster = Cluster::start();
    let proxies = in_cluster(&cluster);
    let kubeconfig = cluster.kubeconfig_of(NAMESPACE, SERVER);
    for who in [REMEMBERED, EACH_TIME] {
        measure_one(who, &proxies, kubeconfig.to_str().context("path")?).await?;
    }
    Ok(())
}

async fn measure_one(who: &str, proxies: &[Proxy], kubeconfig: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("proxies"), serde_json::to_vec(proxies)?)?;
    let arguments = ["serve", folder.path().to_str().context("path")?, who, kubeconfig];
    let process = Process::spawn(&std::env::current_exe()?, &arguments, &folder.path().join("server.log"))?;
    let way = way(folder.path()).await?;
    let csrs = Arc::new(csrs(200)?);
    let before = limit::of_x509(&csrs)?;
    let (count, elapsed, cpu, mut figures) = run(&process, &way, (&csrs, proxies)).await?;
    // Before and after, so that a machine whose speed drifts is measured at the same speed.
    let limit = (before + limit::of_x509(&csrs)?) / 2.0;
    let each = cpu.as_secs_f64() * 1e6 / count as f64;
    println!(
        "| {who} | {:.0} | {:.2} | {:.2} | {each:.1} | {limit:.1} | {:.2} |",
        count as f64 / elapsed.as_secs_f64(),
        figures.percentile(50),
        figures.percentile(99),
        limit / each
    );
    process.stop()
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

async fn run(
    process: &Process,
    way: &Way,
    (csrs, proxies): (&[Vec<u8>], &[Proxy]),
) -> Result<(u64, Duration, Duration, Figures)> {
    let (counting, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let count = Arc::new(AtomicU64::new(0));
    let pem = |csr: &Vec<u8>| spiffe::pem::certificate(csr).replace("CERTIFICATE", "CERTIFICATE REQUEST");
    let pems: Arc<Vec<String>> = Arc::new(csrs.iter().map(pem).collect());
    let tokens: Arc<Vec<String>> = Arc::new(proxies.iter().map(|proxy| proxy.token.clone()).collect());
    let mut tasks = Vec::new();
    for connection in 0..CONNECTIONS {
        let ca = Ca::at(way.clone());
        for place in 0..AT_ONCE {
            let (ca, pems, tokens, count) = (ca.clone(), Arc::clone(&pems), Arc::clone(&tokens), Arc::clone(&count));
            let (counting, stop) = (Arc::clone(&counting), Arc::clone(&stop));
            tasks.push(tokio::spawn(async move {
                let mut figures = Figures::default();
                let mut turn = connection * AT_ONCE + place;
                while !stop.load(Ordering::Relaxed) {
                    turn += 1;
                    let identity = format!("spiffe://{DOMAIN}/ns/shop/sa/app-{}", 1 + turn % (PODS_OF_ONE - 1));
                    let csr = pems.get(turn % pems.len()).context("csr")?.clone();
                    let token = tokens.get(turn % NODES).context("token")?;
                    let request = with_token(request(csr, 3600, Some(&identity)), token, "Kubernetes");
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
