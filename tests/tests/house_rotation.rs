//! The CA rotates, by itself and by order, and no workload ever notices more than a new bundle.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use spiffe::crypto::sha256_hex;
use spiffe::proto::v1;
use spiffe::time::Timestamp;
use tests::by_hand::Caller;
use tests::certificates;
use tests::house::{House, id};
use tests::operator::entry;
use tests::patience::that;
use tests::workload::handshake;
use tests::{Node, Operator, Workload};
use tonic::Code;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// Two nodes with one workload each, `/a` and `/b`.
struct Pair {
    house: House,
    operator: Operator,
    _nodes: [Node; 2],
    a: Workload,
    b: Workload,
}

impl Pair {
    async fn start(settings: tests::house::Settings<'_>) -> Self {
        Self::in_house(House::start(settings).await).await
    }

    async fn in_house(house: House) -> Self {
        let operator = house.operator().await;
        let nodes = [Node::start(&house, "one", &[]).await, Node::start(&house, "two", &[]).await];
        operator.register(entry(&nodes[0].id(), "/a")).await;
        operator.register(entry(&nodes[1].id(), "/b")).await;
        let (a, b) = (nodes[0].workload(&house).await, nodes[1].workload(&house).await);
        house.eventually("both have an SVID", async || a.context().and_then(|_| b.context())).await;
        Self { house, operator, _nodes: nodes, a, b }
    }

    /// Both workloads and all agents are as they should be at this moment.
    async fn settled(&self) -> Result<(), String> {
        let now = self.house.now();
        self.a.fresh(now)?;
        self.b.fresh(now)?;
        self.operator.settled(now, HOUR).await
    }

    /// Mutual TLS, each way.
    async fn shake_hands(&self) {
        let at = self.house.now();
        let seen = handshake(&self.a, &self.b).await.unwrap_or_else(|why| panic!("at {at}: {why}"));
        assert_eq!(seen, (id("/b"), id("/a")));
        let seen = handshake(&self.b, &self.a).await.unwrap_or_else(|why| panic!("at {at}: {why}"));
        assert_eq!(seen, (id("/a"), id("/b")));
    }

    /// Both workloads hold an SVID that is signed by this authority, and know as many roots.
    async fn signed_by(&self, authority: &v1::Authority, roots: usize) -> Result<(), String> {
        for workload in [&self.a, &self.b] {
            let context = workload.context()?;
            let identity = context.first();
            let root = identity.bundle.x509_authorities();
            that(root.len() == roots, || format!("{} roots", root.len()))?;
            let root = root.iter().find(|root| root.fingerprint() == authority.fingerprint);
            let root = root.ok_or("the root is not there yet")?.clone();
            let only = spiffe::bundle::Bundle::new(tests::house::trust_domain(), vec![root], 1, None).unwrap();
            identity.svid.clone().verify(&only, self.house.now()).map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_month_with_dozens_of_rotations_and_not_one_failed_handshake() {
    let pair = Pair::start(&[("authority.ca_ttl", "24h")]).await;
    let (house, operator) = (&pair.house, &pair.operator);
    pair.shake_hands().await;
    for _ in 0..30 * 24 * 3 {
        // Everything due within twenty minutes falls due at once.
        house
            .pass(20 * MINUTE, 20 * MINUTE, async || {
                pair.settled().await?;
                operator.rotated(house.now(), DAY).await
            })
            .await;
        pair.shake_hands().await;
    }
    let elapsed = house.now().since(tests::house::BEGINNING);
    assert!(elapsed >= 30 * DAY && elapsed < 30 * DAY + HOUR, "{elapsed:?}");
    for workload in [&pair.a, &pair.b] {
        let history = workload.history();
        // A renewal each 24 to 36 minutes, rounded up to 40, and one for each root that is gone.
        assert!((940..=1200).contains(&history.serials.len()), "{} serials", history.serials.len());
        assert_eq!(history.keys.len(), history.serials.len(), "a fresh key for each SVID");
        // A new CA each 12 hours: at half of the life of the one before, which began when that was prepared.
        assert!((59..=63).contains(&history.roots.len()), "{} roots", history.roots.len());
        assert!(history.intermediates.is_empty());
        let roots = workload.context().unwrap().first().bundle.x509_authorities().len();
        assert!((1..=3).contains(&roots), "{roots} roots at the end: old ones have left");
    }
}

#[tokio::test]
async fn an_operator_prepares_activates_taints_and_revokes() {
    let pair = Pair::start(&[]).await;
    let (house, operator) = (&pair.house, &pair.operator);
    let old = operator.active().await;
    pair.signed_by(&old, 1).await.unwrap();

    let refused = operator.taint(&old.id).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(refused.message(), format!("authority {} is active: prepare and activate another first", old.id));
    let refused = operator.revoke(&old.id).await.unwrap_err();
    assert_eq!(refused.message(), format!("authority {} is active: prepare and activate another first", old.id));

    let new = operator.prepare().await;
    assert_eq!(new.state, "prepared");
    house.eventually("every workload knows the new root", async || pair.signed_by(&old, 2).await).await;
    let serial = pair.a.context().unwrap().first().svid.serial().to_vec();
    let again = operator.door.clone().prepare_authority(v1::PrepareAuthorityRequest::default()).await.unwrap_err();
    assert_eq!(again.message(), format!("authority {} is prepared already: activate it, or revoke it first", new.id));

    operator.activate(&new.id).await.unwrap();
    assert_eq!(operator.active().await.id, new.id);
    assert_eq!(pair.a.context().unwrap().first().svid.serial(), serial, "what is valid stays");
    let refused = operator.revoke(&old.id).await.unwrap_err();
    assert!(refused.message().contains("taint it first, so that they are replaced, then revoke it"), "{refused}");

    let before = house.now();
    operator.taint(&old.id).await.unwrap();
    house.eventually("every SVID is reissued below the new root", async || pair.signed_by(&new, 2).await).await;
    house.eventually("the agents' own SVIDs too", async || pair.operator.settled(house.now(), HOUR).await).await;
    assert!(house.now().since(before) <= MINUTE, "promptly: {:?}", house.now().since(before));
    pair.shake_hands().await;

    let revoked = operator.revoke(&old.id).await.unwrap();
    house.eventually("every workload has lost the old root", async || pair.signed_by(&new, 1).await).await;
    house
        .eventually("the agents follow", async || {
            let behind = operator.behind(revoked.revision).await;
            that(behind.is_empty(), || format!("{behind:?}"))
        })
        .await;
    pair.shake_hands().await;
    // The agents still renew.
    house.live(2 * HOUR, operator, HOUR, &[&pair.a, &pair.b]).await;
    pair.shake_hands().await;
    assert_eq!(operator.authorities().await.len(), 1);
}

#[tokio::test]
async fn activation_waits_for_a_live_agent_that_lags() {
    let (house, operator, _node) = with_a_lagging_agent().await;
    let lagging = Caller::attest(&house).await;
    let mut syncing = lagging.sync(&house).await.unwrap();
    let snapshot = syncing.incoming.message().await.unwrap().unwrap();
    until_hour(&house, &operator, 16, 20).await;
    let prepared = operator.authorities_in("prepared").await;
    assert_eq!((prepared.len(), prepared[0].unacknowledged), (1, 1), "two thirds are over, and it waits");
    let before = house.now();
    syncing.acknowledge(snapshot.revision).await;
    let new = prepared[0].id.clone();
    house.eventually("it is activated", async || that(operator.active().await.id == new, || "not yet".into())).await;
    assert!(house.now().since(before) <= MINUTE);
}

#[tokio::test]
async fn activation_waits_no_longer_than_its_deadline() {
    let (house, operator, _node) = with_a_lagging_agent().await;
    let first = Caller::attest(&house).await;
    let _first = first.sync(&house).await.unwrap();
    until_hour(&house, &operator, 16, 15).await;
    let second = Caller::attest(&house).await;
    let _second = second.sync(&house).await.unwrap();
    until_hour(&house, &operator, 19, 55).await;
    let prepared = operator.authorities_in("prepared").await;
    assert_eq!(prepared.len(), 1, "five sixths are not over");
    house.jump(6 * MINUTE);
    house
        .eventually("it is activated at five sixths, known or not", async || {
            that(operator.active().await.id == prepared[0].id, || "not yet".into())
        })
        .await;
    assert!(operator.agent(second.id()).await.unwrap().connected, "the one that lags is still there");
}

/// It is half past twelve in the life of a CA of a day: the next is prepared, and known to the one agent.
async fn with_a_lagging_agent() -> (House, Operator, Node) {
    let house = House::start(&[("authority.ca_ttl", "24h"), ("svid.agent_ttl", "4h")]).await;
    let operator = house.operator().await;
    let node = Node::start(&house, "node", &[]).await;
    until_hour(&house, &operator, 11, 50).await;
    assert!(operator.authorities_in("prepared").await.is_empty(), "half is not over");
    until_hour(&house, &operator, 12, 30).await;
    house
        .eventually("the next is prepared and known to the agent", async || {
            let prepared = operator.authorities_in("prepared").await;
            that(prepared.first().is_some_and(|next| next.unacknowledged == 0), || format!("{prepared:?}"))
        })
        .await;
    (house, operator, node)
}

async fn until_hour(house: &House, operator: &Operator, hour: u64, minute: u64) {
    let at = Timestamp::from_unix(tests::house::BEGINNING.unix() + hour * 3600 + minute * 60);
    house
        .pass(at.since(house.now()), 5 * MINUTE, async || {
            // Of those whose agents renew: the ones made by hand do not.
            for agent in operator.agents().await {
                let left = agent.expires_at.saturating_sub(house.now().unix());
                let by_hand = agent.attested_at > tests::house::BEGINNING.unix() + 12 * 3600;
                that(by_hand || left >= 4 * 3600 * 4 / 10, || format!("{} has not renewed", agent.id))?;
            }
            Ok(())
        })
        .await;
}

#[tokio::test]
async fn below_an_upstream_ca_the_chain_is_served_and_only_the_intermediate_rotates() {
    let mut house = House::empty(&[("authority.ca_ttl", "24h")]);
    let root = certificates::root("Corporate Root");
    let between = certificates::intermediate("Corporate Issuing", &root);
    let certificate = house.write("upstream.pem", format!("{}{}", between.pem(), root.pem()));
    let key = house.write("upstream.key", between.key().serialize_pem());
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    house.set("authority.upstream.certificate", &certificate);
    house.set("authority.upstream.key", &key);
    house.start_server().await.unwrap();
    let pair = Pair::in_house(house).await;
    let (house, operator) = (&pair.house, &pair.operator);

    let context = pair.a.context().unwrap();
    let identity = context.first();
    let roots: Vec<_> = identity.bundle.x509_authorities().iter().map(|root| root.der().clone()).collect();
    assert_eq!(roots, [root.der().clone()], "the bundle is the corporate root alone");
    assert_eq!(identity.svid.chain().len(), 3);
    assert_eq!(identity.svid.chain()[2], *between.der());
    identity.svid.clone().verify(&identity.bundle, house.now()).unwrap();
    pair.shake_hands().await;
    let active = operator.active().await;
    assert!(active.upstream);
    assert_eq!(active.fingerprint, sha256_hex(root.der()));

    for _ in 0..48 {
        house.live(HOUR, operator, HOUR, &[&pair.a, &pair.b]).await;
        pair.shake_hands().await;
    }
    let history = pair.b.history();
    assert_eq!(history.roots.len(), 1);
    // The corporate one, and ours at its start, at 16, 32 and 48 hours or a little before.
    assert!((4..=6).contains(&history.intermediates.len()), "{}", history.intermediates.len());
    assert_ne!(operator.active().await.id, active.id);
}
