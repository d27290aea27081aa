//! JWT-SVIDs: accept exactly what JWT-SVID.md accepts. A parsed one keeps every rule but the signature and the time; a
//! verified one was signed by its trust domain, counts now, and is for whoever looks at it.
//!
//! - The header has `alg` and may have `kid` and `typ` (`JWT` or `JOSE`), nothing else (section 2): a WIT-SVID is no
//!   bearer token.
//! - `sub`, `aud` and `exp` are required (section 3); other claims are kept as they are.
//! - Without a `kid`, which is optional (section 2.2), each key of the bundle that fits the algorithm is tried, up to
//!   [`MAX_TRIED`](crate::token::MAX_TRIED).
//! - Whoever has a JWT-SVID can use it: it is never shown by `Debug`.

use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value, json};

pub use crate::audience::{Audience, AudienceError, MAX_AUDIENCE_BYTES, MAX_AUDIENCES};
use crate::bundle::Bundle;
use crate::crypto::jws::{SignatureError, Signer};
use crate::id::SpiffeId;
use crate::jose;
use crate::time::Timestamp;
use crate::token::{Token, TokenError, shown};

const KIND: &str = "JWT-SVID";

/// A token that keeps every rule of a JWT-SVID whose signature nobody has looked at yet. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct JwtSvid {
    token: Arc<Token>,
    audience: Arc<[String]>,
}

impl JwtSvid {
    /// Parses a token in the compact serialization.
    pub fn parse(token: &str) -> Result<Self, TokenError> {
        let token = Token::read(token)?;
        let header = &token.parsed.header;
        match header.typ.as_deref() {
            None | Some("JWT" | "JOSE") => {}
            Some(other) => {
                return Err(TokenError::Kind { found: shown(other), wanted: "a JWT-SVID has JWT, JOSE or none" });
            }
        }
        if let Some(name) = header.others.first() {
            return Err(TokenError::Parameter(shown(name)));
        }
        let audience = read_audience(token.parsed.claims.get("aud").ok_or(TokenError::Missing("aud"))?)?;
        Ok(Self { token: Arc::new(token), audience: audience.into() })
    }

    /// Whether a key of `bundle` signed it, it counts at `now`, and `audience` is one of its values. The bundle has to
    /// be that of the subject's trust domain (SPIFFE_Workload_API.md section 6.3).
    pub fn verify(&self, bundle: &Bundle, audience: &str, now: Timestamp) -> Result<VerifiedJwtSvid, TokenError> {
        self.token.is_current(bundle, now)?;
        if !self.audience.iter().any(|value| value == audience) {
            return Err(TokenError::OtherAudience { id: self.id().clone(), wanted: shown(audience) });
        }
        self.token.is_signed_by(bundle.jwt_authorities(), bundle, KIND)?;
        Ok(VerifiedJwtSvid(self.clone()))
    }

    /// The token itself, in the compact serialization.
    pub fn token(&self) -> &str {
        self.token.parsed.token()
    }

    /// The subject.
    pub fn id(&self) -> &SpiffeId {
        &self.token.id
    }

    /// Whom it is for, as the token has it: at least one value, none empty.
    pub fn audience(&self) -> &[String] {
        &self.audience
    }

    /// The first second at which it does not count any more.
    pub fn expires_at(&self) -> Timestamp {
        self.token.expires_at
    }

    /// When it was issued, where it says so.
    pub fn issued_at(&self) -> Option<Timestamp> {
        self.token.issued_at
    }

    /// The name of the key that signed it, where it says so.
    pub fn kid(&self) -> Option<&str> {
        self.token.parsed.header.kid.as_deref()
    }

    /// All claims.
    pub fn claims(&self) -> &Map<String, Value> {
        &self.token.parsed.claims
    }

    /// Whether a key that `bundle` marks as tainted signed it.
    pub fn is_tainted_by(&self, bundle: &Bundle) -> bool {
        let tainted = |kid| bundle.jwt_authorities().iter().any(|key| key.kid() == kid && key.is_tainted());
        self.id().is_member_of(bundle.trust_domain()) && self.kid().is_some_and(tainted)
    }
}

impl fmt::Debug for JwtSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("JwtSvid");
        shown.field("id", self.id()).field("audience", &self.audience).field("expires_at", &self.expires_at());
        shown.finish_non_exhaustive()
    }
}

/// A [`JwtSvid`] that was verified: who sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedJwtSvid(JwtSvid);

impl VerifiedJwtSvid {
    /// The SVID itself, to keep or to present.
    pub fn into_svid(self) -> JwtSvid {
        self.0
    }
}

impl std::ops::Deref for VerifiedJwtSvid {
    type Target = JwtSvid;
    fn deref(&self) -> &JwtSvid {
        &self.0
    }
}

/// What a JWT-SVID says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtClaims {
    /// The subject.
    pub id: SpiffeId,
    /// Whom it is for.
    pub audience: Audience,
    /// When it is issued.
    pub issued_at: Timestamp,
    /// The first second at which it does not count any more.
    pub expires_at: Timestamp,
    /// Who issues it, where OpenID Connect asks for it.
    pub issuer: Option<String>,
    /// Its own name, where the entry asks for it.
    pub jti: Option<String>,
}

impl JwtClaims {
    /// The signed token; `kid` is the name of the signer's key in the bundle.
    pub fn sign(&self, kid: &str, signer: &Signer) -> Result<String, SignatureError> {
        let mut claims = Map::new();
        claims.insert("sub".into(), json!(self.id.as_str()));
        claims.insert("aud".into(), json!(self.audience.values()));
        claims.insert("iat".into(), json!(self.issued_at.unix()));
        claims.insert("exp".into(), json!(self.expires_at.unix()));
        claims.extend(self.issuer.iter().map(|issuer| ("iss".into(), json!(issuer))));
        claims.extend(self.jti.iter().map(|jti| ("jti".into(), json!(jti))));
        jose::write("JWT", Some(kid), &claims, signer)
    }
}

/// Strings, one or several (RFC 7519 section 4.1.3).
fn read_audience(value: &Value) -> Result<Vec<String>, AudienceError> {
    let values = match value {
        Value::Array(values) => values.as_slice(),
        one => std::slice::from_ref(one),
    };
    if values.len() > MAX_AUDIENCES {
        return Err(AudienceError::TooMany(values.len()));
    }
    let texts: Option<Vec<_>> = values.iter().map(|value| value.as_str().map(str::to_owned)).collect();
    let texts = texts.ok_or(AudienceError::Form)?;
    if texts.is_empty() {
        Err(AudienceError::None)
    } else if texts.iter().any(String::is_empty) {
        Err(AudienceError::Empty)
    } else {
        Ok(texts)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::crypto::jws::Algorithm;
    use crate::entry::KeyType;
    use crate::id::{IdError, TrustDomain};
    use crate::jose::JwsError;
    use crate::test_certificates::NOW;
    use crate::test_tokens::{Key, bundle, seconds};
    use crate::token::{LEEWAY, MAX_TRIED};

    const WEB: &str = "spiffe://example.org/web";

    fn claims() -> JwtClaims {
        JwtClaims {
            id: SpiffeId::parse(WEB).unwrap(),
            audience: Audience::parse(&["reports".into(), "billing".into()]).unwrap(),
            issued_at: NOW,
            expires_at: NOW.plus(seconds(300)),
            issuer: Some("https://oidc.example.org".into()),
            jti: None,
        }
    }

    fn usual() -> Value {
        json!({"sub": WEB, "aud": "reports", "exp": NOW.unix() + 300})
    }

    /// [`usual`] with another value for one claim; null: without it.
    fn with(name: &str, value: Value) -> String {
        let mut claims = usual();
        claims[name] = value;
        claims.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        Key::shared().sign(&json!({"alg": "ES256", "kid": Key::shared().kid()}), &claims)
    }

    fn refused(token: &str) -> TokenError {
        JwtSvid::parse(token).unwrap_err()
    }

    #[test]
    fn what_is_signed_is_parsed_and_verified() {
        for kind in [KeyType::P256, KeyType::P384] {
            let key = Key::of_kind(kind);
            let token = claims().sign(key.kid(), key.signer()).unwrap();
            let svid = JwtSvid::parse(&token).unwrap();
            assert_eq!((svid.token(), svid.id().as_str(), svid.kid()), (token.as_str(), WEB, Some(key.kid())));
            assert_eq!(svid.audience(), ["billing", "reports"]);
            assert_eq!((svid.issued_at(), svid.expires_at()), (Some(NOW), NOW.plus(seconds(300))));
            assert_eq!(svid.claims()["iss"], "https://oidc.example.org");
            assert!(!svid.claims().contains_key("jti"));
            for audience in ["reports", "billing"] {
                let verified = svid.verify(&bundle("example.org", &[&key], &[]), audience, NOW).unwrap();
                assert_eq!(verified.into_svid(), svid);
            }
            assert!(!format!("{svid:?}").contains(&token), "a bearer token is a secret");
        }
    }

    #[test]
    fn it_is_for_its_audience_only() {
        let key = Key::shared();
        let svid = JwtSvid::parse(&with("aud", json!(["reports"]))).unwrap();
        for wanted in ["report", "Reports", ""] {
            let error = svid.verify(&bundle("example.org", &[key], &[]), wanted, NOW).unwrap_err();
            assert_eq!(error, TokenError::OtherAudience { id: svid.id().clone(), wanted: wanted.into() });
        }
    }

    #[test]
    fn it_counts_from_nbf_until_exp_and_clocks_may_differ_a_little() {
        let bundle = bundle("example.org", &[Key::shared()], &[]);
        let svid = JwtSvid::parse(&with("nbf", json!(NOW.unix()))).unwrap();
        let at = |now: Timestamp| svid.verify(&bundle, "reports", now);
        let end = svid.expires_at();
        assert!(at(NOW.minus(LEEWAY)).is_ok() && at(end.plus(LEEWAY).minus(seconds(1))).is_ok());
        let (id, early, late) = (svid.id().clone(), NOW.minus(LEEWAY + seconds(1)), end.plus(LEEWAY));
        assert_eq!(at(late), Err(TokenError::Expired { id: id.clone(), expires_at: end, now: late }));
        assert_eq!(at(early), Err(TokenError::NotYetValid { id, not_before: NOW, now: early }));
        // When it was issued refuses nothing.
        let issued_later = JwtSvid::parse(&with("iat", json!(NOW.unix() + 200))).unwrap();
        assert!(issued_later.verify(&bundle, "reports", NOW).is_ok());
    }

    #[test]
    fn only_the_bundle_of_its_own_trust_domain_counts() {
        let key = Key::shared();
        let svid = JwtSvid::parse(&with("sub", json!("spiffe://other.example/web"))).unwrap();
        let trust_domain = TrustDomain::parse("example.org").unwrap();
        let error = svid.verify(&bundle("example.org", &[key], &[]), "reports", NOW).unwrap_err();
        assert_eq!(error, TokenError::OtherTrustDomain { id: svid.id().clone(), trust_domain });
        assert!(svid.verify(&bundle("other.example", &[key], &[]), "reports", NOW).is_ok());
    }

    #[test]
    fn only_keys_for_jwt_svids_count_and_only_the_one_that_is_named() {
        let (key, other) = (Key::shared(), Key::of_kind(KeyType::P256));
        let svid = JwtSvid::parse(&with("jti", json!("1"))).unwrap();
        let verify = |jwt: &[&Key], wit: &[&Key]| svid.verify(&bundle("example.org", jwt, wit), "reports", NOW);
        let trust_domain = TrustDomain::parse("example.org").unwrap();
        let no_keys = TokenError::NoKeys { trust_domain: trust_domain.clone(), kind: KIND };
        assert_eq!(verify(&[], &[key]), Err(no_keys));
        let unknown = TokenError::UnknownKey { trust_domain, kind: KIND, kid: key.kid().into() };
        assert_eq!(verify(&[&other], &[key]), Err(unknown));
        let forged = other.named(key.kid());
        assert_eq!(verify(&[&forged], &[]), Err(JwsError::from(SignatureError::Wrong).into()));
        let of_another_kind = Key::of_kind(KeyType::P384).named(key.kid());
        let error = verify(&[&of_another_kind], &[]).unwrap_err();
        assert_eq!(error, JwsError::from(SignatureError::OtherAlgorithm(Algorithm::Es256)).into());
    }

    #[test]
    fn without_a_kid_each_key_is_tried() {
        let key = Key::shared();
        let (p256, p384) = (Key::of_kind(KeyType::P256), Key::of_kind(KeyType::P384));
        let svid = JwtSvid::parse(&key.sign(&json!({"alg": "ES256"}), &usual())).unwrap();
        assert_eq!(svid.kid(), None);
        let verify = |keys: &[&Key]| svid.verify(&bundle("example.org", keys, &[]), "reports", NOW);
        assert!(verify(&[&p256, &p384, key]).is_ok());
        let wrong = || Err(JwsError::from(SignatureError::Wrong).into());
        assert_eq!(verify(&[&p256, &p384]), wrong());
        assert_eq!(verify(&[&p384]), wrong());
    }

    #[test]
    fn without_a_kid_no_more_than_sixteen_keys_are_tried() {
        let keys: Vec<Key> = (0..=MAX_TRIED).map(|_| Key::of_kind(KeyType::P256)).collect();
        let other = Key::of_kind(KeyType::P384);
        let verify = |key: &Key, header: Value, most: usize| {
            let known: Vec<&Key> = keys.iter().take(most).chain([&other]).collect();
            let svid = JwtSvid::parse(&key.sign(&header, &usual())).unwrap();
            svid.verify(&bundle("example.org", &known, &[]), "reports", NOW).map(drop)
        };
        let last = &keys[MAX_TRIED - 1];
        assert_eq!(verify(last, json!({"alg": "ES256"}), MAX_TRIED), Ok(()));
        let trust_domain = TrustDomain::parse("example.org").unwrap();
        let too_many = TokenError::TooManyKeys { trust_domain, fitting: MAX_TRIED + 1 };
        assert_eq!(verify(last, json!({"alg": "ES256"}), MAX_TRIED + 1), Err(too_many));
        // A key that is named is found among any number of them, and one of another kind is not counted.
        assert_eq!(verify(last, json!({"alg": "ES256", "kid": last.kid()}), MAX_TRIED + 1), Ok(()));
        assert_eq!(verify(&other, json!({"alg": "ES384"}), MAX_TRIED + 1), Ok(()));
    }

    #[test]
    fn signatures_that_nobody_here_can_verify_are_named() {
        let p521 = Key::p521();
        for header in [json!({"alg": "ES512"}), json!({"alg": "ES512", "kid": p521.kid()})] {
            let svid = JwtSvid::parse(&Key::shared().sign(&header, &usual())).unwrap();
            let error = svid.verify(&bundle("example.org", &[&p521], &[]), "reports", NOW).unwrap_err();
            assert_eq!(error, JwsError::from(SignatureError::Unsupported(Algorithm::Es512)).into());
        }
    }

    #[test]
    fn the_header_has_nothing_that_the_standard_does_not_name() {
        let header = |header: Value| JwtSvid::parse(&Key::shared().sign(&header, &usual()));
        for typ in ["JWT", "JOSE"] {
            assert!(header(json!({"alg": "ES256", "typ": typ})).is_ok());
        }
        for typ in ["wit+jwt", "wpt+jwt", "at+jwt", "jwt", ""] {
            let error = header(json!({"alg": "ES256", "typ": typ})).unwrap_err();
            assert!(matches!(error, TokenError::Kind { ref found, .. } if found == typ), "{error}");
        }
        for other in ["jku", "jwk", "x5u", "x5c", "x5t", "cty", "private"] {
            let error = header(json!({"alg": "ES256", other: "a"})).unwrap_err();
            assert_eq!(error, TokenError::Parameter(other.into()));
        }
    }

    #[test]
    fn each_claim_has_its_errors() {
        for name in ["sub", "aud", "exp"] {
            assert_eq!(refused(&with(name, Value::Null)), TokenError::Missing(name));
        }
        for name in ["sub", "iss", "jti"] {
            assert_eq!(refused(&with(name, json!(1))), TokenError::NotText(name));
        }
        for name in ["exp", "iat", "nbf"] {
            assert_eq!(refused(&with(name, json!("1800000000"))), TokenError::NotAMoment(name));
            assert_eq!(refused(&with(name, json!(-1))), TokenError::NotAMoment(name));
        }
        assert_eq!(refused(&with("sub", json!("spiffe://example.org/a//b"))), IdError::EmptySegment.into());
        assert_eq!(refused(&with("sub", json!("web"))), IdError::Scheme.into());
        let audience = |value| refused(&with("aud", value));
        assert_eq!(audience(json!([])), AudienceError::None.into());
        assert_eq!(audience(json!("")), AudienceError::Empty.into());
        assert_eq!(audience(json!(["a", ""])), AudienceError::Empty.into());
        assert_eq!(audience(json!({"a": "b"})), AudienceError::Form.into());
        assert_eq!(audience(json!(["a", ["b"]])), AudienceError::Form.into());
        assert_eq!(audience(json!(vec!["a"; 33])), AudienceError::TooMany(33).into());
    }

    #[test]
    fn a_token_is_tainted_by_its_own_key() {
        let (key, other) = (Key::shared(), Key::of_kind(KeyType::P256));
        let svid = JwtSvid::parse(&claims().sign(key.kid(), key.signer()).unwrap()).unwrap();
        let tainted = |key: &Key| vec![key.authority().with_taint(true)];
        let bundle = bundle("example.org", &[key, &other], &[]);
        assert!(!svid.is_tainted_by(&bundle));
        let of_other = bundle.clone().with_jwk_authorities(tainted(&other), Vec::new()).unwrap();
        assert!(!svid.is_tainted_by(&of_other));
        assert!(svid.is_tainted_by(&bundle.with_jwk_authorities(tainted(key), Vec::new()).unwrap()));
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic_and_no_other_token_is_verified(
            random in "\\PC{0,64}", at: prop::sample::Index, byte in b'!'..b'~',
        ) {
            prop_assert!(JwtSvid::parse(&random).is_err());
            let bundle = bundle("example.org", &[Key::shared()], &[]);
            let token = with("jti", json!("1"));
            let mut other = token.clone().into_bytes();
            let at = at.index(other.len());
            other[at] = byte;
            let other = String::from_utf8(other).unwrap();
            let verified = JwtSvid::parse(&other).and_then(|svid| svid.verify(&bundle, "reports", NOW));
            prop_assert!(verified.is_err() || other == token);
        }
    }
}
