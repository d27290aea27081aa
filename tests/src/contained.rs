//! A process in the container of a pod: it hands on what asks at a socket of its own to the Workload API, which sees it and nobody
//! else (`tests/examples/relay.rs`).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use spiffe::time::Clock;

use crate::binary::{Process, wait_for};
use crate::cgroup::Cgroup;
use crate::house::text;
use crate::workload::Workload;

/// How long it may take to listen, in seconds.
const READY: u64 = 30;

/// See the head of this file. Dropping it ends it.
#[derive(Debug)]
pub struct Contained {
    // Ended before its group is removed.
    process: Process,
    near: PathBuf,
    _group: Cgroup,
}

impl Contained {
    /// One in `group`, whose files are in `folder`, and which knocks at the socket `far`.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(group: Cgroup, folder: &Path, far: &Path) -> Self {
        Self::start_after(&[], group, folder, far)
    }

    /// The same in a mount namespace of its own, behind these words of a shell.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_after(before: &[String], group: Cgroup, folder: &Path, far: &Path) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let near = folder.join(format!("near{number}.sock"));
        let command = match before {
            [] => group.command(relay()).args([text(&near), text(far)]),
            words => {
                let script = format!("{} && exec \"$0\" \"$@\"", words.join(" && "));
                let words = [
                    "--mount".to_owned(),
                    "/bin/sh".into(),
                    "-c".into(),
                    script,
                    text(&relay()),
                    text(&near),
                    text(far),
                ];
                group.command("/usr/bin/unshare").args(words)
            }
        };
        let process = Process::start(command, folder, &format!("relay{number}"));
        assert!(wait_for(READY, || near.exists().then_some(())).is_some(), "{}", process.tail());
        Self { process, near, _group: group }
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What it asks for by itself.
    pub async fn workload(&self, clock: Arc<dyn Clock>) -> Workload {
        Workload::open(&self.near, clock).await
    }
}

fn relay() -> PathBuf {
    let beside = std::env::current_exe().expect("this program has a path");
    let built = beside.ancestors().nth(2).expect("it is in deps").join("examples/relay");
    assert!(built.exists(), "{} is not there: build it with `cargo build -p tests --examples`", built.display());
    built
}
