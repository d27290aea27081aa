//! Deliveries: identities as files, for programs that know nothing of SPIFFE, and what is done after each change.
//!
//! A delivery is a workload of its own. In the agent it has the one selector `deliver:<name>`, which no process can have;
//! in `chancery deliver` it is whatever that process is attested as.
//!
//! | file | owns |
//! |---|---|
//! | `source` | where the material comes from: the cache, or the socket of a Workload API |
//! | `material` | what there is to deliver |
//! | `inputs`, `owner` | what is read of this machine for it: passwords and base configs; users and groups |
//! | `kong` | what Kong is told of an identity, by file or by its Admin API. Pure |
//! | `render` | delivery and material -> files, their bytes, owners and modes. Pure |
//! | `folder` | the files on disk: all of a version, or nothing of it |
//! | `action` | what is done afterwards, one file for each kind |
//! | `progress` | what is to be done next. Pure |
//! | `run` | one loop for each delivery |

use std::sync::Arc;

use spiffe::time::{Clock, System};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::cache::Cache;
use crate::config::deliver::Delivery;
use crate::metrics::Metrics;
use crate::status::Status;

mod action;
mod folder;
mod inputs;
mod kong;
pub mod material;
mod owner;
mod progress;
mod render;
mod run;
pub mod source;
#[cfg(test)]
mod test_material;

pub use run::{DeliveryError, deliver_once};
use source::Source;

/// Where the time comes from, and who is told how it goes. Clones share them.
#[derive(Clone, Debug)]
pub struct Watchers {
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// What `chancery agent status` shows.
    pub status: Status,
    /// What is counted.
    pub metrics: Metrics,
}

impl Default for Watchers {
    /// The system's time, and nobody is told but the log.
    fn default() -> Self {
        Self { clock: Arc::new(System), status: Status::default(), metrics: Metrics::default() }
    }
}

/// Delivers what is in `cache`, until `shutdown`: one loop for each delivery, of which none waits for another.
pub async fn deliver(deliveries: Vec<Delivery>, cache: Cache, watchers: Watchers, shutdown: CancellationToken) {
    let each = deliveries.into_iter().map(|delivery| {
        let source = Source::cache(cache.clone(), &delivery);
        (delivery, source)
    });
    deliver_all(each.collect(), watchers, shutdown).await;
}

/// Delivers what each source has, until `shutdown`.
pub async fn deliver_all(deliveries: Vec<(Delivery, Source)>, watchers: Watchers, shutdown: CancellationToken) {
    let mut loops = JoinSet::new();
    for (delivery, source) in deliveries {
        loops.spawn(run::run(delivery, source, watchers.clone(), shutdown.clone()));
    }
    while let Some(ended) = loops.join_next().await {
        if let Err(why) = ended {
            // The others go on: each is somebody's certificate.
            error!(%why, "a delivery has broken off: this is a mistake of ours, please report it with the log");
        }
    }
    // Without any it waits all the same: whoever started it has it running.
    shutdown.cancelled().await;
}
