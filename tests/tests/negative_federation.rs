//! Bundle endpoints that answer badly, are somebody else, or lead elsewhere: the last good bundle stays, and the reason is
//! shown.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use rustls::version::TLS12;
use serde_json::json;
use spiffe::bundle::{Bundle, X509Authority};
use spiffe::id::TrustDomain;
use spiffe::proto::v1;
use tests::certificates::{self, Ca};
use tests::endpoint::{Answer, BundleEndpoint};
use tests::house::{House, Settings};
use tests::{Operator, patience};

const OTHER: &str = "other.org";

/// A server that knows `ca` as a CA of the web, and an endpoint of other.org with a certificate of it.
struct Scene {
    house: House,
    operator: Operator,
    endpoint: BundleEndpoint,
    ca: Ca,
}

impl Scene {
    async fn start(settings: Settings<'_>) -> Self {
        let ca = certificates::root("Web");
        let mut house = House::empty(settings);
        let roots = house.write("roots.pem", ca.pem());
        house.set("federation.web_roots", &roots);
        house.set("federation.allow_networks", "[\"127.0.0.1/32\"]");
        settings.iter().for_each(|(key, value)| house.set(key, value));
        house.start_server().await.unwrap();
        let operator = house.operator().await;
        let certificate = certificates::web(&["127.0.0.1"], &ca);
        let endpoint = BundleEndpoint::start(&certificate, Answer::Document(document(&["one"], Some(5)))).await;
        Self { house, operator, endpoint, ca }
    }

    /// With a relationship whose first poll went well.
    async fn federated(settings: Settings<'_>) -> Self {
        let scene = Self::start(settings).await;
        scene.operator.federate(OTHER, &scene.endpoint.url(), "", None).await.unwrap();
        let polled = scene.operator.refresh(OTHER).await;
        assert_eq!((polled.last_error.as_str(), polled.sequence, polled.x509_authorities), ("", 5, 1), "{polled:?}");
        scene
    }

    /// Why a poll of what answers so brings nothing; what is known stays.
    async fn refused(&self, answer: Answer) -> String {
        self.endpoint.set(answer);
        let before = self.known().await;
        let polled = self.operator.refresh(OTHER).await;
        assert!(matches!(polled.last_outcome.as_str(), "failed" | "rolled_back"), "{polled:?}");
        assert_eq!(self.known().await, before, "the last good bundle stays");
        polled.last_error
    }

    async fn known(&self) -> Option<v1::Bundle> {
        let request = v1::ShowBundleRequest { trust_domain: OTHER.into() };
        self.operator.door.clone().show_bundle(request).await.ok().map(tonic::Response::into_inner)
    }

    /// Why a poll of `url` brings nothing.
    async fn refused_at(&self, with: &str, url: &str, endpoint_id: &str, bundle: Option<&Bundle>) -> String {
        self.operator.federate(with, url, endpoint_id, bundle).await.unwrap();
        let polled = self.operator.refresh(with).await;
        assert_eq!(polled.last_outcome, "failed", "{polled:?}");
        polled.last_error
    }
}

fn roots(names: &[&str]) -> Vec<X509Authority> {
    names.iter().map(|name| X509Authority::from_der(certificates::root(name).der().clone()).unwrap()).collect()
}

fn document(names: &[&str], sequence: Option<u64>) -> String {
    let bundle = Bundle::new(TrustDomain::parse(OTHER).unwrap(), roots(names), sequence.unwrap_or(0), None).unwrap();
    let mut document: serde_json::Value = serde_json::from_str(&bundle.to_jwks()).unwrap();
    if sequence.is_none() {
        document.as_object_mut().unwrap().remove("spiffe_sequence");
    }
    document.to_string()
}

#[tokio::test]
async fn a_sequence_that_goes_back_is_refused_until_an_operator_says_otherwise() {
    let scene = Scene::federated(&[]).await;
    let error = scene.refused(Answer::Document(document(&["old"], Some(4)))).await;
    assert!(error.contains("went back from 5 to 4") && error.contains("chancery bundle set other.org"), "{error}");
    // Newer ones, and one without a number, are taken.
    scene.endpoint.set(Answer::Document(document(&["two", "three"], Some(6))));
    assert_eq!(scene.operator.refresh(OTHER).await.x509_authorities, 2);
    scene.endpoint.set(Answer::Document(document(&["four"], None)));
    let polled = scene.operator.refresh(OTHER).await;
    assert_eq!((polled.last_outcome.as_str(), polled.x509_authorities), ("updated", 1));
    // Whoever made the trust domain anew begins to count anew; the operator gives its bundle, and all is well.
    scene.endpoint.set(Answer::Document(document(&["five"], Some(9))));
    assert_eq!(scene.operator.refresh(OTHER).await.last_outcome, "updated");
    scene.refused(Answer::Document(document(&["anew"], Some(1)))).await;
    let anew = Bundle::new(TrustDomain::parse(OTHER).unwrap(), roots(&["anew"]), 0, None).unwrap();
    let request = v1::SetBundleRequest { bundle: Some((&anew).into()) };
    scene.operator.door.clone().set_bundle(request).await.unwrap();
    assert_eq!(scene.operator.refresh(OTHER).await.last_outcome, "updated");
}

#[tokio::test]
async fn a_sequence_that_jumps_to_its_end_blocks_nobody_for_ever() {
    let scene = Scene::federated(&[]).await;
    scene.endpoint.set(Answer::Document(document(&["last"], Some(u64::MAX))));
    let polled = scene.operator.refresh(OTHER).await;
    assert_eq!((polled.last_outcome.as_str(), polled.sequence), ("updated", u64::MAX));
    // Whatever comes now has a smaller number, and the status says what to do.
    let right = document(&["right"], Some(6));
    let error = scene.refused(Answer::Document(right.clone())).await;
    assert!(error.contains("went back from 18446744073709551615 to 6"), "{error}");
    assert!(error.contains("\"chancery bundle set other.org\"") && error.contains("counts from there"), "{error}");
    let bundle = Bundle::from_jwks(TrustDomain::parse(OTHER).unwrap(), right.as_bytes()).unwrap();
    let request = v1::SetBundleRequest { bundle: Some((&bundle).into()) };
    scene.operator.door.clone().set_bundle(request).await.unwrap();
    let polled = scene.operator.refresh(OTHER).await;
    assert_eq!((polled.last_outcome.as_str(), polled.last_error.as_str(), polled.sequence), ("unchanged", "", 6));
    scene.endpoint.set(Answer::Document(document(&["next"], Some(7))));
    assert_eq!(scene.operator.refresh(OTHER).await.last_outcome, "updated");
}

#[tokio::test]
async fn an_empty_bundle_is_a_revocation_and_is_taken() {
    let scene = Scene::federated(&[]).await;
    scene.endpoint.set(Answer::Document(json!({ "keys": [], "spiffe_sequence": 6 }).to_string()));
    let polled = scene.operator.refresh(OTHER).await;
    assert_eq!((polled.last_outcome.as_str(), polled.x509_authorities, polled.has_bundle), ("emptied", 0, true));
    scene.endpoint.set(Answer::Document(document(&["new"], Some(7))));
    assert_eq!(scene.operator.refresh(OTHER).await.x509_authorities, 1);
}

#[tokio::test]
async fn a_document_that_is_no_bundle_is_refused() {
    let scene = Scene::federated(&[]).await;
    for (document, said) in [
        (r#"{"keys": [], "keys": [], "spiffe_sequence": 9}"#.to_owned(), "duplicate field `keys`"),
        (r#"{"keys": [], "spiffe_sequence": 9, "spiffe_sequence": 10}"#.to_owned(), "duplicate field"),
        (r#"{"keys": [{"kty": "EC", "kty": "EC"}], "spiffe_sequence": 9}"#.to_owned(), "duplicate field `kty`"),
        (r#"{"spiffe_sequence": 9}"#.to_owned(), "has no \"keys\""),
        (r#"{"keys": [], "spiffe_sequence": -1}"#.to_owned(), "no JWK set"),
        ("<html>".to_owned(), "no JWK set"),
        (String::new(), "no JWK set"),
        (json!({ "keys": vec![json!({}); 1025] }).to_string(), "at most 1024"),
    ] {
        let error = scene.refused(Answer::Document(document)).await;
        assert!(error.contains(said), "{error}, not {said}");
    }
}

#[tokio::test]
async fn an_endpoint_that_sends_without_end_is_cut_off_at_four_mebibytes() {
    let scene = Scene::federated(&[]).await;
    let error = scene.refused(Answer::Flood).await;
    assert!(error.contains("more than 4194304 bytes"), "{error}");
    patience::eventually("the endpoint sees it", async || {
        let sent = scene.endpoint.sent();
        patience::that(sent < 64 << 20, || format!("{sent} bytes went into the network"))
    })
    .await;
}

#[tokio::test]
async fn an_endpoint_that_is_slow_is_cut_off_at_the_deadline() {
    let scene = Scene::federated(&[("federation.timeout", "2s")]).await;
    for slow in [Answer::Drip, Answer::Silence] {
        // By itself it would take a quarter of an hour, or for ever.
        let error = patience::soon("it is cut off", scene.refused(slow)).await;
        assert!(error.contains("longer than 2s"), "{error}");
    }
}

#[tokio::test]
async fn only_200_brings_a_bundle() {
    let scene = Scene::federated(&[]).await;
    for status in [201, 204, 304, 401, 404, 500] {
        let error = scene.refused(Answer::Head(status, String::new())).await;
        assert!(error.contains(&format!("status {status}")), "{error}");
    }
}

#[tokio::test]
async fn a_redirect_is_followed_for_this_once_and_to_nowhere_worse() {
    let scene = Scene::federated(&[]).await;
    let to = |location: &str| Answer::Head(302, format!("Location: {location}\r\n"));
    let port = scene.endpoint.port();
    for (location, said) in [
        ("http://127.0.0.1/".to_owned(), "must begin with https://"),
        ("https://me@127.0.0.1/".to_owned(), "a user before its host"),
        ("file:///etc/passwd".to_owned(), "must begin with https://"),
        (format!("https://127.0.0.2:{port}/"), "127.0.0.2, a loopback address"),
        ("https://[::1]/".to_owned(), "::1, a loopback address"),
        ("https://[::ffff:127.0.0.1]/".to_owned(), "IPv4-mapped"),
        ("https://169.254.169.254/latest/meta-data/".to_owned(), "a link-local address"),
        ("https://10.0.0.1/".to_owned(), "a private address"),
        ("/round/and/round".to_owned(), "more than 3 times"),
    ] {
        let error = scene.refused(to(&location)).await;
        assert!(error.contains(said), "{location}: {error}");
    }
    assert!(scene.refused(Answer::Head(302, String::new())).await.contains("does not say where"));

    // One good one: it is followed, and the URL that was configured stays.
    let certificate = certificates::web(&["127.0.0.1"], &scene.ca);
    let target = BundleEndpoint::start(&certificate, Answer::Document(document(&["elsewhere"], Some(6)))).await;
    scene.endpoint.set(Answer::Head(308, format!("Location: {}\r\n", target.url())));
    let polled = scene.operator.refresh(OTHER).await;
    assert_eq!((polled.last_outcome.as_str(), polled.sequence), ("updated", 6), "{polled:?}");
    assert_eq!(polled.relationship.unwrap().url, scene.endpoint.url());
    let (asked, before) = (scene.endpoint.asked(), target.asked());
    scene.operator.refresh(OTHER).await;
    assert_eq!((scene.endpoint.asked(), target.asked()), (asked + 1, before + 1), "permanent is taken as temporary");
}

#[tokio::test]
async fn a_network_that_may_be_polled_is_not_one_that_others_may_redirect_into() {
    let scene = Scene::federated(&[("federation.allow_networks", "[\"127.0.0.0/8\"]")]).await;
    let port = scene.endpoint.port();
    for (location, said) in [
        (
            format!("https://127.0.0.2:{port}/"),
            "the endpoint redirects to 127.0.0.2, which is at 127.0.0.2, a loopback",
        ),
        (
            format!("https://localhost:{port}/"),
            "the endpoint redirects to localhost, which is at 127.0.0.1, a loopback",
        ),
    ] {
        let error = scene.refused(Answer::Head(302, format!("Location: {location}\r\n"))).await;
        assert!(error.contains(said) && error.contains("give its URL"), "{location}: {error}");
    }
}

#[tokio::test]
async fn a_redirect_leads_to_nobody_who_would_not_be_believed_himself() {
    let scene = Scene::federated(&[]).await;
    let answer = Answer::Document(document(&["elsewhere"], Some(6)));
    let stranger = certificates::web(&["127.0.0.1"], &certificates::root("Stranger"));
    let other_name = certificates::web(&["bundles.other.org"], &scene.ca);
    for (certificate, said) in [(stranger, "UnknownIssuer"), (other_name, "NotValidForName")] {
        let target = BundleEndpoint::start(&certificate, answer.clone()).await;
        let error = scene.refused(Answer::Head(302, format!("Location: {}\r\n", target.url()))).await;
        assert!(error.contains(said) || error.contains("not valid for name"), "{error}");
        assert_eq!(target.asked(), 0);
    }
}

#[tokio::test]
async fn addresses_that_are_not_public_are_not_polled() {
    let scene = Scene::start(&[("federation.allow_networks", "[]")]).await;
    for (with, host, kind) in [
        ("a.org", "127.0.0.1", "loopback"),
        ("name.org", "localhost", "loopback"),
        ("b.org", "[::1]", "loopback"),
        ("c.org", "192.168.1.1", "private"),
        ("d.org", "100.64.0.1", "carrier-grade NAT"),
        ("e.org", "[fe80::1]", "link-local"),
        ("f.org", "0.0.0.0", "unspecified"),
        ("g.org", "[::ffff:127.0.0.1]", "IPv4-mapped"),
        ("h.org", "224.0.0.1", "multicast"),
    ] {
        let url = format!("https://{host}:{}/bundle", scene.endpoint.port());
        let error = scene.refused_at(with, &url, "", None).await;
        assert!(error.contains(&format!("a {kind} address")) && error.contains("allow_networks"), "{error}");
    }
    assert_eq!(scene.endpoint.asked(), 0, "nobody was connected to");
}

#[tokio::test]
async fn an_endpoint_of_the_web_must_have_a_certificate_for_its_host() {
    let scene = Scene::start(&[]).await;
    let stranger = certificates::root("Stranger");
    let good = Answer::Document(document(&["one"], Some(1)));
    let unknown = BundleEndpoint::start(&certificates::web(&["127.0.0.1"], &stranger), good.clone()).await;
    let error = scene.refused_at("a.org", &unknown.url(), "", None).await;
    assert!(error.contains("the endpoint is refused") && error.contains("UnknownIssuer"), "{error}");
    let other_name = BundleEndpoint::start(&certificates::web(&["bundles.other.org"], &scene.ca), good.clone()).await;
    let error = scene.refused_at("b.org", &other_name.url(), "", None).await;
    assert!(error.contains("not valid for name") || error.contains("NotValidForName"), "{error}");
    assert_eq!(unknown.asked() + other_name.asked(), 0);
    // TLS 1.2 is spoken with the web.
    let old = BundleEndpoint::speaking(&[&TLS12], &certificates::web(&["127.0.0.1"], &scene.ca), good).await;
    scene.operator.federate("c.org", &old.url(), "", None).await.unwrap();
    assert_eq!(scene.operator.refresh("c.org").await.last_outcome, "updated");
}

#[tokio::test]
async fn an_endpoint_with_an_svid_must_be_the_very_one() {
    let scene = Scene::start(&[]).await;
    let mut other = House::empty(&[("trust_domain", OTHER), ("web.https_spiffe.listen", "127.0.0.1:0")]);
    other.clock = scene.house.clock.clone();
    other.start_server().await.unwrap();
    let url = format!("https://{}/", other.server().web_addresses().https_spiffe.unwrap());
    let bundle = other.operator().await.bundle().await;
    let error = scene.refused_at(OTHER, &url, "spiffe://other.org/somebody/else", Some(&bundle)).await;
    assert!(error.contains("spiffe://other.org/chancery/server") && error.contains("somebody/else"), "{error}");
    assert!(!error.contains("OtherError"), "{error}");
    // An endpoint of a trust domain of which nothing is known.
    let error = scene.refused_at("third.org", &url, "spiffe://unknown.org/x", None).await;
    assert!(error.contains("no bundle of unknown.org"), "{error}");
    // The right name below a root that is not the one that is known.
    let forged = Bundle::new(TrustDomain::parse(OTHER).unwrap(), roots(&["Forged"]), 0, None).unwrap();
    let request = v1::UpdateRelationshipRequest {
        relationship: Some(v1::Relationship {
            trust_domain: OTHER.into(),
            url: url.clone(),
            profile: "https_spiffe".into(),
            endpoint_spiffe_id: "spiffe://other.org/chancery/server".into(),
        }),
        bundle: Some((&forged).into()),
    };
    scene.operator.door.clone().update_relationship(request.clone()).await.unwrap();
    let polled = scene.operator.refresh(OTHER).await;
    assert_eq!(polled.last_outcome, "failed", "{polled:?}");
    assert!(polled.last_error.contains("the endpoint is refused"), "{polled:?}");
    // A certificate of the web is no SVID.
    let error = scene.refused_at("web.org", &scene.endpoint.url(), "spiffe://other.org/chancery/server", None).await;
    assert!(error.contains("the endpoint is refused"), "{error}");
    // With what is right it goes.
    let right = v1::UpdateRelationshipRequest { bundle: Some((&bundle).into()), ..request };
    scene.operator.door.clone().update_relationship(right).await.unwrap();
    let polled = scene.operator.refresh(OTHER).await;
    assert_eq!((polled.last_error.as_str(), polled.x509_authorities), ("", 1), "{polled:?}");
}

#[tokio::test]
async fn what_is_no_relationship_is_refused_in_words() {
    let scene = Scene::start(&[("federation.relationships", "1")]).await;
    let refused = async |with: &str, url: &str, id: &str| {
        let status = scene.operator.federate(with, url, id, None).await.unwrap_err();
        status.message().to_owned()
    };
    assert!(refused("example.org", "https://192.0.2.1/", "").await.contains("own trust domain"));
    assert!(refused(OTHER, "http://192.0.2.1/", "").await.contains("must begin with https://"));
    assert!(refused(OTHER, "https://me:x@192.0.2.1/", "").await.contains("a user before its host"));
    assert!(refused(OTHER, "https://192.0.2.1/#a", "").await.contains("fragment"));
    assert!(refused(OTHER, "https://192.0.2.1/", "spiffe://other.org").await.contains("has no path"));
    scene.operator.federate(OTHER, &scene.endpoint.url(), "", None).await.unwrap();
    assert!(refused(OTHER, "https://192.0.2.1/", "").await.contains("there is a relationship with other.org already"));
    assert!(refused("more.org", "https://192.0.2.1/", "").await.contains("federation.relationships"));
}
