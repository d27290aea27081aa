//! SPIFFE IDs and trust domains: what parses prints back the same, and keeps the limits of SPIFFE-ID.md.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spiffe::id::{MAX_ID_BYTES, MAX_TRUST_DOMAIN_BYTES, SpiffeId, TrustDomain};

fuzz_target!(|text: &str| {
    if let Ok(id) = SpiffeId::parse(text) {
        assert_eq!(id.as_str(), text);
        assert!(text.len() <= MAX_ID_BYTES && text.is_ascii() && !text.contains(['%', '?', '#', '@']));
        assert!(id.is_member_of(&id.trust_domain()));
        assert_eq!(format!("spiffe://{}{}", id.trust_domain_name(), id.path()), text);
        assert!(!id.path().split('/').skip(1).any(|segment| matches!(segment, "" | "." | "..")));
        assert!(!(id.is_server() || id.is_agent()) || id.is_reserved());
    }
    if let Ok(trust_domain) = TrustDomain::parse(text) {
        assert!(!trust_domain.name().is_empty() && trust_domain.name().len() <= MAX_TRUST_DOMAIN_BYTES);
        assert_eq!(SpiffeId::parse(trust_domain.id().as_str()).as_ref(), Ok(&trust_domain.id()));
        // A name of a node cannot lead out of its place.
        if let Ok(agent) = trust_domain.agent_id("x", text) {
            assert!(agent.is_agent() && agent.is_member_of(&trust_domain));
        }
    }
});
