//! `chancery federation` taken through its verbs, on two real servers: what an operator types and reads.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say what is wrong by panicking")]

use tests::binary::{House, free_port};

/// A server of other.org that serves its bundle, and where.
fn there() -> (House, String) {
    let port = free_port();
    let web = format!("web.https_spiffe.listen = '127.0.0.1:{port}'");
    let mut house = House::empty_of("other.org", &web);
    house.start_server();
    (house, format!("https://127.0.0.1:{port}/"))
}

#[test]
fn a_relationship_from_its_beginning_to_its_end() {
    let house = House::with_agent("federation.allow_networks = ['127.0.0.0/8']", "");
    let (mut other, url) = there();
    house.run(&["federation", "list"]).succeeded().says(&["no federation relationships"]);
    house.write("theirs.json", &other.run(&["bundle", "show", "--format", "jwks"]).succeeded().stdout);
    let how = ["--profile", "https_spiffe", "--endpoint-id", "spiffe://other.org/chancery/server"];
    let first = ["--bundle", "theirs.json", "--bundle-format", "spiffe"];
    let create =
        |more: &[&str]| house.run(&[&["federation", "create", "other.org", "--url", &url], &how[..], more].concat());
    create(&["--bundle", "theirs.json"]).failed(2, &["--bundle-format"]);
    house.run(&["federation", "create", "other.org", "--profile", "https_web"]).failed(2, &["--url"]);
    let plain = ["federation", "create", "other.org", "--url", "http://other.org/", "--profile", "https_web"];
    house.run(&plain).failed(2, &["--url", "https"]);
    let anybody = ["federation", "create", "other.org", "--url", &url, "--profile", "https_spiffe"];
    house.run(&anybody).failed(2, &["--endpoint-id", "spiffe://other.org/chancery/server"]);
    house.run(&["federation", "update", "other.org"]).failed(2, &["nothing would change: give --url"]);
    create(&first)
        .succeeded()
        .says(&[&format!("the bundle of other.org is fetched from {url}"), "federation show other.org"]);
    create(&first).failed(1, &["already exists: "]);

    let polled = house.run(&["federation", "refresh", "other.org"]).succeeded();
    assert_eq!((polled.property("trust domain"), polled.property("url")), ("other.org", url.as_str()), "{polled}");
    assert!(["updated", "unchanged"].contains(&polled.property("outcome")), "{polled}");
    assert_eq!((polled.property("roots"), polled.property("stands in")), ("1", "store"), "{polled}");
    let list = house.run(&["federation", "list"]).succeeded();
    let heads = ["TRUST DOMAIN", "PROFILE", "SOURCE", "SEQUENCE", "LAST POLL", "OUTCOME", "NEXT POLL", "URL"];
    let row = list.table(&heads).remove(0);
    assert_eq!(
        (row[0].as_str(), row[1].as_str(), row[7].as_str()),
        ("other.org", "https_spiffe", url.as_str()),
        "{list}"
    );
    assert!(row[4].ends_with("s ago") || row[4] == "now", "{list}");
    assert!(row[6].starts_with("in "), "{list}");
    let json = house.run(&["federation", "list", "-o", "json"]).succeeded().json();
    let one = &json["relationships"][0];
    assert_eq!(
        (&one["endpoint_spiffe_id"], &one["last_error"]),
        (&"spiffe://other.org/chancery/server".into(), &"".into())
    );
    assert!(one["last_poll_at"].as_str().unwrap().ends_with('Z') && one["sequence"].is_u64(), "{json}");

    // What it is for: the workload gets the bundle.
    house.entry("web", &House::of_us(), &["--id", "web-1", "--federates-with", "other.org"]);
    let keys = house.run(&["fetch", "bundle", "--kind", "jwt", "--trust-domain", "other.org"]).succeeded().json();
    assert_eq!(keys["keys"].as_array().unwrap().len(), 1, "{keys}");

    // An endpoint that is away is told, and what is known stays.
    other.stop_server();
    let failed = house.run(&["federation", "refresh", "other.org"]).failed(1, &["the poll brought nothing: "]);
    assert_eq!((failed.property("outcome"), failed.property("roots")), ("failed", "1"), "{failed}");
    house
        .run(&["federation", "update", "other.org", "--url", "https://127.0.0.1:1/"])
        .succeeded()
        .says(&["is changed"]);
    let shown = house.run(&["federation", "show", "other.org"]).succeeded();
    assert_eq!((shown.property("url"), shown.property("profile")), ("https://127.0.0.1:1/", "https_spiffe"), "{shown}");
    house.run(&["federation", "show", "third.org"]).failed(1, &["not found: "]);

    house.run(&["federation", "delete", "other.org"]).failed(1, &["not possible as things are: ", "--dissociate"]);
    let ended = house.run(&["federation", "delete", "other.org", "--dissociate", "--wait", "-o", "json"]).succeeded();
    assert_eq!(
        (&ended.json()["id"], &ended.json()["applied"]["connected"]),
        (&"other.org".into(), &1.into()),
        "{ended}"
    );
    house.run(&["federation", "list"]).succeeded().says(&["no federation relationships"]);
    assert!(!house.run(&["bundle", "list"]).succeeded().stdout.contains("other.org"));
    house.run(&["federation", "refresh", "other.org"]).failed(1, &["not found: "]);
}

#[test]
fn the_usual_mistakes_get_their_answers() {
    let house = House::with_server("");
    let federation = |words: &[&str]| house.run(&[&["federation"], words].concat());
    let pem = house.run(&["bundle", "show", "--format", "pem"]).succeeded().stdout;
    let spiffe = house.run(&["bundle", "show", "--format", "spiffe"]).succeeded().stdout;
    house.write("theirs.pem", &pem);
    house.write("theirs.json", &spiffe);

    let id = "spiffe://other.org/chancery/server";
    let create =
        ["create", "other.org", "--url", "https://127.0.0.1:1/", "--profile", "https_spiffe", "--endpoint-id", id];
    federation(&create).failed(1, &["there is none yet: give its bundle too (--bundle with --bundle-format)"]);
    let with = |file, format| [&create[..], &["--bundle", file, "--bundle-format", format]].concat();
    federation(&with("theirs.json", "pem")).failed(1, &["looks like a SPIFFE bundle: its form is spiffe"]);
    federation(&with("theirs.pem", "spiffe")).failed(1, &["looks like PEM: its form is pem"]);
    federation(&with("theirs.pem", "jwt")).failed(2, &["give one in the form spiffe or pem"]);

    federation(&with("theirs.pem", "pem")).succeeded().says(&["chancery federation show other.org"]);
    federation(&create).failed(1, &["change it with \"chancery federation update other.org\""]);
    federation(&["update", "other.org"]).failed(2, &["nothing would change: give --url"]);
    federation(&["update", "other.org", "--profile", "https_web"]).succeeded();
    let shown = federation(&["show", "other.org", "-o", "json"]).succeeded().json();
    assert_eq!((shown["profile"].as_str(), shown["endpoint_spiffe_id"].as_str()), (Some("https_web"), Some("")));
    federation(&["refresh", "other.org"]).failed(1, &["a loopback address", "federation.allow_networks"]);
    let list = federation(&["list", "-o", "json"]).succeeded().json();
    assert_eq!(list["relationships"][0]["last_outcome"], "failed");
    house.run(&["bundle", "delete", "other.org"]).failed(1, &["use \"chancery federation delete other.org\""]);
    federation(&["delete", "other.org"]).succeeded();
    federation(&["show", "other.org"]).failed(1, &["list them with \"chancery federation list\""]);
}
