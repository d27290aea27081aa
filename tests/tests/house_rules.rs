//! Rules, from a pod that an API server tells of to the SVID of its agent, and back when the pod has gone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::collections::BTreeSet;
use std::time::Duration;

use ca_server::view::pods::{Labels, Pod, PodEvent};
use spiffe::crypto::generate_key;
use spiffe::entry::KeyType;
use spiffe::id::SpiffeId;
use spiffe::proto::v1;
use tests::by_hand::{Caller, Syncing};
use tests::operator::entry;
use tests::patience::{soon, that};
use tests::{House, Operator, web};
use tonic::Code;

/// A pod `web` of the service account `web` in `shop`, on the node of `agent`.
fn pod(uid: &str, agent: &SpiffeId, app: Option<&str>) -> Pod {
    let labels = app.map(|app| ("app".to_owned(), app.to_owned()));
    Pod {
        cluster: "prod".into(),
        uid: uid.into(),
        namespace: "shop".into(),
        name: format!("web-{uid}").into(),
        service_account: "web".into(),
        node_name: "node-1".into(),
        agent: agent.clone(),
        labels: Labels::new(labels.into_iter().collect()),
        namespace_labels: Labels::default(),
    }
}

fn gone(uid: &str) -> PodEvent {
    PodEvent::Gone { cluster: "prod".into(), uid: uid.into() }
}

fn csr() -> Vec<u8> {
    spiffe::csr::create(&generate_key(KeyType::P256).unwrap()).unwrap()
}

/// A rule that gives an identity by the label `app`.
fn by_label() -> v1::Rule {
    let spiffe_id = "spiffe://example.org/app/{{pod-label:app}}".into();
    v1::Rule { id: "by-label".into(), spiffe_id, ..v1::Rule::default() }
}

async fn create(operator: &Operator, rule: v1::Rule) -> Result<u64, tonic::Status> {
    let request = v1::CreateRuleRequest { rule: Some(rule) };
    operator.door.clone().create_rule(request).await.map(|answer| answer.into_inner().revision)
}

async fn show(operator: &Operator, id: &str) -> v1::RuleStatus {
    operator.door.clone().show_rule(v1::ShowRuleRequest { id: id.into() }).await.unwrap().into_inner()
}

async fn explain(operator: &Operator, name: &str) -> Result<v1::ExplainPodResponse, tonic::Status> {
    let request =
        v1::ExplainPodRequest { namespace: "shop".into(), name: name.into(), ..v1::ExplainPodRequest::default() };
    operator.door.clone().explain_pod(request).await.map(tonic::Response::into_inner)
}

async fn next(stream: &mut Syncing) -> v1::SyncResponse {
    soon("the server says something", stream.incoming.message()).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_pod_gets_its_entry_issues_and_loses_it_when_it_has_gone() {
    let house = House::start(&[]).await;
    let operator = house.operator().await;
    let agent = Caller::attest(&house).await;
    let mut stream = agent.sync(&house).await.unwrap();
    let snapshot = next(&mut stream).await;
    assert!(snapshot.snapshot && snapshot.entries.is_empty());
    stream.acknowledge(snapshot.revision).await;

    // The rule first: there is no pod yet, and the agent is told nothing. It has applied it all the same.
    let usual = v1::Rule { id: "pods".into(), x509_ttl: 600, ..v1::Rule::default() };
    let revision = create(&operator, usual).await.unwrap();
    let waited = v1::WaitAppliedRequest { revision, timeout: 5 };
    let applied = soon("nobody is behind", operator.door.clone().wait_applied(waited)).await.unwrap().into_inner();
    assert_eq!((applied.connected, applied.behind.len()), (1, 0));

    // A pod: the entry comes at the revision that was there before.
    house.tell(PodEvent::Put(pod("1", agent.id(), None))).await;
    let message = next(&mut stream).await;
    let [derived] = &message.entries[..] else { panic!("{message:?}") };
    assert_eq!((message.revision, message.snapshot), (revision, false));
    assert_eq!((derived.spiffe_id.as_str(), derived.rule.as_str()), ("spiffe://example.org/ns/shop/sa/web", "pods"));
    assert_eq!(derived.selectors, ["k8s:ns:shop", "k8s:sa:web"]);
    let svid = agent.issue(&house, &derived.id, csr()).await.unwrap();
    assert_eq!(svid.id().path(), "/ns/shop/sa/web");
    assert_eq!(svid.lifetime().not_after.since(house.now()), Duration::from_secs(600));

    // A second pod of the same account changes nothing; the entry stays until the last has gone.
    house.tell(PodEvent::Put(pod("2", agent.id(), None))).await;
    house.tell(gone("1")).await;
    let another = operator.register(entry(agent.id(), "/other")).await;
    let message = next(&mut stream).await;
    assert_eq!((message.revision, message.entries.len(), message.removed_entries.len()), (another.1, 1, 0));
    house
        .eventually("the second pod is known alone", async || {
            let first = explain(&operator, "web-1").await;
            let second = explain(&operator, "web-2").await.map_err(|it| it.to_string())?;
            that(first.is_err() && second.verdicts[0].outcome == "gives", || format!("{second:?}"))
        })
        .await;
    house.tell(gone("2")).await;
    let message = next(&mut stream).await;
    assert_eq!(message.removed_entries, std::slice::from_ref(&derived.id));
    let refused = agent.issue(&house, &derived.id, csr()).await.unwrap_err();
    assert_eq!(refused.code, Code::NotFound as i32, "{refused:?}");
    let unknown = explain(&operator, "web-2").await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound, "{unknown}");
}

#[tokio::test]
async fn what_is_waited_for_is_what_the_agent_has() {
    let house = House::start(&[]).await;
    let operator = house.operator().await;
    let agent = Caller::attest(&house).await;
    let mut stream = agent.sync(&house).await.unwrap();
    let snapshot = next(&mut stream).await;
    stream.acknowledge(snapshot.revision).await;
    house.tell(PodEvent::Put(pod("1", agent.id(), Some("web")))).await;
    // The rule gives the pod an entry: the change counts as applied once the agent says so, and not before.
    let revision = create(&operator, by_label()).await.unwrap();
    let message = next(&mut stream).await;
    assert_eq!((message.revision, message.entries.len()), (revision, 1));
    let look = async || operator.behind(revision).await;
    assert_eq!(look().await, [agent.id().to_string()]);
    // A pod between is told at the same revision; what is acknowledged holds for that revision.
    house.tell(PodEvent::Put(pod("2", agent.id(), Some("api")))).await;
    let told = next(&mut stream).await;
    assert_eq!((told.revision, told.entries.len()), (revision, 1));
    assert_eq!(look().await, [agent.id().to_string()]);
    stream.acknowledge(revision).await;
    house.eventually("the agent is there", async || that(look().await.is_empty(), || "behind".into())).await;
    // Whoever connects again gets both.
    drop(stream);
    let mut again = agent.sync(&house).await.unwrap();
    assert_eq!(next(&mut again).await.entries.len(), 2);
}

#[tokio::test]
async fn a_rule_that_changes_many_entries_is_told_whole() {
    const PODS: usize = 300;
    let house = House::start(&[]).await;
    let operator = house.operator().await;
    let (agent, other) = (Caller::attest(&house).await, Caller::attest(&house).await);
    let by_uid = |hint: &str| v1::Rule {
        id: "by-uid".into(),
        spiffe_id: "spiffe://example.org/{{pod-uid}}".into(),
        hint: hint.into(),
        ..v1::Rule::default()
    };
    let mut stream = agent.sync(&house).await.unwrap();
    let mut elsewhere = other.sync(&house).await.unwrap();
    assert_eq!((next(&mut stream).await.entries.len(), next(&mut elsewhere).await.entries.len()), (0, 0));
    let pods = (0..PODS).map(|uid| pod(&uid.to_string(), agent.id(), None)).collect();
    house.tell(PodEvent::All { cluster: "prod".into(), pods }).await;
    create(&operator, by_uid("old")).await.unwrap();
    let first = next(&mut stream).await;
    assert_eq!((first.entries.len(), first.removed_entries.len(), first.more), (PODS, 0, false));
    let update = v1::UpdateRuleRequest { rule: Some(by_uid("new")) };
    let revision = operator.door.clone().update_rule(update).await.unwrap().into_inner().revision;
    // The same entries with another hint, and none is gone: nobody loses an SVID by it.
    let told = next(&mut stream).await;
    assert!(!told.more && !told.snapshot && told.revision == revision && told.removed_entries.is_empty());
    assert!(told.entries.len() == PODS && told.entries.iter().all(|entry| entry.hint == "new"));
    let ids = |entries: &[v1::Entry]| entries.iter().map(|entry| entry.id.clone()).collect::<BTreeSet<_>>();
    assert_eq!(ids(&first.entries), ids(&told.entries));
    // Whom nothing of that concerns is told nothing of it.
    let (mine, _) = operator.register(entry(other.id(), "/mine")).await;
    let message = next(&mut elsewhere).await;
    assert_eq!(message.entries.iter().map(|entry| &entry.id).collect::<Vec<_>>(), [&mine.id]);
    assert!(message.removed_entries.is_empty());
}

#[tokio::test]
async fn pods_of_other_nodes_are_no_news_to_those_who_wait_for_an_agent() {
    let house = House::start(&[]).await;
    let operator = house.operator().await;
    let (mine, other) = (Caller::attest(&house).await, Caller::attest(&house).await);
    create(&operator, v1::Rule { id: "pods".into(), ..v1::Rule::default() }).await.unwrap();
    let mut stream = mine.sync(&house).await.unwrap();
    assert!(next(&mut stream).await.snapshot);
    let changes = house.server().doors().connected.changes();
    let before = *changes.borrow();
    house.tell(PodEvent::Put(pod("1", other.id(), None))).await;
    house
        .eventually("the pod is known", async || {
            explain(&operator, "web-1").await.map(drop).map_err(|it| it.to_string())
        })
        .await;
    house.tell(PodEvent::Put(pod("2", mine.id(), None))).await;
    assert_eq!(next(&mut stream).await.entries.len(), 1);
    assert_eq!(*changes.borrow() - before, 1, "its own pod alone");
}

#[tokio::test]
async fn an_agent_is_denied_the_entries_of_pods_on_other_nodes() {
    let house = House::start(&[]).await;
    let operator = house.operator().await;
    let (mine, other) = (Caller::attest(&house).await, Caller::attest(&house).await);
    create(&operator, v1::Rule { id: "pods".into(), ..v1::Rule::default() }).await.unwrap();
    house.tell(PodEvent::Put(pod("1", other.id(), None))).await;
    let explained = house
        .eventually("the pod is known", async || explain(&operator, "web-1").await.map_err(|it| it.to_string()))
        .await;
    assert_eq!(explained.agent, other.id().to_string());
    assert!(explained.attested && !explained.connected && !explained.banned);
    let id = explained.verdicts[0].entry.clone().unwrap().id;
    assert!(other.issue(&house, &id, csr()).await.is_ok());
    for refused in [
        mine.issue(&house, &id, csr()).await.map(drop).unwrap_err(),
        mine.issue_jwt(&house, &id, &["a"]).await.map(drop).unwrap_err(),
        mine.issue_wit(&house, &id, csr()).await.map(drop).unwrap_err(),
    ] {
        assert_eq!(refused.code, Code::PermissionDenied as i32, "{refused:?}");
    }
    // The pod has moved here: now it is the other way round, with another entry.
    house.tell(PodEvent::Put(pod("1", mine.id(), None))).await;
    let moved = house
        .eventually("it has moved", async || {
            let explained = explain(&operator, "web-1").await.map_err(|it| it.to_string())?;
            that(explained.agent == mine.id().to_string(), || explained.agent.clone())?;
            Ok(explained.verdicts[0].entry.clone().unwrap().id)
        })
        .await;
    assert_ne!(moved, id);
    assert!(mine.issue(&house, &moved, csr()).await.is_ok());
    assert_eq!(other.issue(&house, &id, csr()).await.unwrap_err().code, Code::NotFound as i32);
    assert_eq!(other.issue(&house, &moved, csr()).await.unwrap_err().code, Code::PermissionDenied as i32);
}

#[tokio::test]
async fn a_hostile_label_is_refused_and_seen() {
    let house = House::start(&[]).await;
    let operator = house.operator().await;
    let agent = Caller::attest(&house).await;
    create(&operator, by_label()).await.unwrap();
    let hostile = ["../../chancery/server", "a/b", "a%2Fb", "", ".."];
    for (uid, app) in hostile.iter().enumerate() {
        house.tell(PodEvent::Put(pod(&uid.to_string(), agent.id(), Some(app)))).await;
    }
    house.tell(PodEvent::Put(pod("bare", agent.id(), None))).await;
    house.tell(PodEvent::Put(pod("good", agent.id(), Some("good")))).await;
    let status = house
        .eventually("all are known", async || {
            let status = show(&operator, "by-label").await;
            that(status.pods == 7, || format!("{} pods", status.pods))?;
            Ok(status)
        })
        .await;
    assert_eq!((status.entries, status.refused, status.refusals.len()), (1, 6, 6));
    let explained = explain(&operator, "web-0").await.unwrap();
    let verdict = &explained.verdicts[0];
    assert_eq!(verdict.outcome, "refused");
    assert!(
        verdict.reason.contains("{{pod-label:app}} is \"../../chancery/server\", which is no segment"),
        "{verdict:?}"
    );
    let mut stream = agent.sync(&house).await.unwrap();
    let ids: Vec<String> = next(&mut stream).await.entries.into_iter().map(|entry| entry.spiffe_id).collect();
    assert_eq!(ids, ["spiffe://example.org/app/good"]);
    let metrics = web::get(house.server().health_address(), "/metrics").await;
    for line in ["chancery_rules 1", "chancery_pods 7", "chancery_derived_entries 1", "chancery_rule_refusals 6"] {
        assert!(metrics.lines().any(|found| found == line), "{line}: {metrics}");
    }
}

#[tokio::test]
async fn rules_are_kept_and_checked_and_their_entries_are_not_touched() {
    let mut house = House::empty(House::ON_DISK);
    house.set("limits.rules", "2");
    house.start_server().await.unwrap();
    let operator = house.operator().await;
    let agent = Caller::attest(&house).await;
    for (rule, words) in [
        (v1::Rule { spiffe_id: "spiffe://other.org/{{ns}}".into(), ..by_label() }, "gives no IDs of example.org"),
        (v1::Rule { spiffe_id: "spiffe://example.org/{{name}}".into(), ..by_label() }, "use ns, sa, cluster"),
        (v1::Rule { spiffe_id: "spiffe://example.org/chancery/{{ns}}".into(), ..by_label() }, "under /chancery"),
        (v1::Rule { x509_ttl: 1 << 40, ..by_label() }, "at most"),
        (v1::Rule { federates_with: vec!["other.org".into()], ..by_label() }, "there is no bundle of other.org"),
        (v1::Rule { selectors: vec!["unix:uid:web".into()], ..by_label() }, "are numbers"),
        (v1::Rule { id: String::new(), ..by_label() }, "the name of a rule"),
        (v1::Rule { namespaces: (0..400).map(|n| format!("{n}{}", "a".repeat(240))).collect(), ..by_label() }, "bytes"),
    ] {
        let refused = create(&operator, rule).await.unwrap_err();
        assert!(refused.message().contains(words), "{refused}");
    }
    create(&operator, by_label()).await.unwrap();
    assert_eq!(create(&operator, by_label()).await.unwrap_err().code(), Code::AlreadyExists);
    create(&operator, v1::Rule { id: "second".into(), ..by_label() }).await.unwrap();
    let many = create(&operator, v1::Rule { id: "third".into(), ..by_label() }).await.unwrap_err();
    assert!(many.message().contains("limits.rules"), "{many}");

    house.tell(PodEvent::Put(pod("1", agent.id(), Some("web")))).await;
    let derived = house
        .eventually("the entry is there", async || {
            let filter = v1::EntryFilter { rule: "by-label".into(), ..v1::EntryFilter::default() };
            let request = v1::ListEntriesRequest { filter: Some(filter), ..v1::ListEntriesRequest::default() };
            let listed = operator.door.clone().list_entries(request).await.unwrap().into_inner().entries;
            listed.into_iter().next().ok_or_else(|| "not yet".to_owned())
        })
        .await;
    let second = explain(&operator, "web-1").await.unwrap().verdicts.remove(1);
    assert_eq!((second.rule.as_str(), second.outcome.as_str()), ("second", "same"));
    let changed = operator.try_update(v1::Entry { hint: "mine".into(), ..derived.clone() }).await.unwrap_err();
    assert!(changed.message.contains("comes from the rule by-label"), "{changed:?}");
    let request = v1::DeleteEntriesRequest { ids: vec![derived.id.clone()] };
    let deleted = operator.door.clone().delete_entries(request).await.unwrap().into_inner().results.remove(0);
    assert!(format!("{deleted:?}").contains("chancery rule delete by-label"), "{deleted:?}");
    let forged = operator.try_register(v1::Entry { id: "x".into(), ..derived.clone() }).await.unwrap_err();
    assert!(forged.message.contains("not made by hand"), "{forged:?}");
    let named = v1::Entry { id: derived.id.clone(), ..entry(agent.id(), "/x") };
    assert!(operator.try_register(named).await.unwrap_err().message.contains("choose another"));

    // Rules outlive a restart; pods are told of anew.
    house.stop_server().await;
    house.start_server().await.unwrap();
    let operator = house.operator().await;
    let listed = operator.door.clone().list_rules(v1::ListRulesRequest {}).await.unwrap().into_inner().rules;
    let names: Vec<(String, u64)> = listed.into_iter().map(|it| (it.rule.unwrap().id, it.entries)).collect();
    assert_eq!(names, [("by-label".to_owned(), 0), ("second".to_owned(), 0)]);
    house.tell(PodEvent::Put(pod("1", agent.id(), Some("web")))).await;
    let update = v1::Rule { hint: "by team".into(), ..by_label() };
    operator.door.clone().update_rule(v1::UpdateRuleRequest { rule: Some(update) }).await.unwrap();
    house
        .eventually("the entry says something else", async || {
            let entry = explain(&operator, "web-1").await.map_err(|it| it.to_string())?.verdicts.remove(0).entry;
            let entry = entry.ok_or("it gives nothing")?;
            that(entry.hint == "by team" && entry.id == derived.id, || format!("{entry:?}"))
        })
        .await;
    operator.door.clone().delete_rule(v1::DeleteRuleRequest { id: "by-label".into() }).await.unwrap();
    let verdicts = explain(&operator, "web-1").await.unwrap().verdicts;
    assert_eq!((verdicts.len(), verdicts[0].outcome.as_str()), (1, "gives"));
    let missing = operator.door.clone().delete_rule(v1::DeleteRuleRequest { id: "by-label".into() }).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
}
