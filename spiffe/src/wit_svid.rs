//! WIT-SVIDs: accept exactly what WIT-SVID.md accepts. A parsed one keeps every rule but the signature and the time; a
//! verified one was signed by its trust domain and counts now.
//!
//! - The header has `typ` `wit+jwt` and a `kid` (sections 2.1 and 2.2); parameters that nobody knows are passed over
//!   (section 2.4), but `crit` is refused.
//! - `sub`, `cnf` and `exp` are required, `aud` is refused (section 3).
//! - `cnf` has one public key, and the key says what it signs with (section 3.2).
//! - It is no bearer token: whoever shows a WIT-SVID has to prove that the key is theirs (section 7.1). [`crate::wpt`]
//!   is one way.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::bundle::Bundle;
use crate::crypto::jws::{Algorithm, PublicKey, SignatureError, Signer};
use crate::id::SpiffeId;
use crate::jose::{self, Jwk, JwkError, JwkMembers};
use crate::time::Timestamp;
use crate::token::{ConfirmationError, Token, TokenError, shown};

const KIND: &str = "WIT-SVID";
const TYP: &str = "wit+jwt";

/// A token that keeps every rule of a WIT-SVID whose signature nobody has looked at yet. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WitSvid {
    token: Arc<Token>,
    key: Arc<ConfirmationKey>,
}

impl WitSvid {
    /// Parses a token in the compact serialization.
    pub fn parse(token: &str) -> Result<Self, TokenError> {
        let token = Token::read(token)?;
        let header = &token.parsed.header;
        let typ = header.typ.as_deref().unwrap_or_default();
        if typ != TYP {
            return Err(TokenError::Kind { found: shown(typ), wanted: "a WIT-SVID has wit+jwt" });
        }
        if header.kid.as_deref().unwrap_or_default().is_empty() {
            return Err(TokenError::NoKid);
        }
        let claims = &token.parsed.claims;
        if claims.contains_key("aud") {
            return Err(TokenError::HasAudience);
        }
        let key = ConfirmationKey::read(claims.get("cnf").ok_or(TokenError::Missing("cnf"))?)?;
        Ok(Self { token: Arc::new(token), key: Arc::new(key) })
    }

    /// Whether a key of `bundle` signed it and it counts at `now`. The bundle has to be that of the subject's trust
    /// domain.
    pub fn verify(&self, bundle: &Bundle, now: Timestamp) -> Result<VerifiedWitSvid, TokenError> {
        self.token.is_current(bundle, now)?;
        self.token.is_signed_by(bundle.wit_authorities(), bundle, KIND)?;
        Ok(VerifiedWitSvid(self.clone()))
    }

    /// The token itself, in the compact serialization.
    pub fn token(&self) -> &str {
        self.token.parsed.token()
    }

    /// The subject.
    pub fn id(&self) -> &SpiffeId {
        &self.token.id
    }

    /// The public key of the subject (`cnf.jwk`).
    pub fn key(&self) -> &ConfirmationKey {
        &self.key
    }

    /// The first second at which it does not count any more.
    pub fn expires_at(&self) -> Timestamp {
        self.token.expires_at
    }

    /// When it was issued, where it says so.
    pub fn issued_at(&self) -> Option<Timestamp> {
        self.token.issued_at
    }

    /// The name of the key that signed it; never empty.
    pub fn kid(&self) -> &str {
        self.token.parsed.header.kid.as_deref().unwrap_or_default()
    }

    /// All claims.
    pub fn claims(&self) -> &Map<String, Value> {
        &self.token.parsed.claims
    }

    /// Whether a key that `bundle` marks as tainted signed it.
    pub fn is_tainted_by(&self, bundle: &Bundle) -> bool {
        let tainted = bundle.wit_authorities().iter().any(|key| key.kid() == self.kid() && key.is_tainted());
        self.id().is_member_of(bundle.trust_domain()) && tainted
    }
}

/// A [`WitSvid`] that was verified: whose the key in it is. Not who sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedWitSvid(WitSvid);

impl VerifiedWitSvid {
    /// The SVID itself, to keep or to present.
    pub fn into_svid(self) -> WitSvid {
        self.0
    }
}

impl std::ops::Deref for VerifiedWitSvid {
    type Target = WitSvid;
    fn deref(&self) -> &WitSvid {
        &self.0
    }
}

/// A public key that a WIT-SVID can confirm: it says which of the permitted algorithms it signs with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfirmationKey {
    key: PublicKey,
    algorithm: Algorithm,
}

impl ConfirmationKey {
    /// Takes a key; if it does not say what it signs with, that is the usual algorithm of its kind. Its name is dropped.
    pub fn new(jwk: &Jwk) -> Result<Self, ConfirmationError> {
        let algorithm = jwk.algorithm().or_else(|| jwk.key().usual_algorithm());
        Ok(Self { key: jwk.key().clone(), algorithm: algorithm.ok_or(ConfirmationError::NoSigningKey)? })
    }

    /// Out of a `cnf`.
    fn read(confirmation: &Value) -> Result<Self, ConfirmationError> {
        let jwk = confirmation.get("jwk").ok_or(ConfirmationError::NoJwk)?;
        // RFC 7800 section 3.1: a single key.
        if let Some(other) = ["jwe", "jku"].into_iter().find(|name| confirmation.get(name).is_some()) {
            return Err(ConfirmationError::Another(other));
        }
        let members: JwkMembers =
            serde_json::from_value(jwk.clone()).map_err(|error| JwkError::Json(error.to_string()))?;
        if members.alg.is_none() {
            return Err(ConfirmationError::NoAlgorithm);
        }
        Self::new(&Jwk::from_members(&members)?)
    }

    /// The key.
    pub fn key(&self) -> &PublicKey {
        &self.key
    }

    /// What it signs with.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Its members, `alg` among them.
    pub fn members(&self) -> JwkMembers {
        JwkMembers { alg: Some(self.algorithm.name().to_owned()), ..Jwk::new(self.key.clone()).members() }
    }
}

/// What a WIT-SVID says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WitClaims {
    /// The subject.
    pub id: SpiffeId,
    /// The key that is the subject's, possession proved.
    pub key: ConfirmationKey,
    /// When it is issued.
    pub issued_at: Timestamp,
    /// The first second at which it does not count any more.
    pub expires_at: Timestamp,
    /// Its own name, where the entry asks for it.
    pub jti: Option<String>,
}

impl WitClaims {
    /// The signed token; `kid` is the name of the signer's key in the bundle.
    pub fn sign(&self, kid: &str, signer: &Signer) -> Result<String, SignatureError> {
        let mut claims = Map::new();
        claims.insert("sub".into(), json!(self.id.as_str()));
        claims.insert("cnf".into(), json!({ "jwk": self.key.members() }));
        claims.insert("iat".into(), json!(self.issued_at.unix()));
        claims.insert("exp".into(), json!(self.expires_at.unix()));
        claims.extend(self.jti.iter().map(|jti| ("jti".into(), json!(jti))));
        jose::write(TYP, Some(kid), &claims, signer)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::crypto;
    use crate::entry::KeyType;
    use crate::id::TrustDomain;
    use crate::jose::JwsError;
    use crate::jwt_svid::JwtSvid;
    use crate::test_certificates::NOW;
    use crate::test_tokens::{Key, bundle, seconds};
    use crate::token::LEEWAY;

    const WEB: &str = "spiffe://example.org/web";

    fn claims() -> WitClaims {
        WitClaims {
            id: SpiffeId::parse(WEB).unwrap(),
            key: ConfirmationKey::new(Key::of_kind(KeyType::P256).jwk()).unwrap(),
            issued_at: NOW,
            expires_at: NOW.plus(seconds(3600)),
            jti: Some("one".into()),
        }
    }

    /// The token of these claims with another value for one; null: without it.
    fn with(name: &str, value: Value) -> String {
        let key = Key::shared();
        let svid = WitSvid::parse(&claims().sign(key.kid(), key.signer()).unwrap()).unwrap();
        let mut claims = Value::Object(svid.claims().clone());
        claims[name] = value;
        claims.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        key.sign(&json!({"alg": "ES256", "kid": key.kid(), "typ": "wit+jwt"}), &claims)
    }

    #[test]
    fn the_example_of_the_standard_is_parsed() {
        // WIT-SVID.md appendix A.
        let token = concat!(
            "eyJhbGciOiJFUzI1NiIsImtpZCI6ImxRU2kzaFpGbmRhMkQtWEprajF6bDdmb0pvdWl3STRuckF5aHk0alppSmciLCJ0eXAiOiJ3aXQr",
            "and0In0.eyJjbmYiOnsiandrIjp7ImFsZyI6IkVTMjU2IiwiY3J2IjoiUC0yNTYiLCJrdHkiOiJFQyIsIngiOiJyelA3bUxDS0FIV21z",
            "TTZYMEV3VklTQ19oSTN1amN1OTVmZlVreWVER0dvIiwieSI6InVPcmZEbGp0WDltM2pZLWhzeWhMSllheHRHa3pEdjVlNWttQ2U1OFo5",
            "N2cifX0sImV4cCI6MTc2NTQ1NjUwMywiaWF0IjoxNzY1NDUyOTAzLCJqdGkiOiIxeWoxOVY0TWNPQXpNY0ZpN3F2c2dfQWdDeGxyWTVF",
            "X3g1MDl3bEtLUXRjIiwic3ViIjoic3BpZmZlOi8vZXhhbXBsZS5jb20vbXktd29ya2xvYWQifQ.sfhEvZNdY_kWrICF08lX0u__rn39Y",
            "TnavnW-VPBS20zgowDh6-X43v5eOUKZbjZf06yLBQM-Mry5w1g1QFsCkg",
        );
        let svid = WitSvid::parse(token).unwrap();
        assert_eq!(svid.id().as_str(), "spiffe://example.com/my-workload");
        assert_eq!(svid.kid(), "lQSi3hZFnda2D-XJkj1zl7foJouiwI4nrAyhy4jZiJg");
        assert_eq!((svid.issued_at().unwrap().unix(), svid.expires_at().unix()), (1_765_452_903, 1_765_456_503));
        assert_eq!(svid.key().algorithm(), Algorithm::Es256);
        assert_eq!(svid.key().members().x.as_deref(), Some("rzP7mLCKAHWmsM6X0EwVISC_hI3ujcu95ffUkyeDGGo"));
    }

    #[test]
    fn what_is_signed_is_parsed_and_verified() {
        for kind in [KeyType::P256, KeyType::P384] {
            let (key, claims) = (Key::of_kind(kind), claims());
            let token = claims.sign(key.kid(), key.signer()).unwrap();
            let svid = WitSvid::parse(&token).unwrap();
            assert_eq!((svid.token(), svid.id().as_str(), svid.kid()), (token.as_str(), WEB, key.kid()));
            assert_eq!((svid.issued_at(), svid.expires_at()), (Some(NOW), NOW.plus(seconds(3600))));
            assert_eq!((svid.key(), svid.claims()["jti"].as_str()), (&claims.key, Some("one")));
            assert_eq!(svid.claims()["cnf"]["jwk"]["alg"], "ES256");
            assert!(!svid.claims().contains_key("aud"));
            let verified = svid.verify(&bundle("example.org", &[], &[&key]), NOW).unwrap();
            assert_eq!(verified.into_svid(), svid);
        }
    }

    #[test]
    fn a_wit_svid_is_no_bearer_token_and_a_jwt_svid_is_no_wit_svid() {
        let key = Key::shared();
        let wit = claims().sign(key.kid(), key.signer()).unwrap();
        assert!(matches!(JwtSvid::parse(&wit), Err(TokenError::Kind { found, .. }) if found == "wit+jwt"));
        let svid = WitSvid::parse(&wit).unwrap();
        for typ in ["JWT", "JOSE", "WIT+JWT", "application/wit+jwt", ""] {
            let header = json!({"alg": "ES256", "kid": key.kid(), "typ": typ});
            let token = key.sign(&header, &Value::Object(svid.claims().clone()));
            assert!(matches!(WitSvid::parse(&token), Err(TokenError::Kind { found, .. }) if found == typ));
        }
        let error = svid.verify(&bundle("example.org", &[key], &[]), NOW).unwrap_err();
        assert!(matches!(error, TokenError::NoKeys { kind: KIND, .. }), "{error}");
    }

    #[test]
    fn the_header_names_the_key_and_what_nobody_knows_is_passed_over() {
        let key = Key::shared();
        let header = |header: Value| {
            let claims = WitSvid::parse(&claims().sign(key.kid(), key.signer()).unwrap()).unwrap().claims().clone();
            WitSvid::parse(&key.sign(&header, &Value::Object(claims)))
        };
        assert_eq!(header(json!({"alg": "ES256", "typ": TYP})), Err(TokenError::NoKid));
        assert_eq!(header(json!({"alg": "ES256", "typ": TYP, "kid": ""})), Err(TokenError::NoKid));
        assert!(header(json!({"alg": "ES256", "typ": TYP, "kid": "k", "other": {"a": 1}})).is_ok());
        let critical = header(json!({"alg": "ES256", "typ": TYP, "kid": "k", "other": 1, "crit": ["other"]}));
        assert_eq!(critical, Err(JwsError::Critical.into()));
        // Names of keys are case-sensitive.
        let kid = key.kid().to_uppercase();
        let error = header(json!({"alg": "ES256", "typ": TYP, "kid": kid})).unwrap();
        let error = error.verify(&bundle("example.org", &[], &[key]), NOW).unwrap_err();
        let trust_domain = TrustDomain::parse("example.org").unwrap();
        assert_eq!(error, TokenError::UnknownKey { trust_domain, kind: KIND, kid });
    }

    #[test]
    fn each_claim_has_its_errors() {
        let refused = |name: &str, value: Value| WitSvid::parse(&with(name, value)).unwrap_err();
        for name in ["sub", "exp", "cnf"] {
            assert_eq!(refused(name, Value::Null), TokenError::Missing(name));
        }
        assert_eq!(refused("aud", json!("reports")), TokenError::HasAudience);
        assert_eq!(refused("jti", json!(1)), TokenError::NotText("jti"));
        assert_eq!(refused("exp", json!("soon")), TokenError::NotAMoment("exp"));
        // Claims that nobody knows are passed over.
        assert!(WitSvid::parse(&with("other", json!({"a": [1]}))).is_ok());
    }

    #[test]
    fn one_public_key_is_confirmed_and_says_what_it_signs_with() {
        let key = serde_json::to_value(claims().key.members()).unwrap();
        let refused = |confirmation: Value| match WitSvid::parse(&with("cnf", confirmation)).unwrap_err() {
            TokenError::Confirmation(error) => error,
            other => panic!("{other}"),
        };
        let changed = |name: &str, value: Value| {
            let mut key = key.clone();
            key[name] = value;
            key.as_object_mut().unwrap().retain(|_, value| !value.is_null());
            refused(json!({ "jwk": key }))
        };
        assert_eq!(changed("alg", Value::Null), ConfirmationError::NoAlgorithm);
        for alg in ["none", "HS256", "ES384", "EdDSA"] {
            assert_eq!(changed("alg", json!(alg)), JwkError::Algorithm(alg.into()).into());
        }
        assert_eq!(changed("d", json!("AA")), JwkError::Private.into());
        assert_eq!(changed("kty", json!("oct")), JwkError::UnknownKind.into());
        assert_eq!(refused(json!({ "jwk": key, "jku": "https://example.org" })), ConfirmationError::Another("jku"));
        assert_eq!(refused(json!({ "kid": "a" })), ConfirmationError::NoJwk);
        assert_eq!(refused(json!("a")), ConfirmationError::NoJwk);
        assert!(matches!(refused(json!({ "jwk": ["EC"] })), ConfirmationError::Jwk(JwkError::Json(_))));
        assert!(matches!(changed("x", json!(1)), ConfirmationError::Jwk(JwkError::Json(_))));
        let ed25519 = crypto::generate_key(KeyType::Ed25519).unwrap();
        let ed25519 = Jwk::from_spki(&rcgen::PublicKeyData::subject_public_key_info(&ed25519)).unwrap();
        assert_eq!(ConfirmationKey::new(&ed25519), Err(ConfirmationError::NoSigningKey));
    }

    #[test]
    fn it_counts_from_nbf_until_exp_and_iat_refuses_nothing() {
        let bundle = bundle("example.org", &[], &[Key::shared()]);
        let svid = WitSvid::parse(&with("nbf", json!(NOW.unix()))).unwrap();
        let at = |now: Timestamp| svid.verify(&bundle, now);
        assert!(at(NOW).is_ok() && at(svid.expires_at()).is_ok());
        assert!(matches!(at(svid.expires_at().plus(LEEWAY)), Err(TokenError::Expired { .. })));
        assert!(matches!(at(NOW.minus(LEEWAY + seconds(1))), Err(TokenError::NotYetValid { .. })));
        let issued_later = WitSvid::parse(&with("iat", json!(NOW.unix() + 1000))).unwrap();
        assert!(issued_later.verify(&bundle, NOW).is_ok());
    }

    #[test]
    fn only_the_bundle_of_its_own_trust_domain_counts() {
        let svid = WitSvid::parse(&with("sub", json!("spiffe://other.example/web"))).unwrap();
        let error = svid.verify(&bundle("example.org", &[], &[Key::shared()]), NOW).unwrap_err();
        assert!(matches!(error, TokenError::OtherTrustDomain { .. }), "{error}");
        assert!(svid.verify(&bundle("other.example", &[], &[Key::shared()]), NOW).is_ok());
    }

    #[test]
    fn a_token_is_tainted_by_its_own_key() {
        let key = Key::shared();
        let svid = WitSvid::parse(&claims().sign(key.kid(), key.signer()).unwrap()).unwrap();
        let bundle = bundle("example.org", &[], &[key]);
        assert!(!svid.is_tainted_by(&bundle));
        let tainted = vec![key.authority().with_taint(true)];
        assert!(svid.is_tainted_by(&bundle.with_jwk_authorities(Vec::new(), tainted).unwrap()));
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic_and_no_other_token_is_verified(
            random in "\\PC{0,64}", at: prop::sample::Index, byte in b'!'..b'~',
        ) {
            prop_assert!(WitSvid::parse(&random).is_err());
            let bundle = bundle("example.org", &[], &[Key::shared()]);
            let token = with("jti", json!("1"));
            let mut other = token.clone().into_bytes();
            let at = at.index(other.len());
            other[at] = byte;
            let other = String::from_utf8(other).unwrap();
            let verified = WitSvid::parse(&other).and_then(|svid| svid.verify(&bundle, NOW));
            prop_assert!(verified.is_err() || other == token);
        }
    }
}
