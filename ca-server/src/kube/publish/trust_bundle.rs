//! The ClusterTrustBundle: the roots as an object of the cluster, which a pod may mount from any namespace. It has no
//! signer, so no right to speak for one is needed.

use http::Request;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::json;

use super::super::client::{ApiError, Cluster};
use super::content;

const GROUP: &str = "/apis/certificates.k8s.io";
const RESOURCE: &str = "clustertrustbundles";
/// The versions that we can write, the best first.
const VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha1"];

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Done {
    /// It holds the roots now.
    Written,
    /// It held them.
    Same,
    /// This API server knows no ClusterTrustBundle.
    NoSuchKind,
}

/// Makes the ClusterTrustBundle `name` hold `pem`.
pub(super) async fn bring(cluster: &Cluster, name: &str, pem: &str) -> Result<Done, ApiError> {
    let Some(version) = version(cluster).await? else { return Ok(Done::NoSuchKind) };
    let path = format!("{GROUP}/{version}/{RESOURCE}/{name}");
    match cluster.ask::<TrustBundle>(get(&path)).await {
        Ok(there) if there.spec.trust_bundle == pem => return Ok(Done::Same),
        Ok(_) => {}
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(error),
    }
    let object = json!({
        "apiVersion": format!("certificates.k8s.io/{version}"), "kind": "ClusterTrustBundle",
        "metadata": { "name": name }, "spec": { "trustBundle": pem },
    });
    cluster.ask::<IgnoredAny>(content::apply(&path, &object)).await?;
    Ok(Done::Written)
}

/// The best version in which the API server has it.
async fn version(cluster: &Cluster) -> Result<Option<&'static str>, ApiError> {
    for version in VERSIONS {
        match cluster.ask::<Resources>(get(&format!("{GROUP}/{version}"))).await {
            Ok(found) if found.resources.iter().any(|resource| resource.name == RESOURCE) => return Ok(Some(version)),
            Ok(_) => {}
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn get(path: &str) -> Request<Vec<u8>> {
    let mut request = Request::new(Vec::new());
    // A path of our own making.
    *request.uri_mut() = path.parse().unwrap_or_default();
    request
}

#[derive(Deserialize)]
struct TrustBundle {
    spec: Spec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    trust_bundle: String,
}

#[derive(Deserialize)]
struct Resources {
    resources: Vec<Named>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}
