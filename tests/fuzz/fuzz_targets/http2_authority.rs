//! The bytes of a workload's connection: however they are cut into reads, the same bytes are changed, each to a dash, or to the Huffman
//! code of an X.
#![no_main]

use libfuzzer_sys::fuzz_target;
use node_agent::api::authority::Authorities;

fuzz_target!(|bytes: &[u8]| {
    let (mut at_once, mut one_by_one) = (bytes.to_vec(), bytes.to_vec());
    Authorities::default().pass(&mut at_once);
    let mut authorities = Authorities::default();
    one_by_one.chunks_mut(1).for_each(|byte| authorities.pass(byte));
    assert_eq!(at_once, one_by_one);
    for (before, after) in bytes.iter().zip(&at_once) {
        assert!(before == after || [b'-', 0xfc].contains(after));
    }
});
