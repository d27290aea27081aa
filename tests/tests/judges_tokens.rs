//! Other people's SPIFFE libraries judge the JWT-SVIDs and WIT-SVIDs of the real binary, and call every RPC of the
//! Workload API that they know.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say what is wrong by panicking")]

use std::collections::BTreeSet;

use serde_json::Value;
use spiffe::time::{Clock as _, System};
use tests::binary::{House, Judge, Process, update_of};

const WEB: &str = "spiffe://example.org/web";

/// What `judge` prints for these words.
#[track_caller]
fn seen(judge: Judge, house: &House, words: &[&str]) -> Value {
    judge.command(house).args(words).run().succeeded().json()
}

fn now() -> i64 {
    i64::try_from(System.now().unix()).unwrap()
}

#[test]
fn every_judge_fetches_and_validates_jwt_svids() {
    let house = House::with_agent("", "");
    house.entry("web", &House::of_us(), &["--hint", "front", "--jwt-ttl", "2m"]);
    house.entry("second", &House::of_us(), &[]);
    for judge in Judge::ALL {
        let all = seen(judge, &house, &["jwt", "--audience", "reports,billing"]);
        let ids: BTreeSet<&str> =
            all["tokens"].as_array().unwrap().iter().map(|one| one["spiffe_id"].as_str().unwrap()).collect();
        assert_eq!(ids, BTreeSet::from([WEB, "spiffe://example.org/second"]), "{judge:?}: {all}");
        assert_eq!(all["bundles"]["example.org"], 1, "{judge:?}: {all}");

        let one = seen(judge, &house, &["jwt", "--audience", "reports", "--id", WEB]);
        let token = &one["tokens"][0];
        assert_eq!((&token["spiffe_id"], one["tokens"].as_array().unwrap().len()), (&Value::from(WEB), 1), "{one}");
        assert_eq!(token["audience"], serde_json::json!(["reports"]), "{one}");
        let life = token["expires_at"].as_i64().unwrap() - now();
        assert!((50..=120).contains(&life), "{judge:?}: a life of {life} s");
        if judge != Judge::Python {
            assert_eq!(token["hint"], "front", "{judge:?}: {one}");
        }
    }
}

#[test]
fn every_algorithm_is_accepted_by_every_judge() {
    for algorithm in ["ES256", "ES384", "RS256"] {
        let house = House::with_agent(&format!("[jwt]\nalgorithm = '{algorithm}'"), "");
        house.entry("web", &House::of_us(), &[]);
        for judge in Judge::ALL {
            let all = seen(judge, &house, &["jwt", "--audience", "reports"]);
            assert_eq!(all["tokens"][0]["spiffe_id"], WEB, "{algorithm} {judge:?}: {all}");
        }
    }
}

#[test]
fn a_token_is_cached_unless_it_has_a_jti() {
    let house = House::with_agent("", "");
    house.entry("web", &House::of_us(), &[]);
    house.entry("once", &House::of_us(), &["--jti"]);
    let token = |id: &str| {
        let all = seen(Judge::Go, &house, &["jwt", "--audience", "reports", "--id", id]);
        all["tokens"][0]["token"].as_str().unwrap().to_owned()
    };
    assert_eq!(token(WEB), token(WEB));
    let once = "spiffe://example.org/once";
    assert_ne!(token(once), token(once));
}

#[test]
fn what_is_wrong_is_refused_in_the_words_of_the_standard() {
    let house = House::with_agent("", "");
    house.entry("web", &House::of_us(), &[]);
    let all = seen(Judge::Go, &house, &["jwt", "--audience", "reports"]);
    let token = all["tokens"][0]["token"].as_str().unwrap();
    let validate = |audience: &str, token: &str| {
        let words = ["validate-jwt", "--audience", audience, "--token", token];
        Judge::Go.command(&house).args(words).run()
    };
    validate("reports", token).succeeded();
    // go-spiffe itself refuses these before it asks; the command line asks the agent.
    let ask = |audience: &str, token: &str| house.run(&["validate", "jwt", "--audience", audience, token]);
    ask("reports", token).succeeded().says(&[WEB]);
    assert_ne!(validate("other", token).code, Some(0));
    assert_ne!(ask("other", token).code, Some(0));
    let (rest, signature) = token.rsplit_once('.').unwrap();
    let first = if signature.starts_with('A') { "B" } else { "A" };
    let forged = format!("{rest}.{first}{}", &signature[1..]);
    assert_ne!(validate("reports", &forged).code, Some(0));
    assert_ne!(ask("reports", &forged).code, Some(0));
    let other =
        Judge::Go.command(&house).args(["jwt", "--audience", "reports", "--id", "spiffe://example.org/no"]).run();
    assert!(other.code != Some(0) && other.stderr.contains("PermissionDenied"), "{other}");
}

/// Waits until the newest bundle that `watching` has printed counts `keys` keys of our trust domain.
#[track_caller]
fn counts(watching: &mut Process, keys: u64) {
    watching.wait_for(&format!("{keys} keys in the bundle"), 60, |watching| {
        let newest = update_of(watching).pop()?;
        (newest["bundles"]["example.org"] == keys).then_some(())
    });
}

#[test]
fn the_key_rotates_under_every_judge() {
    let house = House::with_agent("", "");
    house.entry("web", &House::of_us(), &[]);
    let watch = |judge: Judge| {
        let words = ["watch-jwt-bundles", "--updates", "1000", "--timeout", "300"];
        Process::start(judge.command(&house).args(words), house.folder(), &format!("{judge:?}"))
    };
    let mut watching: Vec<Process> = Judge::ALL.into_iter().map(watch).collect();
    watching.iter_mut().for_each(|judge| counts(judge, 1));
    let before = seen(Judge::Go, &house, &["jwt", "--audience", "reports"]);

    let prepared = house.run(&["authority", "prepare", "--kind", "jwt", "--wait", "-o", "json"]).succeeded().json();
    let next = prepared["id"].as_str().unwrap();
    watching.iter_mut().for_each(|judge| counts(judge, 2));
    house.run(&["authority", "activate", next]).succeeded();
    // Both keys verify: the old token is good until it ends.
    let old = before["tokens"][0]["token"].as_str().unwrap();
    for judge in Judge::ALL {
        seen(judge, &house, &["jwt", "--audience", "fresh"]);
    }
    let words = ["validate-jwt", "--audience", "reports", "--token", old];
    Judge::Go.command(&house).args(words).run().succeeded();

    let list = house.run(&["authority", "list", "-o", "json"]).succeeded().json();
    let retired =
        list["authorities"].as_array().unwrap().iter().find(|one| one["kind"] == "jwt" && one["state"] == "retired");
    let retired = retired.unwrap_or_else(|| panic!("{list}"))["id"].as_str().unwrap().to_owned();
    house.run(&["authority", "taint", &retired, "--wait"]).succeeded();
    house.run(&["authority", "revoke", &retired]).succeeded();
    watching.iter_mut().for_each(|judge| counts(judge, 1));
    assert_ne!(Judge::Go.command(&house).args(words).run().code, Some(0), "the old key is revoked");
    let after = seen(Judge::Go, &house, &["jwt", "--audience", "reports"]);
    assert_ne!(after["tokens"][0]["token"], old, "the cached token went with its key");
}

#[test]
fn go_spiffe_verifies_wit_svids_and_sees_them_renewed() {
    let house = House::with_agent("", "");
    house.entry("web", &House::of_us(), &["--wit-ttl", "8s"]);
    house.entry("p384", &House::of_us(), &["--key-type", "p384"]);
    let all = seen(Judge::Go, &house, &["wit"]);
    assert_eq!(all["tokens"].as_array().unwrap().len(), 2, "{all}");
    assert_eq!(all["bundles"]["example.org"], 1, "{all}");
    let one = seen(Judge::Go, &house, &["wit", "--id", WEB]);
    assert_eq!((&one["tokens"][0]["spiffe_id"], one["tokens"].as_array().unwrap().len()), (&Value::from(WEB), 1));

    let words = ["watch-wit", "--id", WEB, "--updates", "1000", "--timeout", "300"];
    let mut watching = Process::start(Judge::Go.command(&house).args(words), house.folder(), "wit");
    watching.wait_for("three WIT-SVIDs in turn", 60, |watching| {
        let tokens: BTreeSet<String> = update_of(watching)
            .iter()
            .filter_map(|line| line["tokens"][0]["token"].as_str().map(str::to_owned))
            .collect();
        (tokens.len() >= 3).then_some(())
    });
}
