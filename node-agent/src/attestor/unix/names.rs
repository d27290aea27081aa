//! Names of users and groups, remembered for a few seconds: looking one up reads a file each time, or asks the network.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::unistd::{Gid, Group, Uid, User};
use spiffe::time::{Clock, Timestamp};

/// How long a name is believed.
const LIFE: Duration = Duration::from_secs(10);
/// Names that are remembered; when there are more, all are forgotten.
const MANY: usize = 4096;

/// Whose name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Name {
    User(u32),
    Group(u32),
}

/// See the head of this file.
pub(super) struct Names {
    clock: Arc<dyn Clock>,
    found: Mutex<HashMap<Name, Found>>,
}

#[derive(Clone)]
struct Found {
    name: Option<Arc<str>>,
    at: Timestamp,
}

impl Names {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, found: Mutex::default() }
    }

    /// The name, if it was looked up lately; `Some(None)`: there is none.
    pub(super) fn known(&self, name: Name) -> Option<Option<Arc<str>>> {
        let now = self.clock.now();
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        // One that was found in the future was found before the clock was put back.
        found.get(&name).filter(|found| found.at <= now && now < found.at.plus(LIFE)).map(|found| found.name.clone())
    }

    /// The name, asked anew. It may take long.
    pub(super) fn look_up(&self, name: Name) -> Option<Arc<str>> {
        let text = match name {
            Name::User(uid) => User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|user| user.name),
            Name::Group(gid) => Group::from_gid(Gid::from_raw(gid)).ok().flatten().map(|group| group.name),
        };
        let text: Option<Arc<str>> = text.map(Into::into);
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if found.len() >= MANY {
            found.clear();
        }
        found.insert(name, Found { name: text.clone(), at: self.clock.now() });
        text
    }
}

#[cfg(test)]
mod tests {
    use spiffe::time::Fake;

    use super::*;

    #[test]
    fn a_name_is_believed_for_a_while() {
        let clock = Fake::new(Timestamp::from_unix(1_800_000_000));
        let names = Names::new(Arc::new(clock.clone()));
        assert_eq!(names.known(Name::User(0)), None);
        assert_eq!(names.look_up(Name::User(0)).as_deref(), Some("root"));
        assert_eq!(names.known(Name::User(0)), Some(Some("root".into())));
        assert_eq!(names.known(Name::Group(0)), None, "of a group nothing is known yet");
        clock.advance(Duration::from_secs(9));
        assert!(names.known(Name::User(0)).is_some());
        clock.advance(Duration::from_secs(1));
        assert_eq!(names.known(Name::User(0)), None);
        assert_eq!(names.look_up(Name::User(4_000_000_123)), None);
        assert_eq!(names.known(Name::User(4_000_000_123)), Some(None));
        clock.set(Timestamp::from_unix(1_700_000_000));
        assert_eq!(names.known(Name::User(4_000_000_123)), None, "found in the future");
    }

    #[test]
    fn there_is_an_end_to_remembering() {
        let names = Names::new(Arc::new(Fake::new(Timestamp::from_unix(1_800_000_000))));
        for gid in 0..5000 {
            names.look_up(Name::Group(3_000_000_000 + gid));
        }
        assert!(names.found.lock().unwrap().len() <= MANY);
    }
}
