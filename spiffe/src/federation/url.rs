//! The URL of a bundle endpoint (SPIFFE_Federation.md sections 5.2.1.1 and 5.2.2.1), and where a redirect leads from it.
//!
//! - `https`, a host, a port where it is not 443, a path, a query. No userinfo; no fragment, which no server ever sees.
//! - The host is a DNS name or an address. What is not plainly one of them is refused, not repaired.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::entry::DnsName;

/// The longest URL, in bytes.
pub const MAX_URL_BYTES: usize = 2048;

const SCHEME: &str = "https://";

/// Why something is no URL of a bundle endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Another scheme than `https`.
    #[error("endpoint URL {0:?} must begin with https://")]
    Scheme(String),
    /// A user, perhaps a password, before the host.
    #[error("endpoint URL has a user before its host (up to the @): take that out, an endpoint asks nobody who he is")]
    Userinfo,
    /// A fragment.
    #[error("endpoint URL has a fragment (from the # on): take that out, no server ever sees it")]
    Fragment,
    /// The host is neither a DNS name nor an address.
    #[error("endpoint URL has no good host ({0:?}): use a DNS name, an IPv4 address, or an IPv6 address in brackets")]
    Host(String),
    /// The port is no number of 1 to 65535.
    #[error("endpoint URL has no good port ({0:?}): use a number of 1 to 65535, or none for 443")]
    Port(String),
    /// A character that has to be percent-encoded.
    #[error("endpoint URL has {0:?} in it, which has to be percent-encoded")]
    Character(char),
    /// Longer than [`MAX_URL_BYTES`].
    #[error("endpoint URL has {0} bytes: at most 2048 are allowed")]
    TooLong(usize),
}

/// The host of a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A DNS name in lower case.
    Name(String),
    /// An address.
    Address(IpAddr),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(IpAddr::V4(address)) => address.fmt(f),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

/// The URL of a bundle endpoint.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EndpointUrl {
    host: Host,
    port: u16,
    /// The path and the query, never empty.
    target: String,
}

impl EndpointUrl {
    /// Reads `https://host[:port][/path][?query]`.
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        if text.len() > MAX_URL_BYTES {
            return Err(UrlError::TooLong(text.len()));
        }
        let scheme = text.get(..SCHEME.len()).filter(|scheme| scheme.eq_ignore_ascii_case(SCHEME));
        if scheme.is_none() {
            return Err(UrlError::Scheme(text.chars().take(16).collect()));
        }
        let rest = text.get(SCHEME.len()..).unwrap_or_default();
        if let Some(wrong) = rest.chars().find(|c| !is_written_plainly(*c)) {
            return Err(UrlError::Character(wrong));
        }
        if rest.contains('#') {
            return Err(UrlError::Fragment);
        }
        let (authority, target) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err(UrlError::Userinfo);
        }
        let (host, port) = split_port(authority)?;
        let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
        Ok(Self { host: parse_host(host)?, port, target })
    }

    /// Where a redirect from here to `location` leads (RFC 3986 section 5.2, without dot segments being taken out).
    pub fn redirected(&self, location: &str) -> Result<Self, UrlError> {
        let location = location.trim();
        let path = self.target.split('?').next().unwrap_or("/");
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let here = format!("{SCHEME}{}", self.authority());
        let scheme_end = location.find(':');
        let has_scheme =
            scheme_end.is_some_and(|end| !location.get(..end).unwrap_or_default().contains(['/', '?', '#']));
        let whole = match location {
            whole if has_scheme => whole.to_owned(),
            other_host if other_host.starts_with("//") => format!("https:{other_host}"),
            absolute if absolute.starts_with('/') => format!("{here}{absolute}"),
            query if query.starts_with('?') => format!("{here}{path}{query}"),
            relative => format!("{here}{folder}/{relative}"),
        };
        Self::parse(&whole)
    }

    /// The host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The path and the query, as a request has them.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// The host, and the port where it is not 443: as the Host header has them.
    pub fn authority(&self) -> String {
        match self.port {
            443 => self.host.to_string(),
            port => format!("{}:{port}", self.host),
        }
    }
}

/// Whether a URL may have this character as it is (RFC 3986 section 2), `%` included.
fn is_written_plainly(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-._~:/?#[]@!$&'()*+,;=%".contains(c)
}

fn split_port(authority: &str) -> Result<(&str, u16), UrlError> {
    let after_host = authority.rfind(']').map_or(0, |bracket| bracket + 1);
    let Some(colon) = authority.get(after_host..).and_then(|rest| rest.rfind(':')) else {
        return Ok((authority, 443));
    };
    let (host, port) = authority.split_at(after_host + colon);
    let digits = port.trim_start_matches(':');
    let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
    match digits.parse() {
        Ok(port) if port > 0 && is_number => Ok((host, port)),
        _ => Err(UrlError::Port(digits.to_owned())),
    }
}

fn parse_host(text: &str) -> Result<Host, UrlError> {
    let wrong = || UrlError::Host(text.to_owned());
    if let Some(inside) = text.strip_prefix('[') {
        let inside = inside.strip_suffix(']').ok_or_else(wrong)?;
        return inside.parse::<Ipv6Addr>().map(|address| Host::Address(address.into())).map_err(|_| wrong());
    }
    if let Ok(address) = text.parse::<Ipv4Addr>() {
        return Ok(Host::Address(address.into()));
    }
    // A name whose last label is a number is an address to some resolvers: 127.1, 0x7f.0.0.1, 2130706433.
    let lower = text.to_ascii_lowercase();
    let last = lower.rsplit('.').next().unwrap_or_default();
    let is_number = last.starts_with("0x") || last.bytes().all(|byte| byte.is_ascii_digit());
    let name = DnsName::parse(&lower).map_err(|_| wrong())?;
    if is_number || name.as_str().starts_with('*') {
        return Err(wrong());
    }
    Ok(Host::Name(name.as_str().to_owned()))
}

impl fmt::Display for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}{}", self.authority(), self.target)
    }
}

impl fmt::Debug for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for EndpointUrl {
    type Err = UrlError;
    fn from_str(text: &str) -> Result<Self, UrlError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for EndpointUrl {
    type Error = UrlError;
    fn try_from(text: String) -> Result<Self, UrlError> {
        Self::parse(&text)
    }
}

impl From<EndpointUrl> for String {
    fn from(url: EndpointUrl) -> Self {
        url.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> String {
        EndpointUrl::parse(text).unwrap().to_string()
    }

    fn refused(text: &str) -> String {
        EndpointUrl::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn good_urls() {
        assert_eq!(parsed("https://example.org"), "https://example.org/");
        assert_eq!(parsed("HTTPS://Example.org:443/a?b=c"), "https://example.org/a?b=c");
        assert_eq!(parsed("https://example.org?x"), "https://example.org/?x");
        assert_eq!(parsed("https://192.0.2.1:8443/x"), "https://192.0.2.1:8443/x");
        assert_eq!(parsed("https://[2001:db8::1]:1/"), "https://[2001:db8::1]:1/");
        assert_eq!(EndpointUrl::parse("https://[::1]/").unwrap().host(), &Host::Address(Ipv6Addr::LOCALHOST.into()));
    }

    #[test]
    fn bad_urls_are_named() {
        for text in ["http://example.org/", "", "example.org", "ftp://x", "spiffe://example.org/x"] {
            assert!(refused(text).contains("must begin with https://"), "{text}");
        }
        assert!(refused("https://me:secret@example.org/").contains("a user before its host"));
        assert!(!refused("https://me:secret@example.org/").contains("secret"));
        assert!(refused("https://example.org/a#b").contains("fragment"));
        for host in
            ["", "a b", "-x", "*.example.org", "[::1", "::1", "[127.0.0.1]", "127.1", "0x7f.1", "0X7F", "2130706433"]
        {
            let text = format!("https://{host}/");
            let said = refused(&text);
            assert!(
                said.contains("no good host") || said.contains("percent-encoded") || said.contains("port"),
                "{said}"
            );
        }
        for port in ["0", "65536", "x", "", "+1"] {
            assert!(refused(&format!("https://example.org:{port}/")).contains("no good port"), "{port}");
        }
        assert!(refused("https://example.org/a b").contains("percent-encoded"));
        assert!(refused("https://example.org/\r\nX: y").contains("percent-encoded"));
        assert!(refused(&format!("https://example.org/{}", "a".repeat(2048))).contains("at most 2048"));
    }

    #[test]
    fn a_redirect_leads_where_a_browser_would_go() {
        let from = EndpointUrl::parse("https://a.org:8443/x/y?q=1").unwrap();
        let to = |location: &str| from.redirected(location).map(|url| url.to_string());
        assert_eq!(to("https://b.org/z").unwrap(), "https://b.org/z");
        assert_eq!(to("//b.org/z").unwrap(), "https://b.org/z");
        assert_eq!(to("/z").unwrap(), "https://a.org:8443/z");
        assert_eq!(to("z?a:b").unwrap(), "https://a.org:8443/x/z?a:b");
        assert_eq!(to("?q=2").unwrap(), "https://a.org:8443/x/y?q=2");
        assert!(matches!(to("http://b.org/z"), Err(UrlError::Scheme(_))));
        assert!(matches!(to("file:///etc/passwd"), Err(UrlError::Scheme(_))));
        assert_eq!(to("https://u@b.org/"), Err(UrlError::Userinfo));
    }

    proptest! {
        #[test]
        fn what_was_read_is_read_again_the_same(text in "(https://)?[a-z0-9.:@\\[\\]-]{0,12}[ -~]{0,16}", random: String) {
            for text in [text, random] {
                if let Ok(url) = EndpointUrl::parse(&text) {
                    prop_assert_eq!(EndpointUrl::parse(&url.to_string()), Ok(url.clone()));
                    prop_assert!(url.target().starts_with('/') && !url.to_string().contains(['@', '#', ' ']) || url.target().contains('@'));
                }
            }
        }
    }
}
