//! Envoy as the real program, with the configs of `docs/proxies/envoy.md` and `docs/proxies/istio.md`: two of them with
//! mutual TLS between, and requests all the while. Each request is a handshake of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say what is wrong by panicking")]

use tests::binary::federation::{federate, served};
use tests::binary::{House, free_port, wait_for};
use tests::proxies::{Answer, Envoy, Load, Recipe, Service, entry_of, get, program, rotate};

/// How often each SVID is to be renewed under load.
const ROTATIONS: u64 = 200;

/// The side that is called, and the side that calls, before they run.
#[derive(Clone)]
struct Plan {
    name: &'static str,
    /// The paths and programs of both.
    paths: [&'static str; 2],
    programs: [&'static str; 2],
    recipes: [Recipe; 2],
    /// Where the pages have the agent's.
    socket: &'static str,
    admin: [u16; 2],
    service: u16,
    /// Where the client calls.
    port: u16,
}

/// Two Envoys that run.
struct Pair {
    web: Envoy,
    front: Envoy,
    port: u16,
}

impl Plan {
    fn envoy(name: &'static str) -> Self {
        let recipes = ["web.yaml", "front.yaml"].map(|file| Recipe::read("envoy", file));
        let plan = Self::new(name, ["web", "front"], ["envoy-web", "envoy-front"], recipes);
        plan.move_ports([("8443", "9901"), ("8081", "9902")])
    }

    fn delta(name: &'static str) -> Self {
        Self::envoy(name).with("api_type: GRPC", "api_type: DELTA_GRPC")
    }

    fn istio(name: &'static str) -> Self {
        let recipes = ["inbound.yaml", "outbound.yaml"].map(|file| Recipe::read("istio", file));
        let paths = ["ns/default/sa/web", "ns/default/sa/front"];
        let mut plan = Self::new(name, paths, ["istio-web", "istio-front"], recipes);
        plan.socket = "./var/run/secrets/workload-spiffe-uds/socket";
        plan.move_ports([("15006", "15000"), ("15001", "15000")])
    }

    fn new(name: &'static str, paths: [&'static str; 2], programs: [&'static str; 2], recipes: [Recipe; 2]) -> Self {
        let socket = "/run/chancery/workload.sock";
        Self { name, paths, programs, recipes, socket, admin: [0; 2], service: 0, port: 0 }
    }

    /// Every port of the pages is another one here.
    fn move_ports(mut self, [(tls, web_admin), (outbound, front_admin)]: [(&str, &str); 2]) -> Self {
        let [new_tls, new_outbound] = [free_port(), free_port()];
        (self.admin, self.service, self.port) = ([free_port(), free_port()], Service::start().port, new_outbound);
        let port = |number: &str| format!("port_value: {number} ");
        let [web, front] = self.recipes;
        let web = web.with(&port("8080"), &port(&self.service.to_string()));
        let web = web.with(&port(tls), &port(&new_tls.to_string()));
        let web = web.with(&port(web_admin), &port(&self.admin[0].to_string()));
        let front = front.with(&port(tls), &port(&new_tls.to_string()));
        let front = front.with(&port(outbound), &port(&new_outbound.to_string()));
        let front = front.with(&port(front_admin), &port(&self.admin[1].to_string()));
        self.recipes = [web, front.with("max_connection_duration: 3600s", "max_requests_per_connection: 1")];
        self
    }

    fn with(mut self, old: &str, new: &str) -> Self {
        self.recipes = self.recipes.map(|recipe| recipe.with(old, new));
        self
    }

    fn with_web(mut self, old: &str, new: &str) -> Self {
        self.recipes[0] = self.recipes[0].clone().with(old, new);
        self
    }

    fn with_front(mut self, old: &str, new: &str) -> Self {
        self.recipes[1] = self.recipes[1].clone().with(old, new);
        self
    }

    /// Entries for both sides. Returns their IDs.
    fn enter(&self, houses: [&House; 2], more: &[&str]) -> [String; 2] {
        [0, 1].map(|side| {
            let program = program(houses[side], "CHANCERY_ENVOY", self.programs[side]);
            entry_of(houses[side], self.paths[side], &program, more)
        })
    }

    /// Starts both, each as a workload of its house.
    fn start(&self, houses: [&House; 2]) -> Pair {
        let [mut web, mut front] = [0, 1].map(|side| {
            let house = houses[side];
            let socket = house.path("agent.sock").display().to_string();
            let recipe = self.recipes[side].clone().with(self.socket, &socket);
            let name = format!("{}-{side}", self.name);
            Envoy::start(house, &name, (self.programs[side], &recipe, self.admin[side]))
        });
        web.wait_until_ready();
        front.wait_until_ready();
        Pair { web, front, port: self.port }
    }
}

impl Pair {
    fn get(&self) -> Answer {
        get(self.port, "/").unwrap()
    }

    /// Returns when the client is answered like this: with the SPIFFE ID that the service was told, if it was asked.
    #[track_caller]
    fn answers(&self, status: u16) -> String {
        let mut last = None;
        let found = wait_for(60, || {
            last = Some(self.get());
            last.clone().filter(|answer| answer.status == status)
        });
        let answer = found.unwrap_or_else(|| panic!("{status} was expected, and the last answer is {last:?}"));
        answer.body.split_once("URI=").map(|(_, id)| id.to_owned()).unwrap_or_default()
    }

    /// Returns when both have other certificates than now.
    #[track_caller]
    fn rotated(&mut self) {
        for envoy in [&mut self.web, &mut self.front] {
            let before = envoy.serial();
            wait_for(90, || (envoy.serial() != before).then_some(())).expect("another certificate");
        }
    }

    #[track_caller]
    fn has_rejected_nothing(&self) {
        assert_eq!((self.web.rejected(), self.front.rejected()), (0, 0));
    }
}

#[test]
fn nobody_is_refused_through_rotations_of_svids_and_cas() {
    // An SVID of three seconds is renewed after one.
    let (house, short) = (House::with_agent("", ""), ["--ttl", "3s"]);
    let plans = [Plan::envoy("sotw"), Plan::delta("delta"), Plan::istio("istio")];
    plans[0].enter([&house, &house], &short);
    plans[2].enter([&house, &house], &short);
    let mut pairs = plans.map(|plan| plan.start([&house, &house]));
    let loads: Vec<Load> = pairs.iter().map(|pair| Load::start(pair.port)).collect();
    for pair in &pairs {
        assert!(pair.answers(200).ends_with("/front"));
    }
    let versions = |pair: &Pair| pair.front.updates("default").min(pair.web.updates("default"));
    for third in 1..=3 {
        let goal = ROTATIONS * third / 4;
        wait_for(240, || pairs.iter().all(|pair| versions(pair) >= goal).then_some(())).expect("rotations");
        rotate(&house, || pairs.iter_mut().for_each(Pair::rotated));
    }
    wait_for(240, || pairs.iter().all(|pair| versions(pair) > ROTATIONS).then_some(())).expect("rotations");
    for load in loads {
        load.go_on(40);
        let requests = load.end();
        assert!(requests > ROTATIONS, "{requests}");
    }
    for pair in &pairs {
        pair.has_rejected_nothing();
        // Each request was a handshake, and each root came and went: one more update for each step of a CA's life.
        assert!(pair.web.sum("listener.", ".ssl.handshake") > ROTATIONS);
        assert_eq!(pair.web.sum("listener.", ".ssl.fail_verify_error"), 0);
    }
    let bundles = |pair: &Pair, name: &str| pair.front.updates(name).min(pair.web.updates(name));
    assert!(bundles(&pairs[0], "spiffe://example.org") >= 7 && bundles(&pairs[2], "ROOTCA") >= 7);
}

#[test]
fn an_agent_that_is_killed_and_comes_back_costs_no_request() {
    let mut house = House::with_agent("svid.ttl = '2m'", "");
    let plans = [Plan::envoy("sotw"), Plan::delta("delta"), Plan::istio("istio")];
    plans[0].enter([&house, &house], &[]);
    plans[2].enter([&house, &house], &[]);
    let mut pairs = plans.map(|plan| plan.start([&house, &house]));
    let loads: Vec<Load> = pairs.iter().map(|pair| Load::start(pair.port)).collect();
    let go_on = |loads: &[Load]| loads.iter().for_each(|load| load.go_on(20));
    go_on(&loads);
    for _ in 0..2 {
        let before: Vec<[String; 2]> = pairs.iter().map(|pair| [pair.web.serial(), pair.front.serial()]).collect();
        house.agent().kill();
        go_on(&loads);
        house.start_agent();
        // It has new keys, and so have they.
        for (pair, before) in pairs.iter_mut().zip(before) {
            let serials = || [pair.web.serial(), pair.front.serial()];
            wait_for(60, || serials().iter().zip(&before).all(|(new, old)| new != old).then_some(()))
                .expect("another certificate");
        }
        go_on(&loads);
    }
    for load in loads {
        load.end();
    }
    pairs.iter().for_each(Pair::has_rejected_nothing);
}

#[test]
fn who_has_another_spiffe_id_is_refused_by_either_side() {
    let house = House::with_agent("", "");
    for plan in [Plan::envoy, Plan::istio] {
        plan("right").enter([&house, &house], &[]);
    }
    for (plan, [web, front], others) in [
        (
            Plan::envoy as fn(_) -> _,
            ["spiffe://example.org/web", "spiffe://example.org/front"],
            "spiffe://example.org/x",
        ),
        (Plan::delta, ["spiffe://example.org/web", "spiffe://example.org/front"], "spiffe://example.org/x"),
        // Istio's server takes its whole trust domain.
        (Plan::istio, ["spiffe://example.org/ns/default/sa/web", "spiffe://example.org/"], "spiffe://example.org/x/"),
    ] {
        let right = plan("right").start([&house, &house]);
        assert!(right.answers(200).ends_with("/front"));
        let stranger = plan("server").with_front(web, others).start([&house, &house]);
        assert_eq!(stranger.get().status, 503);
        assert!(stranger.front.sum("cluster.web.", ".fail_verify_san") > 0);
        let stranger = plan("client").with_web(front, others).start([&house, &house]);
        assert_eq!(stranger.get().status, 503);
        assert!(stranger.web.sum("listener.", ".fail_verify_san") > 0);
    }
}

#[test]
fn what_envoy_does_not_take_is_shown_in_its_words_and_the_next_change_is_taken() {
    let house = House::with_agent("", "");
    let plans = [Plan::envoy("sotw"), Plan::delta("delta")];
    let [web, _] = plans[0].enter([&house, &house], &[]);
    let pairs = plans.map(|plan| plan.start([&house, &house]));
    let socket = house.path("agent/status.sock").display().to_string();
    let rejections = || {
        let status = house.run(&["agent", "status", "--status-socket", &socket, "-o", "json"]).succeeded().json();
        let proxies = status["proxies"].as_array().unwrap().clone();
        let words = proxies.iter().filter_map(|proxy| proxy["rejection"]["words"].as_str().map(str::to_owned));
        words.collect::<Vec<_>>()
    };
    assert_eq!(rejections(), Vec::<String>::new());
    // Envoy knows no such keys.
    house.run(&["entry", "update", &web, "--key-type", "ed25519", "--wait"]).succeeded();
    for pair in &pairs {
        wait_for(60, || (pair.web.rejected() > 0).then_some(())).expect("a rejection");
    }
    let words = wait_for(60, || Some(rejections()).filter(|words| words.len() == pairs.len())).expect("its words");
    assert!(words.iter().all(|words| words.contains("Failed to load private key")), "{words:?}");
    let log = house.path("agent.log");
    assert!(std::fs::read_to_string(log).unwrap().contains("proxy rejects its secrets"));
    for pair in &pairs {
        assert_eq!(pair.get().status, 200, "it goes on with what it had");
    }
    let before = pairs.each_ref().map(|pair| pair.web.serial());
    house.run(&["entry", "update", &web, "--key-type", "p384", "--wait"]).succeeded();
    for (pair, before) in pairs.iter().zip(before) {
        wait_for(60, || (pair.web.serial() != before).then_some(())).expect("the next change");
        pair.answers(200);
    }
    wait_for(60, || rejections().is_empty().then_some(())).expect("no rejection any more");
}

#[test]
fn a_trust_domain_is_let_in_when_it_is_federated_and_not_before_or_after() {
    let (here, our_url) = served("example.org");
    let (there, their_url) = served("other.org");
    let plans = [Plan::envoy("sotw"), Plan::delta("delta")].map(|plan| {
        let plan = plan.with("name: \"spiffe://example.org\"", "name: ALL");
        plan.with_web("spiffe://example.org/front", "spiffe://other.org/front")
    });
    let [web, front] = plans[0].enter([&here, &there], &[]);
    let pairs = plans.map(|plan| plan.start([&here, &there]));
    for pair in &pairs {
        assert_eq!(pair.get().status, 503);
        assert!(pair.front.sum("cluster.web.", ".fail_verify_error") > 0, "{:?}", pair.front.stats());
    }

    federate(&here, &there, &their_url);
    federate(&there, &here, &our_url);
    here.run(&["entry", "update", &web, "--federates-with", "other.org", "--wait"]).succeeded();
    there.run(&["entry", "update", &front, "--federates-with", "example.org", "--wait"]).succeeded();
    for pair in &pairs {
        assert_eq!(pair.answers(200), "spiffe://other.org/front");
    }

    here.run(&["federation", "delete", "other.org", "--dissociate", "--wait"]).succeeded();
    for pair in &pairs {
        pair.answers(503);
        assert!(pair.web.sum("listener.", ".fail_verify_error") > 0);
        pair.has_rejected_nothing();
    }
}

#[test]
fn istios_proxy_asks_where_the_agent_listens() {
    let (house, page) = (House::with_server(""), |file: &str| Recipe::read("istio", file));
    let roots = house.run(&["bundle", "show", "--format", "pem"]).succeeded().stdout;
    let config = page("agent.toml")
        .with("/etc/chancery/bundle.pem", &house.write("bundle.pem", &roots).display().to_string())
        .with("/etc/chancery/join-token", &house.write("join-token", &house.token()).display().to_string());
    let config = house.write("agent.toml", config.text()).display().to_string();
    let valid = house.run(&["agent", "validate", "--config", &config, "-o", "json"]).succeeded();
    let socket = "/run/chancery/workload-spiffe-uds/socket";
    assert!(valid.stdout.contains(socket), "{valid}");
    // The folder of that socket is mounted where the proxy looks for it.
    let template = page("template.yaml");
    assert!(template.text().contains("path: /run/chancery/workload-spiffe-uds,"), "{}", template.text());
    assert!(template.text().contains("mountPath: /var/run/secrets/workload-spiffe-uds,"), "{}", template.text());
}
