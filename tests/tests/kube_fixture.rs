//! The cluster of the tests is a real one: what our code relies on is what its API server does.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say what is wrong by panicking")]

use std::pin::pin;

use k8s_openapi::api::core::v1 as core;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Config};
use serde_json::{Value, json};
use tests::binary::wait_for;
use tests::cluster::{Cluster, Container, Pod, Token, owner, uid};
use tests::patience::soon;
use tokio_stream::StreamExt as _;

/// What a TokenReview says of `token`.
fn review(cluster: &Cluster, token: &str, audience: &str) -> Value {
    let review = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": { "token": token, "audiences": [audience] },
    });
    cluster.create(&review)["status"].clone()
}

fn extra<'a>(status: &'a Value, name: &str) -> &'a Value {
    &status["user"]["extra"][format!("authentication.kubernetes.io/{name}")][0]
}

#[test]
fn a_bound_token_names_pod_and_node_until_the_pod_is_deleted() {
    let cluster = Cluster::shared();
    cluster.namespace("bound", &[]);
    let account = cluster.service_account("bound", "web");
    let node = cluster.node("bound-1", &[("zone", "a")]);
    let pod = cluster.run(&Pod::new("bound", "web-1", "web").on("bound-1").label("app", "web"));
    let wished = Token::of("bound", "web").audience("chancery").bound_to(&pod);
    let token = cluster.token(&wished);

    let status = review(&cluster, &token, "chancery");
    assert_eq!((&status["authenticated"], &status["audiences"]), (&json!(true), &json!(["chancery"])), "{status}");
    assert_eq!(status["user"]["username"], "system:serviceaccount:bound:web");
    assert_eq!(status["user"]["uid"], uid(&account));
    assert_eq!((extra(&status, "pod-name"), extra(&status, "pod-uid")), (&json!("web-1"), &json!(uid(&pod))));
    assert_eq!((extra(&status, "node-name"), extra(&status, "node-uid")), (&json!("bound-1"), &json!(uid(&node))));

    let refused = |token: &str, audience: &str| {
        let status = review(&cluster, token, audience);
        assert!(status["authenticated"] != true && status["error"].is_string(), "{status}");
    };
    refused(&token, "istio-ca");
    refused(&cluster.token_with(&token, |claims| claims["exp"] = json!(1_700_000_000)), "chancery");
    assert_eq!(review(&cluster, &cluster.token_with(&token, |_| {}), "chancery")["authenticated"], true);
    refused(&format!("{token}x"), "chancery");

    // Another pod of the same name is another pod. What was reviewed may be remembered for some seconds.
    let unseen = cluster.token(&wished);
    cluster.delete(&pod);
    let again = cluster.run(&Pod::new("bound", "web-1", "web").on("bound-1"));
    assert_ne!(uid(&again), uid(&pod));
    refused(&unseen, "chancery");
    let gone = || (review(&cluster, &token, "chancery")["authenticated"] != true).then_some(());
    wait_for(60, gone).expect("the API server forgets what it reviewed");

    let unseen = cluster.token(&Token::of("bound", "web").audience("chancery"));
    cluster.delete(&account);
    cluster.service_account("bound", "web");
    refused(&unseen, "chancery");
}

#[tokio::test]
async fn a_service_account_may_what_it_is_granted_and_sees_what_is_written() {
    let cluster = Cluster::shared();
    cluster.namespace("watched", &[("team", "shop")]);
    cluster.service_account("watched", "agent");
    for node in ["watched-1", "watched-2"] {
        cluster.node(node, &[]);
    }
    let client = client(&cluster.kubeconfig_of("watched", "agent")).await;
    let pods: Api<core::Pod> = Api::namespaced(client, "watched");
    assert!(matches!(pods.list(&Default::default()).await, Err(kube::Error::Api(status)) if status.code == 403));

    let rules = json!([{ "apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"] }]);
    let binding = cluster.grant("watched", "agent", &rules);
    let allowed = async {
        while pods.list(&Default::default()).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    soon("the grant counts", allowed).await;

    let mut events = pin!(watcher(pods.clone(), watcher::Config::default().fields("spec.nodeName=watched-1")));
    let (deployment, main) = (cluster.deployment("watched", "web"), Container::new("main", "example/web:1"));
    let set = cluster.replica_set("watched", "web-5c", Some(&deployment));
    assert_eq!(cluster.read(&set).unwrap()["metadata"]["ownerReferences"], json!([owner(&deployment)]));
    let debug = Container::new("debug", "example/debug:1").ephemeral();
    let wished = Pod::new("watched", "web-1", "agent").owned_by(&set);
    let wished =
        wished.container(&Container::new("setup", "example/setup:1").init()).container(&main).container(&debug);
    cluster.run(&wished.clone().on("watched-2"));
    let here = Pod::new("watched", "web-2", "agent").on("watched-1").owned_by(&set).container(&main).container(&debug);
    let created = cluster.run(&here);

    let running = async {
        loop {
            if let Some(Ok(Event::Apply(pod) | Event::InitApply(pod))) = events.next().await {
                assert_eq!(pod.metadata.name.as_deref(), Some("web-2"), "the other one is on another node");
                let Some(status) = pod.status.filter(|status| status.phase.as_deref() == Some("Running")) else {
                    continue;
                };
                let statuses =
                    status.container_statuses.into_iter().chain(status.ephemeral_container_statuses).flatten();
                return statuses.filter_map(|container| container.container_id).collect::<Vec<_>>();
            }
        }
    };
    let ids = soon("the pod runs", running).await;
    assert_eq!(ids, [&main, &debug].map(|container| format!("containerd://{}", container.id)));
    cluster.delete(&created);
    let gone = async { while !matches!(events.next().await, Some(Ok(Event::Delete(_)))) {} };
    soon("the pod is gone", gone).await;

    cluster.delete(&binding);
    let refused = async { while pods.list(&Default::default()).await.is_ok() {} };
    soon("the grant is taken back", refused).await;
}

#[tokio::test]
async fn an_api_server_hangs_flaps_and_loses_its_history() {
    let cluster = Cluster::start();
    cluster.namespace("lost", &[]);
    let client = client(&cluster.admin_kubeconfig()).await;
    let nodes: Api<core::Node> = Api::all(client);
    let first = cluster.node("lost-1", &[]);
    let known = first["metadata"]["resourceVersion"].as_str().unwrap().to_owned();

    cluster.freeze();
    let mut hanging = pin!(nodes.get("lost-1"));
    assert!(within_a_second(hanging.as_mut()).await.is_none(), "nothing is answered");
    cluster.thaw();
    assert_eq!(soon("an answer", hanging).await.unwrap().metadata.uid.unwrap(), uid(&first));

    cluster.node("lost-2", &[]);
    cluster.lose_history();
    assert_eq!(nodes.get("lost-1").await.unwrap().metadata.uid.unwrap(), uid(&first), "same port, same objects");
    let events = nodes.watch(&Default::default(), &known).await.unwrap();
    let gone = soon("an answer", pin!(events).next()).await;
    let code = match gone.unwrap() {
        Ok(kube::api::WatchEvent::Error(status)) => status.code,
        Err(kube::Error::Api(status)) => status.code,
        other => panic!("{other:?}"),
    };
    assert_eq!(code, 410);
}

async fn client(kubeconfig: &std::path::Path) -> Client {
    let kubeconfig = kube::config::Kubeconfig::read_from(kubeconfig).unwrap();
    Client::try_from(Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.unwrap()).unwrap()
}

#[expect(clippy::disallowed_methods, reason = "that nothing comes can only be seen in real time")]
async fn within_a_second<T>(work: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(std::time::Duration::from_secs(1), work).await.ok()
}
