//! Rules: created, updated and deleted one by one; listed, and shown with what they have come to.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use spiffe::entry::{DnsName, RuleId};
use spiffe::proto::v1;
use spiffe::rule::{DnsTemplate, Rule, Template};
use spiffe::selector::Selector;
use spiffe::time::Timestamp;

use super::entries::{check_federated, check_lives};
use super::{About, Call};
use crate::api::status::Refusal;
use crate::store::{Commit, Txn, Write};
use crate::view::derive::{Account, Verdict, is_own_name};
use crate::view::record::rule_to_record;
use crate::view::{Held, View, keys};

/// The largest rule, in bytes as it is stored: every pod is held against all of it.
const MOST_BYTES: usize = 64 << 10;
/// How many refusals of a rule are shown.
const MOST_REFUSALS: usize = 32;

pub(super) async fn create(call: &Call<'_>, request: v1::CreateRuleRequest) -> Result<v1::ChangeResponse, Refusal> {
    let view = &call.admitted.view;
    let mut wire = request.rule.ok_or_else(|| Refusal::invalid("rule is missing"))?;
    if wire.spiffe_id.is_empty() {
        wire.spiffe_id = Template::by_service_account(view.trust_domain());
    }
    let about = about(&wire)?;
    let work = async {
        wire.created_at = youngest(view, call.admitted.now).unix();
        let rule = read(call, wire)?;
        call.settings.clusters.check(&rule)?;
        if view.rule(&rule.id).is_some() {
            return Err(Refusal::already_exists(format_args!(
                "there is a rule {0} already: change it with \"chancery rule update {0}\", or choose another name",
                rule.id
            )));
        }
        let most = call.settings.most_rules;
        if view.rule_count() >= most {
            return Err(Refusal::precondition(format_args!(
                "there are {most} rules: delete some, or raise limits.rules in the server's config"
            )));
        }
        let rule = fitting(view, rule).await?;
        let key = keys::rule(&rule.id);
        Ok(((), call.doors.commit(Txn::new().absent(key.clone()).put(key, rule_to_record(&rule))).await?))
    };
    let ((), revision) = call.change(about, work).await?;
    Ok(v1::ChangeResponse { revision })
}

pub(super) async fn list(call: &Call<'_>, _: v1::ListRulesRequest) -> Result<v1::ListRulesResponse, Refusal> {
    let view = &call.admitted.view;
    let mut entries: HashMap<&RuleId, u64> = HashMap::new();
    for rule in view.entries_after(None).filter_map(|entry| entry.rule.as_ref()) {
        *entries.entry(rule).or_default() += 1;
    }
    let clusters = &call.settings.clusters;
    let status = |rule: &Arc<Held<Rule>>| v1::RuleStatus {
        entries: entries.get(&rule.id).copied().unwrap_or_default(),
        ..to_wire(rule)
    };
    let notes: BTreeSet<String> = view.rules().filter_map(|rule| clusters.note(rule, view.pods())).collect();
    Ok(v1::ListRulesResponse {
        rules: view.rules().map(status).collect(),
        silent: clusters.silent(None, view.pods(), call.admitted.now),
        notes: notes.into_iter().collect(),
    })
}

pub(super) async fn show(call: &Call<'_>, request: v1::ShowRuleRequest) -> Result<v1::RuleStatus, Refusal> {
    let view = Arc::clone(&call.admitted.view);
    let rule = Arc::clone(find(&view, &request.id)?);
    let id = rule.id.clone();
    // Every pod is looked at: tens of thousands take a while.
    let looking = tokio::task::spawn_blocking(move || view.account(&id, MOST_REFUSALS));
    let (clusters, pods) = (&call.settings.clusters, call.admitted.view.pods());
    let notes = clusters.note(&rule, pods).into_iter().collect();
    let silent = clusters.silent(rule.selection.cluster.as_deref(), pods, call.admitted.now);
    let Account { pods, entries, refused, same, refusals } = looking.await.map_err(Refusal::internal)?;
    let refusals = refusals.into_iter().map(|(pod, verdict)| v1::PodRefusal {
        cluster: pod.cluster.to_string(),
        namespace: pod.namespace.to_string(),
        name: pod.name.to_string(),
        reason: reason(&verdict),
    });
    let same = same.into_iter().map(|(older, pods)| v1::SamePods { rule: older.to_string(), pods: pods as u64 });
    Ok(v1::RuleStatus {
        same: same.collect(),
        pods: pods as u64,
        entries: entries as u64,
        refused: refused as u64,
        refusals: refusals.collect(),
        silent,
        notes,
        ..to_wire(&rule)
    })
}

pub(super) async fn update(call: &Call<'_>, request: v1::UpdateRuleRequest) -> Result<v1::ChangeResponse, Refusal> {
    let mut wire = request.rule.ok_or_else(|| Refusal::invalid("rule is missing"))?;
    let about = about(&wire)?;
    let work = async {
        let held = find(&call.admitted.view, &wire.id)?;
        wire.created_at = held.created_at.unix();
        let rule = read(call, wire)?;
        // What has lost its cluster can be changed in other ways.
        if rule.selection.cluster != held.selection.cluster {
            call.settings.clusters.check(&rule)?;
        }
        let rule = fitting(&call.admitted.view, rule).await?;
        let key = keys::rule(&rule.id);
        let txn = Txn::new().expect(key.clone(), held.revision).put(key, rule_to_record(&rule));
        Ok(((), call.doors.commit(txn).await?))
    };
    let ((), revision) = call.change(about, work).await?;
    Ok(v1::ChangeResponse { revision })
}

pub(super) async fn delete(call: &Call<'_>, request: v1::DeleteRuleRequest) -> Result<v1::ChangeResponse, Refusal> {
    let about = About::object(RuleId::parse(&request.id)?);
    let work = async {
        let held = find(&call.admitted.view, &request.id)?;
        let key = keys::rule(&held.id);
        Ok(((), call.doors.commit(Txn::new().expect(key.clone(), held.revision).delete(key)).await?))
    };
    let ((), revision) = call.change(about, work).await?;
    Ok(v1::ChangeResponse { revision })
}

/// Why a rule gives a pod nothing; empty: it does.
pub(super) fn reason(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Gives(_) => String::new(),
        Verdict::Same(older) => format!("the older rule {older} gives the same identity for the same selectors"),
        Verdict::Differs(mismatch) => mismatch.to_string(),
        Verdict::Refused(refused) => refused.to_string(),
        Verdict::OwnName(name) => {
            format!("the DNS name {name} is this server's own: no pod gets that. Choose other names in the rule")
        }
        Verdict::Limit => {
            "all rules together would give more entries than are allowed, and this is among the youngest: \
                           make rules narrower, or raise limits.derived_entries in the server's config"
                .to_owned()
        }
        Verdict::Operator(id) => {
            format!(
                "{id} is an operator's, by an entry marked admin: no pod gets that. Choose another ID for one of them"
            )
        }
    }
}

/// When a rule counts as created: now, and after each that there is, whatever the clock says. Which of two is the older
/// one is not left to their names.
fn youngest(view: &View, now: Timestamp) -> Timestamp {
    let newest = view.rules().map(|rule| rule.created_at).max();
    newest.map_or(now, |newest| now.max(newest.plus(Duration::from_secs(1))))
}

fn find<'a>(view: &'a View, id: &str) -> Result<&'a Arc<Held<Rule>>, Refusal> {
    let id = RuleId::parse(id)?;
    view.rule(&id)
        .ok_or_else(|| Refusal::not_found(format_args!("there is no rule {id}: list them with \"chancery rule list\"")))
}

/// What a rule must not be, and what it must not be beyond what its parts must not be.
fn read(call: &Call<'_>, wire: v1::Rule) -> Result<Rule, Refusal> {
    let bytes = wire.encoded_len();
    if bytes > MOST_BYTES {
        return Err(Refusal::invalid(format_args!(
            "the rule has {bytes} bytes: at most {MOST_BYTES} are allowed; make it two, or select by a label of namespaces"
        )));
    }
    let mut rule = Rule::try_from(wire)?;
    let view = &call.admitted.view;
    let ours = view.trust_domain();
    if rule.spiffe_id.trust_domain() != ours {
        return Err(Refusal::invalid(format_args!(
            "spiffe_id {} gives no IDs of {ours}: this server issues no others",
            rule.spiffe_id.as_str()
        )));
    }
    let clusters = call.settings.clusters.count();
    if !rule.tells_clusters_apart() && clusters > 1 {
        return Err(Refusal::invalid(format_args!(
            "this server has {clusters} clusters, and whoever may make pods in one of them would have the identities of \
             all: name one with \"--cluster\" (a rule for each), or put {{{{cluster}}}} into the template"
        )));
    }
    // With one cluster it is for that one: a second that comes later is not meant without a word.
    if !rule.tells_clusters_apart() {
        rule.selection.cluster = call.settings.clusters.only().cloned();
    }
    if let Some(fault) = rule.selectors.iter().find_map(Selector::fault) {
        return Err(Refusal::invalid(fault));
    }
    check_names(view, &rule.dns_names)?;
    check_lives(call, [rule.x509_ttl, rule.jwt_ttl, rule.wit_ttl])?;
    check_federated(view, &rule.federates_with)?;
    Ok(rule)
}

/// Refuses a DNS name of this server that every pod would get: each would be refused it.
fn check_names(view: &View, templates: &[DnsTemplate]) -> Result<(), Refusal> {
    let fixed = templates.iter().filter(|template| template.variables().next().is_none());
    let mut names = fixed.filter_map(|template| DnsName::parse(template.as_str()).ok());
    names.find(|name| is_own_name(name, &view.terms().own_names)).map_or(Ok(()), |name| {
        Err(Refusal::precondition(format_args!(
            "the DNS name {name} is this server's own: no pod gets that. Choose another name"
        )))
    })
}

/// The rule, if what all would give with it stays within the limit. Every pod is looked at: that takes a while.
async fn fitting(view: &Arc<View>, rule: Rule) -> Result<Rule, Refusal> {
    let view = Arc::clone(view);
    let trying = tokio::task::spawn_blocking(move || {
        let (key, value) = (keys::rule(&rule.id), rule_to_record(&rule));
        let commit = Commit { revision: view.revision() + 1, writes: vec![Write::Put { key, value }] };
        let (then, _) = view.apply(&commit).map_err(Refusal::internal)?;
        let before: HashSet<&RuleId> = view.rules_over_limit().collect();
        let over: Vec<&str> = then.rules_over_limit().filter(|id| !before.contains(id)).map(RuleId::as_str).collect();
        if over.is_empty() {
            return Ok(rule);
        }
        Err(Refusal::precondition(format_args!(
            "with this rule all rules together would give more than {} entries, and {} would give nothing: make it \
             narrower, or raise limits.derived_entries in the server's config",
            then.terms().most,
            over.join(", ")
        )))
    });
    trying.await.map_err(Refusal::internal)?
}

/// What a line of audit says of a rule that is to be: as flags of the command line would say it.
fn about(rule: &v1::Rule) -> Result<About, Refusal> {
    let label = |label: &v1::LabelMatch| match &label.value {
        Some(value) => format!("{}={value}", label.key),
        None => label.key.clone(),
    };
    let of = |one: &String| if one.is_empty() { Vec::new() } else { vec![one.clone()] };
    let seconds = |ttl: u64| if ttl == 0 { Vec::new() } else { vec![format!("{ttl}s")] };
    let parts = [
        ("spiffe-id", of(&rule.spiffe_id)),
        ("dns", rule.dns_names.clone()),
        ("cluster", of(&rule.cluster)),
        ("namespace", rule.namespaces.clone()),
        ("service-account", rule.service_accounts.clone()),
        ("namespace-label", rule.namespace_labels.iter().map(label).collect()),
        ("pod-label", rule.pod_labels.iter().map(label).collect()),
        ("selector", rule.selectors.clone()),
        ("federates-with", rule.federates_with.clone()),
        ("ttl", seconds(rule.x509_ttl)),
        ("jwt-ttl", seconds(rule.jwt_ttl)),
        ("wit-ttl", seconds(rule.wit_ttl)),
        ("hint", of(&rule.hint)),
        ("key-type", of(&rule.key_type)),
    ];
    let flags = parts.iter().flat_map(|(name, values)| values.iter().map(move |value| format!("--{name} {value}")));
    let jti = rule.jti.then(|| "--jti".to_owned());
    let content = flags.chain(jti).collect::<Vec<_>>().join(" ");
    Ok(About { content: Some(content), ..About::object(RuleId::parse(&rule.id)?) })
}

fn to_wire(rule: &Held<Rule>) -> v1::RuleStatus {
    v1::RuleStatus { rule: Some((&rule.value).into()), ..v1::RuleStatus::default() }
}
