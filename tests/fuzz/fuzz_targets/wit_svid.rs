//! WIT-SVIDs: what parses has a subject, a key that says what it signs with, and is verified only with the seed's key.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use spiffe::bundle::Bundle;
use spiffe::id::{SpiffeId, TrustDomain};
use spiffe::time::Timestamp;
use spiffe::wit_svid::WitSvid;

const SEED: &str = include_str!("../seeds/wit_svid/honest");

static BUNDLE: LazyLock<Bundle> = LazyLock::new(|| {
    let trust_domain = TrustDomain::parse("example.org").expect("a trust domain");
    Bundle::from_jwks(trust_domain, include_bytes!("../seeds/bundle_json/tokens")).expect("a bundle")
});

fuzz_target!(|token: &str| {
    let Ok(svid) = WitSvid::parse(token) else {
        return;
    };
    assert_eq!(svid.token(), token);
    assert_eq!(SpiffeId::parse(svid.id().as_str()).as_ref(), Ok(svid.id()));
    assert!(!svid.kid().is_empty() && svid.key().key().fits(svid.key().algorithm()));
    if svid.verify(&BUNDLE, Timestamp::from_unix(1_800_000_000)).is_ok() {
        // An ECDSA signature has a twin, which signs the same.
        assert_eq!(token.rsplit_once('.').map(|it| it.0), SEED.rsplit_once('.').map(|it| it.0));
    }
});
