//! The flags of `chancery rule create|update` that say what is in a rule.

use std::time::Duration;

use clap::{Args, ValueEnum};
use spiffe::entry::KeyType;
use spiffe::id::TrustDomain;
use spiffe::proto::v1;
use spiffe::rule::{DnsTemplate, LabelMatch, Template};
use spiffe::selector::Selector;

#[derive(Debug, Args)]
pub(crate) struct Fields {
    /// The identity that each pod gets, a template. When a rule is created without: that of its namespace and service
    /// account, .../ns/{{ns}}/sa/{{sa}}.
    #[arg(long, value_name = "TEMPLATE", value_parser = |text: &str| Template::parse(text))]
    spiffe_id: Option<Template>,
    /// Only pods of this cluster, by the name that the server's config gives it.
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// Only pods of this namespace; may be repeated.
    #[arg(long = "namespace", value_name = "NAME")]
    namespaces: Vec<String>,
    /// Only pods of this service account; may be repeated.
    #[arg(long = "service-account", value_name = "NAME")]
    service_accounts: Vec<String>,
    /// Only pods whose namespace has this label (with any value, where none is given); all that are given.
    #[arg(long = "namespace-label", value_name = "KEY[=VALUE]", value_parser = label)]
    namespace_labels: Vec<v1::LabelMatch>,
    /// Only pods that have this label (with any value, where none is given); all that are given.
    #[arg(long = "pod-label", value_name = "KEY[=VALUE]", value_parser = label)]
    pod_labels: Vec<v1::LabelMatch>,
    /// What must be true of the process too, for example k8s:container-name:web; may be repeated.
    #[arg(long = "selector", value_name = "TYPE:VALUE")]
    selectors: Vec<Selector>,
    /// A DNS name in the SVIDs, a template; may be repeated, the first is also the common name.
    #[arg(long = "dns", value_name = "TEMPLATE", value_parser = |text: &str| DnsTemplate::parse(text))]
    dns_names: Vec<DnsTemplate>,
    /// How long X.509-SVIDs live; 0s: as the server's config says.
    #[arg(long, visible_alias = "ttl", value_name = "DURATION", value_parser = spiffe::settings::parse_duration)]
    x509_ttl: Option<Duration>,
    /// How long JWT-SVIDs live; 0s: as the server's config says.
    #[arg(long, value_name = "DURATION", value_parser = spiffe::settings::parse_duration)]
    jwt_ttl: Option<Duration>,
    /// How long WIT-SVIDs live; 0s: as the server's config says.
    #[arg(long, value_name = "DURATION", value_parser = spiffe::settings::parse_duration)]
    wit_ttl: Option<Duration>,
    /// Whether JWT-SVIDs have a jti: each is then made anew, and handed out once.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "true|false")]
    jti: Option<bool>,
    /// A word to the workload on what this identity is for.
    #[arg(long, value_name = "TEXT")]
    hint: Option<String>,
    /// A foreign trust domain whose bundle the pods get; may be repeated.
    #[arg(long, value_name = "TRUST_DOMAIN")]
    federates_with: Vec<TrustDomain>,
    /// The kind of key of the SVIDs: p256, p384 or ed25519.
    #[arg(long, value_name = "KIND")]
    key_type: Option<KeyType>,
}

/// What a rule may have none of any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// No cluster: pods of every one.
    Cluster,
    /// No namespaces: pods of every one.
    Namespace,
    /// No service accounts: pods of every one.
    ServiceAccount,
    /// No labels of namespaces.
    NamespaceLabel,
    /// No labels of pods.
    PodLabel,
    /// No further selectors.
    Selector,
    /// No DNS names.
    Dns,
    /// No foreign trust domains.
    FederatesWith,
}

impl Kind {
    /// Takes it out of `rule`.
    pub(crate) fn clear(self, rule: &mut v1::Rule) {
        match self {
            Self::Cluster => rule.cluster.clear(),
            Self::Namespace => rule.namespaces.clear(),
            Self::ServiceAccount => rule.service_accounts.clear(),
            Self::NamespaceLabel => rule.namespace_labels.clear(),
            Self::PodLabel => rule.pod_labels.clear(),
            Self::Selector => rule.selectors.clear(),
            Self::Dns => rule.dns_names.clear(),
            Self::FederatesWith => rule.federates_with.clear(),
        }
    }
}

fn label(text: &str) -> Result<v1::LabelMatch, String> {
    let (key, value) = text.split_once('=').map_or((text, None), |(key, value)| (key, Some(value)));
    LabelMatch::new(key, value).map_err(|error| error.to_string())?;
    Ok(v1::LabelMatch { key: key.to_owned(), value: value.map(str::to_owned) })
}

impl Fields {
    /// Lays what was given over `rule`.
    pub(crate) fn over(&self, rule: &mut v1::Rule) {
        fn all<T: Clone>(given: &[T], field: &mut Vec<T>) {
            if !given.is_empty() {
                *field = given.to_vec();
            }
        }
        fn texts<T>(given: &[T], field: &mut Vec<String>, text: impl Fn(&T) -> String) {
            if !given.is_empty() {
                *field = given.iter().map(text).collect();
            }
        }
        if let Some(template) = &self.spiffe_id {
            rule.spiffe_id = template.as_str().to_owned();
        }
        if let Some(cluster) = &self.cluster {
            rule.cluster.clone_from(cluster);
        }
        all(&self.namespaces, &mut rule.namespaces);
        all(&self.service_accounts, &mut rule.service_accounts);
        all(&self.namespace_labels, &mut rule.namespace_labels);
        all(&self.pod_labels, &mut rule.pod_labels);
        texts(&self.selectors, &mut rule.selectors, ToString::to_string);
        texts(&self.dns_names, &mut rule.dns_names, |template| template.as_str().to_owned());
        texts(&self.federates_with, &mut rule.federates_with, ToString::to_string);
        for (given, field) in
            [(self.x509_ttl, &mut rule.x509_ttl), (self.jwt_ttl, &mut rule.jwt_ttl), (self.wit_ttl, &mut rule.wit_ttl)]
        {
            if let Some(ttl) = given {
                *field = ttl.as_secs();
            }
        }
        if let Some(jti) = self.jti {
            rule.jti = jti;
        }
        if let Some(hint) = &self.hint {
            rule.hint.clone_from(hint);
        }
        if let Some(key_type) = self.key_type {
            rule.key_type = key_type.to_string();
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        fields: Fields,
    }

    #[test]
    fn what_is_given_is_laid_over_a_rule() {
        let over = |line: &str, rule: &v1::Rule| {
            let mut rule = rule.clone();
            Line::try_parse_from(line.split(' ')).unwrap().fields.over(&mut rule);
            rule
        };
        let made = over(
            "r --spiffe-id spiffe://example.org/{{ns}} --namespace a --namespace b --pod-label app=web --pod-label tier \
             --ttl 10m --jti",
            &v1::Rule::default(),
        );
        assert_eq!((made.spiffe_id.as_str(), made.x509_ttl, made.jti), ("spiffe://example.org/{{ns}}", 600, true));
        assert_eq!(made.namespaces, ["a", "b"]);
        let values: Vec<Option<&str>> = made.pod_labels.iter().map(|label| label.value.as_deref()).collect();
        assert_eq!(values, [Some("web"), None]);
        let mut changed = over("r --namespace c", &made);
        assert_eq!((changed.namespaces.len(), changed.x509_ttl, changed.pod_labels.len()), (1, 600, 2));
        Kind::PodLabel.clear(&mut changed);
        assert!(changed.pod_labels.is_empty());
        let wrong = Line::try_parse_from(["r", "--spiffe-id", "spiffe://example.org/{{name}}"]).err().unwrap();
        assert!(wrong.to_string().contains("unknown variable \"name\": use ns, sa"), "{wrong}");
        assert!(Line::try_parse_from(["r", "--pod-label", "a b"]).is_err());
    }
}
