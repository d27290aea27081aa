//! The only file of the Broker Endpoint that makes gRPC statuses: codes by SPIFFE_Broker_Endpoint.md section 6 and
//! SPIFFE_Broker_API.md section 4.8, which also says what stands in the `ErrorInfo` of those about a workload.

use std::collections::HashMap;

use prost::Message as _;
use prost_types::Any;
use spiffe::audience::AudienceError;
use spiffe::id::IdError;
use spiffe::proto::details;
use spiffe::x509_svid::SvidError;
use tonic::{Code, Status};

use super::policy::Forbidden;
use super::reference::{KubernetesIdentifier, ReferenceError};
use crate::api::door::Denial;
use crate::attestor::AttestError;

const ERROR_INFO: &str = "type.googleapis.com/google.rpc.ErrorInfo";
const DOMAIN: &str = "spiffe.io";

/// Why a broker's request is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// It lacks the security header, or has another value in it, or has it twice.
    #[error("security header is missing: send the metadata \"broker.spiffe.io: true\" once with every request")]
    NoHeader,
    /// The connection does not say who is at its other end: a mistake of the agent's own.
    #[error("the agent does not know who is at the other end of this connection")]
    NoCaller,
    /// The caller's SVID was good when it connected.
    #[error("the SVID of this connection is not good any more: {0}; connect anew with a fresh one")]
    Caller(#[from] SvidError),
    /// The allow list does not allow it.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    /// The workload is not named, or not in a way that this agent can follow from there.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// There is no such pod on this node, or it is not the one that the reference means.
    #[error(
        "no such pod on this node ({0}): name a pod that runs here, by its namespace and name, by its UID, or by both where both \
         are of the same one"
    )]
    NoPod(KubernetesIdentifier),
    /// The audience of a JWT-SVID is missing, or is none.
    #[error("audience: {0}")]
    Audience(#[from] AudienceError),
    /// The SPIFFE ID of a JWT-SVID is none.
    #[error("spiffe_id: {0}")]
    Id(#[from] IdError),
    /// About the workload, or the agent.
    #[error(transparent)]
    Denied(#[from] Denial),
}

/// Of the table in section 4.8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    Invalid,
    NotFound,
    NotEntitled,
}

impl Reason {
    fn text(self) -> &'static str {
        match self {
            Self::Invalid => "WORKLOAD_REFERENCE_INVALID",
            Self::NotFound => "WORKLOAD_NOT_FOUND",
            Self::NotEntitled => "WORKLOAD_NOT_ENTITLED",
        }
    }

    fn code(self) -> Code {
        match self {
            Self::Invalid => Code::InvalidArgument,
            Self::NotFound => Code::NotFound,
            Self::NotEntitled => Code::PermissionDenied,
        }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NoHeader | Refusal::Audience(_) | Refusal::Id(_) => Self::invalid_argument(refusal.to_string()),
            Refusal::NoCaller => Self::internal(refusal.to_string()),
            Refusal::Caller(_) => Self::unauthenticated(refusal.to_string()),
            Refusal::Forbidden(Forbidden::Workload { ref whom, .. }) => {
                detailed(Reason::NotEntitled, refusal.to_string(), whom.pid())
            }
            Refusal::NoPod(_) => detailed(Reason::NotFound, refusal.to_string(), None),
            Refusal::Forbidden(_) => Self::permission_denied(refusal.to_string()),
            Refusal::Reference(error) => detailed(Reason::Invalid, error.to_string(), None),
            Refusal::Denied(denial) => denied(&denial),
        }
    }
}

/// Why the workload gets no answer, or no further one.
pub(super) fn denied(denial: &Denial) -> Status {
    match denial {
        Denial::Attest(error) => attest(error),
        // Its selectors are the workload's own facts, not the broker's: they are in the agent's log.
        Denial::NoIdentity { whom, .. } => {
            let words = format!(
                "no identity is issued to {whom}: no registration entry of this node matches it (the agent's log \
                 has its selectors, at level debug)"
            );
            detailed(Reason::NotEntitled, words, whom.pid())
        }
        Denial::PodGone(_) => detailed(Reason::NotFound, denial.to_string(), None),
        Denial::OtherIdentity(_) | Denial::Refused(_) => detailed(Reason::NotEntitled, denial.to_string(), None),
        Denial::CallerExpired(_) | Denial::CallerRefused(_) => Status::unauthenticated(denial.to_string()),
        // Section 6 of the endpoint: load shedding, too.
        Denial::Full(_)
        | Denial::TooManyWait { .. }
        | Denial::NotReady
        | Denial::PodChanged(_)
        | Denial::Stopping(_) => Status::unavailable(denial.to_string()),
    }
}

fn attest(error: &AttestError) -> Status {
    let (reason, pid) = match error {
        AttestError::Gone(pid) | AttestError::Thread(pid) => (Reason::NotFound, *pid),
        AttestError::Changed(pid) | AttestError::TwoUsers(pid) | AttestError::ProcessFile { pid, .. } => {
            (Reason::NotEntitled, *pid)
        }
        AttestError::Credentials(_)
        | AttestError::Hidden
        | AttestError::Pin { .. }
        | AttestError::Interrupted
        | AttestError::Kubernetes(_)
        | AttestError::TooLong(_)
        | AttestError::AllFailed(_) => return Status::unavailable(error.to_string()),
    };
    detailed(reason, error.to_string(), Some(pid))
}

fn detailed(reason: Reason, message: String, pid: Option<u32>) -> Status {
    let metadata: HashMap<String, String> = pid.iter().map(|pid| ("pid".to_owned(), pid.to_string())).collect();
    let info = details::ErrorInfo { reason: reason.text().into(), domain: DOMAIN.into(), metadata };
    let info = Any { type_url: ERROR_INFO.into(), value: info.encode_to_vec() };
    let whole = details::Status { code: reason.code().into(), message: message.clone(), details: vec![info] };
    Status::with_details(reason.code(), message, whole.encode_to_vec().into())
}
