//! What the agent is told: one TOML document, each value of it already valid, overrides from the environment
//! (`CHANCERY_AGENT__PREFETCH=50`). The sample is `deploy/agent.toml`.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use spiffe::entry::KeyType;
use spiffe::id::TrustDomain;
use spiffe::settings::{self, SettingsError};
use zeroize::Zeroizing;

pub mod attestors;
pub mod broker;
pub mod deliver;
pub mod jwt;
pub mod kubelet;
pub mod sds;

use attestors::{AttestorError, Attestors};
use broker::{Broker, BrokerError};
use deliver::{DeliverError, Delivery};

/// What environment variables that override the config begin with.
pub const ENVIRONMENT_PREFIX: &str = "CHANCERY_AGENT";
/// The longest path of a unix socket, in bytes: the kernel's `sun_path` without its closing zero.
pub const MAX_SOCKET_PATH_BYTES: usize = 107;
const MAX_SERVERS: usize = 64;

/// Why a config is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("config {path} cannot be read: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The document is wrong.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// There are two ways to know the server.
    #[error(
        "give either bootstrap_bundle (a file with the trust domain's roots) or ca_fingerprint (\"sha256:...\", printed \
         by \"chancery token create\"), not both"
    )]
    TwoBootstraps,
    /// A token is given twice.
    #[error("[attest] has both token and token_file: give one")]
    TwoTokens,
    /// An attestor is told something wrong.
    #[error(transparent)]
    Attestor(#[from] AttestorError),
    /// The name of a cluster that is none.
    #[error("[attest] cluster {0:?} is no name of a cluster: it has a-z, 0-9, dots and dashes, and at most 63 bytes")]
    Cluster(String),
    /// The table of the Broker Endpoint is wrong.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// What is to be delivered is wrong.
    #[error(transparent)]
    Deliver(#[from] DeliverError),
}

/// Everything that the agent is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// The agent's own.
    pub trust_domain: TrustDomain,
    /// Tried in turn, the last good one first. Never empty.
    pub servers: Vec<Address>,
    /// Where the agent keeps its own SVID, key and bundle.
    pub data_dir: PathBuf,
    /// Where workloads knock.
    pub workload_socket: PathBuf,
    /// Of the socket file: who may knock.
    pub workload_socket_mode: u32,
    /// How the server is known before anything else is. `None`: only by a bundle that is stored in `data_dir`.
    pub bootstrap: Option<Bootstrap>,
    /// How the node proves which it is.
    pub attest: Attest,
    /// The kind of key of SVIDs whose entry names none, and of the agent's own.
    pub key_type: KeyType,
    /// How many entries, the oldest first, have their SVID before anyone asks.
    pub prefetch: usize,
    /// Who works out what a process is.
    pub attestors: Attestors,
    /// How much is served at once.
    pub limits: Limits,
    /// How JWT-SVIDs are held and looked at.
    pub jwt: jwt::Jwt,
    /// Where `/live`, `/ready` and `/metrics` are; `None`: nowhere.
    pub health_listen: Option<SocketAddr>,
    /// Where brokers ask on behalf of workloads; `None`: nowhere.
    pub broker: Option<Broker>,
    /// What is delivered to files.
    pub deliveries: Vec<Delivery>,
    /// How proxies name what they get.
    pub sds: sds::Sds,
    /// Where the operator of this machine asks how the agent is.
    pub status_socket: PathBuf,
}

/// How the server is known before anything else is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bootstrap {
    /// A file with the trust domain's roots: PEM or SPIFFE JWKS.
    Bundle(PathBuf),
    /// SHA-256 of the root certificate.
    Fingerprint([u8; 32]),
}

/// How the node proves which it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attest {
    /// By a token that is good once. `None`: only the SVID that is already stored will do.
    JoinToken(Option<Token>),
    /// By a certificate that the node already has, and its key.
    X509Pop {
        /// PEM, the node's own first, then intermediates.
        certificates: PathBuf,
        /// PEM: PKCS#8, PKCS#1 or SEC1.
        private_key: PathBuf,
    },
    /// By the token of the agent's service account, and the pod that it is bound to.
    K8sPsat {
        /// The cluster, by the name that the server's config gives it.
        cluster: String,
        /// A projected token, which the kubelet renews; read at each attempt.
        token_path: PathBuf,
    },
}

/// Where a join token is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    /// In the config itself.
    Text(Secret),
    /// In a file, read at each attempt.
    File(PathBuf),
}

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// The text itself.
    pub fn reveal(&self) -> &str {
        self.0.trim()
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// A server's `host:port`. An IPv6 address stands in brackets.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct Address {
    host: String,
    port: u16,
}

impl Address {
    /// A name or an IP address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for Address {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("server {text:?} is no address: write host:port, for example ca.example.org:8443");
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let legal = match bare {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
            }
        };
        if legal { Ok(Self { host: bare.unwrap_or(host).to_owned(), port }) } else { Err(wrong()) }
    }
}

impl TryFrom<String> for Address {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// A number of bytes, written `"64MiB"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Size(pub u64);

impl TryFrom<String> for Size {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let factor = match unit.trim() {
            "B" => Some(1),
            "KiB" => Some(1 << 10),
            "MiB" => Some(1 << 20),
            "GiB" => Some(1 << 30),
            _ => None,
        };
        let size = number.parse::<u64>().ok().zip(factor).and_then(|(number, factor)| number.checked_mul(factor));
        size.map(Self).ok_or_else(|| format!("{text:?} is no size: write it like 512KiB, 64MiB or 0B"))
    }
}

/// How much is served at once on the workload socket.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Connections in all.
    pub connections: usize,
    /// Connections of one user.
    pub connections_per_user: usize,
    /// Open streams in all.
    pub streams: usize,
    /// Open streams of one user.
    pub streams_per_user: usize,
    /// A workload that has no identity by then is told to try again.
    #[serde(with = "settings::duration")]
    pub first_answer: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        // One user may take half of everything: no single one can shut the others out.
        Self {
            connections: 4096,
            connections_per_user: 2048,
            streams: 8192,
            streams_per_user: 4096,
            first_answer: Duration::from_secs(10),
        }
    }
}

/// The document as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    trust_domain: TrustDomain,
    servers: Servers,
    data_dir: PathBuf,
    workload_socket: SocketPath,
    #[serde(default)]
    workload_socket_mode: SocketMode,
    bootstrap_bundle: Option<PathBuf>,
    ca_fingerprint: Option<Fingerprint>,
    attest: AttestTable,
    #[serde(default)]
    key_type: KeyType,
    #[serde(default = "default_prefetch")]
    prefetch: usize,
    #[serde(default)]
    attestors: attestors::Tables,
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    jwt: jwt::Jwt,
    #[serde(default)]
    sds: sds::Sds,
    health_listen: Option<Loopback>,
    status_socket: Option<SocketPath>,
    broker: Option<broker::Table>,
    #[serde(default)]
    deliver: Vec<deliver::Table>,
}

/// Enough for a node with hundreds of workloads; an SVID and its key are about 3 KiB.
fn default_prefetch() -> usize {
    1000
}

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
enum AttestTable {
    JoinToken {
        token: Option<Secret>,
        token_file: Option<PathBuf>,
    },
    X509pop {
        certificates: PathBuf,
        private_key: PathBuf,
    },
    K8sPsat {
        cluster: String,
        #[serde(default = "default_token_path")]
        token_path: PathBuf,
    },
}

/// Where the manifests mount it.
fn default_token_path() -> PathBuf {
    "/var/run/secrets/tokens/chancery".into()
}

#[derive(Deserialize)]
#[serde(try_from = "Vec<Address>")]
struct Servers(Vec<Address>);

impl TryFrom<Vec<Address>> for Servers {
    type Error = String;
    fn try_from(servers: Vec<Address>) -> Result<Self, String> {
        if servers.is_empty() || servers.len() > MAX_SERVERS {
            return Err(format!("servers has {} addresses: give 1 to {MAX_SERVERS}", servers.len()));
        }
        Ok(Self(servers))
    }
}

#[derive(Deserialize)]
#[serde(try_from = "PathBuf")]
struct SocketPath(PathBuf);

impl TryFrom<PathBuf> for SocketPath {
    type Error = String;
    fn try_from(path: PathBuf) -> Result<Self, String> {
        let bytes = path.as_os_str().len();
        if bytes > MAX_SOCKET_PATH_BYTES {
            let shown = path.display();
            return Err(format!(
                "socket path {shown} has {bytes} bytes: at most {MAX_SOCKET_PATH_BYTES} are possible, choose a shorter one"
            ));
        }
        if !path.is_absolute() {
            return Err(format!("socket path {} must be absolute: workloads have other folders", path.display()));
        }
        Ok(Self(path))
    }
}

#[derive(Deserialize)]
#[serde(try_from = "String")]
struct SocketMode(u32);

impl Default for SocketMode {
    /// Every local process may knock; the attestors decide.
    fn default() -> Self {
        Self(0o777)
    }
}

impl TryFrom<String> for SocketMode {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let mode = u32::from_str_radix(&text, 8).ok().filter(|mode| *mode <= 0o777);
        mode.map(Self).ok_or_else(|| format!("{text:?} is no file mode: write it in octal, like \"0777\" or \"0770\""))
    }
}

#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Fingerprint([u8; 32]);

impl TryFrom<String> for Fingerprint {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        parse_fingerprint(&text).map(Self)
    }
}

/// As the server names its clusters: a segment of the IDs of their agents.
fn is_cluster_name(text: &str) -> bool {
    let is_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-');
    !text.is_empty() && text.len() <= 63 && text.bytes().all(is_name) && text.bytes().any(|byte| byte != b'.')
}

/// Reads `sha256:` and 64 hexadecimal digits, colons between them or not.
pub fn parse_fingerprint(text: &str) -> Result<[u8; 32], String> {
    let wrong = || format!("{text:?} is no fingerprint: write sha256: and 64 hexadecimal digits");
    let digits: Vec<u32> = text
        .strip_prefix("sha256:")
        .ok_or_else(wrong)?
        .chars()
        .filter(|c| *c != ':')
        .map(|c| c.to_digit(16).ok_or_else(wrong))
        .collect::<Result<_, _>>()?;
    let bytes: Vec<u8> =
        digits.chunks(2).map(|pair| pair.iter().fold(0_u32, |byte, digit| byte * 16 + digit) as u8).collect();
    if digits.len() == 64 { bytes.try_into().map_err(|_| wrong()) } else { Err(wrong()) }
}

#[derive(Deserialize)]
#[serde(try_from = "SocketAddr")]
struct Loopback(SocketAddr);

impl TryFrom<SocketAddr> for Loopback {
    type Error = String;
    fn try_from(address: SocketAddr) -> Result<Self, String> {
        if !address.ip().is_loopback() {
            return Err(format!("health_listen {address} is reachable from outside: use 127.0.0.1 or [::1]"));
        }
        Ok(Self(address))
    }
}

impl Config {
    /// Reads the file (`None`: the environment alone) with the variables of this process laid over it.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let text = match path {
            Some(path) => {
                std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?
            }
            None => String::new(),
        };
        Self::parse(&text, std::env::vars())
    }

    /// Reads a document with `variables` laid over it.
    pub fn parse(text: &str, variables: impl IntoIterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        let mut around = attestors::Surroundings::default();
        let variables = variables.into_iter().inspect(|(name, value)| around.note(name, value));
        let document: Document = settings::parse(text, ENVIRONMENT_PREFIX, variables)?;
        let bootstrap = match (document.bootstrap_bundle, document.ca_fingerprint) {
            (Some(path), None) => Some(Bootstrap::Bundle(path)),
            (None, Some(Fingerprint(bytes))) => Some(Bootstrap::Fingerprint(bytes)),
            (None, None) => None,
            (Some(_), Some(_)) => return Err(ConfigError::TwoBootstraps),
        };
        let attest = match document.attest {
            AttestTable::JoinToken { token: Some(_), token_file: Some(_) } => return Err(ConfigError::TwoTokens),
            AttestTable::JoinToken { token: Some(token), .. } => Attest::JoinToken(Some(Token::Text(token))),
            AttestTable::JoinToken { token_file, .. } => Attest::JoinToken(token_file.map(Token::File)),
            AttestTable::X509pop { certificates, private_key } => Attest::X509Pop { certificates, private_key },
            AttestTable::K8sPsat { cluster, .. } if !is_cluster_name(&cluster) => {
                return Err(ConfigError::Cluster(cluster));
            }
            AttestTable::K8sPsat { cluster, token_path } => Attest::K8sPsat { cluster, token_path },
        };
        let attestors = document.attestors.parse(&around)?;
        let knows_pods = attestors.k8s.is_some();
        let broker = document.broker.map(|table| table.parse(&document.trust_domain, knows_pods)).transpose()?;
        let status_socket = match document.status_socket {
            Some(SocketPath(path)) => path,
            None => document.data_dir.join("status.sock"),
        };
        Ok(Self {
            trust_domain: document.trust_domain,
            servers: document.servers.0,
            data_dir: document.data_dir,
            workload_socket: document.workload_socket.0,
            workload_socket_mode: document.workload_socket_mode.0,
            bootstrap,
            attest,
            key_type: document.key_type,
            prefetch: document.prefetch,
            attestors,
            limits: document.limits,
            jwt: document.jwt,
            health_listen: document.health_listen.map(|Loopback(address)| address),
            broker,
            deliveries: deliver::parse(document.deliver)?,
            sds: document.sds,
            status_socket,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = "trust_domain = 'example.org'\nservers = ['ca:8443']\ndata_dir = '/d'\n\
        workload_socket = '/run/a.sock'\nbootstrap_bundle = '/b.pem'\n";
    const TOKEN: &str = "[attest]\nkind = 'join_token'\ntoken = 'abc'\n";

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, [])
    }

    #[test]
    fn the_sample_is_a_config() {
        let config = parse(include_str!("../../deploy/agent.toml")).unwrap();
        assert_eq!(config.trust_domain.name(), "example.org");
        assert_eq!(config.prefetch, default_prefetch());
        assert_eq!(config.limits, Limits::default());
        assert_eq!(config.jwt, jwt::Jwt::default());
        assert_eq!(config.sds, sds::Sds::default());
    }

    #[test]
    fn a_short_config_has_defaults_and_hides_its_token() {
        let config = parse(&format!("{LEAST}{TOKEN}")).unwrap();
        assert_eq!(config.workload_socket_mode, 0o777);
        assert_eq!(config.attestors, attestors::Tables::default().parse(&attestors::Surroundings::default()).unwrap());
        assert_eq!(config.bootstrap, Some(Bootstrap::Bundle("/b.pem".into())));
        assert_eq!(config.status_socket, Path::new("/d/status.sock"));
        // What an earlier start has stored will do.
        let bare = parse(&format!("{}{TOKEN}", LEAST.replace("bootstrap_bundle = '/b.pem'", ""))).unwrap();
        assert_eq!(bare.bootstrap, None);
        assert!(!format!("{config:?}").contains("abc"));
        let over = [("CHANCERY_AGENT__ATTEST__TOKEN".to_owned(), "xyz".to_owned())];
        let config = Config::parse(&format!("{LEAST}[attest]\nkind = 'join_token'"), over).unwrap();
        let Attest::JoinToken(Some(Token::Text(token))) = config.attest else { panic!("{:?}", config.attest) };
        assert_eq!(token.reveal(), "xyz");
    }

    #[test]
    fn each_wrong_value_says_what_to_do() {
        let long = format!("/{}", "x".repeat(107));
        let cases = [
            (LEAST.replace("ca:8443", "ca"), "write host:port"),
            (LEAST.replace("['ca:8443']", "[]"), "give 1 to 64"),
            (LEAST.replace("/run/a.sock", &long), "at most 107 are possible, choose a shorter one"),
            (LEAST.replace("/run/a.sock", "a.sock"), "must be absolute"),
            (format!("{LEAST}ca_fingerprint = 'sha256:{}'\n", "a".repeat(64)), "either bootstrap_bundle"),
            (format!("{LEAST}ca_fingerprint = 'sha256:abc'\n"), "64 hexadecimal digits"),
            (format!("{LEAST}health_listen = '0.0.0.0:9000'\n"), "use 127.0.0.1"),
            (format!("{LEAST}workload_socket_mode = '0888'\n"), "in octal"),
            (format!("{LEAST}key_type = 'rsa'\n"), "unknown variant `rsa`"),
            (format!("{LEAST}prefetsch = 3\n"), "unknown field `prefetsch`"),
        ];
        for (text, words) in cases {
            let error = parse(&format!("{text}{TOKEN}")).unwrap_err().to_string();
            assert!(error.contains(words), "{error}\n(wanted: {words})");
        }
        let error = parse(&format!("{LEAST}{TOKEN}token_file = '/t'")).unwrap_err().to_string();
        assert!(error.contains("give one"), "{error}");
    }

    #[test]
    fn addresses_and_sizes() {
        assert_eq!("[::1]:8443".parse::<Address>().unwrap().host(), "::1");
        assert_eq!("[::1]:8443".parse::<Address>().unwrap().to_string(), "[::1]:8443");
        for bad in ["a:0", ":1", "a:x", "::1:80", "a b:1", "http://a:1", "a:70000"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
        assert_eq!(Size::try_from("64MiB".to_owned()).unwrap(), Size(64 << 20));
        for bad in ["64", "MiB", "64MB", "-1B", "99999999999999999999GiB"] {
            assert!(Size::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }
}
