//! The door for Istio's proxies against those who want what is not theirs, or only to hold it up.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use ca_server::kube::review::Bound;
use rcgen::{BasicConstraints, CertificateParams, IsCa};
use spiffe::crypto::generate_key;
use spiffe::entry::KeyType;
use spiffe::proto::istio::IstioCertificateRequest;
use spiffe::proto::v1;
use tests::certificates;
use tests::house::{House, Settings, id};
use tests::operator::entry;
use tests::paper_cluster::PaperCluster;
use tests::patience;
use tests::ztunnel::{Ca, Certificate, Way, csr, request, with_token};
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status};

const NOBODY: (Code, &str) = (Code::Unauthenticated, "request authenticate failure");
const NOT_YOURS: (Code, &str) = (Code::Unauthenticated, "request impersonation authentication failure");

/// A server with two clusters; `web` and ztunnel run on node `one` of `main`, `db` on node `two`.
struct Mesh {
    house: House,
    main: PaperCluster,
    east: PaperCluster,
    ztunnel: Bound,
    web: Bound,
    way: Way,
    ca: Ca,
}

impl Mesh {
    async fn start(more: Settings<'_>) -> Self {
        let settings = [
            ("istio.listen", "127.0.0.1:0"),
            ("istio.clusters.kubernetes", "main"),
            ("istio.clusters.east", "east"),
            ("istio.default_cluster", "main"),
            ("istio.max_ttl", "24h"),
            ("istio.trusted_node_accounts", "[\"istio-system/ztunnel\"]"),
        ];
        let mut house = House::empty(&[&settings, more].concat());
        let (main, east) = (house.cluster("main"), house.cluster("east"));
        house.start_server().await.unwrap();
        let mounted = house.operator().await.bundle().await.to_pem();
        let way = Way::to(&house, &Arc::new(ArcSwap::from_pointee(mounted)));
        let ca = Ca::at(way.clone());
        let ztunnel = main.pod("one", "istio-system", "ztunnel");
        let web = main.pod("one", "shop", "web");
        main.pod("two", "shop", "db");
        east.pod("one", "shop", "far");
        house.told().await;
        Self { house, main, east, ztunnel, web, way, ca }
    }

    fn of_ztunnel(&self) -> String {
        self.main.token("istio-system", "ztunnel", &self.ztunnel)
    }

    fn of_web(&self) -> String {
        self.main.token("shop", "web", &self.web)
    }

    async fn refused(&self, request: Request<IstioCertificateRequest>) -> Status {
        self.ca.ask(request).await.unwrap_err()
    }

    /// Refused so, and the last line of the audit record says why.
    async fn refused_because(&self, request: Request<IstioCertificateRequest>, said: (Code, &str), why: &str) {
        let status = self.refused(request).await;
        assert_eq!((status.code(), status.message()), said, "{why}");
        self.recorded(why).await;
    }

    async fn recorded(&self, why: &str) -> String {
        self.house.refused(why).await
    }

    /// Whoever has a right is answered.
    async fn answers(&self) {
        let web = identity("shop", "web");
        self.ca.ask(asking(&self.of_ztunnel(), Some(&web))).await.unwrap();
    }
}

fn identity(namespace: &str, account: &str) -> String {
    id(&format!("/ns/{namespace}/sa/{account}")).to_string()
}

fn message(asked: Option<&str>) -> IstioCertificateRequest {
    request(csr(asked.unwrap_or("spiffe://example.org/ns/shop/sa/web")).0, 3600, asked)
}

fn asking(token: &str, asked: Option<&str>) -> Request<IstioCertificateRequest> {
    with_token(message(asked), token, "kubernetes")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_the_api_server_does_not_vouch_for_is_none() {
    let mut mesh = Mesh::start(&[]).await;
    let wrong_audience = mesh.main.token_for("shop", "web", Some(&mesh.web), "kubernetes");
    mesh.refused_because(asking(&wrong_audience, None), NOBODY, "for another audience").await;
    mesh.refused_because(asking("made.up.token", None), NOBODY, "nobody made it").await;

    let of_east = mesh.east.token_for("shop", "web", None, "istio-ca");
    mesh.refused_because(asking(&of_east, None), NOBODY, "nobody made it").await;
    let elsewhere = with_token(message(None), &mesh.of_web(), "east");
    mesh.refused_because(elsewhere, NOBODY, "nobody made it").await;
    let unknown = with_token(message(None), &mesh.of_web(), "west");
    mesh.refused_because(unknown, NOBODY, "which istio.clusters does not name").await;

    let gone = mesh.main.pod("one", "shop", "gone");
    let token = mesh.main.token("shop", "gone", &gone);
    mesh.main.delete(&gone);
    mesh.refused_because(asking(&token, None), NOBODY, "the pod is gone").await;

    let before = mesh.of_web();
    mesh.main.make_again("shop", "web");
    mesh.refused_because(asking(&before, None), NOBODY, "is another one now").await;

    let late = mesh.of_web();
    mesh.main.go_away(true);
    mesh.refused_because(asking(&late, None), NOBODY, "could not be asked").await;
    let line = mesh.recorded("could not be asked").await;
    assert!(line.contains("\"reason\":\"unavailable\""), "an outage is no attack: {line}");
    mesh.main.go_away(false);
    mesh.house.jump(Duration::from_secs(3600));
    // A connection does not last as long.
    mesh.ca = Ca::at(mesh.way.clone());
    mesh.refused_because(asking(&late, None), NOBODY, "it has expired").await;
    mesh.answers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_token_and_one_cluster_and_no_more() {
    let mesh = Mesh::start(&[]).await;
    let before = mesh.main.reviews();
    mesh.refused_because(Request::new(message(None)), NOBODY, "neither a bearer token").await;
    let value = |text: String| MetadataValue::try_from(text).unwrap();
    let mut two = asking(&mesh.of_web(), None);
    two.metadata_mut().append("authorization", value(format!("Bearer {}", mesh.of_ztunnel())));
    mesh.refused_because(two, NOBODY, "authorization is there 2 times").await;
    let mut basic = asking("x", None);
    basic.metadata_mut().insert("authorization", value("Basic dGVzdA==".into()));
    mesh.refused_because(basic, NOBODY, "no bearer token").await;
    let mut clusters = asking(&mesh.of_web(), None);
    clusters.metadata_mut().append("clusterid", value("east".into()));
    mesh.refused_because(clusters, NOBODY, "clusterid is there 2 times").await;
    mesh.refused_because(asking(&"x".repeat(9000), None), NOBODY, "has 9000 bytes").await;
    assert_eq!(mesh.main.reviews(), before, "no API server was asked about any of them");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_trusted_proxy_speaks_for_others_and_only_for_pods_of_its_node() {
    let mesh = Mesh::start(&[]).await;
    mesh.answers().await;
    let ask = |asked: &str| asking(&mesh.of_ztunnel(), Some(asked));
    let db = identity("shop", "db");
    mesh.refused_because(ask(&db), NOT_YOURS, "no pod of shop/db runs on node one").await;
    let far = identity("shop", "far");
    mesh.refused_because(ask(&far), NOT_YOURS, "no pod of shop/far runs on node one").await;
    let foreign = "spiffe://other.org/ns/shop/sa/web";
    mesh.refused_because(ask(foreign), NOT_YOURS, "not in the trust domain example.org").await;
    let server = id("/chancery/server").to_string();
    mesh.refused_because(ask(&server), NOT_YOURS, "the identity of no service account").await;
    let number = prost_types::Value { kind: Some(prost_types::value::Kind::NumberValue(7.0)) };
    let mut odd = message(Some("spiffe://example.org/ns/shop/sa/web"));
    odd.metadata.as_mut().unwrap().fields.insert(tests::ztunnel::IMPERSONATED.into(), number);
    mesh.refused_because(with_token(odd, &mesh.of_ztunnel(), "kubernetes"), NOT_YOURS, "is no text").await;

    let untrusted = asking(&mesh.of_web(), Some(&identity("istio-system", "ztunnel")));
    mesh.refused_because(untrusted, NOT_YOURS, "shop/web asks for the identity of another").await;
    let line = mesh.recorded("shop/web asks").await;
    assert!(line.contains("\"who\":\"service_account\",\"account\":\"main/shop/web\""), "{line}");
    assert!(line.contains("\"reason\":\"denied\"") && line.contains(&mesh.web.uid), "{line}");

    // One that is trusted, and is bound to no pod, or to one that nobody has told of.
    let unbound = mesh.main.token_for("istio-system", "ztunnel", None, "istio-ca");
    let web = identity("shop", "web");
    mesh.refused_because(asking(&unbound, Some(&web)), NOT_YOURS, "bound to no pod").await;
    // The trusted account of another cluster has its own nodes alone.
    let proxy = mesh.east.pod("one", "istio-system", "ztunnel");
    mesh.house.told().await;
    let token = mesh.east.token("istio-system", "ztunnel", &proxy);
    let there = with_token(message(Some(&web)), &token, "east");
    mesh.refused_because(there, NOT_YOURS, "no pod of shop/web runs on node one").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_made_an_operator_of_the_ca() {
    let mut mesh = Mesh::start(&[House::ON_DISK, &[("istio.client_certificates", "true")]].concat()).await;
    let (asked, web) = (identity("shop", "web"), id("/ns/shop/sa/web"));
    let (csr, key) = csr(&asked);
    let before = mesh.ca.ask(with_token(request(csr, 0, None), &mesh.of_web(), "kubernetes")).await.unwrap();
    let before = Certificate::new(before, &key);
    let holder = Way { shown: Some((before.chain, before.key)), ..mesh.way.clone() };
    Ca::at(holder.clone()).ask(Request::new(message(None))).await.unwrap();

    // No such mark is made where there is the door, but there may be one from before.
    let marked = v1::Entry { admin: true, ..entry(&id("/ops"), web.path()) };
    let refused = mesh.house.operator().await.try_register(marked.clone()).await.unwrap_err();
    assert!(refused.message.contains("is the ID of a service account"), "{refused:?}");
    mesh.house.stop_server().await;
    let door = mesh.house.take("istio");
    mesh.house.start_server().await.unwrap();
    let (mark, _) = mesh.house.operator().await.register(marked).await;
    mesh.house.stop_server().await;
    door.iter().for_each(|(key, value)| mesh.house.set(key, value));
    mesh.house.start_server().await.unwrap();
    mesh.ca = Ca::at(mesh.way.clone());
    let by_certificate = Ca::at(holder);

    let why = format!("{asked} is an operator's by an entry");
    mesh.refused_because(asking(&mesh.of_web(), None), NOBODY, &why).await;
    mesh.refused_because(asking(&mesh.of_ztunnel(), Some(&asked)), NOT_YOURS, &why).await;
    let status = by_certificate.ask(Request::new(message(None))).await.unwrap_err();
    assert_eq!((status.code(), status.message()), NOBODY);
    let line = mesh.recorded(&why).await;
    assert!(line.contains("\"reason\":\"denied\""), "{line}");

    mesh.house.operator().await.delete(&mark.id).await;
    patience::eventually("the mark is gone", async || {
        mesh.ca.ask(asking(&mesh.of_web(), None)).await.map_err(|status| status.to_string())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_csr_is_a_key_and_a_life_has_its_bounds() {
    let mesh = Mesh::start(&[]).await;
    let token = mesh.of_web();
    let with_csr = |csr: String, ttl| with_token(request(csr, ttl, None), &token, "kubernetes");
    let pem = |der: &[u8]| spiffe::pem::certificate(der).replace("CERTIFICATE", "CERTIFICATE REQUEST");
    let key = generate_key(KeyType::P256).unwrap();
    let broken = pem(&certificates::csr_with_broken_signature(&key));
    let good = csr(&identity("shop", "web")).0;
    for (csr, why) in [
        ("rubbish".to_owned(), "the CSR is no PEM"),
        (pem(b"rubbish"), "CSR cannot be read"),
        (format!("{good}{good}"), "more than one section"),
        (pem(&certificates::rsa_1024_csr()), "CSR has a key of kind RSA"),
        (broken, "signature of the CSR is wrong"),
    ] {
        let status = mesh.refused(with_csr(csr, 0)).await;
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().starts_with("CSR signing error (") && status.message().contains(why), "{status}");
        mesh.recorded(why).await;
    }
    for (ttl, why) in [(86_401, "at most 1d is allowed"), (i64::MAX, "at most 1d is allowed"), (1, "2s at least")] {
        let status = mesh.refused(with_csr(good.clone(), ttl)).await;
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().starts_with("CSR signing error (") && status.message().contains(why), "{status}");
    }
    // Who asks to be a CA, and somebody else, gets a leaf of his own name.
    let mut wish = CertificateParams::default();
    wish.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    wish.subject_alt_names = vec![certificates::uri("spiffe://example.org/chancery/server")];
    let wishful = wish.serialize_request(&key).unwrap().pem().unwrap();
    let certificate = Certificate::new(mesh.ca.ask(with_csr(wishful, 0)).await.unwrap(), &key);
    assert_eq!(certificate.svid.id().as_str(), identity("shop", "web"));
    let parsed = x509_parser::parse_x509_certificate(&certificate.chain[0]).unwrap().1;
    assert!(!parsed.is_ca());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_asks_without_end_or_with_too_much_is_turned_away() {
    // One address has a quarter of it.
    let mesh = Mesh::start(&[("istio.requests_burst", "40"), ("istio.requests_per_second", "4")]).await;
    let long = with_token(request("x".repeat(40_000), 0, None), &mesh.of_web(), "kubernetes");
    assert_eq!(mesh.refused(long).await.code(), Code::OutOfRange);
    let mut heavy = asking(&mesh.of_web(), None);
    heavy.metadata_mut().insert("x-heavy", MetadataValue::try_from("x".repeat(60_000)).unwrap());
    assert!(mesh.ca.ask(heavy).await.is_err());
    let mut answers = Vec::new();
    for _ in 0..30 {
        answers.push(mesh.ca.ask(asking("made.up.token", None)).await.unwrap_err());
    }
    let exhausted: Vec<_> = answers.iter().filter(|status| status.code() == Code::ResourceExhausted).collect();
    assert_eq!(answers.len() - exhausted.len(), 10);
    assert!(exhausted[0].metadata().contains_key("grpc-retry-pushback-ms"), "{:?}", exhausted[0]);
    assert_eq!(mesh.main.reviews(), 10, "the API server is spared");
    mesh.house.jump(Duration::from_secs(1));
    mesh.answers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_config_whose_clusters_nobody_can_be_asked_about_does_not_start() {
    let settings = [("istio.listen", "127.0.0.1:0"), ("istio.clusters.kubernetes", "main")];
    let mut house = House::empty(&settings);
    let error = house.start_server().await.unwrap_err().to_string();
    assert!(error.contains("names cluster main") && error.contains("add [kubernetes.main]"), "{error}");
    let validated = ca_server::app::check(&house.config().unwrap(), house.now()).unwrap_err().to_string();
    assert_eq!(validated, error, "server validate says so too");
}
