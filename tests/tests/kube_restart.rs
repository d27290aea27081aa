//! A server that starts anew while the API server of a cluster is lost takes nothing away from that cluster's agents; with
//! a real API server, from its watch to what an agent is told and issued.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::time::Duration;

use serde_json::{Value, json};
use spiffe::crypto::generate_key;
use spiffe::entry::KeyType;
use spiffe::proto::v1;
use spiffe::time::{Clock as _, System};
use tests::by_hand::{Caller, Syncing, attest, stranger};
use tests::cluster::{Cluster, Pod, Token};
use tests::house::BEGINNING;
use tests::patience::{soon, that};
use tests::{House, web};
use tonic::{Code, Status};

const NAME: &str = "restart";

/// What the server may do in the cluster.
fn rules() -> Value {
    json!([
        { "apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"] },
        { "apiGroups": [""], "resources": ["pods", "nodes", "namespaces"], "verbs": ["get", "list", "watch"] },
    ])
}

fn csr() -> Vec<u8> {
    spiffe::csr::create(&generate_key(KeyType::P256).unwrap()).unwrap()
}

/// A house that remembers, and an agent of a node with a pod on it.
async fn scene(cluster: &Cluster) -> (House, Caller) {
    cluster.namespace(NAME, &[]);
    for account in ["server", "agent", "web"] {
        cluster.service_account(NAME, account);
    }
    cluster.node(NAME, &[]);
    cluster.grant(NAME, "server", &rules());
    let mut house = House::empty(House::ON_DISK);
    // Tokens of a real cluster are of the present.
    house.jump(System.now().since(BEGINNING));
    house.set("kubernetes.main.request_timeout", "2s");
    house.set("kubernetes.main.kubeconfig", cluster.kubeconfig_of(NAME, "server").to_str().unwrap());
    house.set("attest.k8s_psat.main.service_accounts", &format!("[\"{NAME}:agent\"]"));
    house.start_server().await.unwrap();

    let pod = cluster.run(&Pod::new(NAME, "agent", "agent").on(NAME));
    let token = cluster.token(&Token::of(NAME, "agent").audience("chancery").bound_to(&pod));
    let evidence = json!({ "cluster": "main", "token": token }).to_string().into_bytes();
    let key = generate_key(KeyType::P256).unwrap();
    let csr = spiffe::csr::create(&key).unwrap();
    let (svid, _) = attest(&mut stranger(&house).await, "k8s_psat", evidence, csr).await.unwrap();
    (house, Caller { svid, key: key.serialize_der() })
}

async fn next(house: &House, stream: &mut Syncing) -> Result<v1::SyncResponse, Status> {
    let time_goes_on = house.eventually("never", async || Err::<(), _>("time goes on".to_owned()));
    tokio::select! {
        message = soon("the server says something", stream.incoming.message()) => Ok(message?.unwrap()),
        () = time_goes_on => panic!("it cannot end"),
    }
}

#[tokio::test]
async fn a_restart_while_the_api_server_hangs_withdraws_nothing() {
    let cluster = Cluster::start();
    let (mut house, agent) = scene(&cluster).await;
    let rule = v1::Rule { id: "web".into(), service_accounts: vec!["web".into()], ..v1::Rule::default() };
    let request = v1::CreateRuleRequest { rule: Some(rule) };
    house.operator().await.door.clone().create_rule(request).await.unwrap();
    cluster.run(&Pod::new(NAME, "web", "web").on(NAME));
    house
        .eventually("the pod has its entry", async || {
            let derived = house.server().doors().views.load().derived_count();
            that(derived == 1, || format!("{derived} entries"))
        })
        .await;
    let mut stream = agent.sync(&house).await.unwrap();
    let snapshot = next(&house, &mut stream).await.unwrap();
    let [entry] = &snapshot.entries[..] else { panic!("{snapshot:?}") };
    agent.issue(&house, &entry.id, csr()).await.unwrap();
    drop(stream);

    house.stop_server().await;
    cluster.freeze();
    house.start_server().await.unwrap();
    // No snapshot without the entry: nothing, and then word to go elsewhere.
    let mut waits = agent.sync(&house).await.unwrap();
    let sent_away = next(&house, &mut waits).await.unwrap_err();
    assert_eq!(sent_away.code(), Code::Unavailable, "{sent_away}");
    assert!(sent_away.message().contains("has not told of its pods yet"), "{sent_away}");
    // Nothing new is signed on the word of nobody; and that is no refusal for good.
    let refused = agent.issue(&house, &entry.id, csr()).await.unwrap_err();
    assert_eq!(refused.code, Code::Unavailable as i32, "{refused:?}");
    let health = house.server().health_address();
    let metrics = web::get(health, "/metrics").await;
    assert!(metrics.contains("chancery_kubernetes_told{cluster=\"main\"} 0"), "{metrics}");
    let ready = web::get(health, "/ready").await;
    assert!(ready.contains("503") && ready.contains("the API server of main has not told of all pods yet"), "{ready}");
    // One lost cluster is not the end of the others.
    house.jump(Duration::from_secs(120));
    let ready = web::get(health, "/ready").await;
    assert!(ready.contains("200"), "{ready}");

    let mut waits = agent.sync(&house).await.unwrap();
    cluster.thaw();
    let told = loop {
        match next(&house, &mut waits).await {
            Ok(told) => break told,
            // It has taken longer than an agent waits.
            Err(status) if status.code() == Code::Unavailable => waits = agent.sync(&house).await.unwrap(),
            Err(status) => panic!("{status}"),
        }
    };
    assert!(told.snapshot && told.entries == snapshot.entries, "{told:?}");
    agent.issue(&house, &entry.id, csr()).await.unwrap();
}
