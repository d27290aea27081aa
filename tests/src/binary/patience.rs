//! How tests of real processes wait: for a condition, never for a time.

use std::time::Duration;

const PAUSE: Duration = Duration::from_millis(25);

/// Tries `look` until it finds something; gives up after about `seconds` (more on a machine that is busy, which is
/// what a limit on other people's programs should do).
pub fn wait_for<T>(seconds: u64, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    for _ in 0..seconds * 1_000 / 25 {
        if let Some(found) = look() {
            return Some(found);
        }
        pause();
    }
    look()
}

#[expect(clippy::disallowed_methods, reason = "real processes live in real time")]
fn pause() {
    std::thread::sleep(PAUSE);
}
