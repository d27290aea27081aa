//! JWT-SVIDs over gRPC with mTLS, client on the same machine: tokens per second, latency, and the server's CPU time for
//! each token against the limit: one ES256 signature with ring alone, measured in the same run.

#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a benchmark measures and prints")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use spiffe::proto::v1;
use support::{Figures, Identity, Server, create, entry};

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
        println!("| batch | JWT-SVIDs/s | p50 ms | p99 ms | server CPU us/token | ring alone us | of the limit |");
        println!("|---|---|---|---|---|---|---|");
        for (batch, at_once) in [(1, 8), (10, 2), (100, 1)] {
            let run = Run { server: &server, identity: &identity, entry_id: &entry_id, batch, at_once };
            run.measure().await?;
        }
        server.process.stop()
    })
}

/// The limit: microseconds of CPU time for one signature with ring alone. Measured on every core at once, as the server
/// works: two threads that share a core slow each other.
fn limit() -> Result<f64> {
    let cores = std::thread::available_parallelism()?.get();
    let threads: Vec<_> = (0..cores).map(|_| std::thread::spawn(limit_of_this_thread)).collect();
    let mut sum = 0.0;
    for thread in threads {
        sum += thread.join().map_err(|_| anyhow::anyhow!("a thread ended in a panic"))??;
    }
    Ok(sum / cores as f64)
}

/// The median of several rounds.
fn limit_of_this_thread() -> Result<f64> {
    const EACH: u32 = 500;
    let (random, kind) = (SystemRandom::new(), &ECDSA_P256_SHA256_FIXED_SIGNING);
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(kind, &random).ok().context("no key")?;
    let key = EcdsaKeyPair::from_pkcs8(kind, pkcs8.as_ref(), &random).ok().context("key")?;
    // As long as header and claims of the tokens that are asked for.
    let to_be_signed = [7; 300];
    let mut rounds = Vec::new();
    for _ in 0..15 {
        let started = thread_cpu()?;
        for _ in 0..EACH {
            std::hint::black_box(key.sign(&random, &to_be_signed).ok().context("no signature")?);
        }
        rounds.push((thread_cpu()? - started).as_secs_f64() * 1e6 / f64::from(EACH));
    }
    rounds.sort_by(f64::total_cmp);
    rounds.get(rounds.len() / 2).copied().context("no rounds")
}

fn thread_cpu() -> Result<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanos = text.split(' ').next().context("schedstat")?.parse()?;
    Ok(Duration::from_nanos(nanos))
}

struct Run<'a> {
    server: &'a Server,
    identity: &'a Identity,
    entry_id: &'a str,
    batch: usize,
    at_once: usize,
}

impl Run<'_> {
    async fn measure(&self) -> Result<()> {
        let before = limit()?;
        let (counting, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let count = Arc::new(AtomicU64::new(0));
        let audience = vec!["https://reports.example.org".to_owned()];
        let request = v1::JwtSvidRequest { entry_id: self.entry_id.into(), audience };
        let requests = vec![request; self.batch];
        let mut tasks = Vec::new();
        for _ in 0..CONNECTIONS {
            let node = self.server.node(self.identity).await?;
            for _ in 0..self.at_once {
                let (mut node, requests) = (node.clone(), requests.clone());
                let (counting, stop, count) = (Arc::clone(&counting), Arc::clone(&stop), Arc::clone(&count));
                tasks.push(tokio::spawn(async move {
                    let mut figures = Figures::default();
                    while !stop.load(Ordering::Relaxed) {
                        let started = Instant::now();
                        let request = v1::IssueJwtSvidsRequest { requests: requests.clone() };
                        let results = node.issue_jwt_svids(request).await?.into_inner().results;
                        let signed = |result: &&v1::TokenResult| {
                            matches!(result.outcome, Some(v1::token_result::Outcome::Token(_)))
                        };
                        if results.iter().filter(signed).count() != requests.len() {
                            bail!("something was refused: {:?}", results.first());
                        }
                        if counting.load(Ordering::Relaxed) {
                            count.fetch_add(requests.len() as u64, Ordering::Relaxed);
                            figures.add(started.elapsed());
                        }
                    }
                    Ok(figures)
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
        let limit = (before + limit()?) / 2.0;
        let each = cpu.as_secs_f64() * 1e6 / signed as f64;
        println!(
            "| {} | {:.0} | {:.2} | {:.2} | {each:.1} | {limit:.1} | {:.2} |",
            self.batch,
            signed as f64 / elapsed.as_secs_f64(),
            figures.percentile(50),
            figures.percentile(99),
            limit / each
        );
        Ok(())
    }
}
