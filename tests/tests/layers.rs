//! The shape of the house, checked: arrows between rooms point down, crates meet only in `spiffe`, `spiffe` has no
//! cycle, and no file grows past what one can read in one sitting. The order of rooms is the data at the top.
//!
//! - A room is a module of a crate; a nested module belongs to the longest name listed.
//! - A room may use its own modules and rooms on lower levels; rooms of one level use each other only when `beside` says so.
//! - Test code (`#[cfg(test)]`) may look anywhere; so may `lib.rs`, which only names the rooms.
//! - A room that is not listed fails the test: place it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say what is wrong by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// Rooms from the top of a crate to its bottom.
struct Order {
    levels: &'static [&'static [&'static str]],
    /// (who, whom): arrows allowed between two rooms of one level.
    beside: &'static [(&'static str, &'static str)],
}

const CA_SERVER: Order = Order {
    levels: &[
        &["app"],
        &["api"],
        &["rotate", "prune", "own_svid", "federation", "web", "kube"],
        &["health"],
        &["view", "connected"],
        &["issuance", "attest"],
        &["authority"],
        &["kube::review", "kube::lookup"],
        &["kube::client"],
        &["store", "audit", "metrics", "https", "origin", "kube::object"],
        &["config"],
    ],
    beside: &[("metrics", "audit")],
};

const NODE_AGENT: Order = Order {
    levels: &[
        &["app"],
        &["api", "deliver"],
        &["node", "cache::run"],
        &["cache::follow"],
        &["cache::machine", "cache::tokens::machine"],
        &["cache::event", "cache::attempts", "attestor"],
        // The words that the doors, the loop and the machines share.
        &["cache"],
        &["cache::tokens"],
        &["cache::directory"],
        &["client"],
        &["health"],
        &["metrics", "status"],
        &["config"],
    ],
    beside: &[],
};

/// What a crate may never name, and why.
const NEVER: &[(&str, &str, &str)] = &[
    ("ca-server", "node_agent", "server and agent meet in spiffe::proto only"),
    ("node-agent", "ca_server", "server and agent meet in spiffe::proto only"),
    ("spiffe", "ca_server", "spiffe is below everything"),
    ("spiffe", "node_agent", "spiffe is below everything"),
    ("spiffe", "std::fs", "spiffe holds words: no file"),
    ("spiffe", "tokio::fs", "spiffe holds words: no file"),
    ("spiffe", "tokio::net", "spiffe holds words: no socket"),
    ("spiffe", "std::os::unix::net", "spiffe holds words: no socket"),
    ("spiffe", "tokio::spawn", "spiffe holds words: no task"),
    ("spiffe", "tokio::task", "spiffe holds words: no task"),
    ("spiffe", "std::thread", "spiffe holds words: no task"),
];

const LONG: usize = 600;
const TOO_LONG: usize = 1_000;

/// Files of more than `LONG` lines, each with the reason why it is not two.
const LONG_FILES: &[(&str, &str)] = &[];

#[test]
fn arrows_of_ca_server_point_down() {
    assert_none(&misplaced(&read_crate("ca-server"), &CA_SERVER));
}

#[test]
fn arrows_of_node_agent_point_down() {
    assert_none(&misplaced(&read_crate("node-agent"), &NODE_AGENT));
}

#[test]
fn spiffe_has_no_cycle() {
    assert_none(&cycle(&read_crate("spiffe")));
}

#[test]
fn crates_name_only_what_they_may() {
    let mut wrong = Vec::new();
    for (name, never, why) in NEVER {
        let never: Vec<_> = never.split("::").collect();
        let files = read_crate(name);
        for file in shipped(&files) {
            for path in file.paths.iter().filter(|path| starts_with(path, &never)) {
                wrong.push(format!("{name}/src/{}: {}: {why}", file.name, path.join("::")));
            }
        }
    }
    assert_none(&wrong);
}

#[test]
fn no_file_is_too_long() {
    let mut sources = Vec::new();
    sources_under(&root(), &mut sources);
    assert!(sources.len() > 10, "found only {} Rust files: is the root of the repository wrong?", sources.len());
    let mut wrong = Vec::new();
    for file in sources {
        let name = file.strip_prefix(root()).unwrap().display().to_string();
        let lines = fs::read_to_string(&file).unwrap().lines().count();
        let excused = LONG_FILES.iter().any(|(listed, reason)| *listed == name && !reason.is_empty());
        if lines > TOO_LONG {
            wrong.push(format!("{name} has {lines} lines: split it, {TOO_LONG} is the most"));
        } else if lines > LONG && !excused {
            wrong.push(format!("{name} has {lines} lines: split it, or list it in LONG_FILES with the reason"));
        } else if lines <= LONG && excused {
            wrong.push(format!("{name} has only {lines} lines: take it off LONG_FILES"));
        }
    }
    let gone = LONG_FILES.iter().filter(|(name, _)| !root().join(name).exists());
    wrong.extend(gone.map(|(name, _)| format!("LONG_FILES names {name}, which is gone")));
    assert_none(&wrong);
}

// The checker itself: a check that cannot fail proves nothing.

#[test]
fn an_upward_arrow_is_caught() {
    let files = [file("store/mem.rs", "use crate::api::Caller;"), file("api/mod.rs", "use crate::store::Store;")];
    let wrong = misplaced(&files, &CA_SERVER);
    assert_eq!(wrong, ["store/mem.rs: store uses crate::api::Caller, and api is above it"]);
}

#[test]
fn an_arrow_is_caught_in_any_dress() {
    for text in [
        "fn f() { let _ = crate::app::run(); }",
        "fn f() { tracing::info!(n = crate::app::count()); }",
        "use crate::{config::Config, app::{App, self}};",
        "pub(crate) use super::app;",
        "mod inner { use super::super::app; }",
        "mod inner { fn f(_: crate::app::App) {} }",
        "impl From<crate::app::App> for Vec<u8> {}",
        "fn f() { Vec::<crate::app::App>::new(); }",
    ] {
        let wrong = misplaced(&[file("view.rs", text)], &CA_SERVER);
        assert!(wrong.iter().any(|line| line.contains("app is above it")), "{text}: {wrong:?}");
    }
}

#[test]
fn a_neighbour_is_caught_unless_listed() {
    let files = [file("rotate.rs", "use crate::api::Caller;")];
    assert_eq!(misplaced(&files, &CA_SERVER).len(), 1);
    let listed = Order { levels: CA_SERVER.levels, beside: &[("rotate", "api")] };
    assert_none(&misplaced(&files, &listed));
}

#[test]
fn an_unknown_room_is_caught_on_both_ends() {
    let wrong = misplaced(&[file("attic.rs", ""), file("app.rs", "use crate::cellar::Wine;")], &CA_SERVER);
    assert!(wrong.len() == 2 && wrong[0].contains("cellar") && wrong[1].contains("attic"), "{wrong:?}");
}

#[test]
fn a_nested_room_is_judged_by_its_longest_name() {
    let up = [file("cache/machine.rs", "use crate::cache::run::run;")];
    assert_eq!(misplaced(&up, &NODE_AGENT).len(), 1);
    let down = [file("cache/run.rs", "use super::machine::{Action, Event};\nuse super::Identity;")];
    assert_none(&misplaced(&down, &NODE_AGENT));
}

#[test]
fn what_is_no_arrow_is_left_alone() {
    let text = r#"
        //! See [`crate::app`].
        // use crate::app;
        const WORDS: &str = "use crate::app;";
        use self::plan::Plan;
        pub(crate) fn f() -> crate::store::Revision { crate::view::now() }
        #[cfg(test)] use crate::app::{Fake, Other};
        #[cfg(test)]
        mod tests { use super::*; use crate::app::App; }
    "#;
    assert_none(&misplaced(&[file("view/mod.rs", text)], &CA_SERVER));
    let files = [file("view/mod.rs", "#[cfg(test)] mod fixture;"), file("view/fixture.rs", "use crate::app::App;")];
    assert_none(&misplaced(&files, &CA_SERVER));
}

#[test]
fn code_that_is_not_only_for_tests_is_read() {
    for text in ["#[cfg(not(test))] use crate::app::App;", "#[cfg(test)] fn a() {}\nuse crate::app::App;"] {
        assert_eq!(misplaced(&[file("view.rs", text)], &CA_SERVER).len(), 1, "{text}");
    }
}

#[test]
fn a_cycle_is_caught() {
    let files = [
        file("id.rs", "use crate::entry::EntryId;"),
        file("entry.rs", "use crate::selector::Selector;"),
        file("selector.rs", "use crate::id::SpiffeId;"),
        file("time.rs", "use crate::id::SpiffeId;"),
    ];
    assert_eq!(cycle(&files), ["entry -> selector -> id -> entry"]);
    assert_none(&cycle(&files[..2]));
}

fn assert_none(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

/// Every arrow that does not point down, and every room without a place.
fn misplaced(files: &[Source], order: &Order) -> Vec<String> {
    let level = |room: &str| order.levels.iter().position(|rooms| rooms.contains(&room));
    let mut wrong = BTreeSet::new();
    for file in shipped(files).filter(|file| !file.module.is_empty()) {
        let Some(from) = room_of(&file.module, order) else {
            let room = file.module.join("::");
            wrong.insert(format!("{}: {room} is a room without a place: give it one in layers.rs", file.name));
            continue;
        };
        for path in file.paths.iter().filter(|path| path.len() > 1 && path[0] == "crate" && path[1] != "*") {
            let shown = path.join("::");
            let Some(to) = room_of(&path[1..], order) else {
                wrong.insert(format!("{}: {shown} leads to a room without a place", file.name));
                continue;
            };
            if from == to || order.beside.contains(&(from, to)) {
                continue;
            }
            if level(to) < level(from) {
                wrong.insert(format!("{}: {from} uses {shown}, and {to} is above it", file.name));
            } else if level(to) == level(from) {
                wrong.insert(format!("{}: {from} uses {shown}, and {to} is its neighbour", file.name));
            }
        }
    }
    wrong.into_iter().collect()
}

/// The longest listed room that `module` is, or lies in.
fn room_of(module: &[String], order: &Order) -> Option<&'static str> {
    let rooms = order.levels.iter().copied().flatten().copied();
    rooms.filter(|room| starts_with(module, &room.split("::").collect::<Vec<_>>())).max_by_key(|room| room.len())
}

fn starts_with(path: &[String], prefix: &[&str]) -> bool {
    path.len() >= prefix.len() && path.iter().zip(prefix).all(|(left, right)| left == right)
}

/// The first cycle among the top modules, as text; none when they are in order.
fn cycle(files: &[Source]) -> Vec<String> {
    let modules: BTreeSet<&str> = files.iter().filter_map(|file| file.module.first()).map(String::as_str).collect();
    let mut arrows: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for file in shipped(files) {
        let Some(from) = file.module.first() else { continue };
        for path in file.paths.iter().filter(|path| path.len() > 1 && path[0] == "crate") {
            if &path[1] != from && modules.contains(path[1].as_str()) {
                arrows.entry(from).or_default().insert(&path[1]);
            }
        }
    }
    let mut done = BTreeSet::new();
    arrows.keys().find_map(|start| walk(start, &arrows, &mut Vec::new(), &mut done)).into_iter().collect()
}

fn walk<'a>(
    at: &'a str,
    arrows: &BTreeMap<&'a str, BTreeSet<&'a str>>,
    trail: &mut Vec<&'a str>,
    done: &mut BTreeSet<&'a str>,
) -> Option<String> {
    if let Some(start) = trail.iter().position(|seen| *seen == at) {
        return Some(format!("{} -> {at}", trail[start..].join(" -> ")));
    }
    if !done.insert(at) {
        return None;
    }
    trail.push(at);
    let found = arrows.get(at).into_iter().flatten().find_map(|next| walk(next, arrows, trail, done));
    trail.pop();
    found
}

/// One source file: where it stands in its crate, and every path that its code names.
struct Source {
    name: String,
    /// `["store", "mem"]`; empty for `lib.rs`.
    module: Vec<String>,
    /// `crate`, `self` and `super` are resolved to `["crate", ..]`; others stand as written.
    paths: Vec<Vec<String>>,
    /// Modules declared under `#[cfg(test)]` in this file: their own files are test code.
    test_modules: Vec<Vec<String>>,
}

/// The files that are part of the product.
fn shipped(files: &[Source]) -> impl Iterator<Item = &Source> {
    let is_test =
        |file: &Source| files.iter().flat_map(|other| &other.test_modules).any(|test| file.module.starts_with(test));
    files.iter().filter(move |file| !is_test(file))
}

fn read_crate(name: &str) -> Vec<Source> {
    let base = root().join(name).join("src");
    let mut paths = Vec::new();
    sources_under(&base, &mut paths);
    assert!(!paths.is_empty(), "no source under {}", base.display());
    let read =
        |path: &PathBuf| file(path.strip_prefix(&base).unwrap().to_str().unwrap(), &fs::read_to_string(path).unwrap());
    paths.iter().map(read).collect()
}

fn file(name: &str, text: &str) -> Source {
    let mut module: Vec<String> = name.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
    if module.last().is_some_and(|last| ["mod", "lib", "main"].contains(&last.as_str())) {
        module.pop();
    }
    let tokens: TokenStream = text.parse().unwrap_or_else(|error| panic!("{name} is no Rust: {error}"));
    let mut source =
        Source { name: name.to_owned(), module: module.clone(), paths: Vec::new(), test_modules: Vec::new() };
    collect(tokens, &module, &mut source);
    source
}

/// Walks tokens, so that comments and strings are out and what stands inside macros is in.
fn collect(tokens: TokenStream, module: &[String], source: &mut Source) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut at = 0;
    while at < tokens.len() {
        if is_test_attribute(&tokens[at..]) {
            at = after_test_item(&tokens, at + 2, module, source);
        } else if let (Some("mod"), Some(name), Some(TokenTree::Group(body))) =
            (word(tokens.get(at)).as_deref(), word(tokens.get(at + 1)), tokens.get(at + 2))
        {
            collect(body.stream(), &[module, &[name]].concat(), source);
            at += 3;
        } else if word(tokens.get(at)).is_some() && is_colons(&tokens, at + 1) {
            at = read_path(&tokens, at, &[], module, &mut source.paths);
        } else {
            if let TokenTree::Group(group) = &tokens[at] {
                collect(group.stream(), module, source);
            }
            at += 1;
        }
    }
}

/// Reads `a::b::{c, d::e}` from `at`, adds each whole path to `paths`, and returns where it ends.
fn read_path(
    tokens: &[TokenTree],
    mut at: usize,
    before: &[String],
    module: &[String],
    paths: &mut Vec<Vec<String>>,
) -> usize {
    let mut path = before.to_vec();
    loop {
        match tokens.get(at) {
            Some(TokenTree::Ident(name)) => path.push(name.to_string()),
            Some(TokenTree::Punct(star)) if star.as_char() == '*' => path.push("*".to_owned()),
            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                for branch in inner.split(|token| is_punct(Some(token), ',')).filter(|branch| !branch.is_empty()) {
                    read_path(branch, 0, &path, module, paths);
                }
                return at + 1;
            }
            // `Vec::<T>`: the path ends, and what follows is read as any code.
            _ => break,
        }
        at += 1;
        if !is_colons(tokens, at) {
            break;
        }
        at += 2;
    }
    paths.extend(resolved(&path, module));
    at
}

/// `self` and `super` made absolute; `None` for a path that climbs out of the crate.
fn resolved(path: &[String], module: &[String]) -> Option<Vec<String>> {
    let mut base = module;
    let mut rest = path;
    match path.first().map(String::as_str) {
        Some("self") => {}
        Some("super") => {
            while rest.first().is_some_and(|step| step == "super") {
                base = &base[..base.len().checked_sub(1)?];
                rest = &rest[1..];
            }
        }
        _ => return Some(path.to_vec()),
    }
    let rest = rest.iter().filter(|step| *step != "self");
    Some(std::iter::once(&"crate".to_owned()).chain(base).chain(rest).cloned().collect())
}

fn word(token: Option<&TokenTree>) -> Option<String> {
    if let Some(TokenTree::Ident(name)) = token { Some(name.to_string()) } else { None }
}

fn is_punct(token: Option<&TokenTree>, which: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == which)
}

fn is_colons(tokens: &[TokenTree], at: usize) -> bool {
    is_punct(tokens.get(at), ':') && is_punct(tokens.get(at + 1), ':')
}

/// `#[cfg(test)]`, or a `cfg` with `test` among its conditions and no `not`.
fn is_test_attribute(tokens: &[TokenTree]) -> bool {
    let (true, Some(TokenTree::Group(attribute))) = (is_punct(tokens.first(), '#'), tokens.get(1)) else {
        return false;
    };
    let inner: Vec<TokenTree> = attribute.stream().into_iter().collect();
    let (Some("cfg"), Some(TokenTree::Group(condition))) = (word(inner.first()).as_deref(), inner.get(1)) else {
        return false;
    };
    let text = condition.stream().to_string();
    let words: BTreeSet<&str> = text.split(|letter: char| !letter.is_alphanumeric() && letter != '_').collect();
    words.contains("test") && !words.contains("not")
}

/// Past the item that starts at `at`: its body or its semicolon (a `use` has braces before it).
fn after_test_item(tokens: &[TokenTree], mut at: usize, module: &[String], source: &mut Source) -> usize {
    let mut is_use = false;
    while at < tokens.len() {
        match (&tokens[at], word(tokens.get(at)).as_deref()) {
            (_, Some("use")) => is_use = true,
            (_, Some("mod")) => {
                if let (Some(name), true) = (word(tokens.get(at + 1)), is_punct(tokens.get(at + 2), ';')) {
                    source.test_modules.push([module, &[name]].concat());
                }
            }
            (TokenTree::Group(group), _) if group.delimiter() == Delimiter::Brace && !is_use => return at + 1,
            (TokenTree::Punct(end), _) if end.as_char() == ';' => return at + 1,
            _ => {}
        }
        at += 1;
    }
    at
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every `.rs` below `folder`, but what was built.
fn sources_under(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            sources_under(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}
