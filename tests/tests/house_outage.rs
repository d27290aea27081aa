//! What happens while the server is away, when it comes back, after restarts, and when clocks jump.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::time::Duration;

use spiffe::time::Timestamp;
use tests::certificates;
use tests::house::{House, Settings, id};
use tests::operator::entry;
use tests::patience::that;
use tests::workload::handshake;
use tests::{Node, Operator, Workload};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// A node whose workload holds `/web`.
async fn with_a_workload(settings: Settings<'_>) -> (House, Operator, Node, Workload) {
    let house = House::start(settings).await;
    let operator = house.operator().await;
    let node = Node::start(&house, "node", &[]).await;
    operator.register(entry(&node.id(), "/web")).await;
    let workload = node.workload(&house).await;
    house.eventually("the SVID comes", async || workload.context()).await;
    (house, operator, node, workload)
}

async fn connected(house: &House, node: &Node) {
    let operator = house.operator().await;
    house
        .eventually("the agent is connected", async || {
            let agent = operator.agent(&node.id()).await.map_err(|status| status.to_string())?;
            that(agent.connected, || "it is not".into())
        })
        .await;
}

#[tokio::test]
async fn while_the_server_is_away_workloads_keep_what_is_valid_and_new_streams_get_it_too() {
    let (mut house, operator, node, workload) = with_a_workload(House::ON_DISK).await;
    drop(operator);
    let serial = workload.context().unwrap().first().svid.serial().to_vec();
    house.stop_server().await;
    for _ in 0..10 {
        house.jump(5 * MINUTE);
        let newcomer = node.workload(&house).await;
        let context = house.eventually("a new stream is served", async || newcomer.context()).await;
        let identity = context.first();
        assert_eq!(identity.svid.serial(), serial);
        identity.svid.clone().verify(&identity.bundle, house.now()).unwrap();
        handshake(&workload, &newcomer).await.unwrap();
    }
    // The SVID has long been due. The server comes back.
    house.start_server().await.unwrap();
    let back = house.now();
    connected(&house, &node).await;
    house.eventually("the SVID is renewed", async || workload.fresh(house.now())).await;
    assert!(house.now().since(back) <= 15 * SECOND, "back within seconds: {:?}", house.now().since(back));
    let operator = house.operator().await;
    house.live(3 * HOUR, &operator, HOUR, &[&workload]).await;
    handshake(&workload, &workload).await.unwrap();
}

#[tokio::test]
async fn what_expires_while_the_server_is_away_is_no_longer_served() {
    let (mut house, operator, node, workload) = with_a_workload(&[("svid.ttl", "10m")]).await;
    drop(operator);
    house.stop_server().await;
    house.jump(11 * MINUTE);
    let newcomer = node.workload(&house).await;
    let status = house.eventually("a new stream is told to try again", async || newcomer.end()).await;
    assert_eq!(status.code(), tonic::Code::Unavailable, "{status}");
    // The old stream has been told nothing new that could be used.
    if let Ok(context) = workload.context() {
        let identity = context.first();
        identity.svid.clone().verify(&identity.bundle, house.now()).unwrap_err();
    }
}

#[tokio::test]
async fn an_agent_whose_own_svid_has_expired_attests_anew_by_its_certificate() {
    let mut house = House::empty(&[]);
    let ca = certificates::root("Nodes");
    let bundle = house.write("nodes.pem", ca.pem());
    house.set("attest.x509pop.ca_bundle", &bundle);
    house.set("store.kind", "sled");
    house.set("authority.keys", "disk");
    house.start_server().await.unwrap();
    let mut node = by_certificate(&house, &ca, "node").await;
    node.start_agent(&house).await.unwrap();
    let operator = house.operator().await;
    operator.register(entry(&node.id(), "/web")).await;
    let workload = node.workload(&house).await;
    house.eventually("the SVID comes", async || workload.context()).await;
    drop(operator);
    house.stop_server().await;
    house.jump(5 * HOUR);
    house.start_server().await.unwrap();
    let back = house.now();
    connected(&house, &node).await;
    house
        .eventually("a new stream has a fresh SVID", async || {
            let newcomer = node.workload(&house).await;
            tests::patience::eventually("it answers", async || newcomer.state().ok_or("not yet".into())).await.ok();
            newcomer.fresh(house.now())
        })
        .await;
    assert!(house.now().since(back) <= 6 * MINUTE, "{:?}", house.now().since(back));
}

#[tokio::test]
async fn an_agent_moves_on_when_the_first_server_of_its_list_is_dead() {
    let house = House::start(&[]).await;
    // A port that nobody listens on.
    let dead = std::net::SocketAddr::from(([127, 0, 0, 1], tests::binary::free_port()));
    let servers = format!("[\"{dead}\", \"{}\"]", house.address());
    let node = Node::start(&house, "node", &[("servers", &servers)]).await;
    connected(&house, &node).await;
    let operator = house.operator().await;
    operator.register(entry(&node.id(), "/web")).await;
    let workload = node.workload(&house).await;
    house.eventually("the SVID comes", async || workload.context()).await;
}

#[tokio::test]
async fn a_restarted_server_has_forgotten_nothing() {
    let (mut house, operator, node, workload) = with_a_workload(House::ON_DISK).await;
    let before = (operator.info().await, operator.authorities().await, operator.agents().await.len());
    drop(operator);
    for _ in 0..3 {
        house.stop_server().await;
        house.start_server().await.unwrap();
        connected(&house, &node).await;
    }
    let operator = house.operator().await;
    let after = operator.info().await;
    assert_eq!((after.entries, after.ca_fingerprint), (before.0.entries, before.0.ca_fingerprint));
    assert_eq!((operator.authorities().await.len(), operator.agents().await.len()), (before.1.len(), before.2));
    house.live(3 * HOUR, &operator, HOUR, &[&workload]).await;
    assert_eq!(workload.history().roots.len(), 1);
    // A token that was used before the restart is used after it.
    assert_eq!(
        operator
            .door
            .clone()
            .list_join_tokens(spiffe::proto::v1::ListJoinTokensRequest {})
            .await
            .unwrap()
            .into_inner()
            .tokens,
        []
    );
}

#[tokio::test]
async fn a_server_without_disk_comes_back_as_another_ca_and_is_not_trusted_by_mistake() {
    let (mut house, operator, _node, workload) = with_a_workload(&[]).await;
    drop(operator);
    house.stop_server().await;
    house.start_server().await.unwrap();
    house.jump(20 * MINUTE);
    let operator = house.operator().await;
    let root = operator.active().await.fingerprint;
    let context = workload.context().unwrap();
    assert!(context.first().bundle.x509_authorities().iter().all(|known| known.fingerprint() != root));
}

#[tokio::test]
async fn a_restarted_agent_needs_no_second_token() {
    let (house, operator, mut node, workload) = with_a_workload(&[]).await;
    let first = node.id();
    drop(workload);
    for round in 0..2 {
        node.stop_agent().await;
        assert!(!node.socket().exists(), "the socket goes with the agent");
        node.unset("attest.token");
        node.start_agent(&house).await.unwrap();
        assert_eq!(node.id(), first);
        let workload = node.workload(&house).await;
        house.eventually("all identities come back", async || workload.context()).await;
        house.jump(if round == 0 { 40 * MINUTE } else { SECOND });
        house.eventually("and are renewed", async || workload.fresh(house.now())).await;
        connected(&house, &node).await;
    }
    assert_eq!(operator.agents().await.len(), 1);
}

#[tokio::test]
async fn a_clock_that_jumps_an_hour_forward_breaks_nothing_for_longer_than_seconds() {
    let (house, operator, node, workload) = with_a_workload(&[("svid.agent_ttl", "4h")]).await;
    house.live(5 * HOUR, &operator, 4 * HOUR, &[&workload]).await;
    house.jump(HOUR);
    let jumped = house.now();
    let recovered = recover(&house, &operator, &node, &workload).await;
    assert!(recovered.since(jumped) <= 30 * SECOND, "{:?}", recovered.since(jumped));
}

#[tokio::test]
async fn a_clock_that_jumps_an_hour_back_breaks_nothing_for_longer_than_minutes() {
    let (house, operator, node, workload) = with_a_workload(&[("svid.agent_ttl", "4h")]).await;
    house.live(5 * HOUR, &operator, 4 * HOUR, &[&workload]).await;
    house.jump_back(HOUR);
    let jumped = house.now();
    let recovered = recover(&house, &operator, &node, &workload).await;
    // Clocks are looked at each ten minutes at the latest.
    assert!(recovered.since(jumped) <= 11 * MINUTE, "{:?}", recovered.since(jumped));
}

#[tokio::test]
async fn a_clock_that_jumps_an_hour_back_before_the_ca_was_made_breaks_nothing_for_longer_than_minutes() {
    let (house, operator, node, workload) = with_a_workload(&[("svid.agent_ttl", "4h")]).await;
    house.live(10 * MINUTE, &operator, 4 * HOUR, &[&workload]).await;
    house.jump_back(HOUR);
    let jumped = house.now();
    let recovered = recover(&house, &operator, &node, &workload).await;
    assert!(recovered.since(jumped) <= 21 * MINUTE, "{:?}", recovered.since(jumped));
}

/// An SVID that is valid now, a handshake, and an agent that is connected; then three hours as if nothing had been.
async fn recover(house: &House, operator: &Operator, node: &Node, workload: &Workload) -> Timestamp {
    let mut looks = 0;
    house
        .eventually("there is a valid SVID", async || {
            looks += 1;
            if looks % 20 == 0 {
                house.jump(10 * SECOND);
            }
            let context = workload.fresh(house.now())?;
            let identity = context.first();
            let verified = identity.svid.clone().verify(&identity.bundle, house.now());
            verified.map(|_| ()).map_err(|error| error.to_string())
        })
        .await;
    let recovered = house.now();
    handshake(workload, workload).await.unwrap();
    connected(house, node).await;
    assert!(house.now().since(recovered) <= MINUTE);
    house.live(3 * HOUR, operator, 4 * HOUR, &[workload]).await;
    handshake(workload, workload).await.unwrap();
    assert_eq!(workload.context().unwrap().paths(), [id("/web").path()]);
    recovered
}

/// A node that proves itself by a P-256 certificate of `ca`.
async fn by_certificate(house: &House, ca: &certificates::Ca, name: &str) -> Node {
    let key = certificates::node_key("p256");
    let certificate = certificates::params(name).signed_by(&key, ca).unwrap();
    let mut node = Node::new(house, name, &[("attest.kind", "x509pop")]).await;
    node.set("attest.certificates", &house.write(&format!("{name}.pem"), certificate.pem()));
    node.set("attest.private_key", &house.write(&format!("{name}.key"), key.serialize_pem()));
    node
}
