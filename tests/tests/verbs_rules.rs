//! `chancery rule` and `chancery explain` on a real server: what an operator types and reads.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say what is wrong by panicking")]

use tests::binary::House;

#[test]
fn a_rule_from_its_beginning_to_its_end() {
    let house = House::with_agent("", "");
    house.run(&["rule", "list"]).succeeded().says(&["no rules"]);
    let made = house.run(&["rule", "create", "pods", "--wait"]).succeeded();
    let made = made.says(&["rule pods is in force (pods now: 0, entries: 0): \"chancery rule show pods\""]);
    let note = "this server's config has no [kubernetes.<name>]: no pod is known";
    assert!(made.stderr.contains(&format!("note: {note}\n")), "{made}");
    house.run(&["rule", "create", "pods"]).failed(1, &["already exists: ", "chancery rule update pods"]);
    let template = "spiffe://example.org/shop/{{pod-label:app}}";
    let shop = ["rule", "create", "shop", "--namespace", "shop", "--pod-label", "app", "--spiffe-id", template];
    house.run(&[&shop[..], &["--dns", "{{pod-label:app}}.example.org", "--ttl", "30m"]].concat()).succeeded();

    // What is no template does not reach the server; what is another's is refused there.
    let wrong = |template: &str| house.run(&["rule", "create", "x", "--spiffe-id", template]);
    wrong("spiffe://example.org/{{name}}").failed(2, &["unknown variable \"name\": use ns, sa, cluster"]);
    wrong("spiffe://{{cluster}}/x").failed(2, &["no variable may stand for it"]);
    wrong("spiffe://other.org/{{ns}}").failed(1, &["gives no IDs of example.org"]);
    house.run(&["rule", "create", "x", "--pod-label", "a b"]).failed(2, &["no key of a label"]);

    let list = house.run(&["rule", "list"]).succeeded();
    assert_eq!(list.stderr.matches(note).count(), 1, "{list}");
    let rows = list.table(&["NAME", "ENTRIES", "SPIFFE ID", "PODS"]);
    assert_eq!(rows[0], ["pods", "0", "spiffe://example.org/ns/{{ns}}/sa/{{sa}}", "every pod"], "{list}");
    assert_eq!(rows[1], ["shop", "0", template, "ns shop, pod label app"], "{list}");
    let json = house.run(&["rule", "list", "-o", "json"]).succeeded().json();
    let one = &json["rules"][1];
    assert_eq!((&one["x509_ttl"], &one["pod_labels"][0]["key"]), (&"30m".into(), &"app".into()), "{json}");
    assert!(one["pod_labels"][0]["value"].is_null() && one.get("refused").is_none(), "{json}");

    let shown = house.run(&["rule", "show", "shop"]).succeeded();
    assert_eq!((shown.property("spiffe id"), shown.property("x509 ttl")), (template, "30m"), "{shown}");
    assert_eq!((shown.property("pods"), shown.property("refused")), ("0", "0"), "{shown}");
    assert_eq!(shown.property("note"), note, "{shown}");
    let shown = house.run(&["rule", "show", "shop", "-o", "json"]).succeeded().json();
    assert_eq!((&shown["dns_names"][0], &shown["pods"]), (&"{{pod-label:app}}.example.org".into(), &0.into()));
    house.run(&["rule", "show", "nothing"]).failed(1, &["not found: ", "chancery rule list"]);

    house.run(&["rule", "update", "shop"]).failed(2, &["no flag says what to change of the rule shop"]);
    let update = ["rule", "update", "shop", "--pod-label", "app=web", "--none", "dns", "--hint", "front", "-o", "json"];
    assert_eq!(house.run(&update).succeeded().json()["id"], "shop");
    let shown = house.run(&["rule", "show", "shop", "-o", "json"]).succeeded().json();
    assert_eq!((&shown["pod_labels"][0]["value"], &shown["hint"]), (&"web".into(), &"front".into()), "{shown}");
    assert_eq!((&shown["dns_names"], &shown["x509_ttl"]), (&serde_json::json!([]), &"30m".into()), "{shown}");

    house.run(&["explain", "web-1"]).failed(2, &["NAMESPACE/POD"]);
    house.run(&["explain"]).failed(2, &["NAMESPACE/POD"]);
    house.run(&["explain", "shop/web-1"]).failed(1, &["not found: ", "has no [kubernetes.<name>]: no pod is known"]);
    house.run(&["explain", "--uid", "0b9c"]).failed(1, &["not found: "]);

    // Entries that operators made are told apart from those of rules.
    house.entry("web", &House::of_us(), &[]);
    let count = |flags: &[&str]| house.run(&[&["entry", "count"], flags].concat()).succeeded().stdout.trim().to_owned();
    assert_eq!((count(&["--derived"]), count(&["--rule", "shop"])), ("0".into(), "0".into()));
    assert_eq!(count(&["--derived=false"]), count(&[]));

    let deleted = house.run(&["rule", "delete", "shop", "--wait", "-o", "json"]).succeeded().json();
    assert_eq!((&deleted["id"], &deleted["applied"]["connected"]), (&"shop".into(), &1.into()), "{deleted}");
    house.run(&["rule", "delete", "shop"]).failed(1, &["not found: "]);
    assert_eq!(house.run(&["rule", "list"]).succeeded().table(&["NAME", "ENTRIES", "SPIFFE ID", "PODS"]).len(), 1);
}

#[test]
fn a_rule_whose_cluster_is_called_otherwise_now_is_told_of() {
    let mut house = House::empty("[kubernetes.main]\nkubeconfig = 'kubeconfig'");
    house.write_kubeconfig("token: abc");
    house.start_server();
    let other = ["rule", "create", "pods", "--cluster", "prod"];
    house.run(&other).failed(1, &["no cluster prod in the server's config: use main"]);
    house.run(&["rule", "create", "pods"]).succeeded();
    house.stop_server();
    house.write_server_config("[kubernetes.prod]\nkubeconfig = 'kubeconfig'");
    house.start_server();
    let note = "rule pods is for cluster main, which the config does not have: its pods get nothing. Set \
                [kubernetes.main], or \"chancery rule update pods --cluster prod\"";
    assert!(house.server().log().contains(note), "{}", house.server().log());
    assert_eq!(house.run(&["rule", "show", "pods", "-o", "json"]).succeeded().json()["notes"][0], note);
    assert!(house.run(&["rule", "list"]).succeeded().stderr.contains(&format!("note: {note}\n")));
    let mended = house.run(&["rule", "update", "pods", "--cluster", "prod"]).succeeded();
    assert!(!house.run(&["rule", "list"]).succeeded().stderr.contains("which the config does not have"), "{mended}");
}
