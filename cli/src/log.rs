//! The log of this process: to stderr, as text or as JSON lines.

use std::io::IsTerminal as _;

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

use crate::args::Globals;
use crate::exit::{Failure, Outcome};

/// In which form log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object in a line.
    Json,
}

/// What the watches of kube warn of, our own lines say with the cluster and what to do: twice is not better.
const SAID_BY_US: &str = "kube_runtime=error";

/// Starts the log, at the level `default` where none was asked for. Refused when the level cannot be read.
pub(crate) fn start(globals: &Globals, default: &str) -> Outcome {
    let wish = globals.log_level.clone().unwrap_or_else(|| format!("{default},{SAID_BY_US}"));
    let filter = EnvFilter::builder().parse(&wish).map_err(|error| {
        Failure::Usage(format!("log level {wish:?} cannot be read ({error}): use error, warn, info, debug or trace"))
    })?;
    let colour = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colour);
    let started = match globals.log_format {
        LogFormat::Text => log.with_target(false).try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| Failure::Refused(format!("the log cannot be started: {error}")))
}
