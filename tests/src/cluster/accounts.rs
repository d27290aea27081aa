//! Service accounts: what they may do, their tokens, their kubeconfig files.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};

use super::{Cluster, keys, path_of, uid};

/// A token of a service account, as a kubelet asks for it on behalf of a pod.
#[derive(Clone, Debug)]
pub struct Token {
    account: Value,
    audiences: Vec<String>,
    bound: Option<Value>,
    seconds: u32,
}

impl Token {
    /// For an hour, for the API server itself, bound to nothing.
    pub fn of(namespace: &str, account: &str) -> Self {
        Self { account: account_object(namespace, account), audiences: Vec::new(), bound: None, seconds: 3_600 }
    }

    /// For this audience (too), and no more for the API server.
    #[must_use]
    pub fn audience(mut self, audience: &str) -> Self {
        self.audiences.push(audience.into());
        self
    }

    /// Bound to this pod, and to its node.
    #[must_use]
    pub fn bound_to(mut self, pod: &Value) -> Self {
        self.bound = Some(json!({
            "apiVersion": pod["apiVersion"], "kind": pod["kind"], "name": pod["metadata"]["name"], "uid": uid(pod),
        }));
        self
    }

    /// Good for so long: 600 or more.
    #[must_use]
    pub fn seconds(mut self, seconds: u32) -> Self {
        self.seconds = seconds;
        self
    }
}

impl Cluster {
    /// Creates a service account.
    #[track_caller]
    pub fn service_account(&self, namespace: &str, name: &str) -> Value {
        self.create(&account_object(namespace, name))
    }

    /// Lets a service account do this in the whole cluster: rules as in a ClusterRole. Deleting what is returned takes it
    /// away again.
    #[track_caller]
    pub fn grant(&self, namespace: &str, account: &str, rules: &Value) -> Value {
        let (version, metadata) = ("rbac.authorization.k8s.io/v1", json!({ "name": format!("{namespace}-{account}") }));
        self.create(&json!({ "apiVersion": version, "kind": "ClusterRole", "metadata": metadata, "rules": rules }));
        self.create(&json!({
            "apiVersion": version,
            "kind": "ClusterRoleBinding",
            "metadata": metadata,
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": metadata["name"] },
            "subjects": [{ "kind": "ServiceAccount", "namespace": namespace, "name": account }],
        }))
    }

    /// A token by TokenRequest.
    #[track_caller]
    pub fn token(&self, token: &Token) -> String {
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "audiences": token.audiences, "boundObjectRef": token.bound, "expirationSeconds": token.seconds,
            },
        });
        let answer = self.call("POST", &format!("{}/token", path_of(&token.account)), Some(&request));
        let answer = answer.unwrap_or_else(|error| panic!("{error}: {request}"));
        answer["status"]["token"].as_str().expect("a token").to_owned()
    }

    /// `token` with other claims, signed by the API server's own key: one that has expired, for example.
    ///
    /// # Panics
    /// When it is no token.
    pub fn token_with(&self, token: &str, change: impl FnOnce(&mut Map<String, Value>)) -> String {
        let parts: Vec<&str> = token.split('.').collect();
        let [header, claims, _] = parts[..] else { panic!("no token: {token}") };
        let claims = URL_SAFE_NO_PAD.decode(claims).expect("a token");
        let mut claims = serde_json::from_slice(&claims).expect("claims");
        change(&mut claims);
        let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(Value::Object(claims).to_string()));
        let signature = self.keys.account_signer().sign(signed.as_bytes()).expect("it can sign");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// A kubeconfig file of a service account, which comes with a token of an hour.
    #[track_caller]
    pub fn kubeconfig_of(&self, namespace: &str, account: &str) -> PathBuf {
        let name = format!("{namespace}-{account}");
        let token = self.folder().join(format!("{name}.token"));
        std::fs::write(&token, self.token(&Token::of(namespace, account))).expect("a file can be written");
        let name = format!("{name}.kubeconfig");
        keys::write_kubeconfig(self.folder(), &name, (&self.url(), &json!({ "tokenFile": token })));
        self.folder().join(name)
    }
}

fn account_object(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "namespace": namespace, "name": name },
    })
}
