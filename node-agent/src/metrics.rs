//! What the agent counts, in the names of OpenMetrics.

use std::sync::Arc;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The counters and gauges of one agent. Cheap to clone; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Whether the Sync stream to a server is open: 1 or 0.
    pub connected: Gauge,
    /// SVIDs held for workloads.
    pub svids: Gauge,
    /// WIT-SVIDs held for workloads that listen.
    pub wit_svids: Gauge,
    /// JWT-SVIDs held.
    pub jwt_svids: Gauge,
    /// JWT-SVIDs that were held when a workload asked.
    pub jwt_hits: Counter,
    /// JWT-SVIDs that were not.
    pub jwt_misses: Counter,
    /// Entries of this node.
    pub entries: Gauge,
    /// Subscriptions of workloads.
    pub subscribers: Gauge,
    /// SVIDs issued to this agent for workloads.
    pub issued: Counter,
    /// SVIDs that the server refused to issue, or that did not verify.
    pub refused: Counter,
    /// Requests for SVIDs that failed on the way.
    pub failed: Counter,
    /// Renewals of the agent's own SVID.
    pub renewals: Counter,
    /// When the agent's own SVID expires, in Unix seconds.
    pub own_expiry: Gauge,
    /// Open SDS streams of proxies.
    pub sds_streams: Gauge,
    /// Responses with secrets to proxies.
    pub sds_responses: Counter,
    /// Responses that a proxy has rejected.
    pub sds_rejected: Counter,
    /// Proxies that were refused what they asked for.
    pub sds_refused: Counter,
    /// Whether the pods of this node are watched at the API server, or were in the last answer of the kubelet: 1 or 0.
    pub k8s_watching: Gauge,
    /// When the API server or the kubelet last told of pods, in Unix seconds.
    pub k8s_told: Gauge,
    /// Pods of this node that are known.
    pub k8s_pods: Gauge,
    /// Calls of processes that seem to be in a pod, in cgroups that are not believed.
    pub k8s_misplaced: Counter,
    deliveries: Arc<Deliveries>,
}

/// By the name of a delivery: there are as many as the config has.
type Label = [(&'static str, String); 1];

#[derive(Debug, Default)]
struct Deliveries {
    writes: Family<Label, Counter>,
    failures: Family<Label, Counter>,
    last_success: Family<Label, Gauge>,
    expiry: Family<Label, Gauge>,
}

/// The counters and gauges of one delivery of files.
#[derive(Clone, Debug)]
pub struct DeliveryMetrics {
    /// Versions written.
    pub writes: Counter,
    /// Files that could not be written, and actions that failed.
    pub failures: Counter,
    /// When files and all actions were last done, in Unix seconds.
    pub last_success: Gauge,
    /// When the SVID that was written expires, in Unix seconds.
    pub expiry: Gauge,
}

impl Metrics {
    /// Those of the delivery `name`.
    pub fn of_delivery(&self, name: &str) -> DeliveryMetrics {
        let label = [("delivery", name.to_owned())];
        let Deliveries { writes, failures, last_success, expiry } = self.deliveries.as_ref();
        DeliveryMetrics {
            writes: writes.get_or_create_owned(&label),
            failures: failures.get_or_create_owned(&label),
            last_success: last_success.get_or_create_owned(&label),
            expiry: expiry.get_or_create_owned(&label),
        }
    }

    /// The text of `/metrics`.
    pub fn render(&self) -> String {
        let mut registry = Registry::with_prefix("chancery_agent");
        registry.register("server_connected", "Whether a server is connected", self.connected.clone());
        registry.register("svids", "SVIDs held for workloads", self.svids.clone());
        registry.register("wit_svids", "WIT-SVIDs held for workloads that listen", self.wit_svids.clone());
        registry.register("jwt_svids", "JWT-SVIDs held", self.jwt_svids.clone());
        registry.register("jwt_hits", "JWT-SVIDs that were held when asked for", self.jwt_hits.clone());
        registry.register("jwt_misses", "JWT-SVIDs that had to be issued when asked for", self.jwt_misses.clone());
        registry.register("entries", "Registration entries of this node", self.entries.clone());
        registry.register("subscribers", "Subscriptions of workloads", self.subscribers.clone());
        registry.register("svids_issued", "SVIDs issued for workloads", self.issued.clone());
        registry.register("svids_refused", "SVIDs that were refused, or did not verify", self.refused.clone());
        registry.register("svids_failed", "Requests for SVIDs that failed on the way", self.failed.clone());
        registry.register("renewals", "Renewals of the SVID of the agent itself", self.renewals.clone());
        registry.register("svid_expiry_timestamp_seconds", "End of the agent's own SVID", self.own_expiry.clone());
        registry.register("sds_streams", "Open SDS streams of proxies", self.sds_streams.clone());
        registry.register("sds_responses", "Responses with secrets to proxies", self.sds_responses.clone());
        registry.register("sds_rejected", "Responses that a proxy has rejected", self.sds_rejected.clone());
        registry.register("sds_refused", "Proxies that were refused what they asked for", self.sds_refused.clone());
        registry.register("k8s_watching", "Whether the pods of this node are watched", self.k8s_watching.clone());
        registry.register("k8s_told_timestamp_seconds", "When pods were last told of", self.k8s_told.clone());
        registry.register("k8s_pods", "Pods of this node that are known", self.k8s_pods.clone());
        let misplaced = "Calls of processes that seem to be in a pod, in cgroups that are not believed";
        registry.register("k8s_misplaced", misplaced, self.k8s_misplaced.clone());
        let Deliveries { writes, failures, last_success, expiry } = self.deliveries.as_ref();
        registry.register("delivery_writes", "Versions of files written", writes.clone());
        registry.register("delivery_failures", "Files that were not written, and failed actions", failures.clone());
        let done = "When files were written and all actions done";
        registry.register("delivery_last_success_timestamp_seconds", done, last_success.clone());
        registry.register("delivery_svid_expiry_timestamp_seconds", "End of the SVID that was written", expiry.clone());
        let mut text = String::new();
        // Writing into a String cannot fail.
        let _ = encode(&mut text, &registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_openmetrics() {
        let metrics = Metrics::default();
        metrics.issued.inc_by(3);
        metrics.connected.set(1);
        let text = metrics.render();
        assert!(text.contains("chancery_agent_svids_issued_total 3\n"), "{text}");
        assert!(text.contains("chancery_agent_server_connected 1\n") && text.ends_with("# EOF\n"), "{text}");
    }
}
