//! Names of users and groups -> their numbers, as this machine has them now.

use nix::unistd::{Group, User};

/// Why a name has no number.
#[derive(Debug, thiserror::Error)]
pub enum OwnerError {
    /// There is no such user.
    #[error("there is no user {0:?} on this machine: create it, or name another owner")]
    NoUser(String),
    /// There is no such group.
    #[error("there is no group {0:?} on this machine: create it, or name another group")]
    NoGroup(String),
    /// The names cannot be looked up.
    #[error("{name:?} cannot be looked up among the users and groups of this machine: {source}")]
    Lookup {
        /// Which name.
        name: String,
        /// Why not.
        source: std::io::Error,
    },
}

/// The number of a user, given by name or by number.
pub(super) fn user(name: &str) -> Result<u32, OwnerError> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    match User::from_name(name) {
        Ok(Some(user)) => Ok(user.uid.as_raw()),
        Ok(None) => Err(OwnerError::NoUser(name.to_owned())),
        Err(errno) => Err(OwnerError::Lookup { name: name.to_owned(), source: errno.into() }),
    }
}

/// The number of a group, given by name or by number.
pub(super) fn group(name: &str) -> Result<u32, OwnerError> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) => Err(OwnerError::NoGroup(name.to_owned())),
        Err(errno) => Err(OwnerError::Lookup { name: name.to_owned(), source: errno.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        assert_eq!((user("root").unwrap(), user("4711").unwrap()), (0, 4711));
        assert_eq!((group("root").unwrap(), group("4712").unwrap()), (0, 4712));
        assert!(user("nobody-of-that-name").unwrap_err().to_string().contains("\"nobody-of-that-name\""));
        assert!(group("nobody-of-that-name").unwrap_err().to_string().contains("there is no group"));
    }
}
