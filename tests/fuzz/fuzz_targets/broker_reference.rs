//! What a broker calls a workload: whatever it packs, only positive pids and whole names come out.
#![no_main]

use libfuzzer_sys::fuzz_target;
use node_agent::api::broker::reference::{KubernetesIdentifier, Reference};
use prost::Message as _;
use spiffe::proto::broker::WorkloadReference;

fuzz_target!(|bytes: &[u8]| {
    let Ok(wire) = WorkloadReference::decode(bytes) else { return };
    match Reference::parse(Some(wire)) {
        Ok(Reference::Pid(pid)) => assert!(i32::try_from(pid).is_ok_and(|pid| pid > 0)),
        Ok(Reference::Kubernetes(object)) => {
            assert!(!object.plural.is_empty() && !object.group.is_empty());
            let (key, uid) = match object.identifier {
                KubernetesIdentifier::Key(key) => (Some(key), None),
                KubernetesIdentifier::Uid(uid) => (None, Some(uid)),
                KubernetesIdentifier::Both(key, uid) => (Some(key), Some(uid)),
            };
            assert!(key.is_none_or(|key| !key.name.is_empty() && !key.name.contains('/')));
            assert!(uid.is_none_or(|uid| uid.len() == 36));
        }
        Err(error) => assert!(error.to_string().len() < 2000),
    }
});
