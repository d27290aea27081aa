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

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use spiffe::entry::EntryId;
use spiffe::id::SpiffeId;
use spiffe::time::Timestamp;
use tokio::sync::{Semaphore, mpsc};

use crate::config::{self, AuditTarget};

/// The longest message of one line, in bytes: the rest is cut.
pub const MAX_MESSAGE_BYTES: usize = 512;

/// Events that one write takes at most.
const BATCH: usize = 1024;
/// How long the writer gathers lines after it has written some: whoever decides then has nobody to wake.
const GATHER: Duration = Duration::from_millis(2);
/// How long the writer waits before it tries a failed write again.
const RETRY: Duration = Duration::from_millis(250);
/// How often a failed write is tried again when the server stops.
const LAST_TRIES: u32 = 4;

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
            Self::Expired => "expired",
            Self::Lifetime => "lifetime",
            Self::RateLimited => "rate_limited",
            Self::AuditFull => "audit_full",
            Self::NoAuthority => "no_authority",
            Self::Conflict => "conflict",
            Self::Store => "store",
            Self::Internal => "internal",
        }
    }
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A certificate was signed.
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
    /// When that certificate ends.
    pub not_after: Option<Timestamp>,
    /// SHA-256 of the CSR.
    pub csr_sha256: Option<[u8; 32]>,
    /// The revision of the view by which it was decided, or that the change made.
    pub revision: u64,
    /// The name of whatever else it is about: a token's or an authority's ID.
    pub object: Option<Message>,
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
            not_after: None,
            csr_sha256: None,
            revision: 0,
            object: None,
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
        let writing = Writing { target, pending: Vec::new(), written: 0, events: 0, state: state.clone() };
        let thread = std::thread::spawn(move || writing.run(events));
        (Self { queue, state: state.clone() }, Writer { thread, state })
    }

    /// Reserves `n` places, all or none.
    pub fn reserve(&self, n: usize) -> Result<Permit, Full> {
        let many = u32::try_from(n).map_err(|_| Full)?;
        self.state.places.try_acquire_many(many).map_err(|_| Full)?.forget();
        Ok(Permit { audit: self.clone(), left: n })
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

enum Target {
    File { path: PathBuf, file: Option<File> },
    Stream(Box<dyn Write + Send>),
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

struct Writing {
    target: Target,
    /// Lines that have not been written, from `written` on.
    pending: Vec<u8>,
    written: usize,
    /// How many places `pending` holds.
    events: usize,
    state: Arc<State>,
}

impl Writing {
    fn run(mut self, mut queue: mpsc::UnboundedReceiver<Event>) {
        let mut events = Vec::with_capacity(BATCH);
        let mut date = Date::default();
        while queue.blocking_recv_many(&mut events, BATCH) > 0 {
            self.events = events.len();
            for event in events.drain(..) {
                write_line(&mut self.pending, &mut date, &event);
            }
            self.write_out();
            nap(GATHER);
        }
    }

    /// Writes what is pending, however long it takes; gives up only when the server stops.
    fn write_out(&mut self) {
        let mut last_tries = 0;
        loop {
            match self.write_once() {
                Ok(()) => break,
                Err(error) => {
                    if self.state.failure.load().is_none() {
                        tracing::error!(%error, "audit lines cannot be written: kept, and tried again");
                    }
                    self.state.failure.store(Some(Arc::new(error.to_string())));
                    if self.state.stopping.load(Ordering::Relaxed) {
                        last_tries += 1;
                    }
                    if last_tries == LAST_TRIES {
                        tracing::error!(lines = self.events, %error, "audit lines are lost: the server stops");
                        break;
                    }
                    nap(RETRY);
                }
            }
        }
        if self.state.failure.load().is_some() && last_tries == 0 {
            tracing::info!("audit lines are written again");
            self.state.failure.store(None);
        }
        self.pending.clear();
        self.written = 0;
        self.state.places.add_permits(std::mem::take(&mut self.events));
    }

    fn write_once(&mut self) -> io::Result<()> {
        if let Target::File { path, file } = &mut self.target
            && !file.as_ref().is_some_and(|file| is_at(file, path))
        {
            *file = None;
            *file = Some(append_to(path)?);
            // What stands torn in the old file is repeated whole in the new one.
            let before = self.pending.get(..self.written).unwrap_or_default();
            self.written = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        }
        while let Some(rest) = self.pending.get(self.written..).filter(|rest| !rest.is_empty()) {
            let step = match &mut self.target {
                Target::File { file: Some(file), .. } => file.write(rest),
                Target::File { file: None, .. } => return Err(io::ErrorKind::NotFound.into()),
                Target::Stream(stream) => stream.write(rest),
            };
            match step {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => self.written += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        match &mut self.target {
            Target::File { .. } => Ok(()),
            Target::Stream(stream) => stream.flush(),
        }
    }
}

/// Whether `path` still names `file`.
fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(open), Ok(named)) = (file.metadata(), std::fs::metadata(path)) else { return false };
    (open.dev(), open.ino()) == (named.dev(), named.ino())
}

#[expect(clippy::disallowed_methods, reason = "the writer is a thread and paces its writes, not its decisions")]
fn nap(duration: Duration) {
    std::thread::sleep(duration);
}

/// The last second that was written as text: most lines share it.
#[derive(Default)]
struct Date {
    at: Timestamp,
    text: String,
}

fn write_line(to: &mut Vec<u8>, date: &mut Date, event: &Event) {
    if date.text.is_empty() || date.at != event.at {
        *date = Date { at: event.at, text: event.at.to_string() };
    }
    // IDs, hexadecimal, numbers and our own words have no character that JSON escapes; messages go through serde_json.
    let mut field = |name: &str, value: &dyn Fn(&mut Vec<u8>)| {
        to.extend_from_slice(if to.last().is_none_or(|byte| *byte == b'\n') { b"{\"" } else { b",\"" });
        to.extend_from_slice(name.as_bytes());
        to.extend_from_slice(b"\":");
        value(to);
    };
    fn quoted(text: &str) -> impl Fn(&mut Vec<u8>) {
        move |to| {
            to.push(b'"');
            to.extend_from_slice(text.as_bytes());
            to.push(b'"');
        }
    }
    fn hex(bytes: &[u8]) -> impl Fn(&mut Vec<u8>) {
        move |to| {
            const DIGITS: &[u8; 16] = b"0123456789abcdef";
            to.push(b'"');
            for byte in bytes {
                to.extend_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
            }
            to.push(b'"');
        }
    }
    fn shown(value: impl std::fmt::Display) -> impl Fn(&mut Vec<u8>) {
        move |to| {
            // A Vec takes every byte.
            let _ = write!(to, "{value}");
        }
    }
    fn escaped(message: &Message) -> impl Fn(&mut Vec<u8>) {
        move |to| {
            // A Vec takes every byte, and a str is JSON.
            let _ = serde_json::to_writer(to, &message.0);
        }
    }

    field("at", &quoted(&date.text));
    field("rpc", &quoted(event.rpc));
    match &event.who {
        Who::Stranger => field("who", &quoted("stranger")),
        Who::Server => field("who", &quoted("server")),
        Who::Uid(uid) => field("who", &quoted(&format!("uid:{uid}"))),
        Who::Svid(id) => field("who", &quoted(id.as_str())),
    }
    if let Some(address) = event.address {
        field("address", &quoted(&address.to_string()));
    }
    match &event.outcome {
        Outcome::Issued => field("outcome", &quoted("issued")),
        Outcome::Changed => field("outcome", &quoted("changed")),
        Outcome::Refused(reason, message) => {
            field("outcome", &quoted("refused"));
            field("reason", &quoted(reason.name()));
            field("message", &escaped(message));
        }
    }
    if let Some(subject) = &event.subject {
        field("subject", &quoted(subject.as_str()));
    }
    if let Some(entry) = &event.entry {
        field("entry", &quoted(entry.as_str()));
    }
    if let Some(object) = &event.object {
        field("object", &escaped(object));
    }
    if let Some(serial) = &event.serial {
        field("serial", &hex(serial.as_slice()));
    }
    if let Some(not_after) = event.not_after {
        field("not_after", &quoted(&not_after.to_string()));
    }
    if let Some(hash) = &event.csr_sha256 {
        field("csr_sha256", &hex(hash));
    }
    field("revision", &shown(event.revision));
    to.extend_from_slice(b"}\n");
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn event(revision: u64) -> Event {
        let who = Who::Svid(SpiffeId::parse("spiffe://example.org/chancery/agent/join_token/ab").unwrap());
        Event {
            address: Some("10.0.0.7:4711".parse().unwrap()),
            subject: Some(SpiffeId::parse("spiffe://example.org/web").unwrap()),
            entry: Some(EntryId::parse("web-1").unwrap()),
            serial: Some(Serial::new(&[0x7f; 16])),
            not_after: Some(Timestamp::from_unix(1_795_221_600)),
            csr_sha256: Some([0xab; 32]),
            revision,
            ..Event::new(Timestamp::from_unix(1_795_218_000), "IssueX509Svids", who, Outcome::Issued)
        }
    }

    fn in_file(path: &Path, queue: usize) -> (Audit, Writer) {
        Audit::open(&config::Audit { to: AuditTarget::File(path.into()), queue }).unwrap()
    }

    fn until(what: &str, mut done: impl FnMut() -> bool) {
        for _ in 0..2000 {
            if done() {
                return;
            }
            nap(Duration::from_millis(5));
        }
        panic!("not seen in 10 seconds: {what}");
    }

    fn revisions(path: &Path) -> Vec<u64> {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let line = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["revision"].as_u64().unwrap();
        text.lines().map(line).collect()
    }

    #[test]
    fn a_line_says_who_what_and_how_it_ended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        let (audit, writer) = in_file(&path, 16);
        let mut permit = audit.reserve(2).unwrap();
        assert_eq!(audit.depth(), 2);
        assert!(permit.record(event(7)));
        let refused = Outcome::Refused(Reason::Denied, Message::new("not \"yours\"\nat all"));
        assert!(permit.record(Event::new(Timestamp::from_unix(0), "BanAgent", Who::Uid(1000), refused)));
        assert!(!permit.record(event(8)), "two places were reserved");
        drop((permit, audit));
        writer.finish();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            concat!(
                r#"{"at":"2026-11-20T23:40:00Z","rpc":"IssueX509Svids","who":"spiffe://example.org/chancery/agent/join_token/ab","#,
                r#""address":"10.0.0.7:4711","outcome":"issued","subject":"spiffe://example.org/web","entry":"web-1","#,
                r#""serial":"7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f","not_after":"2026-11-21T00:40:00Z","#,
                r#""csr_sha256":"abababababababababababababababababababababababababababababababab","revision":7}"#,
                "\n",
                r#"{"at":"1970-01-01T00:00:00Z","rpc":"BanAgent","who":"uid:1000","outcome":"refused","reason":"denied","#,
                r#""message":"not \"yours\"\nat all","revision":0}"#,
                "\n",
            )
        );
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn no_place_no_decision_and_a_dropped_place_is_free_again() {
        let folder = tempfile::tempdir().unwrap();
        let (audit, writer) = in_file(&folder.path().join("audit.log"), 4);
        let first = audit.reserve(3).unwrap();
        assert_eq!(audit.reserve(2).unwrap_err(), Full);
        assert_eq!(audit.reserve(usize::MAX).unwrap_err(), Full);
        drop(first);
        let second = audit.reserve(4).unwrap();
        assert_eq!(second.left(), 4);
        drop((second, audit));
        writer.finish();
    }

    #[test]
    fn a_renamed_file_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let (path, old) = (folder.path().join("audit.log"), folder.path().join("audit.log.1"));
        let (audit, writer) = in_file(&path, 16);
        audit.reserve(1).unwrap().record(event(1));
        until("the first line", || audit.depth() == 0);
        std::fs::rename(&path, &old).unwrap();
        audit.reserve(1).unwrap().record(event(2));
        drop(audit);
        writer.finish();
        assert_eq!((revisions(&old), revisions(&path)), (vec![1], vec![2]));
    }

    /// Takes a few bytes, then none until it is mended: a full disk.
    #[derive(Clone, Default)]
    struct Disk(Arc<Mutex<(Vec<u8>, usize)>>);

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut disk = self.0.lock().unwrap();
            let room = disk.1.saturating_sub(disk.0.len()).min(bytes.len());
            if room == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            disk.0.extend_from_slice(&bytes[..room]);
            Ok(room)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_is_said_stops_the_signing_and_loses_no_line() {
        let disk = Disk::default();
        disk.0.lock().unwrap().1 = 100;
        let (audit, writer) = Audit::to_stream(Box::new(disk.clone()), 4);
        for revision in 1..=4 {
            audit.reserve(1).unwrap().record(event(revision));
        }
        until("the failure", || audit.failure().is_some());
        assert!(audit.failure().unwrap().contains("no storage space"), "{:?}", audit.failure());
        assert_eq!(audit.reserve(1).unwrap_err(), Full);
        disk.0.lock().unwrap().1 = usize::MAX;
        until("the recovery", || audit.failure().is_none() && audit.depth() == 0);
        audit.reserve(1).unwrap().record(event(5));
        drop(audit);
        writer.finish();
        let text = String::from_utf8(disk.0.lock().unwrap().0.clone()).unwrap();
        let revision = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["revision"].as_u64();
        assert_eq!(text.lines().map(revision).collect::<Vec<_>>(), [Some(1), Some(2), Some(3), Some(4), Some(5)]);
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named_at_the_start() {
        let to = AuditTarget::File("/nowhere/audit.log".into());
        let message = Audit::open(&config::Audit { to, queue: 16 }).map(|_| ()).unwrap_err().to_string();
        assert!(
            message.starts_with("audit file /nowhere/audit.log cannot be opened for writing: No such file"),
            "{message}"
        );
    }

    #[test]
    fn a_message_is_cut_between_characters() {
        let Message(text) = Message::new(&"ä".repeat(400));
        assert_eq!(text.len(), MAX_MESSAGE_BYTES);
    }
}
