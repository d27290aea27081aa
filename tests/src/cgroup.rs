//! Processes in cgroups that are shaped as container runtimes shape them, in the version 2 hierarchy of this machine.
//!
//! - A process enters before it becomes the program that is wanted: no moment of it is outside.
//! - What this process made is removed: a group when it is dropped, the groups above it when nobody else has one there.
//!   A group that was there before stays, whether it is empty or not.
//! - A machine that does not let us fails the test, with what it lacks; nothing is skipped.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::binary::{Command, wait_for};

/// How long the processes in a group may take to end after their test ended them, in seconds.
const GRACE: u64 = 10;

/// The groups that this process made, those of all its tests: one may have made a group in which another has its own.
static MADE: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Who makes the groups, and by which driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// containerd by systemd: `cri-containerd-<id>.scope`.
    Containerd,
    /// CRI-O by systemd: `crio-<id>.scope`, with the group `container` that crun makes in it.
    Crio,
    /// Docker by systemd: `docker-<id>.scope`.
    Docker,
    /// containerd or Docker by the cgroupfs driver: a folder of the bare ID.
    Cgroupfs,
    /// containerd by systemd in a node that is a container itself, as kind makes them.
    Nested,
}

impl Shape {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Containerd, Self::Crio, Self::Docker, Self::Cgroupfs, Self::Nested];

    /// The group of a container in a burstable pod, from the root of the hierarchy: of the pod's UID and the container's ID.
    pub fn path(self, pod: &str, container: &str) -> String {
        let slices = |above: &str, prefix: &str| {
            let burstable = format!("{prefix}kubepods-burstable");
            format!("{above}{prefix}kubepods.slice/{burstable}.slice/{burstable}-pod{}.slice", pod.replace('-', "_"))
        };
        match self {
            Self::Containerd => format!("{}/cri-containerd-{container}.scope", slices("", "")),
            Self::Crio => format!("{}/crio-{container}.scope/container", slices("", "")),
            Self::Docker => format!("{}/docker-{container}.scope", slices("", "")),
            Self::Cgroupfs => format!("kubepods/burstable/pod{pod}/{container}"),
            Self::Nested => {
                let node = "a".repeat(64);
                let above = format!("system.slice/docker-{node}.scope/kubelet.slice/");
                format!("{}/cri-containerd-{container}.scope", slices(&above, "kubelet-"))
            }
        }
    }
}

/// A cgroup. Dropping it removes it: its processes have to be ended before.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// The group of a container, as [`Shape::path`] has it.
    ///
    /// # Panics
    /// When this machine does not let us.
    pub fn of(shape: Shape, pod: &str, container: &str) -> Self {
        Self::new(&shape.path(pod, container))
    }

    /// A group of any path from the root of the hierarchy.
    ///
    /// # Panics
    /// When this machine does not let us.
    pub fn new(path: &str) -> Self {
        let root = root();
        let group = Self { path: root.join(path) };
        // Another process may remove a group above that was empty until now.
        if wait_for(1, || make(&root, &group.path).ok()).is_none() {
            let error = make(&root, &group.path).err();
            panic!("{} cannot be made: run as root, where cgroups may be written: {error:?}", group.path.display());
        }
        group
    }

    /// `program` as a process of this group from its beginning.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let (procs, program) = (self.procs().display().to_string(), program.as_ref().display().to_string());
        Command::new("/bin/sh").args(["-c", "echo $$ >\"$0\" && exec \"$@\"", &procs, &program])
    }

    /// Moves a process into it.
    ///
    /// # Panics
    /// When the kernel says no.
    pub fn take(&self, pid: u32) {
        let taken = fs::write(self.procs(), pid.to_string());
        taken.unwrap_or_else(|error| panic!("process {pid} into {}: {error}", self.path.display()));
    }

    fn procs(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let made = || MADE.lock().unwrap_or_else(PoisonError::into_inner);
        if !made().contains(&self.path) {
            return;
        }
        wait_for(GRACE, || match fs::remove_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => None,
            _ => Some(()),
        });
        let mut made = made();
        // Up to the first one that was there before, or has another group in it.
        for gone in self.path.ancestors() {
            if !made.contains(gone) || (gone.exists() && fs::remove_dir(gone).is_err()) {
                break;
            }
            made.remove(gone);
        }
    }
}

/// Makes what is missing of `path` below `root`, and remembers it.
fn make(root: &Path, path: &Path) -> io::Result<()> {
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut missing: Vec<&Path> = path.ancestors().take_while(|one| *one != root && !one.exists()).collect();
    while let Some(one) = missing.pop() {
        fs::create_dir(one)?;
        made.insert(one.to_owned());
    }
    Ok(())
}

/// Where the version 2 hierarchy is mounted: at `/sys/fs/cgroup`, or beside the others of version 1.
fn root() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("the mounts of this process");
    let found = mounts.lines().find_map(|mount| {
        let mut words = mount.split(' ').skip(1);
        let (place, kind) = (words.next()?, words.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(place))
    });
    found.expect("no cgroup version 2 is mounted here: mount one, at /sys/fs/cgroup")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::binary::Process;

    /// A UID that no other run has.
    fn pod() -> String {
        let hex = spiffe::crypto::random::<16>().unwrap().map(|byte| format!("{byte:02x}")).concat();
        [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
    }

    #[test]
    fn groups_that_were_there_before_stay() {
        let before = root().join(format!("chancery-{}", pod()));
        fs::create_dir(&before).unwrap();
        let name = before.file_name().unwrap().to_str().unwrap().to_owned();
        let (one, other) = (Cgroup::new(&format!("{name}/a/one")), Cgroup::new(&format!("{name}/a/other")));
        drop(one);
        assert!(other.path.exists() && !before.join("a/one").exists());
        drop(other);
        assert!(before.exists() && !before.join("a").exists());
        fs::remove_dir(&before).unwrap();
    }

    #[test]
    fn a_process_is_in_its_group_from_its_beginning_and_nothing_is_left() {
        let (folder, pod) = (tempfile::tempdir().unwrap(), pod());
        for shape in Shape::ALL {
            let group = Cgroup::of(shape, &pod, &"c".repeat(64));
            let said = group.command("/bin/cat").args(["/proc/self/cgroup"]).run().succeeded().stdout;
            let path = format!("/{}", shape.path(&pod, &"c".repeat(64)));
            assert!(said.lines().any(|line| line.starts_with("0::") && line.ends_with(&path)), "{path} in {said}");
            let process = Process::start(Command::new("/bin/sleep").args(["60"]), folder.path(), "sleep");
            group.take(process.pid());
            let group_of_it = fs::read_to_string(format!("/proc/{}/cgroup", process.pid())).unwrap();
            assert_eq!(group_of_it, said);
            let path = group.path.clone();
            drop((process, group));
            assert!(!path.exists() && !path.parent().unwrap().exists(), "{}", path.display());
        }
    }
}
