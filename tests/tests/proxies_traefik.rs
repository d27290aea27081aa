//! Traefik as the real program, with the configs of `docs/proxies/traefik.md`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say what is wrong by panicking")]

use tests::binary::federation::{federate, served};
use tests::binary::{Command, House, Process, free_port, wait_for};
use tests::proxies::{Front, Load, Recipe, Service, Web, entry_of, get, program};

/// A Traefik that calls services.
struct Traefik {
    process: Process,
    port: u16,
}

impl Traefik {
    /// Calls the service at `called`, which has to be `expected`, as `dynamic.yaml` says it.
    fn start(house: &House, called: u16, expected: &str) -> Self {
        let port = free_port();
        let dynamic = Recipe::read("traefik", "dynamic.yaml")
            .with("https://127.0.0.1:8443", &format!("https://127.0.0.1:{called}"))
            .with("ids: [\"spiffe://example.org/web\"]", expected)
            // Each request is a handshake.
            .with("serversTransports:\n    web:\n", "serversTransports:\n    web:\n      maxIdleConnsPerHost: -1\n");
        let dynamic = house.write("dynamic.yaml", dynamic.text());
        let fixed = Recipe::read("traefik", "traefik.yaml")
            .with("/run/chancery/workload.sock", &house.path("agent.sock").display().to_string())
            .with("/etc/traefik/dynamic.yaml", &dynamic.display().to_string())
            .with("127.0.0.1:8082", &format!("127.0.0.1:{port}"));
        Self { process: run(house, "traefik", &fixed), port }
    }

    #[track_caller]
    fn answers(&mut self, status: u16) -> String {
        let port = self.port;
        self.process.wait_for(&format!("an answer of {status}"), 60, |_| {
            get(port, "/").ok().filter(|answer| answer.status == status).map(|answer| answer.body)
        })
    }
}

fn run(house: &House, name: &str, config: &Recipe) -> Process {
    let config = house.write(&format!("{name}.yaml"), config.text()).display().to_string();
    let program = program(house, "CHANCERY_TRAEFIK", "traefik-program");
    let words = [format!("--configFile={config}")];
    Process::start(Command::new(program).env("HOME", house.folder()).args(words), house.folder(), name)
}

fn enter(house: &House, more: &[&str]) -> String {
    entry_of(house, "traefik", &program(house, "CHANCERY_TRAEFIK", "traefik-program"), more)
}

const CALLER: &str = "spiffe://example.org/traefik";
const BY_ID: &str = "ids: [\"spiffe://example.org/web\"]";

/// The certificate that the service was told of.
fn certificate(answer: &str) -> String {
    answer.split_once("Hash=").unwrap().1.split(';').next().unwrap().to_owned()
}

#[test]
fn it_starts_when_it_has_an_svid_and_shows_each_new_one() {
    let house = House::with_agent("", "");
    let web = Web::start(&house, (CALLER, Service::start().port), &[]);
    let mut traefik = Traefik::start(&house, web.port, BY_ID);
    traefik.process.wait_for("waiting for an SVID", 60, |process| {
        let said = process.log() + &process.stdout();
        said.contains("SPIFFE").then_some(())
    });
    assert!(get(traefik.port, "/").is_err(), "nobody listens without an SVID");
    enter(&house, &["--ttl", "8s"]);
    let first = certificate(&traefik.answers(200));
    let load = Load::start(traefik.port);
    wait_for(60, || (certificate(&get(traefik.port, "/").ok()?.body) != first).then_some(())).expect("a new SVID");
    load.go_on(200);
    load.end();
}

#[test]
fn it_calls_whom_it_is_told_to_expect_and_nobody_else() {
    let house = House::with_agent("", "");
    enter(&house, &[]);
    let web = Web::start(&house, (CALLER, Service::start().port), &[]);
    for (expected, status) in [
        (BY_ID, 200),
        ("ids: [\"spiffe://example.org/other\"]", 500),
        ("trustDomain: \"spiffe://example.org\"", 200),
        ("trustDomain: \"spiffe://other.org\"", 500),
    ] {
        let mut traefik = Traefik::start(&house, web.port, expected);
        traefik.answers(status);
    }
}

#[test]
fn a_service_of_a_federated_trust_domain_is_taken() {
    let (here, our_url) = served("example.org");
    let (there, their_url) = served("other.org");
    federate(&here, &there, &their_url);
    federate(&there, &here, &our_url);
    let web = Web::start(&there, (CALLER, Service::start().port), &["--federates-with", "example.org"]);
    let entry = enter(&here, &[]);
    let mut traefik = Traefik::start(&here, web.port, "ids: [\"spiffe://other.org/web\"]");
    traefik.answers(500);
    here.run(&["entry", "update", &entry, "--federates-with", "other.org", "--wait"]).succeeded();
    traefik.answers(200);
}

#[test]
fn its_entry_point_shows_what_is_delivered() {
    let mut house = House::with_server("");
    let (tls, service) = (free_port(), Service::start());
    let path = |name: &str| house.path(name).display().to_string();
    let delivery = Recipe::read("traefik", "agent.toml")
        .with("/etc/traefik/spiffe", &path("spiffe"))
        .with("/etc/traefik/entry.yaml", &path("entry.yaml"))
        .with("owner = \"traefik\"\n", "");
    let dynamic = Recipe::read("traefik", "entry.yaml")
        .with("/etc/traefik/spiffe", &path("spiffe"))
        .with("http://127.0.0.1:8080", &format!("http://127.0.0.1:{}", service.port));
    let fixed = Recipe::read("traefik", "entry-traefik.yaml")
        .with("/etc/traefik/entry.yaml", &path("entry.yaml"))
        .with(":8443", &format!("127.0.0.1:{tls}"));
    house.write("entry.yaml", dynamic.text());
    house.write_agent_config(&house.token(), delivery.text());
    house.start_agent();
    house.entry("web", "deliver:traefik", &["--ttl", "8s"]);
    wait_for(60, || house.path("spiffe/tls.key").exists().then_some(())).expect("files");
    let mut traefik = run(&house, "entry-traefik", &fixed);
    let front = Front::start(&house, "spiffe://example.org/web", tls);
    traefik.wait_for("a first answer", 60, |_| get(front.port, "/").ok().filter(|a| a.status == 200).map(drop));
    let load = Load::start(front.port);
    let version = || std::fs::read_link(house.path("spiffe/..data")).unwrap();
    for _ in 0..3 {
        let before = version();
        wait_for(60, || (version() != before).then_some(())).expect("a new version");
        load.go_on(20);
    }
    load.end();
}
