//! The PEM form of a bundle: certificates one after the other (RFC 7468).

use rustls_pki_types::pem::{PemObject, SectionKind};

use super::{BundleError, MAX_DOCUMENT_BYTES, X509Authority};

const PRIVATE_KEY: &[u8] = b"PRIVATE KEY-----";

pub(super) fn read(pem: &[u8]) -> Result<Vec<X509Authority>, BundleError> {
    if pem.len() > MAX_DOCUMENT_BYTES {
        return Err(BundleError::DocumentTooLarge(pem.len()));
    }
    // Before anything is decoded: also the kinds of private key that the parser does not know are seen.
    if pem.windows(PRIVATE_KEY.len()).any(|window| window == PRIVATE_KEY) {
        return Err(BundleError::PrivateKey);
    }
    let mut authorities = Vec::new();
    for (index, section) in <(SectionKind, Vec<u8>)>::pem_slice_iter(pem).enumerate() {
        let (kind, der) = section.map_err(|error| BundleError::Pem(error.to_string()))?;
        if kind != SectionKind::Certificate {
            return Err(BundleError::NotACertificate(format!("{kind:?}")));
        }
        let authority = X509Authority::from_der(der.into())
            .map_err(|error| BundleError::Certificate(index + 1, Box::new(error)))?;
        authorities.push(authority);
    }
    if authorities.is_empty() { Err(BundleError::NoCertificate) } else { Ok(authorities) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Bundle;
    use super::*;
    use crate::id::TrustDomain;
    use crate::pem::certificate as write;
    use crate::test_certificates::Authority;

    fn from(pem: &str) -> Result<Bundle, BundleError> {
        Bundle::from_pem(TrustDomain::parse("example.org").unwrap(), pem.as_bytes())
    }

    #[test]
    fn what_is_written_reads_back_the_same() {
        let (one, two) = (Authority::root("one"), Authority::root("two"));
        let text = format!("the first\n{}\nthe second\n{}", write(one.der()), write(two.der()));
        let bundle = from(&text).unwrap();
        assert_eq!(bundle.x509_authorities(), [one.x509_authority(), two.x509_authority()]);
        assert_eq!(from(&bundle.to_pem()).unwrap(), bundle);
        assert!(bundle.to_pem().lines().all(|line| line.len() <= 64));
        assert_eq!(bundle.to_der(), [&one.der()[..], &two.der()[..]].concat());
    }

    #[test]
    fn each_rule_has_its_error() {
        let root = Authority::root("root");
        let certificate = write(root.der());
        assert_eq!(from(""), Err(BundleError::NoCertificate));
        assert_eq!(from(&(certificate.clone() + &root.key().serialize_pem())), Err(BundleError::PrivateKey));
        assert_eq!(from("-----BEGIN ENCRYPTED PRIVATE KEY-----"), Err(BundleError::PrivateKey));
        let public = certificate.clone() + &root.key().public_key_pem();
        assert_eq!(from(&public), Err(BundleError::NotACertificate("PublicKey".into())));
        assert!(matches!(from("-----BEGIN CERTIFICATE-----\n*\n-----END CERTIFICATE-----"), Err(BundleError::Pem(_))));
        let second = certificate + "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert_eq!(from(&second), Err(BundleError::Certificate(2, Box::new(BundleError::Malformed))));
        let large = " ".repeat(MAX_DOCUMENT_BYTES + 1);
        assert_eq!(from(&large), Err(BundleError::DocumentTooLarge(MAX_DOCUMENT_BYTES + 1)));
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(text in "\\PC{0,64}", at: prop::sample::Index, byte: u8) {
            let _ = read(text.as_bytes());
            let mut pem = write(Authority::shared().der()).into_bytes();
            let at = at.index(pem.len());
            pem[at] = byte;
            let _ = read(&pem);
        }
    }
}
