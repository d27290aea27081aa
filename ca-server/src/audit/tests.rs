//! What an operator finds in the file, and what happens when it cannot be written.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use super::writer::nap;
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
fn a_symbolic_link_is_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let (link, file) = (folder.path().join("audit.log"), folder.path().join("elsewhere"));
    std::fs::write(&file, "").unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let refused = Audit::open(&config::Audit { to: AuditTarget::File(link.clone()), queue: 16 }).unwrap_err();
    assert!(refused.to_string().contains("it is a symbolic link, which is not followed"), "{refused}");
    // One that is put there later is not either.
    std::fs::remove_file(&link).unwrap();
    let (audit, _writer) = in_file(&link, 16);
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    assert!(audit.reserve(1).unwrap().record(event(7)));
    until("the failure is known", || audit.failure().is_some());
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "");
    std::fs::remove_file(&link).unwrap();
    until("it is written again", || audit.failure().is_none());
    assert_eq!(revisions(&link), [7]);
}

#[test]
fn who_has_proved_nothing_yet_does_not_use_up_the_places() {
    let (audit, _writer) = Audit::to_stream(Box::new(io::sink()), 16);
    let spare: Vec<Permit> = std::iter::from_fn(|| audit.reserve_spare().ok()).collect();
    assert_eq!(spare.len(), 8);
    let others = audit.reserve(8).unwrap();
    drop(spare);
    assert_eq!(audit.reserve_spare().unwrap_err(), Full);
    drop(others);
    assert_eq!(audit.reserve_spare().unwrap().left(), 1);
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
