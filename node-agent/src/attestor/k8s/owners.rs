//! What owns the owner of a pod: the Deployment of a ReplicaSet, the CronJob of a Job. Read from the API server, as
//! metadata only.
//!
//! - One step is all that there is: neither of these is owned in its turn.
//! - The owner has to be the very one that the pod names, by its UID, and only what controls it counts.
//! - What an API server does not tell makes fewer selectors, never others.
//! - Of who owns a pod whoever makes it may write what he likes: what is no name is none, and leads nowhere.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use kube::Client;
use spiffe::selector::Selector;

use super::answer::{Answer, AnswerError, WHO, in_time};
use super::client::AccessError;
use super::object::{Meta, Named, OwnerReference, of_owner};
use super::split::Splitter;

/// How long it may take.
pub(super) const LIMIT: Duration = Duration::from_secs(3);
/// The largest metadata that are read; annotations may have 256 KiB.
const MOST_BYTES: usize = 2 << 20;

/// An owner that is likely to have one itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// What it is.
    pub kind: OwnerKind,
    /// The pod's namespace, and so its own.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Its UID.
    pub uid: Arc<str>,
}

/// What such an owner is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnerKind {
    /// As of a Deployment.
    ReplicaSet,
    /// As of a CronJob.
    Job,
}

/// Why it is not known what owns an owner.
#[derive(Debug, thiserror::Error)]
pub enum OwnerError {
    /// There is no way to the API server.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The API server said so, or did not answer.
    #[error("the API server {0}")]
    Answer(#[from] AnswerError),
}

impl Owner {
    /// The controller of a pod with this metadata, if it is worth a look.
    pub(super) fn to_walk(metadata: &Meta) -> Option<Self> {
        let namespace = metadata.namespace.as_deref().filter(|namespace| is_name(namespace))?.into();
        let owner = controller(metadata).filter(|owner| is_name(&owner.name) && is_uid(&owner.uid))?;
        let kind = match (owner.api_version.split_once('/')?.0, owner.kind.as_str()) {
            ("apps", "ReplicaSet") => OwnerKind::ReplicaSet,
            ("batch", "Job") => OwnerKind::Job,
            _ => return None,
        };
        Some(Self { kind, namespace, name: owner.name.as_str().into(), uid: owner.uid.as_str().into() })
    }

    /// What is true of everything that has this owner, by what owns it: nothing, where it is gone or is another one by now.
    pub(super) async fn selectors(&self, client: &Client) -> Result<Vec<Selector>, OwnerError> {
        let metadata = in_time(LIMIT, self.metadata(client)).await?;
        Ok(metadata.map(|metadata| self.selectors_by(&metadata)).unwrap_or_default())
    }

    async fn metadata(&self, client: &Client) -> Result<Option<Meta>, AnswerError> {
        let Self { kind, namespace, name, .. } = self;
        let of_kind = match kind {
            OwnerKind::ReplicaSet => "/apis/apps/v1/namespaces/{}/replicasets",
            OwnerKind::Job => "/apis/batch/v1/namespaces/{}/jobs",
        };
        let path = format!("{}/{name}", of_kind.replace("{}", namespace));
        match Answer::to(client, &path, WHO, Splitter::one_by_one(MOST_BYTES)).await {
            Ok(mut answer) => Ok(answer.next::<Named>().await?.map(|named| named.metadata)),
            Err(AnswerError::Refused { code: StatusCode::NOT_FOUND, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn selectors_by(&self, metadata: &Meta) -> Vec<Selector> {
        if metadata.uid.as_deref() != Some(&self.uid) {
            return Vec::new();
        }
        controller(metadata).into_iter().flat_map(|owner| of_owner(&owner.kind, &owner.name, &owner.uid)).collect()
    }
}

fn controller(metadata: &Meta) -> Option<&OwnerReference> {
    metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// Whether it is a name as ReplicaSets, Jobs and namespaces have them: a DNS subdomain (RFC 1123).
fn is_name(text: &str) -> bool {
    let is_part = |part: &str| {
        let legal = part.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        legal && !part.is_empty() && !part.starts_with('-') && !part.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(is_part)
}

fn is_uid(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn metadata(uid: &str, owners: &serde_json::Value) -> Meta {
        serde_json::from_value(json!({"name": "x", "namespace": "shop", "uid": uid, "ownerReferences": owners}))
            .unwrap()
    }

    fn of(api_version: &str, kind: &str, controller: bool) -> serde_json::Value {
        json!([{"apiVersion": api_version, "kind": kind, "name": "n", "uid": "u", "controller": controller}])
    }

    #[test]
    fn only_what_controls_a_pod_and_may_be_owned_is_walked() {
        let walked = |owners| Owner::to_walk(&metadata("p", &owners)).map(|owner| owner.kind);
        assert_eq!(walked(of("apps/v1", "ReplicaSet", true)), Some(OwnerKind::ReplicaSet));
        assert_eq!(walked(of("batch/v1", "Job", true)), Some(OwnerKind::Job));
        assert_eq!(walked(of("apps/v1", "ReplicaSet", false)), None);
        assert_eq!(walked(of("apps/v1", "StatefulSet", true)), None);
        assert_eq!(walked(of("example.org/v1", "ReplicaSet", true)), None);
        assert_eq!(walked(of("v1", "ReplicationController", true)), None);
        assert_eq!(walked(json!([])), None);
    }

    #[test]
    fn the_owner_of_another_one_with_the_same_name_is_none() {
        let owner = Owner::to_walk(&metadata("p", &of("apps/v1", "ReplicaSet", true))).unwrap();
        let above = of("apps/v1", "Deployment", true);
        let words =
            |uid| owner.selectors_by(&metadata(uid, &above)).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(words("u"), ["k8s:owner:Deployment:n", "k8s:owner-uid:Deployment:u"]);
        assert_eq!(words("created-again"), [""; 0]);
        assert_eq!(owner.selectors_by(&metadata("u", &json!([]))), []);
    }

    #[test]
    fn what_is_no_name_is_asked_for_nowhere() {
        for name in ["../../nodes/x", "x/scale", "?watch=true", "", "a..b", "-a", "A", "a\nb", &"a".repeat(254)] {
            let mut owners = of("apps/v1", "ReplicaSet", true);
            owners[0]["name"] = json!(name);
            assert_eq!(Owner::to_walk(&metadata("p", &owners)), None, "{name:?}");
        }
        let mut owners = of("apps/v1", "ReplicaSet", true);
        owners[0]["uid"] = json!("u\nu");
        assert_eq!(Owner::to_walk(&metadata("p", &owners)), None);
        owners[0]["uid"] = json!("u");
        owners[0]["name"] = json!("web-7d4.x");
        assert!(Owner::to_walk(&metadata("p", &owners)).is_some());
    }
}
