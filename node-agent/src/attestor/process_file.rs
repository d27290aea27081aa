//! The text of `/proc/<pid>/stat` and `/proc/<pid>/status`, as values. Pure.
//!
//! - A process names itself (`comm`), so nothing before the end of that name is believed: in `stat` it ends at the
//!   last parenthesis; in `status` the kernel escapes its line breaks.

/// When the process started, in clock ticks since boot: field 22 of `/proc/<pid>/stat`.
pub fn start_time(stat: &[u8]) -> Option<u64> {
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(name_end + 1..)?).ok()?;
    // The field after the name is the third.
    rest.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
}

/// Users and groups of a process, from `/proc/<pid>/status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// For whose rights it acts.
    pub effective_uid: u32,
    /// And of which group.
    pub effective_gid: u32,
    /// The supplementary groups.
    pub groups: Vec<u32>,
}

impl Credentials {
    /// Reads the lines `Uid:`, `Gid:` (real, effective, saved, file system) and `Groups:`.
    pub fn parse(status: &[u8]) -> Option<Self> {
        let line = |name: &[u8]| {
            let line = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(name))?;
            let numbers: Result<Vec<u32>, _> =
                std::str::from_utf8(line).ok()?.split_ascii_whitespace().map(str::parse).collect();
            numbers.ok()
        };
        Some(Self {
            effective_uid: *line(b"Uid:")?.get(1)?,
            effective_gid: *line(b"Gid:")?.get(1)?,
            groups: line(b"Groups:")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn our_own_files_are_read() {
        assert!(start_time(&std::fs::read("/proc/self/stat").unwrap()).unwrap() > 0);
        let own = Credentials::parse(&std::fs::read("/proc/self/status").unwrap()).unwrap();
        assert_eq!(own.effective_uid, nix::unistd::geteuid().as_raw());
        assert_eq!(own.effective_gid, nix::unistd::getegid().as_raw());
    }

    #[test]
    fn cut_off_files_are_refused() {
        assert_eq!(start_time(b""), None);
        assert_eq!(start_time(b"7 (a) S 1 2 3"), None);
        assert_eq!(start_time(b"7 (a"), None);
        assert_eq!(Credentials::parse(b"Name:\ta\nUid:\t1\nGid:\t1\t1\t1\t1\nGroups:\t\n"), None);
        assert_eq!(Credentials::parse(b"Uid:\t1\t-1\t1\t1\nGid:\t1\t1\t1\t1\nGroups:\t\n"), None);
        assert_eq!(Credentials::parse(b"Uid:\t1\t1\t1\t1\nGid:\t1\t1\t1\t1\n"), None);
    }

    proptest! {
        #[test]
        fn a_process_cannot_choose_its_start_time_by_its_name(name in prop::collection::vec(any::<u8>(), 0..16), ticks: u64) {
            let mut stat = b"4711 (".to_vec();
            stat.extend(&name);
            stat.extend(format!(") S 1 2 3 0 -1 4194560 5 0 0 0 0 0 0 0 20 0 1 0 {ticks} 0 0\n").as_bytes());
            prop_assert_eq!(start_time(&stat), Some(ticks));
        }

        #[test]
        fn credentials_are_read_behind_any_name(name in "[^\n]{0,16}", uid: u32, gid: u32, groups: Vec<u32>) {
            let list: Vec<String> = groups.iter().map(ToString::to_string).collect();
            let status = format!(
                "Name:\t{name}\nUid:\t0\t{uid}\t0\t0\nGid:\t0\t{gid}\t0\t0\nFDSize:\t64\nGroups:\t{} \n", list.join(" "));
            let expected = Credentials { effective_uid: uid, effective_gid: gid, groups };
            prop_assert_eq!(Credentials::parse(status.as_bytes()), Some(expected));
        }

        #[test]
        fn nothing_panics(bytes: Vec<u8>) {
            let _ = (start_time(&bytes), Credentials::parse(&bytes));
        }
    }
}
