//! CA certificates: what every one of ours says, whoever signs it.
//!
//! - Subject `O=SPIFFE` and a `serialNumber` of its own, so that two CAs never share a name.
//! - One URI SAN, the SPIFFE ID of the trust domain (X509-SVID.md section 2).
//! - Critical basic constraints `CA:TRUE` with path length 0; critical key usage `keyCertSign` and `cRLSign`.
//! - No name constraints: rustls-webpki fails closed on those of URIs, and every rustls peer would break.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue, IsCa, KeyIdMethod, KeyUsagePurpose,
    PublicKeyData, SanType,
};
use rustls_pki_types::CertificateDer;
use spiffe::crypto;
use spiffe::id::TrustDomain;
use spiffe::time::{Lifetime, Timestamp};
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::issuer::{IssueError, Serial};
use super::keys::SigningKey;

/// How far back a certificate's life begins, for peers whose clocks are slow.
pub const BACKDATE: Duration = spiffe::time::BACKDATE;

/// What a CA certificate will say.
#[derive(Clone, Debug)]
pub struct CaPlan {
    /// Whose CA it is.
    pub trust_domain: TrustDomain,
    /// Of the certificate; also in its name.
    pub serial: Serial,
    /// Of the certificate.
    pub lifetime: Lifetime,
}

impl CaPlan {
    /// A CA that lives for `ttl` from `now`, but not beyond `latest`.
    pub fn new(
        trust_domain: TrustDomain,
        serial: Serial,
        ttl: Duration,
        latest: Option<Timestamp>,
        now: Timestamp,
    ) -> Self {
        let not_after = now.plus(ttl);
        let lifetime = Lifetime {
            not_before: now.minus(BACKDATE),
            not_after: latest.map_or(not_after, |latest| latest.min(not_after)),
        };
        Self { trust_domain, serial, lifetime }
    }

    /// Everything in the certificate but the keys and the issuer's name. `key` is the one that the certificate is for.
    pub(super) fn params(&self, key: &SigningKey) -> Result<CertificateParams, IssueError> {
        let unprintable = |_| IssueError::Unprintable;
        let serial_text = crypto::hex(self.serial.bytes());
        let mut name = DistinguishedName::new();
        name.push(DnType::OrganizationName, super::issuer::ORGANIZATION);
        let number = DnValue::PrintableString(serial_text.as_str().try_into().map_err(unprintable)?);
        // X520SerialNumber, RFC 5280 appendix A.1: rcgen has no name for it.
        name.push(DnType::CustomDnType(vec![2, 5, 4, 5]), number);
        let mut params = CertificateParams::default();
        params.not_before = self.lifetime.not_before.to_date_time();
        params.not_after = self.lifetime.not_after.to_date_time();
        params.serial_number = Some(rcgen::SerialNumber::from_slice(self.serial.bytes()));
        params.subject_alt_names = vec![SanType::URI(self.trust_domain.id().as_str().try_into().map_err(unprintable)?)];
        params.distinguished_name = name;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.extended_key_usages = Vec::new();
        params.name_constraints = None;
        params.crl_distribution_points = Vec::new();
        params.custom_extensions = Vec::new();
        params.use_authority_key_identifier_extension = false;
        // Over the key alone, so that the identifier stays the same wherever the certificate is made again.
        params.key_identifier_method = KeyIdMethod::PreSpecified(key_identifier(&key.subject_public_key_info()));
        Ok(params)
    }
}

/// The key identifier of a DER SubjectPublicKeyInfo: the first 20 bytes of the SHA-256 of the key's bits (RFC 7093
/// section 2, method 1).
pub(super) fn key_identifier(spki_der: &[u8]) -> Vec<u8> {
    let parsed = SubjectPublicKeyInfo::from_der(spki_der);
    key_identifier_of(parsed.as_ref().map_or(spki_der, |(_, spki)| &spki.subject_public_key.data))
}

/// The same from the key's bits.
pub(super) fn key_identifier_of(bits: &[u8]) -> Vec<u8> {
    crypto::sha256(bits).into_iter().take(20).collect()
}

/// A CA certificate for `key`, signed by itself.
pub fn self_signed(key: &SigningKey, plan: &CaPlan) -> Result<CertificateDer<'static>, IssueError> {
    Ok(plan.params(key)?.self_signed(key)?.into())
}
