//! The Admin door: what operators call, one file per noun.
//!
//! - Reads are answered from the View against which the right was checked; changes are commits to the store.
//! - A change is answered when this server's View has it: what an operator reads next is at least as new.
//! - Every change, done or refused, is a line of audit, and its place is reserved before it is made.

mod agents;
mod authorities;
mod bundles;
mod clusters;
mod entries;
mod explain;
mod federation;
mod mint;
mod operators;
mod rules;
mod tokens;

use std::fmt::Display;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use spiffe::id::SpiffeId;
use spiffe::proto::v1;
use tonic::{Request, Response, Status};

pub use self::clusters::{Clusters, LastHeard};
use super::Doors;
use super::caller::Caller;
use super::rights::Admitted;
use super::status::Refusal;
use crate::audit::{Content, Event, Message, Outcome};
use crate::authority::{Authority, Kind, State};
use crate::federation::Federation;
use crate::rotate::Rotator;
use crate::store::Revision;
use crate::view::{View, keys};

/// The longest that WaitApplied waits.
const LONGEST_WAIT: Duration = Duration::from_secs(600);
/// The size of a page when none is asked for, and the largest.
const PAGE: (usize, usize) = (500, 1000);

/// What the Admin door needs beside what every door has.
#[derive(Clone, Debug)]
pub struct AdminSettings {
    /// The version of this program.
    pub version: &'static str,
    /// Where agents reach this server, `host:port`.
    pub address: String,
    /// The most registration entries, those of rules aside.
    pub most_entries: usize,
    /// The most rules.
    pub most_rules: usize,
    /// The clusters: where there are several, a rule names its own.
    pub clusters: Clusters,
    /// Whether Istio's door is open, which gives service accounts their IDs.
    pub gives_service_accounts: bool,
    /// The most join tokens that are not used yet.
    pub most_tokens: usize,
    /// The longest life of a join token.
    pub token_max_ttl: Duration,
    /// What rotates the authorities, and does with them what operators say.
    pub rotator: Arc<Rotator>,
    /// What polls the endpoints of foreign trust domains.
    pub federation: Arc<Federation>,
}

/// The service of `admin.proto`.
#[derive(Clone, Debug)]
pub struct AdminDoor {
    /// What every door has.
    pub doors: Arc<Doors>,
    /// What only this one has.
    pub settings: Arc<AdminSettings>,
}

/// One call: what is behind the door, and who came in.
struct Call<'a> {
    doors: &'a Doors,
    settings: &'a AdminSettings,
    admitted: Admitted,
    rpc: &'static str,
}

/// What a change is about, for its line of audit.
#[derive(Default)]
struct About {
    subject: Option<SpiffeId>,
    object: Option<String>,
    /// What is to be written.
    content: Option<String>,
}

impl About {
    fn object(object: impl Display) -> Self {
        Self { object: Some(object.to_string()), ..Self::default() }
    }

    fn subject(subject: &SpiffeId) -> Self {
        Self { subject: Some(subject.clone()), ..Self::default() }
    }
}

impl Call<'_> {
    /// An event of this call, with everything that is known of the caller.
    fn event(&self, outcome: Outcome) -> Event {
        let mut event = Event::new(self.admitted.now, self.rpc, self.admitted.who(), outcome);
        event.address = match &self.admitted.caller {
            Caller::Stranger(address) => Some(*address),
            Caller::Agent(holder) | Caller::Workload(holder) => Some(holder.address),
            Caller::Local { .. } => None,
        };
        event.revision = self.admitted.view.revision();
        event
    }

    /// The View by which entries may make operators: one with every rule that is stored. Such a View can be seconds behind the
    /// store, while a rule is held against many pods.
    async fn newest(&self, entries: &[v1::Entry]) -> Result<Arc<View>, Refusal> {
        if !entries.iter().any(|entry| entry.admin) {
            return Ok(Arc::clone(&self.admitted.view));
        }
        let (_, revision) = self.doors.store.range(keys::RULES).await?;
        Ok(self.doors.views.reached(revision).await)
    }

    /// Makes one change and records it; answers when this server's View has it.
    async fn change<T>(
        &self,
        about: About,
        work: impl Future<Output = Result<(T, Revision), Refusal>>,
    ) -> Result<(T, Revision), Refusal> {
        let mut record = self.doors.audit.reserve(1)?;
        let made = work.await;
        let outcome = made.as_ref().map_or_else(Refusal::outcome, |_| Outcome::Changed);
        let mut event = self.event(outcome);
        event.subject = about.subject;
        event.object = about.object.as_deref().map(Message::new);
        event.content = about.content.as_deref().map(Content::new).map(Box::new);
        if let Ok((_, revision)) = &made {
            event.revision = *revision;
        }
        self.doors.decided(&mut record, event);
        let (made, revision) = made?;
        self.doors.views.reached(revision).await;
        Ok((made, revision))
    }
}

/// How many of a list go on one page.
fn page_size(asked: u32) -> Result<usize, Refusal> {
    match asked as usize {
        0 => Ok(PAGE.0),
        size if size <= PAGE.1 => Ok(size),
        size => Err(Refusal::invalid(format_args!("page_size is {size}: at most {} is allowed", PAGE.1))),
    }
}

/// The first `size` of `items`, and the name of the last of them where more follow.
fn page<T>(mut items: impl Iterator<Item = T>, size: usize, name: impl Fn(&T) -> String) -> (Vec<T>, String) {
    let page: Vec<T> = items.by_ref().take(size).collect();
    let next = match (page.last(), items.next()) {
        (Some(last), Some(_)) => name(last),
        _ => String::new(),
    };
    (page, next)
}

async fn server_info(call: &Call<'_>, _: v1::ServerInfoRequest) -> Result<v1::ServerInfoResponse, Refusal> {
    let view = &call.admitted.view;
    let active = view.issuer().map(|issuer| issuer.authority());
    let is_active = |authority: &&Authority| authority.kind() == Kind::X509 && authority.state == State::Active;
    let active = active.or_else(|| view.authorities().iter().map(|held| &held.value).find(is_active));
    Ok(v1::ServerInfoResponse {
        version: call.settings.version.to_owned(),
        trust_domain: view.trust_domain().to_string(),
        revision: view.revision(),
        ca_fingerprint: active.map(|active| active.public.fingerprint()).unwrap_or_default(),
        address: call.settings.address.clone(),
        entries: view.entry_count() as u64,
        agents: view.node_count() as u64,
        connected_agents: call.doors.connected.count() as u64,
    })
}

async fn wait_applied(call: &Call<'_>, asked: v1::WaitAppliedRequest) -> Result<v1::WaitAppliedResponse, Refusal> {
    let most = Duration::from_secs(asked.timeout).min(LONGEST_WAIT);
    let behind = call.behind(asked.revision, most).await;
    let behind = behind.iter().map(ToString::to_string).collect();
    Ok(v1::WaitAppliedResponse { connected: call.doors.connected.count() as u64, behind })
}

impl Call<'_> {
    /// The connected agents that have not applied `revision`, when there are none left or after this time.
    async fn behind(&self, revision: Revision, most: Duration) -> Vec<SpiffeId> {
        let connected = &self.doors.connected;
        let mut changes = connected.changes();
        let applied = async {
            self.doors.views.reached(revision).await;
            while !connected.behind(revision).is_empty() && changes.changed().await.is_ok() {}
        };
        tokio::select! {
            () = applied => {}
            () = self.doors.clock.sleep(most) => {}
            () = self.doors.stop.cancelled() => {}
        }
        connected.behind(revision)
    }
}

/// Each RPC in one line: its name, what it takes and gives, and the function that answers it.
macro_rules! door {
    ($($rpc:literal $method:ident($request:ty) -> $response:ty = $answer:expr;)*) => {
        #[tonic::async_trait]
        impl v1::admin_server::Admin for AdminDoor {
            $(async fn $method(&self, request: Request<$request>) -> Result<Response<$response>, Status> {
                let admitted = request.extensions().get::<Admitted>().cloned();
                let admitted = admitted.ok_or_else(|| Status::internal("the request was not admitted"))?;
                let _timer = self.doors.metrics.time($rpc);
                let call = Call { doors: &self.doors, settings: &self.settings, admitted, rpc: $rpc };
                let answer: Result<$response, Refusal> = ($answer)(&call, request.into_inner()).await;
                Ok(Response::new(answer?))
            })*
        }
    };
}

door! {
    "ServerInfo" server_info(v1::ServerInfoRequest) -> v1::ServerInfoResponse
        = server_info;
    "WaitApplied" wait_applied(v1::WaitAppliedRequest) -> v1::WaitAppliedResponse
        = wait_applied;
    "CreateEntries" create_entries(v1::CreateEntriesRequest) -> v1::EntryResults = entries::create;
    "UpdateEntries" update_entries(v1::UpdateEntriesRequest) -> v1::EntryResults = entries::update;
    "DeleteEntries" delete_entries(v1::DeleteEntriesRequest) -> v1::EntryResults = entries::delete;
    "ShowEntry" show_entry(v1::ShowEntryRequest) -> v1::Entry = entries::show;
    "ListEntries" list_entries(v1::ListEntriesRequest) -> v1::ListEntriesResponse
        = entries::list;
    "CountEntries" count_entries(v1::CountEntriesRequest) -> v1::CountResponse
        = entries::count;
    "ShowAgent" show_agent(v1::ShowAgentRequest) -> v1::Agent = agents::show;
    "ListAgents" list_agents(v1::ListAgentsRequest) -> v1::ListAgentsResponse
        = agents::list;
    "CountAgents" count_agents(v1::CountAgentsRequest) -> v1::CountResponse
        = agents::count;
    "EvictAgent" evict_agent(v1::EvictAgentRequest) -> v1::ChangeResponse = agents::evict;
    "BanAgent" ban_agent(v1::BanAgentRequest) -> v1::ChangeResponse = agents::ban;
    "PurgeAgents" purge_agents(v1::PurgeAgentsRequest) -> v1::PurgeAgentsResponse = agents::purge;
    "CreateJoinToken" create_join_token(v1::CreateJoinTokenRequest) -> v1::CreateJoinTokenResponse = tokens::create;
    "ListJoinTokens" list_join_tokens(v1::ListJoinTokensRequest) -> v1::ListJoinTokensResponse
        = tokens::list;
    "RevokeJoinToken" revoke_join_token(v1::RevokeJoinTokenRequest) -> v1::ChangeResponse = tokens::revoke;
    "ShowBundle" show_bundle(v1::ShowBundleRequest) -> v1::Bundle
        = bundles::show;
    "ListBundles" list_bundles(v1::ListBundlesRequest) -> v1::ListBundlesResponse
        = bundles::list;
    "SetBundle" set_bundle(v1::SetBundleRequest) -> v1::ChangeResponse = bundles::set;
    "DeleteBundle" delete_bundle(v1::DeleteBundleRequest) -> v1::ChangeResponse = bundles::delete;
    "CreateRelationship" create_relationship(v1::CreateRelationshipRequest) -> v1::ChangeResponse
        = federation::create;
    "ListRelationships" list_relationships(v1::ListRelationshipsRequest) -> v1::ListRelationshipsResponse
        = federation::list;
    "ShowRelationship" show_relationship(v1::ShowRelationshipRequest) -> v1::RelationshipStatus
        = federation::show;
    "UpdateRelationship" update_relationship(v1::UpdateRelationshipRequest) -> v1::ChangeResponse
        = federation::update;
    "RefreshRelationship" refresh_relationship(v1::RefreshRelationshipRequest) -> v1::RelationshipStatus
        = federation::refresh;
    "DeleteRelationship" delete_relationship(v1::DeleteRelationshipRequest) -> v1::ChangeResponse
        = federation::delete;
    "CreateRule" create_rule(v1::CreateRuleRequest) -> v1::ChangeResponse = rules::create;
    "ListRules" list_rules(v1::ListRulesRequest) -> v1::ListRulesResponse
        = rules::list;
    "ShowRule" show_rule(v1::ShowRuleRequest) -> v1::RuleStatus = rules::show;
    "UpdateRule" update_rule(v1::UpdateRuleRequest) -> v1::ChangeResponse = rules::update;
    "DeleteRule" delete_rule(v1::DeleteRuleRequest) -> v1::ChangeResponse = rules::delete;
    "ExplainPod" explain_pod(v1::ExplainPodRequest) -> v1::ExplainPodResponse
        = explain::explain;
    "ListAuthorities" list_authorities(v1::ListAuthoritiesRequest) -> v1::ListAuthoritiesResponse
        = authorities::list;
    "PrepareAuthority" prepare_authority(v1::PrepareAuthorityRequest) -> v1::AuthorityResponse = authorities::prepare;
    "ActivateAuthority" activate_authority(v1::AuthorityRequest) -> v1::AuthorityResponse = authorities::activate;
    "TaintAuthority" taint_authority(v1::AuthorityRequest) -> v1::AuthorityResponse = authorities::taint;
    "RevokeAuthority" revoke_authority(v1::AuthorityRequest) -> v1::AuthorityResponse = authorities::revoke;
    "MintX509Svid" mint_x509_svid(v1::MintX509SvidRequest) -> v1::X509Svid = mint::mint;
    "MintJwtSvid" mint_jwt_svid(v1::MintJwtSvidRequest) -> v1::Token = mint::mint_jwt;
}
