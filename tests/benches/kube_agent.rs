//! Pods in the agent: how soon after the connection each of 1,000 processes in the containers of 110 pods has its first state, with
//! the pod known; and what the agent holds in memory with 110 pods. On a real API server, with real cgroups: run as root, where these
//! may be written.

#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a benchmark measures and prints")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::json;
use spiffe::proto::v1;
use support::{DOMAIN, Figures, Process, Server, binary, create, entry, workload_stream};
use tests::binary::{Process as Child, wait_for};
use tests::cgroup::{Cgroup, Shape};
use tests::cluster::{Cluster, Container, Pod, uid};

const NODE: &str = "bench";
const PODS: usize = 110;
const PROCESSES: usize = 1_000;
/// Each process asks so often.
const ROUNDS: usize = 5;

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let cluster = Cluster::start();
        cluster.namespace(NODE, &[]);
        cluster.node(NODE, &[]);
        cluster.service_account(NODE, "web");
        cluster.service_account(NODE, "agent");
        let rights = json!([
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
            {"apiGroups": ["apps"], "resources": ["replicasets"], "verbs": ["get"]},
        ]);
        cluster.grant(NODE, "agent", &rights);
        let kubeconfig = cluster.kubeconfig_of(NODE, "agent");
        let set = cluster.replica_set(NODE, "web-1", Some(&cluster.deployment(NODE, "web")));

        let folder = Arc::new(tempfile::tempdir()?);
        let server = Server::start(&folder).await?;
        let (token, fingerprint) = server.token().await?;
        let root = folder.path();
        let config = format!(
            "trust_domain = '{DOMAIN}'\nservers = ['127.0.0.1:{}']\ndata_dir = '{1}/agent'\n\
             workload_socket = '{1}/w.sock'\nca_fingerprint = 'sha256:{fingerprint}'\n[attest]\nkind = 'join_token'\n\
             token = '{token}'\n[attestors.unix]\n[attestors.k8s]\nnode_name = '{NODE}'\nkubeconfig = '{2}'\n",
            server.port,
            root.display(),
            kubeconfig.display()
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
        let selectors = ["k8s:ns:bench", "k8s:sa:web", "k8s:owner:Deployment:web", "k8s:container-name:main"];
        let selectors = selectors.iter().map(ToString::to_string).collect();
        create(&mut admin, vec![v1::Entry { selectors, ..entry("/web", &agent) }]).await?;
        let before = process.resident()?;

        let mut groups = Vec::new();
        for number in 0..PODS {
            let container = Container::new("main", "example/main:1");
            let pod = Pod::new(NODE, &format!("web-{number}"), "web").on(NODE).owned_by(&set).container(&container);
            let pod = ["app", "tier", "version", "zone"].iter().fold(pod, |pod, key| pod.label(key, "some-value"));
            let created = cluster.run(&pod);
            groups.push(Cgroup::of(Shape::Containerd, uid(&created), &container.id));
        }
        let relays: Vec<(Child, PathBuf)> = (0..PROCESSES)
            .map(|number| {
                let near = root.join(format!("n{number}.sock"));
                let group = groups.get(number % PODS).context("no group")?;
                let words = [near.display().to_string(), root.join("w.sock").display().to_string()];
                Ok((Child::start(group.command(relay()?).args(words), root, &format!("r{number}")), near))
            })
            .collect::<Result<_>>()?;
        for (relay, near) in &relays {
            wait_for(30, || near.exists().then_some(())).with_context(|| relay.tail())?;
        }
        let known = process.resident()?;
        // Each once, so that nobody waits for what is not known yet.
        for (_, near) in &relays {
            ask(near).await?;
        }
        let mut figures = Figures::default();
        for _ in 0..ROUNDS {
            for (_, near) in &relays {
                figures.add(ask(near).await?);
            }
        }
        println!("| pods | processes | first state after connect, p50 ms | p99 ms | most ms | resident MiB | without pods | before any asked |");
        println!("|---|---|---|---|---|---|---|---|");
        println!(
            "| {PODS} | {PROCESSES} | {:.2} | {:.2} | {:.2} | {:.1} | {before:.1} | {known:.1} |",
            figures.percentile(50),
            figures.percentile(99),
            figures.percentile(100),
            process.resident()?,
        );
        drop(relays);
        process.stop()?;
        server.process.stop()
    })
}

/// How long the process behind `near` takes to get its identity.
async fn ask(near: &Path) -> Result<Duration> {
    let started = Instant::now();
    let state = workload_stream(near).await?.message().await?.context("no state")?;
    let took = started.elapsed();
    if state.svids.len() != 1 {
        bail!("{} identities", state.svids.len());
    }
    Ok(took)
}

fn relay() -> Result<PathBuf> {
    let beside = std::env::current_exe()?;
    let path = beside.ancestors().nth(2).context("no target folder")?.join("examples/relay");
    if !path.exists() {
        bail!("{} is not there: run \"cargo build --release -p tests --example relay\" first", path.display());
    }
    Ok(path)
}
