//! What a proxy says of itself, as far as it changes what it is sent. Pure.
//!
//! Bundles go out with the SPIFFE validator (`envoy.tls.cert_validator.spiffe`), which takes the SVIDs of a trust domain by its
//! own roots alone; but as plain roots (`trusted_ca`)
//! - to an Envoy before 1.18, by its build version: it does not know the validator;
//! - to a proxy whose metadata has `disable_spiffe_cert_validation`, a bool or its text; the key wins over the config;
//! - where the config says so;
//! - to an istio-proxy (`ISTIO_VERSION` in the metadata), whose own config lays its rules beside plain roots. What only the
//!   validator can say, several trust domains at once, it gets by the validator.

use prost_types::Struct;
use prost_types::value::Kind;
use spiffe::proto::envoy::config::core::v3::Node;
use spiffe::proto::envoy::config::core::v3::node::UserAgentVersionType;

use crate::config::sds::Sds;
use crate::status::words;

/// A proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// What it calls itself, cut to a line.
    pub node: String,
    /// How it is sent bundles.
    pub validation: Validation,
}

/// How bundles are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validation {
    /// With the SPIFFE validator.
    Spiffe,
    /// As plain roots, one trust domain at a time.
    Roots,
    /// As plain roots where it is one trust domain, with the validator where it is all.
    RootsOrAll,
}

impl Client {
    /// Reads what a request says; `None`: nothing.
    pub fn of(node: Option<&Node>, config: &Sds) -> Self {
        let metadata = node.and_then(|node| node.metadata.as_ref());
        let disabled = metadata.and_then(disabled);
        let validation = if node.is_some_and(is_too_old) || disabled == Some(true) {
            Validation::Roots
        } else if disabled == Some(false) {
            Validation::Spiffe
        } else if config.disable_spiffe_cert_validation {
            Validation::Roots
        } else if metadata.is_some_and(|metadata| metadata.fields.contains_key("ISTIO_VERSION")) {
            Validation::RootsOrAll
        } else {
            Validation::Spiffe
        };
        Self { node: node.map(|node| words(&node.id)).unwrap_or_default(), validation }
    }
}

fn is_too_old(node: &Node) -> bool {
    let Some(UserAgentVersionType::UserAgentBuildVersion(build)) = &node.user_agent_version_type else { return false };
    build.version.as_ref().is_some_and(|version| (version.major_number, version.minor_number) < (1, 18))
}

/// What the metadata says; anything but a truth value says nothing.
fn disabled(metadata: &Struct) -> Option<bool> {
    match metadata.fields.get("disable_spiffe_cert_validation")?.kind.as_ref()? {
        Kind::BoolValue(disabled) => Some(*disabled),
        Kind::StringValue(text) => match text.to_ascii_lowercase().as_str() {
            "true" | "t" | "1" => Some(true),
            "false" | "f" | "0" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use prost_types::Value;
    use spiffe::proto::envoy::config::core::v3::BuildVersion;
    use spiffe::proto::envoy::r#type::v3::SemanticVersion;

    use super::*;

    fn of_version(major_number: u32, minor_number: u32) -> Node {
        let version = Some(SemanticVersion { major_number, minor_number, patch: 0 });
        let version = UserAgentVersionType::UserAgentBuildVersion(BuildVersion { version });
        Node { id: "front".into(), user_agent_version_type: Some(version), ..Node::default() }
    }

    fn with(node: Node, key: &str, kind: Kind) -> Node {
        let fields = [(key.to_owned(), Value { kind: Some(kind) })].into();
        Node { metadata: Some(Struct { fields }), ..node }
    }

    fn validation(node: &Node) -> Validation {
        Client::of(Some(node), &Sds::default()).validation
    }

    #[test]
    fn an_envoy_gets_the_validator_that_it_knows() {
        assert_eq!(Client::of(None, &Sds::default()).validation, Validation::Spiffe);
        for (version, expected) in [
            ((1, 17), Validation::Roots),
            ((0, 40), Validation::Roots),
            ((1, 18), Validation::Spiffe),
            ((1, 40), Validation::Spiffe),
            ((2, 0), Validation::Spiffe),
        ] {
            assert_eq!(validation(&of_version(version.0, version.1)), expected, "{version:?}");
        }
    }

    #[test]
    fn the_metadata_wins_over_the_config() {
        let key = "disable_spiffe_cert_validation";
        let off = Sds { disable_spiffe_cert_validation: true, ..Sds::default() };
        let of = |kind: Kind, config: &Sds| Client::of(Some(&with(of_version(1, 40), key, kind)), config).validation;
        let text = |text: &str| Kind::StringValue(text.into());
        for yes in [Kind::BoolValue(true), text("true"), text("True"), text("1")] {
            assert_eq!(of(yes, &Sds::default()), Validation::Roots);
        }
        for no in [Kind::BoolValue(false), text("false"), text("0")] {
            assert_eq!(of(no, &off), Validation::Spiffe);
        }
        for nothing in [Kind::NumberValue(1.0), text("yes"), Kind::NullValue(0)] {
            assert_eq!(of(nothing.clone(), &off), Validation::Roots, "the config's word");
            assert_eq!(of(nothing, &Sds::default()), Validation::Spiffe, "the config's word");
        }
        let old = with(of_version(1, 17), key, Kind::BoolValue(false));
        assert_eq!(validation(&old), Validation::Roots, "it would not know the validator");
    }

    #[test]
    fn an_istio_proxy_gets_plain_roots() {
        let istio = with(of_version(1, 40), "ISTIO_VERSION", Kind::StringValue("1.30.0".into()));
        assert_eq!(validation(&istio), Validation::RootsOrAll);
    }

    #[test]
    fn a_name_of_any_kind_is_one_short_line() {
        let node = Node { id: "a\nb".repeat(1000), ..Node::default() };
        let client = Client::of(Some(&node), &Sds::default());
        assert!(client.node.len() < 500 && !client.node.contains('\n'));
    }
}
