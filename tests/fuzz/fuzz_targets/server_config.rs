//! The server's config: what parses can honour its own lifetimes, whatever is written into it.
#![no_main]

use ca_server::config::Config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(config) = Config::parse(text, []) {
        assert!(config.svid.ttl <= config.svid.max_ttl);
        assert!(config.svid.max_ttl < config.authority.ca_ttl && config.svid.agent_ttl < config.authority.ca_ttl);
        assert!(config.admin_socket.as_path().as_os_str().len() <= 107);
    }
});
