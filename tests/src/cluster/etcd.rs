//! The etcd of a cluster: one member on the loopback, which keeps nothing for long.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;

use serde_json::{Value, json};

use crate::binary::{Command, Process, free_port, place};

/// How long it may take to be ready, in seconds.
const READY: u64 = 60;

/// A running etcd.
#[derive(Debug)]
pub(super) struct Etcd {
    process: Process,
    port: u16,
}

impl Etcd {
    /// Starts one in `folder`, and returns when it answers.
    pub(super) fn start(folder: &Path) -> Self {
        let port = free_port();
        let (clients, peers) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{}", free_port()));
        // Since 3.5 it may leave out what nobody here needs; before, it says that it does not know the variable.
        let command = Command::new(place("CHANCERY_ETCD")).env("ETCD_UNSAFE_NO_FSYNC", "true").args([
            &format!("--data-dir={}", folder.join("etcd").display()),
            &format!("--listen-client-urls={clients}"),
            &format!("--advertise-client-urls={clients}"),
            &format!("--listen-peer-urls={peers}"),
            &format!("--initial-advertise-peer-urls={peers}"),
            &format!("--initial-cluster=default={peers}"),
            "--log-level=warn",
        ]);
        let mut process = Process::start(command, folder, "etcd");
        process.wait_for("an answer", READY, |_| revision(port));
        Self { process, port }
    }

    /// Where it listens, on the loopback.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Its number.
    pub(super) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Forgets every revision but the newest, which is one that nobody has seen.
    pub(super) fn compact(&self) {
        // "chancery" in base64.
        post(self.port, "/v3/kv/put", &json!({ "key": "Y2hhbmNlcnk=", "value": "" })).expect("etcd takes a key");
        let revision = revision(self.port).expect("etcd has a revision");
        let compaction = json!({ "revision": revision, "physical": true });
        post(self.port, "/v3/kv/compaction", &compaction).expect("etcd forgets");
    }
}

/// Its newest revision, once it can tell.
fn revision(port: u16) -> Option<String> {
    let answer = post(port, "/v3/kv/range", &json!({ "key": "Y2hhbmNlcnk=" }))?;
    Some(answer["header"]["revision"].as_str()?.to_owned())
}

/// One request to its JSON gateway.
fn post(port: u16, path: &str, body: &Value) -> Option<Value> {
    let (mut stream, body) = (TcpStream::connect(("127.0.0.1", port)).ok()?, body.to_string());
    let head = format!("POST {path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {}", body.len());
    write!(stream, "{head}\r\n\r\n{body}").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.lines().next()?.contains(" 200 ").then(|| serde_json::from_str(body).ok())?
}
