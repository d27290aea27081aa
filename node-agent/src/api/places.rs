//! Places: how many may be served at once, in all and for one holder. A place is given back when it is dropped.
//!
//! - A process in a pod counts with its pod, by its cgroup, whatever user it is: pods share users, and choose them. One pod may have
//!   an eighth of what a user may.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use spiffe::id::SpiffeId;

use crate::attestor::{Attestors, Peer};

/// How many pods may have together what one user may.
const PODS_OF_A_USER: usize = 8;

/// Who holds places.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Holder {
    /// A user of this machine.
    User(u32),
    /// A pod of this machine, by the UID in its cgroup.
    Pod(String),
    /// Whoever calls from there: an IPv4 address, or the first address of an IPv6 /64.
    Network(IpAddr),
    /// Whoever has this identity.
    Broker(SpiffeId),
}

impl Holder {
    /// The user that `peer` acts for.
    pub(crate) fn user(peer: &Peer) -> Self {
        Self::User(peer.uid())
    }

    /// The pod that `peer` is in, or the user that it acts for.
    pub(crate) fn local(peer: &Peer, attestors: &Attestors) -> Self {
        attestors.pod(peer).map_or_else(|| Self::user(peer), Self::Pod)
    }

    /// Who calls from `address`. A /64 is the least that a provider gives to one customer; an IPv4 address that is written
    /// as IPv6 is an IPv4 address.
    pub(crate) fn network(address: IpAddr) -> Self {
        Self::Network(match address.to_canonical() {
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
            address => address,
        })
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(uid) => write!(f, "user {uid}"),
            Self::Pod(uid) => write!(f, "pod {uid}"),
            Self::Network(address) => write!(f, "{address}"),
            Self::Broker(id) => write!(f, "{id}"),
        }
    }
}

/// Why there is no place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Full {
    /// All are taken.
    #[error("all {0} places are taken: close some connections or streams to the agent, or raise its limits")]
    All(usize),
    /// This holder has taken all that one may.
    #[error("{holder} has taken all {most} places that one may: close some connections or streams to the agent")]
    Holder {
        /// Who.
        holder: Holder,
        /// How many one holder may have.
        most: usize,
    },
}

/// A number of places. See the head of this file.
#[derive(Debug)]
pub(crate) struct Places {
    all: usize,
    per_holder: usize,
    per_pod: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    /// Never holds a zero.
    by_holder: HashMap<Holder, usize>,
}

/// One place, given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    holder: Holder,
}

impl Place {
    /// Whose it is.
    pub(crate) fn holder(&self) -> &Holder {
        &self.holder
    }
}

impl Places {
    pub(crate) fn new(all: usize, per_holder: usize) -> Arc<Self> {
        Arc::new(Self { all, per_holder, per_pod: per_holder, taken: Mutex::default() })
    }

    /// For processes of this machine: `per_user` for a user of it, and an eighth of that for a pod.
    pub(crate) fn local(all: usize, per_user: usize) -> Arc<Self> {
        let per_pod = per_user.div_ceil(PODS_OF_A_USER);
        Arc::new(Self { all, per_holder: per_user, per_pod, taken: Mutex::default() })
    }

    /// How many `holder` may have.
    pub(crate) fn most(&self, holder: &Holder) -> usize {
        if matches!(holder, Holder::Pod(_)) { self.per_pod } else { self.per_holder }
    }

    /// Takes a place for `holder`.
    pub(crate) fn take(self: &Arc<Self>, holder: Holder) -> Result<Place, Full> {
        let mut taken = self.lock();
        if taken.all >= self.all {
            return Err(Full::All(self.all));
        }
        let most = self.most(&holder);
        if taken.by_holder.get(&holder).is_some_and(|count| *count >= most) {
            return Err(Full::Holder { holder, most });
        }
        taken.all += 1;
        *taken.by_holder.entry(holder.clone()).or_default() += 1;
        Ok(Place { places: Arc::clone(self), holder })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.all = taken.all.saturating_sub(1);
        if let Some(count) = taken.by_holder.get_mut(&self.holder) {
            *count -= 1;
            if *count == 0 {
                taken.by_holder.remove(&self.holder);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use spiffe::selector::Selector;
    use spiffe::time::System;
    use tokio::net::UnixStream;

    use super::*;
    use crate::attestor::process_file::Credentials;
    use crate::attestor::{AttestError, WorkloadAttestor};

    /// Says that everything is in this pod, or in none.
    struct In(Option<&'static str>);

    #[async_trait]
    impl WorkloadAttestor for In {
        fn kind(&self) -> &'static str {
            "in"
        }

        async fn attest(&self, _: &Peer, _: &Credentials) -> Result<Vec<Selector>, AttestError> {
            Ok(Vec::new())
        }

        fn pod(&self, _: &Peer) -> Option<String> {
            self.0.map(str::to_owned)
        }
    }

    #[tokio::test]
    async fn a_pod_has_its_own_places_whatever_user_it_takes() {
        let (_ours, theirs) = UnixStream::pair().unwrap();
        let peer = Peer::of(&theirs).unwrap();
        let attestors = |pod| Attestors::new(vec![Box::new(In(None)), Box::new(In(pod))], Arc::new(System));
        let (pod, user) = (Holder::local(&peer, &attestors(Some("a"))), Holder::local(&peer, &attestors(None)));
        assert_eq!((&pod, &user), (&Holder::Pod("a".into()), &Holder::User(peer.uid())));
        let places = Places::local(100, 16);
        let _held: Vec<_> = (0..2).map(|_| places.take(pod.clone()).unwrap()).collect();
        assert_eq!(places.take(pod.clone()).unwrap_err(), Full::Holder { holder: pod, most: 2 });
        assert!(places.take(Holder::Pod("b".into())).is_ok());
        let _held: Vec<_> = (0..16).map(|_| places.take(user.clone()).unwrap()).collect();
        assert!(places.take(user).is_err());
        assert_eq!(Places::local(4, 1).most(&Holder::Pod("a".into())), 1, "never none");
    }

    #[test]
    fn places_are_counted_by_holder_and_in_all_and_given_back() {
        let user = Holder::User;
        let places = Places::new(3, 2);
        let (one, _two) = (places.take(user(1)).unwrap(), places.take(user(1)).unwrap());
        assert_eq!(places.take(user(1)).unwrap_err(), Full::Holder { holder: user(1), most: 2 });
        let other = places.take(user(2)).unwrap();
        assert_eq!(places.take(user(3)).unwrap_err(), Full::All(3));
        drop((one, other));
        assert_eq!(places.lock().by_holder.len(), 1);
        assert!(places.take(user(1)).is_ok());
    }

    #[test]
    fn whoever_has_a_network_of_ipv6_counts_as_one() {
        let network = |address: &str| Holder::network(address.parse().unwrap());
        assert_eq!(network("2001:db8:0:1::1"), network("2001:db8:0:1:ffff::2"));
        assert_ne!(network("2001:db8:0:1::1"), network("2001:db8:0:2::1"));
        assert_ne!(network("192.0.2.1"), network("192.0.2.2"));
        assert_eq!(network("::ffff:192.0.2.1"), network("192.0.2.1"));
    }
}
