//! A broker acts for workloads: what it gets is what they would get.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use spiffe::proto::broker::{SubscribeToX509BundlesRequest, SubscribeToX509BundlesResponse};
use spiffe::proto::v1;
use spiffe::x509_svid::X509Svid;
use tests::broker::scene::{PIDS, Scene, info, next};
use tests::broker::{Sleeper, error_info, pid, with_header};
use tonic::Code;

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
