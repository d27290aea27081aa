//! The config of a server: TOML, laid over by the environment (`CHANCERY_SERVER__STORE__KIND=mem`), parsed into
//! types that are already valid.
//!
//! - Only `trust_domain` has to be there. Each default says why it is what it is, in `config/document.rs`.
//! - Lifetimes are checked against each other here, so that no leaf can outlive its CA, and no token its key: see
//!   [`LIFETIMES_PER_CA`] and [`LIFETIMES_PER_KEY`].
//! - Files that the config names are not read here; [`Config::check_files`] does, for `chancery server validate`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Deserialize;
use spiffe::entry::{DnsName, KeyType};
use spiffe::federation::RelationshipError;
use spiffe::id::TrustDomain;
use spiffe::settings::{self, SettingsError};

use self::document::{Document, default_max_chain, default_max_rsa_bits, default_min_rsa_bits};
pub use self::federation::{Configured, Federation, Network};
pub use self::istio::{Istio, MAX_CLUSTER_BYTES};
use self::kubernetes::{ClusterName, Clusters, K8sPsat};
pub use self::values::{Address, MAX_SOCKET_PATH_BYTES, Mode, ServerName, SocketPath};
pub use self::web::{Acme, CertificateFiles, HttpsSpiffe, HttpsWeb, Issuer, Oidc, Web, WebCertificate};

mod document;
mod federation;
mod istio;
pub mod kubernetes;
pub mod publish;
#[cfg(test)]
mod tests;
mod values;
mod web;

/// What the names of environment variables begin with that override keys of the config.
pub const PREFIX: &str = "CHANCERY_SERVER";

/// The longest life of a leaf fits this many times into the life of a CA: the successor is prepared at half of the CA's
/// life and active at two thirds of it at the latest, which leaves a third, twice the longest life of a leaf.
pub const LIFETIMES_PER_CA: u32 = 6;

/// The longest life of a token fits this many times into the life of a key, as the rotation law asks for: tokens are
/// short-lived, and need no more room than that.
pub const LIFETIMES_PER_KEY: u32 = 2;

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
    /// A token could outlive its key.
    #[error(
        "{key} = {token:?} is too long for key_ttl = {key_ttl:?} of the same table: a token must not outlive its key \
         through a rotation. Set {key} to at most {most:?}, or key_ttl to at least {least:?}"
    )]
    TokenOutlivesKey {
        /// The key of the lifetime that is too long.
        key: &'static str,
        /// That lifetime.
        token: Box<str>,
        /// The life of a signing key.
        key_ttl: Box<str>,
        /// The longest life of a token that would do.
        most: Box<str>,
        /// The shortest life of a key that would do.
        least: Box<str>,
    },
    /// The default lifetime of SVIDs is longer than the longest.
    #[error("{table}.ttl = {ttl:?} is longer than {table}.max_ttl = {max_ttl:?}: lower the one or raise the other")]
    TtlOverMax {
        /// The table: `svid`, `jwt`, `wit` or `istio`.
        table: &'static str,
        /// Its `ttl`.
        ttl: String,
        /// Its `max_ttl`.
        max_ttl: String,
    },
    /// WIT-SVIDs would be signed with RSA.
    #[error("wit.algorithm = \"RS256\" is not allowed: use \"ES256\" or \"ES384\"")]
    RsaWit,
    /// WIT-SVIDs would name an issuer.
    #[error("wit.issuer is not allowed: a WIT-SVID is no token of OpenID Connect. Set jwt.issuer for JWT-SVIDs")]
    WitIssuer,
    /// Tokens would name another issuer than discovery does: every verifier would refuse them.
    #[error("jwt.issuer = {jwt:?} and web.oidc.issuer = {oidc:?} differ: leave jwt.issuer out, or make it the same")]
    TwoIssuers {
        /// What tokens would say.
        jwt: String,
        /// What discovery would say.
        oidc: String,
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
    /// A federation relationship is wrong.
    #[error("[[federation.relationship]]: {0}")]
    Relationship(#[from] RelationshipError),
    /// Two relationships with one trust domain.
    #[error("[[federation.relationship]]: {0} is there twice: leave one")]
    RelationshipTwice(TrustDomain),
    /// The path of the bundle is none.
    #[error("web.path = {0:?} is no path: begin it with /, and use letters, digits and -._~/ only, 256 at most")]
    WebPath(String),
    /// Neither files nor an ACME CA, or both.
    #[error("web.https_web has no certificate to show: set certificate and key, or [web.https_web.acme], and not both")]
    WebCertificate,
    /// Nobody has agreed.
    #[error("web.https_web.acme: read the CA's terms of service, and set terms_of_service_agreed = true if you agree")]
    AcmeTerms,
    /// OpenID Connect Discovery without a listener that those who ask for it can trust.
    #[error("web.oidc is served where https_web is: add [web.https_web]")]
    OidcWithoutWeb,
    /// The cluster of proxies that name none is none of those that are known.
    #[error("istio.default_cluster = {0:?} is none of the clusters in istio.clusters: name one of ours, on the right")]
    IstioCluster(String),
    /// Proxies of no cluster.
    #[error("istio.clusters is missing: clusters = {{ Kubernetes = \"main\" }} calls [kubernetes.main] as Istio does")]
    NoIstioClusters,
    /// Agents of a cluster, and none that may be one.
    #[error(
        "attest.k8s_psat.{0}.service_accounts is empty: name what the agents run as, for example \"chancery:chancery-agent\""
    )]
    NoAgentAccounts(ClusterName),
    /// Two listeners in one place.
    #[error("{one} and {other} both take port {port}: give each one of its own")]
    ListenTwice {
        /// The one key.
        one: &'static str,
        /// The other.
        other: &'static str,
        /// The port.
        port: u16,
    },
    /// One ConfigMap for two things.
    #[error(
        "kubernetes.{0}.publish has istio = true and config_map = \"istio-ca-root-cert\": choose another config_map, that one is Istio's"
    )]
    TwoBundles(ClusterName),
    /// A context of no kubeconfig.
    #[error("kubernetes.{0}.context is of a kubeconfig: set kubernetes.{0}.kubeconfig too, or leave context out")]
    ContextWithoutKubeconfig(ClusterName),
    /// Agents of a cluster that is not known.
    #[error("attest.k8s_psat.{0} is of a cluster that is not known: add [kubernetes.{0}]")]
    UnknownCluster(ClusterName),
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
    /// JWT-SVIDs.
    pub jwt: Tokens,
    /// WIT-SVIDs.
    pub wit: Tokens,
    /// Which proofs of nodes are taken.
    pub attest: Attest,
    /// The record of decisions.
    pub audit: Audit,
    /// What protects the server from too much.
    pub limits: Limits,
    /// What is forgotten by itself.
    pub purge: Purge,
    /// Other trust domains.
    pub federation: Federation,
    /// Where the own bundle is served.
    pub web: Web,
    /// The door for Istio's proxies; `None`: there is none.
    pub istio: Option<Istio>,
    /// The Kubernetes clusters whose API servers are asked.
    pub kubernetes: Clusters,
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

/// `[jwt]` and `[wit]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// What new keys sign with.
    pub algorithm: TokenAlgorithm,
    /// The life of a token whose entry says nothing.
    pub ttl: Duration,
    /// The longest life that an entry or a mint may ask for.
    pub max_ttl: Duration,
    /// How long a key is in the bundle.
    pub key_ttl: Duration,
    /// The `iss` of JWT-SVIDs; never of WIT-SVIDs.
    pub issuer: Option<Issuer>,
}

/// What tokens are signed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum TokenAlgorithm {
    /// ECDSA using P-256 and SHA-256.
    #[serde(rename = "ES256")]
    Es256,
    /// ECDSA using P-384 and SHA-384.
    #[serde(rename = "ES384")]
    Es384,
    /// RSASSA-PKCS1-v1_5 using SHA-256 and a key of 2048 bits.
    #[serde(rename = "RS256")]
    Rs256,
}

/// `[attest]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Attest {
    /// One-time tokens made by an operator.
    pub join_token: JoinToken,
    /// Certificates that nodes already have; `None`: not taken.
    pub x509pop: Option<X509Pop>,
    /// Service-account tokens of these clusters.
    pub k8s_psat: BTreeMap<ClusterName, K8sPsat>,
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
    /// Rules: each is held against every pod.
    pub rules: usize,
    /// What rules give, counted pod by pod. Above it the youngest rules give nothing.
    pub derived_entries: usize,
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
            let text = std::str::from_utf8(&pem).unwrap_or_default();
            let pair = rcgen::KeyPair::from_pem(text).map_err(|_| {
                let reason = "holds no PKCS#8 private key of kind P-256, P-384, Ed25519 or RSA in PEM: convert it \
                              with \"openssl pkcs8 -topk8 -nocrypt\"";
                ConfigError::File { key, path: upstream.key.clone(), reason: reason.into() }
            })?;
            drop(zeroize::Zeroizing::new(pair));
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
        match self.web.https_web.as_ref().map(|web| &web.certificate) {
            Some(WebCertificate::Files(files)) => {
                certificates("web.https_web.certificate", &files.certificate)?;
                read_limited("web.https_web.key", &files.key).map(zeroize::Zeroizing::new)?;
            }
            Some(WebCertificate::Acme(Acme { roots: Some(roots), .. })) => {
                certificates("web.https_web.acme.roots", roots)?;
            }
            _ => {}
        }
        if let Some(path) = &self.federation.web_roots {
            certificates("federation.web_roots", path)?;
        }
        for configured in &self.federation.relationships {
            configured.initial_bundle()?;
        }
        Ok(())
    }

    /// Every name by which this server is known: they are in its SVID, whichever listener shows it.
    pub fn own_names(&self) -> Vec<DnsName> {
        let of_istio = self.istio.iter().flat_map(|istio| &istio.dns_names);
        let more = of_istio.filter(|name| !self.dns_names.contains(name));
        self.dns_names.iter().chain(more).cloned().collect()
    }

    /// Where the store is.
    pub fn store_dir(&self) -> PathBuf {
        self.data_dir.join("store")
    }

    /// Where the ACME account and the certificate of the web are.
    pub fn acme_dir(&self) -> PathBuf {
        self.data_dir.join("acme")
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

/// The bytes of the file at `path`, which the config names under `key`; 4 MiB at most.
pub fn read_limited(key: &'static str, path: &Path) -> Result<Vec<u8>, ConfigError> {
    use std::io::Read as _;
    let wrong = |reason: String| ConfigError::File { key, path: path.to_owned(), reason };
    let unreadable = |error: std::io::Error| {
        let what_to_do = match error.kind() {
            std::io::ErrorKind::NotFound => ": put the file there, or correct the path in the config",
            std::io::ErrorKind::PermissionDenied => ": let this user read it, or run this as the server's user",
            _ => "",
        };
        wrong(format!("cannot be read: {error}{what_to_do}"))
    };
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(MAX_PEM_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_PEM_BYTES {
        return Err(wrong("is larger than 4 MiB: this is no file of certificates or keys".into()));
    }
    Ok(bytes)
}
