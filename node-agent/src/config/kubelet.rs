//! The table `[attestors.k8s.kubelet]`: the kubelet of this node in the place of the API server, as what tells of its pods.
//!
//! - By HTTPS alone, and it is verified: but for one at a loopback address, of which it is written down that it is not.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
use serde::Deserialize;
use spiffe::settings;

/// The variable that has the node's address, as the downward API sets it.
pub const NODE_IP: &str = "CHANCERY_NODE_IP";
/// Of every kubelet that was not told otherwise.
const PORT: u16 = 10250;
const LEAST_EVERY: Duration = Duration::from_secs(1);
const MOST_EVERY: Duration = Duration::from_secs(60);
/// What a pod knows its cluster by.
const CLUSTER_CA: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";
const POD_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// Why the table is refused.
#[derive(Debug, thiserror::Error)]
pub enum KubeletError {
    /// It leads to no kubelet.
    #[error("[attestors.k8s.kubelet] address {0:?} is none: write \"https://<host>:10250\", and no path")]
    Address(String),
    /// What the environment says is no address.
    #[error(
        "the variable {NODE_IP} is {0:?}, and no IP address: set it from status.hostIP, by the downward API, or give address in \
         [attestors.k8s.kubelet]"
    )]
    NodeIp(String),
    /// Somebody else could be there.
    #[error(
        "[attestors.k8s.kubelet] skip_verification is for a kubelet at a loopback address, and {0} may be anybody: give ca instead"
    )]
    Unverified(String),
    /// By what, then?
    #[error("[attestors.k8s.kubelet] has skip_verification, and ca or server_name to verify by: give one or the other")]
    Undecided,
    /// Too often, or too seldom.
    #[error("[attestors.k8s.kubelet] every is {}: use \"1s\" to \"1m\"", settings::write_duration(*.0))]
    Every(Duration),
}

/// The kubelet of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kubelet {
    /// Where it answers: a scheme, a host and a port.
    pub address: Uri,
    /// What it is known by.
    pub trust: Trust,
    /// The file with the token that says who the agent is.
    pub token_file: PathBuf,
    /// How often it is asked.
    pub every: Duration,
}

/// What a kubelet is known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// A certificate below these.
    Ca {
        /// PEM.
        file: PathBuf,
        /// The host that the certificate is of; `None`: the one of the address.
        server_name: Option<String>,
    },
    /// Nothing but its loopback address.
    Loopback,
}

/// The table as it is written.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Table {
    address: Option<String>,
    ca: Option<PathBuf>,
    server_name: Option<String>,
    token_file: Option<PathBuf>,
    #[serde(with = "settings::optional_duration")]
    every: Option<Duration>,
    skip_verification: bool,
}

impl Table {
    /// `node_ip` is what the environment says.
    pub(super) fn parse(self, node_ip: Option<&str>) -> Result<Kubelet, KubeletError> {
        let Self { address, ca, server_name, token_file, every, skip_verification } = self;
        let address = match (address, node_ip.filter(|text| !text.is_empty())) {
            (Some(text), _) => url(&text).ok_or(KubeletError::Address(text))?,
            (None, None) => of_ip([127, 0, 0, 1].into()).ok_or_else(|| KubeletError::Address(String::new()))?,
            (None, Some(text)) => {
                text.parse().ok().and_then(of_ip).ok_or_else(|| KubeletError::NodeIp(text.to_owned()))?
            }
        };
        let trust = match (skip_verification, ca, server_name) {
            (false, ca, server_name) => Trust::Ca { file: ca.unwrap_or_else(|| CLUSTER_CA.into()), server_name },
            (true, None, None) if is_loopback(&address) => Trust::Loopback,
            (true, None, None) => return Err(KubeletError::Unverified(address.to_string())),
            (true, ..) => return Err(KubeletError::Undecided),
        };
        let every = every.unwrap_or(Duration::from_secs(5));
        if every < LEAST_EVERY || every > MOST_EVERY {
            return Err(KubeletError::Every(every));
        }
        Ok(Kubelet { address, trust, token_file: token_file.unwrap_or_else(|| POD_TOKEN.into()), every })
    }
}

fn of_ip(ip: IpAddr) -> Option<Uri> {
    format!("https://{}", SocketAddr::new(ip, PORT)).parse().ok()
}

/// `None`: it is more or less than a scheme, a host and perhaps a port.
fn url(text: &str) -> Option<Uri> {
    let uri: Uri = text.parse().ok()?;
    let host = uri.host().filter(|host| !host.is_empty())?;
    let is_bare = uri.path_and_query().is_none_or(|path| path.as_str() == "/");
    let has_user = uri.authority()?.as_str().contains('@');
    if uri.scheme_str() != Some("https") || !is_bare || has_user || text.contains('#') {
        return None;
    }
    format!("https://{host}:{}", uri.port_u16().unwrap_or(PORT)).parse().ok()
}

fn is_loopback(address: &Uri) -> bool {
    let host = address.host().unwrap_or_default();
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, node_ip: Option<&str>) -> Result<Kubelet, String> {
        let table: Table = toml::from_str(text).map_err(|error| error.to_string())?;
        table.parse(node_ip).map_err(|error| error.to_string())
    }

    #[test]
    fn a_kubelet_is_where_the_config_says_or_on_this_node() {
        let address = |text, node_ip| parse(text, node_ip).unwrap().address.to_string();
        for (text, node_ip, expected) in [
            ("", None, "https://127.0.0.1:10250/"),
            ("", Some(""), "https://127.0.0.1:10250/"),
            ("", Some("192.0.2.7"), "https://192.0.2.7:10250/"),
            ("", Some("2001:db8::7"), "https://[2001:db8::7]:10250/"),
            ("address = 'https://node-a'", Some("192.0.2.7"), "https://node-a:10250/"),
            ("address = 'https://[::1]:1/'", None, "https://[::1]:1/"),
        ] {
            assert_eq!(address(text, node_ip), expected, "{text} {node_ip:?}");
        }
        let kubelet = parse("", None).unwrap();
        assert_eq!(
            kubelet.trust,
            Trust::Ca { file: CLUSTER_CA.into(), server_name: None },
            "verified, if nothing is said"
        );
        assert_eq!((kubelet.token_file, kubelet.every), (POD_TOKEN.into(), Duration::from_secs(5)));
        let text = "ca = '/k.crt'\nserver_name = 'node-a'\ntoken_file = '/t'\nevery = '1s'";
        let kubelet = parse(text, None).unwrap();
        assert_eq!(kubelet.trust, Trust::Ca { file: "/k.crt".into(), server_name: Some("node-a".into()) });
        assert_eq!((kubelet.token_file, kubelet.every), ("/t".into(), Duration::from_secs(1)));
    }

    #[test]
    fn it_is_not_verified_on_this_machine_alone_and_only_if_that_is_written() {
        for (address, node_ip) in
            [("", None), ("address = 'https://127.1.2.3:1'", None), ("address = 'https://[::1]'", None)]
        {
            let kubelet = parse(&format!("{address}\nskip_verification = true"), node_ip).unwrap();
            assert_eq!(kubelet.trust, Trust::Loopback);
        }
        for (text, node_ip, words) in [
            ("skip_verification = true", Some("192.0.2.7"), "for a kubelet at a loopback address"),
            ("skip_verification = true\naddress = 'https://localhost'", None, "may be anybody: give ca"),
            ("skip_verification = true\naddress = 'https://127.0.0.1.example.org'", None, "may be anybody"),
            ("skip_verification = true\nca = '/k.crt'", None, "give one or the other"),
            ("address = 'http://127.0.0.1:10255'", None, "write \"https://<host>:10250\""),
            ("address = '127.0.0.1:10250'", None, "write \"https://"),
            ("address = 'https://a/b'", None, "and no path"),
            ("address = 'https://a?b'", None, "and no path"),
            ("address = 'https://127.0.0.1@evil.example'", None, "write \"https://"),
            ("", Some("node-a"), "set it from status.hostIP"),
            ("every = '0s'", None, "use \"1s\" to \"1m\""),
            ("every = '2m'", None, "use \"1s\" to \"1m\""),
            ("port = 10250", None, "unknown field `port`"),
        ] {
            let error = parse(text, node_ip).unwrap_err();
            assert!(error.contains(words), "{error}\n(wanted: {words})");
        }
    }
}
