//! The profile of a leaf (X509-SVID.md sections 2 to 5), one check after the other.

use std::sync::Arc;

use x509_parser::certificate::X509Certificate;
use x509_parser::der_parser::asn1_rs::Tag;
use x509_parser::error::X509Error;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;
use x509_parser::x509::X509Version;

use super::SvidError;
use crate::id::SpiffeId;
use crate::time::{Lifetime, Timestamp};

/// The tag of a URI in a `GeneralName` (RFC 5280 section 4.2.1.6).
const URI: Tag = Tag(6);

pub(super) struct Profile {
    pub(super) id: SpiffeId,
    pub(super) serial: Arc<[u8]>,
    pub(super) lifetime: Lifetime,
}

pub(super) fn parse(leaf: &[u8]) -> Result<Profile, SvidError> {
    let certificate = read(leaf)?;
    let id = spiffe_id(&certificate)?;
    key_usages(&certificate)?;
    let serial = certificate.tbs_certificate.raw_serial();
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();
    Ok(Profile { id, serial: serial.get(zeros..).unwrap_or_default().into(), lifetime: lifetime(&certificate)? })
}

/// The whole SubjectPublicKeyInfo of the leaf, in DER.
pub(super) fn public_key(leaf: &[u8]) -> Result<Vec<u8>, SvidError> {
    Ok(read(leaf)?.public_key().raw.to_vec())
}

fn read(leaf: &[u8]) -> Result<X509Certificate<'_>, SvidError> {
    let malformed = SvidError::Malformed("it is no X.509 certificate in DER");
    let (rest, certificate) = X509Certificate::from_der(leaf).map_err(|_| malformed)?;
    if !rest.is_empty() {
        return Err(SvidError::TrailingBytes(rest.len()));
    }
    if certificate.version() != X509Version::V3 {
        return Err(SvidError::Malformed("it is not of version 3"));
    }
    let unread = |parsed: &ParsedExtension<'_>| matches!(parsed, ParsedExtension::ParseError { .. });
    if certificate.extensions().iter().any(|extension| unread(extension.parsed_extension())) {
        return Err(SvidError::Malformed("one of its extensions is broken"));
    }
    Ok(certificate)
}

fn unique<T>(extension: Result<Option<T>, X509Error>) -> Result<Option<T>, SvidError> {
    extension.map_err(|_| SvidError::Malformed("one of its extensions is broken, or there twice"))
}

fn spiffe_id(certificate: &X509Certificate<'_>) -> Result<SpiffeId, SvidError> {
    let names = unique(certificate.subject_alternative_name())?.ok_or(SvidError::NoUri)?;
    // One that is no text is a URI SAN all the same, and counted.
    let uri = |name: &GeneralName<'_>| matches!(name, GeneralName::URI(_) | GeneralName::Invalid(URI, _));
    let mut uris = names.value.general_names.iter().filter(|name| uri(name));
    let only = uris.next().ok_or(SvidError::NoUri)?;
    let more = uris.count();
    if more > 0 {
        return Err(SvidError::ManyUris(more + 1));
    }
    let GeneralName::URI(text) = only else {
        return Err(SvidError::Malformed("its URI SAN is no text"));
    };
    let id = SpiffeId::parse(text)?;
    if id.path().is_empty() {
        return Err(SvidError::NoPath(id));
    }
    if !names.critical && certificate.subject().iter().next().is_none() {
        return Err(SvidError::SanNotCritical);
    }
    Ok(id)
}

fn key_usages(certificate: &X509Certificate<'_>) -> Result<(), SvidError> {
    if unique(certificate.basic_constraints())?.is_some_and(|constraints| constraints.value.ca) {
        return Err(SvidError::Ca);
    }
    let key_usage = unique(certificate.key_usage())?.filter(|usage| usage.critical).ok_or(SvidError::NoKeyUsage)?.value;
    if key_usage.key_cert_sign() {
        return Err(SvidError::KeyCertSign);
    }
    if key_usage.crl_sign() {
        return Err(SvidError::CrlSign);
    }
    if !key_usage.digital_signature() {
        return Err(SvidError::NoDigitalSignature);
    }
    match unique(certificate.extended_key_usage())?.map(|usage| usage.value) {
        Some(usage) if !(usage.server_auth && usage.client_auth) => Err(SvidError::ExtendedKeyUsage),
        _ => Ok(()),
    }
}

fn lifetime(certificate: &X509Certificate<'_>) -> Result<Lifetime, SvidError> {
    let moment = |time: ASN1Time| u64::try_from(time.timestamp()).map_err(|_| SvidError::Lifetime);
    let validity = certificate.validity();
    let not_before = Timestamp::from_unix(moment(validity.not_before)?);
    let not_after = Timestamp::from_unix(moment(validity.not_after)?);
    if not_after < not_before { Err(SvidError::Lifetime) } else { Ok(Lifetime { not_before, not_after }) }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType};

    use super::*;
    use crate::id::IdError;
    use crate::test_certificates::{Authority, leaf_params, uri};

    const SAN: &[u64] = &[2, 5, 29, 17];
    const KEY_USAGE: &[u64] = &[2, 5, 29, 15];

    fn changed(change: impl FnOnce(&mut CertificateParams)) -> Result<SpiffeId, SvidError> {
        let mut params = leaf_params("spiffe://example.org/web");
        change(&mut params);
        Ok(parse(&Authority::shared().sign(params).chain[0])?.id)
    }

    fn extension(oid: &[u64], critical: bool, content: &[u8]) -> CustomExtension {
        let mut extension = CustomExtension::from_oid_content(oid, content.to_vec());
        extension.set_criticality(critical);
        extension
    }

    #[test]
    fn what_the_standard_allows_is_taken() {
        assert!(changed(|_| {}).is_ok());
        let dns = SanType::DnsName("web.example.org".try_into().unwrap());
        assert!(changed(|params| params.subject_alt_names.push(dns)).is_ok());
        assert!(changed(|params| params.extended_key_usages.clear()).is_ok());
        assert!(changed(|params| params.is_ca = IsCa::NoCa).is_ok());
        assert!(changed(|params| params.distinguished_name.push(DnType::CommonName, "web")).is_ok());
        assert!(changed(|params| params.key_usages.push(KeyUsagePurpose::KeyEncipherment)).is_ok());
        assert!(changed(|params| params.extended_key_usages.push(ExtendedKeyUsagePurpose::EmailProtection)).is_ok());
    }

    #[test]
    fn each_rule_about_names_has_its_error() {
        let two = changed(|params| params.subject_alt_names.push(uri("spiffe://example.org/other")));
        assert_eq!(two, Err(SvidError::ManyUris(2)));
        let other_scheme = changed(|params| params.subject_alt_names.push(uri("https://example.org/")));
        assert_eq!(other_scheme, Err(SvidError::ManyUris(2)));
        assert_eq!(changed(|params| params.subject_alt_names.clear()), Err(SvidError::NoUri));
        let dns = SanType::DnsName("web.example.org".try_into().unwrap());
        assert_eq!(changed(|params| params.subject_alt_names = vec![dns]), Err(SvidError::NoUri));
        let https = changed(|params| params.subject_alt_names = vec![uri("https://example.org/web")]);
        assert_eq!(https, Err(SvidError::Id(IdError::Scheme)));
        let root = changed(|params| params.subject_alt_names = vec![uri("spiffe://example.org")]);
        assert_eq!(root, Err(SvidError::NoPath(SpiffeId::parse("spiffe://example.org").unwrap())));
    }

    #[test]
    fn san_extensions_that_rcgen_would_not_write() {
        let san = |critical, content: &'static [u8]| {
            changed(|params| {
                params.subject_alt_names.clear();
                params.custom_extensions = vec![extension(SAN, critical, content)];
            })
        };
        assert!(san(true, b"\x30\x0c\x86\x0aspiffe://a").is_err_and(|error| matches!(error, SvidError::NoPath(_))));
        assert!(san(true, b"\x30\x0e\x86\x0cspiffe://a/b").is_ok());
        assert_eq!(san(false, b"\x30\x0e\x86\x0cspiffe://a/b"), Err(SvidError::SanNotCritical));
        // Not ASCII: still a URI SAN, beside a good one as well.
        assert!(san(true, b"\x30\x0e\x86\x0cspiffe://a/\xff").is_err());
        assert_eq!(san(true, b"\x30\x11\x86\x0cspiffe://a/b\x86\x01\xff"), Err(SvidError::ManyUris(2)));
        assert!(matches!(san(true, b"\x30\x0e\x86\x7f"), Err(SvidError::Malformed(_))));
        let twice =
            changed(|params| params.custom_extensions = vec![extension(SAN, true, b"\x30\x0e\x86\x0cspiffe://a/b")]);
        assert!(matches!(twice, Err(SvidError::Malformed(_))));
    }

    #[test]
    fn each_rule_about_usages_has_its_error() {
        let ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        assert_eq!(changed(|params| params.is_ca = ca), Err(SvidError::Ca));
        let usages = |usages: &[KeyUsagePurpose]| changed(|params| params.key_usages = usages.to_vec());
        let signature = KeyUsagePurpose::DigitalSignature;
        assert_eq!(usages(&[]), Err(SvidError::NoKeyUsage));
        assert_eq!(usages(&[KeyUsagePurpose::KeyAgreement]), Err(SvidError::NoDigitalSignature));
        assert_eq!(usages(&[signature, KeyUsagePurpose::KeyCertSign]), Err(SvidError::KeyCertSign));
        assert_eq!(usages(&[signature, KeyUsagePurpose::CrlSign]), Err(SvidError::CrlSign));
        let not_critical = changed(|params| {
            params.key_usages.clear();
            params.custom_extensions = vec![extension(KEY_USAGE, false, &[3, 2, 7, 0x80])];
        });
        assert_eq!(not_critical, Err(SvidError::NoKeyUsage));
        for one in
            [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::Any]
        {
            assert_eq!(changed(|params| params.extended_key_usages = vec![one]), Err(SvidError::ExtendedKeyUsage));
        }
    }

    #[test]
    fn each_rule_about_the_bytes_has_its_error() {
        assert!(matches!(parse(b"nothing"), Err(SvidError::Malformed(_))));
        let mut longer = Authority::shared().leaf("spiffe://example.org/web").chain[0].to_vec();
        longer.push(0);
        assert!(matches!(parse(&longer), Err(SvidError::TrailingBytes(1))));
        let backwards = changed(|params| std::mem::swap(&mut params.not_before, &mut params.not_after));
        assert_eq!(backwards, Err(SvidError::Lifetime));
        let early = changed(|params| params.not_before = rcgen::date_time_ymd(1969, 12, 31));
        assert_eq!(early, Err(SvidError::Lifetime));
    }
}
