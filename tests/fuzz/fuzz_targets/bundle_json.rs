//! Bundles as JWKS and as PEM: what is read can be written and read again, and is the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spiffe::bundle::{Bundle, MAX_AUTHORITIES};
use spiffe::id::TrustDomain;

fuzz_target!(|bytes: &[u8]| {
    let trust_domain = TrustDomain::parse("example.org").expect("a trust domain");
    if let Ok(bundle) = Bundle::from_jwks(trust_domain.clone(), bytes) {
        assert!(bundle.x509_authorities().len() <= MAX_AUTHORITIES);
        assert_eq!(bundle.trust_anchors().len(), bundle.x509_authorities().len());
        assert_eq!(Bundle::from_jwks(trust_domain.clone(), bundle.to_jwks().as_bytes()).as_ref(), Ok(&bundle));
    }
    if let Ok(bundle) = Bundle::from_pem(trust_domain.clone(), bytes) {
        assert!(!bundle.x509_authorities().is_empty());
        assert_eq!(Bundle::from_pem(trust_domain, bundle.to_pem().as_bytes()).as_ref(), Ok(&bundle));
    }
});
