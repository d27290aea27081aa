//! Objects of any kind, as JSON: what the API server gives back is what the next call is told.

use serde_json::{Value, json};

use super::Cluster;

impl Cluster {
    /// Creates an object, and returns it as it is then: with its UID.
    #[track_caller]
    pub fn create(&self, object: &Value) -> Value {
        self.try_create(object).unwrap_or_else(|error| panic!("{error}: {object}"))
    }

    /// The same where it may be refused.
    ///
    /// # Errors
    /// What the API server says against it.
    pub fn try_create(&self, object: &Value) -> kube::Result<Value> {
        self.call("POST", &collection(object), Some(object))
    }

    /// Creates many.
    pub fn create_all(&self, objects: impl IntoIterator<Item = Value, IntoIter: Send>) {
        self.call_all(objects.into_iter().map(|object| (collection(&object), object)));
    }

    /// The object as it is now, if it is there.
    #[track_caller]
    pub fn read(&self, object: &Value) -> Option<Value> {
        match self.call("GET", &path_of(object), None) {
            Ok(object) => Some(object),
            Err(kube::Error::Api(status)) if status.code == 404 => None,
            Err(error) => panic!("{error}: {object}"),
        }
    }

    /// Changes what `change` names (a merge patch), and returns the object as it is then.
    #[track_caller]
    pub fn change(&self, object: &Value, change: &Value) -> Value {
        self.change_at(&path_of(object), change)
    }

    /// The same with the status, which is a door of its own.
    #[track_caller]
    pub fn change_status(&self, object: &Value, status: &Value) -> Value {
        self.change_at(&format!("{}/status", path_of(object)), &json!({ "status": status }))
    }

    #[track_caller]
    pub(super) fn change_at(&self, path: &str, change: &Value) -> Value {
        self.call("PATCH", path, Some(change)).unwrap_or_else(|error| panic!("{error}: {path}: {change}"))
    }

    /// Deletes it, with no grace.
    #[track_caller]
    pub fn delete(&self, object: &Value) {
        let options = json!({ "apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0 });
        let deleted = self.call("DELETE", &path_of(object), Some(&options));
        deleted.unwrap_or_else(|error| panic!("{error}: {object}"));
    }
}

/// Where objects of this kind, in this namespace, are created and listed.
///
/// # Panics
/// When it has no `apiVersion` or `kind`.
pub fn collection(object: &Value) -> String {
    let word = |name: &str| object[name].as_str().unwrap_or_else(|| panic!("no {name}: {object}"));
    let version = word("apiVersion");
    let root = if version.contains('/') { "apis" } else { "api" };
    let namespace = object["metadata"]["namespace"].as_str();
    let namespace = namespace.map(|name| format!("/namespaces/{name}")).unwrap_or_default();
    format!("/{root}/{version}{namespace}/{}", plural(word("kind")))
}

/// Where this object is.
///
/// # Panics
/// When it has no name.
pub fn path_of(object: &Value) -> String {
    let name = object["metadata"]["name"].as_str().unwrap_or_else(|| panic!("no name: {object}"));
    format!("{}/{name}", collection(object))
}

/// The UID of an object.
///
/// # Panics
/// When it was not created.
pub fn uid(object: &Value) -> &str {
    object["metadata"]["uid"].as_str().unwrap_or_else(|| panic!("no UID: {object}"))
}

/// The resource of a kind: `networkpolicies` of `NetworkPolicy`.
fn plural(kind: &str) -> String {
    let kind = kind.to_lowercase();
    match kind.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None if kind.ends_with("ss") => format!("{kind}es"),
        None if kind.ends_with('s') => kind,
        None => format!("{kind}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_place() {
        let policy = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": { "name": "a", "namespace": "b" },
        });
        assert_eq!(path_of(&policy), "/apis/networking.k8s.io/v1/namespaces/b/networkpolicies/a");
        let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "a" } });
        assert_eq!(path_of(&node), "/api/v1/nodes/a");
        assert_eq!(["StorageClass", "Endpoints"].map(plural), ["storageclasses", "endpoints"]);
    }
}
