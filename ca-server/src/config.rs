//! The config of a server: TOML, laid over by the environment (`CHANCERY_SERVER__STORE__KIND=mem`), parsed into
//! types that are already valid.
//!
//! - Only `trust_domain` has to be there. Each default is a function below that says why it is what it is.
//! - Lifetimes are checked against each other here, so that no leaf can outlive its CA: see [`LIFETIMES_PER_CA`].
//! - Files that the config names are not read here; [`Config::check_files`] does, for `chancery server validate`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;
use spiffe::entry::{DnsName, KeyType, MAX_DNS_NAMES};
use spiffe::id::TrustDomain;
use spiffe::settings::{self, SettingsError, optional_duration};

/// What the names of environment variables begin with that override keys of the config.
pub const PREFIX: &str = "CHANCERY_SERVER";

/// The longest life of a leaf fits this many times into the life of a CA: the successor is prepared at half of the CA's
/// life and active at two thirds of it at the latest, which leaves a third, twice the longest life of a leaf.
pub const LIFETIMES_PER_CA: u32 = 6;

/// The longest path of a unix socket that the kernel takes, in bytes (`sun_path` of unix(7) less its final zero).
pub const MAX_SOCKET_PATH_BYTES: usize = 107;

/// The largest file of certificates or keys that is read, in bytes.
pub const MAX_PEM_BYTES: u64 = 4 << 20;

/// Why a config is refused. The message names the key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not TOML, or a key is unknown, missing or of the wrong form.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The config file cannot be read.
    #[error("config file {path}: {reason}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        reason: String,
    },
    /// A leaf could outlive its CA.
    #[error(
        "{key} = {leaf:?} is too long for authority.ca_ttl = {ca:?}: a leaf must not outlive its CA through a \
         rotation. Set {key} to at most {most:?}, or authority.ca_ttl to at least {least:?}"
    )]
    LeafOutlivesCa {
        /// The key of the lifetime that is too long.
        key: &'static str,
        /// That lifetime.
        leaf: String,
        /// The life of a CA.
        ca: String,
        /// The longest life of a leaf that would do.
        most: String,
        /// The shortest life of a CA that would do.
        least: String,
    },
    /// A number or a lifetime is outside its limits.
    #[error("{key} = {value} is not allowed: use {least} to {most}")]
    Range {
        /// The key.
        key: &'static str,
        /// What it was set to.
        value: String,
        /// The least that is allowed.
        least: String,
        /// The most that is allowed.
        most: String,
    },
    /// The default lifetime of SVIDs is longer than the longest.
    #[error("svid.ttl = {ttl:?} is longer than svid.max_ttl = {max_ttl:?}: lower the one or raise the other")]
    TtlOverMax {
        /// `svid.ttl`.
        ttl: String,
        /// `svid.max_ttl`.
        max_ttl: String,
    },
    /// Health and metrics would be open to the network.
    #[error(
        "health_listen = \"{0}\" is not a loopback address: metrics are for this machine only. Use 127.0.0.1, or \
         set health_listen_anywhere = true"
    )]
    HealthNotLoopback(SocketAddr),
    /// The socket path that follows from `data_dir` is too long.
    #[error("admin_socket = {path:?} (from data_dir) has {bytes} bytes: at most 107 are allowed. Set admin_socket")]
    DefaultSocketTooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        bytes: usize,
    },
    /// A file that the config names is no good.
    #[error("{key}: {path}: {reason}")]
    File {
        /// The key that names it.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        reason: String,
    },
}

/// The whole config of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The trust domain whose SVIDs this server signs.
    pub trust_domain: TrustDomain,
    /// Where the store, the keys and the audit log are.
    pub data_dir: PathBuf,
    /// Where agents and remote admins connect.
    pub listen: SocketAddr,
    /// Where agents are told to connect.
    pub address: Address,
    /// DNS names in the server's own SVID.
    pub dns_names: Vec<DnsName>,
    /// The owner of this server's authorities: unique among the servers of a trust domain, and never changed.
    pub name: ServerName,
    /// The admin door of this machine.
    pub admin_socket: SocketPath,
    /// The permission bits of the socket.
    pub admin_socket_mode: Mode,
    /// User ids that may use the admin socket, besides root and the server's own.
    pub admin_uids: Vec<u32>,
    /// Where `/live`, `/ready` and `/metrics` are served.
    pub health_listen: SocketAddr,
    /// What the servers remember things in.
    pub store: Store,
    /// The CA keys.
    pub authority: Authority,
    /// How long leaves live.
    pub svid: Svid,
    /// Which proofs of nodes are taken.
    pub attest: Attest,
    /// The record of decisions.
    pub audit: Audit,
    /// What protects the server from too much.
    pub limits: Limits,
    /// What is forgotten by itself.
    pub purge: Purge,
}

/// The document, before defaults that depend on other keys are filled in.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    trust_domain: TrustDomain,
    #[serde(default = "default_data_dir")]
    data_dir: PathBuf,
    #[serde(default = "default_listen")]
    listen: SocketAddr,
    address: Option<Address>,
    #[serde(default)]
    dns_names: Vec<DnsName>,
    #[serde(default)]
    name: ServerName,
    admin_socket: Option<SocketPath>,
    admin_socket_mode: Option<Mode>,
    #[serde(default)]
    admin_uids: Vec<u32>,
    #[serde(default = "default_health_listen")]
    health_listen: SocketAddr,
    #[serde(default)]
    health_listen_anywhere: bool,
    #[serde(default)]
    store: Store,
    #[serde(default)]
    authority: AuthorityDocument,
    #[serde(default)]
    svid: SvidDocument,
    #[serde(default)]
    attest: Attest,
    #[serde(default)]
    audit: AuditDocument,
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    purge: Purge,
}

/// `[store]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Store {
    /// Which one.
    pub kind: StoreKind,
}

/// The kinds of store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    /// On disk below `data_dir`, for one server.
    Sled,
    /// Forgotten when the server stops: for tests and trials.
    Mem,
}

/// `[authority]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// The kind of key of new authorities.
    pub key_type: KeyType,
    /// How long a CA certificate is valid.
    pub ca_ttl: Duration,
    /// Where the private keys are.
    pub keys: Keys,
    /// The CA that signs ours; `None`: ours sign themselves.
    pub upstream: Option<Upstream>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct AuthorityDocument {
    key_type: KeyType,
    #[serde(with = "spiffe::settings::duration")]
    ca_ttl: Duration,
    keys: Keys,
    upstream: Option<Upstream>,
}

/// Where the private keys of authorities are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Keys {
    /// In files below `data_dir`, mode 0600.
    Disk,
    /// Nowhere but in this process: each start makes a new authority.
    Memory,
}

/// `[authority.upstream]`: a CA on disk that signs ours.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// PEM: the upstream CA's certificate first, then those above it, its root last.
    pub certificate: PathBuf,
    /// PEM, PKCS#8: the key of the first certificate.
    pub key: PathBuf,
}

/// `[svid]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Svid {
    /// The life of an SVID whose entry says nothing.
    pub ttl: Duration,
    /// The longest life that an entry or a mint may ask for.
    pub max_ttl: Duration,
    /// The life of agents' SVIDs.
    pub agent_ttl: Duration,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SvidDocument {
    #[serde(with = "optional_duration")]
    ttl: Option<Duration>,
    #[serde(with = "optional_duration")]
    max_ttl: Option<Duration>,
    #[serde(with = "optional_duration")]
    agent_ttl: Option<Duration>,
}

/// `[attest]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Attest {
    /// One-time tokens made by an operator.
    pub join_token: JoinToken,
    /// Certificates that nodes already have; `None`: not taken.
    pub x509pop: Option<X509Pop>,
}

/// `[attest.join_token]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JoinToken {
    /// Whether tokens are taken.
    pub enabled: bool,
    /// The longest life of a token.
    #[serde(with = "spiffe::settings::duration")]
    pub max_ttl: Duration,
}

/// `[attest.x509pop]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct X509Pop {
    /// PEM: the CAs whose certificates prove a node.
    pub ca_bundle: PathBuf,
    /// The most certificates that a node may send, its own included.
    #[serde(default = "default_max_chain")]
    pub max_chain: usize,
    /// The shortest RSA modulus that is taken, in bits.
    #[serde(default = "default_min_rsa_bits")]
    pub min_rsa_bits: usize,
    /// The longest RSA modulus that is taken, in bits.
    #[serde(default = "default_max_rsa_bits")]
    pub max_rsa_bits: usize,
}

/// `[audit]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audit {
    /// Where the lines go.
    pub to: AuditTarget,
    /// How many decisions may wait to be written.
    pub queue: usize,
}

/// Where audit lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuditTarget {
    /// The end of this file.
    File(PathBuf),
    /// Standard output.
    Stdout,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct AuditDocument {
    file: Option<PathBuf>,
    queue: usize,
}

/// `[limits]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Calls that sign at the same time; more wait, then are refused with a hint when to retry.
    pub issue_concurrency: usize,
    /// Attestations per second, in the long run.
    pub attest_per_second: u32,
    /// Attestations at once, after a quiet time.
    pub attest_burst: u32,
    /// Open connections.
    pub connections: usize,
    /// For a TLS handshake.
    #[serde(with = "spiffe::settings::duration")]
    pub handshake_timeout: Duration,
    /// For a call that is no stream.
    #[serde(with = "spiffe::settings::duration")]
    pub request_timeout: Duration,
    /// Registration entries.
    pub entries: usize,
    /// Join tokens that have been made and not used.
    pub join_tokens: usize,
}

/// `[purge]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Purge {
    /// Agents are forgotten when their SVID has been expired for this long. Banned ones stay.
    #[serde(with = "spiffe::settings::duration")]
    pub agents_expired_for: Duration,
}

// The defaults, each with its reason.

/// Where Debian and the units of `deploy/` keep state.
fn default_data_dir() -> PathBuf {
    "/var/lib/chancery/server".into()
}

/// Agents are on other machines; 8443 needs no privilege.
fn default_listen() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 8443))
}

/// Loopback: metrics and health say more than strangers should know.
fn default_health_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 8444))
}

/// A leaf, two intermediates, and one to spare twice: deeper ones are rare, and each link costs a verification.
fn default_max_chain() -> usize {
    5
}

/// NIST SP 800-131A: shorter ones are disallowed.
fn default_min_rsa_bits() -> usize {
    2048
}

/// Longer ones cost a stranger nothing and us a lot.
fn default_max_rsa_bits() -> usize {
    4096
}

impl Default for Store {
    /// On disk: what an operator has registered must not be lost.
    fn default() -> Self {
        Self { kind: StoreKind::Sled }
    }
}

impl Default for AuthorityDocument {
    /// 30 days: an operator who is away for a week finds nothing expired, and a stolen CA key dies within a month.
    /// P-256: the fastest to sign and verify, and every peer knows it.
    fn default() -> Self {
        Self { key_type: KeyType::P256, ca_ttl: Duration::from_secs(30 * 86_400), keys: Keys::Disk, upstream: None }
    }
}

impl Default for JoinToken {
    /// On: the one way in that needs nothing prepared. A week: long enough to install a machine, short enough to forget.
    fn default() -> Self {
        Self { enabled: true, max_ttl: Duration::from_secs(7 * 86_400) }
    }
}

impl Default for AuditDocument {
    /// 8,192 decisions are about 4 MiB, and a quarter of a second of signing at full speed.
    fn default() -> Self {
        Self { file: None, queue: 8192 }
    }
}

impl Default for Limits {
    /// Measured on two cores: about 33,000 signatures and 4,500 handshakes a second, 36 KiB per agent.
    fn default() -> Self {
        Self {
            issue_concurrency: 256,
            attest_per_second: 200,
            attest_burst: 1000,
            connections: 10_000,
            handshake_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30),
            entries: 1_000_000,
            join_tokens: 10_000,
        }
    }
}

impl Default for Purge {
    /// A machine that was off for a month is not coming back as itself.
    fn default() -> Self {
        Self { agents_expired_for: Duration::from_secs(30 * 86_400) }
    }
}

/// An hour: a stolen key is worthless soon, and a server may be away for half of it without anyone noticing.
const DEFAULT_TTL: Duration = Duration::from_secs(3600);
/// A day: what a nightly job needs at most.
const DEFAULT_MAX_TTL: Duration = Duration::from_secs(86_400);

const SHORTEST_TTL: Duration = Duration::from_secs(5);
const LONGEST_TTL: Duration = Duration::from_secs(366 * 86_400);
const SHORTEST_CA_TTL: Duration = Duration::from_secs(30);
const LONGEST_CA_TTL: Duration = Duration::from_secs(20 * 366 * 86_400);

impl Config {
    /// Reads the file at `path` (none: only defaults) and the environment of this process.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let text = match path {
            Some(path) => std::fs::read_to_string(path)
                .map_err(|error| ConfigError::Unreadable { path: path.to_owned(), reason: error.to_string() })?,
            None => String::new(),
        };
        // Variables that are no text are none of ours.
        let variables =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Self::parse(&text, variables)
    }

    /// Parses `text` with `variables` of the environment laid over it.
    pub fn parse(text: &str, variables: impl IntoIterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        settings::parse::<Document>(text, PREFIX, variables)?.try_into()
    }

    /// Reads the files that the config names, as a start would, and says what is wrong with them.
    pub fn check_files(&self) -> Result<(), ConfigError> {
        if let Some(upstream) = &self.authority.upstream {
            certificates("authority.upstream.certificate", &upstream.certificate)?;
            let key = "authority.upstream.key";
            let pem = zeroize::Zeroizing::new(read_limited(key, &upstream.key)?);
            match PrivateKeyDer::from_pem_slice(&pem) {
                Ok(PrivateKeyDer::Pkcs8(pkcs8)) if spiffe::crypto::load_key(pkcs8.secret_pkcs8_der()).is_ok() => {}
                _ => {
                    let reason = "holds no PKCS#8 private key of kind P-256, P-384 or Ed25519 in PEM: convert it \
                                  with \"openssl pkcs8 -topk8 -nocrypt\"";
                    return Err(ConfigError::File { key, path: upstream.key.clone(), reason: reason.into() });
                }
            }
        }
        if let Some(x509pop) = &self.attest.x509pop {
            let key = "attest.x509pop.ca_bundle";
            for certificate in certificates(key, &x509pop.ca_bundle)? {
                webpki::anchor_from_trusted_cert(&certificate).map_err(|error| ConfigError::File {
                    key,
                    path: x509pop.ca_bundle.clone(),
                    reason: format!("a certificate in it cannot be a trust anchor ({error})"),
                })?;
            }
        }
        Ok(())
    }

    /// Where the store is.
    pub fn store_dir(&self) -> PathBuf {
        self.data_dir.join("store")
    }

    /// Where the private keys of authorities are.
    pub fn keys_dir(&self) -> PathBuf {
        self.data_dir.join("keys")
    }
}

/// Every certificate in the PEM file at `path`, which the config names under `key`; at least one.
pub fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let wrong = |reason: String| ConfigError::File { key, path: path.to_owned(), reason };
    let pem = read_limited(key, path)?;
    let found: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|error| wrong(format!("is no PEM ({error})")))?;
    if found.is_empty() {
        return Err(wrong("holds no certificate: put one or more BEGIN CERTIFICATE blocks in it".into()));
    }
    Ok(found)
}

fn read_limited(key: &'static str, path: &Path) -> Result<Vec<u8>, ConfigError> {
    use std::io::Read as _;
    let wrong = |reason: String| ConfigError::File { key, path: path.to_owned(), reason };
    let file = std::fs::File::open(path).map_err(|error| wrong(error.to_string()))?;
    let mut bytes = Vec::new();
    file.take(MAX_PEM_BYTES + 1).read_to_end(&mut bytes).map_err(|error| wrong(error.to_string()))?;
    if bytes.len() as u64 > MAX_PEM_BYTES {
        return Err(wrong("is larger than 4 MiB: this is no file of certificates or keys".into()));
    }
    Ok(bytes)
}

impl TryFrom<Document> for Config {
    type Error = ConfigError;

    fn try_from(document: Document) -> Result<Self, ConfigError> {
        let Document { trust_domain, data_dir, listen, dns_names, name, admin_uids, health_listen, .. } = document;
        if !document.health_listen_anywhere && !health_listen.ip().is_loopback() {
            return Err(ConfigError::HealthNotLoopback(health_listen));
        }
        in_range("dns_names (how many)", dns_names.len(), 0, MAX_DNS_NAMES)?;
        let admin_socket = match document.admin_socket {
            Some(path) => path,
            None => {
                let path = data_dir.join("admin.sock");
                let bytes = path.as_os_str().len();
                SocketPath::try_from(path.clone()).map_err(|_| ConfigError::DefaultSocketTooLong { path, bytes })?
            }
        };
        // Who may come in is decided by the uid of the caller; the bits only let it knock.
        let default_mode = if admin_uids.is_empty() { Mode(0o600) } else { Mode(0o666) };
        let authority = authority(document.authority)?;
        let svid = svid(&document.svid, authority.ca_ttl)?;
        check_limits(&document.limits, &document.attest)?;
        in_range("audit.queue", document.audit.queue, 16, 1 << 20)?;
        let to = match document.audit.file {
            Some(path) if path.as_os_str() == "-" => AuditTarget::Stdout,
            Some(path) => AuditTarget::File(path),
            None => AuditTarget::File(data_dir.join("audit.log")),
        };
        Ok(Self {
            address: document.address.unwrap_or_else(|| Address::of(listen)),
            admin_socket,
            admin_socket_mode: document.admin_socket_mode.unwrap_or(default_mode),
            store: document.store,
            attest: document.attest,
            audit: Audit { to, queue: document.audit.queue },
            limits: document.limits,
            purge: document.purge,
            trust_domain,
            data_dir,
            listen,
            dns_names,
            name,
            admin_uids,
            health_listen,
            authority,
            svid,
        })
    }
}

fn authority(document: AuthorityDocument) -> Result<Authority, ConfigError> {
    let AuthorityDocument { key_type, ca_ttl, keys, upstream } = document;
    lifetime_in_range("authority.ca_ttl", ca_ttl, SHORTEST_CA_TTL, LONGEST_CA_TTL)?;
    Ok(Authority { key_type, ca_ttl, keys, upstream })
}

fn svid(document: &SvidDocument, ca_ttl: Duration) -> Result<Svid, ConfigError> {
    let most = whole_seconds(ca_ttl / LIFETIMES_PER_CA);
    let fits = |key, leaf: Duration| {
        lifetime_in_range(key, leaf, SHORTEST_TTL, LONGEST_TTL)?;
        if leaf <= most {
            return Ok(leaf);
        }
        Err(ConfigError::LeafOutlivesCa {
            key,
            leaf: write_duration(leaf),
            ca: write_duration(ca_ttl),
            most: write_duration(most),
            least: write_duration(leaf * LIFETIMES_PER_CA),
        })
    };
    // A default gives way to what the CA can honour; what somebody has written does not.
    let ttl = fits("svid.ttl", document.ttl.unwrap_or(DEFAULT_TTL.min(document.max_ttl.unwrap_or(most)).min(most)))?;
    let max_ttl = fits("svid.max_ttl", document.max_ttl.unwrap_or(DEFAULT_MAX_TTL.min(most).max(ttl)))?;
    let agent_ttl = fits("svid.agent_ttl", document.agent_ttl.unwrap_or(DEFAULT_TTL.min(most)))?;
    if ttl > max_ttl {
        return Err(ConfigError::TtlOverMax { ttl: write_duration(ttl), max_ttl: write_duration(max_ttl) });
    }
    Ok(Svid { ttl, max_ttl, agent_ttl })
}

fn check_limits(limits: &Limits, attest: &Attest) -> Result<(), ConfigError> {
    let second = Duration::from_secs(1);
    in_range("limits.issue_concurrency", limits.issue_concurrency, 1, 1 << 20)?;
    in_range("limits.attest_per_second", limits.attest_per_second, 1, 1 << 20)?;
    in_range("limits.attest_burst", limits.attest_burst, 1, 1 << 20)?;
    in_range("limits.connections", limits.connections, 1, 1 << 20)?;
    in_range("limits.entries", limits.entries, 1, 100_000_000)?;
    in_range("limits.join_tokens", limits.join_tokens, 1, 10_000_000)?;
    lifetime_in_range("limits.handshake_timeout", limits.handshake_timeout, second, 300 * second)?;
    lifetime_in_range("limits.request_timeout", limits.request_timeout, second, 3600 * second)?;
    lifetime_in_range("attest.join_token.max_ttl", attest.join_token.max_ttl, second, LONGEST_TTL)?;
    if let Some(x509pop) = &attest.x509pop {
        in_range("attest.x509pop.max_chain", x509pop.max_chain, 1, 8)?;
        in_range("attest.x509pop.min_rsa_bits", x509pop.min_rsa_bits, 2048, x509pop.max_rsa_bits)?;
        in_range("attest.x509pop.max_rsa_bits", x509pop.max_rsa_bits, 2048, 8192)?;
    }
    Ok(())
}

/// `duration` in its largest whole unit, as one would write it in the config: `36d`, `20m`.
fn write_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let units = [(86_400, "d"), (3600, "h"), (60, "m")];
    let unit = units.into_iter().find(|(length, _)| seconds > 0 && seconds.is_multiple_of(*length));
    let (length, unit) = unit.unwrap_or((1, "s"));
    format!("{}{unit}", seconds / length)
}

fn whole_seconds(duration: Duration) -> Duration {
    Duration::from_secs(duration.as_secs())
}

fn in_range<N: PartialOrd + ToString + Copy>(
    key: &'static str,
    value: N,
    least: N,
    most: N,
) -> Result<(), ConfigError> {
    if value >= least && value <= most {
        return Ok(());
    }
    let (value, least, most) = (value.to_string(), least.to_string(), most.to_string());
    Err(ConfigError::Range { key, value, least, most })
}

fn lifetime_in_range(key: &'static str, value: Duration, least: Duration, most: Duration) -> Result<(), ConfigError> {
    if value >= least && value <= most {
        return Ok(());
    }
    let [value, least, most] = [value, least, most].map(|duration| format!("{:?}", write_duration(duration)));
    Err(ConfigError::Range { key, value, least, most })
}

/// Where agents are told to connect: `host:port`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Address(String);

impl Address {
    /// `host:port` as text; an IPv6 address is in brackets.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What to dial for a listener at `listen` when nobody said: a listener on every address is at least on this machine.
    fn of(listen: SocketAddr) -> Self {
        if listen.ip().is_unspecified() {
            return Self(format!("localhost:{}", listen.port()));
        }
        Self(listen.to_string())
    }
}

impl TryFrom<String> for Address {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no address: write it as host:port, for example ca.example.org:8443");
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port: u16 = port.parse().map_err(|_| wrong())?;
        let is_v6 = |host: &str| {
            let inside = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
            inside.is_some_and(|inside| inside.parse::<std::net::Ipv6Addr>().is_ok())
        };
        let is_host = |host: &str| {
            host.parse::<std::net::Ipv4Addr>().is_ok()
                || (!host.starts_with('*') && DnsName::parse(&host.to_lowercase()).is_ok())
        };
        if port == 0 || !(is_v6(host) || is_host(host)) {
            return Err(wrong());
        }
        Ok(Self(text))
    }
}

/// The name of one server among those of its trust domain.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct ServerName(String);

impl ServerName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for ServerName {
    /// One server needs no name; a host name would change under it and orphan its authorities.
    fn default() -> Self {
        Self("main".into())
    }
}

impl TryFrom<String> for ServerName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if text.is_empty() || text.len() > 64 || !text.bytes().all(legal) {
            return Err(format!("server name {text:?} must be 1 to 64 letters, digits, dots, dashes or underscores"));
        }
        Ok(Self(text))
    }
}

/// The path of a unix socket, absolute, and short enough for the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "PathBuf")]
pub struct SocketPath(PathBuf);

impl SocketPath {
    /// The path.
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl TryFrom<PathBuf> for SocketPath {
    type Error = String;

    fn try_from(path: PathBuf) -> Result<Self, String> {
        let bytes = path.as_os_str().len();
        if bytes == 0 || bytes > MAX_SOCKET_PATH_BYTES {
            return Err(format!(
                "socket path {path:?} has {bytes} bytes: 1 to {MAX_SOCKET_PATH_BYTES} are allowed. Choose a shorter folder, \
                 for example /run/chancery"
            ));
        }
        Ok(Self(path))
    }
}

/// Permission bits of a file, written in octal: `"0600"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Mode(u32);

impl Mode {
    /// The bits.
    pub fn bits(self) -> u32 {
        self.0
    }
}

impl TryFrom<String> for Mode {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match u32::from_str_radix(&text, 8) {
            Ok(bits) if bits <= 0o777 => Ok(Self(bits)),
            _ => Err(format!("{text:?} is no file mode: write it in octal, for example \"0600\"")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = include_str!("../../deploy/server.toml");

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(&format!("trust_domain = 'example.org'\n{text}"), [])
    }

    fn error(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn the_sample_has_every_key_and_shows_the_defaults() {
        let sample = Config::parse(SAMPLE, []).unwrap();
        let defaults = parse("").unwrap();
        // What has no default is shown with an example.
        let x509pop = sample.attest.x509pop.clone().unwrap();
        assert_eq!((x509pop.max_chain, x509pop.min_rsa_bits, x509pop.max_rsa_bits), (5, 2048, 4096));
        assert!(sample.authority.upstream.is_some());
        let attest = Attest { x509pop: None, ..sample.attest.clone() };
        let authority = Authority { upstream: None, ..sample.authority.clone() };
        let examples = Config {
            attest,
            authority,
            address: defaults.address.clone(),
            dns_names: defaults.dns_names.clone(),
            ..sample
        };
        assert_eq!(examples, defaults);
    }

    #[test]
    fn the_environment_alone_is_a_config() {
        let over = [("TRUST_DOMAIN", "example.org"), ("SVID__TTL", "10m"), ("STORE__KIND", "mem")];
        let over = over.map(|(key, value)| (format!("{PREFIX}__{key}"), value.to_owned()));
        let config = Config::parse("", over).unwrap();
        assert_eq!(config.svid.ttl, Duration::from_secs(600));
        assert_eq!(config.store.kind, StoreKind::Mem);
    }

    #[test]
    fn a_short_ca_shortens_the_defaults_but_not_what_was_written() {
        let config = parse("[authority]\nca_ttl = '2m'").unwrap();
        let seconds = Duration::from_secs;
        assert_eq!(config.svid, Svid { ttl: seconds(20), max_ttl: seconds(20), agent_ttl: seconds(20) });
        assert_eq!(
            error("[svid]\nmax_ttl = '6d'"),
            "svid.max_ttl = \"6d\" is too long for authority.ca_ttl = \"30d\": a leaf must not outlive its CA \
             through a rotation. Set svid.max_ttl to at most \"5d\", or authority.ca_ttl to at least \"36d\""
        );
        assert_eq!(
            error("[svid]\nttl = '1h'\n[authority]\nca_ttl = '2h'"),
            "svid.ttl = \"1h\" is too long for authority.ca_ttl = \"2h\": a leaf must not outlive its CA through a \
             rotation. Set svid.ttl to at most \"20m\", or authority.ca_ttl to at least \"6h\""
        );
        assert_eq!(
            error("[svid]\nttl = '2h'\nmax_ttl = '1h'"),
            "svid.ttl = \"2h\" is longer than svid.max_ttl = \"1h\": lower the one or raise the other"
        );
        assert_eq!(error("[svid]\nttl = '1s'"), "svid.ttl = \"1s\" is not allowed: use \"5s\" to \"366d\"");
    }

    #[test]
    fn a_wrong_trust_domain_is_shown_with_its_key_and_line() {
        let message = Config::parse("trust_domain = 'Example.org'", []).unwrap_err().to_string();
        assert!(message.contains("line 1") && message.contains("trust_domain ="), "{message}");
        let variable = ("CHANCERY_SERVER__TRUST_DOMAIN".to_owned(), "Example.org".to_owned());
        let message = Config::parse("", [variable]).unwrap_err().to_string();
        assert!(message.contains("in `trust_domain`"), "{message}");
        assert!(Config::parse("", []).unwrap_err().to_string().contains("missing field `trust_domain`"));
    }

    #[test]
    fn an_unknown_key_is_named() {
        assert!(error("trustdomain = 'x'").contains("unknown field `trustdomain`"));
        assert!(error("[store]\ncache = 1").contains("unknown field `cache`"));
        assert!(error("[attest.x509pop]\nca_bundle = 'a'\nx = 1").contains("unknown field `x`"));
        assert!(error("[store]\nkind = 'sql'").contains("unknown variant `sql`, expected `sled` or `mem`"));
    }

    #[test]
    fn sockets_addresses_names_and_modes() {
        let long = format!("admin_socket = '/{}'", "a".repeat(107));
        assert!(error(&long).contains("has 108 bytes: 1 to 107 are allowed. Choose a shorter folder"));
        let long = format!("/{}", "a".repeat(100));
        assert_eq!(
            error(&format!("data_dir = '{long}'")),
            format!(
                "admin_socket = \"{long}/admin.sock\" (from data_dir) has 112 bytes: at most 107 are allowed. Set admin_socket"
            )
        );
        for bad in ["ca.example.org", "ca.example.org:0", "ca_x:1", ":1", "::1:80", "*.a:1", "[::1:80"] {
            assert!(error(&format!("address = '{bad}'")).contains("is no address: write it as host:port"), "{bad}");
        }
        for good in ["ca.example.org:8443", "10.0.0.1:1", "[::1]:80"] {
            assert_eq!(parse(&format!("address = '{good}'")).unwrap().address.as_str(), good);
        }
        assert_eq!(parse("listen = '10.0.0.1:99'").unwrap().address.as_str(), "10.0.0.1:99");
        assert!(error("name = 'a b'").contains("must be 1 to 64 letters, digits, dots, dashes or underscores"));
        assert!(error("admin_socket_mode = '888'").contains("is no file mode: write it in octal"));
        assert_eq!(parse("admin_uids = [1000]").unwrap().admin_socket_mode.bits(), 0o666);
        assert!(error("listen = 'ca.example.org:8443'").contains("invalid socket address"));
    }

    #[test]
    fn health_stays_on_loopback() {
        assert_eq!(
            error("health_listen = '0.0.0.0:8444'"),
            "health_listen = \"0.0.0.0:8444\" is not a loopback address: metrics are for this machine only. Use \
             127.0.0.1, or set health_listen_anywhere = true"
        );
        assert!(parse("health_listen = '0.0.0.0:8444'\nhealth_listen_anywhere = true").is_ok());
    }

    #[test]
    fn numbers_have_limits() {
        let x509pop = "[attest.x509pop]\nca_bundle = 'a'\n";
        for (text, message) in [
            ("[limits]\nconnections = 0", "limits.connections = 0 is not allowed: use 1 to 1048576"),
            (
                "[limits]\nrequest_timeout = '0s'",
                "limits.request_timeout = \"0s\" is not allowed: use \"1s\" to \"1h\"",
            ),
            ("[audit]\nqueue = 1", "audit.queue = 1 is not allowed: use 16 to 1048576"),
            ("[authority]\nca_ttl = '10s'", "authority.ca_ttl = \"10s\" is not allowed: use \"30s\" to \"7320d\""),
            (
                &format!("{x509pop}min_rsa_bits = 1024"),
                "attest.x509pop.min_rsa_bits = 1024 is not allowed: use 2048 to 4096",
            ),
            (
                &format!("{x509pop}max_rsa_bits = 16384"),
                "attest.x509pop.max_rsa_bits = 16384 is not allowed: use 2048 to 8192",
            ),
            (&format!("{x509pop}max_chain = 9"), "attest.x509pop.max_chain = 9 is not allowed: use 1 to 8"),
        ] {
            assert_eq!(error(text), message);
        }
    }

    #[test]
    fn files_are_checked_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let key = spiffe::crypto::generate_key(KeyType::P256).unwrap();
        let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap();
        std::fs::write(path("ca.pem"), certificate.pem()).unwrap();
        std::fs::write(path("key.pem"), key.serialize_pem()).unwrap();
        std::fs::write(path("empty.pem"), "nothing").unwrap();
        let check = |certificate: &str, key: &str, bundle: &str| {
            let [certificate, key, bundle] = [certificate, key, bundle].map(|name| path(name).display().to_string());
            let text = format!(
                "[authority.upstream]\ncertificate = '{certificate}'\nkey = '{key}'\n[attest.x509pop]\nca_bundle = '{bundle}'"
            );
            parse(&text).unwrap().check_files().map_err(|error| error.to_string())
        };
        assert_eq!(check("ca.pem", "key.pem", "ca.pem"), Ok(()));
        let message = check("none.pem", "key.pem", "ca.pem").unwrap_err();
        assert!(
            message.starts_with("authority.upstream.certificate: ") && message.contains("No such file"),
            "{message}"
        );
        assert!(check("ca.pem", "ca.pem", "ca.pem").unwrap_err().contains("holds no PKCS#8 private key"));
        let message = check("ca.pem", "key.pem", "empty.pem").unwrap_err();
        assert!(message.contains("attest.x509pop.ca_bundle") && message.contains("holds no certificate"), "{message}");
        let message = Config::load(Some(&path("none.toml"))).unwrap_err().to_string();
        assert!(message.contains("none.toml: No such file"), "{message}");
    }
}
