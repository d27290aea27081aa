//! What a proxy asks for: names of secrets, and what each means. Pure.
//!
//! - A name of the config (`default`, `ROOTCA`, `ALL`) means what the config says. Any other is a SPIFFE ID, whose SVID is
//!   meant, or that of a trust domain, whose bundle is.
//! - No name at all means everything. Empty names count as none; a name that stands twice counts once.
//! - At most [`MAX_NAMES`] of at most [`MAX_NAME_BYTES`].

use std::collections::BTreeSet;

use spiffe::id::{SpiffeId, TrustDomain};

use super::Refusal;
use crate::config::sds::Sds;

/// The most names that one stream may ask for.
pub const MAX_NAMES: usize = 512;
/// The longest name: that of a SPIFFE ID (SPIFFE-ID.md section 2.3).
pub const MAX_NAME_BYTES: usize = 2048;

/// What a stream asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Whatever there is.
    Everything,
    /// Secrets of these names. Never empty, at most [`MAX_NAMES`].
    Names(BTreeSet<String>),
}

impl Wanted {
    /// Parses the list of a request.
    pub fn parse(names: Vec<String>) -> Result<Self, Refusal> {
        let names = parse_names(names)?;
        Ok(if names.is_empty() { Self::Everything } else { Self::Names(names) })
    }

    /// The names; none for everything.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        match self {
            Self::Everything => None,
            Self::Names(names) => Some(names),
        }
        .into_iter()
        .flatten()
    }
}

/// Checks names that came from outside.
pub(super) fn parse_names(names: Vec<String>) -> Result<BTreeSet<String>, Refusal> {
    if names.len() > MAX_NAMES {
        return Err(Refusal::TooManyNames(names.len()));
    }
    if let Some(long) = names.iter().find(|name| name.len() > MAX_NAME_BYTES) {
        return Err(Refusal::LongName(long.len()));
    }
    Ok(names.into_iter().filter(|name| !name.is_empty()).collect())
}

/// What a name means. That it means something does not say that the workload may have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// The SVID of the default identity.
    DefaultSvid,
    /// An SVID of this identity.
    Svid(SpiffeId),
    /// The bundle of the own trust domain.
    OwnBundle,
    /// The bundle of this trust domain.
    Bundle(TrustDomain),
    /// The bundles of the own and of all federated trust domains.
    AllBundles,
}

impl Meaning {
    /// What `name` means; `None`: nothing.
    pub fn of(name: &str, config: &Sds) -> Option<Self> {
        if name == config.default_svid_name {
            return Some(Self::DefaultSvid);
        }
        if name == config.default_bundle_name {
            return Some(Self::OwnBundle);
        }
        if name == config.default_all_bundles_name {
            return Some(Self::AllBundles);
        }
        let id = SpiffeId::parse(name).ok()?;
        let domain = id.trust_domain();
        Some(if id == domain.id() { Self::Bundle(domain) } else { Self::Svid(id) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn meaning(name: &str) -> Option<Meaning> {
        Meaning::of(name, &Sds::default())
    }

    #[test]
    fn each_name_has_its_meaning() {
        assert_eq!(meaning("default"), Some(Meaning::DefaultSvid));
        assert_eq!(meaning("ROOTCA"), Some(Meaning::OwnBundle));
        assert_eq!(meaning("ALL"), Some(Meaning::AllBundles));
        let web = SpiffeId::parse("spiffe://example.org/web").unwrap();
        assert_eq!(meaning("spiffe://example.org/web"), Some(Meaning::Svid(web.clone())));
        assert_eq!(meaning("spiffe://example.org"), Some(Meaning::Bundle(web.trust_domain())));
        for nothing in ["", "Default", "rootca", "example.org", "spiffe://", "spiffe://example.org/", "https://a/b"] {
            assert_eq!(meaning(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn a_name_of_the_config_wins() {
        let config = Sds { default_all_bundles_name: "spiffe://example.org/all".into(), ..Sds::default() };
        assert_eq!(Meaning::of("spiffe://example.org/all", &config), Some(Meaning::AllBundles));
        assert_eq!(Meaning::of("ALL", &config), None);
    }

    #[test]
    fn no_name_is_everything() {
        for none in [vec![], vec![String::new()], vec![String::new(); MAX_NAMES]] {
            assert_eq!(Wanted::parse(none).unwrap(), Wanted::Everything);
        }
        let twice = Wanted::parse(vec!["b".into(), "a".into(), String::new(), "b".into()]).unwrap();
        assert_eq!(twice.names().collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn there_is_a_most_of_names_and_of_their_bytes() {
        assert!(matches!(Wanted::parse(vec!["a".into(); MAX_NAMES + 1]), Err(Refusal::TooManyNames(513))));
        assert!(matches!(Wanted::parse(vec!["a".repeat(MAX_NAME_BYTES + 1)]), Err(Refusal::LongName(2049))));
        assert!(Wanted::parse(vec!["a".repeat(MAX_NAME_BYTES)]).is_ok());
    }

    proptest! {
        #[test]
        fn whatever_has_a_meaning_is_named_by_it(name in "(spiffe://)?[a-zA-Z0-9./_-]{0,30}") {
            match meaning(&name) {
                Some(Meaning::Svid(id)) => prop_assert_eq!(id.as_str(), name),
                Some(Meaning::Bundle(domain)) => prop_assert_eq!(domain.id().to_string(), name),
                _ => {}
            }
        }
    }
}
