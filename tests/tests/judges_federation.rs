//! Two trust domains, each the real server and agent: their workloads are go-spiffe's, and so is one of those who fetch
//! their bundles.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say what is wrong by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::Value;
use tests::binary::federation::{bundle, federate, refresh, served};
use tests::binary::{House, Judge, Process, free_port, jose, openssl, pyjwt, wait_for};

/// Returns when the agent of `house` is connected and has applied everything that its server knows.
#[track_caller]
fn applied(house: &House) {
    let is_connected = || {
        let list = house.run(&["agent", "list", "-o", "json"]).succeeded().json();
        (list["agents"][0]["connected"] == true).then_some(())
    };
    wait_for(60, is_connected).expect("the agent comes back");
    let id = house.entry("nobody", "unix:uid:4294967294", &[]);
    house.run(&["entry", "delete", &id, "--wait"]).succeeded();
}

/// A CA that is not tainted any more, and no trace of the old one but in the bundle: prepare, activate, taint, revoke.
/// The other side polls in between, as its schedule would have it.
#[track_caller]
fn rotate(here: &House, other: &House, calls: &Calls) {
    let authority = |words: &[&str]| here.run(&[&["authority"], words, &["-o", "json"]].concat()).succeeded().json();
    let active = |list: &Value| {
        let mut all = list["authorities"].as_array().unwrap().iter();
        let active = all.find(|one| one["kind"] == "x509" && one["state"] == "active");
        active.unwrap_or_else(|| panic!("{list}"))["id"].as_str().unwrap().to_owned()
    };
    applied(here);
    let old = active(&authority(&["list"]));
    let new = authority(&["prepare", "--wait"])["id"].as_str().unwrap().to_owned();
    refresh(other, here).succeeded();
    // Until it is with the workloads of the other side: a rotation by itself leaves them a sixth of the CA's life.
    applied(other);
    calls.go_on();
    if active(&authority(&["list"])) != new {
        let activated = here.run(&["authority", "activate", &new, "--wait"]);
        assert!(activated.code == Some(0) || active(&authority(&["list"])) == new, "{activated}");
    }
    authority(&["taint", &old, "--wait"]);
    // Refused as long as the agent is on its way back with a new SVID of its own: who is away when one waits is not waited for.
    let revoke = || (here.run(&["authority", "revoke", &old, "--wait"]).code == Some(0)).then_some(());
    wait_for(60, revoke).expect("the old CA can be revoked");
    refresh(other, here).succeeded();
}

/// go-spiffe's server in one trust domain, and its client in the other, which calls again and again.
struct Calls {
    _server: Process,
    done: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    calling: Option<std::thread::JoinHandle<Vec<String>>>,
}

impl Calls {
    fn start(server: &House, client: House) -> (Self, House) {
        let peer = client.id("caller");
        let words = ["serve", "--peer", &peer, "--accepts", "1000000", "--timeout", "0"];
        let mut serving = Process::start(Judge::Go.command(server).args(words), server.folder(), "serve");
        let address = serving.wait_for("listening", 30, |serving| {
            let line = serving.stdout().lines().next()?.to_owned();
            let line: Value = serde_json::from_str(&line).ok()?;
            line["listening"].as_str().map(str::to_owned)
        });
        let (done, stop) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let dial = {
            let (peer, endpoint) = (server.id("greeter"), client.endpoint());
            move || {
                let words = ["dial", "--address", &address, "--peer", &peer];
                tests::binary::Command::new(Judge::Go.program())
                    .env("SPIFFE_ENDPOINT_SOCKET", &endpoint)
                    .args(words)
                    .run()
            }
        };
        let calling = std::thread::spawn({
            let (done, stop) = (Arc::clone(&done), Arc::clone(&stop));
            move || {
                let mut lost = Vec::new();
                while !stop.load(Ordering::SeqCst) {
                    let output = dial();
                    done.fetch_add(1, Ordering::SeqCst);
                    if output.code != Some(0) {
                        lost.push(output.to_string());
                    }
                }
                lost
            }
        });
        (Self { _server: serving, done, stop, calling: Some(calling) }, client)
    }

    /// Returns when five more calls have been made from here on.
    #[track_caller]
    fn go_on(&self) {
        let from = self.done.load(Ordering::SeqCst);
        wait_for(60, || (self.done.load(Ordering::SeqCst) >= from + 6).then_some(())).expect("calls go on");
    }

    #[track_caller]
    fn end(mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let lost = self.calling.take().unwrap().join().unwrap();
        let all = self.done.load(Ordering::SeqCst);
        assert!(lost.is_empty(), "{} of {all} handshakes were lost:\n{}", lost.len(), lost.join("\n"));
    }
}

#[test]
fn workloads_of_two_trust_domains_meet_through_rotations_and_outages() {
    let (mut here, our_url) = served("example.org");
    let (there, their_url) = served("other.org");
    federate(&here, &there, &their_url);
    federate(&there, &here, &our_url);
    here.entry("greeter", &House::of_us(), &["--federates-with", "other.org"]);
    there.entry("caller", &House::of_us(), &["--federates-with", "example.org"]);

    let (calls, mut there) = Calls::start(&here, there);
    calls.go_on();
    rotate(&here, &there, &calls);
    calls.go_on();
    rotate(&there, &here, &calls);
    calls.go_on();

    // The endpoint of one is away: its bundle is kept, and the refusal says what happened.
    there.stop_server();
    let away = refresh(&here, &there);
    assert!(away.code != Some(0) || away.stdout.contains("\"failed\""), "{away}");
    calls.go_on();
    there.start_server();
    refresh(&here, &there).succeeded();
    here.stop_server();
    calls.go_on();
    here.start_server();
    refresh(&there, &here).succeeded();
    // And a rotation right after.
    rotate(&there, &here, &calls);
    calls.go_on();
    calls.end();
}

#[test]
fn without_federation_nobody_meets_and_its_end_ends_it() {
    let (here, _) = served("example.org");
    let (there, their_url) = served("other.org");
    federate(&here, &there, &their_url);
    here.entry("greeter", &House::of_us(), &["--federates-with", "other.org"]);
    let domains = || {
        let seen = Judge::Go.command(&here).args(["watch"]).run().succeeded().json();
        seen["bundles"].as_object().unwrap().keys().cloned().collect::<Vec<_>>()
    };
    assert_eq!(domains(), ["example.org", "other.org"]);
    let refused = here.run(&["federation", "delete", "other.org"]);
    assert_ne!(refused.code, Some(0), "an entry federates with it: {refused}");
    here.run(&["federation", "delete", "other.org", "--dissociate", "--wait"]).succeeded();
    assert_eq!(domains(), ["example.org"]);
}

/// A CA of the web and a certificate for 127.0.0.1, made by OpenSSL: `web-ca.pem`, `web.pem`, `web.key`.
fn web_certificate(house: &House) {
    let openssl = |words: &str| openssl().folder(house.folder()).args(words.split(' ')).run().succeeded();
    openssl(
        "req -x509 -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out web-ca.pem -days 30 -subj /CN=web-ca -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign",
    );
    openssl(
        "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout web.key -out web.csr -subj /CN=localhost",
    );
    house.write(
        "web.ext",
        "subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth\nbasicConstraints=critical,CA:FALSE\n",
    );
    openssl(
        "x509 -req -in web.csr -CA web-ca.pem -CAkey ca.key -CAcreateserial -days 20 -extfile web.ext -out web.pem",
    );
}

#[test]
fn go_spiffe_fetches_the_bundle_by_both_profiles() {
    let (spiffe, web) = (free_port(), free_port());
    let mut house = House::empty(&format!(
        "web.https_spiffe.listen = '127.0.0.1:{spiffe}'\n\
         web.https_web = {{ listen = '127.0.0.1:{web}', certificate = 'web.pem', key = 'web.key' }}"
    ));
    web_certificate(&house);
    house.start_server();
    house.write("known.json", &bundle(&house));
    let fetch = |url: &str, more: &[&str]| {
        let words = ["bundle", "--trust-domain", "example.org", "--url", url];
        Judge::Go.command(&house).args([&words[..], more].concat()).run()
    };
    let (spiffe, web) = (format!("https://127.0.0.1:{spiffe}/"), format!("https://localhost:{web}/"));
    let id = house.id("chancery/server");
    for seen in [
        fetch(&spiffe, &["--known", "known.json", "--id", &id]).succeeded().json(),
        fetch(&web, &["--known", "web-ca.pem"]).succeeded().json(),
    ] {
        assert_eq!((&seen["x509"], &seen["jwt"], &seen["wit"]), (&1.into(), &1.into(), &1.into()), "{seen}");
        assert!(seen["sequence"].as_u64().unwrap() > 0 && seen["refresh_hint"].as_u64().unwrap() >= 10, "{seen}");
    }
    // Who shows another ID, or a certificate of nobody known, is no bundle endpoint.
    assert_ne!(fetch(&spiffe, &["--known", "known.json", "--id", &house.id("other")]).code, Some(0));
    assert_ne!(fetch(&spiffe, &["--known", "web-ca.pem"]).code, Some(0));
    // Every version that a browser would speak.
    for version in ["-tls1_2", "-tls1_3"] {
        let address = web.trim_start_matches("https://").trim_end_matches('/').replace("localhost", "127.0.0.1");
        let words =
            ["s_client", "-connect", &address, version, "-CAfile", "web-ca.pem", "-verify_return_error", "-brief"];
        openssl().folder(house.folder()).args(words).run().succeeded();
    }
}

#[test]
fn pyjwt_and_jose_verify_a_token_from_nothing_but_the_discovery_url() {
    for algorithm in ["ES256", "ES384", "RS256"] {
        let web = free_port();
        let issuer = format!("https://localhost:{web}");
        let house = House::empty(&format!(
            "web.https_web = {{ listen = '127.0.0.1:{web}', certificate = 'web.pem', key = 'web.key' }}\n\
             web.oidc.issuer = '{issuer}'\njwt = {{ algorithm = '{algorithm}', issuer = '{issuer}' }}"
        ));
        web_certificate(&house);
        let house = house.start("");
        house.entry("web", &House::of_us(), &[]);
        let token = house.run(&["fetch", "jwt", "--audience", "cloud", "-o", "json"]).succeeded().json();
        let token = token["svids"][0]["token"].as_str().unwrap_or_else(|| panic!("{token}")).to_owned();
        let roots = house.path("web-ca.pem");
        for judge in [pyjwt, jose] {
            let claims = judge(&issuer, "cloud", &token, &roots).succeeded().json();
            assert_eq!(
                (&claims["sub"], &claims["iss"]),
                (&house.id("web").into(), &issuer.as_str().into()),
                "{claims}"
            );
            // And refuses what it should.
            assert_ne!(judge(&issuer, "other", &token, &roots).code, Some(0));
            let (rest, signature) = token.rsplit_once('.').unwrap();
            let first = if signature.starts_with('A') { "B" } else { "A" };
            let forged = format!("{rest}.{first}{}", &signature[1..]);
            assert_ne!(judge(&issuer, "cloud", &forged, &roots).code, Some(0));
        }
    }
}
