//! CSRs: whatever is asked for, only a key of a kind that we know comes out, and it is well-formed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rcgen::{PublicKeyData, SubjectPublicKeyInfo};
use spiffe::crypto::signature_algorithm;
use spiffe::csr::{MAX_CSR_BYTES, ProvenKey};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(key) = ProvenKey::from_csr(bytes) {
        assert!(bytes.len() <= MAX_CSR_BYTES);
        assert_eq!(key.algorithm(), signature_algorithm(key.key_type()));
        assert_eq!(key.subject_public_key_info(), key.spki_der());
        let parsed = SubjectPublicKeyInfo::from_der(key.spki_der()).expect("a well-formed key");
        assert_eq!(parsed.der_bytes(), key.bits());
    }
});
