//! Records: values of the store, a version byte and a protobuf message behind it.

use bytes::Bytes;
use prost::Message;
use spiffe::bundle::Bundle;
use spiffe::entry::RegistrationEntry;
use spiffe::federation::Relationship;
use spiffe::id::SpiffeId;
use spiffe::proto::{WireError, spiffe_id, v1};
use spiffe::rule::Rule;
use spiffe::selector::Selectors;
use spiffe::time::Timestamp;

use crate::authority;

/// The version of every record that this program writes.
const VERSION: u8 = 1;

/// Why a value of the store is no record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Nothing, not even a version.
    #[error("is empty")]
    Empty,
    /// Written by a later release.
    #[error("has version {0}, and this release reads version 1: run the release that wrote it, or a later one")]
    Version(u8),
    /// The message behind the version byte does not parse.
    #[error("cannot be decoded: {0}")]
    Decode(String),
    /// The message parses, but is no value of the domain.
    #[error("is wrong: {0}")]
    Wire(#[from] WireError),
    /// An authority's.
    #[error("is wrong: {0}")]
    Authority(#[from] authority::record::RecordError),
}

/// Puts the version byte before `message`.
pub fn encode(message: &impl Message) -> Bytes {
    let mut out = Vec::with_capacity(1 + message.encoded_len());
    out.push(VERSION);
    // A Vec grows as needed: encoding into it cannot fail.
    let _ = message.encode(&mut out);
    out.into()
}

/// Reads the message behind the version byte.
pub fn decode<M: Message + Default>(value: &Bytes) -> Result<M, RecordError> {
    match value.first() {
        None => Err(RecordError::Empty),
        Some(&VERSION) => M::decode(value.slice(1..)).map_err(|error| RecordError::Decode(error.to_string())),
        Some(&version) => Err(RecordError::Version(version)),
    }
}

/// A node that has attested.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The agent's ID.
    pub id: SpiffeId,
    /// The kind of attestor that vouched for it.
    pub attestor: String,
    /// What the attestor found, and `agent_id:<id>`.
    pub selectors: Selectors,
    /// The serial number of its present SVID.
    pub serial: Vec<u8>,
    /// That of the SVID before, with which it asked for the present one; empty: none.
    pub previous_serial: Vec<u8>,
    /// The end of its present SVID.
    pub expires_at: Timestamp,
    /// When it last attested.
    pub attested_at: Timestamp,
    /// Whether it may neither act nor attest.
    pub banned: bool,
}

impl Node {
    /// Whether an SVID with this serial number is one of this node's good ones.
    pub fn holds(&self, serial: &[u8]) -> bool {
        !serial.is_empty() && (self.serial == serial || self.previous_serial == serial)
    }

    /// Whether the node may act at `now`, as far as its record goes.
    pub fn is_live(&self, now: Timestamp) -> bool {
        !self.banned && now <= self.expires_at
    }

    /// As the store keeps it.
    pub fn to_record(&self) -> Bytes {
        encode(&v1::NodeRecord {
            id: self.id.to_string(),
            attestor: self.attestor.clone(),
            selectors: self.selectors.iter().map(ToString::to_string).collect(),
            serial: self.serial.clone().into(),
            previous_serial: self.previous_serial.clone().into(),
            expires_at: self.expires_at.unix(),
            attested_at: self.attested_at.unix(),
            banned: self.banned,
        })
    }

    /// From the store.
    pub fn from_record(value: &Bytes) -> Result<Self, RecordError> {
        let record: v1::NodeRecord = decode(value)?;
        Ok(Self {
            id: spiffe_id("id", &record.id)?,
            attestor: record.attestor,
            selectors: Selectors::parse(&record.selectors).map_err(WireError::from)?,
            serial: record.serial.to_vec(),
            previous_serial: record.previous_serial.to_vec(),
            expires_at: Timestamp::from_unix(record.expires_at),
            attested_at: Timestamp::from_unix(record.attested_at),
            banned: record.banned,
        })
    }
}

/// A join token that nobody has used yet. The token itself is known only to whom it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinToken {
    /// The name under which it is listed and revoked.
    pub id: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it is good no more.
    pub expires_at: Timestamp,
    /// A node alias that the agent gets with it.
    pub alias: Option<SpiffeId>,
}

impl JoinToken {
    /// As the store keeps it.
    pub fn to_record(&self) -> Bytes {
        encode(&v1::TokenRecord {
            id: self.id.clone(),
            created_at: self.created_at.unix(),
            expires_at: self.expires_at.unix(),
            alias: self.alias.as_ref().map(ToString::to_string).unwrap_or_default(),
        })
    }

    /// From the store.
    pub fn from_record(value: &Bytes) -> Result<Self, RecordError> {
        let record: v1::TokenRecord = decode(value)?;
        let alias = (!record.alias.is_empty()).then(|| spiffe_id("alias", &record.alias)).transpose()?;
        Ok(Self {
            id: record.id,
            created_at: Timestamp::from_unix(record.created_at),
            expires_at: Timestamp::from_unix(record.expires_at),
            alias,
        })
    }
}

/// An entry, as the store keeps it.
pub fn entry_to_record(entry: &RegistrationEntry) -> Bytes {
    encode(&v1::Entry::from(entry))
}

/// An entry, from the store.
pub fn entry_from_record(value: &Bytes) -> Result<RegistrationEntry, RecordError> {
    Ok(decode::<v1::Entry>(value)?.try_into()?)
}

/// A foreign bundle, as the store keeps it.
pub fn bundle_to_record(bundle: &Bundle) -> Bytes {
    encode(&v1::Bundle::from(bundle))
}

/// A foreign bundle, from the store.
pub fn bundle_from_record(value: &Bytes) -> Result<Bundle, RecordError> {
    Ok(decode::<v1::Bundle>(value)?.try_into()?)
}

/// A federation relationship, as the store keeps it.
pub fn relationship_to_record(relationship: &Relationship) -> Bytes {
    encode(&v1::Relationship::from(relationship))
}

/// A federation relationship, from the store.
pub fn relationship_from_record(value: &Bytes) -> Result<Relationship, RecordError> {
    Ok(decode::<v1::Relationship>(value)?.try_into()?)
}

/// A rule, as the store keeps it.
pub fn rule_to_record(rule: &Rule) -> Bytes {
    encode(&v1::Rule::from(rule))
}

/// A rule, from the store.
pub fn rule_from_record(value: &Bytes) -> Result<Rule, RecordError> {
    Ok(decode::<v1::Rule>(value)?.try_into()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_survives_the_store() {
        let node = Node {
            id: SpiffeId::parse("spiffe://example.org/chancery/agent/join_token/1").unwrap(),
            attestor: "join_token".into(),
            selectors: Selectors::parse(["agent_id:spiffe://example.org/chancery/agent/join_token/1"]).unwrap(),
            serial: vec![1, 2],
            previous_serial: vec![],
            expires_at: Timestamp::from_unix(20),
            attested_at: Timestamp::from_unix(10),
            banned: false,
        };
        assert_eq!(Node::from_record(&node.to_record()).unwrap(), node);
        assert!(node.holds(&[1, 2]) && !node.holds(&[]) && !node.holds(&[1]));
        assert!(node.is_live(Timestamp::from_unix(20)) && !node.is_live(Timestamp::from_unix(21)));
    }

    #[test]
    fn a_record_of_a_later_release_is_refused_by_its_version() {
        assert_eq!(Node::from_record(&Bytes::new()), Err(RecordError::Empty));
        assert_eq!(JoinToken::from_record(&Bytes::from_static(&[2, 0])), Err(RecordError::Version(2)));
        assert!(matches!(entry_from_record(&Bytes::from_static(&[1, 255])), Err(RecordError::Decode(_))));
        assert!(matches!(entry_from_record(&Bytes::from_static(&[1])), Err(RecordError::Wire(_))));
    }
}
