//! Programs that we did not write, or that stand on libraries that we did not write (`tests/interop/README.md`).

use std::path::{Path, PathBuf};

use super::command::{Command, Output};
use super::house::House;
use super::process::Process;

/// A client of somebody else's SPIFFE library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judge {
    /// go-spiffe v2.
    Go,
    /// `spiffe` from PyPI.
    Python,
    /// The public crate `spiffe`.
    Rust,
}

/// Where a program that we did not write is, by its variable.
pub fn place(variable: &str) -> PathBuf {
    let path = std::env::var_os(variable).map(PathBuf::from).unwrap_or_else(|| {
        panic!(
            "{variable} is not set, so a program is missing: run `./check test`, which builds it and says where it is"
        )
    });
    assert!(path.exists(), "{variable} names {}, which is not there: run ./check interop", path.display());
    path
}

/// A file of `tests/interop`.
pub fn interop(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("interop").join(name)
}

impl Judge {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Go, Self::Python, Self::Rust];

    /// The program, as a workload of this house.
    pub fn command(self, house: &House) -> Command {
        match self {
            Self::Go => house.program(place("CHANCERY_INTEROP_GO")),
            Self::Rust => house.program(place("CHANCERY_INTEROP_RUST")),
            Self::Python => {
                let script = interop("python/judge.py").display().to_string();
                house.program(place("CHANCERY_INTEROP_PYTHON")).args([script])
            }
        }
    }

    /// Where the program itself is.
    pub fn program(self) -> PathBuf {
        place(match self {
            Self::Go => "CHANCERY_INTEROP_GO",
            Self::Python => "CHANCERY_INTEROP_PYTHON",
            Self::Rust => "CHANCERY_INTEROP_RUST",
        })
    }

    /// Starts to watch this process's X.509 context, for longer than any test takes.
    pub fn watch(self, house: &House) -> Process {
        let command = self.command(house).args(["watch", "--updates", "1000", "--timeout", "300"]);
        Process::start(command, house.folder(), &format!("{self:?}"))
    }
}

/// The updates that a watching judge has printed in full lines.
pub fn update_of(judge: &Process) -> Vec<serde_json::Value> {
    let text = judge.stdout();
    let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    lines.map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// Verifies a JWT-SVID from nothing but its issuer's URL, with PyJWT. `roots`: what the web server is known by.
pub fn pyjwt(issuer: &str, audience: &str, token: &str, roots: &Path) -> Output {
    Command::new(place("CHANCERY_INTEROP_PYTHON"))
        .env("SSL_CERT_FILE", roots)
        .args([&interop("python/discovery.py").display().to_string(), issuer, audience, token])
        .run()
}

/// The same with `jose`, on Node.js.
pub fn jose(issuer: &str, audience: &str, token: &str, roots: &Path) -> Output {
    Command::new(in_path("node", "nodejs"))
        .env("NODE_EXTRA_CA_CERTS", roots)
        .args([&place("CHANCERY_INTEROP_NODE").display().to_string(), issuer, audience, token])
        .run()
}

/// A program of this machine, and the Debian package that has it.
fn in_path(name: &str, package: &str) -> PathBuf {
    let found = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .map(|folder| folder.join(name))
        .find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!("there is no {name} in PATH: install it (Debian: apt-get install {package}), or run ./check")
    })
}

/// The `openssl` of this machine.
pub fn openssl() -> Command {
    Command::new(in_path("openssl", "openssl"))
}

/// Lints PEM files by RFC 5280; see `tests/interop/lint-certificate`.
pub fn pkilint(files: &[PathBuf]) -> Output {
    let bin = place("CHANCERY_PKILINT");
    let files = files.iter().map(|file| file.display().to_string());
    Command::new(bin.join("python"))
        .env("CHANCERY_PKILINT", &bin)
        .args([interop("lint-certificate").display().to_string()])
        .args(files)
        .run()
}
