//! `[federation]`: relationships that stand in the config, and what a poll of any relationship may do.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use spiffe::bundle::Bundle;
use spiffe::federation::{EndpointUrl, ProfileName, Relationship};
use spiffe::id::{SpiffeId, TrustDomain};

use super::{ConfigError, read_limited};

/// The key that names the file of an initial bundle.
const BUNDLE_KEY: &str = "federation.relationship.bundle";

/// `[federation]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Federation {
    /// `[[federation.relationship]]`: shown beside those of the store, and changed only here.
    pub relationships: Vec<Configured>,
    /// Networks that are not public and whose endpoints may be polled nevertheless.
    pub allow_networks: Vec<Network>,
    /// PEM: CAs that `https_web` endpoints may have certificates of, besides those of the operating system.
    pub web_roots: Option<PathBuf>,
    /// How long a poll may take as a whole.
    pub timeout: Duration,
    /// The most relationships in the store.
    pub most: usize,
}

/// A relationship of the config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configured {
    /// The relationship.
    pub relationship: Relationship,
    /// What the trust domain is known by until the first poll: a SPIFFE bundle (a file that begins with `{`) or PEM.
    pub bundle: Option<PathBuf>,
}

impl Configured {
    /// The initial bundle, read from its file.
    pub fn initial_bundle(&self) -> Result<Option<Bundle>, ConfigError> {
        let Some(path) = &self.bundle else { return Ok(None) };
        let content = read_limited(BUNDLE_KEY, path)?;
        let trust_domain = self.relationship.trust_domain.clone();
        let is_json = content.trim_ascii_start().first() == Some(&b'{');
        let read = if is_json { Bundle::from_jwks } else { Bundle::from_pem };
        let wrong = |reason| ConfigError::File { key: BUNDLE_KEY, path: path.clone(), reason };
        let bundle = read(trust_domain, &content).map_err(|error| wrong(error.to_string()))?;
        if bundle.x509_authorities().is_empty() {
            return Err(wrong("has no X.509 authority: nobody could be verified by it".into()));
        }
        Ok(Some(bundle))
    }
}

/// A network of addresses: `10.0.0.0/8`, `2001:db8::/32`, or one address alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    /// Whether `address` is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let (network, address) = (network.to_bits(), address.to_bits());
                (network ^ address).checked_shr(32 - u32::from(self.bits)).unwrap_or(0) == 0
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let (network, address) = (network.to_bits(), address.to_bits());
                (network ^ address).checked_shr(128 - u32::from(self.bits)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl TryFrom<String> for Network {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no network: write it like 10.0.0.0/8, fd00::/8 or 192.0.2.7");
        let (address, bits) = text.split_once('/').map_or((text.as_str(), None), |(left, right)| (left, Some(right)));
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(most), str::parse).map_err(|_| wrong())?;
        if bits > most {
            return Err(wrong());
        }
        Ok(Self { address, bits })
    }
}

/// The table as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct FederationDocument {
    relationship: Vec<RelationshipDocument>,
    allow_networks: Vec<Network>,
    web_roots: Option<PathBuf>,
    #[serde(with = "spiffe::settings::duration")]
    timeout: Duration,
    relationships: usize,
}

impl Default for FederationDocument {
    /// 20 seconds: less than a call of an operator may take, who asks for a poll and waits for what it brings.
    /// 10,000 relationships are about 30 polls a second at the usual interval.
    fn default() -> Self {
        let (relationship, allow_networks) = (Vec::new(), Vec::new());
        Self { relationship, allow_networks, web_roots: None, timeout: Duration::from_secs(20), relationships: 10_000 }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RelationshipDocument {
    trust_domain: TrustDomain,
    url: EndpointUrl,
    profile: ProfileName,
    endpoint_spiffe_id: Option<SpiffeId>,
    bundle: Option<PathBuf>,
}

impl FederationDocument {
    /// As the server of the trust domain `own` takes it.
    pub(super) fn read(self, own: &TrustDomain) -> Result<Federation, ConfigError> {
        let Self { relationship, allow_networks, web_roots, timeout, relationships: most } = self;
        let second = Duration::from_secs(1);
        super::document::lifetime_in_range("federation.timeout", timeout, second, 300 * second)?;
        super::document::in_range("federation.relationships", most, 1, 100_000)?;
        super::document::in_range("federation.relationship (how many)", relationship.len(), 0, most)?;
        let mut relationships: Vec<Configured> = Vec::with_capacity(relationship.len());
        for RelationshipDocument { trust_domain, url, profile, endpoint_spiffe_id, bundle } in relationship {
            if relationships.iter().any(|other| other.relationship.trust_domain == trust_domain) {
                return Err(ConfigError::RelationshipTwice(trust_domain));
            }
            let made = Relationship::new(trust_domain, url, profile, endpoint_spiffe_id)?.foreign_to(own)?;
            relationships.push(Configured { relationship: made, bundle });
        }
        Ok(Federation { relationships, allow_networks, web_roots, timeout, most })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        Network::try_from(text.to_owned()).unwrap()
    }

    #[test]
    fn networks_contain_their_addresses() {
        let is_in = |text: &str, address: &str| network(text).contains(address.parse().unwrap());
        assert!(is_in("10.0.0.0/8", "10.255.0.1") && !is_in("10.0.0.0/8", "11.0.0.1"));
        assert!(is_in("192.0.2.7", "192.0.2.7") && !is_in("192.0.2.7", "192.0.2.8"));
        assert!(is_in("fd00::/8", "fd12::1") && !is_in("fd00::/8", "fe80::1"));
        assert!(is_in("0.0.0.0/0", "8.8.8.8") && !is_in("0.0.0.0/0", "::1"));
        assert!(is_in("::/0", "2001:db8::1") && is_in("::1", "::1") && !is_in("::1/128", "::2"));
        for wrong in ["", "10.0.0.0/33", "x/8", "10.0.0.0/", "::/129", "10.0.0.0/-1"] {
            assert!(Network::try_from(wrong.to_owned()).unwrap_err().contains("write it like"), "{wrong}");
        }
    }
}
