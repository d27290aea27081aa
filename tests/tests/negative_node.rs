//! The Node door and the network against bad input: each attempt, and the exact words in which it is refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use ca_server::api::caller::Caller as ApiCaller;
use ca_server::api::rights::{Operators, admit};
use ca_server::view::View;
use rustls_pki_types::CertificateDer;
use spiffe::crypto::generate_key;
use spiffe::entry::KeyType;
use spiffe::proto::v1;
use spiffe::proto::v1::admin_client::AdminClient;
use spiffe::proto::v1::node_client::NodeClient;
use spiffe::x509_svid::X509Svid;
use tests::House;
use tests::by_hand::{Caller, attest, knock, parse, stranger, stranger_channel, stranger_from};
use tests::certificates::{self, CraftedRsa};
use tests::house::{id, trust_domain};
use tests::operator::entry;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

const ALERT: &str = "received fatal alert: CertificateUnknown";

fn csr() -> Vec<u8> {
    spiffe::csr::create(&generate_key(KeyType::P256).unwrap()).unwrap()
}

/// A house, an agent made by hand and an entry of its own.
async fn with_an_agent() -> (House, Caller, String) {
    let house = House::start(&[]).await;
    let agent = Caller::attest(&house).await;
    let (held, _) = house.operator().await.register(entry(agent.id(), "/web")).await;
    (house, agent, held.id)
}

/// An SVID of this identity that the server has minted.
async fn minted(house: &House, path: &str) -> Caller {
    let key = generate_key(KeyType::P256).unwrap();
    let csr = spiffe::csr::create(&key).unwrap().into();
    let request =
        v1::MintX509SvidRequest { spiffe_id: id(path).to_string(), csr, ..v1::MintX509SvidRequest::default() };
    let minted = house.operator().await.door.mint_x509_svid(request).await.unwrap().into_inner();
    Caller { svid: parse(minted), key: key.serialize_der() }
}

fn words(status: &Status) -> (Code, &str) {
    (status.code(), status.message())
}

#[tokio::test]
async fn a_csr_that_asks_for_another_san_and_ca_true_gets_neither() {
    let (house, agent, entry) = with_an_agent().await;
    let key = generate_key(KeyType::P256).unwrap();
    let csr = certificates::wishful_csr(&key, &trust_domain().server_id());
    let svid = agent.issue(&house, &entry, csr).await.unwrap();
    assert_eq!(*svid.id(), id("/web"));
    svid.key_fits(&key.serialize_der()).unwrap();
    let (_, leaf) = X509Certificate::from_der(&svid.chain()[0]).unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap().value.general_names.clone();
    assert_eq!(names, [GeneralName::URI("spiffe://example.org/web")]);
    assert!(!leaf.basic_constraints().unwrap().unwrap().value.ca);
    assert!(!leaf.key_usage().unwrap().unwrap().value.key_cert_sign());
}

#[tokio::test]
async fn a_csr_that_proves_nothing_or_has_a_weak_or_unknown_key_is_refused() {
    let (house, agent, entry) = with_an_agent().await;
    let broken = certificates::csr_with_broken_signature(&generate_key(KeyType::P256).unwrap());
    let trailing = [csr(), vec![0, 0]].concat();
    for (csr, expected) in [
        (broken, "signature of the CSR is wrong: sign it with the private half of the key that is in it"),
        (certificates::rsa_1024_csr(), "CSR has a key of kind RSA: use P-256, P-384 or Ed25519"),
        (certificates::p521_csr(), "CSR has a key of kind P-521: use P-256, P-384 or Ed25519"),
        (trailing, "CSR has 2 bytes behind its end: send one PKCS#10 request in DER and nothing else"),
        (b"no CSR".to_vec(), "CSR cannot be read: send one PKCS#10 request in DER"),
        (vec![0; 16385], "CSR has 16385 bytes: at most 16384 are allowed"),
    ] {
        let refused = agent.issue(&house, &entry, csr).await.unwrap_err();
        assert_eq!((Code::from(refused.code), refused.message.as_str()), (Code::InvalidArgument, expected));
    }
}

#[tokio::test]
async fn a_csr_with_another_kind_of_key_than_the_entry_wants_is_refused() {
    let (house, agent, _) = with_an_agent().await;
    let mut wanted = entry(agent.id(), "/strong");
    wanted.key_type = "p384".into();
    let (held, _) = house.operator().await.register(wanted).await;
    let refused = agent.issue(&house, &held.id, csr()).await.unwrap_err();
    assert_eq!(refused.message, format!("entry {} wants a p384 key, the CSR has a p256 one: make a p384 key", held.id));
}

#[tokio::test]
async fn an_entry_of_another_agent_or_of_nobody_is_refused() {
    let (house, agent, entry) = with_an_agent().await;
    let other = Caller::attest(&house).await;
    let refused = other.issue(&house, &entry, csr()).await.unwrap_err();
    let expected = format!("entry {entry} is not one of agent {}", other.id());
    assert_eq!((Code::from(refused.code), refused.message), (Code::PermissionDenied, expected));
    let refused = agent.issue(&house, "nobodys", csr()).await.unwrap_err();
    assert_eq!((Code::from(refused.code), refused.message.as_str()), (Code::NotFound, "there is no entry nobodys"));
}

#[tokio::test]
async fn one_bad_request_of_a_batch_stops_no_other_and_over_500_are_refused() {
    let (house, agent, entry) = with_an_agent().await;
    let mut door = agent.door(&house).await.unwrap();
    let request = |csr: Vec<u8>| v1::X509SvidRequest { entry_id: entry.clone(), csr: csr.into() };
    let requests = vec![request(csr()), request(b"bad".to_vec()), request(csr())];
    let results = door.issue_x509_svids(v1::IssueX509SvidsRequest { requests }).await.unwrap().into_inner().results;
    let good: Vec<bool> =
        results.iter().map(|result| matches!(result.outcome, Some(v1::x509_svid_result::Outcome::Svid(_)))).collect();
    assert_eq!(good, [true, false, true]);
    let requests = vec![request(csr()); 501];
    let refused = door.issue_x509_svids(v1::IssueX509SvidsRequest { requests }).await.unwrap_err();
    assert_eq!(words(&refused), (Code::InvalidArgument, "501 requests in one batch: at most 500 are allowed"));
}

#[tokio::test]
async fn an_expired_agent_certificate_is_refused_at_the_door_and_on_an_open_connection() {
    let (house, agent, _) = with_an_agent().await;
    let mut open = agent.door(&house).await.unwrap();
    let mut syncing = agent.sync(&house).await.unwrap();
    syncing.incoming.message().await.unwrap().unwrap();
    let end = agent.svid.lifetime().not_after;
    house.clock.set(end.plus(Duration::from_secs(1)));
    let expected = format!("your SVID expired at {end}: renew it, or attest again");
    let refused = open.renew(v1::RenewRequest { csr: csr().into() }).await.unwrap_err();
    assert_eq!(words(&refused), (Code::Unauthenticated, expected.as_str()));
    let ended = tests::patience::soon("the stream ends", async {
        loop {
            if let Err(status) = syncing.incoming.message().await {
                return status;
            }
        }
    })
    .await;
    assert_eq!(words(&ended), (Code::Unauthenticated, expected.as_str()));
    // The server's own SVID has to be there again before one can knock at all.
    let refused = house
        .eventually("the handshake is refused", async || match agent.knock(&house).await {
            Err(why) if why.starts_with("received fatal alert") => Ok(why),
            other => Err(format!("{other:?}")),
        })
        .await;
    assert_eq!(refused, ALERT);
}

#[tokio::test]
async fn a_banned_and_an_evicted_agent_certificate_are_refused_until_it_attests_again() {
    let (house, agent, entry) = with_an_agent().await;
    let mut operator = house.operator().await;
    let mut door = agent.door(&house).await.unwrap();
    let mut ask = async || {
        let request = v1::X509SvidRequest { entry_id: entry.clone(), csr: csr().into() };
        door.issue_x509_svids(v1::IssueX509SvidsRequest { requests: vec![request] }).await.map(|_| ())
    };
    ask().await.unwrap();
    operator.door.ban_agent(v1::BanAgentRequest { id: agent.id().to_string() }).await.unwrap();
    let expected =
        format!("agent {0} is banned: an operator can lift it with \"chancery agent evict {0}\"", agent.id());
    assert_eq!(words(&ask().await.unwrap_err()), (Code::PermissionDenied, expected.as_str()));
    assert_eq!(words(&agent.sync(&house).await.unwrap_err()), (Code::PermissionDenied, expected.as_str()));
    operator.door.evict_agent(v1::EvictAgentRequest { id: agent.id().to_string() }).await.unwrap();
    let expected = format!("agent {} is not attested here (it may have been evicted): attest again", agent.id());
    assert_eq!(words(&ask().await.unwrap_err()), (Code::Unauthenticated, expected.as_str()));
}

#[tokio::test]
async fn a_foreign_and_a_self_made_agent_certificate_are_refused_in_the_handshake() {
    let (house, agent, _) = with_an_agent().await;
    // Another CA that calls itself by the same trust domain, and its rightful agent.
    let other = House::start(&[]).await;
    let foreign = Caller::attest(&other).await;
    assert_eq!(foreign.knock(&other).await, Ok(()));
    assert_eq!(foreign.knock(&house).await, Err(ALERT.into()));
    // One that says by itself that it is the agent.
    let key = generate_key(KeyType::P256).unwrap();
    let made = certificates::svid_params(agent.id()).self_signed(&key).unwrap();
    assert_eq!(knock(&house, vec![made.der().clone()], &key.serialize_der()).await, Err(ALERT.into()));
    let ca = certificates::root("example.org");
    let made = certificates::svid_params(agent.id()).signed_by(&key, &ca).unwrap();
    let chain = vec![made.der().clone(), ca.der().clone()];
    assert_eq!(knock(&house, chain, &key.serialize_der()).await, Err(ALERT.into()));
    // And the words in which the verifier says so.
    let bundle = house.operator().await.bundle().await;
    let why = foreign.svid.clone().verify(&bundle, house.now()).unwrap_err().to_string();
    let expected = format!(
        "certificate of {} leads to no authority of its trust domain's bundle: is the bundle out of date?",
        foreign.id()
    );
    assert_eq!(why, expected);
}

#[tokio::test]
async fn a_certificate_with_two_uri_sans_is_refused_although_a_trusted_ca_has_signed_it() {
    // Below an upstream CA, whose key is ours to misuse.
    let mut house = House::empty(&[("authority.ca_ttl", "24h")]);
    let root = certificates::root("Corporate Root");
    let certificate = house.write("upstream.pem", root.pem());
    let key = house.write("upstream.key", root.key().serialize_pem());
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    house.set("authority.upstream.certificate", &certificate);
    house.set("authority.upstream.key", &key);
    house.start_server().await.unwrap();
    let key = generate_key(KeyType::P256).unwrap();
    let signed = |change: &dyn Fn(&mut rcgen::CertificateParams)| {
        let mut params = certificates::svid_params(&id("/web"));
        change(&mut params);
        params.signed_by(&key, &root).unwrap().der().clone()
    };
    let refused = |der: CertificateDer<'static>| X509Svid::parse(vec![der]).unwrap_err().to_string();
    let two = signed(&|params| params.subject_alt_names.push(certificates::uri("spiffe://example.org/admin")));
    let ca = signed(&|params| params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained));
    let none = signed(&|params| params.subject_alt_names.clear());
    for (der, expected) in [
        (two, "certificate has 2 URI SANs: an X.509-SVID has exactly one, its SPIFFE ID"),
        (ca, "certificate is a CA (CA:TRUE): only leaf certificates identify anyone"),
        (none, "certificate has no URI SAN: an X.509-SVID has exactly one, its SPIFFE ID"),
    ] {
        assert_eq!(refused(der.clone()), expected);
        assert_eq!(knock(&house, vec![der], &key.serialize_der()).await, Err(ALERT.into()));
    }
    // The same without the fault is let in as far as the door.
    assert_eq!(knock(&house, vec![signed(&|_| {})], &key.serialize_der()).await, Ok(()));
}

#[tokio::test]
async fn of_eight_that_use_one_join_token_at_once_one_gets_in() {
    let house = House::start(House::ON_DISK).await;
    let token = house.operator().await.token("").await;
    let mut racing = Vec::new();
    for _ in 0..8 {
        let (mut door, token) = (stranger(&house).await, token.clone().into_bytes());
        racing.push(tokio::spawn(async move { attest(&mut door, "join_token", token, csr()).await }));
    }
    let mut winners = 0;
    for one in racing {
        match one.await.unwrap() {
            Ok(_) => winners += 1,
            Err(refused) => {
                let late =
                    "join token is not known (used already, or revoked): create another with \"chancery token create\"";
                let beaten = "join token was used already: create another with \"chancery token create\"";
                assert_eq!(refused.code(), Code::PermissionDenied);
                assert!([late, beaten].contains(&refused.message()), "{refused}");
            }
        }
    }
    assert_eq!(winners, 1);
    assert_eq!(house.operator().await.agents().await.len(), 1);
}

#[tokio::test]
async fn strangers_that_come_too_fast_are_told_when_to_come_again_and_hold_up_nobody_from_elsewhere() {
    let house = House::start(&[("limits.attest_burst", "8"), ("limits.attest_per_second", "4")]).await;
    let knock = async |from: u8| {
        let mut door = stranger_from(&house, [127, 0, 0, from]).await;
        attest(&mut door, "join_token", b"chy-guess".to_vec(), csr()).await.unwrap_err()
    };
    for from in [1, 1, 2, 2, 3, 3, 4] {
        assert_eq!(knock(from).await.code(), Code::PermissionDenied);
        if from == 1 {
            continue;
        }
        let refused = knock(1).await;
        let expected = "too many nodes attest at once from your address: try again in 1000 ms";
        assert_eq!(words(&refused), (Code::ResourceExhausted, expected));
        assert_eq!(refused.metadata().get("grpc-retry-pushback-ms").unwrap(), "1000");
    }
    assert_eq!(knock(4).await.code(), Code::PermissionDenied);
    let expected = "too many nodes attest at once: try again in 1000 ms";
    assert_eq!(words(&knock(5).await), (Code::ResourceExhausted, expected));
    house.jump(Duration::from_secs(1));
    assert_eq!(knock(1).await.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn strangers_that_say_nothing_use_up_neither_the_audit_queue_nor_the_exchanges_of_others() {
    let house = House::start(&[("audit.queue", "16")]).await;
    let mut agent = Caller::attest(&house).await.door(&house).await.unwrap();
    let mut open = Vec::new();
    for from in 2..6 {
        let mut door = stranger_from(&house, [127, 0, 0, from]).await;
        for _ in 0..4 {
            let exchange = door.attest(tokio_stream::pending()).await.unwrap().into_inner();
            open.push((door.clone(), exchange));
        }
    }
    let audit = &house.server().doors().audit;
    tests::eventually("half of the queue is taken", async || {
        tests::patience::that(audit.depth() == 8, || format!("{} are", audit.depth()))
    })
    .await;
    agent.renew(v1::RenewRequest { csr: csr().into() }).await.unwrap();
}

#[tokio::test]
async fn giant_chains_and_keys_in_x509pop_are_refused_before_they_cost_anything() {
    let mut house = House::empty(&[]);
    let ca = certificates::root("Nodes");
    let bundle = house.write("nodes.pem", ca.pem());
    house.set("attest.x509pop.ca_bundle", &bundle);
    house.start_server().await.unwrap();
    let mut door = stranger(&house).await;
    let crafted = |bits| certificates::params("rsa").signed_by(&CraftedRsa::new(bits), &ca).unwrap();
    let (giant, weak) = (crafted(16384), crafted(1024));
    let p256 = certificates::node_key("p256");
    let foreign = certificates::params("node").signed_by(&p256, &certificates::root("Nodes")).unwrap();
    let own = certificates::params("node").self_signed(&p256).unwrap();
    let unknown = "x509pop certificate was issued by no CA of attest.x509pop.ca_bundle: send the intermediates too, or have the CA added";
    for (evidence, expected) in [
        (certificates::evidence(&[ca.der(); 6]), "x509pop chain has 6 certificates: 1 to 5 are allowed"),
        (vec![b'x'; 1 << 19], "evidence has over 131072 bytes"),
        (
            certificates::evidence(&[giant.der()]),
            "x509pop certificate 0 has an RSA key of 16384 bits: 2048 to 4096 are allowed",
        ),
        (
            certificates::evidence(&[weak.der()]),
            "x509pop certificate 0 has an RSA key of 1024 bits: 2048 to 4096 are allowed",
        ),
        (certificates::evidence(&[foreign.der()]), unknown),
        (certificates::evidence(&[own.der()]), unknown),
    ] {
        let refused = attest(&mut door, "x509pop", evidence, csr()).await.unwrap_err();
        assert_eq!(words(&refused), (Code::PermissionDenied, expected));
    }
    let refused = attest(&mut door, "tpm", Vec::new(), csr()).await.unwrap_err();
    let expected = "attestor \"tpm\" is not enabled here: use join_token or x509pop";
    assert_eq!(words(&refused), (Code::PermissionDenied, expected));
    assert!(house.operator().await.agents().await.is_empty());
}

#[tokio::test]
async fn who_is_no_agent_may_only_attest() {
    let (house, _, _) = with_an_agent().await;
    let refused = async |mut door: NodeClient<Channel>| {
        let refused = [
            door.renew(v1::RenewRequest { csr: csr().into() }).await.map(|_| ()),
            door.issue_x509_svids(v1::IssueX509SvidsRequest::default()).await.map(|_| ()),
            door.sync(tokio_stream::iter([v1::SyncRequest { acknowledged: 0 }])).await.map(|_| ()),
        ];
        refused.map(Result::unwrap_err)
    };
    for status in refused(stranger(&house).await).await {
        let message = status.message();
        assert!(message.starts_with("stranger 127.0.0.1:"), "{status}");
        assert!(message.ends_with(" is no node agent: only agents may call this"), "{status}");
        assert_eq!(status.code(), Code::PermissionDenied);
    }
    let workload = minted(&house, "/web").await;
    for status in refused(workload.door(&house).await.unwrap()).await {
        let expected = "spiffe://example.org/web is no node agent: only agents may call this";
        assert_eq!(words(&status), (Code::PermissionDenied, expected));
    }
}

#[tokio::test]
async fn an_unknown_rpc_is_unknown_to_everyone() {
    let (house, agent, _) = with_an_agent().await;
    for channel in [agent.channel(&house).await.unwrap(), stranger_channel(&house).await] {
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<v1::ServerInfoRequest, v1::ServerInfoResponse>::default();
        let path = http::uri::PathAndQuery::from_static("/chancery.v1.Node/Promote");
        let refused = client.unary(Request::new(v1::ServerInfoRequest {}), path, codec).await.unwrap_err();
        assert_eq!(words(&refused), (Code::Unimplemented, "there is no RPC /chancery.v1.Node/Promote here"));
    }
}

#[tokio::test]
async fn the_admin_door_is_for_admin_svids_and_operators_only() {
    let (house, agent, _) = with_an_agent().await;
    let ask = async |channel: Channel| AdminClient::new(channel).server_info(v1::ServerInfoRequest {}).await;
    let advice = "is no operator: use the admin socket as the server's own user, or the SVID of an entry marked admin";
    let refused = ask(agent.channel(&house).await.unwrap()).await.unwrap_err();
    assert_eq!(words(&refused), (Code::PermissionDenied, format!("{} {advice}", agent.id()).as_str()));
    let refused = ask(stranger_channel(&house).await).await.unwrap_err();
    assert!(refused.message().starts_with("stranger ") && refused.message().ends_with(advice), "{refused}");

    let workload = minted(&house, "/operator").await;
    let refused = ask(workload.channel(&house).await.unwrap()).await.unwrap_err();
    assert_eq!(words(&refused), (Code::PermissionDenied, format!("{} {advice}", id("/operator")).as_str()));
    let mut admin = entry(agent.id(), "/operator");
    admin.admin = true;
    let (held, _) = house.operator().await.register(admin).await;
    ask(workload.channel(&house).await.unwrap()).await.unwrap();
    // The right ends with the entry, on open connections too.
    let open = workload.channel(&house).await.unwrap();
    ask(open.clone()).await.unwrap();
    house.operator().await.delete(&held.id).await;
    ask(open).await.unwrap_err();
}

#[tokio::test]
async fn a_revoked_authority_takes_open_connections_along_and_a_tainted_one_does_not() {
    let (house, agent, _) = with_an_agent().await;
    let operator = house.operator().await;
    let admin = minted(&house, "/operator").await;
    operator.register(v1::Entry { admin: true, ..entry(agent.id(), "/operator") }).await;
    let (old, new) = (operator.active().await, operator.prepare().await);
    operator.activate(&new.id).await.unwrap();

    let mut syncing = agent.sync(&house).await.unwrap();
    let (node, admin_channel) = (agent.door(&house).await.unwrap(), admin.channel(&house).await.unwrap());
    let ask_node = async || node.clone().issue_x509_svids(v1::IssueX509SvidsRequest::default()).await.map(drop);
    let ask_admin =
        async || AdminClient::new(admin_channel.clone()).server_info(v1::ServerInfoRequest {}).await.map(drop);
    operator.taint(&old.id).await.unwrap();
    ask_node().await.unwrap();
    ask_admin().await.unwrap();
    agent.door(&house).await.unwrap();

    let revoke = v1::AuthorityRequest { id: old.id.clone(), force: true };
    operator.door.clone().revoke_authority(revoke).await.unwrap();
    let mut told = syncing.incoming.message().await;
    while let Ok(Some(_)) = told {
        told = syncing.incoming.message().await;
    }
    for (id, refused) in [
        (agent.id(), ask_node().await.unwrap_err()),
        (agent.id(), told.unwrap_err()),
        (admin.id(), ask_admin().await.unwrap_err()),
    ] {
        let expected = format!(
            "the authority that signed your SVID ({id}) was revoked: connect again with a newer SVID, or attest again"
        );
        assert_eq!(words(&refused), (Code::Unauthenticated, expected.as_str()));
    }
    agent.knock(&house).await.unwrap_err();
}

#[test]
fn another_user_of_this_machine_is_no_operator() {
    let view = View::load(trust_domain(), Vec::new(), 0).unwrap();
    let operators = Operators { uids: [0, 1000].into() };
    let path = "/chancery.v1.Admin/CreateEntries";
    let call = |uid| admit(&ApiCaller::Local { uid, pid: Some(7) }, path, &view, &operators, tests::house::BEGINNING);
    assert_eq!(call(1000), Ok(()));
    assert_eq!(
        call(1001).unwrap_err().to_string(),
        "uid 1001 pid 7 is no operator: use the admin socket as the server's own user, or the SVID of an entry marked admin"
    );
}
