//! Keys for tokens, and JWT-SVIDs that an operator asks for.

use spiffe::bundle::{Bundle, JwkAuthority};
use spiffe::jwt_svid::JwtSvid;
use spiffe::proto::v1;
use spiffe::proto::v1::admin_server::Admin as _;
use spiffe::time::Clock as _;

use super::{House, words};

#[tokio::test]
async fn keys_for_tokens_are_changed_as_cas_are() {
    let house = House::new().await;
    let bundle = || house.door.doors.views.load().bundle().clone();
    let by = |id: &str| house.ask(v1::AuthorityRequest { id: id.into(), ..Default::default() });
    let prepare =
        |kind: &str| house.door.prepare_authority(house.ask(v1::PrepareAuthorityRequest { kind: kind.into() }));
    assert_eq!(
        words(prepare("ssh").await),
        "InvalidArgument: there are no authorities of kind \"ssh\": use x509, jwt or wit"
    );
    for (kind, keys) in [
        ("jwt", (|bundle| bundle.jwt_authorities().to_vec()) as fn(Bundle) -> Vec<JwkAuthority>),
        ("wit", |bundle| bundle.wit_authorities().to_vec()),
    ] {
        let [first] = <[_; 1]>::try_from(keys(bundle())).unwrap();
        let made = prepare(kind).await.unwrap().into_inner().authority.unwrap();
        assert_eq!((made.kind.as_str(), made.state.as_str(), made.upstream), (kind, "prepared", false));
        assert!(keys(bundle()).iter().any(|key| key.kid() == made.fingerprint), "known before it signs");
        house.door.activate_authority(by(&made.id)).await.unwrap();
        let listed = house.door.list_authorities(house.ask(v1::ListAuthoritiesRequest {})).await.unwrap().into_inner();
        let old = listed.authorities.iter().find(|authority| authority.fingerprint == first.kid()).unwrap();
        assert_eq!((old.state.as_str(), old.next_change_at), ("retired", old.not_after + 1));
        assert!(words(house.door.revoke_authority(by(&old.id)).await).contains("taint it first"));
        house.door.taint_authority(by(&old.id)).await.unwrap();
        assert!(keys(bundle()).iter().all(|key| key.is_tainted() == (key.kid() == first.kid())));
        house.door.revoke_authority(by(&old.id)).await.unwrap();
        assert_eq!(keys(bundle()).iter().map(JwkAuthority::kid).collect::<Vec<_>>(), [&made.fingerprint]);
    }
}

#[tokio::test]
async fn jwts_are_minted_for_anyone_but_our_own() {
    let house = House::new().await;
    let mint = async |id: &str, audience: &[&str], ttl| {
        let audience = audience.iter().map(ToString::to_string).collect();
        let request = v1::MintJwtSvidRequest { spiffe_id: id.into(), audience, ttl };
        house.door.mint_jwt_svid(house.ask(request)).await
    };
    let minted = mint("spiffe://example.org/job", &["b", "a"], 60).await.unwrap().into_inner();
    assert_eq!(minted.expires_at, minted.issued_at + 60);
    let svid = JwtSvid::parse(&minted.token).unwrap();
    let bundle = house.door.doors.views.load().bundle().clone();
    svid.verify(&bundle, "a", house.clock.now()).unwrap();
    let jti = svid.claims()["jti"].as_str().unwrap().to_owned();
    let job = "spiffe://example.org/job";
    assert_eq!(words(mint(job, &[], 0).await), "InvalidArgument: there is no audience: say for whom the token is");
    assert!(words(mint(job, &["a"], 7200).await).contains("at most 1h is allowed: ask for less, or raise its max_ttl"));
    assert!(words(mint("spiffe://example.org/chancery/server", &["a"], 60).await).starts_with("PermissionDenied: "));
    assert!(words(mint("spiffe://other.org/job", &["a"], 60).await).starts_with("PermissionDenied: "));
    let House { door, writer, audit, .. } = house;
    drop(door);
    writer.finish();
    let lines = std::fs::read_to_string(audit.path()).unwrap();
    assert!(!lines.contains(svid.token()) && lines.lines().count() == 5, "{lines}");
    let line = lines.lines().find(|line| line.contains("\"issued\"")).unwrap();
    for part in
        [&format!("\"jti\":\"{jti}\""), "\"audience\":\"a, b\"", &format!("\"kid\":\"{}\"", svid.kid().unwrap())]
    {
        assert!(line.contains(part), "{part} is not in {line}");
    }
}
