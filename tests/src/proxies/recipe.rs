//! A config as a page of `docs/proxies` shows it: the fenced block whose first line names its file, as in
//! ```` ```yaml web.yaml ````.

use std::path::{Path, PathBuf};

/// The text of one file of a page, changed only where a test says so.
#[derive(Clone, Debug)]
pub struct Recipe {
    text: String,
    place: String,
}

impl Recipe {
    /// The block `file` of `docs/proxies/<page>.md`.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn read(page: &str, file: &str) -> Self {
        let path = pages().join(format!("{page}.md"));
        let paper = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let text = block(&paper, file).unwrap_or_else(|| panic!("{} has no block for {file}", path.display()));
        Self { text, place: format!("{file} of {}", path.display()) }
    }

    /// A config that stands on no page.
    pub fn of(text: String) -> Self {
        Self { text, place: "the config of a test".into() }
    }

    /// Puts `new` in the place of `old`, wherever that stands.
    ///
    /// # Panics
    /// When `old` is not there: then the page says something else than the test believes.
    #[must_use]
    #[track_caller]
    pub fn with(mut self, old: &str, new: &str) -> Self {
        assert!(self.text.contains(old), "{} does not say {old:?}", self.place);
        self.text = self.text.replace(old, new);
        self
    }

    /// The same for a port, where it stands behind `before`.
    #[must_use]
    #[track_caller]
    pub fn with_port(self, before: &str, old: u16, new: u16) -> Self {
        self.with(&format!("{before}{old}"), &format!("{before}{new}"))
    }

    /// What stands before the first `mark`, and the rest.
    #[track_caller]
    pub fn split(self, mark: &str) -> (Self, String) {
        let (before, rest) = self.text.split_once(mark).unwrap_or_else(|| panic!("{} has no {mark}", self.place));
        (Self { text: before.into(), place: self.place }, rest.into())
    }

    /// The text as it is now.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// Where the pages are.
fn pages() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/proxies")
}

fn block(paper: &str, file: &str) -> Option<String> {
    let mut lines = paper.lines();
    lines.find(|line| {
        line.strip_prefix("```").and_then(|info| info.split_once(' ')).is_some_and(|info| info.1 == file)
    })?;
    let lines: Vec<&str> = lines.take_while(|line| *line != "```").collect();
    Some(format!("{}\n", lines.join("\n")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_found_by_the_name_of_its_file() {
        let paper = "Text\n```yaml one.yaml\na\n```\n```yaml two.yaml\nb\n\nc\n```\nmore\n";
        assert_eq!(block(paper, "two.yaml").as_deref(), Some("b\n\nc\n"));
        assert_eq!(block(paper, "yaml"), None);
        assert_eq!(block(paper, "three.yaml"), None);
    }
}
