//! The papers are true: every file that they name exists, every link inside the repository leads somewhere.
//!
//! - A code span that looks like a path of this tree must exist: at the root, or inside a crate's `src` (as
//!   `authority/plan.rs` in a chapter about one crate).
//! - Fenced blocks are left alone: they show what a reader types and sees.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say what is wrong by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

/// Papers at the root; those that are there yet, and everything under `docs`.
const PAPERS: &[&str] = &["ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "README.md", "SECURITY.md"];

/// Where a path may be rooted, in the order in which a reader would look.
const BASES: &[&str] = &["", "ca-server/src", "node-agent/src", "spiffe/src", "cli/src", "tests", "tests/tests"];

/// What the name of a file of this repository ends in. Keys, sockets and databases are files of the reader's machine.
const ENDINGS: &[&str] = &["rs", "proto", "md", "toml", "sh", "go", "py", "yaml", "yml", "service"];

#[test]
fn papers_name_only_files_that_exist() {
    let mut wrong = Vec::new();
    for paper in papers() {
        let text = prose(&fs::read_to_string(&paper).unwrap());
        let name = paper.strip_prefix(root()).unwrap().display().to_string();
        let folder = paper.parent().unwrap();
        for span in spans(&text).into_iter().filter(|span| looks_like_our_path(span)) {
            if !BASES.iter().any(|base| root().join(base).join(span).exists()) && !folder.join(span).exists() {
                wrong.push(format!("{name} names `{span}`, which does not exist"));
            }
        }
        for target in links(&text) {
            let file = target.split('#').next().unwrap_or_default();
            if !file.is_empty() && !file.contains(':') && !folder.join(file).exists() {
                wrong.push(format!("{name} links to {target}, which does not exist"));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn a_path_is_told_from_other_code() {
    for path in
        ["ca-server/src/store/mod.rs", "docs/performance.md", "tests/interop/", "authority/plan.rs", "deny.toml"]
    {
        assert!(looks_like_our_path(path), "{path}");
    }
    for other in [
        "spiffe://example.org/web.rs",
        "/etc/chancery/server.toml",
        "~/.config/x.toml",
        "<id>/x.rs",
        "*/src/lib.rs",
        "cargo test",
        "text/plain",
        "agent/<attestor>",
        "Store",
        "key.pem",
        "x.rs",
        "target/release/chancery.rs",
    ] {
        assert!(!looks_like_our_path(other), "{other}");
    }
}

#[test]
fn spans_and_links_are_found_outside_fences() {
    let text =
        "See `a/b.rs` and ``c/d.rs``, [the map](docs/map.md#top).\n```\n`no/such.rs` [x](y.md)\n```\nthen `e`.\n";
    assert_eq!(spans(&prose(text)), ["a/b.rs", "c/d.rs", "e"]);
    assert_eq!(links(&prose(text)), ["docs/map.md#top"]);
}

fn papers() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = PAPERS.iter().map(|name| root().join(name)).filter(|path| path.exists()).collect();
    for folder in ["docs", "docs/proxies"] {
        let pages = fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path());
        found.extend(pages.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    }
    assert!(!found.is_empty(), "no paper under {}", root().display());
    found
}

/// The text without its fenced blocks.
fn prose(text: &str) -> String {
    let mut inside = false;
    let mut prose = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            inside = !inside;
        } else if !inside {
            prose.push_str(line);
            prose.push('\n');
        }
    }
    prose
}

/// What stands between backticks: a run of them opens a span, and the next run of the same length closes it.
fn spans(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find('`') {
        let opened = &rest[start..];
        let ticks = &opened[..opened.len() - opened.trim_start_matches('`').len()];
        let body = &opened[ticks.len()..];
        // A paragraph's end closes what was never closed, so that one stray backtick does not turn the page inside out.
        let paragraph = &body[..body.find("\n\n").unwrap_or(body.len())];
        match paragraph.split_once(ticks) {
            Some((span, _)) => {
                found.push(span.trim());
                rest = &body[span.len() + ticks.len()..];
            }
            None => rest = body,
        }
    }
    found
}

fn links(text: &str) -> Vec<&str> {
    text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target).collect()
}

/// Whether `span` reads as a path of this repository: `room/file.rs`, a folder `tests/interop/`, a paper or config at
/// the root.
fn looks_like_our_path(span: &str) -> bool {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "_-./".contains(letter);
    if span.starts_with(['/', '.']) || span.starts_with("target/") || !span.chars().all(plain) {
        return false;
    }
    let known = Path::new(span).extension().is_some_and(|ending| ENDINGS.iter().any(|known| ending == *known));
    match span.split_once('/') {
        Some((first, _)) => known || (span.ends_with('/') && root().join(first).is_dir()),
        // A bare file name is ours only when it is one of the root: others name files of the reader.
        None => known && root().join(span).exists(),
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}
