//! What an operator sees of the config: its sample, its defaults, its refusals.

use super::kubernetes::AccountName;
use super::*;

const SAMPLE: &str = include_str!("../../../deploy/server.toml");

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(&format!("trust_domain = 'example.org'\n{text}"), [])
}

fn error(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

#[test]
fn the_sample_has_every_key_and_shows_the_defaults() {
    let defaults = parse("").unwrap();
    assert_eq!(Config::parse(SAMPLE, []).unwrap(), defaults, "a server starts with the sample as it stands");
    // What has no default is an example behind a # without a space.
    let example = |line: &str| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).map(str::to_owned);
    let whole: Vec<String> = SAMPLE.lines().map(|line| example(line).unwrap_or_else(|| line.to_owned())).collect();
    let sample = Config::parse(&whole.join("\n"), []).unwrap();
    let x509pop = sample.attest.x509pop.clone().unwrap();
    assert_eq!((x509pop.max_chain, x509pop.min_rsa_bits, x509pop.max_rsa_bits), (5, 2048, 4096));
    assert!(sample.authority.upstream.is_some() && sample.jwt.issuer.is_some());
    let psat = sample.attest.k8s_psat.values().next().unwrap();
    assert_eq!(psat.audience, kubernetes::TokenAudience::default());
    let cluster = sample.kubernetes.values().next().unwrap();
    let usual = kubernetes::Cluster::default();
    assert_eq!((cluster.request_timeout, cluster.watch_timeout), (usual.request_timeout, usual.watch_timeout));
    let attest = Attest { x509pop: None, k8s_psat: BTreeMap::new(), ..sample.attest.clone() };
    let authority = Authority { upstream: None, ..sample.authority.clone() };
    let other = sample.federation.relationships.first().unwrap();
    assert!(other.bundle.is_some() && other.relationship.is_self_serving());
    assert!(sample.federation.web_roots.is_some() && !sample.federation.allow_networks.is_empty());
    let federation = Federation {
        relationships: Vec::new(),
        allow_networks: Vec::new(),
        web_roots: None,
        ..sample.federation.clone()
    };
    assert!(sample.web.https_web.is_some() && sample.web.https_spiffe.is_some() && sample.web.oidc.is_some());
    let web = Web { https_web: None, https_spiffe: None, oidc: None, ..sample.web.clone() };
    let istio = parse("[istio.clusters]\nKubernetes = 'main'").unwrap().istio.unwrap();
    let ztunnel = AccountName { namespace: "istio-system".into(), name: "ztunnel".into() };
    assert_eq!(sample.istio, Some(Istio { trusted_node_accounts: vec![ztunnel], ..istio }));
    let examples = Config {
        web,
        istio: None,
        attest,
        authority,
        federation,
        kubernetes: BTreeMap::new(),
        address: defaults.address.clone(),
        dns_names: defaults.dns_names.clone(),
        jwt: Tokens { issuer: None, ..sample.jwt.clone() },
        ..sample
    };
    assert_eq!(examples, defaults);
}

#[test]
fn the_environment_alone_is_a_config() {
    let over = [("TRUST_DOMAIN", "example.org"), ("SVID__TTL", "10m"), ("STORE__KIND", "mem")];
    let over = over.map(|(key, value)| (format!("{PREFIX}__{key}"), value.to_owned()));
    let config = Config::parse("", over).unwrap();
    assert_eq!(config.svid.ttl, Duration::from_secs(600));
    assert_eq!(config.store.kind, StoreKind::Mem);
}

#[test]
fn a_short_ca_shortens_the_defaults_but_not_what_was_written() {
    let config = parse("[authority]\nca_ttl = '2m'").unwrap();
    let seconds = Duration::from_secs;
    assert_eq!(config.svid, Svid { ttl: seconds(20), max_ttl: seconds(20), agent_ttl: seconds(20) });
    assert_eq!(
        error("[svid]\nmax_ttl = '6d'"),
        "svid.max_ttl = \"6d\" is too long for authority.ca_ttl = \"30d\": a leaf must not outlive its CA \
         through a rotation. Set svid.max_ttl to at most \"5d\", or authority.ca_ttl to at least \"36d\""
    );
    assert_eq!(
        error("[svid]\nttl = '1h'\n[authority]\nca_ttl = '2h'"),
        "svid.ttl = \"1h\" is too long for authority.ca_ttl = \"2h\": a leaf must not outlive its CA through a \
         rotation. Set svid.ttl to at most \"20m\", or authority.ca_ttl to at least \"6h\""
    );
    assert_eq!(
        error("[svid]\nttl = '2h'\nmax_ttl = '1h'"),
        "svid.ttl = \"2h\" is longer than svid.max_ttl = \"1h\": lower the one or raise the other"
    );
    assert_eq!(error("[svid]\nttl = '1s'"), "svid.ttl = \"1s\" is not allowed: use \"5s\" to \"366d\"");
}

#[test]
fn tokens_fit_into_the_life_of_their_keys() {
    let seconds = Duration::from_secs;
    let config = parse("[jwt]\nkey_ttl = '2m'\nalgorithm = 'RS256'\nissuer = 'https://oidc.example.org/a'").unwrap();
    assert_eq!((config.jwt.ttl, config.jwt.max_ttl), (seconds(60), seconds(60)));
    assert_eq!(config.jwt.algorithm, TokenAlgorithm::Rs256);
    assert_eq!(config.jwt.issuer.unwrap().as_str(), "https://oidc.example.org/a");
    assert_eq!((config.wit.ttl, config.wit.max_ttl), (seconds(3600), seconds(86_400)));
    assert_eq!(parse("[wit]\nmax_ttl = '30m'").unwrap().wit.ttl, seconds(1800));
    assert_eq!(
        error("[jwt]\nmax_ttl = '20d'"),
        "jwt.max_ttl = \"20d\" is too long for key_ttl = \"30d\" of the same table: a token must not outlive its key \
         through a rotation. Set jwt.max_ttl to at most \"15d\", or key_ttl to at least \"40d\""
    );
    assert_eq!(
        error("[wit]\nttl = '2h'\nmax_ttl = '1h'"),
        "wit.ttl = \"2h\" is longer than wit.max_ttl = \"1h\": lower the one or raise the other"
    );
    assert_eq!(error("[jwt]\nkey_ttl = '1s'"), "jwt.key_ttl = \"1s\" is not allowed: use \"30s\" to \"7320d\"");
    assert_eq!(
        error("[wit]\nalgorithm = 'RS256'"),
        "wit.algorithm = \"RS256\" is not allowed: use \"ES256\" or \"ES384\""
    );
    assert!(error("[wit]\nissuer = 'https://a.org'").contains("Set jwt.issuer for JWT-SVIDs"));
    assert!(error("[jwt]\nalgorithm = 'none'").contains("expected one of `ES256`, `ES384`, `RS256`"));
    for bad in ["", "oidc.example.org", "http://a.org", "https://a.org/", "https://a.org?b", "https://a b"] {
        assert!(
            error(&format!("[jwt]\nissuer = '{bad}'")).contains(&format!("{bad:?} is no issuer: write an https URL")),
            "{bad}"
        );
    }
    let web =
        "[web.https_web]\nlisten = '127.0.0.1:1'\ncertificate = 'c'\nkey = 'k'\n[web.oidc]\nissuer = 'https://a.org'";
    assert_eq!(parse(web).unwrap().jwt.issuer.unwrap().as_str(), "https://a.org", "what is served is what tokens say");
}

#[test]
fn a_wrong_trust_domain_is_shown_with_its_key_and_line() {
    let message = Config::parse("trust_domain = 'Example.org'", []).unwrap_err().to_string();
    assert!(message.contains("line 1") && message.contains("trust_domain ="), "{message}");
    let variable = ("CHANCERY_SERVER__TRUST_DOMAIN".to_owned(), "Example.org".to_owned());
    let message = Config::parse("", [variable]).unwrap_err().to_string();
    assert!(message.contains("in `trust_domain`"), "{message}");
    assert!(Config::parse("", []).unwrap_err().to_string().contains("missing field `trust_domain`"));
}

#[test]
fn an_unknown_key_is_named() {
    assert!(error("trustdomain = 'x'").contains("unknown field `trustdomain`"));
    assert!(error("[store]\ncache = 1").contains("unknown field `cache`"));
    assert!(error("[attest.x509pop]\nca_bundle = 'a'\nx = 1").contains("unknown field `x`"));
    assert!(error("[store]\nkind = 'sql'").contains("unknown variant `sql`, expected `sled` or `mem`"));
}

#[test]
fn sockets_addresses_names_and_modes() {
    let long = format!("admin_socket = '/{}'", "a".repeat(107));
    assert!(error(&long).contains("has 108 bytes: 1 to 107 are allowed. Choose a shorter folder"));
    let long = format!("/{}", "a".repeat(100));
    assert_eq!(
        error(&format!("data_dir = '{long}'")),
        format!(
            "admin_socket = \"{long}/admin.sock\" (from data_dir) has 112 bytes: at most 107 are allowed. Set admin_socket"
        )
    );
    for bad in ["ca.example.org", "ca.example.org:0", "ca_x:1", ":1", "::1:80", "*.a:1", "[::1:80"] {
        assert!(error(&format!("address = '{bad}'")).contains("is no address: write it as host:port"), "{bad}");
    }
    for good in ["ca.example.org:8443", "10.0.0.1:1", "[::1]:80"] {
        assert_eq!(parse(&format!("address = '{good}'")).unwrap().address.as_str(), good);
    }
    assert_eq!(parse("listen = '10.0.0.1:99'").unwrap().address.as_str(), "10.0.0.1:99");
    assert!(error("name = 'a b'").contains("must be 1 to 64 letters, digits, dots, dashes or underscores"));
    assert!(error("admin_socket_mode = '888'").contains("is no file mode: write it in octal"));
    assert_eq!(parse("admin_uids = [1000]").unwrap().admin_socket_mode.bits(), 0o666);
    assert!(error("listen = 'ca.example.org:8443'").contains("invalid socket address"));
}

#[test]
fn health_stays_on_loopback() {
    assert_eq!(
        error("health_listen = '0.0.0.0:8444'"),
        "health_listen = \"0.0.0.0:8444\" is not a loopback address: metrics are for this machine only. Use \
         127.0.0.1, or set health_listen_anywhere = true"
    );
    assert!(parse("health_listen = '0.0.0.0:8444'\nhealth_listen_anywhere = true").is_ok());
}

#[test]
fn numbers_have_limits() {
    let x509pop = "[attest.x509pop]\nca_bundle = 'a'\n";
    for (text, message) in [
        ("[limits]\nconnections = 0", "limits.connections = 0 is not allowed: use 1 to 1048576"),
        ("[limits]\nrequest_timeout = '0s'", "limits.request_timeout = \"0s\" is not allowed: use \"1s\" to \"1h\""),
        ("[audit]\nqueue = 1", "audit.queue = 1 is not allowed: use 16 to 1048576"),
        ("[authority]\nca_ttl = '10s'", "authority.ca_ttl = \"10s\" is not allowed: use \"30s\" to \"7320d\""),
        (
            &format!("{x509pop}min_rsa_bits = 1024"),
            "attest.x509pop.min_rsa_bits = 1024 is not allowed: use 2048 to 4096",
        ),
        (
            &format!("{x509pop}max_rsa_bits = 16384"),
            "attest.x509pop.max_rsa_bits = 16384 is not allowed: use 2048 to 8192",
        ),
        (&format!("{x509pop}max_chain = 9"), "attest.x509pop.max_chain = 9 is not allowed: use 1 to 8"),
    ] {
        assert_eq!(error(text), message);
    }
}

#[test]
fn files_are_checked_apart() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let key = spiffe::crypto::generate_key(KeyType::P256).unwrap();
    let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap();
    std::fs::write(path("ca.pem"), certificate.pem()).unwrap();
    std::fs::write(path("key.pem"), key.serialize_pem()).unwrap();
    std::fs::write(path("empty.pem"), "nothing").unwrap();
    let check = |certificate: &str, key: &str, bundle: &str| {
        let [certificate, key, bundle] = [certificate, key, bundle].map(|name| path(name).display().to_string());
        let text = format!(
            "[authority.upstream]\ncertificate = '{certificate}'\nkey = '{key}'\n[attest.x509pop]\nca_bundle = '{bundle}'"
        );
        parse(&text).unwrap().check_files().map_err(|error| error.to_string())
    };
    assert_eq!(check("ca.pem", "key.pem", "ca.pem"), Ok(()));
    let message = check("none.pem", "key.pem", "ca.pem").unwrap_err();
    assert!(
        message.starts_with("authority.upstream.certificate: ")
            && message.contains("none.pem: cannot be read: No such file")
            && message.ends_with(": put the file there, or correct the path in the config"),
        "{message}"
    );
    assert!(check("ca.pem", "ca.pem", "ca.pem").unwrap_err().contains("holds no PKCS#8 private key"));
    std::fs::write(path("rsa.pem"), include_str!("../attest/test_rsa2048.pem")).unwrap();
    assert_eq!(check("ca.pem", "rsa.pem", "ca.pem"), Ok(()));
    let message = check("ca.pem", "key.pem", "empty.pem").unwrap_err();
    assert!(message.contains("attest.x509pop.ca_bundle") && message.contains("holds no certificate"), "{message}");
    let message = Config::load(Some(&path("none.toml"))).unwrap_err().to_string();
    assert!(message.contains("none.toml: No such file"), "{message}");
}

#[test]
fn relationships_of_the_config_are_judged() {
    let relationship = |rest: &str| format!("[[federation.relationship]]\ntrust_domain = 'other.org'\n{rest}");
    let web = "url = 'https://other.org/'\nprofile = 'https_web'\n";
    assert_eq!(parse(&relationship(web)).unwrap().federation.relationships.len(), 1);
    let twice = format!("{}{}", relationship(web), relationship(web));
    assert_eq!(error(&twice), "[[federation.relationship]]: other.org is there twice: leave one");
    let with_id = format!("{web}endpoint_spiffe_id = 'spiffe://other.org/x'");
    assert!(error(&relationship(&with_id)).contains("takes no endpoint SPIFFE ID"));
    assert!(error(&relationship("url = 'https://other.org/'\nprofile = 'https_spiffe'")).contains("needs an endpoint"));
    assert!(error(&relationship("url = 'http://other.org/'\nprofile = 'https_web'")).contains("begin with https://"));
    assert!(error(&relationship("url = 'https://other.org/'")).contains("profile"));
    assert!(error(&relationship(web).replace("other.org'\nurl", "example.org'\nurl")).contains("own trust domain"));
    assert!(error("[federation]\nallow_networks = ['everything']").contains("write it like 10.0.0.0/8"));
}

#[test]
fn the_refresh_hint_leaves_five_polls_before_a_root_signs() {
    let hint = |text: &str| parse(text).map(|config| config.web.refresh_hint.as_secs());
    assert_eq!(hint(""), Ok(300));
    assert_eq!(hint("[authority]\nca_ttl = '1h'"), Ok(120));
    assert_eq!(hint("[authority]\nca_ttl = '1m'"), Ok(10));
    assert_eq!(hint("[web]\nrefresh_hint = '1d'"), Ok(86_400));
    assert!(error("[web]\nrefresh_hint = '2d'").contains("web.refresh_hint"));
    assert!(error("[web]\nrefresh_hint = '5s'").contains("use \"10s\""));
    assert!(error("[web]\npath = 'bundle'").contains("begin it with /"));
}

#[test]
fn an_issuer_is_a_plain_url_and_needs_a_listener() {
    let web = "[web.https_web]\nlisten = '0.0.0.0:443'\ncertificate = 'a'\nkey = 'b'\n";
    let oidc = |issuer: &str| format!("{web}[web.oidc]\nissuer = '{issuer}'");
    let found = parse(&oidc("https://oidc.example.org:8443/prod")).unwrap().web.oidc.unwrap();
    assert_eq!((found.allowed_hosts, found.issuer.path()), (vec!["oidc.example.org".to_owned()], "/prod"));
    assert!(error(&oidc("https://oidc.example.org/")).contains("slash at its end"));
    assert!(error(&oidc("https://oidc.example.org?x")).contains("query"));
    assert!(error(&oidc("http://oidc.example.org")).contains("begin with https://"));
    assert!(error("[web.oidc]\nissuer = 'https://a.org'").contains("add [web.https_web]"));
}

#[test]
fn a_certificate_of_the_web_comes_from_files_or_from_acme() {
    let web = |rest: &str| format!("[web.https_web]\nlisten = '0.0.0.0:443'\n{rest}");
    let acme = "[web.https_web.acme]\ndirectory = 'https://acme.example/dir'\ndomains = ['a.example.org']\n";
    let agreed = format!("{acme}terms_of_service_agreed = true");
    assert!(matches!(
        parse(&web(&agreed)).unwrap().web.https_web.unwrap().certificate,
        WebCertificate::Acme(Acme { roots: None, .. })
    ));
    assert!(error(&web("")).contains("no certificate to show"));
    assert!(error(&web("certificate = 'a'")).contains("no certificate to show"));
    assert!(error(&web(&format!("certificate = 'a'\nkey = 'b'\n{agreed}"))).contains("not both"));
    assert!(error(&web(&format!("{acme}terms_of_service_agreed = false"))).contains("terms of service"));
}

#[test]
fn the_door_for_istio_has_the_words_of_istio_and_the_limits_of_the_ca() {
    let of = |more: &str| {
        parse(&format!("{more}\n[istio.clusters]\nKubernetes = 'main'")).map(|config| config.istio.unwrap())
    };
    let istio = of("").unwrap();
    assert_eq!((istio.listen.port(), &*istio.audience), (15012, "istio-ca"));
    assert_eq!(istio.dns_names, [DnsName::parse("istiod.istio-system.svc").unwrap()]);
    assert_eq!(istio.default_cluster.as_deref(), Some("main"), "the only one");
    assert!(istio.trusted_node_accounts.is_empty() && !istio.client_certificates);
    let hours = |hours: u64| Duration::from_secs(3600 * hours);
    assert_eq!((istio.ttl, istio.max_ttl), (hours(24), hours(24)));
    let short = of("[authority]\nca_ttl = '12h'").unwrap();
    assert_eq!((short.ttl, short.max_ttl), (hours(2), hours(2)));
    assert_eq!(of("[istio]\nmax_ttl = '1h'").unwrap().ttl, hours(1));

    let refused = |more: &str| of(more).unwrap_err().to_string();
    assert!(refused("[istio]\nmax_ttl = '6d'").contains("istio.max_ttl = \"6d\" is too long"));
    assert!(refused("[istio]\nttl = '2h'\nmax_ttl = '1h'").contains("istio.ttl = \"2h\" is longer than istio.max_ttl"));
    assert!(refused("[istio]\ndefault_cluster = 'Kubernetes'").contains("none of the clusters in istio.clusters"));
    for bad in ["ztunnel", "istio-system/", "/ztunnel", "a/b/c", "Istio/ztunnel"] {
        let refused = refused(&format!("[istio]\ntrusted_node_accounts = ['{bad}']"));
        assert!(refused.contains("is no service account: write it as namespace:name or namespace/name"), "{refused}");
    }
    assert!(error("[istio]").contains("istio.clusters is missing: clusters = { Kubernetes = \"main\" }"));
    let either = of("[istio]\ntrusted_node_accounts = ['istio-system:ztunnel', 'istio-system/ztunnel']").unwrap();
    assert_eq!(either.trusted_node_accounts[0], either.trusted_node_accounts[1]);
    let taken = refused("listen = '0.0.0.0:8443'\n[istio]\nlisten = '127.0.0.1:8443'");
    assert!(taken.contains("listen and istio.listen both take port 8443: give each one of its own"), "{taken}");
    assert!(of("listen = '127.0.0.2:8443'\n[istio]\nlisten = '127.0.0.1:8443'").is_ok());
    assert!(of("listen = '127.0.0.1:0'\n[istio]\nlisten = '127.0.0.1:0'").is_ok());
    let two = parse("[istio.clusters]\na = 'main'\nb = 'east'").unwrap().istio.unwrap();
    assert_eq!(two.default_cluster, None, "nobody knows which");

    let names = parse("dns_names = ['ca.test', 'istiod.istio-system.svc']\n[istio.clusters]\na = 'main'").unwrap();
    assert_eq!(names.own_names().len(), 2, "none of them twice");
}
