//! The shell session in a paper: ```` ```console session ````.
//!
//! - A line that begins with `$ ` is a command, one that begins with `> ` goes on with it; what follows is the output
//!   that is expected. `…` stands for anything within a line, a line of `…` alone for any number of lines.
//! - All commands run in one shell, in a folder of their own, with `chancery` in `PATH`.
//! - A command that ends with exit status 3 (nobody answers yet) is tried again, as a reader does who was too quick.

use std::io::Write as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Stdio};

use super::patience::wait_for;

/// How long one command may take, in seconds.
const LIMIT: u64 = 60;
/// How often a command is tried again.
const TRIES: u32 = 150;

/// One command and what it is expected to print.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The command line.
    pub command: String,
    /// The lines of output.
    pub expected: Vec<String>,
}

impl Step {
    /// The steps of every session in the text of a paper.
    pub fn all(paper: &str) -> Vec<Self> {
        let mut steps: Vec<Self> = Vec::new();
        let mut inside = false;
        for line in paper.lines() {
            if line.starts_with("```") {
                inside = line == "```console session";
            } else if !inside {
                continue;
            } else if let Some(command) = line.strip_prefix("$ ") {
                steps.push(Self { command: command.to_owned(), expected: Vec::new() });
            } else if let Some(step) = steps.last_mut() {
                match line.strip_prefix("> ").filter(|_| step.expected.is_empty()) {
                    Some(more) => step.command = format!("{}\n{more}", step.command),
                    None => step.expected.push(line.to_owned()),
                }
            }
        }
        for step in &mut steps {
            // Empty lines behind an output are air.
            while step.expected.last().is_some_and(String::is_empty) {
                step.expected.pop();
            }
        }
        steps
    }

    /// Whether `output` is what was expected.
    pub fn matches(&self, output: &str) -> bool {
        let lines: Vec<&str> = output.trim_end().lines().collect();
        let expected: Vec<&str> = self.expected.iter().map(String::as_str).collect();
        lines_match(&expected, &lines)
    }
}

fn lines_match(expected: &[&str], lines: &[&str]) -> bool {
    match (expected, lines) {
        ([], []) => true,
        (["…", rest @ ..], _) => (0..=lines.len()).any(|skip| lines_match(rest, &lines[skip..])),
        ([pattern, rest @ ..], [line, others @ ..]) => line_matches(pattern, line) && lines_match(rest, others),
        _ => false,
    }
}

fn line_matches(pattern: &str, line: &str) -> bool {
    let parts: Vec<&str> = pattern.trim_end().split('…').collect();
    let line = line.trim_end();
    let [first, middle @ .., last] = parts.as_slice() else { return pattern.trim_end() == line };
    let Some(mut rest) = line.strip_prefix(first) else { return false };
    for part in middle {
        let Some((_, behind)) = rest.split_once(part) else { return false };
        rest = behind;
    }
    rest.ends_with(last)
}

/// A shell in which the commands run.
#[derive(Debug)]
pub struct Session {
    shell: Child,
    stdin: Option<ChildStdin>,
    output: std::path::PathBuf,
    read: usize,
}

impl Session {
    /// Starts a shell in `folder` with these variables.
    ///
    /// # Panics
    /// When there is no bash.
    pub fn start(folder: &Path, variables: &[(&str, &str)]) -> Self {
        let output = folder.join(".session");
        let file = std::fs::File::create(&output).expect("a file can be made");
        let binary = super::chancery();
        let path = std::env::var("PATH").unwrap_or_default();
        let path = format!("{}:{path}", binary.parent().expect("a binary is in a folder").display());
        let mut shell = std::process::Command::new("bash");
        shell.args(["--noprofile", "--norc"]).current_dir(folder).env_clear();
        shell.env("PATH", path).env("HOME", folder).envs(variables.iter().copied());
        shell.stdin(Stdio::piped()).stdout(file.try_clone().expect("a file descriptor")).stderr(file);
        let mut shell = shell.spawn().expect("there is no bash: install it");
        let stdin = shell.stdin.take();
        Self { shell, stdin, output, read: 0 }
    }

    /// Runs one command, and returns what it printed.
    ///
    /// # Panics
    /// When it does not end, or ends with another exit status than 0.
    #[track_caller]
    pub fn run(&mut self, command: &str) -> String {
        for _ in 0..TRIES {
            let (output, code) = self.once(command);
            match code {
                0 => return output,
                3 => {
                    let _ = wait_for::<()>(1, || None);
                }
                _ => panic!("$ {command}\nended with exit status {code}:\n{output}\n{}", self.logs()),
            }
        }
        panic!("$ {command}\nfound nobody, however often it was tried\n{}", self.logs());
    }

    #[track_caller]
    fn once(&mut self, command: &str) -> (String, i32) {
        let stdin = self.stdin.as_mut().expect("the shell runs");
        // A line of its own, which no program prints.
        writeln!(stdin, "{command}\necho \"\u{1}$?\"").and_then(|()| stdin.flush()).expect("the shell listens");
        let found = wait_for(LIMIT, || {
            let text = std::fs::read(&self.output).unwrap_or_default();
            let text = String::from_utf8_lossy(text.get(self.read..).unwrap_or_default()).into_owned();
            let (before, behind) = text.split_once('\u{1}')?;
            let code = behind.strip_suffix('\n')?.parse().ok()?;
            Some((before.to_owned(), code, text.len()))
        });
        let Some((output, code, length)) = found else {
            panic!("$ {command}\ndid not end within {LIMIT} s:\n{}", self.logs())
        };
        self.read += length;
        (output, code)
    }

    /// What the processes in the background have said, where the session writes it to `*.log`.
    fn logs(&self) -> String {
        let folder = self.output.parent().expect("a file is in a folder");
        let mut logs = String::new();
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "log") {
                let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
                logs.push_str(&format!("-- {}:\n{text}", entry.path().display()));
            }
        }
        logs
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // What a failed session left in the background is ended by the shell that started it, by number.
        if let Some(mut stdin) = self.stdin.take() {
            let _ = writeln!(stdin, "jobs -p | while read -r pid; do kill \"$pid\"; done 2>/dev/null; wait; exit");
        }
        if wait_for(20, || self.shell.try_wait().ok().flatten()).is_none() {
            let _ = self.shell.kill();
            let _ = self.shell.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_read_and_matched() {
        let paper =
            "Text\n```sh\n$ no\n```\n```console session\n$ one \\\n> two\na …  c\n\n$ three &\n$ four\nx\n…\ny\n```\n";
        let steps = Step::all(paper);
        assert_eq!(steps.len(), 3);
        assert_eq!(steps[0].command, "one \\\ntwo");
        assert!(steps[0].matches("a 1 2  c\n") && !steps[0].matches("a 1 2  c d\n") && !steps[0].matches(""));
        assert!(steps[1].matches("") && !steps[1].matches("x"));
        assert!(steps[2].matches("x\ny\n") && steps[2].matches("x\n1\n2\ny\n") && !steps[2].matches("x\n1\n"));
    }
}
