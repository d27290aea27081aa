//! The handle that doors hold on the cache: subscribe with what the attestors found, and be told each new state.
//!
//! - A subscriber always gets the latest state, never a queue of old ones: a slow one costs nothing.
//! - Dropping a [`Subscription`] ends it.
//! - A [`Mailbox`] is the other end: the cache's loop serves it, and a test of a door can.

use spiffe::selector::Selectors;
use tokio::sync::{mpsc, watch};

use super::WorkloadState;

/// Subscriptions that wait for the loop to take them up.
const WAITING: usize = 256;

/// The cache has been stopped: the agent is going down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the agent is stopping: try again when it is back")]
pub struct Stopped;

/// A handle on the cache. Clones share it.
#[derive(Clone, Debug)]
pub struct Cache(mpsc::Sender<Subscribe>);

/// The end of the cache that serves its handles.
#[derive(Debug)]
pub struct Mailbox(mpsc::Receiver<Subscribe>);

/// One who wants to be told.
#[derive(Debug)]
pub struct Subscribe {
    /// What the attestors found to be true of it.
    pub selectors: Selectors,
    /// Where its states go. `closed()` when it listens no more.
    pub states: watch::Sender<Option<WorkloadState>>,
}

/// A cache handle and its mailbox.
pub fn mailbox() -> (Cache, Mailbox) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (Cache(sender), Mailbox(receiver))
}

impl Cache {
    /// Tells a process with these selectors what it is entitled to, from now on.
    pub async fn subscribe(&self, selectors: Selectors) -> Result<Subscription, Stopped> {
        let (states, receiver) = watch::channel(None);
        self.0.send(Subscribe { selectors, states }).await.map_err(|_| Stopped)?;
        Ok(Subscription(receiver))
    }
}

impl Mailbox {
    /// The next subscriber; `None` when every handle is gone.
    pub async fn next(&mut self) -> Option<Subscribe> {
        self.0.recv().await
    }
}

/// What one process is entitled to, as it changes. Dropping it ends it.
#[derive(Debug)]
pub struct Subscription(watch::Receiver<Option<WorkloadState>>);

impl Subscription {
    /// The latest state that has not been returned yet; waits for one. `None`: the agent is stopping.
    ///
    /// The first state comes once every entry of this process has its SVID, or has been refused one. Cancel safe.
    pub async fn next(&mut self) -> Option<WorkloadState> {
        loop {
            self.0.changed().await.ok()?;
            if let Some(state) = self.0.borrow_and_update().clone() {
                return Some(state);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use spiffe::bundle::Bundle;
    use spiffe::id::TrustDomain;

    use super::*;

    fn state(sequence: u64) -> WorkloadState {
        let domain = TrustDomain::parse("example.org").unwrap();
        WorkloadState {
            identities: Arc::from([]),
            bundle: Bundle::new(domain, Vec::new(), sequence, None).unwrap(),
            federated: Arc::default(),
        }
    }

    #[tokio::test]
    async fn a_slow_subscriber_gets_only_the_latest() {
        let (cache, mut mailbox) = mailbox();
        let mut subscription = cache.subscribe(Selectors::default()).await.unwrap();
        let subscriber = mailbox.next().await.unwrap();
        subscriber.states.send_replace(Some(state(1)));
        subscriber.states.send_replace(Some(state(2)));
        assert_eq!(subscription.next().await.unwrap().bundle.sequence(), 2);
        drop(subscriber);
        assert_eq!(subscription.next().await, None);
    }

    #[tokio::test]
    async fn dropping_a_subscription_ends_it() {
        let (cache, mut mailbox) = mailbox();
        let subscription = cache.subscribe(Selectors::default()).await.unwrap();
        let subscriber = mailbox.next().await.unwrap();
        drop(subscription);
        subscriber.states.closed().await;
        drop(mailbox);
        assert_eq!(cache.subscribe(Selectors::default()).await.unwrap_err(), Stopped);
    }
}
