//! An agent of the house and its config.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use node_agent::app::Agent;
use node_agent::config::Config;
use spiffe::id::SpiffeId;

use crate::house::{House, Settings, own, text, variables};
use crate::patience;
use crate::workload::Workload;

/// One machine with an agent.
#[derive(Debug)]
pub struct Node {
    name: String,
    settings: BTreeMap<String, String>,
    agent: Option<Agent>,
    socket: PathBuf,
}

impl Node {
    /// A machine that is attested by a join token, whose agent runs.
    pub async fn start(house: &House, name: &str, settings: Settings<'_>) -> Self {
        let token = house.operator().await.token("").await;
        let mut node = Self::new(house, name, settings).await;
        node.set("attest.kind", "join_token");
        node.set("attest.token", &token);
        node.start_agent(house).await.unwrap();
        node
    }

    /// A machine whose agent does not run yet, and that has no way to attest.
    pub async fn new(house: &House, name: &str, settings: Settings<'_>) -> Self {
        let info = house.operator().await.info().await;
        let socket = house.path(&format!("{name}.sock"));
        let defaults = [
            ("trust_domain", crate::house::TRUST_DOMAIN.to_owned()),
            ("servers", format!("[\"{}\"]", house.address())),
            ("data_dir", text(&house.path(name))),
            ("workload_socket", text(&socket)),
            ("ca_fingerprint", format!("sha256:{}", info.ca_fingerprint)),
        ];
        let mut all: BTreeMap<_, _> = defaults.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        all.extend(own(settings));
        Self { name: name.into(), settings: all, agent: None, socket }
    }

    /// Changes a setting, for the next start.
    pub fn set(&mut self, key: &str, value: &str) {
        self.settings.insert(key.into(), value.into());
    }

    /// Takes a setting away, for the next start.
    pub fn unset(&mut self, key: &str) {
        self.settings.remove(key);
    }

    /// Starts the agent. Time goes on while it tries.
    pub async fn start_agent(&mut self, house: &House) -> Result<(), String> {
        let config = Config::parse("", variables(node_agent::config::ENVIRONMENT_PREFIX, &self.settings)).unwrap();
        let clock = house.clock();
        let starting = tokio::spawn(async move { Agent::start(config, clock).await });
        house
            .eventually(&format!("agent {} starts or fails", self.name), async || {
                patience::that(starting.is_finished(), || "neither yet".into())
            })
            .await;
        self.agent = Some(starting.await.unwrap().map_err(|error| error.to_string())?);
        Ok(())
    }

    /// Stops the agent as a signal would.
    pub async fn stop_agent(&mut self) {
        let agent = self.agent.take().unwrap();
        patience::soon("the agent stops", agent.shutdown()).await.unwrap();
    }

    /// The running agent's identity.
    pub fn id(&self) -> SpiffeId {
        self.agent.as_ref().unwrap().id().clone()
    }

    /// Where workloads knock.
    pub fn socket(&self) -> &PathBuf {
        &self.socket
    }

    /// Where brokers knock over the network.
    pub fn broker_address(&self) -> SocketAddr {
        self.agent.as_ref().unwrap().broker_address().unwrap()
    }

    /// A workload of this machine: this very process, which opens a stream of its own.
    pub async fn workload(&self, house: &House) -> Workload {
        Workload::open(&self.socket, house.clock()).await
    }
}
