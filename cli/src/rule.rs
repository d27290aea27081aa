//! `chancery rule`: which entries the pods of Kubernetes get.

use std::time::Duration;

use clap::Subcommand;
use spiffe::entry::RuleId;
use spiffe::proto::v1;
use spiffe::time::Timestamp;

use crate::args::Globals;
use crate::connect::{self, Admin};
use crate::documents::{Named, Rule, Rules, Silent};
use crate::exit::{Failure, Outcome};
use crate::output::{Output, Sheet, Table, plain};
use crate::rule_fields::{Fields, Kind};
use crate::wait::Wait;
use crate::{moments, refusal};

/// What can be done with rules.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Give every pod that the flags select an entry from now on.
    #[command(after_help = "\
Examples:
  chancery rule create pods --wait
  chancery rule create shop --namespace shop --pod-label app --dns {{pod-label:app}}.shop.example.org \\
      --spiffe-id spiffe://example.org/shop/{{pod-label:app}}
  chancery rule create db --service-account db --selector k8s:container-name:postgres --ttl 30m

In a template {{ns}}, {{sa}}, {{cluster}}, {{pod-name}}, {{pod-uid}}, {{node-name}}, {{pod-label:KEY}} and {{ns-label:KEY}}
stand for what is true of the pod. A value that cannot stand in a SPIFFE ID or a DNS name is refused, not changed:
`chancery rule show` and `chancery explain` say so.")]
    Create {
        /// Its name.
        id: RuleId,
        #[command(flatten)]
        fields: Box<Fields>,
        #[command(flatten)]
        wait: Wait,
    },
    /// List the rules, and how many entries each gives.
    #[command(after_help = "\
Example:
  chancery rule list")]
    List,
    /// Show one rule, the pods that it selects, and those that a template refuses.
    #[command(after_help = "\
Example:
  chancery rule show pods")]
    Show {
        /// Its name.
        id: RuleId,
    },
    /// Change a rule; what is not given stays.
    #[command(after_help = "\
Examples:
  chancery rule update shop --ttl 30m --wait
  chancery rule update shop --namespace shop --namespace shop-test --none pod-label

A flag that may be repeated replaces all values of before.")]
    Update {
        /// Its name.
        id: RuleId,
        #[command(flatten)]
        fields: Box<Fields>,
        /// Nothing of this kind any more; may be repeated.
        #[arg(long, value_enum, value_name = "KIND")]
        none: Vec<Kind>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Delete a rule: its entries are gone with it.
    #[command(after_help = "\
Example:
  chancery rule delete shop --wait")]
    Delete {
        /// Its name.
        id: RuleId,
        #[command(flatten)]
        wait: Wait,
    },
}

impl Verb {
    /// Does it.
    pub(crate) async fn run(self, globals: &Globals) -> Outcome {
        let output = globals.output;
        match self {
            Self::Create { id, fields, wait } => {
                let mut rule = v1::Rule { id: id.to_string(), ..v1::Rule::default() };
                fields.over(&mut rule);
                let mut admin = connect::admin(globals).await?;
                let made = admin.create_rule(v1::CreateRuleRequest { rule: Some(rule) }).await;
                let revision = made.map_err(|status| refusal::failure(&status))?.into_inner().revision;
                // The rule is made, whatever is to be known of it.
                let status = if output == Output::Text { show(&mut admin, &id).await.ok() } else { None };
                let said = |named: &Named| {
                    let name = plain(&named.id);
                    let now = status.as_ref().map_or_else(String::new, |v1::RuleStatus { pods, entries, .. }| {
                        format!(" (pods now: {pods}, entries: {entries})")
                    });
                    format!("rule {name} is in force{now}: \"chancery rule show {name}\" says for which pods")
                };
                let outcome = wait.and_show(&mut admin, output, (Named { id: id.to_string() }, revision), said).await;
                status.iter().flat_map(|status| &status.notes).for_each(|note| remark(note));
                outcome
            }
            Self::List => {
                let answer = connect::admin(globals).await?.list_rules(v1::ListRulesRequest {}).await;
                let found = answer.map_err(|status| refusal::failure(&status))?.into_inner();
                let text = table(&found.rules);
                let notes = [found.notes.clone(), Silent::notes(&found.silent, moments::now())].concat();
                let rules = found.rules.into_iter().map(|status| Rule::from(status).without_pods()).collect();
                output.show(&Rules { rules, silent: Silent::all(found.silent), notes: found.notes }, || text)?;
                if output == Output::Text {
                    notes.iter().for_each(|note| remark(note));
                }
                Ok(())
            }
            Self::Show { id } => {
                let status = show(&mut connect::admin(globals).await?, &id).await?;
                let text = sheet(&status, moments::now());
                output.show(&Rule::from(status), || text)
            }
            Self::Update { id, fields, none, wait } => {
                let mut admin = connect::admin(globals).await?;
                let before = show(&mut admin, &id).await?.rule.unwrap_or_default();
                let mut rule = before.clone();
                none.into_iter().for_each(|kind| kind.clear(&mut rule));
                fields.over(&mut rule);
                if rule == before {
                    return Err(Failure::Usage(format!("no flag says what to change of the rule {id}")));
                }
                let changed = admin.update_rule(v1::UpdateRuleRequest { rule: Some(rule) }).await;
                let revision = changed.map_err(|status| refusal::failure(&status))?.into_inner().revision;
                let said = |named: &Named| format!("rule {} is changed", plain(&named.id));
                wait.and_show(&mut admin, output, (Named { id: id.to_string() }, revision), said).await
            }
            Self::Delete { id, wait } => {
                let mut admin = connect::admin(globals).await?;
                let deleted = admin.delete_rule(v1::DeleteRuleRequest { id: id.to_string() }).await;
                let revision = deleted.map_err(|status| refusal::failure(&status))?.into_inner().revision;
                let said = |named: &Named| format!("rule {} and its entries are gone", plain(&named.id));
                wait.and_show(&mut admin, output, (Named { id: id.to_string() }, revision), said).await
            }
        }
    }
}

/// Says what is to be known, beside what was asked for.
fn remark(note: &str) {
    crate::output::remark(&format!("note: {note}"));
}

async fn show(admin: &mut Admin, id: &RuleId) -> Outcome<v1::RuleStatus> {
    let answer = admin.show_rule(v1::ShowRuleRequest { id: id.to_string() }).await;
    Ok(answer.map_err(|status| refusal::failure(&status))?.into_inner())
}

/// `app=web`, or `app` for any value.
fn label(label: &v1::LabelMatch) -> String {
    match &label.value {
        Some(value) => format!("{}={value}", label.key),
        None => label.key.clone(),
    }
}

/// Whom a rule is for, in one line.
fn selection(rule: &v1::Rule) -> String {
    let mut parts = Vec::new();
    if !rule.cluster.is_empty() {
        parts.push(format!("cluster {}", rule.cluster));
    }
    let labels = |labels: &[v1::LabelMatch]| labels.iter().map(label).collect::<Vec<_>>();
    for (name, values) in [
        ("ns", rule.namespaces.clone()),
        ("sa", rule.service_accounts.clone()),
        ("ns label", labels(&rule.namespace_labels)),
        ("pod label", labels(&rule.pod_labels)),
    ] {
        if !values.is_empty() {
            parts.push(format!("{name} {}", values.join(" ")));
        }
    }
    if parts.is_empty() { "every pod".to_owned() } else { parts.join(", ") }
}

fn table(rules: &[v1::RuleStatus]) -> String {
    let mut table = Table::new(["NAME", "ENTRIES", "SPIFFE ID", "PODS"]);
    for status in rules {
        let rule = status.rule.clone().unwrap_or_default();
        table.row([rule.id.clone(), status.entries.to_string(), rule.spiffe_id.clone(), selection(&rule)]);
    }
    table.text_or("no rules")
}

fn sheet(status: &v1::RuleStatus, now: Timestamp) -> String {
    let rule = status.rule.clone().unwrap_or_default();
    let length = |seconds: u64| match seconds {
        0 => String::new(),
        seconds => spiffe::settings::write_duration(Duration::from_secs(seconds)),
    };
    let created = Timestamp::from_unix(rule.created_at);
    let refusals = status.refusals.iter().map(|one| format!("{}/{}: {}", one.namespace, one.name, one.reason));
    let same = status.same.iter().map(|v1::SamePods { rule: older, pods }| {
        format!("{pods}: the older rule {older} gives these pods the same identity: delete {older}, or narrow it")
    });
    let more = status.refused.saturating_sub(status.refusals.len() as u64);
    Sheet::default()
        .line("name", &rule.id)
        .line("spiffe id", &rule.spiffe_id)
        .lines("dns names", &rule.dns_names)
        .line("for", selection(&rule))
        .lines("selectors", &rule.selectors)
        .line("x509 ttl", length(rule.x509_ttl))
        .line("jwt ttl", length(rule.jwt_ttl))
        .line("wit ttl", length(rule.wit_ttl))
        .line("jti", if rule.jti { "yes" } else { "" })
        .line("hint", &rule.hint)
        .lines("federates with", &rule.federates_with)
        .line("key type", &rule.key_type)
        .line("created", format!("{} ({created})", moments::relative(created, now)))
        .lines("note", [status.notes.clone(), Silent::notes(&status.silent, now)].concat())
        .line("pods", status.pods.to_string())
        .line("entries", status.entries.to_string())
        .lines("same", same)
        .line("refused", status.refused.to_string())
        .lines("refusals", refusals)
        .line("", if more > 0 { format!("and {more} more") } else { String::new() })
        .text()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_as_text() {
        let rule = v1::Rule {
            id: "shop".into(),
            spiffe_id: "spiffe://example.org/{{ns}}".into(),
            namespaces: vec!["shop".into(), "test".into()],
            pod_labels: vec![v1::LabelMatch { key: "app".into(), value: Some("web".into()) }],
            created_at: 1_000_000,
            ..v1::Rule::default()
        };
        let refusals = vec![v1::PodRefusal {
            cluster: "prod".into(),
            namespace: "shop".into(),
            name: "web-1".into(),
            reason: "{{ns}} is \"\"".into(),
        }];
        let silent = |cluster: &str, heard_at| v1::SilentCluster { cluster: cluster.into(), heard_at };
        let silent = vec![silent("prod", 999_060), silent("test", 0)];
        let same = vec![v1::SamePods { rule: "zz".into(), pods: 2 }];
        let notes = vec!["rule shop is for cluster main, which the config does not have".to_owned()];
        let status =
            v1::RuleStatus { rule: Some(rule), pods: 7, entries: 4, refused: 3, refusals, silent, notes, same };
        let row = table(std::slice::from_ref(&status));
        assert!(
            row.ends_with("shop  4        spiffe://example.org/{{ns}}  ns shop test, pod label app=web\n"),
            "{row}"
        );
        let sheet = sheet(&status, Timestamp::from_unix(1_000_060));
        let older = "same       2: the older rule zz gives these pods the same identity: delete zz, or narrow it\n";
        assert!(sheet.contains(older), "{sheet}");
        assert!(sheet.contains("refusals   shop/web-1: {{ns}} is \"\"\n           and 2 more\n"), "{sheet}");
        assert!(sheet.contains("created    60s ago"), "{sheet}");
        assert!(
            sheet.contains(
                "note       rule shop is for cluster main, which the config does not have\n           cluster prod was last heard of 16m ago: what is said of its pods is as it was then\n"
            ),
            "{sheet}"
        );
        assert!(
            sheet.contains("           cluster test has not told of its pods since this server has started"),
            "{sheet}"
        );
        assert_eq!(selection(&v1::Rule::default()), "every pod");
    }
}
