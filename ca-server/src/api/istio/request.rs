//! What a proxy asks for: a key, a life, and perhaps the identity of another. Pure.

use std::time::Duration;

use prost_types::value::Kind;
use prost_types::{Struct, Value};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject as _;
use spiffe::csr::{CsrError, ProvenKey};

/// The key of the metadata under which the identity of another is asked for.
const IMPERSONATED: &str = "ImpersonatedIdentity";

/// Why a CSR is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RequestError {
    #[error("the CSR is no PEM: send one section BEGIN CERTIFICATE REQUEST")]
    NoPem,
    #[error("the CSR has more than one section: send one BEGIN CERTIFICATE REQUEST and nothing else")]
    Several,
    #[error(transparent)]
    Csr(#[from] CsrError),
}

/// The metadata names somebody by something that is no text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the metadata's ImpersonatedIdentity is no text")]
pub(super) struct NoText;

/// The one CSR in a text, not looked into.
pub(super) fn csr(pem: &str) -> Result<CertificateSigningRequestDer<'static>, RequestError> {
    let mut sections = CertificateSigningRequestDer::pem_slice_iter(pem.as_bytes());
    let der = sections.next().and_then(Result::ok).ok_or(RequestError::NoPem)?;
    if sections.next().is_some() {
        return Err(RequestError::Several);
    }
    Ok(der)
}

/// The key in a CSR. Nothing else of it counts: neither names nor a wish to be a CA.
pub(super) fn key(csr: &[u8]) -> Result<ProvenKey, RequestError> {
    Ok(ProvenKey::from_csr(csr)?)
}

/// The life that is asked for; `None`: whatever the CA gives, which is what zero and less mean.
pub(super) fn ttl(validity_duration: i64) -> Option<Duration> {
    u64::try_from(validity_duration).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs)
}

/// The identity of another that is asked for; an empty text asks for none. What else the metadata says is passed over.
pub(super) fn impersonated(metadata: Option<Struct>) -> Result<Option<String>, NoText> {
    let value = metadata.and_then(|mut metadata| metadata.fields.remove(IMPERSONATED));
    match value.map(|Value { kind }| kind) {
        None | Some(None | Some(Kind::NullValue(_))) => Ok(None),
        Some(Some(Kind::StringValue(asked))) => Ok((!asked.is_empty()).then_some(asked)),
        Some(Some(_)) => Err(NoText),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use spiffe::entry::KeyType;

    use super::*;

    fn pem(label: &str) -> String {
        let csr = spiffe::csr::create(&spiffe::crypto::generate_key(KeyType::P256).unwrap()).unwrap();
        let pem = spiffe::pem::certificate(&csr);
        pem.replace("CERTIFICATE", label)
    }

    #[test]
    fn one_csr_gives_its_key() {
        let of = |pem: &str| csr(pem).and_then(|csr| key(&csr)).map(|key| key.key_type());
        let one = pem("CERTIFICATE REQUEST");
        assert_eq!(of(&one), Ok(KeyType::P256));
        assert_eq!(of(""), Err(RequestError::NoPem));
        assert_eq!(of("rubbish"), Err(RequestError::NoPem));
        assert_eq!(of(&pem("CERTIFICATE")), Err(RequestError::NoPem));
        assert_eq!(of(&format!("{one}{one}")), Err(RequestError::Several));
        let broken = "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n";
        assert_eq!(of(broken), Err(RequestError::Csr(CsrError::Malformed)));
    }

    #[test]
    fn a_life_of_nothing_or_less_asks_for_none() {
        assert_eq!(ttl(86_400), Some(Duration::from_secs(86_400)));
        assert_eq!((ttl(0), ttl(-1), ttl(i64::MIN)), (None, None, None));
        assert_eq!(ttl(i64::MAX), Some(Duration::from_secs(i64::MAX.unsigned_abs())));
    }

    #[test]
    fn an_identity_of_another_is_a_text() {
        let of = |key: &str, kind: Option<Kind>| {
            impersonated(Some(Struct { fields: [(key.into(), Value { kind })].into() }))
        };
        let text = |text: &str| Some(Kind::StringValue(text.into()));
        assert_eq!(of(IMPERSONATED, text("spiffe://a/b")), Ok(Some("spiffe://a/b".into())));
        assert_eq!(of(IMPERSONATED, text("")), Ok(None));
        assert_eq!((of(IMPERSONATED, None), impersonated(None)), (Ok(None), Ok(None)));
        assert_eq!(of("CertSigner", text("")), Ok(None), "as a sidecar sends it");
        assert_eq!(of(IMPERSONATED, Some(Kind::NumberValue(1.0))), Err(NoText));
        assert_eq!(of(IMPERSONATED, Some(Kind::ListValue(prost_types::ListValue::default()))), Err(NoText));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text: String) {
            let _ = csr(&text);
            let _ = csr(&format!("-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n"));
        }
    }
}
