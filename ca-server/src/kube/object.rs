//! Pods, nodes and namespaces as an API server sends them, with only those of their fields that we need: a server that
//! knows every pod of a cluster cannot hold whole objects.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use spiffe::time::Timestamp;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// `metadata` of any object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Meta {
    /// Its name.
    pub name: String,
    /// Its namespace; empty where it has none.
    pub namespace: String,
    /// Its UID.
    pub uid: String,
    /// Which version of it this is.
    pub resource_version: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// When it is to be gone, once somebody has deleted it (RFC 3339).
    pub deletion_timestamp: Option<String>,
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// Who it is.
    pub metadata: Meta,
    /// What it is to be.
    pub spec: PodSpec,
    /// What it is.
    pub status: PodStatus,
}

/// What a pod is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// The node that it is bound to; empty while it is not.
    pub node_name: String,
    /// Its service account.
    pub service_account_name: String,
}

/// What a pod is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PodStatus {
    /// `Pending`, `Running`, `Succeeded`, `Failed` or `Unknown`.
    pub phase: String,
    /// The address of its node.
    #[serde(rename = "hostIP")]
    pub host_ip: String,
}

/// A node or a namespace: of neither more is needed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Named {
    /// Who it is.
    pub metadata: Meta,
}

/// The longest name that Kubernetes has for anything.
const LONGEST_NAME: usize = 253;
/// The most bytes of the labels of one object that are kept: Kubernetes bounds each, not all of them together.
const MOST_OF_LABELS: usize = 16 << 10;

/// A thing that a list or a watch of an API server brings.
pub trait Object {
    /// Who it is.
    fn metadata(&self) -> &Meta;

    /// Takes away what is more than can be kept of one object, and says whether there was any.
    fn cut(&mut self) -> bool;
}

impl Meta {
    fn cut(&mut self) -> bool {
        let mut is_cut = false;
        for name in [&mut self.name, &mut self.namespace, &mut self.uid] {
            if name.len() > LONGEST_NAME {
                *name = String::new();
                is_cut = true;
            }
        }
        if self.labels.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>() > MOST_OF_LABELS {
            self.labels = BTreeMap::new();
            is_cut = true;
        }
        is_cut
    }
}

impl Object for Pod {
    fn metadata(&self) -> &Meta {
        &self.metadata
    }

    /// Of a pod that is too large nothing is left that would put it on a node: a rule must not hold it for what it is not.
    fn cut(&mut self) -> bool {
        let is_long =
            [&self.spec.node_name, &self.spec.service_account_name].iter().any(|name| name.len() > LONGEST_NAME);
        let is_cut = self.metadata.cut() | is_long;
        if is_cut {
            self.spec = PodSpec::default();
        }
        is_cut
    }
}

impl Object for Named {
    fn metadata(&self) -> &Meta {
        &self.metadata
    }

    fn cut(&mut self) -> bool {
        self.metadata.cut()
    }
}

/// Until when a pod counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Until further notice.
    Open,
    /// It was deleted, and its containers have until then to end.
    Until(Timestamp),
    /// All of its containers have ended for good.
    Ended,
}

impl Life {
    /// Whether it is over at `now`.
    pub fn is_over(self, now: Timestamp) -> bool {
        match self {
            Self::Open => false,
            Self::Until(end) => now >= end,
            Self::Ended => true,
        }
    }
}

impl Pod {
    /// Until when it counts. A moment that cannot be read has passed.
    pub fn life(&self) -> Life {
        if matches!(self.status.phase.as_str(), "Succeeded" | "Failed") {
            return Life::Ended;
        }
        match self.metadata.deletion_timestamp.as_deref() {
            None => Life::Open,
            Some(text) => moment(text).map_or(Life::Ended, Life::Until),
        }
    }
}

/// A moment as Kubernetes writes one.
fn moment(text: &str) -> Option<Timestamp> {
    let seconds = OffsetDateTime::parse(text, &Rfc3339).ok()?.unix_timestamp();
    Some(Timestamp::default().plus(Duration::from_secs(u64::try_from(seconds).ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_object_no_more_is_kept_than_kubernetes_names_and_labels_need() {
        let pod = |label: usize, uid: usize, account: usize| {
            let mut pod = Pod::default();
            pod.metadata.uid = "u".repeat(uid);
            pod.metadata.labels.insert("app".into(), "x".repeat(label));
            pod.spec = PodSpec { node_name: "n1".into(), service_account_name: "a".repeat(account) };
            pod
        };
        let mut fits = pod(16_000, 253, 253);
        assert!(!fits.cut() && fits == pod(16_000, 253, 253));
        for (label, uid, account) in [(17_000, 1, 1), (1, 254, 1), (1, 1, 254)] {
            let mut large = pod(label, uid, account);
            assert!(large.cut() && large.spec.node_name.is_empty(), "it is on no node");
            let kept = large.metadata.labels.values().map(String::len).sum::<usize>() + large.metadata.uid.len();
            assert!(kept < 1000 && large.spec.service_account_name.is_empty());
        }
    }

    #[test]
    fn a_pod_is_read_without_what_is_not_needed_and_lives_until_it_is_over() {
        let text = r#"{"metadata":{"name":"web-1","namespace":"shop","uid":"u","labels":{"app":"web"},"managedFields":[{}]},
            "spec":{"nodeName":"n1","serviceAccountName":"web","containers":[]},"status":{"phase":"Running","hostIP":"10.0.0.1"}}"#;
        let mut pod: Pod = serde_json::from_str(text).unwrap();
        assert_eq!((&*pod.spec.node_name, &*pod.status.host_ip, pod.life()), ("n1", "10.0.0.1", Life::Open));
        let now = Timestamp::from_unix(1_795_218_000);
        pod.metadata.deletion_timestamp = Some("2026-11-20T23:40:10Z".into());
        assert_eq!(pod.life(), Life::Until(now.plus(Duration::from_secs(10))));
        assert!(!pod.life().is_over(now) && pod.life().is_over(now.plus(Duration::from_secs(10))));
        pod.metadata.deletion_timestamp = Some("soon".into());
        assert_eq!(pod.life(), Life::Ended);
        pod.metadata.deletion_timestamp = None;
        for (phase, ended) in [("Succeeded", true), ("Failed", true), ("Pending", false), ("Unknown", false)] {
            pod.status.phase = phase.into();
            assert_eq!(pod.life().is_over(now), ended, "{phase}");
        }
        let bare: Pod = serde_json::from_str(r#"{"metadata":{}}"#).unwrap();
        assert_eq!(bare, Pod::default());
    }
}
