//! A config document with the command line laid over it: defaults of this user below, then the file, then the
//! environment, then the flags.
//!
//! Flags travel the way of the environment (see `spiffe::settings`), so that a config has one parser and its
//! messages name the same keys.

use std::path::{Path, PathBuf};

use crate::exit::{Failure, Outcome};
use crate::files;

/// What is laid over a document, and under it.
#[derive(Debug)]
pub(crate) struct Overrides {
    prefix: &'static str,
    flags: Vec<(String, String)>,
    defaults: Vec<(String, String)>,
}

/// A document and what is laid over it.
#[derive(Debug)]
pub(crate) struct Laid {
    /// The document.
    pub(crate) text: String,
    /// In the order in which they are laid over it.
    pub(crate) variables: Vec<(String, String)>,
    /// Where all of that came from, for messages.
    pub(crate) place: String,
}

impl Overrides {
    /// None yet, for the config whose environment variables begin with `prefix`.
    pub(crate) fn new(prefix: &'static str) -> Self {
        Self { prefix, flags: Vec::new(), defaults: Vec::new() }
    }

    /// The flag for the key `key` (`attest.token`), where it was given.
    pub(crate) fn flag<T: serde::Serialize>(mut self, key: &str, value: Option<T>) -> Self {
        self.flags.extend(value.and_then(|value| Some((self.name(key), toml(&value)?))));
        self
    }

    /// What the key `key` is for this user where there is no file.
    pub(crate) fn default<T: serde::Serialize>(mut self, key: &str, value: Option<T>) -> Self {
        self.defaults.extend(value.and_then(|value| Some((self.name(key), toml(&value)?))));
        self
    }

    fn name(&self, key: &str) -> String {
        format!("{}__{}", self.prefix, key.replace('.', "__").to_uppercase())
    }

    /// Reads the config file and lays everything over it. Without `path` it is the file at `usual`, if that is
    /// there; without any file the defaults of this user count.
    pub(crate) fn read(self, path: Option<&Path>, usual: &Path) -> Outcome<Laid> {
        // Variables that are no text are none of ours.
        let environment =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        let path = path.map(PathBuf::from).or_else(|| usual.exists().then(|| usual.to_owned()));
        let Some(path) = path else {
            let variables = self.defaults.into_iter().chain(environment).chain(self.flags).collect();
            let place = format!("flags and environment; there is no {}", usual.display());
            return Ok(Laid { text: String::new(), variables, place });
        };
        let text = String::from_utf8(files::read(&path)?)
            .map_err(|_| Failure::Refused(format!("{} is not UTF-8 text: write it as TOML", path.display())))?;
        let place = format!("flags, environment and {}", path.display());
        Ok(Laid { text, variables: environment.chain(self.flags).collect(), place })
    }

    /// The same without a file and without the environment.
    pub(crate) fn alone(self) -> Vec<(String, String)> {
        self.defaults.into_iter().chain(self.flags).collect()
    }
}

/// What to say of a config from `place` that is wrong; `flags` are its keys that are flags too.
pub(crate) fn wrong(error: &dyn std::fmt::Display, place: &str, flags: &[(&str, &str)]) -> Failure {
    Failure::Refused(format!("{}\n(from {place})", with_flags(error.to_string(), flags)))
}

/// `text` with the flags of the keys that it names at its end, where it does not name them itself.
pub(crate) fn with_flags(text: String, flags: &[(&str, &str)]) -> String {
    let in_key = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    let names = |key: &str| {
        // A key of one word may be a word of the sentence as well: it is meant where it is quoted or has a value.
        text.match_indices(key).any(|(at, _)| {
            let (before, after) = (&text[..at], &text[at + key.len()..]);
            let whole = !before.ends_with(in_key) && !after.starts_with(in_key);
            whole && (key.contains('_') || after.starts_with(" =") || (before.ends_with('`') && after.starts_with('`')))
        })
    };
    let missing = |(key, flag): &&(&str, &str)| names(key) && !text.contains(flag);
    let hints: Vec<String> = flags.iter().filter(missing).map(|(key, flag)| format!("{key} is {flag}")).collect();
    if hints.is_empty() { text } else { format!("{text}\n(as a flag, {})", hints.join(", ")) }
}

/// A string, or a list of strings, in TOML: JSON writes those the same way.
fn toml<T: serde::Serialize>(value: &T) -> Option<String> {
    serde_json::to_string(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_in_messages_are_told_as_flags() {
        let flags = [("listen", "--listen"), ("health_listen", "--health-listen")];
        let told = |text: &str| with_flags(text.into(), &flags);
        assert_eq!(told("Set health_listen"), "Set health_listen\n(as a flag, health_listen is --health-listen)");
        assert_eq!(told("missing field `listen`"), "missing field `listen`\n(as a flag, listen is --listen)");
        for quiet in ["cannot listen on 1", "health_listen_anywhere = 1", "health_listen: give --health-listen"] {
            assert_eq!(told(quiet), quiet);
        }
    }

    #[test]
    fn flags_win_over_the_file_and_defaults_count_without_one() {
        let over = || {
            Overrides::new("T")
                .flag("a", Some("true"))
                .flag("b.c", Some(["x:1", "y \"2\""]))
                .flag("d", None::<String>)
                .default("e", Some("mine"))
        };
        assert_eq!(
            over().alone(),
            [("T__E", r#""mine""#), ("T__A", r#""true""#), ("T__B__C", r#"["x:1","y \"2\""]"#)]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
        );
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.toml");
        std::fs::write(&file, "e = 'theirs'").unwrap();
        let laid = over().read(Some(&file), Path::new("/nonexistent")).unwrap();
        assert_eq!(laid.text, "e = 'theirs'");
        assert!(!laid.variables.iter().any(|(name, _)| name == "T__E"));
        assert!(over().read(Some(&folder.path().join("b.toml")), &file).is_err());
    }
}
