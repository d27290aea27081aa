//! The bundle of one trust domain: the roots and keys that its SVIDs are verified against, and the way in and out of
//! the SPIFFE JWKS form (SPIFFE_Trust_Domain_and_Bundle.md section 4) and PEM; and maps of several bundles (section 5).

mod authority;
mod jwk_authority;
mod jwks;
mod map;
mod pem;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::TrustAnchor;

pub use self::authority::{MAX_AUTHORITY_BYTES, X509Authority};
pub use self::jwk_authority::JwkAuthority;
pub use self::jwks::MAX_KEYS;
pub use self::map::{BundleMap, BundleMapError, MAX_MAP_BYTES, MAX_TRUST_DOMAINS};
use crate::id::TrustDomain;

/// The most authorities of one kind in one bundle.
pub const MAX_AUTHORITIES: usize = 128;
/// The largest bundle document that is read, in bytes.
pub const MAX_DOCUMENT_BYTES: usize = 4 << 20;

/// Why something is no bundle, or a certificate no root of one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// What is wrong with one certificate of several; they are counted from 1.
    #[error("certificate {0} of the bundle: {1}")]
    Certificate(usize, Box<BundleError>),
    /// What is wrong with one JWK of several; they are counted from 1.
    #[error("key {0} of the bundle: {1}")]
    Jwk(usize, Box<BundleError>),
    /// A key for tokens has no name (JWT-SVID.md section 6.1, WIT-SVID.md section 6.1).
    #[error("key for JWT-SVIDs or WIT-SVIDs has no \"kid\": each has to have one")]
    NoKid,
    /// Two keys for tokens have the same name (WIT-SVID.md section 6.1).
    #[error("two keys of the bundle have the kid {0:?}: each has to have its own")]
    SameKid(String),
    /// Not an X.509 version 3 certificate in DER.
    #[error("root certificate cannot be read: give DER (PEM in files) of an X.509 version 3 certificate")]
    Malformed,
    /// There are bytes behind the end of the certificate.
    #[error("root certificate has {0} bytes behind its end: give one certificate at a time")]
    TrailingBytes(usize),
    /// The certificate is longer than [`MAX_AUTHORITY_BYTES`].
    #[error("root certificate has {0} bytes: at most 16384 are allowed")]
    TooLarge(usize),
    /// The basic constraints do not say CA:TRUE (X509-SVID.md section 4.1).
    #[error("root certificate is no CA: its basic constraints must say CA:TRUE")]
    NotCa,
    /// There is a key usage, and it lacks keyCertSign (X509-SVID.md section 4.3).
    #[error("root certificate may not sign certificates: its key usage must have keyCertSign")]
    KeyUsage,
    /// The public key is of a kind that we cannot verify with.
    #[error("its key cannot be taken ({0}): P-256, P-384, P-521, Ed25519 and RSA are supported")]
    Key(String),
    /// There are more than [`MAX_AUTHORITIES`] roots.
    #[error("bundle has {0} authorities of one kind: at most 128 are allowed")]
    TooManyAuthorities(usize),
    /// The document is longer than [`MAX_DOCUMENT_BYTES`].
    #[error("bundle document has {0} bytes: at most 4194304 are allowed")]
    DocumentTooLarge(usize),
    /// The document is no JSON of the form of a JWK set, or has a member twice.
    #[error("bundle document is no JWK set: {0}")]
    Json(String),
    /// The document has no `keys` (SPIFFE_Trust_Domain_and_Bundle.md section 4.1.3).
    #[error("bundle document has no \"keys\": it must be there, and may be an empty array")]
    NoKeys,
    /// The first value of an `x5c` is no base64 (RFC 7517 section 4.7).
    #[error("x5c is not the base64 (standard alphabet, with padding) of a DER certificate")]
    X5c,
    /// A PEM document cannot be read.
    #[error("PEM cannot be read: {0}")]
    Pem(String),
    /// A PEM document has a private key, which must never get about with a bundle.
    #[error("PEM has a private key: take it out, a bundle holds certificates only")]
    PrivateKey,
    /// A PEM document has a section of another kind.
    #[error("PEM has a section that is no certificate ({0}): a bundle holds certificates only")]
    NotACertificate(String),
    /// A PEM document has no certificate.
    #[error("PEM has no certificate: give at least one (-----BEGIN CERTIFICATE-----)")]
    NoCertificate,
}

/// The roots and keys of one trust domain. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Bundle {
    trust_domain: TrustDomain,
    x509_authorities: Arc<[X509Authority]>,
    anchors: Arc<[TrustAnchor<'static>]>,
    tainted_intermediates: Arc<[Vec<u8>]>,
    jwt_authorities: Arc<[JwkAuthority]>,
    wit_authorities: Arc<[JwkAuthority]>,
    sequence: u64,
    refresh_hint: Option<Duration>,
}

impl PartialEq for Bundle {
    fn eq(&self, other: &Self) -> bool {
        self.trust_domain == other.trust_domain
            && self.x509_authorities == other.x509_authorities
            && self.tainted_intermediates == other.tainted_intermediates
            && self.jwt_authorities == other.jwt_authorities
            && self.wit_authorities == other.wit_authorities
            && self.sequence == other.sequence
            && self.refresh_hint == other.refresh_hint
    }
}

impl Eq for Bundle {}

impl Bundle {
    /// A bundle of these authorities, repeats dropped (tainted if one of the repeats is). May be empty: nothing is
    /// then trusted.
    pub fn new(
        trust_domain: TrustDomain,
        x509_authorities: Vec<X509Authority>,
        sequence: u64,
        refresh_hint: Option<Duration>,
    ) -> Result<Self, BundleError> {
        let mut unique: Vec<X509Authority> = Vec::with_capacity(x509_authorities.len().min(MAX_AUTHORITIES));
        for authority in x509_authorities {
            if let Some(known) = unique.iter_mut().find(|known| known.der() == authority.der()) {
                if authority.is_tainted() {
                    *known = authority;
                }
            } else if unique.len() == MAX_AUTHORITIES {
                return Err(BundleError::TooManyAuthorities(MAX_AUTHORITIES + 1));
            } else {
                unique.push(authority);
            }
        }
        let anchors = unique.iter().map(|authority| authority.trust_anchor().clone()).collect();
        let x509_authorities = unique.into();
        Ok(Self { x509_authorities, anchors, sequence, refresh_hint, ..Self::empty(trust_domain) })
    }

    /// The bundle of a trust domain of which nothing is known yet: it trusts nothing.
    pub fn empty(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            x509_authorities: Arc::new([]),
            anchors: Arc::new([]),
            tainted_intermediates: Arc::new([]),
            jwt_authorities: Arc::new([]),
            wit_authorities: Arc::new([]),
            sequence: 0,
            refresh_hint: None,
        }
    }

    /// The same bundle, which also marks CAs below its roots, by their subject key identifiers: SVIDs under them are
    /// to be replaced at once. At most [`MAX_AUTHORITIES`] are kept.
    #[must_use]
    pub fn with_tainted_intermediates(self, key_ids: impl IntoIterator<Item = Vec<u8>>) -> Self {
        Self { tainted_intermediates: key_ids.into_iter().take(MAX_AUTHORITIES).collect(), ..self }
    }

    /// The same bundle with these keys for JWT-SVIDs and for WIT-SVIDs. No two of them may have the same `kid`, but that
    /// a key may be named again as it is.
    pub fn with_jwk_authorities(self, jwt: Vec<JwkAuthority>, wit: Vec<JwkAuthority>) -> Result<Self, BundleError> {
        let (jwt, wit) = (jwk_authority::unique(jwt)?, jwk_authority::unique(wit)?);
        let kids = |of: &[JwkAuthority]| of.iter().map(|authority| authority.kid().to_owned()).collect::<BTreeSet<_>>();
        if let Some(twice) = kids(&jwt).intersection(&kids(&wit)).next() {
            return Err(BundleError::SameKid(twice.clone()));
        }
        Ok(Self { jwt_authorities: jwt.into(), wit_authorities: wit.into(), ..self })
    }

    /// The same bundle, to be fetched anew this often.
    #[must_use]
    pub fn with_refresh_hint(self, refresh_hint: Option<Duration>) -> Self {
        Self { refresh_hint, ..self }
    }

    /// The subject key identifiers of the CAs below the roots that are marked tainted.
    pub fn tainted_intermediates(&self) -> &[Vec<u8>] {
        &self.tainted_intermediates
    }

    /// Reads a SPIFFE JWKS document.
    ///
    /// - Keys with another `use` than `x509-svid`, `jwt-svid` and `wit-svid`, with no `use`, with a `kty`, `crv` or `alg`
    ///   that we do not know, and roots without a certificate in `x5c` are passed over, as the standards ask for.
    /// - A key for tokens must have a `kid` of its own, and no private part.
    /// - Of an `x5c` only the first certificate is taken (X509-SVID.md section 6.2).
    pub fn from_jwks(trust_domain: TrustDomain, document: &[u8]) -> Result<Self, BundleError> {
        jwks::read(trust_domain, document)
    }

    /// The SPIFFE JWKS document, with `spiffe_sequence` and `spiffe_refresh_hint`.
    pub fn to_jwks(&self) -> String {
        jwks::write(self)
    }

    /// The keys for JWT-SVIDs alone, as a JWK set (SPIFFE_Workload_API.md section 6.2.2).
    pub fn to_jwt_jwks(&self) -> String {
        jwks::write_jwt(self)
    }

    /// The keys for WIT-SVIDs alone, as a JWK set (SPIFFE_Workload_API.md section 7.2.2).
    pub fn to_wit_jwks(&self) -> String {
        jwks::write_wit(self)
    }

    /// Reads concatenated PEM certificates; the sequence is 0. Text between the sections is passed over; sections of
    /// another kind, private keys above all, are refused.
    pub fn from_pem(trust_domain: TrustDomain, pem: &[u8]) -> Result<Self, BundleError> {
        Self::new(trust_domain, pem::read(pem)?, 0, None)
    }

    /// Concatenated PEM certificates.
    pub fn to_pem(&self) -> String {
        self.x509_authorities.iter().map(|authority| crate::pem::certificate(authority.der())).collect()
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

    /// What JWT-SVIDs are verified with.
    pub fn jwt_authorities(&self) -> &[JwkAuthority] {
        &self.jwt_authorities
    }

    /// What WIT-SVIDs are verified with.
    pub fn wit_authorities(&self) -> &[JwkAuthority] {
        &self.wit_authorities
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_certificates::Authority;

    fn example() -> TrustDomain {
        TrustDomain::parse("example.org").unwrap()
    }

    #[test]
    fn repeats_are_dropped_and_a_taint_wins() {
        let (one, two) = (Authority::root("one").x509_authority(), Authority::root("two").x509_authority());
        let many = vec![one.clone(), two.clone(), one.clone().with_taint(true), two];
        let bundle = Bundle::new(example(), many, 1, None).unwrap();
        let taints: Vec<bool> = bundle.x509_authorities().iter().map(X509Authority::is_tainted).collect();
        assert_eq!(taints, [true, false]);
        assert_eq!(bundle.trust_anchors().len(), 2);
        assert_eq!(bundle.x509_authorities()[0].der(), one.der());
    }

    #[test]
    fn there_is_a_most_of_authorities() {
        let many: Vec<_> = (0..=MAX_AUTHORITIES).map(|n| Authority::root(&n.to_string()).x509_authority()).collect();
        assert!(Bundle::new(example(), many[1..].to_vec(), 0, None).is_ok());
        assert_eq!(Bundle::new(example(), many, 0, None), Err(BundleError::TooManyAuthorities(129)));
    }
}
