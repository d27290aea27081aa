//! The one place where errors become refusals: a gRPC code for the caller, a reason for audit and metrics, and words.

use spiffe::crypto::CryptoError;
use spiffe::csr::CsrError;
use spiffe::entry::EntryError;
use spiffe::jwt_svid::AudienceError;
use spiffe::proto::{WireError, v1};
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use super::rights;
use crate::attest::AttestError;
use crate::attest::k8s_psat::K8sPsatError;
use crate::audit::{self, Message, Outcome, Reason};
use crate::authority::issuer::IssueError;
use crate::authority::plan;
use crate::authority::token_issuer::TokenIssueError;
use crate::issuance;
use crate::rotate::RotateError;
use crate::store::StoreError;

/// Milliseconds after which a caller that was turned away for load may come again (the gRPC retry pushback).
const PUSHBACK: &str = "grpc-retry-pushback-ms";
/// The hint that goes with every refusal for load.
const PUSHBACK_MS: u32 = 1000;

/// Why a request is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    code: Code,
    reason: Reason,
    message: String,
}

impl Refusal {
    /// What was sent is wrong, and the words say how.
    pub(crate) fn invalid(error: impl std::fmt::Display) -> Self {
        Self { code: Code::InvalidArgument, reason: Reason::Invalid, message: error.to_string() }
    }

    /// There is no such thing.
    pub(crate) fn not_found(what: impl std::fmt::Display) -> Self {
        Self { code: Code::NotFound, reason: Reason::NotFound, message: what.to_string() }
    }

    /// There is one already.
    pub(crate) fn already_exists(what: impl std::fmt::Display) -> Self {
        Self { code: Code::AlreadyExists, reason: Reason::AlreadyExists, message: what.to_string() }
    }

    /// Something has to be done first.
    pub(crate) fn precondition(what: impl std::fmt::Display) -> Self {
        Self { code: Code::FailedPrecondition, reason: Reason::Denied, message: what.to_string() }
    }

    /// The caller has no right to this one thing.
    pub(crate) fn forbidden(what: impl std::fmt::Display) -> Self {
        Self { code: Code::PermissionDenied, reason: Reason::Denied, message: what.to_string() }
    }

    /// The node did not prove who it is.
    pub(crate) fn attestation(what: impl std::fmt::Display) -> Self {
        Self { code: Code::PermissionDenied, reason: Reason::Attestation, message: what.to_string() }
    }

    /// The caller did not prove who it is.
    pub(crate) fn unauthenticated(what: impl std::fmt::Display) -> Self {
        Self { code: Code::Unauthenticated, reason: Reason::Authentication, message: what.to_string() }
    }

    /// The CSR is no proof of a key that is taken.
    pub(crate) fn csr(what: impl std::fmt::Display) -> Self {
        Self { code: Code::InvalidArgument, reason: Reason::Csr, message: what.to_string() }
    }

    /// Too much at once.
    pub(crate) fn overloaded(what: &str) -> Self {
        let message = format!("{what}: try again in {PUSHBACK_MS} ms");
        Self { code: Code::ResourceExhausted, reason: Reason::RateLimited, message }
    }

    /// This server has nothing to sign with yet.
    pub(crate) fn no_authority() -> Self {
        let message = "this server has no active authority for this: try again, or another server".to_owned();
        Self { code: Code::Unavailable, reason: Reason::NoAuthority, message }
    }

    /// It cannot be done now: somebody who has to be asked does not answer.
    pub(crate) fn unavailable(what: impl std::fmt::Display) -> Self {
        Self { code: Code::Unavailable, reason: Reason::Unavailable, message: what.to_string() }
    }

    /// A fault of ours.
    pub(crate) fn internal(what: impl std::fmt::Display) -> Self {
        Self { code: Code::Internal, reason: Reason::Internal, message: what.to_string() }
    }

    /// The word for audit and metrics.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// As a line of audit has it.
    pub fn outcome(&self) -> Outcome {
        Outcome::Refused(self.reason, Message::new(&self.message))
    }

    /// As a result of a batch has it.
    pub fn to_wire(&self) -> v1::Refusal {
        v1::Refusal { code: self.code as i32, message: self.message.clone() }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let mut status = Self::new(refusal.code, refusal.message);
        if refusal.code == Code::ResourceExhausted {
            status.metadata_mut().insert(PUSHBACK, MetadataValue::from(PUSHBACK_MS));
        }
        status
    }
}

impl From<rights::Denied> for Refusal {
    /// `UNAUTHENTICATED` means: attest again; `PERMISSION_DENIED` means: do not.
    fn from(denied: rights::Denied) -> Self {
        use rights::Denied;
        let (code, reason) = match denied {
            Denied::Unknown(_) => (Code::Unimplemented, Reason::NotFound),
            Denied::Expired(_) => (Code::Unauthenticated, Reason::Expired),
            Denied::Revoked(_) | Denied::NotAttested(_) | Denied::NodeGone(_) | Denied::Superseded(_) => {
                (Code::Unauthenticated, Reason::NotAttested)
            }
            Denied::Banned(_) => (Code::PermissionDenied, Reason::Banned),
            Denied::NotAnAgent(_) | Denied::NotAnAdmin(_) => (Code::PermissionDenied, Reason::Denied),
        };
        Self { code, reason, message: denied.to_string() }
    }
}

impl From<issuance::Denied> for Refusal {
    fn from(denied: issuance::Denied) -> Self {
        use issuance::Denied;
        let (code, reason) = match denied {
            Denied::EntryExpired { .. } => (Code::FailedPrecondition, Reason::Expired),
            Denied::NodeAlias(_) | Denied::Reserved(_) | Denied::NotAgent(_) | Denied::Foreign { .. } => {
                (Code::PermissionDenied, Reason::Denied)
            }
            Denied::KeyType { .. } | Denied::ProofKey(_) => (Code::InvalidArgument, Reason::Csr),
            Denied::TooLong { .. } | Denied::TooShort(_) => (Code::InvalidArgument, Reason::Lifetime),
            Denied::NoLifeLeft(_) => (Code::Unavailable, Reason::Lifetime),
            Denied::NoPath(_) | Denied::TooManyDnsNames(_) => (Code::InvalidArgument, Reason::Invalid),
        };
        Self { code, reason, message: denied.to_string() }
    }
}

impl From<CsrError> for Refusal {
    fn from(error: CsrError) -> Self {
        Self { code: Code::InvalidArgument, reason: Reason::Csr, message: error.to_string() }
    }
}

impl From<IssueError> for Refusal {
    fn from(error: IssueError) -> Self {
        let code = match error {
            IssueError::Unprintable => Code::InvalidArgument,
            _ => Code::Internal,
        };
        Self { code, reason: Reason::Internal, message: error.to_string() }
    }
}

impl From<TokenIssueError> for Refusal {
    fn from(error: TokenIssueError) -> Self {
        Self::internal(error)
    }
}

impl From<AudienceError> for Refusal {
    fn from(error: AudienceError) -> Self {
        Self::invalid(error)
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        let (code, reason) = match error {
            StoreError::Conflict { .. } | StoreError::Compacted => (Code::Aborted, Reason::Conflict),
            StoreError::Unavailable(_) | StoreError::Closed => (Code::Unavailable, Reason::Store),
            StoreError::Corrupt(_) => (Code::DataLoss, Reason::Store),
            StoreError::TooLarge { .. } | StoreError::Invalid(_) => (Code::InvalidArgument, Reason::Invalid),
        };
        Self { code, reason, message: error.to_string() }
    }
}

impl From<RotateError> for Refusal {
    fn from(error: RotateError) -> Self {
        match error {
            RotateError::Refused(plan::Refusal::Unknown(_)) => Self::not_found(error),
            RotateError::Refused(_) => Self::precondition(error),
            RotateError::Store(error) => error.into(),
            RotateError::Contended | RotateError::UpstreamEnded(_) => {
                Self { code: Code::Unavailable, reason: Reason::Store, message: error.to_string() }
            }
            RotateError::Record { .. }
            | RotateError::Key(_)
            | RotateError::Certify(_)
            | RotateError::Random(_)
            | RotateError::NoTokenKey(_)
            | RotateError::NoRule(_) => Self::internal(error),
        }
    }
}

impl From<AttestError> for Refusal {
    /// Who could not be judged now may come again; who was judged may not.
    fn from(error: AttestError) -> Self {
        match &error {
            AttestError::K8sPsat(K8sPsatError::Busy(_)) => Self::overloaded(&error.to_string()),
            AttestError::K8sPsat(K8sPsatError::Unavailable(_)) => Self::unavailable(error),
            AttestError::K8sPsat(K8sPsatError::Unbound(_)) => {
                Self { code: Code::Unavailable, reason: Reason::Attestation, message: error.to_string() }
            }
            _ => Self::attestation(error),
        }
    }
}

impl From<audit::Full> for Refusal {
    fn from(full: audit::Full) -> Self {
        Self { code: Code::ResourceExhausted, reason: Reason::AuditFull, message: full.to_string() }
    }
}

impl From<CryptoError> for Refusal {
    fn from(error: CryptoError) -> Self {
        Self::internal(error)
    }
}

impl From<WireError> for Refusal {
    fn from(error: WireError) -> Self {
        Self::invalid(error)
    }
}

impl From<EntryError> for Refusal {
    fn from(error: EntryError) -> Self {
        Self::invalid(error)
    }
}
