//! The document of `agent status`.

use serde::Serialize;
use spiffe::proto::v1;

use crate::moments::Moment;

/// `agent status`.
#[derive(Debug, Serialize)]
pub(crate) struct AgentStatus {
    /// The agent's own SPIFFE ID.
    pub(crate) id: String,
    /// The end of its own SVID.
    pub(crate) svid_expires_at: Moment,
    /// Whether a server is connected.
    pub(crate) connected: bool,
    /// The revision up to which it has applied everything; 0: none yet.
    pub(crate) revision: u64,
    /// The X.509-SVIDs that it holds.
    pub(crate) svids: Vec<HeldSvid>,
    /// The streams of proxies.
    pub(crate) proxies: Vec<Proxy>,
    /// The deliveries.
    pub(crate) deliveries: Vec<Delivery>,
    /// How many pods of this node are known.
    pub(crate) pods: u64,
    /// When the API server, or the kubelet, last told of pods; null: never, or nobody is asked.
    pub(crate) pods_told_at: Moment,
}

/// An SVID in `agent status`.
#[derive(Debug, Serialize)]
pub(crate) struct HeldSvid {
    /// The entry that gives it.
    pub(crate) entry_id: String,
    /// Whose it is.
    pub(crate) spiffe_id: String,
    /// Its end.
    pub(crate) expires_at: Moment,
}

/// A stream of a proxy in `agent status`.
#[derive(Debug, Serialize)]
pub(crate) struct Proxy {
    /// The process.
    pub(crate) pid: u32,
    /// What it calls itself.
    pub(crate) node: String,
    /// What it has asked for; empty: everything.
    pub(crate) names: Vec<String>,
    /// The version that was last sent; empty: none yet.
    pub(crate) sent: String,
    /// The version that it has last taken; empty: none yet.
    pub(crate) acknowledged: String,
    /// Why it would not take a version; null: it has taken the last one, or not answered yet.
    pub(crate) rejection: Option<Mishap>,
}

/// A delivery in `agent status`.
#[derive(Debug, Serialize)]
pub(crate) struct Delivery {
    /// As the config calls it.
    pub(crate) name: String,
    /// The identity that is delivered; empty: none yet.
    pub(crate) spiffe_id: String,
    /// What lies there now; empty: nothing yet.
    pub(crate) version: String,
    /// When everything that is to be done was last done; null: never.
    pub(crate) succeeded_at: Moment,
    /// What went wrong since; null: nothing.
    pub(crate) failure: Option<Mishap>,
    /// When it is tried again; null: not.
    pub(crate) next_try: Moment,
}

/// Something that went wrong, in `agent status`.
#[derive(Debug, Serialize)]
pub(crate) struct Mishap {
    /// When.
    pub(crate) at: Moment,
    /// What, in the words of whoever noticed.
    pub(crate) words: String,
}

impl From<v1::ShowAgentStatusResponse> for AgentStatus {
    fn from(wire: v1::ShowAgentStatusResponse) -> Self {
        let mishap = |wire: v1::Failure| Mishap { at: Moment(wire.at), words: wire.words };
        let svid = |wire: v1::HeldSvid| HeldSvid {
            entry_id: wire.entry_id,
            spiffe_id: wire.spiffe_id,
            expires_at: Moment(wire.expires_at),
        };
        let proxy = |wire: v1::Proxy| Proxy {
            pid: wire.pid,
            node: wire.node,
            names: wire.names,
            sent: wire.sent,
            acknowledged: wire.acknowledged,
            rejection: wire.rejection.map(mishap),
        };
        let delivery = |wire: v1::Delivery| Delivery {
            name: wire.name,
            spiffe_id: wire.spiffe_id,
            version: wire.version,
            succeeded_at: Moment(wire.succeeded_at),
            failure: wire.failure.map(mishap),
            next_try: Moment(wire.next_try),
        };
        Self {
            id: wire.id,
            svid_expires_at: Moment(wire.svid_expires_at),
            connected: wire.connected,
            revision: wire.revision,
            svids: wire.svids.into_iter().map(svid).collect(),
            proxies: wire.proxies.into_iter().map(proxy).collect(),
            deliveries: wire.deliveries.into_iter().map(delivery).collect(),
            pods: wire.pods,
            pods_told_at: Moment(wire.pods_told_at),
        }
    }
}
