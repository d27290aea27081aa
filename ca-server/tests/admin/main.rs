//! The Admin door, called as the server calls it, on a store in memory: what an operator would notice.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say what is wrong by panicking")]

mod names;
mod operators;
mod tokens;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ca_server::api::Doors;
use ca_server::api::admin::{AdminDoor, AdminSettings, Clusters, LastHeard};
use ca_server::api::caller::Caller;
use ca_server::api::limits::Attempts;
use ca_server::api::rights::Admitted;
use ca_server::attest::{Attestors, join_token};
use ca_server::audit::{Audit, Writer};
use ca_server::authority::Kind;
use ca_server::authority::keys::{KeySpec, KeyStore, Memory};
use ca_server::authority::plan::Policy;
use ca_server::config;
use ca_server::connected::Connected;
use ca_server::federation::{self, Federation};
use ca_server::https::WebRoots;
use ca_server::issuance::Profile;
use ca_server::issuance::tokens::TokenProfile;
use ca_server::metrics::{Metrics, Observed};
use ca_server::origin::Places;
use ca_server::prune;
use ca_server::rotate::{Parts, Rotator, Rule};
use ca_server::store::mem::MemStore;
use ca_server::store::{Store, Txn};
use ca_server::view::follow::{self, Signers, Views};
use ca_server::view::pods::{Labels, Pod, PodEvent};
use ca_server::view::record::Node;
use ca_server::view::{Terms, keys};
use spiffe::entry::{DnsName, KeyType};
use spiffe::id::{SpiffeId, TrustDomain};
use spiffe::proto::v1;
use spiffe::proto::v1::admin_server::Admin as _;
use spiffe::proto::v1::entry_result::Outcome;
use spiffe::selector::Selectors;
use spiffe::time::{Clock as _, Fake, Timestamp};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status};

const DAY: Duration = Duration::from_secs(86_400);
const AGENT: &str = "spiffe://example.org/chancery/agent/join_token/1";

struct House {
    door: AdminDoor,
    clock: Fake,
    audit: tempfile::NamedTempFile,
    writer: Writer,
    tell: mpsc::Sender<PodEvent>,
}

impl House {
    async fn new() -> Self {
        let trust_domain = TrustDomain::parse("example.org").unwrap();
        let clock = Fake::new(Timestamp::from_unix(1_795_218_000));
        let (store, keys): (Arc<dyn Store>, Arc<dyn KeyStore>) =
            (Arc::new(MemStore::new()), Arc::new(Memory::default()));
        let signers = Signers { keys: keys.clone(), owner: "main".into() };
        let own_names = [DnsName::parse("ca.example.org").unwrap()].into();
        let terms = Terms { most: 16, own_names };
        let views = Views::new(follow::load(trust_domain.clone(), &*store, &signers).await.unwrap().on_terms(terms));
        let time = Arc::new(clock.clone());
        let (tell, told) = mpsc::channel(64);
        tokio::spawn(follow::follow(store.clone(), views.clone(), signers, time.clone(), Some(told)));
        let rotator = Arc::new(Rotator::new(Parts {
            store: store.clone(),
            keys,
            upstream: None,
            trust_domain: trust_domain.clone(),
            rules: Kind::ALL
                .map(|kind| Policy::new(kind, "main".into(), 30 * DAY, DAY).unwrap())
                .map(|policy| Rule { key: KeySpec::P256, policy })
                .into(),
            clock: time.clone(),
            acknowledged: Arc::new(|_| BTreeSet::new()),
        }));
        rotator.rotate().await.unwrap();
        let (_, revision) = store.range(keys::AUTHORITIES).await.unwrap();
        views.reached(revision).await;
        let audit = tempfile::NamedTempFile::new().unwrap();
        let to = config::AuditTarget::File(audit.path().into());
        let (record, writer) = Audit::open(&config::Audit { to, queue: 2048 }).unwrap();
        let tokens = TokenProfile {
            trust_domain: trust_domain.clone(),
            default_ttl: DAY / 288,
            max_ttl: DAY / 24,
            issuer: None,
            raise: "its max_ttl",
        };
        let doors = Doors {
            store,
            views,
            connected: Connected::default(),
            attestors: Attestors::from_config(&config::Attest::default()).unwrap(),
            profile: Profile { trust_domain, default_ttl: DAY / 24, max_ttl: DAY, agent_ttl: DAY / 24 },
            jwt: tokens.clone(),
            wit: tokens,
            audit: record,
            metrics: Arc::new(Metrics::new("0", Arc::new(Observed::default))),
            clock: time,
            issuing: Semaphore::new(4),
            open_attestations: Places::new(8, 8),
            syncing: Places::new(8, 1),
            attesting: Attempts::new(1, 1, clock.now()),
            stop: CancellationToken::new(),
        };
        let (federation, _) = Federation::new(federation::Parts {
            configured: Vec::new(),
            most: 2,
            limits: federation::Limits { timeout: DAY, allow_networks: Vec::new() },
            web_roots: WebRoots::new(Vec::new(), Arc::clone(&doors.clock)),
            store: Arc::clone(&doors.store),
            views: Arc::clone(&doors.views),
            audit: doors.audit.clone(),
            metrics: Arc::clone(&doors.metrics),
            clock: Arc::clone(&doors.clock),
        });
        let settings = AdminSettings {
            version: "0",
            address: "ca.example.org:8443".into(),
            most_entries: 2000,
            most_rules: 2,
            clusters: Clusters::new(["prod", "east"].map(|name| (name.into(), Arc::new(|| None) as LastHeard))),
            gives_service_accounts: true,
            most_tokens: 2,
            token_max_ttl: DAY,
            rotator,
            federation,
        };
        let door = AdminDoor { doors: Arc::new(doors), settings: Arc::new(settings) };
        Self { door, clock, audit, writer, tell }
    }

    /// Lets that much time pass as soon as somebody waits for it.
    async fn passes(&self, time: Duration) {
        while self.clock.next_wake().is_none() {
            tokio::task::yield_now().await;
        }
        self.clock.advance(time);
    }

    fn ask<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let caller = Caller::Local { uid: 1000, pid: None };
        request.extensions_mut().insert(Admitted { caller, view: self.door.doors.views.load(), now: self.clock.now() });
        request
    }

    async fn create(&self, entries: Vec<v1::Entry>) -> Vec<Result<v1::Entry, String>> {
        let request = self.ask(v1::CreateEntriesRequest { entries, ..Default::default() });
        outcomes(self.door.create_entries(request).await.unwrap().into_inner())
    }

    async fn update(&self, entry: v1::Entry) -> Result<v1::Entry, String> {
        let request = self.ask(v1::UpdateEntriesRequest { entries: vec![entry], ..Default::default() });
        outcomes(self.door.update_entries(request).await.unwrap().into_inner()).remove(0)
    }

    async fn delete(&self, id: &str) {
        let request = self.ask(v1::DeleteEntriesRequest { ids: vec![id.into()] });
        outcomes(self.door.delete_entries(request).await.unwrap().into_inner()).remove(0).unwrap();
    }

    async fn node(&self, name: &str, expires_at: Timestamp, banned: bool) -> String {
        let trust_domain = TrustDomain::parse("example.org").unwrap();
        let id = trust_domain.agent_id("join_token", name).unwrap();
        let node = Node {
            id: id.clone(),
            attestor: "join_token".into(),
            selectors: Selectors::parse([format!("agent_id:{id}")]).unwrap(),
            serial: vec![0x41, 1],
            previous_serial: Vec::new(),
            expires_at,
            attested_at: self.clock.now(),
            banned,
        };
        let txn = Txn::new().put(keys::node(&id).unwrap(), node.to_record());
        let revision = self.door.doors.store.commit(txn).await.unwrap();
        self.door.doors.views.reached(revision).await;
        id.to_string()
    }
}

fn outcomes(results: v1::EntryResults) -> Vec<Result<v1::Entry, String>> {
    let outcome = |result: v1::EntryResult| match result.outcome.unwrap() {
        Outcome::Entry(entry) => Ok(entry),
        Outcome::Refused(refusal) => Err(format!("{:?}: {}", Code::from(refusal.code), refusal.message)),
    };
    results.results.into_iter().map(outcome).collect()
}

fn entry(name: &str) -> v1::Entry {
    v1::Entry {
        id: name.into(),
        spiffe_id: format!("spiffe://example.org/{name}"),
        parent: AGENT.into(),
        selectors: vec!["unix:uid:1000".into()],
        ..v1::Entry::default()
    }
}

fn words<T: std::fmt::Debug>(answer: Result<T, Status>) -> String {
    let status = answer.unwrap_err();
    format!("{:?}: {}", status.code(), status.message())
}

#[tokio::test]
async fn entries_are_created_with_a_result_each() {
    let house = House::new().await;
    let foreign = v1::Entry { spiffe_id: "spiffe://other.org/x".into(), ..entry("b") };
    let reserved = v1::Entry { spiffe_id: "spiffe://example.org/chancery/server".into(), ..entry("c") };
    let long = v1::Entry { x509_ttl: 2 * 86_400, ..entry("d") };
    let past = v1::Entry { expires_at: 1, ..entry("e") };
    let alone = v1::Entry { federates_with: vec!["other.org".into()], ..entry("f") };
    let nameless = v1::Entry { id: String::new(), ..entry("g") };
    let results = house.create(vec![entry("a"), foreign, reserved, long, past, alone, nameless]).await;
    let refused: Vec<String> = results.iter().filter_map(|result| result.clone().err()).collect();
    assert!(
        refused[0].starts_with("InvalidArgument: spiffe_id spiffe://other.org/x is no ID of example.org"),
        "{refused:#?}"
    );
    assert!(refused[1].contains("is reserved: IDs under /chancery"), "{refused:#?}");
    assert!(refused[2].contains("a life of 2d was asked for, at most 1d is allowed"), "{refused:#?}");
    assert!(refused[3].contains("expires_at 1970-01-01T00:00:01Z is past"), "{refused:#?}");
    assert!(refused[4].contains("there is no bundle of other.org to federate with"), "{refused:#?}");
    assert_eq!(refused.len(), 5);
    assert_eq!(results[0].as_ref().unwrap().created_at, house.clock.now().unix());
    assert_eq!(results[6].as_ref().unwrap().id.len(), 32);
}

#[tokio::test]
async fn a_selector_that_no_process_can_have_is_refused() {
    let house = House::new().await;
    let with = |selector: &str| v1::Entry { selectors: vec![selector.into()], ..entry("a") };
    let refused = house.create(vec![with("unix:uid:web")]).await.remove(0).unwrap_err();
    assert!(refused.starts_with("InvalidArgument: selector \"unix:uid:web\" matches no process: "), "{refused}");
    let refused = house.create(vec![with("unix:uuid:1")]).await.remove(0).unwrap_err();
    assert!(refused.contains("unix has uid, user, gid"), "{refused}");
    assert!(house.create(vec![with("elsewhere:anything")]).await[0].is_ok());
    let request = house.ask(v1::UpdateEntriesRequest { entries: vec![with("unix:path:web")], ..Default::default() });
    let refused = outcomes(house.door.update_entries(request).await.unwrap().into_inner()).remove(0).unwrap_err();
    assert!(refused.contains("must be absolute"), "{refused}");
}

#[tokio::test]
async fn a_parent_that_nobody_is_yet_is_warned_of() {
    let house = House::new().await;
    let warnings = async |entries| {
        let request = house.ask(v1::CreateEntriesRequest { entries, ..Default::default() });
        let results = house.door.create_entries(request).await.unwrap().into_inner().results;
        results.into_iter().map(|result| result.warning).collect::<Vec<_>>()
    };
    let parent = |name: &str, parent: &str| v1::Entry { parent: parent.into(), ..entry(name) };
    let alias = "spiffe://example.org/racks";
    let expected = |id: &str| format!("no agent or node alias has the ID {id} yet");
    assert_eq!(warnings(vec![entry("a"), parent("b", alias)]).await, [expected(AGENT), expected(alias)]);
    house.node("1", house.clock.now().plus(DAY), false).await;
    let server = "spiffe://example.org/chancery/server";
    assert_eq!(warnings(vec![parent("racks", server)]).await, [""]);
    assert_eq!(warnings(vec![entry("c"), parent("d", alias)]).await, ["", ""]);
    let entries = vec![v1::Entry { hint: "x".into(), ..parent("c", "spiffe://example.org/none") }];
    let request = house.ask(v1::UpdateEntriesRequest { entries, ..Default::default() });
    let updated = house.door.update_entries(request).await.unwrap().into_inner();
    assert_eq!(updated.results[0].warning, expected("spiffe://example.org/none"));
}

#[tokio::test]
async fn a_program_without_its_user_is_warned_of() {
    let house = House::new().await;
    house.node("1", house.clock.now().plus(DAY), false).await;
    let hash = format!("unix:sha256:{}", "0".repeat(64));
    let warning = "unix:path and unix:sha256 say what program a process runs now, which any user of the node may: add \
                   unix:uid or unix:user";
    for (selectors, expected) in [
        (vec!["unix:path:/usr/bin/web"], warning),
        (vec![hash.as_str(), "unix:gid:1000"], warning),
        (vec!["unix:path:/usr/bin/web", "unix:uid:1000"], ""),
        (vec![hash.as_str(), "unix:user:web"], ""),
        (vec!["unix:gid:1000"], ""),
    ] {
        let selectors = selectors.into_iter().map(str::to_owned).collect();
        let entries = vec![v1::Entry { id: String::new(), selectors, ..entry("web") }];
        let request = house.ask(v1::CreateEntriesRequest { entries, ..Default::default() });
        let created = house.door.create_entries(request).await.unwrap().into_inner();
        assert_eq!(created.results[0].warning, expected);
    }
}

#[tokio::test]
async fn the_same_entry_twice_names_the_other() {
    let house = House::new().await;
    assert!(house.create(vec![entry("a")]).await[0].is_ok());
    let twin = v1::Entry { id: "twin".into(), ..entry("a") };
    let again = v1::Entry { spiffe_id: "spiffe://example.org/x".into(), ..entry("a") };
    let within = v1::Entry { id: "within".into(), ..entry("b") };
    let results = house.create(vec![twin, entry("b"), again, within]).await;
    assert_eq!(
        results[0].clone().unwrap_err(),
        "AlreadyExists: entry a has the same SPIFFE ID, parent and selectors already: update that one"
    );
    assert!(results[1].is_ok(), "one that is refused stops no other");
    assert_eq!(
        results[2].clone().unwrap_err(),
        "AlreadyExists: there is an entry a already: choose another ID, or update it"
    );
    assert!(results[3].clone().unwrap_err().contains("entry b has the same SPIFFE ID"));
    // After an update the old place is free, and the new one taken.
    let moved = v1::Entry { spiffe_id: "spiffe://example.org/moved".into(), ..entry("a") };
    let updated = house.door.update_entries(
        house.ask(v1::UpdateEntriesRequest { entries: vec![moved, entry("none")], ..Default::default() }),
    );
    let updated = outcomes(updated.await.unwrap().into_inner());
    assert!(updated[0].is_ok());
    assert!(updated[1].clone().unwrap_err().starts_with("NotFound: there is no entry none"));
    let twin = v1::Entry { id: "twin".into(), ..entry("a") };
    assert!(house.create(vec![twin]).await[0].is_ok());
    let deleted = house.door.delete_entries(house.ask(v1::DeleteEntriesRequest { ids: vec!["a".into(), "a".into()] }));
    let deleted = outcomes(deleted.await.unwrap().into_inner());
    assert!(deleted[0].is_ok() && deleted[1].clone().unwrap_err().contains("is in this request twice"));
}

#[tokio::test]
async fn a_thousand_entries_are_created_listed_by_pages_and_counted() {
    let house = House::new().await;
    let many = (0..1000).map(|n| entry(&format!("e{n:04}"))).collect();
    assert!(house.create(many).await.iter().all(Result::is_ok));
    let (mut page, mut seen) = (String::new(), Vec::new());
    loop {
        let request = v1::ListEntriesRequest { page_size: 300, page, ..v1::ListEntriesRequest::default() };
        let answer = house.door.list_entries(house.ask(request)).await.unwrap().into_inner();
        seen.extend(answer.entries.into_iter().map(|entry| entry.id));
        page = answer.next_page;
        if page.is_empty() {
            break;
        }
    }
    assert_eq!(seen, (0..1000).map(|n| format!("e{n:04}")).collect::<Vec<_>>());
    let count = async |filter| {
        let request = house.ask(v1::CountEntriesRequest { filter: Some(filter) });
        house.door.count_entries(request).await.unwrap().into_inner().count
    };
    assert_eq!(count(v1::EntryFilter { parent: AGENT.into(), ..Default::default() }).await, 1000);
    assert_eq!(
        count(v1::EntryFilter { spiffe_id: "spiffe://example.org/e0007".into(), ..Default::default() }).await,
        1
    );
    assert_eq!(count(v1::EntryFilter { admin: Some(true), ..Default::default() }).await, 0);
    let large = v1::ListEntriesRequest { page_size: 1001, ..Default::default() };
    let message = words(house.door.list_entries(house.ask(large)).await);
    assert_eq!(message, "InvalidArgument: page_size is 1001: at most 1000 is allowed");
    let more = (0..1001).map(|n| entry(&format!("f{n}"))).collect();
    let message = words(
        house.door.create_entries(house.ask(v1::CreateEntriesRequest { entries: more, ..Default::default() })).await,
    );
    assert!(message.starts_with("FailedPrecondition: there are 1000 entries, and 2000 are allowed"), "{message}");
}

#[tokio::test]
async fn agents_are_banned_evicted_and_purged() {
    let house = House::new().await;
    let now = house.clock.now();
    let id = house.node("1", now.plus(DAY), false).await;
    house.node("old", now.minus(10 * DAY), false).await;
    house.node("bad", now.minus(10 * DAY), true).await;
    let banned = house.door.ban_agent(house.ask(v1::BanAgentRequest { id: id.clone() })).await.unwrap().into_inner();
    let again = house.door.ban_agent(house.ask(v1::BanAgentRequest { id: id.clone() })).await.unwrap().into_inner();
    assert_eq!(again.revision, banned.revision, "it is so already");
    let filter = Some(v1::AgentFilter { banned: Some(true), ..Default::default() });
    let listed = house.door.list_agents(house.ask(v1::ListAgentsRequest { filter, ..Default::default() }));
    assert_eq!(listed.await.unwrap().into_inner().agents.len(), 2);
    let purged = house.door.purge_agents(house.ask(v1::PurgeAgentsRequest { expired_for: 9 * 86_400 }));
    assert_eq!(purged.await.unwrap().into_inner().purged, 1, "banned ones stay");
    house.door.evict_agent(house.ask(v1::EvictAgentRequest { id: id.clone() })).await.unwrap();
    let message = words(house.door.show_agent(house.ask(v1::ShowAgentRequest { id })).await);
    assert_eq!(message, format!("NotFound: there is no agent {AGENT}: list them with \"chancery agent list\""));
}

#[tokio::test]
async fn tokens_are_shown_once_listed_and_revoked() {
    let house = House::new().await;
    let request = v1::CreateJoinTokenRequest { ttl: 0, alias: "spiffe://example.org/racks".into() };
    let made = house.door.create_join_token(house.ask(request)).await.unwrap().into_inner();
    assert_eq!(made.expires_at, house.clock.now().unix() + 600);
    assert!(join_token::hash(&made.token).starts_with(&made.id));
    let listed = house.door.list_join_tokens(house.ask(v1::ListJoinTokensRequest {})).await.unwrap().into_inner();
    assert_eq!((listed.tokens.len(), listed.tokens[0].id.as_str()), (1, made.id.as_str()));
    let create = async |ttl, alias: &str| {
        words(house.door.create_join_token(house.ask(v1::CreateJoinTokenRequest { ttl, alias: alias.into() })).await)
    };
    assert!(create(86_401, "").await.contains("at most 1d is allowed"));
    assert!(create(0, "spiffe://example.org/chancery/server").await.contains("can be no node alias"));
    let revoke = || house.ask(v1::RevokeJoinTokenRequest { id: made.id.clone() });
    house.door.revoke_join_token(revoke()).await.unwrap();
    assert!(words(house.door.revoke_join_token(revoke()).await).starts_with("NotFound: there is no join token"));
    for _ in 0..2 {
        house.door.create_join_token(house.ask(v1::CreateJoinTokenRequest::default())).await.unwrap();
    }
    assert!(create(0, "").await.starts_with("FailedPrecondition: there are 2 join tokens"));
    // What an operator did is on record; the token itself is not.
    let House { door, writer, audit, .. } = house;
    drop(door);
    writer.finish();
    let lines = std::fs::read_to_string(audit.path()).unwrap();
    assert!(lines.contains("\"rpc\":\"RevokeJoinToken\",\"who\":\"uid:1000\",\"outcome\":\"changed\""), "{lines}");
    assert!(!lines.contains(&made.token) && lines.contains(&made.id));
}

#[tokio::test]
async fn bundles_are_set_federated_with_and_deleted() {
    let house = House::new().await;
    let own = house.door.show_bundle(house.ask(v1::ShowBundleRequest::default())).await.unwrap().into_inner();
    assert_eq!((own.trust_domain.as_str(), own.x509_authorities.len()), ("example.org", 1));
    let set = async |bundle| house.door.set_bundle(house.ask(v1::SetBundleRequest { bundle: Some(bundle) })).await;
    assert!(words(set(own.clone()).await).contains("is our own"));
    set(v1::Bundle { trust_domain: "other.org".into(), ..own.clone() }).await.unwrap();
    let federated = v1::Entry { federates_with: vec!["other.org".into()], ..entry("a") };
    assert!(house.create(vec![federated]).await[0].is_ok());
    let delete = async |dissociate| {
        let request = v1::DeleteBundleRequest { trust_domain: "other.org".into(), dissociate };
        house.door.delete_bundle(house.ask(request)).await
    };
    assert_eq!(
        words(delete(false).await),
        "FailedPrecondition: 1 entry federates with other.org, the first is a: update them, or delete with --dissociate"
    );
    delete(true).await.unwrap();
    let shown = house.door.show_entry(house.ask(v1::ShowEntryRequest { id: "a".into() })).await.unwrap().into_inner();
    assert!(shown.federates_with.is_empty());
    assert!(words(delete(true).await).starts_with("NotFound: there is no bundle of other.org"));
}

#[tokio::test]
async fn authorities_are_prepared_activated_tainted_and_revoked() {
    let house = House::new().await;
    let list = async || {
        let answer = house.door.list_authorities(house.ask(v1::ListAuthoritiesRequest {})).await;
        let mut authorities = answer.unwrap().into_inner().authorities;
        authorities.retain(|authority| authority.kind == "x509");
        authorities
    };
    let first = list().await.remove(0);
    assert_eq!((first.state.as_str(), first.owner.as_str()), ("active", "main"));
    assert!(first.next_change_at > house.clock.now().unix());
    let info = house.door.server_info(house.ask(v1::ServerInfoRequest {})).await.unwrap().into_inner();
    assert_eq!(info.ca_fingerprint, first.fingerprint);
    let by = |id: &str| house.ask(v1::AuthorityRequest { id: id.into(), ..Default::default() });
    let made =
        house.door.prepare_authority(house.ask(v1::PrepareAuthorityRequest::default())).await.unwrap().into_inner();
    let second = made.authority.unwrap();
    assert_eq!(second.state, "prepared");
    assert!(
        words(house.door.prepare_authority(house.ask(v1::PrepareAuthorityRequest::default())).await)
            .contains("prepared already")
    );
    house.door.activate_authority(by(&second.id)).await.unwrap();
    house.door.taint_authority(by(&first.id)).await.unwrap();
    assert!(list().await.iter().any(|authority| authority.id == first.id && authority.tainted));
    // An agent that has not replaced what it holds below the authority would lose it.
    let stream = house.door.doors.connected.open(SpiffeId::parse(AGENT).unwrap());
    let (refused, ()) = tokio::join!(house.door.revoke_authority(by(&first.id)), house.passes(Duration::from_secs(5)));
    assert_eq!(
        words(refused),
        format!(
            "FailedPrecondition: 1 agents have not yet replaced the SVIDs below authority {}: wait (authority taint \
             --wait), or revoke with --force",
            first.id
        )
    );
    let force = house.ask(v1::AuthorityRequest { id: first.id.clone(), force: true });
    house.door.revoke_authority(force).await.unwrap();
    assert_eq!(list().await.len(), 1);

    // One that has is in nobody's way.
    let made =
        house.door.prepare_authority(house.ask(v1::PrepareAuthorityRequest::default())).await.unwrap().into_inner();
    house.door.activate_authority(by(&made.authority.unwrap().id)).await.unwrap();
    let revision = house.door.taint_authority(by(&second.id)).await.unwrap().into_inner().revision;
    stream.considered(revision, true);
    // It says so while the revoke is under way: an agent that was about to come back is waited for.
    let says_so = async { stream.acknowledged(revision) };
    let (revoked, ()) = tokio::join!(house.door.revoke_authority(by(&second.id)), says_so);
    revoked.unwrap();
    assert_eq!(list().await.len(), 1);
    assert!(words(house.door.taint_authority(by("none")).await).starts_with("NotFound: there is no authority none"));
}

#[tokio::test]
async fn svids_are_minted_for_anyone_but_our_own() {
    let house = House::new().await;
    let key = spiffe::crypto::generate_key(KeyType::P256).unwrap();
    let csr = spiffe::csr::create(&key).unwrap();
    let mint = async |id: &str, ttl| {
        let request = v1::MintX509SvidRequest {
            spiffe_id: id.into(),
            csr: csr.clone().into(),
            ttl,
            dns_names: vec!["a.org".into()],
        };
        house.door.mint_x509_svid(house.ask(request)).await
    };
    let svid = mint("spiffe://example.org/job", 60).await.unwrap().into_inner();
    let chain = svid.chain.iter().map(|der| der.to_vec().into()).collect();
    let svid = spiffe::x509_svid::X509Svid::parse(chain).unwrap();
    svid.verify(house.door.doors.views.load().bundle(), house.clock.now()).unwrap();
    assert!(words(mint("spiffe://example.org/chancery/server", 60).await).starts_with("PermissionDenied: "));
    assert!(words(mint("spiffe://example.org/job", 2 * 86_400).await).contains("at most 1d is allowed"));
}

#[tokio::test]
async fn a_wait_ends_when_the_agents_have_it_or_the_time_is_up() {
    let house = House::new().await;
    let agent = SpiffeId::parse(AGENT).unwrap();
    let stream = house.door.doors.connected.open(agent);
    let revision = house.door.doors.views.load().revision();
    let wait = || house.door.wait_applied(house.ask(v1::WaitAppliedRequest { revision, timeout: 30 }));
    let (answer, ()) = tokio::join!(wait(), house.passes(Duration::from_secs(30)));
    assert_eq!(answer.unwrap().into_inner().behind, [AGENT]);
    let applied = async {
        stream.considered(revision, true);
        stream.acknowledged(revision);
    };
    let (answer, ()) = tokio::join!(wait(), applied);
    assert!(answer.unwrap().into_inner().behind.is_empty());
}

#[tokio::test]
async fn what_has_expired_is_forgotten_by_itself() {
    let house = House::new().await;
    let now = house.clock.now();
    house.node("old", now.minus(31 * DAY), false).await;
    let brief = v1::Entry { expires_at: now.plus(DAY).unix(), ..entry("brief") };
    assert!(house.create(vec![brief.clone(), entry("stays")]).await.iter().all(Result::is_ok));
    house.door.create_join_token(house.ask(v1::CreateJoinTokenRequest::default())).await.unwrap();
    house.clock.advance(2 * DAY);
    let doors = &house.door.doors;
    let (store, views, clock) = (doors.store.clone(), doors.views.clone(), doors.clock.clone());
    let pruning = tokio::spawn(prune::run(store, views, doors.audit.clone(), clock, 30 * DAY));
    let views = &house.door.doors.views;
    for _ in 0..10_000 {
        let view = views.load();
        if view.node_count() == 0 && view.entry_count() == 1 && view.tokens().count() == 0 {
            break;
        }
        tokio::task::yield_now().await;
    }
    pruning.abort();
    let view = views.load();
    assert_eq!((view.node_count(), view.entry_count(), view.tokens().count()), (0, 1, 0));
    // Its place is free again.
    let anew = v1::Entry { id: "anew".into(), expires_at: 0, ..brief };
    assert!(house.create(vec![anew]).await[0].is_ok());
}
