//! The broker endpoint: what a broker, and who is none, does not get.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "tests")]

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::getuid;
use node_agent::attestor::unix::Unix;
use node_agent::attestor::{AttestError, Attestors, Peer};
use spiffe::bundle::{Bundle, X509Authority};
use spiffe::proto::broker::{
    FetchJwtsvidRequest, KubernetesObjectKey, KubernetesObjectReference, KubernetesObjectType,
    SubscribeToX509BundlesRequest, SubscribeToX509svidRequest, WorkloadPidReference, WorkloadReference,
};
use spiffe::proto::v1;
use spiffe::x509_svid::X509Svid;
use tests::broker::scene::{BROKER_LIFE, PIDS, Scene, info, next, svids};
use tests::broker::{Broker, Door, Sleeper, error_info, pid, reference, with_header};
use tests::certificates::{root, svid_params};
use tests::house::id;
use tests::patience::{soon, that};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpSocket, TcpStream, UnixListener, UnixStream};
use tonic::{Code, Request, Streaming};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::{ServerReflectionRequest, server_reflection_request, server_reflection_response};

#[tokio::test]
async fn without_the_security_header_nothing_is_answered() {
    let scene = Scene::start(&[PIDS]).await;
    let web = Sleeper::start();
    let expected = "security header is missing: send the metadata \"broker.spiffe.io: true\" once with every request";
    for values in [&[][..], &["True"], &["false"], &[""], &["true", "true"], &["true", "false"]] {
        let with = |message| {
            let mut request = Request::new(message);
            for value in values {
                request.metadata_mut().append("broker.spiffe.io", value.parse().unwrap());
            }
            // That of the other endpoint counts for nothing here.
            request.metadata_mut().append("workload.spiffe.io", "true".parse().unwrap());
            request
        };
        let mut api = scene.proxy.api(&scene.socket()).await;
        let message = SubscribeToX509svidRequest { reference: pid(web.pid()) };
        let refused = api.subscribe_to_x509svid(with(message)).await.unwrap_err();
        assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, expected), "{values:?}");
    }
    let mut api = scene.proxy.api(&scene.socket()).await;
    let refused = api.fetch_jwtsvid(Request::new(FetchJwtsvidRequest::default())).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    let mut reflection = ServerReflectionClient::new(scene.proxy.channel(&scene.socket()).await);
    let refused = reflection.server_reflection_info(Request::new(list_services())).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, expected));
}

#[tokio::test]
async fn reflection_is_for_brokers_and_lists_the_broker_api() {
    let scene = Scene::start(&[PIDS]).await;
    let mut reflection = ServerReflectionClient::new(scene.proxy.channel(&scene.socket()).await);
    let mut answers = reflection.server_reflection_info(with_header(list_services())).await.unwrap().into_inner();
    let answer = next(&mut answers).await.unwrap().message_response.unwrap();
    let server_reflection_response::MessageResponse::ListServicesResponse(list) = answer else { panic!("{answer:?}") };
    let names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
    assert!(names.contains(&"spiffe.broker.API") && !names.contains(&"SpiffeWorkloadAPI"), "{names:?}");
    let mut reflection = ServerReflectionClient::new(scene.other.channel(&scene.socket()).await);
    let refused = reflection.server_reflection_info(with_header(list_services())).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
}

fn list_services() -> tokio_stream::Iter<std::vec::IntoIter<ServerReflectionRequest>> {
    let question = server_reflection_request::MessageRequest::ListServices(String::new());
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(question) };
    tokio_stream::iter(vec![request])
}

#[tokio::test]
async fn who_is_not_listed_is_denied_whatever_it_asks() {
    let scene = Scene::start(&[PIDS]).await;
    let web = Sleeper::start();
    for workload in [pid(web.pid()), pid(0), None] {
        let refused = scene.svids(&scene.other, workload).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
        assert!(refused.message().contains("spiffe://example.org/other is no broker of this agent"), "{refused}");
        // It is about the caller, not about the workload.
        assert_eq!(error_info(&refused), None);
    }
}

#[tokio::test]
async fn a_broker_may_not_have_another_users_process() {
    let (own, foreign) = (getuid().as_raw(), getuid().as_raw() + 1);
    let rule = format!("{PIDS}, selectors = ['unix:uid:{foreign}']");
    let scene = Scene::start(&[&rule]).await;
    let web = Sleeper::start();
    let refused = scene.refused(pid(web.pid())).await;
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    assert_eq!(error_info(&refused), info("WORKLOAD_NOT_ENTITLED", Some(web.pid())));
    // It does not learn what would be true of the process.
    assert!(!refused.message().contains("unix:"), "{refused}");

    // One of its rules is enough.
    let scene = Scene::start(&[&rule, &format!("{PIDS}, selectors = ['unix:uid:{own}']")]).await;
    scene.svids(&scene.proxy, pid(web.pid())).await.unwrap();
}

#[tokio::test]
async fn a_broker_never_gets_the_identity_of_an_operator() {
    let scene = Scene::start(&[PIDS]).await;
    let web = Sleeper::start();
    let operator = scene.house.operator().await;
    let entries = operator.door.clone().list_entries(v1::ListEntriesRequest::default()).await.unwrap().into_inner();
    let entry = entries.entries.into_iter().find(|entry| entry.spiffe_id.ends_with("/web")).unwrap();
    let admin = v1::Entry { id: String::new(), spiffe_id: id("/operator").to_string(), admin: true, ..entry.clone() };
    operator.register(admin).await;
    // A third one, by which it is seen that the agent knows the second.
    let sign = v1::Entry { id: String::new(), spiffe_id: id("/sign").to_string(), ..entry.clone() };
    operator.register(sign.clone()).await;
    let mut stream = scene.svids(&scene.proxy, pid(web.pid())).await.unwrap();
    let svids = loop {
        let svids = next(&mut stream).await.unwrap().svids;
        if svids.iter().any(|svid| svid.spiffe_id == sign.spiffe_id) {
            break svids;
        }
    };
    assert_eq!(svids.len(), 2, "{:?}", svids.iter().map(|svid| &svid.spiffe_id).collect::<Vec<_>>());
    assert!(svids.iter().all(|svid| !svid.spiffe_id.ends_with("/operator")));
}

#[tokio::test]
async fn a_reference_that_is_none_is_invalid() {
    let scene = Scene::start(&[PIDS]).await;
    let empty = Some(WorkloadReference { reference: None });
    let unknown = reference("example.org.Workload", &WorkloadPidReference { pid: 1 });
    let broken = Some(WorkloadReference {
        reference: Some(prost_types::Any {
            type_url: "type.googleapis.com/spiffe.broker.WorkloadPIDReference".into(),
            value: vec![0x0a, 0x7f],
        }),
    });
    let cases = [
        (None, "workload reference is missing"),
        (empty, "workload reference is missing"),
        (pid(0), "has the pid 0: a pid is a positive number"),
        (pid(-7), "has the pid -7: a pid is a positive number"),
        (unknown, "of the unknown type \"type.googleapis.com/example.org.Workload\""),
        (broken, "cannot be read as spiffe.broker.WorkloadPIDReference"),
        (pod(""), "has no key and no uid"),
        (pod("web"), "a UID is a UUID"),
        (pod("a1b2c3d4-e5f6-7890-abcd-ef1234567890"), "Kubernetes is not set up on this agent"),
    ];
    for (workload, words) in cases {
        let refused = scene.refused(workload).await;
        assert!(refused.message().contains(words), "{refused}\n(wanted: {words})");
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert_eq!(error_info(&refused), info("WORKLOAD_REFERENCE_INVALID", None));
    }
}

fn pod(uid: &str) -> Option<WorkloadReference> {
    let kind = KubernetesObjectType { plural: "pods".into(), group: "core".into() };
    let key = (uid == "web").then(|| KubernetesObjectKey { namespace: "shop".into(), name: uid.into() });
    let object = KubernetesObjectReference { r#type: Some(kind), key, uid: uid.into() };
    reference("spiffe.broker.KubernetesObjectReference", &object)
}

#[tokio::test]
async fn a_process_that_is_not_there_is_not_found() {
    let scene = Scene::start(&[PIDS]).await;
    let mut web = Sleeper::start();
    web.kill();
    // No kernel gives out so high a number.
    for gone in [web.pid(), i32::MAX] {
        let refused = scene.refused(pid(gone)).await;
        assert_eq!(refused.code(), Code::NotFound, "{refused}");
        assert_eq!(error_info(&refused), info("WORKLOAD_NOT_FOUND", Some(gone)));
    }
}

#[tokio::test]
async fn the_end_of_a_process_ends_its_streams_and_no_others() {
    let scene = Scene::start(&[PIDS]).await;
    let (mut web, lasting) = (Sleeper::start(), Sleeper::start());
    let mut api = scene.proxy.api(&scene.socket()).await;
    let mut streams = Vec::new();
    for workload in [web.pid(), lasting.pid()] {
        let request = with_header(SubscribeToX509svidRequest { reference: pid(workload) });
        let mut stream = api.subscribe_to_x509svid(request).await.unwrap().into_inner();
        next(&mut stream).await.unwrap();
        streams.push(stream);
    }
    web.kill();
    let ended = next(&mut streams[0]).await.unwrap_err();
    assert_eq!(ended.code(), Code::NotFound, "{ended}");
    assert_eq!(error_info(&ended), info("WORKLOAD_NOT_FOUND", Some(web.pid())));
    // The connection goes on, and with it the other stream.
    let request = with_header(SubscribeToX509svidRequest { reference: pid(lasting.pid()) });
    next(&mut api.subscribe_to_x509svid(request).await.unwrap().into_inner()).await.unwrap();
    assert!(is_silent(&mut streams[1]).await);
}

/// Whether it is open, and nothing new has come.
async fn is_silent<T>(stream: &mut Streaming<T>) -> bool {
    tokio::select! {
        biased;
        _ = stream.message() => false,
        () = tokio::task::yield_now() => true,
    }
}

#[tokio::test]
async fn over_the_network_a_pid_is_nobody() {
    let scene = Scene::start(&[PIDS]).await;
    let web = Sleeper::start();
    let refused = svids(&scene.proxy, &scene.port(), pid(web.pid())).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("a pid means nothing over the network"), "{refused}");
    assert_eq!(error_info(&refused), info("WORKLOAD_REFERENCE_INVALID", None));
    let refused = svids(&scene.other, &scene.port(), pid(web.pid())).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
}

#[tokio::test]
async fn to_a_broker_of_another_pid_namespace_the_same_pid_is_another_process() {
    let Some(apart) = own_pids() else { return };
    let scene = Scene::start(&[PIDS]).await;
    let web = Sleeper::start();
    let relayed = scene.house.path("relayed.sock");
    let mut relay = Command::new(apart[0])
        .args(&apart[1..])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "a_relay_of_another_pid_namespace", "--nocapture"])
        .env(RELAY_FROM, &relayed)
        .env(RELAY_TO, scene.house.path("broker.sock"))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let there = async || that(relayed.exists(), || "it does not listen yet".into());
    tests::eventually("the relay listens", there).await;
    let refused = svids(&scene.proxy, &Door::Socket(relayed), pid(web.pid())).await.unwrap_err();
    relay.kill().unwrap();
    relay.wait().unwrap();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("the broker is in another pid namespace than the agent"), "{refused}");
    assert_eq!(error_info(&refused), info("WORKLOAD_REFERENCE_INVALID", None));
}

const RELAY_FROM: &str = "CHANCERY_TEST_RELAY_FROM";
const RELAY_TO: &str = "CHANCERY_TEST_RELAY_TO";

/// No test by itself: the process of the test above that connects to the agent, from a pid namespace of its own.
#[tokio::test]
async fn a_relay_of_another_pid_namespace() {
    let (Some(from), Some(to)) = (std::env::var_os(RELAY_FROM), std::env::var_os(RELAY_TO)) else { return };
    let (mut near, _) = UnixListener::bind(from).unwrap().accept().await.unwrap();
    let mut far = UnixStream::connect(to).await.unwrap();
    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
}

#[test]
fn a_pid_that_was_given_to_another_process_between_reference_and_issue_leads_to_nobody() {
    let Some(apart) = own_pids() else { return };
    let output = Command::new(apart[0])
        .args(&apart[1..])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "pids_come_again_in_a_pid_namespace", "--nocapture"])
        .env(PIDS_COME_AGAIN, "1")
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success() && text.contains("the pid came again"), "{}: {text}", output.status);
}

const PIDS_COME_AGAIN: &str = "CHANCERY_TEST_PIDS_COME_AGAIN";

/// No test by itself: the agent's side of the test above, where the next pid can be chosen.
#[tokio::test]
async fn pids_come_again_in_a_pid_namespace() {
    if std::env::var_os(PIDS_COME_AGAIN).is_none() {
        return;
    }
    let clock = Arc::new(spiffe::time::System);
    let attestors = Attestors::new(vec![Box::new(Unix::new(0, clock.clone()))], clock);
    // A thread may come between and take the number.
    for _ in 0..100 {
        let mut first = Sleeper::start();
        let number = first.pid();
        let named = Peer::named(number.unsigned_abs()).unwrap();
        attestors.attest(&named).await.unwrap();
        first.kill();
        std::fs::write("/proc/sys/kernel/ns_last_pid", (number - 1).to_string()).unwrap();
        let second = Sleeper::start();
        if second.pid() == number {
            // The same user, the same program, the same number, and not the process that was meant.
            attestors.attest(&Peer::named(number.unsigned_abs()).unwrap()).await.unwrap();
            let refused = attestors.attest(&named).await.unwrap_err();
            assert!(matches!(refused, AttestError::Gone(_)), "{refused}");
            println!("the pid came again");
            return;
        }
    }
    panic!("no pid came again");
}

/// A wrapper that gives a pid namespace of its own, in which everything ends with it.
fn own_pids() -> Option<&'static [&'static str]> {
    const CHOICES: [&[&str]; 2] = [
        &["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"],
        &["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"],
    ];
    let works = |choice: &&[&str]| {
        let run = Command::new(choice[0]).args(&choice[1..]).arg("true").output();
        run.is_ok_and(|output| output.status.success())
    };
    let found = CHOICES.into_iter().find(works);
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "cannot make a pid namespace here, and CI must");
        println!("NOT RUN: cannot make a pid namespace here");
    }
    found
}

#[tokio::test]
async fn who_has_no_svid_of_the_trust_domain_is_turned_away_in_the_handshake() {
    let scene = Scene::start(&[PIDS]).await;
    let foreign = root("another root");
    let forged = |name: &str| {
        let key = spiffe::crypto::generate_key(spiffe::entry::KeyType::P256).unwrap();
        let name = spiffe::id::SpiffeId::parse(name).unwrap();
        let leaf = svid_params(&name).signed_by(&key, &foreign).unwrap().der().clone();
        Some((X509Svid::parse(vec![leaf]).unwrap(), key.serialize_der()))
    };
    for door in [scene.socket(), scene.port()] {
        for svid in [None, forged("spiffe://other.org/proxy"), forged("spiffe://example.org/proxy")] {
            let stranger = Broker { svid, ..scene.proxy.clone() };
            stranger.knock(&door).await.unwrap_err();
        }
        scene.proxy.knock(&door).await.unwrap();
        // And the broker turns away who is not its agent.
        let wrong = Broker { agent: id("/chancery/agent/other"), ..scene.proxy.clone() };
        let refused = wrong.knock(&door).await.unwrap_err();
        assert!(refused.contains("is not let in here, but only"), "{refused}");
        let roots = vec![X509Authority::from_der(foreign.der().clone()).unwrap()];
        let bundle = Bundle::new(tests::house::trust_domain(), roots, 1, None).unwrap();
        Broker { bundle, ..scene.proxy.clone() }.knock(&door).await.unwrap_err();
    }
    // Without TLS there is nothing.
    let plain = tests::operator::unix(&scene.house.path("broker.sock")).await;
    if let Ok(channel) = plain {
        let mut api = spiffe::proto::broker::api_client::ApiClient::new(channel);
        let request = with_header(SubscribeToX509svidRequest { reference: pid(1) });
        soon("an end", api.subscribe_to_x509svid(request)).await.unwrap_err();
    }
}

#[tokio::test]
async fn a_connection_does_not_outlive_the_svid_of_its_broker() {
    let scene = Scene::start(&[PIDS]).await;
    let web = Sleeper::start();
    let mut api = scene.proxy.api(&scene.socket()).await;
    let request = || with_header(SubscribeToX509svidRequest { reference: pid(web.pid()) });
    let mut stream = api.subscribe_to_x509svid(request()).await.unwrap().into_inner();
    next(&mut stream).await.unwrap();
    scene.house.jump(BROKER_LIFE + Duration::from_secs(120));
    let ended = loop {
        match next(&mut stream).await {
            Ok(_) => {}
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), Code::Unauthenticated, "{ended}");
    let refused = api.subscribe_to_x509svid(request()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    assert!(refused.message().contains("connect anew with a fresh one"), "{refused}");
    // Nor is it let in anew.
    scene.proxy.knock(&scene.socket()).await.unwrap_err();
}

#[tokio::test]
async fn the_svid_of_a_broker_counts_only_as_long_as_its_root_is_in_the_bundle() {
    let scene = Scene::start(&[PIDS]).await;
    let web = Sleeper::start();
    let mut api = scene.proxy.api(&scene.socket()).await;
    let mut ask = async || {
        let request = with_header(SubscribeToX509BundlesRequest { reference: pid(web.pid()) });
        api.subscribe_to_x509_bundles(request).await.map(drop)
    };
    ask().await.unwrap();
    let mut open = scene.svids(&scene.proxy, pid(web.pid())).await.unwrap();
    let operator = scene.house.operator().await;
    let old = operator.active().await;
    let fresh = operator.prepare().await;
    operator.activate(&fresh.id).await.unwrap();
    operator.taint(&old.id).await.unwrap();
    let revoke = v1::AuthorityRequest { id: old.id.clone(), force: true };
    operator.door.clone().revoke_authority(revoke).await.unwrap();
    let refused = scene
        .house
        .eventually("the agent knows that the root is gone", async || match ask().await {
            Err(refused) => Ok(refused),
            Ok(()) => Err("it is still answered".into()),
        })
        .await;
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    // Nor does a stream go on that was open before.
    let ended = loop {
        match next(&mut open).await {
            Ok(_) => {}
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), Code::Unauthenticated, "{ended}");
    assert!(ended.message().contains("is not good any more"), "{ended}");
}

#[tokio::test]
async fn who_knocks_from_afar_takes_no_place_from_brokers_beside_us() {
    let scene = Scene::start(&[PIDS]).await;
    let Door::Port(address) = scene.port() else { panic!("a port") };
    let mut silent = Vec::new();
    for network in 2..6 {
        for _ in 0..64 {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind(([127, 0, 0, network], 0).into()).unwrap();
            silent.push(socket.connect(address).await.unwrap());
        }
    }
    let mut beyond = TcpStream::connect(address).await.unwrap();
    soon("it is turned away", beyond.read_u8()).await.unwrap_err();
    scene.proxy.knock(&scene.socket()).await.unwrap();
}

#[tokio::test]
async fn who_connects_and_says_nothing_is_not_waited_for() {
    let scene = Scene::start(&[PIDS]).await;
    let Door::Port(address) = scene.port() else { panic!("a port") };
    let mut socket = UnixStream::connect(scene.house.path("broker.sock")).await.unwrap();
    let mut port = TcpStream::connect(address).await.unwrap();
    let began = scene.house.now();
    let ends = tokio::spawn(async move { tokio::join!(socket.read_u8(), port.read_u8()) });
    let hung_up = async || that(ends.is_finished(), || "it still listens".into());
    scene.house.eventually("the agent hangs up", hung_up).await;
    let (socket, port) = ends.await.unwrap();
    assert!(socket.is_err() && port.is_err(), "{socket:?} {port:?}");
    let waited = scene.house.now().since(began);
    assert!((10..60).contains(&waited.as_secs()), "{waited:?}");
}

#[tokio::test]
async fn connections_of_one_broker_are_bounded_and_given_back() {
    let mut scene = Scene::start(&[PIDS]).await;
    scene.node.stop_agent().await;
    scene.node.set("broker.connections_per_broker", "2");
    scene.node.start_agent(&scene.house).await.unwrap();
    let mut held = [scene.proxy.api(&scene.socket()).await, scene.proxy.api(&scene.port()).await];
    for api in &mut held {
        // A refusal: by then the agent has taken it up.
        api.subscribe_to_x509svid(with_header(SubscribeToX509svidRequest::default())).await.unwrap_err();
    }
    scene.proxy.knock(&scene.socket()).await.unwrap_err();
    // Who is none has other places.
    scene.other.knock(&scene.socket()).await.unwrap();
    drop(held);
    let again = async || scene.proxy.knock(&scene.socket()).await;
    scene.house.eventually("a place is given back", again).await;
}

#[tokio::test]
async fn streams_of_one_broker_are_bounded_and_given_back() {
    let mut scene = Scene::start(&[PIDS]).await;
    let web = Sleeper::start();
    scene.node.stop_agent().await;
    scene.node.set("broker.streams_per_broker", "2");
    scene.node.start_agent(&scene.house).await.unwrap();
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push(scene.svids(&scene.proxy, pid(web.pid())).await.unwrap());
    }
    let refused = scene.refused(pid(web.pid())).await;
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(refused.message().contains("spiffe://example.org/proxy has taken all 2 places"), "{refused}");
    held.pop();
    scene
        .house
        .eventually("a place is given back", async || {
            let answer = scene.svids(&scene.proxy, pid(web.pid())).await;
            that(answer.is_ok(), || format!("{answer:?}"))
        })
        .await;
}
