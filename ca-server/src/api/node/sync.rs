//! Sync: what an agent has to know, pushed. A snapshot first, then what each commit changes for this agent; the agent
//! acknowledges what it has applied.
//!
//! - What is sent is the difference between what the agent knows and what it should know: a snapshot is the
//!   difference from nothing, so that start-up and catching up are one path.
//! - The stream ends with the caller's certificate or the authority above it, with its ban or eviction, and when it is
//!   replaced: at once, whether the agent reads or not.
//! - A revision may come twice: what pods change is told at the revision of the store that was there before. What is
//!   acknowledged is a revision of the store, and true of that.
//! - *no snapshot by haste*: an agent of a cluster that has not told of its pods since this server has started, and that
//!   rules give entries to, is sent nothing: it goes on with what it has. After a while it is sent elsewhere.
//! - An agent that does not read costs one message on its way and the rest of one difference. What is committed
//!   meanwhile is folded: next it is told the difference to the View of that moment.

mod difference;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use spiffe::bundle::Bundle;
use spiffe::entry::{EntryId, RegistrationEntry};
use spiffe::id::{SpiffeId, TrustDomain};
use spiffe::proto::v1;
use spiffe::time::{Clock, Timestamp};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use self::difference::Difference;
use crate::api::caller::Holder;
use crate::api::rights::{Denied, admit_agent};
use crate::api::status::Refusal;
use crate::connected::{Connected, Stream};
use crate::store::Revision;
use crate::view::follow::{Listener, Views};
use crate::view::record::Node;
use crate::view::{Change, View};

/// More changes than this (a rule, the pods of a whole cluster) are not gone through for each agent: what an agent has is
/// less to look at.
const MANY: usize = 256;

/// What an agent was told.
#[derive(Debug, Default)]
struct Known {
    parents: Vec<SpiffeId>,
    entries: BTreeMap<EntryId, Revision>,
    /// The foreign trust domains that its entries federate with, and by how many entries.
    federated: BTreeMap<TrustDomain, usize>,
    bundles: BTreeMap<TrustDomain, u64>,
    /// Up to which revision this agent was looked for; `None`: nothing was yet.
    considered: Option<Revision>,
}

impl Known {
    /// What to tell the agent of `node`, which is then known. `changes` bounds what has to be looked at; `None`: all.
    fn update(&mut self, view: &View, node: &Node, changes: Option<&[Change]>, now: Timestamp) -> Difference {
        let mut difference = Difference::default();
        let few = changes.filter(|changes| changes.len() <= MANY);
        let narrow = few.filter(|changes| !changes.iter().any(|change| concerns_parents(change, &node.id)));
        match narrow {
            Some(changes) => self.update_some(changes, now, &mut difference),
            None => self.update_all(view, node, now, &mut difference),
        }
        // Which bundles it has to know is another question only where its entries are others.
        if !difference.is_empty() || narrow.is_none_or(|changes| changes.iter().any(concerns_bundles)) {
            self.update_bundles(view, &mut difference);
        }
        difference
    }

    fn update_some(&mut self, changes: &[Change], now: Timestamp, difference: &mut Difference) {
        for change in changes {
            let Change::Entry { before, after } = change else { continue };
            let mine = |entry: &RegistrationEntry| self.parents.binary_search(&entry.parent).is_ok();
            match (before, after) {
                (before, Some(after)) if mine(after) && after.is_live(now) => {
                    let known = before.as_ref().filter(|before| self.entries.contains_key(&before.id));
                    let known = known.map(|held| held.federates_with.clone());
                    self.forget_federated(known.as_deref().unwrap_or_default());
                    self.remember_federated(&after.federates_with);
                    self.entries.insert(after.id.clone(), after.revision);
                    difference.entries.push((&after.value).into());
                }
                (Some(before), _) => {
                    if self.entries.remove(&before.id).is_some() {
                        self.forget_federated(&before.federates_with);
                        difference.removed_entries.push(before.id.to_string());
                    }
                }
                (None, _) => {}
            }
        }
    }

    fn update_all(&mut self, view: &View, node: &Node, now: Timestamp, difference: &mut Difference) {
        self.parents = view.parents(node, now);
        self.federated.clear();
        let mut entries = BTreeMap::new();
        for parent in self.parents.clone() {
            for entry in view.entries_of(&parent).filter(|entry| entry.is_live(now)) {
                self.remember_federated(&entry.federates_with);
                if self.entries.get(&entry.id) != Some(&entry.revision) {
                    difference.entries.push((&entry.value).into());
                }
                entries.insert(entry.id.clone(), entry.revision);
            }
        }
        let gone = self.entries.keys().filter(|id| !entries.contains_key(*id));
        difference.removed_entries.extend(gone.map(ToString::to_string));
        self.entries = entries;
    }

    /// Compares sequences and revisions only: cheap where nothing has changed.
    fn update_bundles(&mut self, view: &View, difference: &mut Difference) {
        let mut wanted: BTreeMap<TrustDomain, (u64, &Bundle)> = BTreeMap::new();
        wanted.insert(view.trust_domain().clone(), (view.bundle().sequence(), view.bundle()));
        for trust_domain in self.federated.keys() {
            if let Some(held) = view.foreign_bundle(trust_domain) {
                wanted.insert(trust_domain.clone(), (held.revision, &held.value));
            }
        }
        for (trust_domain, (revision, bundle)) in &wanted {
            if self.bundles.insert(trust_domain.clone(), *revision) != Some(*revision) {
                difference.bundles.push((*bundle).into());
            }
        }
        let gone: BTreeSet<TrustDomain> =
            self.bundles.keys().filter(|known| !wanted.contains_key(*known)).cloned().collect();
        for trust_domain in gone {
            self.bundles.remove(&trust_domain);
            difference.removed_bundles.push(trust_domain.to_string());
        }
    }

    fn remember_federated(&mut self, trust_domains: &[TrustDomain]) {
        for trust_domain in trust_domains {
            *self.federated.entry(trust_domain.clone()).or_default() += 1;
        }
    }

    fn forget_federated(&mut self, trust_domains: &[TrustDomain]) {
        for trust_domain in trust_domains {
            if let Some(count) = self.federated.get_mut(trust_domain) {
                *count -= 1;
                if *count == 0 {
                    self.federated.remove(trust_domain);
                }
            }
        }
    }
}

/// Whether a change may change which parents the node has.
fn concerns_parents(change: &Change, agent: &SpiffeId) -> bool {
    match change {
        Change::Entry { before, after } => [before, after].into_iter().flatten().any(|entry| entry.is_node_alias()),
        Change::Node(id) => id == agent,
        Change::Bundle | Change::ForeignBundle(_) | Change::Relationship(_) => false,
    }
}

/// Whether a change is one of a bundle.
fn concerns_bundles(change: &Change) -> bool {
    matches!(change, Change::Bundle | Change::ForeignBundle(_))
}

/// How long an agent waits here for the pods of its cluster, before it is to try another server, or this one again.
const PATIENCE: Duration = Duration::from_secs(10);

/// How many messages may be on their way to an agent, and one place more for the reason of the end.
pub(super) const WAITING: usize = 2;

/// One agent's stream.
pub(super) struct Syncing {
    pub(super) holder: Holder,
    pub(super) views: Arc<Views>,
    pub(super) connected: Connected,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) stop: CancellationToken,
    /// Of [`WAITING`] places.
    pub(super) to: mpsc::Sender<Result<v1::SyncResponse, Status>>,
}

/// A View that is still to be told: it is the first, or came while the agent had not read what was sent before.
struct Missed {
    view: Arc<View>,
    /// Whether the agent has to start anew.
    snapshot: bool,
}

impl Syncing {
    /// Runs until the agent goes, the server stops, or the agent's right ends; then says why.
    pub(super) async fn run(self, mut acknowledgements: Streaming<v1::SyncRequest>) {
        // Kept for the end, so that an agent that did not read hears of it when it does.
        let last_word = self.to.clone().try_reserve_owned();
        let (view, mut listener) = self.views.listen();
        let stream = self.connected.open(self.holder.id.clone());
        let ended = self.follow(view, &mut listener, &stream, &mut acknowledgements).await;
        if let (Err(status), Ok(last_word)) = (ended, last_word) {
            last_word.send(Err(status));
        }
    }

    async fn follow(
        &self,
        view: Arc<View>,
        listener: &mut Listener,
        stream: &Stream,
        acknowledgements: &mut Streaming<v1::SyncRequest>,
    ) -> Result<(), Status> {
        self.admit(&view)?;
        let mut known = Known::default();
        let mut outgoing = VecDeque::new();
        let mut missed = Some(Missed { view, snapshot: true });
        let mut has_begun = false;
        let patience = self.clock.sleep(PATIENCE);
        tokio::pin!(patience);
        let end = self.clock.sleep_until(self.holder.not_after.plus(Duration::from_secs(1)));
        tokio::pin!(end);
        loop {
            let may_be_told = |missed: &mut Missed| has_begun || missed.view.awaited_of(&self.holder.id).is_none();
            if outgoing.is_empty()
                && let Some(Missed { view, snapshot }) = missed.take_if(may_be_told)
            {
                has_begun = true;
                outgoing = self.tell(&mut known, &view, None, snapshot, stream)?;
            }
            tokio::select! {
                place = self.to.reserve(), if !outgoing.is_empty() => {
                    let place = place.map_err(|_| Status::cancelled("the agent has gone"))?;
                    if let Some(message) = outgoing.pop_front() {
                        place.send(Ok(message));
                    }
                }
                published = listener.next() => {
                    let Some(published) = published else { return Ok(()) };
                    let snapshot = published.changes.is_none();
                    if outgoing.is_empty() && missed.is_none() {
                        outgoing =
                            self.tell(&mut known, &published.view, published.changes.as_deref(), snapshot, stream)?;
                    } else {
                        self.admit(&published.view)?;
                        let snapshot = snapshot || missed.is_some_and(|missed| missed.snapshot);
                        missed = Some(Missed { view: published.view, snapshot });
                    }
                }
                message = acknowledgements.message() => match message {
                    Ok(Some(message)) => stream.acknowledged(message.acknowledged),
                    Ok(None) | Err(_) => return Ok(()),
                },
                () = stream.replaced() => return Err(Status::aborted("this agent has opened another Sync stream")),
                () = &mut patience, if !has_begun => {
                    return Err(Status::unavailable(
                        "the API server of this agent's cluster has not told of its pods yet: go on with what is there, \
                         and try again, here or elsewhere",
                    ));
                }
                () = &mut end => return Err(Refusal::from(Denied::Expired(self.holder.not_after)).into()),
                () = self.stop.cancelled() => {
                    return Err(Status::unavailable("the server is stopping: connect again, here or to another one"));
                }
            }
        }
    }

    fn admit(&self, view: &View) -> Result<(), Status> {
        Ok(admit_agent(&self.holder, view, self.clock.now()).map_err(Refusal::from)?)
    }

    /// The messages of what `view` changes for this agent, if anything; notes how far the agent was considered.
    fn tell(
        &self,
        known: &mut Known,
        view: &View,
        changes: Option<&[Change]>,
        snapshot: bool,
        stream: &Stream,
    ) -> Result<VecDeque<v1::SyncResponse>, Status> {
        self.admit(view)?;
        // Admitted: it has a node.
        let Some(node) = view.node(&self.holder.id) else { return Ok(VecDeque::new()) };
        if snapshot {
            *known = Known::default();
        }
        let difference = known.update(view, node, changes, self.clock.now());
        let send = snapshot || !difference.is_empty();
        // Pods of others: nothing is new to anybody who asks how far this agent is.
        if send || known.considered != Some(view.revision()) {
            known.considered = Some(view.revision());
            stream.considered(view.revision(), send);
        }
        Ok(if send { difference.into_messages(view.revision(), snapshot) } else { VecDeque::new() })
    }
}
