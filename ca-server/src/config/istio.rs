//! `[istio]`: the door at which Istio's proxies ask for certificates.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;
use spiffe::entry::{DnsName, MAX_DNS_NAMES};
use spiffe::settings::optional_duration;

use super::ConfigError;
use super::document::{in_range, leaf_in_range, longest_leaf, write_duration};
use super::kubernetes::AccountName;

/// The most clusters, and the most accounts that may ask for others.
const MOST: usize = 256;
/// The longest name of a cluster, in bytes.
pub const MAX_CLUSTER_BYTES: usize = 128;
/// As Istio's own CA: its proxies ask for this, and come again at half of it.
const DEFAULT_TTL: Duration = Duration::from_secs(86_400);

/// `[istio]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Istio {
    /// Where proxies connect.
    pub listen: SocketAddr,
    /// Our names of clusters, by those that Istio gives them (the header `clusterid`).
    pub clusters: BTreeMap<String, String>,
    /// The cluster of a proxy that names none; `None`: it is refused.
    pub default_cluster: Option<String>,
    /// What a token has to be made for.
    pub audience: String,
    /// The life of a certificate when a proxy asks for none.
    pub ttl: Duration,
    /// The longest life that a proxy may ask for.
    pub max_ttl: Duration,
    /// Who may ask for the identities of other pods of its node.
    pub trusted_node_accounts: Vec<AccountName>,
    /// Names by which proxies know this server: they are in its SVID.
    pub dns_names: Vec<DnsName>,
    /// Whether a certificate of a service account is as good as a token.
    pub client_certificates: bool,
    /// Open connections.
    pub connections: usize,
    /// Requests in the long run.
    pub requests_per_second: u32,
    /// Requests at once, after a quiet time.
    pub requests_burst: u32,
}

/// The table as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct IstioDocument {
    listen: SocketAddr,
    clusters: BTreeMap<String, String>,
    default_cluster: Option<String>,
    audience: String,
    #[serde(with = "optional_duration")]
    ttl: Option<Duration>,
    #[serde(with = "optional_duration")]
    max_ttl: Option<Duration>,
    trusted_node_accounts: Vec<AccountName>,
    dns_names: Vec<DnsName>,
    client_certificates: bool,
    connections: usize,
    requests_per_second: u32,
    requests_burst: u32,
}

impl Default for IstioDocument {
    /// Port, name and audience are those that every proxy has from Istio's charts. 10,000 connections are two ztunnels for
    /// each node of the largest cluster that Kubernetes supports. A node that starts with 110 pods asks 110 times at once,
    /// and one address may take a quarter of the burst.
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 15012)),
            clusters: BTreeMap::new(),
            default_cluster: None,
            audience: "istio-ca".into(),
            ttl: None,
            max_ttl: None,
            trusted_node_accounts: Vec::new(),
            dns_names: DnsName::parse("istiod.istio-system.svc").into_iter().collect(),
            client_certificates: false,
            connections: 10_000,
            requests_per_second: 1000,
            requests_burst: 5000,
        }
    }
}

impl IstioDocument {
    /// As a server takes it whose CAs live this long, and whose SVID has so many names already.
    pub(super) fn read(self, ca_ttl: Duration, names: usize) -> Result<Istio, ConfigError> {
        if self.clusters.is_empty() {
            return Err(ConfigError::NoIstioClusters);
        }
        in_range("istio.clusters (how many)", self.clusters.len(), 1, MOST)?;
        for name in self.clusters.iter().flat_map(|(theirs, ours)| [theirs, ours]) {
            in_range("istio.clusters (bytes in a name)", name.len(), 1, MAX_CLUSTER_BYTES)?;
        }
        in_range("istio.audience (bytes)", self.audience.len(), 1, 512)?;
        in_range("istio.trusted_node_accounts (how many)", self.trusted_node_accounts.len(), 0, MOST)?;
        in_range("dns_names and istio.dns_names (how many)", names + self.dns_names.len(), 0, MAX_DNS_NAMES)?;
        in_range("istio.connections", self.connections, 1, 1 << 20)?;
        in_range("istio.requests_per_second", self.requests_per_second, 1, 1 << 20)?;
        in_range("istio.requests_burst", self.requests_burst, 1, 1 << 20)?;
        let mut ours = self.clusters.values();
        let default_cluster = match self.default_cluster {
            Some(name) if !ours.any(|known| *known == name) => return Err(ConfigError::IstioCluster(name)),
            Some(name) => Some(name),
            // Whoever has one cluster need not name it.
            None => ours.next().filter(|first| ours.all(|other| other == *first)).cloned(),
        };
        // A default gives way to what the CA can honour; what somebody has written does not.
        let most = longest_leaf(ca_ttl);
        let ttl = self.ttl.unwrap_or(DEFAULT_TTL.min(self.max_ttl.unwrap_or(most)).min(most));
        let ttl = leaf_in_range("istio.ttl", ttl, ca_ttl)?;
        let max_ttl = self.max_ttl.unwrap_or(DEFAULT_TTL.min(most).max(ttl));
        let max_ttl = leaf_in_range("istio.max_ttl", max_ttl, ca_ttl)?;
        if ttl > max_ttl {
            let [ttl, max_ttl] = [ttl, max_ttl].map(write_duration);
            return Err(ConfigError::TtlOverMax { table: "istio", ttl, max_ttl });
        }
        Ok(Istio {
            listen: self.listen,
            default_cluster,
            clusters: self.clusters,
            audience: self.audience,
            ttl,
            max_ttl,
            trusted_node_accounts: self.trusted_node_accounts,
            dns_names: self.dns_names,
            client_certificates: self.client_certificates,
            connections: self.connections,
            requests_per_second: self.requests_per_second,
            requests_burst: self.requests_burst,
        })
    }
}
