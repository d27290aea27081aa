//! What owns the owner of a pod: the Deployment of a ReplicaSet, the CronJob of a Job. Read from the API server, as
//! metadata only.
//!
//! - One step is all that there is: neither of these is owned in its turn.
//! - The owner has to be the very one that the pod names, by its UID, and only what controls it counts.
//! - What an API server does not tell makes fewer selectors, never others.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::core::ObjectMeta;
use kube::{Api, Client, Resource};
use spiffe::selector::Selector;

use super::client::AccessError;
use super::object::of_owner;

const LIMIT: Duration = Duration::from_secs(3);

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
    #[error("{0}")]
    Kube(#[from] kube::Error),
    /// It took too long.
    #[error("the API server does not answer within 3 seconds")]
    TooLong,
}

impl Owner {
    /// The controller of a pod with this metadata, if it is worth a look.
    pub(super) fn to_walk(metadata: &ObjectMeta) -> Option<Self> {
        let namespace = metadata.namespace.as_deref()?.into();
        let owner = controller(metadata)?;
        let kind = match (owner.api_version.split_once('/')?.0, owner.kind.as_str()) {
            ("apps", "ReplicaSet") => OwnerKind::ReplicaSet,
            ("batch", "Job") => OwnerKind::Job,
            _ => return None,
        };
        Some(Self { kind, namespace, name: owner.name.as_str().into(), uid: owner.uid.as_str().into() })
    }

    /// What is true of everything that has this owner, by what owns it: nothing, where it is gone or is another one by now.
    pub(super) async fn selectors(&self, client: Client) -> Result<Vec<Selector>, OwnerError> {
        let metadata = match self.kind {
            OwnerKind::ReplicaSet => self.metadata::<ReplicaSet>(client).await?,
            OwnerKind::Job => self.metadata::<Job>(client).await?,
        };
        Ok(metadata.map(|metadata| self.selectors_by(&metadata)).unwrap_or_default())
    }

    async fn metadata<K>(&self, client: Client) -> Result<Option<ObjectMeta>, OwnerError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + serde::de::DeserializeOwned
            + std::fmt::Debug,
    {
        let api: Api<K> = Api::namespaced(client, &self.namespace);
        #[expect(clippy::disallowed_methods, reason = "a limit on input and output of the network")]
        let answer = tokio::time::timeout(LIMIT, api.get_metadata_opt(&self.name)).await;
        Ok(answer.map_err(|_| OwnerError::TooLong)??.map(|object| object.metadata))
    }

    fn selectors_by(&self, metadata: &ObjectMeta) -> Vec<Selector> {
        if metadata.uid.as_deref() != Some(&self.uid) {
            return Vec::new();
        }
        controller(metadata).into_iter().flat_map(|owner| of_owner(&owner.kind, &owner.name, &owner.uid)).collect()
    }
}

fn controller(metadata: &ObjectMeta) -> Option<&OwnerReference> {
    metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn metadata(uid: &str, owners: &serde_json::Value) -> ObjectMeta {
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
}
