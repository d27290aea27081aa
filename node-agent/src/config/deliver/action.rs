//! `[[deliver.action]]`: what is done after new files are in place.

use std::path::PathBuf;
use std::str::FromStr as _;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde::Deserialize;
use spiffe::settings;

use super::kong::{KongAdmin, KongAdminTable, KongEntities};
use super::{Fault, USUAL_TIMEOUT, absolute};

/// The signals that mean "look again" or "stop" to some program.
const SIGNALS: [Signal; 7] = [
    Signal::SIGHUP,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGQUIT,
    Signal::SIGWINCH,
];
const LONGEST_TIMEOUT: Duration = Duration::from_secs(600);
const MAX_ARGUMENTS: usize = 64;

/// One action and how long it may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    /// What is done.
    pub kind: ActionKind,
    /// It has failed when it takes longer.
    pub timeout: Duration,
}

/// What is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ActionKind {
    /// A signal to a process.
    Signal {
        /// Its first line is the number of the process.
        pid_file: PathBuf,
        /// Which one.
        signal: Signal,
    },
    /// A program is run, without a shell.
    Command {
        /// The program's path, then its arguments. Never empty.
        argv: Vec<String>,
    },
    /// A unit of systemd is reloaded.
    Systemd {
        /// Its name.
        unit: String,
        /// The program that asks systemd.
        systemctl: PathBuf,
    },
    /// The modification time of a file is set to now.
    Touch {
        /// Which.
        path: PathBuf,
    },
    /// HAProxy is given chain and key, or the roots, over its runtime API. At least one of the two paths is there.
    Haproxy {
        /// A `stats socket` of level admin.
        socket: PathBuf,
        /// What HAProxy calls the file of chain and key.
        certificate: Option<String>,
        /// What HAProxy calls the file of the roots.
        ca_file: Option<String>,
    },
    /// Kong is given certificate, key and CA certificates over its Admin API.
    Kong {
        /// How it is reached.
        admin: KongAdmin,
        /// What it is given.
        entities: KongEntities,
    },
    /// A declarative config that was delivered is handed to a Kong without a database.
    KongFile {
        /// How it is reached.
        admin: KongAdmin,
        /// The name of the delivered file.
        file: String,
    },
}

impl ActionKind {
    /// The word for it in config, logs and metrics.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Signal { .. } => "signal",
            Self::Command { .. } => "command",
            Self::Systemd { .. } => "systemd",
            Self::Touch { .. } => "touch",
            Self::Haproxy { .. } => "haproxy",
            Self::Kong { .. } => "kong",
            Self::KongFile { .. } => "kong_file",
        }
    }
}

/// An action as it is written.
#[derive(Deserialize)]
pub(super) struct ActionTable {
    #[serde(default, with = "settings::optional_duration")]
    timeout: Option<Duration>,
    #[serde(flatten)]
    kind: KindTable,
}

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
enum KindTable {
    Signal {
        pid_file: PathBuf,
        #[serde(default = "hangup")]
        signal: String,
    },
    Command {
        argv: Vec<String>,
    },
    Systemd {
        unit: String,
        #[serde(default = "systemctl")]
        systemctl: PathBuf,
    },
    Touch {
        path: PathBuf,
    },
    Haproxy {
        socket: PathBuf,
        certificate: Option<String>,
        ca_file: Option<String>,
    },
    Kong {
        #[serde(flatten)]
        admin: KongAdminTable,
        certificate_id: Option<String>,
        #[serde(default)]
        snis: Vec<String>,
        #[serde(default)]
        services: Vec<String>,
    },
    KongFile {
        #[serde(flatten)]
        admin: KongAdminTable,
        file: String,
    },
}

/// What most servers take as "read your files again".
fn hangup() -> String {
    "HUP".into()
}

fn systemctl() -> PathBuf {
    "/usr/bin/systemctl".into()
}

impl ActionTable {
    pub(super) fn parse(self) -> Result<Action, Fault> {
        let kind = self.kind.parse()?;
        let timeout = self.timeout.unwrap_or(USUAL_TIMEOUT);
        if timeout.is_zero() || timeout > LONGEST_TIMEOUT {
            let longest = settings::write_duration(LONGEST_TIMEOUT);
            return Err(Fault::Action(kind.word(), format!("its timeout must be more than 0s, and {longest} at most")));
        }
        Ok(Action { kind, timeout })
    }
}

impl KindTable {
    fn parse(self) -> Result<ActionKind, Fault> {
        Ok(match self {
            Self::Signal { pid_file, signal } => {
                absolute("pid_file", &pid_file)?;
                ActionKind::Signal { pid_file, signal: parse_signal(&signal)? }
            }
            Self::Command { argv } => {
                let wrong = |why: &str| Err(Fault::Action("command", why.into()));
                match argv.first() {
                    None => return wrong("argv is empty: write [\"/path/of/the/program\", \"argument\"]"),
                    Some(program) if !program.starts_with('/') => {
                        return wrong("argv must begin with the absolute path of a program: there is no shell");
                    }
                    Some(_) if argv.len() > MAX_ARGUMENTS || argv.iter().any(|word| word.contains('\0')) => {
                        return wrong("argv has more than 64 words, or a zero byte in one");
                    }
                    Some(_) => ActionKind::Command { argv },
                }
            }
            Self::Systemd { unit, systemctl } => {
                absolute("systemctl", &systemctl)?;
                let is_unit = |c: char| c.is_ascii_alphanumeric() || "@:._-\\".contains(c);
                if unit.is_empty() || unit.starts_with('-') || !unit.chars().all(is_unit) {
                    return Err(Fault::Action("systemd", format!("{unit:?} is no name of a unit, like nginx.service")));
                }
                ActionKind::Systemd { unit, systemctl }
            }
            Self::Touch { path } => {
                absolute("path", &path)?;
                ActionKind::Touch { path }
            }
            Self::Haproxy { socket, certificate, ca_file } => {
                absolute("socket", &socket)?;
                let wrong = |why: String| Fault::Action("haproxy", why);
                if certificate.is_none() && ca_file.is_none() {
                    return Err(wrong(
                        "it has neither certificate nor ca_file: name a file as HAProxy's config does".into(),
                    ));
                }
                // It is a word of a line for HAProxy.
                let is_word = |path: &&String| path.chars().all(|c| c.is_ascii_graphic() && !";\\'\"#<>".contains(c));
                for path in [&certificate, &ca_file].into_iter().flatten() {
                    if path.is_empty() || !is_word(&path) {
                        return Err(wrong(format!("{path:?} has characters that HAProxy takes for something else")));
                    }
                }
                ActionKind::Haproxy { socket, certificate, ca_file }
            }
            Self::Kong { admin, certificate_id, snis, services } => {
                let wrong = |why| Fault::Action("kong", why);
                let entities = KongEntities::parse(certificate_id, snis, services).map_err(wrong)?;
                ActionKind::Kong { admin: admin.parse().map_err(wrong)?, entities }
            }
            Self::KongFile { admin, file } => {
                let wrong = |why| Fault::Action("kong_file", why);
                let is_name = !file.is_empty() && !file.contains('/') && !file.starts_with("..");
                if !is_name {
                    return Err(wrong(format!("{file:?} is no name of a file of this delivery")));
                }
                ActionKind::KongFile { admin: admin.parse().map_err(wrong)?, file }
            }
        })
    }
}

fn parse_signal(name: &str) -> Result<Signal, Fault> {
    let signal = Signal::from_str(&format!("SIG{}", name.trim_start_matches("SIG"))).ok();
    signal.filter(|signal| SIGNALS.contains(signal)).ok_or_else(|| {
        let known: Vec<&str> = SIGNALS.iter().map(|signal| signal.as_str().trim_start_matches("SIG")).collect();
        Fault::Action("signal", format!("{name:?} is none of the signals that can be sent: {}", known.join(", ")))
    })
}
