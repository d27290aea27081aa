//! CAs, nodes' certificates and CSRs, the bad ones too. Validity is counted from the house's beginning, and long.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SigningKey,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use spiffe::crypto::generate_key;
use spiffe::entry::KeyType;
use spiffe::id::SpiffeId;

use crate::house::BEGINNING;

/// A CA that knows no rules.
pub type Ca = CertifiedIssuer<'static, KeyPair>;

const DAY: Duration = Duration::from_secs(86_400);

/// A certificate with this common name, from a day before the beginning until a year after it.
pub fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = BEGINNING.minus(DAY).to_date_time();
    params.not_after = BEGINNING.plus(DAY * 365).to_date_time();
    params
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = params(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params
}

/// A root with a P-256 key.
pub fn root(name: &str) -> Ca {
    Ca::self_signed(ca_params(name), generate_key(KeyType::P256).unwrap()).unwrap()
}

/// A CA below `above`.
pub fn intermediate(name: &str, above: &Ca) -> Ca {
    Ca::signed_by(ca_params(name), generate_key(KeyType::P256).unwrap(), above).unwrap()
}

/// What an SVID of this identity looks like.
pub fn svid_params(id: &SpiffeId) -> CertificateParams {
    let mut params = params("somebody");
    params.subject_alt_names = vec![uri(id.as_str())];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params
}

/// A certificate of the web for `hosts` (DNS names and addresses), and its key, as PEM.
pub fn web(hosts: &[&str], above: &Ca) -> (String, String) {
    let name = |host: &&str| match host.parse() {
        Ok(address) => SanType::IpAddress(address),
        Err(_) => SanType::DnsName((*host).try_into().unwrap()),
    };
    let mut params = params("web");
    params.subject_alt_names = hosts.iter().map(name).collect();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = generate_key(KeyType::P256).unwrap();
    (params.signed_by(&key, above).unwrap().pem(), key.serialize_pem())
}

/// A URI SAN.
pub fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

/// The key of a node's own certificate: as `kind` has it, RSA with 2048 bits for `"rsa"`.
pub fn node_key(kind: &str) -> KeyPair {
    match kind {
        "rsa" => {
            let pem = include_bytes!("../../ca-server/src/attest/test_rsa2048.pem");
            let pkcs8 = PrivatePkcs8KeyDer::from_pem_slice(pem).unwrap();
            KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8, &rcgen::PKCS_RSA_SHA256).unwrap()
        }
        "p256" => generate_key(KeyType::P256).unwrap(),
        "p384" => generate_key(KeyType::P384).unwrap(),
        "ed25519" => generate_key(KeyType::Ed25519).unwrap(),
        other => panic!("no kind of key: {other}"),
    }
}

/// An RSA public key of any size, of which nobody has the private half.
pub struct CraftedRsa(Vec<u8>);

impl CraftedRsa {
    /// With a modulus of this many bits.
    pub fn new(bits: usize) -> Self {
        fn tagged(tag: u8, body: &[u8]) -> Vec<u8> {
            let length = u16::try_from(body.len()).unwrap().to_be_bytes();
            [&[tag, 0x82, length[0], length[1]], body].concat()
        }
        let modulus = tagged(2, &[vec![0], vec![0xc1; bits / 8]].concat());
        Self(tagged(0x30, &[modulus, tagged(2, &[1, 0, 1])].concat()))
    }
}

impl PublicKeyData for CraftedRsa {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }
    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_RSA_SHA256
    }
}

/// A CSR that wishes to be a CA, and somebody else too.
pub fn wishful_csr(key: &KeyPair, wish: &SpiffeId) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![uri(wish.as_str()), SanType::DnsName("admin.example.org".try_into().unwrap())];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    csr(&params, key)
}

fn csr(params: &CertificateParams, key: &impl SigningKey) -> Vec<u8> {
    params.serialize_request(key).unwrap().der().to_vec()
}

/// A CSR whose last byte of the signature is another one.
pub fn csr_with_broken_signature(key: &KeyPair) -> Vec<u8> {
    let mut csr = spiffe::csr::create(key).unwrap();
    *csr.last_mut().unwrap() ^= 1;
    csr
}

/// A CSR with an RSA key of 1024 bits, made by OpenSSL.
pub fn rsa_1024_csr() -> Vec<u8> {
    decode(RSA_1024)
}

/// A CSR with a P-521 key, made by OpenSSL.
pub fn p521_csr() -> Vec<u8> {
    decode(P_521)
}

/// The evidence of x509pop.
pub fn evidence(chain: &[&CertificateDer<'_>]) -> Vec<u8> {
    let certificates: Vec<String> = chain.iter().map(|der| BASE64.encode(der)).collect();
    serde_json::json!({ "certificates": certificates }).to_string().into_bytes()
}

fn decode(text: &str) -> Vec<u8> {
    BASE64.decode(text.split_whitespace().collect::<String>()).unwrap()
}

const RSA_1024: &str = "
MIIBSzCBtQIBADAMMQowCAYDVQQDDAF4MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDZQl82tfYkshx3WHN6O1ClmsRMvk7xB5rL6+q21r
FCCKM2Pvp7dGdyrugFlOtd9AttjjAV2jsG5l0Sa6uv5NWX2Dz3R9i9oyxItsMOiUsaH5I/W8LSPbMiCE6QRMkNaCQKRLRymUgFRJqrUmlUygT+
YoWlYzq89SVzeutCgTxPKQIDAQABoAAwDQYJKoZIhvcNAQELBQADgYEAGha+w1z/q9UMkrX0bA7I7GXWuKy/744IGcEuacx5D652OztKdbN1EQ
y82VhKDqaMpZJg48dk4nTSIxEHmBPxi+9UWsGKtj4Yw5lLf4or0zv9vBBtJCsPc7dhA43/P2da4JUqpJEISRmwVCoJ+wU9siPPv0uPpego3Nq6
hTFxPu4=";

const P_521: &str = "
MIIBTzCBsQIBADAMMQowCAYDVQQDDAF4MIGbMBAGByqGSM49AgEGBSuBBAAjA4GGAAQBY4l4AlAt1KNvreHQAbk3abE4rEZhGd923gHw5K9R1k
2OpUnj5vr7wYTqu0zCQNpMTA6decN+X+3TdG1arHT5j2MAgYRidiVEj04I8wlNQ3Xc8LgF+ZEUuQrrDOX4DYy7mi/+u7o0oqlkLLBHVWjFnZVs
s9y+LOXX1pZcm58SSva6YJWgADAKBggqhkjOPQQDAgOBjAAwgYgCQgHDqKHDF8+pXw0fY3pHd4HPbqq60E0zgdRjuJ/0fMLPTBA/FAwZnyU9QO
OOkp5+pOAZ/rN6kknRftYqjKTvNpNv7QJCAMfiiAFwCbBozISnoNBLYlF/1WUlYQErQ20Z0up4iGthTuK74TsETXPNxGX23RyuBNHdbveKWS5b
Zn0CTv++LDws";
