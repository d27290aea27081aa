//! Registration entries: which identity goes to what, below which node.
//!
//! - An entry gives its SPIFFE ID to every process of its parent's node whose selectors include all of the entry's.
//! - The parent is one agent, or a node alias. A node alias is itself an entry: its parent is the server's own
//!   ID, and its selectors match nodes instead of processes.
//! - Operators make entries, and so do [rules](crate::rule): an entry says which rule it comes from.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::{SpiffeId, TrustDomain};
use crate::selector::Selectors;
use crate::time::Timestamp;

/// The longest ID of an entry or a rule, in bytes.
pub const MAX_ENTRY_ID_BYTES: usize = 64;
/// The longest hint, in bytes.
pub const MAX_HINT_BYTES: usize = 1024;
/// The most DNS names of one entry, and of one SVID.
pub const MAX_DNS_NAMES: usize = 64;
/// The most trust domains that one entry federates with.
pub const MAX_FEDERATES_WITH: usize = 256;

/// Why something is no part of an entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// Not 1 to 64 characters of `[A-Za-z0-9_-]`.
    #[error("entry ID {0:?} must be 1 to 64 letters, digits, dashes or underscores")]
    Id(String),
    /// The same, of a rule.
    #[error("the name of a rule {0:?} must be 1 to 64 letters, digits, dashes or underscores")]
    RuleId(String),
    /// Not a DNS name by RFC 1123 (an asterisk may stand for the whole first label).
    #[error("DNS name {0:?} is not one: labels of 1 to 63 of a-z, 0-9 and dash, 253 in all, in lower case")]
    DnsName(String),
    /// Not the name of a key type.
    #[error("key type {0:?} is not known: use p256, p384 or ed25519")]
    KeyType(String),
}

/// The name of an entry, given by the server or by whoever creates it. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EntryId(Arc<str>);

impl EntryId {
    /// 1 to 64 characters of `[A-Za-z0-9_-]`.
    pub fn parse(text: &str) -> Result<Self, EntryError> {
        if !is_name(text) {
            return Err(EntryError::Id(text.chars().take(MAX_ENTRY_ID_BYTES).collect()));
        }
        Ok(Self(text.into()))
    }

    /// The ID of an entry that a rule makes: its whole content has this hash, so that another content is another entry.
    pub fn derived(content: [u8; 32]) -> Self {
        let digits = content.iter().take(DERIVED_BYTES).map(|byte| format!("{byte:02x}"));
        Self(std::iter::once(DERIVED.to_owned()).chain(digits).collect::<String>().into())
    }

    /// Whether it is of the form that the entries of rules have, which no operator may choose.
    pub fn is_derived(&self) -> bool {
        let is_hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        let digits = self.0.strip_prefix(DERIVED);
        digits.is_some_and(|digits| digits.len() == 2 * DERIVED_BYTES && digits.bytes().all(is_hex))
    }

    /// A new ID from 128 random bits, as 32 hexadecimal digits.
    pub fn from_random(bits: [u8; 16]) -> Self {
        Self(bits.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into())
    }

    /// A new ID behind all that were made at an earlier `revision` of the store, or at an earlier `place` of the same
    /// change: entries of one second are in the order of their IDs, and the oldest is the default identity.
    pub fn in_order(revision: u64, place: u16, chance: [u8; 8]) -> Self {
        let [_, _, revision @ ..] = revision.to_be_bytes();
        let mut bits = [0; 16];
        let all = revision.into_iter().chain(place.to_be_bytes()).chain(chance);
        bits.iter_mut().zip(all).for_each(|(bit, byte)| *bit = byte);
        Self::from_random(bits)
    }

    /// The ID as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What the ID of an entry that a rule makes begins with, and how many bytes of a hash follow.
const DERIVED: &str = "rule-";
const DERIVED_BYTES: usize = 24;

/// The name of a rule, given by whoever creates it. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RuleId(Arc<str>);

impl RuleId {
    /// 1 to 64 characters of `[A-Za-z0-9_-]`.
    pub fn parse(text: &str) -> Result<Self, EntryError> {
        if !is_name(text) {
            return Err(EntryError::RuleId(text.chars().take(MAX_ENTRY_ID_BYTES).collect()));
        }
        Ok(Self(text.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_name(text: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    (1..=MAX_ENTRY_ID_BYTES).contains(&text.len()) && text.bytes().all(legal)
}

/// A DNS name in lower case, by RFC 1123; `*.` may stand before it. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DnsName(Arc<str>);

impl DnsName {
    /// Parses a name such as `web.example.org` or `*.example.org`.
    pub fn parse(text: &str) -> Result<Self, EntryError> {
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        };
        let name = text.strip_prefix("*.").unwrap_or(text);
        // Four numbers are an address, which a verifier would never look for among the DNS names.
        let address = name.parse::<std::net::Ipv4Addr>().is_ok();
        if text.len() > 253 || address || !name.split('.').all(label) {
            return Err(EntryError::DnsName(text.chars().take(300).collect()));
        }
        Ok(Self(text.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

macro_rules! text_traits {
    ($type:ident) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl FromStr for $type {
            type Err = EntryError;
            fn from_str(text: &str) -> Result<Self, EntryError> {
                Self::parse(text)
            }
        }
        impl TryFrom<String> for $type {
            type Error = EntryError;
            fn try_from(text: String) -> Result<Self, EntryError> {
                Self::parse(&text)
            }
        }
        impl From<$type> for String {
            fn from(value: $type) -> String {
                value.0.as_ref().to_owned()
            }
        }
    };
}
text_traits!(EntryId);
text_traits!(RuleId);
text_traits!(DnsName);

/// The kinds of key that an SVID may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyType {
    /// ECDSA on NIST P-256: the default, and the fastest.
    #[default]
    P256,
    /// ECDSA on NIST P-384.
    P384,
    /// Ed25519.
    Ed25519,
}

impl KeyType {
    /// The name, as it is written in configs and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::P256 => "p256",
            Self::P384 => "p384",
            Self::Ed25519 => "ed25519",
        }
    }
}

impl fmt::Display for KeyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for KeyType {
    type Err = EntryError;
    fn from_str(text: &str) -> Result<Self, EntryError> {
        [Self::P256, Self::P384, Self::Ed25519]
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| EntryError::KeyType(text.chars().take(64).collect()))
    }
}

/// One rule of who gets which identity. See the head of this file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistrationEntry {
    /// Its own name.
    pub id: EntryId,
    /// The identity that it gives.
    pub spiffe_id: SpiffeId,
    /// An agent's ID, a node alias, or the server's ID (then this entry is a node alias itself).
    pub parent: SpiffeId,
    /// What must all be true of the process (or of the node, for a node alias). Never empty.
    pub selectors: Selectors,
    /// How long its X.509-SVIDs live; `None`: as long as the server's config says.
    pub x509_ttl: Option<Duration>,
    /// How long its JWT-SVIDs live; `None`: as long as the server's config says.
    pub jwt_ttl: Option<Duration>,
    /// How long its WIT-SVIDs live; `None`: as long as the server's config says.
    pub wit_ttl: Option<Duration>,
    /// Whether its JWT-SVIDs have a `jti` (JWT-SVID.md section 7.1): each is then made anew, and handed out once.
    pub jti: bool,
    /// DNS names in its X.509-SVIDs, the first of them also as common name.
    pub dns_names: Vec<DnsName>,
    /// A word to the workload on what this identity is for (SPIFFE_Workload_API.md section 5.2.1); empty: none.
    pub hint: String,
    /// Whether its holder may use the Admin door.
    pub admin: bool,
    /// Foreign trust domains whose bundles its workload gets.
    pub federates_with: Vec<TrustDomain>,
    /// When it ceases to give anything; `None`: never.
    pub expires_at: Option<Timestamp>,
    /// The kind of key of its SVIDs; `None`: as the agent's config says.
    pub key_type: Option<KeyType>,
    /// When it was created, or the rule that it comes from.
    pub created_at: Timestamp,
    /// The rule that it comes from; `None`: an operator made it.
    pub rule: Option<RuleId>,
}

/// Where an entry stands among those of one workload, the first of which is its default identity: entries that operators
/// made before those of rules, the older before the younger, and what is as old in the order of its ID.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    is_derived: bool,
    created_at: Timestamp,
    id: EntryId,
}

impl Place {
    /// The entry that stands there.
    pub fn id(&self) -> &EntryId {
        &self.id
    }
}

impl RegistrationEntry {
    /// Whether this entry names nodes, not processes.
    pub fn is_node_alias(&self) -> bool {
        self.parent.is_server()
    }

    /// Where it stands among the entries of one workload.
    pub fn place(&self) -> Place {
        Place { is_derived: self.rule.is_some(), created_at: self.created_at, id: self.id.clone() }
    }

    /// Whether the entry still gives its identity at `now`.
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.expires_at.is_none_or(|end| now < end)
    }

    /// Whether an X.509-SVID issued for `other` is as good for this entry: nothing that is inside an SVID differs.
    pub fn issues_the_same_as(&self, other: &Self) -> bool {
        self.spiffe_id == other.spiffe_id
            && self.x509_ttl == other.x509_ttl
            && self.dns_names == other.dns_names
            && self.key_type == other.key_type
            && self.expires_at == other.expires_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_names_by_rfc_1123() {
        for good in ["a", "web.example.org", "*.example.org", "1a.example", "x-1.y"] {
            assert!(DnsName::parse(good).is_ok(), "{good}");
        }
        let long = format!("{}.org", "a.".repeat(130));
        let bad = ["", "*", "a..b", "-a.b", "a-.b", "A.b", "a_b", "a.*.b", "a.b.", "10.0.0.1", "ä.org", &long];
        for bad in bad {
            assert!(DnsName::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn entry_ids() {
        assert_eq!(EntryId::from_random([0xab; 16]).as_str(), "abababababababababababababababab");
        let made = [(1, 0, 9), (1, 1, 8), (2, 0, 7), (300, 0, 0)];
        let made = made.map(|(revision, place, chance)| EntryId::in_order(revision, place, [chance; 8]));
        assert!(made.is_sorted(), "{made:?}");
        assert_eq!(made[1].as_str(), "00000000000100010808080808080808");
        for bad in ["", "a/b", "a b", "ä", &"a".repeat(65)] {
            assert!(EntryId::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_ids_of_derived_entries_are_of_their_own_form() {
        let id = EntryId::derived([0xcd; 32]);
        assert_eq!(id.as_str(), format!("rule-{}", "cd".repeat(24)));
        assert_eq!(EntryId::parse(id.as_str()), Ok(id.clone()));
        assert!(id.is_derived());
        for other in ["rule-web", "rule-", &id.as_str().to_uppercase(), &format!("{id}0"), &"cd".repeat(24)] {
            assert!(!EntryId::parse(other).unwrap().is_derived(), "{other}");
        }
        assert!(RuleId::parse("a/b").unwrap_err().to_string().contains("the name of a rule \"a/b\""));
    }

    #[test]
    fn key_types_are_read_as_they_are_written() {
        for kind in [KeyType::P256, KeyType::P384, KeyType::Ed25519] {
            assert_eq!(kind.name().parse(), Ok(kind));
        }
        assert!("rsa2048".parse::<KeyType>().is_err());
    }
}
