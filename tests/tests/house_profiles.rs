//! The JWT-SVID and WIT-SVID profiles of the Workload API, as a workload meets them (SPIFFE_Workload_API.md sections 6
//! and 7).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::time::Duration;

use spiffe::bundle::Bundle;
use spiffe::jose::Jwk;
use spiffe::proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use spiffe::proto::workload::{
    JwtBundlesRequest, JwtsvidRequest, ValidateJwtsvidRequest, WitBundlesRequest, WitsvidRequest,
};
use spiffe::wit_svid::WitSvid;
use tests::operator::{entry, unix};
use tests::workload::with_header;
use tests::{House, Node};
use tonic::Code;
use tonic::transport::Channel;

/// A node with two identities for this process, both with the hint `db`.
async fn scene() -> (House, Node, SpiffeWorkloadApiClient<Channel>) {
    let house = House::start(&[]).await;
    let operator = house.operator().await;
    let node = Node::start(&house, "node", &[]).await;
    for path in ["/oldest", "/youngest"] {
        let mut wanted = entry(&node.id(), path);
        wanted.hint = "db".into();
        operator.register(wanted).await;
        house.jump(Duration::from_secs(2));
    }
    let workload = node.workload(&house).await;
    let both = async || {
        workload.context().is_ok_and(|context| context.identities.len() == 2).then_some(()).ok_or("not yet".into())
    };
    house.eventually("both identities come", both).await;
    let door = SpiffeWorkloadApiClient::new(unix(node.socket()).await.unwrap());
    (house, node, door)
}

fn reports() -> JwtsvidRequest {
    JwtsvidRequest { audience: vec!["reports".into()], spiffe_id: String::new() }
}

#[tokio::test]
async fn a_jwt_svid_for_each_identity_with_hints_that_are_unique_and_claims_that_come_back() {
    let (_house, _node, mut door) = scene().await;
    let svids = door.fetch_jwtsvid(with_header(reports())).await.unwrap().into_inner().svids;
    let seen: Vec<_> = svids.iter().map(|svid| (svid.spiffe_id.as_str(), svid.hint.as_str())).collect();
    assert_eq!(seen, [("spiffe://example.org/oldest", "db"), ("spiffe://example.org/youngest", "")]);

    let request = ValidateJwtsvidRequest { audience: "reports".into(), svid: svids[0].svid.clone() };
    let answer = door.validate_jwtsvid(with_header(request)).await.unwrap().into_inner();
    assert_eq!(answer.spiffe_id, "spiffe://example.org/oldest");
    let claims = answer.claims.unwrap().fields;
    for name in ["sub", "aud", "exp"] {
        assert!(claims.contains_key(name), "{name} of {claims:?}");
    }
}

#[tokio::test]
async fn a_request_without_a_mandatory_field_is_an_invalid_argument() {
    let (_house, _node, mut door) = scene().await;
    let refused = door.fetch_jwtsvid(with_header(JwtsvidRequest::default())).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    let token = door.fetch_jwtsvid(with_header(reports())).await.unwrap().into_inner().svids.remove(0).svid;
    for (audience, svid) in [("", token.as_str()), ("reports", "")] {
        let request = ValidateJwtsvidRequest { audience: audience.into(), svid: svid.into() };
        let refused = door.validate_jwtsvid(with_header(request)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    }
}

#[tokio::test]
async fn a_wit_svid_for_each_identity_with_hints_that_are_unique_and_keys_that_say_their_algorithm() {
    let (house, _node, mut door) = scene().await;
    let mut stream = door.fetch_witsvid(with_header(WitsvidRequest::default())).await.unwrap().into_inner();
    let svids = stream.message().await.unwrap().unwrap().svids;
    let seen: Vec<_> = svids.iter().map(|svid| (svid.spiffe_id.as_str(), svid.hint.as_str())).collect();
    assert_eq!(seen, [("spiffe://example.org/oldest", "db"), ("spiffe://example.org/youngest", "")]);

    let mut stream = door.fetch_wit_bundles(with_header(WitBundlesRequest {})).await.unwrap().into_inner();
    let bundles = stream.message().await.unwrap().unwrap().bundles;
    let bundle = Bundle::from_jwks(tests::house::trust_domain(), bundles["spiffe://example.org"].as_bytes()).unwrap();
    for svid in &svids {
        let wit = WitSvid::parse(&svid.wit_svid).unwrap();
        wit.verify(&bundle, house.now()).unwrap();
        let mut key: serde_json::Value = serde_json::from_str(&svid.wit_svid_key).unwrap();
        assert_eq!(key["alg"], wit.key().algorithm().name());
        assert!(key.as_object_mut().unwrap().remove("d").is_some(), "it is the private key");
        let public = Jwk::from_json(key.to_string().as_bytes()).unwrap();
        assert_eq!(public.key(), wit.key().key());
    }
}

#[tokio::test]
async fn without_an_identity_permission_is_denied_by_every_rpc() {
    let house = House::start(&[]).await;
    let node = Node::start(&house, "node", &[]).await;
    let mut door = SpiffeWorkloadApiClient::new(unix(node.socket()).await.unwrap());
    let mut refusals = vec![door.fetch_jwtsvid(with_header(reports())).await.unwrap_err()];
    // A stream may be refused when it is opened, or by its first message.
    refusals.push(match door.fetch_jwt_bundles(with_header(JwtBundlesRequest {})).await {
        Ok(stream) => stream.into_inner().message().await.unwrap_err(),
        Err(refused) => refused,
    });
    refusals.push(match door.fetch_witsvid(with_header(WitsvidRequest::default())).await {
        Ok(stream) => stream.into_inner().message().await.unwrap_err(),
        Err(refused) => refused,
    });
    refusals.push(match door.fetch_wit_bundles(with_header(WitBundlesRequest {})).await {
        Ok(stream) => stream.into_inner().message().await.unwrap_err(),
        Err(refused) => refused,
    });
    for refused in refusals {
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    }
}
