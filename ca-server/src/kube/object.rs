//! Pods, nodes and namespaces as an API server sends them, with only those of their fields that we need: whole objects
//! are twenty times as large.

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

/// A thing that a list or a watch of an API server brings.
pub trait Object {
    /// Who it is.
    fn metadata(&self) -> &Meta;
}

impl Object for Pod {
    fn metadata(&self) -> &Meta {
        &self.metadata
    }
}

impl Object for Named {
    fn metadata(&self) -> &Meta {
        &self.metadata
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
