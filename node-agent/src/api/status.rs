//! The only file of the workload socket that makes gRPC statuses of errors: for the Workload API by
//! SPIFFE_Workload_Endpoint.md section 6.

use spiffe::selector::Selectors;
use tonic::Status;

use super::door::Denial;
use super::sds::Refusal;
use crate::attestor::AttestError;
use crate::cache::Stopped;

/// Longer ones would not fit into the headers that some clients accept.
const MAX_SHOWN_BYTES: usize = 600;

/// The request lacks the security header, or has another value in it.
pub(super) fn no_security_header() -> Status {
    Status::invalid_argument(
        "security header is missing: send the metadata \"workload.spiffe.io: true\" with every request",
    )
}

/// The request is not said to be gRPC.
pub(super) fn no_grpc() -> Status {
    Status::invalid_argument("this is gRPC alone: send \"content-type: application/grpc\" with every request")
}

/// Why the process gets no answer, or no further one.
pub(super) fn denied(denial: &Denial) -> Status {
    match denial {
        Denial::Full(_) | Denial::TooManyWait { .. } => Status::resource_exhausted(denial.to_string()),
        Denial::Attest(error) => attest(error),
        Denial::NoIdentity { selectors, .. } => no_identity(selectors),
        Denial::OtherIdentity(_) | Denial::Refused(_) | Denial::PodGone(_) => {
            Status::permission_denied(denial.to_string())
        }
        Denial::CallerExpired(_) | Denial::CallerRefused(_) => Status::unauthenticated(denial.to_string()),
        Denial::NotReady | Denial::PodChanged(_) | Denial::Stopping(_) => Status::unavailable(denial.to_string()),
    }
}

/// No identity for a process with these selectors: they are its own facts, so it may see them.
fn no_identity(selectors: &Selectors) -> Status {
    let mut shown = selectors.to_string();
    if shown.len() > MAX_SHOWN_BYTES {
        let end = (0..=MAX_SHOWN_BYTES).rev().find(|at| shown.is_char_boundary(*at)).unwrap_or(0);
        shown.truncate(end);
        shown.push_str("...");
    }
    Status::permission_denied(format!(
        "no identity is issued to this process: no registration entry of this node matches its selectors ({shown})"
    ))
}

/// Nothing could be said of the process.
fn attest(error: &AttestError) -> Status {
    match error {
        AttestError::Credentials(_)
        | AttestError::Interrupted
        | AttestError::Kubernetes(_)
        | AttestError::TooLong(_)
        | AttestError::Pin { .. }
        | AttestError::AllFailed(_) => Status::unavailable(error.to_string()),
        AttestError::Hidden
        | AttestError::Gone(_)
        | AttestError::Changed(_)
        | AttestError::Thread(_)
        | AttestError::TwoUsers(_)
        | AttestError::ProcessFile { .. } => Status::permission_denied(error.to_string()),
    }
}

/// Why a proxy does not get the secrets that it asks for.
pub(super) fn refused(refusal: &Refusal) -> Status {
    match refusal {
        Refusal::NotEntitled { .. } => Status::permission_denied(refusal.to_string()),
        Refusal::Type(_)
        | Refusal::TooManyNames(_)
        | Refusal::LongName(_)
        | Refusal::Unknown { .. }
        | Refusal::RootsOfAll(_) => Status::invalid_argument(refusal.to_string()),
    }
}

/// The status socket is for others.
pub(super) fn no_operator(uid: u32) -> Status {
    Status::permission_denied(format!(
        "user {uid} is not let in here: only root and the agent's own user may ask how the agent is"
    ))
}

/// The agent stops.
pub(super) fn stopping(stopped: &Stopped) -> Status {
    Status::unavailable(stopped.to_string())
}

/// The connection does not say who is at its other end: a mistake of the agent's own.
pub(super) fn no_peer() -> Status {
    Status::internal("the agent does not know who is at the other end of this connection")
}

/// What was asked for cannot be understood.
pub(super) fn invalid(why: &dyn std::fmt::Display) -> Status {
    Status::invalid_argument(why.to_string())
}
