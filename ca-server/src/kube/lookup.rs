//! One pod or one node, asked for by its name: as it is now, not as a watch had it.

use http::Request;
use serde::de::DeserializeOwned;

use super::client::{ApiError, Cluster};
use super::object::{Named, Pod};
use crate::config::kubernetes::is_object_name;

/// The pod `name` in `namespace`; `None`: there is none.
pub async fn pod(cluster: &Cluster, namespace: &str, name: &str) -> Result<Option<Pod>, ApiError> {
    if !is_object_name(namespace) || !is_object_name(name) {
        return Ok(None);
    }
    find(cluster, &format!("/api/v1/namespaces/{namespace}/pods/{name}")).await
}

/// The node `name`; `None`: there is none.
pub async fn node(cluster: &Cluster, name: &str) -> Result<Option<Named>, ApiError> {
    if !is_object_name(name) {
        return Ok(None);
    }
    find(cluster, &format!("/api/v1/nodes/{name}")).await
}

async fn find<T: DeserializeOwned>(cluster: &Cluster, path: &str) -> Result<Option<T>, ApiError> {
    let request = Request::get(path).body(Vec::new()).map_err(|error| ApiError::Unreadable(error.to_string()))?;
    match cluster.ask(request).await {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}
