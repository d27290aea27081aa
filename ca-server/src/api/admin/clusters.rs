//! The clusters, as operators are told of them: how old what this server says of their pods is, and what rules are for
//! clusters that are not what they were.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use spiffe::proto::v1;
use spiffe::rule::Rule;
use spiffe::time::Timestamp;

use crate::api::status::Refusal;
use crate::view::pods::Pods;

/// How long a cluster may be silent: three watches of the length that they have where nothing is said of it.
const SILENCE: Duration = Duration::from_secs(180);

/// What is to be known without any cluster.
pub(super) const NONE: &str = "this server's config has no [kubernetes.<name>]: no pod is known";

/// Says when a cluster was last heard of; `None`: never.
pub type LastHeard = Arc<dyn Fn() -> Option<Timestamp> + Send + Sync>;

/// The clusters of the config.
#[derive(Clone, Default)]
pub struct Clusters(Vec<(Arc<str>, LastHeard)>);

impl fmt::Debug for Clusters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

impl Clusters {
    /// These, by their names.
    pub fn new(clusters: impl IntoIterator<Item = (Arc<str>, LastHeard)>) -> Self {
        Self(clusters.into_iter().collect())
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// The name of the only one; `None`: there are others, or there is none.
    pub(super) fn only(&self) -> Option<&Arc<str>> {
        match &self.0[..] {
            [(name, _)] => Some(name),
            _ => None,
        }
    }

    /// Refuses a rule for a cluster that the config does not have. Without any cluster all may be: it may come yet.
    pub(super) fn check(&self, rule: &Rule) -> Result<(), Refusal> {
        match (&rule.selection.cluster, self.first()) {
            (Some(name), Some(first)) if !self.has(name) => {
                let others = if self.count() > 1 { ", or another that it has" } else { "" };
                Err(Refusal::invalid(format_args!("no cluster {name} in the server's config: use {first}{others}")))
            }
            _ => Ok(()),
        }
    }

    /// What is to be known of `rule` where these clusters are what the config has, and these `pods` what is known.
    pub fn note(&self, rule: &Rule, pods: &Pods) -> Option<String> {
        let id = &rule.id;
        let Some(first) = self.first() else { return (pods.count() == 0).then(|| NONE.to_owned()) };
        match &rule.selection.cluster {
            Some(name) if !self.has(name) => Some(format!(
                "rule {id} is for cluster {name}, which the config does not have: its pods get nothing. Set \
                 [kubernetes.{name}], or \"chancery rule update {id} --cluster {first}\""
            )),
            None if self.count() > 1 && !rule.tells_clusters_apart() => Some(format!(
                "rule {id} is for every cluster, and gives equal names in each of them one identity: \"chancery rule \
                 update {id} --cluster {first}\" holds it to one"
            )),
            _ => None,
        }
    }

    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(known, _)| **known == *name)
    }

    fn first(&self) -> Option<&Arc<str>> {
        self.0.first().map(|(name, _)| name)
    }

    /// Those that have not told of all their `pods` yet, or have been silent for long; of them all, or only the one of this name.
    pub(super) fn silent(&self, only: Option<&str>, pods: &Pods, now: Timestamp) -> Vec<v1::SilentCluster> {
        let meant = self.0.iter().filter(|(name, _)| only.is_none_or(|only| *only == **name));
        let silent = meant.filter_map(|(name, last_heard)| {
            let (told, heard) = (!pods.awaits(name), last_heard());
            let is_fresh = heard.is_some_and(|at| now.since(at) <= SILENCE);
            let heard_at = heard.filter(|_| told).map_or(0, Timestamp::unix);
            (!told || !is_fresh).then(|| v1::SilentCluster { cluster: name.to_string(), heard_at })
        });
        silent.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::pods::PodEvent;

    #[test]
    fn a_cluster_is_named_that_has_told_nothing_or_is_silent_for_long() {
        let now = Timestamp::from_unix(1_795_218_000);
        let heard = |seconds: Option<u64>| -> LastHeard {
            let at = seconds.map(|seconds| now.minus(Duration::from_secs(seconds)));
            Arc::new(move || at)
        };
        let clusters = [("fresh", Some(180)), ("old", Some(181)), ("new", Some(1)), ("mute", None)]
            .map(|(name, ago)| (name.into(), heard(ago)));
        let clusters = Clusters::new(clusters);
        let mut pods = Pods::awaiting(["fresh", "old", "new", "mute"].map(Arc::from));
        for name in ["fresh", "old"] {
            pods = pods.after(PodEvent::All { cluster: name.into(), pods: Vec::new() }).0;
        }
        let silent = |only| -> Vec<_> {
            let found = clusters.silent(only, &pods, now).into_iter();
            found.map(|found| (found.cluster, now.unix().saturating_sub(found.heard_at))).collect()
        };
        let never = now.unix();
        assert_eq!(silent(None), [("old".into(), 181), ("new".into(), never), ("mute".into(), never)]);
        assert_eq!((silent(Some("fresh")), silent(Some("old")).len()), (vec![], 1));
    }
}
