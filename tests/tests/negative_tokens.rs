//! Tokens that somebody made to be let in: each is refused, and says why. The bundle has one key for JWT-SVIDs and one
//! for WIT-SVIDs; who attacks knows both public keys, and has honest tokens and keys of their own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::PublicKeyData;
use ring::hmac;
use serde_json::{Value, json};
use spiffe::bundle::{Bundle, BundleError, JwkAuthority};
use spiffe::crypto;
use spiffe::entry::KeyType;
use spiffe::id::TrustDomain;
use spiffe::jose::{Jwk, MAX_TOKEN_BYTES, Signer};
use spiffe::jwt_svid::JwtSvid;
use spiffe::time::Timestamp;
use spiffe::wit_svid::WitSvid;

const NOW: Timestamp = Timestamp::from_unix(1_800_000_000);

struct Key {
    public: Jwk,
    signer: Signer,
}

impl Key {
    fn new() -> Self {
        let pair = crypto::generate_key(KeyType::P256).unwrap();
        let public = Jwk::from_spki(&pair.subject_public_key_info()).unwrap();
        Self { public, signer: Signer::from_pkcs8(&pair.serialize_der()).unwrap() }
    }

    fn kid(&self) -> &str {
        self.public.kid().unwrap()
    }

    fn authority(&self) -> JwkAuthority {
        JwkAuthority::new(self.public.clone()).unwrap()
    }

    /// Signs a header and claims as they are written.
    fn sign(&self, header: &str, claims: &str) -> String {
        let signed = signed_part(header, claims);
        let signature = self.signer.sign(signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn jwt(&self, claims: &str) -> String {
        self.sign(&json!({"alg": "ES256", "kid": self.kid()}).to_string(), claims)
    }

    fn wit(&self, claims: &str) -> String {
        self.sign(&json!({"alg": "ES256", "kid": self.kid(), "typ": "wit+jwt"}).to_string(), claims)
    }
}

fn signed_part(header: &str, claims: &str) -> String {
    format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims))
}

struct Trust {
    jwt: Key,
    wit: Key,
    bundle: Bundle,
}

impl Trust {
    fn new() -> Self {
        let (jwt, wit) = (Key::new(), Key::new());
        let bundle = Bundle::empty(TrustDomain::parse("example.org").unwrap());
        let bundle = bundle.with_jwk_authorities(vec![jwt.authority()], vec![wit.authority()]).unwrap();
        Self { jwt, wit, bundle }
    }

    fn refused_jwt(&self, token: &str) -> String {
        let verified = JwtSvid::parse(token).and_then(|svid| svid.verify(&self.bundle, "reports", NOW));
        verified.expect_err("a forged JWT-SVID is refused").to_string()
    }

    fn refused_wit(&self, token: &str) -> String {
        let verified = WitSvid::parse(token).and_then(|svid| svid.verify(&self.bundle, NOW));
        verified.expect_err("a forged WIT-SVID is refused").to_string()
    }
}

fn claims() -> Value {
    json!({"sub": "spiffe://example.org/web", "aud": ["reports"], "exp": NOW.unix() + 300})
}

fn claims_with(name: &str, value: Value) -> String {
    let mut claims = claims();
    claims[name] = value;
    claims.to_string()
}

fn wit_claims() -> Value {
    let jwk = serde_json::to_value(Key::new().public.members()).unwrap();
    json!({"sub": "spiffe://example.org/web", "cnf": {"jwk": jwk}, "exp": NOW.unix() + 300})
}

#[test]
fn what_is_honest_is_accepted() {
    let trust = Trust::new();
    let jwt = JwtSvid::parse(&trust.jwt.jwt(&claims().to_string())).unwrap();
    assert!(jwt.verify(&trust.bundle, "reports", NOW).is_ok());
    let wit = WitSvid::parse(&trust.wit.wit(&wit_claims().to_string())).unwrap();
    assert!(wit.verify(&trust.bundle, NOW).is_ok());
}

#[test]
fn a_token_without_a_signature_is_refused() {
    let trust = Trust::new();
    for alg in ["none", "None", "nOnE"] {
        let unsigned = signed_part(&json!({"alg": alg, "kid": trust.jwt.kid()}).to_string(), &claims().to_string());
        for signature in ["", "AA"] {
            let refused = trust.refused_jwt(&format!("{unsigned}.{signature}"));
            assert!(refused.starts_with(&format!("token has alg {alg:?}: only RS256")), "{refused}");
        }
    }
    let honest = trust.jwt.jwt(&claims().to_string());
    let unsigned = honest.rsplit_once('.').unwrap().0;
    assert!(trust.refused_jwt(&format!("{unsigned}.")).contains("the signature is not that of the key"));
    assert_eq!(
        trust.refused_jwt(unsigned),
        "token has 2 parts: the compact serialization has three, with dots between them"
    );
}

#[test]
fn a_public_key_is_no_shared_secret() {
    let trust = Trust::new();
    let public = trust.jwt.public.to_json();
    for (alg, algorithm) in [("HS256", hmac::HMAC_SHA256), ("HS384", hmac::HMAC_SHA384), ("HS512", hmac::HMAC_SHA512)] {
        let signed = signed_part(&json!({"alg": alg, "kid": trust.jwt.kid()}).to_string(), &claims().to_string());
        let tag = hmac::sign(&hmac::Key::new(algorithm, public.as_bytes()), signed.as_bytes());
        let refused = trust.refused_jwt(&format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag)));
        assert!(refused.starts_with(&format!("token has alg {alg:?}: only RS256")), "{refused}");
    }
    // The same under a permitted name: an HMAC is no ECDSA signature.
    let signed = signed_part(&json!({"alg": "ES256", "kid": trust.jwt.kid()}).to_string(), &claims().to_string());
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA512, public.as_bytes()), signed.as_bytes());
    let refused = trust.refused_jwt(&format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag)));
    assert_eq!(refused, "the signature is not that of the key");
}

#[test]
fn a_key_is_known_by_its_name_and_not_by_what_the_token_brings() {
    let (trust, own) = (Trust::new(), Key::new());
    let claims = claims().to_string();
    let unknown = trust.refused_jwt(&own.jwt(&claims));
    assert_eq!(
        unknown,
        format!("bundle of example.org has no key {:?} for JWT-SVIDs: is the bundle out of date?", own.kid())
    );
    let borrowed = own.sign(&json!({"alg": "ES256", "kid": trust.jwt.kid()}).to_string(), &claims);
    assert_eq!(trust.refused_jwt(&borrowed), "the signature is not that of the key");
    let nameless = own.sign(r#"{"alg": "ES256"}"#, &claims);
    assert_eq!(trust.refused_jwt(&nameless), "the signature is not that of the key");
    let jwk = serde_json::to_value(own.public.members()).unwrap();
    let brought = own.sign(&json!({"alg": "ES256", "jwk": jwk}).to_string(), &claims);
    assert!(trust.refused_jwt(&brought).contains("header parameter \"jwk\""));
    let fetched = own.sign(r#"{"alg": "ES256", "jku": "http://127.0.0.1/keys"}"#, &claims);
    assert!(trust.refused_jwt(&fetched).contains("header parameter \"jku\""));

    let wit = wit_claims().to_string();
    assert!(trust.refused_wit(&own.sign(r#"{"alg": "ES256", "typ": "wit+jwt"}"#, &wit)).contains("token has no kid"));
    let brought = json!({"alg": "ES256", "typ": "wit+jwt", "kid": own.kid(), "jwk": own.public.members()});
    assert!(trust.refused_wit(&own.sign(&brought.to_string(), &wit)).contains("has no key"));
}

#[test]
fn two_keys_of_one_name_make_no_bundle() {
    let (one, two) = (Key::new(), Key::new());
    let twice = JwkAuthority::new(two.public.with_kid(one.kid().to_owned())).unwrap();
    let empty = || Bundle::empty(TrustDomain::parse("example.org").unwrap());
    let same = BundleError::SameKid(one.kid().to_owned());
    assert_eq!(empty().with_jwk_authorities(vec![one.authority(), twice.clone()], Vec::new()), Err(same.clone()));
    assert_eq!(empty().with_jwk_authorities(vec![one.authority()], vec![twice]), Err(same));
}

#[test]
fn a_key_of_ours_says_nothing_about_other_trust_domains() {
    let trust = Trust::new();
    for other in ["spiffe://other.example/web", "spiffe://example.org.other.example/web", "spiffe://example.orgs/web"] {
        let refused = trust.refused_jwt(&trust.jwt.jwt(&claims_with("sub", json!(other))));
        assert_eq!(
            refused,
            format!("token of {other} is not of the trust domain example.org: verify it with the bundle of its own")
        );
        let mut wit = wit_claims();
        wit["sub"] = json!(other);
        assert!(trust.refused_wit(&trust.wit.wit(&wit.to_string())).contains("is not of the trust domain"));
    }
}

#[test]
fn a_token_of_one_kind_is_none_of_the_other() {
    let trust = Trust::new();
    let wit = trust.wit.wit(&wit_claims().to_string());
    assert_eq!(trust.refused_jwt(&wit), "token has typ \"wit+jwt\": a JWT-SVID has JWT, JOSE or none");
    let jwt = trust.jwt.jwt(&claims().to_string());
    assert_eq!(trust.refused_wit(&jwt), "token has typ \"\": a WIT-SVID has wit+jwt");
    // A WIT-SVID in the clothes of the other kind, and the other way round: the keys are kept apart.
    let mut both = wit_claims();
    both["aud"] = json!("reports");
    assert!(trust.refused_jwt(&trust.wit.jwt(&both.to_string())).contains("for JWT-SVIDs"));
    assert!(trust.refused_wit(&trust.jwt.wit(&wit_claims().to_string())).contains("for WIT-SVIDs"));
    assert!(trust.refused_wit(&trust.wit.wit(&both.to_string())).contains("has an audience"));
}

#[test]
fn what_is_large_or_deep_is_refused_before_it_costs_anything() {
    let trust = Trust::new();
    let huge = trust.jwt.jwt(&claims_with("other", json!("a".repeat(MAX_TOKEN_BYTES))));
    assert_eq!(trust.refused_jwt(&huge), format!("token has {} bytes: at most 65536 are allowed", huge.len()));
    let dots = trust.refused_jwt(&".".repeat(MAX_TOKEN_BYTES));
    assert_eq!(dots, "token has 65537 parts: the compact serialization has three, with dots between them");
    let many = trust.jwt.jwt(&claims_with("aud", json!(vec!["a"; 10_000])));
    assert_eq!(
        trust.refused_jwt(&many),
        "audience of the token: there are 10000 audiences: at most 32 are allowed, and one is best"
    );
    let deep = format!(
        r#"{{"sub":"spiffe://example.org/web","aud":"reports","exp":1800000300,"other":{}1{}}}"#,
        "[".repeat(10_000),
        "]".repeat(10_000)
    );
    assert!(trust.refused_jwt(&trust.jwt.jwt(&deep)).contains("recursion limit exceeded"));
    let long = trust.jwt.jwt(&claims_with("sub", json!(format!("spiffe://example.org/{}", "a".repeat(3000)))));
    assert_eq!(
        trust.refused_jwt(&long),
        "subject of the token is no SPIFFE ID: SPIFFE ID has 3021 bytes: at most 2048 are allowed"
    );
}

#[test]
fn a_claim_or_parameter_that_occurs_twice_is_refused() {
    let trust = Trust::new();
    let twice =
        r#"{"sub":"spiffe://example.org/web","aud":"reports","exp":1800000300,"sub":"spiffe://example.org/admin"}"#;
    assert!(trust.refused_jwt(&trust.jwt.jwt(twice)).contains("member \"sub\" occurs twice"));
    let kid = trust.jwt.kid();
    let header = format!(r#"{{"alg":"ES256","kid":"other","kid":"{kid}"}}"#);
    assert!(trust.refused_jwt(&trust.jwt.sign(&header, &claims().to_string())).contains("member \"kid\" occurs twice"));
    let header = r#"{"alg":"none","\u0061lg":"ES256"}"#;
    assert!(trust.refused_jwt(&trust.jwt.sign(header, &claims().to_string())).contains("member \"alg\" occurs twice"));
}

#[test]
fn a_token_has_an_end_that_is_a_moment_to_come() {
    let trust = Trust::new();
    let mut endless = claims();
    endless.as_object_mut().unwrap().remove("exp");
    let refused = trust.refused_jwt(&trust.jwt.jwt(&endless.to_string()));
    assert_eq!(refused, "token has no claim \"exp\": every SVID has to have it");
    for wrong in [json!("1800000300"), json!(-1), json!(1e308), json!(u64::MAX), json!(null), json!(true), json!([1])] {
        let refused = trust.refused_jwt(&trust.jwt.jwt(&claims_with("exp", wrong.clone())));
        assert!(refused.starts_with("claim \"exp\" of the token is no moment"), "{wrong}: {refused}");
    }
    // A number that no float holds is no JSON to us.
    let text = claims().to_string().replace("1800000300", "1e400");
    assert!(trust.refused_jwt(&trust.jwt.jwt(&text)).contains("number out of range"));
    let ended = trust.refused_jwt(&trust.jwt.jwt(&claims_with("exp", json!(NOW.unix() - 60))));
    assert!(ended.contains("expired at 2027-01-15T07:59:00Z, 1m ago: fetch a new one"), "{ended}");
}

#[test]
fn a_subject_that_is_no_spiffe_id_is_refused() {
    let trust = Trust::new();
    for wrong in [
        "",
        "web",
        "https://example.org/web",
        "SPIFFE://example.org/web",
        "spiffe://example.org/../admin",
        "spiffe://example.org/web/",
        "spiffe://example.org//web",
        "spiffe://example.org/web?x=1",
        "spiffe://example.org/%77eb",
        "spiffe://user@example.org/web",
        "spiffe://example.org:443/web",
        "spiffe://example.org/web\u{0}",
    ] {
        let refused = trust.refused_jwt(&trust.jwt.jwt(&claims_with("sub", json!(wrong))));
        assert!(refused.starts_with("subject of the token is no SPIFFE ID: "), "{wrong}: {refused}");
    }
}

#[test]
fn a_part_of_one_token_makes_no_other() {
    let trust = Trust::new();
    let (one, two) = (trust.jwt.jwt(&claims().to_string()), trust.jwt.jwt(&claims_with("jti", json!("2"))));
    let parts = |token: &str| token.split('.').map(str::to_owned).collect::<Vec<_>>();
    let (one, two) = (parts(&one), parts(&two));
    let mixed = format!("{}.{}.{}", one[0], two[1], one[2]);
    assert_eq!(trust.refused_jwt(&mixed), "the signature is not that of the key");
    // Nor does the same signature, written as DER or with another length.
    let raw = URL_SAFE_NO_PAD.decode(&one[2]).unwrap();
    for other in [raw[..63].to_vec(), [raw.clone(), vec![0]].concat(), vec![0; 64], Vec::new()] {
        let token = format!("{}.{}.{}", one[0], one[1], URL_SAFE_NO_PAD.encode(other));
        assert_eq!(trust.refused_jwt(&token), "the signature is not that of the key");
    }
    for blank in [" ", "\n", "="] {
        let spaced = format!("{}.{}.{}{blank}", one[0], one[1], one[2]);
        assert_eq!(trust.refused_jwt(&spaced), "the signature of the token is not base64url without padding");
    }
    let json = json!({"payload": one[1], "protected": one[0], "signature": one[2]}).to_string();
    assert!(trust.refused_jwt(&json).contains("parts: the compact serialization has three"));
}
