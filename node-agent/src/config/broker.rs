//! The table `[broker]`: where brokers knock, and which broker may ask for what. Without it there is no such endpoint.
//!
//! - Nobody may ask who is not listed, and who is listed only for what its rules say. A broker may have several rules:
//!   what one of them allows is allowed.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;
use spiffe::audience::{Audience, AudienceError};
use spiffe::id::{SpiffeId, TrustDomain};
use spiffe::selector::{Selector, SelectorError, Selectors};

use super::{SocketMode, SocketPath};

/// Only the agent's own user may connect: brokers are few, and workloads have no business there.
const DEFAULT_MODE: u32 = 0o600;
const MAX_RULES: usize = 1024;

/// Why the table is refused.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// There is neither a socket nor a port.
    #[error("[broker] has neither socket nor listen: give one of them, or both, or leave the table out")]
    Nowhere,
    /// Nobody may ask.
    #[error("[broker] allows nobody: add [[broker.allow]] with the SPIFFE ID of a broker, or leave the table out")]
    Nobody,
    /// Too many rules.
    #[error("[[broker.allow]] stands there {0} times: at most {MAX_RULES} are possible")]
    TooMany(usize),
    /// A broker that could never be verified.
    #[error("[[broker.allow]] id {id} is not of the trust domain {trust_domain}: only its own brokers can be verified")]
    Foreign {
        /// The broker.
        id: SpiffeId,
        /// Ours.
        trust_domain: TrustDomain,
    },
    /// A rule that allows nothing.
    #[error("[[broker.allow]] of {0} has no references: write references = [\"pid\"]")]
    NoReferences(SpiffeId),
    /// A list of audiences that is none.
    #[error("[[broker.allow]] of {0} has wrong audiences: {1}; without the key every audience is allowed")]
    Audiences(SpiffeId, AudienceError),
    /// Pods that nobody knows.
    #[error(
        "[[broker.allow]] of {0} has \"pod\" among its references, and nothing here knows pods: add [attestors.k8s]"
    )]
    NoPods(SpiffeId),
    /// A selector that no process has.
    #[error("[[broker.allow]] of {0}: {1}")]
    Selector(SpiffeId, SelectorError),
}

/// The Broker Endpoint. At least one of `socket` and `listen` is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broker {
    /// Where brokers of this machine knock.
    pub socket: Option<PathBuf>,
    /// Of the socket file.
    pub socket_mode: u32,
    /// Where brokers knock over the network.
    pub listen: Option<SocketAddr>,
    /// Who may ask for what. Never empty.
    pub allow: Vec<Rule>,
    /// How much is served at once.
    pub limits: BrokerLimits,
}

/// What one broker may ask for: all parts of a rule must allow it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The broker.
    pub id: SpiffeId,
    /// How it may name workloads.
    pub references: Vec<ReferenceKind>,
    /// Only workloads of which all these are true. Empty: every one.
    pub selectors: Selectors,
    /// Only JWT-SVIDs for these audiences. `None`: for every one.
    pub audiences: Option<Audience>,
}

/// A way to name a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReferenceKind {
    /// By the pid of a process of this machine.
    Pid,
    /// By the name or the UID of a pod of this node.
    Pod,
}

/// How much is served at once to brokers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BrokerLimits {
    /// Connections in all.
    pub connections: usize,
    /// Connections of one broker.
    pub connections_per_broker: usize,
    /// Open streams in all.
    pub streams: usize,
    /// Open streams of one broker: two for each workload that it works for.
    pub streams_per_broker: usize,
}

impl Default for BrokerLimits {
    fn default() -> Self {
        // A broker needs one connection; a few more while it is replaced by its next version. One may take half of all
        // streams.
        Self { connections: 256, connections_per_broker: 32, streams: 8192, streams_per_broker: 4096 }
    }
}

/// The table as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Table {
    socket: Option<SocketPath>,
    socket_mode: Option<SocketMode>,
    listen: Option<SocketAddr>,
    #[serde(default)]
    allow: Vec<RuleTable>,
    connections: Option<usize>,
    connections_per_broker: Option<usize>,
    streams: Option<usize>,
    streams_per_broker: Option<usize>,
}

impl Table {
    pub(super) fn parse(self, trust_domain: &TrustDomain, knows_pods: bool) -> Result<Broker, BrokerError> {
        if self.socket.is_none() && self.listen.is_none() {
            return Err(BrokerError::Nowhere);
        }
        match self.allow.len() {
            0 => return Err(BrokerError::Nobody),
            1..=MAX_RULES => {}
            count => return Err(BrokerError::TooMany(count)),
        }
        let allow: Result<Vec<Rule>, _> = self.allow.into_iter().map(|rule| rule.parse(trust_domain)).collect();
        let allow = allow?;
        let in_vain = allow.iter().find(|rule| !knows_pods && rule.references.contains(&ReferenceKind::Pod));
        if let Some(rule) = in_vain {
            return Err(BrokerError::NoPods(rule.id.clone()));
        }
        let default = BrokerLimits::default();
        Ok(Broker {
            socket: self.socket.map(|SocketPath(path)| path),
            socket_mode: self.socket_mode.map_or(DEFAULT_MODE, |SocketMode(mode)| mode),
            listen: self.listen,
            allow,
            limits: BrokerLimits {
                connections: self.connections.unwrap_or(default.connections),
                connections_per_broker: self.connections_per_broker.unwrap_or(default.connections_per_broker),
                streams: self.streams.unwrap_or(default.streams),
                streams_per_broker: self.streams_per_broker.unwrap_or(default.streams_per_broker),
            },
        })
    }
}

/// A rule as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleTable {
    id: SpiffeId,
    references: Vec<ReferenceKind>,
    #[serde(default)]
    selectors: Selectors,
    audiences: Option<Vec<String>>,
}

impl RuleTable {
    fn parse(self, trust_domain: &TrustDomain) -> Result<Rule, BrokerError> {
        let Self { id, references, selectors, audiences } = self;
        if !id.is_member_of(trust_domain) {
            return Err(BrokerError::Foreign { id, trust_domain: trust_domain.clone() });
        }
        if references.is_empty() {
            return Err(BrokerError::NoReferences(id));
        }
        if let Some(fault) = selectors.iter().find_map(Selector::fault) {
            return Err(BrokerError::Selector(id, fault));
        }
        match audiences.map(|audiences| Audience::parse(&audiences)).transpose() {
            Ok(audiences) => Ok(Rule { id, references, selectors, audiences }),
            Err(error) => Err(BrokerError::Audiences(id, error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = "socket = '/run/b.sock'\n[[allow]]\nid = 'spiffe://example.org/proxy'\nreferences = ['pid']\n";

    fn parse(text: &str) -> Result<Broker, String> {
        let table: Table = toml::from_str(text).map_err(|error| error.to_string())?;
        table.parse(&TrustDomain::parse("example.org").unwrap(), false).map_err(|error| error.to_string())
    }

    #[test]
    fn a_short_table_has_defaults() {
        let broker = parse(LEAST).unwrap();
        assert_eq!((broker.socket_mode, broker.listen, broker.limits), (0o600, None, BrokerLimits::default()));
        let [rule] = &broker.allow[..] else { panic!("{:?}", broker.allow) };
        assert!(rule.selectors.is_empty() && rule.audiences.is_none());
        let long = format!(
            "listen = '10.0.0.5:8446'\nsocket_mode = '0660'\nstreams = 10\n{LEAST}selectors = ['unix:uid:7']\n"
        );
        let broker = parse(&long).unwrap();
        assert_eq!((broker.socket_mode, broker.limits.streams), (0o660, 10));
        assert_eq!(broker.allow[0].selectors.to_string(), "unix:uid:7");
    }

    #[test]
    fn the_sample_shows_a_table_with_the_defaults() {
        let sample = include_str!("../../../deploy/agent.toml");
        let shown = &sample[sample.find("# [broker]").unwrap()..];
        let shown = &shown[..shown.find("\n\n").unwrap()];
        let table: String = shown.lines().map(|line| line.trim_start_matches("# ").to_owned() + "\n").collect();
        let table = table.replace("[broker]", "").replace("broker.allow", "allow");
        let broker = parse(&table).unwrap();
        assert_eq!((broker.socket_mode, broker.limits), (DEFAULT_MODE, BrokerLimits::default()));
        assert!(broker.listen.is_some() && broker.allow[0].audiences.is_some());
    }

    #[test]
    fn each_wrong_value_says_what_to_do() {
        let cases = [
            (LEAST.replace("socket = '/run/b.sock'", ""), "give one of them"),
            ("socket = '/run/b.sock'".into(), "add [[broker.allow]]"),
            (LEAST.replace("example.org", "other.org"), "is not of the trust domain example.org"),
            (LEAST.replace("'pid'", ""), "write references = [\"pid\"]"),
            (LEAST.replace("'pid'", "'pid', 'pod'"), "add [attestors.k8s]"),
            (LEAST.replace("'pid'", "'kubernetes'"), "unknown variant `kubernetes`, expected `pid` or `pod`"),
            (LEAST.replace("/run/b.sock", "b.sock"), "must be absolute"),
            (format!("{LEAST}audiences = []"), "without the key every audience is allowed"),
            (format!("{LEAST}audiences = ['']"), "an audience is empty"),
            (format!("{LEAST}selectors = ['unix:uid:root']"), "matches no process"),
            (format!("{LEAST}selector = ['unix:uid:0']"), "unknown field `selector`"),
        ];
        for (text, words) in cases {
            let error = parse(&text).unwrap_err();
            assert!(error.contains(words), "{error}\n(wanted: {words})");
        }
    }
}
