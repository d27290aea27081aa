//! Certificates for the tests of this crate, the bad ones too. Validity is counted from [`NOW`].

use std::sync::LazyLock;
use std::time::Duration;

use base64::Engine;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls_pki_types::CertificateDer;

use crate::bundle::{Bundle, X509Authority};
use crate::crypto;
use crate::entry::KeyType;
use crate::id::TrustDomain;
use crate::time::Timestamp;

pub(crate) const NOW: Timestamp = Timestamp::from_unix(1_800_000_000);

pub(crate) struct Authority {
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    /// From itself up, without the root.
    chain: Vec<CertificateDer<'static>>,
}

/// A leaf and its key, the chain without the root.
pub(crate) struct Leaf {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: KeyPair,
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params.not_before = NOW.minus(Duration::from_secs(86_400)).to_date_time();
    params.not_after = NOW.plus(Duration::from_secs(86_400)).to_date_time();
    params
}

/// The profile of X509-SVID.md.
pub(crate) fn leaf_params(id: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![uri(id)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(rcgen::SerialNumber::from_slice(&[0x7f, 1, 2, 3]));
    params.not_before = NOW.minus(Duration::from_secs(60)).to_date_time();
    params.not_after = NOW.plus(Duration::from_secs(3600)).to_date_time();
    params
}

pub(crate) fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

impl Authority {
    pub(crate) fn root(name: &str) -> Self {
        Self::root_with(name, |_| {})
    }

    pub(crate) fn root_with(name: &str, change: fn(&mut CertificateParams)) -> Self {
        let mut params = ca_params(name);
        change(&mut params);
        Self::self_signed(params, KeyType::P256)
    }

    pub(crate) fn of_kind(key_type: KeyType, name: &str) -> Self {
        Self::self_signed(ca_params(name), key_type)
    }

    fn self_signed(params: CertificateParams, key_type: KeyType) -> Self {
        let key = crypto::generate_key(key_type).unwrap();
        let der = params.self_signed(&key).unwrap().der().clone();
        Self { der, issuer: Issuer::new(params, key), chain: Vec::new() }
    }

    pub(crate) fn shared() -> &'static Self {
        static SHARED: LazyLock<Authority> = LazyLock::new(|| Authority::root("shared"));
        &SHARED
    }

    pub(crate) fn intermediate(&self, name: &str) -> Self {
        self.intermediate_with(name, |_| {})
    }

    pub(crate) fn intermediate_with(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = crypto::generate_key(KeyType::P256).unwrap();
        let mut params = ca_params(name);
        change(&mut params);
        let der = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        Self { chain: [vec![der.clone()], self.chain.clone()].concat(), der, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    pub(crate) fn key(&self) -> &KeyPair {
        self.issuer.key()
    }

    pub(crate) fn x509_authority(&self) -> X509Authority {
        X509Authority::from_der(self.der.clone()).unwrap()
    }

    pub(crate) fn bundle(&self, trust_domain: &str) -> Bundle {
        Bundle::new(TrustDomain::parse(trust_domain).unwrap(), vec![self.x509_authority()], 1, None).unwrap()
    }

    pub(crate) fn leaf(&self, id: &str) -> Leaf {
        self.sign(leaf_params(id))
    }

    pub(crate) fn sign(&self, params: CertificateParams) -> Leaf {
        self.sign_key(params, crypto::generate_key(KeyType::P256).unwrap())
    }

    #[expect(clippy::needless_pass_by_value, reason = "the caller has made it for this")]
    pub(crate) fn sign_key(&self, params: CertificateParams, key: KeyPair) -> Leaf {
        let der = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        Leaf { chain: [vec![der], self.chain.clone()].concat(), key }
    }
}

/// A root with an RSA key, which ring cannot make. Made by OpenSSL.
pub(crate) fn rsa_root() -> X509Authority {
    let text: String = RSA_ROOT.split_whitespace().collect();
    X509Authority::from_der(base64::engine::general_purpose::STANDARD.decode(text).unwrap().into()).unwrap()
}

const RSA_ROOT: &str = "
MIIDHzCCAgegAwIBAgIUX3zdqu91p9w/xfXMOcl1P1mzZmwwDQYJKoZIhvcNAQELBQAwFjEUMBIGA1UECgwLZXhhbXBsZS5vcmcw
IBcNMjYxMTIxMDAwMzEzWhgPMjA4MTA4MjQwMDAzMTNaMBYxFDASBgNVBAoMC2V4YW1wbGUub3JnMIIBIjANBgkqhkiG9w0BAQEF
AAOCAQ8AMIIBCgKCAQEAwcaQIGMu4YSR2nEdrLGowkO25OeedL/pcm4rQOle6bvFacDfCgsIHrIjIStTZy9vbyLL+w75sghf4QX2
U3WOLI/CvLPbHNB89PmZRbJJ9bGAQ78p0eu/P72U+bwynVAYYHLSz2Kxne8W18DJjYHuT0DboPU1cGHvB0gNmUbJSRUskLH+kM/t
lZrnD8BE6y8+zY7ecqqtXzijOUNMRDlchv4SbNq1PfAtvLYrt+8Mbw9GxOKh+M3RpSfY3SekWTO6pPORl2BSUr9I7lDtHvS4VUjQ
8i3/pJQ95BR5pJrMdOUY6fTr5tsTMrAgEynCSwYC0Y0mZiscti2uhx5nO0YvLwIDAQABo2MwYTAdBgNVHQ4EFgQUY8Uc5XLjnEEE
jdIVn7cDcQrcAx4wHwYDVR0jBBgwFoAUY8Uc5XLjnEEEjdIVn7cDcQrcAx4wDwYDVR0TAQH/BAUwAwEB/zAOBgNVHQ8BAf8EBAMC
AgQwDQYJKoZIhvcNAQELBQADggEBAGOIyjSL3Y4IGd8+Xn07Wj5UJuSTc3j0NMEjF3zWYcnz1pC8Cvt3sLB8yXMWkkj2LHA7cgd8
8KMsroZS7oTG25J//74GWn6m7N//4WhXdhEyHuJrObhcmIuZPWxu+ihwYUK7nk7M5IdXnFrtSO8eHDyznu3Fa3VW3acwKKlyI68F
X2Bv5YokbFyyfLc98AQJRJiQVtMPI3vczoEyq+eP2jh7BuL/Y9l3RzNyu4VY1KcW7AKmP6zkEhGWi+jsiuELr+VaVjDVIuwtoA7D
5JJhhQ9nukqSflmE9xEkN1tcALczAl6hqe48quVbPaLSaMDDOLuHZ5AZnfA9WD07rCQqETc=
";
