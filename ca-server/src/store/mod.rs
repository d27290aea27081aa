//! The store: what the servers of one trust domain remember, under compare-and-swap.
//!
//! Keys are text, values are bytes; the store knows nothing of what they mean. Its rules, the same for every
//! implementation and checked by one suite ([`conformance`]):
//!
//! - **One line of history.** Every commit that changes something has a [`Revision`] of its own, greater than all before.
//! - **All or none.** A [`Txn`] is applied whole, and only when each key that it expects is still at its revision.
//! - **Acknowledged means kept.** An answer of `Ok` comes after the bytes reached stable storage (`mem` excepted).
//! - **Seen means kept.** Neither [`Store::range`] nor a [`Watch`] shows a commit that could still be lost.
//! - **Only changes count.** To delete what is absent changes nothing; a transaction that changes nothing takes no revision.
//! - **Nothing grows without bound.** Sizes are limited ([`VALUE_LIMIT`], ..), recent commits are kept up to a limit, and a
//!   watcher that falls behind it is told [`StoreError::Compacted`]: it reads the range again, as on start.

use std::fmt;
use std::pin::Pin;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};

#[doc(hidden)]
pub mod conformance;
mod log;
pub mod mem;
pub mod sled;

/// The number of a commit. 0: nothing was ever written.
pub type Revision = u64;

/// The longest key, in bytes.
pub const KEY_LIMIT: usize = 1024;
/// The longest value, in bytes.
pub const VALUE_LIMIT: usize = 120 * 1024;
/// The greatest number of expectations, and of writes, in one transaction.
pub const TXN_KEYS_LIMIT: usize = 128;
/// The greatest sum of the keys and values that one transaction writes, in bytes.
pub const TXN_BYTES_LIMIT: usize = 1024 * 1024;

/// A key, its value, and when it was last written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Bytes,
    /// The revision of the commit that last wrote the key: what [`Txn::expect`] compares.
    pub revision: Revision,
}

/// One change of one key.
#[derive(Clone, PartialEq, Eq)]
pub enum Write {
    /// The key has this value now.
    Put {
        /// The key.
        key: String,
        /// Its new value.
        value: Bytes,
    },
    /// The key is gone.
    Delete {
        /// The key.
        key: String,
    },
}

impl Write {
    /// The key that is written.
    pub fn key(&self) -> &str {
        match self {
            Write::Put { key, .. } | Write::Delete { key } => key,
        }
    }

    /// Bytes of the key and the value.
    fn size(&self) -> usize {
        match self {
            Write::Put { key, value } => key.len() + value.len(),
            Write::Delete { key } => key.len(),
        }
    }
}

impl fmt::Debug for Write {
    /// The key and the length of the value; never the value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Write::Put { key, value } => write!(f, "Put({key}, {} bytes)", value.len()),
            Write::Delete { key } => write!(f, "Delete({key})"),
        }
    }
}

/// A transaction: writes that happen together, if every expectation holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// Keys and the revision at which each must still be; `None`: the key must not exist.
    pub expect: Vec<(String, Option<Revision>)>,
    /// What to write. No key twice.
    pub writes: Vec<Write>,
}

impl Txn {
    /// A transaction that expects nothing and writes nothing.
    pub fn new() -> Self {
        Txn::default()
    }

    /// `key` must have been last written at `revision`.
    #[must_use]
    pub fn expect(mut self, key: impl Into<String>, revision: Revision) -> Self {
        self.expect.push((key.into(), Some(revision)));
        self
    }

    /// `key` must not exist.
    #[must_use]
    pub fn absent(mut self, key: impl Into<String>) -> Self {
        self.expect.push((key.into(), None));
        self
    }

    /// Write `value` to `key`.
    #[must_use]
    pub fn put(mut self, key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.writes.push(Write::Put { key: key.into(), value: value.into() });
        self
    }

    /// Delete `key`.
    #[must_use]
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.writes.push(Write::Delete { key: key.into() });
        self
    }

    /// Refuses what no store accepts, so that all stores accept the same.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] over a limit; [`StoreError::Invalid`] for an empty key, or a key written twice.
    pub fn validate(&self) -> Result<(), StoreError> {
        for (what, count) in [("expectations", self.expect.len()), ("writes", self.writes.len())] {
            if count > TXN_KEYS_LIMIT {
                let what = format!("the transaction has {count} {what}");
                return Err(StoreError::TooLarge { what, limit: TXN_KEYS_LIMIT });
            }
        }
        for key in self.expect.iter().map(|(key, _)| key.as_str()).chain(self.writes.iter().map(Write::key)) {
            if key.is_empty() {
                return Err(StoreError::Invalid("an empty key".to_owned()));
            }
            if key.len() > KEY_LIMIT {
                let what = format!("a key has {} bytes", key.len());
                return Err(StoreError::TooLarge { what, limit: KEY_LIMIT });
            }
        }
        let mut total = 0;
        for write in &self.writes {
            if let Write::Put { key, value } = write
                && value.len() > VALUE_LIMIT
            {
                let what = format!("the value of {key:?} has {} bytes", value.len());
                return Err(StoreError::TooLarge { what, limit: VALUE_LIMIT });
            }
            total += write.size();
        }
        if total > TXN_BYTES_LIMIT {
            let what = format!("the transaction writes {total} bytes");
            return Err(StoreError::TooLarge { what, limit: TXN_BYTES_LIMIT });
        }
        let mut keys: Vec<&str> = self.writes.iter().map(Write::key).collect();
        keys.sort_unstable();
        match keys.windows(2).find(|pair| pair.first() == pair.last()) {
            Some(pair) => Err(StoreError::Invalid(format!("{:?} is written twice in one transaction", pair.first()))),
            None => Ok(()),
        }
    }
}

/// A commit, as a watcher sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// The revision that it made.
    pub revision: Revision,
    /// All of its writes to keys under the watched prefix, and no others; never empty.
    pub writes: Vec<Write>,
}

/// Where the servers of a trust domain keep what they must not forget.
#[async_trait]
pub trait Store: Send + Sync + fmt::Debug {
    /// Every key that starts with `prefix`, in the order of their bytes, and the revision at which that was true: the
    /// latest one, so that `watch(prefix, revision)` continues without a gap.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::Corrupt`].
    async fn range(&self, prefix: &str) -> Result<(Vec<KeyValue>, Revision), StoreError>;

    /// All writes or none: each key in `expect` must still be at its revision (`None`: must not exist). Answers the revision of
    /// the commit, or the latest one when there was nothing to change.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] names the first key that was not as expected; nothing was written then, nor on
    /// [`StoreError::TooLarge`] and [`StoreError::Invalid`]. After [`StoreError::Unavailable`] the transaction may or may not
    /// have happened, and so may a commit whose future was dropped: read again; the expectations make a retry harmless.
    async fn commit(&self, txn: Txn) -> Result<Revision, StoreError>;

    /// The commits after `after` that touch a key under `prefix`, in order, whole commits only.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] when the commits after `after` are no longer at hand, or `after` is a revision that never was.
    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError>;
}

/// A line of commits, one after the other; see [`Store::watch`].
pub struct Watch {
    commits: Pin<Box<dyn Stream<Item = Result<Commit, StoreError>> + Send>>,
}

impl Watch {
    /// A watch that yields what `commits` yields.
    pub fn new(commits: impl Stream<Item = Result<Commit, StoreError>> + Send + 'static) -> Self {
        Watch { commits: Box::pin(commits.fuse()) }
    }

    /// The next commit, as soon as there is one. Cancel-safe: a future that is dropped loses no commit.
    ///
    /// # Errors
    /// [`StoreError::Compacted`]: this watcher fell behind; read the range, then watch from there. [`StoreError::Unavailable`].
    /// An error is the last that a watch has to say; after it every call answers [`StoreError::Closed`].
    pub async fn next(&mut self) -> Result<Commit, StoreError> {
        self.commits.next().await.unwrap_or(Err(StoreError::Closed))
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watch")
    }
}

/// Why the store did not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// A key was not at the revision that the transaction expected. Nothing was written.
    #[error("{key:?} was changed by somebody else meanwhile: read it again, then retry")]
    Conflict {
        /// The first such key.
        key: String,
    },
    /// The commits after the revision asked for are no longer at hand.
    #[error("the commits asked for are no longer kept: read the range again, then watch from its revision")]
    Compacted,
    /// The store cannot do it now; the text says what is the matter and what to do.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// What is on the disk is not what was written; the text says what was found and what to do.
    #[error("the store is corrupt: {0}")]
    Corrupt(String),
    /// Over a limit. Nothing was written.
    #[error("{what}, more than the {limit} that the store takes")]
    TooLarge {
        /// What is too large, and how large.
        what: String,
        /// The limit.
        limit: usize,
    },
    /// A transaction that no store takes. Nothing was written.
    #[error("invalid transaction: {0}")]
    Invalid(String),
    /// The store was closed, or the watch has already ended.
    #[error("the store, or this watch of it, is closed")]
    Closed,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_over_a_limit_is_refused_by_name() {
        let refused = |txn: Txn| txn.validate().unwrap_err().to_string();
        assert!(refused(Txn::new().put("", "x")).contains("empty key"));
        assert!(refused(Txn::new().put("k".repeat(KEY_LIMIT + 1), "x")).contains("a key has 1025 bytes"));
        assert!(refused(Txn::new().put("k", vec![0; VALUE_LIMIT + 1])).contains("value of \"k\""));
        assert!(refused(Txn::new().put("k", "x").delete("k")).contains("written twice"));
        let many = (0..=TXN_KEYS_LIMIT).fold(Txn::new(), |txn, n| txn.delete(format!("k{n}")));
        assert!(refused(many).contains("129 writes"));
        let large = (0..9).fold(Txn::new(), |txn, n| txn.put(format!("k{n}"), vec![0; VALUE_LIMIT]));
        assert!(refused(large).contains("the transaction writes"));
        assert_eq!(Txn::new().put("k", vec![0; VALUE_LIMIT]).absent("k").validate(), Ok(()));
    }

    #[test]
    fn debug_shows_no_value() {
        let shown = format!("{:?}", Txn::new().put("k", "secret"));
        assert!(!shown.contains("secret") && shown.contains("6 bytes"), "{shown}");
    }
}
