//! Agents attest by their projected tokens, against a real API server; and every token that is nearly right is refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use ca_server::view::nodes::GRACE;
use serde_json::{Value, json};
use spiffe::crypto::generate_key;
use spiffe::entry::KeyType;
use spiffe::id::SpiffeId;
use spiffe::proto::v1;
use spiffe::time::{Clock as _, System};
use tests::House;
use tests::by_hand::{Caller, attest, stranger};
use tests::cluster::{Cluster, Pod, Token, uid};
use tests::house::{BEGINNING, id};
use tests::patience::{eventually, that};
use tonic::{Code, Status};

/// What the server may do in a cluster: no more than docs/attestation.md says.
fn rules() -> Value {
    json!([
        { "apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"] },
        { "apiGroups": [""], "resources": ["pods", "nodes", "namespaces"], "verbs": ["get", "list", "watch"] },
    ])
}

/// A house that takes agents of a cluster: those in the namespace `name`, as the service account `agent`.
struct Scene {
    house: House,
    cluster: Arc<Cluster>,
    name: &'static str,
    node: Value,
    grant: Value,
}

impl Scene {
    async fn new(cluster: Arc<Cluster>, name: &'static str) -> Self {
        cluster.namespace(name, &[]);
        for account in ["server", "agent", "other"] {
            cluster.service_account(name, account);
        }
        let node = cluster.node(name, &[("zone", "a"), ("secret", "b")]);
        let grant = cluster.grant(name, "server", &rules());
        let mut house = House::empty(&[("kubernetes.main.request_timeout", "2s")]);
        // Certificates and tokens of a real cluster are of the present.
        house.jump(System.now().since(BEGINNING));
        house.set("kubernetes.main.kubeconfig", cluster.kubeconfig_of(name, "server").to_str().unwrap());
        house.set("attest.k8s_psat.main.service_accounts", &format!("[\"{name}:agent\"]"));
        house.set("attest.k8s_psat.main.node_labels", "[\"zone\"]");
        house.set("attest.k8s_psat.main.pod_labels", "[\"app\"]");
        house.start_server().await.unwrap();
        Self { house, cluster, name, node, grant }
    }

    async fn shared(name: &'static str) -> Self {
        Self::new(Cluster::shared(), name).await
    }

    /// A pod on the node that runs as this account.
    fn pod(&self, name: &str, account: &str) -> Value {
        self.cluster.run(&Pod::new(self.name, name, account).on(self.name).label("app", "agent"))
    }

    /// A token as a kubelet puts it into the pod.
    fn token(&self, pod: &Value, account: &str) -> String {
        self.cluster.token(&Token::of(self.name, account).audience("chancery").bound_to(pod))
    }

    async fn show(&self, token: &str) -> Result<SpiffeId, Status> {
        self.show_of("main", token).await
    }

    async fn show_of(&self, cluster: &str, token: &str) -> Result<SpiffeId, Status> {
        let evidence = json!({ "cluster": cluster, "token": token }).to_string().into_bytes();
        let csr = spiffe::csr::create(&generate_key(KeyType::P256).unwrap()).unwrap();
        let (svid, _) = attest(&mut stranger(&self.house).await, "k8s_psat", evidence, csr).await?;
        Ok(svid.id().clone())
    }

    /// An agent that has attested with this token.
    async fn agent(&self, token: &str) -> Caller {
        let evidence = json!({ "cluster": "main", "token": token }).to_string().into_bytes();
        let key = generate_key(KeyType::P256).unwrap();
        let csr = spiffe::csr::create(&key).unwrap();
        let (svid, _) = attest(&mut stranger(&self.house).await, "k8s_psat", evidence, csr).await.unwrap();
        Caller { svid, key: key.serialize_der() }
    }

    /// Why this token is refused.
    async fn refusal(&self, token: &str) -> String {
        let status = self.show(token).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
        status.message().to_owned()
    }
}

#[tokio::test]
async fn an_agent_attests_as_its_node_and_may_again() {
    let scene = Scene::shared("psat-good").await;
    let pod = scene.pod("agent-1", "agent");
    let agent = scene.show(&scene.token(&pod, "agent")).await.unwrap();
    assert_eq!(agent, id(&format!("/chancery/agent/k8s_psat/main/{}", uid(&scene.node))));
    let found = scene.house.operator().await.agent(&agent).await.unwrap();
    for expected in [
        "k8s_psat:cluster:main".to_owned(),
        "k8s_psat:agent_ns:psat-good".to_owned(),
        "k8s_psat:agent_sa:agent".to_owned(),
        "k8s_psat:agent_pod_name:agent-1".to_owned(),
        format!("k8s_psat:agent_pod_uid:{}", uid(&pod)),
        "k8s_psat:agent_pod_label:app:agent".to_owned(),
        "k8s_psat:agent_node_name:psat-good".to_owned(),
        format!("k8s_psat:agent_node_uid:{}", uid(&scene.node)),
        "k8s_psat:agent_node_label:zone:a".to_owned(),
    ] {
        assert!(found.selectors.contains(&expected), "{expected} is not in {:?}", found.selectors);
    }
    assert!(!found.selectors.iter().any(|selector| selector.contains("secret")), "only labels of the config");
    // Another pod of the same node, as after an update of the DaemonSet.
    scene.cluster.delete(&pod);
    let next = scene.pod("agent-2", "agent");
    assert_eq!(scene.show(&scene.token(&next, "agent")).await.unwrap(), agent);
}

#[tokio::test]
async fn a_token_that_is_nearly_right_is_refused() {
    let scene = Scene::shared("psat-nearly").await;
    let pod = scene.pod("agent", "agent");
    let good = scene.token(&pod, "agent");
    let of = |account: &str| Token::of(scene.name, account);

    let for_api = scene.cluster.token(&of("agent").bound_to(&pod));
    assert!(scene.refusal(&for_api).await.contains("cluster main refuses the service-account token"));
    let for_other = scene.cluster.token(&of("agent").audience("vault").bound_to(&pod));
    assert!(scene.refusal(&for_other).await.contains("mount a projected token for audience \"chancery\""));

    let past = System.now().unix() - 60;
    let expired = scene.cluster.token_with(&good, |claims| {
        claims.insert("exp".into(), past.into());
        claims.insert("nbf".into(), (past - 600).into());
        claims.insert("iat".into(), (past - 600).into());
    });
    assert!(scene.refusal(&expired).await.contains("refuses the service-account token"));

    let unbound = scene.cluster.token(&of("agent").audience("chancery"));
    assert!(scene.refusal(&unbound).await.contains("bound to no pod"));

    let other = scene.pod("other", "other");
    let refusal = scene.refusal(&scene.token(&other, "other")).await;
    assert!(refusal.contains("service account psat-nearly:other is not on the list"), "{refusal}");

    let (head, signature) = good.rsplit_once('.').unwrap();
    let forged = format!("{head}.{}", signature.chars().rev().collect::<String>());
    assert!(scene.refusal(&forged).await.contains("refuses"));
    assert!(scene.refusal("no token").await.contains("has not the form"));
    let unknown = scene.show_of("elsewhere", &good).await.unwrap_err();
    assert!(unknown.message().contains("cluster \"elsewhere\" is not one whose agents are taken here"), "{unknown:?}");
    scene.show(&good).await.unwrap();
}

#[tokio::test]
async fn a_token_of_a_pod_that_is_gone_or_was_made_anew_is_refused() {
    let scene = Scene::shared("psat-gone").await;
    let pod = scene.pod("agent", "agent");
    let token = scene.token(&pod, "agent");
    // An API server that has just said yes goes on saying yes.
    scene.show(&token).await.unwrap();
    scene.cluster.delete(&pod);
    let refusal = scene.refusal(&token).await;
    assert!(refusal.contains("gone") || refusal.contains("refuses the service-account token"), "{refusal}");
    let anew = scene.pod("agent", "agent");
    let refusal = scene.refusal(&token).await;
    assert!(refusal.contains("gone") || refusal.contains("refuses the service-account token"), "{refusal}");

    let token = scene.token(&anew, "agent");
    scene.cluster.change_status(&anew, &json!({ "phase": "Succeeded" }));
    assert!(scene.refusal(&token).await.contains("pod psat-gone/agent of the service-account token has ended"));
}

#[tokio::test]
async fn a_token_of_a_service_account_or_a_node_that_was_made_anew_is_refused() {
    let scene = Scene::shared("psat-anew").await;
    let pod = scene.pod("agent", "agent");
    let token = scene.token(&pod, "agent");
    scene.cluster.delete(&scene.node);
    scene.cluster.node(scene.name, &[]);
    let refusal = scene.refusal(&token).await;
    assert!(refusal.contains("was made anew") || refusal.contains("refuses the service-account token"), "{refusal}");

    let second = scene.token(&pod, "agent");
    let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "namespace": scene.name, "name": "agent" } });
    scene.cluster.delete(&account);
    scene.cluster.service_account(scene.name, "agent");
    assert!(scene.refusal(&second).await.contains("refuses the service-account token"));
}

#[tokio::test]
async fn a_token_of_another_cluster_is_refused() {
    let scene = Scene::shared("psat-two").await;
    let other = Cluster::start();
    other.namespace(scene.name, &[]);
    other.service_account(scene.name, "agent");
    other.node(scene.name, &[]);
    let pod = other.run(&Pod::new(scene.name, "agent", "agent").on(scene.name));
    let token = other.token(&Token::of(scene.name, "agent").audience("chancery").bound_to(&pod));
    assert!(scene.refusal(&token).await.contains("cluster main refuses the service-account token"));
}

#[tokio::test]
async fn an_api_server_that_hangs_holds_up_nobody_else() {
    let scene = Scene::new(Arc::new(Cluster::start()), "psat-frozen").await;
    let pod = scene.pod("agent", "agent");
    let token = scene.token(&pod, "agent");
    scene.show(&token).await.unwrap();
    scene.cluster.freeze();
    let (status, caller) = tokio::join!(scene.show(&token), Caller::attest(&scene.house));
    scene.cluster.thaw();
    let status = status.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "an agent tries again after this: {status:?}");
    assert!(status.message().contains("the API server of cluster main could not be asked"), "{status:?}");
    assert!(caller.id().path().contains("/join_token/"));
    eventually("it goes on", async || scene.show(&token).await.map_err(|status| format!("{status:?}"))).await;
}

#[tokio::test]
async fn rights_that_are_taken_away_attest_nobody_until_they_are_back() {
    let scene = Scene::shared("psat-rights").await;
    let token = scene.token(&scene.pod("agent", "agent"), "agent");
    scene.show(&token).await.unwrap();
    scene.cluster.delete(&scene.grant);
    eventually("the API server has noticed", async || match scene.show(&token).await {
        Err(status) if status.code() == Code::Unavailable => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    scene.cluster.create(&without_what_was_set(scene.grant.clone()));
    eventually("they are back", async || scene.show(&token).await.map_err(|status| format!("{status:?}"))).await;
}

/// An object as it was before it was created.
fn without_what_was_set(mut object: Value) -> Value {
    let metadata = object["metadata"].as_object_mut().unwrap();
    metadata.retain(|key, _| key == "name" || key == "namespace" || key == "labels");
    object
}

/// What becomes of a Renew of this agent.
async fn renew(scene: &Scene, agent: &Caller) -> Result<(), Status> {
    let csr = spiffe::csr::create(&generate_key(KeyType::P256).unwrap()).unwrap();
    let request = v1::RenewRequest { csr: csr.into() };
    agent.door(&scene.house).await.unwrap().renew(request).await.map(drop)
}

#[tokio::test]
async fn an_agent_whose_node_was_deleted_has_to_attest_again() {
    let scene = Scene::shared("psat-deleted").await;
    let other = scene.cluster.node("psat-deleted-other", &[]);
    let token = scene.token(&scene.pod("agent", "agent"), "agent");
    let agent = scene.agent(&token).await;
    let heard_after = async |wait: Duration| {
        scene.house.jump(wait);
        let turn = scene.house.now().unix().to_string();
        scene.cluster.change(&other, &json!({ "metadata": { "labels": { "turn": turn } } }));
        eventually("the nodes are heard of", async || {
            let view = scene.house.server().doors().views.load();
            let as_of = view.pods().nodes("main").map(|nodes| nodes.as_of);
            that(as_of == Some(scene.house.now()), || format!("{as_of:?}"))
        })
        .await;
    };
    heard_after(GRACE).await;
    renew(&scene, &agent).await.unwrap();
    scene.cluster.delete(&scene.node);
    heard_after(Duration::from_secs(11)).await;
    renew(&scene, &agent).await.expect("it may be a mistake that is mended at once");
    heard_after(GRACE).await;
    let refused = Arc::new(Mutex::new(None));
    eventually("the server knows that the node is gone", async || {
        let outcome = renew(&scene, &agent).await;
        let is_refused = outcome.is_err();
        *refused.lock().unwrap() = outcome.err();
        that(is_refused, || "it renews".into())
    })
    .await;
    let status = refused.lock().unwrap().take().unwrap();
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    assert!(status.message().contains("the node of agent"), "{status:?}");
    assert!(scene.refusal(&token).await.contains("node"));
}
