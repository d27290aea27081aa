//! Files of /proc, in which a process writes its own name: whatever it is called, nothing panics.
#![no_main]

use libfuzzer_sys::fuzz_target;
use node_agent::attestor::{process_file, systemd};

fuzz_target!(|bytes: &[u8]| {
    let _ = process_file::is_kernel_thread(bytes);
    let _ = process_file::pid_namespaces(bytes);
    let _ = process_file::Credentials::parse(bytes);
    let _ = systemd::slice_and_unit(bytes);
});
