//! OpenSSL judges certificates of the real server: chains, the profile of DESIGN.md section 5, and mutual TLS.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say what is wrong by panicking")]

use tests::binary::{House, Output, Process, free_port, openssl};

/// `openssl` with these words, in the folder of the house.
fn run(house: &House, words: &[&str]) -> Output {
    openssl().folder(house.folder()).args(words).run()
}

/// A house whose server is below an upstream CA that OpenSSL made.
fn below_upstream() -> House {
    let mut house = House::empty("");
    let key = ["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384", "-out", "root.key"];
    run(&house, &key).succeeded();
    let certificate = [
        "req",
        "-x509",
        "-new",
        "-key",
        "root.key",
        "-out",
        "root.pem",
        "-days",
        "365",
        "-sha384",
        "-subj",
        "/O=Example/CN=Root",
        "-addext",
        "keyUsage=critical,keyCertSign,cRLSign",
    ];
    run(&house, &certificate).succeeded();
    house.write_server_config("authority.upstream = { certificate = 'root.pem', key = 'root.key' }");
    house.start_server();
    house.write_agent_config(&house.token(), "");
    house.start_agent();
    house
}

/// Two identities in folders: `fetched` from the agent, `minted` by an operator.
fn identities(house: &House) {
    house.entry("fetched", &House::of_us(), &["--dns", "fetched.example.org"]);
    house.run(&["fetch", "x509", "--write", "fetched"]).succeeded();
    let mint = ["x509", "mint", "--spiffe-id", "spiffe://example.org/minted", "--dns", "minted.example.org"];
    house.run(&[&mint[..], &["--write", "minted"][..]].concat()).succeeded();
}

#[track_caller]
fn verifies(house: &House) {
    for folder in ["fetched", "minted"] {
        for purpose in ["sslserver", "sslclient"] {
            let (bundle, svid) = (format!("{folder}/bundle.pem"), format!("{folder}/svid.pem"));
            let words = ["verify", "-x509_strict", "-purpose", purpose, "-CAfile", &bundle, "-untrusted", &svid, &svid];
            run(house, &words).succeeded().says(&[": OK"]);
        }
    }
}

#[test]
fn openssl_verifies_svids_of_a_ca_of_our_own() {
    let house = House::with_agent("", "");
    identities(&house);
    verifies(&house);
    // Another CA's bundle does not do.
    let other = House::with_server("");
    let bundle = other.run(&["bundle", "show", "--format", "pem"]).succeeded().stdout;
    house.write("other.pem", &bundle);
    let refused = run(&house, &["verify", "-CAfile", "other.pem", "-untrusted", "minted/svid.pem", "minted/svid.pem"]);
    assert!(refused.code != Some(0), "{refused}");
}

#[test]
fn openssl_verifies_svids_below_an_upstream_ca() {
    let house = below_upstream();
    identities(&house);
    let certificates = |path: &str| std::fs::read_to_string(house.path(path)).unwrap().matches("-----BEGIN").count();
    assert_eq!(
        (certificates("minted/svid.pem"), certificates("minted/bundle.pem")),
        (2, 1),
        "leaf and intermediate; root"
    );
    let root = run(&house, &["x509", "-in", "root.pem"]).succeeded().stdout;
    let bundle = run(&house, &["x509", "-in", "minted/bundle.pem"]).succeeded().stdout;
    assert_eq!(root, bundle, "the bundle is the upstream root");
    verifies(&house);
}

/// What stands below the line with `head` in the output of `openssl x509 -text`.
fn below<'a>(text: &'a str, head: &str) -> &'a str {
    let mut lines = text.lines().skip_while(|line| !line.contains(head));
    lines.next().unwrap_or_else(|| panic!("no {head}:\n{text}"));
    lines.next().unwrap_or_default().trim()
}

#[test]
fn openssl_reads_the_profile_of_svids_and_cas() {
    let house = House::with_agent("", "");
    identities(&house);
    for (folder, id) in [("fetched", "spiffe://example.org/fetched"), ("minted", "spiffe://example.org/minted")] {
        let path = format!("{folder}/svid.pem");
        let text = run(&house, &["x509", "-in", &path, "-noout", "-text", "-nameopt", "RFC2253"]).succeeded().stdout;
        assert!(text.contains(&format!("Subject: CN={folder}.example.org,O=SPIFFE\n")), "{text}");
        assert_eq!(below(&text, "X509v3 Subject Alternative Name"), format!("URI:{id}, DNS:{folder}.example.org"));
        assert_eq!(below(&text, "X509v3 Key Usage: critical"), "Digital Signature");
        assert_eq!(
            below(&text, "X509v3 Extended Key Usage"),
            "TLS Web Server Authentication, TLS Web Client Authentication"
        );
        assert_eq!(below(&text, "X509v3 Basic Constraints: critical"), "CA:FALSE");
        let (subject_key, authority_key) =
            (below(&text, "X509v3 Subject Key Identifier"), below(&text, "X509v3 Authority Key Identifier"));
        assert!(subject_key.len() >= 59 && authority_key.len() >= 59 && subject_key != authority_key, "{text}");
        let serial = below(&text, "Serial Number").replace(':', "");
        assert!(serial.len() >= 28 && serial.chars().all(|c| c.is_ascii_hexdigit()), "positive, and long: {serial}");
    }
    // Without DNS names there is no common name.
    let words = ["x509", "mint", "--spiffe-id", "spiffe://example.org/plain", "--write", "plain"];
    house.run(&words).succeeded();
    let subject = ["x509", "-in", "plain/svid.pem", "-noout", "-subject", "-nameopt", "RFC2253"];
    assert_eq!(run(&house, &subject).succeeded().stdout, "subject=O=SPIFFE\n");

    let ca = ["x509", "-in", "minted/bundle.pem", "-noout", "-text", "-nameopt", "RFC2253"];
    let text = run(&house, &ca).succeeded().stdout;
    let subject = text.lines().find_map(|line| line.trim().strip_prefix("Subject: ")).unwrap();
    assert!(subject.starts_with("serialNumber=") && subject.ends_with(",O=SPIFFE"), "{subject}");
    assert_eq!(below(&text, "X509v3 Basic Constraints: critical"), "CA:TRUE, pathlen:0");
    assert_eq!(below(&text, "X509v3 Key Usage: critical"), "Certificate Sign, CRL Sign");
    assert_eq!(below(&text, "X509v3 Subject Alternative Name"), "URI:spiffe://example.org");
    assert!(!text.contains("Name Constraints"), "{text}");
}

/// The SVID, the certificates above it, its key and bundle, as flags of `openssl s_server` and `s_client`.
fn flags(house: &House, folder: &str) -> Vec<String> {
    let chain = std::fs::read_to_string(house.path(&format!("{folder}/svid.pem"))).unwrap();
    let end = "-----END CERTIFICATE-----\n";
    let above = chain.split_once(end).unwrap().1;
    let mut flags = vec![
        "-cert".to_owned(),
        format!("{folder}/svid.pem"),
        "-key".into(),
        format!("{folder}/key.pem"),
        "-CAfile".into(),
        format!("{folder}/bundle.pem"),
        "-verify_return_error".into(),
    ];
    if !above.is_empty() {
        house.write(&format!("{folder}-above.pem"), above);
        flags.extend(["-cert_chain".into(), format!("{folder}-above.pem")]);
    }
    flags
}

/// `s_server` with one identity and `s_client` with the other: each has the other show its certificate and verifies it.
/// The server's page tells what it saw.
#[track_caller]
fn meets(house: &House, server: &str, client: &str) {
    let address = format!("127.0.0.1:{}", free_port());
    let words = ["s_server", "-accept", &address, "-naccept", "1", "-Verify", "5", "-www"];
    let serve = openssl().folder(house.folder()).args(words).args(flags(house, server));
    let mut serving = Process::start(serve, house.folder(), &format!("s_server-{server}"));
    serving.wait_for("listening", 30, |serving| serving.stdout().contains("ACCEPT").then_some(()));
    let host = format!("{server}.example.org");
    let words = ["s_client", "-connect", &address, "-verify", "5", "-verify_hostname", &host, "-ign_eof"];
    let dial = openssl().folder(house.folder()).args(words).args(flags(house, client));
    let met = dial.stdin("GET / HTTP/1.0\r\n\r\n").run();
    let (host, client) = (format!("Verified peername: {host}"), format!("{client}.example.org"));
    met.says(&["Verification: OK", &host, "Client certificate\n", &client]);
    assert!(serving.wait_for_end(30).success(), "{}", serving.tail());
}

#[test]
fn openssl_does_mutual_tls_with_svids_in_both_directions() {
    let house = House::with_agent("", "");
    identities(&house);
    meets(&house, "fetched", "minted");
    meets(&house, "minted", "fetched");
}

#[test]
fn openssl_does_mutual_tls_below_an_upstream_ca() {
    let house = below_upstream();
    identities(&house);
    meets(&house, "fetched", "minted");
    meets(&house, "minted", "fetched");
}

#[test]
fn openssl_does_not_talk_to_the_server_with_a_certificate_of_another_ca() {
    let house = House::with_server("");
    let other = House::with_server("");
    let mint = ["x509", "mint", "--spiffe-id", "spiffe://example.org/thief", "--write"];
    other.command(&mint).args([house.path("thief").display().to_string()]).run().succeeded();
    let words = [
        "s_client",
        "-connect",
        house.address(),
        "-cert",
        "thief/svid.pem",
        "-key",
        "thief/key.pem",
        "-alpn",
        "h2",
        "-ign_eof",
    ];
    let met = openssl().folder(house.folder()).args(words).run();
    let said = format!("{}{}", met.stdout, met.stderr);
    assert!(said.contains("alert"), "the server says no:\n{met}");
}
