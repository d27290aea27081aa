//! What is done after new files are in place: one file for each kind of action.
//!
//! - Each has a time limit, is tried again as a whole, and may be done twice: doing it again does no harm.
//! - An error says what went wrong in the words of whoever was asked, cut to a length that fits into a line of the log.

use std::path::{Path, PathBuf};
use std::time::Duration;

use spiffe::settings::write_duration;
use spiffe::time::Clock;

use super::folder::FolderError;
use super::inputs::InputError;
use super::material::Material;
use crate::config::deliver::action::{Action, ActionKind};

mod command;
mod haproxy;
mod http;
mod kong;
mod listener;
mod signal;
mod touch;

/// As much of what somebody answers as is shown, in characters.
const SHOWN: usize = 500;

/// Why an action has failed.
#[derive(Debug, thiserror::Error)]
pub enum ActionError {
    /// It took too long.
    #[error("it took longer than {}, and was given up", write_duration(*.0))]
    TooLong(Duration),
    /// The kernel says no.
    #[error("cannot {doing} {}: {source}", .path.display())]
    File {
        /// What was tried, as a verb.
        doing: &'static str,
        /// Where.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The first line of a pid file is no number.
    #[error("{} has no process in its first line: {found:?}", .path.display())]
    NoPid {
        /// Which file.
        path: PathBuf,
        /// What is there.
        found: String,
    },
    /// The process of a pid file is gone.
    #[error("process {pid} of {} is not running: start the program, and it reads the new files", .path.display())]
    NotRunning {
        /// Which file.
        path: PathBuf,
        /// Which process.
        pid: i32,
    },
    /// Whoever wrote the pid file may not send signals to that process.
    #[error(
        "{} belongs to uid {writer}, and process {pid} to uid {user}: it is not signalled, for anybody could have any \
         process signalled so",
        .path.display()
    )]
    Foreign {
        /// Which file.
        path: PathBuf,
        /// Whose the file is.
        writer: u32,
        /// Which process.
        pid: i32,
        /// Whose the process is.
        user: u32,
    },
    /// Others than its owner decide what is there.
    #[error(
        "{} has mode {mode:04o}: others than its owner can write to it, and anybody could have any process signalled so: run \
         chmod go-w on it, or name another pid file",
        .path.display()
    )]
    Shared {
        /// The pid file, or a folder on the way to it.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It is something else than a file of one name.
    #[error("{} is a link, or no file, or a file of two names: name the pid file itself", .0.display())]
    NoFile(PathBuf),
    /// The way to a file cannot be walked.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A task of our own broke off.
    #[error("it broke off: this is a mistake of ours, please report it with the log")]
    Broken,
    /// HAProxy did not do what it was told.
    #[error("HAProxy does not {doing} {name}: {words}")]
    Haproxy {
        /// What it was told, as a verb.
        doing: &'static str,
        /// The file, as HAProxy calls it.
        name: String,
        /// Its answer.
        words: String,
    },
    /// A file that the config names cannot be read.
    #[error(transparent)]
    Input(#[from] InputError),
    /// An Admin API cannot be reached.
    #[error("{url} cannot be reached: {why}")]
    Unreachable {
        /// Where.
        url: String,
        /// Why not.
        why: String,
    },
    /// Nobody is seen to listen there.
    #[error(
        "nobody on this machine is seen to listen at {0}: start Kong, write the address that it listens at, or use https"
    )]
    NoListener(String),
    /// Somebody else listens where Kong should.
    #[error(
        "uid {user} listens at {url}, and is sent no private key without TLS: if this is Kong's own user, set admin_user; \
         if not, find out who listens there, or use https"
    )]
    Listener {
        /// Where.
        url: String,
        /// Whose the socket is.
        user: u32,
    },
    /// An Admin API says no.
    #[error("Kong answers {method} {path} with {status}: {words}")]
    Refused {
        /// What was asked.
        method: &'static str,
        /// Of what.
        path: String,
        /// The code.
        status: u16,
        /// Its answer.
        words: String,
    },
    /// A program ended otherwise than well.
    #[error("{program} ended with {how}: {words}")]
    Program {
        /// Its path.
        program: String,
        /// Exit code or signal.
        how: String,
        /// The end of what it printed.
        words: String,
    },
}

/// What an action may need to know.
#[derive(Clone, Copy, Debug)]
pub(super) struct Context<'a> {
    /// The delivery's name.
    pub(super) name: &'a str,
    /// Where its files are.
    pub(super) dir: &'a Path,
    /// What is in them.
    pub(super) material: &'a Material,
    /// The time.
    pub(super) clock: &'a dyn Clock,
}

/// Does it.
pub(super) async fn act(action: &Action, context: Context<'_>) -> Result<(), ActionError> {
    let acting = async {
        match &action.kind {
            ActionKind::Signal { pid_file, signal } => {
                let (pid_file, signal) = (pid_file.clone(), *signal);
                aside(move || signal::send(&pid_file, signal)).await
            }
            ActionKind::Command { argv } => command::run(argv, action.timeout, context).await,
            ActionKind::Systemd { unit, systemctl } => {
                let argv = [&systemctl.display().to_string(), "reload", "--", unit].map(ToOwned::to_owned);
                command::run(&argv, action.timeout, context).await
            }
            ActionKind::Touch { path } => {
                let path = path.clone();
                aside(move || touch::touch(&path)).await
            }
            ActionKind::Haproxy { socket, certificate, ca_file } => {
                let told = haproxy::Told { certificate: certificate.as_deref(), ca_file: ca_file.as_deref() };
                haproxy::tell(socket, told, context).await
            }
            ActionKind::Kong { admin, entities } => kong::put(admin, entities, context).await,
            ActionKind::KongFile { admin, file } => kong::load(admin, file, context).await,
        }
    };
    match &action.kind {
        // It has that limit itself, and a little more for what is still to be read when it has ended.
        ActionKind::Command { .. } | ActionKind::Systemd { .. } => acting.await,
        _ => within(action.timeout, context.clock, acting).await?,
    }
}

/// What comes of `work`, if that is in time.
async fn within<T>(timeout: Duration, clock: &dyn Clock, work: impl Future<Output = T>) -> Result<T, ActionError> {
    tokio::select! {
        biased;
        done = work => Ok(done),
        () = clock.sleep(timeout) => Err(ActionError::TooLong(timeout)),
    }
}

/// On a thread that may block: a file system that hangs holds up this action alone, and only for its time limit.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ActionError> + Send + 'static,
) -> Result<T, ActionError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| ActionError::Broken)?
}

/// A text from outside in one line that is not too long: its end, which mostly says why.
fn shown(text: &str) -> String {
    let line: String = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let skipped = line.chars().count().saturating_sub(SHOWN);
    if skipped == 0 { line } else { format!("... {}", line.chars().skip(skipped).collect::<String>()) }
}

fn failed(doing: &'static str, path: &Path, source: impl Into<std::io::Error>) -> ActionError {
    ActionError::File { doing, path: path.to_owned(), source: source.into() }
}

#[cfg(test)]
mod tests;
