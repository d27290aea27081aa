//! A machine with its agent whose processes are in the containers of pods, and what a test waits for there.

use std::path::Path;
use std::time::Duration;

use spiffe::proto::v1;
use tonic::Code;

use crate::cgroup::Cgroup;
use crate::contained::Contained;
use crate::house::{House, Settings};
use crate::node::Node;
use crate::operator::entry;
use crate::patience::that;
use crate::workload::Workload;

/// Longer than a process waits for its container.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// See the head of this file.
#[derive(Debug)]
pub struct Host {
    /// The house that it belongs to.
    pub house: House,
    /// Its agent.
    pub node: Node,
}

impl Host {
    /// One of the node `name`, with these settings beside those of every host.
    pub async fn start(house: House, name: &str, settings: Settings<'_>) -> Self {
        let every = [("attestors.unix.sha256_limit", "0B"), ("attestors.k8s.node_name", name)];
        let all: Vec<_> = every.iter().chain(settings).copied().collect();
        let node = Node::start(&house, "node", &all).await;
        Self { house, node }
    }

    /// Registers what everything with `selectors` is.
    pub async fn register(&self, path: &str, selectors: &[&str]) {
        let selectors = selectors.iter().map(ToString::to_string).collect();
        let entry = v1::Entry { selectors, ..entry(&self.node.id(), path) };
        self.house.operator().await.register(entry).await;
    }

    /// A process in a group.
    pub fn process(&self, group: Cgroup) -> Contained {
        self.process_after(&[], group)
    }

    /// A process in a group, behind these words of a shell.
    pub fn process_after(&self, before: &[String], group: Cgroup) -> Contained {
        let folder: &Path = &self.house.path("");
        Contained::start_after(before, group, folder, self.node.socket())
    }

    /// What the process asks for by itself.
    pub async fn workload(&self, of: &Contained) -> Workload {
        of.workload(self.house.clock()).await
    }

    /// Waits until a workload has exactly these identities.
    pub async fn has(&self, workload: &Workload, paths: &[&str]) {
        self.house
            .eventually("the identities of a pod", async || {
                let context = workload.context()?;
                that(context.paths() == paths, || format!("it has {:?}", context.paths()))
            })
            .await;
    }

    /// Asks anew and anew, until the process has exactly these identities.
    pub async fn comes_to_have(&self, of: &Contained, paths: &[&str]) {
        for _ in 0..100 {
            let workload = self.workload(of).await;
            let state = self.house.eventually("an answer", async || workload.state().ok_or_else(|| "none yet".into()));
            if state.await.is_ok_and(|context| context.paths() == paths) {
                return;
            }
            self.house.jump(PATIENCE);
        }
        panic!("it never has {paths:?}");
    }

    /// Waits until a workload is refused, and returns what it is told.
    pub async fn refused(&self, workload: &Workload) -> String {
        let status = self.house.eventually("a workload is refused", async || workload.end()).await;
        assert_eq!(status.code(), Code::PermissionDenied, "{status}");
        status.message().to_owned()
    }
}
