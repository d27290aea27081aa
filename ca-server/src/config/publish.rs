//! `[kubernetes.<cluster>.publish]`: where in a cluster our bundle is written, for whoever has to know this trust domain.

use std::fmt;

use serde::Deserialize;

use super::ConfigError;
use super::document::in_range;
use super::kubernetes::{ClusterName, LabelKey, is_object_name};

/// The most namespaces that are named one by one.
const MAX_NAMESPACES: usize = 256;
/// The longest value of a label, as Kubernetes has it.
const MAX_LABEL_BYTES: usize = 63;

/// The name under which Istio's proxies look for roots.
pub const ISTIO_CONFIG_MAP: &str = "istio-ca-root-cert";

/// `[kubernetes.<cluster>.publish]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Publish {
    /// The ConfigMap with the bundle.
    pub config_map: ObjectName,
    /// The namespaces in which it is; with [`Self::namespace_label`] these and those. Neither: every namespace.
    pub namespaces: Vec<ObjectName>,
    /// The label of further namespaces.
    pub namespace_label: Option<Label>,
    /// Whether the roots are also written as Istio's proxies look for them: `istio-ca-root-cert`.
    pub istio: bool,
    /// The ClusterTrustBundle with the roots, where the API server has that kind.
    pub cluster_trust_bundle: Option<ObjectName>,
}

impl Default for Publish {
    fn default() -> Self {
        Self {
            config_map: ObjectName("chancery-bundle".into()),
            namespaces: Vec::new(),
            namespace_label: None,
            istio: false,
            cluster_trust_bundle: None,
        }
    }
}

/// The name of a thing in Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct ObjectName(String);

impl ObjectName {
    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ObjectName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if !is_object_name(&text) {
            return Err(format!(
                "{text:?} is no name of Kubernetes: use a-z, 0-9, dot and dash, a letter or digit at both ends"
            ));
        }
        Ok(Self(text))
    }
}

/// A label with its value.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Label(String);

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Label {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let is_value_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let (key, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is no label: write key=value"))?;
        LabelKey::try_from(key.to_owned())?;
        if value.len() > MAX_LABEL_BYTES || !value.bytes().all(is_value_byte) {
            return Err(format!("{value:?} is no value of a label: use at most 63 letters, digits, -, _ and ."));
        }
        Ok(Self(text))
    }
}

/// Holds the table of `cluster` to its limits.
pub(super) fn check(cluster: &ClusterName, publish: &Publish) -> Result<(), ConfigError> {
    in_range("kubernetes.<cluster>.publish.namespaces (how many)", publish.namespaces.len(), 0, MAX_NAMESPACES)?;
    if publish.istio && publish.config_map.as_str() == ISTIO_CONFIG_MAP {
        return Err(ConfigError::TwoBundles(cluster.clone()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    fn parse(text: &str) -> Result<Config, String> {
        let text = format!("trust_domain = 'example.org'\n[kubernetes.main.publish]\n{text}");
        Config::parse(&text, []).map_err(|error| error.to_string())
    }

    #[test]
    fn where_the_bundle_goes() {
        let config = parse(
            "config_map = 'roots'\nnamespaces = ['chancery']\nnamespace_label = 'a.org/bundle=yes'\nistio = true\n\
             cluster_trust_bundle = 'example.org'",
        )
        .unwrap();
        let publish = config.kubernetes.values().next().unwrap().publish.clone().unwrap();
        assert_eq!((publish.config_map.as_str(), publish.namespaces[0].as_str()), ("roots", "chancery"));
        assert_eq!(publish.namespace_label.unwrap().to_string(), "a.org/bundle=yes");
        assert_eq!(publish.cluster_trust_bundle.unwrap().as_str(), "example.org");
        let publish = parse("").unwrap().kubernetes.into_values().next().unwrap().publish.unwrap();
        assert_eq!((publish.config_map.as_str(), publish.istio), ("chancery-bundle", false));
        let nothing = Config::parse("trust_domain = 'example.org'\n[kubernetes.main]", []).unwrap();
        assert!(nothing.kubernetes.into_values().next().unwrap().publish.is_none());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, word) in [
            ("config_map = 'A'", "\"A\" is no name of Kubernetes"),
            ("namespaces = ['a/b']", "\"a/b\" is no name"),
            ("namespace_label = 'yes'", "write key=value"),
            ("namespace_label = 'a=b=c'", "\"b=c\" is no value of a label"),
            ("namespace_label = 'a/b/c=d'", "is no key of a label"),
            ("istio = true\nconfig_map = 'istio-ca-root-cert'", "kubernetes.main.publish"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
