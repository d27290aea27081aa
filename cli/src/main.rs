//! `chancery`, the command: the server, the agent, and every verb of the operators.
//!
//! One file per noun, each with its flags beside what they do; below them the ways to the server
//! ([`connect`]), the agent ([`workload`]) and the screen ([`output`]). What can go wrong, and the exit code of
//! each, is in [`exit`].
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod agent;
mod agent_run;
mod agent_status;
mod args;
mod authority;
mod bundle;
mod completions;
mod connect;
mod deliver;
mod dev;
mod dev_watch;
mod documents;
mod entry;
mod entry_fields;
mod entry_file;
mod exit;
mod explain;
#[cfg(test)]
mod fake_server;
mod federation;
mod fetch;
mod fetch_bundle;
mod fetch_tokens;
mod files;
mod folders;
mod healthcheck;
mod jwt;
mod log;
mod moments;
mod open_files;
mod output;
mod overrides;
mod refusal;
mod rule;
mod rule_fields;
mod running;
mod server;
mod svid_files;
mod token;
mod validate;
mod wait;
mod workload;
mod x509;

use std::process::ExitCode;

fn main() -> ExitCode {
    let args = args::Chancery::of_this_process();
    let failure = match run(args) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(failure) => failure,
    };
    output::complain(&failure);
    failure.exit().into()
}

fn run(args: args::Chancery) -> Result<(), exit::Failure> {
    log::start(&args.globals, args.noun.log_level())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| exit::Failure::Refused(format!("the operating system gave no threads: {error}")))?;
    let outcome = runtime.block_on(args.run());
    // What still blocks, blocks on somebody else.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    outcome
}
