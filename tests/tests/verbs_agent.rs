//! `chancery agent` taken through its verbs: the agents that a server knows, and one that is asked itself.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say what is wrong by panicking")]

use nix::sys::signal::Signal;
use tests::binary::{House, wait_for};

#[test]
fn agent_validate() {
    let house = House::with_server("");
    house.write_agent_config(&house.token(), "");
    let valid = house.run(&["agent", "validate", "--config", "agent.toml"]).succeeded();
    assert!(valid.stdout.starts_with("the config is right\n"), "{valid}");
    assert_eq!(valid.property("servers"), house.address());
    assert_eq!(valid.property("known by"), format!("the root sha256:{}", house.fingerprint()));
    let valid = house.run(&["agent", "validate", "--config", "agent.toml", "-o", "json"]).succeeded().json();
    assert_eq!(valid["workload_socket"], house.path("agent.sock").display().to_string());
    assert_eq!(valid["brokers"], serde_json::json!([]));
    assert_eq!(valid["deliveries"], serde_json::json!([]));
    let deliver = "[[deliver]]\nname = 'nginx'\ndir = '/run/x'\n[[deliver.file]]\nkind = 'chain'\nname = 'tls.crt'\n";
    house.write_agent_config(&house.token(), deliver);
    let valid = house.run(&["agent", "validate", "--config", "agent.toml"]).succeeded();
    assert_eq!(valid.property("nginx"), "1 file to /run/x");
    let flags = ["agent", "validate", "--trust-domain", "example.org", "--server", "a:1", "--bootstrap-bundle", "none"];
    house
        .run(&flags)
        .failed(1, &["none: there is no such file", "chancery bundle show --format pem", "--bootstrap-bundle"]);
    let unknown = house.run(&flags[..6]).succeeded();
    assert!(unknown.property("known by").contains("--ca-fingerprint"), "{unknown}");
    // A stored bundle would do: only where there is none is the server unknown.
    let socket = house.path("fresh.sock").display().to_string();
    let run = ["agent", "run", "--trust-domain", "example.org", "--server", "127.0.0.1:1", "--join-token", "chy-x"];
    let fresh = ["--data-dir", "fresh", "--workload-socket", &socket];
    house.run(&[&run[..], &fresh[..]].concat()).failed(1, &["--ca-fingerprint", "--bootstrap-bundle"]);
}

#[test]
fn agent_validate_looks_at_what_leads_to_a_cluster() {
    let house = House::empty("");
    let socket = house.path("a.sock").display().to_string();
    let base = "trust_domain = 'example.org'\nservers = ['127.0.0.1:1']\ndata_dir = 'a'\n";
    let token = house.path("token").display().to_string();
    let attest = format!("[attest]\nkind = 'k8s_psat'\ncluster = 'main'\ntoken_path = '{token}'\n");
    let validate = |more: &str| {
        house.write("pod.toml", &format!("{base}workload_socket = '{socket}'\n{attest}{more}"));
        house.run(&["agent", "validate", "--config", "pod.toml"])
    };
    validate("").failed(1, &[&format!("{token}: there is no such file"), "mount a projected token"]);
    house.write("token", "e.y.J");
    validate("").succeeded();
    let pods = "[attestors.k8s]\nnode_name = 'one'\n";
    validate(pods).failed(1, &["this agent is no pod", "KUBERNETES_SERVICE_HOST is not set", "kubeconfig"]);
    validate(&format!("{pods}kubeconfig = '/nope'\n")).failed(1, &["kubeconfig /nope: "]);
}

#[test]
fn agents_are_shown_evicted_banned_and_purged() {
    let mut house = House::with_agent("", "");
    let list = house.run(&["agent", "list", "--connected"]).succeeded();
    let rows = list.table(&["ID", "STATE", "ATTESTED", "EXPIRES", "REVISION"]);
    let id = rows[0][0].clone();
    assert_eq!(rows[0][1], "connected", "{list}");
    let shown = house.run(&["agent", "show", &id]).succeeded();
    assert_eq!((shown.property("id"), shown.property("attestor")), (id.as_str(), "join_token"));
    assert!(shown.property("svid expires").starts_with("in "), "{shown}");
    assert!(shown.property("has applied").starts_with("revision "), "{shown}");
    assert_eq!(house.run(&["agent", "count", "--attestor", "join_token"]).succeeded().stdout, "1\n");
    assert_eq!(house.run(&["agent", "count", "--banned"]).succeeded().stdout, "0\n");
    house.run(&["agent", "purge", "--expired-for", "1h"]).succeeded().says(&["forgot 0 agents"]);

    house.run(&["agent", "ban", &id]).succeeded().says(&[&format!("banned {id}"), "chancery agent evict"]);
    let state = || house.run(&["agent", "list"]).succeeded().table(&["ID", "STATE", "ATTESTED", "EXPIRES", "REVISION"]);
    assert_eq!(state()[0][1], "banned");
    assert_eq!(house.run(&["agent", "list", "--banned", "-o", "json"]).succeeded().json()["agents"][0]["id"], id);
    house.agent().wait_for_log("not accepted", 60);
    house.run(&["agent", "evict", &id]).succeeded().says(&[&format!("evicted {id}: it may attest again")]);
    house.run(&["agent", "list"]).succeeded().says(&["no agents: let one in with `chancery token create`"]);
    house.run(&["agent", "show", &id]).failed(1, &["not found: "]);
    house.run(&["agent", "evict", &id]).failed(1, &["not found: "]);
}

#[test]
fn agent_status() {
    let mut house = House::with_agent("", "");
    house.entry("web", &House::of_us(), &[]);
    house.run(&["fetch", "x509"]).succeeded();
    let socket = house.path("agent/status.sock").display().to_string();
    let status = house.run(&["agent", "status", "--status-socket", &socket]).succeeded();
    assert!(status.property("id").starts_with("spiffe://example.org/chancery/agent/join_token/"), "{status}");
    assert!(status.property("svid").starts_with("expires in "), "{status}");
    assert!(status.property("server").starts_with("connected, revision "), "{status}");
    status.says(&["SVID", "spiffe://example.org/web"]);
    let json = house.run(&["agent", "status", "--status-socket", &socket, "-o", "json"]).succeeded().json();
    assert_eq!(
        (&json["connected"], &json["svids"][0]["spiffe_id"]),
        (&true.into(), &"spiffe://example.org/web".into())
    );
    assert_eq!((json["proxies"].as_array().unwrap().len(), json["deliveries"].as_array().unwrap().len()), (0, 0));

    // It is asked of the agent itself: no server is needed, and without an agent there is no answer.
    house.server().signal(Signal::SIGKILL);
    let away = wait_for(20, || {
        let status = house.run(&["agent", "status", "--status-socket", &socket]).succeeded();
        status.property("server").starts_with("not connected").then_some(status)
    });
    away.expect("the agent notices that its server is gone").says(&["spiffe://example.org/web"]);
    house.run(&["agent", "status", "--status-socket", "none.sock"]).failed(3, &["no agent answers at none.sock"]);
}
