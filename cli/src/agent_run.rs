//! `chancery agent run|validate`: the agent itself, and what it is told.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use node_agent::app::{self, Agent, AppError};
use node_agent::config::{Bootstrap, Config, ENVIRONMENT_PREFIX};
use serde::Serialize;
use spiffe::id::TrustDomain;
use spiffe::time::System;

use crate::args::Globals;
use crate::deliver::ValidDelivery;
use crate::exit::{Failure, Outcome};
use crate::files;
use crate::folders::Folders;
use crate::open_files;
use crate::output::Sheet;
use crate::overrides::{Overrides, with_flags, wrong};
use crate::running::told_to_stop;

const USUAL_CONFIG: &str = "/etc/chancery/agent.toml";

/// The keys that are flags too, for messages.
const FLAGS: &[(&str, &str)] = &[
    ("trust_domain", "--trust-domain"),
    ("servers", "--server"),
    ("ca_fingerprint", "--ca-fingerprint"),
    ("bootstrap_bundle", "--bootstrap-bundle"),
    ("data_dir", "--data-dir"),
    ("workload_socket", "--workload-socket"),
];

/// The flags.
#[derive(Debug, Args)]
pub(crate) struct Settings {
    /// The config file; /etc/chancery/agent.toml where none is given and that exists. Flags win over it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The agent's trust domain.
    #[arg(long, value_name = "NAME")]
    trust_domain: Option<TrustDomain>,
    /// The server that the agent belongs to; several with commas between them are tried in turn.
    // In place of the global flag of this name, which is for admin verbs.
    #[arg(long = "server", id = "server", value_name = "HOST:PORT", value_delimiter = ',')]
    servers: Vec<String>,
    /// The token that `chancery token create` printed. Not needed again once the agent was let in.
    #[arg(long, env = "CHANCERY_JOIN_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    join_token: Option<String>,
    /// The SHA-256 of the CA's root, to know the server by: sha256:...
    #[arg(long, value_name = "SHA256", conflicts_with = "bootstrap_bundle")]
    ca_fingerprint: Option<String>,
    /// A file with the roots of the trust domain, to know the server by.
    #[arg(long, value_name = "FILE")]
    bootstrap_bundle: Option<PathBuf>,
    /// The folder of the agent's own SVID and key.
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    /// Where the Workload API is served.
    #[arg(long, value_name = "PATH")]
    workload_socket: Option<PathBuf>,
}

/// `agent validate`: the main things of a config that is right.
#[derive(Debug, Serialize)]
struct Valid {
    trust_domain: String,
    servers: Vec<String>,
    data_dir: PathBuf,
    workload_socket: PathBuf,
    /// Where brokers ask: a socket, an address, or both; none where there is no such endpoint.
    brokers: Vec<String>,
    deliveries: Vec<ValidDelivery>,
}

impl Settings {
    fn config(self) -> Outcome<Config> {
        let folders = Folders::of_this_process();
        let over = Overrides::new(ENVIRONMENT_PREFIX)
            .default("data_dir", folders.state("agent"))
            .default("workload_socket", Some(folders.own_workload_socket()))
            .default("attest.kind", Some("join_token"))
            .flag("trust_domain", self.trust_domain)
            .flag("servers", (!self.servers.is_empty()).then_some(self.servers))
            .flag("attest.token", self.join_token)
            .flag("ca_fingerprint", self.ca_fingerprint)
            .flag("bootstrap_bundle", self.bootstrap_bundle)
            .flag("data_dir", self.data_dir)
            .flag("workload_socket", self.workload_socket);
        let laid = over.read(self.config.as_deref(), Path::new(USUAL_CONFIG))?;
        let parsed = Config::parse(&laid.text, laid.variables);
        parsed.map_err(|error| wrong(&error, &laid.place, FLAGS))
    }

    /// `agent run`.
    pub(crate) async fn run(self) -> Outcome {
        let config = self.config()?;
        // The connection itself, and the process at its other end.
        open_files::make_room("limits.connections", config.limits.connections, 2);
        // Below /run/user nobody else makes it.
        if let Some(folder) = config.workload_socket.parent().filter(|folder| !folder.exists()) {
            files::make_folder(folder, if nix::unistd::geteuid().is_root() { 0o755 } else { 0o700 })?;
        }
        // From here on: the node may have to wait long until a server lets it in.
        let mut told = std::pin::pin!(told_to_stop());
        let mut agent = tokio::select! {
            told = &mut told => return told,
            started = start(config) => started?,
        };
        let stopped = tokio::select! {
            told = &mut told => told,
            ended = agent.finished() => Err(ended_by_itself(ended)),
        };
        tracing::info!("the agent stops");
        stopped.and(stop(agent).await)
    }

    /// `agent validate`.
    pub(crate) fn validate(self, globals: &Globals) -> Outcome {
        let config = self.config()?;
        app::check(&config).map_err(|error| Failure::Refused(with_flags(error.to_string(), FLAGS)))?;
        let known_by = match &config.bootstrap {
            Some(Bootstrap::Bundle(path)) => format!("the roots in {}", path.display()),
            Some(Bootstrap::Fingerprint(sha256)) => format!("the root sha256:{}", spiffe::crypto::hex(sha256)),
            None => "the bundle that an earlier start left in its folder; the first start needs bootstrap_bundle or \
                     ca_fingerprint (--bootstrap-bundle, --ca-fingerprint)"
                .into(),
        };
        let (at, listen) =
            config.broker.as_ref().map_or((None, None), |broker| (broker.socket.as_ref(), broker.listen));
        let brokers = at.map(|path| path.display().to_string()).into_iter().chain(listen.map(|at| at.to_string()));
        let valid = Valid {
            brokers: brokers.collect(),
            deliveries: config.deliveries.into_iter().map(ValidDelivery::from).collect(),
            trust_domain: config.trust_domain.to_string(),
            servers: config.servers.iter().map(ToString::to_string).collect(),
            data_dir: config.data_dir,
            workload_socket: config.workload_socket,
        };
        globals.output.show(&valid, || {
            let sheet = Sheet::default()
                .line("trust domain", &valid.trust_domain)
                .lines("servers", &valid.servers)
                .line("known by", &known_by)
                .line("state in", valid.data_dir.display().to_string())
                .line("workloads", valid.workload_socket.display().to_string())
                .lines("brokers", &valid.brokers);
            let sheet = valid.deliveries.iter().fold(sheet, |sheet, delivery| delivery.below(sheet));
            format!("the config is right\n\n{}", sheet.text())
        })
    }
}

/// Starts an agent in this process.
pub(crate) async fn start(config: Config) -> Outcome<Agent> {
    let started = Agent::start(config, Arc::new(System)).await;
    started.map_err(|error| Failure::Refused(format!("the agent cannot start: {error}")))
}

/// What to say when an agent has ended and nobody told it to.
pub(crate) fn ended_by_itself(ended: Result<(), AppError>) -> Failure {
    Failure::Refused(match ended {
        Ok(()) => "the agent has stopped by itself: its log says why".into(),
        Err(error) => format!("the agent has stopped: {error}"),
    })
}

/// Ends an agent in this process.
pub(crate) async fn stop(agent: Agent) -> Outcome {
    let stopped = agent.shutdown().await;
    stopped.map_err(|error| Failure::Refused(format!("the agent did not stop as it should: {error}")))
}
