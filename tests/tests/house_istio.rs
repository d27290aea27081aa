//! Istio's proxies get their certificates here as they would at istiod: by token, by certificate, for the pods of a node.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use ca_server::kube::review::Bound;
use spiffe::bundle::Bundle;
use spiffe::time::Timestamp;
use spiffe::x509_svid::Purpose;
use tests::binary::openssl;
use tests::by_hand::{self, Caller};
use tests::house::{House, Settings, id, text};
use tests::paper_cluster::PaperCluster;
use tests::patience::that;
use tests::ztunnel::{Ca, Certificate, ISTIOD, Way, Ztunnel, csr, request, with_token};
use tests::{Operator, certificates};
use tonic::Code;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const FOUR_HOURS: i64 = 4 * 3600;

/// A house with a door for proxies, and a cluster `main` that they call `kubernetes`.
struct Mesh {
    house: House,
    operator: Operator,
    cluster: PaperCluster,
    /// The ConfigMap `istio-ca-root-cert`, as it is mounted.
    mounted: Arc<ArcSwap<String>>,
}

impl Mesh {
    async fn start(more: Settings<'_>) -> Self {
        let settings = [
            ("istio.listen", "127.0.0.1:0"),
            ("istio.clusters.kubernetes", "main"),
            ("istio.trusted_node_accounts", "[\"istio-system/ztunnel\"]"),
            ("authority.ca_ttl", "24h"),
        ];
        let mut house = House::empty(&[&settings, more].concat());
        let cluster = house.cluster("main");
        house.start_server().await.unwrap();
        let operator = house.operator().await;
        let mesh = Self { house, operator, cluster, mounted: Arc::default() };
        mesh.mount().await;
        mesh
    }

    async fn mount(&self) {
        self.mounted.store(Arc::new(self.operator.bundle().await.to_pem()));
    }

    fn ca(&self) -> Ca {
        Ca::at(self.way())
    }

    fn way(&self) -> Way {
        Way::to(&self.house, &self.mounted)
    }

    /// The token of a new pod on node `one`.
    fn sidecar(&self, namespace: &str, account: &str) -> String {
        self.cluster.token(namespace, account, &self.cluster.pod("one", namespace, account))
    }
}

fn identity(namespace: &str, account: &str) -> String {
    id(&format!("/ns/{namespace}/sa/{account}")).to_string()
}

/// A node: its ztunnel, and pods of as many service accounts.
struct OneNode {
    cluster: PaperCluster,
    ztunnel: Ztunnel,
    pod: Bound,
    token: Arc<ArcSwap<String>>,
    written: Timestamp,
}

impl OneNode {
    async fn new(mesh: &Mesh, name: &str, accounts: usize, ttl: i64) -> Self {
        let (cluster, token) = (mesh.cluster.clone(), Arc::default());
        let pod = cluster.pod(name, "istio-system", "ztunnel");
        let mut ztunnel = Ztunnel::new(&mesh.house, mesh.ca(), "kubernetes", Arc::clone(&token), ttl);
        for number in 0..accounts {
            let account = format!("app-{name}-{number}");
            cluster.pod(name, "shop", &account);
            ztunnel.want(&identity("shop", &account));
        }
        let mut node = Self { cluster, ztunnel, pod, token, written: Timestamp::from_unix(0) };
        node.write_token(mesh.house.now());
        mesh.house.told().await;
        node
    }

    /// As the kubelet does it: a new token long before the old one ends.
    fn write_token(&mut self, now: Timestamp) {
        if now.since(self.written) >= HOUR / 2 {
            self.token.store(Arc::new(self.cluster.token("istio-system", "ztunnel", &self.pod)));
            self.written = now;
        }
    }

    /// Everything that is due is there.
    async fn work(&mut self, now: Timestamp) -> Result<(), String> {
        self.write_token(now);
        let refused = self.ztunnel.work().await;
        that(refused.is_empty(), || format!("{} refused, first: {:?}", refused.len(), refused[0]))?;
        let missing = self.ztunnel.held().len() - self.certificates().count();
        that(missing == 0, || format!("{missing} have none yet"))
    }

    fn certificates(&self) -> impl Iterator<Item = &Certificate> {
        self.ztunnel.held().values().filter_map(|held| held.certificate.as_ref())
    }

    fn first(&self) -> &Certificate {
        self.certificates().next().unwrap()
    }
}

/// Whether all of them trust the next one, and the other way round.
fn all_trust(nodes: &[OneNode], now: Timestamp) -> Result<(), String> {
    for (one, other) in nodes.iter().zip(nodes.iter().cycle().skip(1)) {
        one.first().trusts(other.first(), now).map_err(|error| format!("at {now}: {error}"))?;
        other.first().trusts(one.first(), now).map_err(|error| format!("at {now}: {error}"))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn six_hundred_identities_get_certificates_and_keep_them_through_a_rotation() {
    let mesh = Mesh::start(&[]).await;
    let mut nodes = Vec::new();
    for number in 0..6 {
        nodes.push(OneNode::new(&mesh, &format!("node-{number}"), 100, FOUR_HOURS).await);
    }
    let before = mesh.operator.active().await;

    let settled = async || {
        mesh.mount().await;
        let now = mesh.house.now();
        for node in &mut nodes {
            node.work(now).await?;
        }
        all_trust(&nodes, now)
    };
    // The next CA is prepared after 12 hours, and signs after 16.
    mesh.house.pass(19 * HOUR, 5 * MINUTE, settled).await;

    let after = mesh.operator.active().await;
    assert_ne!(before.id, after.id);
    let roots = mesh.operator.bundle().await.x509_authorities().to_vec();
    let new = roots.iter().filter(|root| root.fingerprint() == after.fingerprint).cloned().collect();
    let new = Bundle::new(tests::house::trust_domain(), new, 1, None).unwrap();
    let mut held = 0;
    for certificate in nodes.iter().flat_map(OneNode::certificates) {
        assert_eq!(certificate.roots.len(), 2, "the old root and the new one");
        certificate.svid.clone().verify_as(&new, mesh.house.now(), Purpose::Server).unwrap();
        held += 1;
    }
    assert_eq!(held, 600);
    let renewals = |node: &OneNode| node.ztunnel.held().values().map(|held| held.renewals).min();
    assert!(nodes.iter().all(|node| renewals(node).unwrap() >= 9), "at half of four hours each");

    // What a proxy would have in its files, judged by OpenSSL.
    let one = nodes[3].first();
    let (root, chain) = one.elements.split_last().unwrap();
    mesh.house.write("roots.pem", root);
    mesh.house.write("chain.pem", chain.concat());
    let at = mesh.house.now().unix().to_string();
    let words =
        ["verify", "-x509_strict", "-attime", &at, "-CAfile", "roots.pem", "-untrusted", "chain.pem", "chain.pem"];
    openssl().folder(mesh.house.path("roots.pem").parent().unwrap()).args(words).run().succeeded();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_waits_until_every_proxy_has_renewed_unless_he_cannot() {
    let mesh = Mesh::start(&[]).await;
    let first = mesh.operator.active().await;
    let next = mesh.operator.prepare().await;
    for wait in [Duration::ZERO, 4 * HOUR - MINUTE] {
        mesh.house.jump(wait);
        let refused = mesh.operator.activate(&next.id).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        assert!(refused.message().contains("proxies of Istio learn of a new root when they renew"), "{refused}");
        assert_eq!(mesh.operator.active().await.id, first.id);
    }
    // By now each has a certificate, and with it the roots, of after that moment: none lives longer.
    mesh.house.jump(MINUTE);
    mesh.operator.activate(&next.id).await.unwrap();

    let other = mesh.operator.prepare().await;
    mesh.operator.activate(&other.id).await.unwrap_err();
    mesh.operator.activate_now(&other.id).await.unwrap();
    assert_eq!(mesh.operator.active().await.id, other.id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_gets_its_own_identity_and_the_life_that_it_asks_for() {
    let mesh = Mesh::start(&[("istio.ttl", "1h")]).await;
    let token = mesh.sidecar("shop", "web");
    let own = identity("shop", "web");
    for (asked, life) in [(0, HOUR), (-5, HOUR), (600, 10 * MINUTE), (FOUR_HOURS, 4 * HOUR)] {
        // Of the CSR the key counts, whatever name it has.
        let (csr, key) = csr(&identity("shop", "somebody-else"));
        let mut message = request(csr, asked, Some(""));
        let signer = prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(String::new())) };
        message.metadata.as_mut().unwrap().fields.insert("CertSigner".into(), signer);
        let elements = mesh.ca().ask(with_token(message, &token, "kubernetes")).await.unwrap();
        let certificate = Certificate::new(elements, &key);
        assert_eq!(certificate.svid.id().as_str(), own);
        let (now, lifetime) = (mesh.house.now(), certificate.svid.lifetime());
        assert_eq!(lifetime.not_after.since(now), life);
        // No longer ago than its CA, which has just been made.
        assert_eq!(now.since(lifetime.not_before), MINUTE);
        certificate.trusts(&certificate, now).unwrap();
    }
    mesh.house.jump(HOUR / 2);
    let (csr, key) = csr(&own);
    let elements = mesh.ca().ask(with_token(request(csr, 0, None), &token, "")).await.unwrap();
    let lifetime = Certificate::new(elements, &key).svid.lifetime();
    assert_eq!(mesh.house.now().since(lifetime.not_before), 2 * MINUTE, "for clocks that are behind");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn below_an_upstream_ca_each_certificate_has_its_own_element() {
    let upstream = certificates::root("upstream");
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = (folder.path().join("upstream.pem"), folder.path().join("upstream.key"));
    std::fs::write(&certificate, upstream.pem()).unwrap();
    std::fs::write(&key, upstream.key().serialize_pem()).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let (certificate, key) = (text(&certificate), text(&key));
    let settings = [("authority.upstream.certificate", &*certificate), ("authority.upstream.key", &*key)];
    let mesh = Mesh::start(&settings).await;
    let token = mesh.sidecar("shop", "web");
    let (csr, key) = csr(&identity("shop", "web"));
    let elements = mesh.ca().ask(with_token(request(csr, 0, None), &token, "kubernetes")).await.unwrap();
    assert_eq!(elements.len(), 3, "the certificate, our CA, and the root");
    let certificate = Certificate::new(elements, &key);
    certificate.trusts(&certificate, mesh.house.now()).unwrap();
    assert_eq!((certificate.chain.len(), certificate.roots.len()), (2, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_is_known_by_its_name_and_serves_nothing_else_there() {
    let mesh = Mesh::start(&[("istio.dns_names", "[\"istiod.istio-system.svc\", \"ca.mesh\"]")]).await;
    let token = mesh.sidecar("shop", "web");
    let ask = async |name: &'static str| {
        let (csr, _) = csr(&identity("shop", "web"));
        let ca = Ca::at(Way { name, ..mesh.way() });
        ca.ask(with_token(request(csr, 0, None), &token, "kubernetes")).await
    };
    assert!(ask(ISTIOD).await.is_ok() && ask("ca.mesh").await.is_ok());
    let wrong = ask("istiod.other.svc").await.unwrap_err();
    assert!(format!("{wrong:?}").contains("NotValidForName"), "{wrong:?}");

    // Agents do not attest at the proxies' port, and proxies get nothing at the agents'.
    let at_agents_port = by_hand::stranger_channel(&mesh.house).await;
    let (csr, _) = csr(&identity("shop", "web"));
    let message = with_token(request(csr, 0, None), &token, "kubernetes");
    let refused =
        spiffe::proto::istio::istio_certificate_service_client::IstioCertificateServiceClient::new(at_agents_port)
            .create_certificate(message)
            .await
            .unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_is_outlived_and_asked_about_less_and_less_often() {
    let mut mesh = Mesh::start(House::ON_DISK).await;
    let mut node = OneNode::new(&mesh, "one", 2, FOUR_HOURS).await;
    let now = mesh.house.now();
    node.work(now).await.unwrap();
    mesh.house.stop_server().await;
    mesh.house.jump(3 * HOUR);
    let mut waits = Vec::new();
    for _ in 0..10 {
        let now = mesh.house.now();
        node.write_token(now);
        let refused = node.ztunnel.work().await;
        assert_eq!(refused.len(), 2);
        let due = node.ztunnel.held().values().next().unwrap().due;
        waits.push(due.since(now).as_secs());
        mesh.house.jump(due.since(now));
        assert!(node.certificates().all(|held| held.svid.lifetime().contains(mesh.house.now())), "what it has stays");
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 150, 150]);
    mesh.house.start_server().await.unwrap();
    let now = mesh.house.now();
    node.work(now).await.unwrap();
    assert!(node.ztunnel.held().values().all(|held| held.renewals == 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_comes_and_goes_takes_its_identity_along() {
    let mesh = Mesh::start(&[]).await;
    let mut node = OneNode::new(&mesh, "one", 1, FOUR_HOURS).await;
    let job = identity("shop", "job");
    node.ztunnel.want(&job);
    let now = mesh.house.now();
    assert!(node.work(now).await.unwrap_err().contains("request impersonation authentication failure"));
    let pod = mesh.cluster.pod("one", "shop", "job");
    mesh.house.told().await;
    mesh.house.jump(Duration::from_secs(1));
    node.work(mesh.house.now()).await.unwrap();
    assert!(node.ztunnel.held()[&job].certificate.is_some());
    mesh.cluster.delete(&pod);
    mesh.house.told().await;
    mesh.house.jump(2 * HOUR);
    // The connection has come to its end meanwhile, and with it perhaps the first calls.
    let refused = async || {
        let refused = node.work(mesh.house.now()).await.err().unwrap_or_default();
        let is_last = refused.starts_with("1 refused") && refused.contains("impersonation");
        that(is_last && refused.contains("sa/job"), || refused)
    };
    mesh.house.eventually("only the identity of the pod that has gone is refused", refused).await;
    assert_eq!(node.ztunnel.held()[&identity("shop", "app-one-0")].renewals, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_of_a_service_account_is_renewed_by_itself_only_where_the_config_lets_it() {
    for allowed in ["true", "false"] {
        let mesh = Mesh::start(&[("istio.client_certificates", allowed)]).await;
        let token = mesh.sidecar("shop", "web");
        let own = identity("shop", "web");
        let (first, key) = csr(&own);
        let elements = mesh.ca().ask(with_token(request(first, 0, None), &token, "kubernetes")).await.unwrap();
        let certificate = Certificate::new(elements, &key);
        let shown = (certificate.chain.clone(), certificate.key.clone());
        let ca = Ca::at(Way { shown: Some(shown), ..mesh.way() });
        let ask = async |asked: Option<&str>| {
            let (csr, key) = csr(&own);
            let elements = ca.ask(tonic::Request::new(request(csr, 0, asked))).await?;
            Ok::<_, tonic::Status>(Certificate::new(elements, &key))
        };
        if allowed == "false" {
            assert_eq!(ask(None).await.unwrap_err().message(), "request authenticate failure");
            continue;
        }
        assert_eq!(ask(None).await.unwrap().svid.id().as_str(), own);
        // It speaks for itself alone.
        let other = ask(Some(&identity("shop", "db"))).await.unwrap_err();
        assert_eq!(other.message(), "request impersonation authentication failure");

        // Whoever else has an SVID is nobody here.
        let agent = Caller::attest(&mesh.house).await;
        let (csr, _) = csr(&own);
        let shown = (agent.svid.chain().to_vec(), agent.key.clone());
        let ca = Ca::at(Way { shown: Some(shown), ..mesh.way() });
        let refused = ca.ask(tonic::Request::new(request(csr, 0, None))).await.unwrap_err();
        assert_eq!((refused.code(), refused.message()), (Code::Unauthenticated, "request authenticate failure"));

        // The end of the certificate is the end of it, on an open connection too.
        mesh.house.jump(4 * HOUR + Duration::from_secs(1));
        assert!(ask(None).await.is_err());
    }
}
