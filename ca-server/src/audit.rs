//! The record of decisions: one JSON line for each, in the order in which they were made.
//!
//! - **What cannot be recorded is not signed.** A place in the bounded queue is reserved *before* the decision is carried
//!   out ([`Audit::reserve`]); no place means [`Full`]. A place is free again only when its line has been written.
//! - The one who decides pays for a move into a queue; a thread of its own writes, many lines at once.
//! - A file that cannot be written is said by [`Audit::failure`]. Lines are kept, the write is tried again, and what
//!   was written in part is continued, so that no line is torn or lost; when the queue is full, nothing more is decided.
//! - A file that was renamed or deleted is made anew at the next line: logrotate needs no signal.
//! - Lines reach the operating system within a few milliseconds. They are not forced to the disk one by one: a power
//!   cut may take the last seconds.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use arc_swap::ArcSwapOption;
use spiffe::entry::EntryId;
use spiffe::id::SpiffeId;
use spiffe::time::Timestamp;
use tokio::sync::{Semaphore, mpsc};

use self::writer::{Target, Writing, append_to};
use crate::config::{self, AuditTarget};

#[cfg(test)]
mod tests;
mod writer;

/// The longest message of one line, in bytes: the rest is cut.
pub const MAX_MESSAGE_BYTES: usize = 512;

/// The record cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("audit file {path} cannot be opened for writing: {source}. Nothing is signed that cannot be recorded")]
pub struct AuditError {
    path: PathBuf,
    source: io::Error,
}

/// No place in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the audit queue is full, and what cannot be recorded is not signed: try again in a second")]
pub struct Full;

/// Who asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// Somebody without an SVID.
    Stranger,
    /// A process on this machine, by its user id.
    Uid(u32),
    /// The holder of an SVID.
    Svid(SpiffeId),
    /// A service account of Kubernetes, by its token: `<cluster>/<namespace>/<name>`.
    ServiceAccount(Message),
    /// The server itself: a rotation, a purge.
    Server,
}

/// Why something was refused: the label of the metric and the word in the line. A closed set, so that both are bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// The request cannot be read or breaks a limit.
    Invalid,
    /// The CSR is no proof of a key that is taken.
    Csr,
    /// There is no such thing.
    NotFound,
    /// There already is one.
    AlreadyExists,
    /// The caller has no right to it.
    Denied,
    /// The caller is an agent that is banned.
    Banned,
    /// The caller is an agent that was evicted or never attested, or its SVID is not its present one.
    NotAttested,
    /// The proof of the node is no good.
    Attestation,
    /// The caller did not prove who it is.
    Authentication,
    /// The entry, token or SVID has expired.
    Expired,
    /// The lifetime cannot be honoured.
    Lifetime,
    /// Too many calls.
    RateLimited,
    /// No place in the audit queue.
    AuditFull,
    /// No authority can sign now.
    NoAuthority,
    /// Somebody else changed the same thing at the same time.
    Conflict,
    /// The store cannot be reached or written.
    Store,
    /// Who has to be asked does not answer: nothing is said about the caller.
    Unavailable,
    /// A fault of ours.
    Internal,
}

impl Reason {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Csr => "csr",
            Self::NotFound => "not_found",
            Self::AlreadyExists => "already_exists",
            Self::Denied => "denied",
            Self::Banned => "banned",
            Self::NotAttested => "not_attested",
            Self::Attestation => "attestation",
            Self::Authentication => "authentication",
            Self::Expired => "expired",
            Self::Lifetime => "lifetime",
            Self::RateLimited => "rate_limited",
            Self::AuditFull => "audit_full",
            Self::NoAuthority => "no_authority",
            Self::Conflict => "conflict",
            Self::Store => "store",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        }
    }
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A certificate or a token was signed.
    Issued,
    /// Something was changed.
    Changed,
    /// Nothing was done.
    Refused(Reason, Message),
}

/// Text of at most [`MAX_MESSAGE_BYTES`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message(Box<str>);

impl Message {
    /// Takes `text`, cut where it is too long.
    pub fn new(text: &str) -> Self {
        let mut end = text.len().min(MAX_MESSAGE_BYTES);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        Self(text.get(..end).unwrap_or_default().into())
    }
}

/// Something that was to be written, of any length: the first of it, and what the whole of it can be known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    text: Message,
    sha256: [u8; 32],
}

impl Content {
    /// Of this text.
    pub fn new(text: &str) -> Self {
        Self { text: Message::new(text), sha256: spiffe::crypto::sha256(text.as_bytes()) }
    }
}

/// A certificate's serial number: at most 20 bytes (RFC 5280 section 4.1.2.2); the rest is cut.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Serial {
    bytes: [u8; 20],
    length: u8,
}

impl Serial {
    /// The serial number with these bytes, the highest first.
    pub fn new(from: &[u8]) -> Self {
        let mut bytes = [0; 20];
        let mut length = 0;
        for (to, byte) in bytes.iter_mut().zip(from) {
            *to = *byte;
            length += 1;
        }
        Self { bytes, length }
    }

    fn as_slice(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.length)).unwrap_or_default()
    }
}

impl std::fmt::Debug for Serial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&spiffe::crypto::hex(self.as_slice()))
    }
}

/// A token that was signed, by what it can be known again; never the token itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The key that signed it.
    pub kid: Arc<str>,
    /// Its name, or its hash.
    pub mark: Mark,
    /// Whom it is for; `None` for a WIT-SVID.
    pub audience: Option<Message>,
}

/// What tells a token from all others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mark {
    /// The claim `jti`, which we made: hexadecimal.
    Jti(String),
    /// The SHA-256 of a token that has none.
    Sha256([u8; 32]),
}

/// One decision. [`Event::new`] has what every one needs; set the rest where it applies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub at: Timestamp,
    /// The name of the RPC, or of the loop that decided.
    pub rpc: &'static str,
    /// Who asked.
    pub who: Who,
    /// From where; `None` on a unix socket.
    pub address: Option<SocketAddr>,
    /// How it ended.
    pub outcome: Outcome,
    /// The identity that was signed for, or the agent or trust domain that it is about.
    pub subject: Option<SpiffeId>,
    /// The entry.
    pub entry: Option<EntryId>,
    /// The serial number of the certificate that was signed.
    pub serial: Option<Serial>,
    /// The token that was signed.
    pub token: Option<Box<Token>>,
    /// When that certificate or token ends.
    pub not_after: Option<Timestamp>,
    /// SHA-256 of the CSR.
    pub csr_sha256: Option<[u8; 32]>,
    /// The revision of the view by which it was decided, or that the change made.
    pub revision: u64,
    /// The name of whatever else it is about: a token's or an authority's ID.
    pub object: Option<Message>,
    /// What was to be written.
    pub content: Option<Box<Content>>,
}

impl Event {
    /// A decision and nothing about it but who, what and how it ended.
    pub fn new(at: Timestamp, rpc: &'static str, who: Who, outcome: Outcome) -> Self {
        Self {
            at,
            rpc,
            who,
            address: None,
            outcome,
            subject: None,
            entry: None,
            serial: None,
            token: None,
            not_after: None,
            csr_sha256: None,
            revision: 0,
            object: None,
            content: None,
        }
    }
}

/// The way into the record. Clones share it.
#[derive(Clone)]
pub struct Audit {
    queue: mpsc::UnboundedSender<Event>,
    state: Arc<State>,
}

struct State {
    /// A permit for each free place.
    places: Semaphore,
    capacity: usize,
    failure: ArcSwapOption<String>,
    stopping: AtomicBool,
}

impl std::fmt::Debug for Audit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Audit").field("depth", &self.depth()).finish_non_exhaustive()
    }
}

/// Places in the queue, free again when dropped.
#[must_use = "a place that is dropped records nothing"]
#[derive(Debug)]
pub struct Permit {
    audit: Audit,
    left: usize,
}

impl Permit {
    /// Records one decision in one of the places; without a place left, which is a fault of the caller, it is `false`.
    pub fn record(&mut self, event: Event) -> bool {
        if self.left == 0 {
            return false;
        }
        // The place now belongs to the event: the writer frees it.
        self.left -= 1;
        if self.audit.queue.send(event).is_err() {
            self.audit.state.places.add_permits(1);
            return false;
        }
        true
    }

    /// How many places are left.
    pub fn left(&self) -> usize {
        self.left
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.audit.state.places.add_permits(self.left);
    }
}

/// The thread that writes. It ends when every [`Audit`] and [`Permit`] is dropped and their lines are written.
#[must_use = "finish it, or the last lines may be lost"]
#[derive(Debug)]
pub struct Writer {
    thread: JoinHandle<()>,
    state: Arc<State>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").finish_non_exhaustive()
    }
}

impl Writer {
    /// Waits until everything is written, or, where that fails, has been tried for a second. Blocks: call it from a
    /// blocking thread, after the last [`Audit`] was dropped.
    pub fn finish(self) {
        self.state.stopping.store(true, Ordering::Relaxed);
        if self.thread.join().is_err() {
            tracing::error!("the audit writer ended in a panic");
        }
    }
}

impl Audit {
    /// Opens what `config` names and starts the writer.
    pub fn open(config: &config::Audit) -> Result<(Self, Writer), AuditError> {
        let target = match &config.to {
            AuditTarget::Stdout => Target::Stream(Box::new(io::stdout())),
            AuditTarget::File(path) => {
                let file = append_to(path).map_err(|source| AuditError { path: path.clone(), source })?;
                Target::File { path: path.clone(), file: Some(file) }
            }
        };
        Ok(Self::start(target, config.queue))
    }

    /// Writes the lines to `stream`.
    pub fn to_stream(stream: Box<dyn Write + Send>, queue: usize) -> (Self, Writer) {
        Self::start(Target::Stream(stream), queue)
    }

    fn start(target: Target, capacity: usize) -> (Self, Writer) {
        let (queue, events) = mpsc::unbounded_channel();
        let state = Arc::new(State {
            places: Semaphore::new(capacity),
            capacity,
            failure: ArcSwapOption::empty(),
            stopping: AtomicBool::new(false),
        });
        let writing = Writing::new(target, state.clone());
        let thread = std::thread::spawn(move || writing.run(events));
        (Self { queue, state: state.clone() }, Writer { thread, state })
    }

    /// Reserves `n` places, all or none.
    pub fn reserve(&self, n: usize) -> Result<Permit, Full> {
        let many = u32::try_from(n).map_err(|_| Full)?;
        self.state.places.try_acquire_many(many).map_err(|_| Full)?.forget();
        Ok(Permit { audit: self.clone(), left: n })
    }

    /// Reserves a place for somebody who has proved nothing yet: only while half of the places are free, so that it is
    /// not they who use them up.
    pub fn reserve_spare(&self) -> Result<Permit, Full> {
        if self.depth() >= self.state.capacity / 2 { Err(Full) } else { self.reserve(1) }
    }

    /// How many places are reserved or hold a decision that is not written yet.
    pub fn depth(&self) -> usize {
        self.state.capacity.saturating_sub(self.state.places.available_permits())
    }

    /// Why the record cannot be written at the moment; `None`: it can.
    pub fn failure(&self) -> Option<Arc<String>> {
        self.state.failure.load_full()
    }
}
