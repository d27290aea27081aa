//! The machine that holds JWT-SVIDs, those who wait for one, and what it has asked for.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use spiffe::time::Timestamp;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};

use super::issue::Issue;
use crate::cache::tokens::machine::{Action, Answer, Event, Machine, Outcome, WaiterId};
use crate::cache::tokens::{Tokens, Told, Want};
use crate::metrics::Metrics;

/// See the head of this file.
pub(super) struct Desk {
    machine: Machine,
    waiters: BTreeMap<WaiterId, mpsc::Sender<Told>>,
    endings: FuturesUnordered<BoxFuture<'static, WaiterId>>,
    next_waiter: WaiterId,
    issuing: JoinSet<Vec<Answer>>,
    issue: Issue,
    published: Arc<ArcSwap<Tokens>>,
    metrics: Metrics,
}

impl Desk {
    pub(super) fn new(machine: Machine, issue: Issue, published: Arc<ArcSwap<Tokens>>, metrics: Metrics) -> Self {
        Self {
            machine,
            waiters: BTreeMap::new(),
            endings: FuturesUnordered::new(),
            next_waiter: 0,
            issuing: JoinSet::new(),
            issue,
            published,
            metrics,
        }
    }

    pub(super) fn next_wake(&self) -> Option<Timestamp> {
        self.machine.next_wake()
    }

    /// What happens next of itself; `None`: nothing is under way. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<Result<Event, JoinError>> {
        tokio::select! {
            Some(waiter) = self.endings.next() => {
                self.waiters.remove(&waiter);
                Some(Ok(Event::Left(waiter)))
            }
            Some(answers) = self.issuing.join_next() => Some(answers.map(Event::Answered)),
            else => None,
        }
    }

    /// Takes up those who want a token.
    pub(super) fn enter(&mut self, wants: Vec<Want>) -> Event {
        self.metrics.jwt_misses.inc_by(wants.len() as u64);
        let enter = |Want { entry, audience, told }| {
            let waiter = self.next_waiter;
            self.next_waiter += 1;
            let waits = told.clone();
            self.endings.push(Box::pin(async move {
                waits.closed().await;
                waiter
            }));
            self.waiters.insert(waiter, told);
            (waiter, entry, audience)
        };
        Event::Wanted(wants.into_iter().map(enter).collect())
    }

    /// Takes in what happened and does what follows. What is held is published first: whoever is told finds it there.
    pub(super) fn handle(&mut self, event: Event, now: Timestamp) {
        self.count(&event);
        let actions = self.machine.handle(event, now);
        self.published.store(Arc::new(self.machine.tokens().clone()));
        self.metrics.jwt_svids.set(i64::try_from(self.machine.tokens().size()).unwrap_or(i64::MAX));
        for action in actions {
            match action {
                Action::Issue(requests) => {
                    self.issuing.spawn(self.issue.clone().tokens(requests));
                }
                Action::Tell(waiter, told) => {
                    // There is room for the one answer; whoever has left needs none.
                    let _ = self.waiters.remove(&waiter).map(|waiter| waiter.try_send(told));
                }
            }
        }
    }

    fn count(&self, event: &Event) {
        let Event::Answered(answers) = event else { return };
        for answer in answers {
            match answer.outcome {
                Outcome::Issued(_) => self.metrics.issued.inc(),
                Outcome::Refused(_) => self.metrics.refused.inc(),
                Outcome::Failed => self.metrics.failed.inc(),
            };
        }
    }
}
