//! What the watch of a large cluster costs the server: 5,000 nodes with 30,000 pods and one rule for all of them, against a
//! real API server. Memory without the cluster, with it, and at the most while it was listed; and the CPU time of one pod that
//! comes and goes.

#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a benchmark measures and prints")]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use spiffe::proto::v1;
use support::{DOMAIN, Server};
use tests::cluster::{Cluster, Pod};

const PODS_OF_A_NODE: usize = 6;
/// How many namespaces there are, each with a service account for each pod of a node.
const NAMESPACES: usize = 100;
/// How many pods come and go.
const CHURN: usize = 1_000;
/// Where the server's own account is.
const OWN: &str = "chancery";
const PATIENCE: Duration = Duration::from_secs(180);

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        println!(
            "| nodes | pods | KiB of a pod | entries | known after s | MiB without the cluster | with it | at the most | CPU us of a pod \
             that comes and goes | API server MiB | etcd MiB |"
        );
        println!("|---|---|---|---|---|---|---|---|---|---|---|");
        for nodes in [500, 5_000] {
            measure(nodes).await?;
        }
        Ok(())
    })
}

async fn measure(nodes: usize) -> Result<()> {
    let cluster = Cluster::start();
    cluster.namespace(OWN, &[]);
    cluster.service_account(OWN, "server");
    let rights =
        json!([{"apiGroups": [""], "resources": ["pods", "nodes", "namespaces"], "verbs": ["get", "list", "watch"]}]);
    cluster.grant(OWN, "server", &rights);
    cluster.create_all((0..NAMESPACES).map(|number| plain("Namespace", &namespace(number), None)));
    cluster.create_all(
        (0..NAMESPACES * PODS_OF_A_NODE)
            .map(|number| plain("ServiceAccount", &account(number / NAMESPACES), Some(&namespace(number)))),
    );
    cluster.create_all((0..nodes).map(|number| plain("Node", &format!("node-{number}"), None)));
    let count = nodes * PODS_OF_A_NODE;
    cluster.create_all((0..count).map(|number| pod(number, nodes)));

    let folder = Arc::new(tempfile::tempdir()?);
    let server = Server::start(&folder).await?;
    let without = server.process.resident()?;
    server.process.stop()?;

    let kubeconfig = cluster.kubeconfig_of(OWN, "server");
    let more = format!("[kubernetes.prod]\nkubeconfig = '{}'\n", kubeconfig.display());
    let server = Server::start_with(&folder, &more).await?;
    let starting = Instant::now();
    let mut admin = server.admin().await?;
    let spiffe_id = format!("spiffe://{DOMAIN}/ns/{{{{ns}}}}/sa/{{{{sa}}}}");
    let rule = v1::Rule { id: "pods".into(), spiffe_id, ..v1::Rule::default() };
    admin.create_rule(v1::CreateRuleRequest { rule: Some(rule) }).await?;
    until(&server, count).await?;
    let known = starting.elapsed().as_secs_f64();
    let (with, most) = (server.process.resident()?, server.process.most_resident()?);

    let cpu = server.process.cpu()?;
    let new: Vec<Value> = (0..CHURN).map(|number| pod(count + number, nodes)).collect();
    cluster.create_all(new.iter().cloned());
    until(&server, count + CHURN).await?;
    for pod in &new {
        cluster.delete(pod);
    }
    until(&server, count).await?;
    let each = (server.process.cpu()? - cpu).as_secs_f64() * 1e6 / CHURN as f64;
    let size = cluster.read(&pod(0, nodes)).map_or(0, |pod| pod.to_string().len()) as f64 / 1024.0;
    let (api, etcd) = cluster.memory();
    println!(
        "| {nodes} | {count} | {size:.1} | {} | {known:.1} | {without:.0} | {with:.0} | {most:.0} | {each:.0} | {} | {} |",
        entries(&server).await?,
        api / 1024,
        etcd / 1024,
    );
    server.process.stop()
}

/// Waits until the server knows so many pods.
async fn until(server: &Server, pods: usize) -> Result<()> {
    let started = Instant::now();
    while server.metric("chancery_kubernetes_pods{cluster=\"prod\"}").await? != Some(pods as f64) {
        ensure!(started.elapsed() < PATIENCE, "the server does not come to know {pods} pods");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

async fn entries(server: &Server) -> Result<u64> {
    let rules = server.admin().await?.list_rules(v1::ListRulesRequest {}).await?.into_inner().rules;
    Ok(rules.iter().map(|rule| rule.entries).sum())
}

fn namespace(number: usize) -> String {
    format!("namespace-{}", number % NAMESPACES)
}

fn account(number: usize) -> String {
    format!("account-{}", number % PODS_OF_A_NODE)
}

fn plain(kind: &str, name: &str, namespace: Option<&str>) -> Value {
    json!({ "apiVersion": "v1", "kind": kind, "metadata": { "name": name, "namespace": namespace } })
}

/// A pod of the size that pods of Deployments have: much of it says nothing to the server.
fn pod(number: usize, nodes: usize) -> Value {
    let (node, account) = (number % nodes, account(number / nodes));
    let name = format!("{account}-7d4b9c6f5-{number}");
    let pod = Pod::new(&namespace(node), &name, &account).on(&format!("node-{node}"));
    let labels = [("app", account.as_str()), ("pod-template-hash", "7d4b9c6f5"), ("app.kubernetes.io/part-of", "shop")];
    let mut object = labels.iter().fold(pod, |pod, (key, value)| pod.label(key, value)).object();
    let variables: Vec<Value> = (0..40)
        .map(|at| json!({ "name": format!("SETTING_{at}"), "value": format!("a value of the service, number {at}") }))
        .collect();
    if let Some(containers) = object["spec"]["containers"].as_array_mut() {
        containers.iter_mut().for_each(|container| container["env"] = variables.clone().into());
    }
    object
}
