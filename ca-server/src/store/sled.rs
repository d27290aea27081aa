//! The embedded store: one directory, one server process, sled 0.34 below.
//!
//! - One writer thread takes transactions from a bounded queue, several at a time: it compares and applies each in order,
//!   makes all of them durable with one `fdatasync`, then shows them to the watchers, then answers.
//! - While a group is under way nobody reads, so nobody sees what could still be lost.
//! - The disk is nearly full: writes are refused with the reason before sled can run into it; reads go on, and writes work
//!   again as soon as there is space.
//! - sled fails: nothing of the group is acknowledged, sled is closed, and the next commit or range opens and verifies it again.
//!   What of the unacknowledged group turns out to be on the disk then is shown to the watchers, in order; the rest never was.
//! - `fdatasync` fails: what the disk holds is unknown, and asking again proves nothing; the store stays shut until a restart.
//!
//! `sled/database.rs` is the only file that names the crate sled; `sled/files.rs` is our own watch over the directory.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};
use std::thread::JoinHandle;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};

use super::log::CommitLog;
use super::{Commit, KeyValue, Revision, Store, StoreError, Txn, Watch};
use database::{Applied, Database, Failure};

mod database;
mod files;

/// Transactions that wait for the writer; more wait outside, each in its own task.
const QUEUE_LIMIT: usize = 256;
/// Transactions made durable together.
const GROUP_LIMIT: usize = 128;

/// The embedded store.
pub struct SledStore {
    shared: Arc<Shared>,
    /// `None` only while dropping.
    requests: Option<mpsc::Sender<Request>>,
    writer: Option<JoinHandle<()>>,
}

struct Request {
    txn: Txn,
    answer: oneshot::Sender<Result<Revision, StoreError>>,
}

struct Shared {
    path: PathBuf,
    state: RwLock<State>,
    log: Arc<CommitLog>,
}

enum State {
    /// All that is in the database is durable and was published.
    Open(Database),
    /// sled failed and was closed; `doubtful` are the commits that were applied but not acknowledged, after `published`.
    Failed {
        why: StoreError,
        published: Revision,
        doubtful: Vec<Commit>,
    },
    /// Only a restart helps. The database is kept, untouched: to close it would be to write.
    Lost {
        why: String,
        _database: std::mem::ManuallyDrop<Database>,
    },
    Closed,
}

impl SledStore {
    /// Opens the store in the directory `path`, creating it if need be, and verifies all that it holds. Blocks; a million keys
    /// take seconds.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]: in use by another process, not writable, no space. [`StoreError::Corrupt`]: damaged, a
    /// foreign format, or older than what was once acknowledged.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let path = path.as_ref().to_path_buf();
        tracing::info!(path = %path.display(), "opening the store; should the server stop at this line, restore it from a backup");
        let database = Database::open(&path).map_err(Failure::into_error)?;
        let log = Arc::new(CommitLog::new(database.revision()));
        let shared = Arc::new(Shared { path, state: RwLock::new(State::Open(database)), log });
        let (requests, queue) = mpsc::channel(QUEUE_LIMIT);
        let writer = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || shared.write(queue)
            })
            .map_err(|error| StoreError::Unavailable(format!("no thread for the writer: {error}")))?;
        Ok(SledStore { shared, requests: Some(requests), writer: Some(writer) })
    }
}

impl fmt::Debug for SledStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SledStore").field("path", &self.shared.path).finish_non_exhaustive()
    }
}

impl Drop for SledStore {
    /// Closes the directory before it returns, so that it can be opened again at once.
    fn drop(&mut self) {
        self.requests = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the writer of the store panicked");
        }
    }
}

#[async_trait]
impl Store for SledStore {
    async fn range(&self, prefix: &str) -> Result<(Vec<KeyValue>, Revision), StoreError> {
        let (shared, prefix) = (Arc::clone(&self.shared), prefix.to_owned());
        match tokio::task::spawn_blocking(move || shared.range(&prefix)).await {
            Ok(found) => found,
            Err(error) => Err(StoreError::Unavailable(format!("the reading thread stopped: {error}"))),
        }
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, StoreError> {
        txn.validate()?;
        let requests = self.requests.as_ref().ok_or(StoreError::Closed)?;
        let (answer, answered) = oneshot::channel();
        requests.send(Request { txn, answer }).await.map_err(|_| StoreError::Closed)?;
        answered.await.map_err(|_| StoreError::Closed)?
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        self.shared.log.watch(prefix, after)
    }
}

impl Shared {
    fn state(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn range(&self, prefix: &str) -> Result<(Vec<KeyValue>, Revision), StoreError> {
        // Twice at most: when sled has failed, the first round opens it again.
        for round in 0..2 {
            match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
                State::Open(database) => match database.range(prefix) {
                    Ok(found) => return Ok((found, database.revision())),
                    Err(failure) => return Err(failure.into_error()),
                },
                State::Failed { why, .. } if round > 0 => return Err(why.clone()),
                State::Failed { .. } => {}
                State::Lost { why, .. } => return Err(StoreError::Unavailable(why.clone())),
                State::Closed => return Err(StoreError::Closed),
            }
            self.recover(&mut self.state());
        }
        Err(StoreError::Closed)
    }

    /// The writer thread: until the last sender is gone.
    fn write(&self, mut queue: mpsc::Receiver<Request>) {
        while let Some(first) = queue.blocking_recv() {
            let mut group = vec![first];
            while group.len() < GROUP_LIMIT
                && let Ok(next) = queue.try_recv()
            {
                group.push(next);
            }
            self.commit(group);
        }
        // Waits for readers, then closes sled, so that the directory is free when the store is gone.
        let last = std::mem::replace(&mut *self.state(), State::Closed);
        drop(last);
    }

    /// Applies a group of transactions, makes it durable, publishes it, and only then answers, refusals included: they may
    /// rest on a commit of the same group.
    fn commit(&self, group: Vec<Request>) {
        let mut state = self.state();
        self.recover(&mut state);
        let outcome = match &mut *state {
            State::Open(database) => apply(database, &group),
            State::Failed { why, .. } => Err((Failure::Sled(why.clone()), Vec::new())),
            State::Lost { why, .. } => Err((Failure::Sled(StoreError::Unavailable(why.clone())), Vec::new())),
            State::Closed => Err((Failure::Sled(StoreError::Closed), Vec::new())),
        };
        match outcome {
            Ok((answers, commits)) => {
                for commit in commits {
                    self.log.publish(commit);
                }
                drop(state);
                for (request, answer) in group.into_iter().zip(answers) {
                    // Nobody waits for it any more: dropping the future was the caller's choice.
                    let _ = request.answer.send(answer);
                }
            }
            Err((failure, doubtful)) => {
                let why = failure.error();
                if matches!(&*state, State::Open(_)) {
                    tracing::error!(error = %why, doubtful = doubtful.len(), "the store failed");
                    fail(&mut state, failure, doubtful);
                }
                drop(state);
                for request in group {
                    let _ = request.answer.send(Err(why.clone()));
                }
            }
        }
    }

    /// If sled has failed, opens it again and publishes what of the doubtful commits is really there.
    fn recover(&self, state: &mut State) {
        let State::Failed { why, published, doubtful } = state else { return };
        let recovered = Database::open(&self.path).and_then(|database| {
            let latest = *published + doubtful.len() as Revision;
            if (*published..=latest).contains(&database.revision()) {
                return Ok(database);
            }
            Err(Failure::Sled(StoreError::Corrupt(format!(
                "{} is at revision {} after a failure, but {published} was acknowledged: restore the directory from a backup",
                self.path.display(),
                database.revision(),
            ))))
        });
        match recovered {
            Ok(database) => {
                for commit in doubtful.drain(..).take_while(|commit| commit.revision <= database.revision()) {
                    self.log.publish(commit);
                }
                tracing::info!(revision = database.revision(), "the store works again");
                *state = State::Open(database);
            }
            Err(failure) => *why = failure.into_error(),
        }
    }
}

/// Leaves [`State::Open`].
fn fail(state: &mut State, failure: Failure, doubtful: Vec<Commit>) {
    let State::Open(database) = std::mem::replace(state, State::Closed) else { return };
    *state = match failure {
        Failure::Sled(why) => {
            let published = database.acknowledged();
            drop(database);
            State::Failed { why, published, doubtful }
        }
        Failure::Sync(why) => State::Lost { why, _database: std::mem::ManuallyDrop::new(database) },
    };
}

type Group = (Vec<Result<Revision, StoreError>>, Vec<Commit>);

/// Applies each transaction of the group and makes all durable. On failure: which commits are in doubt.
fn apply(database: &mut Database, group: &[Request]) -> Result<Group, (Failure, Vec<Commit>)> {
    let (mut answers, mut commits) = (Vec::with_capacity(group.len()), Vec::new());
    for request in group {
        match database.apply(&request.txn) {
            Ok(Applied::Changed(commit)) => {
                answers.push(Ok(commit.revision));
                commits.push(commit);
            }
            Ok(Applied::Unchanged) => answers.push(Ok(database.revision())),
            Ok(Applied::Refused(why)) => answers.push(Err(why)),
            Err((failure, commit)) => {
                commits.extend(commit);
                return Err((failure, commits));
            }
        }
    }
    if !commits.is_empty()
        && let Err(failure) = database.make_durable()
    {
        return Err((failure, commits));
    }
    Ok((answers, commits))
}
