//! The one table of rights: which RPC is open to whom. What is not in it is denied. Checked for each request against
//! the present View, so that a ban, an eviction, the end of a certificate and that of its authority work at once on open
//! connections too.

use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use spiffe::time::{Clock, Timestamp};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use super::caller::{Caller, Holder};
use super::status::Refusal;
use crate::audit::Who;
use crate::view::View;
use crate::view::follow::Views;

/// Who may call an RPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Everyone who can reach the port.
    Anyone,
    /// An attested agent that is neither banned nor evicted.
    Agent,
    /// A local operator, or the holder of an SVID of an entry marked admin.
    Admin,
}

/// Every RPC of the server, by its path.
pub const TABLE: &[(&str, Right)] = &[
    ("/chancery.v1.Node/Attest", Right::Anyone),
    ("/chancery.v1.Node/Renew", Right::Agent),
    ("/chancery.v1.Node/Sync", Right::Agent),
    ("/chancery.v1.Node/IssueX509Svids", Right::Agent),
    ("/chancery.v1.Node/IssueJwtSvids", Right::Agent),
    ("/chancery.v1.Node/IssueWitSvids", Right::Agent),
    ("/chancery.v1.Admin/ServerInfo", Right::Admin),
    ("/chancery.v1.Admin/WaitApplied", Right::Admin),
    ("/chancery.v1.Admin/CreateEntries", Right::Admin),
    ("/chancery.v1.Admin/UpdateEntries", Right::Admin),
    ("/chancery.v1.Admin/DeleteEntries", Right::Admin),
    ("/chancery.v1.Admin/ShowEntry", Right::Admin),
    ("/chancery.v1.Admin/ListEntries", Right::Admin),
    ("/chancery.v1.Admin/CountEntries", Right::Admin),
    ("/chancery.v1.Admin/ShowAgent", Right::Admin),
    ("/chancery.v1.Admin/ListAgents", Right::Admin),
    ("/chancery.v1.Admin/CountAgents", Right::Admin),
    ("/chancery.v1.Admin/EvictAgent", Right::Admin),
    ("/chancery.v1.Admin/BanAgent", Right::Admin),
    ("/chancery.v1.Admin/PurgeAgents", Right::Admin),
    ("/chancery.v1.Admin/CreateJoinToken", Right::Admin),
    ("/chancery.v1.Admin/ListJoinTokens", Right::Admin),
    ("/chancery.v1.Admin/RevokeJoinToken", Right::Admin),
    ("/chancery.v1.Admin/ShowBundle", Right::Admin),
    ("/chancery.v1.Admin/ListBundles", Right::Admin),
    ("/chancery.v1.Admin/SetBundle", Right::Admin),
    ("/chancery.v1.Admin/DeleteBundle", Right::Admin),
    ("/chancery.v1.Admin/CreateRelationship", Right::Admin),
    ("/chancery.v1.Admin/ListRelationships", Right::Admin),
    ("/chancery.v1.Admin/ShowRelationship", Right::Admin),
    ("/chancery.v1.Admin/UpdateRelationship", Right::Admin),
    ("/chancery.v1.Admin/RefreshRelationship", Right::Admin),
    ("/chancery.v1.Admin/DeleteRelationship", Right::Admin),
    ("/chancery.v1.Admin/CreateRule", Right::Admin),
    ("/chancery.v1.Admin/ListRules", Right::Admin),
    ("/chancery.v1.Admin/ShowRule", Right::Admin),
    ("/chancery.v1.Admin/UpdateRule", Right::Admin),
    ("/chancery.v1.Admin/DeleteRule", Right::Admin),
    ("/chancery.v1.Admin/ExplainPod", Right::Admin),
    ("/chancery.v1.Admin/ListAuthorities", Right::Admin),
    ("/chancery.v1.Admin/PrepareAuthority", Right::Admin),
    ("/chancery.v1.Admin/ActivateAuthority", Right::Admin),
    ("/chancery.v1.Admin/TaintAuthority", Right::Admin),
    ("/chancery.v1.Admin/RevokeAuthority", Right::Admin),
    ("/chancery.v1.Admin/MintX509Svid", Right::Admin),
    ("/chancery.v1.Admin/MintJwtSvid", Right::Admin),
    // By a token in its headers, which no table knows: the door looks at it.
    ("/istio.v1.auth.IstioCertificateService/CreateCertificate", Right::Anyone),
];

/// Why a caller is turned away.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The RPC is in no table.
    #[error("there is no RPC {0} here")]
    Unknown(String),
    /// The caller's SVID has ended.
    #[error("your SVID expired at {0}: renew it, or attest again")]
    Expired(Timestamp),
    /// No root of the bundle is above the caller's SVID any more.
    #[error("the authority that signed your SVID ({0}) was revoked: connect again with a newer SVID, or attest again")]
    Revoked(String),
    /// The agent has no record: it was evicted or purged, or never attested with this server's store.
    #[error("agent {0} is not attested here (it may have been evicted): attest again")]
    NotAttested(String),
    /// The agent's node is none of its cluster any more.
    #[error("the node of agent {0} was deleted, as the API server of its cluster says: attest again")]
    NodeGone(String),
    /// The agent was banned.
    #[error("agent {0} is banned: an operator can lift it with \"chancery agent evict {0}\"")]
    Banned(String),
    /// The agent has a newer SVID than the one shown.
    #[error("agent {0} has a newer SVID than this one: use that, or attest again")]
    Superseded(String),
    /// The RPC is for agents.
    #[error("{0} is no node agent: only agents may call this")]
    NotAnAgent(String),
    /// The RPC is for operators.
    #[error("{0} is no operator: use the admin socket as the server's own user, or the SVID of an entry marked admin")]
    NotAnAdmin(String),
}

/// What lies behind a request that was let in.
#[derive(Clone, Debug)]
pub struct Admitted {
    /// Who called.
    pub caller: Caller,
    /// The View against which the right was checked; the whole request is answered from it.
    pub view: Arc<View>,
    /// When.
    pub now: Timestamp,
}

impl Admitted {
    /// The agent that called; the table lets nobody else through to where this is asked.
    pub fn agent(&self) -> Result<&Holder, Denied> {
        match &self.caller {
            Caller::Agent(holder) => Ok(holder),
            other => Err(Denied::NotAnAgent(other.to_string())),
        }
    }

    /// As a line of audit names the caller.
    pub fn who(&self) -> Who {
        match &self.caller {
            Caller::Stranger(_) => Who::Stranger,
            Caller::Agent(holder) | Caller::Workload(holder) => Who::Svid(holder.id.clone()),
            Caller::Local { uid, .. } => Who::Uid(*uid),
        }
    }
}

/// Who of this machine counts as an operator.
#[derive(Clone, Debug)]
pub struct Operators {
    /// Users that may use the admin socket.
    pub uids: Arc<[u32]>,
}

/// The right to call `path`.
pub fn right(path: &str) -> Option<Right> {
    TABLE.iter().find(|(known, _)| *known == path).map(|(_, right)| *right)
}

/// Whether `caller` may call `path` now.
pub fn admit(caller: &Caller, path: &str, view: &View, operators: &Operators, now: Timestamp) -> Result<(), Denied> {
    let right = right(path).ok_or_else(|| Denied::Unknown(path.chars().take(128).collect()))?;
    if right == Right::Anyone {
        return Ok(());
    }
    caller.holder().map_or(Ok(()), |holder| admit_svid(holder, view, now))?;
    match (right, caller) {
        (Right::Anyone, _) => Ok(()),
        (Right::Agent, Caller::Agent(holder)) => admit_node(holder, view),
        (Right::Agent, other) => Err(Denied::NotAnAgent(other.to_string())),
        (Right::Admin, Caller::Local { uid, .. }) if operators.uids.contains(uid) => Ok(()),
        (Right::Admin, Caller::Workload(holder)) if view.is_admin(&holder.id, now) => Ok(()),
        (Right::Admin, other) => Err(Denied::NotAnAdmin(other.to_string())),
    }
}

/// Whether this agent may act now, with this very SVID.
pub fn admit_agent(holder: &Holder, view: &View, now: Timestamp) -> Result<(), Denied> {
    admit_svid(holder, view, now)?;
    admit_node(holder, view)
}

/// Whether the SVID itself still counts.
pub fn admit_svid(holder: &Holder, view: &View, now: Timestamp) -> Result<(), Denied> {
    if holder.not_after < now {
        return Err(Denied::Expired(holder.not_after));
    }
    if !holder.chain.is_trusted(view.bundle(), now) {
        return Err(Denied::Revoked(holder.id.to_string()));
    }
    Ok(())
}

/// Whether the agent's record lets it act with this very SVID.
fn admit_node(holder: &Holder, view: &View) -> Result<(), Denied> {
    let name = || holder.id.to_string();
    let node = view.node(&holder.id).ok_or_else(|| Denied::NotAttested(name()))?;
    if node.banned {
        return Err(Denied::Banned(name()));
    }
    if !node.holds(holder.serial()) {
        return Err(Denied::Superseded(name()));
    }
    Ok(())
}

/// Puts the table before every service.
#[derive(Clone, Debug)]
pub struct Guard {
    /// Where the present View is.
    pub views: Arc<Views>,
    /// Who of this machine counts as an operator.
    pub operators: Operators,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
}

impl<S> Layer<S> for Guard {
    type Service = Guarded<S>;
    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { guard: self.clone(), inner }
    }
}

/// A service behind the table.
#[derive(Clone, Debug)]
pub struct Guarded<S> {
    guard: Guard,
    inner: S,
}

impl<S> Service<http::Request<Body>> for Guarded<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let (view, now) = (self.guard.views.load(), self.guard.clock.now());
        let Some(caller) = request.extensions().get::<Caller>().cloned() else {
            let status = Status::internal("the connection has no caller");
            return Box::pin(async { Ok(status.into_http()) });
        };
        if let Err(denied) = admit(&caller, request.uri().path(), &view, &self.guard.operators, now) {
            // The path is the caller's, and callers may be many: not at a level that fills a log.
            let path: String = request.uri().path().chars().take(128).collect();
            tracing::debug!(%caller, path, %denied, "denied");
            let status = Status::from(Refusal::from(denied));
            return Box::pin(async move { Ok(status.into_http()) });
        }
        request.extensions_mut().insert(Admitted { caller, view, now });
        Box::pin(self.inner.call(request))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message as _;
    use prost_types::FileDescriptorSet;

    use super::*;

    #[test]
    fn every_rpc_of_the_protos_is_in_the_table_and_nothing_else() {
        let sets = [spiffe::proto::CHANCERY_DESCRIPTORS, spiffe::proto::ISTIO_DESCRIPTORS];
        let mut described = BTreeSet::new();
        for file in sets.iter().flat_map(|set| FileDescriptorSet::decode(*set).unwrap().file) {
            // That of an agent is on a socket of the agent's.
            for service in file.service.iter().filter(|service| service.name() != "AgentStatus") {
                for method in &service.method {
                    described.insert(format!("/{}.{}/{}", file.package(), service.name(), method.name()));
                }
            }
        }
        let table: BTreeSet<String> = TABLE.iter().map(|(path, _)| (*path).to_owned()).collect();
        assert_eq!(table, described);
        assert_eq!(TABLE.len(), table.len());
    }
}
