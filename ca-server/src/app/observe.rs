//! What health asks of the whole house: its state for `/metrics`, and whether it is ready.

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use spiffe::time::Clock;

use crate::audit::Audit;
use crate::connected::Connected;
use crate::federation::Federation;
use crate::health::{self, Readiness};
use crate::kube::client::Cluster;
use crate::metrics::{Observe, Observed, ObservedAuthority};
use crate::view::Issuers;
use crate::view::follow::Views;
use crate::view::pods::Pods;

/// How long after its start a server is not ready because clusters are still to tell of their pods: an update that goes
/// server by server waits for that. Later it serves everybody else all the same: one lost API server must not take it from
/// the agents of other clusters.
const PATIENCE: Duration = Duration::from_secs(120);

/// What `/metrics` asks for.
pub(super) fn observe(
    views: Arc<Views>,
    connected: Connected,
    audit: Audit,
    clock: Arc<dyn Clock>,
    polled: Arc<OnceLock<Weak<Federation>>>,
    clusters: Vec<Arc<Cluster>>,
) -> Observe {
    Arc::new(move || {
        let federation = polled.get().and_then(Weak::upgrade);
        let (ages, federation_failing) = federation.map(|federation| federation.ages()).unwrap_or_default();
        let (view, now) = (views.load(), clock.now());
        let (lag_max, lag_sum) = connected.lag(view.revision());
        let authorities = view.authorities().iter();
        Observed {
            authorities: authorities
                .map(|held| ObservedAuthority {
                    id: Arc::clone(&held.id),
                    kind: held.kind().name(),
                    state: held.state.name(),
                    remaining: held.lifetime.not_after.since(now).as_secs(),
                })
                .collect(),
            entries: view.entry_count() as u64,
            rules: view.rule_count() as u64,
            pods: view.pods().count() as u64,
            derived: view.derived_count() as u64,
            refused_by_rules: view.refused_count() as u64,
            rules_over_limit: view.rules_over_limit().count() as u64,
            agents: view.node_count() as u64,
            agents_connected: connected.count() as u64,
            lag_max,
            lag_sum,
            revision: view.revision(),
            audit_depth: audit.depth() as u64,
            audit_writable: audit.failure().is_none(),
            bundle_ages: ages.into_iter().map(|(name, age)| (name.to_string(), age)).collect(),
            federation_failing,
            clusters: super::clusters::observe(&clusters, view.pods(), &*clock),
        }
    })
}

/// What `/ready` asks for.
pub(super) fn ready(views: Arc<Views>, audit: Audit, clock: Arc<dyn Clock>) -> health::Ready {
    let patience = clock.now().plus(PATIENCE);
    Arc::new(move || {
        let view = views.load();
        let Issuers { x509, jwt, wit } = view.issuers();
        let missing = [("x509", x509.is_none()), ("jwt", jwt.is_none()), ("wit", wit.is_none())];
        let authority = match missing.into_iter().find(|(_, missing)| *missing) {
            None => Ok(()),
            Some((kind, _)) => Err(format!("this server has no active authority of kind {kind}")),
        };
        let record = match audit.failure() {
            None => Ok(()),
            Some(why) => Err(why.to_string()),
        };
        let readiness = Readiness::default().with("authority", authority).with("audit", record);
        let clusters = if clock.now() < patience { told(view.pods()) } else { Ok(()) };
        readiness.with("kubernetes", clusters)
    })
}

/// Which clusters have not told of their pods yet, if any.
fn told(pods: &Pods) -> Result<(), String> {
    let awaited: Vec<&str> = pods.awaited().map(|cluster| &**cluster).collect();
    match awaited.is_empty() {
        true => Ok(()),
        false => Err(format!("the API server of {} has not told of all pods yet", awaited.join(", "))),
    }
}
