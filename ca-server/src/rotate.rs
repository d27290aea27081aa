//! The loop that keeps this server's authorities in order: read, plan, make what is missing, commit once, sleep.
//!
//! - Every round reads the store afresh; on a conflict it is planned anew.
//! - The law is kept for each kind of authority; one commit carries the steps of all, and expects every authority record
//!   that was read.
//! - A key is on disk before its authority is in the store. It is wiped a round after its authority ceased to sign, so
//!   that whoever follows the store has long taken the next one.
//! - An operator's command goes the same way; commands and rounds of one server wait for each other.
//! - A failure is logged, and tried again soon: what is active signs on meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use spiffe::crypto::{self, CryptoError};
use spiffe::id::TrustDomain;
use spiffe::time::{Backoff, Clock, Lifetime, Timestamp};
use tokio::sync::{Mutex, Notify};
use tokio_util::sync::CancellationToken;

use crate::authority::ca::{BACKDATE, CaPlan};
use crate::authority::issuer::Serial;
use crate::authority::keys::{KeyError, KeySpec, KeyStore, SigningKey};
use crate::authority::plan::{self, Facts, Policy, Refusal, Step};
use crate::authority::record::{self, PREFIX, RecordError};
use crate::authority::upstream::{Upstream, UpstreamError, certify};
use crate::authority::{self, Authority, Kind, Public, State, TokenKey};
use crate::store::{Revision, Store, StoreError, TXN_KEYS_LIMIT, Txn};

/// How long the loop sleeps where no rule wakes it.
const LONGEST_SLEEP: Duration = Duration::from_secs(600);
/// How often a round is planned anew because somebody else wrote meanwhile.
const ATTEMPTS: u32 = 16;

/// Why a round or a command did not come to its end. Nothing of it is in the store then, except perhaps after
/// [`StoreError::Unavailable`].
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A record of the store.
    #[error("{key}: {error}")]
    Record {
        /// Its key.
        key: String,
        /// What is wrong.
        error: RecordError,
    },
    /// The key store.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The upstream CA, or the signing of our own.
    #[error(transparent)]
    Certify(#[from] UpstreamError),
    /// No random bytes.
    #[error(transparent)]
    Random(#[from] CryptoError),
    /// A key was made that signs no tokens.
    #[error("a key was made for {0} that signs no tokens: set its algorithm to ES256 or ES384")]
    NoTokenKey(Kind),
    /// No rule says how this kind rotates.
    #[error("this server has no authorities of kind {0}")]
    NoRule(Kind),
    /// An operator's command was refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Others wrote each time.
    #[error("the authorities were changed by others {ATTEMPTS} times in a row: try again")]
    Contended,
    /// The upstream CA has ended.
    #[error(
        "no authority of this server can sign, and none can be made: the upstream CA ended {0}, renew it and restart"
    )]
    UpstreamEnded(Timestamp),
}

/// Says which of these prepared authorities every live agent has acknowledged. Each comes with the revision that an
/// agent must have acknowledged to know of it.
pub type Acknowledged = Arc<dyn Fn(&[(Arc<str>, Revision)]) -> BTreeSet<Arc<str>> + Send + Sync>;

/// The config's word on the authorities of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Which keys they have.
    pub key: KeySpec,
    /// How they rotate. The ceiling of CAs is set from [`Parts::upstream`].
    pub policy: Policy,
}

/// What the loop works with.
pub struct Parts {
    /// Where authorities lie.
    pub store: Arc<dyn Store>,
    /// Where their private keys lie.
    pub keys: Arc<dyn KeyStore>,
    /// What signs ours; `None`: they sign themselves.
    pub upstream: Option<Upstream>,
    /// Whose CA this is.
    pub trust_domain: TrustDomain,
    /// One for each kind that this server has authorities of.
    pub rules: Vec<Rule>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Who knows of what.
    pub acknowledged: Acknowledged,
}

/// The loop, and the door for operators' commands.
pub struct Rotator {
    parts: Parts,
    wake: Notify,
    /// Held through a round, so that those of this server do not undo each other.
    round: Mutex<()>,
}

impl fmt::Debug for Rotator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rotator").field("rules", &self.parts.rules).finish_non_exhaustive()
    }
}

/// What the store held at one moment.
struct Read {
    authorities: Vec<Authority>,
    revisions: BTreeMap<String, Revision>,
    keys: BTreeSet<Arc<str>>,
    acknowledged: BTreeSet<Arc<str>>,
    revision: Revision,
    now: Timestamp,
}

impl Read {
    fn facts(&self) -> Facts<'_> {
        Facts { authorities: &self.authorities, acknowledged: &self.acknowledged, keys: &self.keys }
    }
}

/// What a round did.
struct Done {
    /// What was made, if anything was.
    made: Vec<Authority>,
    /// The state after it.
    read: Read,
}

impl Rotator {
    /// Nothing happens yet: call [`Rotator::rotate`] once at the start, then [`Rotator::run`].
    pub fn new(mut parts: Parts) -> Self {
        let ceiling = parts.upstream.as_ref().map(|upstream| upstream.window().not_after);
        for rule in parts.rules.iter_mut().filter(|rule| rule.policy.kind == Kind::X509) {
            rule.policy.ceiling = ceiling;
        }
        Self { parts, wake: Notify::new(), round: Mutex::new(()) }
    }

    /// Plan again soon: an agent has acknowledged something, or has gone.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// Rotates until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        loop {
            let clock = &self.parts.clock;
            let sleep = match self.rotate().await {
                Ok(wake) => {
                    backoff.reset();
                    wake.since(clock.now())
                }
                Err(error) => {
                    let chance = crypto::random().map_or(0, u32::from_le_bytes);
                    let wait = backoff.after_failure(chance).max(Duration::from_secs(1));
                    tracing::error!(%error, again_in = ?wait, "rotation failed");
                    wait
                }
            };
            let wake = clock.now().plus(sleep);
            // Both: a clock that jumps forward makes the first return at once, one that is turned back cannot hold up
            // the second.
            tokio::select! {
                () = stop.cancelled() => return,
                () = clock.sleep_until(wake) => {}
                () = clock.sleep(sleep) => {}
                () = self.wake.notified() => {}
            }
        }
    }

    /// One round: brings everything in order, and says when to look again. When it returns for the first time, this
    /// server has an authority of each kind that signs.
    pub async fn rotate(&self) -> Result<Timestamp, RotateError> {
        let policies = || self.parts.rules.iter().map(|rule| &rule.policy);
        let plan = |read: &Read| policies().flat_map(|policy| plan::plan(&read.facts(), policy, read.now)).collect();
        let read = self.carry_out(|read| Ok(plan(read))).await?.read;
        for policy in policies() {
            let active = authority::active(read.authorities.iter(), &policy.owner, policy.kind);
            if let Some(ceiling) = policy.ceiling.filter(|_| active.is_none()) {
                return Err(RotateError::UpstreamEnded(ceiling));
            }
        }
        let wakes = policies().map(|policy| plan::next_wake(&read.facts(), policy, read.now));
        Ok(wakes.min().unwrap_or(read.now.plus(LONGEST_SLEEP)))
    }

    /// When each authority changes state by itself, as far as that is planned. Those of other servers are left out.
    pub async fn next_changes(&self) -> Result<BTreeMap<Arc<str>, Timestamp>, RotateError> {
        let read = self.read().await?;
        let change = |authority: &Authority| {
            let policy = &self.rule(authority.kind())?.policy;
            let at = plan::next_change(authority, &read.facts(), policy, read.now)?;
            Some((authority.id.clone(), at))
        };
        Ok(read.authorities.iter().filter_map(change).collect())
    }

    /// An operator's "prepare": the new authority, and the revision that has it.
    pub async fn prepare(&self, kind: Kind) -> Result<(Authority, Revision), RotateError> {
        let policy = &self.rule(kind).ok_or(RotateError::NoRule(kind))?.policy;
        let mut done = self.carry_out(|read| plan::prepare(&read.facts(), policy, read.now)).await?;
        let made = done.made.pop().ok_or_else(|| Refusal::Unknown(String::new()))?;
        self.wake();
        Ok((made, done.read.revision))
    }

    /// An operator's "activate", which waits for nobody when it `cannot_wait`: the authority as it is then, and the revision.
    pub async fn activate(&self, id: &str, cannot_wait: bool) -> Result<(Authority, Revision), RotateError> {
        let unknown = || Refusal::Unknown(id.chars().take(64).collect());
        self.command(id, |read| {
            let kind = read.authorities.iter().find(|authority| *authority.id == *id).map(Authority::kind);
            let rule = kind.and_then(|kind| self.rule(kind)).ok_or_else(unknown)?;
            plan::activate(&read.facts(), &rule.policy, id, cannot_wait, read.now)
        })
        .await
    }

    /// An operator's "taint": the authority as it is then, and the revision.
    pub async fn taint(&self, id: &str) -> Result<(Authority, Revision), RotateError> {
        self.command(id, |read| plan::taint(&read.facts(), id)).await
    }

    /// An operator's "revoke": the authority as it was, and the revision without it.
    pub async fn revoke(&self, id: &str) -> Result<(Authority, Revision), RotateError> {
        self.command(id, |read| plan::revoke(&read.facts(), id, read.now)).await
    }

    async fn command(
        &self,
        id: &str,
        decide: impl Fn(&Read) -> Result<Vec<Step>, Refusal>,
    ) -> Result<(Authority, Revision), RotateError> {
        let of = |authorities: &[Authority]| authorities.iter().find(|authority| *authority.id == *id).cloned();
        let was = std::sync::Mutex::new(None);
        let done = self
            .carry_out(|read| {
                *was.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = of(&read.authorities);
                decide(read)
            })
            .await?;
        let was = was.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.wake();
        let authority = of(&done.read.authorities).or(was).ok_or_else(|| Refusal::Unknown(id.to_owned()))?;
        Ok((authority, done.read.revision))
    }

    /// Reads, decides, makes and commits, until nobody came between.
    async fn carry_out(&self, decide: impl Fn(&Read) -> Result<Vec<Step>, Refusal>) -> Result<Done, RotateError> {
        let _alone = self.round.lock().await;
        for _ in 0..ATTEMPTS {
            let mut read = self.read().await?;
            self.wipe(&read).await;
            let steps = decide(&read)?;
            if steps.is_empty() {
                return Ok(Done { made: Vec::new(), read });
            }
            let made = self.make_all(steps.iter().filter_map(Step::makes), read.now).await?;
            let after = plan::apply(&read.authorities, &steps, &made, read.now);
            match self.parts.store.commit(transaction(&read, &after)).await {
                Ok(revision) => {
                    log(&steps, &read.authorities, &made);
                    let is_made = |authority: &&Authority| made.iter().any(|made| made.id == authority.id);
                    let made: Vec<Authority> = after.iter().filter(is_made).cloned().collect();
                    read.keys.extend(made.iter().map(|made| made.id.clone()));
                    read.authorities = after;
                    read.revision = revision;
                    return Ok(Done { made, read });
                }
                Err(StoreError::Conflict { key }) => {
                    tracing::debug!(key, "somebody else changed an authority: planning anew");
                    self.forget(&made).await?;
                }
                // The commit may have happened: then the key is needed, else a later round wipes it.
                Err(error) => return Err(error.into()),
            }
        }
        Err(RotateError::Contended)
    }

    async fn read(&self) -> Result<Read, RotateError> {
        let (records, revision) = self.parts.store.range(PREFIX).await?;
        let mut authorities = Vec::with_capacity(records.len());
        let mut revisions = BTreeMap::new();
        let mut prepared = Vec::new();
        for record in records {
            let authority = record::decode(&record.value)
                .map_err(|error| RotateError::Record { key: record.key.clone(), error })?;
            if authority.state == State::Prepared {
                prepared.push((authority.id.clone(), record.revision));
            }
            authorities.push(authority);
            revisions.insert(record.key, record.revision);
        }
        let keys = self.parts.keys.list().await?.into_iter().collect();
        let acknowledged = (self.parts.acknowledged)(&prepared);
        Ok(Read { authorities, revisions, keys, acknowledged, revision, now: self.parts.clock.now() })
    }

    fn rule(&self, kind: Kind) -> Option<&Rule> {
        self.parts.rules.iter().find(|rule| rule.policy.kind == kind)
    }

    /// An authority of each of these kinds; where one cannot be made, none.
    async fn make_all(&self, kinds: impl Iterator<Item = Kind>, now: Timestamp) -> Result<Vec<Authority>, RotateError> {
        let mut made = Vec::new();
        for kind in kinds {
            match self.make(kind, now).await {
                Ok(authority) => made.push(authority),
                Err(error) => {
                    self.forget(&made).await?;
                    return Err(error);
                }
            }
        }
        Ok(made)
    }

    /// Removes the keys of authorities that came to nothing.
    async fn forget(&self, made: &[Authority]) -> Result<(), KeyError> {
        for authority in made {
            self.parts.keys.remove(&authority.id).await?;
        }
        Ok(())
    }

    /// Makes a key, and an authority for it.
    async fn make(&self, kind: Kind, now: Timestamp) -> Result<Authority, RotateError> {
        let rule = self.rule(kind).ok_or(RotateError::NoRule(kind))?;
        let key = self.parts.keys.create(rule.key).await?;
        let made = self.authority_of(&key, &rule.policy, now);
        if made.is_err() {
            self.parts.keys.remove(key.id()).await?;
        }
        made
    }

    fn authority_of(&self, key: &SigningKey, policy: &Policy, now: Timestamp) -> Result<Authority, RotateError> {
        let owner = policy.owner.clone();
        let make: fn(TokenKey) -> Public = match policy.kind {
            Kind::X509 => {
                let Parts { upstream, trust_domain, .. } = &self.parts;
                let serial = Serial::from_random(crypto::random()?);
                let plan = CaPlan::new(trust_domain.clone(), serial, policy.ca_ttl, policy.ceiling, now);
                return Ok(certify(key, owner, &plan, upstream.as_ref(), now)?);
            }
            Kind::Jwt => Public::Jwt,
            Kind::Wit => Public::Wit,
        };
        let public = TokenKey::new(&key.public_key()).map(make).ok_or(RotateError::NoTokenKey(policy.kind))?;
        let lifetime = Lifetime { not_before: now.minus(BACKDATE), not_after: policy.end_of_new(now) };
        Ok(Authority::prepared(key.id().clone(), owner, public, lifetime, now))
    }

    /// Wipes keys that sign nothing and never will. Not when the store knows no authority of ours that has its key:
    /// then it may be the wrong store.
    async fn wipe(&self, read: &Read) {
        let owns = |authority: &Authority| {
            self.rule(authority.kind()).is_some_and(|rule| rule.policy.owner == authority.owner)
        };
        let ours = |authority: &&Authority| owns(authority) && authority.state != State::Retired;
        let needed: BTreeSet<&Arc<str>> = read.authorities.iter().filter(ours).map(|authority| &authority.id).collect();
        if !needed.iter().any(|id| read.keys.contains(*id)) {
            return;
        }
        for id in read.keys.iter().filter(|id| !needed.contains(id)) {
            let kind = read.authorities.iter().find(|authority| authority.id == *id).map(Authority::kind);
            let kind = kind.map(tracing::field::display);
            match self.parts.keys.remove(id).await {
                Ok(()) => tracing::info!(authority = %id, kind, "private key wiped: its authority signs no more"),
                Err(error) => tracing::warn!(%error, "private key could not be wiped"),
            }
        }
    }
}

/// From what was read to `after`, expecting all that was read: first what is written, in case there are more records
/// than one transaction may expect.
fn transaction(read: &Read, after: &[Authority]) -> Txn {
    let mut txn = Txn::new();
    let before: BTreeMap<String, &Authority> =
        read.authorities.iter().map(|authority| (record::key(authority), authority)).collect();
    let after: BTreeMap<String, &Authority> =
        after.iter().map(|authority| (record::key(authority), authority)).collect();
    let mut unchanged = Vec::new();
    for (key, revision) in &read.revisions {
        match after.get(key) {
            Some(now) if before.get(key) == Some(now) => {
                unchanged.push((key, *revision));
                continue;
            }
            Some(now) => txn = txn.put(key.clone(), record::encode(now)),
            None => txn = txn.delete(key.clone()),
        }
        txn = txn.expect(key.clone(), *revision);
    }
    for (key, authority) in after.iter().filter(|(key, _)| !read.revisions.contains_key(*key)) {
        txn = txn.absent(key.clone()).put(key.clone(), record::encode(authority));
    }
    let room = TXN_KEYS_LIMIT.saturating_sub(txn.expect.len());
    unchanged.into_iter().take(room).fold(txn, |txn, (key, revision)| txn.expect(key.clone(), revision))
}

/// `before` is what was read: what a step removes is in it alone.
fn log(steps: &[Step], before: &[Authority], made: &[Authority]) {
    for step in steps {
        let known = || before.iter().chain(made).find(|authority| Some(&authority.id) == step.id());
        let new = || made.iter().find(|made| Some(made.kind()) == step.makes());
        let Some(authority) = known().or_else(new) else { continue };
        let (kind, id) = (authority.kind(), &authority.id);
        tracing::info!(step = step.name(), %kind, authority = %id, reason = %step.reason(), "authority changed");
    }
}

#[cfg(test)]
mod tests;
