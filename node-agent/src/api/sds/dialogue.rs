//! What the two kinds of stream have in common: what is said on them, and what is worth telling of it.

use spiffe::time::Timestamp;

use super::{Refusal, SECRET_TYPE};
use crate::cache::WorkloadState;
use crate::status::words;

/// A stream with a proxy, as a pure machine.
pub trait Dialogue: Send + 'static {
    /// What the proxy says.
    type Request: Send + 'static;
    /// What it is told.
    type Response: Send + 'static;

    /// Takes in what the proxy says.
    fn hear(&mut self, request: Self::Request, now: Timestamp) -> Result<Heard<Self::Response>, Refusal>;

    /// Takes in what the workload may have from now on.
    fn learn(&mut self, state: WorkloadState, now: Timestamp) -> Result<Option<Self::Response>, Refusal>;

    /// Who asks, and for what, if anything was asked for yet.
    fn asked(&self) -> Option<News>;

    /// The version of a response.
    fn version(response: &Self::Response) -> &str;
}

/// What follows from a request.
#[derive(Debug, PartialEq)]
pub struct Heard<R> {
    /// The answer, if there is one now.
    pub response: Option<R>,
    /// What is worth telling.
    pub news: Vec<News>,
}

/// What a proxy has said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// Who it is, and the names that it asks for from now on.
    Asked {
        /// What it calls itself.
        node: String,
        /// None: everything.
        names: Vec<String>,
    },
    /// It has taken this version.
    Acknowledged {
        /// Which.
        version: String,
    },
    /// It has not taken this version.
    Rejected {
        /// Which.
        version: String,
        /// Its own words, fit to be shown.
        words: String,
    },
}

/// Refuses every type but that of secrets. It may be left out: here is nothing else.
pub(super) fn check_type(type_url: &str) -> Result<(), Refusal> {
    if type_url.is_empty() || type_url == SECRET_TYPE { Ok(()) } else { Err(Refusal::Type(words(type_url))) }
}
