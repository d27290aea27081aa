//! How a process that is known gets its answers: its facts, a subscription, the first state, each further one. What
//! the doors of this agent share, whoever asks: the process itself (Workload API) or a broker (Broker API).
//!
//! - A process is attested once for each RPC: between two of them it may have become another program.
//! - While identities are still on their way there is no answer; after `first_answer` it is [`Denial::NotReady`].
//! - Without an identity it is denied, at once or whenever the last one goes.
//! - A stream that is not read costs its latest response: states are fetched when the transport asks for one.
//! - The end of the process ends its streams, whoever holds the connection, and so does the end of its pod, and each
//!   change of what is true of that. So does the end of a
//!   broker's SVID, and each change of the bundle after which that does not count any more.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use futures_util::stream::unfold;
use spiffe::bundle::Bundle;
use spiffe::id::{SpiffeId, TrustDomain};
use spiffe::selector::Selectors;
use spiffe::time::{Clock, Timestamp};
use spiffe::wit_svid::WitSvid;
use spiffe::x509_svid::{SvidError, X509Svid};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::debug;

use super::places::{Full, Holder, Place, Places};
use super::subject::{Subject, Whom};
use crate::attestor::{AttestError, Attestors, Peer};
use crate::cache::directory::Entitlement;
use crate::cache::{Cache, Stopped, Subscription, WorkloadState};

/// A stream of responses, the last of which may be why there are no more.
pub(super) type Responses<R> = Pin<Box<dyn Stream<Item = Result<R, Status>> + Send>>;

/// What one process has of WIT-SVIDs.
pub(super) type WitState = WorkloadState<WitSvid>;

/// Why a process gets no answer, or no further one. Each door says it in the words of its standard.
#[derive(Debug, thiserror::Error)]
pub(super) enum Denial {
    /// There is no place for another stream.
    #[error(transparent)]
    Full(#[from] Full),
    /// Nothing can be said of the process, or it is not there any more.
    #[error(transparent)]
    Attest(#[from] AttestError),
    /// The pod of the process, or the one that a broker names, was deleted or has ended.
    #[error("pod {0} is gone from this node, and with it what was true of what runs in it: ask again")]
    PodGone(String),
    /// Its labels are others now, or what owns it.
    #[error("what is true of pod {0} is not what it was when this was asked for: ask again")]
    PodChanged(String),
    /// No entry of this node gives an identity to a process or pod with these selectors.
    #[error("no registration entry of this node matches the selectors of {whom} ({selectors})")]
    NoIdentity {
        /// Whom.
        whom: Whom,
        /// What is true of it.
        selectors: Selectors,
    },
    /// The process has identities, and not the one that it asks for.
    #[error("the process is not entitled to {0}: leave the SPIFFE ID out to get what it is entitled to")]
    OtherIdentity(SpiffeId),
    /// The server does not issue what was asked for.
    #[error("the server refuses to issue it: {0}")]
    Refused(Arc<str>),
    /// The identities are not there yet.
    #[error("the agent has no answer for this process yet: it waits for the server; try again")]
    NotReady,
    /// He waits for as many tokens as one may.
    #[error("{holder} waits for {most} JWT-SVIDs, as many as one may: wait for them, then try again")]
    TooManyWait {
        /// Who.
        holder: Holder,
        /// How many calls.
        most: usize,
    },
    /// Whoever asked for another may do so no longer.
    #[error("the SVID with which this was asked for was good until {0}: connect anew with a fresh one")]
    CallerExpired(Timestamp),
    /// The same, because of what its SVID rests on.
    #[error("the SVID with which this was asked for is not good any more: {0}; connect anew with a fresh one")]
    CallerRefused(#[from] SvidError),
    /// The agent stops.
    #[error(transparent)]
    Stopping(#[from] Stopped),
}

/// What every RPC goes through.
pub(super) struct Door {
    pub(super) cache: Cache,
    pub(super) attestors: Arc<Attestors>,
    pub(super) first_answer: Duration,
    /// Calls that wait for tokens.
    pub(super) waits: Arc<Places>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) shutdown: CancellationToken,
}

impl Door {
    /// What is true of `peer` now, and as long as what.
    pub(super) async fn process(&self, peer: Arc<Peer>) -> Result<(Subject, Selectors), Denial> {
        let selectors = self.attestors.attest(&peer).await.inspect_err(|error| {
            debug!(pid = peer.pid(), uid = peer.uid(), %error, "process is refused");
        })?;
        let pod = self.attestors.presence(&selectors);
        Ok((Subject::Process(peer, pod), selectors))
    }

    /// Finds a place among `streams` for a process that asks for itself, and out who it is.
    pub(super) async fn admit(&self, peer: Arc<Peer>, streams: &Arc<Places>) -> Result<Admitted, Denial> {
        let place = streams.take(Holder::local(&peer, &self.attestors))?;
        let (subject, selectors) = self.process(peer).await?;
        Ok(Admitted { subject, selectors, place, asker: Asker::Itself })
    }

    /// Lets `admitted` in: the first state with an identity in it, and the way to the next ones.
    pub(super) async fn open(&self, admitted: Admitted) -> Result<(Watcher, WorkloadState), Denial> {
        let asker = admitted.asker.clone();
        let subscription = self.cache.subscribe(admitted.selectors.clone()).await?;
        self.watch(admitted, subscription.map(move |state| asker.share(state)), |state| state.identities.is_empty())
            .await
    }

    /// The same with WIT-SVIDs, of `id` alone if it is given.
    pub(super) async fn open_wit(
        &self,
        admitted: Admitted,
        id: Option<SpiffeId>,
    ) -> Result<(Watcher<WitState>, WitState), Denial> {
        let asker = admitted.asker.clone();
        let of_id = move |state: WitState| match &id {
            Some(id) => {
                let identities = state.identities.iter().filter(|identity| identity.entry.spiffe_id == *id).cloned();
                asker.share(WitState { identities: identities.collect(), ..state })
            }
            None => asker.share(state),
        };
        let subscription = self.cache.subscribe_wit(admitted.selectors.clone()).await?;
        self.watch(admitted, subscription.map(of_id), |state| state.identities.is_empty()).await
    }

    /// The same with what `admitted` is entitled to, whether SVIDs have been issued for it or not.
    pub(super) async fn open_entitlement(
        &self,
        admitted: Admitted,
    ) -> Result<(Watcher<Entitlement>, Entitlement), Denial> {
        let asker = admitted.asker.clone();
        let subscription = self.cache.entitlements(admitted.selectors.clone(), Arc::clone(&self.clock));
        let subscription = subscription.map(move |entitlement| asker.share_entitlement(entitlement));
        self.watch(admitted, subscription, Entitlement::is_empty).await
    }

    async fn watch<T: Send + 'static>(
        &self,
        admitted: Admitted,
        subscription: Subscription<T>,
        is_empty: fn(&T) -> bool,
    ) -> Result<(Watcher<T>, T), Denial> {
        let Admitted { subject, selectors, place, asker } = admitted;
        let ends = self.ends(asker);
        let mut watcher = Watcher { subject, selectors, subscription, is_empty, ends, _place: place };
        let state = tokio::select! {
            state = watcher.next() => state?,
            () = self.clock.sleep(self.first_answer) => return Err(Denial::NotReady),
        };
        Ok((watcher, state))
    }

    /// What ends the answers for `asker`, but for the process.
    pub(super) fn ends(&self, asker: Asker) -> Ends {
        Ends { asker, clock: Arc::clone(&self.clock), shutdown: self.shutdown.clone() }
    }
}

/// A process or pod that may have answers, and its place among the streams.
pub(super) struct Admitted {
    pub(super) subject: Subject,
    /// What was found to be true of it.
    pub(super) selectors: Selectors,
    pub(super) place: Place,
    pub(super) asker: Asker,
}

/// Who asks for the answers of a process.
#[derive(Clone, Debug)]
pub(super) enum Asker {
    /// It asks itself.
    Itself,
    /// A broker, as long as its SVID is good. The identities of operators are not for it: they open the server's Admin
    /// door.
    Broker(Standing),
}

/// What a broker's right rests on.
#[derive(Clone, Debug)]
pub(super) struct Standing {
    /// The broker's.
    pub(super) svid: X509Svid,
    /// Of its trust domain. What has changed since this was cloned is looked at first.
    pub(super) bundle: watch::Receiver<Bundle>,
}

impl Standing {
    /// Returns when the SVID is good no longer. Cancel safe.
    async fn end(&mut self, clock: &dyn Clock) -> Denial {
        let until = self.svid.lifetime().not_after;
        // Its last second is one of its own.
        let expired = clock.sleep_until(until.plus(Duration::from_secs(1)));
        let refused = async {
            while self.bundle.changed().await.is_ok() {
                let bundle = self.bundle.borrow_and_update().clone();
                if let Err(why) = self.svid.clone().verify(&bundle, clock.now()) {
                    return why;
                }
            }
            // The agent is stopping.
            std::future::pending().await
        };
        tokio::select! {
            biased;
            () = expired => Denial::CallerExpired(until),
            why = refused => why.into(),
        }
    }
}

impl Asker {
    /// What of `state` is for it.
    fn share<S: Clone>(&self, state: WorkloadState<S>) -> WorkloadState<S> {
        match self {
            Self::Itself => state,
            Self::Broker(_) => {
                let identities = state.identities.iter().filter(|identity| !identity.entry.admin);
                let identities: Arc<[_]> = identities.cloned().collect();
                let is_named = |domain: &TrustDomain| {
                    identities.iter().any(|identity| identity.entry.federates_with.contains(domain))
                };
                let federated = state.federated.iter().filter(|(domain, _)| is_named(domain));
                let federated = federated.map(|(domain, bundle)| (domain.clone(), bundle.clone())).collect();
                WorkloadState { identities, federated: Arc::new(federated), bundle: state.bundle }
            }
        }
    }

    /// What of `entitlement` is for it.
    pub(super) fn share_entitlement(&self, mut entitlement: Entitlement) -> Entitlement {
        if matches!(self, Self::Broker(_)) {
            let Entitlement { entries, bundles, .. } = &mut entitlement;
            entries.retain(|entry| !entry.admin);
            let is_named =
                |bundle: &Bundle| entries.iter().any(|entry| entry.federates_with.contains(bundle.trust_domain()));
            let own = bundles.first().map(|own| own.trust_domain().clone());
            bundles.retain(|bundle| own.as_ref() == Some(bundle.trust_domain()) || is_named(bundle));
        }
        entitlement
    }
}

/// One open stream's view of what its process is entitled to.
pub(super) struct Watcher<T = WorkloadState> {
    subject: Subject,
    selectors: Selectors,
    subscription: Subscription<T>,
    is_empty: fn(&T) -> bool,
    ends: Ends,
    _place: Place,
}

/// What ends an answer besides its process.
pub(super) struct Ends {
    asker: Asker,
    clock: Arc<dyn Clock>,
    shutdown: CancellationToken,
}

impl Ends {
    /// Why there are no more answers, once that is so. Cancel safe.
    pub(super) async fn come(&mut self) -> Denial {
        let caller = async {
            match &mut self.asker {
                Asker::Broker(standing) => standing.end(self.clock.as_ref()).await,
                Asker::Itself => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => Stopped.into(),
            denial = caller => denial,
        }
    }
}

impl<T: Send + 'static> Watcher<T> {
    /// The next state, which has an identity in it; or why there is none any more. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<T, Denial> {
        let Self { subject, selectors, ends, .. } = self;
        tokio::select! {
            biased;
            denial = subject.ended() => Err(denial),
            denial = ends.come() => Err(denial),
            state = self.subscription.next() => {
                let state = state.ok_or(Stopped)?;
                if (self.is_empty)(&state) {
                    let whom = subject.whom();
                    debug!(%whom, %selectors, "no identity");
                    return Err(Denial::NoIdentity { whom, selectors: selectors.clone() });
                }
                Ok(state)
            }
        }
    }

    /// The stream of what `render` makes of each state, beginning with `first`; equal neighbours are sent once. It ends
    /// with what `refuse` makes of the reason.
    pub(super) fn responses<R>(self, first: T, render: fn(&T) -> R, refuse: fn(&Denial) -> Status) -> Responses<R>
    where
        R: Clone + PartialEq + Send + 'static,
    {
        let next = move |(mut watcher, mut waiting, mut sent): (Self, Option<T>, Option<R>)| async move {
            loop {
                let state = match waiting.take() {
                    Some(state) => Ok(state),
                    None => watcher.next().await,
                };
                match state.map(|state| render(&state)) {
                    Ok(response) if sent.as_ref() == Some(&response) => {}
                    Ok(response) => {
                        sent = Some(response.clone());
                        return Some((Ok(response), Some((watcher, None, sent))));
                    }
                    Err(denial) => return Some((Err(refuse(&denial)), None)),
                }
            }
        };
        Box::pin(unfold(Some((self, Some(first), None)), move |at| async move { next(at?).await }))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;
    use std::process::{Child, Command, Stdio};

    use spiffe::crypto;
    use spiffe::entry::{EntryId, KeyType, RegistrationEntry};
    use spiffe::time::{Fake, Lifetime};
    use zeroize::Zeroizing;

    use super::*;
    use crate::cache::{Identity, Mailbox, mailbox};
    use crate::test_house::Authority;

    pub(in crate::api) const NOW: Timestamp = Timestamp::from_unix(1_800_000_000);
    const LIFE: Duration = Duration::from_secs(5);

    /// A door and the cache behind it, and a process that is there for `asker`.
    pub(in crate::api) fn named(asker: Asker) -> (Door, Mailbox, Fake, Child, Admitted) {
        let (cache, mailbox) = mailbox();
        let clock = Fake::new(NOW);
        let door = Door {
            cache,
            attestors: Arc::new(Attestors::new(Vec::new(), Arc::new(clock.clone()))),
            first_answer: Duration::from_secs(10),
            waits: Places::new(8, 1),
            clock: Arc::new(clock.clone()),
            shutdown: CancellationToken::new(),
        };
        // Without our output: a test that fails does not end it, and whoever reads that would wait for it.
        let mut sleep = Command::new("sleep");
        let sleep = sleep.arg("600").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = sleep.spawn().unwrap();
        let subject = Subject::Process(Arc::new(Peer::named(child.id()).unwrap()), None);
        let place = Places::new(1, 1).take(Holder::User(0)).unwrap();
        let selectors = Selectors::parse(["unix:uid:0"]).unwrap();
        (door, mailbox, clock, child, Admitted { subject, selectors, place, asker })
    }

    pub(in crate::api) fn end(mut child: Child) {
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub(in crate::api) fn domain(name: &str) -> TrustDomain {
        TrustDomain::parse(name).unwrap()
    }

    pub(in crate::api) fn entry(name: &str) -> RegistrationEntry {
        RegistrationEntry {
            id: EntryId::parse(name).unwrap(),
            spiffe_id: domain("example.org").member(&format!("/{name}")).unwrap(),
            parent: domain("example.org").agent_id("join_token", "1").unwrap(),
            selectors: Selectors::parse(["unix:uid:0"]).unwrap(),
            x509_ttl: None,
            jwt_ttl: None,
            wit_ttl: None,
            jti: false,
            dns_names: Vec::new(),
            hint: String::new(),
            admin: false,
            federates_with: Vec::new(),
            expires_at: None,
            key_type: None,
            created_at: NOW,
            rule: None,
        }
    }

    pub(in crate::api) fn roots(authorities: &[&Authority]) -> Bundle {
        let roots = authorities.iter().map(|authority| authority.x509_authority()).collect();
        Bundle::new(domain("example.org"), roots, 1, None).unwrap()
    }

    fn identity(authority: &Authority, entry: RegistrationEntry) -> Identity {
        let key = crypto::generate_key(KeyType::P256).unwrap();
        let life = Lifetime { not_before: NOW, not_after: NOW.plus(LIFE) };
        let svid = X509Svid::parse(authority.sign(&entry.spiffe_id, &key, life)).unwrap();
        let key = Arc::new(Zeroizing::new(key.serialize_der()));
        Identity { entry: Arc::new(entry), hint: "".into(), svid, key }
    }

    /// A broker with five seconds to live, and what says whether its root counts.
    pub(in crate::api) fn broker(authority: &Authority) -> (Asker, watch::Sender<Bundle>) {
        let (trust, bundle) = watch::channel(roots(&[authority]));
        (Asker::Broker(Standing { svid: identity(authority, entry("proxy")).svid, bundle }), trust)
    }

    #[tokio::test]
    async fn a_process_that_ends_before_the_first_answer_gets_none() {
        let (door, mut mailbox, _clock, child, admitted) = named(Asker::Itself);
        let pid = child.id();
        let opening = tokio::spawn(async move { door.open(admitted).await.map(drop) });
        let subscribe = mailbox.next().await.unwrap();
        // From now on its pid may be anybody's.
        end(child);
        let denial = opening.await.unwrap().unwrap_err();
        assert!(matches!(denial, Denial::Attest(AttestError::Gone(gone)) if gone == pid), "{denial}");
        subscribe.states.closed().await;
    }

    #[tokio::test]
    async fn whoever_asks_for_another_gets_nothing_beyond_his_own_time() {
        let (asker, _trust) = broker(&Authority::new("root", NOW));
        let (door, mut mailbox, clock, child, admitted) = named(asker);
        let opening = tokio::spawn(async move { door.open(admitted).await.map(drop) });
        let _subscribe = mailbox.next().await.unwrap();
        clock.advance(LIFE);
        tokio::task::yield_now().await;
        assert!(!opening.is_finished());
        clock.advance(Duration::from_secs(1));
        let denial = opening.await.unwrap().unwrap_err();
        assert!(matches!(denial, Denial::CallerExpired(_)), "{denial}");
        end(child);
    }

    #[tokio::test]
    async fn a_broker_whose_root_goes_is_told_no_more() {
        let (old, fresh) = (Authority::new("root", NOW), Authority::new("next", NOW));
        let (asker, trust) = broker(&old);
        let (door, mut mailbox, _clock, child, admitted) = named(asker);
        let opening = tokio::spawn(async move { door.open(admitted).await });
        let subscribe = mailbox.next().await.unwrap();
        let state = |name: &str| WorkloadState {
            identities: vec![identity(&old, entry(name))].into(),
            bundle: roots(&[&old]),
            federated: Arc::default(),
        };
        subscribe.states.send_replace(Some(state("web")));
        let (mut watcher, _) = opening.await.unwrap().unwrap();
        // A further root is no reason to end.
        trust.send_replace(roots(&[&old, &fresh]));
        subscribe.states.send_replace(Some(state("api")));
        assert_eq!(watcher.next().await.unwrap().identities[0].entry.id.as_str(), "api");
        // What has come, too, is for it no more.
        trust.send_replace(roots(&[&fresh]));
        subscribe.states.send_replace(Some(state("web")));
        let denial = watcher.next().await.unwrap_err();
        assert!(matches!(denial, Denial::CallerRefused(_)), "{denial}");

        // Nor does one begin that was let in just before.
        let (asker, trust) = broker(&old);
        trust.send_replace(roots(&[&fresh]));
        let (door, _mailbox, _clock, other, admitted) = named(asker);
        let denial = door.open(admitted).await.map(drop).unwrap_err();
        assert!(matches!(denial, Denial::CallerRefused(_)), "{denial}");
        end(child);
        end(other);
    }

    #[test]
    fn what_an_operator_federates_with_is_not_for_brokers() {
        let root = Authority::new("root", NOW);
        let federates = |name: &str, with: &str| RegistrationEntry {
            federates_with: vec![domain(with)],
            admin: name == "operator",
            ..entry(name)
        };
        let bundles: BTreeMap<_, _> =
            ["a.org", "b.org"].map(|name| (domain(name), Bundle::empty(domain(name)))).into_iter().collect();
        let entries = [federates("web", "a.org"), federates("operator", "b.org")];
        let state = WorkloadState {
            identities: entries.map(|entry| identity(&root, entry)).to_vec().into(),
            bundle: roots(&[&root]),
            federated: Arc::new(bundles),
        };
        let (broker, _trust) = broker(&root);
        let shared = broker.share(state.clone());
        assert_eq!(shared.identities.iter().map(|one| one.entry.id.as_str()).collect::<Vec<_>>(), ["web"]);
        assert_eq!(shared.federated.keys().collect::<Vec<_>>(), [&domain("a.org")]);
        assert_eq!(Asker::Itself.share(state.clone()), state);
    }
}
