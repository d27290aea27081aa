//! Rules, and what they come to for a pod.

use serde::Serialize;
use spiffe::proto::v1;
use spiffe::time::Timestamp;

use super::{Entry, length};
use crate::moments::{self, Moment};

/// `rule show`, and an element of `rule list`.
#[derive(Debug, Serialize)]
pub(crate) struct Rule {
    /// Its name.
    pub(crate) id: String,
    /// The template of the identities.
    pub(crate) spiffe_id: String,
    /// Templates of DNS names.
    pub(crate) dns_names: Vec<String>,
    /// The cluster; empty: every one.
    pub(crate) cluster: String,
    /// None: every one.
    pub(crate) namespaces: Vec<String>,
    /// None: every one.
    pub(crate) service_accounts: Vec<String>,
    /// What the labels of the namespace have to be.
    pub(crate) namespace_labels: Vec<Label>,
    /// What the labels of the pod have to be.
    pub(crate) pod_labels: Vec<Label>,
    /// Further selectors.
    pub(crate) selectors: Vec<String>,
    /// How long X.509-SVIDs live; null: as the server's config says.
    pub(crate) x509_ttl: Option<String>,
    /// How long JWT-SVIDs live; null: as the server's config says.
    pub(crate) jwt_ttl: Option<String>,
    /// How long WIT-SVIDs live; null: as the server's config says.
    pub(crate) wit_ttl: Option<String>,
    /// Whether JWT-SVIDs have a `jti`.
    pub(crate) jti: bool,
    /// A word to the workload; empty: none.
    pub(crate) hint: String,
    /// Trust domains whose bundles the pods get.
    pub(crate) federates_with: Vec<String>,
    /// `p256`, `p384` or `ed25519`; null: as the agent's config says.
    pub(crate) key_type: Option<String>,
    /// When it was created.
    pub(crate) created_at: Moment,
    /// How many entries it gives.
    pub(crate) entries: u64,
    /// The pods that it selects; only in `rule show`.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(crate) selected: Option<Selected>,
}

/// What a rule has come to.
#[derive(Debug, Serialize)]
pub(crate) struct Selected {
    /// How many pods it selects.
    pub(crate) pods: u64,
    /// Older rules that give pods of its the same identity already.
    pub(crate) same: Vec<Same>,
    /// How many of them a template refuses.
    pub(crate) refused: u64,
    /// The first of those.
    pub(crate) refusals: Vec<Refusal>,
    /// Clusters that it is for, of which this may be old.
    pub(crate) silent: Vec<Silent>,
    /// What is to be known of it in the server's config, and done about it.
    pub(crate) notes: Vec<String>,
}

/// Pods that an older rule gives the same identity: they get nothing by this one.
#[derive(Debug, Serialize)]
pub(crate) struct Same {
    /// The older rule.
    pub(crate) rule: String,
    /// How many.
    pub(crate) pods: u64,
}

/// A cluster of which what the server says may be old.
#[derive(Debug, Serialize)]
pub(crate) struct Silent {
    /// Its name.
    pub(crate) cluster: String,
    /// Since when what is said of its pods is as it was then; null: nothing is known of them.
    pub(crate) heard_at: Moment,
}

impl Silent {
    /// All of them.
    pub(crate) fn all(silent: Vec<v1::SilentCluster>) -> Vec<Self> {
        let one = |v1::SilentCluster { cluster, heard_at }| Self { cluster, heard_at: Moment(heard_at) };
        silent.into_iter().map(one).collect()
    }

    /// What to say of each to a person.
    pub(crate) fn notes(silent: &[v1::SilentCluster], now: Timestamp) -> Vec<String> {
        let note = |v1::SilentCluster { cluster, heard_at }: &v1::SilentCluster| match heard_at {
            0 => format!(
                "cluster {cluster} has not told of its pods since this server has started: nothing is known of them"
            ),
            at => {
                let ago = moments::relative(Timestamp::from_unix(*at), now);
                format!("cluster {cluster} was last heard of {ago}: what is said of its pods is as it was then")
            }
        };
        silent.iter().map(note).collect()
    }
}

/// A pod that a rule selects and gives nothing.
#[derive(Debug, Serialize)]
pub(crate) struct Refusal {
    /// Its cluster.
    pub(crate) cluster: String,
    /// Its namespace.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) name: String,
    /// Why.
    pub(crate) reason: String,
}

/// What a label has to be.
#[derive(Debug, Serialize)]
pub(crate) struct Label {
    /// Which.
    pub(crate) key: String,
    /// Null: any value, but it has to be there.
    pub(crate) value: Option<String>,
}

impl From<v1::RuleStatus> for Rule {
    fn from(status: v1::RuleStatus) -> Self {
        let rule = status.rule.unwrap_or_default();
        let labels = |labels: Vec<v1::LabelMatch>| {
            labels.into_iter().map(|v1::LabelMatch { key, value }| Label { key, value }).collect()
        };
        let refusal =
            |v1::PodRefusal { cluster, namespace, name, reason }| Refusal { cluster, namespace, name, reason };
        let refusals = status.refusals.into_iter().map(refusal).collect();
        let same = status.same.into_iter().map(|v1::SamePods { rule, pods }| Same { rule, pods }).collect();
        Self {
            id: rule.id,
            spiffe_id: rule.spiffe_id,
            dns_names: rule.dns_names,
            cluster: rule.cluster,
            namespaces: rule.namespaces,
            service_accounts: rule.service_accounts,
            namespace_labels: labels(rule.namespace_labels),
            pod_labels: labels(rule.pod_labels),
            selectors: rule.selectors,
            x509_ttl: length(rule.x509_ttl),
            jwt_ttl: length(rule.jwt_ttl),
            wit_ttl: length(rule.wit_ttl),
            jti: rule.jti,
            hint: rule.hint,
            federates_with: rule.federates_with,
            key_type: (!rule.key_type.is_empty()).then_some(rule.key_type),
            created_at: Moment(rule.created_at),
            entries: status.entries,
            selected: Some(Selected {
                pods: status.pods,
                same,
                refused: status.refused,
                refusals,
                silent: Silent::all(status.silent),
                notes: status.notes,
            }),
        }
    }
}

impl Rule {
    /// As a list has it, for which no pod is looked at.
    pub(crate) fn without_pods(self) -> Self {
        Self { selected: None, ..self }
    }
}

/// `rule list`.
#[derive(Debug, Serialize)]
pub(crate) struct Rules {
    /// In the order of their names.
    pub(crate) rules: Vec<Rule>,
    /// Clusters of which this may be old.
    pub(crate) silent: Vec<Silent>,
    /// What is to be known of them in the server's config, and done about it.
    pub(crate) notes: Vec<String>,
}

/// `explain`: one pod.
#[derive(Debug, Serialize)]
pub(crate) struct Explained {
    /// Its cluster.
    pub(crate) cluster: String,
    /// Its namespace.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) name: String,
    /// Its UID.
    pub(crate) uid: String,
    /// Its service account.
    pub(crate) service_account: String,
    /// The node that it runs on.
    pub(crate) node_name: String,
    /// Its labels, each `key=value`.
    pub(crate) labels: Vec<String>,
    /// Those of its namespace.
    pub(crate) namespace_labels: Vec<String>,
    /// The agent of its node.
    pub(crate) agent: String,
    /// Whether that is attested.
    pub(crate) attested: bool,
    /// Whether that is banned.
    pub(crate) banned: bool,
    /// Whether that is connected to the answering server.
    pub(crate) connected: bool,
    /// What each rule comes to, the oldest first.
    pub(crate) verdicts: Vec<Verdict>,
    /// Its cluster, where this may be old.
    pub(crate) silent: Vec<Silent>,
}

/// What a rule comes to for a pod.
#[derive(Debug, Serialize)]
pub(crate) struct Verdict {
    /// The rule.
    pub(crate) rule: String,
    /// `gives`, `same`, `differs` or `refused`.
    pub(crate) outcome: String,
    /// Why it gives nothing; empty: it gives.
    pub(crate) reason: String,
    /// What it gives; null: nothing.
    pub(crate) entry: Option<Entry>,
}

impl From<v1::ExplainPodResponse> for Explained {
    fn from(wire: v1::ExplainPodResponse) -> Self {
        let verdict = |verdict: v1::RuleVerdict| Verdict {
            rule: verdict.rule,
            outcome: verdict.outcome,
            reason: verdict.reason,
            entry: verdict.entry.map(Entry::from),
        };
        Self {
            cluster: wire.cluster,
            namespace: wire.namespace,
            name: wire.name,
            uid: wire.uid,
            service_account: wire.service_account,
            node_name: wire.node_name,
            labels: wire.labels,
            namespace_labels: wire.namespace_labels,
            agent: wire.agent,
            attested: wire.attested,
            banned: wire.banned,
            connected: wire.connected,
            verdicts: wire.verdicts.into_iter().map(verdict).collect(),
            silent: Silent::all(wire.silent),
        }
    }
}
