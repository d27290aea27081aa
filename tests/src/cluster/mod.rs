//! A Kubernetes cluster without nodes: a real kube-apiserver on a real etcd, for tests. Nodes, pods and what a kubelet
//! would say of them are written by the test; tokens, RBAC, watches and reviews are the API server's own.
//!
//! | file | owns |
//! |---|---|
//! | `etcd` | the etcd below, and how it loses its history |
//! | `server` | the API server: its flags, its process |
//! | `keys` | the CA, certificates, and the key that signs service-account tokens |
//! | `client` | requests to the API server, as JSON, from any test |
//! | `objects` | creating, reading, changing and deleting objects of any kind |
//! | `accounts` | service accounts: what they may do, their tokens, their kubeconfig files |
//! | `pods` | namespaces, nodes, owners, and pods that run |
//!
//! - Every call blocks, and may be made in a test with an async runtime or without one.
//! - What an API server refuses fails the test, but for `try_create`, `dry_run` and `call`.
//! - No controller runs: nothing is collected or finalized, no service account is made by itself, and a deleted namespace
//!   never goes. A pod goes at once.
//! - A cluster costs four seconds and 320 MB: tests of one file share one ([`Cluster::shared`]), each with
//!   namespaces and nodes of its own. Who stops or freezes the API server starts a cluster of its own.

mod accounts;
mod client;
mod etcd;
mod keys;
mod objects;
mod pods;
mod server;

pub use accounts::Token;
pub use objects::{collection, path_of, uid};
pub use pods::{Container, Pod, owner};

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use etcd::Etcd;
use keys::Keys;
use server::Server;

/// A running cluster. Dropping it ends it.
pub struct Cluster {
    // The order in which they are dropped: the API server first, the folder last.
    server: Mutex<Server>,
    client: kube::Client,
    etcd: Etcd,
    keys: Keys,
    folder: TempDir,
}

impl Cluster {
    /// The flags with which the API server has ClusterTrustBundle objects (`certificates.k8s.io/v1beta1`).
    pub const TRUST_BUNDLES: [&str; 2] = [
        "--runtime-config=certificates.k8s.io/v1beta1/clustertrustbundles=true",
        "--feature-gates=ClusterTrustBundle=true",
    ];

    /// Starts one, and returns when it is ready.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with more flags for the API server: [`Cluster::TRUST_BUNDLES`], for example.
    pub fn start_with(flags: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("chyk8s").tempdir().expect("a folder for temporary files");
        let keys = Keys::write(folder.path());
        let etcd = Etcd::start(folder.path());
        let mut server = Server::new(folder.path(), etcd.port(), flags);
        keys.write_admin_kubeconfig(folder.path(), &server.url());
        let client = client::connect(&folder.path().join(keys::ADMIN));
        server.start(&client);
        Self { server: Mutex::new(server), client, etcd, keys, folder }
    }

    /// The cluster that the tests of this process share, for as long as one of them holds it.
    pub fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());
        // A test that failed while it started one leaves nothing half-made here.
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let cluster = Arc::new(Self::start());
            *shared = Arc::downgrade(&cluster);
            cluster
        })
    }

    /// Where its API server is.
    pub fn url(&self) -> String {
        self.server().url()
    }

    /// Its CA, as a PEM file.
    pub fn ca(&self) -> PathBuf {
        self.folder().join(keys::CA)
    }

    /// A kubeconfig file of one who may do everything.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.folder().join(keys::ADMIN)
    }

    /// A folder that goes with it.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The resident memory of API server and etcd, in KiB.
    pub fn memory(&self) -> (u64, u64) {
        (server::resident(self.server().pid()), server::resident(self.etcd.pid()))
    }

    /// Lets the API server hang: connections are taken, and nothing is answered.
    pub fn freeze(&self) {
        self.server().freeze();
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.server().signal(Signal::SIGCONT);
    }

    /// Ends the API server at once: connections are refused.
    pub fn stop(&self) {
        self.server().stop();
    }

    /// Starts it again on the same port and the same etcd, and returns when it is ready.
    pub fn start_again(&self) {
        self.server().start(&self.client);
    }

    /// Ends the API server, lets etcd forget every revision but the newest, and starts it again: who goes on from a
    /// revision that it knows is answered by 410 Gone.
    pub fn lose_history(&self) {
        self.stop();
        self.etcd.compact();
        self.start_again();
    }

    fn server(&self) -> MutexGuard<'_, Server> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
