//! Agents: listed from the View with what is known of their streams; evicted, banned, purged.

use std::sync::Arc;
use std::time::Duration;

use spiffe::crypto::hex;
use spiffe::id::SpiffeId;
use spiffe::proto::{WireError, spiffe_id, v1};
use spiffe::selector::Selectors;

use super::{About, Call, page, page_size};
use crate::api::status::Refusal;
use crate::prune;
use crate::store::{Revision, StoreError, Txn};
use crate::view::record::Node;
use crate::view::{Held, keys};

/// How often a change is tried again when the agent renews at the same time.
const TRIES: usize = 5;

fn to_wire(call: &Call<'_>, node: &Node) -> v1::Agent {
    let applied = call.doors.connected.applied(&node.id);
    v1::Agent {
        id: node.id.to_string(),
        attestor: node.attestor.clone(),
        selectors: node.selectors.iter().map(ToString::to_string).collect(),
        serial: hex(&node.serial),
        expires_at: node.expires_at.unix(),
        attested_at: node.attested_at.unix(),
        banned: node.banned,
        connected: applied.is_some(),
        acknowledged: applied.unwrap_or(0),
    }
}

fn unknown(id: &SpiffeId) -> Refusal {
    Refusal::not_found(format_args!("there is no agent {id}: list them with \"chancery agent list\""))
}

pub(super) async fn show(call: &Call<'_>, request: v1::ShowAgentRequest) -> Result<v1::Agent, Refusal> {
    let id = spiffe_id("id", &request.id)?;
    let node = call.admitted.view.node(&id).ok_or_else(|| unknown(&id))?;
    Ok(to_wire(call, node))
}

struct Filter {
    attestor: String,
    selectors: Selectors,
    banned: Option<bool>,
    connected: Option<bool>,
}

impl Filter {
    fn parse(wire: Option<v1::AgentFilter>) -> Result<Self, Refusal> {
        let wire = wire.unwrap_or_default();
        let selectors = Selectors::parse(&wire.selectors).map_err(WireError::from)?;
        Ok(Self { attestor: wire.attestor, selectors, banned: wire.banned, connected: wire.connected })
    }

    fn matches(&self, call: &Call<'_>, node: &Node) -> bool {
        (self.attestor.is_empty() || self.attestor == node.attestor)
            && self.selectors.is_subset_of(&node.selectors)
            && self.banned.is_none_or(|banned| banned == node.banned)
            && self.connected.is_none_or(|wanted| wanted == call.doors.connected.applied(&node.id).is_some())
    }
}

pub(super) async fn list(call: &Call<'_>, request: v1::ListAgentsRequest) -> Result<v1::ListAgentsResponse, Refusal> {
    let (filter, size) = (Filter::parse(request.filter)?, page_size(request.page_size)?);
    let after = (!request.page.is_empty()).then(|| spiffe_id("page", &request.page)).transpose()?;
    let found = call.admitted.view.nodes_after(after.as_ref()).filter(|node| filter.matches(call, node));
    let (nodes, next_page) = page(found, size, |node: &&Arc<Held<Node>>| node.id.to_string());
    let agents = nodes.into_iter().map(|node| to_wire(call, node)).collect();
    Ok(v1::ListAgentsResponse { agents, next_page })
}

pub(super) async fn count(call: &Call<'_>, request: v1::CountAgentsRequest) -> Result<v1::CountResponse, Refusal> {
    let filter = Filter::parse(request.filter)?;
    let found = call.admitted.view.nodes_after(None).filter(|node| filter.matches(call, node));
    Ok(v1::CountResponse { count: found.count() as u64 })
}

pub(super) async fn evict(call: &Call<'_>, request: v1::EvictAgentRequest) -> Result<v1::ChangeResponse, Refusal> {
    change(call, &request.id, |_, key, txn| Some(txn.delete(key))).await
}

pub(super) async fn ban(call: &Call<'_>, request: v1::BanAgentRequest) -> Result<v1::ChangeResponse, Refusal> {
    let ban = |node: Node, key: String, txn: Txn| {
        (!node.banned).then(|| txn.put(key, Node { banned: true, ..node }.to_record()))
    };
    change(call, &request.id, ban).await
}

/// Changes the record of one agent as `how` says; `None`: it is so already.
async fn change(
    call: &Call<'_>,
    id: &str,
    how: impl Fn(Node, String, Txn) -> Option<Txn>,
) -> Result<v1::ChangeResponse, Refusal> {
    let id = spiffe_id("id", id)?;
    let work = async { Ok(((), commit(call, &id, how).await?)) };
    let ((), revision) = call.change(About::subject(&id), work).await?;
    Ok(v1::ChangeResponse { revision })
}

async fn commit(
    call: &Call<'_>,
    id: &SpiffeId,
    how: impl Fn(Node, String, Txn) -> Option<Txn>,
) -> Result<Revision, Refusal> {
    let key = keys::node(id).ok_or_else(|| unknown(id))?;
    let mut conflict = StoreError::Conflict { key: key.clone() };
    for _ in 0..TRIES {
        // From the store, not the View: the agent may have renewed a moment ago.
        let (found, _) = call.doors.store.range(&key).await?;
        let held = found.into_iter().find(|held| held.key == key).ok_or_else(|| unknown(id))?;
        let node = Node::from_record(&held.value)
            .map_err(|error| Refusal::internal(format_args!("the store's record {key} {error}")))?;
        let Some(txn) = how(node, key.clone(), Txn::new().expect(key.clone(), held.revision)) else {
            return Ok(held.revision);
        };
        match call.doors.commit(txn).await {
            Ok(revision) => return Ok(revision),
            Err(error @ StoreError::Conflict { .. }) => conflict = error,
            Err(error) => return Err(error.into()),
        }
    }
    Err(conflict.into())
}

pub(super) async fn purge(
    call: &Call<'_>,
    request: v1::PurgeAgentsRequest,
) -> Result<v1::PurgeAgentsResponse, Refusal> {
    let expired_for = Duration::from_secs(request.expired_for);
    let what = prune::agents(&call.admitted.view, call.admitted.now, expired_for);
    let work = async {
        let (purged, revision) = prune::forget(call.doors.store.as_ref(), what).await?;
        Ok((purged, revision))
    };
    let about = About::object(format_args!("expired for {}s", request.expired_for));
    let (purged, revision) = call.change(about, work).await?;
    Ok(v1::PurgeAgentsResponse { purged, revision })
}
