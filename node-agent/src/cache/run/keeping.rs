//! One machine that keeps SVIDs of one profile fresh, those who listen to it, and what it has asked for.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use spiffe::entry::RegistrationEntry;
use spiffe::time::Timestamp;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};

use super::issue::{Issue, Issued};
use crate::cache::WorkloadState;
use crate::cache::event::{Action, Answer, Event, Outcome, SubscriberId};
use crate::cache::machine::Machine;
use crate::cache::subscription::Subscribe;
use crate::metrics::Metrics;

/// See the head of this file.
pub(super) struct Keeping<S: Issued> {
    pub(super) machine: Machine<S>,
    subscribers: BTreeMap<SubscriberId, watch::Sender<Option<WorkloadState<S>>>>,
    endings: FuturesUnordered<BoxFuture<'static, SubscriberId>>,
    next_subscriber: SubscriberId,
    issuing: JoinSet<Vec<Answer<S>>>,
    issue: Issue,
}

impl<S: Issued> Keeping<S> {
    pub(super) fn new(machine: Machine<S>, issue: Issue) -> Self {
        Self {
            machine,
            subscribers: BTreeMap::new(),
            endings: FuturesUnordered::new(),
            next_subscriber: 0,
            issuing: JoinSet::new(),
            issue,
        }
    }

    /// What happens next of itself; `None`: nothing is under way. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<Result<Event<S>, JoinError>> {
        tokio::select! {
            Some(gone) = self.endings.next() => {
                self.subscribers.remove(&gone);
                Some(Ok(Event::Unsubscribed(gone)))
            }
            Some(answers) = self.issuing.join_next() => Some(answers.map(Event::Answered)),
            else => None,
        }
    }

    pub(super) fn enter(&mut self, Subscribe { selectors, states }: Subscribe<S>) -> Event<S> {
        let id = self.next_subscriber;
        self.next_subscriber += 1;
        let listens = states.clone();
        self.endings.push(Box::pin(async move {
            listens.closed().await;
            id
        }));
        self.subscribers.insert(id, states);
        Event::Subscribed(id, selectors)
    }

    /// Takes in what happened and does what follows, but for what is left to the caller: trust and acknowledgements.
    pub(super) fn handle(&mut self, event: Event<S>, now: Timestamp) -> Vec<Action<S>> {
        let mut left = Vec::new();
        for action in self.machine.handle(event, now) {
            match action {
                Action::Issue(entries) => self.ask(entries),
                Action::Publish(subscriber, state) => {
                    if let Some(states) = self.subscribers.get(&subscriber) {
                        states.send_replace(Some(state));
                    }
                }
                other => left.push(other),
            }
        }
        left
    }

    fn ask(&mut self, entries: Vec<Arc<RegistrationEntry>>) {
        self.issuing.spawn(self.issue.clone().batch(entries));
    }
}

/// Counts what came.
pub(super) fn count<S: Issued>(event: &Event<S>, metrics: &Metrics) {
    let Event::Answered(answers) = event else { return };
    for answer in answers {
        match answer.outcome {
            Outcome::Issued { .. } => metrics.issued.inc(),
            Outcome::Refused => metrics.refused.inc(),
            Outcome::Failed => metrics.failed.inc(),
        };
    }
}
