//! The web listener: what it serves to whom, what it bounds, and the certificate that is replaced under it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::time::Duration;

use rustls::SupportedProtocolVersion;
use rustls::version::{TLS12, TLS13};
use spiffe::bundle::Bundle;
use tests::certificates::{self, Ca};
use tests::house::{House, trust_domain};
use tests::patience::{self, that};
use tests::web::Browser;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const NAME: &str = "oidc.example.org";

/// A server with a certificate of the web, and a browser that knows its CA.
async fn scene() -> (House, Ca, Browser) {
    let ca = certificates::root("Web");
    let mut house =
        House::empty(&[("web.https_web.listen", "127.0.0.1:0"), ("web.oidc.issuer", "https://oidc.example.org")]);
    replace(&mut house, &ca);
    house.start_server().await.unwrap();
    let port = house.server().web_addresses().https_web.unwrap().port();
    let browser = Browser::new(port, NAME, vec![ca.der().clone()]);
    (house, ca, browser)
}

fn replace(house: &mut House, ca: &Ca) {
    let (certificate, key) = certificates::web(&[NAME], ca);
    let [certificate, key] = [("web.pem", certificate), ("web.key", key)].map(|(name, pem)| house.write(name, pem));
    house.set("web.https_web.certificate", &certificate);
    house.set("web.https_web.key", &key);
}

fn status(answer: &str) -> &str {
    answer.get(9..12).unwrap_or(answer)
}

#[tokio::test]
async fn the_bundle_and_discovery_are_served_to_whoever_asks_rightly() {
    let (house, _, browser) = scene().await;
    static EACH: [&[&SupportedProtocolVersion]; 2] = [&[&TLS12], &[&TLS13]];
    for versions in EACH {
        let (_, answer) = Browser { versions, ..browser.clone() }.get("/").await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("content-type: application/json") && head.contains("cache-control: public"), "{head}");
        let served = Bundle::from_jwks(trust_domain(), body.as_bytes()).unwrap();
        let own = house.operator().await.bundle().await;
        assert_eq!(served.with_refresh_hint(None).to_jwks(), own.to_jwks());
    }
    let (_, answer) = browser.get("/.well-known/openid-configuration").await.unwrap();
    assert!(answer.contains("\"https://oidc.example.org/keys\""), "{answer}");
    let (_, answer) = browser.get("/keys").await.unwrap();
    assert_eq!(status(&answer), "200", "{answer}");
    assert!(!answer.contains("x5c"), "roots are no keys of an issuer: {answer}");

    for (request, expected) in [
        ("GET /keys HTTP/1.1\r\nHost: evil.net\r\n", "421"),
        ("GET /.well-known/openid-configuration HTTP/1.1\r\nHost: evil.net\r\n", "421"),
        ("GET / HTTP/1.1\r\nHost: evil.net\r\n", "200"),
        ("GET /other HTTP/1.1\r\nHost: oidc.example.org\r\n", "404"),
        ("POST / HTTP/1.1\r\nHost: oidc.example.org\r\nContent-Length: 1000000000\r\n", "405"),
        ("GET / HTTP/1.1\r\nHost: oidc.example.org\r\nIf-None-Match: *\r\n", "304"),
    ] {
        let (_, answer) = browser.ask(&format!("{request}Connection: close\r\n\r\n")).await.unwrap();
        assert_eq!(status(&answer), expected, "{request}: {answer}");
    }
    let long = format!("GET / HTTP/1.1\r\nHost: {NAME}\r\nX: {}\r\n\r\n", "a".repeat(100_000));
    let (_, answer) = browser.ask(&long).await.unwrap_or_default();
    assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn a_certificate_that_was_replaced_is_shown_and_half_of_one_is_not() {
    let (mut house, ca, browser) = scene().await;
    let (first, _) = browser.get("/").await.unwrap();
    house.write("web.key", "half written");
    house.jump(Duration::from_secs(61));
    assert_eq!(browser.get("/").await.unwrap().0, first);
    replace(&mut house, &ca);
    house
        .eventually("the new one is shown", async || {
            house.jump(Duration::from_secs(10));
            let (shown, _) = browser.get("/").await?;
            that(shown != first, || "the old one still".into())
        })
        .await;
}

#[tokio::test]
async fn one_address_never_holds_every_connection() {
    let (_house, _, browser) = scene().await;
    let mut held = Vec::new();
    for _ in 0..64 {
        held.push(browser.connect().await.unwrap());
    }
    browser.connect().await.unwrap_err();
    // Those that are in are served, and whoever goes leaves a place.
    let mut first = held.pop().unwrap();
    first.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = first.read_to_end(&mut answer).await;
    assert!(answer.starts_with(b"HTTP/1.1 200"));
    drop(first);
    patience::eventually("a place is free", async || browser.get("/").await).await;
}
