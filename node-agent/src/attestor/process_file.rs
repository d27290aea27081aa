//! The text of `/proc/<pid>/stat` and `/proc/<pid>/status`, as values. Pure.
//!
//! - A process names itself (`comm`), so nothing before the end of that name is believed: in `stat` it ends at the
//!   last parenthesis; in `status` the kernel escapes its line breaks.

/// `PF_KTHREAD` of the kernel's `sched.h`.
const KERNEL_THREAD: u64 = 0x0020_0000;

/// Whether it is a thread of the kernel's own, by its flags: field 9 of `/proc/<pid>/stat`.
pub fn is_kernel_thread(stat: &[u8]) -> Option<bool> {
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(name_end + 1..)?).ok()?;
    // The field after the name is the third.
    let flags: u64 = rest.split_ascii_whitespace().nth(9 - 3)?.parse().ok()?;
    Some(flags & KERNEL_THREAD != 0)
}

/// In how many pid namespaces, from the reader's own downwards, the process has a pid: the line `NSpid:` of
/// `/proc/<pid>/status`. A kernel without namespaces has no such line, and one for everybody.
pub fn pid_namespaces(status: &[u8]) -> usize {
    line(status, b"NSpid:").map_or(1, |line| line.split_ascii_whitespace().count())
}

fn line<'a>(status: &'a [u8], name: &[u8]) -> Option<&'a str> {
    let line = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(name))?;
    std::str::from_utf8(line).ok()
}

/// Users and groups of a process, from `/proc/<pid>/status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Who started it.
    pub real_uid: u32,
    /// And of which group.
    pub real_gid: u32,
    /// For whose rights it acts.
    pub effective_uid: u32,
    /// And of which group.
    pub effective_gid: u32,
    /// The supplementary groups.
    pub groups: Vec<u32>,
}

impl Credentials {
    /// Whether it acts for whoever started it, which a setuid or setgid program does not.
    pub fn are_of_one(&self) -> bool {
        (self.real_uid, self.real_gid) == (self.effective_uid, self.effective_gid)
    }

    /// Reads the lines `Uid:`, `Gid:` (real, effective, saved, file system) and `Groups:`.
    pub fn parse(status: &[u8]) -> Option<Self> {
        let numbers = |name: &[u8]| -> Option<Vec<u32>> {
            line(status, name)?.split_ascii_whitespace().map(|number| number.parse().ok()).collect()
        };
        let (uids, gids) = (numbers(b"Uid:")?, numbers(b"Gid:")?);
        Some(Self {
            real_uid: *uids.first()?,
            real_gid: *gids.first()?,
            effective_uid: *uids.get(1)?,
            effective_gid: *gids.get(1)?,
            groups: numbers(b"Groups:")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn our_own_files_are_read() {
        let own = Credentials::parse(&std::fs::read("/proc/self/status").unwrap()).unwrap();
        assert_eq!(own.effective_uid, nix::unistd::geteuid().as_raw());
        assert_eq!(own.effective_gid, nix::unistd::getegid().as_raw());
        assert_eq!((own.real_uid, own.real_gid), (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw()));
        assert_eq!(is_kernel_thread(&std::fs::read("/proc/self/stat").unwrap()), Some(false));
    }

    #[test]
    fn a_setuid_program_is_of_two_users() {
        let of = |uids: &str, gids: &str| {
            let status = format!("Name:\tsu\nUid:\t{uids}\nGid:\t{gids}\nGroups:\t\n");
            Credentials::parse(status.as_bytes()).unwrap().are_of_one()
        };
        assert!(of("1000\t1000\t1000\t1000", "100\t100\t100\t100"));
        assert!(!of("1000\t0\t0\t0", "100\t100\t100\t100"));
        assert!(!of("1000\t1000\t1000\t1000", "100\t42\t42\t42"));
    }

    #[test]
    fn a_thread_of_the_kernel_is_told_by_its_flags() {
        let stat = |flags: u64| format!("2 (kthreadd) S 0 0 0 0 -1 {flags} 0 0 0 0 0 0 0 0 20 0 1 0 3 0 0");
        assert_eq!(is_kernel_thread(stat(2_129_984).as_bytes()), Some(true));
        assert_eq!(is_kernel_thread(stat(4_194_560).as_bytes()), Some(false));
        assert_eq!(is_kernel_thread(b"2 (kthreadd) S 0"), None);
    }

    #[test]
    fn a_process_in_a_pid_namespace_of_its_own_has_a_pid_in_each() {
        assert_eq!(pid_namespaces(b"Name:\ta\nNSpid:\t4711\n"), 1);
        assert_eq!(pid_namespaces(b"Name:\ta\nNSpid:\t4711\t7\n"), 2);
        assert_eq!(pid_namespaces(b"Name:\ta\n"), 1);
    }

    #[test]
    fn cut_off_files_are_refused() {
        assert_eq!(is_kernel_thread(b""), None);
        assert_eq!(is_kernel_thread(b"7 (a) S 1 2 3"), None);
        assert_eq!(is_kernel_thread(b"7 (a"), None);
        assert_eq!(Credentials::parse(b"Name:\ta\nUid:\t1\nGid:\t1\t1\t1\t1\nGroups:\t\n"), None);
        assert_eq!(Credentials::parse(b"Uid:\t1\t-1\t1\t1\nGid:\t1\t1\t1\t1\nGroups:\t\n"), None);
        assert_eq!(Credentials::parse(b"Uid:\t1\t1\t1\t1\nGid:\t1\t1\t1\t1\n"), None);
    }

    proptest! {
        #[test]
        fn a_process_cannot_choose_its_flags_by_its_name(name in prop::collection::vec(any::<u8>(), 0..16), flags: u64) {
            let mut stat = b"4711 (".to_vec();
            stat.extend(&name);
            stat.extend(format!(") S 1 2 3 0 -1 {flags} 5 0 0 0 0 0 0 0 20 0 1 0 4711 0 0\n").as_bytes());
            prop_assert_eq!(is_kernel_thread(&stat), Some(flags & KERNEL_THREAD != 0));
        }

        #[test]
        fn credentials_are_read_behind_any_name(
            name in "[^\n]{0,16}", real: (u32, u32), uid: u32, gid: u32, groups: Vec<u32>,
        ) {
            let (real_uid, real_gid) = real;
            let list: Vec<String> = groups.iter().map(ToString::to_string).collect();
            let status = format!(
                "Name:\t{name}\nUid:\t{real_uid}\t{uid}\t0\t0\nGid:\t{real_gid}\t{gid}\t0\t0\nFDSize:\t64\nGroups:\t{} \n",
                list.join(" "));
            let expected = Credentials { real_uid, real_gid, effective_uid: uid, effective_gid: gid, groups };
            prop_assert_eq!(Credentials::parse(status.as_bytes()), Some(expected));
        }

        #[test]
        fn nothing_panics(bytes: Vec<u8>) {
            let _ = (is_kernel_thread(&bytes), pid_namespaces(&bytes), Credentials::parse(&bytes));
        }
    }
}
