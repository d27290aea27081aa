//! The container that a process is in, and its pod, from the text of `/proc/<pid>/cgroup`. Pure.
//!
//! - The kernel writes this file: nothing that a process mounts changes it, and mount information is never asked.
//! - **The outermost container counts.** Whoever is in one may be let make cgroups below his own, and calls them what he
//!   likes; above or beside it he makes none.
//! - **Above a pod there is only the kubelet's own**: its folders, and slices, which systemd hands to nobody. What is below
//!   a service or a scope may be somebody's (`user@1000.service`), who calls it what he likes: it is no pod.
//! - A cluster may itself be inside of a container (kind, with cgroup v1): what is above the agent's own pod is then the
//!   [`Top`], above which nothing counts.
//! - An agent in a cgroup namespace of its own (a pod with cgroup v2 that is not privileged) sees the others as `/../..`: behind
//!   that the same holds. A container of the agent's own pod is shown to it without the pod, and so is none.
//! - With cgroup v1 there is a path for each hierarchy: all that lead to a container have to lead to the same one.

/// A container of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its ID: 64 hexadecimal digits.
    pub id: String,
    /// The UID of its pod as the kubelet knows it, with dashes; of a static pod a hash of 32 hexadecimal digits.
    pub pod_uid: String,
}

/// Why a process is in no container that could be believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CgroupError {
    /// Two hierarchies of cgroup v1 lead to different containers.
    #[error("the process is in container {} by one cgroup hierarchy and in {} by another: it is taken for neither", .0.id, .1.id)]
    Two(Container, Container),
}

/// What is above the tree of the agent's own kubelet, part by part. Empty: nothing, as on a machine of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Top(Vec<Vec<u8>>);

impl Top {
    /// By the agent's own `/proc/self/cgroup`.
    pub fn of_agent(file: &[u8]) -> Self {
        paths(file).find_map(above_own_pod).unwrap_or_default()
    }

    /// The container that a process with this `/proc/<pid>/cgroup` is in; `None`: in none of this cluster.
    pub fn container(&self, file: &[u8]) -> Result<Option<Container>, CgroupError> {
        let mut found: Option<Container> = None;
        for container in paths(file).filter_map(|path| self.container_in(path)) {
            match found {
                Some(one) if one != container => return Err(CgroupError::Two(one, container)),
                _ => found = Some(container),
            }
        }
        Ok(found)
    }

    /// Where a process with this `/proc/<pid>/cgroup`, which is in no container, seems to be in a pod all the same: the path above
    /// that, in a layout that is not believed.
    pub fn misplaced(&self, file: &[u8]) -> Option<String> {
        paths(file).find_map(|path| {
            let mut inside = parts(path);
            if !self.0.iter().all(|above| inside.next() == Some(above.as_slice())) {
                return None;
            }
            let mut above = self.0.clone();
            for part in inside {
                if names_pod(&String::from_utf8_lossy(part)) {
                    return Some(String::from_utf8_lossy(&above.join(&b'/')).into_owned());
                }
                above.push(part.to_vec());
            }
            None
        })
    }

    fn container_in(&self, path: &[u8]) -> Option<Container> {
        let mut parts = parts(path).peekable();
        if parts.next_if_eq(&b"..".as_slice()).is_some() {
            while parts.next_if_eq(&b"..".as_slice()).is_some() {}
        } else if !self.0.iter().all(|above| parts.next_if_eq(&above.as_slice()).is_some()) {
            return None;
        }
        loop {
            let part = std::str::from_utf8(parts.next()?).ok()?;
            match Part::of(part) {
                Part::Above => {}
                Part::Pod(pod_uid) => {
                    let id = container_id(std::str::from_utf8(parts.next()?).ok()?)?;
                    return Some(Container { id: id.to_owned(), pod_uid });
                }
                Part::Both(container) => return Some(container),
                Part::Other => return None,
            }
        }
    }
}

/// The paths, of each hierarchy one: behind the second colon of each line.
fn paths(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    file.split(|byte| *byte == b'\n').filter_map(|line| line.splitn(3, |byte| *byte == b':').nth(2))
}

fn parts(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty())
}

/// What is above the kubelet's tree in the agent's own path, if that leads into a pod: the innermost, as the agent belongs to no cluster further out.
fn above_own_pod(path: &[u8]) -> Option<Top> {
    let parts: Vec<&[u8]> = parts(path).collect();
    let kind = |part: &&[u8]| std::str::from_utf8(part).map_or(Part::Other, Part::of);
    let pod = parts.iter().rposition(|part| matches!(kind(part), Part::Pod(_) | Part::Both(_)))?;
    let (above, _) = parts.split_at(pod);
    let own = above.iter().rev().take_while(|part| matches!(kind(part), Part::Above)).count();
    let (top, _) = above.split_at(pod - own);
    (!top.contains(&b"..".as_slice())).then(|| Top(top.iter().map(|part| part.to_vec()).collect()))
}

/// One part of a path, from outside up to the pod.
enum Part {
    /// A slice, or a folder of the kubelet's.
    Above,
    /// A pod.
    Pod(String),
    /// A pod and its container: what runc makes of a path for systemd where it is told to do without.
    Both(Container),
    /// Anything else.
    Other,
}

impl Part {
    fn of(part: &str) -> Self {
        if let Some(pod_uid) = part.strip_prefix("pod").and_then(uid) {
            return Self::Pod(pod_uid);
        }
        if let Some((slice, container)) = part.split_once(':') {
            let id = container.rsplit_once(':').map(|(_, id)| id).filter(|id| is_container_id(id));
            return match (pod_slice(slice), id) {
                (Some(pod_uid), Some(id)) => Self::Both(Container { id: id.to_owned(), pod_uid }),
                _ => Self::Other,
            };
        }
        match pod_slice(part) {
            Some(pod_uid) => Self::Pod(pod_uid),
            None if is_folder_of_kubelet(part) || part.len() > SLICE.len() && part.ends_with(SLICE) => Self::Above,
            None => Self::Other,
        }
    }
}

const SLICE: &str = ".slice";

/// The kubelet's tree where it is not systemd that makes it: the root, the classes of service, and what kind puts above.
fn is_folder_of_kubelet(part: &str) -> bool {
    matches!(part, "kubepods" | "burstable" | "besteffort" | "guaranteed" | "kubelet")
}

/// The UID in `kubepods-burstable-pod<UID>.slice`.
fn pod_slice(part: &str) -> Option<String> {
    let (parent, pod_uid) = part.strip_suffix(SLICE)?.rsplit_once("-pod")?;
    let parent = parent.strip_suffix("-burstable").or_else(|| parent.strip_suffix("-besteffort")).unwrap_or(parent);
    let is_kubepods = parent == "kubepods" || parent.ends_with("-kubepods");
    if is_kubepods { uid(pod_uid) } else { None }
}

/// A UID, in which systemd wants underscores instead of dashes; or the hash that a static pod has in its place.
fn uid(text: &str) -> Option<String> {
    let text = text.replace('_', "-");
    let groups: Vec<&str> = text.split('-').collect();
    let lengths: Vec<usize> = groups.iter().map(|group| group.len()).collect();
    let is_uid = lengths == [8, 4, 4, 4, 12] || lengths == [32];
    (is_uid && groups.iter().all(|group| is_hex(group))).then_some(text)
}

/// Whether there is the UID of a pod in it anywhere.
fn names_pod(part: &str) -> bool {
    part.match_indices("pod").any(|(at, pod)| {
        let behind = part.get(at + pod.len()..).unwrap_or_default();
        behind.get(..36).is_some_and(|text| uid(text).is_some())
    })
}

/// The ID in `<ID>`, `crio-<ID>` and `cri-containerd-<ID>.scope`. A `conmon` watches over a container, and is none.
fn container_id(part: &str) -> Option<&str> {
    let name = part.strip_suffix(".scope").unwrap_or(part);
    let (runtime, id) = name.rsplit_once('-').unwrap_or(("", name));
    (is_container_id(id) && !runtime.ends_with("conmon")).then_some(id)
}

/// Whether it is an ID as all container runtimes make them.
pub(super) fn is_container_id(text: &str) -> bool {
    text.len() == 64 && is_hex(text)
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests;
