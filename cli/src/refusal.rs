//! gRPC statuses and refusals in plain sentences. The server's own text says what was wrong; what is added says
//! which kind of failure it is and what to do where the server cannot know.

use std::error::Error as _;

use spiffe::proto::v1;
use tonic::{Code, Status};

use crate::exit::Failure;
use crate::output::plain;

/// How the sentence of a caller without the right begins.
pub(crate) const NOT_ALLOWED: &str = "not allowed: ";

/// The outcome of a call that failed.
pub(crate) fn failure(status: &Status) -> Failure {
    let text = sentence(status.code(), status.message());
    // A status that was made on this side has the broken connection as its source.
    let broken = status.source().is_some() && matches!(status.code(), Code::Unknown | Code::Unavailable);
    if broken {
        return Failure::Unreachable(format!("the connection broke: {}", plain(status.message())));
    }
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded => Failure::Unreachable(text),
        _ => Failure::Refused(text),
    }
}

/// What became of one item of a batch that was refused.
pub(crate) fn of_item(refused: &v1::Refusal) -> String {
    sentence(Code::from(refused.code), &refused.message)
}

/// The name of a code in documents of ours: `already_exists`.
pub(crate) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "cancelled",
        Code::Unknown => "unknown",
        Code::InvalidArgument => "invalid_argument",
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::NotFound => "not_found",
        Code::AlreadyExists => "already_exists",
        Code::PermissionDenied => "permission_denied",
        Code::ResourceExhausted => "resource_exhausted",
        Code::FailedPrecondition => "failed_precondition",
        Code::Aborted => "aborted",
        Code::OutOfRange => "out_of_range",
        Code::Unimplemented => "unimplemented",
        Code::Internal => "internal",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data_loss",
        Code::Unauthenticated => "unauthenticated",
    }
}

fn sentence(code: Code, message: &str) -> String {
    let message = if message.is_empty() { "it gave no reason".into() } else { plain(message) };
    // Some say themselves when to try again.
    let again = if message.contains("try again") { "" } else { "; try again" };
    match code {
        Code::InvalidArgument | Code::OutOfRange => format!("not accepted: {message}"),
        Code::NotFound => format!("not found: {message}"),
        Code::AlreadyExists => format!("already exists: {message}"),
        Code::PermissionDenied => format!("{NOT_ALLOWED}{message}"),
        Code::Unauthenticated => format!("not known to the server: {message}"),
        Code::FailedPrecondition => format!("not possible as things are: {message}"),
        Code::ResourceExhausted => format!("too much at once: {message}"),
        Code::Aborted => format!("something else changed at the same time: {message}{again}"),
        Code::Unavailable => format!("cannot be answered now: {message}{again}"),
        Code::DeadlineExceeded => format!("no answer in time: {message}{again}"),
        Code::Unimplemented => format!("not known to this server, which may be of another version: {message}"),
        Code::Cancelled => format!("the call was cancelled: {message}"),
        Code::Ok | Code::Unknown | Code::Internal | Code::DataLoss => {
            format!("the server failed: {message}; its log says more")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_become_sentences_and_exit_codes() {
        let refused = failure(&Status::already_exists("entry web-1 has the same identity"));
        assert_eq!(refused.to_string(), "already exists: entry web-1 has the same identity");
        assert_eq!(refused.exit(), 1);
        let busy = failure(&Status::unavailable("no store"));
        assert_eq!((busy.to_string().as_str(), busy.exit()), ("cannot be answered now: no store; try again", 3));
        let waits = failure(&Status::unavailable("it waits for the server; try again"));
        assert_eq!(waits.to_string(), "cannot be answered now: it waits for the server; try again");
        assert!(failure(&Status::internal("\u{1b}[2J")).to_string().contains("\\u{1b}"));
    }
}
