//! What is kept of ACME: three files of mode 0600 in a folder of mode 0700, each written whole or not at all.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use instant_acme::AccountCredentials;
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};
use spiffe::time::{Lifetime, Timestamp};
use tracing::warn;
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;
use zeroize::Zeroizing;

use super::AcmeError;
use crate::config::{CertificateFiles, read_limited};
use crate::web::certificate::pair;

const ACCOUNT: &str = "account.json";
/// The certificate and its key are one file, so that no power cut can leave one of them alone.
const CERTIFICATE: &str = "certificate.pem";

/// The account, and the CA that it is of.
#[derive(Deserialize)]
struct KeptAccount {
    directory: String,
    credentials: AccountCredentials,
}

#[derive(Serialize)]
struct AccountToKeep<'a> {
    directory: &'a str,
    credentials: &'a AccountCredentials,
}

/// The folder.
#[derive(Debug)]
pub(super) struct Kept {
    folder: PathBuf,
}

impl Kept {
    /// Makes the folder if it is not there.
    pub(super) fn open(folder: PathBuf) -> Result<Self, AcmeError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.map_err(|error| AcmeError::File { path: folder.clone(), error: error.to_string() })?;
        Ok(Self { folder })
    }

    /// Where it is.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The account at this CA; `None`: there is none that could be used.
    pub(super) fn account(&self, directory: &str) -> Option<AccountCredentials> {
        let path = self.folder.join(ACCOUNT);
        if !path.exists() {
            return None;
        }
        let text = read_limited("data_dir/acme", &path).map(Zeroizing::new);
        let text = text.inspect_err(|error| warn!(%error, "the ACME account is made anew")).ok()?;
        let kept = serde_json::from_slice::<KeptAccount>(&text);
        let kept = kept.inspect_err(|error| warn!(%error, "the ACME account is damaged, and made anew")).ok()?;
        (kept.directory == directory).then_some(kept.credentials)
    }

    /// Keeps the account.
    pub(super) fn keep_account(&self, directory: &str, credentials: &AccountCredentials) -> Result<(), AcmeError> {
        let text = serde_json::to_vec(&AccountToKeep { directory, credentials });
        let text = text.map_err(|error| self.failed(ACCOUNT, &error))?;
        self.write(ACCOUNT, &Zeroizing::new(text))
    }

    /// Keeps a chain and its key.
    pub(super) fn keep_certificate(&self, chain: &str, key: &rcgen::KeyPair) -> Result<(), AcmeError> {
        let key = Zeroizing::new(key.serialize_pem());
        self.write(CERTIFICATE, &Zeroizing::new([chain.as_bytes(), b"\n", key.as_bytes()].concat()))
    }

    /// What was kept and when to renew it; `None`: there is nothing for these very names.
    pub(super) fn certificate(&self, names: &[String]) -> Option<(CertifiedKey, Timestamp)> {
        let path = self.folder.join(CERTIFICATE);
        if !path.exists() {
            return None;
        }
        let files = CertificateFiles { certificate: path.clone(), key: path.clone() };
        let key = read_limited("data_dir/acme", &path).map(Zeroizing::new).ok()?;
        let pair =
            pair(&files, &key).inspect_err(|error| warn!(%error, "the certificate of the web is made anew")).ok()?;
        let (_, leaf) = parse_x509_certificate(pair.cert.first()?).ok()?;
        let san = leaf.subject_alternative_name().ok()??;
        let mut found: Vec<&str> = san.value.general_names.iter().filter_map(dns_name).collect();
        let mut wanted: Vec<&str> = names.iter().map(String::as_str).collect();
        found.sort_unstable();
        wanted.sort_unstable();
        if found != wanted {
            return None;
        }
        let moment = |at: x509_parser::time::ASN1Time| Timestamp::from_unix(u64::try_from(at.timestamp()).unwrap_or(0));
        let validity = leaf.validity();
        let life = Lifetime { not_before: moment(validity.not_before), not_after: moment(validity.not_after) };
        Some((pair.clone(), life.not_before.plus(life.length() / 3 * 2)))
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<(), AcmeError> {
        let (path, beside) = (self.folder.join(name), self.folder.join(format!("{name}.new")));
        // Left over from a crash in the middle of a write, or not there.
        let _ = std::fs::remove_file(&beside);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside);
        let written = file.and_then(|mut file| {
            file.write_all(content)?;
            file.sync_all()?;
            std::fs::rename(&beside, &path)?;
            File::open(&self.folder)?.sync_all()
        });
        written.map_err(|error| self.failed(name, &error))
    }

    fn failed(&self, name: &str, error: &dyn std::fmt::Display) -> AcmeError {
        AcmeError::File { path: self.folder.join(name), error: error.to_string() }
    }
}

fn dns_name<'a>(name: &GeneralName<'a>) -> Option<&'a str> {
    match name {
        GeneralName::DNSName(name) => Some(name),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_was_kept_is_used_again_for_the_same_names() {
        let folder = tempfile::tempdir().unwrap();
        let kept = Kept::open(folder.path().join("acme")).unwrap();
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert!(kept.certificate(&names(&["a.test"])).is_none() && kept.account("https://a.test/").is_none());
        let key = spiffe::crypto::generate_key(spiffe::entry::KeyType::P256).unwrap();
        let mut params = rcgen::CertificateParams::new(names(&["b.test", "a.test"])).unwrap();
        params.not_before = Timestamp::from_unix(1_000_000).to_date_time();
        params.not_after = Timestamp::from_unix(1_900_000).to_date_time();
        kept.keep_certificate(&params.self_signed(&key).unwrap().pem(), &key).unwrap();
        let (_, renewal) = kept.certificate(&names(&["a.test", "b.test"])).unwrap();
        assert_eq!(renewal, Timestamp::from_unix(1_600_000), "at two thirds");
        assert!(kept.certificate(&names(&["a.test"])).is_none(), "other names");
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(kept.folder()), mode(&kept.folder().join(CERTIFICATE))), (0o700, 0o600));
        std::fs::write(kept.folder().join(CERTIFICATE), "damaged").unwrap();
        std::fs::write(kept.folder().join(ACCOUNT), "damaged").unwrap();
        assert!(kept.certificate(&names(&["a.test", "b.test"])).is_none() && kept.account("x").is_none());
    }
}
