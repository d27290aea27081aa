//! What proxies ask of SDS: whatever they say, and in whatever order, they are answered by names that they asked for, or told
//! in few words why not.
//!
//! The input is a byte for the kind of stream (even: state of the world) and a list of requests, each after its length in two
//! bytes, the high one first; what is left at the end is the last of them.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use node_agent::api::sds::delta::Delta;
use node_agent::api::sds::dialogue::Dialogue;
use node_agent::api::sds::stream::Stream;
use node_agent::cache::{Identity, WorkloadState};
use prost::Message;
use spiffe::bundle::{Bundle, X509Authority};
use spiffe::entry::{EntryId, RegistrationEntry};
use spiffe::id::TrustDomain;
use spiffe::proto::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse};
use spiffe::selector::Selectors;
use spiffe::time::Timestamp;
use spiffe::x509_svid::X509Svid;

/// A moment at which the seeds are valid.
const NOW: Timestamp = Timestamp::from_unix(1_800_000_000);

static STATE: LazyLock<WorkloadState> = LazyLock::new(|| {
    let der = |bytes: &[u8]| bytes.to_vec().into();
    let leaf = include_bytes!("../seeds/x509_chain/leaf");
    let svid = X509Svid::parse(vec![der(&leaf[2..])]).expect("an SVID");
    let root = X509Authority::from_der(der(include_bytes!("../root.der"))).expect("a root");
    let trust_domain = TrustDomain::parse("example.org").expect("a trust domain");
    let entry = RegistrationEntry {
        id: EntryId::parse("web").expect("an ID"),
        spiffe_id: svid.id().clone(),
        parent: trust_domain.server_id(),
        selectors: Selectors::default(),
        x509_ttl: None,
        jwt_ttl: None,
        wit_ttl: None,
        jti: false,
        dns_names: Vec::new(),
        hint: String::new(),
        admin: false,
        federates_with: Vec::new(),
        expires_at: None,
        key_type: None,
        created_at: NOW,
        rule: None,
    };
    let key = Arc::new(vec![1].into());
    let bundle = Bundle::new(trust_domain, vec![root], 1, None).expect("a bundle");
    let identity = Identity { entry: Arc::new(entry), hint: "".into(), svid, key };
    WorkloadState { identities: Arc::new([identity]), bundle, federated: Arc::default() }
});

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, rest)) = bytes.split_first() else { return };
    if kind % 2 == 0 {
        talk(Stream::new(Arc::default()), rest, |response: &DiscoveryResponse| {
            assert!(!response.nonce.is_empty() && response.version_info.len() == 32);
            response.resources.len()
        });
    } else {
        talk(Delta::new(Arc::default()), rest, |response: &DeltaDiscoveryResponse| {
            assert!(!response.nonce.is_empty() && response.system_version_info.len() == 32);
            assert!(!response.resources.is_empty() || !response.removed_resources.is_empty());
            response.resources.len()
        });
    }
});

fn talk<D: Dialogue>(mut dialogue: D, mut rest: &[u8], resources: impl Fn(&D::Response) -> usize)
where
    D::Request: Message + Default,
{
    assert!(dialogue.learn(STATE.clone(), NOW).is_ok_and(|response| response.is_none()));
    while let Some((length, behind)) = rest.split_first_chunk::<2>() {
        let (request, left) = behind.split_at(usize::from(u16::from_be_bytes(*length)).min(behind.len()));
        rest = left;
        let Ok(request) = D::Request::decode(request) else { continue };
        match dialogue.hear(request, NOW) {
            // Three names of the config, one identity and one trust domain: there is no more.
            Ok(heard) => assert!(heard.response.is_none_or(|response| resources(&response) <= 5)),
            Err(refusal) => {
                assert!(refusal.to_string().len() < 4000);
                return;
            }
        }
    }
}
