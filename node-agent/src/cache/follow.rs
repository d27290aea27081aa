//! Keeps the Sync stream open: what the server says goes to the cache's loop, in order.
//!
//! - A stream that ends is opened again within half a second; after failures the waits grow to five seconds, with
//!   chance in them, so that the agent is back within seconds and a crowd of agents does not come as one.
//! - After a renewal of the agent's SVID the stream is opened anew, without a word to the cache.

use std::sync::Arc;
use std::time::Duration;

use spiffe::crypto;
use spiffe::time::{Backoff, Clock};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::client::{Client, ClientError, Session, Update};

const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// For a server that will not have this agent: somebody has to do something first.
const REFUSED_WAIT: Duration = Duration::from_secs(30);

/// What the follower tells.
#[derive(Debug)]
pub(super) enum Followed {
    /// A stream is open; its acknowledgements go here.
    Opened(watch::Sender<u64>),
    /// The server said this.
    Update(Update),
    /// The stream is gone.
    Gone,
}

/// Runs until the cache's loop listens no more.
pub(super) async fn follow(client: Arc<Client>, clock: Arc<dyn Clock>, out: mpsc::Sender<Followed>) {
    let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
    let mut refused = Backoff::new(FIRST_WAIT, REFUSED_WAIT);
    let mut said = String::new();
    let mut reopened = client.reopened();
    loop {
        reopened.mark_unchanged();
        let mut worked = false;
        let end = match client.sync().await {
            Ok(session) => tell(session, &mut reopened, &out, &mut worked).await,
            Err(error) => Some(error),
        };
        if worked {
            (backoff, refused) = (Backoff::new(FIRST_WAIT, LONGEST_WAIT), Backoff::new(FIRST_WAIT, REFUSED_WAIT));
            said.clear();
        }
        // Without an error the stream was given up for a newer one.
        if let Some(error) = end {
            client.note(&error);
            if !matches!(error, ClientError::Unreachable(_)) {
                client.lose().await;
            }
            if worked {
                info!(%error, "the stream from the server has ended: opening another");
            } else if said != error.to_string() {
                said = error.to_string();
                warn!(%error, "not connected: trying again, and serving what is held");
            }
            if out.send(Followed::Gone).await.is_err() {
                return;
            }
            let chance = crypto::random().map_or(0, u32::from_ne_bytes);
            let wait = if error.is_identity_refusal() { &mut refused } else { &mut backoff }.after_failure(chance);
            tokio::select! {
                () = clock.sleep(wait) => {}
                _ = reopened.changed() => {}
                () = out.closed() => return,
            }
        }
        if out.is_closed() {
            return;
        }
    }
}

/// `None` when the stream is to be opened anew, or nobody listens.
async fn tell(
    mut session: Session,
    reopened: &mut watch::Receiver<u64>,
    out: &mpsc::Sender<Followed>,
    worked: &mut bool,
) -> Option<ClientError> {
    out.send(Followed::Opened(session.acknowledged())).await.ok()?;
    loop {
        tokio::select! {
            update = session.next() => match update {
                Ok(update) => {
                    *worked = true;
                    out.send(Followed::Update(update)).await.ok()?;
                }
                Err(error) => return Some(error),
            },
            _ = reopened.changed() => return None,
            () = out.closed() => return None,
        }
    }
}
