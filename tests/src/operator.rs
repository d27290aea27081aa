//! An operator at the admin door.

use std::path::Path;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use nix::unistd::getuid;
use spiffe::id::SpiffeId;
use spiffe::proto::v1;
use spiffe::proto::v1::admin_client::AdminClient;
use spiffe::time::Timestamp;
use tokio::net::UnixStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::patience::that;

/// An open connection to the admin door. `door` has every verb; the methods are those that tests use often.
#[derive(Clone, Debug)]
pub struct Operator {
    /// The door itself.
    pub door: AdminClient<Channel>,
}

impl Operator {
    /// Connects to the admin socket at `path`.
    pub async fn at(path: &Path) -> Self {
        Self { door: AdminClient::new(unix(path).await.unwrap()) }
    }

    /// What the server says of itself.
    pub async fn info(&self) -> v1::ServerInfoResponse {
        self.door.clone().server_info(v1::ServerInfoRequest {}).await.unwrap().into_inner()
    }

    /// A join token, with a node alias unless that is empty.
    pub async fn token(&self, alias: &str) -> String {
        let request = v1::CreateJoinTokenRequest { ttl: 600, alias: alias.into() };
        self.door.clone().create_join_token(request).await.unwrap().into_inner().token
    }

    /// Registers an entry; answers as it is stored, and the revision.
    pub async fn register(&self, entry: v1::Entry) -> (v1::Entry, u64) {
        self.try_register(entry).await.unwrap()
    }

    /// Registers an entry, or says why not.
    pub async fn try_register(&self, entry: v1::Entry) -> Result<(v1::Entry, u64), v1::Refusal> {
        let request = v1::CreateEntriesRequest { entries: vec![entry], ..Default::default() };
        single(self.door.clone().create_entries(request).await.unwrap().into_inner())
    }

    /// Replaces the entry of this ID; answers the revision.
    pub async fn update(&self, entry: v1::Entry) -> u64 {
        self.try_update(entry).await.unwrap().1
    }

    /// Replaces the entry of this ID, or says why not.
    pub async fn try_update(&self, entry: v1::Entry) -> Result<(v1::Entry, u64), v1::Refusal> {
        let request = v1::UpdateEntriesRequest { entries: vec![entry], ..Default::default() };
        single(self.door.clone().update_entries(request).await.unwrap().into_inner())
    }

    /// Deletes an entry; answers the revision.
    pub async fn delete(&self, id: &str) -> u64 {
        let request = v1::DeleteEntriesRequest { ids: vec![id.into()] };
        single(self.door.clone().delete_entries(request).await.unwrap().into_inner()).unwrap().1
    }

    /// Everything that is known of all agents.
    pub async fn agents(&self) -> Vec<v1::Agent> {
        let request = v1::ListAgentsRequest::default();
        self.door.clone().list_agents(request).await.unwrap().into_inner().agents
    }

    /// What is known of one agent.
    pub async fn agent(&self, id: &SpiffeId) -> Result<v1::Agent, Status> {
        let request = v1::ShowAgentRequest { id: id.to_string() };
        Ok(self.door.clone().show_agent(request).await?.into_inner())
    }

    /// Every authority for X.509-SVIDs.
    pub async fn authorities(&self) -> Vec<v1::Authority> {
        self.authorities_of("x509").await
    }

    /// Every authority of this kind.
    pub async fn authorities_of(&self, kind: &str) -> Vec<v1::Authority> {
        let request = v1::ListAuthoritiesRequest {};
        let mut all = self.door.clone().list_authorities(request).await.unwrap().into_inner().authorities;
        all.retain(|authority| authority.kind == kind);
        all
    }

    /// The authorities for X.509-SVIDs in this state.
    pub async fn authorities_in(&self, state: &str) -> Vec<v1::Authority> {
        let all = self.authorities().await;
        all.into_iter().filter(|authority| authority.state == state).collect()
    }

    /// The one that signs X.509-SVIDs.
    pub async fn active(&self) -> v1::Authority {
        let active = self.authorities_in("active").await;
        let [active] = <[_; 1]>::try_from(active).unwrap();
        active
    }

    /// Makes a new authority for X.509-SVIDs.
    pub async fn prepare(&self) -> v1::Authority {
        self.prepare_of("").await
    }

    /// Makes a new authority of this kind.
    pub async fn prepare_of(&self, kind: &str) -> v1::Authority {
        let request = v1::PrepareAuthorityRequest { kind: kind.into() };
        self.door.clone().prepare_authority(request).await.unwrap().into_inner().authority.unwrap()
    }

    /// Lets a prepared authority sign.
    pub async fn activate(&self, id: &str) -> Result<v1::AuthorityResponse, Status> {
        let request = v1::AuthorityRequest { id: id.into(), force: false };
        Ok(self.door.clone().activate_authority(request).await?.into_inner())
    }

    /// The same, whoever does not know it.
    pub async fn activate_now(&self, id: &str) -> Result<v1::AuthorityResponse, Status> {
        let request = v1::AuthorityRequest { id: id.into(), force: true };
        Ok(self.door.clone().activate_authority(request).await?.into_inner())
    }

    /// Has everything below an authority replaced.
    pub async fn taint(&self, id: &str) -> Result<v1::AuthorityResponse, Status> {
        Ok(self
            .door
            .clone()
            .taint_authority(v1::AuthorityRequest { id: id.into(), ..Default::default() })
            .await?
            .into_inner())
    }

    /// Takes an authority out of the bundle.
    pub async fn revoke(&self, id: &str) -> Result<v1::AuthorityResponse, Status> {
        Ok(self
            .door
            .clone()
            .revoke_authority(v1::AuthorityRequest { id: id.into(), ..Default::default() })
            .await?
            .into_inner())
    }

    /// The own trust domain's bundle.
    pub async fn bundle(&self) -> spiffe::bundle::Bundle {
        let request = v1::ShowBundleRequest::default();
        self.door.clone().show_bundle(request).await.unwrap().into_inner().try_into().unwrap()
    }

    /// Forms a relationship, or says why not. An empty `endpoint_id` is `https_web`.
    pub async fn federate(
        &self,
        with: &str,
        url: &str,
        endpoint_id: &str,
        bundle: Option<&spiffe::bundle::Bundle>,
    ) -> Result<u64, Status> {
        let profile = if endpoint_id.is_empty() { "https_web" } else { "https_spiffe" };
        let relationship = v1::Relationship {
            trust_domain: with.into(),
            url: url.into(),
            profile: profile.into(),
            endpoint_spiffe_id: endpoint_id.into(),
        };
        let request =
            v1::CreateRelationshipRequest { relationship: Some(relationship), bundle: bundle.map(v1::Bundle::from) };
        Ok(self.door.clone().create_relationship(request).await?.into_inner().revision)
    }

    /// How the polls of a relationship have gone.
    pub async fn relationship(&self, with: &str) -> v1::RelationshipStatus {
        let request = v1::ShowRelationshipRequest { trust_domain: with.into() };
        self.door.clone().show_relationship(request).await.unwrap().into_inner()
    }

    /// Polls now; answers how it went.
    pub async fn refresh(&self, with: &str) -> v1::RelationshipStatus {
        let request = v1::RefreshRelationshipRequest { trust_domain: with.into() };
        self.door.clone().refresh_relationship(request).await.unwrap().into_inner()
    }

    /// Who of the connected agents has not acknowledged `revision`, without waiting.
    pub async fn behind(&self, revision: u64) -> Vec<String> {
        let request = v1::WaitAppliedRequest { revision, timeout: 0 };
        self.door.clone().wait_applied(request).await.unwrap().into_inner().behind
    }

    /// Objects while an agent is not connected, or has not renewed its SVID of the life `agent_ttl` at six
    /// tenths of it.
    pub async fn settled(&self, now: Timestamp, agent_ttl: Duration) -> Result<(), String> {
        for agent in self.agents().await {
            that(agent.connected, || format!("{} is not connected", agent.id))?;
            let left = agent.expires_at.saturating_sub(now.unix());
            that(left >= agent_ttl.as_secs() * 4 / 10, || format!("{} has not renewed: {left} s are left", agent.id))?;
        }
        Ok(())
    }

    /// Objects while the CAs are not as the rotation law has them for the life `ca_ttl`.
    pub async fn rotated(&self, now: Timestamp, ca_ttl: Duration) -> Result<(), String> {
        self.rotated_of("x509", now, ca_ttl).await
    }

    /// Objects while the authorities of this kind are not as the rotation law has them for the life `ca_ttl` when every
    /// agent acknowledges at once: the next is prepared at half of the life of the active one, and active at two thirds;
    /// what has ended is gone.
    pub async fn rotated_of(&self, kind: &str, now: Timestamp, ca_ttl: Duration) -> Result<(), String> {
        let all = self.authorities_of(kind).await;
        let ended = all.iter().find(|authority| authority.not_after < now.unix());
        that(ended.is_none(), || format!("{ended:?} has ended and is still there"))?;
        let active = all.iter().find(|authority| authority.state == "active").ok_or("none is active")?;
        let age = (now.unix() + ca_ttl.as_secs()).saturating_sub(active.not_after);
        let prepared = all.iter().any(|authority| authority.state == "prepared");
        that(prepared || age <= ca_ttl.as_secs() / 2, || {
            format!("{} is {age} s old, and none is prepared", active.id)
        })?;
        that(age <= ca_ttl.as_secs() * 2 / 3, || format!("{} is {age} s old and still active", active.id))
    }
}

fn single(results: v1::EntryResults) -> Result<(v1::Entry, u64), v1::Refusal> {
    let [result] = <[_; 1]>::try_from(results.results).unwrap();
    match result.outcome.unwrap() {
        v1::entry_result::Outcome::Entry(entry) => Ok((entry, results.revision)),
        v1::entry_result::Outcome::Refused(refusal) => Err(refusal),
    }
}

/// A gRPC channel over the unix socket at `path`.
pub async fn unix(path: &Path) -> Result<Channel, tonic::transport::Error> {
    let path = path.to_owned();
    let connector = tower::service_fn(move |_: http::Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector(connector).await
}

/// An entry that gives `spiffe://example.org/<path>` to every process of this user below `parent`.
pub fn entry(parent: &SpiffeId, path: &str) -> v1::Entry {
    v1::Entry {
        spiffe_id: crate::house::id(path).to_string(),
        parent: parent.to_string(),
        selectors: vec![format!("unix:uid:{}", getuid())],
        ..v1::Entry::default()
    }
}
