//! Istio's proxies and a real API server: whose a token is, it says itself, and which pods run where, it tells by its watches.
//! Six hundred identities through a rotation; every token and every wish that is nearly right; rights that are taken away.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use spiffe::crypto::generate_key;
use spiffe::crypto::jws::Signer;
use spiffe::entry::KeyType;
use spiffe::proto::istio::IstioCertificateRequest;
use spiffe::time::{Clock as _, System};
use spiffe::x509_svid::Purpose;
use tests::cluster::{Cluster, Pod, Token};
use tests::house::{BEGINNING, House, id, text};
use tests::patience::{eventually, soon, that};
use tests::web;
use tests::ztunnel::{Ca, Certificate, Held, Way, Ztunnel, csr, request, with_token};
use tonic::{Code, Request, Status};

/// What istiod says to whom it does not know, and to whom it does not let speak for another: no more.
const NOBODY: (Code, &str) = (Code::Unauthenticated, "request authenticate failure");
const NOT_YOURS: (Code, &str) = (Code::Unauthenticated, "request impersonation authentication failure");

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
/// As long as ztunnel asks for.
const DAY: i64 = 86_400;
/// How far the server's clock is behind that of the API servers, at first.
const BEHIND: Duration = Duration::from_secs(300);
/// As long as a yes of an API server is remembered, and more.
const FORGOTTEN: Duration = Duration::from_secs(6);

/// What the server may do in a cluster: no more than docs/istio.md says, and namespaces, which are watched with pods.
fn rules(reviews: bool) -> Value {
    let watch =
        json!({ "apiGroups": [""], "resources": ["pods", "nodes", "namespaces"], "verbs": ["get", "list", "watch"] });
    let review = json!({ "apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"] });
    if reviews { json!([watch, review]) } else { json!([watch]) }
}

/// A cluster as a house knows it: in the namespace `name` are the accounts `ztunnel`, `web` and `db`, and one node is called so.
struct Place {
    cluster: Arc<Cluster>,
    name: &'static str,
    /// How proxies call the cluster.
    called: &'static str,
}

impl Place {
    fn new(cluster: Arc<Cluster>, name: &'static str, called: &'static str) -> Self {
        cluster.namespace(name, &[]);
        for account in ["server", "ztunnel", "web", "db"] {
            cluster.service_account(name, account);
        }
        cluster.node(name, &[]);
        cluster.grant(name, "server", &rules(true));
        Self { cluster, name, called }
    }

    /// A pod on the node, which runs as an account of its own name.
    fn pod(&self, account: &str) -> Value {
        self.pod_on(self.name, account)
    }

    fn pod_on(&self, node: &str, account: &str) -> Value {
        self.cluster.pod(&Pod::new(self.name, account, account).on(node))
    }

    /// The token of a pod, as the kubelet puts it there for Istio.
    fn token(&self, pod: &Value) -> String {
        let account = pod["spec"]["serviceAccountName"].as_str().unwrap();
        self.cluster.token(&Token::of(self.name, account).audience("istio-ca").bound_to(pod))
    }

    fn identity(&self, account: &str) -> String {
        id(&format!("/ns/{}/sa/{account}", self.name)).to_string()
    }

    /// A certificate of its own is wanted by whoever has this token.
    fn own(&self, token: &str) -> Request<IstioCertificateRequest> {
        with_token(request(csr(&self.identity("web")).0, 3600, None), token, self.called)
    }

    /// The certificate of another is wanted by whoever has this token.
    fn other(&self, token: &str, asked: &str) -> Request<IstioCertificateRequest> {
        with_token(request(csr(asked).0, 3600, Some(asked)), token, self.called)
    }
}

/// A house with a door for proxies that asks these clusters.
struct Mesh {
    house: House,
    ca: Ca,
}

impl Mesh {
    /// The first is called `main` in the config, the second `east`.
    async fn of(places: &[&Place]) -> Self {
        let mut house = House::empty(&[("istio.listen", "127.0.0.1:0"), ("istio.default_cluster", "main")]);
        // Tokens of a real cluster are of the present, and the clock of the house is behind.
        house.jump(System.now().minus(BEHIND).since(BEGINNING));
        for (place, cluster) in places.iter().zip(["main", "east"]) {
            let kubeconfig = place.cluster.kubeconfig_of(place.name, "server");
            house.set(&format!("kubernetes.{cluster}.kubeconfig"), &text(&kubeconfig));
            house.set(&format!("istio.clusters.{}", place.called), cluster);
        }
        house.set("istio.trusted_node_accounts", &format!("[\"{}/ztunnel\"]", places[0].name));
        house.start_server().await.unwrap();
        let mounted = house.operator().await.bundle().await.to_pem();
        let ca = Ca::at(Way::to(&house, &Arc::new(ArcSwap::from_pointee(mounted))));
        Self { house, ca }
    }

    /// Waits until the server knows this many pods of a node.
    async fn knows(&self, node: &str, count: usize) {
        self.house.eventually("the server knows the pods", async || self.has(node, count)).await;
    }

    fn has(&self, node: &str, count: usize) -> Result<(), String> {
        let view = self.house.server().doors().views.load();
        let pods = view.pods().agents().flat_map(|agent| view.pods().of_agent(agent));
        let known = pods.filter(|pod| *pod.node_name == *node).count();
        that(known == count, || format!("{known} pods of {node} are known, not {count}"))
    }

    /// Refused so, and no more is said; the record says why.
    async fn refused(&self, request: Request<IstioCertificateRequest>, said: (Code, &str), why: &str) -> String {
        let status = soon("an answer", self.ca.ask(request)).await.expect_err(why);
        assert_eq!((status.code(), status.message()), said, "{why}");
        assert!(status.details().is_empty(), "{status:?}");
        self.house.refused(why).await
    }

    /// Waits, while time goes on, until what was granted is refused so.
    async fn no_longer(&self, request: impl Fn() -> Request<IstioCertificateRequest>, said: (Code, &str)) {
        self.house
            .eventually("it is refused", async || {
                let status = self.ca.ask(request()).await.err().ok_or("there is still a certificate")?;
                // Nothing else is ever said.
                assert_eq!((status.code(), status.message()), said);
                Ok(())
            })
            .await;
    }

    /// Waits, while time goes on, until it is granted.
    async fn at_last(&self, request: impl Fn() -> Request<IstioCertificateRequest>) {
        let granted = async || self.ca.ask(request()).await.map(drop).map_err(|status| status.to_string());
        self.house.eventually("it is granted", granted).await;
    }

    /// How many reviews of this outcome there were.
    async fn reviews(&self, outcome: &str) -> u64 {
        let metrics = web::get(self.house.server().health_address(), "/metrics").await;
        let line = format!("chancery_kubernetes_token_reviews_total{{cluster=\"main\",outcome=\"{outcome}\"}} ");
        metrics.lines().find_map(|found| found.strip_prefix(&line)).unwrap().parse().unwrap()
    }
}

/// Six hundred service accounts in six namespaces, each with a pod on the node: their identities.
fn six_hundred(place: &Place) -> Vec<(Pod, String)> {
    let mut all = Vec::new();
    let namespaces: Vec<String> = (0..6).map(|number| format!("{}-{number}", place.name)).collect();
    for namespace in &namespaces {
        place.cluster.namespace(namespace, &[]);
        for number in 0..100 {
            let account = format!("app-{number}");
            let pod = Pod::new(namespace, &format!("{account}-x7k2p"), &account).on(place.name);
            all.push((pod, id(&format!("/ns/{namespace}/sa/{account}")).to_string()));
        }
    }
    let account = |pod: &Value| {
        let metadata = json!({ "namespace": pod["metadata"]["namespace"], "name": pod["spec"]["serviceAccountName"] });
        json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata })
    };
    let pods: Vec<Value> = all.iter().map(|(pod, _)| pod.object()).collect();
    place.cluster.create_all(pods.iter().map(account).collect::<Vec<_>>());
    place.cluster.create_all(pods);
    all
}

/// Every identity that a proxy wants is there, by a chain that it and an operator verify: the serial numbers.
async fn all_hold(mesh: &Mesh, ztunnel: &Ztunnel) -> BTreeMap<String, Vec<u8>> {
    let (now, bundle) = (mesh.house.now(), mesh.house.operator().await.bundle().await);
    let certificate = |identity: &String| ztunnel.held()[identity].certificate.as_ref().expect("a certificate");
    let mut serials = BTreeMap::new();
    for (identity, neighbour) in ztunnel.held().keys().zip(ztunnel.held().keys().cycle().skip(1)) {
        let Certificate { svid, .. } = certificate(identity);
        assert_eq!(svid.id().as_str(), identity);
        svid.clone().verify_as(&bundle, now, Purpose::Client).unwrap();
        certificate(neighbour).trusts(certificate(identity), now).unwrap();
        serials.insert(identity.clone(), svid.serial().to_vec());
    }
    serials
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn six_hundred_identities_are_rotated_and_one_whose_pod_has_gone_is_refused_alone() {
    let place = Place::new(Cluster::shared(), "istio-many", "kubernetes");
    let all = six_hundred(&place);
    let proxy = place.pod("ztunnel");
    let mesh = Mesh::of(&[&place]).await;
    mesh.knows(place.name, 601).await;
    // The kubelet would write another one after hours, of which those of the API server's clock have not passed.
    let of_proxy = Token::of(place.name, "ztunnel").audience("istio-ca").bound_to(&proxy).seconds(2 * 86_400);
    let token = Arc::new(ArcSwap::from_pointee(place.cluster.token(&of_proxy)));
    let mut ztunnel = Ztunnel::new(&mesh.house, mesh.ca.clone(), "kubernetes", token, DAY);
    all.iter().for_each(|(_, identity)| ztunnel.want(identity));

    let refused = ztunnel.work().await;
    assert!(refused.is_empty(), "{} refused, first: {:?}", refused.len(), refused[0]);
    let before = all_hold(&mesh, &ztunnel).await;
    assert_eq!(before.len(), 600);
    assert_eq!(before.values().collect::<std::collections::BTreeSet<_>>().len(), 600, "each has its own");
    assert_eq!((mesh.reviews("accepted").await, mesh.reviews("remembered").await), (1, 599), "of one token");

    let (pod, gone) = &all[123];
    place.cluster.delete(&pod.object());
    mesh.knows(place.name, 600).await;
    let mut refusals = Vec::new();
    let settled = async || {
        for (identity, status) in ztunnel.work().await {
            match identity == *gone {
                true => refusals.push(status),
                // A connection that has come to its end is no refusal.
                false => assert_ne!(status.code(), Code::Unauthenticated, "{identity}: {status:?}"),
            }
        }
        let now = mesh.house.now();
        let is_late = |held: &Held| held.certificate.as_ref().is_none_or(|certificate| certificate.refresh_at() <= now);
        let late = ztunnel.held().iter().filter(|(identity, held)| *identity != gone && is_late(held)).count();
        that(late == 0, || format!("{late} are late"))
    };
    mesh.house.pass(12 * HOUR, 5 * MINUTE, settled).await;
    let said = |status: &Status| (status.code(), status.message()) == NOT_YOURS;
    assert!(refusals.iter().any(said), "{refusals:?}");
    let after = all_hold(&mesh, &ztunnel).await;
    for (identity, serial) in &after {
        assert_eq!(serial == &before[identity], identity == gone, "{identity}: all have a new one but one");
        assert_eq!(ztunnel.held()[identity].renewals, if identity == gone { 1 } else { 2 }, "{identity}");
    }

    // It comes again less and less often, and the others have nothing to do with it.
    let mut waits = Vec::new();
    while waits.len() < 5 {
        let due = ztunnel.held()[gone].due;
        mesh.house.jump(due.since(mesh.house.now()));
        let now = mesh.house.now();
        let refused = ztunnel.work().await;
        let [(identity, status)] = &refused[..] else { panic!("{refused:?}") };
        assert!(identity == gone && said(status), "{identity}: {status:?}");
        waits.push(ztunnel.held()[gone].due.since(now).as_secs());
    }
    assert!(waits.windows(2).all(|pair| pair[1] == (2 * pair[0]).min(150)), "{waits:?}");
    let line = mesh.house.refused("no pod of istio-many-1/app-23 runs on node istio-many").await;
    assert!(line.contains("\"account\":\"main/istio-many/ztunnel\""), "{line}");
    assert_eq!(all_hold(&mesh, &ztunnel).await, after, "what they have stays");

    place.cluster.pod(pod);
    mesh.knows(place.name, 601).await;
    mesh.house.jump(Duration::from_secs(150));
    let back = async || {
        let refused = ztunnel.work().await;
        that(ztunnel.held()[gone].renewals == 2, || format!("{refused:?}"))
    };
    mesh.house.eventually("who is back is answered again", back).await;
    assert_ne!(all_hold(&mesh, &ztunnel).await[gone], before[gone]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_is_nearly_right_gets_nothing() {
    let place = Place::new(Cluster::shared(), "istio-nearly", "kubernetes");
    let pod = place.pod("web");
    let mesh = Mesh::of(&[&place]).await;
    let good = place.token(&pod);

    let of_web = || Token::of(place.name, "web").bound_to(&pod);
    let for_api = place.cluster.token(&of_web());
    let line = mesh.refused(place.own(&for_api), NOBODY, "it is not for audience").await;
    assert!(line.contains("\"reason\":\"authentication\"") && line.contains("\"who\":\"stranger\""), "{line}");
    let for_other = place.cluster.token(&of_web().audience("vault"));
    mesh.refused(place.own(&for_other), NOBODY, "it is not for audience").await;
    // Whose own words are right, and whose signature is not.
    let claimed = good.split('.').nth(1).unwrap();
    let parts: Vec<&str> = for_other.split('.').collect();
    let pasted = [parts[0], claimed, parts[2]].join(".");
    mesh.refused(place.own(&pasted), NOBODY, "the token is refused").await;

    // So old that the server sees it by its own clock, and so that the API server does alone, which lets a minute pass.
    for (ago, why) in [(HOUR, "it has expired: it was good until"), (3 * MINUTE / 2, "token has expired")] {
        let past = System.now().minus(ago).unix();
        let expired = place.cluster.token_with(&good, |claims| {
            claims.insert("exp".into(), past.into());
            claims.insert("nbf".into(), (past - 600).into());
            claims.insert("iat".into(), (past - 600).into());
        });
        mesh.refused(place.own(&expired), NOBODY, why).await;
    }

    // By a key that is another issuer's, word for word.
    let key = generate_key(KeyType::P256).unwrap();
    let signed = good.rsplit_once('.').unwrap().0;
    let signature = Signer::from_pkcs8(&key.serialize_der()).unwrap().sign(signed.as_bytes()).unwrap();
    let forged = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature));
    mesh.refused(place.own(&forged), NOBODY, "the token is refused").await;

    let answer = mesh.ca.ask(place.own(&good)).await.unwrap();
    assert!(answer.len() >= 2, "the token that they were made of is good");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_ends_with_its_pod_and_with_its_service_account() {
    let place = Place::new(Cluster::shared(), "istio-gone", "kubernetes");
    let mesh = Mesh::of(&[&place]).await;
    let pod = place.pod("web");
    let of_pod = place.token(&pod);
    mesh.ca.ask(place.own(&of_pod)).await.unwrap();
    // An API server that has said yes goes on saying so for seconds.
    place.cluster.delete(&pod);
    mesh.no_longer(|| place.own(&of_pod), NOBODY).await;
    mesh.house.refused("the token is refused").await;
    // Another pod of the same name is another one.
    let pod = place.pod("web");
    mesh.refused(place.own(&of_pod), NOBODY, "the token is refused").await;

    let of_account = place.token(&pod);
    mesh.ca.ask(place.own(&of_account)).await.unwrap();
    let account =
        json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "namespace": place.name, "name": "web" } });
    place.cluster.delete(&account);
    place.cluster.service_account(place.name, "web");
    mesh.no_longer(|| place.own(&of_account), NOBODY).await;
    mesh.house.refused("the token is refused").await;
    // The pod is as it was: a token that it gets now is one of the new account.
    mesh.at_last(|| place.own(&place.token(&pod))).await;

    // A proxy whose pod has gone speaks for nobody, whatever is remembered of its token.
    let proxy = place.pod("ztunnel");
    mesh.knows(place.name, 2).await;
    let (token, web) = (place.token(&proxy), place.identity("web"));
    mesh.ca.ask(place.other(&token, &web)).await.unwrap();
    place.cluster.delete(&proxy);
    // Time stands still: the yes does not end meanwhile.
    eventually("the server knows that it has gone", async || mesh.has(place.name, 1)).await;
    let line = mesh.refused(place.other(&token, &web), NOT_YOURS, "is on no node that is known here").await;
    assert!(line.contains("\"reason\":\"denied\""), "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_speaks_for_the_pods_of_its_node_and_for_nobody_else() {
    let place = Place::new(Cluster::shared(), "istio-wish", "kubernetes");
    place.cluster.node("istio-wish-2", &[]);
    let (proxy, web) = (place.pod("ztunnel"), place.pod("web"));
    let elsewhere = place.pod_on("istio-wish-2", "db");
    let mesh = Mesh::of(&[&place]).await;
    mesh.knows(place.name, 2).await;
    mesh.knows("istio-wish-2", 1).await;
    let (of_proxy, of_web) = (place.token(&proxy), place.token(&web));
    let ask = |asked: &str| place.other(&of_proxy, asked);
    mesh.ca.ask(ask(&place.identity("web"))).await.unwrap();

    let db = place.identity("db");
    let line = mesh.refused(ask(&db), NOT_YOURS, "no pod of istio-wish/db runs on node istio-wish").await;
    assert!(line.contains("\"account\":\"main/istio-wish/ztunnel\""), "{line}");
    let nowhere = id("/ns/istio-wish/sa/nobody").to_string();
    mesh.refused(ask(&nowhere), NOT_YOURS, "no pod of istio-wish/nobody runs on node istio-wish").await;
    let foreign = "spiffe://other.org/ns/istio-wish/sa/web";
    mesh.refused(ask(foreign), NOT_YOURS, "not in the trust domain example.org").await;
    let server = id("/chancery/server").to_string();
    mesh.refused(ask(&server), NOT_YOURS, "the identity of no service account").await;

    for asked in [&place.identity("ztunnel"), &db] {
        let why = "istio-wish/web asks for the identity of another: istio.trusted_node_accounts does not name it";
        let line = mesh.refused(place.other(&of_web, asked), NOT_YOURS, why).await;
        assert!(
            line.contains("\"account\":\"main/istio-wish/web\"") && line.contains("\"reason\":\"denied\""),
            "{line}"
        );
    }
    let unbound = place.cluster.token(&Token::of(place.name, "ztunnel").audience("istio-ca"));
    mesh.refused(place.other(&unbound, &place.identity("web")), NOT_YOURS, "bound to no pod").await;

    // The pod moves here, and goes again.
    place.cluster.delete(&elsewhere);
    let here = place.pod("db");
    mesh.at_last(|| ask(&db)).await;
    place.cluster.delete(&here);
    mesh.no_longer(|| ask(&db), NOT_YOURS).await;
    mesh.ca.ask(ask(&place.identity("web"))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_right_to_review_nobody_is_known_until_it_is_back() {
    let place = Place::new(Cluster::shared(), "istio-rights", "kubernetes");
    let pod = place.pod("web");
    let mesh = Mesh::of(&[&place]).await;
    let token = place.token(&pod);
    let own = || place.own(&token);
    mesh.ca.ask(own()).await.unwrap();
    let metadata = json!({ "name": format!("{}-server", place.name) });
    let role = json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": metadata });
    place.cluster.change(&role, &json!({ "rules": rules(false) }));
    mesh.no_longer(own, NOBODY).await;
    let line = mesh.house.refused("cluster main could not be asked").await;
    assert!(line.contains("403 Forbidden") && line.contains("\"reason\":\"unavailable\""), "{line}");
    place.cluster.change(&role, &json!({ "rules": rules(true) }));
    mesh.at_last(own).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_cluster_speaks_for_its_own_and_one_that_hangs_for_nobody() {
    // Everything in them has the same names.
    let main = Place::new(Cluster::shared(), "istio-two", "kubernetes");
    let east = Place::new(Arc::new(Cluster::start()), "istio-two", "east");
    let mut tokens = Vec::new();
    for place in [&main, &east] {
        tokens.push((place.token(&place.pod("web")), place.token(&place.pod("ztunnel"))));
    }
    main.pod("db");
    let mesh = Mesh::of(&[&main, &east]).await;
    mesh.knows("istio-two", 5).await;
    let [(of_main, _), (of_east, proxy_of_east)] = &tokens[..] else { panic!("two") };
    mesh.ca.ask(main.own(of_main)).await.unwrap();
    mesh.ca.ask(east.own(of_east)).await.unwrap();
    mesh.refused(main.own(of_east), NOBODY, "the token is refused").await;
    mesh.refused(east.own(of_main), NOBODY, "the token is refused").await;
    // A node of that name in the other cluster has such a pod.
    mesh.ca.ask(east.other(proxy_of_east, &east.identity("web"))).await.unwrap();
    let db = east.other(proxy_of_east, &east.identity("db"));
    let line = mesh.refused(db, NOT_YOURS, "no pod of istio-two/db runs on node istio-two").await;
    assert!(line.contains("\"account\":\"east/istio-two/ztunnel\""), "{line}");

    mesh.house.jump(FORGOTTEN);
    east.cluster.freeze();
    let (refused, granted) = tokio::join!(
        soon("the call ends", mesh.ca.ask(east.own(of_east))),
        soon("the others go on", mesh.ca.ask(main.own(of_main)))
    );
    granted.expect("a certificate");
    let status = refused.expect_err("nobody vouches for it");
    assert_eq!((status.code(), status.message()), NOBODY);
    let silent = "cluster east could not be asked: the API server of cluster east did not answer within 5s";
    let line = mesh.house.refused(silent).await;
    assert!(line.contains("\"reason\":\"unavailable\"") && !line.contains("\"serial\""), "{line}");
    let metrics = web::get(mesh.house.server().health_address(), "/metrics").await;
    assert!(metrics.contains("chancery_refusals_total{reason=\"unavailable\"} 1"), "{metrics}");
    east.cluster.thaw();
    mesh.at_last(|| east.own(of_east)).await;
}
