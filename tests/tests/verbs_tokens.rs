//! `chancery` taken through the verbs of tokens, on a real server and a real agent: what a workload and an operator type
//! and read.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say what is wrong by panicking")]

use std::os::unix::fs::PermissionsExt as _;

use serde_json::Value;
use spiffe::jwt_svid::JwtSvid;
use spiffe::wit_svid::WitSvid;
use tests::binary::{House, Output};

const WEB: &str = "spiffe://example.org/web";
const SECOND: &str = "spiffe://example.org/second";

/// A server and an agent, and this process with two identities. Of entries of one second the IDs say which is the default.
fn house() -> House {
    let house = House::with_agent("", "");
    house.entry("web", &House::of_us(), &["--hint", "front", "--jwt-ttl", "4m", "--id", "a-web"]);
    house.entry("second", &House::of_us(), &["--key-type", "p384", "--id", "b-second"]);
    house
}

#[track_caller]
fn raw(house: &House, audience: &str) -> String {
    house.run(&["fetch", "jwt", "--audience", audience, "--raw"]).succeeded().stdout.trim_end().to_owned()
}

/// `in 3m (2026-11-20T23:40:00Z)`: both for people.
fn is_near(text: &str, unit: char) -> bool {
    text.split_once(" (").is_some_and(|(near, at)| {
        near.starts_with("in ") && near.ends_with(unit) && at.len() == 21 && at.ends_with("Z)")
    })
}

#[test]
fn a_key_has_one_name_wherever_it_is_shown() {
    let house = House::with_server("");
    let list = house.run(&["authority", "list"]).succeeded();
    let rows = list.table(&["ID", "KIND", "STATE", "EXPIRES", "NEXT", "OWNER", "FINGERPRINT OR KID"]);
    let of = |kind: &str| rows.iter().find(|row| row[1] == kind).unwrap()[6].clone();
    assert_eq!(of("x509"), format!("sha256:{}", house.fingerprint()), "{list}");
    let json = house.run(&["authority", "list", "-o", "json"]).succeeded().json();
    let authorities = json["authorities"].as_array().unwrap();
    let kid = |kind: &str| authorities.iter().find(|one| one["kind"] == kind).unwrap()["kid"].clone();
    assert_eq!((kid("x509"), kid("jwt"), kid("wit")), (Value::Null, of("jwt").into(), of("wit").into()), "{json}");

    let words = ["jwt", "mint", "--spiffe-id", "spiffe://example.org/backup", "--audience", "reports"];
    let token = house.run(&words).succeeded().stdout;
    assert_eq!(JwtSvid::parse(token.trim_end()).unwrap().kid(), Some(of("jwt").as_str()));

    let shown = house.run(&["bundle", "show"]).succeeded();
    shown.says(&[
        &of("x509"),
        &format!("{}  JWT-SVIDs  P-256", of("jwt")),
        &format!("{}  WIT-SVIDs  P-256", of("wit")),
    ]);
    let json = house.run(&["bundle", "show", "-o", "json"]).succeeded().json();
    assert_eq!(json["jwt_authorities"][0]["kid"], of("jwt"), "{json}");
    assert_eq!(json["wit_authorities"][0]["jwk"]["kid"], of("wit"), "{json}");
    let format = |format: &str| house.run(&["bundle", "show", "--format", format]).succeeded();
    assert_eq!(format("jwt").json()["keys"][0]["kid"], of("jwt"));
    assert_eq!(format("wit").json()["keys"][0]["kid"], of("wit"));
    assert_eq!(format("jwks").stdout, format("spiffe").stdout);
    house.run(&["bundle", "show", "--format", "pem", "-o", "json"]).failed(2, &["--output json", "--format"]);

    house.write("theirs.json", &format("spiffe").stdout);
    house.write("theirs.pem", &format("pem").stdout);
    for (domain, kind, keys) in
        [("one.org", "json", "1 JWT key, 1 WIT key"), ("two.org", "pem", "no JWT key, no WIT key")]
    {
        let (file, form) = (format!("theirs.{kind}"), if kind == "pem" { "pem" } else { "jwks" });
        let set = house.run(&["bundle", "set", domain, "--format", form, "--file", &file]).succeeded();
        set.says(&[&format!("{domain} is trusted by 1 root, {keys}\n")]);
    }
    let list = house.run(&["bundle", "list"]).succeeded();
    let rows = list.table(&["TRUST DOMAIN", "ROOTS", "FIRST EXPIRES", "JWT KEYS", "WIT KEYS", "SEQUENCE"]);
    let keys: Vec<_> = rows.iter().map(|row| format!("{} {} {}", row[0], row[3], row[4])).collect();
    assert_eq!(keys, ["example.org 1 1", "one.org 1 1", "two.org 0 0"], "{list}");
}

#[test]
fn fetch_jwt() {
    let house = House::with_agent("", "");
    let fetch = |words: &[&str]| house.run(&[&["fetch", "jwt", "--audience", "reports"], words].concat());
    fetch(&[]).failed(1, &["this process has no identity", "chancery entry create"]);
    house.entry("web", &House::of_us(), &["--hint", "front", "--jwt-ttl", "4m"]);
    house.entry("second", &House::of_us(), &[]);

    let text = fetch(&[]).succeeded();
    assert_eq!((text.property("spiffe id"), text.property("hint")), (WEB, "front"), "{text}");
    assert_eq!(text.property("audience"), "reports", "{text}");
    assert!(is_near(text.property("expires"), 'm'), "{text}");
    let json = fetch(&["--audience", "billing", "-o", "json"]).succeeded().json();
    assert_eq!((&json["svids"][0]["spiffe_id"], &json["svids"][1]["spiffe_id"]), (&WEB.into(), &SECOND.into()));
    assert_eq!(json["svids"][0]["audience"], serde_json::json!(["billing", "reports"]), "{json}");
    assert!(json["svids"][0]["expires_at"].as_str().unwrap().ends_with('Z'), "{json}");
    assert!(json["svids"][0].get("key").is_none(), "{json}");

    // For a variable or a header: the token, an end of line, and nothing else.
    let token = fetch(&["--raw", "--spiffe-id", SECOND]).succeeded().stdout;
    assert_eq!(JwtSvid::parse(token.strip_suffix('\n').unwrap()).unwrap().id().as_str(), SECOND);
    assert_eq!(JwtSvid::parse(&raw(&house, "reports")).unwrap().id().as_str(), WEB, "the default identity");

    fetch(&["--spiffe-id", "spiffe://example.org/no"])
        .failed(1, &[&format!("this process is not spiffe://example.org/no: it is {WEB}, {SECOND}\n")]);
    fetch(&["--raw", "-o", "json"]).failed(2, &["--raw", "--output json", "leave one of them out"]);
    house.run(&["-o", "json", "fetch", "jwt", "--raw", "--audience", "a"]).failed(2, &["leave one of them out"]);
    fetch(&["--audience", ""]).failed(2, &["--audience", "it is empty: name whom the token is for"]);
    // Nothing that is set in the environment is asked for on the command line.
    let usage = house.run(&["fetch", "jwt"]).failed(2, &["--audience <AUDIENCE>"]);
    assert!(!usage.stderr.contains("--workload-socket"), "{usage}");
}

#[test]
fn validate_jwt() {
    let house = house();
    let token = raw(&house, "me");
    let validate = |audience: &str, token: &str| house.run(&["validate", "jwt", "--audience", audience, token]);
    let text = validate("me", &token).succeeded();
    assert_eq!((text.property("spiffe id"), text.property("sub"), text.property("aud")), (WEB, WEB, "me"), "{text}");
    assert!(is_near(text.property("exp"), 'm'), "{text}");
    assert!(text.property("iat").contains("ago (") || text.property("iat").starts_with("now ("), "{text}");
    let json = house.run(&["validate", "jwt", "--audience", "me", &token, "-o", "json"]).succeeded().json();
    assert_eq!((&json["spiffe_id"], &json["claims"]["aud"]), (&WEB.into(), &serde_json::json!(["me"])), "{json}");
    assert!(json["claims"]["exp"].is_u64(), "as the token has it: {json}");

    let fed = |text: &str| house.command(&["validate", "jwt", "--audience", "me", "-"]).stdin(text).run();
    fed(&format!("{token}\n")).succeeded().says(&[WEB]);
    fed("").failed(1, &["standard input has no token: it is empty", "chancery fetch jwt"]);

    validate("you", &token).failed(1, &["is not for the audience \"you\""]);
    validate("", &token).failed(2, &["--audience", "it is empty"]);
    validate("me", "").failed(2, &["that is no token: it is empty"]);
    validate("me", &format!("Bearer {token}")).failed(2, &["it begins with \"Bearer\""]);
    house.write("token", &token);
    validate("me", "token").failed(2, &["looks like the path of a file", "chancery validate jwt ... - < token"]);
    validate("me", "abc").failed(1, &["token has 1 parts"]);
}

#[test]
fn a_token_of_another_trust_domain_is_validated_once_the_entry_federates_with_it() {
    let house = house();
    let mut other = House::empty_of("other.org", "");
    other.start_server();
    let words = ["jwt", "mint", "--spiffe-id", "spiffe://other.org/them", "--audience", "me"];
    let token = other.run(&words).succeeded().stdout;
    let validate = || house.run(&["validate", "jwt", "--audience", "me", token.trim_end()]);
    validate().failed(1, &["spiffe://other.org/them", "chancery entry update ENTRY --federates-with other.org"]);

    house.write("theirs.json", &other.run(&["bundle", "show", "--format", "spiffe"]).succeeded().stdout);
    house.run(&["bundle", "set", "other.org", "--format", "spiffe", "--file", "theirs.json"]).succeeded();
    house.run(&["entry", "update", "a-web", "--federates-with", "other.org", "--wait"]).succeeded();
    let valid = validate().succeeded();
    assert_eq!(valid.property("spiffe id"), "spiffe://other.org/them");

    // Documents of two trust domains are two documents.
    let fetch = |words: &[&str]| house.run(&[&["fetch", "bundle", "--kind", "jwt"], words].concat());
    let both = fetch(&[]).succeeded();
    let read: Vec<Value> =
        serde_json::Deserializer::from_str(&both.stdout).into_iter().collect::<Result<_, _>>().unwrap();
    assert_eq!(read.len(), 2, "{both}");
    assert!(both.stderr.contains("note: the bundles of example.org, other.org, one after the other"), "{both}");
    let theirs = fetch(&["--trust-domain", "other.org"]).succeeded();
    assert_eq!((theirs.json()["keys"].as_array().unwrap().len(), theirs.stderr.as_str()), (1, ""), "{theirs}");
    let json = fetch(&["-o", "json"]).succeeded().json();
    assert_eq!(json["bundles"]["other.org"], theirs.json(), "{json}");
}

#[test]
fn fetch_wit() {
    let house = house();
    let text = house.run(&["fetch", "wit"]).succeeded();
    assert_eq!((text.property("spiffe id"), text.property("hint")), (WEB, "front"), "{text}");
    assert!(text.property("expires").starts_with("in "), "{text}");
    let json = house.run(&["fetch", "wit", "-o", "json"]).succeeded().json();
    assert_eq!((&json["svids"][0]["spiffe_id"], &json["svids"][1]["spiffe_id"]), (&WEB.into(), &SECOND.into()));
    assert!(json["svids"][0].get("key").is_none(), "no key where none was asked for: {json}");
    let keys = house.run(&["fetch", "wit", "--keys", "-o", "json", "--spiffe-id", SECOND]).succeeded().json();
    assert_eq!(keys["svids"].as_array().unwrap().len(), 1, "{keys}");
    let key: Value = serde_json::from_str(keys["svids"][0]["key"].as_str().unwrap()).unwrap();
    assert_eq!((&key["crv"], key["d"].is_string()), (&"P-384".into(), true));
    house
        .run(&["fetch", "wit", "--spiffe-id", "spiffe://example.org/no"])
        .failed(1, &[&format!("this process is not spiffe://example.org/no: it is {WEB}, {SECOND}\n")]);

    let written = house.run(&["fetch", "wit", "--write", "me"]).succeeded();
    assert!(!written.stdout.contains("eyJ"), "what is in files need not be on the screen: {written}");
    written.says(&[
        "written to me\n",
        &format!("svid.wit key.jwk      {WEB}\n"),
        &format!("svid.2.wit key.2.jwk  {SECOND}\n"),
    ]);
    let read = |name: &str| std::fs::read_to_string(house.path("me").join(name)).unwrap();
    for (token, key, id, curve) in [("svid.wit", "key.jwk", WEB, "P-256"), ("svid.2.wit", "key.2.jwk", SECOND, "P-384")]
    {
        assert_eq!(WitSvid::parse(&read(token)).unwrap().id().as_str(), id);
        let written: Value = serde_json::from_str(&read(key)).unwrap();
        assert_eq!(written["crv"], curve, "the key is that of its token");
        let mode = |name: &str| house.path("me").join(name).metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(token), mode(key)), (0o644, 0o600));
    }
}

#[test]
fn fetch_bundles_of_keys() {
    let house = house();
    let kid = |kind: &str| -> Value {
        let set = house.run(&["bundle", "show", "--format", kind]).succeeded().json();
        set["keys"][0]["kid"].clone()
    };
    for kind in ["jwt", "wit"] {
        let fetch = |words: &[&str]| house.run(&[&["fetch", "bundle", "--kind", kind], words].concat());
        let alone: Output = fetch(&[]).succeeded();
        assert_eq!((alone.json()["keys"][0]["kid"].clone(), alone.stderr.as_str()), (kid(kind), ""), "{alone}");
        let json = fetch(&["-o", "json"]).succeeded().json();
        assert_eq!(json["bundles"]["example.org"], alone.json(), "{json}");
        fetch(&["--write", "trust"]).succeeded().says(&["1 bundle written to trust\n"]);
        let file = house.path("trust").join(format!("bundle.example.org.{kind}.json"));
        assert_eq!(std::fs::read_to_string(file).unwrap(), alone.stdout);
        fetch(&["--trust-domain", "other.org"])
            .failed(1, &["no bundle of other.org, but of example.org", "--federates-with other.org"]);
    }
    let pem = house.run(&["fetch", "bundle", "--trust-domain", "example.org"]).succeeded();
    assert_eq!(pem.stdout, house.run(&["bundle", "show", "--format", "pem"]).succeeded().stdout);
}
