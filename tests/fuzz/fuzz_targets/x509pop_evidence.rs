//! The evidence of x509pop, from a stranger on the network: what is taken keeps its limits.
#![no_main]

use ca_server::attest::x509pop::{Limits, parse_evidence};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let limits = Limits { max_chain: 3, min_rsa_bits: 2048, max_rsa_bits: 4096 };
    let _ = parse_evidence(bytes, &limits);
});
