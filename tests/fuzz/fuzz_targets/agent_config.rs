//! The agent's config: what parses has a server to go to and a socket that the kernel takes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use node_agent::config::Config;

fuzz_target!(|text: &str| {
    if let Ok(config) = Config::parse(text, []) {
        assert!(!config.servers.is_empty());
        assert!(config.workload_socket.as_os_str().len() <= 107);
    }
});
