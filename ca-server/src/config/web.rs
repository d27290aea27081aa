//! `[web]`: where the own bundle is served to other trust domains.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use spiffe::entry::DnsName;
use spiffe::federation::EndpointUrl;
use spiffe::settings::optional_duration;

use super::ConfigError;
use super::document::{in_range, lifetime_in_range};

/// From the moment at which a root is in the bundle to that at which it may sign, a poller fetches this often at least
/// (SPIFFE_Federation.md section 4.1: three to five times).
const POLLS_BEFORE_USE: u32 = 5;
/// The share of a CA's life between those two moments: see `authority::plan`.
const PREPARED_SHARE: u32 = 6;
/// The shortest refresh hint.
const SHORTEST_HINT: Duration = Duration::from_secs(10);
/// The hint where the rotation leaves more time: the standard's own default, so that a revocation is soon known.
const USUAL_HINT: Duration = Duration::from_secs(300);
/// The most names in one certificate of the web: a CA proves each by itself.
const MAX_ACME_DOMAINS: usize = 16;
/// The longest path of the bundle, in bytes.
const LONGEST_PATH: usize = 256;

/// `[web]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Web {
    /// The path of the bundle.
    pub path: String,
    /// How often others should fetch it.
    pub refresh_hint: Duration,
    /// Open connections on each listener.
    pub connections: usize,
    /// `[web.https_web]`: known by a certificate of the web; `None`: not served so.
    pub https_web: Option<HttpsWeb>,
    /// `[web.https_spiffe]`: known by the server's own SVID; `None`: not served so.
    pub https_spiffe: Option<HttpsSpiffe>,
    /// `[web.oidc]`: served where `https_web` is; `None`: not served.
    pub oidc: Option<Oidc>,
}

/// `[web.https_web]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpsWeb {
    /// Where.
    pub listen: SocketAddr,
    /// What is shown there.
    pub certificate: WebCertificate,
}

/// Where the certificate of the web comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WebCertificate {
    /// Two files that somebody else renews.
    Files(CertificateFiles),
    /// An ACME CA.
    Acme(Acme),
}

/// A certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// PEM: the certificate, then those above it.
    pub certificate: PathBuf,
    /// PEM: its key.
    pub key: PathBuf,
}

/// `[web.https_web.acme]`: certificates by ACME (RFC 8555), proved by TLS-ALPN (RFC 8737) on the listener itself.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Acme {
    /// The URL of the CA's directory.
    pub directory: EndpointUrl,
    /// The names in the certificate.
    pub domains: Vec<DnsName>,
    /// Where the CA may write to, as `mailto:` URLs.
    #[serde(default)]
    pub contact: Vec<String>,
    /// Whether whoever runs this server has agreed to the CA's terms.
    pub terms_of_service_agreed: bool,
    /// PEM: what the CA's own web server is known by, besides the operating system's roots.
    #[serde(default)]
    pub roots: Option<PathBuf>,
}

/// `[web.https_spiffe]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpsSpiffe {
    /// Where.
    pub listen: SocketAddr,
}

/// `[web.oidc]`: OpenID Connect Discovery, for verifiers that know no SPIFFE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Oidc {
    /// The issuer, as JWT-SVIDs name it in `iss`.
    pub issuer: Issuer,
    /// The hosts for which it is answered.
    pub allowed_hosts: Vec<String>,
}

/// The URL of an issuer of tokens: `https`, no query, no slash at its end.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Issuer {
    text: String,
    url: EndpointUrl,
}

impl Issuer {
    /// The URL as it was written: verifiers compare it letter by letter.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Its path; empty where there is none.
    pub fn path(&self) -> &str {
        self.url.target().trim_end_matches('/')
    }
}

impl TryFrom<String> for Issuer {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let url = EndpointUrl::parse(&text).map_err(|error| format!("issuer {text:?} is no issuer: {error}"))?;
        if text.ends_with('/') || text.contains('?') {
            return Err(format!("issuer {text:?} has a slash at its end, or a query: leave that out"));
        }
        Ok(Self { text, url })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HttpsWebDocument {
    listen: SocketAddr,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    acme: Option<Acme>,
}

impl HttpsWebDocument {
    fn read(self) -> Result<HttpsWeb, ConfigError> {
        let certificate = match (self.certificate, self.key, self.acme) {
            (Some(certificate), Some(key), None) => WebCertificate::Files(CertificateFiles { certificate, key }),
            (None, None, Some(acme)) => {
                in_range("web.https_web.acme.domains (how many)", acme.domains.len(), 1, MAX_ACME_DOMAINS)?;
                if !acme.terms_of_service_agreed {
                    return Err(ConfigError::AcmeTerms);
                }
                WebCertificate::Acme(acme)
            }
            _ => return Err(ConfigError::WebCertificate),
        };
        Ok(HttpsWeb { listen: self.listen, certificate })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OidcDocument {
    issuer: Issuer,
    #[serde(default)]
    allowed_hosts: Vec<String>,
}

/// The table as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct WebDocument {
    path: String,
    #[serde(with = "optional_duration")]
    refresh_hint: Option<Duration>,
    connections: usize,
    https_web: Option<HttpsWebDocument>,
    https_spiffe: Option<HttpsSpiffe>,
    oidc: Option<OidcDocument>,
}

impl Default for WebDocument {
    /// A thousand connections: those of a few hundred thousand pollers.
    fn default() -> Self {
        let path = "/".to_owned();
        Self { path, refresh_hint: None, connections: 1000, https_web: None, https_spiffe: None, oidc: None }
    }
}

impl WebDocument {
    /// As a server whose CAs, and keys for tokens, live this long takes it.
    pub(super) fn read(self, ca_ttl: Duration) -> Result<Web, ConfigError> {
        let Self { path, refresh_hint, connections, https_web, https_spiffe, oidc } = self;
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
        if !path.starts_with('/') || path.len() > LONGEST_PATH || !path.bytes().all(is_plain) {
            return Err(ConfigError::WebPath(path));
        }
        in_range("web.connections", connections, 1, 1 << 20)?;
        let slowest = Duration::from_secs((ca_ttl / PREPARED_SHARE / POLLS_BEFORE_USE).as_secs()).max(SHORTEST_HINT);
        let refresh_hint = refresh_hint.unwrap_or(slowest.min(USUAL_HINT));
        lifetime_in_range("web.refresh_hint", refresh_hint, SHORTEST_HINT, slowest)?;
        let https_web = https_web.map(HttpsWebDocument::read).transpose()?;
        let oidc = oidc.map(|OidcDocument { issuer, mut allowed_hosts }| {
            if allowed_hosts.is_empty() {
                allowed_hosts.push(issuer.url.host().to_string());
            }
            Oidc { issuer, allowed_hosts }
        });
        if oidc.is_some() && https_web.is_none() {
            return Err(ConfigError::OidcWithoutWeb);
        }
        Ok(Web { path, refresh_hint, connections, https_web, https_spiffe, oidc })
    }
}
