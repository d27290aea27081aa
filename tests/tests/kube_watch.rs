//! Which pods run where, as a real API server's watches tell it: through gaps, silence and lost rights.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::sync::Arc;
use std::time::Duration;

use ca_server::config::kubernetes::{self, ClusterName};
use ca_server::kube::client::{Access, Cluster as Watched};
use ca_server::kube::watch::watch;
use ca_server::view::pods::{PodEvent, Pods};
use serde_json::{Value, json};
use spiffe::time::System;
use tests::cluster::{Cluster, Pod, uid};
use tests::house::trust_domain;
use tests::patience::{eventually, that};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// What one namespace of a cluster looks like through a watch.
struct Seen {
    events: mpsc::Receiver<PodEvent>,
    pods: Pods,
    told: usize,
    namespace: &'static str,
    watched: Arc<Watched>,
    /// Ends when it is dropped.
    _work: JoinSet<()>,
}

impl Seen {
    /// Watches `cluster` as the service account `server` in `namespace`, which is made with its rights. Returns the grant.
    fn begin(cluster: &Cluster, namespace: &'static str) -> (Self, Value) {
        Self::of_at_most(kubernetes::Cluster::default().max_pods, cluster, namespace)
    }

    /// The same, of no more than `max_pods`.
    fn of_at_most(max_pods: usize, cluster: &Cluster, namespace: &'static str) -> (Self, Value) {
        cluster.namespace(namespace, &[("team", "a")]);
        for account in ["server", "web"] {
            cluster.service_account(namespace, account);
        }
        let rules = json!([
            { "apiGroups": [""], "resources": ["pods", "nodes", "namespaces"], "verbs": ["get", "list", "watch"] },
        ]);
        let grant = cluster.grant(namespace, "server", &rules);
        let source = kubernetes::Cluster {
            kubeconfig: Some(cluster.kubeconfig_of(namespace, "server")),
            request_timeout: Duration::from_secs(2),
            watch_timeout: Duration::from_secs(5),
            max_pods,
            ..kubernetes::Cluster::default()
        };
        let name = ClusterName::try_from("main".to_owned()).unwrap();
        let watched = Watched::new(&name, &source, Access::read(&source).unwrap(), Arc::new(System));
        let (work, events) = watch(vec![Arc::clone(&watched)], trust_domain(), Arc::new(System));
        let mut running = JoinSet::new();
        running.spawn(work);
        (Self { events, pods: Pods::default(), told: 0, namespace, watched, _work: running }, grant)
    }

    /// Waits until the pods of the namespace are these: `name@node UID team app`.
    async fn until(&mut self, wanted: &[String]) {
        let wanted: Vec<String> = wanted.to_vec();
        eventually("the pods are as wanted", async || {
            while let Ok(event) = self.events.try_recv() {
                self.told += 1;
                self.pods = self.pods.after(event).0;
            }
            let found = self.names();
            that(self.told > 0 && found == wanted, || format!("{found:?}"))
        })
        .await;
    }

    fn names(&self) -> Vec<String> {
        let all = self.pods.agents().flat_map(|agent| self.pods.of_agent(agent));
        let own = all.filter(|pod| &*pod.namespace == self.namespace);
        let label =
            |labels: &std::collections::BTreeMap<String, String>, key| labels.get(key).cloned().unwrap_or_default();
        let mut names: Vec<_> = own
            .map(|pod| {
                let node = pod.agent.path().rsplit('/').next().unwrap().to_owned();
                format!("{}@{node} {} {}", pod.name, label(&pod.namespace_labels, "team"), label(&pod.labels, "app"))
            })
            .collect();
        names.sort();
        names
    }
}

fn web(namespace: &str, name: &str, node: &str) -> Pod {
    Pod::new(namespace, name, "web").on(node).label("app", "web")
}

#[tokio::test]
async fn pods_are_seen_while_they_run_and_as_they_are() {
    let cluster = Cluster::shared();
    let node = cluster.node("watch-1", &[]);
    let (mut seen, _) = Seen::begin(&cluster, "watch-run");
    seen.until(&[]).await;
    let one = cluster.run(&web("watch-run", "one", "watch-1"));
    let at = |name: &str, node: &Value, team: &str, app: &str| format!("{name}@{} {team} {app}", uid(node));
    seen.until(&[at("one", &node, "a", "web")]).await;
    cluster.change(&one, &json!({ "metadata": { "labels": { "app": "new" } } }));
    seen.until(&[at("one", &node, "a", "new")]).await;
    let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "watch-run" } });
    cluster.change(&namespace, &json!({ "metadata": { "labels": { "team": "b" } } }));
    seen.until(&[at("one", &node, "b", "new")]).await;
    // A pod whose node is not known waits for it.
    let two = cluster.run(&web("watch-run", "two", "watch-2"));
    cluster.change_status(&one, &json!({ "phase": "Succeeded" }));
    seen.until(&[]).await;
    let other = cluster.node("watch-2", &[]);
    seen.until(&[at("two", &other, "b", "web")]).await;
    cluster.delete(&other);
    let anew = cluster.node("watch-2", &[]);
    seen.until(&[at("two", &anew, "b", "web")]).await;
    cluster.delete(&two);
    seen.until(&[]).await;
    assert!(seen.watched.last_heard().is_some());
}

#[tokio::test]
async fn a_gap_silence_and_lost_rights_take_nothing_away() {
    let cluster = Cluster::start();
    let node = cluster.node("n", &[]);
    let (mut seen, grant) = Seen::begin(&cluster, "watch-lost");
    let one = cluster.run(&web("watch-lost", "one", "n"));
    let at = |name: &str| format!("{name}@{} a web", uid(&node));
    seen.until(&[at("one")]).await;

    cluster.lose_history();
    let two = cluster.run(&web("watch-lost", "two", "n"));
    seen.until(&[at("one"), at("two")]).await;

    cluster.freeze();
    eventually("the silence is noticed", async || {
        let age = spiffe::time::Clock::now(&System).since(seen.watched.last_heard().unwrap());
        that(age > Duration::from_secs(12), || format!("{age:?}"))
    })
    .await;
    assert_eq!(seen.names(), [at("one"), at("two")]);
    cluster.thaw();
    cluster.delete(&two);
    seen.until(&[at("one")]).await;

    cluster.delete(&grant);
    let three = cluster.run(&web("watch-lost", "three", "n"));
    eventually("the rights are gone", async || {
        let age = spiffe::time::Clock::now(&System).since(seen.watched.last_heard().unwrap());
        that(age > Duration::from_secs(8), || format!("{age:?}"))
    })
    .await;
    let mut again = grant;
    again["metadata"].as_object_mut().unwrap().retain(|key, _| key == "name");
    cluster.create(&again);
    cluster.delete(&one);
    seen.until(&[at("three")]).await;
    cluster.delete(&three);
    seen.until(&[]).await;
}

#[tokio::test]
async fn a_cluster_with_more_pods_than_it_may_have_keeps_what_it_had() {
    let cluster = Cluster::start();
    let node = cluster.node("n", &[]);
    let at = |name: &str| format!("{name}@{} a web", uid(&node));
    let names: Vec<String> = (0..=9).map(|number| format!("pod-{number}")).collect();
    let (mut seen, _) = Seen::of_at_most(9, &cluster, "watch-many");
    let run = |name: &String| cluster.run(&web("watch-many", name, "n"));
    let pods: Vec<Value> = names[..9].iter().map(run).collect();
    let nine: Vec<String> = names[..9].iter().map(|name| at(name)).collect();
    seen.until(&nine).await;
    assert!(!seen.watched.has_too_many());

    // One more is shown at most; none of those that were there goes.
    let more: Vec<Value> = ["more-1", "more-2", "more-3"].iter().map(|name| run(&(*name).to_owned())).collect();
    eventually("they are too many", async || {
        while let Ok(event) = seen.events.try_recv() {
            seen.pods = seen.pods.after(event).0;
        }
        that(seen.watched.has_too_many(), || format!("{:?}", seen.names()))
    })
    .await;
    assert!(seen.names().len() <= 10 && nine.iter().all(|name| seen.names().contains(name)), "{:?}", seen.names());

    // So is it with a server that starts now: nothing is told of a part of them.
    let (mut fresh, _) = Seen::of_at_most(9, &cluster, "watch-many-2");
    eventually("they are too many from the start", async || that(fresh.watched.has_too_many(), || "not yet".into()))
        .await;
    assert!(fresh.events.try_recv().is_err());
    more.iter().chain(&pods[..1]).for_each(|pod| cluster.delete(pod));
    fresh.namespace = "watch-many";
    fresh.until(&nine[1..]).await;
    assert!(!fresh.watched.has_too_many());
}
