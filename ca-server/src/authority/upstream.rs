//! An upstream CA on disk: its certificate (with its parents up to the root) and its key sign our CAs.
//!
//! - Each certificate of the file must be a CA and must have signed the one before it; the last is the root, which
//!   signed itself, and is what stands in the bundle.
//! - Path lengths must leave room for our own CA below, which has path length 0.
//! - Our CA never outlives any of them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::PublicKeyData;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use spiffe::time::{Lifetime, Timestamp};
use spiffe::x509_svid::MAX_CHAIN;
use x509_parser::certificate::X509Certificate;
use zeroize::{Zeroize, Zeroizing};

use super::ca::CaPlan;
use super::issuer::{IssueError, lifetime, parse};
use super::keys::{KeyError, SigningKey, private};

/// Why an upstream CA cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// A file cannot be read.
    #[error("upstream CA {path}: {why}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        why: String,
    },
    /// Others can read the key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// No certificates in PEM.
    #[error("upstream CA {0}: no PEM certificates of X.509 version 3 in it")]
    NoCertificate(PathBuf),
    /// More certificates than a chain may have.
    #[error("upstream CA: {0} certificates are more than the 6 that fit above an SVID and our own CA")]
    ChainTooLong(usize),
    /// No key in PEM that can be used.
    #[error(
        "upstream CA {0}: no PKCS#8 PEM private key of P-256, P-384, Ed25519 or RSA in it: openssl pkcs8 -topk8 -nocrypt makes one"
    )]
    NoKey(PathBuf),
    /// The key is not that of the first certificate.
    #[error("upstream CA: the private key is not that of the first certificate: put the CA that signs first")]
    WrongKey,
    /// One certificate is no CA.
    #[error(
        "upstream CA: certificate {0} is no CA that may sign certificates (basic constraints CA:TRUE and key usage keyCertSign)"
    )]
    NotCa(usize),
    /// One certificate forbids the CAs below it.
    #[error("upstream CA: certificate {0} has a path length that leaves no room for the CAs below it")]
    PathLength(usize),
    /// One certificate was not signed by the next.
    #[error(
        "upstream CA: certificate {0} was not signed by the next: order the file from the CA that signs up to the root, the root included"
    )]
    Chain(usize),
    /// One certificate is not valid now.
    #[error("upstream CA: certificate {0} is valid from {1} to {2}, not now: renew it")]
    Expired(usize, Timestamp, Timestamp),
    /// The name cannot be written as it stands.
    #[error(
        "upstream CA: its name has the same attribute twice, which this version cannot write: use a CA with a simpler name"
    )]
    Name,
    /// It did not sign.
    #[error(transparent)]
    Issue(#[from] IssueError),
}

/// A CA that signs ours.
pub struct Upstream {
    key: UpstreamKey,
    chain: Arc<[CertificateDer<'static>]>,
    window: Lifetime,
}

/// Not a [`SigningKey`]: it may be RSA, and is no authority's of ours. The copy of its bytes is wiped on drop.
struct UpstreamKey(rcgen::KeyPair);

impl Drop for UpstreamKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl Upstream {
    /// Reads the certificates and the key, both PEM, and checks them. Blocks: call it before the loops start.
    pub fn open(certificates: &Path, key: &Path, now: Timestamp) -> Result<Self, UpstreamError> {
        let read = |path: &Path| {
            std::fs::read(path)
                .map_err(|error| UpstreamError::Read { path: path.to_path_buf(), why: error.to_string() })
        };
        let certificate_pem = read(certificates)?;
        let key_pem = Zeroizing::new(read(key)?);
        private(key, 0o600)?;
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&certificate_pem)
            .collect::<Result<_, _>>()
            .map_err(|_| UpstreamError::NoCertificate(certificates.to_path_buf()))?;
        let key_text = std::str::from_utf8(&key_pem).map_err(|_| UpstreamError::NoKey(key.to_path_buf()))?;
        let pair = rcgen::KeyPair::from_pem(key_text).map_err(|_| UpstreamError::NoKey(key.to_path_buf()))?;
        if chain.is_empty() || chain.iter().any(|certificate| parse(certificate).is_none()) {
            return Err(UpstreamError::NoCertificate(certificates.to_path_buf()));
        }
        Self::new(chain, pair, now)
    }

    fn new(chain: Vec<CertificateDer<'static>>, pair: rcgen::KeyPair, now: Timestamp) -> Result<Self, UpstreamError> {
        let key = UpstreamKey(pair);
        // The SVID and our own CA come below.
        if chain.len() > MAX_CHAIN - 2 {
            return Err(UpstreamError::ChainTooLong(chain.len()));
        }
        let certificates: Vec<X509Certificate<'_>> = chain.iter().filter_map(|der| parse(der)).collect();
        let mut window = Lifetime { not_before: Timestamp::from_unix(0), not_after: Timestamp::from_unix(u64::MAX) };
        for (index, certificate) in certificates.iter().enumerate() {
            let number = index + 1;
            let Ok(Some(constraints)) = certificate.basic_constraints() else {
                return Err(UpstreamError::NotCa(number));
            };
            let usage = certificate.key_usage().map_err(|_| UpstreamError::NotCa(number))?;
            if !constraints.value.ca || usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
                return Err(UpstreamError::NotCa(number));
            }
            // Below the first lies one CA, ours; below each further one lies one more.
            if constraints.value.path_len_constraint.is_some_and(|length| (length as usize) < number) {
                return Err(UpstreamError::PathLength(number));
            }
            let parent = certificates.get(number).unwrap_or(certificate);
            let named = certificate.issuer().as_raw() == parent.subject().as_raw();
            if !named || certificate.verify_signature(Some(parent.public_key())).is_err() {
                return Err(UpstreamError::Chain(number));
            }
            let life = lifetime(certificate);
            if !life.contains(now) {
                return Err(UpstreamError::Expired(number, life.not_before, life.not_after));
            }
            window.not_before = window.not_before.max(life.not_before);
            window.not_after = window.not_after.min(life.not_after);
        }
        let own = certificates.first().ok_or(UpstreamError::NotCa(1))?;
        if own.public_key().raw != key.0.subject_public_key_info() {
            return Err(UpstreamError::WrongKey);
        }
        drop(certificates);
        Ok(Self { key, chain: chain.into(), window })
    }

    /// When all of its certificates are valid: our CA ends at its end at the latest.
    pub fn window(&self) -> Lifetime {
        self.window
    }

    /// A CA certificate for `key`, and the chain above it: ours first, the root last.
    pub fn sign(&self, key: &SigningKey, plan: &CaPlan) -> Result<Vec<CertificateDer<'static>>, UpstreamError> {
        if plan.lifetime.not_after > self.window.not_after {
            return Err(IssueError::OutsideChain(self.window.not_after).into());
        }
        let mut params = plan.params(key)?;
        params.use_authority_key_identifier_extension = true;
        let parent = self.chain.first().ok_or(UpstreamError::NotCa(1))?;
        let issuer = rcgen::Issuer::from_ca_cert_der(parent, &self.key.0).map_err(IssueError::from)?;
        let ours: CertificateDer<'static> = params.signed_by(key, &issuer).map_err(IssueError::from)?.into();
        // rcgen keeps one value of each kind of attribute: a name with two of one kind comes out another.
        let named =
            parse(&ours).zip(parse(parent)).map(|(ours, parent)| ours.issuer().as_raw() == parent.subject().as_raw());
        if named != Some(true) {
            return Err(UpstreamError::Name);
        }
        Ok(std::iter::once(ours).chain(self.chain.iter().cloned()).collect())
    }
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream").field("window", &self.window).finish_non_exhaustive()
    }
}
