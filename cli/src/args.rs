//! The command line from the top: what every verb understands, and the nouns.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::builder::Resettable;
use clap::error::ErrorKind;
use clap::{Args, Command, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::exit::{EXIT_CODES, Failure, Outcome};
use crate::log::LogFormat;
use crate::output::Output;
use crate::refusal;
use crate::svid_files::hint_at_others;
use crate::{
    agent, authority, bundle, completions, deliver, dev, entry, explain, federation, fetch, healthcheck, jwt, rule,
    server, token, validate, x509,
};

const EXAMPLES: &str = "\
Examples:
  chancery dev                                                a server and an agent for yourself
  chancery token create                                       a node may join: prints the command to paste there
  chancery entry create --spiffe-id spiffe://example.org/web \\
      --parent spiffe://example.org/chancery/agent/join_token/4a1c --selector unix:uid:1000
  chancery agent list                                         which nodes are here
  chancery fetch x509 --write ./me                            who am I, to files";

/// Chancery: a certificate authority and node agent for SPIFFE identities.
#[derive(Debug, Parser)]
#[command(name = "chancery", version, after_help = EXIT_CODES, after_long_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
#[command(disable_help_subcommand = true)]
pub(crate) struct Chancery {
    #[command(flatten)]
    pub(crate) globals: Globals,
    #[command(subcommand)]
    pub(crate) noun: Noun,
}

/// What every verb understands.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Globals {
    /// Print results as text or as one JSON document.
    #[arg(long, short = 'o', global = true, value_enum, default_value_t, value_name = "FORM")]
    pub(crate) output: Output,
    /// The admin socket of the server on this machine. Where it is not given, the first of these that exists:
    /// /run/chancery/admin.sock, /var/lib/chancery/server/admin.sock, that of a server of your own, that of `chancery dev`.
    #[arg(long, global = true, env = "CHANCERY_ADMIN_SOCKET", value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// For admin verbs from afar: the server's address. They then use mutual TLS instead of the socket, and need --svid.
    #[arg(long, global = true, value_name = "HOST:PORT", value_delimiter = ',')]
    pub(crate) server: Vec<String>,
    /// The SVID of an entry marked admin, for --server: the folder that `fetch x509 --write` wrote, or three
    /// files: SVID,KEY,BUNDLE.
    #[arg(long, global = true, value_name = "FOLDER|FILES", value_delimiter = ',')]
    pub(crate) svid: Vec<PathBuf>,
    /// What is logged to stderr: error, warn, info, debug, trace, or a filter such as `info,node_agent=debug`.
    #[arg(long, global = true, env = "CHANCERY_LOG", value_name = "LEVEL")]
    pub(crate) log_level: Option<String>,
    /// In which form it is logged.
    #[arg(long, global = true, env = "CHANCERY_LOG_FORMAT", value_enum, default_value_t, value_name = "FORM")]
    pub(crate) log_format: LogFormat,
}

/// The nouns, and the verbs that stand alone.
#[derive(Debug, Subcommand)]
pub(crate) enum Noun {
    /// The certificate authority.
    #[command(subcommand)]
    Server(server::Verb),
    /// Registration entries: which identity goes to what.
    #[command(subcommand)]
    Entry(entry::Verb),
    /// Rules: which entries the pods of Kubernetes get.
    #[command(subcommand)]
    Rule(rule::Verb),
    Explain(explain::Explain),
    /// Node agents: run one, or look after those of a server.
    #[command(subcommand)]
    Agent(agent::Verb),
    /// Join tokens: each lets one node in, once.
    #[command(subcommand)]
    Token(token::Verb),
    /// Trust bundles: our own, and those of foreign trust domains.
    #[command(subcommand)]
    Bundle(bundle::Verb),
    /// Federation: from where the bundles of foreign trust domains are fetched.
    #[command(subcommand)]
    Federation(federation::Verb),
    /// The CA's own certificates, its keys for tokens, and their rotation.
    #[command(subcommand)]
    Authority(authority::Verb),
    /// X.509-SVIDs made by an operator.
    #[command(subcommand)]
    X509(x509::Verb),
    /// JWT-SVIDs made by an operator.
    #[command(subcommand)]
    Jwt(jwt::Verb),
    /// What this process gets from the Workload API of the agent on this machine.
    #[command(subcommand)]
    Fetch(fetch::Verb),
    /// Whether a token that somebody has shown to this process is good.
    #[command(subcommand)]
    Validate(validate::Verb),
    Deliver(deliver::Deliver),
    Dev(dev::Dev),
    Healthcheck(healthcheck::Healthcheck),
    Completions(completions::Completions),
}

impl Noun {
    /// What is logged where nobody says: what runs for long tells more than what answers at once.
    pub(crate) fn log_level(&self) -> &'static str {
        match self {
            Self::Server(server::Verb::Run(_)) | Self::Agent(agent::Verb::Run(_)) => "info",
            Self::Deliver(deliver) if deliver.is_running() => "info",
            _ => "warn",
        }
    }
}

impl Chancery {
    /// Does what the command line says.
    pub(crate) async fn run(self) -> Outcome {
        let svid = self.globals.svid.clone();
        let failure = match self.dispatch().await {
            Err(Failure::Refused(text)) if text.starts_with(refusal::NOT_ALLOWED) => text,
            outcome => return outcome,
        };
        // The folder may hold the SVID of an operator behind the default one.
        let hint = hint_at_others(&svid).map(|hint| format!("\n{hint}")).unwrap_or_default();
        Err(Failure::Refused(failure + &hint))
    }

    async fn dispatch(self) -> Outcome {
        let globals = &self.globals;
        match self.noun {
            Noun::Entry(verb) => verb.run(globals).await,
            Noun::Rule(verb) => verb.run(globals).await,
            Noun::Explain(explain) => explain.run(globals).await,
            Noun::Agent(verb) => verb.run(globals).await,
            Noun::Token(verb) => verb.run(globals).await,
            Noun::Bundle(verb) => verb.run(globals).await,
            Noun::Federation(verb) => verb.run(globals).await,
            Noun::Authority(verb) => verb.run(globals).await,
            Noun::X509(verb) => verb.run(globals).await,
            Noun::Jwt(verb) => verb.run(globals).await,
            Noun::Fetch(verb) => verb.run(globals).await,
            Noun::Validate(verb) => verb.run(globals).await,
            Noun::Server(verb) => verb.run(globals).await,
            Noun::Deliver(deliver) => deliver.run(globals).await,
            Noun::Dev(dev) => dev.run(globals).await,
            Noun::Healthcheck(check) => check.run(globals).await,
            Noun::Completions(completions) => completions.run(),
        }
    }
}

impl Chancery {
    /// The command line of this process. It ends the process where there is only help to give.
    pub(crate) fn of_this_process() -> Self {
        let mut command = without_empty(with_whole_usage(), |name| std::env::var_os(name));
        let words: Vec<OsString> = std::env::args_os().collect();
        if let Some(time) = loose_time(&words) {
            let text = format!("--wait takes its time behind an equals sign: write --wait={time}");
            command.error(ErrorKind::TooManyValues, text).exit();
        }
        Self::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit())
    }
}

/// The command line with the usage of each verb as its `--help` has it. Beside a complaint it would otherwise name all that
/// is set, in the environment too, as if it had to be given: `--socket <PATH>`, for example.
fn with_whole_usage() -> Command {
    fn fixed(mut command: Command) -> Command {
        let usage = command.render_usage().to_string();
        let usage = usage.strip_prefix("Usage: ").unwrap_or(&usage).to_owned();
        command.override_usage(usage).mut_subcommands(fixed)
    }
    let mut command = Chancery::command();
    // Only then does a verb know the nouns before it.
    command.build();
    fixed(command)
}

/// The time in `--wait 5s`: without the equals sign it would be read as the name of something.
fn loose_time(words: &[OsString]) -> Option<&str> {
    let words = words.split(|word| word == "--").next()?;
    words.windows(2).find_map(|pair| match pair {
        [flag, time] if flag == "--wait" => time.to_str().filter(|time| spiffe::settings::parse_duration(time).is_ok()),
        _ => None,
    })
}

/// An environment variable that is set to nothing counts as not set: `CHANCERY_ADMIN_SOCKET= chancery agent list`.
fn without_empty(command: Command, variable: impl Fn(&OsStr) -> Option<OsString>) -> Command {
    command.mut_args(|argument| {
        let value = argument.get_env().and_then(&variable);
        if value.is_some_and(|value| value.is_empty()) { argument.env(Resettable::Reset) } else { argument }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_that_is_set_to_nothing_is_not_set() {
        let heeded = |value: &'static str| {
            let command =
                without_empty(Chancery::command(), |name| (name == "CHANCERY_ADMIN_SOCKET").then(|| value.into()));
            let socket = command.get_arguments().find(|argument| *argument.get_id() == "socket").unwrap();
            socket.get_env().is_some()
        };
        assert_eq!((heeded(""), heeded("/run/a.sock")), (false, true));
    }

    #[test]
    fn a_time_that_stands_loose_behind_wait_is_seen() {
        let seen = |line: &str| {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            loose_time(&words).map(ToOwned::to_owned)
        };
        assert_eq!(seen("entry delete web --wait 5s").as_deref(), Some("5s"));
        assert_eq!(seen("entry delete --wait web"), None);
        assert_eq!(seen("entry delete web --wait=5s --hint 5s"), None);
        assert_eq!(seen("entry delete web -- --wait 5s"), None);
    }

    #[test]
    fn a_complaint_shows_the_usage_of_the_help() {
        let complaint = |line: &str| with_whole_usage().try_get_matches_from(line.split(' ')).unwrap_err().to_string();
        let usage = "Usage: chancery fetch jwt [OPTIONS] --audience <AUDIENCE>\n";
        assert!(complaint("chancery --socket /a fetch jwt --workload-socket /b").contains(usage));
        assert!(complaint("chancery fetch jwt --help").contains(usage));
        assert!(complaint("chancery fetch").contains("Usage: chancery fetch [OPTIONS] <COMMAND>\n"));
    }

    #[test]
    fn the_command_line_holds_together() {
        Chancery::command().debug_assert();
    }

    #[test]
    fn every_verb_has_an_example_that_is_right() {
        fn look(command: &Command, path: &str) {
            if command.has_subcommands() {
                command.get_subcommands().for_each(|sub| look(sub, &format!("{path} {}", sub.get_name())));
                return;
            }
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let examples = examples(&help, path);
            assert!(help.starts_with("Example") && !examples.is_empty(), "`{path} --help` has no example of it");
            for example in examples {
                let read = Chancery::try_parse_from(example.split_whitespace());
                assert!(read.is_ok(), "`{path} --help` has a wrong example: {example}\n{}", read.unwrap_err());
            }
        }
        look(&Chancery::command(), "chancery");
    }

    /// The command lines of `verb` in a help text, each up to a remark, a pipe or a redirection.
    fn examples(help: &str, verb: &str) -> Vec<String> {
        let whole = help.replace("\\\n      ", "");
        let lines = whole.lines().filter_map(|line| line.strip_prefix("  ")).filter(|line| line.starts_with(verb));
        let end = |line: &str| ["  ", " | ", " > ", " < "].iter().filter_map(|sign| line.find(sign)).min();
        lines.map(|line| line[..end(line).unwrap_or(line.len())].to_owned()).collect()
    }

    #[test]
    fn every_verb_has_help_that_says_something() {
        fn look(command: &Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            assert!(command.get_about().is_some(), "{path} has no description");
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{path}: {} has no description", argument.get_id());
            }
            command.get_subcommands().for_each(|sub| look(sub, &path));
        }
        look(&Chancery::command(), "");
    }
}
