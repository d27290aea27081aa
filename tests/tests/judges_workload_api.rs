//! The Workload API judged by other people's libraries: go-spiffe, `spiffe` from PyPI, the public crate `spiffe`.
//! The programs verify what they get (`tests/interop/README.md`); here it is seen that it changes when it should.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say what is wrong by panicking")]

use std::collections::BTreeSet;

use serde_json::Value;
use tests::binary::{House, Judge, Process, update_of};

/// Lives so short that a test sees several.
const SHORT: &str = "[svid]\nttl = '8s'";

fn serials(updates: &[Value]) -> BTreeSet<String> {
    let svids = updates.iter().flat_map(|update| update["svids"].as_array().unwrap());
    svids.map(|svid| svid["serial"].as_str().unwrap().to_owned()).collect()
}

fn roots(update: &Value) -> u64 {
    update["bundles"]["example.org"].as_u64().unwrap()
}

/// Waits until each of the judges has seen what `look` looks for.
#[track_caller]
fn all_see(judges: &mut [Process], what: &str, look: impl Fn(&[Value]) -> bool) {
    for judge in judges {
        judge.wait_for(what, 90, |judge| look(&update_of(judge)).then_some(()));
    }
}

#[test]
fn each_library_sees_three_rotations_and_a_change_of_the_ca() {
    let house = House::with_agent(SHORT, "");
    house.entry("web", &House::of_us(), &["--hint", "internal"]);
    let mut judges = Judge::ALL.map(|judge| judge.watch(&house));
    all_see(&mut judges, "a first SVID", |updates| !updates.is_empty());
    for judge in &judges {
        let first = &update_of(judge)[0];
        assert_eq!(first["svids"][0]["spiffe_id"], "spiffe://example.org/web");
        assert_eq!(roots(first), 1, "{first}");
        if first["client"] != "spiffe-python" && first["svids"][0]["hint"] != "" {
            assert_eq!(first["svids"][0]["hint"], "internal", "{first}");
        }
    }
    all_see(&mut judges, "three rotations", |updates| serials(updates).len() >= 4);

    // The CA rotates: a second root, SVIDs below it, and the old root gone.
    let authority = |words: &[&str]| house.run(&[&["authority"], words, &["-o", "json"]].concat()).succeeded().json();
    let old = authority(&["list"])["authorities"][0]["id"].as_str().unwrap().to_owned();
    let new = authority(&["prepare", "--wait"])["id"].as_str().unwrap().to_owned();
    all_see(&mut judges, "the second root", |updates| updates.iter().any(|update| roots(update) == 2));
    let is_active = |id: &str| {
        let list = authority(&["list"]);
        let mut all = list["authorities"].as_array().unwrap().iter();
        all.any(|authority| authority["id"] == *id && authority["state"] == "active")
    };
    if !is_active(&new) {
        // It may have been activated by itself in between: all agents know it.
        let activated = house.run(&["authority", "activate", &new, "--wait"]);
        assert!(activated.code == Some(0) || is_active(&new), "{activated}");
    }
    let before = judges.iter().map(|judge| serials(&update_of(judge)).len()).max().unwrap();
    house.run(&["authority", "taint", &old, "--wait"]).succeeded();
    all_see(&mut judges, "an SVID below the new CA", |updates| serials(updates).len() > before);
    house.run(&["authority", "revoke", &old, "--wait"]).succeeded();
    all_see(&mut judges, "the old root's end", |updates| roots(updates.last().unwrap()) == 1);
    let seen = judges.iter().map(|judge| serials(&update_of(judge)).len()).max().unwrap();
    all_see(&mut judges, "a rotation below the new CA alone", |updates| serials(updates).len() > seen);
}

#[test]
fn each_library_gets_the_bundles_alone() {
    let house = House::with_agent("", "");
    house.entry("web", &House::of_us(), &[]);
    for judge in Judge::ALL {
        let seen = judge.command(&house).args(["watch-bundles"]).run().succeeded().json();
        assert_eq!(seen["bundles"], serde_json::json!({"example.org": 1}), "{judge:?}: {seen}");
        assert!(seen.get("svids").is_none(), "{judge:?}: {seen}");
    }
}

#[test]
fn a_patient_client_is_served_again_after_the_agent_was_away() {
    let mut house = House::with_agent("", "");
    house.entry("web", &House::of_us(), &[]);
    let watch = |judge: Judge| {
        let words = ["watch", "--updates", "2", "--timeout", "120", "--patient"];
        Process::start(judge.command(&house).args(words), house.folder(), &format!("{judge:?}"))
    };
    let mut judges = Judge::ALL.map(watch);
    all_see(&mut judges, "a first SVID", |updates| !updates.is_empty());
    house.stop_agent();
    house.start_agent();
    for judge in &mut judges {
        let status = judge.wait_for_end(120);
        assert!(status.success(), "{}", judge.tail());
    }
}

#[test]
fn two_workloads_do_mutual_tls_by_spiffe_id() {
    let house = House::with_agent("", "");
    // One program under two paths is two workloads.
    let (server, client) = (house.path("greeter"), house.path("caller"));
    for path in [&server, &client] {
        std::fs::copy(Judge::Go.program(), path).unwrap();
    }
    house.entry("greeter", &format!("unix:path:{}", server.display()), &[]);
    house.entry("caller", &format!("unix:path:{}", client.display()), &[]);
    let serve = ["serve", "--peer", "spiffe://example.org/caller", "--accepts", "2"];
    let mut serving = Process::start(house.program(&server).args(serve), house.folder(), "greeter");
    let address = serving.wait_for("its address", 60, |serving| {
        let line = update_of(serving).into_iter().next()?;
        Some(line["listening"].as_str().unwrap().to_owned())
    });
    let dial = |peer: &str| house.program(&client).args(["dial", "--peer", peer, "--address", &address]).run();
    let met = dial("spiffe://example.org/greeter").succeeded().json();
    assert_eq!(
        (met["local"].as_str(), met["peer"].as_str()),
        (Some("spiffe://example.org/caller"), Some("spiffe://example.org/greeter"))
    );
    let seen = serving.wait_for("the caller", 30, |serving| update_of(serving).into_iter().nth(1));
    assert_eq!(seen["peer"], "spiffe://example.org/caller");
    // Who expects somebody else hangs up.
    dial("spiffe://example.org/somebody").failed(1, &["spiffe://example.org/greeter"]);
}
