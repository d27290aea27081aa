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

use super::ca::{CaPlan, self_signed};
use super::issuer::{IssueError, lifetime, parse};
use super::keys::{KeyError, SigningKey, private_or_given};
use super::{Authority, Chain, Public};

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
        private_or_given(key)?;
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&certificate_pem)
            .collect::<Result<_, _>>()
            .map_err(|_| UpstreamError::NoCertificate(certificates.to_path_buf()))?;
        if chain.is_empty() || chain.iter().any(|certificate| parse(certificate).is_none()) {
            return Err(UpstreamError::NoCertificate(certificates.to_path_buf()));
        }
        let key_text = std::str::from_utf8(&key_pem).map_err(|_| UpstreamError::NoKey(key.to_path_buf()))?;
        let pair = rcgen::KeyPair::from_pem(key_text).map_err(|_| UpstreamError::NoKey(key.to_path_buf()))?;
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
        // rcgen keeps one value of each kind of attribute: a name with two of one kind would come out another.
        let kinds: Vec<_> = own.subject().iter_attributes().map(|attribute| attribute.attr_type().as_bytes()).collect();
        if (1..kinds.len()).any(|index| kinds[..index].contains(&kinds[index])) {
            return Err(UpstreamError::Name);
        }
        drop(certificates);
        Ok(Self { key, chain: chain.into(), window })
    }

    /// When all of its certificates are valid: our CA ends at its end at the latest.
    pub fn window(&self) -> Lifetime {
        self.window
    }

    /// A CA certificate for `key`, and the chain above it: ours first, the root last.
    pub fn sign(&self, key: &SigningKey, plan: &CaPlan) -> Result<Chain, UpstreamError> {
        if plan.lifetime.not_after > self.window.not_after {
            return Err(IssueError::OutsideChain(self.window.not_after).into());
        }
        let mut params = plan.params(key)?;
        params.use_authority_key_identifier_extension = true;
        let parent = self.chain.first().ok_or(UpstreamError::NotCa(1))?;
        let issuer = rcgen::Issuer::from_ca_cert_der(parent, &self.key.0).map_err(IssueError::from)?;
        let ours: CertificateDer<'static> = params.signed_by(key, &issuer).map_err(IssueError::from)?.into();
        let named =
            parse(&ours).zip(parse(parent)).map(|(ours, parent)| ours.issuer().as_raw() == parent.subject().as_raw());
        if named != Some(true) {
            return Err(UpstreamError::Name);
        }
        Ok(Chain::new(ours, self.chain.iter().cloned()))
    }
}

/// A new authority of `owner` with `key`, in state prepared: signed by `upstream`, or by itself when there is none.
pub fn certify(
    key: &SigningKey,
    owner: Arc<str>,
    plan: &CaPlan,
    upstream: Option<&Upstream>,
    now: Timestamp,
) -> Result<Authority, UpstreamError> {
    let chain = match upstream {
        Some(upstream) => upstream.sign(key, plan)?,
        None => Chain::self_signed(self_signed(key, plan)?),
    };
    Ok(Authority::prepared(key.id().clone(), owner, Public::X509(chain), plan.lifetime, now))
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream").field("window", &self.window).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyUsagePurpose};
    use spiffe::entry::KeyType;

    use super::super::issuer::{Issuer, Serial};
    use super::super::keys::KeySpec;
    use super::*;

    const NOW: Timestamp = Timestamp::from_unix(1_800_000_000);
    const HOUR: Duration = Duration::from_secs(3600);

    fn ca(name: &str, constraint: BasicConstraints, days: i64) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(constraint);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.not_before = NOW.minus(HOUR).to_date_time();
        params.not_after = NOW.to_date_time() + time::Duration::days(days);
        params
    }

    fn key() -> rcgen::KeyPair {
        spiffe::crypto::generate_key(KeyType::P256).unwrap()
    }

    fn plan(until: Timestamp) -> CaPlan {
        let domain = spiffe::id::TrustDomain::parse("example.org").unwrap();
        CaPlan::new(domain, Serial::from_random([9; 16]), HOUR * 24 * 365, Some(until), NOW)
    }

    /// A root, and a CA below it.
    #[allow(clippy::needless_pass_by_value, reason = "both are made on the spot")]
    fn two(root: CertificateParams, below: CertificateParams) -> (Vec<CertificateDer<'static>>, rcgen::KeyPair) {
        let (root_key, below_key) = (key(), key());
        let root_der = root.self_signed(&root_key).unwrap().into();
        let below_der = below.signed_by(&below_key, &rcgen::Issuer::new(root, root_key)).unwrap().into();
        (vec![below_der, root_der], below_key)
    }

    /// The certificates of an authority, its own first.
    fn of(authority: &Authority) -> Vec<CertificateDer<'static>> {
        let Public::X509(chain) = &authority.public else { panic!("{authority:?}") };
        chain.iter().cloned().collect()
    }

    fn unconstrained(name: &str) -> CertificateParams {
        ca(name, BasicConstraints::Unconstrained, 30)
    }

    #[test]
    fn our_ca_is_signed_up_to_the_root_and_ends_no_later() {
        let (chain, pair) = two(unconstrained("root"), ca("below", BasicConstraints::Constrained(1), 10));
        let upstream = Upstream::new(chain.clone(), pair, NOW).unwrap();
        assert_eq!(upstream.window().not_after, NOW.plus(HOUR * 240));
        let key = SigningKey::generate(KeySpec::P256).unwrap();
        let plan = plan(upstream.window().not_after);
        let authority = certify(&key, "ca-1".into(), &plan, Some(&upstream), NOW).unwrap();
        assert_eq!(of(&authority)[1..], chain);
        assert_eq!(authority.lifetime.not_after, NOW.plus(HOUR * 240));
        let made = of(&authority);
        let (ours, parent) = (parse(&made[0]).unwrap(), parse(&chain[0]).unwrap());
        ours.verify_signature(Some(parent.public_key())).unwrap();
        assert!(ours.basic_constraints().unwrap().unwrap().value.path_len_constraint == Some(0));
        let issuer = Issuer::new(authority, Arc::new(key)).unwrap();
        assert_eq!(issuer.window().not_after, NOW.plus(HOUR * 240));
        let mut beyond = plan;
        beyond.lifetime.not_after = NOW.plus(HOUR * 241);
        let key = SigningKey::generate(KeySpec::P256).unwrap();
        assert!(matches!(upstream.sign(&key, &beyond), Err(UpstreamError::Issue(IssueError::OutsideChain(_)))));
    }

    #[test]
    fn what_cannot_sign_for_us_is_refused_by_name() {
        let open = |root: CertificateParams, below: CertificateParams, at: Timestamp| {
            let (chain, pair) = two(root, below);
            Upstream::new(chain, pair, at).unwrap_err()
        };
        let mut leaf = unconstrained("leaf");
        leaf.is_ca = IsCa::ExplicitNoCa;
        assert_eq!(open(unconstrained("r"), leaf, NOW), UpstreamError::NotCa(1));
        let mut no_sign = unconstrained("n");
        no_sign.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        assert_eq!(open(unconstrained("r"), no_sign, NOW), UpstreamError::NotCa(1));
        let none_below = ca("b", BasicConstraints::Constrained(0), 30);
        assert_eq!(open(unconstrained("r"), none_below, NOW), UpstreamError::PathLength(1));
        let one_below = ca("r", BasicConstraints::Constrained(1), 30);
        assert_eq!(open(one_below, unconstrained("b"), NOW), UpstreamError::PathLength(2));
        let late = open(unconstrained("r"), ca("b", BasicConstraints::Unconstrained, 10), NOW.plus(HOUR * 241));
        assert!(matches!(late, UpstreamError::Expired(1, _, _)));

        let mut twice = unconstrained("b");
        // The same kind under two of rcgen's names, since it writes none twice.
        twice.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 3]), "b again");
        assert_eq!(open(unconstrained("r"), twice, NOW), UpstreamError::Name);

        let (chain, pair) = two(unconstrained("r"), unconstrained("b"));
        let (foreign, _) = two(unconstrained("r"), unconstrained("b"));
        let mixed = vec![chain[0].clone(), foreign[1].clone()];
        assert_eq!(Upstream::new(mixed, key(), NOW).unwrap_err(), UpstreamError::Chain(1));
        assert_eq!(Upstream::new(vec![chain[0].clone()], key(), NOW).unwrap_err(), UpstreamError::Chain(1));
        assert_eq!(Upstream::new(chain.clone(), key(), NOW).unwrap_err(), UpstreamError::WrongKey);
        assert!(Upstream::new(chain, pair, NOW).is_ok());
    }

    /// Made with OpenSSL: ring makes no RSA keys.
    #[test]
    fn an_rsa_root_signs_too() {
        let chain =
            CertificateDer::pem_slice_iter(include_bytes!("testdata/rsa_root.pem")).map(Result::unwrap).collect();
        let pair = rcgen::KeyPair::from_pem(include_str!("testdata/rsa_root.key")).unwrap();
        let upstream = Upstream::new(chain, pair, NOW).unwrap();
        let key = SigningKey::generate(KeySpec::P256).unwrap();
        let authority = certify(&key, "ca-1".into(), &plan(NOW.plus(HOUR)), Some(&upstream), NOW).unwrap();
        let made = of(&authority);
        let (ours, root) = (parse(&made[0]).unwrap(), parse(&made[1]).unwrap());
        ours.verify_signature(Some(root.public_key())).unwrap();
    }

    #[test]
    fn it_is_read_from_pem_files_that_nobody_else_can_read() {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key_file) = (folder.path().join("ca.pem"), folder.path().join("ca.key"));
        let root_key = key();
        let root = unconstrained("root").self_signed(&root_key).unwrap();
        std::fs::write(&certificate, root.pem()).unwrap();
        std::fs::write(&key_file, root_key.serialize_pem()).unwrap();
        std::fs::set_permissions(&key_file, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(Upstream::open(&certificate, &key_file, NOW), Err(UpstreamError::Key(_))));
        std::fs::set_permissions(&key_file, std::fs::Permissions::from_mode(0o600)).unwrap();
        Upstream::open(&certificate, &key_file, NOW).unwrap();
        std::fs::write(&key_file, "-----BEGIN EC PRIVATE KEY-----").unwrap();
        assert!(matches!(Upstream::open(&certificate, &key_file, NOW), Err(UpstreamError::NoKey(_))));
        std::fs::write(&certificate, "").unwrap();
        assert!(matches!(Upstream::open(&certificate, &key_file, NOW), Err(UpstreamError::NoCertificate(_))));
    }
}
