//! For tests: roots, SVIDs below them, and states of workloads made of both.

use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber,
};
use spiffe::bundle::{Bundle, X509Authority};
use spiffe::entry::{EntryId, KeyType, RegistrationEntry};
use spiffe::id::{SpiffeId, TrustDomain};
use spiffe::selector::Selectors;
use spiffe::time::Timestamp;
use spiffe::x509_svid::X509Svid;
use zeroize::Zeroizing;

use crate::cache::{Identity, WorkloadState};

pub(super) const NOW: Timestamp = Timestamp::from_unix(1_800_000_000);

/// Roots, and what they sign.
pub(super) struct Office {
    pub(super) root: X509Authority,
    issuer: Issuer<'static, KeyPair>,
}

impl Office {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = spiffe::crypto::generate_key(KeyType::P256).unwrap();
        let root = X509Authority::from_der(params.self_signed(&key).unwrap().der().clone()).unwrap();
        Self { root, issuer: Issuer::new(params, key) }
    }

    pub(super) fn bundle(&self, trust_domain: &str) -> Bundle {
        Bundle::new(TrustDomain::parse(trust_domain).unwrap(), vec![self.root.clone()], 1, None).unwrap()
    }

    pub(super) fn identity(&self, name: &str, hint: &str, serial: u8) -> Identity {
        let id = SpiffeId::parse(&format!("spiffe://example.org/{name}")).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into().unwrap())];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(SerialNumber::from_slice(&[1, serial]));
        params.not_before = NOW.to_date_time();
        params.not_after = NOW.plus(Duration::from_secs(3600)).to_date_time();
        let key = spiffe::crypto::generate_key(KeyType::P256).unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let entry = RegistrationEntry {
            id: EntryId::parse(name).unwrap(),
            spiffe_id: id,
            parent: SpiffeId::parse("spiffe://example.org/chancery/agent/join_token/1").unwrap(),
            selectors: Selectors::parse(["unix:uid:1000"]).unwrap(),
            x509_ttl: None,
            jwt_ttl: None,
            wit_ttl: None,
            jti: false,
            dns_names: Vec::new(),
            hint: hint.into(),
            admin: false,
            federates_with: Vec::new(),
            expires_at: None,
            key_type: None,
            created_at: NOW,
            rule: None,
        };
        Identity {
            entry: Arc::new(entry),
            hint: hint.into(),
            svid: X509Svid::parse(vec![leaf]).unwrap(),
            key: Arc::new(Zeroizing::new(key.serialize_der())),
        }
    }

    pub(super) fn state(&self, identities: Vec<Identity>) -> WorkloadState {
        WorkloadState { identities: identities.into(), bundle: self.bundle("example.org"), federated: Arc::default() }
    }
}
