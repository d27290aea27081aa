//! `docs/standards.md` is whole and true: it has each MUST, MUST NOT, SHOULD and SHOULD NOT of the SPIFFE standards, and
//! each of them has tests that exist, or the reason why there is none.
//!
//! - A row may stand for several words of one rule: `MUST ×2`, `MUST, SHOULD NOT`. What is counted is words.
//! - A test is named by its file and its function: `spiffe/src/id.rs::our_own_ids`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say what is wrong by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// How many words each standard has, in capitals, in the order of [`WORDS`]. Counted by a script in the whole text of each
/// standard, across the ends of lines: `MUST` and `SHOULD` where no `NOT` follows.
const STANDARDS: &[(&str, [usize; 4])] = &[
    ("SPIFFE-ID", [10, 7, 1, 2]),
    ("X509-SVID", [22, 4, 4, 0]),
    ("JWT-SVID", [15, 2, 3, 0]),
    ("WIT-SVID", [32, 10, 5, 3]),
    ("SPIFFE_Trust_Domain_and_Bundle", [14, 2, 4, 1]),
    ("SPIFFE_Workload_Endpoint", [11, 6, 6, 2]),
    ("SPIFFE_Workload_API", [28, 3, 23, 2]),
    ("SPIFFE_Federation", [29, 6, 20, 2]),
    ("SPIFFE_Broker_API", [60, 10, 14, 0]),
    ("SPIFFE_Broker_Endpoint", [11, 1, 3, 2]),
];

const WORDS: [&str; 4] = ["MUST", "MUST NOT", "SHOULD", "SHOULD NOT"];

/// What the last column begins with where there is no test; the reason follows.
const NO_TEST: &str = "No test: ";

/// The RPCs of the standards: SPIFFE_Workload_API.md sections 5.1, 6.1 and 7.1, SPIFFE_Broker_API.md sections 5.1 and
/// 6.1.
const SERVICES: &[(&str, &str, &[&str])] = &[
    (
        "workload.proto",
        "SpiffeWorkloadAPI",
        &[
            "FetchJWTBundles(JWTBundlesRequest) returns (stream JWTBundlesResponse)",
            "FetchJWTSVID(JWTSVIDRequest) returns (JWTSVIDResponse)",
            "FetchWITBundles(WITBundlesRequest) returns (stream WITBundlesResponse)",
            "FetchWITSVID(WITSVIDRequest) returns (stream WITSVIDResponse)",
            "FetchX509Bundles(X509BundlesRequest) returns (stream X509BundlesResponse)",
            "FetchX509SVID(X509SVIDRequest) returns (stream X509SVIDResponse)",
            "ValidateJWTSVID(ValidateJWTSVIDRequest) returns (ValidateJWTSVIDResponse)",
        ],
    ),
    (
        "broker.proto",
        "API",
        &[
            "FetchJWTSVID(FetchJWTSVIDRequest) returns (FetchJWTSVIDResponse)",
            "SubscribeToJWTBundles(SubscribeToJWTBundlesRequest) returns (stream SubscribeToJWTBundlesResponse)",
            "SubscribeToX509Bundles(SubscribeToX509BundlesRequest) returns (stream SubscribeToX509BundlesResponse)",
            "SubscribeToX509SVID(SubscribeToX509SVIDRequest) returns (stream SubscribeToX509SVIDResponse)",
        ],
    ),
];

#[test]
fn every_word_of_the_standards_is_in_the_table() {
    let table = table();
    let rows = rows(&table);
    for (standard, counts) in STANDARDS {
        let rows: Vec<_> = rows.iter().filter(|row| row.standard == *standard).collect();
        let words: Vec<_> = rows.iter().flat_map(|row| words(row)).collect();
        let found = WORDS.map(|word| words.iter().filter(|found| **found == word).count());
        assert_eq!(found, *counts, "{standard}: {WORDS:?}");
    }
    let known: BTreeSet<_> = STANDARDS.iter().map(|(standard, _)| *standard).collect();
    let others: Vec<_> = rows.iter().map(|row| row.standard).filter(|standard| !known.contains(standard)).collect();
    assert!(others.is_empty(), "no standards: {others:?}");
}

#[test]
fn every_row_names_tests_that_exist_or_a_reason() {
    let table = table();
    let mut files = BTreeMap::new();
    let mut wrong = Vec::new();
    for row in rows(&table) {
        let place = format!("{} {} {:?}", row.standard, row.section, row.asks);
        if let Some(reason) = row.holds.strip_prefix(NO_TEST) {
            if reason.trim().is_empty() {
                wrong.push(format!("{place}: give the reason"));
            }
            continue;
        }
        let named: Vec<_> = row.holds.split("<br>").map(str::trim).collect();
        for test in named {
            let parts =
                test.strip_prefix('`').and_then(|test| test.strip_suffix('`')).and_then(|test| test.split_once("::"));
            let Some((file, name)) = parts else {
                wrong.push(format!("{place}: {test:?} names no test"));
                continue;
            };
            let tests = files.entry(file).or_insert_with(|| {
                let text = fs::read_to_string(root().join(file)).unwrap_or_default();
                tests_in(&text).into_iter().map(str::to_owned).collect::<BTreeSet<_>>()
            });
            if !tests.contains(name) {
                wrong.push(format!("{place}: there is no test {name} in {file}"));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn the_services_are_those_of_the_standards() {
    for (file, service, expected) in SERVICES {
        let text = fs::read_to_string(root().join("spiffe/proto").join(file)).unwrap();
        let services: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("service ")).collect();
        assert_eq!(services, [format!("{service} {{")], "{file}");
        let mut rpcs: Vec<_> = text.lines().filter_map(|line| line.trim().strip_prefix("rpc ")).collect();
        rpcs.sort_unstable();
        let rpcs: Vec<_> = rpcs.iter().map(|rpc| rpc.trim_end_matches(';')).collect();
        assert_eq!(rpcs, *expected, "{file}");
    }
}

// The checker itself: a check that cannot fail proves nothing.

#[test]
fn rows_and_words_are_read() {
    let table =
        "## One\n\n| section | asks | what | held by |\n|---|---|---|---|\n| 2.1 | MUST ×2, SHOULD NOT | a | b |\n";
    let rows = rows(table);
    assert_eq!(rows.len(), 1);
    assert_eq!(
        (rows[0].standard, rows[0].section, rows[0].asks, rows[0].holds),
        ("One", "2.1", "MUST ×2, SHOULD NOT", "b")
    );
    assert_eq!(words(&rows[0]), ["MUST", "MUST", "SHOULD NOT"]);
}

#[test]
fn tests_are_told_from_other_functions() {
    let text = "#[test]\nfn one() {}\n\nfn two() {}\n#[tokio::test(flavor = \"multi_thread\")]\n#[expect(x)]\n\
                async fn three() {\n    fn four() {}\n}\nproptest! {\n    #[test]\n    // why\n    fn five(a: u8) {}\n}\n";
    assert_eq!(tests_in(text), ["one", "three", "five"]);
}

struct Row<'a> {
    standard: &'a str,
    section: &'a str,
    asks: &'a str,
    holds: &'a str,
}

fn rows(table: &str) -> Vec<Row<'_>> {
    let mut standard = "";
    let mut rows = Vec::new();
    for line in table.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            standard = heading;
        }
        let Some(cells) = line.strip_prefix("| ").and_then(|line| line.strip_suffix(" |")) else { continue };
        let cells: Vec<_> = cells.split(" | ").collect();
        let [section, asks, _, holds] = cells[..] else { panic!("{standard}: not four columns: {line}") };
        if section != "section" {
            rows.push(Row { standard, section, asks, holds });
        }
    }
    rows
}

fn words<'a>(row: &Row<'a>) -> Vec<&'a str> {
    let repeated = |words: &'a str| match words.split_once(" ×") {
        Some((word, times)) => vec![word; times.parse().unwrap()],
        None => vec![words],
    };
    row.asks.split(", ").flat_map(repeated).collect()
}

/// The functions that stand below `#[test]` or `#[tokio::test]`, with other attributes and comments between.
fn tests_in(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut test = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            test = true;
        } else if !line.starts_with("#[") && !line.starts_with("//") {
            let name =
                line.trim_start_matches("async ").strip_prefix("fn ").and_then(|rest| rest.split(['(', '<']).next());
            found.extend(name.filter(|_| test));
            test = false;
        }
    }
    found
}

fn table() -> String {
    fs::read_to_string(root().join("docs/standards.md")).unwrap()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}
