//! Bundle maps: what is read can be written and read again, and is the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spiffe::bundle::{BundleMap, MAX_TRUST_DOMAINS};

fuzz_target!(|bytes: &[u8]| {
    let Ok(map) = BundleMap::from_json(bytes) else {
        return;
    };
    assert!(map.bundles().count() <= MAX_TRUST_DOMAINS);
    assert!(map.bundles().all(|bundle| bundle.refresh_hint().is_none()));
    // The `alg` of a key for tokens is read, and not written.
    let written = map.to_json();
    assert_eq!(BundleMap::from_json(written.as_bytes()).map(|again| again.to_json()), Ok(written));
});
