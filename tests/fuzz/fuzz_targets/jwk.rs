//! Public keys, as JWK and as SubjectPublicKeyInfo: what is read can be written and read again, and is the same key.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spiffe::jose::{Jwk, MAX_KID_BYTES};

fuzz_target!(|bytes: &[u8]| {
    for jwk in [Jwk::from_json(bytes), Jwk::from_spki(bytes)].into_iter().flatten() {
        assert!(jwk.kid().is_none_or(|kid| (1..=MAX_KID_BYTES).contains(&kid.len())));
        assert!(jwk.algorithm().is_none_or(|algorithm| jwk.key().fits(algorithm)));
        let written = jwk.to_json();
        assert_eq!(Jwk::from_json(written.as_bytes()).as_ref(), Ok(&jwk));
        assert_eq!(jwk.thumbprint().len(), 43);
        let _ = jwk.key().usual_algorithm().map(|algorithm| jwk.key().verify(algorithm, b"message", bytes));
    }
});
