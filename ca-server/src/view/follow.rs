//! The follower: folds commits of the store, and what is told of pods, into Views and publishes each.
//!
//! - Start, a gap (`Compacted`) and a lost store go one way: read the whole range, then watch from its revision.
//! - While the store cannot be reached the last View stays: what was true goes on being served.
//! - Whoever listens gets every change in order, or is told that it missed some and starts from the View. The order is that
//!   of publishing: a View with other pods has the revision of the one before.
//! - What a rule or a pod changes is worked out in bounded pieces (`rework`): nobody else waits for the whole.
//! - Pods go on while the store is away, and stay over a gap. What has queued up of them is folded into one View: the first
//!   after a while at once, and then one in each `PACE`, because a View wakes every agent's stream.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use spiffe::entry::RuleId;
use spiffe::id::TrustDomain;
use spiffe::time::{Backoff, Clock};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::pods::PodEvent;
use super::{Change, Issuers, Rework, View, ViewError};
use crate::authority::issuer::Issuer;
use crate::authority::keys::{KeyStore, SigningKey};
use crate::authority::token_issuer::{JwtIssuer, WitIssuer};
use crate::authority::{self, Authority, Kind, State};
use crate::store::{Revision, Store, StoreError};

/// How many published Views a listener may be behind before it has to start from the present one.
const RECENT: usize = 1024;
/// The most events of pods that are folded into one View.
const MOST_EVENTS: usize = 1024;
/// How long the next View of pods waits after one of them: all that happens meanwhile is one.
const PACE: Duration = Duration::from_millis(100);

/// Why there is no View.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The store did not give its records.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A record cannot be read.
    #[error(transparent)]
    View(#[from] ViewError),
}

/// A View and what made it differ from the one before.
#[derive(Clone, Debug)]
pub struct Published {
    /// The View.
    pub view: Arc<View>,
    /// What changed; `None`: anything may have, start from the View.
    pub changes: Option<Arc<[Change]>>,
    number: u64,
}

/// The present View, and the line of those to come.
#[derive(Debug)]
pub struct Views {
    current: ArcSwap<Current>,
    published: broadcast::Sender<Published>,
    revision: watch::Sender<Revision>,
}

/// A View, and the how manieth it is: revisions do not tell all Views apart.
#[derive(Debug)]
struct Current {
    view: Arc<View>,
    number: u64,
}

impl Views {
    /// Starts with `view`.
    pub fn new(view: View) -> Arc<Self> {
        let revision = view.revision();
        Arc::new(Self {
            current: ArcSwap::from_pointee(Current { view: Arc::new(view), number: 0 }),
            published: broadcast::channel(RECENT).0,
            revision: watch::channel(revision).0,
        })
    }

    /// The present View. Takes no lock.
    pub fn load(&self) -> Arc<View> {
        Arc::clone(&self.current.load().view)
    }

    /// The present View and everything after it.
    pub fn listen(&self) -> (Arc<View>, Listener) {
        // Listening first: what is published in between is then in both, and passed over by its number.
        let receiver = self.published.subscribe();
        let current = self.current.load();
        let listener = Listener { receiver, seen: current.number };
        (Arc::clone(&current.view), listener)
    }

    /// Returns when a View of `revision` or later is the present one.
    pub async fn reached(&self, revision: Revision) -> Arc<View> {
        let mut revisions = self.revision.subscribe();
        // The sender is in `self`: it cannot be gone.
        let _ = revisions.wait_for(|present| *present >= revision).await;
        self.load()
    }

    /// The same for a View at the same revision in which nothing is different that anybody has to be told of.
    fn replace(&self, view: View) {
        let number = self.current.load().number;
        self.current.store(Arc::new(Current { view: Arc::new(view), number }));
    }

    /// Only the follower does, one after the other: each View has a number of its own.
    fn publish(&self, view: View, changes: Option<Vec<Change>>) {
        let (view, number) = (Arc::new(view), self.current.load().number + 1);
        let revision = view.revision();
        self.current.store(Arc::new(Current { view: Arc::clone(&view), number }));
        // Nobody listening is no fault.
        let _ = self.published.send(Published { view, changes: changes.map(Arc::from), number });
        self.revision.send_replace(revision);
    }
}

/// Gets each published View in order.
#[derive(Debug)]
pub struct Listener {
    receiver: broadcast::Receiver<Published>,
    seen: u64,
}

impl Listener {
    /// The next View; `None` when the server ends. After a gap its `changes` are `None`. Cancel-safe.
    pub async fn next(&mut self) -> Option<Published> {
        let mut missed = false;
        loop {
            match self.receiver.recv().await {
                Ok(published) if published.number <= self.seen => {}
                Ok(published) => {
                    self.seen = published.number;
                    let changes = published.changes.filter(|_| !missed);
                    return Some(Published { changes, ..published });
                }
                // The oldest one still kept comes next, whole.
                Err(broadcast::error::RecvError::Lagged(_)) => missed = true,
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

/// What the follower needs to have the active authorities sign.
#[derive(Clone, Debug)]
pub struct Signers {
    /// Where the private keys are.
    pub keys: Arc<dyn KeyStore>,
    /// This server's name: it signs with its own authorities only.
    pub owner: Arc<str>,
}

impl Signers {
    /// `view` with the issuers of this server's active authorities: `before`'s, where they are the same.
    async fn equip(&self, view: View, before: &Issuers) -> View {
        let Issuers { x509, jwt, wit } = before;
        let of_x509 = self.next(&view, Kind::X509, x509.as_ref().map(|issuer| issuer.authority())).await;
        let of_jwt = self.next(&view, Kind::Jwt, jwt.as_ref().map(|issuer| issuer.authority())).await;
        let of_wit = self.next(&view, Kind::Wit, wit.as_ref().map(|issuer| issuer.authority())).await;
        view.with_issuers(Issuers {
            x509: of_x509.join(x509, Issuer::new),
            jwt: of_jwt.join(jwt, |authority, key| JwtIssuer::new(authority, &key)),
            wit: of_wit.join(wit, |authority, key| WitIssuer::new(authority, &key)),
        })
    }

    /// What signs SVIDs of `kind` by `view`, where that of `before` did until now.
    async fn next(&self, view: &View, kind: Kind, before: Option<&Authority>) -> Next {
        let authorities = || view.authorities().iter().map(|held| &held.value);
        if before.is_some_and(|before| before.state == State::Active && authorities().any(|held| held == before)) {
            return Next::Same;
        }
        let listed = before.is_some_and(|before| authorities().any(|held| held.id == before.id));
        let Some(active) = authority::active(authorities(), &self.owner, kind) else {
            return if listed { Next::Same } else { Next::Nothing };
        };
        match self.keys.load(&active.id).await {
            Ok(Some(key)) => Next::Other(active.clone(), key),
            // Its key went with a rotation that is not in this View yet: what signed until now goes on till then,
            // unless it was revoked.
            Ok(None) if listed => Next::Same,
            Ok(None) => Next::Nothing,
            Err(error) => {
                error!(%error, %kind, "the active authority cannot sign");
                Next::Nothing
            }
        }
    }
}

/// What becomes of an issuer when the View changes.
enum Next {
    Same,
    Nothing,
    Other(Authority, Arc<SigningKey>),
}

impl Next {
    fn join<I, E: Display>(
        self,
        before: &Option<Arc<I>>,
        join: impl FnOnce(Authority, Arc<SigningKey>) -> Result<I, E>,
    ) -> Option<Arc<I>> {
        match self {
            Self::Same => before.clone(),
            Self::Nothing => None,
            Self::Other(authority, key) => match join(authority, key) {
                Ok(issuer) => Some(Arc::new(issuer)),
                Err(error) => {
                    error!(%error, "the active authority cannot sign");
                    None
                }
            },
        }
    }
}

/// Reads the whole store once.
pub async fn load(trust_domain: TrustDomain, store: &dyn Store, signers: &Signers) -> Result<View, FollowError> {
    let (records, revision) = store.range("").await?;
    let view = View::load(trust_domain, records, revision)?;
    Ok(signers.equip(view, &Issuers::default()).await)
}

/// Follows the store, and `pods` where somebody tells of any, until the task is dropped.
pub async fn follow(
    store: Arc<dyn Store>,
    views: Arc<Views>,
    signers: Signers,
    clock: Arc<dyn Clock>,
    pods: Option<mpsc::Receiver<PodEvent>>,
) {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    let mut beside = Beside { views: Arc::clone(&views), pods, next: Instant::now() };
    loop {
        let error = match follow_once(&*store, &views, &signers, &mut beside).await {
            FollowError::Store(StoreError::Compacted) => {
                info!("fell behind the store: reading it whole");
                None
            }
            FollowError::Store(StoreError::Closed) => return,
            error => Some(error),
        };
        if let Some(error) = error {
            warn!(%error, "the store cannot be followed: the last view goes on being served");
            beside.of(clock.sleep(backoff.after_failure(u32::MAX / 2))).await;
        }
        match load_again(&*store, &views, &signers, &mut beside).await {
            Ok(view) => {
                backoff.reset();
                views.publish(view, None);
            }
            Err(FollowError::Store(StoreError::Closed)) => return,
            Err(error) => {
                warn!(%error, "the store cannot be read: the last view goes on being served");
                beside.of(clock.sleep(backoff.after_failure(u32::MAX / 2))).await;
            }
        }
    }
}

async fn load_again(
    store: &dyn Store,
    views: &Views,
    signers: &Signers,
    beside: &mut Beside,
) -> Result<View, FollowError> {
    let (records, revision) = beside.of(store.range("")).await?;
    let before = views.load();
    let view = View::load(before.trust_domain().clone(), records, revision)?.on_terms(before.terms().clone());
    let (view, _) = reworked(view.with_pods(before.pods().clone()), &before).await;
    Ok(signers.equip(view, &Issuers::default()).await)
}

async fn follow_once(store: &dyn Store, views: &Views, signers: &Signers, beside: &mut Beside) -> FollowError {
    let mut watch = match beside.of(store.watch("", views.load().revision())).await {
        Ok(watch) => watch,
        Err(error) => return error.into(),
    };
    loop {
        let commit = match beside.of(watch.next()).await {
            Ok(commit) => commit,
            Err(error) => return error.into(),
        };
        let before = views.load();
        match before.begin(&commit) {
            Ok(rework) => {
                let (view, changes) = reworked(rework, &before).await;
                let view = signers.equip(view, before.issuers()).await;
                views.publish(view, Some(changes));
            }
            Err(error) => return error.into(),
        }
    }
}

/// The View that comes of `rework`, and what changed: a piece at a time, between which others run. Commits and pods wait:
/// their order is kept.
async fn reworked(mut rework: Rework, before: &View) -> (View, Vec<Change>) {
    while !rework.step() {
        tokio::task::yield_now().await;
    }
    let (view, changes) = rework.done();
    let over: Vec<&RuleId> = view.rules_over_limit().collect();
    if !over.is_empty() && !over.iter().copied().eq(before.rules_over_limit()) {
        let rules = over.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        error!(
            %rules,
            most = view.terms().most,
            "rules would give more entries than are allowed, and the youngest give nothing: make them narrower, or raise \
             limits.derived_entries in the server's config"
        );
    }
    (view, changes)
}

/// What is told of pods, beside the store.
struct Beside {
    views: Arc<Views>,
    pods: Option<mpsc::Receiver<PodEvent>>,
    /// Not before.
    next: Instant,
}

impl Beside {
    /// Does `work`, and publishes meanwhile what is told.
    async fn of<T>(&mut self, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                events = self.told() => {
                    let before = self.views.load();
                    let (view, changes) = reworked(before.begin_told(events), &before).await;
                    // Whoever waits for a cluster has to hear of it, also where none of its pods gets anything.
                    let is_news = !changes.is_empty() || view.pods().awaited().len() < before.pods().awaited().len();
                    match is_news {
                        true => {
                            self.views.publish(view, Some(changes));
                            self.next = Instant::now() + PACE;
                        }
                        false => self.views.replace(view),
                    }
                }
            }
        }
    }

    /// What has queued up, one event at least; never, where nobody tells. Cancel-safe.
    #[expect(clippy::disallowed_methods, reason = "how much work this machine does in a second, not what is true when")]
    async fn told(&mut self) -> Vec<PodEvent> {
        let mut events = Vec::new();
        tokio::time::sleep_until(self.next).await;
        if let Some(pods) = &mut self.pods
            && pods.recv_many(&mut events, MOST_EVENTS).await > 0
        {
            return events;
        }
        // Whoever told has gone; what was last said stays.
        self.pods = None;
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests;
