//! Registration entries from the wire: what is taken goes back to the wire, and is taken again as the same entry.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message;
use spiffe::entry::RegistrationEntry;
use spiffe::proto::v1;

fuzz_target!(|bytes: &[u8]| {
    let Ok(wire) = v1::Entry::decode(bytes) else {
        return;
    };
    if let Ok(entry) = RegistrationEntry::try_from(wire) {
        assert!(!entry.selectors.is_empty());
        let again = v1::Entry::decode(v1::Entry::from(&entry).encode_to_vec().as_slice()).expect("our own encoding");
        assert_eq!(RegistrationEntry::try_from(again), Ok(entry));
    }
});
