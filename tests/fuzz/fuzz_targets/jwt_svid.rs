//! JWT-SVIDs: what parses has a subject, an audience and an end within bounds, and is verified only with the seed's key.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use spiffe::bundle::Bundle;
use spiffe::id::{SpiffeId, TrustDomain};
use spiffe::jwt_svid::{JwtSvid, MAX_AUDIENCES};
use spiffe::time::Timestamp;

const SEED: &str = include_str!("../seeds/jwt_svid/honest");

static BUNDLE: LazyLock<Bundle> = LazyLock::new(|| {
    let trust_domain = TrustDomain::parse("example.org").expect("a trust domain");
    Bundle::from_jwks(trust_domain, include_bytes!("../seeds/bundle_json/tokens")).expect("a bundle")
});

fuzz_target!(|token: &str| {
    let Ok(svid) = JwtSvid::parse(token) else {
        return;
    };
    assert_eq!(svid.token(), token);
    assert_eq!(SpiffeId::parse(svid.id().as_str()).as_ref(), Ok(svid.id()));
    assert!((1..=MAX_AUDIENCES).contains(&svid.audience().len()));
    let now = Timestamp::from_unix(1_800_000_000);
    for audience in svid.audience() {
        if svid.verify(&BUNDLE, audience, now).is_ok() {
            // An ECDSA signature has a twin, which signs the same.
            assert_eq!(token.rsplit_once('.').map(|it| it.0), SEED.rsplit_once('.').map(|it| it.0));
        }
    }
});
