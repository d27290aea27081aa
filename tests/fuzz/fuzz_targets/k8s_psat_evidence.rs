//! The evidence of k8s_psat, from a stranger on the network: what is taken is an object with two texts, and nothing tells
//! the token.
#![no_main]

use ca_server::attest::k8s_psat::{MAX_EVIDENCE_BYTES, parse_evidence};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(evidence) = parse_evidence(bytes) {
        assert!(bytes.len() <= MAX_EVIDENCE_BYTES);
        let members: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(bytes).unwrap();
        assert_eq!(members.len(), 2);
        let shown = format!("{evidence:?}");
        assert_eq!(shown, format!("Evidence {{ cluster: {:?}, .. }}", members["cluster"].as_str().unwrap()));
    }
});
