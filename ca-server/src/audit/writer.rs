//! The thread that writes the lines: it formats them, many at once, and knows what to do when a file is full or gone.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use spiffe::time::Timestamp;
use tokio::sync::mpsc;

use super::{Event, Mark, Message, Outcome, State, Who};

/// Events that one write takes at most.
const BATCH: usize = 1024;
/// How long the writer gathers lines after it has written some: whoever decides then has nobody to wake.
const GATHER: Duration = Duration::from_millis(2);
/// How long the writer waits before it tries a failed write again.
const RETRY: Duration = Duration::from_millis(250);
/// How often a failed write is tried again when the server stops.
const LAST_TRIES: u32 = 4;

pub(super) enum Target {
    File { path: PathBuf, file: Option<File> },
    Stream(Box<dyn Write + Send>),
}

/// Opens the record. A symbolic link is not followed: whoever could put one there would choose what file is written to.
pub(super) fn append_to(path: &Path) -> io::Result<File> {
    let no_link = nix::fcntl::OFlag::O_NOFOLLOW.bits();
    let opened = OpenOptions::new().create(true).append(true).mode(0o600).custom_flags(no_link).open(path);
    opened.map_err(|error| match error.raw_os_error() {
        Some(number) if number == nix::errno::Errno::ELOOP as i32 => io::Error::other(
            "it is a symbolic link, which is not followed: write the path of the file itself (or \"-\", for standard \
             output) as audit.file",
        ),
        _ => error,
    })
}

pub(super) struct Writing {
    target: Target,
    /// Lines that have not been written, from `written` on.
    pending: Vec<u8>,
    written: usize,
    /// How many places `pending` holds.
    events: usize,
    state: Arc<State>,
}

impl Writing {
    pub(super) fn new(target: Target, state: Arc<State>) -> Self {
        Self { target, pending: Vec::new(), written: 0, events: 0, state }
    }

    pub(super) fn run(mut self, mut queue: mpsc::UnboundedReceiver<Event>) {
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
    let (Ok(open), Ok(named)) = (file.metadata(), std::fs::symlink_metadata(path)) else { return false };
    (open.dev(), open.ino()) == (named.dev(), named.ino())
}

#[expect(clippy::disallowed_methods, reason = "the writer is a thread and paces its writes, not its decisions")]
pub(super) fn nap(duration: Duration) {
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
        Who::ServiceAccount(account) => {
            field("who", &quoted("service_account"));
            // The API server's words, not ours.
            field("account", &escaped(account));
        }
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
    if let Some(content) = &event.content {
        field("content", &escaped(&content.text));
        field("content_sha256", &hex(&content.sha256));
    }
    if let Some(serial) = &event.serial {
        field("serial", &hex(serial.as_slice()));
    }
    if let Some(token) = &event.token {
        field("kid", &quoted(&token.kid));
        match &token.mark {
            Mark::Jti(jti) => field("jti", &quoted(jti)),
            Mark::Sha256(hash) => field("token_sha256", &hex(hash)),
        }
        if let Some(audience) = &token.audience {
            field("audience", &escaped(audience));
        }
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
