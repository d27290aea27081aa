//! The keys for tokens rotate as the CA does, by themselves and by order, and each token that was signed is good to its end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::collections::BTreeSet;
use std::time::Duration;

use spiffe::crypto::generate_key;
use spiffe::entry::KeyType;
use spiffe::jwt_svid::JwtSvid;
use spiffe::proto::v1;
use spiffe::wit_svid::WitSvid;
use tests::by_hand::Caller;
use tests::house::{House, id};
use tests::operator::entry;
use tests::{Node, Operator};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

async fn mint(operator: &Operator, ttl: Duration) -> JwtSvid {
    let request = v1::MintJwtSvidRequest {
        spiffe_id: id("/backup").to_string(),
        audience: vec!["reports".into()],
        ttl: ttl.as_secs(),
    };
    let minted = operator.door.clone().mint_jwt_svid(request).await.unwrap().into_inner();
    JwtSvid::parse(&minted.token).unwrap()
}

#[tokio::test]
async fn a_month_of_rotations_and_every_token_is_good_to_its_end() {
    let settings = [("jwt.key_ttl", "24h"), ("jwt.max_ttl", "6h"), ("jwt.issuer", "https://oidc.example.org")];
    let house = House::start(&settings).await;
    let operator = house.operator().await;
    let _node = Node::start(&house, "node", &[]).await;
    let (mut tokens, mut kids): (Vec<JwtSvid>, _) = (Vec::new(), BTreeSet::new());
    for _ in 0..30 * 24 {
        tokens.push(mint(&operator, 6 * HOUR).await);
        house
            .pass(HOUR, HOUR, async || {
                operator.settled(house.now(), HOUR).await?;
                operator.rotated_of("jwt", house.now(), DAY).await
            })
            .await;
        let (bundle, now) = (operator.bundle().await, house.now());
        tokens.retain(|token| token.expires_at() > now);
        for token in &tokens {
            token.verify(&bundle, "reports", now).unwrap_or_else(|why| panic!("at {now}: {why}"));
            kids.extend(token.kid().map(str::to_owned));
            assert_eq!(token.claims()["iss"], "https://oidc.example.org");
        }
        assert!((1..=3).contains(&bundle.jwt_authorities().len()), "old keys have left");
        assert!(bundle.wit_authorities().len() <= 3, "each kind by itself: these live a month");
    }
    // A new key each 12 hours, which signs from 16 hours on of the one before.
    assert!((57..=63).contains(&kids.len()), "{} keys", kids.len());
}

#[tokio::test]
async fn an_operator_prepares_activates_taints_and_revokes_a_key() {
    let house = House::start(&[]).await;
    let operator = house.operator().await;
    let old = operator.authorities_of("jwt").await.remove(0);
    let before = mint(&operator, 5 * MINUTE).await;
    assert_eq!(before.kid(), Some(old.fingerprint.as_str()));

    let new = operator.prepare_of("jwt").await;
    let knows = async |kid: &str| operator.bundle().await.jwt_authorities().iter().any(|key| key.kid() == kid);
    assert!(knows(&new.fingerprint).await, "known before it signs");
    assert_eq!(mint(&operator, 5 * MINUTE).await.kid(), Some(old.fingerprint.as_str()));
    operator.activate(&new.id).await.unwrap();
    let after = mint(&operator, 5 * MINUTE).await;
    assert_eq!(after.kid(), Some(new.fingerprint.as_str()));
    let bundle = operator.bundle().await;
    before.verify(&bundle, "reports", house.now()).unwrap();
    assert!(!before.is_tainted_by(&bundle));

    operator.taint(&old.id).await.unwrap();
    let bundle = operator.bundle().await;
    assert!(before.is_tainted_by(&bundle) && !after.is_tainted_by(&bundle));
    operator.revoke(&old.id).await.unwrap();
    let bundle = operator.bundle().await;
    assert!(!knows(&old.fingerprint).await);
    let refused = before.verify(&bundle, "reports", house.now()).unwrap_err().to_string();
    assert!(refused.contains("is the bundle out of date?"), "{refused}");
    after.verify(&bundle, "reports", house.now()).unwrap();
    assert_eq!(operator.authorities().await.len(), 1, "the CA is as it was");
}

#[tokio::test]
async fn agents_get_tokens_for_their_entries_by_each_algorithm() {
    for (algorithm, name) in [("ES256", "ES256"), ("ES384", "ES384"), ("RS256", "RS256")] {
        let house = House::start(&[("jwt.algorithm", algorithm)]).await;
        let operator = house.operator().await;
        let agent = Caller::attest(&house).await;
        let wanted = v1::Entry { jwt_ttl: 60, jti: true, ..entry(agent.id(), "/web") };
        let (web, _) = operator.register(wanted).await;
        let token = agent.issue_jwt(&house, &web.id, &["reports", "billing"]).await.unwrap();
        assert_eq!((token.spiffe_id, token.expires_at - token.issued_at), (id("/web").to_string(), 60));
        let svid = JwtSvid::parse(&token.token).unwrap();
        svid.verify(&operator.bundle().await, "billing", house.now()).unwrap();
        assert_eq!(spiffe::jose::Parsed::read(&token.token).unwrap().header.algorithm.name(), name);
        assert_eq!((svid.claims().len(), svid.claims()["jti"].as_str().map(str::len)), (5, Some(32)));
    }
}

#[tokio::test]
async fn a_wit_is_bound_to_the_key_of_the_csr() {
    let house = House::start(&[]).await;
    let operator = house.operator().await;
    let agent = Caller::attest(&house).await;
    let (web, _) = operator.register(v1::Entry { wit_ttl: 600, ..entry(agent.id(), "/web") }).await;
    for kind in [KeyType::P256, KeyType::P384] {
        let key = generate_key(kind).unwrap();
        let token = agent.issue_wit(&house, &web.id, spiffe::csr::create(&key).unwrap()).await.unwrap();
        let svid = WitSvid::parse(&token.token).unwrap();
        svid.verify(&operator.bundle().await, house.now()).unwrap();
        assert_eq!(svid.id().as_str(), token.spiffe_id);
        let own = rcgen::PublicKeyData::subject_public_key_info(&key);
        assert_eq!(svid.key().key(), spiffe::jose::Jwk::from_spki(&own).unwrap().key());
        assert_eq!(svid.expires_at(), house.now().plus(10 * MINUTE));
        assert!(svid.claims().get("iss").is_none() && svid.claims().get("aud").is_none());
    }
}

#[tokio::test]
async fn the_keys_outlive_a_restart() {
    let mut house = House::start(House::ON_DISK).await;
    let operator = house.operator().await;
    let token = mint(&operator, 5 * MINUTE).await;
    let before = operator.bundle().await;
    drop(operator);
    house.stop_server().await;
    house.start_server().await.unwrap();
    let operator = house.operator().await;
    let after = operator.bundle().await;
    assert_eq!(after.jwt_authorities(), before.jwt_authorities());
    token.verify(&after, "reports", house.now()).unwrap();
    assert_eq!(mint(&operator, 5 * MINUTE).await.kid(), token.kid());
}
