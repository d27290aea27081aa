//! Programs that run on until they are ended.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::command::Command;
use super::patience::wait_for;

/// How much of a log is shown when a test has failed, in lines.
const TAIL: usize = 40;
/// How long a program may take to end after SIGTERM, in seconds, before it is killed.
const GRACE: u64 = 15;

/// A running program. Dropping it ends it, and shows the end of its log if the test has failed.
#[derive(Debug)]
pub struct Process {
    child: Child,
    shown: String,
    stdout: PathBuf,
    stderr: PathBuf,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts it. What it says is added to `folder/name.out` and `folder/name.log`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(command: Command, folder: &Path, name: &str) -> Self {
        let (stdout, stderr) = (folder.join(format!("{name}.out")), folder.join(format!("{name}.log")));
        let open = |path: &Path| -> File {
            let file = OpenOptions::new().create(true).append(true).open(path);
            file.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        let (shown, mut command) = command.into_parts();
        command.stdin(Stdio::null()).stdout(open(&stdout)).stderr(open(&stderr));
        let child = command.spawn().unwrap_or_else(|error| panic!("{shown} cannot be started: {error}"));
        Self { child, shown, stdout, stderr, ended: None }
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has said on stdout.
    pub fn stdout(&self) -> String {
        std::fs::read_to_string(&self.stdout).unwrap_or_default()
    }

    /// What it has said on stderr.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// Waits until `look` finds something, while the process lives.
    ///
    /// # Panics
    /// When it ends before, or nothing is found within `seconds`.
    #[track_caller]
    pub fn wait_for<T>(&mut self, what: &str, seconds: u64, mut look: impl FnMut(&Self) -> Option<T>) -> T {
        let mut dead = false;
        let found = wait_for(seconds, || {
            // In this order: what it said before it ended counts.
            let ended = self.status().is_some();
            let found = look(self).map(Some);
            dead = ended && found.is_none();
            found.or(dead.then_some(None))
        });
        match found.flatten() {
            Some(found) => found,
            None if dead => panic!("{} ended before {what}:\n{}", self.shown, self.tail()),
            None => panic!("{} did not get to {what} within {seconds} s:\n{}", self.shown, self.tail()),
        }
    }

    /// Waits until its log has `text` in it.
    #[track_caller]
    pub fn wait_for_log(&mut self, text: &str, seconds: u64) {
        self.wait_for(&format!("{text:?} in its log"), seconds, |process| process.log().contains(text).then_some(()));
    }

    /// How it ended, if it has.
    pub fn status(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("a child can be waited for");
        }
        self.ended
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not end within `seconds`.
    #[track_caller]
    pub fn wait_for_end(&mut self, seconds: u64) -> ExitStatus {
        let ended = wait_for(seconds, || self.status());
        ended.unwrap_or_else(|| panic!("{} did not end within {seconds} s:\n{}", self.shown, self.tail()))
    }

    /// Sends it a signal, where it still runs.
    pub fn signal(&mut self, signal: Signal) {
        // Not yet waited for: the number is still its own.
        if self.status().is_none() {
            let pid = Pid::from_raw(i32::try_from(self.pid()).expect("a process number"));
            let _ = kill(pid, signal);
        }
    }

    /// SIGKILL, and its end.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.wait_for_end(GRACE);
    }

    /// The end of what it said.
    pub fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        format!("{}\n", lines.get(lines.len().saturating_sub(TAIL)..).unwrap_or_default().join("\n"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            #[expect(clippy::print_stderr, reason = "for whoever reads why a test failed")]
            {
                eprintln!("-- the end of what {} said:\n{}", self.shown, self.tail());
            }
        }
        self.signal(Signal::SIGTERM);
        if wait_for(GRACE, || self.status()).is_none() {
            self.signal(Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }
}
