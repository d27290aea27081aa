//! Chains of certificates: parsed, walked up, verified against a root of our own, and each taken for a root.
//!
//! The input is a list of certificates, each after its length in two bytes, the high one first; what is left at the
//! end is the last of them.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use spiffe::bundle::{Bundle, X509Authority};
use spiffe::id::TrustDomain;
use spiffe::time::Timestamp;
use spiffe::x509_svid::X509Svid;

/// A moment at which the seeds are valid.
const NOW: Timestamp = Timestamp::from_unix(1_800_000_000);

static BUNDLE: LazyLock<Bundle> = LazyLock::new(|| {
    let root = X509Authority::from_der(include_bytes!("../root.der").to_vec().into()).expect("a root");
    let trust_domain = TrustDomain::parse("example.org").expect("a trust domain");
    Bundle::new(trust_domain, vec![root.with_taint(true)], 1, None).expect("a bundle")
});

fuzz_target!(|bytes: &[u8]| {
    let mut chain = Vec::new();
    let mut rest = bytes;
    while let Some((length, behind)) = rest.split_first_chunk::<2>() {
        let (certificate, left) = behind.split_at(usize::from(u16::from_be_bytes(*length)).min(behind.len()));
        let _ = X509Authority::from_der(certificate.to_vec().into());
        chain.push(certificate.to_vec().into());
        rest = left;
    }
    if let Ok(svid) = X509Svid::parse(chain) {
        assert!(!svid.id().path().is_empty());
        assert!(svid.lifetime().not_before <= svid.lifetime().not_after);
        assert!(svid.serial().first() != Some(&0));
        let tainted = svid.is_tainted_by(&BUNDLE);
        if let Ok(verified) = svid.verify(&BUNDLE, NOW) {
            assert!(verified.id().is_member_of(BUNDLE.trust_domain()));
            assert!(tainted, "a verified path leads to the root, and the root is tainted");
        }
    }
});
