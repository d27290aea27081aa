//! One root of a trust domain, parsed once: what webpki needs, what a JWK needs, what names its children.

use std::sync::Arc;

use rustls_pki_types::{CertificateDer, TrustAnchor};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::FromDer;

use super::BundleError;
use crate::crypto::jws::PublicKey;
use crate::jose::JwkError;

/// The largest certificate of a root, in bytes.
pub const MAX_AUTHORITY_BYTES: usize = 16 << 10;

/// One X.509 root of a trust domain. Cheap to clone.
#[derive(Clone, Debug)]
pub struct X509Authority {
    root: Arc<Root>,
    tainted: bool,
}

#[derive(Debug)]
struct Root {
    der: CertificateDer<'static>,
    anchor: TrustAnchor<'static>,
    subject: Vec<u8>,
    subject_key_id: Option<Vec<u8>>,
    key: PublicKey,
}

impl PartialEq for X509Authority {
    fn eq(&self, other: &Self) -> bool {
        self.root.der == other.root.der && self.tainted == other.tainted
    }
}

impl Eq for X509Authority {}

impl X509Authority {
    /// Takes one DER certificate that is a CA by its basic constraints, with nothing behind it.
    pub fn from_der(der: CertificateDer<'static>) -> Result<Self, BundleError> {
        if der.len() > MAX_AUTHORITY_BYTES {
            return Err(BundleError::TooLarge(der.len()));
        }
        let (rest, certificate) = X509Certificate::from_der(&der).map_err(|_| BundleError::Malformed)?;
        if !rest.is_empty() {
            return Err(BundleError::TrailingBytes(rest.len()));
        }
        let basic_constraints = certificate.basic_constraints().map_err(|_| BundleError::Malformed)?;
        if !basic_constraints.is_some_and(|constraints| constraints.value.ca) {
            return Err(BundleError::NotCa);
        }
        let key_usage = certificate.key_usage().map_err(|_| BundleError::Malformed)?;
        if key_usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
            return Err(BundleError::KeyUsage);
        }
        let subject_key_id = certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        });
        let key = PublicKey::from_spki(certificate.public_key()).map_err(|error| match error {
            JwkError::UnknownKind => BundleError::Key(certificate.public_key().algorithm.algorithm.to_string()),
            _ => BundleError::Malformed,
        })?;
        let subject = certificate.subject().as_raw().to_vec();
        let anchor = webpki::anchor_from_trusted_cert(&der).map_err(|_| BundleError::Malformed)?.to_owned();
        Ok(Self { root: Arc::new(Root { der, anchor, subject, subject_key_id, key }), tainted: false })
    }

    /// The same authority, marked (or not) as one whose SVIDs are to be replaced at once.
    pub fn with_taint(self, tainted: bool) -> Self {
        Self { tainted, ..self }
    }

    /// The certificate.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.root.der
    }

    /// The same root as webpki takes it.
    pub fn trust_anchor(&self) -> &TrustAnchor<'static> {
        &self.root.anchor
    }

    /// Whether SVIDs below it are to be replaced at once.
    pub fn is_tainted(&self) -> bool {
        self.tainted
    }

    /// SHA-256 of the certificate, lower-case hexadecimal.
    pub fn fingerprint(&self) -> String {
        crate::crypto::sha256_hex(&self.root.der)
    }

    /// The subject key identifier, if the certificate has one.
    pub fn subject_key_id(&self) -> Option<&[u8]> {
        self.root.subject_key_id.as_deref()
    }

    /// Whether a certificate with this issuer (the DER of its name) and this authority key identifier says that it
    /// is signed by this root. The name decides only where one of the identifiers is missing.
    pub fn is_named_by(&self, issuer: &[u8], authority_key_id: Option<&[u8]>) -> bool {
        match (authority_key_id, self.subject_key_id()) {
            (Some(named), Some(own)) => named == own,
            _ => issuer == self.root.subject,
        }
    }

    pub(super) fn key(&self) -> &PublicKey {
        &self.root.key
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::test_certificates::Authority;

    #[test]
    fn a_root_is_taken_apart() {
        let root = Authority::root("root");
        let authority = root.x509_authority();
        assert_eq!(authority.der(), root.der());
        assert_eq!(authority.subject_key_id().unwrap().len(), 20);
        assert_eq!(authority.fingerprint(), crate::crypto::sha256_hex(root.der()));
        assert!(authority.is_named_by(b"any name", authority.subject_key_id()));
        assert!(!authority.is_named_by(b"any name", None));
    }

    #[test]
    fn each_rule_has_its_error() {
        let changed = |change: fn(&mut rcgen::CertificateParams)| {
            X509Authority::from_der(Authority::root_with("root", change).der().clone())
        };
        assert_eq!(changed(|params| params.is_ca = rcgen::IsCa::ExplicitNoCa), Err(BundleError::NotCa));
        assert_eq!(changed(|params| params.is_ca = rcgen::IsCa::NoCa), Err(BundleError::NotCa));
        let only_crls =
            |params: &mut rcgen::CertificateParams| params.key_usages = vec![rcgen::KeyUsagePurpose::CrlSign];
        assert_eq!(changed(only_crls), Err(BundleError::KeyUsage));
        assert!(changed(|params| params.key_usages.clear()).is_ok());

        let mut longer = Authority::root("root").der().to_vec();
        longer.push(0);
        assert_eq!(X509Authority::from_der(longer.into()), Err(BundleError::TrailingBytes(1)));
        assert_eq!(X509Authority::from_der(vec![0; 16385].into()), Err(BundleError::TooLarge(16385)));
        assert_eq!(X509Authority::from_der(b"nothing".to_vec().into()), Err(BundleError::Malformed));
        assert_eq!(X509Authority::from_der(Vec::new().into()), Err(BundleError::Malformed));
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(random: Vec<u8>, at: prop::sample::Index, byte: u8, cut: prop::sample::Index) {
            let _ = X509Authority::from_der(random.into());
            let mut der = Authority::shared().der().to_vec();
            let at = at.index(der.len());
            der[at] = byte;
            let _ = X509Authority::from_der(der.clone().into());
            der.truncate(cut.index(der.len()));
            let _ = X509Authority::from_der(der.into());
        }
    }
}
