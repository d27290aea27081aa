//! A store in memory: for tests, and for a try that leaves nothing behind. It keeps nothing across a restart.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use super::log::CommitLog;
use super::{Commit, KeyValue, Revision, Store, StoreError, Txn, Watch, Write};

/// The store in memory.
#[derive(Debug)]
pub struct MemStore {
    table: Mutex<Table>,
    log: Arc<CommitLog>,
}

#[derive(Debug, Default)]
struct Table {
    keys: BTreeMap<String, (Bytes, Revision)>,
    head: Revision,
}

impl Table {
    fn range(&self, prefix: &str) -> Vec<KeyValue> {
        self.keys
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, (value, revision))| KeyValue { key: key.clone(), value: value.clone(), revision: *revision })
            .collect()
    }

    fn apply(&mut self, txn: Txn) -> Result<Option<Commit>, StoreError> {
        txn.validate()?;
        for (key, expected) in txn.expect {
            if self.keys.get(&key).map(|(_, revision)| *revision) != expected {
                return Err(StoreError::Conflict { key });
            }
        }
        let mut writes = txn.writes;
        writes.retain(|write| matches!(write, Write::Put { .. }) || self.keys.contains_key(write.key()));
        if writes.is_empty() {
            return Ok(None);
        }
        self.head += 1;
        for write in &writes {
            match write {
                Write::Put { key, value } => self.keys.insert(key.clone(), (value.clone(), self.head)),
                Write::Delete { key } => self.keys.remove(key),
            };
        }
        Ok(Some(Commit { revision: self.head, writes }))
    }
}

impl MemStore {
    /// An empty store.
    pub fn new() -> Self {
        MemStore { table: Mutex::default(), log: Arc::new(CommitLog::new(0)) }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for MemStore {
    fn default() -> Self {
        MemStore::new()
    }
}

#[async_trait]
impl Store for MemStore {
    async fn range(&self, prefix: &str) -> Result<(Vec<KeyValue>, Revision), StoreError> {
        let table = self.table();
        Ok((table.range(prefix), table.head))
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, StoreError> {
        let mut table = self.table();
        if let Some(commit) = table.apply(txn)? {
            self.log.publish(commit);
        }
        Ok(table.head)
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        self.log.watch(prefix, after)
    }
}
