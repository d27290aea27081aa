//! pkilint judges every kind of certificate that the real server signs, by RFC 5280. What it may say is argued in
//! `tests/interop/pkilint-waivers.txt`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say what is wrong by panicking")]

use std::path::PathBuf;

use tests::binary::{House, openssl, pkilint};

/// Lints these files of the house, each of which is a chain with the leaf first.
#[track_caller]
fn clean(house: &House, files: &[&str]) {
    let files: Vec<PathBuf> = files.iter().map(|file| house.path(file)).collect();
    pkilint(&files).succeeded();
}

/// A chain and its root in one file.
fn with_root(house: &House, folder: &str) -> String {
    let read = |name: &str| std::fs::read_to_string(house.path(&format!("{folder}/{name}"))).unwrap();
    let name = format!("{folder}-whole.pem");
    house.write(&name, &(read("svid.pem") + &read("bundle.pem")));
    name
}

#[test]
fn svids_of_every_kind_of_key_with_and_without_dns_names() {
    let house = House::with_server("");
    let mut files = Vec::new();
    for kind in ["p256", "p384", "ed25519"] {
        let (plain, named) = (kind.to_owned(), format!("{kind}-dns"));
        let mint = |folder: &str, more: &[&str]| {
            let words =
                ["x509", "mint", "--spiffe-id", "spiffe://example.org/lint/1", "--key-type", kind, "--write", folder];
            house.run(&[&words, more].concat()).succeeded();
        };
        mint(&plain, &[]);
        mint(&named, &["--dns", "a.example.org", "--dns", "b.example.org"]);
        files.extend([with_root(&house, &plain), with_root(&house, &named)]);
    }
    clean(&house, &files.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn cas_of_every_kind_of_key() {
    for kind in ["p384", "ed25519"] {
        let house = House::with_server(&format!("[authority]\nkey_type = '{kind}'"));
        house.run(&["x509", "mint", "--spiffe-id", "spiffe://example.org/x", "--write", "x"]).succeeded();
        clean(&house, &[&with_root(&house, "x")]);
    }
}

#[test]
fn the_svids_of_an_agent_of_its_workload_and_of_the_server() {
    let house = House::with_agent("dns_names = ['ca.example.org']", "");
    house.entry("web", &House::of_us(), &[]);
    house.run(&["fetch", "x509", "--write", "web"]).succeeded();
    let words = ["s_client", "-connect", house.address(), "-showcerts", "-alpn", "h2"];
    let server = openssl().args(words).run();
    assert!(server.stdout.contains("-----BEGIN CERTIFICATE-----"), "{server}");
    house.write("server.pem", &server.stdout);
    clean(&house, &[&with_root(&house, "web"), "agent/agent-svid.pem", "server.pem"]);
}

#[test]
fn a_chain_below_an_upstream_ca() {
    let mut house = House::empty("");
    let openssl = |words: &[&str]| openssl().folder(house.folder()).args(words).run().succeeded();
    openssl(&["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", "root.key"]);
    openssl(&[
        "req",
        "-x509",
        "-new",
        "-key",
        "root.key",
        "-out",
        "root.pem",
        "-days",
        "365",
        "-subj",
        "/O=Example/CN=Root",
        "-addext",
        "keyUsage=critical,keyCertSign,cRLSign",
    ]);
    house.write_server_config("authority.upstream = { certificate = 'root.pem', key = 'root.key' }");
    house.start_server();
    house.run(&["x509", "mint", "--spiffe-id", "spiffe://example.org/x", "--write", "x"]).succeeded();
    let chain = std::fs::read_to_string(house.path("x/svid.pem")).unwrap();
    assert_eq!(chain.matches("-----BEGIN CERTIFICATE-----").count(), 2, "leaf and intermediate");
    clean(&house, &[&with_root(&house, "x")]);
}
