//! x509pop: a node proves that it holds the key of a certificate that one of the configured CAs issued to it.
//!
//! - Evidence: JSON `{"certificates": ["<base64 DER>", ..]}`, the node's own first, then intermediates.
//! - Challenge: 32 random bytes. Answer: JSON `{"nonce": "<base64 of 32 bytes>", "signature": "<base64>"}`.
//! - What is signed ([`signed_bytes`]): `chancery-x509pop-v1`, a zero byte, the server's nonce, the agent's nonce, and the
//!   SHA-256 of the CSR. So the answer is worth nothing for another challenge, another CSR or another protocol.
//! - RSA signs by PSS with SHA-256, P-256 by ECDSA with SHA-256 (ASN.1), P-384 by ECDSA with SHA-384 (ASN.1), or Ed25519.
//! - Sizes, counts and keys of the whole chain are checked before any signature is verified.

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use serde::Deserialize;
use spiffe::crypto::{provider, sha256, sha256_hex};
use spiffe::selector::{Selector, SelectorError, Selectors};
use spiffe::time::Timestamp;

use super::{Attempt, AttestError, Attested, Challenge, NodeAttestor, Step, in_words};
use crate::config::{self, ConfigError};

pub use self::evidence::{Evidence, Limits, parse_evidence};

mod evidence;

/// The name of this kind.
pub const KIND: &str = "x509pop";

/// The largest evidence, in bytes: eight certificates of the largest size, in base64.
pub const MAX_EVIDENCE_BYTES: usize = 192 << 10;
/// The largest single certificate, in bytes of DER.
pub const MAX_CERTIFICATE_BYTES: usize = 16 << 10;
/// The largest answer to a challenge, in bytes.
pub const MAX_ANSWER_BYTES: usize = 4 << 10;

const CONTEXT: &[u8] = b"chancery-x509pop-v1\0";

/// Why a certificate, or the proof of its key, is no good.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum X509PopError {
    /// Evidence beyond [`MAX_EVIDENCE_BYTES`].
    #[error("x509pop evidence has {0} bytes: at most {MAX_EVIDENCE_BYTES} are allowed")]
    EvidenceTooLarge(usize),
    /// Evidence in another form.
    #[error("x509pop evidence cannot be read ({0}): send JSON {{\"certificates\": [\"<base64 DER>\", ..]}}")]
    Evidence(String),
    /// More certificates than allowed.
    #[error("x509pop chain has {count} certificates: 1 to {most} are allowed")]
    ChainLength {
        /// How many were sent.
        count: usize,
        /// How many may be.
        most: usize,
    },
    /// One certificate beyond [`MAX_CERTIFICATE_BYTES`].
    #[error("x509pop certificate {at} has {bytes} bytes: at most {MAX_CERTIFICATE_BYTES} are allowed")]
    CertificateTooLarge {
        /// Its place in the chain, from 0.
        at: usize,
        /// Its size.
        bytes: usize,
    },
    /// Not a certificate.
    #[error("x509pop certificate {0} cannot be read: send one X.509 v3 certificate in DER each")]
    Certificate(usize),
    /// An RSA modulus outside the limits.
    #[error("x509pop certificate {at} has an RSA key of {bits} bits: {least} to {most} are allowed")]
    RsaSize {
        /// Its place in the chain, from 0.
        at: usize,
        /// The size of its modulus.
        bits: usize,
        /// The least that is allowed.
        least: usize,
        /// The most that is allowed.
        most: usize,
    },
    /// An RSA exponent that is even, small or huge.
    #[error("x509pop certificate {0} has an RSA key with an exponent that is not allowed: use 65537")]
    RsaExponent(usize),
    /// A key that is neither RSA nor on a curve that is known.
    #[error("x509pop certificate {0} has a kind of key that is not taken: use RSA, P-256, P-384 or Ed25519")]
    Key(usize),
    /// The node's own certificate, or one above it, has expired.
    #[error("x509pop certificate expired {0} ago: renew the node's certificate")]
    Expired(String),
    /// It is not valid yet.
    #[error("x509pop certificate is valid only in {0}: check the clocks")]
    NotYetValid(String),
    /// No path to a configured CA.
    #[error(
        "x509pop certificate was issued by no CA of attest.x509pop.ca_bundle: send the intermediates too, or have the CA added"
    )]
    ForeignCa,
    /// The path breaks a rule.
    #[error("x509pop chain is refused: {0}")]
    Chain(String),
    /// More names than selectors may be.
    #[error("x509pop certificate names too much: {0}")]
    Selectors(#[from] SelectorError),
    /// An answer in another form.
    #[error(
        "x509pop answer cannot be read ({0}): send JSON {{\"nonce\": \"<base64 of 32 bytes>\", \"signature\": \"<base64>\"}}"
    )]
    Answer(String),
    /// The signature is not the node's over this challenge and this CSR.
    #[error("x509pop signature is wrong: it must be made with the certificate's key over this challenge and this CSR")]
    Signature,
}

/// Takes certificates of the configured CAs.
#[derive(Debug)]
pub struct X509PopAttestor {
    anchors: Vec<TrustAnchor<'static>>,
    /// SHA-256 of the certificate of each anchor, in the same order.
    fingerprints: Vec<String>,
    limits: Limits,
}

impl X509PopAttestor {
    /// Reads the CA bundle that `config` names.
    pub fn from_config(config: &config::X509Pop) -> Result<Self, ConfigError> {
        let key = "attest.x509pop.ca_bundle";
        let roots = config::certificates(key, &config.ca_bundle)?;
        let config::X509Pop { max_chain, min_rsa_bits, max_rsa_bits, .. } = *config;
        Self::new(&roots, Limits { max_chain, min_rsa_bits, max_rsa_bits }).map_err(|error| ConfigError::File {
            key,
            path: config.ca_bundle.clone(),
            reason: format!("a certificate in it cannot be a trust anchor ({error})"),
        })
    }

    /// Takes certificates issued below `roots`.
    pub fn new(roots: &[CertificateDer<'static>], limits: Limits) -> Result<Self, webpki::Error> {
        let anchor = |root| webpki::anchor_from_trusted_cert(root).map(|anchor| anchor.to_owned());
        let anchors = roots.iter().map(anchor).collect::<Result<_, _>>()?;
        let fingerprints = roots.iter().map(|root| sha256_hex(root)).collect();
        Ok(Self { anchors, fingerprints, limits })
    }

    fn check(&self, attempt: &Attempt<'_>) -> Result<Challenge, X509PopError> {
        let evidence = parse_evidence(attempt.evidence, &self.limits)?;
        let attested = self.verify_path(&evidence, attempt.now)?;
        let (nonce, csr_sha256) = (attempt.nonce, sha256(attempt.csr_der));
        let answer = move |answer: &[u8]| {
            check_answer(&evidence, &nonce, &csr_sha256, answer)?;
            Ok(Step::Done(attested))
        };
        Ok(Challenge { bytes: nonce.to_vec(), answer: Box::new(answer) })
    }

    fn verify_path(&self, evidence: &Evidence, now: Timestamp) -> Result<Attested, X509PopError> {
        let leaf = webpki::EndEntityCert::try_from(&evidence.leaf).map_err(|_| X509PopError::Certificate(0))?;
        let path = leaf
            .verify_for_usage(
                provider().signature_verification_algorithms.all,
                &self.anchors,
                &evidence.intermediates,
                now.to_unix_time(),
                // With an extended key usage it must be there; without one the certificate is for everything.
                webpki::KeyUsage::client_auth(),
                None,
                None,
            )
            .map_err(|error| path_error(&error))?;
        let mut selectors = evidence.selectors.clone();
        let mut add_ca = |fingerprint: &str| selectors.push(format!("{KIND}:ca:fingerprint:{fingerprint}"));
        path.intermediate_certificates().for_each(|certificate| add_ca(&sha256_hex(&certificate.der())));
        let is_used = |anchor: &TrustAnchor<'_>| anchor == path.anchor();
        self.anchors
            .iter()
            .zip(&self.fingerprints)
            .filter(|(anchor, _)| is_used(anchor))
            .for_each(|(_, it)| add_ca(it));
        // A name that can be no selector (a control character, nothing at all) can be selected by nobody.
        let selectors = Selectors::new(selectors.iter().filter_map(|text| Selector::parse(text).ok()))?;
        Ok(Attested { node: sha256_hex(&evidence.leaf), selectors, token: None, alias: None, may_reattest: true })
    }
}

#[async_trait]
impl NodeAttestor for X509PopAttestor {
    fn kind(&self) -> &'static str {
        KIND
    }

    async fn start(&self, attempt: Attempt<'_>) -> Result<Step, AttestError> {
        Ok(Step::Challenge(self.check(&attempt)?))
    }
}

/// What is signed: see the head of this file.
pub fn signed_bytes(server_nonce: &[u8; 32], agent_nonce: &[u8; 32], csr_sha256: &[u8; 32]) -> Vec<u8> {
    [CONTEXT, server_nonce, agent_nonce, csr_sha256].concat()
}

fn path_error(error: &webpki::Error) -> X509PopError {
    let moment = |time: &UnixTime| Timestamp::from_unix(time.as_secs());
    match error {
        webpki::Error::CertExpired { time, not_after } => {
            X509PopError::Expired(in_words(moment(time).since(moment(not_after))))
        }
        webpki::Error::CertNotValidYet { time, not_before } => {
            X509PopError::NotYetValid(in_words(moment(not_before).since(moment(time))))
        }
        // The second: a CA that only bears the name of one of ours.
        webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => X509PopError::ForeignCa,
        other => X509PopError::Chain(other.to_string()),
    }
}

fn check_answer(
    evidence: &Evidence,
    server_nonce: &[u8; 32],
    csr_sha256: &[u8; 32],
    answer: &[u8],
) -> Result<(), X509PopError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Wire {
        nonce: String,
        signature: String,
    }
    if answer.len() > MAX_ANSWER_BYTES {
        return Err(X509PopError::Answer(format!("{} bytes are too many", answer.len())));
    }
    let Wire { nonce, signature } =
        serde_json::from_slice(answer).map_err(|error| X509PopError::Answer(error.to_string()))?;
    let decode = |text: &str| BASE64.decode(text).map_err(|error| X509PopError::Answer(error.to_string()));
    let agent_nonce: [u8; 32] =
        decode(&nonce)?.try_into().map_err(|_| X509PopError::Answer("nonce is not 32 bytes".into()))?;
    let signature = decode(&signature)?;
    let message = signed_bytes(server_nonce, &agent_nonce, csr_sha256);
    let leaf = webpki::EndEntityCert::try_from(&evidence.leaf).map_err(|_| X509PopError::Certificate(0))?;
    let provider = provider();
    // A scheme may have several algorithms; the one for another curve fails on this key.
    let mapping = provider.signature_verification_algorithms.mapping.iter();
    let algorithms = mapping.filter(|(scheme, _)| *scheme == evidence.scheme).flat_map(|(_, algorithms)| *algorithms);
    for algorithm in algorithms {
        if leaf.verify_signature(*algorithm, &message, &signature).is_ok() {
            return Ok(());
        }
    }
    Err(X509PopError::Signature)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, PublicKeyData, SigningKey,
    };
    use spiffe::crypto::generate_key;
    use spiffe::entry::KeyType;

    use super::*;

    const NOW: Timestamp = Timestamp::from_unix(1_795_218_000);
    const DAY: Duration = Duration::from_secs(86_400);
    const LIMITS: Limits = Limits { max_chain: 5, min_rsa_bits: 2048, max_rsa_bits: 4096 };
    const CSR: &[u8] = b"a CSR";
    const RSA_KEY: &str = include_str!("test_rsa2048.pem");

    type Ca = CertifiedIssuer<'static, KeyPair>;

    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = NOW.minus(DAY).to_date_time();
        params.not_after = NOW.plus(DAY).to_date_time();
        params
    }

    fn ca_params(name: &str) -> CertificateParams {
        let mut params = params(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    }

    fn root() -> Ca {
        Ca::self_signed(ca_params("root"), generate_key(KeyType::P256).unwrap()).unwrap()
    }

    fn attestor(root: &Ca) -> X509PopAttestor {
        X509PopAttestor::new(&[root.der().clone()], LIMITS).unwrap()
    }

    fn evidence(chain: &[&[u8]]) -> Vec<u8> {
        let certificates: Vec<String> = chain.iter().map(|der| BASE64.encode(der)).collect();
        serde_json::json!({ "certificates": certificates }).to_string().into_bytes()
    }

    fn start(attestor: &X509PopAttestor, evidence: &[u8], nonce: [u8; 32]) -> Result<Challenge, X509PopError> {
        attestor.check(&Attempt { evidence, csr_der: CSR, now: NOW, nonce, token: &|_| None })
    }

    fn refusal(chain: &[&[u8]]) -> String {
        start(&attestor(&root()), &evidence(chain), [1; 32]).map(|_| ()).unwrap_err().to_string()
    }

    fn answer(server_nonce: [u8; 32], csr: &[u8], sign: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
        let signature = sign(&signed_bytes(&server_nonce, &[9; 32], &sha256(csr)));
        let (nonce, signature) = (BASE64.encode([9; 32]), BASE64.encode(signature));
        serde_json::json!({ "nonce": nonce, "signature": signature }).to_string().into_bytes()
    }

    fn finish(challenge: Challenge, answer: &[u8]) -> Result<Attested, String> {
        match (challenge.answer)(answer) {
            Ok(Step::Done(attested)) => Ok(attested),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.to_string()),
        }
    }

    /// A public key of any shape, as nobody's library would make one.
    struct Crafted(Vec<u8>);

    impl Crafted {
        fn rsa(bits: usize, exponent: &[u8]) -> Self {
            fn tagged(tag: u8, body: &[u8]) -> Vec<u8> {
                let length = u16::try_from(body.len()).unwrap().to_be_bytes();
                [&[tag, 0x82, length[0], length[1]], body].concat()
            }
            let modulus = tagged(2, &[vec![0], vec![0xc1; bits / 8]].concat());
            Self(tagged(0x30, &[modulus, tagged(2, exponent)].concat()))
        }
    }

    impl PublicKeyData for Crafted {
        fn der_bytes(&self) -> &[u8] {
            &self.0
        }
        fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
            &rcgen::PKCS_RSA_SHA256
        }
    }

    #[test]
    fn each_kind_of_key_proves_itself() {
        let root = root();
        let pkcs8 = rustls_pki_types::pem::PemObject::from_pem_slice(RSA_KEY.as_bytes()).unwrap();
        let pkcs8: rustls_pki_types::PrivatePkcs8KeyDer<'_> = pkcs8;
        let rsa = KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8, &rcgen::PKCS_RSA_SHA256).unwrap();
        let keys = [KeyType::P256, KeyType::P384, KeyType::Ed25519].map(|kind| generate_key(kind).unwrap());
        for key in keys.iter().chain([&rsa]) {
            let leaf = params("node-1").signed_by(key, &root).unwrap();
            let challenge = start(&attestor(&root), &evidence(&[leaf.der()]), [1; 32]).unwrap();
            assert_eq!(challenge.bytes, [1; 32]);
            let good = answer([1; 32], CSR, |message| {
                if key.algorithm() != &rcgen::PKCS_RSA_SHA256 {
                    return key.sign(message).unwrap();
                }
                let key = ring::signature::RsaKeyPair::from_pkcs8(pkcs8.secret_pkcs8_der()).unwrap();
                let mut signature = vec![0; 256];
                let random = ring::rand::SystemRandom::new();
                key.sign(&ring::signature::RSA_PSS_SHA256, &random, message, &mut signature).unwrap();
                signature
            });
            let attested = finish(challenge, &good).unwrap();
            assert_eq!(attested.node, sha256_hex(leaf.der()));
            assert!(attested.may_reattest && attested.token.is_none());
        }
    }

    #[test]
    fn the_selectors_name_the_certificate_and_every_ca_above_it() {
        let root = root();
        let between = Ca::signed_by(ca_params("between"), generate_key(KeyType::P256).unwrap(), &root).unwrap();
        let key = generate_key(KeyType::P256).unwrap();
        let mut leaf = params("node 1");
        leaf.serial_number = Some(vec![0xab, 1].into());
        let name = |text: &str| text.try_into().unwrap();
        leaf.subject_alt_names =
            vec![rcgen::SanType::DnsName(name("Node-1.example")), rcgen::SanType::URI(name("urn:node:1"))];
        let leaf = leaf.signed_by(&key, &between).unwrap();
        let evidence = evidence(&[leaf.der(), between.der()]);
        let challenge = start(&attestor(&root), &evidence, [1; 32]).unwrap();
        let attested = finish(challenge, &answer([1; 32], CSR, |message| key.sign(message).unwrap())).unwrap();
        let mut expected = vec![
            "x509pop:subject:cn:node 1".to_owned(),
            "x509pop:serialnumber:ab01".to_owned(),
            "x509pop:san:dns:node-1.example".to_owned(),
            "x509pop:san:uri:urn:node:1".to_owned(),
            format!("x509pop:ca:fingerprint:{}", sha256_hex(root.der())),
            format!("x509pop:ca:fingerprint:{}", sha256_hex(between.der())),
        ];
        expected.sort_unstable();
        assert_eq!(attested.selectors, Selectors::parse(expected).unwrap());
    }

    #[test]
    fn a_giant_chain_is_refused_by_its_size_and_by_its_count() {
        let giant = vec![b'x'; 1 << 20];
        let attestor = attestor(&root());
        let error = start(&attestor, &giant, [1; 32]).map(|_| ()).unwrap_err();
        assert_eq!(error.to_string(), "x509pop evidence has 1048576 bytes: at most 196608 are allowed");
        assert_eq!(refusal(&[&[][..]; 6]), "x509pop chain has 6 certificates: 1 to 5 are allowed");
        assert_eq!(refusal(&[]), "x509pop chain has 0 certificates: 1 to 5 are allowed");
        assert_eq!(refusal(&[&[0; 16385]]), "x509pop certificate 0 has 16385 bytes: at most 16384 are allowed");
    }

    #[test]
    fn rsa_keys_have_limits_in_the_whole_chain() {
        let root = root();
        let crafted = |bits, exponent: &[u8]| params("rsa").signed_by(&Crafted::rsa(bits, exponent), &root).unwrap();
        let f4 = [1, 0, 1];
        let (giant, weak) = (crafted(16384, &f4), crafted(1024, &f4));
        let words = "an RSA key of 16384 bits: 2048 to 4096 are allowed";
        assert_eq!(refusal(&[giant.der()]), format!("x509pop certificate 0 has {words}"));
        assert_eq!(refusal(&[root.der(), giant.der()]), format!("x509pop certificate 1 has {words}"));
        assert_eq!(
            refusal(&[weak.der()]),
            "x509pop certificate 0 has an RSA key of 1024 bits: 2048 to 4096 are allowed"
        );
        let huge = [0x7f; 64];
        for exponent in [&[3][..], &[1, 0, 2], &huge] {
            assert_eq!(
                refusal(&[crafted(2048, exponent).der()]),
                "x509pop certificate 0 has an RSA key with an exponent that is not allowed: use 65537"
            );
        }
    }

    #[test]
    fn expired_early_foreign_and_self_made_certificates() {
        let root = root();
        let key = generate_key(KeyType::P256).unwrap();
        let refused = |params: CertificateParams| {
            let leaf = params.signed_by(&key, &root).unwrap();
            start(&attestor(&root), &evidence(&[leaf.der()]), [1; 32]).map(|_| ()).unwrap_err().to_string()
        };
        let mut expired = params("node");
        expired.not_after = NOW.minus(2 * DAY / 24).to_date_time();
        assert_eq!(refused(expired), "x509pop certificate expired 2 hours ago: renew the node's certificate");
        let mut early = params("node");
        early.not_before = NOW.plus(DAY / 2).to_date_time();
        assert_eq!(refused(early), "x509pop certificate is valid only in 12 hours: check the clocks");
        let mut server = params("node");
        server.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        assert!(refused(server).starts_with("x509pop chain is refused: "));
        let foreign = params("node").signed_by(&key, &root).unwrap();
        let own = params("node").self_signed(&key).unwrap();
        for certificate in [foreign.der(), own.der()] {
            assert_eq!(
                refusal(&[certificate]),
                "x509pop certificate was issued by no CA of attest.x509pop.ca_bundle: send the intermediates too, or have the CA added"
            );
        }
    }

    #[test]
    fn an_answer_is_for_one_challenge_one_csr_and_one_key() {
        let (root, key) = (root(), generate_key(KeyType::P256).unwrap());
        let leaf = params("node").signed_by(&key, &root).unwrap();
        let evidence = evidence(&[leaf.der()]);
        let ask = |nonce| start(&attestor(&root), &evidence, nonce).unwrap();
        let sign = |message: &[u8]| key.sign(message).unwrap();
        let other = generate_key(KeyType::P256).unwrap();
        let wrong =
            "x509pop signature is wrong: it must be made with the certificate's key over this challenge and this CSR";
        let good = answer([1; 32], CSR, sign);
        assert!(finish(ask([1; 32]), &good).is_ok());
        assert_eq!(finish(ask([2; 32]), &good).unwrap_err(), wrong, "replayed to another nonce");
        assert_eq!(finish(ask([1; 32]), &answer([1; 32], b"another CSR", sign)).unwrap_err(), wrong);
        let forged = answer([1; 32], CSR, |message| other.sign(message).unwrap());
        assert_eq!(finish(ask([1; 32]), &forged).unwrap_err(), wrong);
        assert_eq!(finish(ask([1; 32]), &answer([1; 32], CSR, |_| Vec::new())).unwrap_err(), wrong);
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        let (root, key) = (root(), generate_key(KeyType::P256).unwrap());
        let leaf = params("node").signed_by(&key, &root).unwrap();
        let mut garbage = evidence(&[leaf.der()]);
        garbage.extend_from_slice(b"{}");
        let read = |bytes: &[u8]| parse_evidence(bytes, &LIMITS).map(|_| ()).unwrap_err().to_string();
        let message = read(&garbage);
        assert!(
            message.starts_with("x509pop evidence cannot be read (trailing characters at line 1")
                && message.ends_with("}"),
            "{message}"
        );
        assert!(read(b"{\"certificates\":[\"*\"]}").contains("certificate 0: Invalid symbol"));
        assert!(read(b"{\"certificates\":[],\"x\":1}").contains("unknown field `x`"));
        let trailing = [leaf.der().as_ref(), &[0]].concat();
        for der in [&trailing[..], b"not a certificate", b""] {
            assert_eq!(
                refusal(&[der]),
                "x509pop certificate 0 cannot be read: send one X.509 v3 certificate in DER each"
            );
        }
        let ask = || start(&attestor(&root), &evidence(&[leaf.der()]), [1; 32]).unwrap();
        let answered = |answer: &[u8]| finish(ask(), answer).unwrap_err();
        let good = answer([1; 32], CSR, |message| key.sign(message).unwrap());
        assert!(answered(&[good, b" x".to_vec()].concat()).contains("trailing characters"));
        assert!(answered(&[b'x'; 5000]).contains("5000 bytes are too many"));
        assert!(answered(b"{\"nonce\":\"AA==\",\"signature\":\"\"}").contains("nonce is not 32 bytes"));
    }
}
