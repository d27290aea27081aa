//! The handle that doors hold on the cache, and the other end of it.
//!
//! - *states*: subscribe with what the attestors found, and be told each new state. A subscriber always gets the latest,
//!   never a queue of old ones: a slow one costs nothing. Dropping a [`Subscription`] ends it.
//! - *entitlements and tokens*: what matches a process, and the JWT-SVIDs that are held, are published: whoever looks
//!   there waits for nobody. Only a token that is not held is asked for.
//! - A [`Mailbox`] is the other end: the cache's loop serves it, and a test of a door can.

use std::pin::Pin;
use std::sync::Arc;

use arc_swap::ArcSwap;
use futures_util::stream::unfold;
use futures_util::{Stream, StreamExt as _};
use prometheus_client::metrics::counter::Counter;
use spiffe::entry::RegistrationEntry;
use spiffe::jwt_svid::Audience;
use spiffe::selector::Selectors;
use spiffe::time::{Clock, Timestamp};
use spiffe::wit_svid::WitSvid;
use spiffe::x509_svid::X509Svid;
use tokio::sync::{mpsc, oneshot, watch};

use super::WorkloadState;
use super::directory::{Directory, Entitlement};
use super::tokens::{Token, Tokens, Told, Want};

/// Subscriptions, and requests for tokens, that wait for the loop to take them up.
const WAITING: usize = 256;

/// The cache has been stopped: the agent is going down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the agent is stopping: try again when it is back")]
pub struct Stopped;

/// A handle on the cache. Clones share it.
#[derive(Clone, Debug)]
pub struct Cache {
    x509: mpsc::Sender<Subscribe>,
    wit: mpsc::Sender<Subscribe<WitSvid>>,
    wants: mpsc::Sender<Want>,
    looks: mpsc::Sender<oneshot::Sender<Look>>,
    directory: watch::Receiver<Option<Directory>>,
    tokens: Arc<ArcSwap<Tokens>>,
    hits: Counter,
}

/// The end of the cache that serves its handles.
#[derive(Debug)]
pub struct Mailbox {
    /// Those who want X.509-SVIDs.
    pub x509: mpsc::Receiver<Subscribe>,
    /// Those who want WIT-SVIDs.
    pub wit: mpsc::Receiver<Subscribe<WitSvid>>,
    /// Those who want a JWT-SVID that is not held.
    pub wants: mpsc::Receiver<Want>,
    /// Those who want to know how things are.
    pub looks: mpsc::Receiver<oneshot::Sender<Look>>,
    /// What is known; `None` before a server has said anything.
    pub directory: watch::Sender<Option<Directory>>,
    /// What is held.
    pub tokens: Arc<ArcSwap<Tokens>>,
}

/// One who wants to be told.
#[derive(Debug)]
pub struct Subscribe<S = X509Svid> {
    /// What the attestors found to be true of it.
    pub selectors: Selectors,
    /// Where its states go. `closed()` when it listens no more.
    pub states: watch::Sender<Option<WorkloadState<S>>>,
}

/// How things are with the cache.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Whether the stream from a server is open.
    pub connected: bool,
    /// The revision up to which everything is applied; 0: a server has not said anything yet.
    pub revision: u64,
    /// The X.509-SVIDs that are held, those of the oldest entries first.
    pub svids: Vec<(Arc<RegistrationEntry>, Timestamp)>,
}

/// A cache handle and its mailbox.
pub fn mailbox() -> (Cache, Mailbox) {
    let (x509, x509_receiver) = mpsc::channel(WAITING);
    let (wit, wit_receiver) = mpsc::channel(WAITING);
    let (wants, wants_receiver) = mpsc::channel(WAITING);
    let (looks, looks_receiver) = mpsc::channel(1);
    let (known, directory) = watch::channel(None);
    let tokens = Arc::new(ArcSwap::from_pointee(Tokens::new_sync()));
    let cache = Cache { x509, wit, wants, looks, directory, tokens: Arc::clone(&tokens), hits: Counter::default() };
    let mailbox = Mailbox {
        x509: x509_receiver,
        wit: wit_receiver,
        wants: wants_receiver,
        looks: looks_receiver,
        directory: known,
        tokens,
    };
    (cache, mailbox)
}

impl Cache {
    /// The same handle, which counts in `hits` the tokens that were there at once.
    #[must_use]
    pub fn counting(self, hits: Counter) -> Self {
        Self { hits, ..self }
    }

    /// Tells a process with these selectors which X.509-SVIDs it is entitled to, from now on.
    ///
    /// The first state comes once every entry of this process has its SVID, or has been refused one.
    pub async fn subscribe(&self, selectors: Selectors) -> Result<Subscription, Stopped> {
        subscribe(&self.x509, selectors).await
    }

    /// The same with WIT-SVIDs. They are issued only while someone listens.
    pub async fn subscribe_wit(&self, selectors: Selectors) -> Result<Subscription<WorkloadState<WitSvid>>, Stopped> {
        subscribe(&self.wit, selectors).await
    }

    /// Tells a process with these selectors which entries and bundles it is entitled to, from now on. Nothing is told
    /// before a server has said what there is.
    pub fn entitlements(&self, selectors: Selectors, clock: Arc<dyn Clock>) -> Subscription<Entitlement> {
        let next = |(mut directory, selectors, clock, last): Entitling| async move {
            loop {
                let known = directory.borrow_and_update().clone();
                let entitlement = known.map(|known| known.entitlement(&selectors, clock.now()));
                if let Some(new) = entitlement.clone().filter(|_| entitlement != last) {
                    return Some((new, (directory, selectors, clock, entitlement)));
                }
                let until = entitlement.and_then(|entitlement| entitlement.until);
                tokio::select! {
                    changed = directory.changed() => changed.ok()?,
                    () = clock.sleep_until(until.unwrap_or_default()), if until.is_some() => {}
                }
            }
        };
        Subscription(Box::pin(unfold((self.directory.clone(), selectors, clock, None), next)))
    }

    /// What a process with these selectors is entitled to at `now`. Waits until a server has said what there is.
    pub async fn entitlement(&self, selectors: &Selectors, now: Timestamp) -> Result<Entitlement, Stopped> {
        let known = self.directory.borrow().clone();
        let known = match known {
            Some(known) => known,
            None => {
                self.directory.clone().wait_for(Option::is_some).await.map_err(|_| Stopped)?.clone().ok_or(Stopped)?
            }
        };
        Ok(known.entitlement(selectors, now))
    }

    /// How things are now.
    pub async fn look(&self) -> Result<Look, Stopped> {
        let (told, answer) = oneshot::channel();
        self.looks.send(told).await.map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)
    }

    /// The JWT-SVID of an entry for an audience, if it is held.
    pub fn held_token(&self, entry: &RegistrationEntry, audience: &Audience, now: Timestamp) -> Option<Arc<Token>> {
        let held = self.tokens.load().get(&(entry.id.clone(), audience.clone())).cloned();
        // Whatever the loop has not got to yet: it is the identity of this entry.
        let token = held.filter(|token| token.is_good(now) && *token.svid().id() == entry.spiffe_id)?;
        token.use_at(now);
        self.hits.inc();
        Some(token)
    }

    /// The same where it is not held, as soon as it comes. Dropping this ends the waiting.
    pub async fn token(&self, entry: &RegistrationEntry, audience: &Audience) -> Result<Told, Stopped> {
        let (told, mut answer) = mpsc::channel(1);
        let want = Want { entry: entry.id.clone(), audience: audience.clone(), told };
        self.wants.send(want).await.map_err(|_| Stopped)?;
        answer.recv().await.ok_or(Stopped)
    }
}

type Entitling = (watch::Receiver<Option<Directory>>, Selectors, Arc<dyn Clock>, Option<Entitlement>);

async fn subscribe<S: Clone + Send + Sync + 'static>(
    to: &mpsc::Sender<Subscribe<S>>,
    selectors: Selectors,
) -> Result<Subscription<WorkloadState<S>>, Stopped> {
    let (states, receiver) = watch::channel(None);
    to.send(Subscribe { selectors, states }).await.map_err(|_| Stopped)?;
    let next = |mut states: watch::Receiver<Option<WorkloadState<S>>>| async move {
        loop {
            states.changed().await.ok()?;
            let state = states.borrow_and_update().clone();
            if let Some(state) = state {
                return Some((state, states));
            }
        }
    };
    Ok(Subscription(Box::pin(unfold(receiver, next))))
}

impl Mailbox {
    /// The next one who wants X.509-SVIDs; `None` when every handle is gone.
    pub async fn next(&mut self) -> Option<Subscribe> {
        self.x509.recv().await
    }
}

/// What one process is entitled to, as it changes. Dropping it ends it.
pub struct Subscription<T = WorkloadState>(Pin<Box<dyn Stream<Item = T> + Send>>);

impl<T: 'static> Subscription<T> {
    /// The latest state that has not been returned yet; waits for one. `None`: the agent is stopping. Cancel safe.
    pub async fn next(&mut self) -> Option<T> {
        self.0.next().await
    }

    /// The same with each state changed.
    #[must_use]
    pub fn map(self, change: impl FnMut(T) -> T + Send + 'static) -> Self {
        Self(Box::pin(self.0.map(change)))
    }
}

impl<T> std::fmt::Debug for Subscription<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Subscription")
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
