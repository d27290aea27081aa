//! Programs that run on until they are ended.
//!
//! - None outlives the tests: when their process is killed, the kernel kills what it has started.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{self, Child, ExitStatus, Stdio};
use std::sync::{LazyLock, mpsc};

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
        let (shown, command) = command.into_parts();
        let mut command = mortal(&command);
        command.stdin(Stdio::null()).stdout(open(&stdout)).stderr(open(&stderr));
        let child = spawn(command).unwrap_or_else(|error| panic!("{shown} cannot be started: {error}"));
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

/// The same program, with the same number as without this, but killed by the kernel when the thread that started it ends.
fn mortal(command: &process::Command) -> process::Command {
    let mut mortal = process::Command::new("setpriv");
    mortal.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
    mortal.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    if let Some(folder) = command.get_current_dir() {
        mortal.current_dir(folder);
    }
    mortal
}

/// Starts it on a thread that lives as long as this process: those of tests end before what they have started for others.
fn spawn(command: process::Command) -> io::Result<Child> {
    type Asked = (process::Command, mpsc::Sender<io::Result<Child>>);
    static STARTER: LazyLock<mpsc::Sender<Asked>> = LazyLock::new(|| {
        let (to, asked) = mpsc::channel::<Asked>();
        std::thread::spawn(move || asked.into_iter().for_each(|(mut command, to)| drop(to.send(command.spawn()))));
        to
    });
    let (to, started) = mpsc::channel();
    STARTER.send((command, to)).map_err(io::Error::other)?;
    started.recv().map_err(io::Error::other)?
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Set in a process of this test that is to be killed: where its child writes.
    const FOLDER: &str = "CHANCERY_TEST_KILLED_IN";

    #[test]
    fn what_a_killed_test_has_started_is_killed_and_what_an_ended_thread_has_is_not() {
        if let Some(folder) = std::env::var_os(FOLDER) {
            let script = "echo $$ >pid.new && mv pid.new pid && exec sleep 60";
            let command = Command::new("/bin/sh").args(["-c", script]).folder(Path::new(&folder));
            let mut process = Process::start(command, Path::new(&folder), "child");
            process.wait_for_end(60);
        }
        let folder = tempfile::tempdir().unwrap();
        let this = std::env::current_exe().unwrap();
        let words = [
            "--exact",
            "binary::process::tests::what_a_killed_test_has_started_is_killed_and_what_an_ended_thread_has_is_not",
        ];
        let command = Command::new(this).args(words).env(FOLDER, folder.path());
        let path = folder.path().to_owned();
        let started = std::thread::spawn(move || Process::start(command, &path, "test"));
        let mut test = started.join().unwrap();
        let pid = test.wait_for("its child", 30, |_| fs::read_to_string(folder.path().join("pid")).ok());
        let child = Path::new("/proc").join(pid.trim());
        assert!(child.exists());
        test.kill();
        assert!(wait_for(10, || is_gone(&child).then_some(())).is_some(), "the child lives on");
    }

    /// Whether there is no such process, or only what is left of one for whoever waits for it.
    fn is_gone(process: &Path) -> bool {
        fs::read_to_string(process.join("stat")).map_or(true, |stat| stat.contains(") Z "))
    }
}
