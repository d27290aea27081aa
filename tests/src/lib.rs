//! The house in one process: a server, agents, operators and workloads on one fake clock; and the real binary, for
//! other people's programs to judge. For the tests beside this crate.
//!
//! | file | owns |
//! |---|---|
//! | `house` | a [`House`]: the clock, the server, its config; how time passes |
//! | `node` | a [`Node`]: an agent and its config |
//! | `operator` | an operator at the admin door, with the few words that tests use |
//! | `workload` | a [`Workload`]: one open Workload API stream and the mutual TLS that is fed from it |
//! | `broker` | a broker at the broker endpoint of an agent, and processes that it names |
//! | `by_hand` | an agent without the agent's code, which behaves as badly as it is told |
//! | `paper_cluster` | a Kubernetes cluster of paper: whose a token is, and which pods run where |
//! | `ztunnel` | a proxy of a node that behaves as Istio's ztunnel does |
//! | `certificates` | CAs, nodes' certificates and CSRs, the bad ones too |
//! | `endpoint` | a bundle endpoint that behaves as badly as it is told |
//! | `web` | a browser of few words |
//! | `patience` | how tests wait: for a condition, never for a time |
//! | `binary` | the real binary as processes, and where its judges are |
//! | `chart` | the Helm chart as Helm renders it, and the configs in it |
//! | `cluster` | a Kubernetes cluster without nodes: a real kube-apiserver and etcd |
//! | `kubelet` | a kubelet as far as an agent sees one |
//! | `cgroup` | processes in cgroups as container runtimes shape them |
//! | `contained` | a process in the container of a pod, which knocks for a test |
//! | `host` | a [`Host`]: a machine whose processes are in pods, and what a test waits for there |
//! | `proxies` | Envoy and others as the real programs, with the configs of `docs/proxies` |
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "this is test code: what cannot be had fails the test"
)]

pub mod binary;
pub mod broker;
pub mod by_hand;
pub mod certificates;
pub mod cgroup;
pub mod chart;
pub mod cluster;
pub mod contained;
pub mod endpoint;
pub mod host;
pub mod house;
pub mod kubelet;
pub mod node;
pub mod operator;
pub mod paper_cluster;
pub mod patience;
pub mod proxies;
pub mod web;
pub mod workload;
pub mod ztunnel;

pub use host::Host;
pub use house::House;
pub use node::Node;
pub use operator::Operator;
pub use patience::eventually;
pub use workload::Workload;
