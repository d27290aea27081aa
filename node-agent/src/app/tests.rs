//! The whole agent against a server that behaves, asked through its socket as a workload does.

use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use spiffe::entry::{EntryId, RegistrationEntry};
use spiffe::proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use spiffe::proto::workload::{X509svidRequest, X509svidResponse};
use spiffe::selector::Selectors;
use spiffe::time::Timestamp;
use spiffe::x509_svid::X509Svid;
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio_util::sync::DropGuard;
use tonic::Streaming;

use super::*;
use crate::config::Address;
use crate::test_house::House;

mod deliver;
mod tokens;

const NOW: Timestamp = Timestamp::from_unix(1_800_000_000);
const MINUTE: Duration = Duration::from_secs(60);

fn entry(name: &str) -> RegistrationEntry {
    let domain = spiffe::id::TrustDomain::parse("example.org").unwrap();
    RegistrationEntry {
        id: EntryId::parse(name).unwrap(),
        spiffe_id: domain.member(&format!("/{name}")).unwrap(),
        parent: domain.agent_id("join_token", "node").unwrap(),
        selectors: Selectors::parse([format!("unix:uid:{}", nix::unistd::getuid())]).unwrap(),
        x509_ttl: None,
        jwt_ttl: None,
        wit_ttl: None,
        jti: false,
        dns_names: Vec::new(),
        hint: String::new(),
        admin: false,
        federates_with: Vec::new(),
        expires_at: None,
        key_type: None,
        created_at: NOW,
        rule: None,
    }
}

fn config(house: &House, place: &TempDir, address: &Address, token: &str) -> Config {
    let (place, fingerprint) = (place.path().display(), spiffe::crypto::hex(&house.fingerprint()));
    let text = format!(
        "trust_domain = 'example.org'\nservers = ['127.0.0.1:1', '{address}']\ndata_dir = '{place}/data'\n\
         workload_socket = '{place}/agent.sock'\nca_fingerprint = 'sha256:{fingerprint}'\n\
         health_listen = '127.0.0.1:0'\n[attest]\nkind = 'join_token'\ntoken = '{token}'\n\
         [limits]\nfirst_answer = '1d'\n"
    );
    Config::parse(&text, []).unwrap()
}

async fn start(house: &House, config: Config) -> Result<Agent, AppError> {
    Agent::start(config, Arc::new(house.clock())).await
}

/// Lets the clock of the house run, a second in each two milliseconds.
fn tick(house: &House) -> DropGuard {
    let (clock, stop) = (house.clock(), CancellationToken::new());
    let until = stop.clone();
    tokio::spawn(async move {
        while !until.is_cancelled() {
            System.sleep(Duration::from_millis(2)).await;
            clock.advance(Duration::from_secs(1));
        }
    });
    stop.drop_guard()
}

/// A workload's stream of X.509-SVIDs.
struct Workload(Streaming<X509svidResponse>);

impl Workload {
    async fn open(agent: &Agent) -> Self {
        let path = agent.workload_socket().to_owned();
        let connector = tower::service_fn(move |_: http::Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let endpoint = tonic::transport::Endpoint::from_static("http://localhost");
        let channel = endpoint.connect_with_connector(connector).await.unwrap();
        let mut request = tonic::Request::new(X509svidRequest {});
        request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
        Self(SpiffeWorkloadApiClient::new(channel).fetch_x509svid(request).await.unwrap().into_inner())
    }

    async fn next(&mut self) -> Vec<X509Svid> {
        let message = soon(self.0.message()).await.unwrap().expect("the stream goes on");
        let parse = |der: &[u8]| X509Svid::parse(vec![der.to_vec().into()]).unwrap();
        message.svids.iter().map(|svid| parse(&svid.x509_svid)).collect()
    }
}

#[expect(clippy::disallowed_methods, reason = "a test that hangs should say so")]
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("it takes too long")
}

async fn until(what: impl Fn() -> bool) {
    soon(async {
        while !what() {
            System.sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn from_a_token_to_rotating_svids() {
    let (house, place) = (House::new(NOW), TempDir::new().unwrap());
    house.state().tokens.insert("abc".into());
    house.state().entries.push(entry("web"));
    let serving = house.serve(None).await;
    let mut agent = start(&house, config(&house, &place, &serving.address, "abc")).await.unwrap();
    assert_eq!(agent.id().as_str(), "spiffe://example.org/chancery/agent/join_token/node");
    let mut workload = Workload::open(&agent).await;
    let first = workload.next().await;
    assert_eq!(first[0].id().path(), "/web");

    // A change reaches the open stream, and is acknowledged.
    house.change(|state| state.entries.push(entry("api")));
    let both = workload.next().await;
    assert_eq!(both.iter().map(|svid| svid.id().path()).collect::<Vec<_>>(), ["/api", "/web"]);
    until(|| house.state().acknowledged == house.revision()).await;
    house.change(|state| state.entries.retain(|entry| entry.id.as_str() != "api"));
    assert_eq!(workload.next().await.len(), 1);

    // Two hours: the workload's SVID and the agent's own are renewed, always in time.
    let _ticking = tick(&house);
    let mut last = first;
    while last[0].lifetime().not_after < NOW.plus(120 * MINUTE) {
        let next = workload.next().await;
        assert!(next[0].lifetime().not_before < last[0].lifetime().not_after);
        assert_ne!(next[0].serial(), last[0].serial());
        last = next;
    }
    until(|| house.state().renewals >= 2).await;
    assert!(agent.metrics().render().contains("chancery_agent_subscribers 1\n"));
    agent.stopper().cancel();
    soon(agent.finished()).await.unwrap();
    assert!(!agent.workload_socket().exists());
}

#[tokio::test]
async fn a_server_that_is_gone_changes_nothing_until_svids_expire() {
    let (house, place) = (House::new(NOW), TempDir::new().unwrap());
    house.state().tokens.insert("abc".into());
    house.state().entries.push(entry("web"));
    let serving = house.serve(None).await;
    let address = serving.address.clone();
    let agent = start(&house, config(&house, &place, &address, "abc")).await.unwrap();
    Workload::open(&agent).await.next().await;
    drop(serving);
    until(|| agent.metrics().connected.get() == 0).await;
    assert_eq!(Workload::open(&agent).await.next().await[0].id().path(), "/web");

    // It comes back with news.
    let _ticking = tick(&house);
    house.change(|state| state.entries.push(entry("api")));
    let mut workload = Workload::open(&agent).await;
    assert_eq!(workload.next().await.len(), 1);
    let _serving = house.serve(Some(&address)).await;
    while workload.next().await.len() < 2 {}
    soon(agent.shutdown()).await.unwrap();
}

#[tokio::test]
async fn a_restart_needs_no_token_and_no_server() {
    let (house, place) = (House::new(NOW), TempDir::new().unwrap());
    house.state().tokens.insert("abc".into());
    house.state().entries.push(entry("web"));
    let serving = house.serve(None).await;
    let config = config(&house, &place, &serving.address, "abc");
    let agent = start(&house, config.clone()).await.unwrap();
    let id = agent.id().clone();
    soon(agent.shutdown()).await.unwrap();
    let address = serving.address.clone();
    drop(serving);
    let agent = start(&house, config.clone()).await.unwrap();
    assert_eq!(*agent.id(), id);
    // Nobody is told "no" by an agent that knows nothing yet.
    let server_is_back = async {
        System.sleep(Duration::from_millis(100)).await;
        (house.serve(Some(&address)).await, tick(&house))
    };
    let (mut workload, (_serving, ticking)) = tokio::join!(Workload::open(&agent), server_is_back);
    assert_eq!(workload.next().await[0].id().path(), "/web");
    soon(agent.shutdown()).await.unwrap();
    drop(ticking);

    // After the stored SVID's end the token is asked for, and was used.
    house.clock().advance(600 * MINUTE);
    let error = start(&house, config).await.unwrap_err().to_string();
    assert!(error.contains("create another with \"chancery token create\""), "{error}");
}

#[tokio::test]
async fn a_banned_agent_serves_what_it_has_and_is_back_when_it_may() {
    let (house, place) = (House::new(NOW), TempDir::new().unwrap());
    house.state().tokens.insert("abc".into());
    house.state().entries.push(entry("web"));
    let serving = house.serve(None).await;
    let agent = start(&house, config(&house, &place, &serving.address, "abc")).await.unwrap();
    let mut workload = Workload::open(&agent).await;
    workload.next().await;
    house.change(|state| state.banned = true);
    until(|| agent.metrics().connected.get() == 0).await;
    assert_eq!(Workload::open(&agent).await.next().await.len(), 1);
    house.change(|state| {
        state.banned = false;
        state.entries.push(entry("api"));
    });
    let _ticking = tick(&house);
    while workload.next().await.len() < 2 {}
    soon(agent.shutdown()).await.unwrap();
}

#[tokio::test]
async fn one_refused_entry_keeps_nobody_else_waiting() {
    let (house, place) = (House::new(NOW), TempDir::new().unwrap());
    house.state().tokens.insert("abc".into());
    house.state().entries.extend([entry("bad"), entry("web")]);
    house.state().refused_entries.insert("bad".into());
    let serving = house.serve(None).await;
    let agent = start(&house, config(&house, &place, &serving.address, "abc")).await.unwrap();
    let svids = Workload::open(&agent).await.next().await;
    assert_eq!(svids.iter().map(|svid| svid.id().path()).collect::<Vec<_>>(), ["/web"]);
    assert_eq!(house.state().batches, [2], "one call for both");
    soon(agent.shutdown()).await.unwrap();
}

#[tokio::test]
async fn an_agent_that_cannot_serve_uses_up_no_token() {
    let (house, place) = (House::new(NOW), TempDir::new().unwrap());
    house.state().tokens.insert("abc".into());
    let serving = house.serve(None).await;
    std::fs::write(place.path().join("agent.sock"), "no socket").unwrap();
    let error = start(&house, config(&house, &place, &serving.address, "abc")).await.unwrap_err();
    assert!(matches!(error, AppError::Api(ApiError::NotASocket(_))), "{error}");
    assert!(house.state().tokens.contains("abc"));
}

#[tokio::test]
async fn a_second_agent_on_the_same_folder_is_turned_away_until_the_first_has_stopped() {
    let (house, place) = (House::new(NOW), TempDir::new().unwrap());
    house.state().tokens.insert("abc".into());
    let serving = house.serve(None).await;
    let mut config = config(&house, &place, &serving.address, "abc");
    let agent = start(&house, config.clone()).await.unwrap();
    config.workload_socket = place.path().join("other.sock");
    let error = start(&house, config.clone()).await.unwrap_err().to_string();
    assert!(error.starts_with("another agent uses data_dir "), "{error}");
    soon(agent.shutdown()).await.unwrap();
    // It needs nothing to know the server by but what the first has stored.
    config.bootstrap = None;
    house.clock().advance(600 * MINUTE);
    house.state().tokens.insert("abc".into());
    soon(start(&house, config).await.unwrap().shutdown()).await.unwrap();
}
