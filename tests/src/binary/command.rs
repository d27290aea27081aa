//! Programs that end by themselves.

use std::fmt;
use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;
use std::process::{self, Stdio};

use super::patience::wait_for;

/// How long any program may take that is to end by itself, in seconds.
const LIMIT: u64 = 120;

/// A command line, run in an environment that has nothing of the test's own but `PATH`.
#[derive(Debug)]
pub struct Command {
    inner: process::Command,
    shown: String,
    stdin: Vec<u8>,
}

impl Command {
    /// The program at `path`, or of that name in `PATH`.
    pub fn new(path: impl AsRef<Path>) -> Self {
        let path = path.as_ref();
        let mut inner = process::Command::new(path);
        inner.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("LC_ALL", "C.UTF-8");
        Self { inner, shown: path.display().to_string(), stdin: Vec::new() }
    }

    /// Adds words to the command line.
    #[must_use]
    pub fn args<S: AsRef<str>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        for word in words {
            self.inner.arg(word.as_ref());
            self.shown = format!("{} {}", self.shown, word.as_ref());
        }
        self
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.inner.env(name, value);
        self
    }

    /// Runs in `folder`.
    #[must_use]
    pub fn folder(mut self, folder: &Path) -> Self {
        self.inner.current_dir(folder);
        self
    }

    /// Gives `text` to its standard input.
    #[must_use]
    pub fn stdin(mut self, text: &str) -> Self {
        self.stdin = text.into();
        self
    }

    /// The command line, and how to start it: for a process that runs on.
    pub(super) fn into_parts(self) -> (String, process::Command) {
        (self.shown, self.inner)
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// When it cannot be started, or does not end.
    pub fn run(mut self) -> Output {
        let file = || tempfile::tempfile().expect("a file for what a program says");
        let (mut stdin, mut stdout, mut stderr) = (file(), file(), file());
        stdin.write_all(&self.stdin).and_then(|()| stdin.rewind()).expect("a file can be written");
        let clone = |file: &File| Stdio::from(file.try_clone().expect("a file descriptor"));
        self.inner.stdin(clone(&stdin)).stdout(clone(&stdout)).stderr(clone(&stderr));
        let started = self.inner.spawn();
        let mut child = started.unwrap_or_else(|error| panic!("{} cannot be started: {error}", self.shown));
        let ended = wait_for(LIMIT, || child.try_wait().expect("a child can be waited for"));
        if ended.is_none() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let read = |file: &mut File| {
            let mut bytes = Vec::new();
            file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("a file can be read");
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let output = Output {
            stdout: read(&mut stdout),
            stderr: read(&mut stderr),
            code: ended.and_then(|status| status.code()),
            command: self.shown,
        };
        assert!(ended.is_some(), "did not end within {LIMIT} s:\n{output}");
        output
    }
}

/// What a program said, and how it ended.
#[derive(Clone, Debug)]
pub struct Output {
    /// Its results.
    pub stdout: String,
    /// Its complaints.
    pub stderr: String,
    /// Its exit status; `None`: ended by a signal.
    pub code: Option<i32>,
    command: String,
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stdout, stderr, code, command } = self;
        write!(f, "$ {command}\n-- exit status {code:?}, stdout:\n{stdout}-- stderr:\n{stderr}--")
    }
}

impl Output {
    /// It succeeded, and complained of nothing; else the test has failed.
    #[track_caller]
    pub fn succeeded(self) -> Self {
        assert!(self.code == Some(0), "failed:\n{self}");
        self
    }

    /// It ended with this exit status, and its complaint has each of `words` in it; else the test has failed.
    #[track_caller]
    pub fn failed(self, code: i32, words: &[&str]) -> Self {
        assert!(self.code == Some(code), "exit status {code} was expected:\n{self}");
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is not on stderr:\n{self}");
        }
        self
    }

    /// Its results have each of `words` in them; else the test has failed.
    #[track_caller]
    pub fn says(self, words: &[&str]) -> Self {
        for word in words {
            assert!(self.stdout.contains(word), "{word:?} is not on stdout:\n{self}");
        }
        self
    }

    /// Its results as one JSON document.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("no JSON ({error}):\n{self}"))
    }

    /// The lines of a table without the head, each cut into its cells where two spaces or more are.
    #[track_caller]
    pub fn table(&self, heads: &[&str]) -> Vec<Vec<String>> {
        let cells = |line: &str| {
            let cells = line.split("  ").map(str::trim).filter(|cell| !cell.is_empty());
            cells.map(str::to_owned).collect::<Vec<_>>()
        };
        let mut lines = self.stdout.lines();
        assert_eq!(cells(lines.next().unwrap_or_default()), heads, "{self}");
        lines.map(cells).collect()
    }

    /// The value that stands behind `name` in a sheet of properties.
    #[track_caller]
    pub fn property(&self, name: &str) -> &str {
        let lines = self.stdout.lines();
        let mut found = lines.filter_map(|line| line.strip_prefix(name)?.strip_prefix("  ")).map(str::trim);
        found.next().unwrap_or_else(|| panic!("no property {name:?}:\n{self}"))
    }
}
