//! What a workload gets of tokens, from a real server: JWT-SVIDs that are held for it, through every rotation; WIT-SVIDs on its
//! stream; the keys to verify both with.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::time::Duration;

use spiffe::bundle::Bundle;
use spiffe::jwt_svid::JwtSvid;
use spiffe::proto::v1;
use spiffe::proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use spiffe::proto::workload::{
    JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, ValidateJwtsvidRequest, WitsvidRequest,
};
use spiffe::time::Clock as _;
use spiffe::wit_svid::WitSvid;
use tests::house::{House, trust_domain};
use tests::operator::{entry, unix};
use tests::patience::{soon, that};
use tests::workload::with_header;
use tests::{Node, Operator, certificates};
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

const MINUTE: Duration = Duration::from_secs(60);

/// A house with one agent, whose workload asks.
struct Setting {
    house: House,
    operator: Operator,
    _node: Node,
    door: SpiffeWorkloadApiClient<Channel>,
}

impl Setting {
    async fn start(change: impl FnOnce(&mut v1::Entry)) -> (Self, v1::Entry) {
        let house = House::start(&[]).await;
        let operator = house.operator().await;
        let node = Node::start(&house, "node", &[]).await;
        let door = SpiffeWorkloadApiClient::new(unix(node.socket()).await.unwrap());
        let mut wanted = entry(&node.id(), "/web");
        change(&mut wanted);
        let (held, _) = operator.register(wanted).await;
        let setting = Self { house, operator, _node: node, door };
        setting.house.eventually("a token comes", async || setting.jwt(&["a"]).await).await;
        (setting, held)
    }

    async fn jwt(&self, audience: &[&str]) -> Result<JwtSvid, String> {
        self.try_jwt(audience).await.map_err(|status| status.to_string())
    }

    async fn try_jwt(&self, audience: &[&str]) -> Result<JwtSvid, Status> {
        let audience = audience.iter().map(ToString::to_string).collect();
        let request = with_header(JwtsvidRequest { audience, spiffe_id: String::new() });
        let answer = soon("a token or none", self.door.clone().fetch_jwtsvid(request)).await?;
        Ok(JwtSvid::parse(&answer.into_inner().svids[0].svid).unwrap())
    }

    /// Asks once more, and whether what comes is good by the server's own bundle and by the agent.
    async fn is_good(&self, audience: &str) -> JwtSvid {
        let svid = self.jwt(&[audience]).await.unwrap();
        let bundle = self.operator.bundle().await;
        svid.verify(&bundle, audience, self.house.now()).unwrap_or_else(|why| panic!("at {}: {why}", self.house.now()));
        assert!(svid.expires_at() >= self.house.now().plus(Duration::from_secs(5)));
        let request = ValidateJwtsvidRequest { audience: audience.into(), svid: svid.token().into() };
        self.door.clone().validate_jwtsvid(with_header(request)).await.unwrap();
        svid
    }

    async fn jwt_bundles(&self) -> Streaming<JwtBundlesResponse> {
        let request = with_header(JwtBundlesRequest {});
        self.door.clone().fetch_jwt_bundles(request).await.unwrap().into_inner()
    }

    async fn applied(&self, revision: u64) {
        self.house
            .eventually("the change is applied", async || {
                let behind = self.operator.behind(revision).await;
                that(behind.is_empty(), || format!("behind: {behind:?}"))
            })
            .await;
    }
}

fn kids(message: &JwtBundlesResponse) -> Vec<String> {
    let bundle = Bundle::from_jwks(trust_domain(), &message.bundles["spiffe://example.org"]).unwrap();
    bundle.jwt_authorities().iter().map(|key| key.kid().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn through_a_rotation_under_load_no_token_is_bad() {
    let (setting, _) = Setting::start(|_| {}).await;
    let mut bundles = setting.jwt_bundles().await;
    assert_eq!(kids(&bundles.message().await.unwrap().unwrap()).len(), 1);
    let first = setting.is_good("a").await;
    let next = setting.operator.prepare_of("jwt").await;
    let both = soon("the prepared key comes", bundles.message()).await.unwrap().unwrap();
    assert_eq!(kids(&both).len(), 2);
    setting
        .house
        .eventually("it is activated", async || {
            setting.is_good("a").await;
            setting.operator.activate(&next.id).await.map(drop).map_err(|status| status.to_string())
        })
        .await;
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..40 {
        setting.house.jump(Duration::from_secs(15));
        for audience in ["a", "b"] {
            seen.insert(setting.is_good(audience).await.kid().unwrap().to_owned());
        }
    }
    assert!(seen.len() == 2 && seen.contains(first.kid().unwrap()), "{seen:?}");
    assert_ne!(setting.is_good("a").await.kid(), first.kid());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_a_tainted_key_is_replaced_at_once() {
    let (setting, _) = Setting::start(|_| {}).await;
    let first = setting.is_good("a").await;
    let old = setting.operator.authorities_of("jwt").await.remove(0);
    let next = setting.operator.prepare_of("jwt").await;
    setting
        .house
        .eventually("it is activated", async || {
            setting.operator.activate(&next.id).await.map(drop).map_err(|status| status.to_string())
        })
        .await;
    let answer = setting.operator.taint(&old.id).await.unwrap();
    setting.applied(answer.revision).await;
    let second = setting.is_good("a").await;
    assert_ne!(second.kid(), first.kid());
    let answer = setting.operator.revoke(&old.id).await.unwrap();
    setting.applied(answer.revision).await;
    assert_eq!(setting.is_good("a").await, second, "which is held, and good");
}

#[tokio::test]
async fn tokens_are_held_by_audience_renewed_before_half_of_their_life_and_go_with_their_entry() {
    let (setting, held) = Setting::start(|_| {}).await;
    let first = setting.is_good("a").await;
    assert_eq!(setting.is_good("a").await, first);
    let both = setting.jwt(&["b", "a"]).await.unwrap();
    assert!(both != first && both == setting.jwt(&["a", "b"]).await.unwrap());
    for _ in 0..30 {
        setting.house.jump(Duration::from_secs(10));
        let svid = setting
            .house
            .eventually("it is fresh", async || {
                let svid = setting.jwt(&["a"]).await?;
                let left = svid.expires_at().since(setting.house.now());
                that(left >= Duration::from_secs(140), || format!("{left:?} are left")).map(|()| svid)
            })
            .await;
        svid.verify(&setting.operator.bundle().await, "a", setting.house.now()).unwrap();
    }
    let revision = setting.operator.delete(&held.id).await;
    setting.applied(revision).await;
    assert_eq!(setting.try_jwt(&["a"]).await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn each_call_for_an_entry_with_jti_is_another_token() {
    let (setting, mut held) = Setting::start(|entry| entry.jti = true).await;
    let (one, other) = (setting.is_good("a").await, setting.is_good("a").await);
    assert!(one.claims()["jti"] != other.claims()["jti"]);
    held.jti = false;
    held.jwt_ttl = 60;
    let revision = setting.operator.update(held).await;
    setting.applied(revision).await;
    let short = setting.is_good("a").await;
    assert!(!short.claims().contains_key("jti") && short == setting.is_good("a").await);
    assert_eq!(short.expires_at().since(short.issued_at().unwrap()), MINUTE);
}

#[tokio::test]
async fn held_tokens_outlive_an_outage() {
    let (mut setting, _) = Setting::start(|_| {}).await;
    let held = setting.jwt(&["a"]).await.unwrap();
    let bundle = setting.operator.bundle().await;
    setting.house.stop_server().await;
    setting.house.jump(MINUTE * 4);
    assert_eq!(setting.jwt(&["a"]).await.unwrap(), held);
    held.verify(&bundle, "a", setting.house.now()).unwrap();
    let unavailable = setting.house.clock();
    let waiting = setting.try_jwt(&["b"]);
    let passing = async {
        loop {
            tokio::task::yield_now().await;
            setting.house.jump(Duration::from_secs(1));
            spiffe::time::System.sleep(Duration::from_millis(20)).await;
        }
    };
    let refused = tokio::select! { refused = waiting => refused.unwrap_err(), () = passing => unreachable!() };
    assert_eq!(refused.code(), Code::Unavailable, "{refused} at {}", unavailable.now());
    setting.house.start_server().await.unwrap();
    let back = setting.house.eventually("the server is back", async || setting.jwt(&["a"]).await).await;
    assert_eq!(back.id().path(), "/web");
}

#[tokio::test]
async fn foreign_keys_come_and_go_with_the_entry() {
    let (setting, mut held) = Setting::start(|_| {}).await;
    let mut operator = setting.house.operator().await;
    let mut bundles = setting.jwt_bundles().await;
    assert_eq!(bundles.message().await.unwrap().unwrap().bundles.len(), 1);
    let mut foreign = v1::Bundle::from(&setting.operator.bundle().await);
    foreign.trust_domain = "other.test".into();
    let root = certificates::root("other").der().to_vec();
    foreign.x509_authorities = vec![v1::X509Authority { certificate: root.into(), tainted: false }];
    operator.door.set_bundle(v1::SetBundleRequest { bundle: Some(foreign) }).await.unwrap();
    held.federates_with = vec!["other.test".into()];
    setting.operator.update(held.clone()).await;
    let both = soon("the foreign keys come", bundles.message()).await.unwrap().unwrap();
    assert!(both.bundles.len() == 2 && both.bundles.contains_key("spiffe://other.test"), "{both:?}");
    held.federates_with.clear();
    setting.operator.update(held.clone()).await;
    let own = soon("they go", bundles.message()).await.unwrap().unwrap();
    assert_eq!(own.bundles.keys().collect::<Vec<_>>(), ["spiffe://example.org"]);
    setting.operator.delete(&held.id).await;
    let end = soon("the stream ends", bundles.message()).await.unwrap_err();
    assert_eq!(end.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_wit_svid_comes_on_the_stream_and_is_replaced_when_its_key_is_tainted() {
    let (setting, _) = Setting::start(|_| {}).await;
    let request = with_header(WitsvidRequest::default());
    let mut stream = setting.door.clone().fetch_witsvid(request).await.unwrap().into_inner();
    let mut next = async || {
        let wire = soon("a WIT-SVID comes", stream.message()).await.unwrap().unwrap().svids.remove(0);
        (WitSvid::parse(&wire.wit_svid).unwrap(), wire.wit_svid_key.clone())
    };
    let (first, key) = next().await;
    first.verify(&setting.operator.bundle().await, setting.house.now()).unwrap();
    let old = setting.operator.authorities_of("wit").await.remove(0);
    let prepared = setting.operator.prepare_of("wit").await;
    setting
        .house
        .eventually("it is activated", async || {
            setting.operator.activate(&prepared.id).await.map(drop).map_err(|status| status.to_string())
        })
        .await;
    let answer = setting.operator.taint(&old.id).await.unwrap();
    let (second, other_key) = next().await;
    assert!(second.kid() != first.kid() && key != other_key);
    setting.applied(answer.revision).await;
    setting.operator.revoke(&old.id).await.unwrap();
    second.verify(&setting.operator.bundle().await, setting.house.now()).unwrap();
}
