//! The chart before a real API server: every object is taken (server-side dry run, strict), the roles give what server and
//! agent need and nothing else, and their pods fit the Pod Security Standards that the papers name.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say what is wrong by panicking")]

use serde_json::{Value, json};
use tests::binary::wait_for;
use tests::chart::{Chart, documents, find};
use tests::cluster::{Cluster, collection};

#[test]
fn a_real_api_server_takes_every_object_and_the_rights_are_the_least() {
    let cluster = Cluster::shared();
    namespace(&cluster, "chancery", "privileged");
    for chart in Chart::all() {
        for object in chart.documents() {
            dry_run(&cluster, object).unwrap_or_else(|error| panic!("{}: {error}: {object}", chart.name()));
        }
    }
    let wrong = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "a", "namespace": "chancery" }, "dada": {} });
    assert!(
        dry_run(&cluster, &wrong).unwrap_err().to_string().contains("dada"),
        "fields that are not known are refused"
    );

    // The pods of the pages, where they may run.
    namespace(&cluster, "shop", "privileged");
    cluster.service_account("shop", "web");
    cluster.service_account("chancery", "default");
    let pages = concat!(include_str!("../../docs/kubernetes.md"), include_str!("../../docs/kubernetes-upgrade.md"));
    let fences = pages.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    for object in fences.flat_map(documents) {
        dry_run(&cluster, &object).unwrap_or_else(|error| panic!("{error}: {object}"));
    }

    // The plain manifests, for real.
    let manifests = documents(include_str!("../../deploy/kubernetes/chancery.yaml"));
    for object in manifests.iter().filter(|object| object["kind"] != "Namespace") {
        cluster.create(object);
    }
    server_may(&cluster);
    agent_may(&cluster);
    agent_beside_a_kubelet_may(&cluster);

    // Where the pods may run.
    let pod_of = |kind: &str| {
        let of = manifests.iter().find(|object| object["kind"] == kind).unwrap();
        pod(&of["spec"]["template"])
    };
    for (level, server, agent) in [("restricted", true, false), ("baseline", true, false), ("privileged", true, true)] {
        let namespace = namespace(&cluster, &format!("pods-{level}"), level);
        for account in ["chancery-server", "chancery-agent"] {
            cluster.service_account(&namespace, account);
        }
        for (kind, fits) in [("StatefulSet", server), ("DaemonSet", agent)] {
            let mut pod = pod_of(kind);
            pod["metadata"]["namespace"] = namespace.as_str().into();
            let said = dry_run(&cluster, &pod);
            assert_eq!(said.is_ok(), fits, "{kind} in {level}: {said:?}");
            if let Err(error) = said {
                assert!(error.to_string().contains("violates PodSecurity"), "{error}");
            }
        }
    }
}

#[track_caller]
fn server_may(cluster: &Cluster) {
    comes_to_hold(cluster, "chancery-server", ("create", ["", "configmaps", "chancery", ""]));
    let may = |verb: &str, at: [&str; 4]| may(cluster, "chancery-server", verb, at);
    assert!(may("create", ["authentication.k8s.io", "tokenreviews", "", ""]));
    for resource in ["pods", "nodes", "namespaces"] {
        for (verb, yes) in [("get", true), ("list", true), ("watch", true), ("update", false), ("delete", false)] {
            assert_eq!(may(verb, ["", resource, "", ""]), yes, "{verb} {resource}");
        }
    }
    for verb in ["list", "watch", "patch"] {
        assert!(may(verb, ["", "configmaps", "chancery", "chancery-bundle"]), "{verb}");
        assert!(!may(verb, ["", "configmaps", "chancery", "chancery-server"]), "{verb}");
        assert!(!may(verb, ["", "configmaps", "kube-system", "chancery-bundle"]), "{verb}");
    }
    assert!(may("create", ["", "configmaps", "chancery", ""]));
    for (verb, at) in [
        ("create", ["", "configmaps", "kube-system", ""]),
        ("get", ["", "secrets", "chancery", ""]),
        ("create", ["", "pods", "chancery", ""]),
        ("create", ["", "serviceaccounts/token", "chancery", "chancery-agent"]),
        ("create", ["rbac.authorization.k8s.io", "clusterrolebindings", "", ""]),
        ("get", ["", "pods/log", "chancery", ""]),
        ("create", ["", "pods/exec", "chancery", ""]),
    ] {
        assert!(!may(verb, at), "{verb} {at:?}");
    }
}

#[track_caller]
fn agent_may(cluster: &Cluster) {
    comes_to_hold(cluster, "chancery-agent", ("list", ["", "pods", "", ""]));
    let may = |verb: &str, at: [&str; 4]| may(cluster, "chancery-agent", verb, at);
    for (verb, at) in [
        ("list", ["", "pods", "", ""]),
        ("watch", ["", "pods", "", ""]),
        ("get", ["apps", "replicasets", "shop", "web-1"]),
        ("get", ["batch", "jobs", "shop", "nightly-1"]),
    ] {
        assert!(may(verb, at), "{verb} {at:?}");
    }
    for (verb, at) in [
        ("patch", ["", "pods", "shop", "web-1"]),
        ("get", ["", "nodes", "", ""]),
        ("list", ["apps", "replicasets", "", ""]),
        ("get", ["", "secrets", "chancery", ""]),
        ("get", ["", "configmaps", "chancery", "chancery-bundle"]),
        ("patch", ["", "configmaps", "chancery", "chancery-bundle"]),
        ("create", ["authentication.k8s.io", "tokenreviews", "", ""]),
        ("create", ["", "serviceaccounts/token", "chancery", "chancery-agent"]),
    ] {
        assert!(!may(verb, at), "{verb} {at:?}");
    }
}

/// What the chart gives an agent that asks its kubelet, for an account of another name.
#[track_caller]
fn agent_beside_a_kubelet_may(cluster: &Cluster) {
    let made = documents(&Chart::try_with("agent: { kubelet: { enabled: true } }").succeeded().stdout);
    for kind in ["ClusterRole", "ClusterRoleBinding"] {
        let mut object = find(&made, kind, "chancery-chancery-agent").unwrap().clone();
        object["metadata"]["name"] = "beside-a-kubelet".into();
        if kind == "ClusterRoleBinding" {
            object["roleRef"]["name"] = "beside-a-kubelet".into();
            object["subjects"][0]["name"] = "beside-a-kubelet".into();
        }
        cluster.create(&object);
    }
    comes_to_hold(cluster, "beside-a-kubelet", ("get", ["", "nodes/pods", "", "node-a"]));
    let may = |verb: &str, at: [&str; 4]| may(cluster, "beside-a-kubelet", verb, at);
    assert!(may("get", ["", "nodes/pods", "", "node-a"]));
    assert!(may("get", ["apps", "replicasets", "shop", "web-1"]));
    for (verb, at) in [
        ("get", ["", "nodes/proxy", "", "node-a"]),
        ("create", ["", "nodes/proxy", "", "node-a"]),
        ("get", ["", "nodes", "", "node-a"]),
        ("list", ["", "pods", "", ""]),
    ] {
        assert!(!may(verb, at), "{verb} {at:?}");
    }
}

/// Waits until an account may do this: the API server hears of roles by a watch of its own, a moment after they were made.
#[track_caller]
fn comes_to_hold(cluster: &Cluster, account: &str, (verb, at): (&str, [&str; 4])) {
    let holds = wait_for(30, || may(cluster, account, verb, at).then_some(()));
    assert!(holds.is_some(), "{account} may not {verb} {at:?}");
}

/// Whether the account of that name in `chancery` may do it to `[group, resource, namespace, name]`.
#[track_caller]
fn may(cluster: &Cluster, account: &str, verb: &str, [group, resource, namespace, name]: [&str; 4]) -> bool {
    let (resource, below) = resource.split_once('/').unwrap_or((resource, ""));
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": format!("system:serviceaccount:chancery:{account}"),
            "groups": ["system:serviceaccounts", "system:serviceaccounts:chancery", "system:authenticated"],
            "resourceAttributes": {
                "verb": verb, "group": group, "resource": resource, "subresource": below, "namespace": namespace, "name": name,
            },
        },
    });
    cluster.create(&review)["status"]["allowed"] == true
}

/// What the API server says to the object; nothing is kept.
fn dry_run(cluster: &Cluster, object: &Value) -> kube::Result<Value> {
    cluster.call("POST", &format!("{}?dryRun=All&fieldValidation=Strict", collection(object)), Some(object))
}

fn namespace(cluster: &Cluster, name: &str, level: &str) -> String {
    cluster.namespace(name, &[("pod-security.kubernetes.io/enforce", level)]);
    name.to_owned()
}

/// A pod as a controller makes it of `template`.
fn pod(template: &Value) -> Value {
    let mut pod = template.clone();
    pod["apiVersion"] = "v1".into();
    pod["kind"] = "Pod".into();
    pod["metadata"]["name"] = "one".into();
    let volumes = pod["spec"]["volumes"].as_array_mut().unwrap();
    if !volumes.iter().any(|volume| volume["name"] == "data") {
        volumes.push(json!({ "name": "data", "persistentVolumeClaim": { "claimName": "data-chancery-server-0" } }));
    }
    pod
}
