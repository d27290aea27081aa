//! A broker acts for workloads: what it gets is what they would get.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::time::Duration;

use serde_json::Value;
use spiffe::jwt_svid::JwtSvid;
use spiffe::proto::broker::{
    FetchJwtsvidRequest, FetchJwtsvidResponse, SubscribeToJwtBundlesRequest, SubscribeToX509BundlesRequest,
    SubscribeToX509BundlesResponse,
};
use spiffe::proto::v1;
use spiffe::x509_svid::X509Svid;
use tests::broker::scene::{PIDS, Scene, info, next};
use tests::broker::{Sleeper, error_info, pid, with_header};
use tests::house::id;
use tests::operator::entry;
use tests::patience::{soon, that};
use tonic::{Code, Status};

#[tokio::test]
async fn a_broker_is_told_what_the_workload_would_be() {
    let scene = Scene::start(&[PIDS]).await;
    let web = Sleeper::start();
    let mut stream = scene.svids(&scene.proxy, pid(web.pid())).await.unwrap();
    let first = next(&mut stream).await.unwrap();
    let [svid] = &first.svids[..] else { panic!("one SVID, not {}", first.svids.len()) };
    assert_eq!(svid.spiffe_id, "spiffe://example.org/web");
    let parsed = X509Svid::parse(tests::workload::certificates(&svid.x509_svid)).unwrap();
    parsed.key_fits(&svid.x509_svid_key).unwrap();
    parsed.verify(&scene.proxy.bundle, scene.house.now()).unwrap();
    assert!(first.crl.is_empty() && first.federated_bundles.is_empty());

    let request = with_header(SubscribeToX509BundlesRequest { reference: pid(web.pid()) });
    let mut api = scene.proxy.api(&scene.socket()).await;
    let mut stream = api.subscribe_to_x509_bundles(request).await.unwrap().into_inner();
    let SubscribeToX509BundlesResponse { crl, bundles } = next(&mut stream).await.unwrap();
    assert!(crl.is_empty());
    assert_eq!(bundles.keys().collect::<Vec<_>>(), ["spiffe://example.org"]);
    assert_eq!(bundles["spiffe://example.org"], svid.bundle);

    // The entry goes: the broker is told so, and may ask again once there is another.
    let mut stream = scene.svids(&scene.proxy, pid(web.pid())).await.unwrap();
    next(&mut stream).await.unwrap();
    let operator = scene.house.operator().await;
    let entries = operator.door.clone().list_entries(v1::ListEntriesRequest::default()).await.unwrap().into_inner();
    let entry = entries.entries.into_iter().find(|entry| entry.spiffe_id.ends_with("/web")).unwrap();
    operator.delete(&entry.id).await;
    let refused = next(&mut stream).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    assert_eq!(error_info(&refused), info("WORKLOAD_NOT_ENTITLED", Some(web.pid())));
}

/// What the proxy gets for a process: tokens for an audience, of one SPIFFE ID or (empty) of all.
async fn tokens(
    scene: &Scene,
    workload: i32,
    audience: &[&str],
    spiffe_id: &str,
) -> Result<FetchJwtsvidResponse, Status> {
    let request = FetchJwtsvidRequest {
        reference: pid(workload),
        audience: audience.iter().map(ToString::to_string).collect(),
        spiffe_id: spiffe_id.into(),
    };
    let mut api = scene.proxy.api(&scene.socket()).await;
    soon("an answer", api.fetch_jwtsvid(with_header(request))).await.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn a_broker_is_given_tokens_for_the_audiences_of_its_rules() {
    let scene = Scene::start(&[&format!("{PIDS}, audiences = ['reports', 'mail']")]).await;
    let web = Sleeper::start();
    let answer = tokens(&scene, web.pid(), &["reports"], "").await.unwrap();
    let [svid] = &answer.svids[..] else { panic!("one token, not {}", answer.svids.len()) };
    assert_eq!(svid.spiffe_id, "spiffe://example.org/web");
    let bundle = scene.house.operator().await.bundle().await;
    let token = JwtSvid::parse(&svid.svid).unwrap().verify(&bundle, "reports", scene.house.now()).unwrap();
    assert_eq!(token.id(), &id("/web"));
    // By its ID it is the same one, and for both audiences another.
    let same = tokens(&scene, web.pid(), &["reports"], &svid.spiffe_id).await.unwrap();
    assert_eq!(same.svids[0].svid, svid.svid);
    let both = tokens(&scene, web.pid(), &["mail", "reports"], "").await.unwrap();
    JwtSvid::parse(&both.svids[0].svid).unwrap().verify(&bundle, "mail", scene.house.now()).unwrap();

    // Of two identities with one hint the older has it.
    let operator = scene.house.operator().await;
    let own = format!("unix:path:{}", Sleeper::program().display());
    for path in ["/first", "/second"] {
        let hinted =
            v1::Entry { hint: "internal".into(), selectors: vec![own.clone()], ..entry(&scene.node.id(), path) };
        let (_, revision) = operator.register(hinted).await;
        let applied = async || that(operator.behind(revision).await.is_empty(), || "behind".into());
        scene.house.eventually("the agent knows it", applied).await;
        scene.house.jump(Duration::from_secs(1));
    }
    let all = tokens(&scene, web.pid(), &["reports"], "").await.unwrap().svids;
    let all: Vec<_> = all.iter().map(|svid| (svid.spiffe_id.rsplit('/').next().unwrap(), svid.hint.as_str())).collect();
    assert_eq!(all, [("web", ""), ("first", "internal"), ("second", "")]);

    let request = with_header(SubscribeToJwtBundlesRequest { reference: pid(web.pid()) });
    let mut api = scene.proxy.api(&scene.socket()).await;
    let mut stream = api.subscribe_to_jwt_bundles(request).await.unwrap().into_inner();
    let bundles = next(&mut stream).await.unwrap().bundles;
    assert_eq!(bundles.keys().collect::<Vec<_>>(), ["spiffe://example.org"]);
    let keys: Value = serde_json::from_slice(&bundles["spiffe://example.org"]).unwrap();
    let keys = keys["keys"].as_array().unwrap();
    assert!(keys.iter().any(|key| key["kid"].as_str() == token.kid()), "{keys:?}");
    assert!(keys.iter().all(|key| key.get("x5c").is_none()), "{keys:?}");
}

#[tokio::test]
async fn a_broker_is_given_no_other_tokens() {
    let scene = Scene::start(&[&format!("{PIDS}, audiences = ['reports']")]).await;
    let mut web = Sleeper::start();
    let not_entitled = info("WORKLOAD_NOT_ENTITLED", None);
    for (audience, spiffe_id, code, words, details) in [
        (&["billing"][..], "", Code::PermissionDenied, "may not have a JWT-SVID for \"billing\"", None),
        (&["reports", "billing"], "", Code::PermissionDenied, "\"billing, reports\"", None),
        (&[], "", Code::InvalidArgument, "there is no audience", None),
        (&[""], "", Code::InvalidArgument, "an audience is empty", None),
        (&["reports"], "example.org/web", Code::InvalidArgument, "spiffe_id: ", None),
        (&["reports"], "spiffe://example.org/proxy", Code::PermissionDenied, "is not entitled to", not_entitled),
    ] {
        let refused = tokens(&scene, web.pid(), audience, spiffe_id).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.message().contains(words), "{refused}\n(wanted: {words})");
        assert_eq!(error_info(&refused), details);
    }
    // The identities of operators are for no broker.
    let operator = scene.house.operator().await;
    let own = format!("unix:path:{}", Sleeper::program().display());
    let admin = v1::Entry { admin: true, selectors: vec![own], ..entry(&scene.node.id(), "/operator") };
    let (_, revision) = operator.register(admin).await;
    let applied = async || that(operator.behind(revision).await.is_empty(), || "behind".into());
    scene.house.eventually("the agent knows it", applied).await;
    let answer = tokens(&scene, web.pid(), &["reports"], "").await.unwrap();
    assert_eq!(
        answer.svids.iter().map(|svid| svid.spiffe_id.as_str()).collect::<Vec<_>>(),
        ["spiffe://example.org/web"]
    );
    let refused = tokens(&scene, web.pid(), &["reports"], "spiffe://example.org/operator").await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    // Nor is there anything for a process that has gone.
    web.kill();
    let refused = tokens(&scene, web.pid(), &["reports"], "").await.unwrap_err();
    assert_eq!((refused.code(), error_info(&refused)), (Code::NotFound, info("WORKLOAD_NOT_FOUND", Some(web.pid()))));
}
