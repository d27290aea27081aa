//! `/proc/<pid>/cgroup`, in which a container names what is below it: first the agent's own, then behind a zero byte that of a
//! process. What comes out is whole, and nothing that is added below a container changes it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use node_agent::attestor::k8s::cgroup::Top;

fuzz_target!(|bytes: &[u8]| {
    let cut = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let (own, file) = bytes.split_at(cut);
    let top = Top::of_agent(own);
    let file = file.get(1..).unwrap_or_default();
    let Ok(Some(container)) = top.container(file) else { return };
    let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    assert!(container.id.len() == 64 && is_hex(&container.id));
    assert!([36, 32].contains(&container.pod_uid.len()) && is_hex(&container.pod_uid));
    if !file.contains(&b'\n') {
        let below = [file, b"/kubepods/pod00000000-0000-0000-0000-000000000000/x"].concat();
        assert_eq!(top.container(&below), Ok(Some(container)));
    }
});
