//! Which agents have an open Sync stream here, and up to which revision each has applied what it was sent.
//!
//! - An agent that a commit does not concern is sent nothing, and is as far as the server has looked for it.
//! - A new stream of the same agent takes the place of the old one, which is told at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use spiffe::id::SpiffeId;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::store::Revision;

/// The agents that are connected now. Clones share them.
#[derive(Clone, Debug)]
pub struct Connected(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    agents: Mutex<Agents>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Agents {
    by_id: HashMap<SpiffeId, Progress>,
    next_stream: u64,
}

#[derive(Debug)]
struct Progress {
    stream: u64,
    /// Cancelled when another stream takes its place.
    replaced: CancellationToken,
    /// Everything up to here was looked at, and sent where it concerns the agent.
    considered: Revision,
    /// The last that was sent.
    sent: Revision,
    acknowledged: Revision,
}

impl Progress {
    fn applied(&self) -> Revision {
        if self.acknowledged >= self.sent { self.considered } else { self.acknowledged }
    }
}

impl Default for Connected {
    fn default() -> Self {
        Self(Arc::new(Shared { agents: Mutex::default(), changed: watch::channel(0).0 }))
    }
}

impl Connected {
    /// Notes that `agent` has opened a Sync stream. It counts as connected until the stream is dropped.
    pub fn open(&self, agent: SpiffeId) -> Stream {
        let mut agents = self.lock();
        agents.next_stream += 1;
        let stream = agents.next_stream;
        let replaced = CancellationToken::new();
        // Sent "everything": nothing counts as applied before the first acknowledgement.
        let progress =
            Progress { stream, replaced: replaced.clone(), considered: 0, sent: Revision::MAX, acknowledged: 0 };
        if let Some(old) = agents.by_id.insert(agent.clone(), progress) {
            old.replaced.cancel();
        }
        drop(agents);
        self.note();
        Stream { connected: self.clone(), agent, stream, replaced }
    }

    /// How many agents are connected.
    pub fn count(&self) -> usize {
        self.lock().by_id.len()
    }

    /// The revision up to which `agent` has applied everything; `None` when it is not connected.
    pub fn applied(&self, agent: &SpiffeId) -> Option<Revision> {
        self.lock().by_id.get(agent).map(Progress::applied)
    }

    /// The connected agents that have not applied `revision`.
    pub fn behind(&self, revision: Revision) -> Vec<SpiffeId> {
        let agents = self.lock();
        let behind = agents.by_id.iter().filter(|(_, progress)| progress.applied() < revision);
        let mut ids: Vec<SpiffeId> = behind.map(|(id, _)| id.clone()).collect();
        ids.sort_unstable();
        ids
    }

    /// For the metrics: how many revisions the connected agents are behind `revision`, the most and the sum.
    pub fn lag(&self, revision: Revision) -> (Revision, Revision) {
        let agents = self.lock();
        let lags = agents.by_id.values().map(|progress| revision.saturating_sub(progress.applied()));
        lags.fold((0, 0), |(most, sum), lag| (most.max(lag), sum.saturating_add(lag)))
    }

    /// Changes whenever an agent comes, goes or acknowledges.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    fn note(&self) {
        self.0.changed.send_modify(|count| *count = count.wrapping_add(1));
    }

    fn lock(&self) -> MutexGuard<'_, Agents> {
        self.0.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One open Sync stream.
#[derive(Debug)]
pub struct Stream {
    connected: Connected,
    agent: SpiffeId,
    stream: u64,
    replaced: CancellationToken,
}

impl Stream {
    /// Notes that everything up to `revision` was looked at; `sent`: and something of it went to the agent.
    pub fn considered(&self, revision: Revision, sent: bool) {
        self.update(|progress| {
            progress.considered = revision;
            if sent {
                progress.sent = revision;
            }
        });
    }

    /// Notes that the agent has applied everything up to `revision`.
    pub fn acknowledged(&self, revision: Revision) {
        self.update(|progress| progress.acknowledged = progress.acknowledged.max(revision.min(progress.considered)));
    }

    /// Returns when this stream was replaced by a later one of the same agent.
    pub async fn replaced(&self) {
        self.replaced.cancelled().await;
    }

    fn update(&self, change: impl FnOnce(&mut Progress)) {
        let mut agents = self.connected.lock();
        if let Some(progress) = agents.by_id.get_mut(&self.agent).filter(|progress| progress.stream == self.stream) {
            change(progress);
        }
        drop(agents);
        self.connected.note();
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut agents = self.connected.lock();
        if agents.by_id.get(&self.agent).is_some_and(|progress| progress.stream == self.stream) {
            agents.by_id.remove(&self.agent);
        }
        drop(agents);
        self.connected.note();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(name: &str) -> SpiffeId {
        SpiffeId::parse(&format!("spiffe://example.org/chancery/agent/test/{name}")).unwrap()
    }

    #[test]
    fn an_agent_is_as_far_as_it_has_acknowledged_what_concerns_it() {
        let connected = Connected::default();
        let stream = connected.open(agent("a"));
        assert_eq!(connected.behind(1), [agent("a")]);
        stream.considered(5, true);
        assert_eq!(connected.applied(&agent("a")), Some(0));
        stream.acknowledged(5);
        stream.considered(9, false);
        assert!(connected.behind(9).is_empty());
        stream.considered(10, true);
        assert_eq!((connected.behind(9).len(), connected.behind(5).len()), (1, 0));
        assert_eq!(connected.lag(10), (5, 5));
    }

    #[test]
    fn an_acknowledgement_of_the_future_counts_for_nothing() {
        let connected = Connected::default();
        let stream = connected.open(agent("a"));
        stream.considered(5, true);
        stream.acknowledged(1000);
        stream.considered(6, true);
        assert_eq!(connected.behind(6).len(), 1);
    }

    #[tokio::test]
    async fn a_new_stream_takes_the_place_of_the_old_one() {
        let connected = Connected::default();
        let old = connected.open(agent("a"));
        let new = connected.open(agent("a"));
        old.replaced().await;
        assert!(!new.replaced.is_cancelled());
        drop(old);
        assert_eq!(connected.count(), 1);
        drop(new);
        assert_eq!(connected.count(), 0);
    }
}
