//! The agent: what it holds in memory with 100 workload identities, and how soon after the connection a workload has
//! an SVID that the agent already holds; and how soon a JWT-SVID that it holds is answered to 16 callers of a workload with one
//! of those identities, at a fixed rate and as fast as they can, beside an RPC that the same stack answers without looking at
//! anything.

#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a benchmark measures and prints")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use spiffe::proto::v1;
use spiffe::proto::workload::JwtsvidRequest;
use spiffe::proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use support::{DOMAIN, Figures, Process, Server, binary, create, entry, unix_channel, workload_stream};
use tonic::transport::Channel;

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
        let path = |number| format!("/svc/{number}");
        let ids = create(&mut admin, (0..IDENTITIES).map(|number| entry(&path(number), &agent)).collect()).await?;
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
        // From here on the workload is one of a hundred with an identity each.
        admin.delete_entries(v1::DeleteEntriesRequest { ids: ids.into_iter().skip(1).collect() }).await?;
        let of_another = |number: usize| {
            let selectors = vec![format!("unix:uid:{}", 100_000 + number)];
            v1::Entry { selectors, ..entry(&path(number), &agent) }
        };
        create(&mut admin, (1..IDENTITIES).map(of_another).collect()).await?;
        while workload_stream(&socket).await?.message().await?.context("no state")?.svids.len() > 1 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokens(&socket, &process).await?;
        process.stop()?;
        server.process.stop()
    })
}

const CALLERS: u32 = 16;
const CALLS: u32 = 2_000;
/// Of all callers together, in a second.
const RATE: u32 = 1_600;

/// How the callers call.
#[derive(Clone, Copy)]
enum Pace {
    /// Each at moments of its own, as many in a second as [`RATE`] says: a thread of its own that sleeps until then, since the
    /// timers of a runtime, which are those of whole milliseconds, would have them all call together.
    Fixed,
    /// As fast as they can.
    ClosedLoop,
}

async fn tokens(socket: &Path, agent: &Process) -> Result<()> {
    println!("\n| 16 callers | calls/s | p50 ms | p99 ms | agent CPU us/call |");
    println!("|---|---|---|---|---|");
    for (what, pace) in [("fixed rate", Pace::Fixed), ("closed loop", Pace::ClosedLoop)] {
        for held in [true, false] {
            let (started, cpu) = (Instant::now(), agent.cpu()?);
            let callers: Vec<_> = (0..CALLERS)
                .map(|number| {
                    let caller = Caller { socket: socket.to_owned(), held };
                    match pace {
                        Pace::Fixed => tokio::task::spawn_blocking(move || caller.at_moments(started, number)),
                        Pace::ClosedLoop => tokio::spawn(caller.in_a_loop()),
                    }
                })
                .collect();
            let mut figures = Figures::default();
            for caller in callers {
                figures.extend(caller.await??);
            }
            let calls = f64::from(CALLERS) * f64::from(CALLS);
            let which = if held { "a held JWT-SVID" } else { "limit: refused for want of the header" };
            println!(
                "| {what}, {which} | {:.0} | {:.3} | {:.3} | {:.0} |",
                calls / started.elapsed().as_secs_f64(),
                figures.percentile(50),
                figures.percentile(99),
                (agent.cpu()? - cpu).as_secs_f64() * 1e6 / calls,
            );
        }
    }
    Ok(())
}

/// One of those who call, on a connection of its own.
struct Caller {
    socket: PathBuf,
    held: bool,
}

impl Caller {
    fn at_moments(self, from: Instant, number: u32) -> Result<Figures> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let pause = Duration::from_secs(1) * CALLERS / RATE;
        let mut client = runtime.block_on(self.connect())?;
        let mut figures = Figures::default();
        for call in 1..=CALLS {
            let moment = from + pause * number / CALLERS + pause * call;
            std::thread::sleep(moment.saturating_duration_since(Instant::now()));
            figures.add(runtime.block_on(self.call(&mut client))?);
        }
        Ok(figures)
    }

    async fn in_a_loop(self) -> Result<Figures> {
        let mut client = self.connect().await?;
        let mut figures = Figures::default();
        for _ in 0..CALLS {
            figures.add(self.call(&mut client).await?);
        }
        Ok(figures)
    }

    /// Connects, and calls once: that has the token issued.
    async fn connect(&self) -> Result<SpiffeWorkloadApiClient<Channel>> {
        let mut client = SpiffeWorkloadApiClient::new(unix_channel(self.socket.clone()).await?);
        self.call(&mut client).await?;
        Ok(client)
    }

    /// How long a call took.
    async fn call(&self, client: &mut SpiffeWorkloadApiClient<Channel>) -> Result<Duration> {
        let id = format!("spiffe://{DOMAIN}/svc/0");
        let mut request = tonic::Request::new(JwtsvidRequest { audience: vec!["bench".into()], spiffe_id: id });
        if self.held {
            request.metadata_mut().insert("workload.spiffe.io", tonic::metadata::MetadataValue::from_static("true"));
        }
        let started = Instant::now();
        let answer = client.fetch_jwtsvid(request).await;
        if self.held == answer.is_err() {
            bail!("not the answer that is measured: {answer:?}");
        }
        Ok(started.elapsed())
    }
}
