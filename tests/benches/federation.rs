//! A thousand federated trust domains: how their polls are spread over time after a start and from then on, and what they
//! cost the server in memory and CPU time.
//!
//! One endpoint on this machine answers for all of them, by https_web; it counts handshakes. Its bundle asks to be
//! fetched every 20 seconds.

#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a benchmark measures and prints")]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use spiffe::bundle::{Bundle, X509Authority};
use spiffe::id::TrustDomain;
use spiffe::proto::v1;
use support::Server;
use tests::certificates;
use tests::endpoint::{Answer, BundleEndpoint};

const DOMAINS: usize = 1_000;
const HINT: u64 = 20;
/// How long polls are counted, in seconds.
const WATCHED: usize = 60;

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(measure())
}

async fn measure() -> Result<()> {
    let ca = certificates::root("Web");
    let root = X509Authority::from_der(certificates::root("other").der().clone())?;
    let bundle = Bundle::new(TrustDomain::parse("other.org")?, vec![root], 1, Some(Duration::from_secs(HINT)))?;
    let certificate = certificates::web(&["127.0.0.1"], &ca);
    let endpoint = BundleEndpoint::start(&certificate, Answer::Document(bundle.to_jwks())).await;

    let folder = Arc::new(tempfile::tempdir()?);
    let roots = folder.path().join("web-ca.pem");
    std::fs::write(&roots, ca.pem())?;
    let more = format!("[federation]\nallow_networks = ['127.0.0.1/32']\nweb_roots = {roots:?}\n");
    let server = Server::start_with(&folder, &more).await?;
    let alone = server.process.resident()?;
    let mut admin = server.admin().await?;
    for number in 0..DOMAINS {
        let relationship = v1::Relationship {
            trust_domain: format!("td-{number}.test"),
            url: endpoint.url(),
            profile: "https_web".into(),
            endpoint_spiffe_id: String::new(),
        };
        let request = v1::CreateRelationshipRequest { relationship: Some(relationship), bundle: None };
        admin.create_relationship(request).await?;
    }
    while admin.list_bundles(v1::ListBundlesRequest {}).await?.into_inner().bundles.len() <= DOMAINS {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let resident = server.process.resident()?;
    drop(admin);
    server.process.stop()?;

    // From here on as after any start: all bundles are known.
    let server = Server::start_with(&folder, &more).await?;
    let cpu = server.process.cpu()?;
    // Moments are whole seconds there: looked at in the middle of one, no second is counted as two.
    let past = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.subsec_millis();
    tokio::time::sleep(Duration::from_millis(u64::from(1500 - past) % 1000)).await;
    let mut each_second = Vec::with_capacity(WATCHED);
    let (started, mut before) = (Instant::now(), endpoint.asked());
    for second in 1..=WATCHED {
        tokio::time::sleep_until((started + Duration::from_secs(second as u64)).into()).await;
        let asked = endpoint.asked();
        each_second.push(asked - before);
        before = asked;
    }
    let cpu = (server.process.cpu()? - cpu).as_secs_f64();
    let all: usize = each_second.iter().sum();
    let most = each_second.iter().max().copied().unwrap_or_default();
    let first: Vec<String> = each_second.iter().take(HINT as usize).map(ToString::to_string).collect();
    println!(
        "| domains | asked for every | polls in {WATCHED} s | a second, mean | most in a second | CPU us a poll | resident \
         MiB (without) | after a restart |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    println!(
        "| {DOMAINS} | {HINT} s | {all} | {:.1} | {most} | {:.0} | {resident:.1} ({alone:.1}) | {:.1} |",
        all as f64 / WATCHED as f64,
        cpu * 1e6 / all.max(1) as f64,
        server.process.resident()?,
    );
    println!("\npolls in each of the first {HINT} seconds: {}", first.join(" "));
    server.process.stop()
}
