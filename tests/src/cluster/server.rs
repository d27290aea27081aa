//! The kube-apiserver of a cluster: its flags, its process.

use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

use super::{client, keys};
use crate::binary::{Command, Process, free_port, place, wait_for};

/// How long it may take to be ready, in seconds, on a machine that does other things.
const READY: u64 = 180;
/// How long it may take to stand still, in seconds.
const STOPPED: u64 = 30;

/// Who issues its service-account tokens, by its own word.
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// An API server on a port that stays its own.
#[derive(Debug)]
pub(super) struct Server {
    process: Option<Process>,
    flags: Vec<String>,
    port: u16,
    folder: PathBuf,
}

impl Server {
    /// One on the etcd at that port, with the files of `keys` in `folder`, which does not run yet.
    pub(super) fn new(folder: &Path, etcd: u16, more: &[&str]) -> Self {
        let (port, file) = (free_port(), |name: &str| folder.join(name).display().to_string());
        let mut flags = vec![
            format!("--etcd-servers=http://127.0.0.1:{etcd}"),
            "--bind-address=127.0.0.1".into(),
            format!("--secure-port={port}"),
            // It insists on an address that is not the loopback's, for endpoints that nobody here uses (RFC 5737).
            "--advertise-address=192.0.2.2".into(),
            "--endpoint-reconciler-type=none".into(),
            format!("--tls-cert-file={}", file(keys::SERVER_CERTIFICATE)),
            format!("--tls-private-key-file={}", file(keys::SERVER_KEY)),
            format!("--client-ca-file={}", file(keys::CA)),
            format!("--service-account-issuer={ISSUER}"),
            format!("--service-account-signing-key-file={}", file(keys::ACCOUNT_KEY)),
            format!("--service-account-key-file={}", file(keys::ACCOUNT_PUBLIC_KEY)),
            "--authorization-mode=Node,RBAC".into(),
            "--service-cluster-ip-range=10.0.0.0/24".into(),
            "--allow-privileged=true".into(),
        ];
        flags.extend(more.iter().map(|flag| (*flag).to_owned()));
        Self { process: None, flags, port, folder: folder.into() }
    }

    pub(super) fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// Its number.
    pub(super) fn pid(&self) -> u32 {
        self.process.as_ref().expect("the API server runs").pid()
    }

    /// Starts it, and returns when it is ready for `client`.
    pub(super) fn start(&mut self, client: &kube::Client) {
        let command = Command::new(place("CHANCERY_KUBE_APISERVER")).args(&self.flags);
        let mut process = Process::start(command, &self.folder, "kube-apiserver");
        process.wait_for("being ready", READY, |_| client::is_ready(client).then_some(()));
        self.process = Some(process);
    }

    /// Stops it, and returns when it stands still: until the signal has reached a thread, the others still answer.
    pub(super) fn freeze(&mut self) {
        self.signal(Signal::SIGSTOP);
        let pid = self.pid();
        let stopped = wait_for(STOPPED, || is_stopped(pid).then_some(()));
        assert!(stopped.is_some(), "the API server goes on {STOPPED} s after it was stopped");
    }

    pub(super) fn signal(&mut self, signal: Signal) {
        self.process.as_mut().expect("the API server runs").signal(signal);
    }

    /// Ends it as a machine that fails does: it would wait for its watchers otherwise, and never end while it is frozen.
    pub(super) fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Whether each thread of the process stands still.
fn is_stopped(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the process lives");
    threads.flatten().all(|thread| {
        let status = std::fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        status.lines().any(|line| line.starts_with("State:\tT"))
    })
}

/// The resident memory of the process with this number, in KiB.
pub(super) fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has memory");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
