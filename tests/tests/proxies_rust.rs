//! The service of `docs/proxies/rust.md`, built and run. And the pages beside it: each is run by some test.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say what is wrong by panicking")]

use std::path::{Path, PathBuf};

use tests::binary::{House, Process, free_port, wait_for};
use tests::proxies::{Front, Load, Recipe, get};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

#[test]
fn the_service_of_the_page_lets_in_whom_it_should_through_rotations() {
    let text = std::fs::read_to_string(root().join("examples/service.rs")).unwrap();
    assert_eq!(Recipe::read("rust", "service.rs").text(), text, "the page shows another text");
    // target/debug/deps/proxies_rust-0123
    let beside = std::env::current_exe().unwrap();
    let built = beside.ancestors().nth(2).unwrap().join("examples/service");
    let house = House::with_agent("", "");
    let program = house.path("service");
    std::fs::copy(&built, &program).unwrap_or_else(|error| {
        panic!("{}: {error}: build it with `cargo build -p tests --examples`", built.display())
    });
    house.entry("web", &format!("unix:path:{}", program.display()), &["--ttl", "3s"]);
    let port = free_port();
    let words = [format!("127.0.0.1:{port}"), "spiffe://example.org/front".into()];
    let _service = Process::start(house.program(&program).args(&words), house.folder(), "service");

    let front = Front::start(&house, "spiffe://example.org/web", port);
    let answer = wait_for(60, || get(front.port, "/").ok().filter(|answer| answer.status == 200)).expect("an answer");
    assert_eq!(answer.body, "spiffe://example.org/front");
    let load = Load::start(front.port);
    Front::enter(&house, "stranger", &[]);
    let stranger = Front::start_as(&house, "stranger", ("spiffe://example.org/web", port));
    assert_eq!(get(stranger.port, "/").unwrap().status, 503);
    // Ten seconds are some nine of its rotations.
    load.go_on(200);
    load.end();
}

#[test]
fn each_page_and_each_config_is_run_by_a_test() {
    let mut tests = String::new();
    for folder in ["tests", "src/proxies"] {
        for entry in std::fs::read_dir(root().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                tests.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }
    let mut missing = Vec::new();
    for entry in std::fs::read_dir(root().join("../docs/proxies")).unwrap() {
        let path = entry.unwrap().path();
        let page = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if page == "README" {
            continue;
        }
        for line in std::fs::read_to_string(&path).unwrap().lines() {
            let Some((_, file)) = line.strip_prefix("```").and_then(|info| info.split_once(' ')) else { continue };
            let is_read = tests.contains(&format!("\"{page}\"")) && tests.contains(&format!("\"{file}\""));
            if !is_read {
                missing.push(format!("{file} of {}", path.display()));
            }
        }
        if !tests.contains(&format!("\"{page}\"")) {
            missing.push(path.display().to_string());
        }
    }
    assert!(missing.is_empty(), "no test runs {missing:#?}");
}
