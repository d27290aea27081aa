//! The proof by a certificate that the node already has.
//!
//! - Evidence: JSON `{"certificates":["<base64 DER>", ..]}`, the node's own first, then intermediates.
//! - Challenge: 32 random bytes. Answer: JSON `{"nonce":"<base64 of 32 bytes>","signature":"<base64>"}`.
//! - Signed: `chancery-x509pop-v1`, a zero byte, the server's nonce, the agent's nonce, SHA-256 of the CSR. RSA signs
//!   by PSS with SHA-256, P-256 with SHA-256, P-384 with SHA-384 (both ASN.1), Ed25519 as it is.

use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustls::SignatureScheme;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::sign::SigningKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use spiffe::crypto::{random, sha256};

use super::{NodeError, folder};

const CONTEXT: &[u8] = b"chancery-x509pop-v1\0";
const SCHEMES: [SignatureScheme; 4] = [
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ED25519,
];

/// A node's certificate and the key to prove that it is the node's.
#[derive(Debug)]
pub struct Prover {
    certificates: Vec<CertificateDer<'static>>,
    key: Arc<dyn SigningKey>,
}

impl Prover {
    /// Reads both PEM files.
    pub fn load(certificates: &Path, private_key: &Path) -> Result<Self, NodeError> {
        let wrong = |path: &Path, why: String| NodeError::Content { path: path.to_owned(), why };
        let missing = |path: &Path| NodeError::Content { path: path.to_owned(), why: "there is no such file".into() };
        let pem = folder::read(certificates)?.ok_or_else(|| missing(certificates))?;
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem)
            .collect::<Result<_, _>>()
            .map_err(|error| wrong(certificates, format!("no PEM certificates: {error}")))?;
        if chain.is_empty() {
            return Err(wrong(certificates, "there is no PEM certificate in it".into()));
        }
        let pem = folder::read(private_key)?.ok_or_else(|| missing(private_key))?;
        let key = PrivateKeyDer::from_pem_slice(&pem)
            .map_err(|error| wrong(private_key, format!("no private key in PEM: {error}")))?;
        let key = any_supported_type(&key)
            .map_err(|error| wrong(private_key, format!("use an RSA, P-256, P-384 or Ed25519 key: {error}")))?;
        Ok(Self { certificates: chain, key })
    }

    /// What is sent first.
    pub fn evidence(&self) -> Vec<u8> {
        let certificates: Vec<String> = self.certificates.iter().map(|der| BASE64.encode(der)).collect();
        serde_json::json!({ "certificates": certificates }).to_string().into_bytes()
    }

    /// The answer to the challenge `nonce`, for this CSR.
    pub fn answer(&self, nonce: &[u8], csr: &[u8]) -> Result<Vec<u8>, String> {
        if nonce.len() != 32 {
            return Err(format!("the server's x509pop challenge has {} bytes instead of 32", nonce.len()));
        }
        let own: [u8; 32] = random().map_err(|error| error.to_string())?;
        let signer = self.key.choose_scheme(&SCHEMES).ok_or("the node's key can make no signature that is accepted")?;
        let message = [CONTEXT, nonce, &own, &sha256(csr)].concat();
        let signature = signer.sign(&message).map_err(|error| format!("the node's key does not sign: {error}"))?;
        let (nonce, signature) = (BASE64.encode(own), BASE64.encode(signature));
        Ok(serde_json::json!({ "nonce": nonce, "signature": signature }).to_string().into_bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use ring::signature::{
        ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519, UnparsedPublicKey, VerificationAlgorithm,
    };

    use super::*;

    #[test]
    fn each_kind_of_key_signs_what_the_server_checks() {
        let kinds: [(_, &'static dyn VerificationAlgorithm); 3] = [
            (&rcgen::PKCS_ECDSA_P256_SHA256, &ECDSA_P256_SHA256_ASN1),
            (&rcgen::PKCS_ECDSA_P384_SHA384, &ECDSA_P384_SHA384_ASN1),
            (&rcgen::PKCS_ED25519, &ED25519),
        ];
        let place = tempfile::tempdir().unwrap();
        let (certificate_file, key_file) = (place.path().join("c.pem"), place.path().join("k.pem"));
        for (kind, verifier) in kinds {
            let key = rcgen::KeyPair::generate_for(kind).unwrap();
            let certificate = rcgen::CertificateParams::new(vec!["node".into()]).unwrap().self_signed(&key).unwrap();
            fs::write(&certificate_file, certificate.pem()).unwrap();
            fs::write(&key_file, key.serialize_pem()).unwrap();
            let prover = Prover::load(&certificate_file, &key_file).unwrap();
            let evidence: serde_json::Value = serde_json::from_slice(&prover.evidence()).unwrap();
            assert_eq!(evidence["certificates"][0], BASE64.encode(certificate.der()));
            let answer: serde_json::Value = serde_json::from_slice(&prover.answer(&[7; 32], b"csr").unwrap()).unwrap();
            let bytes = |name: &str| BASE64.decode(answer[name].as_str().unwrap()).unwrap();
            let message = [b"chancery-x509pop-v1\0", [7; 32].as_slice(), &bytes("nonce"), &sha256(b"csr")].concat();
            UnparsedPublicKey::new(verifier, key.public_key_raw()).verify(&message, &bytes("signature")).unwrap();
            assert!(prover.answer(&[7; 31], b"csr").is_err());
        }
    }

    #[test]
    fn a_wrong_file_is_named() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("none.pem");
        assert!(Prover::load(&path, &path).unwrap_err().to_string().contains("none.pem: there is no such file"));
        fs::write(&path, "no pem").unwrap();
        assert!(Prover::load(&path, &path).unwrap_err().to_string().contains("no PEM certificate"));
    }
}
