//! Nodes come in by what they can prove, and go when an operator says so.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::time::Duration;

use spiffe::crypto::generate_key;
use spiffe::entry::KeyType;
use spiffe::proto::v1;
use tests::by_hand::{Caller, attest, stranger};
use tests::certificates::{self, Ca};
use tests::house::{House, id};
use tests::operator::entry;
use tests::patience::that;
use tests::{Node, Operator};
use tonic::Code;

const MINUTE: Duration = Duration::from_secs(60);

/// A house that takes certificates of a CA.
async fn with_nodes_ca() -> (House, Operator, Ca) {
    let mut house = House::empty(&[]);
    let ca = certificates::root("Nodes");
    let bundle = house.write("nodes.pem", ca.pem());
    house.set("attest.x509pop.ca_bundle", &bundle);
    house.start_server().await.unwrap();
    let operator = house.operator().await;
    (house, operator, ca)
}

async fn by_certificate(house: &House, ca: &Ca, kind: &str) -> Node {
    let key = certificates::node_key(kind);
    let certificate = certificates::params(kind).signed_by(&key, ca).unwrap();
    let mut node = Node::new(house, kind, &[("attest.kind", "x509pop")]).await;
    node.set("attest.certificates", &house.write(&format!("{kind}.pem"), certificate.pem()));
    node.set("attest.private_key", &house.write(&format!("{kind}.key"), key.serialize_pem()));
    node
}

async fn until_connected(house: &House, operator: &Operator, node: &Node, wanted: bool) {
    house
        .eventually("the agent is connected or not, as wanted", async || {
            let connected = operator.agent(&node.id()).await.map_err(|status| status.to_string())?.connected;
            that(connected == wanted, || format!("connected: {connected}"))
        })
        .await;
}

#[tokio::test]
async fn nodes_prove_themselves_by_certificates_with_keys_of_every_kind() {
    let (house, operator, ca) = with_nodes_ca().await;
    for kind in ["rsa", "p256", "p384", "ed25519"] {
        let mut node = by_certificate(&house, &ca, kind).await;
        node.start_agent(&house).await.unwrap();
        assert!(node.id().path().starts_with("/chancery/agent/x509pop/"), "{}", node.id());
        until_connected(&house, &operator, &node, true).await;
        let agent = operator.agent(&node.id()).await.unwrap();
        assert!(agent.selectors.contains(&format!("x509pop:subject:cn:{kind}")), "{:?}", agent.selectors);
        node.stop_agent().await;
    }
    assert_eq!(operator.agents().await.len(), 4);
}

#[tokio::test]
async fn an_alias_by_what_the_certificate_says_gives_entries_to_the_node() {
    let (house, operator, ca) = with_nodes_ca().await;
    let mut node = by_certificate(&house, &ca, "p256").await;
    node.start_agent(&house).await.unwrap();
    let alias = v1::Entry {
        spiffe_id: id("/racks").to_string(),
        parent: tests::house::trust_domain().server_id().to_string(),
        selectors: vec!["x509pop:subject:cn:p256".into()],
        ..v1::Entry::default()
    };
    operator.register(entry(&id("/racks"), "/web")).await;
    operator.register(alias).await;
    let workload = node.workload(&house).await;
    let context = house.eventually("it counts", async || workload.context()).await;
    assert_eq!(context.paths(), ["/web"]);
}

#[tokio::test]
async fn a_banned_agent_is_cut_off_and_stays_out_until_it_is_evicted() {
    let (house, mut operator, ca) = with_nodes_ca().await;
    let mut node = by_certificate(&house, &ca, "p256").await;
    node.start_agent(&house).await.unwrap();
    operator.register(entry(&node.id(), "/web")).await;
    let workload = node.workload(&house).await;
    house.eventually("the SVID comes", async || workload.context()).await;

    operator.door.ban_agent(v1::BanAgentRequest { id: node.id().to_string() }).await.unwrap();
    until_connected(&house, &operator, &node, false).await;
    let serial = workload.context().unwrap().first().svid.serial().to_vec();
    for _ in 0..5 {
        house.jump(10 * MINUTE);
        tests::patience::eventually("the agent has tried", async || {
            that(house.clock.next_wake().is_some(), String::new)
        })
        .await;
        let agent = operator.agent(&node.id()).await.unwrap();
        assert!(agent.banned && !agent.connected);
        assert_eq!(workload.context().unwrap().first().svid.serial(), serial, "nothing is renewed");
    }
    // A restart is no way around it.
    node.stop_agent().await;
    std::fs::remove_dir_all(house.path("p256")).unwrap();
    let refused = node.start_agent(&house).await.unwrap_err();
    assert!(refused.contains("is banned: an operator can lift it with \"chancery agent evict "), "{refused}");

    let banned = operator.agents().await.remove(0).id;
    operator.door.evict_agent(v1::EvictAgentRequest { id: banned.clone() }).await.unwrap();
    node.start_agent(&house).await.unwrap();
    assert_eq!(node.id().to_string(), banned);
    until_connected(&house, &operator, &node, true).await;
    let workload = node.workload(&house).await;
    house.eventually("all is well again", async || workload.fresh(house.now())).await;
}

#[tokio::test]
async fn a_ban_ends_open_streams_and_refuses_renewals_at_once() {
    let house = House::start(&[]).await;
    let mut operator = house.operator().await;
    let agent = Caller::attest(&house).await;
    let mut syncing = agent.sync(&house).await.unwrap();
    syncing.incoming.message().await.unwrap().unwrap();
    // On a connection that is open already.
    let mut door = agent.door(&house).await.unwrap();
    let csr = spiffe::csr::create(&generate_key(KeyType::P256).unwrap()).unwrap();
    operator.door.ban_agent(v1::BanAgentRequest { id: agent.id().to_string() }).await.unwrap();

    let words = format!("agent {0} is banned: an operator can lift it with \"chancery agent evict {0}\"", agent.id());
    let ended = tests::patience::soon("the stream ends", async {
        loop {
            if let Err(status) = syncing.incoming.message().await {
                return status;
            }
        }
    })
    .await;
    assert_eq!((ended.code(), ended.message()), (Code::PermissionDenied, words.as_str()));
    let refused = door.renew(v1::RenewRequest { csr: csr.clone().into() }).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::PermissionDenied, words.as_str()));
}

#[tokio::test]
async fn an_evicted_agent_is_asked_to_attest_again_and_may() {
    let (house, mut operator, ca) = with_nodes_ca().await;
    let mut node = by_certificate(&house, &ca, "ed25519").await;
    node.start_agent(&house).await.unwrap();
    operator.register(entry(&node.id(), "/web")).await;
    let workload = node.workload(&house).await;
    house.eventually("the SVID comes", async || workload.context()).await;
    let before = operator.agent(&node.id()).await.unwrap().serial;
    let evicted = house.now();
    operator.door.evict_agent(v1::EvictAgentRequest { id: node.id().to_string() }).await.unwrap();
    until_connected(&house, &operator, &node, true).await;
    assert_ne!(operator.agent(&node.id()).await.unwrap().serial, before);
    assert!(house.now().since(evicted) <= MINUTE);
    house.live(60 * MINUTE, &operator, 60 * MINUTE, &[&workload]).await;
}

#[tokio::test]
async fn a_renewal_makes_older_svids_worthless_but_for_the_one_it_was_asked_with() {
    let house = House::start(&[]).await;
    let first = Caller::attest(&house).await;
    let renew = async |caller: &Caller| {
        let key = generate_key(KeyType::P256).unwrap();
        let csr = spiffe::csr::create(&key).unwrap();
        let response = caller.door(&house).await.unwrap().renew(v1::RenewRequest { csr: csr.into() }).await?;
        let svid = tests::by_hand::parse(response.into_inner().svid.unwrap());
        Ok::<_, tonic::Status>(Caller { svid, key: key.serialize_der() })
    };
    let second = renew(&first).await.unwrap();
    assert_eq!(second.id(), first.id());
    let third = renew(&second).await.unwrap();
    let refused = renew(&first).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert_eq!(
        refused.message(),
        format!("agent {} has a newer SVID than this one: use that, or attest again", first.id())
    );
    renew(&third).await.unwrap();
}

#[tokio::test]
async fn agents_expired_for_long_are_purged_but_not_the_banned() {
    let house = House::start(&[]).await;
    let mut operator = house.operator().await;
    let (_gone, banned) = (Caller::attest(&house).await, Caller::attest(&house).await);
    operator.door.ban_agent(v1::BanAgentRequest { id: banned.id().to_string() }).await.unwrap();
    house.jump(Duration::from_secs(3 * 3600));
    let lives = Caller::attest(&house).await;
    let purged = operator.door.purge_agents(v1::PurgeAgentsRequest { expired_for: 3600 }).await.unwrap().into_inner();
    assert_eq!(purged.purged, 1);
    let mut left: Vec<_> = operator.agents().await.into_iter().map(|agent| agent.id).collect();
    left.sort();
    let mut expected = [banned.id().to_string(), lives.id().to_string()];
    expected.sort();
    assert_eq!(left, expected);
}

#[tokio::test]
async fn a_token_is_good_once_and_not_for_long_and_can_be_revoked() {
    let house = House::start(&[]).await;
    let mut operator = house.operator().await;
    let mut door = stranger(&house).await;
    let csr = || spiffe::csr::create(&generate_key(KeyType::P256).unwrap()).unwrap();
    let unknown = "join token is not known (used already, or revoked): create another with \"chancery token create\"";

    let token = operator.token("").await;
    attest(&mut door, "join_token", token.clone().into_bytes(), csr()).await.unwrap();
    let refused = attest(&mut door, "join_token", token.into_bytes(), csr()).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::PermissionDenied, unknown));

    let token = operator.token("").await;
    house.jump(13 * MINUTE);
    // A stranger does not stay that long.
    let mut door = stranger(&house).await;
    let refused = attest(&mut door, "join_token", token.into_bytes(), csr()).await.unwrap_err();
    // Expired ones are forgotten after a while.
    let expired = "join token expired 3 minutes ago: create another with \"chancery token create\"";
    assert!([expired, unknown].contains(&refused.message()), "{refused}");

    let token = operator.token("").await;
    let listed = operator.door.list_join_tokens(v1::ListJoinTokensRequest {}).await.unwrap().into_inner().tokens;
    for held in listed {
        operator.door.revoke_join_token(v1::RevokeJoinTokenRequest { id: held.id }).await.unwrap();
    }
    let refused = attest(&mut door, "join_token", token.into_bytes(), csr()).await.unwrap_err();
    assert_eq!(refused.message(), unknown);
}
