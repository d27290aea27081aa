//! The systemd unit that a process belongs to: `systemd:unit:web.service` and `systemd:slice:system.slice`.
//!
//! - Only `/proc/<pid>/cgroup` is read. The unit is the first part of the path below the slices: what a user with a
//!   delegated cgroup (`user@1000.service`) makes up below that is not believed.
//! - The hierarchy that systemd names is taken where there is one (cgroup v1 and hybrid), the unified one otherwise.

use async_trait::async_trait;
use spiffe::selector::Selector;

use super::process_file::Credentials;
use super::{AttestError, Peer, WorkloadAttestor, peer, selector};

const KIND: &str = "systemd";

/// The `systemd` attestor.
pub struct Systemd;

#[async_trait]
impl WorkloadAttestor for Systemd {
    fn kind(&self) -> &'static str {
        KIND
    }

    async fn attest(&self, peer: &Peer, _: &Credentials) -> Result<Vec<Selector>, AttestError> {
        let file = peer::read(peer.pid(), "cgroup")?;
        let (slice, unit) = slice_and_unit(&file);
        let slice = slice.and_then(|slice| selector(KIND, "slice", slice));
        let unit = unit.and_then(|unit| selector(KIND, "unit", unit));
        Ok(slice.into_iter().chain(unit).collect())
    }
}

/// The innermost slice, and the unit below it, from the text of `/proc/<pid>/cgroup`.
pub fn slice_and_unit(file: &[u8]) -> (Option<&str>, Option<&str>) {
    let path_in = |hierarchy: &str| {
        let lines = file.split(|byte| *byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok());
        lines.filter_map(|line| line.split_once(':')).find_map(|(_, line)| line.strip_prefix(hierarchy))
    };
    let Some(path) = path_in("name=systemd:/").or_else(|| path_in(":/")) else { return (None, None) };
    let mut slice = None;
    for part in path.split('/') {
        if part.len() > ".slice".len() && part.ends_with(".slice") {
            slice = Some(part);
        } else {
            let is_unit = [".service", ".scope"].iter().any(|end| part.len() > end.len() && part.ends_with(end));
            return (slice, is_unit.then_some(part));
        }
    }
    (slice, None)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_unit_is_the_first_below_the_slices() {
        let cases: [(&str, Option<&str>, Option<&str>); 9] = [
            ("0::/system.slice/web.service", Some("system.slice"), Some("web.service")),
            ("0::/system.slice/web.service/worker", Some("system.slice"), Some("web.service")),
            ("0::/a.slice/a-b.slice/docker-1f.scope", Some("a-b.slice"), Some("docker-1f.scope")),
            (
                "0::/user.slice/user-1000.slice/user@1000.service/system.slice/web.service",
                Some("user-1000.slice"),
                Some("user@1000.service"),
            ),
            ("0::/docker/1f/system.slice/web.service", None, None),
            ("0::/../system.slice/web.service", None, None),
            ("0::/init.scope", None, Some("init.scope")),
            ("0::/", None, None),
            ("4:memory:/x\n1:name=systemd:/system.slice/v1.service\n0::/", Some("system.slice"), Some("v1.service")),
        ];
        for (file, slice, unit) in cases {
            assert_eq!(slice_and_unit(file.as_bytes()), (slice, unit), "{file}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes: Vec<u8>) {
            let _ = slice_and_unit(&bytes);
        }
    }
}
