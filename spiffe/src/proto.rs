//! The wire: messages and services of the Workload API, the Broker API and our own doors, and the way between the
//! messages that travel everywhere (entries, bundles) and the domain's own types.
//!
//! What comes from the wire is parsed into a domain type here or in the door it came through, or refused.

use std::time::Duration;

use crate::bundle::{Bundle, BundleError, JwkAuthority, X509Authority};
use crate::entry::{
    DnsName, EntryError, EntryId, MAX_DNS_NAMES, MAX_FEDERATES_WITH, MAX_HINT_BYTES, RegistrationEntry, RuleId,
};
use crate::federation::{EndpointUrl, Relationship, RelationshipError};
use crate::id::{IdError, SpiffeId, TrustDomain};
use crate::jose::{Jwk, JwkError};
use crate::rule::{RuleError, TemplateError};
use crate::selector::{SelectorError, Selectors};
use crate::time::Timestamp;

#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    reason = "generated; the documentation is in proto/workload.proto"
)]
/// The SPIFFE Workload API.
pub mod workload {
    include!(concat!(env!("OUT_DIR"), "/_.rs"));
}

#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    reason = "generated; the documentation is in proto/broker.proto"
)]
/// The SPIFFE Broker API.
pub mod broker {
    include!(concat!(env!("OUT_DIR"), "/spiffe.broker.rs"));
}

#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    reason = "generated; the documentation is in proto/details.proto"
)]
/// Details of errors.
pub mod details {
    include!(concat!(env!("OUT_DIR"), "/google.rpc.rs"));
}

#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    reason = "generated; the documentation is in proto/envoy/*.proto"
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/envoy/tree.rs"));
}
/// Of Envoy's API what SDS needs, module for package: `service::secret::v3` and below it.
pub use generated::envoy;

#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    reason = "generated; the documentation is in proto/*.proto"
)]
/// Our own doors, Node, Admin and AgentStatus, and the records of the store.
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/chancery.v1.rs"));
}

#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    reason = "generated; the documentation is in proto/istio/ca.proto"
)]
/// Of Istio's API what its proxies ask a CA by.
pub mod istio {
    include!(concat!(env!("OUT_DIR"), "/istio.v1.auth.rs"));
}

mod rule;
mod secrets;

/// The descriptors of the Workload API, an encoded `FileDescriptorSet`.
pub const WORKLOAD_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/workload.bin"));
/// The descriptors of the Broker API, an encoded `FileDescriptorSet`.
pub const BROKER_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/broker.bin"));
/// The descriptors of our own doors, an encoded `FileDescriptorSet`.
pub const CHANCERY_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/chancery.bin"));
/// The descriptors of Istio's CA service and of what it imports, an encoded `FileDescriptorSet`.
pub const ISTIO_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/istio.bin"));

/// Why a message is no value of the domain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A field that has to be there is not.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A field has more elements or bytes than it may have.
    #[error("{field} has {count} elements or bytes: at most {most} are allowed")]
    TooMany {
        /// The name of the field.
        field: &'static str,
        /// How many it has.
        count: usize,
        /// How many it may have.
        most: usize,
    },
    /// A SPIFFE ID or trust domain is wrong.
    #[error("{0}: {1}")]
    Id(&'static str, IdError),
    /// A selector is wrong.
    #[error(transparent)]
    Selector(#[from] SelectorError),
    /// An entry ID, DNS name or key type is wrong.
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// A hint has a control character.
    #[error("hint has a control character: remove it")]
    Hint,
    /// A bundle is wrong.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A key for tokens is wrong.
    #[error(transparent)]
    Jwk(#[from] JwkError),
    /// A federation relationship is wrong.
    #[error(transparent)]
    Relationship(#[from] RelationshipError),
    /// A rule is wrong.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// A template of a rule is wrong.
    #[error("{0}: {1}")]
    Template(&'static str, TemplateError),
}

impl TryFrom<v1::Entry> for RegistrationEntry {
    type Error = WireError;

    /// Parses a whole entry. The ID has to be there: whoever creates an entry without one fills it in before.
    fn try_from(wire: v1::Entry) -> Result<Self, WireError> {
        at_most("dns_names", wire.dns_names.len(), MAX_DNS_NAMES)?;
        at_most("federates_with", wire.federates_with.len(), MAX_FEDERATES_WITH)?;
        at_most("hint", wire.hint.len(), MAX_HINT_BYTES)?;
        if wire.hint.chars().any(char::is_control) {
            return Err(WireError::Hint);
        }
        let selectors = Selectors::parse(&wire.selectors)?;
        if selectors.is_empty() {
            return Err(WireError::Missing("selectors (at least one)"));
        }
        let dns_names: Result<Vec<_>, _> = wire.dns_names.iter().map(|name| DnsName::parse(name)).collect();
        let federates_with: Result<Vec<_>, _> =
            wire.federates_with.iter().map(|name| trust_domain("federates_with", name)).collect();
        Ok(Self {
            id: EntryId::parse(&wire.id)?,
            spiffe_id: spiffe_id("spiffe_id", &wire.spiffe_id)?,
            parent: spiffe_id("parent", &wire.parent)?,
            selectors,
            x509_ttl: seconds(wire.x509_ttl),
            jwt_ttl: seconds(wire.jwt_ttl),
            wit_ttl: seconds(wire.wit_ttl),
            jti: wire.jti,
            dns_names: dns_names?,
            hint: wire.hint,
            admin: wire.admin,
            federates_with: federates_with?,
            expires_at: (wire.expires_at > 0).then(|| Timestamp::from_unix(wire.expires_at)),
            key_type: (!wire.key_type.is_empty()).then(|| wire.key_type.parse()).transpose()?,
            created_at: Timestamp::from_unix(wire.created_at),
            rule: (!wire.rule.is_empty()).then(|| RuleId::parse(&wire.rule)).transpose()?,
        })
    }
}

impl From<&RegistrationEntry> for v1::Entry {
    fn from(entry: &RegistrationEntry) -> Self {
        Self {
            id: entry.id.to_string(),
            spiffe_id: entry.spiffe_id.to_string(),
            parent: entry.parent.to_string(),
            selectors: entry.selectors.iter().map(ToString::to_string).collect(),
            x509_ttl: entry.x509_ttl.map_or(0, |ttl| ttl.as_secs()),
            jwt_ttl: entry.jwt_ttl.map_or(0, |ttl| ttl.as_secs()),
            wit_ttl: entry.wit_ttl.map_or(0, |ttl| ttl.as_secs()),
            jti: entry.jti,
            dns_names: entry.dns_names.iter().map(ToString::to_string).collect(),
            hint: entry.hint.clone(),
            admin: entry.admin,
            federates_with: entry.federates_with.iter().map(ToString::to_string).collect(),
            expires_at: entry.expires_at.map_or(0, Timestamp::unix),
            key_type: entry.key_type.map(|kind| kind.name().to_owned()).unwrap_or_default(),
            created_at: entry.created_at.unix(),
            rule: entry.rule.as_ref().map(ToString::to_string).unwrap_or_default(),
        }
    }
}

impl TryFrom<v1::Bundle> for Bundle {
    type Error = WireError;

    fn try_from(wire: v1::Bundle) -> Result<Self, WireError> {
        let authorities: Result<Vec<_>, BundleError> = wire
            .x509_authorities
            .into_iter()
            .map(|authority| {
                Ok(X509Authority::from_der(authority.certificate.to_vec().into())?.with_taint(authority.tainted))
            })
            .collect();
        let refresh_hint = seconds(wire.refresh_hint);
        let trust_domain = trust_domain("trust_domain", &wire.trust_domain)?;
        let tainted = wire.tainted_intermediates.into_iter().map(Vec::from);
        let bundle = Bundle::new(trust_domain, authorities?, wire.sequence, refresh_hint)?;
        let bundle = bundle.with_tainted_intermediates(tainted);
        Ok(bundle
            .with_jwk_authorities(jwk_authorities(wire.jwt_authorities)?, jwk_authorities(wire.wit_authorities)?)?)
    }
}

impl From<&Bundle> for v1::Bundle {
    fn from(bundle: &Bundle) -> Self {
        let authority = |authority: &X509Authority| v1::X509Authority {
            certificate: authority.der().to_vec().into(),
            tainted: authority.is_tainted(),
        };
        Self {
            trust_domain: bundle.trust_domain().to_string(),
            x509_authorities: bundle.x509_authorities().iter().map(authority).collect(),
            sequence: bundle.sequence(),
            refresh_hint: bundle.refresh_hint().map_or(0, |hint| hint.as_secs()),
            tainted_intermediates: bundle.tainted_intermediates().iter().map(|id| id.clone().into()).collect(),
            jwt_authorities: bundle.jwt_authorities().iter().map(Into::into).collect(),
            wit_authorities: bundle.wit_authorities().iter().map(Into::into).collect(),
        }
    }
}

impl From<&JwkAuthority> for v1::JwkAuthority {
    fn from(authority: &JwkAuthority) -> Self {
        Self { jwk: authority.jwk().to_json(), tainted: authority.is_tainted() }
    }
}

fn jwk_authorities(wire: Vec<v1::JwkAuthority>) -> Result<Vec<JwkAuthority>, WireError> {
    let read = |authority: v1::JwkAuthority| {
        let jwk = Jwk::from_json(authority.jwk.as_bytes())?;
        Ok(JwkAuthority::new(jwk)?.with_taint(authority.tainted))
    };
    wire.into_iter().map(read).collect()
}

/// A duration that is given in seconds; 0: none.
fn seconds(wire: u64) -> Option<Duration> {
    (wire > 0).then(|| Duration::from_secs(wire))
}

impl TryFrom<v1::Relationship> for Relationship {
    type Error = WireError;

    fn try_from(wire: v1::Relationship) -> Result<Self, WireError> {
        let trust_domain = trust_domain("trust_domain", &wire.trust_domain)?;
        let id = wire.endpoint_spiffe_id;
        let endpoint_id = (!id.is_empty()).then(|| spiffe_id("endpoint_spiffe_id", &id)).transpose()?;
        let url = EndpointUrl::parse(&wire.url).map_err(RelationshipError::from)?;
        Ok(Self::new(trust_domain, url, wire.profile.parse()?, endpoint_id)?)
    }
}

impl From<&Relationship> for v1::Relationship {
    fn from(relationship: &Relationship) -> Self {
        Self {
            trust_domain: relationship.trust_domain.to_string(),
            url: relationship.url.to_string(),
            profile: relationship.profile.name().to_string(),
            endpoint_spiffe_id: relationship.profile.endpoint_id().map(ToString::to_string).unwrap_or_default(),
        }
    }
}

/// Parses the SPIFFE ID in the field `field`, which has to be there.
pub fn spiffe_id(field: &'static str, text: &str) -> Result<SpiffeId, WireError> {
    if text.is_empty() {
        return Err(WireError::Missing(field));
    }
    SpiffeId::parse(text).map_err(|error| WireError::Id(field, error))
}

/// Parses the trust domain in the field `field`, which has to be there.
pub fn trust_domain(field: &'static str, text: &str) -> Result<TrustDomain, WireError> {
    if text.is_empty() {
        return Err(WireError::Missing(field));
    }
    TrustDomain::parse(text).map_err(|error| WireError::Id(field, error))
}

fn at_most(field: &'static str, count: usize, most: usize) -> Result<(), WireError> {
    if count > most {
        return Err(WireError::TooMany { field, count, most });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> v1::Entry {
        v1::Entry {
            id: "web-1".into(),
            spiffe_id: "spiffe://example.org/web".into(),
            parent: "spiffe://example.org/chancery/agent/join_token/1".into(),
            selectors: vec!["unix:uid:1000".into(), "unix:gid:100".into()],
            x509_ttl: 600,
            jwt_ttl: 60,
            wit_ttl: 1200,
            jti: true,
            dns_names: vec!["web.example.org".into()],
            hint: "internal".into(),
            admin: true,
            federates_with: vec!["other.org".into()],
            expires_at: 2_000_000_000,
            key_type: "p384".into(),
            created_at: 1_000_000_000,
            rule: "pods".into(),
        }
    }

    #[test]
    fn an_entry_survives_the_wire() {
        let parsed = RegistrationEntry::try_from(entry()).unwrap();
        let mut sorted = entry();
        sorted.selectors.sort();
        assert_eq!(v1::Entry::from(&parsed), sorted);
    }

    #[test]
    fn a_relationship_survives_the_wire() {
        let wire = v1::Relationship {
            trust_domain: "other.org".into(),
            url: "https://bundles.other.org:8443/a".into(),
            profile: "https_spiffe".into(),
            endpoint_spiffe_id: "spiffe://other.org/chancery/server".into(),
        };
        assert_eq!(v1::Relationship::from(&Relationship::try_from(wire.clone()).unwrap()), wire);
        let wrong = Relationship::try_from(v1::Relationship { profile: String::new(), ..wire }).unwrap_err();
        assert!(wrong.to_string().contains("use https_web or https_spiffe"), "{wrong}");
    }

    #[test]
    fn each_wrong_field_is_named() {
        let wrong = |change: fn(&mut v1::Entry)| {
            let mut wire = entry();
            change(&mut wire);
            RegistrationEntry::try_from(wire).unwrap_err().to_string()
        };
        assert_eq!(wrong(|e| e.spiffe_id.clear()), "spiffe_id is missing");
        assert_eq!(wrong(|e| e.parent = "x".into()), "parent: SPIFFE ID must begin with spiffe:// (lower case)");
        assert_eq!(wrong(|e| e.selectors.clear()), "selectors (at least one) is missing");
        assert_eq!(wrong(|e| e.hint = "a\nb".into()), "hint has a control character: remove it");
        assert_eq!(
            wrong(|e| e.dns_names = vec!["a".into(); 65]),
            "dns_names has 65 elements or bytes: at most 64 are allowed"
        );
        assert!(wrong(|e| e.key_type = "rsa".into()).contains("use p256, p384 or ed25519"));
    }
}
