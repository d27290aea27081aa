//! What the real binary says when things are wrong. Each test reads the message that a user would see.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say what is wrong by panicking")]

use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use tests::binary::{House, Output, Process};

/// Runs a server that is expected not to start.
fn server(house: &House) -> Output {
    house.run(&["server", "run", "--config", "server.toml"])
}

/// Runs an agent that is expected not to start.
fn agent(house: &House) -> Output {
    house.run(&["agent", "run", "--config", "agent.toml"])
}

#[test]
fn a_config_with_an_unknown_key() {
    let house = House::empty("svid.tll = '1h'");
    server(&house).failed(1, &["unknown field `tll`", "server.toml"]);
    house.run(&["server", "validate", "--config", "server.toml"]).failed(1, &["unknown field `tll`"]);
    house.write("agent.toml", "trust_domain = 'example.org'\nserver = 'a:1'");
    agent(&house).failed(1, &["unknown field `server`", "agent.toml"]);
    house.write_server_config("");
    let variable = house.command(&["server", "run", "--config", "server.toml"]).env("CHANCERY_SERVER__SVID__TLL", "1h");
    variable.run().failed(1, &["unknown field `tll`"]);
}

#[test]
fn a_ttl_that_the_ca_cannot_honour() {
    let house = House::empty("[svid]\nttl = '1h'\n[authority]\nca_ttl = '2h'");
    server(&house).failed(
        1,
        &[
            "svid.ttl = \"1h\" is too long for authority.ca_ttl = \"2h\"",
            "Set svid.ttl to at most \"20m\", or authority.ca_ttl to at least \"6h\"",
        ],
    );
    // The same for an entry: the server says what it signs at most.
    house.write_server_config("[svid]\nmax_ttl = '2h'");
    let mut house = house;
    house.start_server();
    let words = ["entry", "create", "--spiffe-id", "spiffe://example.org/x", "--parent", House::NODE];
    let made = house.run(&[&words[..], &["--selector", "unix:uid:1", "--x509-ttl", "3h"][..]].concat());
    let said = made.failed(1, &["1 entry was not created"]).stdout;
    assert!(said.contains("2h"), "the limit is named: {said}");
}

/// What the kernel says that a process may have open: the soft limit and the hard one.
fn open_files(process: &Process) -> Vec<String> {
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", process.pid())).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    line.split_ascii_whitespace().take(2).map(str::to_owned).collect()
}

#[test]
fn too_few_open_files_for_the_connections_that_are_allowed() {
    let house = House::empty("");
    let binary = tests::binary::chancery();
    let limited = "ulimit -Sn 200; ulimit -Hn 2000; exec \"$0\" server run --config server.toml";
    let command = house.program("sh").args(["-c", limited, binary.to_str().unwrap()]);
    let mut server = Process::start(command, house.folder(), "server");
    server.wait_for_log("the server answers", 60);
    assert_eq!(open_files(&server), ["2000", "2000"], "the soft limit was raised");
    server.wait_for_log("limits.connections = 10000 may take 11280 open files, and this process may have 2000", 5);
    drop(server);
    // Enough for what the config says.
    house.write_server_config("[limits]\nconnections = 500");
    let command = house.program("sh").args(["-c", limited, binary.to_str().unwrap()]);
    let mut server = Process::start(command, house.folder(), "enough");
    server.wait_for_log("the server answers", 60);
    assert!(!server.log().contains("open files"), "{}", server.log());
}

#[test]
fn a_port_in_use() {
    let mut house = House::with_server("");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let words = ["server", "run", "--config", "server.toml", "--data-dir", "other", "--admin-socket", "other.sock"];
    let run = |listen: &str, health: &str| {
        let command = house.command(&[&words[..], &["--listen", listen][..]].concat());
        command.env("CHANCERY_SERVER__HEALTH_LISTEN", health).run()
    };
    for (key, said) in [("listen", run(&address, "127.0.0.1:0")), ("health_listen", run("127.0.0.1:0", &address))] {
        said.failed(
            1,
            &[
                "the server cannot start: ",
                &format!("cannot listen on {key} {address}: "),
                "another process has this port; stop it, or choose another one",
            ],
        );
    }
    house.write_agent_config(&house.token(), &format!("health_listen = '{address}'"));
    agent(&house).failed(1, &[&format!("cannot listen on health_listen {address}"), "choose another port"]);
    // The token was not used up by that.
    house.write_agent_config(&std::fs::read_to_string(house.path("join-token")).unwrap(), "");
    house.start_agent();
}

#[test]
fn a_socket_path_that_is_too_long() {
    let house = House::with_server("");
    let long = house.path(&"x".repeat(110)).display().to_string();
    let bytes = format!("has {} bytes", long.len());
    let words = ["server", "run", "--config", "server.toml", "--admin-socket", &long];
    house.run(&words).failed(1, &[&bytes, "107", "shorter"]);
    house.write_agent_config("none", "");
    house.run(&["agent", "run", "--config", "agent.toml", "--workload-socket", &long]).failed(1, &[&bytes, "shorter"]);
    house.run(&["agent", "run", "--config", "agent.toml", "--workload-socket", "a.sock"]).failed(1, &["absolute"]);
}

#[test]
fn a_stale_socket_file_is_replaced() {
    let mut house = House::with_agent("", "");
    house.entry("web", &House::of_us(), &[]);
    house.agent().kill();
    house.server().kill();
    assert!(house.path("admin.sock").exists() && house.path("agent.sock").exists(), "killed: nobody cleaned up");
    house.run(&["entry", "list"]).failed(3, &["no server answers at "]);
    house.start_server();
    house.start_agent();
    house.run(&["entry", "list"]).succeeded().says(&["spiffe://example.org/web"]);
    house.run(&["fetch", "x509"]).succeeded().says(&["spiffe://example.org/web"]);
    // What is no socket is not touched.
    house.stop_agent();
    house.write("agent.sock", "mine");
    agent(&house).failed(1, &["agent.sock exists and is no socket"]);
    assert_eq!(std::fs::read_to_string(house.path("agent.sock")).unwrap(), "mine");
}

#[test]
fn two_servers_on_one_folder() {
    let house = House::with_server("");
    server(&house).failed(1, &["the server cannot start: ", "another process has this port"]);
    let words = ["server", "run", "--config", "server.toml", "--listen", "127.0.0.1:0"];
    let second = |more: &[&str]| {
        house.command(&[&words[..], more].concat()).env("CHANCERY_SERVER__HEALTH_LISTEN", "127.0.0.1:0").run()
    };
    second(&[]).failed(1, &["another server answers on ", "admin.sock", "choose another admin_socket"]);
    second(&["--admin-socket", "second.sock"])
        .failed(1, &["the server cannot start: the store is unavailable: ", "in use"]);
    house.run(&["entry", "count"]).succeeded();
}

/// Every file below `folder`, the largest first.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found.sort_by_key(|path| std::cmp::Reverse(path.metadata().unwrap().len()));
    found
}

#[test]
fn a_corrupt_store() {
    let mut house = House::with_server("");
    for n in 0..50 {
        let (id, selector) = (format!("spiffe://example.org/{n}"), format!("unix:uid:{n}"));
        let words = ["entry", "create", "--spiffe-id", &id, "--parent", House::NODE, "--selector", &selector];
        if n % 10 == 0 {
            house.run(&words).succeeded();
        }
    }
    house.stop_server();
    let database = files(&house.path("server/store")).remove(0);
    let mut file = std::fs::OpenOptions::new().read(true).write(true).open(&database).unwrap();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    let at = bytes.windows(8).position(|window| window == b"example.").expect("the store has an entry in it");
    file.seek(SeekFrom::Start(at as u64)).unwrap();
    file.write_all(b"EXAMPLE!").unwrap();
    drop(file);
    let said = server(&house);
    assert!(said.code != Some(0), "{said}");
    let store = house.path("server/store").display().to_string();
    for word in ["corrupt", "restore it from a backup", store.as_str()] {
        assert!(said.stderr.contains(word), "{word:?} is missing:\n{said}");
    }
}

#[test]
fn an_agent_with_a_token_that_was_used() {
    let house = House::with_agent("", "");
    let words = ["agent", "run", "--config", "agent.toml", "--data-dir", "second", "--workload-socket"];
    let second = house.command(&words).args([house.path("second.sock").display().to_string()]).run();
    second.failed(
        1,
        &[
            "the agent cannot start: the server does not take the join token: ",
            "join token is not known (used already, or revoked): create another with \"chancery token create\"",
        ],
    );
    house.write_agent_config("hunter2", "");
    let malformed = house.command(&words).args([house.path("second.sock").display().to_string()]).run();
    malformed.failed(1, &["that is no join token: one begins with \"chy-\""]);
}

#[test]
fn an_agent_that_knows_another_fingerprint() {
    let house = House::with_server("");
    house.write_agent_config(&house.token(), "");
    let text = std::fs::read_to_string(house.path("agent.toml")).unwrap();
    house.write("agent.toml", &text.replace(&house.fingerprint(), &"ab".repeat(32)));
    let mut agent = house.process("agent", &["agent", "run", "--config", "agent.toml"]);
    agent.wait_for("saying why", 60, |agent| {
        (agent.log().contains("fingerprint") && agent.log().contains(house.address())).then_some(())
    });
    assert_eq!(house.run(&["agent", "count"]).succeeded().stdout, "0\n");
    let tokens = house.run(&["token", "list", "-o", "json"]).succeeded().json();
    assert_eq!(tokens["tokens"].as_array().unwrap().len(), 1, "the token was told to nobody");
}

#[test]
fn an_agent_of_another_trust_domain() {
    let house = House::with_server("");
    house.write_agent_config(&house.token(), "");
    let text = std::fs::read_to_string(house.path("agent.toml")).unwrap();
    house.write("agent.toml", &text.replace("'example.org'", "'other.org'"));
    let mut agent = house.process("agent", &["agent", "run", "--config", "agent.toml"]);
    agent.wait_for("saying why", 60, |agent| {
        let log = agent.log();
        (log.contains("other.org") && log.contains("example.org")).then_some(())
    });
    assert_eq!(house.run(&["agent", "count"]).succeeded().stdout, "0\n");
}

#[test]
fn a_second_agent_on_the_same_socket() {
    let house = House::with_agent("", "");
    let socket = house.path("agent.sock").display().to_string();
    agent(&house).failed(1, &[&format!("another agent listens on {socket}: stop it, or choose another socket path")]);
    house.run(&["healthcheck", "--workload-socket", &house.endpoint()]).succeeded();
}

#[test]
fn a_server_that_cannot_be_reached() {
    let mut house = House::with_server("");
    house.write_agent_config(&house.token(), "");
    house.stop_server();
    // The agent keeps trying, and says so.
    let mut agent = house.process("waiting", &["agent", "run", "--config", "agent.toml"]);
    let address = house.address().to_owned();
    agent.wait_for("two attempts", 60, |agent| {
        let log = agent.log();
        let tries = log.matches("this node could not be attested: trying again").count();
        (tries >= 2 && log.contains("no server can be reached: ") && log.contains(&address)).then_some(())
    });
    house.run(&["agent", "list"]).failed(3, &["no server answers at ", "chancery server run"]);
    house.run(&["healthcheck", "--health", house.health(), "--timeout", "1s"]).failed(3, &["no server answers at "]);
    // It is there as soon as the server is.
    house.start_server();
    agent.wait_for_log("agent is up", 60);
    house.stop_server();
    agent.signal(Signal::SIGTERM);
    assert!(agent.wait_for_end(10).success(), "without a server it ends as well:\n{}", agent.tail());
}

#[test]
fn sigterm_ends_server_and_agent_within_seconds() {
    let mut house = House::with_agent("", "");
    house.entry("web", &House::of_us(), &[]);
    // With a stream open at each of them.
    let mut watcher = house.process("watcher", &["fetch", "x509", "--watch"]);
    watcher.wait_for("an SVID", 30, |watcher| watcher.stdout().contains("serial").then_some(()));
    house.server().signal(Signal::SIGTERM);
    assert!(house.server().wait_for_end(8).success());
    assert!(!house.path("admin.sock").exists(), "its socket is gone");
    house.agent().signal(Signal::SIGTERM);
    assert!(house.agent().wait_for_end(8).success());
    assert!(!house.path("agent.sock").exists(), "its socket is gone");
    for log in [house.server().log(), house.agent().log()] {
        assert!(!log.contains(" ERROR ") && !log.contains("panicked"), "{log}");
    }
    // An agent that waits for a server to let it in ends as readily.
    let mut waiting = house.process("waiting", &["agent", "run", "--config", "agent.toml", "--data-dir", "fresh"]);
    waiting.wait_for_log("trying again", 30);
    waiting.signal(Signal::SIGTERM);
    assert!(waiting.wait_for_end(8).success(), "{}", waiting.tail());
    assert!(!house.path("agent.sock").exists(), "its socket is gone");
}
