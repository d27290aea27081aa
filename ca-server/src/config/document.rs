//! The document as it is written: its keys, their defaults with the reason for each, and the limits of what they may say.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use spiffe::entry::{DnsName, KeyType, MAX_DNS_NAMES};
use spiffe::id::TrustDomain;
use spiffe::settings::optional_duration;

use super::federation::FederationDocument;
use super::istio::IstioDocument;
use super::kubernetes::{self, Clusters};
use super::web::WebDocument;
use super::{
    Address, Attest, Audit, AuditTarget, Authority, Config, ConfigError, Issuer, JoinToken, Keys, LIFETIMES_PER_CA,
    LIFETIMES_PER_KEY, Limits, Mode, Purge, ServerName, SocketPath, Store, StoreKind, Svid, TokenAlgorithm, Tokens,
    Upstream,
};

/// The document, before defaults that depend on other keys are filled in.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
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
    jwt: TokenDocument,
    #[serde(default)]
    wit: TokenDocument,
    #[serde(default)]
    attest: Attest,
    #[serde(default)]
    audit: AuditDocument,
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    purge: Purge,
    #[serde(default)]
    federation: FederationDocument,
    #[serde(default)]
    web: WebDocument,
    istio: Option<IstioDocument>,
    #[serde(default)]
    kubernetes: Clusters,
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

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TokenDocument {
    algorithm: Option<TokenAlgorithm>,
    #[serde(with = "optional_duration")]
    ttl: Option<Duration>,
    #[serde(with = "optional_duration")]
    max_ttl: Option<Duration>,
    #[serde(with = "optional_duration")]
    key_ttl: Option<Duration>,
    issuer: Option<Issuer>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct AuditDocument {
    file: Option<PathBuf>,
    queue: usize,
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
pub(super) fn default_max_chain() -> usize {
    5
}

/// NIST SP 800-131A: shorter ones are disallowed.
pub(super) fn default_min_rsa_bits() -> usize {
    2048
}

/// Longer ones cost a stranger nothing and us a lot.
pub(super) fn default_max_rsa_bits() -> usize {
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
            rules: 256,
            // Sixteen for each of 30,000 pods. An entry is estimated at a KiB: half a GiB at most.
            derived_entries: 500_000,
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

/// What the two tables of tokens do not share.
struct TokenTable {
    name: &'static str,
    ttl_key: &'static str,
    max_ttl_key: &'static str,
    key_ttl_key: &'static str,
    default_ttl: Duration,
    default_max_ttl: Duration,
}

/// Five minutes: whoever has a JWT-SVID can use it, and agents fetch the next one in time. An hour at most: as long as
/// some validators outside ask for.
const JWT: TokenTable = TokenTable {
    name: "jwt",
    ttl_key: "jwt.ttl",
    max_ttl_key: "jwt.max_ttl",
    key_ttl_key: "jwt.key_ttl",
    default_ttl: Duration::from_secs(300),
    default_max_ttl: Duration::from_secs(3600),
};

/// As X.509-SVIDs: nobody can use one without its key.
const WIT: TokenTable = TokenTable {
    name: "wit",
    ttl_key: "wit.ttl",
    max_ttl_key: "wit.max_ttl",
    key_ttl_key: "wit.key_ttl",
    default_ttl: DEFAULT_TTL,
    default_max_ttl: DEFAULT_MAX_TTL,
};

/// As a CA, for the same reasons; and validators outside, who fetch keys when they please, have five days for it.
const DEFAULT_KEY_TTL: Duration = Duration::from_secs(30 * 86_400);

const SHORTEST_TTL: Duration = Duration::from_secs(5);
const LONGEST_TTL: Duration = Duration::from_secs(366 * 86_400);
const SHORTEST_CA_TTL: Duration = Duration::from_secs(30);
const LONGEST_CA_TTL: Duration = Duration::from_secs(20 * 366 * 86_400);

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
        let default_mode = if admin_uids.is_empty() { Mode::OWNER } else { Mode::EVERYBODY };
        let authority = authority(document.authority)?;
        let svid = svid(&document.svid, authority.ca_ttl)?;
        let (mut jwt, wit) = (tokens(&JWT, document.jwt)?, wit(document.wit)?);
        // Those who poll have to learn of new keys of every kind in time.
        let web = document.web.read(authority.ca_ttl.min(jwt.key_ttl).min(wit.key_ttl))?;
        if let Some(oidc) = web.oidc.as_ref().map(|oidc| &oidc.issuer) {
            let own = jwt.issuer.get_or_insert_with(|| oidc.clone());
            if own != oidc {
                let (jwt, oidc) = (own.as_str().to_owned(), oidc.as_str().to_owned());
                return Err(ConfigError::TwoIssuers { jwt, oidc });
            }
        }
        let istio = document.istio.map(|istio| istio.read(authority.ca_ttl, dns_names.len())).transpose()?;
        let https_web = web.https_web.as_ref().map(|web| ("web.https_web.listen", web.listen));
        let https_spiffe = web.https_spiffe.as_ref().map(|web| ("web.https_spiffe.listen", web.listen));
        let for_istio = istio.as_ref().map(|istio| ("istio.listen", istio.listen));
        let always = [("listen", listen), ("health_listen", health_listen)];
        check_listeners(&always.into_iter().chain(https_web).chain(https_spiffe).chain(for_istio).collect::<Vec<_>>())?;
        check_limits(&document.limits, &document.attest)?;
        kubernetes::check(&document.kubernetes, &document.attest.k8s_psat)?;
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
            federation: document.federation.read(&trust_domain)?,
            web,
            istio,
            kubernetes: document.kubernetes,
            trust_domain,
            data_dir,
            listen,
            dns_names,
            name,
            admin_uids,
            health_listen,
            authority,
            svid,
            jwt,
            wit,
        })
    }
}

fn authority(document: AuthorityDocument) -> Result<Authority, ConfigError> {
    let AuthorityDocument { key_type, ca_ttl, keys, upstream } = document;
    lifetime_in_range("authority.ca_ttl", ca_ttl, SHORTEST_CA_TTL, LONGEST_CA_TTL)?;
    Ok(Authority { key_type, ca_ttl, keys, upstream })
}

/// The longest life of a leaf below a CA that lives this long.
pub(super) fn longest_leaf(ca_ttl: Duration) -> Duration {
    whole_seconds(ca_ttl / LIFETIMES_PER_CA)
}

/// `leaf`, which stands under `key`, if it fits into the life of a CA.
pub(super) fn leaf_in_range(key: &'static str, leaf: Duration, ca_ttl: Duration) -> Result<Duration, ConfigError> {
    lifetime_in_range(key, leaf, SHORTEST_TTL, LONGEST_TTL)?;
    if leaf <= longest_leaf(ca_ttl) {
        return Ok(leaf);
    }
    Err(ConfigError::LeafOutlivesCa {
        key,
        leaf: write_duration(leaf),
        ca: write_duration(ca_ttl),
        most: write_duration(longest_leaf(ca_ttl)),
        least: write_duration(leaf * LIFETIMES_PER_CA),
    })
}

fn svid(document: &SvidDocument, ca_ttl: Duration) -> Result<Svid, ConfigError> {
    let most = longest_leaf(ca_ttl);
    let fits = |key, leaf: Duration| leaf_in_range(key, leaf, ca_ttl);
    // A default gives way to what the CA can honour; what somebody has written does not.
    let ttl = fits("svid.ttl", document.ttl.unwrap_or(DEFAULT_TTL.min(document.max_ttl.unwrap_or(most)).min(most)))?;
    let max_ttl = fits("svid.max_ttl", document.max_ttl.unwrap_or(DEFAULT_MAX_TTL.min(most).max(ttl)))?;
    let agent_ttl = fits("svid.agent_ttl", document.agent_ttl.unwrap_or(DEFAULT_TTL.min(most)))?;
    if ttl > max_ttl {
        return Err(ConfigError::TtlOverMax {
            table: "svid",
            ttl: write_duration(ttl),
            max_ttl: write_duration(max_ttl),
        });
    }
    Ok(Svid { ttl, max_ttl, agent_ttl })
}

/// WIT-SVIDs are bound to a key, as X.509-SVIDs are.
fn wit(document: TokenDocument) -> Result<Tokens, ConfigError> {
    if document.algorithm == Some(TokenAlgorithm::Rs256) {
        return Err(ConfigError::RsaWit);
    }
    if document.issuer.is_some() {
        return Err(ConfigError::WitIssuer);
    }
    tokens(&WIT, document)
}

fn tokens(table: &TokenTable, document: TokenDocument) -> Result<Tokens, ConfigError> {
    let key_ttl = document.key_ttl.unwrap_or(DEFAULT_KEY_TTL);
    lifetime_in_range(table.key_ttl_key, key_ttl, SHORTEST_CA_TTL, LONGEST_CA_TTL)?;
    let most = whole_seconds(key_ttl / LIFETIMES_PER_KEY);
    let fits = |key, token: Duration| {
        lifetime_in_range(key, token, SHORTEST_TTL, LONGEST_TTL)?;
        if token <= most {
            return Ok(token);
        }
        let [token, key_ttl, most, least] =
            [token, key_ttl, most, token * LIFETIMES_PER_KEY].map(|duration| write_duration(duration).into());
        Err(ConfigError::TokenOutlivesKey { key, token, key_ttl, most, least })
    };
    // As for X.509: a default gives way, what somebody has written does not.
    let default_ttl = table.default_ttl.min(document.max_ttl.unwrap_or(most)).min(most);
    let ttl = fits(table.ttl_key, document.ttl.unwrap_or(default_ttl))?;
    let max_ttl = fits(table.max_ttl_key, document.max_ttl.unwrap_or(table.default_max_ttl.min(most).max(ttl)))?;
    if ttl > max_ttl {
        let [ttl, max_ttl] = [ttl, max_ttl].map(write_duration);
        return Err(ConfigError::TtlOverMax { table: table.name, ttl, max_ttl });
    }
    // ES256: the fastest to sign, the shortest, and every validator has to know it.
    let algorithm = document.algorithm.unwrap_or(TokenAlgorithm::Es256);
    Ok(Tokens { algorithm, ttl, max_ttl, key_ttl, issuer: document.issuer })
}

fn check_limits(limits: &Limits, attest: &Attest) -> Result<(), ConfigError> {
    let second = Duration::from_secs(1);
    in_range("limits.issue_concurrency", limits.issue_concurrency, 1, 1 << 20)?;
    in_range("limits.attest_per_second", limits.attest_per_second, 1, 1 << 20)?;
    in_range("limits.attest_burst", limits.attest_burst, 1, 1 << 20)?;
    in_range("limits.connections", limits.connections, 1, 1 << 20)?;
    in_range("limits.entries", limits.entries, 1, 100_000_000)?;
    in_range("limits.rules", limits.rules, 1, 10_000)?;
    in_range("limits.derived_entries", limits.derived_entries, 16, 100_000_000)?;
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
pub(super) fn write_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let units = [(86_400, "d"), (3600, "h"), (60, "m")];
    let unit = units.into_iter().find(|(length, _)| seconds > 0 && seconds.is_multiple_of(*length));
    let (length, unit) = unit.unwrap_or((1, "s"));
    format!("{}{unit}", seconds / length)
}

fn whole_seconds(duration: Duration) -> Duration {
    Duration::from_secs(duration.as_secs())
}

/// Refuses two listeners of which one takes the other's place.
fn check_listeners(listeners: &[(&'static str, SocketAddr)]) -> Result<(), ConfigError> {
    let meets = |one: SocketAddr, other: SocketAddr| {
        let is_any = one.is_ipv4() == other.is_ipv4() && (one.ip().is_unspecified() || other.ip().is_unspecified());
        one.port() != 0 && one.port() == other.port() && (is_any || one.ip() == other.ip())
    };
    for (number, (other, address)) in listeners.iter().copied().enumerate() {
        if let Some((one, _)) = listeners.iter().take(number).find(|(_, before)| meets(*before, address)) {
            return Err(ConfigError::ListenTwice { one, other, port: address.port() });
        }
    }
    Ok(())
}

pub(super) fn in_range<N: PartialOrd + ToString + Copy>(
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

pub(super) fn lifetime_in_range(
    key: &'static str,
    value: Duration,
    least: Duration,
    most: Duration,
) -> Result<(), ConfigError> {
    if value >= least && value <= most {
        return Ok(());
    }
    let [value, least, most] = [value, least, most].map(|duration| format!("{:?}", write_duration(duration)));
    Err(ConfigError::Range { key, value, least, most })
}
