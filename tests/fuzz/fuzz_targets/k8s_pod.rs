//! A pod as an API server tells of it, in JSON: however much there is in it, only so much is kept, and each container is one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use node_agent::attestor::k8s::object::Pod;

fuzz_target!(|bytes: &[u8]| {
    let Ok(object) = serde_json::from_slice(bytes) else { return };
    let Some(pod) = Pod::of(object, "node-a") else { return };
    assert!(!pod.uid.is_empty() && !pod.name.is_empty() && !pod.namespace.is_empty() && !pod.cgroup_uid.is_empty());
    assert!(pod.selectors.len() <= 6 + 16 + 100 && pod.containers.len() <= 128);
    assert!(pod.selectors.iter().all(|selector| selector.kind() == "k8s"));
    assert!(pod.containers.iter().all(|container| container.id.len() == 64));
});
