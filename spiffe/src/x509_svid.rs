//! X.509-SVIDs: accept exactly what X509-SVID.md accepts. A parsed one has kept the profile of a leaf; a verified
//! one also has a path to a root of its trust domain's bundle.

mod profile;
mod verification;

use std::sync::Arc;

use rcgen::PublicKeyData;
use rustls_pki_types::CertificateDer;

pub use self::verification::Purpose;
use crate::bundle::Bundle;
use crate::crypto;
use crate::id::{IdError, SpiffeId, TrustDomain};
use crate::time::{Lifetime, Timestamp};

/// The most certificates in one chain.
pub const MAX_CHAIN: usize = 8;
/// The largest single certificate, in bytes.
pub const MAX_CERTIFICATE_BYTES: usize = 16 << 10;

/// Why a chain is no good X.509-SVID. The sections are those of X509-SVID.md.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SvidError {
    /// There is no certificate.
    #[error("there is no certificate")]
    Empty,
    /// The chain has more than [`MAX_CHAIN`] certificates.
    #[error("chain has {0} certificates: at most 8 are allowed")]
    TooMany(usize),
    /// A certificate is longer than [`MAX_CERTIFICATE_BYTES`].
    #[error("certificate has {0} bytes: at most 16384 are allowed")]
    TooLarge(usize),
    /// The leaf, or one of its extensions, does not parse, or an extension is there twice.
    #[error("certificate cannot be read: {0}")]
    Malformed(&'static str),
    /// There are bytes behind the end of the leaf.
    #[error("certificate has {0} bytes behind its end")]
    TrailingBytes(usize),
    /// The leaf has no URI SAN (section 2).
    #[error("certificate has no URI SAN: an X.509-SVID has exactly one, its SPIFFE ID")]
    NoUri,
    /// The leaf has more than one URI SAN (section 2).
    #[error("certificate has {0} URI SANs: an X.509-SVID has exactly one, its SPIFFE ID")]
    ManyUris(usize),
    /// The URI SAN is no SPIFFE ID (section 2).
    #[error("URI SAN is no SPIFFE ID: {0}")]
    Id(#[from] IdError),
    /// The SPIFFE ID has no path, which only a signing certificate's may lack (sections 3.1 and 5.2).
    #[error("{0} is the ID of a whole trust domain: the ID of a leaf must have a path")]
    NoPath(SpiffeId),
    /// The subject is empty, and the SAN is not critical (section 3.1, RFC 5280 section 4.1.2.6).
    #[error("certificate has an empty subject: its SAN extension must then be critical")]
    SanNotCritical,
    /// The leaf is a CA (sections 4.1 and 5.2).
    #[error("certificate is a CA (CA:TRUE): only leaf certificates identify anyone")]
    Ca,
    /// The leaf has no key usage, or it is not critical (section 4.3).
    #[error("certificate has no critical key usage extension")]
    NoKeyUsage,
    /// The key usage lacks digitalSignature (section 4.3).
    #[error("key usage of the certificate lacks digitalSignature")]
    NoDigitalSignature,
    /// The key usage has keyCertSign (sections 4.3 and 5.2).
    #[error("key usage of the certificate has keyCertSign: only signing certificates may")]
    KeyCertSign,
    /// The key usage has cRLSign (sections 4.3 and 5.2).
    #[error("key usage of the certificate has cRLSign: only signing certificates may")]
    CrlSign,
    /// There is an extended key usage, and it lacks serverAuth or clientAuth (section 4.4).
    #[error("extended key usage of the certificate must have both serverAuth and clientAuth")]
    ExtendedKeyUsage,
    /// The certificate ends before it begins, or a time is before 1970.
    #[error("certificate ends before it begins, or begins before 1970")]
    Lifetime,
    /// The SVID belongs to another trust domain than the bundle.
    #[error("{id} is not of the trust domain {trust_domain}, whose bundle it is verified against")]
    WrongTrustDomain {
        /// Whose SVID it is.
        id: SpiffeId,
        /// Whose bundle it is.
        trust_domain: TrustDomain,
    },
    /// No bundle of the SVID's trust domain is known.
    #[error("{0} is of a trust domain whose bundle is not known here: federate with it first")]
    UnknownTrustDomain(SpiffeId),
    /// The SVID, or a certificate above it, is no longer valid.
    #[error("certificate of {id} expired at {not_after}; it is now {now}")]
    Expired {
        /// Whose SVID it is.
        id: SpiffeId,
        /// The last valid second.
        not_after: Timestamp,
        /// The moment of verification.
        now: Timestamp,
    },
    /// The SVID, or a certificate above it, is not valid yet.
    #[error("certificate of {id} is not valid before {not_before}; it is now {now}: are the clocks right?")]
    NotYetValid {
        /// Whose SVID it is.
        id: SpiffeId,
        /// The first valid second.
        not_before: Timestamp,
        /// The moment of verification.
        now: Timestamp,
    },
    /// No path from the SVID leads to a root of the bundle.
    #[error("certificate of {0} leads to no authority of its trust domain's bundle: is the bundle out of date?")]
    UnknownAuthority(SpiffeId),
    /// The issuer's name is known, and the signature is not by its key.
    #[error(
        "certificate of {0} is not signed by the authority that it names: it is forged, or the bundle is out of date"
    )]
    Signature(SpiffeId),
    /// Another rule of path validation (RFC 5280 section 6) is broken.
    #[error("certificate of {id} has no valid path to its authority: {rule}")]
    Path {
        /// Whose SVID it is.
        id: SpiffeId,
        /// The rule, in the words of webpki.
        rule: String,
    },
    /// The SVID is verified, and not of those who are let in.
    #[error("{found} is not let in here, but only {wanted}")]
    NotAllowed {
        /// Who it is.
        found: SpiffeId,
        /// Who is let in.
        wanted: String,
    },
    /// None of the certificates that the peer presented has the fingerprint by which it is known.
    #[error("no certificate in the peer's chain has the SHA-256 fingerprint {0}")]
    Fingerprint(String),
    /// The certificate with the known fingerprint cannot be a root.
    #[error("certificate with the known fingerprint is no authority: {0}")]
    Authority(#[from] crate::bundle::BundleError),
    /// The private key cannot be read.
    #[error(transparent)]
    PrivateKey(#[from] crypto::CryptoError),
    /// The private key is not that of the certificate.
    #[error("private key does not belong to the certificate of {0}")]
    KeyMismatch(SpiffeId),
}

/// A chain whose first certificate keeps the profile of an X.509-SVID (X509-SVID.md sections 2 to 5). Its path is
/// not verified yet. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct X509Svid {
    chain: Arc<[CertificateDer<'static>]>,
    id: SpiffeId,
    serial: Arc<[u8]>,
    lifetime: Lifetime,
}

impl X509Svid {
    /// Parses the leaf and checks it against the profile; `chain` has the leaf first.
    pub fn parse(chain: Vec<CertificateDer<'static>>) -> Result<Self, SvidError> {
        let leaf = chain.first().ok_or(SvidError::Empty)?;
        if chain.len() > MAX_CHAIN {
            return Err(SvidError::TooMany(chain.len()));
        }
        if let Some(large) = chain.iter().find(|certificate| certificate.len() > MAX_CERTIFICATE_BYTES) {
            return Err(SvidError::TooLarge(large.len()));
        }
        let profile::Profile { id, serial, lifetime } = profile::parse(leaf)?;
        Ok(Self { chain: chain.into(), id, serial, lifetime })
    }

    /// Verifies the path to a root of `bundle` at `now` (X509-SVID.md section 5.2): the trust domain must be the
    /// bundle's.
    pub fn verify(self, bundle: &Bundle, now: Timestamp) -> Result<VerifiedSvid, SvidError> {
        self.verify_as(bundle, now, Purpose::Any)
    }

    /// The same for a peer that uses its SVID for `purpose`: an intermediate that is limited to another one by its
    /// extended key usage does not count.
    pub fn verify_as(self, bundle: &Bundle, now: Timestamp, purpose: Purpose) -> Result<VerifiedSvid, SvidError> {
        verification::verify(&self, bundle, now, purpose)?;
        Ok(VerifiedSvid(self))
    }

    /// The one SPIFFE ID.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The chain, the SVID first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The serial number's bytes, without leading zeros.
    pub fn serial(&self) -> &[u8] {
        &self.serial
    }

    /// From when to when the SVID is valid.
    pub fn lifetime(&self) -> Lifetime {
        self.lifetime
    }

    /// Whether a CA that `bundle` marks as tainted is in this SVID's path (by issuer key identifiers).
    pub fn is_tainted_by(&self, bundle: &Bundle) -> bool {
        self.id.is_member_of(bundle.trust_domain()) && verification::is_tainted(&self.chain, bundle)
    }

    /// Checks that `key_der` (PKCS#8) is the private key of this SVID.
    pub fn key_fits(&self, key_der: &[u8]) -> Result<(), SvidError> {
        let key = zeroize::Zeroizing::new(crypto::load_key(key_der)?);
        let leaf = self.chain.first().ok_or(SvidError::Empty)?;
        if profile::public_key(leaf)? == key.subject_public_key_info() {
            Ok(())
        } else {
            Err(SvidError::KeyMismatch(self.id.clone()))
        }
    }
}

/// An [`X509Svid`] with a verified path: who the peer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedSvid(X509Svid);

impl VerifiedSvid {
    /// The SVID itself, to keep or to present.
    pub fn into_svid(self) -> X509Svid {
        self.0
    }
}

impl std::ops::Deref for VerifiedSvid {
    type Target = X509Svid;
    fn deref(&self) -> &X509Svid {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::entry::KeyType;
    use crate::test_certificates::{Authority, NOW};

    const WEB: &str = "spiffe://example.org/web";

    #[test]
    fn an_svid_is_taken_apart() {
        let leaf = Authority::shared().leaf(WEB);
        let svid = X509Svid::parse(leaf.chain.clone()).unwrap();
        assert_eq!(svid.id().as_str(), WEB);
        assert_eq!(svid.serial(), [0x7f, 1, 2, 3]);
        assert_eq!(svid.lifetime().not_before.unix(), NOW.unix() - 60);
        assert_eq!(svid.lifetime().not_after.unix(), NOW.unix() + 3600);
        assert_eq!(svid.chain(), leaf.chain);
    }

    #[test]
    fn a_chain_has_its_limits() {
        let chain = Authority::shared().leaf(WEB).chain;
        assert_eq!(X509Svid::parse(Vec::new()), Err(SvidError::Empty));
        assert_eq!(X509Svid::parse(vec![chain[0].clone(); 9]), Err(SvidError::TooMany(9)));
        assert!(X509Svid::parse(vec![chain[0].clone(); 8]).is_ok());
        let large = CertificateDer::from(vec![0; MAX_CERTIFICATE_BYTES + 1]);
        assert_eq!(X509Svid::parse(vec![chain[0].clone(), large]), Err(SvidError::TooLarge(16385)));
    }

    #[test]
    fn a_key_fits_its_own_svid_only() {
        let leaf = Authority::shared().leaf(WEB);
        let svid = X509Svid::parse(leaf.chain).unwrap();
        assert_eq!(svid.key_fits(&leaf.key.serialize_der()), Ok(()));
        let other = crypto::generate_key(KeyType::P256).unwrap().serialize_der();
        assert_eq!(svid.key_fits(&other), Err(SvidError::KeyMismatch(svid.id().clone())));
        assert_eq!(svid.key_fits(b"none"), Err(SvidError::PrivateKey(crypto::CryptoError::PrivateKey)));
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(random: Vec<u8>, at: prop::sample::Index, byte: u8, cut: prop::sample::Index) {
            let bundle = Authority::shared().bundle("example.org").clone();
            let try_it = |der: &[u8]| {
                let svid = X509Svid::parse(vec![der.to_vec().into(), random.clone().into()])?;
                svid.is_tainted_by(&bundle);
                svid.verify(&bundle, NOW)
            };
            prop_assert!(try_it(&random).is_err());
            let mut der = Authority::shared().leaf(WEB).chain[0].to_vec();
            let at = at.index(der.len());
            let before = std::mem::replace(&mut der[at], byte);
            prop_assert!(before == byte || try_it(&der).is_err(), "byte {}", at);
            der.truncate(cut.index(der.len()));
            prop_assert!(try_it(&der).is_err());
        }
    }
}
