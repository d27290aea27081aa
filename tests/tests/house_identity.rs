//! What a workload gets: its first SVID, every change of its entries, and foreign bundles.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::time::Duration;

use spiffe::proto::v1;
use tests::certificates;
use tests::house::{House, id};
use tests::operator::entry;
use tests::patience::that;
use tests::workload::Context;
use tests::{Node, Workload, web};
use tonic::Code;
use x509_parser::prelude::{FromDer as _, GeneralName, ParsedExtension, X509Certificate};

#[tokio::test]
async fn the_first_svid_has_the_profile_and_the_key_fits() {
    let house = House::start(&[]).await;
    let operator = house.operator().await;
    let node = Node::start(&house, "node", &[]).await;
    let workload = node.workload(&house).await;
    let ended = house.eventually("nothing is registered", async || workload.end()).await;
    assert_eq!(ended.code(), Code::PermissionDenied, "{ended}");

    let mut wanted = entry(&node.id(), "/web");
    wanted.dns_names = vec!["web.example.org".into(), "www.example.org".into()];
    wanted.hint = "internal".into();
    let (_, revision) = operator.register(wanted).await;
    applied(&house, revision).await;
    let workload = node.workload(&house).await;
    let context = house.eventually("the first SVID comes", async || workload.context()).await;
    let identity = context.first();
    assert_eq!((context.paths(), identity.hint.as_str()), (vec!["/web"], "internal"));

    let now = house.now();
    let verified = identity.svid.clone().verify(&identity.bundle, now).unwrap();
    assert_eq!(*verified.id(), id("/web"));
    identity.svid.key_fits(&identity.key).unwrap();
    assert_eq!(identity.bundle.to_der(), operator.bundle().await.to_der());

    // DESIGN section 5, line by line.
    let (_, leaf) = X509Certificate::from_der(&identity.svid.chain()[0]).unwrap();
    assert_eq!(leaf.subject().to_string(), "O=SPIFFE, CN=web.example.org");
    let san = leaf.subject_alternative_name().unwrap().unwrap();
    assert_eq!(
        san.value.general_names,
        [
            GeneralName::URI("spiffe://example.org/web"),
            GeneralName::DNSName("web.example.org"),
            GeneralName::DNSName("www.example.org")
        ]
    );
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.flags == 1, "digitalSignature only: {:?}", usage.value);
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth && !extended.any);
    let constraints = leaf.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && !constraints.value.ca && constraints.value.path_len_constraint.is_none());
    let has = |wanted: fn(&ParsedExtension<'_>) -> bool| {
        leaf.extensions().iter().any(|found| wanted(found.parsed_extension()))
    };
    assert!(has(|found| matches!(found, ParsedExtension::SubjectKeyIdentifier(_))));
    assert!(has(|found| matches!(found, ParsedExtension::AuthorityKeyIdentifier(_))));
    assert!((15..=20).contains(&identity.svid.serial().len()) && leaf.raw_serial()[0] < 0x80);
    let lifetime = identity.svid.lifetime();
    assert_eq!(lifetime.not_after.unix(), lifetime.not_before.unix() + 60 + 3600);
    assert!(lifetime.not_after >= now.plus(Duration::from_secs(3500)));

    // And the CA above it.
    let root = identity.bundle.x509_authorities()[0].der().clone();
    let (_, root) = X509Certificate::from_der(&root).unwrap();
    let subject = root.subject().to_string();
    assert!(subject.starts_with("O=SPIFFE, ") && subject.contains("serialNumber="), "{subject}");
    let san = root.subject_alternative_name().unwrap().unwrap();
    assert_eq!(san.value.general_names, [GeneralName::URI("spiffe://example.org")]);
    let usage = root.key_usage().unwrap().unwrap();
    assert!(
        usage.critical && usage.value.key_cert_sign() && usage.value.crl_sign() && !usage.value.digital_signature()
    );
    let constraints = root.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && constraints.value.ca && constraints.value.path_len_constraint == Some(0));
    assert!(root.name_constraints().unwrap().is_none());
}

#[tokio::test]
async fn what_is_signed_and_what_is_refused_is_recorded_and_counted() {
    let mut house = House::start(&[]).await;
    let operator = house.operator().await;
    let node = Node::start(&house, "node", &[]).await;
    operator.register(entry(&node.id(), "/web")).await;
    let workload = node.workload(&house).await;
    let context = house.eventually("the SVID comes", async || workload.context()).await;
    let serial = spiffe::crypto::hex(context.first().svid.serial());
    let stranger = tests::by_hand::Caller::attest(&house).await;
    stranger.issue(&house, "nobodys", b"no CSR".to_vec()).await.unwrap_err();

    let page = web::get(house.server().health_address(), "/metrics").await;
    assert!(page.contains("# EOF"), "{page}");
    for (path, body) in [("/live", "200 OK"), ("/ready", "200 OK")] {
        let answer = web::get(house.server().health_address(), path).await;
        assert!(answer.contains(body), "{path}: {answer}");
    }
    drop(operator);
    house.stop_server().await;
    let log = std::fs::read_to_string(house.path("server/audit.log")).unwrap();
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let issued = lines.iter().find(|line| line["serial"] == serial.as_str());
    let issued = issued.unwrap_or_else(|| panic!("no line with serial {serial}:\n{log}"));
    assert_eq!(issued["subject"], "spiffe://example.org/web", "{issued}");
    assert!(issued.to_string().contains(&node.id().to_string()), "who: {issued}");
    assert!(log.contains("there is no entry nobodys"), "{log}");
}

#[tokio::test]
async fn the_oldest_entry_is_the_default_identity_and_hints_are_unique() {
    let house = House::start(&[]).await;
    let operator = house.operator().await;
    let node = Node::start(&house, "node", &[]).await;
    for path in ["/oldest", "/middle", "/youngest"] {
        let mut wanted = entry(&node.id(), path);
        wanted.hint = "db".into();
        operator.register(wanted).await;
        house.jump(Duration::from_secs(2));
    }
    let workload = node.workload(&house).await;
    let context = until(&house, &workload, "all three come", |context| context.identities.len() == 3).await;
    assert_eq!(context.paths(), ["/oldest", "/middle", "/youngest"]);
    let hints: Vec<_> = context.identities.iter().map(|identity| identity.hint.as_str()).collect();
    assert_eq!(hints, ["db", "", ""]);
}

#[tokio::test]
async fn each_change_of_an_entry_reaches_the_open_stream() {
    let house = House::start(&[]).await;
    let operator = house.operator().await;
    let node = Node::start(&house, "node", &[]).await;
    operator.register(entry(&node.id(), "/stays")).await;
    house.jump(Duration::from_secs(1));
    let (mut held, _) = operator.register(entry(&node.id(), "/web")).await;
    let workload = node.workload(&house).await;
    let web = |context: &Context, holds: &dyn Fn(&tests::workload::Identity) -> bool| {
        context.identity("/web").is_ok_and(holds)
    };
    let first = until(&house, &workload, "it comes", |context| web(context, &|_| true)).await;
    let first = first.identity("/web").unwrap().svid.serial().to_vec();

    held.hint = "external".into();
    operator.update(held.clone()).await;
    let hinted = until(&house, &workload, "the hint comes", |c| web(c, &|web| web.hint == "external")).await;
    assert_eq!(hinted.identity("/web").unwrap().svid.serial(), first, "a hint needs no new SVID");

    held.dns_names = vec!["web.example.org".into()];
    operator.update(held.clone()).await;
    let named =
        until(&house, &workload, "the DNS name comes", |c| web(c, &|web| dns_names(web) == ["web.example.org"])).await;
    assert_ne!(named.identity("/web").unwrap().svid.serial(), first);

    held.x509_ttl = 600;
    operator.update(held.clone()).await;
    until(&house, &workload, "the short life comes", |c| web(c, &|web| web.svid.lifetime().length().as_secs() == 660))
        .await;

    held.key_type = "p384".into();
    operator.update(held.clone()).await;
    until(&house, &workload, "the other key comes", |c| web(c, &|web| key_bits(web) == 384)).await;

    let mine = std::mem::replace(&mut held.selectors, vec!["unix:uid:4000000000".into()]);
    operator.update(held.clone()).await;
    until(&house, &workload, "it is another user's", |context| context.paths() == ["/stays"]).await;
    held.selectors = mine;
    operator.update(held.clone()).await;
    until(&house, &workload, "it is ours again", |context| context.paths() == ["/stays", "/web"]).await;

    held.spiffe_id = id("/other").to_string();
    operator.update(held.clone()).await;
    until(&house, &workload, "it has another name", |context| context.paths() == ["/stays", "/other"]).await;

    held.expires_at = house.now().unix() + 120;
    operator.update(held.clone()).await;
    house.jump(Duration::from_secs(121));
    until(&house, &workload, "it has expired", |context| context.paths() == ["/stays"]).await;

    let stays = context_entry(&operator, "/stays").await;
    operator.delete(&stays).await;
    let ended = house.eventually("the last one goes", async || workload.end()).await;
    assert_eq!(ended.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_node_alias_gives_its_entries_to_every_node_that_matches() {
    let house = House::start(&[]).await;
    let operator = house.operator().await;
    let token = operator.token(id("/rack-7").as_str()).await;
    let mut node = Node::new(&house, "node", &[("attest.kind", "join_token"), ("attest.token", &token)]).await;
    node.start_agent(&house).await.unwrap();
    operator.register(entry(&id("/rack-7"), "/by-alias")).await;
    let workload = node.workload(&house).await;
    let context = house.eventually("the alias counts", async || workload.context()).await;
    assert_eq!(context.paths(), ["/by-alias"]);
}

#[tokio::test]
async fn a_foreign_bundle_appears_and_disappears() {
    let house = House::start(&[]).await;
    let mut operator = house.operator().await;
    let node = Node::start(&house, "node", &[]).await;
    let (mut held, _) = operator.register(entry(&node.id(), "/web")).await;
    held.federates_with = vec!["other.test".into()];
    let unknown = operator.try_update(held.clone()).await.unwrap_err();
    assert_eq!(
        unknown.message,
        "there is no bundle of other.test to federate with: set it first with \"chancery bundle set\""
    );

    let foreign = ["one", "two"]
        .map(|name| v1::X509Authority { certificate: certificates::root(name).der().to_vec().into(), tainted: false });
    let mut bundle = v1::Bundle {
        trust_domain: "other.test".into(),
        x509_authorities: foreign[..1].to_vec(),
        sequence: 1,
        ..v1::Bundle::default()
    };
    operator.door.set_bundle(v1::SetBundleRequest { bundle: Some(bundle.clone()) }).await.unwrap();
    let workload = node.workload(&house).await;
    let context = house.eventually("the SVID comes", async || workload.context()).await;
    assert!(context.federated.is_empty());
    operator.update(held.clone()).await;
    until(&house, &workload, "the foreign bundle comes", |context| context.federated.get("other.test") == Some(&1))
        .await;
    bundle.x509_authorities = foreign.to_vec();
    bundle.sequence = 2;
    operator.door.set_bundle(v1::SetBundleRequest { bundle: Some(bundle) }).await.unwrap();
    until(&house, &workload, "its change comes", |context| context.federated.get("other.test") == Some(&2)).await;

    let request = v1::DeleteBundleRequest { trust_domain: "other.test".into(), dissociate: false };
    let refused = operator.door.delete_bundle(request.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    held.federates_with.clear();
    operator.update(held).await;
    until(&house, &workload, "it goes with its mention", |context| context.federated.is_empty()).await;
    operator.door.delete_bundle(request).await.unwrap();
}

#[tokio::test]
async fn wait_returns_when_every_connected_agent_has_acknowledged() {
    let house = House::start(&[]).await;
    let operator = house.operator().await;
    let node = Node::start(&house, "node", &[]).await;
    let lagging = tests::by_hand::Caller::attest(&house).await;
    let syncing = lagging.sync(&house).await.unwrap();
    let (_, revision) = operator.register(entry(&node.id(), "/web")).await;
    house
        .eventually("the agent has acknowledged, the other one not", async || {
            let behind = operator.behind(revision).await;
            that(behind == [lagging.id().to_string()], || format!("{behind:?}"))
        })
        .await;
    // Now somebody waits, and the lagging one catches up.
    let waiting = tokio::spawn({
        let mut door = operator.door.clone();
        async move { door.wait_applied(v1::WaitAppliedRequest { revision, timeout: 3600 }).await }
    });
    tests::patience::eventually("the waiting has begun", async || that(!waiting.is_finished(), || "it is over".into()))
        .await;
    syncing.acknowledge(revision).await;
    let answer = tests::patience::soon("the waiting ends", waiting).await.unwrap().unwrap().into_inner();
    assert_eq!((answer.connected, answer.behind), (2, vec![]));
    drop(syncing);

    // The time is up.
    let other = lagging.sync(&house).await.unwrap();
    let (_, revision) = operator.register(entry(lagging.id(), "/late")).await;
    let waiting = tokio::spawn({
        let mut door = operator.door.clone();
        async move { door.wait_applied(v1::WaitAppliedRequest { revision, timeout: 30 }).await }
    });
    house.eventually("the time is up", async || that(waiting.is_finished(), || "it waits".into())).await;
    let answer = waiting.await.unwrap().unwrap().into_inner();
    assert_eq!(answer.behind, [lagging.id().to_string()]);
    drop(other);
}

async fn applied(house: &House, revision: u64) {
    let operator = house.operator().await;
    house
        .eventually("the change is applied", async || {
            let behind = operator.behind(revision).await;
            that(behind.is_empty(), || format!("behind: {behind:?}"))
        })
        .await;
}

async fn until(house: &House, workload: &Workload, what: &str, holds: impl Fn(&Context) -> bool) -> Context {
    house
        .eventually(what, async || {
            let context = workload.context()?;
            that(holds(&context), || format!("{:?}", context.paths()))?;
            Ok(context)
        })
        .await
}

async fn context_entry(operator: &tests::Operator, path: &str) -> String {
    let filter = v1::EntryFilter { spiffe_id: id(path).to_string(), ..v1::EntryFilter::default() };
    let request = v1::ListEntriesRequest { filter: Some(filter), ..v1::ListEntriesRequest::default() };
    operator.door.clone().list_entries(request).await.unwrap().into_inner().entries.remove(0).id
}

fn dns_names(identity: &tests::workload::Identity) -> Vec<String> {
    let (_, leaf) = X509Certificate::from_der(&identity.svid.chain()[0]).unwrap();
    let san = leaf.subject_alternative_name().unwrap().unwrap();
    let names = san.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    });
    names.collect()
}

fn key_bits(identity: &tests::workload::Identity) -> usize {
    let (_, leaf) = X509Certificate::from_der(&identity.svid.chain()[0]).unwrap();
    leaf.public_key().parsed().unwrap().key_size()
}
