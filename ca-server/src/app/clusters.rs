//! The Kubernetes clusters of the config: their files read, and what a server makes of them.

use std::path::Path;
use std::sync::Arc;

use spiffe::time::Clock;
use tracing::warn;

use super::AppError;
use crate::api::admin::{Clusters, LastHeard};
use crate::attest::Attestors;
use crate::attest::k8s_psat::K8sPsatAttestor;
use crate::config::Config;
use crate::kube::client::{Access, Cluster};
use crate::kube::publish::Publisher;
use crate::metrics::ObservedCluster;
use crate::view::follow::Views;
use crate::view::pods::Pods;

/// What the files of each cluster say, in the order of their names.
pub(super) fn read(config: &Config) -> Result<Vec<Access>, AppError> {
    let read = config.kubernetes.iter().map(|(name, cluster)| {
        let access = Access::read(cluster)
            .map_err(|error| AppError::Cluster { cluster: name.to_string(), error: Box::new(error) })?;
        if let Some(path) = cluster.kubeconfig.as_deref().filter(|path| access.has_secret() && may_others_read(path)) {
            let path = path.display();
            warn!("kubernetes.{name}.kubeconfig: {path} holds a secret, and others may read it: run chmod o-r on it");
        }
        Ok(access)
    });
    read.collect()
}

/// Whether those who are neither its owner nor of its group may read `path`.
fn may_others_read(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o004 != 0)
}

/// The clusters, from what [`read`] returned.
pub(super) fn open(config: &Config, read: Vec<Access>, clock: &Arc<dyn Clock>) -> Vec<Arc<Cluster>> {
    let each = config.kubernetes.iter().zip(read);
    each.map(|((name, source), access)| Cluster::new(name, source, access, Arc::clone(clock))).collect()
}

/// `attestors`, and one for the agents of those clusters that the config takes agents of.
pub(super) fn with_agents(attestors: Attestors, config: &Config, clusters: &[Arc<Cluster>]) -> Attestors {
    let taken = config.attest.k8s_psat.iter().filter_map(|(name, psat)| {
        let cluster = clusters.iter().find(|cluster| **cluster.name() == *name.as_str())?;
        Some((Arc::clone(cluster), psat.clone()))
    });
    if config.attest.k8s_psat.is_empty() { attestors } else { attestors.and(Arc::new(K8sPsatAttestor::new(taken))) }
}

/// What publishes the bundle in the clusters whose config says so.
pub(super) fn publishers(
    config: &Config,
    clusters: &[Arc<Cluster>],
    views: &Arc<Views>,
    clock: &Arc<dyn Clock>,
) -> Vec<Publisher> {
    let each = config.kubernetes.values().zip(clusters).filter_map(|(source, cluster)| {
        let (cluster, publish) = (Arc::clone(cluster), source.publish.clone()?);
        Some(Publisher { cluster, publish, views: Arc::clone(views), clock: Arc::clone(clock) })
    });
    each.collect()
}

/// The clusters, for what operators are told of them.
pub(super) fn told(clusters: &[Arc<Cluster>]) -> Clusters {
    Clusters::new(clusters.iter().map(|cluster| {
        let last_heard = Arc::clone(cluster);
        (Arc::clone(cluster.name()), Arc::new(move || last_heard.last_heard()) as LastHeard)
    }))
}

/// How each cluster is, for `/metrics`.
pub(super) fn observe(clusters: &[Arc<Cluster>], told: &Pods, clock: &dyn Clock) -> Vec<ObservedCluster> {
    let now = clock.now();
    let one = |cluster: &Arc<Cluster>| ObservedCluster {
        name: Arc::clone(cluster.name()),
        watch_age: cluster.watch_age(now).as_secs(),
        is_told: !told.awaits(cluster.name()),
        has_too_many: cluster.has_too_many(),
        pods: cluster.pods() as u64,
        reviews: cluster.reviews().counts(),
    };
    clusters.iter().map(one).collect()
}
