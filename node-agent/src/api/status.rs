//! The only file that makes gRPC statuses of errors, by SPIFFE_Workload_Endpoint.md section 6.

use spiffe::selector::Selectors;
use tonic::Status;

use super::places::Full;
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

/// No identity for a process with these selectors: they are its own facts, so it may see them.
pub(super) fn no_identity(selectors: &Selectors) -> Status {
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
pub(super) fn attest(error: &AttestError) -> Status {
    match error {
        AttestError::Credentials(_)
        | AttestError::Interrupted
        | AttestError::TooLong(_)
        | AttestError::AllFailed(_) => Status::unavailable(error.to_string()),
        AttestError::Hidden
        | AttestError::Gone(_)
        | AttestError::Reused(_)
        | AttestError::Changed(_)
        | AttestError::ProcessFile { .. } => Status::permission_denied(error.to_string()),
    }
}

/// There is no place for another stream.
pub(super) fn full(full: Full) -> Status {
    Status::resource_exhausted(full.to_string())
}

/// The identities are not there yet.
pub(super) fn not_ready() -> Status {
    Status::unavailable("the agent has no answer for this process yet: it waits for the server; try again")
}

/// The agent stops.
pub(super) fn stopping() -> Status {
    Status::unavailable(Stopped.to_string())
}

/// The connection does not say who is at its other end: a mistake of the agent's own.
pub(super) fn no_peer() -> Status {
    Status::internal("the agent does not know who is at the other end of this connection")
}

/// An RPC of a profile that this agent does not serve.
pub(super) fn no_profile(profile: &str) -> Status {
    Status::unimplemented(format!("this agent does not serve the {profile} profile: use the X.509-SVID profile"))
}
