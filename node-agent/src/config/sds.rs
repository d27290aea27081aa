//! `[sds]`: how proxies name what they get by Envoy's SDS. The keys and defaults are those of SPIRE, so that the proxies of
//! a SPIRE user need no other config.

use serde::Deserialize;

/// The longest name that can be chosen.
const MAX_NAME_BYTES: usize = 256;

/// What the names of secrets mean, and how bundles are sent.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, try_from = "Table")]
pub struct Sds {
    /// The certificate and key of the default identity.
    pub default_svid_name: String,
    /// The validation context of the own trust domain.
    pub default_bundle_name: String,
    /// One validation context of the own and all federated trust domains.
    pub default_all_bundles_name: String,
    /// Whether bundles are sent as plain roots, unless a proxy says otherwise in its metadata.
    pub disable_spiffe_cert_validation: bool,
}

impl Default for Sds {
    fn default() -> Self {
        Self {
            default_svid_name: "default".into(),
            default_bundle_name: "ROOTCA".into(),
            default_all_bundles_name: "ALL".into(),
            disable_spiffe_cert_validation: false,
        }
    }
}

/// The table as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    default_svid_name: Option<String>,
    default_bundle_name: Option<String>,
    default_all_bundles_name: Option<String>,
    #[serde(default)]
    disable_spiffe_cert_validation: bool,
}

impl TryFrom<Table> for Sds {
    type Error = String;
    fn try_from(table: Table) -> Result<Self, String> {
        let default = Self::default();
        let sds = Self {
            default_svid_name: table.default_svid_name.unwrap_or(default.default_svid_name),
            default_bundle_name: table.default_bundle_name.unwrap_or(default.default_bundle_name),
            default_all_bundles_name: table.default_all_bundles_name.unwrap_or(default.default_all_bundles_name),
            disable_spiffe_cert_validation: table.disable_spiffe_cert_validation,
        };
        let names = [&sds.default_svid_name, &sds.default_bundle_name, &sds.default_all_bundles_name];
        if let Some(name) = names.iter().find(|name| name.is_empty() || name.len() > MAX_NAME_BYTES) {
            return Err(format!("[sds] has a name of {} bytes: 1 to {MAX_NAME_BYTES} are possible", name.len()));
        }
        if let Some(name) = names.iter().find(|name| names.iter().filter(|other| other == name).count() > 1) {
            return Err(format!("[sds] gives the name {name:?} two meanings: give one of them another name"));
        }
        Ok(sds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Sds, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_not_said_is_as_in_spire() {
        assert_eq!(parse("").unwrap(), Sds::default());
        let federated = "default_bundle_name = 'null'\ndefault_all_bundles_name = 'ROOTCA'\n";
        let sds = parse(federated).unwrap();
        assert_eq!((sds.default_svid_name.as_str(), sds.default_all_bundles_name.as_str()), ("default", "ROOTCA"));
    }

    #[test]
    fn each_wrong_value_says_what_to_do() {
        for (text, words) in [
            ("default_all_bundles_name = 'ROOTCA'", "give one of them another name"),
            ("default_svid_name = ''", "1 to 256 are possible"),
            ("default_svid = 'a'", "unknown field `default_svid`"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(words), "{error}\n(wanted: {words})");
        }
    }
}
