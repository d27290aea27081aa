//! What Kong is given, and how its Admin API is reached.
//!
//! - A private key travels to it: without TLS only to this machine itself, by an address that is no name, and only to a
//!   listener of root, of us, or of the user that is named here.

use std::path::{Path, PathBuf};

use http::Uri;
use http::header::HeaderName;
use serde::Deserialize;

const MAX_NAMES: usize = 256;

/// What Kong is given besides certificate, key and CA certificates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KongEntities {
    /// The ID of the certificate entity; `None`: one that is made of the delivery's name.
    pub certificate_id: Option<String>,
    /// The server names for which Kong presents the certificate; empty: those that it has are left as they are.
    pub snis: Vec<String>,
    /// The services whose upstreams are verified by the roots: their `ca_certificates` follow them.
    pub services: Vec<String>,
}

impl KongEntities {
    /// Looks at what is written.
    pub(super) fn parse(
        certificate_id: Option<String>,
        snis: Vec<String>,
        services: Vec<String>,
    ) -> Result<Self, String> {
        if let Some(id) = certificate_id.as_deref().filter(|id| !is_uuid(id)) {
            return Err(format!("certificate_id {id:?} is no UUID: Kong takes no other, like one of uuidgen"));
        }
        // They become parts of a path.
        let is_name = |name: &String| {
            !name.is_empty()
                && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '~' | '*'))
        };
        if let Some(name) = snis.iter().chain(&services).find(|name| !is_name(name)) {
            return Err(format!("{name:?} is neither a name nor an ID of Kong's: write a-z A-Z 0-9 . _ ~ -"));
        }
        match snis.len().max(services.len()) {
            0..=MAX_NAMES => Ok(Self { certificate_id, snis, services }),
            count => Err(format!("{count} names are too many: at most {MAX_NAMES} are possible")),
        }
    }
}

fn is_uuid(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let is_hex = |part: &&str| part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    parts.iter().map(|part| part.len()).eq([8, 4, 4, 4, 12]) && parts.iter().all(is_hex)
}

/// How the Admin API is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KongAdmin {
    /// `http` to this machine, or `https`; an authority, and a path to put before all others.
    pub url: Uri,
    /// The roots that its certificate is verified by, PEM. Always there with `https`.
    pub ca_file: Option<PathBuf>,
    /// Our certificate for it and its key, PEM.
    pub client: Option<(PathBuf, PathBuf)>,
    /// A file with a token in its first line, and the header that it travels in.
    pub token: Option<(HeaderName, PathBuf)>,
    /// Whose socket it is with `http`, besides root's and ours: a name or a number.
    pub user: Option<String>,
}

/// The same as it is written.
#[derive(Deserialize)]
pub(super) struct KongAdminTable {
    admin_url: String,
    ca_file: Option<PathBuf>,
    client_certificate: Option<PathBuf>,
    client_key: Option<PathBuf>,
    token_file: Option<PathBuf>,
    #[serde(default = "token_header")]
    token_header: String,
    admin_user: Option<String>,
}

fn token_header() -> String {
    "Kong-Admin-Token".into()
}

impl KongAdminTable {
    pub(super) fn parse(self) -> Result<KongAdmin, String> {
        let Self { admin_url: text, ca_file, client_certificate, client_key, token_file, token_header, admin_user } =
            self;
        let url: Uri = text.parse().map_err(|error| format!("admin_url {text:?} is no URL: {error}"))?;
        let host = url.host().ok_or_else(|| format!("admin_url {text:?} has no host: write http://127.0.0.1:8001"))?;
        if url.query().is_some() || url.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(format!("admin_url {text:?} has a query or a user: write scheme, host, port and path"));
        }
        match url.scheme_str() {
            Some("http") if is_this_machine(host) => {}
            Some("http") => {
                return Err(format!(
                    "admin_url {text:?} would send a private key unprotected: use https, or 127.0.0.1 or [::1]"
                ));
            }
            Some("https") if ca_file.is_some() => {}
            Some("https") => return Err("https needs ca_file: the roots that Kong's certificate is verified by".into()),
            _ => return Err(format!("admin_url {text:?} is neither http nor https")),
        }
        if admin_user.as_ref().is_some_and(|user| user.is_empty() || url.scheme_str() != Some("http")) {
            return Err(
                "admin_user is whose socket listens at an http admin_url: name him there, or leave it out".into()
            );
        }
        let paths = [&ca_file, &client_certificate, &client_key, &token_file].into_iter().flatten();
        if let Some(path) = paths.map(PathBuf::as_path).find(|path: &&Path| !path.is_absolute()) {
            return Err(format!("{} must be absolute", path.display()));
        }
        let client = match (client_certificate, client_key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err("client_certificate and client_key belong together: give both".into()),
        };
        let header =
            token_header.parse().map_err(|_| format!("token_header {token_header:?} is no name of a header"))?;
        Ok(KongAdmin { url, ca_file, client, token: token_file.map(|path| (header, path)), user: admin_user })
    }
}

/// A name is none: whoever answers for it says where the key goes.
fn is_this_machine(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admin(text: &str) -> Result<KongAdmin, String> {
        toml::from_str::<KongAdminTable>(text).map_err(|error| error.to_string())?.parse()
    }

    #[test]
    fn a_key_travels_protected_or_not_at_all() {
        for good in ["http://127.0.0.1:8001", "http://127.0.0.2:8001/admin", "http://[::1]:8001"] {
            admin(&format!("admin_url = '{good}'")).unwrap();
        }
        admin("admin_url = 'https://kong:8444'\nca_file = '/ca.pem'").unwrap();
        let user = admin("admin_url = 'http://127.0.0.1:8001'\nadmin_user = 'kong'").unwrap().user;
        assert_eq!(user.as_deref(), Some("kong"));
        for (text, words) in [
            ("admin_url = 'http://kong:8001'", "would send a private key unprotected"),
            ("admin_url = 'http://localhost:8001'", "would send a private key unprotected"),
            ("admin_url = 'https://kong'\nca_file = '/ca'\nadmin_user = 'kong'", "listens at an http admin_url"),
            ("admin_url = 'http://127.0.0.1.evil.example:8001'", "would send a private key unprotected"),
            ("admin_url = 'https://kong:8444'", "https needs ca_file"),
            ("admin_url = 'ftp://kong'", "neither http nor https"),
            ("admin_url = '/kong'", "has no host"),
            ("admin_url = 'http://me:secret@127.0.0.1'", "a query or a user"),
            ("admin_url = 'http://127.0.0.1'\nclient_key = '/k'", "belong together"),
            ("admin_url = 'http://127.0.0.1'\ntoken_file = 't'", "t must be absolute"),
            ("admin_url = 'http://127.0.0.1'\ntoken_file = '/t'\ntoken_header = 'a b'", "no name of a header"),
        ] {
            let error = admin(text).unwrap_err();
            assert!(error.contains(words), "{error}\n(wanted: {words})");
        }
    }

    #[test]
    fn names_do_not_lead_to_other_paths() {
        let entities = |id: Option<&str>, service: &str| {
            KongEntities::parse(id.map(Into::into), Vec::new(), vec![service.into()]).map(drop)
        };
        entities(Some("9f1e3c62-6a5e-4f0e-9c7f-2a3d0a5b8c11"), "billing").unwrap();
        assert!(entities(Some("9F1E3C62"), "a").unwrap_err().contains("no UUID"));
        for name in ["", "a/b", "a?b", "a b", "%2e"] {
            assert!(entities(None, name).unwrap_err().contains("neither a name nor an ID"), "{name}");
        }
    }
}
