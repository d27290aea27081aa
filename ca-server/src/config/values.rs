//! Small values of the config that are valid by their type.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use spiffe::entry::DnsName;

/// The longest path of a unix socket that the kernel takes, in bytes (`sun_path` of unix(7) less its final zero).
pub const MAX_SOCKET_PATH_BYTES: usize = 107;

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
    pub(super) fn of(listen: SocketAddr) -> Self {
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
    /// Whoever owns it reads and writes.
    pub(super) const OWNER: Self = Self(0o600);
    /// Everybody reads and writes.
    pub(super) const EVERYBODY: Self = Self(0o666);

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
