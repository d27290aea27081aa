//! The Broker API judged by the public crate `spiffe`: a broker with an SVID of its own asks for another process's
//! identities.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say what is wrong by panicking")]

use serde_json::Value;
use tests::binary::{Command, House, Judge, Output, Process, free_port};

/// A house with a broker endpoint that lets `spiffe://example.org/proxy` act for processes of our user.
struct Broker {
    house: House,
    port: u16,
    workload: Process,
}

impl Broker {
    fn start() -> Self {
        let port = free_port();
        let mut house = House::with_server("");
        let (socket, uid) = (house.path("broker.sock"), House::of_us());
        let config = format!(
            "[broker]\nsocket = {socket:?}\nlisten = '127.0.0.1:{port}'\n\
             [[broker.allow]]\nid = 'spiffe://example.org/proxy'\nreferences = ['pid']\nselectors = ['{uid}']\n\
             audiences = ['reports']"
        );
        house.write_agent_config(&house.token(), &config);
        house.start_agent();
        let program = Judge::Rust.program().canonicalize().unwrap();
        house.entry("proxy", &format!("unix:path:{}", program.display()), &[]);
        let sleep = std::fs::canonicalize("/bin/sleep").unwrap();
        house.entry("web", &format!("unix:path:{}", sleep.display()), &[]);
        let workload = Process::start(Command::new(&sleep).args(["600"]), house.folder(), "workload");
        Self { house, port, workload }
    }

    fn agent(&self) -> String {
        let list = self.house.run(&["agent", "list", "-o", "json"]).succeeded().json();
        list["agents"][0]["id"].as_str().unwrap().to_owned()
    }

    /// The public crate, with these words more; at the socket unless `at` says otherwise.
    fn ask(&self, at: &[&str], more: &[&str]) -> Output {
        let (pid, agent) = (self.workload.pid().to_string(), self.agent());
        let words = ["broker", "--pid", &pid, "--peer", &agent];
        Judge::Rust.command(&self.house).args([&words[..], at, more].concat()).run()
    }

    fn at_socket(&self, more: &[&str]) -> Output {
        let socket = self.house.path("broker.sock").display().to_string();
        self.ask(&["--socket", &socket], more)
    }
}

#[test]
fn the_public_crate_gets_everything_that_the_process_is_entitled_to() {
    let broker = Broker::start();
    let seen = broker.at_socket(&["--audience", "reports"]).succeeded();
    let lines: Vec<Value> = seen.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let web = Value::from("spiffe://example.org/web");
    assert_eq!(lines[0]["broker"], serde_json::json!([web]), "{seen}");
    assert_eq!(lines[1]["x509_bundles"], serde_json::json!(["spiffe://example.org"]), "{seen}");
    assert_eq!(lines[2]["jwt_bundles"], serde_json::json!(["spiffe://example.org"]), "{seen}");
    assert_eq!(lines[3]["tokens"][0]["spiffe_id"], web, "{seen}");
    // It is a token like any other.
    let token = lines[3]["tokens"][0]["token"].as_str().unwrap();
    assert_eq!(token.split('.').count(), 3, "{seen}");
}

#[test]
fn what_the_allow_list_does_not_say_is_refused() {
    let broker = Broker::start();
    // Processes have no meaning at a distance.
    let address = format!("127.0.0.1:{}", broker.port);
    let far = broker.ask(&["--address", &address], &[]);
    assert!(far.code != Some(0) && far.stderr.contains("nvalid"), "{far}");
    let audience = broker.at_socket(&["--audience", "billing"]);
    assert!(audience.code != Some(0) && audience.stderr.contains("billing"), "{audience}");
    // Nobody answers for a process that has gone.
    let words = ["broker", "--pid", "4194303", "--peer", &broker.agent(), "--socket"];
    let socket = broker.house.path("broker.sock").display().to_string();
    let gone = Judge::Rust.command(&broker.house).args([&words[..], &[&socket]].concat()).run();
    assert!(gone.code != Some(0) && gone.stderr.contains("4194303"), "{gone}");
    // The agent is known by its own ID alone.
    let words = ["broker", "--pid", "1", "--peer", "spiffe://example.org/other", "--socket", &socket];
    let other = Judge::Rust.command(&broker.house).args(words).run();
    assert_ne!(other.code, Some(0), "{other}");
}
