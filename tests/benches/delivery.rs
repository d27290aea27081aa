//! From a new entry to the SVID on a workload's open stream, with 100 connected agents, on sled with its flush.

#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a benchmark measures and prints")]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use node_agent::app::Agent;
use node_agent::config::Config;
use spiffe::id::SpiffeId;
use spiffe::proto::v1;
use spiffe::time::System;
use support::{DOMAIN, Figures, Server, create, entry, workload_stream};

const AGENTS: usize = 100;
const ROUNDS: usize = 500;

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let folder = Arc::new(tempfile::tempdir()?);
        let server = Server::start(&folder).await?;
        let mut admin = server.admin().await?;
        let mut agents = Vec::new();
        for number in 0..AGENTS {
            agents.push(start_agent(&server, number).await?);
        }
        // Each workload has one identity, so that its stream is open before the entry that is measured.
        let first = agents.iter().enumerate();
        let first: Result<Vec<_>> =
            first.map(|(number, agent)| Ok(entry(&format!("/first/{number}"), &id(agent)?))).collect();
        create(&mut admin, first?).await?;
        let mut streams = Vec::new();
        for agent in &agents {
            let mut stream = workload_stream(agent.workload_socket()).await?;
            stream.message().await?.context("no first state")?;
            streams.push(stream);
        }
        let mut figures = Figures::default();
        for round in 0..ROUNDS {
            let at = round % AGENTS;
            let (agent, stream) = (agents.get(at).context("agent")?, streams.get_mut(at).context("stream")?);
            let wanted = format!("spiffe://{DOMAIN}/round/{round}");
            let started = Instant::now();
            let ids = create(&mut admin, vec![entry(&format!("/round/{round}"), &id(agent)?)]).await?;
            loop {
                let state = stream.message().await?.context("the stream ended")?;
                if state.svids.iter().any(|svid| svid.spiffe_id == wanted) {
                    break;
                }
            }
            figures.add(started.elapsed());
            admin.delete_entries(v1::DeleteEntriesRequest { ids }).await?;
            while stream.message().await?.context("the stream ended")?.svids.len() > 1 {}
        }
        println!("| agents | rounds | p50 ms | p90 ms | p99 ms | most ms |");
        println!("|---|---|---|---|---|---|");
        println!(
            "| {AGENTS} | {ROUNDS} | {:.2} | {:.2} | {:.2} | {:.2} |",
            figures.percentile(50),
            figures.percentile(90),
            figures.percentile(99),
            figures.percentile(100)
        );
        drop(streams);
        for agent in agents {
            agent.shutdown().await?;
        }
        server.process.stop()
    })
}

fn id(agent: &Agent) -> Result<SpiffeId> {
    Ok(SpiffeId::parse(&agent.id().to_string())?)
}

async fn start_agent(server: &Server, number: usize) -> Result<Agent> {
    let (token, fingerprint) = server.token().await?;
    let folder = server.folder.path().join(format!("agent-{number}"));
    let text = format!(
        "trust_domain = '{DOMAIN}'\nservers = ['127.0.0.1:{}']\ndata_dir = '{1}'\nworkload_socket = '{1}/w.sock'\n\
         ca_fingerprint = 'sha256:{fingerprint}'\n[attest]\nkind = 'join_token'\ntoken = '{token}'\n",
        server.port,
        folder.display()
    );
    let agent = Agent::start(Config::parse(&text, [])?, Arc::new(System));
    tokio::time::timeout(Duration::from_secs(30), agent).await.context("the agent does not start")?.map_err(Into::into)
}
