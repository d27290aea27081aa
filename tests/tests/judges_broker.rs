//! The Broker API judged by the public crate `spiffe`: a program that we did not write acts for a process that knows
//! nothing of identities (`tests/interop/README.md`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say what is wrong by panicking")]

use tests::binary::{Command, House, Judge, Process, free_port, update_of};
use tests::broker::Sleeper;

/// A house with the workload `/web` (every `sleep`) and the broker `/proxy` (the judge); where brokers knock over the
/// network; and what the agent is called.
fn house() -> (House, String, String) {
    let mut house = House::with_server("[svid]\nttl = '8s'");
    let (socket, address) = (house.path("broker.sock"), format!("127.0.0.1:{}", free_port()));
    let (token, uid) = (house.token(), House::of_us());
    let allow = "[[broker.allow]]\nid = 'spiffe://example.org/proxy'\nreferences = ['pid']";
    let broker = format!("[broker]\nsocket = {socket:?}\nlisten = '{address}'\n{allow}\nselectors = ['{uid}']");
    house.write_agent_config(&token, &broker);
    house.start_agent();
    let path = |program: std::path::PathBuf| format!("unix:path:{}", program.canonicalize().unwrap().display());
    house.entry("proxy", &path(Judge::Rust.program()), &[]);
    house.entry("web", &path(Sleeper::program()), &[]);
    let agents = house.run(&["agent", "list", "-o", "json"]).succeeded().json();
    let agent = agents["agents"][0]["id"].as_str().unwrap().to_owned();
    (house, address, agent)
}

fn judge(house: &House, web: &Sleeper, agent: &str, more: &[&str]) -> Command {
    Judge::Rust.command(house).args(["broker", "--pid", &web.pid().to_string(), "--peer", agent]).args(more)
}

#[test]
fn the_public_crate_acts_for_a_process_through_its_rotations() {
    let (house, _, agent) = house();
    let web = Sleeper::start();
    let socket = house.path("broker.sock").display().to_string();
    let mut proxy =
        Process::start(judge(&house, &web, &agent, &["--socket", &socket, "--updates", "3"]), house.folder(), "proxy");
    assert!(proxy.wait_for_end(90).success(), "{}", proxy.tail());
    let updates = update_of(&proxy);
    let (svids, bundles) = updates.split_at(3);
    for update in svids {
        assert_eq!(update["broker"], serde_json::json!(["spiffe://example.org/web"]), "{update}");
    }
    assert_eq!(bundles[0]["x509_bundles"], serde_json::json!(["spiffe://example.org"]), "{bundles:?}");
}

#[test]
fn the_public_crate_is_refused_in_words() {
    let (house, address, agent) = house();
    let mut web = Sleeper::start();
    let socket = house.path("broker.sock").display().to_string();
    let over_network = judge(&house, &web, &agent, &["--address", &address]).run();
    over_network.failed(1, &["a pid means nothing over the network"]);
    // It takes nobody for its agent but its agent.
    let other = "spiffe://example.org/chancery/agent/join_token/other";
    judge(&house, &web, other, &["--socket", &socket]).run().failed(1, &["the peer is", &agent]);
    web.kill();
    judge(&house, &web, &agent, &["--socket", &socket]).run().failed(1, &["has ended"]);
}
