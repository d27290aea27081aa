//! `chancery deliver`: identities of this process as files, and what is done after each change, for programs that know
//! nothing of SPIFFE. What the agent does for `[[deliver]]`, as a process of its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, Subcommand};
use futures_util::future::join_all;
use node_agent::config::deliver::{Delivery, ENVIRONMENT_PREFIX, Standalone};
use node_agent::deliver::source::Source;
use node_agent::deliver::{Watchers, deliver_all, deliver_once};
use serde::Serialize;
use spiffe::time::System;
use tokio_util::sync::CancellationToken;

use crate::args::Globals;
use crate::exit::{Failure, Outcome};
use crate::folders::Folders;
use crate::output::{Output, Sheet};
use crate::overrides::{Overrides, wrong};
use crate::running::told_to_stop;
use crate::workload::{SOCKET_VARIABLE, socket_path};

const USUAL_CONFIG: &str = "/etc/chancery/deliver.toml";

/// Write the identity of this process to files, and keep them fresh until it is told to stop.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Example, in an init container:
  chancery deliver --config deliver.toml --once
Every key of the config can also be set from the environment: CHANCERY_DELIVER__WORKLOAD_SOCKET=unix:///run/a.sock"
)]
pub(crate) struct Deliver {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    settings: Settings,
    /// Wait for the first identity, write the files, do each action once, and end: with 0 if all went well.
    #[arg(long)]
    once: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Say whether a config is right, without delivering anything.
    #[command(after_help = "\
Example:
  chancery deliver validate --config /etc/chancery/deliver.toml")]
    Validate(Settings),
}

#[derive(Debug, Args)]
struct Settings {
    /// The config file; /etc/chancery/deliver.toml where none is given and that exists. Flags win over it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The socket of the Workload API.
    #[arg(long, env = SOCKET_VARIABLE, value_name = "ADDRESS")]
    workload_socket: Option<String>,
}

/// `deliver validate`: the main things of a config that is right.
#[derive(Debug, Serialize)]
struct Valid {
    workload_socket: PathBuf,
    deliveries: Vec<ValidDelivery>,
}

/// One delivery of a config that is right.
#[derive(Debug, Serialize)]
pub(crate) struct ValidDelivery {
    name: String,
    dir: PathBuf,
    files: usize,
    actions: Vec<&'static str>,
}

impl From<Delivery> for ValidDelivery {
    fn from(delivery: Delivery) -> Self {
        Self {
            name: delivery.name,
            dir: delivery.dir,
            files: delivery.files.len(),
            actions: delivery.actions.iter().map(|action| action.kind.word()).collect(),
        }
    }
}

impl ValidDelivery {
    /// Its line, put below `sheet`.
    pub(crate) fn below(&self, sheet: Sheet) -> Sheet {
        let Self { name, dir, files, actions } = self;
        let actions = if actions.is_empty() { String::new() } else { format!(", then {}", actions.join(", ")) };
        let files = if *files == 1 { "1 file".into() } else { format!("{files} files") };
        sheet.line(name, format!("{files} to {}{actions}", dir.display()))
    }
}

impl Deliver {
    /// Whether it runs until it is told to stop.
    pub(crate) fn is_running(&self) -> bool {
        self.verb.is_none()
    }

    /// Does it.
    pub(crate) async fn run(self, globals: &Globals) -> Outcome {
        if let Some(Verb::Validate(settings)) = self.verb {
            return validate(settings, globals.output);
        }
        let (socket, deliveries) = self.settings.config()?;
        let clock = Arc::new(System);
        let sourced = |delivery: Delivery| {
            let source = Source::socket(socket.clone(), &delivery);
            (delivery, source)
        };
        let deliveries: Vec<_> = deliveries.into_iter().map(sourced).collect();
        if self.once {
            let each = deliveries.into_iter().map(|(delivery, source)| {
                let clock = clock.clone();
                async move {
                    let name = delivery.name.clone();
                    let done = deliver_once(delivery, source, clock).await;
                    done.map_err(|error| Failure::Refused(format!("delivery {name}: {error}")))
                }
            });
            return tokio::select! {
                told = told_to_stop() => told.and(Err(Failure::Refused("told to stop before all was delivered".into()))),
                done = join_all(each) => done.into_iter().collect(),
            };
        }
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(deliver_all(deliveries, Watchers::default(), shutdown.clone()));
        let told = told_to_stop().await;
        tracing::info!("deliveries stop: the files stay");
        shutdown.cancel();
        let stopped = running.await;
        told.and(stopped.map_err(|error| Failure::Refused(format!("deliveries did not stop as they should: {error}"))))
    }
}

impl Settings {
    /// The socket, and what is delivered.
    fn config(self) -> Outcome<(PathBuf, Vec<Delivery>)> {
        let over = Overrides::new(ENVIRONMENT_PREFIX).flag("workload_socket", self.workload_socket);
        let laid = over.read(self.config.as_deref(), Path::new(USUAL_CONFIG))?;
        let parsed = Standalone::parse(&laid.text, laid.variables);
        let config = parsed.map_err(|error| wrong(&error, &laid.place, &[("workload_socket", "--workload-socket")]))?;
        let socket = match config.workload_socket.as_deref() {
            Some(address) => socket_path(address)?,
            None => Folders::of_this_process().workload_socket(Path::exists),
        };
        Ok((socket, config.deliveries))
    }
}

fn validate(settings: Settings, output: Output) -> Outcome {
    let (workload_socket, deliveries) = settings.config()?;
    let deliveries = deliveries.into_iter().map(ValidDelivery::from).collect();
    let valid = Valid { workload_socket, deliveries };
    output.show(&valid, || {
        let sheet = Sheet::default().line("workload api", valid.workload_socket.display().to_string());
        let sheet = valid.deliveries.iter().fold(sheet, |sheet, delivery| delivery.below(sheet));
        format!("the config is right\n\n{}", sheet.text())
    })
}
