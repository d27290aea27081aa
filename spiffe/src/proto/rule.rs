//! Rules on the wire and in the store.

use super::{WireError, at_most, seconds, trust_domain, v1};
use crate::entry::{MAX_FEDERATES_WITH, MAX_HINT_BYTES, RuleId};
use crate::rule::{
    self, DnsTemplate, LabelMatch, MAX_LABELS, MAX_NAMES, MAX_RULE_DNS_NAMES, MAX_RULE_SELECTORS, Rule, RuleError,
    Selection, Template,
};
use crate::selector::Selectors;
use crate::time::Timestamp;

impl TryFrom<v1::Rule> for Rule {
    type Error = WireError;

    /// Parses a whole rule. Its template has to be there: whoever creates one without fills it in before.
    fn try_from(wire: v1::Rule) -> Result<Self, WireError> {
        for (field, count, most) in [
            ("dns_names", wire.dns_names.len(), MAX_RULE_DNS_NAMES),
            ("namespaces", wire.namespaces.len(), MAX_NAMES),
            ("service_accounts", wire.service_accounts.len(), MAX_NAMES),
            ("namespace_labels", wire.namespace_labels.len(), MAX_LABELS),
            ("pod_labels", wire.pod_labels.len(), MAX_LABELS),
            ("selectors", wire.selectors.len(), MAX_RULE_SELECTORS),
            ("federates_with", wire.federates_with.len(), MAX_FEDERATES_WITH),
            ("hint", wire.hint.len(), MAX_HINT_BYTES),
        ] {
            at_most(field, count, most)?;
        }
        if wire.hint.chars().any(char::is_control) {
            return Err(WireError::Hint);
        }
        let template =
            |text: &String| DnsTemplate::parse(text).map_err(|error| WireError::Template("dns_names", error));
        let dns_names: Result<Vec<DnsTemplate>, _> = wire.dns_names.iter().map(template).collect();
        let federates_with = wire.federates_with.iter().map(|name| trust_domain("federates_with", name));
        Ok(Self {
            id: RuleId::parse(&wire.id)?,
            selection: Selection {
                cluster: rule::cluster(&wire.cluster)?,
                namespaces: rule::names("namespace", &wire.namespaces)?,
                service_accounts: rule::names("service account", &wire.service_accounts)?,
                namespace_labels: labels(&wire.namespace_labels)?,
                pod_labels: labels(&wire.pod_labels)?,
            },
            spiffe_id: Template::parse(&wire.spiffe_id).map_err(|error| WireError::Template("spiffe_id", error))?,
            dns_names: dns_names?.into(),
            selectors: Selectors::parse(&wire.selectors)?,
            x509_ttl: seconds(wire.x509_ttl),
            jwt_ttl: seconds(wire.jwt_ttl),
            wit_ttl: seconds(wire.wit_ttl),
            jti: wire.jti,
            hint: wire.hint,
            federates_with: federates_with.collect::<Result<_, _>>()?,
            key_type: (!wire.key_type.is_empty()).then(|| wire.key_type.parse()).transpose()?,
            created_at: Timestamp::from_unix(wire.created_at),
        })
    }
}

fn labels(wire: &[v1::LabelMatch]) -> Result<std::sync::Arc<[LabelMatch]>, RuleError> {
    let read = wire.iter().map(|label| LabelMatch::new(&label.key, label.value.as_deref()));
    rule::labels(read.collect::<Result<_, _>>()?)
}

impl From<&Rule> for v1::Rule {
    fn from(rule: &Rule) -> Self {
        fn texts<T: ToString>(all: impl IntoIterator<Item = T>) -> Vec<String> {
            all.into_iter().map(|one| one.to_string()).collect()
        }
        let label = |label: &LabelMatch| v1::LabelMatch {
            key: label.key().to_owned(),
            value: label.value().map(str::to_owned),
        };
        let selection = &rule.selection;
        Self {
            id: rule.id.to_string(),
            spiffe_id: rule.spiffe_id.as_str().to_owned(),
            dns_names: texts(rule.dns_names.iter().map(DnsTemplate::as_str)),
            cluster: selection.cluster.as_deref().unwrap_or_default().to_owned(),
            namespaces: texts(&*selection.namespaces),
            service_accounts: texts(&*selection.service_accounts),
            namespace_labels: selection.namespace_labels.iter().map(label).collect(),
            pod_labels: selection.pod_labels.iter().map(label).collect(),
            selectors: texts(&rule.selectors),
            x509_ttl: rule.x509_ttl.map_or(0, |ttl| ttl.as_secs()),
            jwt_ttl: rule.jwt_ttl.map_or(0, |ttl| ttl.as_secs()),
            wit_ttl: rule.wit_ttl.map_or(0, |ttl| ttl.as_secs()),
            jti: rule.jti,
            hint: rule.hint.clone(),
            federates_with: texts(&rule.federates_with),
            key_type: rule.key_type.map(|kind| kind.name().to_owned()).unwrap_or_default(),
            created_at: rule.created_at.unix(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule() -> v1::Rule {
        v1::Rule {
            id: "shop".into(),
            spiffe_id: "spiffe://example.org/{{ns}}/{{pod-label:app}}".into(),
            dns_names: vec!["{{sa}}.example.org".into()],
            cluster: "prod".into(),
            namespaces: vec!["shop".into()],
            service_accounts: vec!["db".into(), "web".into()],
            namespace_labels: vec![v1::LabelMatch { key: "team".into(), value: Some("blue".into()) }],
            pod_labels: vec![v1::LabelMatch { key: "app".into(), value: None }],
            selectors: vec!["k8s:container-name:web".into()],
            x509_ttl: 600,
            jwt_ttl: 60,
            wit_ttl: 1200,
            jti: true,
            hint: "internal".into(),
            federates_with: vec!["other.org".into()],
            key_type: "p384".into(),
            created_at: 1_000_000_000,
        }
    }

    #[test]
    fn a_rule_survives_the_wire() {
        assert_eq!(v1::Rule::from(&Rule::try_from(rule()).unwrap()), rule());
    }

    #[test]
    fn each_wrong_field_is_named() {
        let wrong = |change: fn(&mut v1::Rule)| {
            let mut wire = rule();
            change(&mut wire);
            Rule::try_from(wire).unwrap_err().to_string()
        };
        for (said, words) in [
            (wrong(|it| it.id.clear()), "the name of a rule \"\" must be"),
            (wrong(|it| it.spiffe_id = "spiffe://example.org/{{name}}".into()), "spiffe_id: template has the unknown"),
            (wrong(|it| it.dns_names = vec!["{{ns}}..org".into()]), "dns_names: template is no DNS name"),
            (wrong(|it| it.namespaces = vec!["a/b".into()]), "namespace \"a/b\""),
            (wrong(|it| it.namespaces = vec!["a".into(); 1025]), "namespaces has 1025 elements"),
            (wrong(|it| it.pod_labels[0].key.clear()), "no key of a label"),
            (wrong(|it| it.selectors = vec!["k8s".into()]), "has no colon"),
            (wrong(|it| it.hint = "a\nb".into()), "hint has a control character"),
        ] {
            assert!(said.contains(words), "{said}");
        }
    }
}
