//! Numbers for Prometheus, named by the OpenMetrics rules: units at the end, counters with `_total`.
//!
//! - What is counted on the way is counted in atomics that exist from the start: no lock where SVIDs are signed.
//! - What is a state of the house (agents, authorities, the queue) is asked for at each scrape ([`Observed`]).
//! - Labels come from closed sets. There is none for an agent, an entry or a workload; one for each federated trust
//!   domain and each Kubernetes cluster, which operators name.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::audit::Reason;

/// From a tenth of a millisecond, faster than any call, to the ten seconds at which callers have given up.
const SECONDS: [f64; 16] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// What an SVID was issued for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IssuedFor {
    /// An entry, through an agent.
    Workload,
    /// An agent itself.
    Agent,
    /// A server itself.
    Server,
    /// An operator, by `x509 mint`.
    Mint,
    /// A service account, for a proxy of Istio.
    ServiceAccount,
    /// A JWT-SVID for an entry, through an agent.
    WorkloadJwt,
    /// A JWT-SVID for an operator, by `jwt mint`.
    MintJwt,
    /// A WIT-SVID for an entry, through an agent.
    WorkloadWit,
}

/// Each with its kind and what it is for.
const ISSUED_FOR: [(IssuedFor, &str, &str); 8] = [
    (IssuedFor::Workload, "x509", "workload"),
    (IssuedFor::Agent, "x509", "agent"),
    (IssuedFor::Server, "x509", "server"),
    (IssuedFor::Mint, "x509", "mint"),
    (IssuedFor::ServiceAccount, "x509", "service_account"),
    (IssuedFor::WorkloadJwt, "jwt", "workload"),
    (IssuedFor::MintJwt, "jwt", "mint"),
    (IssuedFor::WorkloadWit, "wit", "workload"),
];

const REASONS: [Reason; 18] = [
    Reason::Invalid,
    Reason::Csr,
    Reason::NotFound,
    Reason::AlreadyExists,
    Reason::Denied,
    Reason::Banned,
    Reason::NotAttested,
    Reason::Attestation,
    Reason::Authentication,
    Reason::Expired,
    Reason::Lifetime,
    Reason::RateLimited,
    Reason::AuditFull,
    Reason::NoAuthority,
    Reason::Conflict,
    Reason::Store,
    Reason::Unavailable,
    Reason::Internal,
];

/// The state of the house at a scrape.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Every authority.
    pub authorities: Vec<ObservedAuthority>,
    /// Registration entries, those of rules included.
    pub entries: u64,
    /// Rules.
    pub rules: u64,
    /// Pods that rules are held against.
    pub pods: u64,
    /// Entries that come from rules.
    pub derived: u64,
    /// How many times a pod does not get what a rule says, because a template refuses it.
    pub refused_by_rules: u64,
    /// Rules that give nothing because of the limit.
    pub rules_over_limit: u64,
    /// Recorded agents.
    pub agents: u64,
    /// Agents with an open Sync stream.
    pub agents_connected: u64,
    /// How many revisions the agent that is furthest behind lags.
    pub lag_max: u64,
    /// How many revisions all connected agents lag together.
    pub lag_sum: u64,
    /// The revision of the view.
    pub revision: u64,
    /// Decisions in the audit queue.
    pub audit_depth: u64,
    /// Whether the audit record can be written.
    pub audit_writable: bool,
    /// Each federated trust domain, and seconds since its endpoint was last found in order.
    pub bundle_ages: Vec<(String, u64)>,
    /// Federation relationships whose last poll failed.
    pub federation_failing: u64,
    /// Every Kubernetes cluster.
    pub clusters: Vec<ObservedCluster>,
}

/// One Kubernetes cluster at a scrape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedCluster {
    /// Its name.
    pub name: Arc<str>,
    /// Seconds since all of its watches have brought something, or since the start where not all have yet.
    pub watch_age: u64,
    /// Whether it has told of all its pods since this server has started.
    pub is_told: bool,
    /// Whether it tells of more than `max_pods`, so that nothing new of it is taken.
    pub has_too_many: bool,
    /// How many of its pods are known.
    pub pods: u64,
    /// What reviews of tokens came to, and how often.
    pub reviews: [(&'static str, u64); 4],
}

/// One authority at a scrape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedAuthority {
    /// Its ID.
    pub id: Arc<str>,
    /// `x509`, `jwt` or `wit`.
    pub kind: &'static str,
    /// `prepared`, `active` or `retired`.
    pub state: &'static str,
    /// Seconds until it expires.
    pub remaining: u64,
}

/// Asks for the state of the house. Has to be cheap and must not block.
pub type Observe = Arc<dyn Fn() -> Observed + Send + Sync>;

type Label = [(&'static str, &'static str); 1];

/// Every number of a server.
pub struct Metrics {
    registry: Registry,
    issued: [Counter; ISSUED_FOR.len()],
    refused: [Counter; REASONS.len()],
    calls: Family<Label, Histogram, fn() -> Histogram>,
    store_commits: Histogram,
    polls: Family<Label, Counter>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

fn latencies() -> Histogram {
    Histogram::new(SECONDS)
}

impl Metrics {
    /// All at zero; `observe` is asked at each scrape.
    pub fn new(version: &'static str, observe: Observe) -> Self {
        let mut registry = Registry::with_prefix("chancery");
        let issued = Family::<[(&'static str, &'static str); 2], Counter>::default();
        registry.register("svids_issued", "SVIDs signed, by kind and what they are for", issued.clone());
        let refused = Family::<Label, Counter>::default();
        registry.register("refusals", "Requests refused, by reason", refused.clone());
        let calls = Family::<Label, Histogram, fn() -> Histogram>::new_with_constructor(latencies);
        registry.register_with_unit("rpc_duration", "How long calls took, by method", Unit::Seconds, calls.clone());
        let polls = Family::<Label, Counter>::default();
        registry.register("federation_polls", "Polls of foreign bundle endpoints, by outcome", polls.clone());
        let store_commits = latencies();
        let help = "How long commits to the store took";
        registry.register_with_unit("store_commit_duration", help, Unit::Seconds, store_commits.clone());
        registry.register("build", "What is running", Info::new([("version", version)]));
        registry.register_collector(Box::new(State(observe)));
        Self {
            issued: ISSUED_FOR.map(|(_, kind, name)| issued.get_or_create_owned(&[("kind", kind), ("for", name)])),
            refused: REASONS.map(|reason| refused.get_or_create_owned(&[("reason", reason.name())])),
            registry,
            calls,
            store_commits,
            polls,
        }
    }

    /// Counts one SVID.
    pub fn issued(&self, what: IssuedFor) {
        let at = ISSUED_FOR.iter().position(|(known, ..)| *known == what);
        if let Some(counter) = at.and_then(|at| self.issued.get(at)) {
            counter.inc();
        }
    }

    /// Counts one refusal.
    pub fn refused(&self, reason: Reason) {
        let at = REASONS.iter().position(|known| *known == reason);
        if let Some(counter) = at.and_then(|at| self.refused.get(at)) {
            counter.inc();
        }
    }

    /// Counts one poll of a bundle endpoint.
    pub fn polled(&self, outcome: &'static str) {
        self.polls.get_or_create_owned(&[("outcome", outcome)]).inc();
    }

    /// Measures a call of `method` until the timer is dropped.
    pub fn time(&self, method: &'static str) -> Timer {
        Timer::start(self.calls.get_or_create_owned(&[("method", method)]))
    }

    /// Measures a commit to the store until the timer is dropped.
    pub fn store_commit(&self) -> Timer {
        Timer::start(self.store_commits.clone())
    }

    /// Everything in the OpenMetrics text format.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// Measures until it is dropped.
#[must_use = "a timer that is dropped at once measures nothing"]
#[derive(Debug)]
pub struct Timer {
    started: Instant,
    to: Histogram,
}

impl Timer {
    #[expect(clippy::disallowed_methods, reason = "a latency is no moment: nothing is decided by it")]
    fn start(to: Histogram) -> Self {
        Self { started: Instant::now(), to }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.to.observe(self.started.elapsed().as_secs_f64());
    }
}

struct State(Observe);

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("State")
    }
}

impl Collector for State {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let now = (self.0)();
        let numbers = [
            ("entries", "Registration entries, those of rules included", now.entries),
            ("rules", "Rules", now.rules),
            ("pods", "Pods that rules are held against", now.pods),
            ("derived_entries", "Registration entries that come from rules", now.derived),
            ("rule_refusals", "Pods that a rule selects and a template refuses", now.refused_by_rules),
            ("rules_over_limit", "Rules that give nothing, because all would give too much", now.rules_over_limit),
            ("agents", "Agents that have attested and are not forgotten", now.agents),
            ("agents_connected", "Agents with an open Sync stream", now.agents_connected),
            ("agents_lag_max_revisions", "How many revisions the agent furthest behind lags", now.lag_max),
            ("agents_lag_sum_revisions", "How many revisions all connected agents lag together", now.lag_sum),
            ("view_revision", "The revision that requests are answered by", now.revision),
            ("audit_queue_decisions", "Decisions that wait to be recorded", now.audit_depth),
            ("audit_writable", "Whether decisions can be recorded: 1 or 0", u64::from(now.audit_writable)),
            ("federation_failing", "Federation relationships whose last poll failed", now.federation_failing),
        ];
        for (name, help, value) in numbers {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        if !now.bundle_ages.is_empty() {
            let help = "Seconds since a foreign bundle was last confirmed by its endpoint";
            let unit = Some(&Unit::Seconds);
            let mut family = encoder.encode_descriptor("federation_bundle_age", help, unit, MetricType::Gauge)?;
            for (trust_domain, seconds) in &now.bundle_ages {
                ConstGauge::new(*seconds).encode(family.encode_family(&[("trust_domain", trust_domain.as_str())])?)?;
            }
        }
        clusters(&now.clusters, &mut encoder)?;
        if now.authorities.is_empty() {
            return Ok(());
        }
        let help = "Seconds until an authority's CA certificate or key expires";
        let mut family =
            encoder.encode_descriptor("authority_remaining", help, Some(&Unit::Seconds), MetricType::Gauge)?;
        for ObservedAuthority { id, kind, state, remaining } in &now.authorities {
            let labels = [("id", &**id), ("kind", *kind), ("state", *state)];
            ConstGauge::new(*remaining).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

fn clusters(clusters: &[ObservedCluster], encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    if clusters.is_empty() {
        return Ok(());
    }
    let help = "Seconds since all watches of a Kubernetes cluster have brought something, or since the start";
    let mut family =
        encoder.encode_descriptor("kubernetes_watch_age", help, Some(&Unit::Seconds), MetricType::Gauge)?;
    for cluster in clusters {
        ConstGauge::new(cluster.watch_age).encode(family.encode_family(&[("cluster", &*cluster.name)])?)?;
    }
    let help = "Whether a Kubernetes cluster has told of all its pods since this server has started";
    let mut family = encoder.encode_descriptor("kubernetes_told", help, None, MetricType::Gauge)?;
    for cluster in clusters {
        ConstGauge::new(u64::from(cluster.is_told)).encode(family.encode_family(&[("cluster", &*cluster.name)])?)?;
    }
    let help = "Whether a Kubernetes cluster tells of more than max_pods, so that nothing new of it is taken: 1 or 0";
    let mut family = encoder.encode_descriptor("kubernetes_too_many", help, None, MetricType::Gauge)?;
    for cluster in clusters {
        let has_too_many = ConstGauge::new(u64::from(cluster.has_too_many));
        has_too_many.encode(family.encode_family(&[("cluster", &*cluster.name)])?)?;
    }
    let help = "Pods of a Kubernetes cluster that are known";
    let mut family = encoder.encode_descriptor("kubernetes_pods", help, None, MetricType::Gauge)?;
    for cluster in clusters {
        ConstGauge::new(cluster.pods).encode(family.encode_family(&[("cluster", &*cluster.name)])?)?;
    }
    let help = "Reviews of service-account tokens, by outcome";
    let mut family = encoder.encode_descriptor("kubernetes_token_reviews", help, None, MetricType::Counter)?;
    for cluster in clusters {
        for (outcome, count) in cluster.reviews {
            let labels = [("cluster", &*cluster.name), ("outcome", outcome)];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed() -> Observed {
        Observed {
            authorities: vec![
                ObservedAuthority { id: "ab".into(), kind: "x509", state: "active", remaining: 3600 },
                ObservedAuthority { id: "cd".into(), kind: "jwt", state: "prepared", remaining: 7200 },
            ],
            agents_connected: 3,
            lag_max: 2,
            audit_writable: true,
            bundle_ages: vec![("other.org".into(), 12)],
            federation_failing: 1,
            clusters: vec![ObservedCluster {
                name: "main".into(),
                watch_age: 7,
                is_told: true,
                has_too_many: false,
                pods: 30_000,
                reviews: [("accepted", 2), ("refused", 1), ("unavailable", 0), ("remembered", 9)],
            }],
            ..Observed::default()
        }
    }

    #[test]
    fn numbers_are_named_by_the_openmetrics_rules() {
        let metrics = Metrics::new("1.2.3", Arc::new(observed));
        metrics.issued(IssuedFor::Workload);
        metrics.issued(IssuedFor::WorkloadJwt);
        metrics.refused(Reason::Banned);
        drop(metrics.time("IssueX509Svids"));
        drop(metrics.store_commit());
        metrics.polled("updated");
        let text = metrics.encode().unwrap();
        for line in [
            "chancery_svids_issued_total{kind=\"x509\",for=\"workload\"} 1",
            "chancery_svids_issued_total{kind=\"jwt\",for=\"workload\"} 1",
            "chancery_svids_issued_total{kind=\"x509\",for=\"mint\"} 0",
            "chancery_refusals_total{reason=\"banned\"} 1",
            "chancery_refusals_total{reason=\"audit_full\"} 0",
            "chancery_rpc_duration_seconds_count{method=\"IssueX509Svids\"} 1",
            "chancery_store_commit_duration_seconds_count 1",
            "chancery_build_info{version=\"1.2.3\"} 1",
            "chancery_agents_connected 3",
            "chancery_agents_lag_max_revisions 2",
            "chancery_audit_writable 1",
            "# UNIT chancery_authority_remaining_seconds seconds",
            "chancery_authority_remaining_seconds{id=\"ab\",kind=\"x509\",state=\"active\"} 3600",
            "chancery_authority_remaining_seconds{id=\"cd\",kind=\"jwt\",state=\"prepared\"} 7200",
            "chancery_federation_polls_total{outcome=\"updated\"} 1",
            "chancery_federation_bundle_age_seconds{trust_domain=\"other.org\"} 12",
            "chancery_federation_failing 1",
            "chancery_kubernetes_watch_age_seconds{cluster=\"main\"} 7",
            "chancery_kubernetes_told{cluster=\"main\"} 1",
            "chancery_kubernetes_too_many{cluster=\"main\"} 0",
            "chancery_kubernetes_pods{cluster=\"main\"} 30000",
            "chancery_kubernetes_token_reviews_total{cluster=\"main\",outcome=\"remembered\"} 9",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("\"\""), "every reason has a name");
    }

    #[test]
    fn every_reason_is_counted() {
        let names: std::collections::BTreeSet<_> = REASONS.map(Reason::name).into();
        assert_eq!(names.len(), REASONS.len());
    }
}
