//! Rules: which entries the pods of Kubernetes get. One rule stands for an entry for each pod that it selects.
//!
//! - A rule says nothing of a pod unless everything that it asks for is true: cluster, namespace, service account, labels.
//! - A pod without a service account, as the mirror of a static pod is, is no rule's.
//! - The entry of a pod holds below the agent of the pod's own node, and nowhere else. Its selectors are the pod's namespace
//!   and service account, each further fact that the selection or a template has used and that an agent finds, and those
//!   of the rule.
//! - What a template refuses, it refuses whole: a pod never gets a part of an entry.
//! - A rule marks nothing admin, makes no node alias, and never expires: an operator deletes it.

mod template;

use std::sync::Arc;
use std::time::Duration;

use crate::entry::{EntryId, KeyType, MAX_DNS_NAMES, RegistrationEntry, RuleId};
use crate::id::{SpiffeId, TrustDomain};
use crate::selector::{Selector, Selectors};
use crate::time::Timestamp;
pub use template::{
    DnsTemplate, Facts, MAX_LABEL_KEY_BYTES, MAX_VARIABLES, Refused, Template, TemplateError, Variable,
};

/// The most namespaces, and service accounts, that one rule names.
pub const MAX_NAMES: usize = 1024;
/// The most labels that one rule asks for, of namespaces and of pods each.
pub const MAX_LABELS: usize = 32;
/// The most further selectors of one rule.
pub const MAX_RULE_SELECTORS: usize = 64;
/// The most DNS names of one rule.
pub const MAX_RULE_DNS_NAMES: usize = MAX_DNS_NAMES;
/// The longest name of a namespace, a service account or a cluster, and the longest value of a label, in bytes.
const MAX_NAME_BYTES: usize = 253;

/// Why something is no part of a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// Not the name of a cluster.
    #[error("cluster {0:?} must be 1 to 253 of a-z, 0-9, dot and dash, as the server's config names it")]
    Cluster(String),
    /// Not the name of a namespace or service account.
    #[error("{0} {1:?} must be 1 to 253 of a-z, 0-9, dot and dash")]
    Name(&'static str, String),
    /// Not the value of a label.
    #[error("the value {1:?} of the label {0} must be at most 63 letters, digits, dots, dashes and underscores")]
    LabelValue(String, String),
    /// Not the key of a label.
    #[error(transparent)]
    LabelKey(#[from] TemplateError),
    /// One label, twice.
    #[error("the label {0} is asked for twice: a label has one value")]
    Twice(String),
}

/// What a label has to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelMatch {
    key: Arc<str>,
    value: Option<Arc<str>>,
}

impl LabelMatch {
    /// The label `key` has to have this value; `None`: any, but it has to be there.
    pub fn new(key: &str, value: Option<&str>) -> Result<Self, RuleError> {
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        if let Some(wrong) = value.filter(|value| value.len() > 63 || !value.bytes().all(legal)) {
            let shown = |text: &str| text.chars().take(80).collect();
            return Err(RuleError::LabelValue(shown(key), shown(wrong)));
        }
        Ok(Self { key: template::label_key(key)?, value: value.map(Arc::from) })
    }

    /// Which label.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Its value; `None`: any.
    pub fn value(&self) -> Option<&str> {
        self.value.as_deref()
    }

    fn matches(&self, found: Option<&String>) -> bool {
        found.is_some_and(|found| self.value().is_none_or(|value| value == found))
    }
}

/// What a pod has to be for a rule to say anything of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// The cluster; `None`: every one.
    pub cluster: Option<Arc<str>>,
    /// Its namespace, one of these; none: any. Sorted.
    pub namespaces: Arc<[Arc<str>]>,
    /// Its service account, one of these; none: any. Sorted.
    pub service_accounts: Arc<[Arc<str>]>,
    /// What the labels of its namespace are.
    pub namespace_labels: Arc<[LabelMatch]>,
    /// What its own labels are.
    pub pod_labels: Arc<[LabelMatch]>,
}

/// One rule. See the head of this file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its name.
    pub id: RuleId,
    /// Which pods it is for.
    pub selection: Selection,
    /// The identity that they get.
    pub spiffe_id: Template,
    /// The DNS names in their X.509-SVIDs.
    pub dns_names: Arc<[DnsTemplate]>,
    /// What must be true of the process too, as its agent finds it.
    pub selectors: Selectors,
    /// As of an entry.
    pub x509_ttl: Option<Duration>,
    /// As of an entry.
    pub jwt_ttl: Option<Duration>,
    /// As of an entry.
    pub wit_ttl: Option<Duration>,
    /// As of an entry.
    pub jti: bool,
    /// As of an entry.
    pub hint: String,
    /// As of an entry.
    pub federates_with: Vec<TrustDomain>,
    /// As of an entry.
    pub key_type: Option<KeyType>,
    /// When it was created: of two rules that select a pod, the older one gives the default identity.
    pub created_at: Timestamp,
}

/// Why a rule says nothing of a pod.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// Another cluster.
    #[error("the rule is for cluster {0}")]
    Cluster(Arc<str>),
    /// Another namespace.
    #[error("its namespace is not among those of the rule")]
    Namespace,
    /// None: a mirror of a static pod, which the kubelet runs by itself.
    #[error("it has no service account, as the mirror of a static pod: no rule is for it")]
    NoServiceAccount,
    /// Another service account.
    #[error("its service account is not among those of the rule")]
    ServiceAccount,
    /// A label is not there, or another.
    #[error("{}", label(.of, .wanted, .found.as_deref()))]
    Label {
        /// `namespace` or `pod`.
        of: &'static str,
        /// What the rule asks for.
        wanted: LabelMatch,
        /// What is there.
        found: Option<String>,
    },
}

fn label(of: &str, wanted: &LabelMatch, found: Option<&str>) -> String {
    let key = wanted.key();
    match (found, wanted.value()) {
        (None, None) => format!("its {of} has no label {key}"),
        (None, Some(value)) => format!("its {of} has no label {key}, and the rule asks for {value:?}"),
        (Some(found), value) => {
            format!("the label {key} of its {of} is {found:?}, and the rule asks for {:?}", value.unwrap_or_default())
        }
    }
}

impl Rule {
    /// Whether the rule is for what has these facts, or why not.
    pub fn selects(&self, facts: &Facts<'_>) -> Result<(), Mismatch> {
        let Selection { cluster, namespaces, service_accounts, namespace_labels, pod_labels } = &self.selection;
        if let Some(cluster) = cluster.as_ref().filter(|cluster| ***cluster != *facts.cluster) {
            return Err(Mismatch::Cluster(Arc::clone(cluster)));
        }
        if facts.service_account.is_empty() {
            return Err(Mismatch::NoServiceAccount);
        }
        let names = |names: &[Arc<str>], name: &str| {
            names.is_empty() || names.binary_search_by(|known| (**known).cmp(name)).is_ok()
        };
        if !names(namespaces, facts.namespace) {
            return Err(Mismatch::Namespace);
        }
        if !names(service_accounts, facts.service_account) {
            return Err(Mismatch::ServiceAccount);
        }
        for (of, wanted, found) in
            [("namespace", namespace_labels, facts.namespace_labels), ("pod", pod_labels, facts.pod_labels)]
        {
            if let Some(wrong) = wanted.iter().find(|wanted| !wanted.matches(found.get(wanted.key()))) {
                let found = found.get(wrong.key()).cloned();
                return Err(Mismatch::Label { of, wanted: wrong.clone(), found });
            }
        }
        Ok(())
    }

    /// The entry of a pod that is selected, below the agent of its node. Its ID is what `name` makes of the rest.
    pub fn entry(
        &self,
        facts: &Facts<'_>,
        agent: &SpiffeId,
        name: impl FnOnce(&RegistrationEntry) -> EntryId,
    ) -> Result<RegistrationEntry, Refused> {
        let spiffe_id = self.spiffe_id.render(facts)?;
        let dns_names = self.dns_names.iter().map(|template| template.render(facts));
        let mut entry = RegistrationEntry {
            id: EntryId::derived([0; 32]),
            spiffe_id,
            parent: agent.clone(),
            dns_names: dns_names.collect::<Result<_, _>>()?,
            selectors: self.selectors_for(facts)?,
            x509_ttl: self.x509_ttl,
            jwt_ttl: self.jwt_ttl,
            wit_ttl: self.wit_ttl,
            jti: self.jti,
            hint: self.hint.clone(),
            admin: false,
            federates_with: self.federates_with.clone(),
            expires_at: None,
            key_type: self.key_type,
            created_at: self.created_at,
            rule: Some(self.id.clone()),
        };
        entry.id = name(&entry);
        Ok(entry)
    }

    /// Whether this rule could give `id` to some pod, as its template and its selection are.
    pub fn could_give(&self, id: &SpiffeId) -> bool {
        let Selection { cluster, namespaces, service_accounts, .. } = &self.selection;
        self.spiffe_id.could_give(id, |variable| match variable {
            Variable::Cluster => cluster.as_ref().map_or(&[], std::slice::from_ref),
            Variable::Namespace => namespaces,
            Variable::ServiceAccount => service_accounts,
            _ => &[],
        })
    }

    /// Whether no two clusters get one identity by it: it is for one, or its template says which.
    pub fn tells_clusters_apart(&self) -> bool {
        self.selection.cluster.is_some() || self.spiffe_id.variables().any(|variable| *variable == Variable::Cluster)
    }

    /// Whether this rule and `other` could give one identity; of itself it is true.
    pub fn may_meet(&self, other: &Self) -> bool {
        self.spiffe_id.may_meet(&other.spiffe_id)
    }

    /// What the agent has to find: everything that the entry rests on, but for what the entry's parent says (the cluster
    /// and the node) and what the namespace says (its labels).
    fn selectors_for(&self, facts: &Facts<'_>) -> Result<Selectors, Refused> {
        let mut texts = vec![format!("k8s:ns:{}", facts.namespace), format!("k8s:sa:{}", facts.service_account)];
        let mut labels: Vec<&str> = self.selection.pod_labels.iter().map(LabelMatch::key).collect();
        let of_names = self.dns_names.iter().flat_map(DnsTemplate::variables);
        for variable in self.spiffe_id.variables().chain(of_names) {
            match variable {
                Variable::PodLabel(key) => labels.push(key),
                Variable::PodName => texts.push(format!("k8s:pod-name:{}", facts.pod_name)),
                Variable::PodUid => texts.push(format!("k8s:pod-uid:{}", facts.pod_uid)),
                Variable::Namespace
                | Variable::ServiceAccount
                | Variable::Cluster
                | Variable::NodeName
                | Variable::NamespaceLabel(_) => {}
            }
        }
        for key in labels {
            if let Some(value) = facts.pod_labels.get(key) {
                texts.push(format!("k8s:pod-label:{key}:{value}"));
            }
        }
        let own = self.selectors.iter().cloned().map(Ok);
        let all: Result<Vec<Selector>, _> = texts.iter().map(|text| Selector::parse(text)).chain(own).collect();
        all.and_then(Selectors::new).map_err(|_| Refused::Selectors)
    }
}

/// A sorted list of names as Kubernetes writes them, each once; `what` they are is for the message.
pub(crate) fn names(what: &'static str, texts: &[String]) -> Result<Arc<[Arc<str>]>, RuleError> {
    if let Some(wrong) = texts.iter().find(|text| !is_name(text)) {
        return Err(RuleError::Name(what, wrong.chars().take(80).collect()));
    }
    let mut names: Vec<Arc<str>> = texts.iter().map(|text| text.as_str().into()).collect();
    names.sort_unstable();
    names.dedup();
    Ok(names.into())
}

/// The name of a cluster; empty: every cluster.
pub(crate) fn cluster(text: &str) -> Result<Option<Arc<str>>, RuleError> {
    match text {
        "" => Ok(None),
        name if is_name(name) => Ok(Some(name.into())),
        wrong => Err(RuleError::Cluster(wrong.chars().take(80).collect())),
    }
}

/// Labels, no key of them twice.
pub(crate) fn labels(labels: Vec<LabelMatch>) -> Result<Arc<[LabelMatch]>, RuleError> {
    for (at, label) in labels.iter().enumerate() {
        if labels.iter().take(at).any(|before| before.key == label.key) {
            return Err(RuleError::Twice(label.key.to_string()));
        }
    }
    Ok(labels.into())
}

fn is_name(text: &str) -> bool {
    let legal = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-');
    (1..=MAX_NAME_BYTES).contains(&text.len()) && text.bytes().all(legal)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn rule(change: impl FnOnce(&mut Rule)) -> Rule {
        let mut rule = Rule {
            id: RuleId::parse("pods").unwrap(),
            selection: Selection::default(),
            spiffe_id: Template::parse("spiffe://example.org/ns/{{ns}}/sa/{{sa}}").unwrap(),
            dns_names: Arc::new([]),
            selectors: Selectors::default(),
            x509_ttl: Some(Duration::from_secs(600)),
            jwt_ttl: None,
            wit_ttl: None,
            jti: false,
            hint: String::new(),
            federates_with: vec![],
            key_type: None,
            created_at: Timestamp::from_unix(7),
        };
        change(&mut rule);
        rule
    }

    fn with_facts<T>(look: impl FnOnce(&Facts<'_>) -> T) -> T {
        let labels = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
        look(&Facts {
            cluster: "prod",
            namespace: "shop",
            namespace_labels: &labels("team", "blue"),
            service_account: "web",
            pod_name: "web-1",
            pod_uid: "u1",
            pod_labels: &labels("app", "web"),
            node_name: "node-1",
        })
    }

    fn entry(rule: &Rule) -> Result<RegistrationEntry, Refused> {
        let agent = SpiffeId::parse("spiffe://example.org/chancery/agent/k8s_psat/prod/n1").unwrap();
        with_facts(|facts| rule.entry(facts, &agent, |_| EntryId::derived([1; 32])))
    }

    fn selectors(rule: &Rule) -> String {
        entry(rule).unwrap().selectors.to_string()
    }

    #[test]
    fn a_rule_selects_by_everything_that_it_asks_for() {
        let told = |change: fn(&mut Selection)| {
            let rule = rule(|rule| change(&mut rule.selection));
            with_facts(|facts| rule.selects(facts)).map_err(|mismatch| mismatch.to_string())
        };
        let label = |key, value| -> Arc<[LabelMatch]> { Arc::new([LabelMatch::new(key, value).unwrap()]) };
        assert_eq!(told(|_| ()), Ok(()));
        assert_eq!(
            told(|it| {
                it.cluster = Some("prod".into());
                it.namespaces = names("namespace", &["z".into(), "shop".into()]).unwrap();
                it.service_accounts = names("service account", &["web".into()]).unwrap();
            }),
            Ok(())
        );
        let labelled = rule(|rule| {
            rule.selection.namespace_labels = label("team", None);
            rule.selection.pod_labels = label("app", Some("web"));
        });
        assert_eq!(with_facts(|facts| labelled.selects(facts)), Ok(()));
        assert_eq!(told(|it| it.cluster = Some("test".into())).unwrap_err(), "the rule is for cluster test");
        let elsewhere = told(|it| it.namespaces = Arc::new(["shop2".into()])).unwrap_err();
        assert_eq!(elsewhere, "its namespace is not among those of the rule");
        assert!(told(|it| it.service_accounts = Arc::new(["db".into()])).is_err());
        for (wanted, words) in [
            (label("app", Some("db")), "the label app of its pod is \"web\", and the rule asks for \"db\""),
            (label("tier", Some("db")), "its pod has no label tier, and the rule asks for \"db\""),
            (label("tier", None), "its pod has no label tier"),
        ] {
            let rule = rule(|rule| rule.selection.pod_labels = wanted);
            assert_eq!(with_facts(|facts| rule.selects(facts)).unwrap_err().to_string(), words);
        }
    }

    #[test]
    fn an_entry_rests_on_each_fact_that_was_used() {
        let made = entry(&rule(|_| ())).unwrap();
        assert_eq!(made.spiffe_id.as_str(), "spiffe://example.org/ns/shop/sa/web");
        assert_eq!((made.admin, made.expires_at, made.x509_ttl), (false, None, Some(Duration::from_secs(600))));
        assert_eq!((made.rule.unwrap().as_str(), made.created_at), ("pods", Timestamp::from_unix(7)));
        assert_eq!(made.selectors.to_string(), "k8s:ns:shop, k8s:sa:web");
        let by_label = rule(|rule| {
            rule.spiffe_id = Template::parse("spiffe://example.org/{{cluster}}/{{pod-label:app}}/{{pod-uid}}").unwrap();
            rule.dns_names = Arc::new([DnsTemplate::parse("{{pod-name}}.{{ns-label:team}}.org").unwrap()]);
            rule.selectors = Selectors::parse(["k8s:container-name:web"]).unwrap();
        });
        assert_eq!(
            selectors(&by_label),
            "k8s:container-name:web, k8s:ns:shop, k8s:pod-label:app:web, k8s:pod-name:web-1, k8s:pod-uid:u1, k8s:sa:web"
        );
        assert_eq!(entry(&by_label).unwrap().dns_names[0].as_str(), "web-1.blue.org");
        let exists = LabelMatch::new("app", None).unwrap();
        let selected = rule(|rule| rule.selection.pod_labels = Arc::new([exists]));
        assert_eq!(selectors(&selected), "k8s:ns:shop, k8s:pod-label:app:web, k8s:sa:web");
    }

    #[test]
    fn a_refused_dns_name_refuses_the_whole_entry() {
        let missing = rule(|rule| rule.dns_names = Arc::new([DnsTemplate::parse("{{pod-label:x}}.org").unwrap()]));
        assert!(matches!(entry(&missing), Err(Refused::Missing(_))));
    }

    #[test]
    fn parts_that_kubernetes_could_not_have_are_refused() {
        assert!(
            LabelMatch::new("app", Some("a b")).unwrap_err().to_string().contains("the value \"a b\" of the label app")
        );
        assert!(LabelMatch::new("a b", None).is_err());
        assert_eq!(cluster("Prod").unwrap_err().to_string().find("cluster \"Prod\""), Some(0));
        assert!(names("namespace", &["*".into()]).unwrap_err().to_string().contains("namespace \"*\""));
        let twice = vec![LabelMatch::new("a", None).unwrap(), LabelMatch::new("a", Some("1")).unwrap()];
        assert!(labels(twice).unwrap_err().to_string().contains("asked for twice"));
    }
}
