//! The loop that forgets what has expired: agents long gone, join tokens, entries. Every server prunes; who comes second
//! finds nothing to do.

use std::sync::Arc;
use std::time::Duration;

use crate::api::Doors;
use crate::audit::{Event, Message, Outcome, Who};
use crate::metrics::IssuedFor;
use crate::view::expired;

/// How often there is a look for something to forget.
const EVERY: Duration = Duration::from_secs(600);

/// The loop.
#[derive(Clone, Debug)]
pub struct Prune {
    /// The store, the View, the record and the time.
    pub doors: Arc<Doors>,
    /// Agents are forgotten when their SVID has been expired for this long.
    pub agents_expired_for: Duration,
}

impl Prune {
    /// Forgets, every ten minutes, until the task is dropped.
    pub async fn run(self) {
        loop {
            self.round().await;
            self.doors.clock.sleep(EVERY).await;
        }
    }

    async fn round(&self) {
        let doors = &self.doors;
        let (view, now) = (doors.views.load(), doors.clock.now());
        let kinds = [
            ("agents", expired::agents(&view, now, self.agents_expired_for)),
            ("tokens", expired::tokens(&view, now)),
            ("entries", expired::entries(&view, now)),
        ];
        for (kind, what) in kinds {
            if what.is_empty() {
                continue;
            }
            let Ok(mut record) = doors.audit.reserve(1) else { return };
            match expired::forget(doors.store.as_ref(), what).await {
                Ok((0, _)) => {}
                Ok((count, revision)) => {
                    tracing::info!(kind, count, "forgot what had expired");
                    let object = Some(Message::new(&format!("{count} {kind}")));
                    let event = Event::new(now, "Prune", Who::Server, Outcome::Changed);
                    doors.decided(&mut record, IssuedFor::Server, Event { revision, object, ..event });
                }
                Err(error) => {
                    tracing::warn!(kind, %error, "what has expired could not be forgotten: tried again later")
                }
            }
        }
    }
}
