//! `chancery` taken through every verb, on a real server and a real agent: what an operator types and reads.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say what is wrong by panicking")]

use nix::sys::signal::Signal;
use tests::binary::{Command, House, Process, chancery, wait_for};

/// `in 29m`, `in 47h`, `in 30d`, `now`, `3s ago`.
fn is_human_time(text: &str) -> bool {
    let length = text.strip_prefix("in ").or_else(|| text.strip_suffix(" ago"));
    let is_length = |length: &str| {
        let number = length.trim_end_matches(['s', 'm', 'h', 'd']);
        number.len() + 1 == length.len() && number.chars().all(|c| c.is_ascii_digit())
    };
    text == "now" || length.is_some_and(is_length)
}

#[test]
fn server_run_and_validate() {
    let mut house = House::with_server("[svid]\nttl = '30m'");
    let valid = house.run(&["server", "validate", "--config", "server.toml"]).succeeded();
    assert!(valid.stdout.starts_with("the config is right\n"), "{valid}");
    assert_eq!(valid.property("trust domain"), "example.org");
    let lifetimes = |ttl| format!("CA 30d, X.509-SVIDs {ttl}, JWT-SVIDs 5m, WIT-SVIDs 1h");
    assert_eq!(valid.property("lifetimes"), lifetimes("30m"));
    assert_eq!(valid.property("bundle"), "served nowhere ([web.https_web], [web.https_spiffe])");
    assert_eq!(valid.property("operators"), house.path("admin.sock").display().to_string());
    let valid = house.run(&["server", "validate", "--config", "server.toml", "-o", "json"]).succeeded().json();
    assert_eq!((valid["trust_domain"].as_str(), valid["svid_ttl"].as_str()), (Some("example.org"), Some("30m")));

    // The environment is laid over the file, flags over both.
    let over = house.command(&["server", "validate", "--config", "server.toml", "--trust-domain", "other.org"]);
    let over = over.env("CHANCERY_SERVER__SVID__TTL", "10m").run().succeeded();
    assert_eq!(over.property("trust domain"), "other.org");
    assert_eq!(over.property("lifetimes"), lifetimes("10m"));

    // What others may reach, and whom this server reaches.
    let served = "trust_domain = 'example.org'\nweb.https_spiffe.listen = '127.0.0.1:8446'\n\
                  federation.allow_networks = ['10.0.0.0/8', 'fd00::/8']\njwt.ttl = '2m'\n\
                  [[federation.relationship]]\ntrust_domain = 'other.org'\nurl = 'https://other.org/'\nprofile = 'https_web'";
    house.write("served.toml", served);
    let valid = house.run(&["server", "validate", "--config", "served.toml"]).succeeded();
    assert_eq!(valid.property("bundle"), "https_spiffe on 127.0.0.1:8446 (svid)");
    assert_eq!(
        (valid.property("federation"), valid.property("polled")),
        ("other.org", "public addresses, 10.0.0.0/8, fd00::/8")
    );
    assert!(valid.property("lifetimes").contains("JWT-SVIDs 2m"), "{valid}");
    let valid = house.run(&["server", "validate", "--config", "served.toml", "-o", "json"]).succeeded().json();
    assert_eq!((valid["web"][0]["profile"].as_str(), valid["oidc_issuer"].as_str()), (Some("https_spiffe"), None));

    let istio = "trust_domain = 'example.org'\n[istio]\nlisten = '127.0.0.1:15012'\nclusters = { Kubernetes = 'main' }\n\
                 trusted_node_accounts = ['istio-system:ztunnel']\n[kubernetes.main]\nkubeconfig = 'kubeconfig'\n\
                 [kubernetes.main.publish]\nistio = true";
    house.write("istio.toml", istio);
    let path = house.write_kubeconfig("token: abc");
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let valid = house.run(&["server", "validate", "--config", "istio.toml"]).succeeded();
    assert_eq!(valid.property("istio"), "listens on 127.0.0.1:15012 for proxies of Kubernetes = main");
    let valid = valid.says(&["known as istiod.istio-system.svc", "of their node ask istio-system/ztunnel"]);
    let clusters = "main (publishes ConfigMap chancery-bundle and ConfigMap istio-ca-root-cert)";
    assert_eq!(valid.property("clusters"), clusters);
    assert!(valid.stderr.contains("kubeconfig holds a secret, and others may read it: run chmod o-r"), "{valid}");
    let valid = house.run(&["server", "validate", "--config", "istio.toml", "-o", "json"]).succeeded().json();
    assert_eq!(valid["istio"]["clusters"]["Kubernetes"], "main", "{valid}");
    house.write_kubeconfig("tokenFile: /nonexistent/token");
    house.run(&["server", "validate", "--config", "istio.toml"]).failed(1, &["tokenFile", "/nonexistent/token"]);

    // The files that it names are read.
    let upstream = "authority.upstream = { certificate = '/nonexistent/ca.pem', key = '/nonexistent/ca.key' }";
    house.write("bad.toml", &format!("trust_domain = 'example.org'\ndata_dir = 'x'\n{upstream}"));
    house
        .run(&["server", "validate", "--config", "bad.toml"])
        .failed(1, &["authority.upstream.certificate: /nonexistent/ca.pem: ", "No such file or directory"]);
    let web = "web.https_web = { listen = '127.0.0.1:0', certificate = '/nonexistent/web.pem', key = '/nonexistent/web.key' }";
    house.write("bad.toml", &format!("trust_domain = 'example.org'\ndata_dir = 'x'\n{web}"));
    house.run(&["server", "validate", "--config", "bad.toml"]).failed(1, &["/nonexistent/web.pem"]);
    house.run(&["server", "validate", "--config", "none.toml"]).failed(1, &["none.toml cannot be read"]);

    assert!(house.server().log().contains("the server answers"), "{}", house.server().log());
    assert!(!house.server().log().contains('\u{1b}'), "no colours in a file");
    house.server().signal(Signal::SIGTERM);
    assert!(house.server().wait_for_end(20).success());
    assert!(house.server().log().contains("the server has stopped"));
}

#[test]
fn the_command_that_token_create_prints_runs_as_it_is_printed() {
    let house = House::with_server("");
    let made = house.run(&["token", "create", "--ttl", "5m"]).succeeded();
    assert!(made.property("token").ends_with("(shown only now)"), "{made}");
    assert!(
        made.property("expires").starts_with("in 4m (") || made.property("expires").starts_with("in 5m ("),
        "{made}"
    );
    let (_, printed) = made.stdout.split_once("Run this on the node:\n\n").expect("a command");
    let path = format!("{}:{}", chancery().parent().unwrap().display(), std::env::var("PATH").unwrap());
    let node = house
        .program("sh")
        .args(["-c", &format!("exec {}", printed.trim())])
        .env("PATH", path)
        .env("CHANCERY_AGENT__DATA_DIR", house.path("agent"))
        .env("CHANCERY_AGENT__WORKLOAD_SOCKET", house.path("agent.sock"));
    let mut node = Process::start(node, house.folder(), "node");
    node.wait_for_log("agent is up", 60);
    let agents = house.run(&["agent", "list"]).succeeded();
    let rows = agents.table(&["ID", "STATE", "ATTESTED", "EXPIRES", "REVISION"]);
    assert_eq!(rows.len(), 1, "{agents}");
    assert!(rows[0][0].starts_with("spiffe://example.org/chancery/agent/join_token/"), "{agents}");
    assert!(is_human_time(&rows[0][2]) && is_human_time(&rows[0][3]), "{agents}");
    house.run(&["token", "list"]).succeeded().says(&["no tokens: create one with `chancery token create`"]);
    node.signal(Signal::SIGTERM);
    assert!(node.wait_for_end(20).success());
}

#[test]
fn tokens() {
    let house = House::with_server("");
    house.run(&["token", "create", "--ttl", "0s"]).failed(2, &["0s is no time at all"]);
    let made = house.run(&["token", "create", "--ttl", "1h", "--alias", House::NODE, "-o", "json"]).succeeded().json();
    let (token, id) = (made["token"].as_str().unwrap(), made["id"].as_str().unwrap());
    assert!(token.starts_with("chy-"), "{made}");
    let command = made["command"].as_str().unwrap();
    assert!(command.contains(token) && command.contains(house.address()) && command.contains("sha256:"), "{made}");
    assert!(made["revision"].as_u64().unwrap() > 0 && made["expires_at"].as_str().unwrap().ends_with('Z'), "{made}");

    let list = house.run(&["token", "list"]).succeeded();
    assert!(!list.stdout.contains(token), "a list never shows the token itself:\n{list}");
    let rows = list.table(&["ID", "ALIAS", "CREATED", "EXPIRES"]);
    assert_eq!((rows[0][0].as_str(), rows[0][1].as_str()), (id, House::NODE));
    assert!(is_human_time(&rows[0][2]) && ["in 59m", "in 60m"].contains(&rows[0][3].as_str()), "{list}");
    assert_eq!(house.run(&["token", "list", "-o", "json"]).succeeded().json()["tokens"][0]["id"], id);

    house.run(&["token", "revoke", id]).succeeded().says(&[&format!("revoked {id}")]);
    house.run(&["token", "revoke", id]).failed(1, &["not found: "]);
    house.run(&["token", "create", "--ttl", "30d"]).failed(1, &["not accepted: ", "7d"]);
    house.run(&["token", "create", "--ttl", "soon"]).failed(2, &["--ttl"]);
}

#[test]
fn entries_by_flags() {
    let house = House::with_agent("", "");
    let create = |id: &str, more: &[&str]| {
        let words = ["entry", "create", "--spiffe-id", id, "--parent", House::NODE, "--selector", "unix:uid:77"];
        house.run(&[&words, more].concat())
    };
    let made = create(
        "spiffe://example.org/web",
        &[
            "--id",
            "web-1",
            "--x509-ttl",
            "10m",
            "--dns",
            "web.example.org",
            "--hint",
            "front",
            "--expires",
            "2h",
            "--wait",
        ],
    );
    made.succeeded()
        .says(&["created web-1  spiffe://example.org/web\n", "applied by 1 agent, all that are connected\n"]);
    create("spiffe://example.org/admin", &["--id", "boss", "--admin", "--key-type", "p384", "--wait=5s"]).succeeded();
    create("spiffe://example.org/web", &[])
        .failed(1, &["1 entry was not created"])
        .says(&["refused 1 (spiffe://example.org/web): already exists: ", "web-1"]);
    create("spiffe://other.org/web", &[]).failed(1, &[]).says(&["refused 1 (spiffe://other.org/web): not accepted: "]);
    create("spiffe://example.org/w%41", &[]).failed(2, &["--spiffe-id"]);
    house.run(&["entry", "create", "--spiffe-id", "spiffe://example.org/x"]).failed(2, &["--parent", "--selector"]);

    let list = house.run(&["entry", "list"]).succeeded();
    let rows = list.table(&["ID", "SPIFFE ID", "SELECTORS", "PARENT", "TTL", "MARKS"]);
    let web = rows.iter().find(|row| row[0] == "web-1").expect("the entry is listed");
    assert_eq!(web[1..4], ["spiffe://example.org/web", "unix:uid:77", House::NODE], "{list}");
    assert_eq!(web[4], "10m", "{list}");
    assert!(web[5].starts_with("expires in ") && web[5].ends_with(", hint \"front\""), "{list}");
    let admins = house.run(&["entry", "list", "--admin"]).succeeded();
    assert!(admins.stdout.contains("boss") && !admins.stdout.contains("web-1"), "{admins}");
    // The alias of the node is an entry, too.
    let count = |words: &[&str]| house.run(&[&["entry", "count"], words].concat()).succeeded().stdout.trim().to_owned();
    assert_eq!(count(&["--selector", "unix:uid:77"]), "2");
    assert_eq!(count(&["--spiffe-id", "spiffe://example.org/web"]), "1");
    assert_eq!(house.run(&["entry", "count", "--hint", "front", "-o", "json"]).succeeded().json()["count"], 1);

    let shown = house.run(&["entry", "show", "web-1"]).succeeded();
    assert_eq!(shown.property("dns names"), "web.example.org");
    assert!(shown.property("expires").starts_with("in "), "{shown}");
    assert!(shown.property("created").contains(" ago (") || shown.property("created").starts_with("now ("), "{shown}");
    house.run(&["entry", "show", "none"]).failed(1, &["not found: "]);

    let updated = house.run(&["entry", "update", "web-1", "--x509-ttl", "20m", "--expires", "never", "--wait"]);
    updated.succeeded().says(&["updated web-1  spiffe://example.org/web\napplied by 1 agent"]);
    let entry = house.run(&["entry", "show", "web-1", "-o", "json"]).succeeded().json();
    assert_eq!((entry["x509_ttl"].as_str(), entry["hint"].as_str()), (Some("20m"), Some("front")));
    assert!(entry["expires_at"].is_null(), "{entry}");
    house.run(&["entry", "update", "web-1", "--ttl", "20m", "--wait"]).succeeded().says(&["unchanged web-1  "]);
    house.run(&["entry", "delete", "web-1", "--wait", "5s"]).failed(2, &["write --wait=5s"]);
    house.run(&["entry", "update", "web-1"]).failed(2, &["no flag says what to change of entry web-1"]);

    let deleted =
        house.run(&["entry", "delete", "web-1", "none", "boss"]).failed(1, &["1 of 3 entries were not deleted"]);
    deleted.says(&["deleted web-1", "refused 2 (none): not found: ", "deleted boss"]);
    assert_eq!(count(&["--selector", "unix:uid:77"]), "0");
}

#[test]
fn entries_from_files() {
    let house = House::with_server("");
    house.write(
        "entries.yaml",
        "- id: one\n  spiffe_id: spiffe://example.org/one\n  parent: spiffe://example.org/node/one\n  selectors: ['unix:uid:1']\n\
         - id: two\n  spiffe_id: spiffe://example.org/two\n  parent: spiffe://example.org/node/one\n  selectors: ['unix:uid:2']\n  \
         x509_ttl: 5m\n",
    );
    house.run(&["entry", "create", "--file", "entries.yaml"]).succeeded().says(&["created one", "created two"]);
    let listed = house.run(&["entry", "list", "-o", "json"]).succeeded();
    assert_eq!(listed.json()["entries"].as_array().unwrap().len(), 2, "{listed}");

    // What `list` prints, `update` and `create` read: from a file, and from standard input.
    let shorter = listed.stdout.replace("\"5m\"", "\"6m\"");
    house.write("entries.json", &shorter);
    house.run(&["entry", "update", "--file", "entries.json"]).succeeded().says(&["updated one", "updated two"]);
    assert_eq!(house.run(&["entry", "show", "two"]).succeeded().property("x509 ttl"), "6m");
    house.run(&["entry", "delete", "one", "two"]).succeeded();
    let fed = house.command(&["entry", "create", "--file", "-", "-o", "json"]).stdin(&shorter).run().succeeded();
    assert_eq!(fed.json()["results"][1]["entry"]["spiffe_id"], "spiffe://example.org/two", "{fed}");

    let mixed =
        house.command(&["entry", "create", "--file", "-", "-o", "json"]).stdin(&shorter.replace("/two", "/three"));
    let mixed = mixed.run().failed(1, &["2 of 2 entries were not created"]);
    assert_eq!(mixed.json()["results"][0]["refused"]["code"], "already_exists", "{mixed}");
    house.write("bad.yaml", "- spiffe_id: spiffe://example.org/x\n  selector: ['unix:uid:1']\n");
    house.run(&["entry", "create", "--file", "bad.yaml"]).failed(1, &["bad.yaml: ", "unknown field `selector`"]);
    house.run(&["entry", "create", "--file", "none.yaml"]).failed(1, &["none.yaml cannot be read"]);
}

#[test]
fn bundles() {
    let house = House::with_server("");
    let own = house.run(&["bundle", "show"]).succeeded();
    assert_eq!(own.property("trust domain"), "example.org");
    assert!(
        own.stdout.contains("FINGERPRINT")
            && (own.stdout.contains("in 29d") || own.stdout.contains("in 30d"))
            && own.stdout.contains("O=SPIFFE"),
        "{own}"
    );
    let pem = house.run(&["bundle", "show", "--format", "pem"]).succeeded();
    assert_eq!(pem.stdout.matches("-----BEGIN CERTIFICATE-----").count(), 1, "{pem}");
    let jwks = house.run(&["bundle", "show", "--format", "spiffe"]).succeeded();
    assert_eq!(jwks.json()["keys"][0]["use"], "x509-svid", "{jwks}");
    assert!(jwks.json()["spiffe_sequence"].is_u64(), "{jwks}");

    house.write("theirs.pem", &pem.stdout);
    house.write("theirs.json", &jwks.stdout);
    let set = |domain: &str, format: &str, file: &str| {
        house.run(&["bundle", "set", domain, "--format", format, "--file", file])
    };
    set("one.org", "pem", "theirs.pem").succeeded().says(&["one.org is trusted by 1 root, no JWT key, no WIT key\n"]);
    set("two.org", "spiffe", "theirs.json").succeeded().says(&["two.org is trusted by 1 root, 1 JWT key, 1 WIT key\n"]);
    set("two.org", "pem", "theirs.json").failed(1, &["theirs.json: "]);
    set("example.org", "pem", "theirs.pem").failed(1, &[]);
    let list = house.run(&["bundle", "list"]).succeeded();
    let rows = list.table(&["TRUST DOMAIN", "ROOTS", "FIRST EXPIRES", "JWT KEYS", "WIT KEYS", "SEQUENCE"]);
    assert_eq!(rows.iter().map(|row| row[0].as_str()).collect::<Vec<_>>(), ["example.org", "one.org", "two.org"]);
    assert_eq!(house.run(&["bundle", "show", "one.org", "--format", "pem"]).succeeded().stdout, pem.stdout);
    assert_eq!(
        house.run(&["bundle", "show", "two.org", "-o", "json"]).succeeded().json()["x509_authorities"][0]["pem"],
        pem.stdout
    );

    let entry = ["--parent", House::NODE, "--selector", "unix:uid:1", "--federates-with", "one.org", "--id", "fed"];
    house.run(&[&["entry", "create", "--spiffe-id", "spiffe://example.org/x"], &entry[..]].concat()).succeeded();
    house.run(&["entry", "update", "fed", "--no-federates-with", "--federates-with", "one.org"]).failed(2, &[]);
    house.run(&["entry", "update", "fed", "--no-federates-with"]).succeeded();
    assert!(!house.run(&["entry", "show", "fed"]).succeeded().stdout.contains("one.org"));
    house.run(&["entry", "update", "fed", "--federates-with", "one.org"]).succeeded();
    house.run(&["bundle", "delete", "one.org"]).failed(1, &["not possible as things are: ", "--dissociate"]);
    house.run(&["bundle", "delete", "one.org", "--dissociate"]).succeeded().says(&["one.org is trusted no more\n"]);
    assert!(!house.run(&["entry", "show", "fed"]).succeeded().stdout.contains("one.org"));
    house.run(&["bundle", "delete", "two.org"]).succeeded();
    house.run(&["bundle", "delete", "two.org"]).failed(1, &["not found: "]);
}

#[test]
fn authorities() {
    let house = House::with_agent("", "");
    const HEADS: [&str; 7] = ["ID", "KIND", "STATE", "EXPIRES", "NEXT", "OWNER", "FINGERPRINT OR KID"];
    let list = || house.run(&["authority", "list"]).succeeded().table(&HEADS);
    let old = list()[0][0].clone();
    assert_eq!(list()[0][1..3], ["x509", "active"]);
    assert!(["in 29d", "in 30d"].contains(&list()[0][3].as_str()), "{:?}", list());
    assert_eq!(list()[0][5], "main");
    let kinds: Vec<_> = list().iter().map(|row| row[1..3].join(" ")).collect();
    assert_eq!(kinds, ["x509 active", "jwt active", "wit active"]);

    let prepared = house.run(&["authority", "prepare", "--wait", "-o", "json"]).succeeded().json();
    let new = prepared["id"].as_str().unwrap().to_owned();
    assert_eq!(prepared["state"], "prepared", "{prepared}");
    assert_eq!(prepared["applied"], serde_json::json!({ "connected": 1, "behind": [] }));
    house.run(&["authority", "activate", "none"]).failed(1, &["chancery authority list"]);
    house.run(&["authority", "taint", &old]).failed(1, &["not possible as things are: ", "is active"]);
    // An agent that has acknowledged lets it become active by itself: then there is nothing left to order.
    let state = |id: &str| {
        let rows = list();
        rows.iter().find(|row| row[0] == *id).map(|row| row[2].clone()).unwrap_or_default()
    };
    if state(&new) == "prepared" {
        house.run(&["authority", "activate", &new, "--wait"]).succeeded().says(&[&format!("activated {new}")]);
    }
    assert_eq!((state(&new), state(&old)), ("active".into(), "retired".into()));
    house
        .run(&["authority", "taint", &old, "--wait"])
        .succeeded()
        .says(&[&format!("tainted {old}\napplied by 1 agent")]);
    assert_eq!(state(&old), "retired, tainted");
    house.run(&["bundle", "show"]).succeeded().says(&["tainted"]);
    house.run(&["authority", "revoke", &old]).succeeded().says(&[&format!("revoked {old}")]);
    assert_eq!(state(&old), "");
    house.run(&["authority", "revoke", &new]).failed(1, &["is active: prepare and activate another first"]);

    let prepared = house.run(&["authority", "prepare", "--kind", "jwt", "--wait", "-o", "json"]).succeeded().json();
    assert_eq!((&prepared["kind"], &prepared["upstream"]), (&"jwt".into(), &false.into()));
    assert_eq!(prepared["fingerprint"].as_str().unwrap().len(), 43, "the thumbprint of the key");
    house.run(&["authority", "prepare", "--kind", "ssh"]).failed(2, &["x509, jwt, wit"]);
}

#[test]
fn jwt_mint() {
    let house = House::with_server("[jwt]\nissuer = 'https://oidc.example.org'");
    let words = ["jwt", "mint", "--spiffe-id", "spiffe://example.org/backup", "--audience", "reports"];
    let screen = house.run(&words).succeeded();
    assert_eq!(screen.stdout.trim_end().split('.').count(), 3, "the token alone, for a variable or a header");
    let json = house.run(&[&words[..], &["--audience", "billing", "--ttl", "10m", "-o", "json"][..]].concat());
    let json = json.succeeded().json();
    assert_eq!(json["spiffe_id"], "spiffe://example.org/backup");
    assert_eq!(json["audience"], serde_json::json!(["billing", "reports"]));
    assert!(json["expires_at"].is_string() && json["token"].is_string(), "{json}");
    house.run(&words[..4]).failed(2, &["--audience"]);
    house
        .run(&["jwt", "mint", "--audience", "a", "--spiffe-id", "spiffe://other.org/x"])
        .failed(1, &["not in the trust domain example.org"]);
    house
        .run(&[&words[..], &["--ttl", "2d"][..]].concat())
        .failed(1, &["not accepted: ", "2d", "at most 1h", "jwt.max_ttl"]);
}

#[test]
fn x509_mint() {
    let house = House::with_server("");
    let words = ["x509", "mint", "--spiffe-id", "spiffe://example.org/backup", "--dns", "backup.example.org"];
    let screen = house.run(&words).succeeded();
    assert!(screen.stdout.contains("-----BEGIN PRIVATE KEY-----"), "it is to be read once, and piped on");
    assert_eq!(screen.stdout.matches("-----BEGIN CERTIFICATE-----").count(), 2);
    let more = ["--ttl", "2h", "--key-type", "p384", "--write", "backup"];
    house
        .run(&[&words[..], &more[..]].concat())
        .succeeded()
        .says(&["wrote svid.pem, key.pem and bundle.pem to backup: spiffe://example.org/backup, expires in "]);
    let mode = |name: &str| {
        use std::os::unix::fs::PermissionsExt as _;
        house.path(name).metadata().unwrap().permissions().mode() & 0o777
    };
    assert_eq!((mode("backup"), mode("backup/key.pem"), mode("backup/svid.pem")), (0o700, 0o600, 0o644));
    let json = house.run(&[&words[..], &["-o", "json"][..]].concat()).succeeded().json();
    assert_eq!(json["spiffe_id"], "spiffe://example.org/backup");
    assert!(json["key"].as_str().unwrap().starts_with("-----BEGIN PRIVATE KEY-----"));
    house
        .run(&["x509", "mint", "--spiffe-id", "spiffe://other.org/x"])
        .failed(1, &["not in the trust domain example.org"]);
    house
        .run(&[&words[..], &["--ttl", "20d"][..]].concat())
        .failed(1, &["not accepted: ", "20d", "at most 1d", "svid.max_ttl"]);
}

#[test]
fn fetch_and_healthcheck() {
    let mut house = House::with_agent("", "");
    house.run(&["fetch", "x509"]).failed(1, &["this process has no identity", "chancery entry create"]);
    house.entry("web", &House::of_us(), &["--hint", "internal"]);
    let fetched = house.run(&["fetch", "x509"]).succeeded();
    assert_eq!(fetched.property("spiffe id"), "spiffe://example.org/web");
    assert_eq!(fetched.property("hint"), "internal");
    assert!(fetched.property("expires").starts_with("in "), "{fetched}");
    assert!(is_human_time(fetched.property("renews")), "{fetched}");
    assert!(!fetched.stdout.contains("BEGIN"), "{fetched}");
    house.entry("second", &House::of_us(), &[]);
    let json = house.run(&["fetch", "x509", "-o", "json"]).succeeded().json();
    assert_eq!(json["svids"][0]["spiffe_id"], "spiffe://example.org/web", "the oldest entry comes first");
    assert_eq!(json["svids"][1]["spiffe_id"], "spiffe://example.org/second");
    assert!(json["svids"][0].get("key").is_none(), "no key where none was asked for");
    house.run(&["fetch", "x509", "--pem"]).succeeded().says(&["-----BEGIN PRIVATE KEY-----"]);
    house.run(&["fetch", "x509", "--write", "me"]).succeeded().says(&[
        "written to me\n  svid.pem key.pem bundle.pem        spiffe://example.org/web\n",
        "  svid.2.pem key.2.pem bundle.2.pem  spiffe://example.org/second\n",
    ]);
    for name in ["svid.pem", "key.pem", "bundle.pem", "svid.2.pem", "key.2.pem", "bundle.2.pem"] {
        assert!(house.path("me").join(name).exists(), "{name}");
    }
    house.run(&["fetch", "bundle"]).succeeded().says(&["-----BEGIN CERTIFICATE-----"]);
    house.run(&["fetch", "bundle", "--write", "me"]).succeeded().says(&["1 bundle written to me"]);
    assert!(house.path("me/bundle.example.org.pem").exists());

    // A watcher sees an entry come, and outlives the agent.
    let mut watcher = house.process("watcher", &["fetch", "x509", "--watch"]);
    watcher.wait_for("two identities", 30, |watcher| (watcher.stdout().lines().count() >= 2).then_some(()));
    house.entry("third", &House::of_us(), &[]);
    watcher.wait_for("the third", 30, |watcher| watcher.stdout().contains("example.org/third  serial ").then_some(()));

    let (health, socket) = (house.health().to_owned(), house.endpoint());
    house.run(&["healthcheck", "--health", &health]).succeeded().says(&["ready\n"]);
    assert_eq!(house.run(&["healthcheck", "--health", &health, "-o", "json"]).succeeded().json()["ready"], true);
    house.run(&["healthcheck", "--health", &health, "--live"]).succeeded().says(&["live\n"]);
    house.run(&["healthcheck", "--workload-socket", &socket, "--live"]).failed(2, &["--live", "--workload-socket"]);
    house.run(&["healthcheck", "--workload-socket", &socket]).succeeded().says(&["ready\n"]);
    house.stop_agent();
    house.run(&["healthcheck", "--workload-socket", &socket, "--timeout", "1s"]).failed(3, &["no agent answers at "]);
    house.run(&["fetch", "x509"]).failed(3, &["no agent answers at ", "chancery agent run"]);
    watcher.wait_for_log("; trying again", 30);
    house.start_agent();
    let lines = watcher.stdout().lines().count();
    watcher.wait_for("the agent's return", 60, |watcher| (watcher.stdout().lines().count() > lines).then_some(()));
    house.stop_server();
    house.run(&["healthcheck", "--health", &health, "--timeout", "1s"]).failed(3, &["no server answers at "]);
    house.run(&["entry", "list"]).failed(3, &["no server answers at ", "chancery server run"]);
}

#[test]
fn an_admin_works_from_afar() {
    let house = House::with_agent("", "");
    house.entry("ops", &House::of_us(), &["--admin"]);
    house.run(&["fetch", "x509", "--write", "ops"]).succeeded();
    house.run(&["x509", "mint", "--spiffe-id", "spiffe://example.org/nobody", "--write", "nobody"]).succeeded();
    let remote = |svid: &str, words: &[&str]| {
        house
            .command(&[words, &["--server", house.address(), "--svid", svid][..]].concat())
            .env("CHANCERY_ADMIN_SOCKET", "/nonexistent")
            .run()
    };
    assert_eq!(remote("ops", &["agent", "count"]).succeeded().stdout, "1\n");
    remote("ops", &["token", "create"]).succeeded().says(&["chancery agent run --server "]);
    assert_eq!(remote("ops/svid.pem,ops/key.pem,ops/bundle.pem", &["agent", "count"]).succeeded().stdout, "1\n");
    remote("nobody", &["agent", "count"]).failed(1, &["not allowed: ", "marked admin"]);
    // The operator's files are not the first ones in the folder.
    house.run(&["fetch", "x509", "--write", "both"]).succeeded();
    let names = ["svid", "key", "bundle"];
    for name in names {
        let (from, to) = (house.path(&format!("both/{name}.pem")), house.path(&format!("both/{name}.2.pem")));
        std::fs::rename(from, to).unwrap();
        std::fs::copy(house.path(&format!("nobody/{name}.pem")), house.path(&format!("both/{name}.pem"))).unwrap();
    }
    let others = names.map(|name| format!("both/{name}.2.pem")).join(",");
    let hint = format!("--svid {others}  (spiffe://example.org/ops)");
    remote("both", &["agent", "count"]).failed(1, &["not allowed: ", "both has other identities too", &hint]);
    assert_eq!(remote(&others, &["agent", "count"]).succeeded().stdout, "1\n");
    remote("none", &["agent", "count"]).failed(1, &["none/svid.pem cannot be read"]);
    house.run(&["agent", "count", "--svid", "ops"]).failed(2, &["--server"]);
    let port = tests::binary::free_port();
    let away = ["agent", "count", "--svid", "ops", "--server", &format!("127.0.0.1:{port}")];
    house.run(&away).failed(3, &["no server answers at "]);
}

#[test]
fn a_wait_whose_time_is_up_says_who_is_behind() {
    let mut house = House::with_agent("", "");
    let is_connected = || {
        let list = house.run(&["agent", "list", "-o", "json"]).succeeded().json();
        (list["agents"][0]["connected"] == true).then_some(())
    };
    wait_for(60, is_connected).expect("an agent that is up opens its stream soon");
    house.agent().signal(Signal::SIGSTOP);
    let words = ["entry", "create", "--spiffe-id", "spiffe://example.org/a", "--parent", House::NODE];
    let made = house.run(&[&words[..], &["--selector", "unix:uid:1", "--wait=2s"][..]].concat());
    house.agent().signal(Signal::SIGCONT);
    made.failed(4, &["the change is made, but 1 of 1 agent", "spiffe://example.org/chancery/agent/join_token/"])
        .says(&["created "]);
}

#[test]
fn completions_and_help() {
    for shell in ["bash", "zsh", "fish"] {
        let script = Command::new(chancery()).args(["completions", shell]).run().succeeded();
        assert!(script.stdout.contains("healthcheck"), "{shell}");
    }
    let script = Command::new(chancery()).args(["completions", "bash"]).run().succeeded().stdout;
    Command::new("bash").args(["-n"]).stdin(&script).run().succeeded();
    Command::new(chancery()).args(["completions", "tcl"]).run().failed(2, &["bash"]);
    let help = Command::new(chancery()).args(["--help"]).run().succeeded();
    for word in
        ["server", "agent", "entry", "token", "bundle", "authority", "x509", "jwt", "fetch", "dev", "Exit codes:"]
    {
        assert!(help.stdout.contains(word), "{word}:\n{help}");
    }
    Command::new(chancery()).args(["--version"]).run().succeeded().says(&["chancery "]);
    Command::new(chancery()).args(["entry", "lisst"]).run().failed(2, &["lisst", "list"]);
}

#[test]
fn dev_is_a_whole_house_for_one_user() {
    let house = House::empty("");
    house.write("entries.yaml", "- spiffe_id: spiffe://dev.local/web\n  selectors: ['unix:path:/nonexistent/web']\n");
    let words = ["dev", "--data-dir", "dev", "--ttl", "6s", "--ca-ttl", "60s", "--entries", "entries.yaml"];
    let mut dev = house.process("dev", &words);
    dev.wait_for("its welcome", 60, |dev| dev.stdout().contains("chancery dev runs.").then_some(()));
    let out = dev.stdout();
    let exported = |name: &str| {
        let line = out.lines().find_map(|line| line.trim().strip_prefix(&format!("export {name}=")));
        line.unwrap_or_else(|| panic!("no {name}:\n{out}")).to_owned()
    };
    let user = |words: &[&str]| {
        house
            .command(words)
            .env("SPIFFE_ENDPOINT_SOCKET", exported("SPIFFE_ENDPOINT_SOCKET"))
            .env("CHANCERY_ADMIN_SOCKET", exported("CHANCERY_ADMIN_SOCKET"))
            .run()
    };
    let me = user(&["fetch", "x509"]).succeeded();
    assert!(me.property("spiffe id").starts_with("spiffe://dev.local/user/"), "{me}");
    user(&["entry", "list"]).succeeded().says(&["spiffe://dev.local/web"]);
    house
        .process("dev2", &["dev", "--data-dir", "dev"])
        .wait_for("an end", 30, |second| second.log().contains("another `chancery dev` runs in ").then_some(()));
    // Rotations, as they happen: of SVIDs, and of the CA.
    dev.wait_for("two rotations", 60, |dev| (dev.stdout().matches("  renewed ").count() >= 2).then_some(()));
    dev.wait_for("a step of the CA", 90, |dev| dev.stdout().contains(" is prepared").then_some(()));
    dev.signal(Signal::SIGTERM);
    assert!(dev.wait_for_end(20).success(), "{}", dev.tail());

    // It goes on where it was.
    let mut again = house.process("again", &words[..3]);
    again.wait_for("its welcome", 60, |dev| dev.stdout().contains("chancery dev runs.").then_some(()));
    user(&["entry", "list"]).succeeded().says(&["spiffe://dev.local/web"]);
    let renewed = wait_for(30, || (user(&["fetch", "x509"]).code == Some(0)).then_some(()));
    assert!(renewed.is_some());
}
