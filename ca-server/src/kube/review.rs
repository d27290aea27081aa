//! Whose a service-account token is: a TokenReview, the API server's own word.

use std::fmt;

use async_trait::async_trait;

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
