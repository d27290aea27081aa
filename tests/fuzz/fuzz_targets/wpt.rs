//! Workload Proof Tokens, for the WIT-SVID of the seeds: only the seed's proof is accepted, and once.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use spiffe::bundle::Bundle;
use spiffe::id::TrustDomain;
use spiffe::time::Timestamp;
use spiffe::wpt::{BoundTokens, Request, WitVerifier, Wpt};

const WIT: &str = include_str!("../seeds/wit_svid/honest");
const SEED: &str = include_str!("../seeds/wpt/honest");

static BUNDLE: LazyLock<Bundle> = LazyLock::new(|| {
    let trust_domain = TrustDomain::parse("example.org").expect("a trust domain");
    Bundle::from_jwks(trust_domain, include_bytes!("../seeds/bundle_json/tokens")).expect("a bundle")
});

fuzz_target!(|wpt: &str| {
    if Wpt::parse(wpt).is_err() {
        return;
    }
    let verifier = WitVerifier::default();
    let request = Request { wit: WIT, wpt, audience: "reports", tokens: BoundTokens::default() };
    let now = Timestamp::from_unix(1_800_000_000);
    if verifier.verify(&request, &BUNDLE, now).is_ok() {
        // An ECDSA signature has a twin, which signs the same.
        assert_eq!(wpt.rsplit_once('.').map(|it| it.0), SEED.rsplit_once('.').map(|it| it.0));
        assert!(verifier.verify(&request, &BUNDLE, now).is_err());
    }
});
