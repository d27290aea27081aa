//! How a process that is known gets its answers: its facts, a subscription, the first state, each further one. What
//! the doors of this agent share, whoever asks: the process itself (Workload API) or a broker (Broker API).
//!
//! - A process is attested once for each RPC: between two of them it may have become another program.
//! - While identities are still on their way there is no answer; after `first_answer` it is [`Denial::NotReady`].
//! - Without an identity it is denied, at once or whenever the last one goes.
//! - A stream that is not read costs its latest response: states are fetched when the transport asks for one.
//! - The end of the process ends its streams, whoever holds the connection. So does the end of a broker's SVID.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use futures_util::stream::unfold;
use spiffe::bundle::Bundle;
use spiffe::id::SpiffeId;
use spiffe::selector::Selectors;
use spiffe::time::{Clock, Timestamp};
use spiffe::wit_svid::WitSvid;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::debug;

use super::places::{Full, Holder, Place, Places};
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
    /// No entry of this node gives an identity to a process with these selectors.
    #[error("no registration entry of this node matches the selectors of process {pid} ({selectors})")]
    NoIdentity {
        /// Which process.
        pid: u32,
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
    /// Whoever asked for another may do so no longer.
    #[error("the SVID with which this was asked for was good until {0}: connect anew with a fresh one")]
    CallerExpired(Timestamp),
    /// The agent stops.
    #[error(transparent)]
    Stopping(#[from] Stopped),
}

/// What every RPC goes through.
pub(super) struct Door {
    pub(super) cache: Cache,
    pub(super) attestors: Arc<Attestors>,
    pub(super) first_answer: Duration,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) shutdown: CancellationToken,
}

impl Door {
    /// What is true of `peer` now.
    pub(super) async fn attest(&self, peer: &Peer) -> Result<Selectors, Denial> {
        self.attestors.attest(peer).await.map_err(|error| {
            debug!(pid = peer.pid(), uid = peer.uid(), %error, "process is refused");
            error.into()
        })
    }

    /// Finds a place among `streams` for a process that asks for itself, and out who it is.
    pub(super) async fn admit(&self, peer: Arc<Peer>, streams: &Arc<Places>) -> Result<Admitted, Denial> {
        let place = streams.take(Holder::User(peer.uid()))?;
        let selectors = self.attest(&peer).await?;
        Ok(Admitted { peer, selectors, place, asker: Asker::Itself })
    }

    /// Lets `admitted` in: the first state with an identity in it, and the way to the next ones.
    pub(super) async fn open(&self, admitted: Admitted) -> Result<(Watcher, WorkloadState), Denial> {
        let asker = admitted.asker;
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
        let asker = admitted.asker;
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
        let asker = admitted.asker;
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
        let Admitted { peer, selectors, place, asker } = admitted;
        let ends = Ends { asker, clock: Arc::clone(&self.clock), shutdown: self.shutdown.clone() };
        let mut watcher = Watcher { peer, selectors, subscription, is_empty, ends, _place: place };
        let state = tokio::select! {
            state = watcher.next() => state?,
            () = self.clock.sleep(self.first_answer) => return Err(Denial::NotReady),
        };
        Ok((watcher, state))
    }
}

/// A process that may have answers, and its place among the streams.
pub(super) struct Admitted {
    pub(super) peer: Arc<Peer>,
    /// What was found to be true of it.
    pub(super) selectors: Selectors,
    pub(super) place: Place,
    pub(super) asker: Asker,
}

/// Who asks for the answers of a process.
#[derive(Clone, Copy, Debug)]
pub(super) enum Asker {
    /// It asks itself.
    Itself,
    /// A broker, until the last moment of its SVID. The identities of operators are not for it: they open the server's
    /// Admin door.
    Broker { until: Timestamp },
}

impl Asker {
    /// What of `state` is for it.
    fn share<S: Clone>(self, state: WorkloadState<S>) -> WorkloadState<S> {
        match self {
            Self::Broker { .. } if state.identities.iter().any(|identity| identity.entry.admin) => {
                let identities = state.identities.iter().filter(|identity| !identity.entry.admin).cloned().collect();
                WorkloadState { identities, ..state }
            }
            Self::Itself | Self::Broker { .. } => state,
        }
    }

    /// What of `entitlement` is for it.
    pub(super) fn share_entitlement(self, mut entitlement: Entitlement) -> Entitlement {
        if matches!(self, Self::Broker { .. }) {
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
    peer: Arc<Peer>,
    selectors: Selectors,
    subscription: Subscription<T>,
    is_empty: fn(&T) -> bool,
    ends: Ends,
    _place: Place,
}

/// What ends a stream besides its process.
struct Ends {
    asker: Asker,
    clock: Arc<dyn Clock>,
    shutdown: CancellationToken,
}

impl Ends {
    async fn come(&self) -> Denial {
        let expired = async {
            match self.asker {
                Asker::Broker { until } => {
                    // Its last second is one of its own.
                    self.clock.sleep_until(until.plus(Duration::from_secs(1))).await;
                    until
                }
                Asker::Itself => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => Stopped.into(),
            until = expired => Denial::CallerExpired(until),
        }
    }
}

impl<T: Send + 'static> Watcher<T> {
    /// The next state, which has an identity in it; or why there is none any more. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<T, Denial> {
        let Self { peer, selectors, ends, .. } = self;
        tokio::select! {
            biased;
            () = peer.ended() => Err(AttestError::Gone(peer.pid()).into()),
            denial = ends.come() => Err(denial),
            state = self.subscription.next() => {
                let state = state.ok_or(Stopped)?;
                if (self.is_empty)(&state) {
                    debug!(pid = peer.pid(), uid = peer.uid(), %selectors, "no identity");
                    return Err(Denial::NoIdentity { pid: peer.pid(), selectors: selectors.clone() });
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
mod tests {
    use std::process::{Child, Command, Stdio};

    use spiffe::time::Fake;

    use super::*;
    use crate::cache::{Mailbox, mailbox};

    const NOW: Timestamp = Timestamp::from_unix(1_800_000_000);

    /// A door and the cache behind it, and a process that is there for `asker`.
    fn named(asker: Asker) -> (Door, Mailbox, Fake, Child, Admitted) {
        let (cache, mailbox) = mailbox();
        let clock = Fake::new(NOW);
        let door = Door {
            cache,
            attestors: Arc::new(Attestors::new(Vec::new())),
            first_answer: Duration::from_secs(10),
            clock: Arc::new(clock.clone()),
            shutdown: CancellationToken::new(),
        };
        let child = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap();
        let peer = Arc::new(Peer::named(child.id()).unwrap());
        let place = Places::new(1, 1).take(Holder::User(0)).unwrap();
        (door, mailbox, clock, child, Admitted { peer, selectors: Selectors::default(), place, asker })
    }

    fn end(mut child: Child) {
        child.kill().unwrap();
        child.wait().unwrap();
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
        let (door, mut mailbox, clock, child, admitted) =
            named(Asker::Broker { until: NOW.plus(Duration::from_secs(5)) });
        let opening = tokio::spawn(async move { door.open(admitted).await.map(drop) });
        let _subscribe = mailbox.next().await.unwrap();
        clock.advance(Duration::from_secs(5));
        tokio::task::yield_now().await;
        assert!(!opening.is_finished());
        clock.advance(Duration::from_secs(1));
        let denial = opening.await.unwrap().unwrap_err();
        assert!(matches!(denial, Denial::CallerExpired(_)), "{denial}");
        end(child);
    }
}
