//! The agent: what it holds in memory with 100 workload identities, and how soon after the connection a workload has
//! an SVID that the agent already holds.

#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a benchmark measures and prints")]

mod support;

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use spiffe::proto::v1;
use support::{DOMAIN, Figures, Process, Server, binary, create, entry, workload_stream};

const IDENTITIES: usize = 100;
const CONNECTS: usize = 500;

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let folder = Arc::new(tempfile::tempdir()?);
        let server = Server::start(&folder).await?;
        let (token, fingerprint) = server.token().await?;
        let root = folder.path();
        let socket = root.join("w.sock");
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
        let before = process.resident()?;
        create(&mut admin, (0..IDENTITIES).map(|number| entry(&format!("/svc/{number}"), &agent)).collect()).await?;
        let mut stream = workload_stream(&socket).await?;
        let waiting = Instant::now();
        while stream.message().await?.context("the stream ended")?.svids.len() < IDENTITIES {
            if waiting.elapsed() > Duration::from_secs(30) {
                bail!("the identities do not come");
            }
        }
        drop(stream);
        let mut figures = Figures::default();
        for _ in 0..CONNECTS {
            let started = Instant::now();
            let state = workload_stream(&socket).await?.message().await?.context("no state")?;
            figures.add(started.elapsed());
            if state.svids.len() != IDENTITIES {
                bail!("only {} identities", state.svids.len());
            }
        }
        println!("| identities | resident MiB (without) | first state after connect, p50 ms | p99 ms |");
        println!("|---|---|---|---|");
        println!(
            "| {IDENTITIES} | {:.1} ({before:.1}) | {:.2} | {:.2} |",
            process.resident()?,
            figures.percentile(50),
            figures.percentile(99)
        );
        process.stop()?;
        server.process.stop()
    })
}
