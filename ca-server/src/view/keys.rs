//! The layout of the store: which keys there are. Every server of a trust domain, on every kind of store, keeps to it.
//!
//! | key | value |
//! |---|---|
//! | `entry/<id>` | a registration entry |
//! | `unique/<sha256 of identity, parent and selectors>` | the ID of the entry that has them: no two can |
//! | `node/<agent path>` | an attested node, for example `node/join_token/5f..` |
//! | `token/<sha256 of the token>` | a join token, never the token itself |
//! | `authority/<kind>/<id>` | a CA certificate or the public key of one for tokens, and its state; never the private key |
//! | `bundle/<foreign trust domain>` | the bundle of another trust domain |
//! | `federation/<foreign trust domain>` | a relationship: from where that bundle is fetched |
//! | `rule/<id>` | a rule: which entries pods get. Those entries are not stored |
//!
//! The own bundle is not stored: it is what the authorities say.

use spiffe::crypto::sha256_hex;
use spiffe::entry::{EntryId, RegistrationEntry, RuleId};
use spiffe::id::{SpiffeId, TrustDomain};

/// Where entries are.
pub const ENTRIES: &str = "entry/";
/// Where the uniqueness of entries is kept.
pub const UNIQUE: &str = "unique/";
/// Where nodes are.
pub const NODES: &str = "node/";
/// Where join tokens are.
pub const TOKENS: &str = "token/";
/// Where authorities are.
pub const AUTHORITIES: &str = "authority/";
/// Where foreign bundles are.
pub const BUNDLES: &str = "bundle/";

/// Where federation relationships are.
pub const FEDERATION: &str = "federation/";
/// Where rules are.
pub const RULES: &str = "rule/";

/// The key of an entry.
pub fn entry(id: &EntryId) -> String {
    format!("{ENTRIES}{id}")
}

/// The key that only one entry with this identity, parent and selectors can hold.
pub fn unique(entry: &RegistrationEntry) -> String {
    // No part can have a newline: the text is the same for no two different entries.
    let selectors: Vec<&str> = entry.selectors.iter().map(spiffe::selector::Selector::as_str).collect();
    let text = format!("{}\n{}\n{}", entry.spiffe_id, entry.parent, selectors.join("\n"));
    format!("{UNIQUE}{}", sha256_hex(text.as_bytes()))
}

/// The key of a rule.
pub fn rule(id: &RuleId) -> String {
    format!("{RULES}{id}")
}

/// The key of a node; `None` when `agent` is no agent's ID.
pub fn node(agent: &SpiffeId) -> Option<String> {
    agent.agent_path().map(|path| format!("{NODES}{path}"))
}

/// The key of a join token, by the hexadecimal SHA-256 of the token.
pub fn token(hash: &str) -> String {
    format!("{TOKENS}{hash}")
}

/// The key of a foreign bundle.
pub fn bundle(trust_domain: &TrustDomain) -> String {
    format!("{BUNDLES}{trust_domain}")
}

/// The key of a federation relationship.
pub fn relationship(trust_domain: &TrustDomain) -> String {
    format!("{FEDERATION}{trust_domain}")
}
