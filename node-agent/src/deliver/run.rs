//! One loop for each delivery: takes in what its source says, and carries out what `progress` says.
//!
//! - A step that has begun goes on to its end or its time limit; then the newest counts.
//! - Files are written on threads that may block: a file system that hangs holds up this delivery alone.
//! - What the source has no more stays on disk: an outage of the server must not become one of the program.

use std::sync::Arc;

use spiffe::time::{Clock, Timestamp};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Watchers;
use super::action::{self, ActionError, Context};
use super::folder::{Folder, FolderError};
use super::inputs::{InputError, Inputs};
use super::material::Material;
use super::progress::{Progress, Step};
use super::render::{Of, RenderError, render};
use super::source::{Said, Source};
use crate::config::deliver::Delivery;
use crate::metrics::DeliveryMetrics;
use crate::status::{self, Failure, Reporter, words};

/// Why a step of a delivery has failed.
#[derive(Debug, thiserror::Error)]
pub enum DeliveryError {
    /// There is nothing that could be written.
    #[error(transparent)]
    Render(#[from] RenderError),
    /// Something that it is made of cannot be read.
    #[error(transparent)]
    Input(#[from] InputError),
    /// It cannot be written.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// An action has failed.
    #[error("action {number} ({word}): {source}")]
    Action {
        /// Its place in the config, from 1.
        number: usize,
        /// Its kind.
        word: &'static str,
        /// What went wrong.
        source: ActionError,
    },
    /// The source ended.
    #[error("there is nothing to deliver any more: the agent is stopping")]
    Stopped,
    /// A task of our own broke off.
    #[error("writing broke off: this is a mistake of ours, please report it with the log")]
    Broken,
}

/// Delivers until `shutdown`.
pub(super) async fn run(delivery: Delivery, source: Source, watchers: Watchers, shutdown: CancellationToken) {
    let clock = watchers.clock.clone();
    let mut following = source.follow(clock.clone());
    let mut running = Running::new(delivery, &watchers);
    loop {
        let said = following.latest.borrow_and_update().clone();
        running.take_in(said);
        match running.progress.next(clock.now()) {
            Step::Wait(until) => tokio::select! {
                () = shutdown.cancelled() => return,
                changed = following.latest.changed() => if changed.is_err() {
                    // The agent stops: there is nothing new to come.
                    return shutdown.cancelled().await;
                },
                () = clock.sleep_until(until.unwrap_or_default()), if until.is_some() => {}
            },
            step => tokio::select! {
                () = shutdown.cancelled() => return,
                () = running.step(step) => {}
            },
        }
    }
}

/// Waits for the first material, writes it, and does each action once. The files stay, whatever becomes of the actions.
pub async fn deliver_once(delivery: Delivery, source: Source, clock: Arc<dyn Clock>) -> Result<(), DeliveryError> {
    let mut following = source.follow(clock.clone());
    let mut running = Running::new(delivery, &Watchers { clock: clock.clone(), ..Watchers::default() });
    loop {
        let said = following.latest.borrow_and_update().clone();
        running.take_in(said);
        match running.progress.next(clock.now()) {
            Step::Wait(_) if running.is_done() => return Ok(()),
            Step::Wait(_) => following.latest.changed().await.map_err(|_| DeliveryError::Stopped)?,
            step => match running.perform(step).await {
                // Its token may still come.
                Err(DeliveryError::Render(why @ RenderError::NoToken(_))) => {
                    warn!(delivery = running.delivery.name, %why, "waiting");
                    following.latest.changed().await.map_err(|_| DeliveryError::Stopped)?;
                }
                done => {
                    done?;
                    running.progress.succeeded();
                }
            },
        }
    }
}

struct Running {
    delivery: Arc<Delivery>,
    clock: Arc<dyn Clock>,
    progress: Progress,
    material: Option<Material>,
    /// Of `material`.
    version: String,
    /// What was last said to be the reason that there is nothing.
    nothing: Option<Arc<str>>,
    report: Reporter<status::Delivery>,
    metrics: DeliveryMetrics,
}

impl Running {
    fn new(delivery: Delivery, watchers: &Watchers) -> Self {
        let report = status::Delivery { name: delivery.name.clone(), ..status::Delivery::default() };
        Self {
            clock: watchers.clock.clone(),
            progress: Progress::new(delivery.actions.len()),
            material: None,
            version: String::new(),
            nothing: None,
            report: watchers.status.report_delivery(report),
            metrics: watchers.metrics.of_delivery(&delivery.name),
            delivery: Arc::new(delivery),
        }
    }

    fn is_done(&self) -> bool {
        self.material.is_some() && self.progress.is_done()
    }

    fn take_in(&mut self, said: Option<Said>) {
        match said {
            Some(Said::Nothing(why)) if self.nothing.as_ref() != Some(&why) => {
                warn!(delivery = self.delivery.name, %why, "there is nothing to deliver");
                let failure = Failure { at: self.clock.now(), words: words(&why) };
                self.report.update(|report| report.failure = Some(failure));
                self.nothing = Some(why);
            }
            Some(Said::Nothing(_)) | None => {}
            Some(Said::Material(material)) => {
                if self.nothing.take().is_some() {
                    self.report.update(|report| report.failure = None);
                }
                let version = material.version(&self.delivery);
                // The newest also where it makes no other files: what is tried again must not be made of what has ended.
                self.material = Some(*material);
                if version != self.version {
                    self.version = version;
                    self.progress.renew();
                }
            }
        }
    }

    async fn step(&mut self, step: Step) {
        let done = self.perform(step).await;
        let now = self.clock.now();
        match done {
            Ok(()) => {
                self.progress.succeeded();
                self.succeeded(step, now);
            }
            Err(why) => {
                let again = self.progress.failed(now, self.chance(now));
                warn!(delivery = self.delivery.name, version = self.version, %why, %again, "delivery failed");
                self.metrics.failures.inc();
                let failure = Failure { at: now, words: words(&why.to_string()) };
                self.report.update(|report| {
                    report.failure = Some(failure);
                    report.next_try = Some(again);
                });
            }
        }
    }

    fn succeeded(&self, step: Step, now: Timestamp) {
        if let (Step::Write, Some(material)) = (step, &self.material) {
            let until = material.identity.svid.lifetime().not_after;
            self.metrics.writes.inc();
            if self.delivery.has_svid() {
                self.metrics.expiry.set(seconds(until));
            }
            self.report.update(|report| {
                report.version.clone_from(&self.version);
                report.spiffe_id = material.id().to_string();
            });
        }
        self.report.update(|report| (report.failure, report.next_try) = (None, None));
        if self.progress.is_done() {
            self.metrics.last_success.set(seconds(now));
            self.report.update(|report| report.succeeded_at = Some(now));
        }
    }

    /// Others that failed at this moment come back at other ones.
    fn chance(&self, now: Timestamp) -> u32 {
        let [a, b, c, d, ..] = spiffe::crypto::sha256(format!("{} {now}", self.delivery.name).as_bytes());
        u32::from_be_bytes([a, b, c, d])
    }

    async fn perform(&self, step: Step) -> Result<(), DeliveryError> {
        let Some(material) = &self.material else { return Ok(()) };
        match step {
            Step::Wait(_) => Ok(()),
            Step::Write => self.write(material.clone()).await,
            Step::Act(number) => self.act(number, material).await,
        }
    }

    async fn write(&self, material: Material) -> Result<(), DeliveryError> {
        let (delivery, now) = (Arc::clone(&self.delivery), self.clock.now());
        let (id, until) = (material.id().clone(), material.identity.svid.lifetime().not_after);
        let writing = tokio::task::spawn_blocking(move || {
            let inputs = Inputs::read(delivery.inputs())?;
            let rendered = render(Of { delivery: &delivery, material: &material, inputs: &inputs, now })?;
            Ok::<_, DeliveryError>(Folder::open(&delivery.dir)?.swap(&rendered)?)
        });
        writing.await.map_err(|_| DeliveryError::Broken)??;
        let dir = self.delivery.dir.display();
        info!(delivery = self.delivery.name, version = self.version, spiffe_id = %id, %until, %dir, "delivered");
        Ok(())
    }

    async fn act(&self, number: usize, material: &Material) -> Result<(), DeliveryError> {
        let Some(action) = self.delivery.actions.get(number) else { return Ok(()) };
        let (number, word) = (number + 1, action.kind.word());
        let Delivery { name, dir, .. } = self.delivery.as_ref();
        let context = Context { name, dir, material, clock: self.clock.as_ref() };
        let done = action::act(action, context).await;
        done.map_err(|source| DeliveryError::Action { number, word, source })?;
        info!(delivery = self.delivery.name, version = self.version, action = word, "action {number} is done");
        Ok(())
    }
}

fn seconds(at: Timestamp) -> i64 {
    i64::try_from(at.unix()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
