//! The proxies and servers that people put in front of services, as the real programs, with the configs of
//! `docs/proxies`.
//!
//! | file | owns |
//! |---|---|
//! | `recipe` | a config as a page of `docs/proxies` shows it, moved to ports and paths of the test |
//! | `plain` | one request in plain HTTP by hand |
//! | `service` | the service behind a proxy: tells who it was told calls |
//! | `load` | requests at a constant rate, and those that failed |
//! | `rotation` | a rotation of the CA, as an operator does it |
//! | `delivered` | one who reads delivered files again and again |
//! | `envoy` | a running Envoy, and what it says of itself |
//! | `nginx` | a running nginx |
//! | `sides` | an Envoy as the other side of a connection |
//!
//! - A recipe is run as it stands: what a test changes are ports, paths, and what it says itself.
//! - Two proxies of one kind are two workloads, as each is started by a path of its own.

mod delivered;
mod envoy;
mod load;
mod nginx;
mod plain;
mod recipe;
mod rotation;
mod service;
mod sides;

pub use delivered::{Checker, Seen};
pub use envoy::Envoy;
pub use load::Load;
pub use nginx::Nginx;
pub use plain::{Answer, get};
pub use recipe::Recipe;
pub use rotation::rotate;
pub use service::Service;
pub use sides::{Front, Web};

use std::path::{Path, PathBuf};

use crate::binary::{House, place};

/// The program that `variable` names, by a path of its own in the folder of `house`, so that an entry can tell it from the
/// others: `unix:path:<that>`.
///
/// # Panics
/// When there is no such program.
pub fn program(house: &House, variable: &str, name: &str) -> PathBuf {
    let original = place(variable).canonicalize().expect("it is there");
    let path = house.path(name);
    if !path.exists() && std::fs::hard_link(&original, &path).is_err() {
        // Another file system.
        std::fs::copy(&original, &path).unwrap_or_else(|error| panic!("{}: {error}", original.display()));
    }
    path
}

/// An entry for the program of that path.
#[track_caller]
pub fn entry_of(house: &House, name: &str, program: &Path, more: &[&str]) -> String {
    house.entry(name, &format!("unix:path:{}", program.display()), more)
}
