//! An identity in three files: `svid.pem`, `key.pem` (0600) and `bundle.pem`, as `fetch x509 --write` and
//! `x509 mint --write` write them and `--svid` reads them.

use std::path::{Path, PathBuf};

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use spiffe::bundle::Bundle;
use spiffe::mtls::CurrentSvid;
use spiffe::pem;
use spiffe::x509_svid::X509Svid;
use zeroize::Zeroizing;

use crate::exit::{Failure, Outcome};
use crate::files::{self, PRIVATE, PUBLIC};

/// The certificates, the SVID first.
pub(crate) const SVID: &str = "svid.pem";
/// The private key.
pub(crate) const KEY: &str = "key.pem";
/// The roots of its trust domain.
pub(crate) const BUNDLE: &str = "bundle.pem";

/// What stands before the ending in the files of the identity at this place: nothing for the default one, `.2` for the
/// next.
pub(crate) fn suffix(at: usize) -> String {
    if at == 0 { String::new() } else { format!(".{}", at + 1) }
}

/// The name of a file with a suffix before its ending: `svid.2.pem`, `key.2.jwk`.
pub(crate) fn with_suffix(name: &str, suffix: &str) -> String {
    match name.rsplit_once('.') {
        Some((stem, ending)) => format!("{stem}{suffix}.{ending}"),
        None => format!("{name}{suffix}"),
    }
}

/// How many further identities a hint names at most.
const MAX_HINTS: usize = 10;

/// The further identities in a folder that was given as `--svid`, as a hint for an operator whose default identity
/// was not let in; nothing where there are none.
pub(crate) fn hint_at_others(paths: &[PathBuf]) -> Option<String> {
    let [folder] = paths else { return None };
    let one = |at: usize| {
        let files = [SVID, KEY, BUNDLE].map(|name| folder.join(with_suffix(name, &suffix(at))).display().to_string());
        let [svid, ..] = &files;
        let chain: Vec<_> =
            CertificateDer::pem_slice_iter(&files::read(Path::new(svid)).ok()?).collect::<Result<_, _>>().ok()?;
        let id = X509Svid::parse(chain).ok()?.id().to_string();
        Some(format!("  --svid {}  ({id})", files.join(",")))
    };
    let others: Vec<String> = (1..=MAX_HINTS).map_while(one).collect();
    let folder = folder.display();
    (!others.is_empty())
        .then(|| format!("{folder}/{SVID} was used; {folder} has other identities too:\n{}", others.join("\n")))
}

/// Which three files.
#[derive(Clone, Debug)]
pub(crate) struct SvidFiles {
    svid: PathBuf,
    key: PathBuf,
    bundle: PathBuf,
}

/// An identity that is ready to be presented.
#[derive(Debug)]
pub(crate) struct Identity {
    /// The SVID and its key.
    pub(crate) svid: CurrentSvid,
    /// The roots of its trust domain.
    pub(crate) bundle: Bundle,
}

impl SvidFiles {
    /// From the values of `--svid`: a folder, or three files.
    pub(crate) fn named(paths: &[PathBuf]) -> Outcome<Self> {
        match paths {
            [folder] => Ok(Self { svid: folder.join(SVID), key: folder.join(KEY), bundle: folder.join(BUNDLE) }),
            [svid, key, bundle] => Ok(Self { svid: svid.clone(), key: key.clone(), bundle: bundle.clone() }),
            _ => Err(Failure::Usage("--svid takes a folder, or three files: SVID,KEY,BUNDLE".into())),
        }
    }

    /// The first of the files, for messages.
    pub(crate) fn place(&self) -> std::path::Display<'_> {
        self.svid.display()
    }

    /// Reads them. The trust domain of the bundle is the SVID's own.
    pub(crate) fn load(&self) -> Outcome<Identity> {
        let wrong = |path: &Path, error: &dyn std::fmt::Display| {
            Failure::Refused(format!("{} is no part of an SVID: {error}", path.display()))
        };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&files::read(&self.svid)?).collect();
        let chain = chain.map_err(|error| wrong(&self.svid, &error))?;
        let svid = X509Svid::parse(chain).map_err(|error| wrong(&self.svid, &error))?;
        let key = PrivatePkcs8KeyDer::from_pem_slice(&Zeroizing::new(files::read(&self.key)?));
        let key = key.map_err(|error| wrong(&self.key, &error))?;
        let bundle = Bundle::from_pem(svid.id().trust_domain(), &files::read(&self.bundle)?)
            .map_err(|error| wrong(&self.bundle, &error))?;
        let current = CurrentSvid::default();
        current.set(&svid, &[], key.secret_pkcs8_der()).map_err(|error| wrong(&self.key, &error))?;
        Ok(Identity { svid: current, bundle })
    }
}

/// One identity as PEM texts.
pub(crate) struct PemSvid {
    /// The certificates, the SVID first.
    pub(crate) svid: String,
    /// The private key, PKCS#8.
    pub(crate) key: Zeroizing<String>,
    /// The roots of its trust domain.
    pub(crate) bundle: String,
}

impl PemSvid {
    /// From DER: the chain with the SVID first, the key as PKCS#8, the roots.
    pub(crate) fn new<'a>(
        chain: impl IntoIterator<Item = &'a [u8]>,
        key: &[u8],
        roots: impl IntoIterator<Item = &'a [u8]>,
    ) -> Self {
        let certificates = |all: &mut dyn Iterator<Item = &'a [u8]>| all.map(pem::certificate).collect();
        Self {
            svid: certificates(&mut chain.into_iter()),
            key: pem::private_key(key),
            bundle: certificates(&mut roots.into_iter()),
        }
    }

    /// Writes the three files to `folder`, with `suffix` before `.pem`: the key first and the SVID last, so that
    /// whoever waits for a new SVID finds its key there.
    pub(crate) fn write(&self, folder: &Path, suffix: &str) -> Outcome {
        let name = |name: &str| with_suffix(name, suffix);
        files::write(folder, &name(KEY), PRIVATE, self.key.as_bytes())?;
        files::write(folder, &name(BUNDLE), PUBLIC, self.bundle.as_bytes())?;
        files::write(folder, &name(SVID), PUBLIC, self.svid.as_bytes())
    }

    /// All of it in one text, the key second.
    pub(crate) fn text(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{}{}{}", self.svid, self.key.as_str(), self.bundle))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pem_is_read_as_it_is_written() {
        let (one, two) = ([1_u8; 100], [2_u8; 48]);
        let text = pem::certificate(&one) + &pem::certificate(&two);
        let read: Vec<_> = CertificateDer::pem_slice_iter(text.as_bytes()).map(Result::unwrap).collect();
        assert_eq!(read[0].as_ref(), one);
        assert_eq!(read[1].as_ref(), two);
        assert!(text.lines().all(|line| line.len() <= 64));
    }

    #[test]
    fn each_identity_has_files_of_its_own() {
        for name in ["svid.pem", "svid.wit", "key.jwk"] {
            let all: std::collections::BTreeSet<_> = (0..3).map(|at| with_suffix(name, &suffix(at))).collect();
            assert_eq!(all.len(), 3, "{all:?}");
            assert!(all.contains(name), "{all:?}");
        }
        assert_eq!(with_suffix("key.jwk", &suffix(1)), "key.2.jwk");
    }

    #[test]
    fn three_files_with_a_private_key() {
        let folder = tempfile::tempdir().unwrap();
        let pem = PemSvid::new([&[1_u8][..]], &[2], [&[3_u8][..]]);
        pem.write(folder.path(), "").unwrap();
        pem.write(folder.path(), ".2").unwrap();
        for name in ["svid.pem", "key.pem", "bundle.pem", "svid.2.pem", "key.2.pem", "bundle.2.pem"] {
            assert!(folder.path().join(name).exists(), "{name}");
        }
    }
}
