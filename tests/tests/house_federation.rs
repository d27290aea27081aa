//! Two trust domains that trust each other, through rotations of both CAs and an outage of each endpoint.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::time::Duration;

use spiffe::proto::v1;
use tests::house::{House, Settings};
use tests::operator::entry;
use tests::patience::that;
use tests::workload::handshake;
use tests::{Node, Operator, Workload, certificates};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const OTHER: &str = "other.org";
const OTHER_SERVER: &str = "spiffe://other.org/chancery/server";

/// One trust domain with a workload that federates with another one.
struct Side {
    house: House,
    operator: Operator,
    _node: Node,
    workload: Workload,
    peer: &'static str,
}

impl Side {
    /// The house is started, and its relationship is made by the caller.
    async fn in_house(house: House, name: &str, peer: &'static str) -> Self {
        let operator = house.operator().await;
        let node = Node::start(&house, "node", &[("trust_domain", name)]).await;
        let made = v1::Entry {
            spiffe_id: format!("spiffe://{name}/web"),
            federates_with: vec![peer.to_owned()],
            ..entry(&node.id(), "/web")
        };
        operator.register(made).await;
        let workload = node.workload(&house).await;
        house.eventually("the SVID comes", async || workload.context()).await;
        Self { house, operator, _node: node, workload, peer }
    }

    /// The workload's SVID is fresh, the agent is well, and no poll is overdue.
    async fn settled(&self) -> Result<(), String> {
        let now = self.house.now();
        self.workload.fresh(now)?;
        self.operator.settled(now, 2 * HOUR).await?;
        let next = self.operator.relationship(self.peer).await.next_poll_at;
        that(next > now.unix(), || format!("the poll of {} is overdue", self.peer))
    }

    async fn roots(&self) -> u32 {
        self.operator.relationship(self.peer).await.x509_authorities
    }
}

fn empty(trust_domain: &str, settings: Settings<'_>) -> House {
    let mut house = House::empty(House::ON_DISK);
    house.set("trust_domain", trust_domain);
    house.set("authority.ca_ttl", "12h");
    // What is renewed at half of its life outlives an outage of half an hour.
    house.set("svid.ttl", "2h");
    house.set("svid.agent_ttl", "2h");
    house.set("federation.allow_networks", "[\"127.0.0.0/8\"]");
    settings.iter().for_each(|(key, value)| house.set(key, value));
    house
}

/// Where the bundle is from now on, over restarts too.
fn keep_web_addresses(house: &mut House) -> (String, String) {
    let addresses = house.server().web_addresses();
    let [web, spiffe] = [addresses.https_web, addresses.https_spiffe].map(|address| address.map(|it| it.to_string()));
    for (key, address) in [("web.https_web.listen", &web), ("web.https_spiffe.listen", &spiffe)] {
        if let Some(address) = address {
            house.set(key, address);
        }
    }
    let url = |address: Option<String>| format!("https://{}/", address.unwrap_or_default());
    (url(web), url(spiffe))
}

#[tokio::test]
async fn workloads_of_two_trust_domains_meet_through_rotations_and_outages_of_both() {
    // Ours is known by a certificate of the web, theirs by its SVID.
    let ca = certificates::root("Web");
    let mut ours = empty("example.org", &[("web.https_web.listen", "127.0.0.1:0")]);
    let (certificate, key) = certificates::web(&["127.0.0.1"], &ca);
    let [certificate, key] = [("web.pem", certificate), ("web.key", key)].map(|(name, pem)| ours.write(name, pem));
    ours.set("web.https_web.certificate", &certificate);
    ours.set("web.https_web.key", &key);
    ours.start_server().await.unwrap();
    let (our_url, _) = keep_web_addresses(&mut ours);

    let mut theirs = empty(OTHER, &[("web.https_spiffe.listen", "127.0.0.1:0")]);
    theirs.clock = ours.clock.clone();
    let roots = theirs.write("roots.pem", ca.pem());
    theirs.set("federation.web_roots", &roots);
    theirs.start_server().await.unwrap();
    let (_, their_url) = keep_web_addresses(&mut theirs);

    let (operator, other) = (ours.operator().await, theirs.operator().await);
    let refused = operator.federate(OTHER, &their_url, OTHER_SERVER, None).await.unwrap_err();
    assert!(refused.message().contains("give its bundle too"), "{refused}");
    let first = other.bundle().await;
    operator.federate(OTHER, &their_url, OTHER_SERVER, Some(&first)).await.unwrap();
    other.federate("example.org", &our_url, "", None).await.unwrap();
    let mut ours = Side::in_house(ours, "example.org", OTHER).await;
    let mut theirs = Side::in_house(theirs, OTHER, "example.org").await;
    ours.house
        .eventually("each has the other's bundle", async || {
            let known = |side: &Side| side.workload.context().map(|context| context.federated.len());
            that(known(&ours)? == 1 && known(&theirs)? == 1, || "not yet".into())
        })
        .await;
    let refreshed = ours.operator.refresh(OTHER).await;
    assert_eq!((refreshed.last_outcome.as_str(), refreshed.refresh_hint), ("unchanged", 300), "{refreshed:?}");

    let mut most_roots = (0, 0);
    let (mut our_roots, mut their_roots) = (first.x509_authorities().len(), 0);
    for step in 0..100 {
        // An outage of each endpoint: of theirs at half of the CAs' lives, when ours prepares its next root, and of ours
        // at two thirds, when theirs lets its new one sign.
        match step {
            35 => theirs.house.stop_server().await,
            38 => theirs.house.start_server().await.unwrap(),
            47 => ours.house.stop_server().await,
            50 => ours.house.start_server().await.unwrap(),
            _ => {}
        }
        if matches!(step, 38 | 50) {
            ours.operator = ours.house.operator().await;
            theirs.operator = theirs.house.operator().await;
        }
        let (we, they) = (!(47..50).contains(&step), !(35..38).contains(&step));
        let settled = async || {
            if we {
                ours.settled().await?;
            }
            if they {
                theirs.settled().await?;
            }
            Ok(())
        };
        ours.house.pass(10 * MINUTE, 5 * MINUTE, settled).await;
        let at = ours.house.now();
        for (server, client) in [(&ours, &theirs), (&theirs, &ours)] {
            let seen = handshake(&server.workload, &client.workload).await;
            let (seen, shown) = seen.unwrap_or_else(|why| panic!("step {step} at {at}: {why}"));
            assert_eq!((seen.trust_domain_name(), shown.trust_domain_name()), (server.peer, client.peer));
        }
        if we && they {
            (our_roots, their_roots) = (ours.roots().await as usize, theirs.roots().await as usize);
            most_roots = (most_roots.0.max(our_roots), most_roots.1.max(their_roots));
        }
        if step == 37 {
            let failed = ours.operator.relationship(OTHER).await;
            assert_eq!(failed.last_outcome, "failed", "{failed:?}");
            assert!(failed.last_error.contains("does not answer"), "{failed:?}");
        }
    }
    assert!(most_roots.0 >= 2 && most_roots.1 >= 2, "both saw a new root before it signed: {most_roots:?}");
    assert!(our_roots > 0 && their_roots > 0);
    let active = theirs.operator.active().await;
    assert_ne!(active.fingerprint, first.x509_authorities()[0].fingerprint(), "the CA has rotated");
    let text = ours.operator.relationship(OTHER).await;
    assert_eq!((text.source.as_str(), text.last_error.as_str()), ("store", ""), "{text:?}");
}

#[tokio::test]
async fn a_relationship_of_the_config_is_shown_beside_those_of_the_store_and_not_touched() {
    let mut theirs = empty(OTHER, &[("web.https_spiffe.listen", "127.0.0.1:0")]);
    theirs.start_server().await.unwrap();
    let (_, url) = keep_web_addresses(&mut theirs);
    let bundle = theirs.write("other.json", theirs.operator().await.bundle().await.to_jwks());
    let mut ours = empty("example.org", &[]);
    ours.clock = theirs.clock.clone();
    ours.set(
        "federation.relationship",
        &format!(
            "[{{ trust_domain = \"{OTHER}\", url = \"{url}\", profile = \"https_spiffe\", \
             endpoint_spiffe_id = \"{OTHER_SERVER}\", bundle = \"{bundle}\" }}]"
        ),
    );
    ours.start_server().await.unwrap();
    let operator = ours.operator().await;
    operator.federate("third.org", "https://192.0.2.1/", "", None).await.unwrap();
    ours.eventually("it is polled", async || {
        let polled = operator.relationship(OTHER).await;
        that(polled.last_error.is_empty() && polled.has_bundle && polled.last_success_at > 0, || format!("{polled:?}"))
    })
    .await;
    let listed = operator.door.clone().list_relationships(v1::ListRelationshipsRequest {}).await.unwrap().into_inner();
    let sources: Vec<&str> = listed.relationships.iter().map(|one| one.source.as_str()).collect();
    assert_eq!(sources, ["config", "store"]);

    let twice = operator.federate(OTHER, &url, OTHER_SERVER, None).await.unwrap_err();
    assert!(twice.message().contains("stands in the server's config"), "{twice}");
    let request = v1::DeleteRelationshipRequest { trust_domain: OTHER.into(), dissociate: false };
    let refused = operator.door.clone().delete_relationship(request).await.unwrap_err();
    assert!(refused.message().contains("change it there"), "{refused}");
    let request = v1::DeleteBundleRequest { trust_domain: OTHER.into(), dissociate: false };
    let refused = operator.door.clone().delete_bundle(request).await.unwrap_err();
    assert!(refused.message().contains("would come back"), "{refused}");
}

#[tokio::test]
async fn a_relationship_that_ends_takes_its_bundle_along() {
    let mut theirs = empty(OTHER, &[("web.https_spiffe.listen", "127.0.0.1:0")]);
    theirs.start_server().await.unwrap();
    let (_, url) = keep_web_addresses(&mut theirs);
    let bundle = theirs.operator().await.bundle().await;
    let mut ours = empty("example.org", &[]);
    ours.clock = theirs.clock.clone();
    ours.start_server().await.unwrap();
    let operator = ours.operator().await;
    operator.federate(OTHER, &url, OTHER_SERVER, Some(&bundle)).await.unwrap();
    let side = Side::in_house(ours, "example.org", OTHER).await;
    let known = async |count| {
        let federated = side.workload.context()?.federated.len();
        that(federated == count, || format!("{federated} foreign bundles"))
    };
    side.house.eventually("the bundle comes", async || known(1).await).await;
    let delete = async |dissociate| {
        let request = v1::DeleteRelationshipRequest { trust_domain: OTHER.into(), dissociate };
        side.operator.door.clone().delete_relationship(request).await
    };
    let refused = delete(false).await.unwrap_err();
    assert!(refused.message().contains("1 entry federates with other.org"), "{refused}");
    delete(true).await.unwrap();
    side.house.eventually("the bundle goes", async || known(0).await).await;
    let list = side.operator.door.clone().list_bundles(v1::ListBundlesRequest {}).await.unwrap().into_inner();
    assert_eq!(list.bundles.len(), 1, "only our own");
}
