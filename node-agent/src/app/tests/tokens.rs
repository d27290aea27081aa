//! The profiles of tokens, through the socket of a whole agent.

use spiffe::bundle::Bundle;
use spiffe::jose::{Jwk, JwkMembers};
use spiffe::jwt_svid::JwtSvid;
use spiffe::proto::workload::{
    JwtBundlesRequest, JwtsvidRequest, ValidateJwtsvidRequest, ValidateJwtsvidResponse, WitBundlesRequest,
    WitsvidRequest,
};
use spiffe::wit_svid::WitSvid;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::*;
use crate::test_house::Serving;

type Door = SpiffeWorkloadApiClient<Channel>;

/// A server, an agent, and the door of its socket.
struct Setting {
    house: House,
    agent: Agent,
    door: Door,
    serving: Option<Serving>,
    _place: TempDir,
}

async fn setting(entries: Vec<RegistrationEntry>) -> Setting {
    let (house, place) = (House::new(NOW), TempDir::new().unwrap());
    house.state().tokens.insert("abc".into());
    house.state().entries.extend(entries);
    let serving = house.serve(None).await;
    let config = Config { limits: config::Limits::default(), ..config(&house, &place, &serving.address, "abc") };
    let agent = start(&house, config).await.unwrap();
    let path = agent.workload_socket().to_owned();
    let connector = tower::service_fn(move |_: http::Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let endpoint = tonic::transport::Endpoint::from_static("http://localhost");
    let door = Door::new(endpoint.connect_with_connector(connector).await.unwrap());
    Setting { house, agent, door, serving: Some(serving), _place: place }
}

fn with_header<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
    request
}

impl Setting {
    async fn try_jwt(&self, audience: &[&str], id: &str) -> Result<Vec<JwtSvid>, Status> {
        let audience = audience.iter().map(ToString::to_string).collect();
        let request = with_header(JwtsvidRequest { audience, spiffe_id: id.into() });
        let svids = soon(self.door.clone().fetch_jwtsvid(request)).await?.into_inner().svids;
        Ok(svids.iter().map(|svid| JwtSvid::parse(&svid.svid).unwrap()).collect())
    }

    async fn jwt(&self, audience: &[&str]) -> JwtSvid {
        self.try_jwt(audience, "").await.unwrap().remove(0)
    }

    async fn validate(&self, audience: &str, svid: &str) -> Result<ValidateJwtsvidResponse, Status> {
        let request = ValidateJwtsvidRequest { audience: audience.into(), svid: svid.into() };
        Ok(soon(self.door.clone().validate_jwtsvid(with_header(request))).await?.into_inner())
    }

    fn asked(&self) -> usize {
        self.house.state().token_batches.iter().sum()
    }

    async fn applied(&self) {
        until(|| self.house.state().acknowledged == self.house.revision()).await;
    }
}

#[tokio::test]
async fn a_jwt_svid_is_asked_for_once_for_each_audience_and_verifies() {
    let setting = setting(vec![RegistrationEntry { hint: "x".into(), ..entry("web") }]).await;
    let first = setting.jwt(&["reports"]).await;
    first.verify(&setting.house.bundle(), "reports", NOW).unwrap();
    assert_eq!(setting.jwt(&["reports"]).await, first);
    assert_eq!(setting.asked(), 1);
    let both = setting.jwt(&["reports", "billing"]).await;
    assert_eq!(both.audience(), ["billing", "reports"]);
    assert_eq!(setting.jwt(&["billing", "reports", "billing"]).await, both);
    assert_eq!(setting.asked(), 2);
    let page = setting.agent.metrics().render();
    for line in ["jwt_svids 2\n", "jwt_hits_total 2\n", "jwt_misses_total 2\n"] {
        assert!(page.contains(line), "{line} is not in {page}");
    }
}

#[tokio::test]
async fn callers_that_come_together_share_one_token() {
    let setting = setting(vec![entry("web")]).await;
    let all = futures_util::future::join_all((0..16).map(|_| setting.jwt(&["reports"]))).await;
    assert!(all.iter().all(|svid| *svid == all[0]));
    assert_eq!(setting.asked(), 1);
}

#[tokio::test]
async fn an_entry_with_jti_gives_each_call_its_own() {
    let setting = setting(vec![RegistrationEntry { jti: true, ..entry("web") }]).await;
    let (one, other) = (setting.jwt(&["reports"]).await, setting.jwt(&["reports"]).await);
    assert!(one.claims()["jti"] != other.claims()["jti"] && setting.asked() == 2);
}

#[tokio::test]
async fn each_identity_has_its_token_the_oldest_first_and_one_can_be_asked_for() {
    let younger = RegistrationEntry { created_at: NOW.plus(MINUTE), ..entry("api") };
    let setting = setting(vec![younger, entry("web")]).await;
    let paths = |svids: Vec<JwtSvid>| svids.iter().map(|svid| svid.id().path().to_owned()).collect::<Vec<_>>();
    assert_eq!(paths(setting.try_jwt(&["a"], "").await.unwrap()), ["/web", "/api"]);
    assert_eq!(paths(setting.try_jwt(&["a"], "spiffe://example.org/api").await.unwrap()), ["/api"]);
    let other = setting.try_jwt(&["a"], "spiffe://example.org/other").await.unwrap_err();
    assert_eq!(other.code(), Code::PermissionDenied);
    assert!(other.message().contains("not entitled to spiffe://example.org/other"), "{other}");
}

#[tokio::test]
async fn requests_that_cannot_be_understood_are_invalid_arguments() {
    let setting = setting(vec![entry("web")]).await;
    let long = "x".repeat(513);
    for (audience, id) in [(&[][..], ""), (&[""], ""), (&[long.as_str()], ""), (&["a"], "https://example.org")] {
        let refused = setting.try_jwt(audience, id).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{audience:?} {id:?}: {refused}");
    }
    let mut door = setting.door.clone();
    let refused = soon(door.fetch_witsvid(with_header(WitsvidRequest { spiffe_id: "x".into() }))).await;
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
    let token = setting.jwt(&["reports"]).await.token().to_owned();
    for (audience, svid) in [("", token.as_str()), ("reports", ""), ("other", &token), ("reports", "no token")] {
        let refused = setting.validate(audience, svid).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{audience:?}: {refused}");
        assert!(!refused.message().is_empty());
    }
}

#[tokio::test]
async fn a_good_token_is_validated_with_its_claims() {
    let setting = setting(vec![entry("web")]).await;
    let token = setting.jwt(&["reports"]).await;
    let answer = setting.validate("reports", token.token()).await.unwrap();
    assert_eq!(answer.spiffe_id, "spiffe://example.org/web");
    let claims: Vec<_> = answer.claims.unwrap().fields.into_keys().collect();
    assert_eq!(claims, ["aud", "exp", "iat", "sub"]);
    setting.house.clock().advance(MINUTE * 6);
    let expired = setting.validate("reports", token.token()).await.unwrap_err();
    assert!(expired.code() == Code::InvalidArgument && expired.message().contains("expired"), "{expired}");
}

#[tokio::test]
async fn who_is_entitled_to_nothing_gets_nothing() {
    let setting = setting(vec![]).await;
    setting.applied().await;
    let denied = setting.try_jwt(&["a"], "").await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied, "{denied}");
    assert_eq!(setting.validate("a", "b").await.unwrap_err().code(), Code::PermissionDenied);
    let mut door = setting.door.clone();
    let bundles = soon(door.fetch_jwt_bundles(with_header(JwtBundlesRequest {}))).await.unwrap_err();
    assert_eq!(bundles.code(), Code::PermissionDenied);
    let bundles = soon(door.fetch_wit_bundles(with_header(WitBundlesRequest {}))).await.unwrap_err();
    assert_eq!(bundles.code(), Code::PermissionDenied);
    let svids = soon(door.fetch_witsvid(with_header(WitsvidRequest::default()))).await.unwrap_err();
    assert_eq!(svids.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn what_the_server_refuses_is_denied_and_others_are_not_held_up() {
    let setting = setting(vec![entry("bad")]).await;
    setting.house.change(|state| state.refused_entries.extend(["bad".to_owned()]));
    let refused = setting.try_jwt(&["a"], "").await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().ends_with("not this one"), "{refused}");
    setting.house.change(|state| state.entries.push(entry("web")));
    setting.applied().await;
    assert_eq!(setting.jwt(&["a"]).await.id().path(), "/web");
}

#[tokio::test]
async fn a_token_goes_with_its_entry() {
    let setting = setting(vec![entry("web"), entry("api")]).await;
    assert_eq!(setting.try_jwt(&["a"], "").await.unwrap().len(), 2);
    setting.house.change(|state| state.entries.retain(|entry| entry.id.as_str() != "web"));
    setting.applied().await;
    let denied = setting.try_jwt(&["a"], "spiffe://example.org/web").await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    assert!(setting.agent.metrics().render().contains("jwt_svids 1\n"));
}

#[tokio::test]
async fn held_tokens_outlive_the_server_and_others_are_unavailable() {
    let mut setting = setting(vec![entry("web")]).await;
    let held = setting.jwt(&["a"]).await;
    setting.serving = None;
    until(|| setting.agent.metrics().connected.get() == 0).await;
    assert_eq!(setting.jwt(&["a"]).await, held);
    let asked = setting.try_jwt(&["b"], "");
    let _ticking = tick(&setting.house);
    assert_eq!(asked.await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn keys_for_tokens_come_as_jwk_sets_of_their_kind_alone() {
    let setting = setting(vec![entry("web")]).await;
    let mut door = setting.door.clone();
    let mut stream = soon(door.fetch_jwt_bundles(with_header(JwtBundlesRequest {}))).await.unwrap().into_inner();
    let jwt = soon(stream.message()).await.unwrap().unwrap().bundles;
    let mut stream = soon(door.fetch_wit_bundles(with_header(WitBundlesRequest {}))).await.unwrap().into_inner();
    let wit = soon(stream.message()).await.unwrap().unwrap().bundles;
    let read = |document: &[u8]| Bundle::from_jwks(setting.house.trust_domain(), document).unwrap();
    let (jwt, wit) = (read(&jwt["spiffe://example.org"]), read(wit["spiffe://example.org"].as_bytes()));
    let bundle = setting.house.bundle();
    let kids = |keys: &[spiffe::bundle::JwkAuthority]| keys.iter().map(|key| key.kid().to_owned()).collect::<Vec<_>>();
    assert_eq!(kids(jwt.jwt_authorities()), kids(bundle.jwt_authorities()));
    assert_eq!(kids(wit.wit_authorities()), kids(bundle.wit_authorities()));
    assert!(jwt.wit_authorities().is_empty() && jwt.x509_authorities().is_empty());
    assert!(wit.jwt_authorities().is_empty() && wit.x509_authorities().is_empty());
}

#[tokio::test]
async fn a_wit_svid_comes_with_its_key_only_when_asked_for_and_is_renewed_on_the_stream() {
    let setting =
        setting(vec![RegistrationEntry { key_type: Some(spiffe::entry::KeyType::Ed25519), ..entry("web") }]).await;
    setting.applied().await;
    assert_eq!(setting.asked(), 0, "nobody listens");
    let asked = WitsvidRequest { spiffe_id: "spiffe://example.org/web".into() };
    let mut stream = soon(setting.door.clone().fetch_witsvid(with_header(asked))).await.unwrap().into_inner();
    let mut next = async || soon(stream.message()).await.unwrap().unwrap().svids.remove(0);
    let first = next().await;
    let svid = WitSvid::parse(&first.wit_svid).unwrap().verify(&setting.house.bundle(), NOW).unwrap();
    assert_eq!(first.spiffe_id, "spiffe://example.org/web");
    let mut key: serde_json::Value = serde_json::from_str(&first.wit_svid_key).unwrap();
    assert!(key.as_object_mut().unwrap().remove("d").is_some());
    let public: JwkMembers = serde_json::from_value(key).unwrap();
    assert_eq!(Jwk::from_members(&public).unwrap().key(), svid.key().key());
    assert_eq!(svid.key().algorithm().name(), "ES256", "an Ed25519 key signs no token");

    let _ticking = tick(&setting.house);
    let second = next().await;
    assert_ne!(first.wit_svid_key, second.wit_svid_key);
    let renewed = WitSvid::parse(&second.wit_svid).unwrap();
    assert!(renewed.issued_at().unwrap() < svid.expires_at() && *renewed.id() == *svid.id());
    assert!(setting.agent.metrics().render().contains("wit_svids 1\n"));
}

#[tokio::test]
async fn no_hint_is_given_twice() {
    let hinted = |name: &str, minutes: u32| RegistrationEntry {
        hint: "db".into(),
        created_at: NOW.plus(MINUTE * minutes),
        ..entry(name)
    };
    let setting = setting(vec![hinted("api", 1), hinted("web", 0)]).await;
    let mut door = setting.door.clone();
    let request = with_header(JwtsvidRequest { audience: vec!["a".into()], spiffe_id: String::new() });
    let svids = soon(door.fetch_jwtsvid(request)).await.unwrap().into_inner().svids;
    assert_eq!(svids.iter().map(|svid| svid.hint.as_str()).collect::<Vec<_>>(), ["db", ""]);
    let mut stream = soon(door.fetch_witsvid(with_header(WitsvidRequest::default()))).await.unwrap().into_inner();
    let svids = soon(stream.message()).await.unwrap().unwrap().svids;
    assert_eq!(svids.iter().map(|svid| svid.hint.as_str()).collect::<Vec<_>>(), ["db", ""]);
}
