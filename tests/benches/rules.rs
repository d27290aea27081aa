//! Rules at the size of a large cluster: what the pods of 5,000 nodes and their entries take in memory, what one pod that
//! comes or goes costs, and what the change of a rule costs, in one process, without network or store.

#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a benchmark measures and prints")]

mod support;

use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use ca_server::store::{Commit, Write};
use ca_server::view::pods::{Pod, PodEvent};
use ca_server::view::record::rule_to_record;
use ca_server::view::{View, keys};
use spiffe::id::TrustDomain;
use spiffe::proto::v1;
use spiffe::rule::Rule;
use support::{DOMAIN, Figures};

const PODS_OF_A_NODE: usize = 6;
/// How many pods come and go, one by one.
const CHURN: usize = 2_000;
const CHANGES: usize = 5;
/// Service accounts, spread over the pods.
const ACCOUNTS: usize = 600;

/// How many nodes and rules a process measures.
const SIZE: &str = "CHANCERY_BENCH_RULES";

fn main() -> Result<()> {
    if let Ok(size) = std::env::var(SIZE) {
        let (nodes, rules) = size.split_once(' ').context("not two numbers")?;
        return measure(nodes.parse()?, rules.parse()?);
    }
    println!("| nodes | pods | rules | entries | all at once ms | one pod p50 us | p99 us | one rule ms | MiB |");
    println!("|---|---|---|---|---|---|---|---|---|");
    for (nodes, rules) in [(500, 1), (5_000, 1), (5_000, 16)] {
        // A process for each: what one has given back to the allocator would hide what the next one takes.
        let again = Command::new(std::env::current_exe()?).env(SIZE, format!("{nodes} {rules}")).status()?;
        ensure!(again.success(), "the measurement of {nodes} nodes failed");
    }
    Ok(())
}

fn measure(nodes: usize, rules: usize) -> Result<()> {
    let domain = TrustDomain::parse(DOMAIN)?;
    let empty = resident()?;
    let mut view = View::empty(domain.clone());
    for number in 0..rules {
        view = put_rule(&view, number, 0)?;
    }
    let pods: Result<Vec<Pod>> = (0..nodes * PODS_OF_A_NODE).map(|number| pod(&domain, number, nodes)).collect();
    let all = PodEvent::All { cluster: "prod".into(), pods: pods? };
    let filling = Instant::now();
    view = view.told([all]).0;
    let filled = filling.elapsed().as_secs_f64() * 1e3;
    let memory = resident()? - empty;
    let mut figures = Figures::default();
    for number in 0..CHURN {
        let uid = format!("new-{number}");
        let new = Pod { uid: uid.as_str().into(), ..pod(&domain, number * 7, nodes)? };
        let gone = PodEvent::Gone { cluster: "prod".into(), uid: uid.into() };
        for event in [PodEvent::Put(new), gone] {
            let started = Instant::now();
            view = view.told([event]).0;
            figures.add(started.elapsed());
        }
    }
    let changing = Instant::now();
    for ttl in 0..CHANGES {
        view = put_rule(&view, 0, 600 + ttl as u64)?;
    }
    let changed = changing.elapsed().as_secs_f64() * 1e3 / CHANGES as f64;
    println!(
        "| {nodes} | {} | {rules} | {} | {filled:.0} | {:.1} | {:.1} | {changed:.0} | {memory:.0} |",
        view.pods().count(),
        view.derived_count(),
        figures.percentile(50) * 1e3,
        figures.percentile(99) * 1e3,
    );
    Ok(())
}

/// The first rule is for every pod, each other one for a sixteenth of the service accounts.
fn put_rule(view: &View, number: usize, x509_ttl: u64) -> Result<View> {
    let accounts = (1..rules_of(number)).map(|at| account(at * 16 + number)).collect();
    let wire = v1::Rule {
        id: format!("rule-{number}"),
        spiffe_id: match number {
            0 => format!("spiffe://{DOMAIN}/ns/{{{{ns}}}}/sa/{{{{sa}}}}"),
            number => format!("spiffe://{DOMAIN}/{number}/{{{{ns}}}}/{{{{pod-label:app}}}}"),
        },
        service_accounts: accounts,
        x509_ttl,
        created_at: number as u64,
        ..v1::Rule::default()
    };
    let rule = Rule::try_from(wire)?;
    let writes = vec![Write::Put { key: keys::rule(&rule.id), value: rule_to_record(&rule) }];
    Ok(view.apply(&Commit { revision: view.revision() + 1, writes })?.0)
}

fn rules_of(number: usize) -> usize {
    if number == 0 { 0 } else { ACCOUNTS / 16 }
}

fn account(number: usize) -> String {
    format!("account-{}", number % ACCOUNTS)
}

fn pod(domain: &TrustDomain, number: usize, nodes: usize) -> Result<Pod> {
    let node = number % nodes;
    let account = account(number * 31);
    let labels = [("app", account.as_str()), ("pod-template-hash", "7d4b9c6f5"), ("app.kubernetes.io/part-of", "shop")];
    Ok(Pod {
        cluster: "prod".into(),
        uid: format!("0b9c1e7a-5f0c-4d4e-9e5e-{number:012}").into(),
        namespace: format!("namespace-{}", number % 100).into(),
        name: format!("{account}-7d4b9c6f5-{number}").into(),
        service_account: account.as_str().into(),
        node_name: format!("node-{node}").into(),
        agent: domain.agent_id("k8s_psat", &format!("prod/2f4f6a1b-5f0c-4d4e-9e5e-{node:012}"))?,
        labels: Arc::new(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
        namespace_labels: Arc::default(),
    })
}

/// Resident memory of this process in MiB.
fn resident() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.split_whitespace().nth(1).context("no number")?.parse()?;
    Ok(kib / 1024.0)
}
