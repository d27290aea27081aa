//! The loop that polls, and what others may ask of it.
//!
//! - A poll reads the View, fetches, judges beside the View of that moment, and writes by compare-and-swap: a bundle that
//!   somebody set meanwhile stays, and a relationship that is gone or another one meanwhile gets nothing.
//! - What changes a bundle, and what is refused, is a line of audit, whose place is reserved before.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustls::ClientConfig;
use spiffe::bundle::Bundle;
use spiffe::crypto;
use spiffe::federation::{Profile, Relationship};
use spiffe::id::TrustDomain;
use spiffe::mtls::{self, CurrentBundles, Peers};
use spiffe::time::{Clock, Timestamp};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tracing::{debug, error, info, warn};

use super::fetch::{FetchError, Limits, fetch};
use super::schedule::{Attempt, Known, Outcome, Schedule, Turn};
use super::verdict::{Remark, Verdict, judge};
use crate::audit::{self, Audit, Event, Message, Reason, Who};
use crate::https::{self, ConnectError, WebRoots};
use crate::metrics::Metrics;
use crate::store::{Revision, Store, StoreError, Txn};
use crate::view::follow::Views;
use crate::view::record::bundle_to_record;
use crate::view::{Change, View, keys};

/// How many are polled at once.
const AT_ONCE: usize = 16;
/// How many may ask for a poll at once.
const ASKING: usize = 64;
/// How often a bundle is judged and written anew when somebody else was faster.
const TRIES: u32 = 3;
/// How long the View may take to show what was written.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long an error is that is remembered, in characters.
const LONGEST_ERROR: usize = 500;

/// What the loop is made of.
#[derive(Debug)]
pub struct Parts {
    /// The relationships of the config, with their initial bundles.
    pub configured: Vec<(Relationship, Option<Bundle>)>,
    /// The most relationships in the store.
    pub most: usize,
    /// What bounds a request.
    pub limits: Limits,
    /// What `https_web` endpoints are known by.
    pub web_roots: WebRoots,
    /// Where bundles go.
    pub store: Arc<dyn Store>,
    /// Where relationships and bundles are read.
    pub views: Arc<Views>,
    /// The record of decisions.
    pub audit: Audit,
    /// The numbers.
    pub metrics: Arc<Metrics>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
}

/// Where a relationship stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// In the store: made and changed by operators.
    Store,
    /// In this server's config.
    Config,
}

impl Source {
    /// As documents have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Config => "config",
        }
    }
}

/// A relationship, and how its polls have gone.
#[derive(Clone, Debug)]
pub struct Status {
    /// The relationship.
    pub relationship: Relationship,
    /// Where it stands.
    pub source: Source,
    /// The last poll.
    pub last: Option<Attempt>,
    /// The last one that found the endpoint in order.
    pub last_success: Option<Timestamp>,
    /// When the next one is due; `None`: it is new, and the loop has not seen it yet.
    pub next: Option<Timestamp>,
}

/// What others may ask of the loop.
#[derive(Debug)]
pub struct Federation {
    configured: BTreeMap<TrustDomain, (Relationship, Option<Bundle>)>,
    most: usize,
    limits: Limits,
    web_roots: Arc<WebRoots>,
    store: Arc<dyn Store>,
    views: Arc<Views>,
    audit: Audit,
    metrics: Arc<Metrics>,
    clock: Arc<dyn Clock>,
    schedule: Mutex<Schedule>,
    asking: mpsc::Sender<Ask>,
}

/// Questions to the loop, which [`Federation::run`] takes.
#[derive(Debug)]
pub struct Asks(mpsc::Receiver<Ask>);

#[derive(Debug)]
struct Ask {
    trust_domain: TrustDomain,
    done: oneshot::Sender<()>,
}

impl Federation {
    /// Knows the relationships, and polls nobody before [`Self::run`].
    pub fn new(parts: Parts) -> (Arc<Self>, Asks) {
        let (asking, asks) = mpsc::channel(ASKING);
        let Parts { configured, most, limits, web_roots, store, views, audit, metrics, clock } = parts;
        let configured = configured.into_iter().map(|of| (of.0.trust_domain.clone(), of)).collect();
        let schedule = Mutex::default();
        let web_roots = Arc::new(web_roots);
        let federation =
            Self { configured, most, limits, web_roots, store, views, audit, metrics, clock, schedule, asking };
        let known = federation.known(&federation.views.load());
        *federation.schedule() = Schedule::start(known, federation.clock.now(), chance);
        (Arc::new(federation), Asks(asks))
    }

    /// The most relationships in the store.
    pub fn most(&self) -> usize {
        self.most
    }

    /// The relationship with `trust_domain` in the config.
    pub fn configured(&self, trust_domain: &TrustDomain) -> Option<&Relationship> {
        self.configured.get(trust_domain).map(|(relationship, _)| relationship)
    }

    /// The relationship with `trust_domain` by `view` and the config.
    pub fn status(&self, view: &View, trust_domain: &TrustDomain) -> Option<Status> {
        let configured = self.configured(trust_domain).map(|relationship| (relationship, Source::Config));
        let stored = || view.relationship(trust_domain).map(|held| (&held.value, Source::Store));
        let (relationship, source) = configured.or_else(stored)?;
        let schedule = self.schedule();
        let poll = schedule.poll(trust_domain).filter(|poll| poll.relationship == *relationship);
        Some(Status {
            relationship: relationship.clone(),
            source,
            last: poll.and_then(|poll| poll.last.clone()),
            last_success: poll.and_then(|poll| poll.last_success),
            next: poll.map(|poll| poll.due),
        })
    }

    /// Every relationship, in the order of their trust domains.
    pub fn statuses(&self, view: &View) -> Vec<Status> {
        let known = self.known(view).into_iter();
        known.filter_map(|(relationship, _)| self.status(view, &relationship.trust_domain)).collect()
    }

    /// Polls `trust_domain` now, and returns when that is done.
    pub async fn refresh(&self, trust_domain: &TrustDomain) {
        let (done, ended) = oneshot::channel();
        let ask = Ask { trust_domain: trust_domain.clone(), done };
        if self.asking.send(ask).await.is_ok() {
            // The loop is gone: the server is stopping.
            let _ = ended.await;
        }
    }

    /// Every trust domain, and seconds since its endpoint was last found in order by this server; and how many were not
    /// at the last poll.
    pub fn ages(&self) -> (Vec<(TrustDomain, u64)>, u64) {
        let (schedule, now) = (self.schedule(), self.clock.now());
        let age = |success: Timestamp| now.since(success).as_secs();
        let of = |poll: &super::schedule::Poll| Some((poll.relationship.trust_domain.clone(), age(poll.last_success?)));
        let failing = schedule.polls().filter(|poll| poll.last.as_ref().is_some_and(|last| !last.outcome.is_success()));
        (schedule.polls().filter_map(of).collect(), failing.count() as u64)
    }

    /// Polls until the task is dropped.
    pub async fn run(self: Arc<Self>, mut asks: Asks) {
        let mut polls: JoinSet<(Turn, Attempt)> = JoinSet::new();
        let mut waiting: HashMap<TrustDomain, Vec<oneshot::Sender<()>>> = HashMap::new();
        let (view, mut listener) = self.views.listen();
        self.learn(&view);
        loop {
            let (now, room) = (self.clock.now(), AT_ONCE.saturating_sub(polls.len()));
            for turn in self.schedule().begin(now, room) {
                let federation = Arc::clone(&self);
                polls.spawn(async move { federation.poll(turn).await });
            }
            let wake = if polls.len() < AT_ONCE { self.schedule().next_wake(now) } else { None };
            let wake = async {
                match wake {
                    Some(at) => self.clock.sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(ended) = polls.join_next() => match ended {
                    Ok((turn, attempt)) => self.end(&turn, attempt, &mut waiting),
                    Err(error) => error!(%error, "a poll of a bundle endpoint ended in a fault"),
                },
                published = listener.next() => {
                    let Some(published) = published else { return };
                    let is_ours = |change: &Change| matches!(change, Change::Relationship(_));
                    if published.changes.is_none_or(|changes| changes.iter().any(is_ours)) {
                        self.learn(&published.view);
                        // Nobody waits for what is gone.
                        waiting.retain(|name, _| self.schedule().poll(name).is_some());
                    }
                }
                Some(ask) = asks.0.recv() => {
                    // The View of who asks may be newer than the one that was learned last.
                    self.learn(&self.views.load());
                    if self.schedule().ask(&ask.trust_domain, now) {
                        waiting.entry(ask.trust_domain).or_default().push(ask.done);
                    }
                }
                () = wake => {}
            }
        }
    }

    fn end(&self, turn: &Turn, attempt: Attempt, waiting: &mut HashMap<TrustDomain, Vec<oneshot::Sender<()>>>) {
        let name = &turn.relationship.trust_domain;
        self.metrics.polled(attempt.outcome.name());
        let hint = self.views.load().foreign_bundle(name).and_then(|held| held.refresh_hint());
        self.schedule().end(turn, attempt, hint, chance());
        for done in waiting.remove(name).into_iter().flatten() {
            // Who asked has gone away.
            let _ = done.send(());
        }
    }

    fn learn(&self, view: &View) {
        let known = self.known(view);
        self.schedule().learn(known, self.clock.now());
    }

    /// Every relationship. One of the config stands before one of the store.
    fn known(&self, view: &View) -> Vec<Known> {
        let stored = view.relationships().map(|held| (held.trust_domain.clone(), &held.value));
        let mut all: BTreeMap<TrustDomain, &Relationship> = stored.collect();
        all.extend(self.configured.iter().map(|(name, (relationship, _))| (name.clone(), relationship)));
        all.remove(view.trust_domain());
        let hint = |name: &TrustDomain| view.foreign_bundle(name).map(|held| held.refresh_hint());
        all.into_iter().map(|(name, relationship)| (relationship.clone(), hint(&name))).collect()
    }

    async fn poll(&self, turn: Turn) -> (Turn, Attempt) {
        let relationship = &turn.relationship;
        let (name, url) = (&relationship.trust_domain, &relationship.url);
        let polled = self.try_poll(relationship).await;
        let outcome = polled.as_ref().map_or(Outcome::Failed, |(outcome, _)| *outcome);
        let error = match polled {
            Err(error) => {
                warn!(trust_domain = %name, profile = %relationship.profile.name(), %url, %error, "a bundle endpoint brought nothing: the last good bundle stays");
                error.to_string()
            }
            Ok((Outcome::RolledBack, why)) => {
                error!(trust_domain = %name, profile = %relationship.profile.name(), %url, why, "a bundle is refused: the last good one stays");
                why
            }
            Ok((Outcome::Emptied, _)) => {
                error!(trust_domain = %name, profile = %relationship.profile.name(), %url, "the bundle is empty now: its trust domain has revoked all of its keys, and nobody of it is trusted");
                String::new()
            }
            Ok((Outcome::Updated, remark)) => {
                let remark = Some(remark).filter(|remark| !remark.is_empty());
                info!(trust_domain = %name, profile = %relationship.profile.name(), %url, remark, "there is a newer bundle");
                String::new()
            }
            Ok((outcome, _)) => {
                debug!(trust_domain = %name, profile = %relationship.profile.name(), %url, outcome = outcome.name(), "a bundle endpoint was polled");
                String::new()
            }
        };
        let error = error.chars().take(LONGEST_ERROR).collect();
        (turn, Attempt { at: self.clock.now(), outcome, error })
    }

    /// What the poll came to, and what there is to say of that.
    async fn try_poll(&self, relationship: &Relationship) -> Result<(Outcome, String), PollError> {
        let name = &relationship.trust_domain;
        self.plant(name).await?;
        let tls = self.tls(relationship).await?;
        let document = fetch(&relationship.url, tls, &self.limits).await?;
        let offered = Bundle::from_jwks(name.clone(), &document).map_err(FetchError::from)?;
        for _ in 0..TRIES {
            let view = self.views.load();
            let (bundle, remark) = match judge(view.foreign_bundle(name).map(|held| &held.value), offered.clone()) {
                Verdict::Unchanged => return Ok((Outcome::Unchanged, String::new())),
                Verdict::Back { held, offered } => return self.refuse(name, held, offered),
                Verdict::Take(bundle, remark) => (bundle, remark),
            };
            match self.write(&view, relationship, &bundle).await {
                // Another server has found the same, or an operator has given another one: judge anew.
                Err(PollError::Conflict) => self.reached(view.revision() + 1).await,
                Err(error) => return Err(error),
                Ok(()) => return Ok(taken(remark)),
            }
        }
        Err(PollError::Conflict)
    }

    fn refuse(&self, name: &TrustDomain, held: u64, offered: u64) -> Result<(Outcome, String), PollError> {
        let why = format!(
            "spiffe_sequence went back from {held} to {offered}: the bundle is refused, and so is every one below {held}. If \
             {name} was made anew, or gave that number by mistake, get its bundle by a way that you trust and give it with \
             \"chancery bundle set {name}\": it counts from there"
        );
        let mut record = self.audit.reserve(1)?;
        record.record(self.event(name, audit::Outcome::Refused(Reason::Invalid, Message::new(&why)), 0));
        Ok((Outcome::RolledBack, why))
    }

    /// Returns when the View has come to `revision`, or the store does not tell.
    async fn reached(&self, revision: Revision) {
        tokio::select! {
            _ = self.views.reached(revision) => {}
            () = self.clock.sleep(PATIENCE) => {}
        }
    }

    /// Stores the initial bundle of the config where nothing is known of the trust domain yet.
    async fn plant(&self, name: &TrustDomain) -> Result<(), PollError> {
        let view = self.views.load();
        match self.configured.get(name) {
            Some((relationship, Some(bundle))) if view.foreign_bundle(name).is_none() => {
                self.write(&view, relationship, bundle).await
            }
            _ => Ok(()),
        }
    }

    /// What the endpoint is known by (sections 5.2.1.4 and 5.2.2.4): a certificate of the web for the host of the URL, or an
    /// SVID of its ID below the latest bundle of that ID's trust domain, where the host plays no part.
    async fn tls(&self, relationship: &Relationship) -> Result<Arc<ClientConfig>, FetchError> {
        let Profile::HttpsSpiffe(id) = &relationship.profile else { return Ok(self.web_roots.tls().await?) };
        let (name, view) = (id.trust_domain(), self.views.load());
        let own = (name == *view.trust_domain()).then(|| view.bundle().clone());
        let foreign = || view.foreign_bundle(&name).map(|held| held.value.clone());
        let bundle = own.or_else(foreign).ok_or_else(|| FetchError::NoBundle(name.clone()))?;
        if bundle.x509_authorities().is_empty() {
            return Err(FetchError::EmptyBundle(name));
        }
        let peers = Peers::Ids(vec![id.clone()]);
        let config = mtls::client_config(None, CurrentBundles::new([bundle]), peers, Arc::clone(&self.clock));
        let config = config.map_err(|error| ConnectError::Roots(error.to_string()))?;
        Ok(Arc::new(https::speaking_http(config)))
    }

    /// Puts `bundle` in the place of the one that `view` has, as long as the relationship stands.
    async fn write(&self, view: &View, relationship: &Relationship, bundle: &Bundle) -> Result<(), PollError> {
        let name = &relationship.trust_domain;
        let key = keys::bundle(name);
        let mut txn = match view.foreign_bundle(name) {
            Some(held) => Txn::new().expect(key.clone(), held.revision),
            None => Txn::new().absent(key.clone()),
        };
        if self.configured(name).is_none() {
            let stands = view.relationship(name).filter(|held| held.value == *relationship);
            let stands = stands.ok_or(PollError::Gone)?;
            txn = txn.expect(keys::relationship(name), stands.revision);
        }
        let mut record = self.audit.reserve(1)?;
        let revision =
            self.store.commit(txn.put(key, bundle_to_record(bundle))).await.map_err(|error| match error {
                StoreError::Conflict { .. } => PollError::Conflict,
                other => PollError::Store(other),
            })?;
        record.record(self.event(name, audit::Outcome::Changed, revision));
        self.reached(revision).await;
        Ok(())
    }

    fn event(&self, name: &TrustDomain, outcome: audit::Outcome, revision: Revision) -> Event {
        let event = Event::new(self.clock.now(), "PollRelationship", Who::Server, outcome);
        Event { subject: Some(name.id()), revision, ..event }
    }

    fn schedule(&self) -> MutexGuard<'_, Schedule> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a poll failed.
#[derive(Debug, thiserror::Error)]
enum PollError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Store(StoreError),
    #[error(transparent)]
    Audit(#[from] audit::Full),
    #[error("the relationship was changed or deleted meanwhile")]
    Gone,
    #[error("somebody else changes the bundle all the time")]
    Conflict,
}

fn taken(remark: Remark) -> (Outcome, String) {
    match remark {
        Remark::Plain => (Outcome::Updated, String::new()),
        Remark::Emptied => (Outcome::Emptied, String::new()),
        Remark::SameSequence => {
            (Outcome::Updated, "its keys are others under the same spiffe_sequence, which must not be".into())
        }
    }
}

/// Any number. Without random bytes there is no jitter, which is no fault.
fn chance() -> u32 {
    crypto::random().map_or(0, u32::from_le_bytes)
}
