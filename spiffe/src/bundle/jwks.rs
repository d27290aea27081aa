//! The SPIFFE JWKS form of a bundle (SPIFFE_Trust_Domain_and_Bundle.md section 4, X509-SVID.md section 6, RFC 7517).

use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::{Bundle, BundleError, JwkAuthority, MAX_DOCUMENT_BYTES, X509Authority};
use crate::id::TrustDomain;
use crate::jose::{Jwk, JwkError, JwkMembers, ObjectOnly};

/// The most keys of all uses in one bundle document.
pub const MAX_KEYS: usize = 1024;

const X509_SVID: &str = "x509-svid";
const JWT_SVID: &str = "jwt-svid";
const WIT_SVID: &str = "wit-svid";

// Members that occur twice are refused by the derived code itself.
#[derive(Deserialize)]
#[serde(remote = "Self")]
pub(super) struct JwkSet {
    #[serde(default)]
    keys: Option<Jwks>,
    #[serde(default)]
    spiffe_sequence: Option<u64>,
    #[serde(default)]
    spiffe_refresh_hint: Option<u64>,
}

impl<'de> Deserialize<'de> for JwkSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::deserialize(ObjectOnly(deserializer))
    }
}

struct Jwks(Vec<JwkMembers>);

impl<'de> Deserialize<'de> for Jwks {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bounded;
        impl<'de> Visitor<'de> for Bounded {
            type Value = Jwks;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an array of at most {MAX_KEYS} JWKs")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Jwks, A::Error> {
                let mut keys = Vec::new();
                while let Some(key) = sequence.next_element()? {
                    if keys.len() == MAX_KEYS {
                        return Err(A::Error::invalid_length(MAX_KEYS + 1, &self));
                    }
                    keys.push(key);
                }
                Ok(Jwks(keys))
            }
        }
        deserializer.deserialize_seq(Bounded)
    }
}

pub(super) fn read(trust_domain: TrustDomain, document: &[u8]) -> Result<Bundle, BundleError> {
    if document.len() > MAX_DOCUMENT_BYTES {
        return Err(BundleError::DocumentTooLarge(document.len()));
    }
    take(trust_domain, serde_json::from_slice(document).map_err(|error| BundleError::Json(error.to_string()))?)
}

pub(super) fn take(trust_domain: TrustDomain, set: JwkSet) -> Result<Bundle, BundleError> {
    let keys = set.keys.ok_or(BundleError::NoKeys)?.0;
    let mut x509 = Vec::new();
    let (mut jwt, mut wit) = (Vec::new(), Vec::new());
    for (index, key) in keys.iter().enumerate() {
        let wrong = |error| BundleError::Certificate(index + 1, Box::new(error));
        match key.usage.as_deref() {
            Some(X509_SVID) => x509.extend(root(key).map_err(wrong)?),
            Some(JWT_SVID) => jwt.extend(bare(key).map_err(|error| BundleError::Jwk(index + 1, Box::new(error)))?),
            Some(WIT_SVID) => wit.extend(bare(key).map_err(|error| BundleError::Jwk(index + 1, Box::new(error)))?),
            _ => {}
        }
    }
    let refresh_hint = set.spiffe_refresh_hint.map(Duration::from_secs);
    let bundle = Bundle::new(trust_domain, x509, set.spiffe_sequence.unwrap_or(0), refresh_hint)?;
    bundle.with_jwk_authorities(jwt, wit)
}

/// The root in an `x5c`; `None`: passed over.
fn root(key: &JwkMembers) -> Result<Option<X509Authority>, BundleError> {
    if !matches!(key.kty.as_deref(), Some("EC" | "RSA" | "OKP")) {
        return Ok(None);
    }
    let Some(x5c) = key.x5c.as_deref().and_then(<[String]>::first) else {
        return Ok(None);
    };
    match STANDARD.decode(x5c).map_err(|_| BundleError::X5c).and_then(|der| X509Authority::from_der(der.into())) {
        Ok(authority) => Ok(Some(authority)),
        // A curve that we do not know is to a JWK what a kty that we do not know is: passed over.
        Err(BundleError::Key(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The key that signs tokens; `None`: passed over.
fn bare(key: &JwkMembers) -> Result<Option<JwkAuthority>, BundleError> {
    match Jwk::from_members(key) {
        Ok(jwk) if jwk.key().usual_algorithm().is_none() => Ok(None),
        Ok(jwk) => JwkAuthority::new(jwk).map(Some),
        Err(JwkError::UnknownKind | JwkError::Algorithm(_)) => Ok(None),
        Err(error) => Err(BundleError::Key(error.to_string())),
    }
}

#[derive(Serialize)]
pub(super) struct WrittenSet {
    #[serde(skip_serializing_if = "Option::is_none")]
    spiffe_sequence: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    spiffe_refresh_hint: Option<u64>,
    keys: Vec<JwkMembers>,
}

pub(super) fn write(bundle: &Bundle) -> String {
    pretty(&written(bundle))
}

pub(super) fn written(bundle: &Bundle) -> WrittenSet {
    let x509 = |authority: &X509Authority| {
        let x5c = Some(vec![STANDARD.encode(authority.der())]);
        JwkMembers { usage: Some(X509_SVID.into()), x5c, ..Jwk::new(authority.key().clone()).members() }
    };
    let bare = |usage: &'static str| move |authority: &JwkAuthority| named(authority, usage);
    let keys = bundle.x509_authorities().iter().map(x509);
    let keys = keys.chain(bundle.jwt_authorities().iter().map(bare(JWT_SVID)));
    let keys = keys.chain(bundle.wit_authorities().iter().map(bare(WIT_SVID)));
    WrittenSet {
        spiffe_sequence: Some(bundle.sequence()),
        spiffe_refresh_hint: bundle.refresh_hint().map(|hint| hint.as_secs()),
        keys: keys.collect(),
    }
}

/// The keys for JWT-SVIDs alone (SPIFFE_Workload_API.md section 6.2.2).
pub(super) fn write_jwt(bundle: &Bundle) -> String {
    set_of(bundle.jwt_authorities(), JWT_SVID)
}

/// The keys for WIT-SVIDs alone (SPIFFE_Workload_API.md section 7.2.2).
pub(super) fn write_wit(bundle: &Bundle) -> String {
    set_of(bundle.wit_authorities(), WIT_SVID)
}

fn set_of(authorities: &[JwkAuthority], usage: &'static str) -> String {
    let keys = authorities.iter().map(|authority| named(authority, usage)).collect();
    pretty(&WrittenSet { spiffe_sequence: None, spiffe_refresh_hint: None, keys })
}

/// Without an `alg`: neither standard defines it for the keys of a bundle (SPIFFE_Trust_Domain_and_Bundle.md
/// section 4.2).
fn named(authority: &JwkAuthority, usage: &str) -> JwkMembers {
    JwkMembers { usage: Some(usage.to_owned()), alg: None, ..authority.jwk().members() }
}

fn pretty(set: &WrittenSet) -> String {
    // Strings, numbers and arrays: there is nothing in it that JSON cannot say.
    serde_json::to_string_pretty(set).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::entry::KeyType;
    use crate::test_certificates::{Authority, rsa_root};

    fn example() -> TrustDomain {
        TrustDomain::parse("example.org").unwrap()
    }

    fn from(document: &Value) -> Result<Bundle, BundleError> {
        Bundle::from_jwks(example(), document.to_string().as_bytes())
    }

    fn x5c(authority: &Authority) -> String {
        STANDARD.encode(authority.der())
    }

    #[test]
    fn what_is_written_reads_back_the_same() {
        let kinds = [KeyType::P256, KeyType::P384, KeyType::Ed25519];
        let mut roots: Vec<_> = kinds.iter().map(|kind| Authority::of_kind(*kind, "root").x509_authority()).collect();
        roots.push(rsa_root());
        let bundle = Bundle::new(example(), roots, u64::MAX, Some(Duration::from_secs(300))).unwrap();
        assert_eq!(Bundle::from_jwks(example(), bundle.to_jwks().as_bytes()).unwrap(), bundle);

        let document: Value = serde_json::from_str(&bundle.to_jwks()).unwrap();
        assert_eq!(document["spiffe_refresh_hint"], 300);
        let forms: Vec<_> = document["keys"].as_array().unwrap().iter().map(|key| (&key["kty"], &key["crv"])).collect();
        let (p256, p384, ed) = (json!("P-256"), json!("P-384"), json!("Ed25519"));
        assert_eq!(
            forms,
            [(&json!("EC"), &p256), (&json!("EC"), &p384), (&json!("OKP"), &ed), (&json!("RSA"), &Value::Null)]
        );
        for key in document["keys"].as_array().unwrap() {
            assert_eq!(key["use"], "x509-svid");
            assert_eq!(key["x5c"].as_array().unwrap().len(), 1);
            assert!(key.get("kid").is_none());
        }
        assert_eq!(document["keys"][0]["x"].as_str().unwrap().len(), 43);
        assert_eq!(document["keys"][1]["y"].as_str().unwrap().len(), 64);
        assert_eq!(document["keys"][3]["e"], "AQAB");
        assert_eq!(document["keys"][3]["n"].as_str().unwrap().len(), 342);
    }

    #[test]
    fn an_empty_bundle_trusts_nothing_and_has_keys_all_the_same() {
        let empty = Bundle::new(example(), Vec::new(), 3, None).unwrap();
        assert_eq!(from(&serde_json::from_str(&empty.to_jwks()).unwrap()).unwrap(), empty);
        assert!(from(&json!({"keys": []})).unwrap().trust_anchors().is_empty());
    }

    #[test]
    fn keys_that_are_not_understood_are_passed_over() {
        let root = Authority::root("root");
        let x5c = x5c(&root);
        let bundle = from(&json!({"spiffe_sequence": 7, "other": {"a": 1}, "keys": [
            {"kty": "EC", "use": "jwt-svid", "kid": "a", "crv": "secp256k1", "x": "AA", "y": "AA"},
            {"kty": "OKP", "use": "wit-svid", "kid": "b", "crv": "X25519", "x": "AA"},
            {"kty": "EC", "use": "X509-SVID", "x5c": [x5c]},
            {"kty": "EC", "x5c": [x5c]},
            {"kty": "XY", "use": "x509-svid", "x5c": [x5c]},
            {"use": "x509-svid", "x5c": [x5c]},
            {"kty": "EC", "use": "x509-svid"},
            {"kty": "EC", "use": "x509-svid", "x5c": []},
            {},
        ]}))
        .unwrap();
        assert!(bundle.x509_authorities().is_empty());
        assert!(bundle.jwt_authorities().is_empty() && bundle.wit_authorities().is_empty());
        assert_eq!((bundle.sequence(), bundle.refresh_hint()), (7, None));
        // Of several certificates the first counts.
        let bundle = from(&json!({"keys": [{"kty": "EC", "use": "x509-svid", "x5c": [x5c, "!"]}]})).unwrap();
        assert_eq!(bundle.x509_authorities(), [root.x509_authority()]);
    }

    fn token_key(kind: KeyType) -> JwkAuthority {
        let pair = crate::crypto::generate_key(kind).unwrap();
        JwkAuthority::new(Jwk::from_spki(&rcgen::PublicKeyData::subject_public_key_info(&pair)).unwrap()).unwrap()
    }

    #[test]
    fn keys_for_tokens_are_kept_apart_by_their_use() {
        let (jwt, wit) = (token_key(KeyType::P256), token_key(KeyType::P384));
        let bundle = Bundle::new(example(), vec![Authority::root("root").x509_authority()], 4, None).unwrap();
        let bundle = bundle.with_jwk_authorities(vec![jwt.clone(), jwt.clone()], vec![wit.clone()]).unwrap();
        let read = Bundle::from_jwks(example(), bundle.to_jwks().as_bytes()).unwrap();
        let kids = |of: &[JwkAuthority]| of.iter().map(|key| key.kid().to_owned()).collect::<Vec<_>>();
        assert_eq!(kids(read.jwt_authorities()), [jwt.kid()]);
        assert_eq!(kids(read.wit_authorities()), [wit.kid()]);
        assert_eq!(read.x509_authorities(), bundle.x509_authorities());
        let set: Value = serde_json::from_str(&bundle.to_jwt_jwks()).unwrap();
        assert_eq!(set["keys"].as_array().unwrap().len(), 1);
        assert_eq!((&set["keys"][0]["use"], &set["keys"][0]["kid"]), (&json!("jwt-svid"), &json!(jwt.kid())));
        assert!(bundle.to_wit_jwks().contains(wit.kid()) && !bundle.to_wit_jwks().contains(jwt.kid()));
    }

    #[test]
    fn a_key_for_tokens_has_a_name_of_its_own_and_no_private_part() {
        let (one, two) = (token_key(KeyType::P256), token_key(KeyType::P256));
        let written = |key: &JwkAuthority, usage: &str| serde_json::to_value(named(key, usage)).unwrap();
        let same = |first: &str, second: &str| {
            let mut other = written(&two, second);
            other["kid"] = json!(one.kid());
            from(&json!({"keys": [written(&one, first), other]}))
        };
        for (first, second) in [("jwt-svid", "jwt-svid"), ("wit-svid", "wit-svid"), ("jwt-svid", "wit-svid")] {
            assert_eq!(same(first, second), Err(BundleError::SameKid(one.kid().into())), "{first} {second}");
        }
        let changed = |change: fn(&mut Value)| {
            let mut key = written(&one, "jwt-svid");
            change(&mut key);
            from(&json!({"keys": [key]})).unwrap_err().to_string()
        };
        let nameless = changed(|key| drop(key.as_object_mut().unwrap().remove("kid")));
        assert!(nameless.starts_with("key 1 of the bundle: ") && nameless.contains("no \"kid\""), "{nameless}");
        assert!(changed(|key| key["d"] = json!("AA")).contains("private key"));
        assert!(changed(|key| key["x"] = json!("AA")).contains("member \"x\""));
    }

    #[test]
    fn each_rule_has_its_error() {
        let key = |x5c: &str| json!({"keys": [{"use": "none"}, {"kty": "EC", "use": "x509-svid", "x5c": [x5c]}]});
        let at_2 = |error| Err(BundleError::Certificate(2, Box::new(error)));
        assert_eq!(from(&key("*")), at_2(BundleError::X5c));
        assert_eq!(from(&key("AAAA")), at_2(BundleError::Malformed));
        let leaf = Authority::root_with("leaf", |params| params.is_ca = rcgen::IsCa::ExplicitNoCa);
        assert_eq!(from(&key(&x5c(&leaf))), at_2(BundleError::NotCa));
        assert_eq!(from(&json!({})), Err(BundleError::NoKeys));
        assert_eq!(from(&json!({"keys": null})), Err(BundleError::NoKeys));

        let json = |text: &str| matches!(Bundle::from_jwks(example(), text.as_bytes()), Err(BundleError::Json(_)));
        assert!(json("") && json("[]x") && json(r#"{"keys":{}}"#) && json(r#"{"keys":[1]}"#));
        assert!(json("[[]]") && json(r#"{"keys":[["EC"]]}"#), "an array is no object");
        assert!(json(r#"{"keys":[],"keys":[]}"#), "a member twice");
        assert!(json(r#"{"keys":[{"use":"a","use":"x509-svid"}]}"#), "a member of a key twice");
        assert!(json(r#"{"keys":[],"spiffe_sequence":-1}"#) && json(r#"{"keys":[],"spiffe_refresh_hint":"5"}"#));
        let large = " ".repeat(MAX_DOCUMENT_BYTES + 1);
        assert_eq!(
            Bundle::from_jwks(example(), large.as_bytes()),
            Err(BundleError::DocumentTooLarge(MAX_DOCUMENT_BYTES + 1))
        );
        let keys = |count| format!(r#"{{"keys":[{}]}}"#, vec!["{}"; count].join(","));
        assert!(!json(&keys(MAX_KEYS)) && json(&keys(MAX_KEYS + 1)));
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(text in "\\PC{0,64}", at: prop::sample::Index, byte: u8) {
            let _ = Bundle::from_jwks(example(), text.as_bytes());
            let bundle = Bundle::new(example(), vec![Authority::shared().x509_authority()], 1, None).unwrap();
            let mut document = bundle.to_jwks().into_bytes();
            let at = at.index(document.len());
            document[at] = byte;
            let _ = Bundle::from_jwks(example(), &document);
        }
    }
}
