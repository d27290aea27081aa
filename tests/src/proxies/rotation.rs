//! A rotation of the CA, as an operator does it who does not want to wait for the law of rotation.

use serde_json::Value;

use crate::binary::{House, wait_for};

/// Prepares a CA and activates it, taints and revokes the one before. `settled` returns when everyone has new SVIDs.
#[track_caller]
pub fn rotate(house: &House, mut settled: impl FnMut()) {
    let authority = |words: &[&str]| house.run(&[&["authority"], words, &["-o", "json"]].concat()).succeeded().json();
    let active = || {
        let list = authority(&["list"]);
        let mut all = list["authorities"].as_array().expect("a list").iter();
        let active = all.find(|one| one["kind"] == "x509" && one["state"] == "active");
        text(&active.expect("one is active")["id"])
    };
    let old = active();
    let new = text(&authority(&["prepare", "--wait"])["id"]);
    settled();
    if active() != new {
        // It may activate itself meanwhile: all agents know it.
        let activated = house.run(&["authority", "activate", &new, "--wait"]);
        assert!(activated.code == Some(0) || active() == new, "{activated}");
    }
    authority(&["taint", &old, "--wait"]);
    settled();
    // Refused as long as an agent is on its way back with a new SVID of its own.
    let revoke = || (house.run(&["authority", "revoke", &old, "--wait"]).code == Some(0)).then_some(());
    wait_for(60, revoke).expect("the old CA can be revoked");
    settled();
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}
