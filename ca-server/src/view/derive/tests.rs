use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use spiffe::id::TrustDomain;
use spiffe::selector::Selectors;
use spiffe::time::Timestamp;

use super::*;
use crate::store::{Commit, KeyValue, Write};
use crate::view::pods::{PodEvent, Pods};
use crate::view::record::{entry_to_record, rule_to_record};
use crate::view::{Change, keys};

const USUAL: &str = "spiffe://example.org/ns/{{ns}}/sa/{{sa}}";

fn domain() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

fn agent(node: &str) -> SpiffeId {
    domain().agent_id("k8s_psat", &format!("prod/{node}")).unwrap()
}

fn pod(uid: &str, node: &str, labels: &[(&str, &str)]) -> Pod {
    Pod {
        cluster: "prod".into(),
        uid: uid.into(),
        namespace: "shop".into(),
        name: format!("web-{uid}").into(),
        service_account: "web".into(),
        node_name: node.into(),
        agent: agent(node),
        labels: Arc::new(labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()),
        namespace_labels: Arc::default(),
    }
}

fn rule(id: &str, template: &str, created_at: u64) -> v1::Rule {
    v1::Rule { id: id.into(), spiffe_id: template.into(), created_at, ..v1::Rule::default() }
}

fn put_rule(rule: v1::Rule) -> Write {
    let rule = Rule::try_from(rule).unwrap();
    Write::Put { key: keys::rule(&rule.id), value: rule_to_record(&rule) }
}

/// A stored entry that gives `path`.
fn put_entry(id: &str, path: &str, admin: bool) -> Write {
    let wire = v1::Entry {
        id: id.into(),
        spiffe_id: domain().member(path).unwrap().to_string(),
        parent: agent("n1").to_string(),
        selectors: vec!["unix:uid:1".into()],
        admin,
        ..v1::Entry::default()
    };
    let entry = RegistrationEntry::try_from(wire).unwrap();
    Write::Put { key: keys::entry(&entry.id), value: entry_to_record(&entry) }
}

fn after(view: &View, writes: Vec<Write>) -> (View, Vec<Change>) {
    view.apply(&Commit { revision: view.revision() + 1, writes }).unwrap()
}

fn with(rules: Vec<v1::Rule>, pods: Vec<Pod>) -> View {
    let (view, _) = after(&View::empty(domain()), rules.into_iter().map(put_rule).collect());
    view.told(pods.into_iter().map(PodEvent::Put)).0
}

/// The identities below the agent of `node`.
fn below(view: &View, node: &str) -> Vec<String> {
    view.entries_of(&agent(node)).map(|entry| entry.spiffe_id.path().to_owned()).collect()
}

#[test]
fn a_pod_has_its_entry_while_it_is_on_the_node() {
    let view = with(vec![rule("pods", USUAL, 1)], vec![pod("1", "n1", &[])]);
    assert_eq!(below(&view, "n1"), ["/ns/shop/sa/web"]);
    let entry = view.entries_of(&agent("n1")).next().unwrap();
    assert!(entry.id.is_derived() && entry.parent == agent("n1"));
    assert_eq!((entry.rule.as_ref().unwrap().as_str(), view.derived_count(), view.entry_count()), ("pods", 1, 1));
    let (moved, changes) = view.told([PodEvent::Put(pod("1", "n2", &[]))]);
    assert_eq!((below(&moved, "n1").len(), below(&moved, "n2").len(), changes.len()), (0, 1, 2));
    assert_eq!(moved.revision(), view.revision());
    let (gone, changes) = moved.told([PodEvent::Gone { cluster: "prod".into(), uid: "1".into() }]);
    assert_eq!((gone.entry_count(), gone.derived_count(), changes.len()), (0, 0, 1));
}

#[test]
fn named_by_what_it_is_for_and_each_distinct_one_once() {
    let view = with(vec![rule("pods", USUAL, 1)], vec![pod("1", "n1", &[]), pod("2", "n1", &[]), pod("3", "n2", &[])]);
    assert_eq!((below(&view, "n1").len(), below(&view, "n2").len(), view.entry_count()), (1, 1, 2));
    // The second one goes: the entry is the same, and nobody is told anything.
    let (fewer, changes) = view.told([PodEvent::Gone { cluster: "prod".into(), uid: "2".into() }]);
    assert_eq!((fewer.pods().count(), changes.len()), (2, 0));
    let ids = |view: &View| view.entries_after(None).map(|entry| entry.id.clone()).collect::<BTreeSet<_>>();
    let (again, _) = after(&view, vec![put_rule(rule("pods", USUAL, 1))]);
    assert_eq!(ids(&again), ids(&view));
    // What the rule says beside that changes the entries, and they stay the same ones.
    let shorter = v1::Rule { x509_ttl: 60, hint: "web".into(), ..rule("pods", USUAL, 1) };
    let (changed, changes) = after(&view, vec![put_rule(shorter.clone())]);
    assert_eq!((ids(&changed), changes.len()), (ids(&view), 2));
    for change in changes {
        let Change::Entry { before: Some(before), after: Some(after) } = change else { panic!("{change:?}") };
        assert_eq!((&before.id, after.hint.as_str()), (&after.id, "web"));
        assert_ne!(before.revision, after.revision);
    }
    let revisions = |view: &View| view.entries_after(None).map(|entry| entry.revision).collect::<Vec<_>>();
    let (back, _) = after(&changed, vec![put_rule(rule("pods", USUAL, 1))]);
    assert_eq!(revisions(&back), revisions(&view), "told by content alone");
    // Another identity is another entry.
    let (other, changes) = after(&view, vec![put_rule(rule("pods", "spiffe://example.org/{{sa}}", 1))]);
    assert!(ids(&other).is_disjoint(&ids(&view)) && changes.len() == 4, "{changes:?}");
    let (none, _) = after(&other, vec![Write::Delete { key: "rule/pods".into() }]);
    assert_eq!((none.entry_count(), none.rule_count()), (0, 0));
}

#[test]
fn the_older_rule_first() {
    let by_label = rule("b-label", "spiffe://example.org/{{pod-label:app}}", 2);
    let rules = vec![rule("z-older", USUAL, 1), rule("a-younger", USUAL, 2), by_label];
    let view = with(rules, vec![pod("1", "n1", &[("app", "shop")])]);
    let verdicts = view.explain(view.pods().find("prod", "1").unwrap());
    let [(older, Verdict::Gives(_)), (_, Verdict::Same(same)), (_, Verdict::Gives(by_label))] = &verdicts[..] else {
        panic!("{verdicts:?}")
    };
    assert_eq!((older.id.as_str(), same.as_str(), by_label.spiffe_id.path()), ("z-older", "z-older", "/shop"));
    assert_eq!(view.entry_count(), 2);
    let mut places: Vec<_> = view.entries_of(&agent("n1")).map(|entry| (entry.place(), entry.rule.clone())).collect();
    let (stored, _) = after(&view, vec![put_entry("late", "/late", false)]);
    places.push((stored.entry(&EntryId::parse("late").unwrap()).unwrap().place(), None));
    places.sort();
    let order: Vec<Option<&str>> = places.iter().map(|(_, rule)| rule.as_ref().map(RuleId::as_str)).collect();
    assert_eq!(order, [None, Some("z-older"), Some("b-label")], "what operators made comes first");
}

#[test]
fn no_operators() {
    let view = with(
        vec![rule("pods", "spiffe://example.org/{{pod-label:app}}", 1)],
        vec![pod("1", "n1", &[("app", "ops")]), pod("2", "n1", &[("app", "web")])],
    );
    assert_eq!(view.entry_count(), 2);
    let (marked, changes) = after(&view, vec![put_entry("e", "/ops", true)]);
    assert_eq!((marked.derived_count(), marked.refused_count(), changes.len()), (1, 1, 2));
    assert!(marked.is_admin(&domain().member("/ops").unwrap(), Timestamp::from_unix(9)));
    let verdicts = marked.explain(marked.pods().find("prod", "1").unwrap());
    assert!(matches!(&verdicts[..], [(_, Verdict::Operator(_))]), "{verdicts:?}");
    let (late, _) = marked.told([PodEvent::Put(pod("3", "n2", &[("app", "ops")]))]);
    assert_eq!((below(&late, "n2").len(), late.refused_count()), (0, 2));
    let (unmarked, _) = after(&late, vec![Write::Delete { key: "entry/e".into() }]);
    assert_eq!((unmarked.derived_count(), unmarked.refused_count()), (3, 0));
}

#[test]
fn what_a_template_refuses_is_counted_and_told() {
    let hostile: Vec<Pod> = ["../admin", "a b", ""]
        .iter()
        .enumerate()
        .map(|(uid, value)| pod(&uid.to_string(), "n1", &[("app", value)]))
        .chain([pod("bare", "n2", &[]), pod("good", "n2", &[("app", "good")])])
        .collect();
    let view = with(vec![rule("pods", "spiffe://example.org/{{pod-label:app}}", 1)], hostile);
    assert_eq!((below(&view, "n1").len(), below(&view, "n2"), view.refused_count()), (0, vec!["/good".into()], 4));
    let account = view.account(&RuleId::parse("pods").unwrap(), 2);
    assert_eq!((account.pods, account.entries, account.refused, account.refusals.len()), (5, 1, 4, 2));
    let (mended, _) = view.told([PodEvent::Put(pod("0", "n1", &[("app", "admin")]))]);
    assert_eq!((below(&mended, "n1"), mended.refused_count()), (vec!["/admin".to_owned()], 3));
}

#[test]
fn pods_outlive_a_gap() {
    let view = with(vec![rule("pods", USUAL, 1)], vec![pod("1", "n1", &[])]);
    let value = rule_to_record(&Rule::try_from(rule("pods", "spiffe://example.org/{{sa}}", 1)).unwrap());
    let records = vec![KeyValue { key: "rule/pods".into(), value, revision: 9 }];
    let loaded = View::load(domain(), records, 9).unwrap().with_pods(view.pods().clone()).done().0;
    assert_eq!((below(&loaded, "n1"), loaded.revision()), (vec!["/web".to_owned()], 9));
}

#[test]
fn a_pod_without_a_service_account_is_no_rules_and_no_refusal() {
    let mirror = Pod { service_account: "".into(), ..pod("1", "n1", &[("app", "etcd")]) };
    let view = with(vec![rule("a", USUAL, 1), rule("b", "spiffe://example.org/{{pod-label:app}}", 2)], vec![mirror]);
    assert_eq!((view.pods().count(), view.derived_count(), view.refused_count()), (1, 0, 0));
    let verdicts = view.explain(view.pods().find("prod", "1").unwrap());
    assert!(verdicts.iter().all(|(_, it)| *it == Verdict::Differs(Mismatch::NoServiceAccount)), "{verdicts:?}");
}

#[test]
fn pods_that_an_older_rule_has_are_counted_by_that_rule() {
    let pods = vec![pod("1", "n1", &[]), pod("2", "n2", &[]), pod("3", "n2", &[("app", "web")])];
    let own = v1::Rule { hint: "x".into(), ..rule("young", USUAL, 2) };
    let view = with(vec![rule("old", USUAL, 1), own], pods);
    let account = view.account(&RuleId::parse("young").unwrap(), 1);
    assert_eq!((account.pods, account.entries, account.refused), (3, 0, 0));
    assert_eq!(account.same, [(RuleId::parse("old").unwrap(), 3)].into());
    assert!(view.account(&RuleId::parse("old").unwrap(), 1).same.is_empty());
}

#[test]
fn no_name_of_ours() {
    let named = |id: &str, dns: &str, at| v1::Rule {
        dns_names: vec![dns.into()],
        ..rule(id, &format!("spiffe://example.org/{id}/{{{{sa}}}}"), at)
    };
    let rules = vec![named("a", "{{pod-label:app}}.{{ns}}.svc", 1), named("b", "*.{{ns}}.svc", 2)];
    let own = ["istiod.istio-system.svc"].map(|name| DnsName::parse(name).unwrap());
    let terms = crate::view::Terms { own_names: own.into(), ..crate::view::Terms::default() };
    let (view, _) = after(&View::empty(domain()).on_terms(terms), rules.into_iter().map(put_rule).collect());
    let at = |namespace: &str, app: &str| Pod { namespace: namespace.into(), ..pod(app, "n1", &[("app", app)]) };
    let (view, _) =
        view.told([at("istio-system", "istiod"), at("istio-system", "web"), at("shop", "x")].map(PodEvent::Put));
    let outcome = |uid: &str| {
        let verdicts = view.explain(view.pods().find("prod", uid).unwrap()).into_iter();
        verdicts.map(|(_, verdict)| matches!(verdict, Verdict::OwnName(_))).collect::<Vec<_>>()
    };
    assert_eq!((outcome("istiod"), outcome("web"), outcome("x")), (vec![true; 2], vec![false, true], vec![false; 2]));
    assert_eq!((view.derived_count(), view.refused_count()), (3, 3));
}

/// How many pieces the work after `write` is.
fn pieces(view: &View, write: Write) -> usize {
    let mut rework = view.begin(&Commit { revision: view.revision() + 1, writes: vec![write] }).unwrap();
    let mut pieces = 1;
    while !rework.step() {
        pieces += 1;
    }
    pieces
}

#[test]
fn only_what_a_change_concerns() {
    let own = |number: u64| rule(&format!("r{number}"), &format!("spiffe://example.org/{number}/{{{{sa}}}}"), number);
    let pods = (0..500).map(|uid| pod(&uid.to_string(), &format!("n{}", uid % 50), &[])).collect();
    let view = with((0..128).map(own).collect(), pods);
    assert_eq!(view.derived_count(), 50 * 128);
    // 500 pods by 128 rules are 64,000 judgements, twice: 32 pieces and more. One rule is a thousand and a half.
    let hint = v1::Rule { hint: "x".into(), ..own(7) };
    assert_eq!(pieces(&view, put_rule(hint.clone())), 1);
    let (changed, changes) = after(&view, vec![put_rule(hint)]);
    assert!(changed.derived_count() == 50 * 128 && changes.iter().all(|it| matches!(it, Change::Entry { .. })));
    assert_eq!(pieces(&view, Write::Delete { key: "rule/r7".into() }), 1);
    // An operator's ID concerns the rules that could give it, and none where it was an operator's before.
    assert_eq!(pieces(&view, put_entry("e", "/9/web", true)), 1);
    assert_eq!(view.begin(&Commit { revision: 9, writes: vec![put_entry("e", "/ops", true)] }).unwrap().left(), 0);
    let (marked, _) = after(&view, vec![put_entry("e", "/9/web", true)]);
    assert_eq!((marked.derived_count(), marked.refused_count()), (50 * 127, 500));
    assert_eq!(marked.begin(&Commit { revision: 9, writes: vec![put_entry("f", "/9/web", true)] }).unwrap().left(), 0);
    // One pod is one visit, however many are beside it.
    assert_eq!(view.begin_told([PodEvent::Put(pod("1", "n1", &[("app", "x")]))]).left(), 1);
}

/// That there are no more than `most`, and exactly those of the rules that are within the limit.
fn is_bounded(view: &View, rules: &[v1::Rule], pods: &Pods) {
    assert!(view.given <= view.terms().most, "{} given", view.given);
    let over: BTreeSet<&str> = view.rules_over_limit().map(RuleId::as_str).collect();
    let within = rules.iter().filter(|rule| !over.contains(&*rule.id)).cloned().collect();
    let whole = with(within, pods.agents().flat_map(|agent| pods.of_agent(agent)).map(|pod| (**pod).clone()).collect());
    let entries = |view: &View| view.entries_after(None).map(|held| held.value.clone()).collect::<Vec<_>>();
    assert_eq!(entries(view), entries(&whole));
}

#[test]
fn a_pod_for_another_is_within_the_limit_in_whatever_order_they_are() {
    let rules = ["a", "b"].map(|id| rule(id, &format!("spiffe://example.org/{id}/{{{{pod-uid}}}}"), 1));
    let terms = crate::view::Terms { most: 32, ..crate::view::Terms::default() };
    let (view, _) = after(&View::empty(domain()).on_terms(terms), rules.into_iter().map(put_rule).collect());
    let pods = (10..26).map(|uid| PodEvent::Put(pod(&uid.to_string(), "n1", &[])));
    let view = view.told(pods).0;
    assert_eq!((view.derived_count(), view.rules_over_limit().count()), (32, 0));
    let gone = PodEvent::Gone { cluster: "prod".into(), uid: "25".into() };
    let (view, _) = view.told([gone, PodEvent::Put(pod("09", "n1", &[]))]);
    assert_eq!((view.derived_count(), view.rules_over_limit().count()), (32, 0));
}

#[test]
fn above_the_limit_the_youngest_rules_give_nothing() {
    let rules = ["a", "b", "c"].map(|id| rule(id, &format!("spiffe://example.org/{id}/{{{{pod-uid}}}}"), 1));
    let writes = rules.iter().cloned().map(put_rule).collect();
    let terms = crate::view::Terms { most: 32, ..crate::view::Terms::default() };
    let (mut view, _) = after(&View::empty(domain()).on_terms(terms), writes);
    let mut over = Vec::new();
    for uid in 0..34 {
        view = view.told([PodEvent::Put(pod(&uid.to_string(), "n1", &[]))]).0;
        is_bounded(&view, &rules, view.pods());
        over.push(view.rules_over_limit().count());
    }
    // Three rules for ten pods, two for sixteen, one for 32.
    assert_eq!((over[9], over[10], over[15], over[16], over[31], over[32]), (0, 1, 1, 2, 2, 3));
    let verdicts = view.explain(view.pods().find("prod", "1").unwrap());
    assert!(verdicts.iter().all(|(_, verdict)| *verdict == Verdict::Limit), "{verdicts:?}");
    let account = view.account(&RuleId::parse("a").unwrap(), 1);
    assert_eq!((account.pods, account.entries, account.refused, account.refusals.len()), (34, 0, 34, 1));
    over.clear();
    for uid in 0..34 {
        view = view.told([PodEvent::Gone { cluster: "prod".into(), uid: uid.to_string().into() }]).0;
        is_bounded(&view, &rules, view.pods());
        over.push(view.rules_over_limit().count());
    }
    // With a sixteenth to spare: 30 are one rule for thirty pods, two for fifteen, three for ten.
    assert_eq!((over[2], over[3], over[17], over[18], over[22], over[23]), (3, 2, 2, 1, 1, 0));
    // Where all come at once, a rule deleted makes room for the next.
    let all =
        PodEvent::All { cluster: "prod".into(), pods: (0..15).map(|uid| pod(&uid.to_string(), "n1", &[])).collect() };
    let (view, _) = view.told([all]);
    assert_eq!((view.derived_count(), view.rules_over_limit().count()), (30, 1));
    let (view, changes) = after(&view, vec![Write::Delete { key: "rule/a".into() }]);
    assert_eq!((view.derived_count(), view.rules_over_limit().count(), changes.len()), (30, 0, 30));
    is_bounded(&view, &rules[1..], view.pods());
}

/// Something that happens to a View.
#[derive(Clone, Debug)]
enum Step {
    Pod { uid: u8, node: u8, app: u8 },
    Gone(u8),
    All(Vec<(u8, u8, u8)>),
    Rule { id: u8, template: u8, created_at: u64 },
    NoRule(u8),
    Entry { path: u8, admin: bool },
    NoEntry(u8),
}

const TEMPLATES: [&str; 5] = [
    USUAL,
    "spiffe://example.org/{{pod-label:app}}",
    "spiffe://example.org/{{pod-label:app}}/{{pod-uid}}",
    "spiffe://example.org/ops",
    "spiffe://example.org/{{ns-label:team}}ops",
];
const APPS: [&str; 4] = ["ops", "web", "a/b", ""];

fn step() -> impl Strategy<Value = Step> {
    let three = || (0u8..5, 0u8..3, 0u8..4);
    prop_oneof![
        4 => three().prop_map(|(uid, node, app)| Step::Pod { uid, node, app }),
        2 => (0u8..5).prop_map(Step::Gone),
        1 => prop::collection::vec(three(), 0..4).prop_map(Step::All),
        3 => (0u8..3, 0u8..5, 0u64..3).prop_map(|(id, template, created_at)| Step::Rule { id, template, created_at }),
        1 => (0u8..3).prop_map(Step::NoRule),
        2 => (0u8..2, any::<bool>()).prop_map(|(path, admin)| Step::Entry { path, admin }),
        1 => (0u8..2).prop_map(Step::NoEntry),
    ]
}

fn labelled((uid, node, app): (u8, u8, u8)) -> Pod {
    pod(&uid.to_string(), &format!("n{node}"), &[("app", APPS[usize::from(app)])])
}

fn writes(step: &Step) -> Option<Write> {
    Some(match step {
        Step::Rule { id, template, created_at } => {
            put_rule(rule(&format!("r{id}"), TEMPLATES[usize::from(*template)], *created_at))
        }
        Step::NoRule(id) => Write::Delete { key: format!("rule/r{id}") },
        Step::Entry { path, admin } => put_entry(&format!("e{path}"), ["/ops", "/web"][usize::from(*path)], *admin),
        Step::NoEntry(path) => Write::Delete { key: format!("entry/e{path}") },
        _ => return None,
    })
}

fn event(step: Step) -> Option<PodEvent> {
    Some(match step {
        Step::Pod { uid, node, app } => PodEvent::Put(labelled((uid, node, app))),
        Step::Gone(uid) => PodEvent::Gone { cluster: "prod".into(), uid: uid.to_string().into() },
        Step::All(pods) => {
            let mut seen = BTreeSet::new();
            let pods = pods.into_iter().filter(|(uid, ..)| seen.insert(*uid)).map(labelled).collect();
            PodEvent::All { cluster: "prod".into(), pods }
        }
        _ => return None,
    })
}

/// Everything that a reader could ask of derived entries.
fn answers(view: &View) -> String {
    let entries: Vec<_> = view.entries_after(None).map(|held| &held.value).collect();
    let below: Vec<_> = ["n0", "n1", "n2"].map(|node| below(view, node)).into();
    format!("{entries:?} {below:?} {} {}", view.derived_count(), view.refused_count())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn step_by_step_is_the_same_as_all_at_once(steps in prop::collection::vec(step(), 1..40)) {
        let mut view = View::empty(domain());
        let mut records: BTreeMap<String, Write> = BTreeMap::new();
        let mut pods = Pods::default();
        let mut known: BTreeSet<EntryId> = BTreeSet::new();
        for step in steps {
            let (next, changes) = match writes(&step) {
                Some(write) => {
                    records.insert(write.key().to_owned(), write.clone());
                    after(&view, vec![write])
                }
                None => {
                    let event = event(step).unwrap();
                    pods = pods.after(event.clone()).0;
                    view.told([event])
                }
            };
            view = next;
            // Whoever follows the changes knows the same.
            for change in changes {
                let Change::Entry { before, after } = change else { continue };
                if let Some(before) = before {
                    known.remove(&before.id);
                }
                known.extend(after.iter().map(|entry| entry.id.clone()));
            }
            prop_assert_eq!(&known, &view.entries_after(None).map(|entry| entry.id.clone()).collect());
            let puts = records.values().filter_map(|write| match write {
                Write::Put { key, value } => Some(KeyValue { key: key.clone(), value: value.clone(), revision: 1 }),
                Write::Delete { .. } => None,
            });
            let whole = View::load(domain(), puts.collect(), 1).unwrap().with_pods(pods.clone()).done().0;
            prop_assert_eq!(answers(&view), answers(&whole));
            // *below the own agent*, *no operators*
            for entry in view.entries_after(None).filter(|entry| entry.rule.is_some()) {
                prop_assert!(view.pods().of_agent(&entry.parent).next().is_some());
                prop_assert!(!view.admins.contains_key(&entry.spiffe_id) && !entry.admin);
                prop_assert!(entry.spiffe_id.is_member_of(&domain()) && !entry.spiffe_id.is_reserved());
                prop_assert!(!entry.selectors.is_empty() && entry.selectors != Selectors::default());
            }
        }
    }
}
