//! The issuer: one authority and its key, ready to sign SVIDs. This is the hot path: no lock, no store, no clock.
//!
//! - One plan, one signature: [`Issuer::sign`] takes the plan by value.
//! - Every field is set by hand; nothing of a CSR but its key reaches this room.
//! - What was signed is parsed back and compared with its plan before anybody gets it.
//! - No SVID outlives, or begins before, any certificate of its chain.

use std::fmt;
use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use spiffe::csr::ProvenKey;
use spiffe::entry::{DnsName, KeyType};
use spiffe::id::SpiffeId;
use spiffe::time::{Lifetime, Timestamp};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use super::keys::SigningKey;
use super::svid_der::{self, Frame};
use super::{Authority, Chain, Public};

/// The organisation in every name that we write.
pub(super) const ORGANIZATION: &str = "SPIFFE";
/// The longest common name, in characters (RFC 5280 appendix A.1, ub-common-name).
const MAX_COMMON_NAME: usize = 64;

/// Why a certificate was not issued.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    /// The CA certificate does not parse.
    #[error("CA certificate of authority {0} cannot be read: the store is damaged, restore it from a backup")]
    CaCertificate(Arc<str>),
    /// The authority signs no X.509-SVIDs.
    #[error("authority {0} is no CA: it signs tokens")]
    OtherKind(Arc<str>),
    /// The CA certificate is for another key.
    #[error("the key of authority {0} is not that of its CA certificate: restore both from the same backup")]
    WrongKey(Arc<str>),
    /// The plan goes beyond a certificate of the chain.
    #[error("SVID would be valid outside the life of its CA, which ends {0}")]
    OutsideChain(Timestamp),
    /// A name has a character that X.509 cannot hold where it stands.
    #[error("a name has a character that a certificate cannot hold")]
    Unprintable,
    /// The key did not sign.
    #[error("certificate could not be signed: {0}")]
    Signing(String),
    /// What was signed is not what was planned. The certificate is dropped.
    #[error("signed certificate differs from its plan in its {0}: it was dropped; please report this as a bug")]
    Differs(&'static str),
}

impl From<rcgen::Error> for IssueError {
    fn from(error: rcgen::Error) -> Self {
        Self::Signing(error.to_string())
    }
}

/// A serial number: 16 bytes, positive, with 126 random bits (RFC 5280 section 4.1.2.2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Serial([u8; 16]);

impl Serial {
    /// From 16 random bytes, of which two bits are fixed: the first byte is 0x40 to 0x7f, so that the number is
    /// positive and always as long.
    pub fn from_random(bytes: [u8; 16]) -> Self {
        let [first, rest @ ..] = bytes;
        let mut serial = [0; 16];
        serial[0] = first & 0x3f | 0x40;
        serial[1..].copy_from_slice(&rest);
        Self(serial)
    }

    /// The number, big end first, without leading zeros.
    pub fn bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for Serial {
    /// Lower-case hexadecimal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What will be signed, to the last field. Whether it may be is decided where it is made, in `issuance`.
#[derive(Debug)]
pub struct SvidPlan {
    /// Whose SVID.
    pub id: SpiffeId,
    /// DNS names beside the SPIFFE ID; the first is also the common name when it is short enough.
    pub dns_names: Vec<DnsName>,
    /// The key, its possession proved.
    pub key: ProvenKey,
    /// Fresh for each plan.
    pub serial: Serial,
    /// Within that of every certificate of the chain.
    pub lifetime: Lifetime,
}

impl SvidPlan {
    pub(super) fn common_name(&self) -> Option<&str> {
        self.dns_names.first().map(DnsName::as_str).filter(|name| name.len() <= MAX_COMMON_NAME)
    }
}

/// A signed SVID that was found to be what was planned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// Whose SVID.
    pub id: SpiffeId,
    /// Its serial number.
    pub serial: Serial,
    /// From when to when it is valid.
    pub lifetime: Lifetime,
    /// The SVID itself.
    pub leaf: CertificateDer<'static>,
    /// What lies between the SVID and the root, in order; empty below a self-signed CA.
    pub intermediates: Arc<[CertificateDer<'static>]>,
}

impl Signed {
    /// The chain as it is served: the SVID first, without the root.
    pub fn chain(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        std::iter::once(&self.leaf).chain(self.intermediates.iter())
    }
}

/// One authority and its key, ready to sign.
pub struct Issuer {
    authority: Authority,
    key: Arc<SigningKey>,
    frame: Frame,
    window: Lifetime,
    chain: Chain,
    intermediates: Arc<[CertificateDer<'static>]>,
}

impl Issuer {
    /// Joins `authority` and its `key`, when they belong together.
    pub fn new(authority: Authority, key: Arc<SigningKey>) -> Result<Self, IssueError> {
        let unreadable = || IssueError::CaCertificate(authority.id.clone());
        let Public::X509(chain) = &authority.public else {
            return Err(IssueError::OtherKind(authority.id.clone()));
        };
        let mut window = Lifetime { not_before: Timestamp::from_unix(0), not_after: Timestamp::from_unix(u64::MAX) };
        for certificate in chain.iter() {
            let lifetime = lifetime(&parse(certificate).ok_or_else(unreadable)?);
            window.not_before = window.not_before.max(lifetime.not_before);
            window.not_after = window.not_after.min(lifetime.not_after);
        }
        let certificate = parse(chain.own()).ok_or_else(unreadable)?;
        if certificate.public_key().raw != key.public_key() {
            return Err(IssueError::WrongKey(authority.id.clone()));
        }
        let frame = Frame {
            algorithm: algorithm_identifier(&key).ok_or_else(unreadable)?,
            issuer: certificate.subject().as_raw().into(),
            key_identifier: subject_key_identifier(&certificate).ok_or_else(unreadable)?.into(),
        };
        let intermediates = chain.below_root().cloned().collect();
        Ok(Self { key, frame, window, intermediates, chain: chain.clone(), authority })
    }

    /// Whose key it is.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Its certificates.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// When every certificate of the chain is valid: no SVID may go beyond it.
    pub fn window(&self) -> Lifetime {
        self.window
    }

    /// Signs `plan`, parses the certificate back and compares the two. Takes some 20 microseconds with a P-256 CA.
    pub fn sign(&self, plan: SvidPlan) -> Result<Signed, IssueError> {
        if plan.lifetime.not_after > self.window.not_after || plan.lifetime.not_before < self.window.not_before {
            return Err(IssueError::OutsideChain(self.window.not_after));
        }
        let subject_key_identifier = super::ca::key_identifier_of(plan.key.bits());
        let to_be_signed = svid_der::to_be_signed(&plan, &subject_key_identifier, &self.frame);
        let signature = rcgen::SigningKey::sign(&*self.key, &to_be_signed)?;
        let leaf = CertificateDer::from(svid_der::certificate(&to_be_signed, self.frame.algorithm, &signature));
        self.compare(&leaf, &plan, &subject_key_identifier)?;
        Ok(Signed {
            id: plan.id,
            serial: plan.serial,
            lifetime: plan.lifetime,
            leaf,
            intermediates: self.intermediates.clone(),
        })
    }

    /// Every field of `leaf` against `plan`. Not the signature: the verification would cost thrice what signing does,
    /// and whoever gets the SVID does it.
    fn compare(&self, leaf: &[u8], plan: &SvidPlan, key_identifier: &[u8]) -> Result<(), IssueError> {
        let same = |same: bool, field| if same { Ok(()) } else { Err(IssueError::Differs(field)) };
        let certificate = parse(leaf).ok_or(IssueError::Differs("encoding"))?;
        same(certificate.version.0 == 2, "version")?;
        same(certificate.raw_serial() == plan.serial.bytes(), "serial number")?;
        same(certificate.signature_algorithm == certificate.signature, "signature algorithm")?;
        same(certificate.issuer().as_raw() == &*self.frame.issuer, "issuer")?;
        same(lifetime(&certificate) == plan.lifetime, "validity")?;
        same(certificate.public_key().raw == plan.key.spki_der(), "public key")?;
        same(subject_is(&certificate, plan.common_name()), "subject")?;
        // All six, and no other: the order is not ours to choose, so they are ticked off.
        let mut seen = 0_u8;
        for extension in certificate.extensions() {
            let (bit, critical, as_planned, field) = match extension.parsed_extension() {
                ParsedExtension::AuthorityKeyIdentifier(found) => {
                    let known = found.key_identifier.as_ref().is_some_and(|id| *id.0 == *self.frame.key_identifier);
                    let alone = found.authority_cert_issuer.is_none() && found.authority_cert_serial.is_none();
                    (1, false, known && alone, "authority key identifier")
                }
                ParsedExtension::SubjectKeyIdentifier(found) => {
                    (2, false, found.0 == key_identifier, "subject key identifier")
                }
                ParsedExtension::SubjectAlternativeName(found) => {
                    (4, false, names_are(&found.general_names, plan), "subject alternative name")
                }
                // Bit 0 of the flags is digitalSignature.
                ParsedExtension::KeyUsage(found) => (8, true, found.flags == 1, "key usage"),
                ParsedExtension::ExtendedKeyUsage(found) => {
                    let both = found.server_auth && found.client_auth;
                    let more = found.any
                        || found.code_signing
                        || found.email_protection
                        || found.time_stamping
                        || found.ocsp_signing
                        || !found.other.is_empty();
                    (16, false, both && !more, "extended key usage")
                }
                ParsedExtension::BasicConstraints(found) => {
                    (32, true, !found.ca && found.path_len_constraint.is_none(), "basic constraints")
                }
                _ => return Err(IssueError::Differs("extensions")),
            };
            same(as_planned && extension.critical == critical && seen & bit == 0, field)?;
            seen |= bit;
        }
        same(seen == 63, "extensions")
    }
}

impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issuer").field("authority", &self.authority.id).finish_non_exhaustive()
    }
}

/// What a key of this kind signs with, as an AlgorithmIdentifier (RFC 5758 section 3.2, RFC 8410 section 3).
fn algorithm_identifier(key: &SigningKey) -> Option<&'static [u8]> {
    const ECDSA_SHA256: &[u8] = &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
    const ECDSA_SHA384: &[u8] = &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03];
    const ED25519: &[u8] = &[0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70];
    let known = [(KeyType::P256, ECDSA_SHA256), (KeyType::P384, ECDSA_SHA384), (KeyType::Ed25519, ED25519)];
    let same = |kind: KeyType| rcgen::PublicKeyData::algorithm(key) == spiffe::crypto::signature_algorithm(kind);
    known.into_iter().find(|(kind, _)| same(*kind)).map(|(_, identifier)| identifier)
}

/// The one certificate in `der`, with nothing behind it.
pub(super) fn parse(der: &[u8]) -> Option<X509Certificate<'_>> {
    X509Certificate::from_der(der).ok().filter(|(rest, _)| rest.is_empty()).map(|(_, certificate)| certificate)
}

pub(super) fn lifetime(certificate: &X509Certificate<'_>) -> Lifetime {
    let at = |seconds: i64| Timestamp::from_unix(u64::try_from(seconds).unwrap_or(0));
    let validity = certificate.validity();
    Lifetime { not_before: at(validity.not_before.timestamp()), not_after: at(validity.not_after.timestamp()) }
}

fn subject_key_identifier<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a [u8]> {
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0),
        _ => None,
    })
}

/// Whether the subject is the organisation, then the common name when there is one, and nothing else.
fn subject_is(certificate: &X509Certificate<'_>, common_name: Option<&str>) -> bool {
    const O: &[u8] = &[0x55, 4, 10];
    const CN: &[u8] = &[0x55, 4, 3];
    let wanted = [Some((O, ORGANIZATION)), common_name.map(|name| (CN, name))];
    let mut found = certificate.subject().iter_attributes();
    wanted.into_iter().flatten().all(|(oid, text)| {
        found
            .next()
            .is_some_and(|attribute| attribute.attr_type().as_bytes() == oid && attribute.as_slice() == text.as_bytes())
    }) && found.next().is_none()
}

fn names_are(found: &[GeneralName<'_>], plan: &SvidPlan) -> bool {
    let Some((GeneralName::URI(id), names)) = found.split_first() else { return false };
    *id == plan.id.as_str()
        && names.len() == plan.dns_names.len()
        && names
            .iter()
            .zip(&plan.dns_names)
            .all(|(found, planned)| matches!(found, GeneralName::DNSName(name) if *name == planned.as_str()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use spiffe::bundle::{Bundle, X509Authority};
    use spiffe::id::TrustDomain;
    use spiffe::x509_svid::X509Svid;

    use rcgen::{
        CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyUsagePurpose,
        PublicKeyData, SanType,
    };

    use super::super::ca::{CaPlan, self_signed};
    use super::super::keys::KeySpec;
    use super::*;

    const NOW: Timestamp = Timestamp::from_unix(1_800_000_000);
    const HOUR: Duration = Duration::from_secs(3600);

    fn issuer(kind: KeyType) -> Issuer {
        let key = Arc::new(SigningKey::generate(kind.into()).unwrap());
        let domain = TrustDomain::parse("example.org").unwrap();
        let plan = CaPlan::new(domain, Serial::from_random([7; 16]), HOUR * 24, None, NOW);
        let public = Public::X509(Chain::self_signed(self_signed(&key, &plan).unwrap()));
        let authority = Authority::prepared(key.id().clone(), "ca-1".into(), public, plan.lifetime, NOW);
        Issuer::new(authority, key).unwrap()
    }

    /// What rcgen signs with. A type of its own, because rcgen does not know that an `Arc` can sign.
    struct Signer(Arc<SigningKey>);

    impl PublicKeyData for Signer {
        fn der_bytes(&self) -> &[u8] {
            self.0.der_bytes()
        }

        fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
            self.0.algorithm()
        }
    }

    impl rcgen::SigningKey for Signer {
        fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
            rcgen::SigningKey::sign(&*self.0, message)
        }
    }

    /// The same profile for rcgen, each field by hand: its own defaults are a common name of its own and a life of two
    /// thousand years.
    fn params(plan: &SvidPlan) -> CertificateParams {
        let mut names = Vec::with_capacity(1 + plan.dns_names.len());
        names.push(SanType::URI(plan.id.as_str().try_into().unwrap()));
        for name in &plan.dns_names {
            names.push(SanType::DnsName(name.as_str().try_into().unwrap()));
        }
        let mut subject = DistinguishedName::new();
        subject.push(DnType::OrganizationName, ORGANIZATION);
        if let Some(name) = plan.common_name() {
            subject.push(DnType::CommonName, name);
        }
        let mut params = CertificateParams::default();
        params.not_before = plan.lifetime.not_before.to_date_time();
        params.not_after = plan.lifetime.not_after.to_date_time();
        params.serial_number = Some(rcgen::SerialNumber::from_slice(plan.serial.bytes()));
        params.subject_alt_names = names;
        params.distinguished_name = subject;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.name_constraints = None;
        params.crl_distribution_points = Vec::new();
        params.custom_extensions = Vec::new();
        params.use_authority_key_identifier_extension = true;
        params.key_identifier_method = KeyIdMethod::PreSpecified(super::super::ca::key_identifier_of(plan.key.bits()));
        params
    }

    /// rcgen, ready to sign as `issuer` does.
    fn by_rcgen(issuer: &Issuer) -> rcgen::Issuer<'static, Signer> {
        rcgen::Issuer::from_ca_cert_der(issuer.chain().own(), Signer(issuer.key.clone())).unwrap()
    }

    fn plan(kind: KeyType, dns_names: &[&str]) -> SvidPlan {
        let key = spiffe::crypto::generate_key(kind).unwrap();
        SvidPlan {
            id: SpiffeId::parse("spiffe://example.org/web").unwrap(),
            dns_names: dns_names.iter().map(|name| DnsName::parse(name).unwrap()).collect(),
            key: ProvenKey::from_csr(&spiffe::csr::create(&key).unwrap()).unwrap(),
            serial: Serial::from_random([0xff; 16]),
            lifetime: Lifetime { not_before: NOW.minus(Duration::from_secs(60)), not_after: NOW.plus(HOUR) },
        }
    }

    #[test]
    fn svids_of_each_kind_below_cas_of_each_kind_are_good_svids() {
        for ca in [KeyType::P256, KeyType::P384, KeyType::Ed25519] {
            let issuer = issuer(ca);
            let domain = TrustDomain::parse("example.org").unwrap();
            let root = X509Authority::from_der(issuer.chain().root().clone()).unwrap();
            let bundle = Bundle::new(domain, vec![root], 1, None).unwrap();
            for leaf in [KeyType::P256, KeyType::P384, KeyType::Ed25519] {
                let plan = plan(leaf, &["web.example.org", "*.web.example.org"]);
                let (id, serial, lifetime) = (plan.id.clone(), plan.serial, plan.lifetime);
                let signed = issuer.sign(plan).unwrap();
                let svid = X509Svid::parse(signed.chain().cloned().collect()).unwrap().verify(&bundle, NOW).unwrap();
                assert_eq!(*svid.id(), id);
                assert_eq!(svid.serial(), serial.bytes());
                assert_eq!(svid.lifetime(), lifetime);
            }
        }
    }

    #[test]
    fn every_byte_that_is_signed_is_as_rcgen_writes_it() {
        for ca in [KeyType::P256, KeyType::P384, KeyType::Ed25519] {
            let issuer = issuer(ca);
            let signer = by_rcgen(&issuer);
            let many: Vec<String> = (0..64).map(|n| format!("s{n}.{}.example.org", "a".repeat(n % 60 + 1))).collect();
            let many: Vec<&str> = many.iter().map(String::as_str).collect();
            for (leaf, names) in
                [(KeyType::P256, &[][..]), (KeyType::P384, &["web.example.org"]), (KeyType::Ed25519, &many)]
            {
                let plan = plan(leaf, names);
                let theirs = params(&plan).signed_by(&plan.key, &signer).unwrap();
                let ours = issuer.sign(plan).unwrap().leaf;
                let signed = |der: &[u8]| parse(der).unwrap().tbs_certificate.as_ref().to_vec();
                assert_eq!(signed(&ours), signed(theirs.der()), "{leaf} below {ca}, {} names", names.len());
                assert_eq!(parse(&ours).unwrap().signature_algorithm, parse(theirs.der()).unwrap().signature_algorithm);
            }
        }
    }

    #[test]
    fn the_common_name_is_the_first_dns_name_when_it_is_short_enough() {
        let issuer = issuer(KeyType::P256);
        let subject = |names: &[&str]| {
            let signed = issuer.sign(plan(KeyType::P256, names)).unwrap();
            parse(&signed.leaf).unwrap().subject().to_string()
        };
        let long = format!("{}.example.org", "a".repeat(53));
        assert_eq!(long.len(), 65);
        assert_eq!(subject(&[]), "O=SPIFFE");
        assert_eq!(subject(&["web.example.org", "b.example.org"]), "O=SPIFFE, CN=web.example.org");
        assert_eq!(subject(&[&long, "b.example.org"]), "O=SPIFFE");
        assert_eq!(subject(&[&long[1..]]), format!("O=SPIFFE, CN={}", &long[1..]));
    }

    #[test]
    fn a_ca_certificate_keeps_its_profile() {
        let issuer = issuer(KeyType::P256);
        let own = issuer.chain().own().clone();
        let certificate = parse(&own).unwrap();
        let subject = certificate.subject().to_string();
        assert_eq!(subject, "O=SPIFFE, serialNumber=47070707070707070707070707070707");
        assert_eq!(certificate.raw_serial(), [[0x47].as_slice(), &[7; 15]].concat());
        let constraints = certificate.basic_constraints().unwrap().unwrap();
        assert!(constraints.critical && constraints.value.ca && constraints.value.path_len_constraint == Some(0));
        let usage = certificate.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.flags == 0b110_0000);
        let names = &certificate.subject_alternative_name().unwrap().unwrap().value.general_names;
        assert!(matches!(names.as_slice(), [GeneralName::URI("spiffe://example.org")]));
        assert!(certificate.name_constraints().unwrap().is_none());
        assert_eq!(lifetime(&certificate).not_before, NOW.minus(Duration::from_secs(60)));
        assert_eq!(issuer.window(), lifetime(&certificate));
    }

    #[test]
    fn no_svid_goes_outside_the_life_of_its_ca() {
        let issuer = issuer(KeyType::P256);
        let end = issuer.window().not_after;
        let mut late = plan(KeyType::P256, &[]);
        late.lifetime.not_after = end.plus(Duration::from_secs(1));
        assert_eq!(issuer.sign(late).unwrap_err(), IssueError::OutsideChain(end));
        let mut early = plan(KeyType::P256, &[]);
        early.lifetime.not_before = NOW.minus(Duration::from_secs(61));
        assert_eq!(issuer.sign(early).unwrap_err(), IssueError::OutsideChain(end));
    }

    #[test]
    fn a_certificate_that_is_not_its_plan_is_dropped() {
        let issuer = issuer(KeyType::P256);
        let planned = || plan(KeyType::P256, &["web.example.org"]);
        let mut wrong_name = planned();
        let identifier = super::super::ca::key_identifier_of(wrong_name.key.bits());
        let signer = by_rcgen(&issuer);
        let sign = |change: fn(&mut CertificateParams)| {
            let plan = planned();
            let mut params = params(&plan);
            change(&mut params);
            let leaf: CertificateDer<'static> = params.signed_by(&plan.key, &signer).unwrap().into();
            issuer.compare(&leaf, &plan, &super::super::ca::key_identifier_of(plan.key.bits()))
        };
        let differs = |field| Err(IssueError::Differs(field));
        assert_eq!(sign(|_| {}), Ok(()));
        assert_eq!(sign(|p| p.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained)), differs("basic constraints"));
        assert_eq!(sign(|p| p.is_ca = IsCa::NoCa), differs("extensions"));
        assert_eq!(sign(|p| p.key_usages.push(KeyUsagePurpose::KeyCertSign)), differs("key usage"));
        assert_eq!(sign(|p| p.extended_key_usages.truncate(1)), differs("extended key usage"));
        assert_eq!(sign(|p| p.extended_key_usages.push(ExtendedKeyUsagePurpose::Any)), differs("extended key usage"));
        assert_eq!(sign(|p| p.subject_alt_names.truncate(1)), differs("subject alternative name"));
        assert_eq!(sign(|p| p.subject_alt_names.swap(0, 1)), differs("subject alternative name"));
        assert_eq!(sign(|p| p.serial_number = None), differs("serial number"));
        assert_eq!(sign(|p| p.not_after += time::Duration::seconds(1)), differs("validity"));
        assert_eq!(sign(|p| p.distinguished_name.push(DnType::CountryName, "NL")), differs("subject"));
        assert_eq!(sign(|p| p.use_authority_key_identifier_extension = false), differs("extensions"));
        assert_eq!(
            sign(|p| p.key_identifier_method = KeyIdMethod::PreSpecified(vec![1])),
            differs("subject key identifier")
        );
        // Signed by one CA, compared by another.
        let foreign = self::issuer(KeyType::P256);
        let leaf = foreign.sign(planned()).unwrap().leaf;
        wrong_name.serial = Serial::from_random([0xff; 16]);
        assert!(matches!(issuer.compare(&leaf, &wrong_name, &identifier), Err(IssueError::Differs(_))));
    }

    #[test]
    fn a_key_must_be_that_of_the_authority() {
        let authority = issuer(KeyType::P256).authority().clone();
        let other = Arc::new(SigningKey::generate(KeySpec::P256).unwrap());
        let id = authority.id.clone();
        assert_eq!(Issuer::new(authority, other).unwrap_err(), IssueError::WrongKey(id));
    }

    #[test]
    fn serial_numbers_are_positive_and_of_one_length() {
        for byte in [0, 0x3f, 0x40, 0x7f, 0x80, 0xff] {
            let first = Serial::from_random([byte; 16]).bytes()[0];
            assert!((0x40..=0x7f).contains(&first));
        }
        assert_eq!(Serial::from_random([0; 16]).to_string(), "40000000000000000000000000000000");
    }
}
