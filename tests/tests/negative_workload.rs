//! The workload socket and the agent's config against bad input.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::os::unix::net::UnixListener;

use node_agent::config::Config;
use spiffe::proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use spiffe::proto::workload::{JwtsvidRequest, X509BundlesRequest, X509svidRequest};
use tests::operator::{entry, unix};
use tests::workload::with_header;
use tests::{House, Node};
use tonic::{Code, Request};

#[tokio::test]
async fn without_the_security_header_nothing_is_answered() {
    let house = House::start(&[]).await;
    let node = Node::start(&house, "node", &[]).await;
    house.operator().await.register(entry(&node.id(), "/web")).await;
    let mut door = SpiffeWorkloadApiClient::new(unix(node.socket()).await.unwrap());
    let expected = "security header is missing: send the metadata \"workload.spiffe.io: true\" with every request";
    for value in [None, Some("false"), Some("TRUE"), Some("")] {
        let mut request = Request::new(X509svidRequest {});
        if let Some(value) = value {
            request.metadata_mut().insert("workload.spiffe.io", value.parse().unwrap());
        }
        let refused = door.fetch_x509svid(request).await.unwrap_err();
        assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, expected), "{value:?}");
    }
    let refused = door.fetch_x509_bundles(Request::new(X509BundlesRequest {})).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, expected));
    let refused = door.fetch_jwtsvid(Request::new(JwtsvidRequest::default())).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, expected));
    let refused = door.fetch_jwtsvid(with_header(JwtsvidRequest::default())).await.unwrap_err();
    assert!(refused.code() == Code::InvalidArgument && refused.message().starts_with("audience: "), "{refused}");
}

#[tokio::test]
async fn a_stale_workload_socket_is_replaced_and_a_live_one_is_not() {
    let house = House::start(&[]).await;
    drop(UnixListener::bind(house.path("node.sock")).unwrap());
    let node = Node::start(&house, "node", &[]).await;
    house.operator().await.register(entry(&node.id(), "/web")).await;
    let workload = node.workload(&house).await;
    house.eventually("it is served", async || workload.context()).await;

    let token = house.operator().await.token("").await;
    let mut second = Node::new(&house, "second", &[("attest.kind", "join_token")]).await;
    second.set("attest.token", &token);
    second.set("workload_socket", node.socket().to_str().unwrap());
    let refused = second.start_agent(&house).await.unwrap_err();
    let path = node.socket().display();
    assert_eq!(refused, format!("another agent listens on {path}: stop it, or choose another socket path"));
    // Its token is not used up by that.
    second.set("workload_socket", house.path("second.sock").to_str().unwrap());
    second.start_agent(&house).await.unwrap();
}

#[tokio::test]
async fn a_wrong_fingerprint_is_no_server_to_trust() {
    let house = House::start(&[]).await;
    let token = house.operator().await.token("").await;
    let mut node = Node::new(&house, "node", &[("attest.kind", "join_token")]).await;
    node.set("attest.token", &token);
    node.set("ca_fingerprint", &format!("sha256:{}", "0".repeat(64)));
    // It tries on, as for a server that is away: nothing of it is ever sent.
    let starting = node.start_agent(&house);
    let stopped = tokio::select! {
        _ = starting => true,
        () = house.eventually("some attempts are over", async || {
            let passed = house.now().since(tests::house::BEGINNING).as_secs();
            if passed > 20 { Ok(()) } else { Err(format!("{passed} s")) }
        }) => false,
    };
    let tokens = house.operator().await.door.list_join_tokens(spiffe::proto::v1::ListJoinTokensRequest {}).await;
    assert_eq!(tokens.unwrap().into_inner().tokens.len(), 1, "the token has not been used (stopped: {stopped})");
    assert!(house.operator().await.agents().await.is_empty());
}

#[test]
fn agent_configs_that_cannot_be() {
    let least = "trust_domain = 'example.org'\nservers = ['ca:8443']\ndata_dir = '/d'\nbootstrap_bundle = '/b.pem'\n";
    let attest = "[attest]\nkind = 'join_token'\ntoken = 'abc'\n";
    let parse = |text: &str| Config::parse(text, []).unwrap_err().to_string();
    let path = format!("/{}", "s".repeat(120));
    let long = parse(&format!("{least}workload_socket = '{path}'\n{attest}"));
    let words = format!("socket path {path} has 121 bytes: at most 107 are possible, choose a shorter one");
    assert!(long.contains(&words), "{long}");
    let unknown = parse(&format!("{least}workload_socket = '/a.sock'\nserver = 'x'\n{attest}"));
    assert!(unknown.contains("unknown field `server`") && unknown.contains("line 6"), "{unknown}");
    let relative = parse(&format!("{least}workload_socket = 'a.sock'\n{attest}"));
    assert!(relative.contains("socket path a.sock must be absolute: workloads have other folders"), "{relative}");
}
