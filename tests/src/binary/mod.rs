//! The real binary `chancery` and programs that we did not write: how the tests beside this crate start them, talk to
//! them, and end them.
//!
//! | file | owns |
//! |---|---|
//! | `patience` | the one place where a test waits: for a condition, with a limit |
//! | `command` | a program that ends by itself, and its [`Output`] |
//! | `port` | a [`free_port`] for a program that is told where to listen |
//! | `process` | a program that runs on: its log, its end |
//! | `house` | a [`House`]: server and agent of one trust domain in a folder of their own |
//! | `federation` | two houses that fetch each other's bundles |
//! | `judges` | where the foreign programs are |
//! | `session` | the shell session in the README |
//!
//! - A program that is missing fails the test, with what to do; nothing is skipped.
//! - Only what was started here is ended, by its number.
//! - No process sees the environment of the test: no config of the machine's gets in.

mod command;
pub mod federation;
mod house;
mod judges;
mod patience;
mod port;
mod process;
mod session;

pub use command::{Command, Output};
pub use house::House;
pub use judges::{Judge, interop, jose, openssl, pkilint, place, pyjwt, update_of};
pub use patience::wait_for;
pub use port::free_port;
pub use process::Process;
pub use session::{Session, Step};

use std::path::PathBuf;

/// The binary that is judged: `CHANCERY_BIN`, or the newest of `target/release/chancery` and `target/debug/chancery`
/// beside the running test.
pub fn chancery() -> PathBuf {
    if let Some(path) = std::env::var_os("CHANCERY_BIN") {
        let path = PathBuf::from(path);
        assert!(path.is_file(), "CHANCERY_BIN names {}, which is not there: run ./check release", path.display());
        return path;
    }
    let test = std::env::current_exe().expect("the running test has a path");
    // target/debug/deps/verbs-0123
    let target = test.ancestors().nth(3).expect("a test is built into target/<profile>/deps");
    let built = ["release", "debug"].map(|profile| target.join(profile).join("chancery"));
    let age = |path: &PathBuf| path.metadata().and_then(|found| found.modified()).ok();
    built.into_iter().filter(|path| path.is_file()).max_by_key(age).unwrap_or_else(|| {
        panic!(
            "there is no chancery to test: build it with `cargo build -p cli` (looked in {}), or name one in \
             CHANCERY_BIN",
            target.display()
        )
    })
}
