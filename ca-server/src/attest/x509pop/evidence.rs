//! The evidence: certificates from strangers, read and held to their limits before any signature is verified.

use base64::Engine as _;
use rustls::SignatureScheme;
use rustls_pki_types::CertificateDer;
use serde::Deserialize;
use spiffe::crypto::hex;
use x509_parser::prelude::{FromDer as _, GeneralName, ParsedExtension, X509Certificate};
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::{BASE64, KIND, MAX_CERTIFICATE_BYTES, MAX_EVIDENCE_BYTES, X509PopError};

/// What the limits of a chain are.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most certificates.
    pub max_chain: usize,
    /// The shortest RSA modulus, in bits.
    pub min_rsa_bits: usize,
    /// The longest RSA modulus, in bits.
    pub max_rsa_bits: usize,
}

/// Evidence within its limits; nothing is verified yet.
#[derive(Clone, Debug)]
pub struct Evidence {
    pub(super) leaf: CertificateDer<'static>,
    pub(super) intermediates: Vec<CertificateDer<'static>>,
    pub(super) scheme: SignatureScheme,
    pub(super) selectors: Vec<String>,
}

/// Parses evidence and checks sizes, counts and keys. Meets bytes from strangers.
pub fn parse_evidence(bytes: &[u8], limits: &Limits) -> Result<Evidence, X509PopError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Wire {
        certificates: Vec<String>,
    }
    if bytes.len() > MAX_EVIDENCE_BYTES {
        return Err(X509PopError::EvidenceTooLarge(bytes.len()));
    }
    let Wire { certificates } =
        serde_json::from_slice(bytes).map_err(|error| X509PopError::Evidence(error.to_string()))?;
    let (count, most) = (certificates.len(), limits.max_chain);
    if count > most {
        return Err(X509PopError::ChainLength { count, most });
    }
    let mut chain = Vec::with_capacity(count);
    for (at, text) in certificates.into_iter().enumerate() {
        let der = BASE64.decode(text).map_err(|error| X509PopError::Evidence(format!("certificate {at}: {error}")))?;
        if der.len() > MAX_CERTIFICATE_BYTES {
            return Err(X509PopError::CertificateTooLarge { at, bytes: der.len() });
        }
        chain.push(CertificateDer::from(der));
    }
    let mut first = None;
    for (at, der) in chain.iter().enumerate() {
        let certificate = parse_certificate(at, der)?;
        let scheme = key_within_limits(at, certificate.public_key(), limits)?;
        if at == 0 {
            first = Some((scheme, leaf_selectors(&certificate)));
        }
    }
    let (scheme, selectors) = first.ok_or(X509PopError::ChainLength { count, most })?;
    let intermediates = chain.split_off(1);
    let leaf = chain.pop().ok_or(X509PopError::ChainLength { count, most })?;
    Ok(Evidence { leaf, intermediates, scheme, selectors })
}

fn parse_certificate(at: usize, der: &[u8]) -> Result<X509Certificate<'_>, X509PopError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(X509PopError::Certificate(at)),
    }
}

/// How a key of this kind answers a challenge, when it is one that is taken.
fn key_within_limits(
    at: usize,
    key: &SubjectPublicKeyInfo<'_>,
    limits: &Limits,
) -> Result<SignatureScheme, X509PopError> {
    use x509_parser::oid_registry::{OID_EC_P256, OID_NIST_EC_P384, OID_SIG_ED25519};
    if key.algorithm.algorithm == OID_SIG_ED25519 {
        return Ok(SignatureScheme::ED25519);
    }
    match key.parsed() {
        Ok(PublicKey::EC(_)) => match key.algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok()) {
            Some(curve) if curve == OID_EC_P256 => Ok(SignatureScheme::ECDSA_NISTP256_SHA256),
            Some(curve) if curve == OID_NIST_EC_P384 => Ok(SignatureScheme::ECDSA_NISTP384_SHA384),
            _ => Err(X509PopError::Key(at)),
        },
        Ok(PublicKey::RSA(rsa)) => {
            let (bits, least, most) = (bits(rsa.modulus), limits.min_rsa_bits, limits.max_rsa_bits);
            if bits < least || bits > most {
                return Err(X509PopError::RsaSize { at, bits, least, most });
            }
            // FIPS 186-5 section 5.4 begins above 2^16; ring ends at 33 bits.
            let odd = rsa.exponent.last().is_some_and(|last| last & 1 == 1);
            if !odd || !(17..=33).contains(&self::bits(rsa.exponent)) {
                return Err(X509PopError::RsaExponent(at));
            }
            Ok(SignatureScheme::RSA_PSS_SHA256)
        }
        _ => Err(X509PopError::Key(at)),
    }
}

/// How many bits the unsigned number in `bytes` has.
fn bits(bytes: &[u8]) -> usize {
    match bytes.iter().position(|byte| *byte != 0) {
        Some(at) => (bytes.len() - at) * 8 - bytes.get(at).map_or(0, |byte| byte.leading_zeros()) as usize,
        None => 0,
    }
}

fn leaf_selectors(certificate: &X509Certificate<'_>) -> Vec<String> {
    let mut selectors = Vec::new();
    for name in certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok()) {
        selectors.push(format!("{KIND}:subject:cn:{name}"));
    }
    let serial = certificate.raw_serial();
    let serial = serial.strip_prefix(&[0]).filter(|rest| !rest.is_empty()).unwrap_or(serial);
    selectors.push(format!("{KIND}:serialnumber:{}", hex(serial)));
    for extension in certificate.extensions() {
        let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else { continue };
        for name in &names.general_names {
            match name {
                GeneralName::DNSName(name) => selectors.push(format!("{KIND}:san:dns:{}", name.to_ascii_lowercase())),
                GeneralName::URI(uri) => selectors.push(format!("{KIND}:san:uri:{uri}")),
                _ => {}
            }
        }
    }
    selectors
}
