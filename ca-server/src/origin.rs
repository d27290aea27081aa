//! Whom a bound counts as one, and the places that each may hold.
//!
//! - Someone without an SVID is his network: an IPv4 address, or the /64 of an IPv6 address, which is the least that a
//!   provider gives to one customer. An IPv4 address that is written as IPv6 is an IPv4 address.
//! - An agent is its SPIFFE ID, wherever it calls from; a local user is a uid.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use spiffe::id::SpiffeId;

/// Whom a bound counts as one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// An IPv4 address, or the first address of an IPv6 /64.
    Network(IpAddr),
    /// An agent.
    Agent(SpiffeId),
    /// A user of this machine.
    Uid(u32),
}

impl Origin {
    /// The network of `address`.
    pub fn network(address: IpAddr) -> Self {
        Self::Network(match address.to_canonical() {
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
            address => address,
        })
    }
}

/// A number of places, of which one origin may hold a part. Clones share them.
#[derive(Clone, Debug)]
pub struct Places(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    in_all: usize,
    of_one: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    in_all: usize,
    by_origin: HashMap<Origin, usize>,
}

impl Places {
    /// `in_all` places, at most `of_one` for one origin; at least one each.
    pub fn new(in_all: usize, of_one: usize) -> Self {
        Self(Arc::new(Shared { in_all: in_all.max(1), of_one: of_one.max(1), held: Mutex::default() }))
    }

    /// A place for `origin`, given back when it is dropped; `None`: it holds enough, or all are taken.
    pub fn take(&self, origin: Origin) -> Option<Place> {
        let mut held = self.held();
        let of_one = held.by_origin.get(&origin).copied().unwrap_or(0);
        if held.in_all >= self.0.in_all || of_one >= self.0.of_one {
            return None;
        }
        held.in_all += 1;
        held.by_origin.insert(origin.clone(), of_one + 1);
        Some(Place { places: self.clone(), origin })
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place that is taken.
#[must_use = "a place that is dropped is free again"]
#[derive(Debug)]
pub struct Place {
    places: Places,
    origin: Origin,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.places.held();
        held.in_all -= 1;
        if let Some(count) = held.by_origin.get_mut(&self.origin) {
            *count -= 1;
            if *count == 0 {
                held.by_origin.remove(&self.origin);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(address: &str) -> Origin {
        Origin::network(address.parse().unwrap())
    }

    #[test]
    fn a_network_is_an_ipv4_address_or_an_ipv6_64() {
        assert_ne!(network("192.0.2.1"), network("192.0.2.2"));
        assert_eq!(network("2001:db8:0:1::1"), network("2001:db8:0:1:ffff::2"));
        assert_ne!(network("2001:db8:0:1::1"), network("2001:db8:0:2::1"));
        assert_eq!(network("::ffff:192.0.2.1"), network("192.0.2.1"));
        assert_ne!(network("::ffff:192.0.2.1"), network("::ffff:192.0.2.2"));
    }

    #[test]
    fn who_holds_all_that_one_may_holds_up_nobody_else() {
        let places = Places::new(8, 3);
        let (one, other) = (network("192.0.2.1"), Origin::Uid(7));
        let mut held: Vec<Place> = (0..3).map(|_| places.take(one.clone()).unwrap()).collect();
        assert!(places.take(one.clone()).is_none());
        assert!(places.take(other.clone()).is_some());
        held.pop();
        assert!(places.take(one.clone()).is_some());
        drop(held);
        assert!(places.held().by_origin.is_empty());
        assert_eq!(places.held().in_all, 0);
    }

    #[test]
    fn there_are_no_more_places_than_in_all() {
        let places = Places::new(2, 2);
        let held = [1, 2].map(|uid| places.take(Origin::Uid(uid)).unwrap());
        assert!(places.take(Origin::Uid(3)).is_none());
        drop(held);
        assert!(places.take(Origin::Uid(3)).is_some());
    }
}
