//! Why a proxy gets nothing, and what of it the proxy is told.
//!
//! - Codes and words are those of istiod, which its proxies and their operators know.
//! - Who has not proved who he is, or may not have what he asks for, is told nothing but that: the reason is in the audit
//!   record and the log. What is wrong with a CSR or a life is his own affair, and he is told.

use spiffe::id::SpiffeId;
use tonic::{Code, Status};

use crate::api::status::Refusal;
use crate::audit::{Outcome, Reason};
use crate::kube::review::ReviewError;

/// A refusal and how it is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    refusal: Refusal,
    said: Said,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    /// Nobody knows who it is.
    Authentication,
    /// It may not speak for another.
    Impersonation,
    /// There is no certificate.
    Signing,
    /// In our own words: for load, of which istiod has none.
    Ours,
}

impl Failure {
    /// The caller did not prove who it is.
    pub(super) fn authentication(why: impl std::fmt::Display) -> Self {
        Self { refusal: Refusal::unauthenticated(why), said: Said::Authentication }
    }

    /// Whoever knows does not say who the caller is. To the caller that is the same, as at istiod; to an operator it is an
    /// outage and no attack.
    pub(super) fn unanswered(why: impl std::fmt::Display) -> Self {
        Self { refusal: Refusal::unavailable(why), said: Said::Authentication }
    }

    /// The caller may not have the identity of another.
    pub(super) fn impersonation(why: impl std::fmt::Display) -> Self {
        Self { refusal: Refusal::forbidden(why), said: Said::Impersonation }
    }

    /// The identity is that of an operator, whether it was asked for or is the caller's own.
    pub(super) fn operator(id: &SpiffeId, was_asked_for: bool) -> Self {
        let why = format!("{id} is an operator's by an entry: a service account's certificate must not be one");
        let said = if was_asked_for { Said::Impersonation } else { Said::Authentication };
        Self { refusal: Refusal::forbidden(why), said }
    }

    /// No certificate comes of what was asked for.
    pub(super) fn signing(refusal: impl Into<Refusal>) -> Self {
        Self { refusal: refusal.into(), said: Said::Signing }
    }

    /// Too much at once.
    pub(super) fn overloaded(what: &str) -> Self {
        Self { refusal: Refusal::overloaded(what), said: Said::Ours }
    }

    /// This server does not know yet which pods run where in the cluster.
    pub(super) fn not_yet(cluster: &str) -> Self {
        let why = format!("cluster {cluster} has not told of its pods yet: try again, or another server");
        Self { refusal: Refusal::unavailable(why), said: Said::Ours }
    }

    /// There is no place for it in the audit record.
    pub(super) fn unrecorded(refusal: impl Into<Refusal>) -> Self {
        Self { refusal: refusal.into(), said: Said::Ours }
    }

    /// As a line of audit has it.
    pub(super) fn outcome(&self) -> Outcome {
        self.refusal.outcome()
    }

    /// As metrics count it.
    pub(super) fn reason(&self) -> Reason {
        self.refusal.reason()
    }
}

impl From<ReviewError> for Failure {
    fn from(error: ReviewError) -> Self {
        match error {
            ReviewError::Refused(_) => Self::authentication(error),
            ReviewError::Unavailable { .. } => Self::unanswered(error),
        }
    }
}

impl From<Failure> for Status {
    fn from(Failure { refusal, said }: Failure) -> Self {
        match said {
            Said::Authentication => Self::unauthenticated("request authenticate failure"),
            Said::Impersonation => Self::unauthenticated("request impersonation authentication failure"),
            Said::Signing => {
                let status = Self::from(refusal);
                let code = match status.code() {
                    Code::InvalidArgument => Code::InvalidArgument,
                    _ => Code::Internal,
                };
                Self::new(code, format!("CSR signing error ({})", status.message()))
            }
            Said::Ours => refusal.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::issuance::Denied;

    fn said(failure: Failure) -> (Code, String) {
        let status = Status::from(failure);
        (status.code(), status.message().to_owned())
    }

    #[test]
    fn who_has_no_right_is_not_told_why() {
        let why = "the API server says no";
        let failure = Failure::authentication(why);
        assert!(format!("{:?}", failure.outcome()).contains(why));
        assert_eq!(said(failure), (Code::Unauthenticated, "request authenticate failure".into()));
        let failure = Failure::unanswered(why);
        assert_eq!((failure.reason(), Failure::not_yet("main").reason()), (Reason::Unavailable, Reason::Unavailable));
        assert_eq!(said(failure), (Code::Unauthenticated, "request authenticate failure".into()));
        let failure = Failure::impersonation(why);
        assert!(format!("{:?}", failure.outcome()).contains(why));
        let words = "request impersonation authentication failure";
        assert_eq!(said(failure), (Code::Unauthenticated, words.into()));
    }

    #[test]
    fn what_is_wrong_with_a_request_is_said() {
        let hours = |hours: u64| Duration::from_secs(3600 * hours);
        let long = Denied::TooLong { asked: hours(48), most: hours(24), raise: "istio.max_ttl" };
        let (code, words) = said(Failure::signing(long));
        assert_eq!(code, Code::InvalidArgument);
        assert!(words.starts_with("CSR signing error (a life of 2d was asked for, at most 1d is allowed"), "{words}");
        let (code, words) = said(Failure::signing(Refusal::no_authority()));
        assert_eq!(code, Code::Internal, "{words}");
        assert_eq!(said(Failure::overloaded("too much")).0, Code::ResourceExhausted);
        assert_eq!(said(Failure::not_yet("main")).0, Code::Unavailable);
    }
}
