//! The loop that keeps the agent's own SVID fresh.
//!
//! - Renewed with a fresh key at half of its life, and at once when its root is tainted or gone, or the clock was put
//!   back before it.
//! - A failure is tried again, from 1 to 30 seconds later.
//! - Where the server will not have the agent any more, or the SVID has expired, the node is attested anew with what
//!   the config gives. As long as that is refused it is tried again, slowly: an operator may allow it, or put a new
//!   token into the token file. What is held is served on meanwhile.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use spiffe::bundle::Bundle;
use spiffe::crypto;
use spiffe::mtls::{CurrentBundles, CurrentSvid};
use spiffe::time::{Backoff, Clock, Timestamp};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::attest::Attestor;
use super::folder::Folder;
use super::{NodeError, NodeIdentity, fresh_key};
use crate::client::Client;
use crate::metrics::Metrics;

const LOOK_AGAIN: Duration = Duration::from_secs(600);
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
const REFUSED_FIRST: Duration = Duration::from_secs(5);
const REFUSED_MOST: Duration = Duration::from_secs(300);
const REFUSED_AGAIN: Duration = Duration::from_secs(30);

/// What the loop works with.
#[derive(Debug)]
pub struct Keeper {
    /// The agent's SVID and key as they are.
    pub identity: NodeIdentity,
    /// Where they are stored.
    pub folder: Folder,
    /// What the agent presents.
    pub current: CurrentSvid,
    /// What servers are verified against; set when the node was attested anew.
    pub bundles: CurrentBundles,
    /// The bundle, told at each change.
    pub trust: watch::Receiver<Bundle>,
    /// The Node door.
    pub client: Arc<Client>,
    /// How to begin anew.
    pub attestor: Attestor,
    /// Where the time comes from.
    pub clock: Arc<dyn Clock>,
    /// What is counted.
    pub metrics: Metrics,
}

impl Keeper {
    /// Renews until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        let mut refused = Backoff::new(REFUSED_FIRST, REFUSED_MOST);
        let (mut at_once, mut unwanted) = (false, false);
        let mut asked_again: Option<Timestamp> = None;
        // What was said to the last Renew that was refused.
        let mut refusal: Option<NodeError> = None;
        loop {
            self.metrics
                .own_expiry
                .set(i64::try_from(self.identity.svid.lifetime().not_after.unix()).unwrap_or(i64::MAX));
            if !(at_once || unwanted || self.identity.is_due(self.clock.now())) {
                let wake = self.identity.renew_at();
                let reason = tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = self.clock.sleep_until(wake) => Wake::Time,
                    () = self.clock.sleep(LOOK_AGAIN) => Wake::Time,
                    Ok(()) = self.trust.changed() => Wake::Trust,
                    () = self.client.identity_refused() => Wake::Unwanted,
                };
                match reason {
                    Wake::Time => {}
                    Wake::Trust => at_once = self.keep_bundle(),
                    Wake::Unwanted => {
                        // A server that renews, and then still refuses, is not asked over and over.
                        let now = self.clock.now();
                        if asked_again.is_some_and(|at| now.since(at) < REFUSED_AGAIN) {
                            tokio::select! {
                                () = shutdown.cancelled() => return,
                                () = self.clock.sleep(REFUSED_AGAIN) => {}
                            }
                        }
                        asked_again = Some(self.clock.now());
                        at_once = true;
                    }
                }
                continue;
            }
            let result = tokio::select! {
                () = shutdown.cancelled() => return,
                result = self.refresh(unwanted) => result,
            };
            let Err(why) = result else {
                (at_once, unwanted) = (false, false);
                (backoff, refused) =
                    (Backoff::new(FIRST_WAIT, LONGEST_WAIT), Backoff::new(REFUSED_FIRST, REFUSED_MOST));
                continue;
            };
            let chance = crypto::random().map_or(0, u32::from_ne_bytes);
            let end = self.identity.svid.lifetime().not_after;
            let wait = if why.is_transient() {
                warn!(error = %why, %end, "this agent's SVID could not be renewed: trying again");
                backoff.after_failure(chance)
            } else if unwanted {
                let why = what_to_tell(refusal.as_ref(), &why);
                error!(error = %why, %end, "this agent is not accepted any more: trying again, slowly");
                refused.after_failure(chance)
            } else {
                // The Renew was refused: begin anew, at once.
                warn!(error = %why, "the server does not renew this agent's SVID: having the node attested anew");
                refusal = Some(why);
                unwanted = true;
                continue;
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.clock.sleep(wait) => {}
            }
            if unwanted {
                // A ban may have been lifted meanwhile: ask for a renewal first.
                (unwanted, at_once) = (false, true);
            }
        }
    }

    /// Stores the bundle as it is now; whether the agent's own SVID must be replaced for it.
    fn keep_bundle(&mut self) -> bool {
        let bundle = self.trust.borrow_and_update().clone();
        if let Err(error) = self.folder.store_bundle(&bundle) {
            warn!(%error, "the bundle could not be stored: after a restart the agent may have to be attested anew");
        }
        let svid = &self.identity.svid;
        let now = self.clock.now();
        svid.is_tainted_by(&bundle) || (svid.lifetime().contains(now) && svid.clone().verify(&bundle, now).is_err())
    }

    async fn refresh(&mut self, unwanted: bool) -> Result<(), NodeError> {
        let now = self.clock.now();
        if unwanted || !self.identity.is_valid(now) {
            let stored = self.trust.borrow().clone();
            let (identity, bundle) = self.attestor.attest(Some(&stored)).await?;
            info!(spiffe_id = %identity.svid.id(), "attested anew");
            self.bundles.set([bundle]);
            return self.take(identity).await;
        }
        let (key, csr) = fresh_key(self.attestor.key_type)?;
        let svid = self.client.renew(csr).await?;
        if svid.id() != self.identity.svid.id() {
            return Err(NodeError::NotAnAgent(svid.id().to_string()));
        }
        svid.key_fits(&key.0)?;
        let bundle = self.trust.borrow().clone();
        let svid = svid.verify(&bundle, self.clock.now())?.into_svid();
        self.metrics.renewals.inc();
        self.take(NodeIdentity { svid, key }).await
    }

    async fn take(&mut self, identity: NodeIdentity) -> Result<(), NodeError> {
        self.current.set(&identity.svid, &[], &identity.key.0)?;
        if let Err(error) = self.folder.store(&identity, Some(&self.identity)) {
            // The SVID in memory is good all the same.
            warn!(%error, "this agent's SVID could not be stored: after a restart it may have to be attested anew");
        }
        info!(spiffe_id = %identity.svid.id(), until = %identity.svid.lifetime().not_after, "this agent has a fresh SVID");
        self.identity = identity;
        self.client.reopen().await;
        // What was refused to the former SVID meanwhile says nothing of this one.
        let _ = self.client.identity_refused().now_or_never();
        Ok(())
    }
}

/// What an operator can act upon, where neither the Renew (`refusal`) nor the attestation behind it (`attested`) came
/// to anything: of a banned agent no token and no certificate is of any use.
fn what_to_tell(refusal: Option<&NodeError>, attested: &NodeError) -> String {
    match refusal {
        Some(refusal) if refusal.is_ban() => refusal.to_string(),
        Some(refusal) => format!("{attested} (its renewal was refused: {refusal})"),
        None => attested.to_string(),
    }
}

enum Wake {
    Time,
    Trust,
    Unwanted,
}

/// Tries until the node is attested. An error is one that only an operator can mend.
pub async fn attest_until_done(
    attestor: &Attestor,
    stored: Option<&Bundle>,
) -> Result<(NodeIdentity, Bundle), NodeError> {
    let mut backoff = Backoff::new(FIRST_WAIT, Duration::from_secs(5));
    loop {
        match attestor.attest(stored).await {
            Ok(attested) => return Ok(attested),
            Err(error) if error.is_transient() => {
                warn!(%error, "this node could not be attested: trying again");
                let chance = crypto::random().map_or(0, u32::from_ne_bytes);
                attestor.clock.sleep(backoff.after_failure(chance)).await;
            }
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;
    use crate::client::ClientError;

    #[test]
    fn a_banned_agent_is_not_told_to_get_a_token() {
        let refused = |status: Status| NodeError::from(ClientError::from(status));
        let ban = refused(Status::permission_denied("agent a is banned: run \"chancery agent evict a\""));
        let said = what_to_tell(Some(&ban), &NodeError::NoToken);
        assert!(said.contains("agent a is banned") && !said.contains("token"), "{said}");
        let evicted = refused(Status::unauthenticated("agent a is not attested"));
        let said = what_to_tell(Some(&evicted), &NodeError::NoToken);
        assert!(said.contains("create a token") && said.contains("agent a is not attested"), "{said}");
    }
}
