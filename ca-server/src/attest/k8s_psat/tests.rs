//! What is decided of a token, with an API server's answers as values.

use super::*;

const NOW: Timestamp = Timestamp::from_unix(1_795_218_000);

fn bound(name: &str, uid: &str) -> Bound {
    Bound { name: name.into(), uid: uid.into() }
}

fn account() -> ServiceAccount {
    ServiceAccount {
        namespace: "chancery".into(),
        name: "agent".into(),
        uid: "sa-1".into(),
        pod: Some(bound("agent-x", "pod-1")),
        node: Some(bound("n1", "node-1")),
    }
}

fn pod() -> Pod {
    serde_json::from_value(serde_json::json!({
        "metadata": { "name": "agent-x", "namespace": "chancery", "uid": "pod-1", "labels": { "app": "agent", "x": "y" } },
        "spec": { "nodeName": "n1", "serviceAccountName": "agent" },
        "status": { "phase": "Running", "hostIP": "10.0.0.1" },
    }))
    .unwrap()
}

fn node() -> Named {
    serde_json::from_value(
        serde_json::json!({ "metadata": { "name": "n1", "uid": "node-1", "labels": { "zone": "a" } } }),
    )
    .unwrap()
}

fn config() -> K8sPsat {
    let text = "service_accounts = ['chancery:agent']\npod_labels = ['app', 'none']\nnode_labels = ['zone']";
    toml::from_str(text).unwrap()
}

fn refused(change: impl FnOnce(&mut Pod)) -> String {
    let mut pod = pod();
    change(&mut pod);
    let account = account();
    judge_pod(&account, account.pod.as_ref().unwrap(), Some(pod), NOW).unwrap_err().to_string()
}

#[test]
fn evidence_is_one_object_with_two_texts() {
    let good = parse_evidence(br#"{"cluster":"main","token":"a.b.c\n"}"#).unwrap();
    assert_eq!((&*good.cluster, &*good.token), ("main", "a.b.c"));
    for bad in [
        r#"["main","a.b.c"]"#,
        r#"{"cluster":"main"}"#,
        r#"{"cluster":"main","token":1}"#,
        r#"{"cluster":"main","token":"a","token":"b"}"#,
        r#"{"cluster":"main","token":"a","x":1}"#,
        "",
        "\u{fffd}",
    ] {
        let message = parse_evidence(bad.as_bytes()).map(|_| ()).unwrap_err().to_string();
        assert!(message.starts_with("k8s_psat evidence cannot be read"), "{bad}: {message}");
    }
    let large = format!(r#"{{"cluster":"main","token":"{}"}}"#, "a".repeat(MAX_EVIDENCE_BYTES));
    assert!(parse_evidence(large.as_bytes()).map(|_| ()).unwrap_err().to_string().contains("at most 16384"));
}

#[test]
fn a_pod_on_its_node_becomes_selectors() {
    let found = selectors("main", &config(), &pod(), &node()).unwrap();
    let found: Vec<_> =
        found.iter().map(|selector| selector.as_str().trim_start_matches("k8s_psat:").to_owned()).collect();
    assert_eq!(
        found,
        [
            "agent_node_ip:10.0.0.1",
            "agent_node_label:zone:a",
            "agent_node_name:n1",
            "agent_node_uid:node-1",
            "agent_ns:chancery",
            "agent_pod_label:app:agent",
            "agent_pod_name:agent-x",
            "agent_pod_uid:pod-1",
            "agent_sa:agent",
            "cluster:main",
        ]
    );
    let mut pod = pod();
    pod.status.host_ip.clear();
    assert_eq!(
        selectors("main", &config(), &pod, &node()).unwrap().iter().count(),
        9,
        "no address yet, no selector of one"
    );
}

#[test]
fn the_pod_of_the_token_is_there_and_runs() {
    let account = account();
    let own = account.pod.as_ref().unwrap();
    assert_eq!(judge_pod(&account, own, Some(pod()), NOW), Ok(pod()));
    assert!(
        judge_pod(&account, own, None, NOW)
            .unwrap_err()
            .to_string()
            .contains("chancery/agent-x of the service-account token is gone")
    );
    assert!(refused(|pod| pod.metadata.uid = "pod-2".into()).contains("is gone"), "made anew under the same name");
    assert!(refused(|pod| pod.spec.service_account_name = "other".into()).contains("does not run as"));
    assert!(refused(|pod| pod.status.phase = "Succeeded".into()).contains("has ended"));
    assert!(refused(|pod| pod.metadata.deletion_timestamp = Some("2026-11-20T23:40:00Z".into())).contains("has ended"));
    assert!(refused(|pod| pod.spec.node_name.clear()).contains("bound to no node"));
}

#[test]
fn the_node_is_the_one_of_the_token() {
    let mut account = account();
    assert_eq!(judge_node(&account, &pod(), Some(node())), Ok(node()));
    assert!(judge_node(&account, &pod(), None).unwrap_err().to_string().contains("node n1"));
    let mut anew = node();
    anew.metadata.uid = "node-2".into();
    assert!(judge_node(&account, &pod(), Some(anew.clone())).is_err(), "made anew under the same name");
    account.node = Some(bound("n2", "node-1"));
    assert!(judge_node(&account, &pod(), Some(node())).is_err(), "another name");
    account.node = None;
    assert!(judge_node(&account, &pod(), Some(anew)).is_ok(), "an API server before 1.32 does not say");
    assert_eq!(node_path("main", "node-1"), "main/node-1");
}

#[tokio::test]
async fn an_api_server_that_does_not_answer_has_places_of_its_own() {
    let (cluster, _held) = crate::kube::client::tests::silent().await;
    let attestor = K8sPsatAttestor::new([(cluster, config())]);
    // For audience "chancery", and good for long: what is neither is refused without a question.
    let evidence = br#"{"cluster":"main","token":"e30.eyJleHAiOjk5OTk5OTk5OTksImF1ZCI6WyJjaGFuY2VyeSJdfQ.c2ln"}"#;
    let waiting = futures_util::future::join_all((0..AT_ONCE).map(|_| attestor.check(evidence, NOW)));
    let late = async {
        tokio::task::yield_now().await;
        attestor.check(evidence, NOW).await
    };
    let (waited, late) = tokio::join!(waiting, late);
    assert_eq!(late, Err(K8sPsatError::Busy("main".into())));
    assert!(waited.iter().all(|one| *one == Err(K8sPsatError::Unavailable("main".into()))), "{waited:?}");
    assert!(
        attestor.check(evidence, NOW).await.unwrap_err().to_string().contains("could not be asked"),
        "its place is free"
    );
    let other = attestor.check(br#"{"cluster":"x","token":"a.b.c"}"#, NOW).await.unwrap_err();
    assert!(other.to_string().contains("cluster \"x\" is not one"), "{other}");
}
