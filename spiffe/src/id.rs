//! SPIFFE IDs and trust domains, exactly by SPIFFE-ID.md: parse or refuse, one error for each rule.
//!
//! - Scheme `spiffe`, lower case (section 2); an ID is at most 2,048 bytes (section 2.3).
//! - Trust domain: 1 to 255 bytes of `[a-z0-9._-]` (section 2.1); no user info, no port.
//! - Path: segments of `[a-zA-Z0-9._-]`, none empty, none `.` or `..`, no trailing slash (section 2.2);
//!   no percent-encoding, no query, no fragment.
//!
//! Paths under `/chancery/` are ours: the server's own ID and those of the agents.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The longest trust domain name, in bytes (SPIFFE-ID.md section 2.3).
pub const MAX_TRUST_DOMAIN_BYTES: usize = 255;
/// The longest SPIFFE ID that has to be supported, in bytes (SPIFFE-ID.md section 2.3).
pub const MAX_ID_BYTES: usize = 2048;

const SCHEME: &str = "spiffe://";
const SERVER_PATH: &str = "/chancery/server";
const AGENT_PREFIX: &str = "/chancery/agent/";
const RESERVED_PREFIX: &str = "/chancery/";

/// Why a text is no SPIFFE ID or no trust domain. Each variant is one rule of SPIFFE-ID.md.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Nothing was given.
    #[error("SPIFFE ID is empty: write it as spiffe://<trust domain>/<path>")]
    Empty,
    /// The text is longer than 2,048 bytes.
    #[error("SPIFFE ID has {0} bytes: at most 2048 are allowed")]
    TooLong(usize),
    /// The text does not begin with `spiffe://`.
    #[error("SPIFFE ID must begin with spiffe:// (lower case)")]
    Scheme,
    /// There is no trust domain between `spiffe://` and the path.
    #[error("trust domain is empty: write it after spiffe://")]
    TrustDomainEmpty,
    /// The trust domain is longer than 255 bytes.
    #[error("trust domain has {0} bytes: at most 255 are allowed")]
    TrustDomainTooLong(usize),
    /// The trust domain has a character outside `[a-z0-9._-]`.
    #[error("trust domain has the character {0:?}: only a-z, 0-9, dot, dash and underscore are allowed")]
    TrustDomainCharacter(char),
    /// Two slashes follow each other.
    #[error("SPIFFE ID path has an empty segment: remove the doubled slash")]
    EmptySegment,
    /// The path ends in a slash.
    #[error("SPIFFE ID ends with a slash: remove it")]
    TrailingSlash,
    /// A segment is `.` or `..`.
    #[error("SPIFFE ID path has a segment {0:?}: relative segments are not allowed")]
    DotSegment(&'static str),
    /// The path has a character outside `[a-zA-Z0-9._-]`.
    #[error(
        "SPIFFE ID path has the character {0:?}: only letters, digits, dot, dash and underscore are allowed (no percent-encoding, query or fragment)"
    )]
    PathCharacter(char),
}

/// The name of a trust domain, for example `prod.example.org`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Parses a bare name (`example.org`) or the ID of a trust domain (`spiffe://example.org`).
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let name = text.strip_prefix(SCHEME).unwrap_or(text);
        check_trust_domain(name)?;
        Ok(Self(name.into()))
    }

    /// The bare name, without the scheme.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// The SPIFFE ID of the trust domain itself: `spiffe://<name>`.
    pub fn id(&self) -> SpiffeId {
        SpiffeId { text: format!("{SCHEME}{}", self.0).into(), path_at: SCHEME.len() + self.0.len() }
    }

    /// The ID of the servers of this trust domain: `spiffe://<name>/chancery/server`.
    pub fn server_id(&self) -> SpiffeId {
        SpiffeId { text: format!("{SCHEME}{}{SERVER_PATH}", self.0).into(), path_at: SCHEME.len() + self.0.len() }
    }

    /// The ID of an agent: `spiffe://<name>/chancery/agent/<attestor>/<name of the node>`.
    ///
    /// `attestor` and `node` are path text without a leading slash; refused where the rules of paths refuse them.
    pub fn agent_id(&self, attestor: &str, node: &str) -> Result<SpiffeId, IdError> {
        self.member(&format!("{AGENT_PREFIX}{attestor}/{node}"))
    }

    /// An ID in this trust domain with the path `path`, which begins with a slash.
    pub fn member(&self, path: &str) -> Result<SpiffeId, IdError> {
        SpiffeId::parse(&format!("{SCHEME}{}{path}", self.0))
    }
}

/// A SPIFFE ID: `spiffe://<trust domain>` and a path, which may be empty. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpiffeId {
    text: Arc<str>,
    path_at: usize,
}

impl SpiffeId {
    /// Parses a SPIFFE ID, or says which rule it breaks.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        if text.is_empty() {
            return Err(IdError::Empty);
        }
        if text.len() > MAX_ID_BYTES {
            return Err(IdError::TooLong(text.len()));
        }
        let rest = text.strip_prefix(SCHEME).ok_or(IdError::Scheme)?;
        let slash = rest.find('/').unwrap_or(rest.len());
        let (name, path) = rest.split_at(slash);
        check_trust_domain(name)?;
        check_path(path)?;
        Ok(Self { text: text.into(), path_at: SCHEME.len() + slash })
    }

    /// The whole ID as text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The name of the trust domain, without allocating.
    pub fn trust_domain_name(&self) -> &str {
        self.text.get(SCHEME.len()..self.path_at).unwrap_or_default()
    }

    /// The trust domain of this ID.
    pub fn trust_domain(&self) -> TrustDomain {
        TrustDomain(self.trust_domain_name().into())
    }

    /// The path with its leading slash; empty for the ID of a trust domain.
    pub fn path(&self) -> &str {
        self.text.get(self.path_at..).unwrap_or_default()
    }

    /// Whether this ID belongs to `trust_domain`.
    pub fn is_member_of(&self, trust_domain: &TrustDomain) -> bool {
        self.trust_domain_name() == trust_domain.name()
    }

    /// Whether this is the ID of a server (`/chancery/server`).
    pub fn is_server(&self) -> bool {
        self.path() == SERVER_PATH
    }

    /// Whether this is the ID of an agent (`/chancery/agent/...`).
    pub fn is_agent(&self) -> bool {
        self.path().starts_with(AGENT_PREFIX)
    }

    /// The path of an agent without `/chancery/agent/`: `<attestor>/<node>`. `None` for any other ID.
    pub fn agent_path(&self) -> Option<&str> {
        self.path().strip_prefix(AGENT_PREFIX)
    }

    /// Whether the path is one that only Chancery itself may hold: anything at or under `/chancery`.
    pub fn is_reserved(&self) -> bool {
        self.path() == "/chancery" || self.path().starts_with(RESERVED_PREFIX)
    }
}

fn check_trust_domain(name: &str) -> Result<(), IdError> {
    if name.is_empty() {
        return Err(IdError::TrustDomainEmpty);
    }
    if let Some(bad) = name.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '.' | '-' | '_')) {
        return Err(IdError::TrustDomainCharacter(bad));
    }
    if name.len() > MAX_TRUST_DOMAIN_BYTES {
        return Err(IdError::TrustDomainTooLong(name.len()));
    }
    Ok(())
}

/// `path` is empty or begins with a slash.
fn check_path(path: &str) -> Result<(), IdError> {
    let Some(inner) = path.strip_prefix('/') else {
        return Ok(());
    };
    if inner.ends_with('/') || inner.is_empty() {
        return Err(IdError::TrailingSlash);
    }
    for segment in inner.split('/') {
        match segment {
            "" => return Err(IdError::EmptySegment),
            "." => return Err(IdError::DotSegment(".")),
            ".." => return Err(IdError::DotSegment("..")),
            _ => {}
        }
        let legal = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if let Some(bad) = segment.chars().find(|c| !legal(c)) {
            return Err(IdError::PathCharacter(bad));
        }
    }
    Ok(())
}

macro_rules! text_traits {
    ($type:ident, $text:ident) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.$text())
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.$text())
            }
        }
        impl FromStr for $type {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::parse(text)
            }
        }
        impl TryFrom<String> for $type {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                Self::parse(&text)
            }
        }
        impl From<$type> for String {
            fn from(value: $type) -> String {
                value.$text().to_owned()
            }
        }
    };
}
text_traits!(TrustDomain, name);
text_traits!(SpiffeId, as_str);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_spiffe_id_is_taken_apart() {
        let id = SpiffeId::parse("spiffe://prod.example_1-a.org/ns/Default/sa/web.v2_-").unwrap();
        assert_eq!(id.trust_domain_name(), "prod.example_1-a.org");
        assert_eq!(id.path(), "/ns/Default/sa/web.v2_-");
        assert_eq!(id.to_string(), "spiffe://prod.example_1-a.org/ns/Default/sa/web.v2_-");
        assert!(id.is_member_of(&id.trust_domain()));
        assert_eq!(SpiffeId::parse("spiffe://example.org").unwrap().path(), "");
    }

    #[test]
    fn each_rule_of_the_standard_has_its_error() {
        let long_path = format!("spiffe://a/{}", "x".repeat(2048 - 10));
        let cases = [
            ("", IdError::Empty),
            (long_path.as_str(), IdError::TooLong(2049)),
            ("https://example.org/a", IdError::Scheme),
            ("SPIFFE://example.org/a", IdError::Scheme),
            ("spiffe:/example.org", IdError::Scheme),
            ("spiffe:///a", IdError::TrustDomainEmpty),
            ("spiffe://Example.org", IdError::TrustDomainCharacter('E')),
            ("spiffe://user@example.org/a", IdError::TrustDomainCharacter('@')),
            ("spiffe://example.org:8443/a", IdError::TrustDomainCharacter(':')),
            ("spiffe://exämple.org/a", IdError::TrustDomainCharacter('ä')),
            ("spiffe://example.org?q", IdError::TrustDomainCharacter('?')),
            ("spiffe://example.org/", IdError::TrailingSlash),
            ("spiffe://example.org/a/", IdError::TrailingSlash),
            ("spiffe://example.org/a//b", IdError::EmptySegment),
            ("spiffe://example.org//b", IdError::EmptySegment),
            ("spiffe://example.org/./b", IdError::DotSegment(".")),
            ("spiffe://example.org/a/..", IdError::DotSegment("..")),
            ("spiffe://example.org/a%20b", IdError::PathCharacter('%')),
            ("spiffe://example.org/a?b", IdError::PathCharacter('?')),
            ("spiffe://example.org/a#b", IdError::PathCharacter('#')),
            ("spiffe://example.org/ä", IdError::PathCharacter('ä')),
        ];
        for (text, error) in cases {
            assert_eq!(SpiffeId::parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn limits_are_met_exactly() {
        let name = "a".repeat(MAX_TRUST_DOMAIN_BYTES);
        assert!(TrustDomain::parse(&name).is_ok());
        assert_eq!(TrustDomain::parse(&format!("{name}a")), Err(IdError::TrustDomainTooLong(256)));
        assert!(SpiffeId::parse(&format!("spiffe://a/{}", "x".repeat(MAX_ID_BYTES - 11))).is_ok());
    }

    #[test]
    fn a_trust_domain_is_a_name_whatever_else_it_may_be() {
        for name in ["127.0.0.1", "999.1.1.1", "localhost", "a..b", "-", "_spiffe", "example.org.", "0"] {
            let id = SpiffeId::parse(&format!("spiffe://{name}/web")).unwrap();
            assert_eq!((id.trust_domain_name(), id.path()), (name, "/web"));
            assert_eq!(TrustDomain::parse(name), Ok(id.trust_domain()));
        }
        let encoded = SpiffeId::parse("spiffe://example%2eorg/web");
        assert_eq!(encoded, Err(IdError::TrustDomainCharacter('%')));
    }

    #[test]
    fn three_dots_are_a_name_like_any_other() {
        assert!(SpiffeId::parse("spiffe://example.org/.../..a/a..").is_ok());
    }

    #[test]
    fn our_own_ids() {
        let domain = TrustDomain::parse("example.org").unwrap();
        assert!(domain.server_id().is_server() && domain.server_id().is_reserved());
        let agent = domain.agent_id("join_token", "7c1f").unwrap();
        assert_eq!(agent.as_str(), "spiffe://example.org/chancery/agent/join_token/7c1f");
        assert_eq!(agent.agent_path(), Some("join_token/7c1f"));
        assert!(domain.agent_id("x", "../server").is_err());
        assert!(!domain.member("/chancery-web").unwrap().is_reserved());
        assert_eq!(SpiffeId::parse(domain.server_id().as_str()).unwrap(), domain.server_id());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn what_parses_prints_back_the_same(text in "spiffe://[a-z.]{1,9}(/[A-Za-z._-]{1,5}){0,3}") {
            if let Ok(id) = SpiffeId::parse(&text) {
                prop_assert_eq!(id.to_string(), text);
                prop_assert_eq!(id.trust_domain().member(id.path()).unwrap(), id);
            }
        }

        #[test]
        fn nothing_makes_it_panic(text in "\\PC{0,64}") {
            let _ = SpiffeId::parse(&text);
            let _ = SpiffeId::parse(&format!("spiffe://{text}"));
        }
    }
}
