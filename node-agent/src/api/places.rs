//! Places: how many may be served at once, in all and for one user. A place is given back when it is dropped.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Full {
    /// All are taken.
    #[error("all {0} places are taken: close some connections or streams to the agent, or raise its limits")]
    All(usize),
    /// This user has taken all that one may.
    #[error("user {uid} has taken all {most} places of one user: close some connections or streams to the agent")]
    User {
        /// Who.
        uid: u32,
        /// How many one user may have.
        most: usize,
    },
}

/// A number of places. See the head of this file.
#[derive(Debug)]
pub(crate) struct Places {
    all: usize,
    per_user: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    /// Never holds a zero.
    by_user: HashMap<u32, usize>,
}

/// One place, given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    uid: u32,
}

impl Places {
    pub(crate) fn new(all: usize, per_user: usize) -> Arc<Self> {
        Arc::new(Self { all, per_user, taken: Mutex::default() })
    }

    /// Takes a place for the user `uid`.
    pub(crate) fn take(self: &Arc<Self>, uid: u32) -> Result<Place, Full> {
        let mut taken = self.lock();
        if taken.all >= self.all {
            return Err(Full::All(self.all));
        }
        if taken.by_user.get(&uid).is_some_and(|count| *count >= self.per_user) {
            return Err(Full::User { uid, most: self.per_user });
        }
        taken.all += 1;
        *taken.by_user.entry(uid).or_default() += 1;
        Ok(Place { places: Arc::clone(self), uid })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.all = taken.all.saturating_sub(1);
        if let Some(count) = taken.by_user.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                taken.by_user.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_by_user_and_in_all_and_given_back() {
        let places = Places::new(3, 2);
        let (one, _two) = (places.take(1).unwrap(), places.take(1).unwrap());
        assert_eq!(places.take(1).unwrap_err(), Full::User { uid: 1, most: 2 });
        let other = places.take(2).unwrap();
        assert_eq!(places.take(3).unwrap_err(), Full::All(3));
        drop((one, other));
        assert_eq!(places.lock().by_user.len(), 1);
        assert!(places.take(1).is_ok());
    }
}
