//! Whose a service-account token is: a TokenReview, the API server's own word.
//!
//! - [`ApiReviewer`] asks each time, and takes nothing but a service account whose token is for our audience. A token that
//!   by its own words is old, or for others, is refused unasked: rubbish costs an API server nothing.
//! - It asks `AT_ONCE` questions at once at most, so that whoever sends us many tokens does not use up what the API server
//!   gives us, which the watches need too.
//! - [`Remembering`] asks another, remembers a yes for a few seconds, and asks once for all who show one token at the same
//!   time: see there what that allows.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use http::Request;
use serde::Deserialize;
use spiffe::time::Clock;
use tokio::sync::Semaphore;

pub use self::remember::Remembering;
use super::client::{Cluster, Reviewed, shortened};
use crate::config::kubernetes::is_object_name;

mod claims;
mod remember;

/// The longest token that an API server is asked about, in bytes.
pub const MAX_TOKEN_BYTES: usize = 16 << 10;

/// How many questions one reviewer has open at an API server; more wait. At five milliseconds each that is 6,400 a second.
const AT_ONCE: usize = 32;

/// What a service account's name as a user begins with.
const USER_PREFIX: &str = "system:serviceaccount:";
/// The group of every service account; with a colon and a namespace behind it, of those of one namespace.
const GROUP: &str = "system:serviceaccounts";
/// Where an API server says what a token is bound to.
const EXTRA: &str = "authentication.kubernetes.io/";

/// A thing that a token is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

/// The service account of a token that an API server vouches for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccount {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID: another one after it was deleted and created again.
    pub uid: String,
    /// The pod that the token is bound to.
    pub pod: Option<Bound>,
    /// The node that the token's pod is on, where the API server says so (Kubernetes 1.32 and later do).
    pub node: Option<Bound>,
}

/// Why a token counts for nothing, or why that is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReviewError {
    /// The API server says no, or says yes to something else than a service account with our audience.
    #[error("the token is refused: {0}")]
    Refused(String),
    /// The API server did not answer, or not with a review.
    #[error("cluster {cluster} could not be asked: {reason}")]
    Unavailable {
        /// The cluster, by the name that our config gives it.
        cluster: String,
        /// What went wrong.
        reason: String,
    },
}

/// What knows whose a token is.
#[async_trait]
pub trait TokenReviewer: Send + Sync + fmt::Debug {
    /// The cluster that it speaks for, by the name that our config gives it.
    fn cluster(&self) -> &str;

    /// Whose `token` is, if it is good for `audience` now.
    async fn review(&self, token: &str, audience: &str) -> Result<ServiceAccount, ReviewError>;
}

/// Asks the API server of a cluster, each time.
#[derive(Debug)]
pub struct ApiReviewer {
    cluster: Arc<Cluster>,
    places: Semaphore,
}

impl ApiReviewer {
    /// Asks that of `cluster`.
    pub fn new(cluster: Arc<Cluster>) -> Self {
        Self { cluster, places: Semaphore::new(AT_ONCE) }
    }
}

#[async_trait]
impl TokenReviewer for ApiReviewer {
    fn cluster(&self) -> &str {
        self.cluster.name()
    }

    async fn review(&self, token: &str, audience: &str) -> Result<ServiceAccount, ReviewError> {
        let outcome = self.ask(token, audience).await;
        self.cluster.reviews().count(match &outcome {
            Ok(_) => Reviewed::Accepted,
            Err(ReviewError::Refused(_)) => Reviewed::Refused,
            Err(ReviewError::Unavailable { .. }) => Reviewed::Unavailable,
        });
        outcome
    }
}

impl ApiReviewer {
    async fn ask(&self, token: &str, audience: &str) -> Result<ServiceAccount, ReviewError> {
        if !is_token(token) {
            return Err(ReviewError::Refused("it has not the form of a service-account token (a JWT)".into()));
        }
        if let Some(why) = claims::refusal(token, audience, self.cluster.now()) {
            return Err(ReviewError::Refused(why));
        }
        let unavailable =
            |reason: String| ReviewError::Unavailable { cluster: self.cluster.name().to_string(), reason };
        let body = serde_json::json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": { "token": token, "audiences": [audience] },
        });
        let request = Request::post("/apis/authentication.k8s.io/v1/tokenreviews")
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(body.to_string().into_bytes())
            .map_err(|error| unavailable(error.to_string()))?;
        let _place = self.places.acquire().await.map_err(|error| unavailable(error.to_string()))?;
        let answer: Review = self.cluster.ask(request).await.map_err(|error| unavailable(error.to_string()))?;
        judge(answer.status, audience)
    }
}

/// A reviewer for each of these clusters, that remembers a yes for a moment: for callers that come often with one token.
pub fn remembering(clusters: &[Arc<Cluster>], clock: &Arc<dyn Clock>) -> Vec<Arc<dyn TokenReviewer>> {
    let one = |cluster: &Arc<Cluster>| -> Arc<dyn TokenReviewer> {
        let ask = Arc::new(ApiReviewer::new(Arc::clone(cluster)));
        Arc::new(Remembering::new(Arc::clone(cluster), ask, Arc::clone(clock)))
    };
    clusters.iter().map(one).collect()
}

/// Whether `text` has the form of a JWT, within the limit: anything else is not worth a question.
fn is_token(text: &str) -> bool {
    let is_part = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    text.len() <= MAX_TOKEN_BYTES && text.split('.').count() == 3 && text.split('.').all(is_part)
}

#[derive(Deserialize)]
struct Review {
    status: ReviewStatus,
}

/// `status` of a TokenReview (`authentication.k8s.io/v1`).
#[derive(Default, Deserialize)]
#[serde(default)]
struct ReviewStatus {
    authenticated: bool,
    user: User,
    audiences: Vec<String>,
    error: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct User {
    username: String,
    uid: String,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
}

/// What a review says, for one who asked for `audience`.
///
/// - Authenticated, and for our audience: an API server that says nothing of audiences does not know them, and means
///   its own.
/// - A service account and nobody who only has such a name: its groups say so too.
/// - What it is bound to is taken whole, name and UID, or not at all.
fn judge(status: ReviewStatus, audience: &str) -> Result<ServiceAccount, ReviewError> {
    let refused = |why: String| Err(ReviewError::Refused(why));
    let ReviewStatus { authenticated, user, audiences, error } = status;
    if !authenticated {
        let error = if error.is_empty() { "the API server does not know it".to_owned() } else { shortened(&error) };
        return refused(error);
    }
    if !audiences.iter().any(|found| found == audience) {
        return refused(format!("it is not for audience {audience:?}"));
    }
    let name = user.username.strip_prefix(USER_PREFIX).and_then(|rest| rest.split_once(':'));
    let Some((namespace, name)) = name.filter(|(namespace, name)| is_object_name(namespace) && is_object_name(name))
    else {
        return refused(format!("{:?} is no service account", shortened(&user.username)));
    };
    let own = format!("{GROUP}:{namespace}");
    if !user.groups.iter().any(|group| group == GROUP) || !user.groups.contains(&own) {
        return refused(format!("{:?} is not in the groups of service accounts", shortened(&user.username)));
    }
    if user.uid.is_empty() {
        return refused("its service account has no UID".into());
    }
    let one = |key: &str| match user.extra.get(&format!("{EXTRA}{key}")).map(Vec::as_slice) {
        Some([one]) if !one.is_empty() => Some(one.clone()),
        _ => None,
    };
    let bound = |what: &str| {
        let (name, uid) = (one(&format!("{what}-name"))?, one(&format!("{what}-uid"))?);
        Some(Bound { name, uid })
    };
    Ok(ServiceAccount {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        pod: bound("pod"),
        node: bound("node"),
        uid: user.uid,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn review(change: impl FnOnce(&mut Value)) -> Result<ServiceAccount, String> {
        let mut answer = json!({ "status": {
            "authenticated": true,
            "audiences": ["chancery"],
            "user": {
                "username": "system:serviceaccount:chancery:agent",
                "uid": "sa-1",
                "groups": ["system:serviceaccounts", "system:serviceaccounts:chancery", "system:authenticated"],
                "extra": {
                    "authentication.kubernetes.io/pod-name": ["agent-x"],
                    "authentication.kubernetes.io/pod-uid": ["pod-1"],
                    "authentication.kubernetes.io/node-name": ["n1"],
                    "authentication.kubernetes.io/node-uid": ["node-1"],
                    "authentication.kubernetes.io/credential-id": ["JTI=x"],
                },
            },
        }});
        change(&mut answer["status"]);
        let answer: Review = serde_json::from_value(answer).unwrap();
        judge(answer.status, "chancery").map_err(|error| error.to_string())
    }

    #[test]
    fn a_service_account_with_what_its_token_is_bound_to() {
        let bound = |name: &str, uid: &str| Some(Bound { name: name.into(), uid: uid.into() });
        let account = review(|_| ()).unwrap();
        assert_eq!((&*account.namespace, &*account.name, &*account.uid), ("chancery", "agent", "sa-1"));
        assert_eq!((account.pod, account.node), (bound("agent-x", "pod-1"), bound("n1", "node-1")));
        let account = review(|status| status["user"]["extra"] = json!({})).unwrap();
        assert_eq!((account.pod, account.node), (None, None));
        let half =
            json!({ "authentication.kubernetes.io/pod-name": ["a"], "authentication.kubernetes.io/pod-uid": [] });
        assert_eq!(review(|status| status["user"]["extra"] = half).unwrap().pod, None, "whole, or not at all");
        let two = json!({ "authentication.kubernetes.io/pod-name": ["a", "b"], "authentication.kubernetes.io/pod-uid": ["c"] });
        assert_eq!(review(|status| status["user"]["extra"] = two).unwrap().pod, None);
    }

    #[test]
    fn everything_else_is_refused() {
        let no = json!({ "error": "[invalid bearer token, token has expired]\n" });
        let refusal = review(|status| *status = no).unwrap_err();
        assert_eq!(refusal, "the token is refused: [invalid bearer token, token has expired] ");
        assert!(review(|status| *status = json!({})).unwrap_err().contains("does not know it"));
        for audiences in [json!([]), json!(["https://kubernetes.default.svc"]), json!(["chancery2"])] {
            let refusal = review(|status| status["audiences"] = audiences).unwrap_err();
            assert!(refusal.contains("not for audience \"chancery\""), "{refusal}");
        }
        for name in [
            "",
            "alice",
            "system:serviceaccount:chancery",
            "system:serviceaccount::agent",
            "system:serviceaccount:chancery:agent:x",
            "system:serviceaccount:chancery:../agent",
            "x:system:serviceaccount:chancery:agent",
            "system:serviceaccount:Chancery:agent",
        ] {
            let refusal = review(|status| status["user"]["username"] = json!(name)).unwrap_err();
            assert!(refusal.contains("is no service account"), "{refusal}");
        }
        for groups in [json!([]), json!(["system:serviceaccounts"]), json!(["system:serviceaccounts:chancery"])] {
            let refusal = review(|status| status["user"]["groups"] = groups).unwrap_err();
            assert!(refusal.contains("not in the groups"), "{refusal}");
        }
        assert!(review(|status| status["user"]["uid"] = json!("")).unwrap_err().contains("no UID"));
    }

    #[test]
    fn only_what_has_the_form_of_a_token_is_asked_about() {
        assert!(is_token("eyJh.eyJp.c2ln-_"));
        let long = format!("a.b.{}", "c".repeat(MAX_TOKEN_BYTES));
        for text in ["", "a.b", "a.b.c.d", "a..c", "a.b.c\n", "a.b.c d", "\u{e9}.b.c", &long] {
            assert!(!is_token(text), "{text:?}");
        }
    }
}
