//! The verifier of both sides.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{CurrentBundles, Peers};
use crate::bundle::{Bundle, X509Authority};
use crate::crypto;
use crate::time::Clock;
use crate::x509_svid::{Purpose, SvidError, X509Svid};

/// What a peer's path must lead to.
#[derive(Debug)]
pub(super) enum Trust {
    Bundles(CurrentBundles),
    /// The SHA-256 of a certificate that the peer presents itself.
    Fingerprint([u8; 32]),
}

#[derive(Debug)]
pub(super) struct SvidVerifier {
    trust: Trust,
    peers: Peers,
    require: bool,
    clock: Arc<dyn Clock>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl SvidVerifier {
    pub(super) fn new(trust: Trust, peers: Peers, require: bool, clock: Arc<dyn Clock>) -> Self {
        let algorithms = crypto::provider().signature_verification_algorithms;
        Self { trust, peers, require, clock, algorithms }
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        purpose: Purpose,
    ) -> Result<(), SvidError> {
        let chain = std::iter::once(leaf).chain(intermediates).map(|der| der.clone().into_owned()).collect();
        let svid = X509Svid::parse(chain)?;
        let now = self.clock.now();
        let verified = match &self.trust {
            Trust::Bundles(bundles) => {
                let bundles = bundles.load();
                let bundle = bundles
                    .get(&svid.id().trust_domain())
                    .ok_or_else(|| SvidError::UnknownTrustDomain(svid.id().clone()))?;
                svid.verify_as(bundle, now, purpose)?
            }
            Trust::Fingerprint(fingerprint) => {
                let known = svid.chain().iter().find(|certificate| crypto::sha256(certificate) == *fingerprint);
                let root = known.ok_or_else(|| SvidError::Fingerprint(crypto::hex(fingerprint)))?;
                let root = X509Authority::from_der(root.clone())?;
                let bundle = Bundle::new(svid.id().trust_domain(), vec![root], 0, None)?;
                svid.verify_as(&bundle, now, purpose)?
            }
        };
        if self.peers.include(verified.id()) {
            return Ok(());
        }
        Err(SvidError::NotAllowed { found: verified.id().clone(), wanted: self.peers.to_string() })
    }

    fn tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signature, &self.algorithms)
    }
}

/// A refusal in the text of a [`rustls::Error`], which prints what is inside by `Debug`.
struct Refusal(SvidError);

impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl std::error::Error for Refusal {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

fn refusal(error: SvidError) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(Refusal(error)))))
}

fn no_tls12() -> Error {
    Error::General("TLS 1.2 is not spoken here".into())
}

impl ServerCertVerifier for SvidVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(leaf, intermediates, Purpose::Server).map_err(refusal)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.tls13_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for SvidVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.require
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(leaf, intermediates, Purpose::Client).map_err(refusal)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.tls13_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
