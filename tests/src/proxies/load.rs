//! Requests at a constant rate, and those that failed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::plain::get;
use crate::binary::wait_for;

/// How many requests there are in a second.
const RATE: u32 = 20;
/// How many failures are told; all are counted.
const TOLD: usize = 10;

/// Requests to one port of the loopback that go on until [`Load::end`].
#[derive(Debug)]
pub struct Load {
    done: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    calling: Option<JoinHandle<Failures>>,
}

#[derive(Debug, Default)]
struct Failures {
    count: u64,
    told: Vec<String>,
}

impl Load {
    /// Starts to call.
    pub fn start(port: u16) -> Self {
        let (done, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let calling = std::thread::spawn({
            let (done, stop) = (Arc::clone(&done), Arc::clone(&stop));
            move || call(port, &done, &stop)
        });
        Self { done, stop, calling: Some(calling) }
    }

    /// Returns when `more` requests have been answered from here on.
    #[track_caller]
    pub fn go_on(&self, more: u64) {
        let from = self.done.load(Ordering::SeqCst);
        wait_for(120, || (self.done.load(Ordering::SeqCst) > from + more).then_some(())).expect("requests go on");
    }

    /// Ends it, and says how many requests there were.
    ///
    /// # Panics
    /// When one of them failed.
    #[track_caller]
    pub fn end(mut self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        let failures = self.calling.take().expect("it ends once").join().expect("it ends well");
        let all = self.done.load(Ordering::SeqCst);
        assert!(failures.count == 0, "{} of {all} requests failed:\n{}", failures.count, failures.told.join("\n"));
        all
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

#[expect(clippy::disallowed_methods, reason = "a rate, and the moment of a failure, are in real time")]
fn call(port: u16, done: &AtomicU64, stop: &AtomicBool) -> Failures {
    let (mut failures, start, pause) = (Failures::default(), Instant::now(), Duration::from_secs(1) / RATE);
    while !stop.load(Ordering::SeqCst) {
        let before = Instant::now();
        let failure = match get(port, "/") {
            Ok(answer) if answer.status == 200 => None,
            Ok(answer) => Some(format!("{answer:?}")),
            Err(error) => Some(error.to_string()),
        };
        done.fetch_add(1, Ordering::SeqCst);
        if let Some(failure) = failure {
            failures.count += 1;
            if failures.told.len() < TOLD {
                failures.told.push(format!("after {:?}: {failure}", start.elapsed()));
            }
        }
        std::thread::sleep(pause.saturating_sub(before.elapsed()));
    }
    failures
}
