//! Bundle maps: the bundles of several trust domains in one document (SPIFFE_Trust_Domain_and_Bundle.md section 5).
//!
//! - `{"trust_domains": {"<name>": <bundle>, ...}}`; it may be empty, and members that nobody knows are passed over.
//! - A trust domain that occurs twice is refused: nobody can say which of the two bundles counts (section 6.3).
//! - A `spiffe_refresh_hint` of a member means nothing here: it is neither kept nor written (section 5.1.1).

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};

use super::jwks::{self, JwkSet};
use super::{Bundle, BundleError};
use crate::id::{IdError, TrustDomain};
use crate::jose::ObjectOnly;

/// The most trust domains in one map.
pub const MAX_TRUST_DOMAINS: usize = 1024;
/// The largest map that is read, in bytes.
pub const MAX_MAP_BYTES: usize = 16 << 20;

/// Why something is no bundle map.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleMapError {
    /// The document is longer than [`MAX_MAP_BYTES`].
    #[error("bundle map has {0} bytes: at most 16777216 are allowed")]
    TooLarge(usize),
    /// The document is no JSON of this form.
    #[error("bundle map cannot be read: {0}")]
    Json(String),
    /// The document has no `trust_domains`.
    #[error("bundle map has no \"trust_domains\": it must be there, and may be an empty object")]
    NoTrustDomains,
    /// There are more than [`MAX_TRUST_DOMAINS`].
    #[error("bundle map has more than 1024 trust domains: make several of it")]
    TooMany,
    /// A name is that of no trust domain.
    #[error("bundle map has a bundle for {name:?}, which is no name of a trust domain: {error}")]
    TrustDomain {
        /// The name, shortened if it is long.
        name: String,
        /// What is wrong with it.
        error: IdError,
    },
    /// A trust domain has two bundles.
    #[error("bundle map has two bundles for {0}: each trust domain may have one")]
    Twice(TrustDomain),
    /// A bundle cannot be taken.
    #[error("bundle of {trust_domain}: {error}")]
    Bundle {
        /// Whose bundle it is.
        trust_domain: TrustDomain,
        /// What is wrong with it.
        error: BundleError,
    },
}

/// The bundles of several trust domains.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BundleMap(BTreeMap<TrustDomain, Bundle>);

impl BundleMap {
    /// Of these bundles: one for each trust domain, [`MAX_TRUST_DOMAINS`] at most.
    pub fn new(bundles: impl IntoIterator<Item = Bundle>) -> Result<Self, BundleMapError> {
        let mut map = BTreeMap::new();
        for bundle in bundles {
            let trust_domain = bundle.trust_domain().clone();
            if map.contains_key(&trust_domain) {
                return Err(BundleMapError::Twice(trust_domain));
            }
            if map.len() == MAX_TRUST_DOMAINS {
                return Err(BundleMapError::TooMany);
            }
            map.insert(trust_domain, Bundle { refresh_hint: None, ..bundle });
        }
        Ok(Self(map))
    }

    /// Reads a document.
    pub fn from_json(document: &[u8]) -> Result<Self, BundleMapError> {
        if document.len() > MAX_MAP_BYTES {
            return Err(BundleMapError::TooLarge(document.len()));
        }
        let read: Document =
            serde_json::from_slice(document).map_err(|error| BundleMapError::Json(error.to_string()))?;
        let members = read.trust_domains.ok_or(BundleMapError::NoTrustDomains)?.0;
        let bundles: Result<Vec<_>, _> = members.into_iter().map(|(name, set)| member(&name, set)).collect();
        Self::new(bundles?)
    }

    /// The document.
    pub fn to_json(&self) -> String {
        let members: BTreeMap<_, _> =
            self.0.iter().map(|(trust_domain, bundle)| (trust_domain.name(), jwks::written(bundle))).collect();
        // Strings, numbers, arrays and objects with text for names: there is nothing in it that JSON cannot say.
        serde_json::to_string_pretty(&serde_json::json!({ "trust_domains": members })).unwrap_or_default()
    }

    /// The bundle of `trust_domain`.
    pub fn bundle(&self, trust_domain: &TrustDomain) -> Option<&Bundle> {
        self.0.get(trust_domain)
    }

    /// All bundles, by the names of their trust domains.
    pub fn bundles(&self) -> impl Iterator<Item = &Bundle> {
        self.0.values()
    }
}

fn member(name: &str, set: JwkSet) -> Result<Bundle, BundleMapError> {
    // The bare name: the ID of a trust domain is no key here.
    let trust_domain =
        if name.contains('/') { Err(IdError::TrustDomainCharacter('/')) } else { TrustDomain::parse(name) };
    let wrong = |error| BundleMapError::TrustDomain { name: name.chars().take(64).collect(), error };
    let trust_domain = trust_domain.map_err(wrong)?;
    jwks::take(trust_domain.clone(), set).map_err(|error| BundleMapError::Bundle { trust_domain, error })
}

#[derive(Deserialize)]
#[serde(remote = "Self")]
struct Document {
    #[serde(default)]
    trust_domains: Option<Members>,
}

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::deserialize(ObjectOnly(deserializer))
    }
}

/// In the order of the document, repeats and all.
struct Members(Vec<(String, JwkSet)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bounded;
        impl<'de> Visitor<'de> for Bounded {
            type Value = Members;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an object of at most {MAX_TRUST_DOMAINS} bundles")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    if members.len() == MAX_TRUST_DOMAINS {
                        return Err(A::Error::invalid_length(MAX_TRUST_DOMAINS + 1, &self));
                    }
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Bounded)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::test_certificates::Authority;
    use crate::test_tokens::{Key, bundle};

    fn read(document: &Value) -> Result<BundleMap, BundleMapError> {
        BundleMap::from_json(document.to_string().as_bytes())
    }

    fn two() -> BundleMap {
        let one = Bundle::new(
            TrustDomain::parse("example.org").unwrap(),
            vec![Authority::shared().x509_authority()],
            12_035_488,
            Some(Duration::from_secs(300)),
        );
        BundleMap::new([one.unwrap(), bundle("other.example", &[Key::shared()], &[])]).unwrap()
    }

    #[test]
    fn what_is_written_reads_back_the_same() {
        // The `alg` of a key is not written (section 4.2).
        let map = BundleMap::from_json(two().to_json().as_bytes()).unwrap();
        assert_eq!(BundleMap::from_json(map.to_json().as_bytes()), Ok(map.clone()));
        let document: Value = serde_json::from_str(&map.to_json()).unwrap();
        assert_eq!(document["trust_domains"]["example.org"]["spiffe_sequence"], 12_035_488);
        assert_eq!(document["trust_domains"]["other.example"]["keys"][0]["use"], "jwt-svid");
        let other = map.bundle(&TrustDomain::parse("other.example").unwrap()).unwrap();
        assert_eq!(other.jwt_authorities()[0].kid(), Key::shared().kid());
        assert_eq!(map.bundles().count(), 2);
        assert_eq!(read(&json!({"trust_domains": {}, "other": 1})), Ok(BundleMap::default()));
    }

    #[test]
    fn hints_of_members_are_neither_kept_nor_written() {
        assert!(!two().to_json().contains("refresh_hint"));
        let map = read(&json!({"trust_domains": {"example.org": {"keys": [], "spiffe_refresh_hint": 5}}})).unwrap();
        assert_eq!(map.bundles().next().unwrap().refresh_hint(), None);
    }

    #[test]
    fn a_trust_domain_that_occurs_twice_is_refused() {
        let twice = r#"{"trust_domains": {"example.org": {"keys": []}, "example\u002eorg": {"keys": []}}}"#;
        let example = TrustDomain::parse("example.org").unwrap();
        assert_eq!(BundleMap::from_json(twice.as_bytes()), Err(BundleMapError::Twice(example.clone())));
        let again = [Bundle::empty(example.clone()), Bundle::empty(example.clone())];
        assert_eq!(BundleMap::new(again), Err(BundleMapError::Twice(example)));
        let whole = br#"{"trust_domains": {}, "trust_domains": {}}"#;
        assert!(matches!(BundleMap::from_json(whole), Err(BundleMapError::Json(_))));
    }

    #[test]
    fn each_rule_has_its_error() {
        assert_eq!(read(&json!({})), Err(BundleMapError::NoTrustDomains));
        for (name, error) in [
            ("Example.org", IdError::TrustDomainCharacter('E')),
            ("spiffe://example.org", IdError::TrustDomainCharacter('/')),
            ("", IdError::TrustDomainEmpty),
        ] {
            let refused = read(&json!({"trust_domains": {name: {"keys": []}}}));
            assert_eq!(refused, Err(BundleMapError::TrustDomain { name: name.into(), error }));
        }
        let trust_domain = TrustDomain::parse("example.org").unwrap();
        let no_keys = BundleMapError::Bundle { trust_domain, error: BundleError::NoKeys };
        assert_eq!(read(&json!({"trust_domains": {"example.org": {}}})), Err(no_keys));
        for other in [json!([]), json!({"trust_domains": []}), json!({"trust_domains": {"example.org": []}})] {
            assert!(matches!(read(&other), Err(BundleMapError::Json(_))), "{other}");
        }
        let members = |count| {
            let members: serde_json::Map<_, _> = (0..count).map(|n| (format!("t{n}"), json!({"keys": []}))).collect();
            read(&json!({ "trust_domains": members }))
        };
        assert!(members(MAX_TRUST_DOMAINS).is_ok());
        assert!(matches!(members(MAX_TRUST_DOMAINS + 1), Err(BundleMapError::Json(_))));
        let large = " ".repeat(MAX_MAP_BYTES + 1);
        assert_eq!(BundleMap::from_json(large.as_bytes()), Err(BundleMapError::TooLarge(MAX_MAP_BYTES + 1)));
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(text in "\\PC{0,64}", at: prop::sample::Index, byte: u8) {
            let _ = BundleMap::from_json(text.as_bytes());
            let mut document = two().to_json().into_bytes();
            let at = at.index(document.len());
            document[at] = byte;
            let _ = BundleMap::from_json(&document);
        }
    }
}
