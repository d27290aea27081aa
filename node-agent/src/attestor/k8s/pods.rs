//! What is known of the pods of this node. A value: events go in, and what is true of a container comes out.
//!
//! - The container by its ID and the pod by its UID have to say the same: the pod that claims the container is the one in
//!   whose cgroup it is.
//! - Two pods that claim one container: neither has it.
//! - Until it is known what owns the owner of a pod, or that this cannot be found out, the pod is not known either.

use std::sync::Arc;

use rpds::HashTrieMapSync;
use spiffe::selector::Selector;

use super::cgroup;
use super::object::Pod;
use super::owners::Owner;

/// More pods than a node can have; of more than that nothing is known.
pub const MAX_PODS: usize = 4096;

/// What an API server tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// These are all: at start, and after a gap.
    All(Vec<Pod>),
    /// One is new, or is now like this.
    Put(Pod),
    /// The one with this UID was deleted.
    Gone(Arc<str>),
}

/// What can be said of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// What is true of everything in it.
    Here(Vec<Selector>),
    /// It is not known yet.
    NotYet,
    /// Its pod is, but not yet what owns the owner of that.
    OwnerNotYet,
}

/// Why a container is nobody's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PodError {
    /// Several claim it.
    #[error("pods {0:?} all claim the container {1}: it is taken for none of them")]
    Contested(Vec<Arc<str>>, String),
    /// Its cgroup is another pod's.
    #[error("the container {} is of pod {claimed} by its status, and of {} by its cgroup: it is taken for neither", .container.id, .container.pod_uid)]
    Disagree {
        /// Who claims it.
        claimed: Arc<str>,
        /// Where it is.
        container: cgroup::Container,
    },
}

/// The pods of a node. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Pods {
    by_uid: HashTrieMapSync<Arc<str>, Arc<Pod>>,
    /// Who claims a container, in order.
    claims: HashTrieMapSync<Arc<str>, Vec<Arc<str>>>,
    /// What follows from the owner of an owner, by the UID of the latter.
    above: HashTrieMapSync<Arc<str>, Arc<[Selector]>>,
    is_told: bool,
}

impl Pods {
    /// What is true of `container`.
    pub fn find(&self, container: &cgroup::Container) -> Result<Found, PodError> {
        let pod = match self.claims.get(container.id.as_str()).map(Vec::as_slice) {
            None | Some([]) => return Ok(Found::NotYet),
            Some([uid]) => self.by_uid.get(uid),
            Some(uids) => return Err(PodError::Contested(uids.to_vec(), container.id.clone())),
        };
        let Some(pod) = pod else { return Ok(Found::NotYet) };
        if *pod.cgroup_uid != *container.pod_uid {
            return Err(PodError::Disagree { claimed: Arc::clone(&pod.uid), container: container.clone() });
        }
        let Some(mut selectors) = self.of_pod(pod) else { return Ok(Found::OwnerNotYet) };
        // Labels are at the end of a pod's, and there may be many: they are what is cut off first.
        let own = pod.containers.iter().find(|own| *own.id == *container.id);
        selectors.splice(0..0, own.into_iter().flat_map(|own| own.selectors.iter().cloned()));
        Ok(Found::Here(selectors))
    }

    /// The pod with this UID.
    pub fn by_uid(&self, uid: &str) -> Option<&Arc<Pod>> {
        self.by_uid.get(uid)
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.by_uid.values()
    }

    /// What is true of everything in `pod`; `None`: that is not known yet.
    pub fn of_pod(&self, pod: &Pod) -> Option<Vec<Selector>> {
        let above = match &pod.owner {
            Some(owner) => self.above.get(&owner.uid)?.as_ref(),
            None => &[],
        };
        Some(above.iter().chain(&pod.selectors).cloned().collect())
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.by_uid.size()
    }

    /// Whether they were ever told.
    pub fn is_told(&self) -> bool {
        self.is_told
    }

    /// The owners of which it is not known what owns them, each as often as it is asked for.
    pub fn wanted(&self) -> impl Iterator<Item = &Owner> {
        self.owners().filter(|owner| !self.above.contains_key(&owner.uid))
    }

    /// The owners that may have one themselves.
    pub fn owners(&self) -> impl Iterator<Item = &Owner> {
        self.by_uid.values().filter_map(|pod| pod.owner.as_ref())
    }

    /// What follows from the owner of `owner`: nothing, where that cannot be found out.
    pub fn settle(&mut self, owner: &str, selectors: Vec<Selector>) {
        if self.owners().any(|wanted| *wanted.uid == *owner) {
            self.above.insert_mut(owner.into(), selectors.into());
        }
    }

    /// These pods after `event`. Returns how many of it there was no room for.
    pub fn apply(&mut self, event: Event) -> usize {
        let mut left_out = 0;
        match event {
            Event::Put(pod) => left_out += usize::from(!self.put(pod)),
            Event::Gone(uid) => self.forget(&uid),
            Event::All(pods) => {
                self.is_told = true;
                let stay: std::collections::HashSet<&str> = pods.iter().map(|pod| &*pod.uid).collect();
                let gone: Vec<_> = self.by_uid.keys().filter(|uid| !stay.contains(&***uid)).cloned().collect();
                gone.iter().for_each(|uid| self.forget(uid));
                left_out = pods.into_iter().map(|pod| self.put(pod)).filter(|has_room| !has_room).count();
            }
        }
        let needless = |uid: &Arc<str>| !self.owners().any(|owner| owner.uid == *uid);
        let needless: Vec<_> = self.above.keys().filter(|uid| needless(uid)).cloned().collect();
        for uid in needless {
            self.above.remove_mut(&uid);
        }
        left_out
    }

    /// `false`: there is no room for it.
    fn put(&mut self, pod: Pod) -> bool {
        self.forget(&pod.uid);
        if self.by_uid.size() >= MAX_PODS {
            return false;
        }
        for container in &pod.containers {
            let mut claims = self.claims.get(&container.id).cloned().unwrap_or_default();
            if !claims.contains(&pod.uid) {
                claims.push(Arc::clone(&pod.uid));
            }
            self.claims.insert_mut(Arc::clone(&container.id), claims);
        }
        self.by_uid.insert_mut(Arc::clone(&pod.uid), Arc::new(pod));
        true
    }

    fn forget(&mut self, uid: &Arc<str>) {
        let Some(pod) = self.by_uid.get(uid).cloned() else { return };
        self.by_uid.remove_mut(uid);
        for container in &pod.containers {
            let mut claims = self.claims.get(&container.id).cloned().unwrap_or_default();
            claims.retain(|claim| claim != uid);
            if claims.is_empty() {
                self.claims.remove_mut(&container.id);
            } else {
                self.claims.insert_mut(Arc::clone(&container.id), claims);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::object::tests::{document, id, pod};
    use super::*;

    fn at(uid: &str, container: char) -> cgroup::Container {
        cgroup::Container { id: id(container), pod_uid: uid.into() }
    }

    fn known(uid: &str, container: char) -> Pod {
        pod(document(uid, &id(container))).unwrap()
    }

    /// A pod that nothing owns.
    fn bare(uid: &str, containers: &str) -> Pod {
        let mut pod = known(uid, 'x');
        let of = |id: char| super::super::object::Container {
            id: super::super::object::tests::id(id).into(),
            selectors: Vec::new(),
        };
        pod.owner = None;
        pod.containers = containers.chars().map(of).collect();
        pod
    }

    fn words(found: &Found) -> Vec<String> {
        match found {
            Found::Here(selectors) => selectors.iter().map(ToString::to_string).collect(),
            Found::NotYet | Found::OwnerNotYet => vec!["not yet".into()],
        }
    }

    #[test]
    fn a_pod_is_known_when_its_container_and_its_owners_are() {
        let mut pods = Pods::default();
        assert!(!pods.is_told());
        let mut starting = known("1", 'a');
        starting.containers.clear();
        pods.apply(Event::All(vec![starting]));
        assert_eq!((pods.is_told(), pods.find(&at("1", 'a'))), (true, Ok(Found::NotYet)));
        pods.apply(Event::Put(known("1", 'a')));
        assert_eq!(pods.find(&at("1", 'a')), Ok(Found::OwnerNotYet), "its Deployment is not known");
        assert_eq!(pods.wanted().map(|owner| &*owner.uid).collect::<Vec<_>>(), ["rs"]);
        pods.settle("rs", vec![Selector::parse("k8s:owner:Deployment:web").unwrap()]);
        assert_eq!(pods.wanted().count(), 0);
        let found = words(&pods.find(&at("1", 'a')).unwrap());
        assert_eq!(found[0], "k8s:container-name:web");
        for selector in ["k8s:ns:shop", "k8s:owner:ReplicaSet:web-1", "k8s:owner:Deployment:web"] {
            assert!(found.iter().any(|found| found == selector), "{selector} is not in {found:?}");
        }
        assert_eq!(pods.find(&at("1", 'b')), Ok(Found::NotYet));
        // Restarted: the former container is nobody's.
        pods.apply(Event::Put(known("1", 'b')));
        assert_eq!(pods.find(&at("1", 'a')), Ok(Found::NotYet));
        assert!(matches!(pods.find(&at("1", 'b')), Ok(Found::Here(..))), "its owner is known still");
        pods.apply(Event::Gone("1".into()));
        assert_eq!((pods.find(&at("1", 'b')), pods.count(), pods.above.size()), (Ok(Found::NotYet), 0, 0));
        pods.settle("rs", Vec::new());
        assert_eq!(pods.above.size(), 0, "nobody asked any more");
    }

    #[test]
    fn a_container_of_two_pods_or_in_the_cgroup_of_another_is_nobodys() {
        let mut pods = Pods::default();
        pods.apply(Event::All(vec![bare("1", "a"), bare("2", "ab")]));
        let error = pods.find(&at("1", 'a')).unwrap_err();
        assert!(matches!(&error, PodError::Contested(uids, _) if uids.len() == 2), "{error}");
        assert_eq!(pods.find(&at("2", 'a')).unwrap_err().to_string(), error.to_string());
        assert!(matches!(pods.find(&at("1", 'b')), Err(PodError::Disagree { .. })));
        assert!(matches!(pods.find(&at("2", 'b')), Ok(Found::Here(..))));
        pods.apply(Event::Gone("2".into()));
        assert!(matches!(pods.find(&at("1", 'a')), Ok(Found::Here(..))), "the other one is gone");
    }

    #[test]
    fn a_static_pod_is_in_the_cgroup_of_its_manifest() {
        let mut pods = Pods::default();
        pods.apply(Event::Put(Pod { cgroup_uid: "hash".into(), ..bare("1", "a") }));
        let found = words(&pods.find(&at("hash", 'a')).unwrap());
        assert!(found.iter().any(|found| found == "k8s:pod-uid:1"), "{found:?}");
        assert!(pods.find(&at("1", 'a')).is_err());
    }

    #[test]
    fn there_is_an_end_to_remembering() {
        let mut pods = Pods::default();
        let left_out = pods.apply(Event::All((0..MAX_PODS + 10).map(|n| bare(&n.to_string(), "a")).collect()));
        assert_eq!((pods.count(), left_out), (MAX_PODS, 10));
        assert_eq!(pods.apply(Event::Put(bare("one more", "a"))), 1, "somebody has to say so");
    }

    proptest! {
        #[test]
        fn claims_are_those_of_the_pods_that_are_there(
            events in prop::collection::vec((0..3u8, 0..4usize, "[a-d]{0,3}"), 0..20),
        ) {
            let mut pods = Pods::default();
            let mut model: std::collections::BTreeMap<usize, String> = Default::default();
            for (kind, uid, containers) in events {
                let pod = bare(&uid.to_string(), &containers);
                match kind {
                    0 => {
                        model.insert(uid, containers);
                        pods.apply(Event::Put(pod));
                    }
                    1 => {
                        model.remove(&uid);
                        pods.apply(Event::Gone(uid.to_string().into()));
                    }
                    _ => {
                        model = [(uid, containers)].into();
                        pods.apply(Event::All(vec![pod]));
                    }
                }
            }
            for container in "abcd".chars() {
                let owners: Vec<_> = model.iter().filter(|(_, has)| has.contains(container)).collect();
                for uid in 0..4 {
                    let found = pods.find(&at(&uid.to_string(), container));
                    match &owners[..] {
                        [] => prop_assert_eq!(found, Ok(Found::NotYet)),
                        [(only, _)] if **only == uid => prop_assert!(matches!(found, Ok(Found::Here(..)))),
                        _ => prop_assert!(found.is_err()),
                    }
                }
            }
        }
    }
}
