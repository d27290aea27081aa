//! How tests wait: for a condition, with a limit in real time that only a failure ever reaches.

use std::time::Duration;

/// Nothing in the house takes this long, even on a machine that does ten other things.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Asks `condition` until it answers, and panics with its last objection when that takes too long. Fake time stands
/// still meanwhile: see [`crate::House::eventually`] for the other kind.
pub async fn eventually<T>(what: &str, mut condition: impl AsyncFnMut() -> Result<T, String>) -> T {
    let mut last = String::from("it was never asked");
    let asking = async {
        loop {
            match condition().await {
                Ok(answer) => return answer,
                Err(objection) => last = objection,
            }
            pause().await;
        }
    };
    match limited(asking).await {
        Some(answer) => answer,
        None => panic!("{what}: not within {LIMIT:?}: {last}"),
    }
}

/// What `work` comes to; panics when it takes too long.
pub async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    limited(work).await.unwrap_or_else(|| panic!("{what}: not within {LIMIT:?}"))
}

#[expect(clippy::disallowed_methods, reason = "the limit of a test's patience is in real time")]
async fn limited<T>(work: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(LIMIT, work).await.ok()
}

/// Lets the others do something.
#[expect(clippy::disallowed_methods, reason = "between two looks at a condition, not instead of one")]
async fn pause() {
    tokio::time::sleep(Duration::from_millis(2)).await;
}

/// `true`, or an objection.
pub fn that(holds: bool, objection: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(objection()) }
}
