//! Issuing over gRPC with mTLS, client on the same machine: SVIDs per second, latency, and the server's CPU time for
//! each SVID against the limit: one CSR verification and one signature with ring alone, measured in the same run.

#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a benchmark measures and prints")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, UnparsedPublicKey};
use spiffe::proto::v1;
use support::{Figures, Identity, Server, create, entry};
use x509_parser::prelude::{FromDer as _, X509CertificationRequest};

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
        let csrs = Arc::new(csrs(200)?);
        println!("| batch | SVIDs/s | p50 ms | p99 ms | server CPU us/SVID | ring alone us | of the limit |");
        println!("|---|---|---|---|---|---|---|");
        for (batch, at_once) in [(1, 8), (10, 2), (100, 1)] {
            let run = Run { server: &server, identity: &identity, entry_id: &entry_id, csrs: &csrs, batch, at_once };
            run.measure().await?;
        }
        server.process.stop()
    })
}

/// CSRs of different keys.
fn csrs(count: usize) -> Result<Vec<Vec<u8>>> {
    let csr = |_| Ok(spiffe::csr::create(&spiffe::crypto::generate_key(spiffe::entry::KeyType::P256)?)?);
    (0..count).map(csr).collect()
}

/// The limit: microseconds of CPU time for one verification and one signature with ring alone. Measured on every core
/// at once, as the server works: two threads that share a core slow each other.
fn limit(csrs: &Arc<Vec<Vec<u8>>>) -> Result<f64> {
    let cores = std::thread::available_parallelism()?.get();
    let measure = |_| {
        let csrs = Arc::clone(csrs);
        std::thread::spawn(move || limit_of_this_thread(&csrs))
    };
    let threads: Vec<_> = (0..cores).map(measure).collect();
    let mut sum = 0.0;
    for thread in threads {
        sum += thread.join().map_err(|_| anyhow::anyhow!("a thread ended in a panic"))??;
    }
    Ok(sum / cores as f64)
}

/// The median of several rounds.
fn limit_of_this_thread(csrs: &[Vec<u8>]) -> Result<f64> {
    let random = SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).ok().context("no key")?;
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref(), &random).ok().context("key")?;
    let to_be_signed = [7; 420];
    let mut rounds = Vec::new();
    for _ in 0..15 {
        let started = thread_cpu()?;
        for csr in csrs {
            let (_, csr) = X509CertificationRequest::from_der(csr)?;
            let info = &csr.certification_request_info;
            let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &info.subject_pki.subject_public_key.data);
            if public.verify(info.raw, &csr.signature_value.data).is_err() {
                bail!("a CSR does not verify");
            }
            std::hint::black_box(key.sign(&random, &to_be_signed).ok().context("no signature")?);
        }
        rounds.push((thread_cpu()? - started).as_secs_f64() * 1e6 / csrs.len() as f64);
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
    csrs: &'a Arc<Vec<Vec<u8>>>,
    batch: usize,
    at_once: usize,
}

impl Run<'_> {
    async fn measure(&self) -> Result<()> {
        let before = limit(self.csrs)?;
        let (counting, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let count = Arc::new(AtomicU64::new(0));
        let request = |csr: &Vec<u8>| v1::X509SvidRequest { entry_id: self.entry_id.into(), csr: csr.clone().into() };
        let requests: Vec<_> = self.csrs.iter().take(self.batch).map(request).collect();
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
                        let request = v1::IssueX509SvidsRequest { requests: requests.clone() };
                        let results = node.issue_x509_svids(request).await?.into_inner().results;
                        let signed = |result: &&v1::X509SvidResult| {
                            matches!(result.outcome, Some(v1::x509_svid_result::Outcome::Svid(_)))
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
        let limit = (before + limit(self.csrs)?) / 2.0;
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
