//! What operators are told and kept from around the names of clusters and of the server: rules that name no cluster, entries
//! with the server's own DNS names, clusters that are silent.

use ca_server::view::pods::{Labels, Pod, PodEvent};

use super::*;

/// The house, with one cluster `prod`, which was last heard of then.
fn with_one_cluster(house: &House, last_heard: Option<Timestamp>) -> AdminDoor {
    let clusters = Clusters::new([("prod".into(), Arc::new(move || last_heard) as LastHeard)]);
    let settings = AdminSettings { clusters, ..(*house.door.settings).clone() };
    AdminDoor { settings: Arc::new(settings), ..house.door.clone() }
}

impl House {
    /// Tells of the pod `shop/web-1` in the cluster `prod`, and waits until the server knows it.
    async fn tell_of_a_pod(&self) {
        let pod = Pod {
            cluster: "prod".into(),
            uid: "1".into(),
            namespace: "shop".into(),
            name: "web-1".into(),
            service_account: "web".into(),
            node_name: "n1".into(),
            agent: SpiffeId::parse(AGENT).unwrap(),
            labels: Labels::default(),
            namespace_labels: Labels::default(),
        };
        self.tell.send(PodEvent::All { cluster: "prod".into(), pods: vec![pod] }).await.unwrap();
        while self.door.doors.views.load().pods().count() == 0 {
            tokio::task::yield_now().await;
        }
    }
}

fn asked(name: &str) -> v1::ExplainPodRequest {
    v1::ExplainPodRequest { namespace: "shop".into(), name: name.into(), ..v1::ExplainPodRequest::default() }
}

fn with_clusters(house: &House, names: &[&'static str]) -> AdminDoor {
    let clusters = names.iter().map(|name| ((*name).into(), Arc::new(|| None) as LastHeard));
    let settings = AdminSettings { clusters: Clusters::new(clusters), ..(*house.door.settings).clone() };
    AdminDoor { settings: Arc::new(settings), ..house.door.clone() }
}

fn rule(id: &str) -> v1::Rule {
    v1::Rule { id: id.into(), namespaces: vec!["shop".into()], ..v1::Rule::default() }
}

#[tokio::test]
async fn a_rule_is_for_the_cluster_that_there_was_when_it_was_made() {
    let house = House::new().await;
    let door = with_one_cluster(&house, None);
    let told = v1::Rule { spiffe_id: "spiffe://example.org/{{cluster}}/{{sa}}".into(), ..rule("told") };
    for rule in [rule("pods"), told] {
        door.create_rule(house.ask(v1::CreateRuleRequest { rule: Some(rule) })).await.unwrap();
    }
    let clusters = async || {
        let rules = door.list_rules(house.ask(v1::ListRulesRequest {})).await.unwrap().into_inner().rules;
        rules.into_iter().map(|status| status.rule.unwrap().cluster).collect::<Vec<_>>()
    };
    assert_eq!(clusters().await, ["prod", ""], "the other one says by itself which pods are whose");
    let changed = v1::Rule { hint: "x".into(), spiffe_id: "spiffe://example.org/{{sa}}".into(), ..rule("told") };
    door.update_rule(house.ask(v1::UpdateRuleRequest { rule: Some(changed) })).await.unwrap();
    assert_eq!(clusters().await, ["prod", "prod"]);
}

#[tokio::test]
async fn of_two_rules_made_in_one_second_the_first_is_the_older() {
    let house = House::new().await;
    let door = with_one_cluster(&house, None);
    for id in ["b", "a"] {
        door.create_rule(house.ask(v1::CreateRuleRequest { rule: Some(rule(id)) })).await.unwrap();
    }
    house.tell_of_a_pod().await;
    let explained = door.explain_pod(house.ask(asked("web-1"))).await.unwrap().into_inner();
    let verdicts: Vec<_> = explained.verdicts.iter().map(|it| (it.rule.as_str(), it.outcome.as_str())).collect();
    assert_eq!(verdicts, [("b", "gives"), ("a", "same")]);
    let shown = door.show_rule(house.ask(v1::ShowRuleRequest { id: "a".into() })).await.unwrap().into_inner();
    assert_eq!((shown.pods, shown.entries, shown.refused), (1, 0, 0));
    assert_eq!(shown.same, [v1::SamePods { rule: "b".into(), pods: 1 }]);
    // A clock that was set back makes none older.
    let status = async |id: &str| {
        let status = door.show_rule(house.ask(v1::ShowRuleRequest { id: id.into() })).await.unwrap();
        status.into_inner().rule.unwrap().created_at
    };
    let before = status("a").await;
    door.delete_rule(house.ask(v1::DeleteRuleRequest { id: "b".into() })).await.unwrap();
    let mut late = house.ask(v1::CreateRuleRequest { rule: Some(rule("0")) });
    let admitted = late.extensions_mut().get_mut::<Admitted>().unwrap();
    admitted.now = admitted.now.minus(DAY);
    door.create_rule(late).await.unwrap();
    assert!(status("0").await > before);
}

#[tokio::test]
async fn a_rule_is_for_a_cluster_of_the_config() {
    let house = House::new().await;
    let spiffe_id = "spiffe://example.org/{{sa}}";
    let of = |cluster: &str| v1::Rule { cluster: cluster.into(), spiffe_id: spiffe_id.into(), ..rule("pods") };
    let create = |rule| house.ask(v1::CreateRuleRequest { rule: Some(rule) });
    let update = |rule| house.ask(v1::UpdateRuleRequest { rule: Some(rule) });
    let refused = words(with_clusters(&house, &["main"]).create_rule(create(of("prod"))).await);
    assert_eq!(refused, "InvalidArgument: no cluster prod in the server's config: use main");
    let refused = words(with_clusters(&house, &["a", "b"]).create_rule(create(of("prod"))).await);
    assert!(refused.ends_with("use a, or another that it has"), "{refused}");
    with_clusters(&house, &["prod"]).create_rule(create(of("prod"))).await.unwrap();

    // The cluster is gone from the config: that is said, and what else the rule says can be changed.
    let notes = async |door: &AdminDoor| {
        let shown = door.show_rule(house.ask(v1::ShowRuleRequest { id: "pods".into() })).await.unwrap().into_inner();
        let listed = door.list_rules(house.ask(v1::ListRulesRequest {})).await.unwrap().into_inner();
        assert_eq!(shown.notes, listed.notes);
        shown.notes
    };
    let door = with_clusters(&house, &["main"]);
    assert_eq!(
        notes(&door).await,
        [
            "rule pods is for cluster prod, which the config does not have: its pods get nothing. Set [kubernetes.prod], or \
          \"chancery rule update pods --cluster main\""
        ]
    );
    door.update_rule(update(v1::Rule { hint: "x".into(), ..of("prod") })).await.unwrap();
    assert!(words(door.update_rule(update(of("east"))).await).contains("use main"));
    assert!(notes(&with_clusters(&house, &["main", "prod"])).await.is_empty());
    let none = with_clusters(&house, &[]);
    let known = "this server's config has no [kubernetes.<name>]: no pod is known";
    assert_eq!(notes(&none).await, [known]);
    assert_eq!(words(none.explain_pod(house.ask(asked("web-1"))).await), format!("NotFound: {known}"));

    // Made without any cluster, it is for every one that comes.
    none.update_rule(update(of(""))).await.unwrap();
    assert!(notes(&with_clusters(&house, &["main"])).await.is_empty());
    let several = notes(&with_clusters(&house, &["main", "west"])).await;
    assert!(several[0].contains("gives equal names in each of them one identity"), "{several:?}");
    assert!(several[0].ends_with("\"chancery rule update pods --cluster main\" holds it to one"), "{several:?}");
}

#[tokio::test]
async fn the_record_says_what_a_rule_was_made_or_was_to_be_made_like() {
    let house = House::new().await;
    let good = v1::Rule {
        cluster: "prod".into(),
        pod_labels: vec![v1::LabelMatch { key: "app".into(), value: Some("web".into()) }],
        x509_ttl: 60,
        ..rule("pods")
    };
    let bad = v1::Rule { dns_names: vec!["{{nonsense}}".into()], ..good.clone() };
    house.door.create_rule(house.ask(v1::CreateRuleRequest { rule: Some(good) })).await.unwrap();
    house.door.update_rule(house.ask(v1::UpdateRuleRequest { rule: Some(bad) })).await.unwrap_err();
    let House { door, writer, audit, .. } = house;
    drop(door);
    writer.finish();
    let text = std::fs::read_to_string(audit.path()).unwrap();
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let template = "--spiffe-id spiffe://example.org/ns/{{ns}}/sa/{{sa}}";
    let made = format!("{template} --cluster prod --namespace shop --pod-label app=web --ttl 60s");
    assert_eq!((&lines[0]["outcome"], &lines[0]["object"]), (&"changed".into(), &"pods".into()));
    assert_eq!(lines[0]["content"], *made);
    let hash = spiffe::crypto::hex(&spiffe::crypto::sha256(made.as_bytes()));
    assert_eq!(lines[0]["content_sha256"], *hash);
    let refused = "--dns {{nonsense}} --cluster prod --namespace shop --pod-label app=web --ttl 60s";
    assert_eq!((&lines[1]["outcome"], &lines[1]["content"]), (&"refused".into(), &refused.into()));
}

#[tokio::test]
async fn an_entry_has_a_name_of_the_server_only_where_that_is_said() {
    let house = House::new().await;
    let named = |id: &str, name: &str| v1::Entry { dns_names: vec![name.into()], ..entry(id) };
    for name in ["ca.example.org", "*.example.org"] {
        let refused = house.create(vec![named("a", name)]).await.remove(0).unwrap_err();
        assert!(refused.contains(&format!("the DNS name {name} is this server's own")), "{refused}");
    }
    house.create(vec![named("a", "web.example.org")]).await.remove(0).unwrap();
    house.update(named("a", "ca.example.org")).await.unwrap_err();

    let entries = vec![named("istiod", "ca.example.org")];
    let request = house.ask(v1::CreateEntriesRequest { entries, allow_server_names: true });
    outcomes(house.door.create_entries(request).await.unwrap().into_inner()).remove(0).unwrap();
    // It has it, and keeps it whatever else is changed.
    house.update(v1::Entry { hint: "x".into(), ..named("istiod", "ca.example.org") }).await.unwrap();
}

#[tokio::test]
async fn a_rule_that_gives_every_pod_a_name_of_the_server_is_refused_at_once() {
    let house = House::new().await;
    let door = with_one_cluster(&house, None);
    let create = async |dns: &str| {
        let rule = v1::Rule { dns_names: vec!["{{sa}}.shop.example.org".into(), dns.into()], ..rule("pods") };
        door.create_rule(house.ask(v1::CreateRuleRequest { rule: Some(rule) })).await
    };
    for name in ["ca.example.org", "*.example.org"] {
        let refused = words(create(name).await);
        assert!(refused.contains(&format!("the DNS name {name} is this server's own: no pod gets that")), "{refused}");
    }
    create("{{sa}}.example.org").await.unwrap();
}

#[tokio::test]
async fn what_is_said_of_a_silent_cluster_says_so() {
    let house = House::new().await;
    let now = house.clock.now();
    house.tell_of_a_pod().await;
    let create = v1::CreateRuleRequest { rule: Some(v1::Rule { cluster: "prod".into(), ..rule("pods") }) };
    with_one_cluster(&house, None).create_rule(house.ask(create)).await.unwrap();
    let since = |seconds| now.minus(Duration::from_secs(seconds));
    for (last_heard, at) in [(Some(since(60)), None), (Some(since(600)), Some(since(600).unix())), (None, Some(0))] {
        let door = with_one_cluster(&house, last_heard);
        let expected: Vec<_> =
            at.into_iter().map(|heard_at| v1::SilentCluster { cluster: "prod".into(), heard_at }).collect();
        let explained = door.explain_pod(house.ask(asked("web-1"))).await.unwrap().into_inner();
        assert_eq!(explained.silent, expected);
        let shown = door.show_rule(house.ask(v1::ShowRuleRequest { id: "pods".into() })).await.unwrap().into_inner();
        assert_eq!((shown.pods, shown.silent), (1, expected.clone()));
        let listed = door.list_rules(house.ask(v1::ListRulesRequest {})).await.unwrap().into_inner();
        assert_eq!(listed.silent, expected);
        let unknown = words(door.explain_pod(house.ask(asked("web-2"))).await);
        assert_eq!(unknown.contains("never since this server has started: prod"), !expected.is_empty(), "{unknown}");
    }
}
