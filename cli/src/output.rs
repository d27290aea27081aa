//! The screen: aligned tables or one JSON document to stdout, complaints to stderr.
//!
//! - Nothing that came from a server reaches a terminal raw: control characters and those that turn the writing
//!   direction are shown as escapes.
//! - The one file that writes to stdout and stderr.

use std::io::{ErrorKind, Write as _};

use clap::ValueEnum;
use serde::Serialize;

use crate::exit::{Failure, Outcome};

/// In which form results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// Aligned tables with human times.
    #[default]
    Text,
    /// One JSON document; its fields are stable.
    Json,
}

impl Output {
    /// Prints `document` as JSON, or what `text` makes.
    pub(crate) fn show<T: Serialize>(self, document: &T, text: impl FnOnce() -> String) -> Outcome {
        match self {
            Self::Text => print(&text()),
            Self::Json => print(&json(document, true)?),
        }
    }

    /// The same in one line each time, for a sequence of documents.
    pub(crate) fn show_line<T: Serialize>(self, document: &T, text: impl FnOnce() -> String) -> Outcome {
        match self {
            Self::Text => print(&text()),
            Self::Json => print(&json(document, false)?),
        }
    }
}

/// A JSON document whose characters are all fit for a terminal.
fn json<T: Serialize>(document: &T, pretty: bool) -> Outcome<String> {
    let text = if pretty { serde_json::to_string_pretty(document) } else { serde_json::to_string(document) };
    let text = text.map_err(|error| Failure::Refused(format!("the result cannot be written as JSON: {error}")))?;
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        // Outside of ASCII these stand within strings only, where JSON has an escape that says the same.
        if is_unfit(c) && c != '\n' {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                safe.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            safe.push(c);
        }
    }
    Ok(safe)
}

/// Whether a character may change what a terminal shows elsewhere: controls, and turns of the direction.
fn is_unfit(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// `text` on one line, fit for a terminal: what could steer it is shown as an escape.
pub(crate) fn plain(text: &str) -> String {
    escape(text, false)
}

fn escape(text: &str, keep_lines: bool) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unfit(c) && !(keep_lines && c == '\n') {
            safe.extend(c.escape_unicode());
        } else {
            safe.push(c);
        }
    }
    safe
}

/// Prints lines to stdout; a missing last line end is added, and nothing is printed for nothing.
pub(crate) fn print(text: &str) -> Outcome {
    let mut text = escape(text, true);
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    print_raw(text.as_bytes())
}

/// Prints bytes of our own to stdout as they are.
pub(crate) fn print_raw(bytes: &[u8]) -> Outcome {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => Failure::OutputClosed,
        _ => Failure::Refused(format!("the output cannot be written: {error}")),
    })
}

/// Says something to stderr that is no result.
pub(crate) fn remark(text: &str) {
    // Where stderr is gone there is nobody left to tell.
    let _ = writeln!(std::io::stderr().lock(), "{}", escape(text.trim_end(), true));
}

/// Says to stderr why the command failed.
pub(crate) fn complain(failure: &Failure) {
    if !matches!(failure, Failure::OutputClosed) {
        remark(&format!("chancery: {failure}"));
    }
}

/// Lines of cells in aligned columns. The last column is not padded.
#[derive(Debug)]
pub(crate) struct Table {
    heads: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these column heads.
    pub(crate) fn new(heads: impl Into<Vec<&'static str>>) -> Self {
        Self { heads: heads.into(), rows: Vec::new() }
    }

    /// Adds a line. Cells may come from anywhere: they are made fit here. An empty one becomes a dash.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cell = |cell: String| if cell.is_empty() { "-".into() } else { plain(&cell) };
        self.rows.push(cells.into_iter().map(cell).collect());
    }

    /// The whole text, or `nothing` when there is no line.
    pub(crate) fn text_or(&self, nothing: &str) -> String {
        if self.rows.is_empty() { nothing.to_owned() } else { self.text() }
    }

    /// The whole text, heads first.
    pub(crate) fn text(&self) -> String {
        let heads: Vec<String> = self.heads.iter().map(|head| (*head).to_owned()).collect();
        let lines: Vec<&Vec<String>> = std::iter::once(&heads).chain(&self.rows).collect();
        aligned(&lines)
    }
}

/// A thing's properties, one in a line, in two aligned columns. Empty ones are left out.
#[derive(Debug, Default)]
pub(crate) struct Sheet(Vec<Vec<String>>);

impl Sheet {
    /// Adds a property; an empty value adds nothing.
    pub(crate) fn line(mut self, name: &str, value: impl Into<String>) -> Self {
        let value = value.into();
        if !value.is_empty() {
            self.0.push(vec![name.to_owned(), plain(&value)]);
        }
        self
    }

    /// Adds a property of several values, each on its own line.
    pub(crate) fn lines<T: AsRef<str>>(mut self, name: &str, values: impl IntoIterator<Item = T>) -> Self {
        let mut name = name;
        for value in values {
            self = self.line(name, value.as_ref());
            name = "";
        }
        self
    }

    /// The whole text.
    pub(crate) fn text(&self) -> String {
        aligned(&self.0.iter().collect::<Vec<_>>())
    }
}

fn aligned(lines: &[&Vec<String>]) -> String {
    let columns = lines.iter().map(|line| line.len()).max().unwrap_or(0);
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let mut row = String::new();
        for (cell, width) in line.iter().zip(&widths) {
            row.push_str(&format!("{cell:<width$}  "));
        }
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned() {
        let mut table = Table::new(["ID", "EXPIRES"]);
        table.row(["a".to_owned(), "in 3d".to_owned()]);
        table.row(["long-one".to_owned(), String::new()]);
        assert_eq!(table.text(), "ID        EXPIRES\na         in 3d\nlong-one  -\n");
        assert_eq!(Table::new(["ID"]).text_or("none"), "none");
    }

    #[test]
    fn sheets_leave_out_what_is_empty() {
        let sheet = Sheet::default().line("id", "a").line("hint", "").lines("selectors", ["x:1", "y:2"]);
        assert_eq!(sheet.text(), "id         a\nselectors  x:1\n           y:2\n");
    }

    #[test]
    fn nothing_steers_the_terminal() {
        let evil = "a\u{1b}[2Jb\u{9b}c\r\n\u{202e}d\u{7f}";
        let mut table = Table::new(["ID"]);
        table.row([evil.to_owned()]);
        assert_eq!(table.text(), "ID\na\\u{1b}[2Jb\\u{9b}c\\u{d}\\u{a}\\u{202e}d\\u{7f}\n");
        let document = json(&evil, false).unwrap();
        assert!(document.chars().all(|c| c.is_ascii() && !c.is_control()), "{document}");
        assert_eq!(serde_json::from_str::<String>(&document).unwrap(), evil);
    }
}
