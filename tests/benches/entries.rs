//! Many entries: how long the server takes to start, what it holds in memory, and what one more entry costs, side by
//! side for 1,000, 10,000 and 100,000.

#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a benchmark measures and prints")]

mod support;

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use spiffe::id::TrustDomain;
use support::{DOMAIN, Figures, Server, create, entry};

const BATCH: usize = 500;
const ONE_MORE: usize = 300;

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        println!(
            "| entries | filled, entries/s | one more, p50 ms | p99 ms | server CPU us | start s | resident MiB |"
        );
        println!("|---|---|---|---|---|---|---|");
        for count in [1_000, 10_000, 100_000] {
            measure(count).await?;
        }
        Ok(())
    })
}

async fn measure(count: usize) -> Result<()> {
    let folder = Arc::new(tempfile::tempdir()?);
    let server = Server::start(&folder).await?;
    let mut admin = server.admin().await?;
    let domain = TrustDomain::parse(DOMAIN)?;
    let parent = |number: usize| domain.agent_id("join_token", &format!("node-{}", number / 100));
    let filling = Instant::now();
    for from in (0..count).step_by(BATCH) {
        let numbers = from..(from + BATCH).min(count);
        let entries: Result<Vec<_>, _> =
            numbers.map(|number| Ok::<_, anyhow::Error>(entry(&format!("/svc/{number}"), &parent(number)?))).collect();
        create(&mut admin, entries?).await?;
    }
    let filled = count as f64 / filling.elapsed().as_secs_f64();
    let mut figures = Figures::default();
    let cpu = server.process.cpu()?;
    for number in 0..ONE_MORE {
        let started = Instant::now();
        create(&mut admin, vec![entry(&format!("/more/{number}"), &parent(number)?)]).await?;
        figures.add(started.elapsed());
    }
    let each = (server.process.cpu()? - cpu).as_secs_f64() * 1e6 / ONE_MORE as f64;
    drop(admin);
    server.process.stop()?;
    let starting = Instant::now();
    let server = Server::start(&folder).await?;
    let start = starting.elapsed().as_secs_f64();
    let resident = server.process.resident()?;
    println!(
        "| {count} | {filled:.0} | {:.2} | {:.2} | {each:.0} | {start:.2} | {resident:.0} |",
        figures.percentile(50),
        figures.percentile(99)
    );
    server.process.stop()
}
