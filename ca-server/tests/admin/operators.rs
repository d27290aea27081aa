//! Who is an operator, and what rules may give: neither comes about by the other.

use super::*;

#[tokio::test]
async fn a_rule_that_gives_too_much_is_refused_before_it_is_made() {
    let house = House::new().await;
    let pod = |number: u8| Pod {
        cluster: "prod".into(),
        uid: number.to_string().into(),
        namespace: if number < 12 { "shop" } else { "bank" }.into(),
        name: number.to_string().into(),
        service_account: "web".into(),
        node_name: "n1".into(),
        agent: SpiffeId::parse(AGENT).unwrap(),
        labels: Labels::default(),
        namespace_labels: Labels::default(),
    };
    house.tell.send(PodEvent::All { cluster: "prod".into(), pods: (0..20).map(pod).collect() }).await.unwrap();
    while house.door.doors.views.load().pods().count() == 0 {
        tokio::task::yield_now().await;
    }
    let rule = v1::Rule {
        id: "each".into(),
        cluster: "prod".into(),
        spiffe_id: "spiffe://example.org/pod/{{pod-uid}}".into(),
        ..v1::Rule::default()
    };
    let create = async |rule: &v1::Rule| {
        let request = house.ask(v1::CreateRuleRequest { rule: Some(rule.clone()) });
        house.door.create_rule(request).await.map_err(|status| status.message().to_owned())
    };
    let refused = create(&rule).await.unwrap_err();
    assert!(refused.contains("more than 16 entries, and each would give nothing"), "{refused}");
    let narrow = v1::Rule { namespaces: vec!["shop".into()], ..rule.clone() };
    create(&narrow).await.unwrap();
    assert_eq!(house.door.doors.views.load().derived_count(), 12);
    let request = house.ask(v1::UpdateRuleRequest { rule: Some(rule.clone()) });
    let refused = house.door.update_rule(request).await.unwrap_err();
    assert!(refused.message().contains("limits.derived_entries"), "{refused}");
    // Of two clusters, a rule names one.
    let wide = v1::Rule { cluster: String::new(), spiffe_id: String::new(), id: "wide".into(), ..narrow };
    let refused = create(&wide).await.unwrap_err();
    assert!(refused.contains("this server has 2 clusters"), "{refused}");
    let told = v1::Rule {
        spiffe_id: "spiffe://example.org/{{cluster}}/{{sa}}".into(),
        namespaces: vec!["none".into()],
        ..wide
    };
    create(&told).await.unwrap();
}

#[tokio::test]
async fn an_id_that_pods_may_hold_already_makes_no_operator() {
    let house = House::new().await;
    let marked = |name: &str, path: &str| v1::Entry {
        id: name.into(),
        spiffe_id: format!("spiffe://example.org{path}"),
        admin: true,
        ..entry("ops")
    };
    house.create(vec![marked("first", "/team/blue/cli")]).await.remove(0).unwrap();
    let rule = v1::Rule {
        id: "teams".into(),
        cluster: "prod".into(),
        spiffe_id: "spiffe://example.org/team/{{ns}}/{{pod-label:app}}".into(),
        namespaces: vec!["blue".into(), "red".into()],
        ..v1::Rule::default()
    };
    house.door.create_rule(house.ask(v1::CreateRuleRequest { rule: Some(rule) })).await.unwrap();
    // No pod is known. The rule could give it all the same.
    let refused = house.create(vec![marked("a", "/team/red/cli")]).await.remove(0).unwrap_err();
    assert!(refused.contains("the rule teams could give spiffe://example.org/team/red/cli to a pod"), "{refused}");
    house
        .create(vec![marked("b", "/team/green/cli"), marked("c", "/team/red/cli/x")])
        .await
        .into_iter()
        .for_each(|created| drop(created.unwrap()));
    // What was marked before there was such a rule never was a pod's.
    house.update(v1::Entry { hint: "x".into(), ..marked("first", "/team/blue/cli") }).await.unwrap();
    let refused = house.create(vec![marked("d", "/ns/ops/sa/cli")]).await.remove(0).unwrap_err();
    assert!(refused.contains("is the ID of a service account, and Istio's door gives it"), "{refused}");
    house.create(vec![marked("e", "/ns/ops/sa")]).await.remove(0).unwrap();
}

#[tokio::test]
async fn all_entries_of_one_spiffe_id_make_operators_or_none_does() {
    let house = House::new().await;
    let named = |name: &str, uid: u32, admin| v1::Entry {
        id: name.into(),
        selectors: vec![format!("unix:uid:{uid}")],
        admin,
        ..entry("ops")
    };
    let ops = "spiffe://example.org/ops";
    let others = |other: &str| {
        format!(
            "FailedPrecondition: {ops} is an operator's, by entry {other}: whoever gets an SVID of this entry would be \
             one too. Choose another ID, or mark this entry admin as well"
        )
    };
    let is_not_marked = |other: &str| {
        format!(
            "FailedPrecondition: entry {other} has the SPIFFE ID {ops} too and is not marked admin: whoever gets its \
             SVID would be an operator. Give operators an ID of their own, or delete that entry first, and wait until the \
             last SVID that it gave has ended"
        )
    };
    // Within one request, in either order.
    let results = house.create(vec![named("a", 1, true), named("b", 2, false), named("c", 3, true)]).await;
    assert!(results[0].is_ok() && results[2].is_ok());
    assert_eq!(results[1], Err(others("a")));
    // Against what is there.
    assert!(
        [others("a"), others("c")].contains(house.create(vec![named("d", 4, false)]).await[0].as_ref().unwrap_err())
    );
    assert_eq!(house.update(named("a", 1, false)).await, Err(others("c")));
    house.delete("c").await;
    // Alone it may become either.
    house.update(named("a", 1, false)).await.unwrap();
    house.create(vec![named("e", 5, false)]).await.remove(0).unwrap();
    assert_eq!(house.update(named("a", 1, true)).await, Err(is_not_marked("e")));
    assert_eq!(house.create(vec![named("f", 6, true)]).await[0], Err(is_not_marked("a")));
    // A node alias is nobody's SVID.
    let alias = v1::Entry { parent: "spiffe://example.org/chancery/server".into(), ..named("g", 7, true) };
    let expected = format!(
        "InvalidArgument: admin on the node alias {ops}: no SVID is issued for an alias; mark the entry of a workload \
         instead"
    );
    assert_eq!(house.create(vec![alias.clone()]).await[0], Err(expected));
    house.create(vec![v1::Entry { admin: false, ..alias }]).await.remove(0).unwrap();
}
