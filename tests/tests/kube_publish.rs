//! The bundle in the namespaces of a real API server, written by the real server with the rights of the chart: new namespaces,
//! new roots, hands that meddle, rights that are taken away.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say what is wrong by panicking")]

use serde_json::{Value, json};
use tests::binary::{House, wait_for};
use tests::chart::{Chart, find};
use tests::cluster::Cluster;

/// How long a change may take to show, in seconds: a repair that was put off takes ten.
const SOON: u64 = 60;

#[test]
fn the_bundle_is_in_every_namespace_and_stays_what_it_is() {
    let cluster = Cluster::start();
    cluster.namespace("shop", &[]);
    let house = house(&cluster, "everything", "namespaces = []\nistio = true");
    let roots = house.run(&["bundle", "show", "--format", "pem"]).succeeded().stdout;
    let bundle = |namespace: &str, name: &str| map(&cluster, namespace, name, "root-cert.pem");
    for namespace in ["shop", "chancery", "kube-system"] {
        for name in ["chancery-bundle", "istio-ca-root-cert"] {
            becomes(&roots, || bundle(namespace, name));
        }
    }
    let spiffe = map(&cluster, "shop", "chancery-bundle", "bundle.json").expect("SPIFFE's form");
    let spiffe: Value = serde_json::from_str(&spiffe).unwrap();
    assert!(spiffe["keys"].as_array().is_some_and(|keys| keys.len() >= 3), "{spiffe}");

    // A namespace that is new.
    cluster.namespace("later", &[]);
    becomes(&roots, || bundle("later", "chancery-bundle"));

    // Somebody who meddles, and somebody who deletes; what he keeps beside our keys is his.
    let object = |name: &str| json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "namespace": "shop", "name": name } });
    cluster.change(&object("chancery-bundle"), &json!({ "data": { "root-cert.pem": "forged", "his": "own" } }));
    cluster.delete(&object("istio-ca-root-cert"));
    for name in ["chancery-bundle", "istio-ca-root-cert"] {
        becomes(&roots, || bundle("shop", name));
    }
    assert_eq!(map(&cluster, "shop", "chancery-bundle", "his").as_deref(), Some("own"));

    // A new root is everywhere at once, before it signs.
    house.run(&["authority", "prepare"]).succeeded();
    let both = house.run(&["bundle", "show", "--format", "pem"]).succeeded().stdout;
    assert_ne!(both, roots);
    for namespace in ["shop", "later"] {
        becomes(&both, || bundle(namespace, "chancery-bundle"));
    }

    // Right taken away in the middle, and given back: nothing is lost meanwhile.
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": { "name": "chancery-chancery-server" },
    });
    let held = cluster.read(&binding).expect("the binding");
    cluster.delete(&binding);
    house.run(&["authority", "prepare", "--kind", "jwt"]).succeeded();
    let refused = wait_for(SOON, || log(&house).contains("403").then_some(()));
    assert!(refused.is_some(), "the log says that it may not:\n{}", log(&house));
    let fresh = json!({ "apiVersion": held["apiVersion"], "kind": held["kind"], "metadata": { "name": held["metadata"]["name"] },
        "roleRef": held["roleRef"], "subjects": held["subjects"] });
    cluster.create(&fresh);
    let wanted = house.run(&["bundle", "show", "--format", "spiffe"]).succeeded().stdout;
    let wanted: Value = serde_json::from_str(&wanted).unwrap();
    let has = wait_for(2 * SOON, || {
        let held = map(&cluster, "shop", "chancery-bundle", "bundle.json")?;
        let held: Value = serde_json::from_str(&held).unwrap();
        (held["keys"] == wanted["keys"]).then_some(())
    });
    assert!(has.is_some(), "it goes on when it may again:\n{}", log(&house));
}

#[test]
fn with_the_least_rights_it_is_in_the_own_namespace_and_in_no_other() {
    let cluster = Cluster::start();
    cluster.namespace("shop", &[]);
    let house = house(&cluster, "defaults", "namespaces = ['chancery']");
    let roots = house.run(&["bundle", "show", "--format", "pem"]).succeeded().stdout;
    becomes(&roots, || map(&cluster, "chancery", "chancery-bundle", "root-cert.pem"));
    let own = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "namespace": "chancery", "name": "chancery-bundle" } });
    cluster.delete(&own);
    becomes(&roots, || map(&cluster, "chancery", "chancery-bundle", "root-cert.pem"));
    assert!(map(&cluster, "shop", "chancery-bundle", "root-cert.pem").is_none());
}

#[test]
fn an_api_server_that_has_cluster_trust_bundles_gets_one() {
    let with = ["--runtime-config=certificates.k8s.io/v1beta1=true", "--feature-gates=ClusterTrustBundle=true"];
    let cluster = Cluster::start_with(&with);
    let house = house(&cluster, "everything", "namespaces = ['chancery']\ncluster_trust_bundle = 'prod.example.org'");
    let object = json!({
        "apiVersion": "certificates.k8s.io/v1beta1", "kind": "ClusterTrustBundle", "metadata": { "name": "prod.example.org" },
    });
    let text = || cluster.read(&object).and_then(|one| one["spec"]["trustBundle"].as_str().map(str::to_owned));
    becomes(&house.run(&["bundle", "show", "--format", "pem"]).succeeded().stdout, text);
    house.run(&["authority", "prepare"]).succeeded();
    becomes(&house.run(&["bundle", "show", "--format", "pem"]).succeeded().stdout, text);
}

/// A server that publishes in `cluster` with the rights that the chart gives with these values.
#[track_caller]
fn house(cluster: &Cluster, values: &str, publish: &str) -> House {
    cluster.namespace("chancery", &[]);
    let chart = Chart::all().into_iter().find(|chart| chart.name() == values).unwrap();
    let kinds = ["ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"];
    let wanted = chart.documents().iter().filter(|one| kinds.map(Value::from).contains(&one["kind"]));
    wanted.for_each(|object| drop(cluster.create(object)));
    assert!(find(chart.documents(), "ServiceAccount", "chancery-server").is_some());
    let kubeconfig = cluster.kubeconfig_of("chancery", "chancery-server");
    House::with_server(&format!(
        "[kubernetes.main]\nkubeconfig = {kubeconfig:?}\n[kubernetes.main.publish]\n{publish}\n"
    ))
}

/// What a ConfigMap holds under `key`.
fn map(cluster: &Cluster, namespace: &str, name: &str, key: &str) -> Option<String> {
    let object =
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "namespace": namespace, "name": name } });
    cluster.read(&object)?["data"][key].as_str().map(str::to_owned)
}

#[track_caller]
fn becomes(wanted: &str, mut look: impl FnMut() -> Option<String>) {
    let found = wait_for(SOON, || (look().as_deref() == Some(wanted)).then_some(()));
    assert!(found.is_some(), "wanted:\n{wanted}\nthere is:\n{:?}", look());
}

fn log(house: &House) -> String {
    std::fs::read_to_string(house.path("server.log")).unwrap_or_default()
}
