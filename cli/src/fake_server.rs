//! For tests: an Admin door on a unix socket that behaves like a small server with entries, tokens and agents in
//! memory, and commands run against it as a user would type them.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use clap::Parser as _;
use spiffe::proto::v1;
use spiffe::proto::v1::admin_server::{Admin, AdminServer};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

use crate::args::Chancery;
use crate::exit::Outcome;

/// The door; clones share the state.
#[derive(Clone, Debug, Default)]
pub(crate) struct FakeServer(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    entries: Vec<v1::Entry>,
    revision: u64,
    /// What `WaitApplied` answers.
    behind: Vec<String>,
}

/// A running door.
pub(crate) struct Running {
    pub(crate) server: FakeServer,
    pub(crate) socket: PathBuf,
    _folder: tempfile::TempDir,
}

impl FakeServer {
    pub(crate) fn start() -> Running {
        let server = Self::default();
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("admin.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let door = tonic::transport::Server::builder().add_service(AdminServer::new(server.clone()));
        tokio::spawn(door.serve_with_incoming(UnixListenerStream::new(listener)));
        Running { server, socket, _folder: folder }
    }

    pub(crate) fn entries(&self) -> Vec<v1::Entry> {
        self.0.lock().unwrap().entries.clone()
    }

    pub(crate) fn lag(&self, agents: &[&str]) {
        self.0.lock().unwrap().behind = agents.iter().map(|id| (*id).to_owned()).collect();
    }
}

impl Running {
    /// Runs `chancery <line>` against this door.
    pub(crate) async fn run(&self, line: &str) -> Outcome {
        let words = ["chancery", "--socket", self.socket.to_str().unwrap()].into_iter();
        Chancery::try_parse_from(words.chain(line.split_whitespace())).unwrap().run().await
    }
}

fn refused(status: &Status) -> v1::EntryResult {
    let refusal = v1::Refusal { code: status.code() as i32, message: status.message().to_owned() };
    v1::EntryResult { outcome: Some(v1::entry_result::Outcome::Refused(refusal)), ..Default::default() }
}

fn done(entry: &v1::Entry) -> v1::EntryResult {
    v1::EntryResult { outcome: Some(v1::entry_result::Outcome::Entry(entry.clone())), ..Default::default() }
}

impl State {
    fn change(&mut self) -> Result<Response<v1::ChangeResponse>, Status> {
        self.revision += 1;
        Ok(Response::new(v1::ChangeResponse { revision: self.revision }))
    }

    fn results(&mut self, results: Vec<v1::EntryResult>) -> Response<v1::EntryResults> {
        self.revision += 1;
        Response::new(v1::EntryResults { results, revision: self.revision })
    }

    fn authority(&mut self, id: &str) -> Response<v1::AuthorityResponse> {
        self.revision += 1;
        let authority = v1::Authority { id: id.to_owned(), state: "active".into(), ..Default::default() };
        Response::new(v1::AuthorityResponse { authority: Some(authority), revision: self.revision })
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Admin for FakeServer {
    async fn server_info(&self, _: Request<v1::ServerInfoRequest>) -> Answer<v1::ServerInfoResponse> {
        Ok(Response::new(v1::ServerInfoResponse {
            trust_domain: "example.org".into(),
            ca_fingerprint: "ab".into(),
            address: "localhost:8443".into(),
            ..Default::default()
        }))
    }

    async fn wait_applied(&self, request: Request<v1::WaitAppliedRequest>) -> Answer<v1::WaitAppliedResponse> {
        let state = self.0.lock().unwrap();
        assert_eq!(request.into_inner().revision, state.revision);
        Ok(Response::new(v1::WaitAppliedResponse { connected: 2, behind: state.behind.clone() }))
    }

    async fn create_entries(&self, request: Request<v1::CreateEntriesRequest>) -> Answer<v1::EntryResults> {
        let mut state = self.0.lock().unwrap();
        let mut results = Vec::new();
        for mut entry in request.into_inner().entries {
            if let Some(other) = state.entries.iter().find(|other| other.spiffe_id == entry.spiffe_id) {
                results.push(refused(&Status::already_exists(format!("entry {} is the same", other.id))));
                continue;
            }
            if entry.id.is_empty() {
                entry.id = format!("e{}", state.entries.len());
            }
            results.push(done(&entry));
            state.entries.push(entry);
        }
        Ok(state.results(results))
    }

    async fn update_entries(&self, request: Request<v1::UpdateEntriesRequest>) -> Answer<v1::EntryResults> {
        let mut state = self.0.lock().unwrap();
        let mut results = Vec::new();
        for entry in request.into_inner().entries {
            match state.entries.iter_mut().find(|other| other.id == entry.id) {
                Some(place) => {
                    *place = entry;
                    results.push(done(place));
                }
                None => results.push(refused(&Status::not_found("no such entry"))),
            }
        }
        Ok(state.results(results))
    }

    async fn delete_entries(&self, request: Request<v1::DeleteEntriesRequest>) -> Answer<v1::EntryResults> {
        let mut state = self.0.lock().unwrap();
        let mut results = Vec::new();
        for id in request.into_inner().ids {
            match state.entries.iter().position(|entry| entry.id == id) {
                Some(at) => results.push(done(&state.entries.remove(at))),
                None => results.push(refused(&Status::not_found(format!("no entry {id}")))),
            }
        }
        Ok(state.results(results))
    }

    async fn show_entry(&self, request: Request<v1::ShowEntryRequest>) -> Answer<v1::Entry> {
        let id = request.into_inner().id;
        let found = self.entries().into_iter().find(|entry| entry.id == id);
        found.map(Response::new).ok_or_else(|| Status::not_found(format!("no entry {id}")))
    }

    /// One entry a page.
    async fn list_entries(&self, request: Request<v1::ListEntriesRequest>) -> Answer<v1::ListEntriesResponse> {
        let entries = self.entries();
        let at: usize = request.into_inner().page.parse().unwrap_or(0);
        let next_page = if at + 1 < entries.len() { (at + 1).to_string() } else { String::new() };
        let entries = entries.into_iter().skip(at).take(1).collect();
        Ok(Response::new(v1::ListEntriesResponse { entries, next_page }))
    }

    async fn count_entries(&self, _: Request<v1::CountEntriesRequest>) -> Answer<v1::CountResponse> {
        Ok(Response::new(v1::CountResponse { count: self.entries().len() as u64 }))
    }

    async fn show_agent(&self, request: Request<v1::ShowAgentRequest>) -> Answer<v1::Agent> {
        Err(Status::not_found(format!("no agent {}", request.into_inner().id)))
    }

    async fn list_agents(&self, _: Request<v1::ListAgentsRequest>) -> Answer<v1::ListAgentsResponse> {
        Ok(Response::new(v1::ListAgentsResponse::default()))
    }

    async fn count_agents(&self, _: Request<v1::CountAgentsRequest>) -> Answer<v1::CountResponse> {
        Ok(Response::new(v1::CountResponse { count: 0 }))
    }

    async fn evict_agent(&self, _: Request<v1::EvictAgentRequest>) -> Answer<v1::ChangeResponse> {
        self.0.lock().unwrap().change()
    }

    async fn ban_agent(&self, _: Request<v1::BanAgentRequest>) -> Answer<v1::ChangeResponse> {
        Err(Status::permission_denied("only an admin may"))
    }

    async fn purge_agents(&self, _: Request<v1::PurgeAgentsRequest>) -> Answer<v1::PurgeAgentsResponse> {
        Ok(Response::new(v1::PurgeAgentsResponse { purged: 0, revision: 0 }))
    }

    async fn create_join_token(
        &self,
        request: Request<v1::CreateJoinTokenRequest>,
    ) -> Answer<v1::CreateJoinTokenResponse> {
        let ttl = request.into_inner().ttl;
        Ok(Response::new(v1::CreateJoinTokenResponse {
            token: "secret".into(),
            id: "t1".into(),
            expires_at: 4_000_000_000 + ttl,
            revision: 1,
        }))
    }

    async fn list_join_tokens(&self, _: Request<v1::ListJoinTokensRequest>) -> Answer<v1::ListJoinTokensResponse> {
        Ok(Response::new(v1::ListJoinTokensResponse::default()))
    }

    async fn revoke_join_token(&self, _: Request<v1::RevokeJoinTokenRequest>) -> Answer<v1::ChangeResponse> {
        Err(Status::unavailable("the store is not there"))
    }

    async fn show_bundle(&self, _: Request<v1::ShowBundleRequest>) -> Answer<v1::Bundle> {
        Ok(Response::new(v1::Bundle { trust_domain: "example.org".into(), ..Default::default() }))
    }

    async fn list_bundles(&self, _: Request<v1::ListBundlesRequest>) -> Answer<v1::ListBundlesResponse> {
        Ok(Response::new(v1::ListBundlesResponse::default()))
    }

    async fn set_bundle(&self, _: Request<v1::SetBundleRequest>) -> Answer<v1::ChangeResponse> {
        self.0.lock().unwrap().change()
    }

    async fn delete_bundle(&self, _: Request<v1::DeleteBundleRequest>) -> Answer<v1::ChangeResponse> {
        self.0.lock().unwrap().change()
    }

    async fn create_relationship(&self, _: Request<v1::CreateRelationshipRequest>) -> Answer<v1::ChangeResponse> {
        self.0.lock().unwrap().change()
    }

    async fn list_relationships(
        &self,
        _: Request<v1::ListRelationshipsRequest>,
    ) -> Answer<v1::ListRelationshipsResponse> {
        Ok(Response::new(v1::ListRelationshipsResponse::default()))
    }

    async fn show_relationship(&self, _: Request<v1::ShowRelationshipRequest>) -> Answer<v1::RelationshipStatus> {
        let relationship = v1::Relationship {
            trust_domain: "other.org".into(),
            profile: "https_spiffe".into(),
            endpoint_spiffe_id: "spiffe://other.org/x".into(),
            ..Default::default()
        };
        Ok(Response::new(v1::RelationshipStatus { relationship: Some(relationship), ..Default::default() }))
    }

    /// What is not given stays; an ID that a profile does not have goes.
    async fn update_relationship(&self, request: Request<v1::UpdateRelationshipRequest>) -> Answer<v1::ChangeResponse> {
        let relationship = request.into_inner().relationship.unwrap();
        assert_eq!(relationship.endpoint_spiffe_id.is_empty(), relationship.profile == "https_web");
        assert_eq!(relationship.url, "https://elsewhere.org/");
        self.0.lock().unwrap().change()
    }

    async fn refresh_relationship(&self, _: Request<v1::RefreshRelationshipRequest>) -> Answer<v1::RelationshipStatus> {
        let last_error = "nobody answers".to_owned();
        Ok(Response::new(v1::RelationshipStatus { last_error, ..Default::default() }))
    }

    async fn delete_relationship(&self, _: Request<v1::DeleteRelationshipRequest>) -> Answer<v1::ChangeResponse> {
        self.0.lock().unwrap().change()
    }

    async fn create_rule(&self, _: Request<v1::CreateRuleRequest>) -> Answer<v1::ChangeResponse> {
        self.0.lock().unwrap().change()
    }

    async fn list_rules(&self, _: Request<v1::ListRulesRequest>) -> Answer<v1::ListRulesResponse> {
        Ok(Response::new(v1::ListRulesResponse { rules: vec![v1::RuleStatus::default()], ..Default::default() }))
    }

    async fn show_rule(&self, request: Request<v1::ShowRuleRequest>) -> Answer<v1::RuleStatus> {
        let namespaces = vec!["shop".to_owned()];
        let rule = v1::Rule { id: request.into_inner().id, x509_ttl: 600, namespaces, ..v1::Rule::default() };
        Ok(Response::new(v1::RuleStatus { rule: Some(rule), ..v1::RuleStatus::default() }))
    }

    /// What is not given stays.
    async fn update_rule(&self, request: Request<v1::UpdateRuleRequest>) -> Answer<v1::ChangeResponse> {
        let rule = request.into_inner().rule.unwrap();
        assert_eq!((rule.x509_ttl, rule.namespaces.len(), rule.hint.as_str()), (600, 0, "internal"));
        self.0.lock().unwrap().change()
    }

    async fn delete_rule(&self, _: Request<v1::DeleteRuleRequest>) -> Answer<v1::ChangeResponse> {
        self.0.lock().unwrap().change()
    }

    async fn explain_pod(&self, request: Request<v1::ExplainPodRequest>) -> Answer<v1::ExplainPodResponse> {
        let v1::ExplainPodRequest { namespace, name, .. } = request.into_inner();
        Ok(Response::new(v1::ExplainPodResponse { namespace, name, ..v1::ExplainPodResponse::default() }))
    }

    async fn list_authorities(&self, _: Request<v1::ListAuthoritiesRequest>) -> Answer<v1::ListAuthoritiesResponse> {
        Ok(Response::new(v1::ListAuthoritiesResponse::default()))
    }

    async fn prepare_authority(&self, _: Request<v1::PrepareAuthorityRequest>) -> Answer<v1::AuthorityResponse> {
        Ok(self.0.lock().unwrap().authority("a1"))
    }

    async fn activate_authority(&self, request: Request<v1::AuthorityRequest>) -> Answer<v1::AuthorityResponse> {
        Ok(self.0.lock().unwrap().authority(&request.into_inner().id))
    }

    async fn taint_authority(&self, request: Request<v1::AuthorityRequest>) -> Answer<v1::AuthorityResponse> {
        Ok(self.0.lock().unwrap().authority(&request.into_inner().id))
    }

    async fn revoke_authority(&self, request: Request<v1::AuthorityRequest>) -> Answer<v1::AuthorityResponse> {
        let request = request.into_inner();
        if request.force {
            return Ok(self.0.lock().unwrap().authority(&request.id));
        }
        Err(Status::failed_precondition("it is active: activate another first"))
    }

    async fn mint_x509_svid(&self, _: Request<v1::MintX509SvidRequest>) -> Answer<v1::X509Svid> {
        Err(Status::invalid_argument("no"))
    }

    async fn mint_jwt_svid(&self, _: Request<v1::MintJwtSvidRequest>) -> Answer<v1::Token> {
        Err(Status::invalid_argument("no"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREATE: &str =
        "entry create --parent spiffe://example.org/chancery/agent/x/1 --selector unix:uid:1 --spiffe-id";

    #[tokio::test]
    async fn entries_from_creation_to_deletion() {
        let door = FakeServer::start();
        door.run(&format!("{CREATE} spiffe://example.org/a --id a --hint first --x509-ttl 1h --wait")).await.unwrap();
        door.run(&format!("{CREATE} spiffe://example.org/b --id b")).await.unwrap();
        door.run("entry update a --ttl 10m --admin --wait=5s").await.unwrap();
        let entry = &door.server.entries()[0];
        assert_eq!((entry.x509_ttl, entry.admin, entry.hint.as_str()), (600, true, "first"));
        door.run("entry update a --ttl 10m --wait=5s").await.expect("it is like that already");
        assert_eq!(door.server.0.lock().unwrap().revision, 3, "nothing was changed");
        door.run("entry list").await.unwrap();
        door.run("entry list -o json --admin=false").await.unwrap();
        door.run("entry show a").await.unwrap();
        door.run("entry count").await.unwrap();
        door.run("entry delete a b").await.unwrap();
        assert!(door.server.entries().is_empty());
    }

    #[tokio::test]
    async fn listing_walks_through_the_pages() {
        let door = FakeServer::start();
        for name in ["a", "b", "c"] {
            door.run(&format!("{CREATE} spiffe://example.org/{name}")).await.unwrap();
        }
        let globals = Chancery::parse_from(["chancery", "--socket", door.socket.to_str().unwrap(), "agent", "list"]);
        let mut admin = crate::connect::admin(&globals.globals).await.unwrap();
        let entries = crate::entry::list(&mut admin, v1::EntryFilter::default()).await.unwrap();
        assert_eq!(entries.len(), 3);
    }

    #[tokio::test]
    async fn each_kind_of_failure_has_its_exit_code() {
        let door = FakeServer::start();
        door.run(&format!("{CREATE} spiffe://example.org/a --id a")).await.unwrap();
        let code = async |line: &str| {
            let failure = door.run(line).await.unwrap_err();
            (failure.exit(), failure.to_string())
        };
        let (exit, text) = code(&format!("{CREATE} spiffe://example.org/a")).await;
        assert_eq!((exit, text.as_str()), (1, "1 of 1 entry was not created"));
        assert_eq!(code("entry update a").await.0, 2);
        assert_eq!(code("rule update pods").await.0, 2);
        assert_eq!(code("explain web-1").await.0, 2);
        assert_eq!(code("entry delete a nonexistent").await.0, 1);
        assert_eq!(code("entry show nonexistent").await, (1, "not found: no entry nonexistent".into()));
        assert_eq!(code("entry create --hint x").await.0, 2);
        assert_eq!(code("agent ban spiffe://example.org/chancery/agent/x/1").await.1, "not allowed: only an admin may");
        let (exit, text) = code("token revoke t1").await;
        assert_eq!((exit, text.as_str()), (3, "cannot be answered now: the store is not there; try again"));
        assert_eq!(code("authority revoke a1").await.0, 1);
        assert_eq!(code("federation refresh other.org").await, (1, "the poll brought nothing: nobody answers".into()));
    }

    #[tokio::test]
    async fn a_wait_that_is_not_reached_names_who_is_behind() {
        let door = FakeServer::start();
        door.server.lag(&["spiffe://example.org/chancery/agent/x/2"]);
        let failure = door.run("authority prepare --wait=1s").await.unwrap_err();
        assert_eq!(failure.exit(), 4);
        assert!(failure.to_string().ends_with("\n  spiffe://example.org/chancery/agent/x/2"), "{failure}");
        let failure = door.run(&format!("{CREATE} spiffe://example.org/a --wait")).await.unwrap_err();
        assert_eq!(failure.exit(), 4);
        assert_eq!(door.server.entries().len(), 1);
    }

    #[tokio::test]
    async fn the_other_verbs_reach_the_door() {
        let door = FakeServer::start();
        for line in [
            "agent list",
            "agent count",
            "agent evict spiffe://example.org/chancery/agent/x/1",
            "agent purge --expired-for 1d",
            "token create --ttl 1h --alias spiffe://example.org/nodes/web",
            "token list",
            "bundle show",
            "bundle list",
            "bundle delete other.org --dissociate",
            "federation create other.org --url https://other.org/ --profile https_web",
            "federation list",
            "federation show other.org -o json",
            "federation update other.org --url https://elsewhere.org/",
            "federation update other.org --url https://elsewhere.org/ --profile https_web",
            "federation delete other.org --dissociate --wait=1s",
            "rule create pods",
            "rule create shop --namespace shop --spiffe-id spiffe://example.org/{{ns}} --wait=1s",
            "rule list",
            "rule list -o json",
            "rule show pods -o json",
            "rule update pods --hint internal --none namespace",
            "rule delete pods",
            "explain shop/web-1",
            "explain --uid u1 -o json",
            "authority list",
            "authority activate a1",
            "authority activate a1 --now",
            "authority taint a1 -o json",
            "authority revoke a1 --force",
        ] {
            door.run(line).await.unwrap_or_else(|failure| panic!("{line}: {failure}"));
        }
    }
}
