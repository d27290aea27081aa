//! Registration entries: created, updated and deleted in batches with a result for each; shown, listed, counted.
//!
//! - A batch becomes as few commits as the store allows. One that cannot be done is refused alone; the others go on.
//! - No two entries have the same identity, parent and selectors: the store's `unique/` keys say so, however many
//!   servers create at once.
//! - An entry of a rule is shown and counted as the others, and refused with the name of its rule where it is to change.
//! - One SPIFFE ID is an operator's by all of its entries or by none: see [`operators`](super::operators).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use spiffe::crypto;
use spiffe::entry::{DnsName, EntryId, RegistrationEntry, RuleId};
use spiffe::id::{SpiffeId, TrustDomain};
use spiffe::proto::{WireError, spiffe_id, trust_domain, v1};
use spiffe::selector::{Selector, Selectors};

use super::operators::Operators;
use super::{Call, page, page_size};
use crate::api::status::Refusal;
use crate::audit::{Message, Outcome};
use crate::store::{Revision, StoreError, Txn, Write};
use crate::view::derive::is_own_name;
use crate::view::record::entry_to_record;
use crate::view::{Held, View, keys};

/// The most entries in one request.
const MOST: usize = 1000;
/// How much one commit writes at most: below the limits of the store.
const COMMIT_KEYS: usize = 120;
const COMMIT_BYTES: usize = 900 << 10;

type Entry = Arc<Held<RegistrationEntry>>;

/// One entry's share of a commit.
struct Planned {
    /// Its place in the request.
    at: usize,
    entry: RegistrationEntry,
    txn: Txn,
}

impl Planned {
    fn keys(&self) -> usize {
        self.txn.writes.len().max(self.txn.expect.len())
    }

    fn bytes(&self) -> usize {
        let size = |write: &Write| match write {
            Write::Put { key, value } => key.len() + value.len(),
            Write::Delete { key } => key.len(),
        };
        self.txn.writes.iter().map(size).sum()
    }
}

/// What became of each entry of a request.
type Results = Vec<Option<Result<(RegistrationEntry, Revision), Refusal>>>;

pub(super) async fn create(call: &Call<'_>, request: v1::CreateEntriesRequest) -> Result<v1::EntryResults, Refusal> {
    let (view, now) = (&call.admitted.view, call.admitted.now);
    let most = call.settings.most_entries;
    let stored = view.entry_count() - view.derived_count();
    if stored.saturating_add(request.entries.len()) > most {
        return Err(Refusal::precondition(format_args!(
            "there are {stored} entries, and {most} are allowed: delete some, or raise limits.entries in the server's config"
        )));
    }
    let newest = call.newest(&request.entries).await?;
    let mut operators = Operators::new(&newest, &request.entries, call.settings.gives_service_accounts);
    let allowed = request.allow_server_names;
    let plan = |(at, mut wire): (usize, v1::Entry)| {
        if wire.id.is_empty() {
            let place = u16::try_from(at).unwrap_or(u16::MAX);
            wire.id = EntryId::in_order(view.revision(), place, crypto::random()?).to_string();
        }
        wire.created_at = now.unix();
        let entry = RegistrationEntry::try_from(wire)?;
        check(call, &entry)?;
        if !allowed {
            check_names(view, &entry, None)?;
        }
        operators.check(&entry)?;
        let (key, unique) = (keys::entry(&entry.id), keys::unique(&entry));
        let txn = Txn::new().absent(key.clone()).absent(unique.clone()).put(key, entry_to_record(&entry));
        Ok((txn.put(unique, entry.id.to_string()), entry))
    };
    run(call, request.entries.into_iter().enumerate().map(plan)).await
}

pub(super) async fn update(call: &Call<'_>, request: v1::UpdateEntriesRequest) -> Result<v1::EntryResults, Refusal> {
    let newest = call.newest(&request.entries).await?;
    let mut operators = Operators::new(&newest, &request.entries, call.settings.gives_service_accounts);
    let allowed = request.allow_server_names;
    let plan = |mut wire: v1::Entry| {
        let before = find_stored(&call.admitted.view, &wire.id)?;
        wire.created_at = before.created_at.unix();
        let entry = RegistrationEntry::try_from(wire)?;
        check(call, &entry)?;
        if !allowed {
            check_names(&call.admitted.view, &entry, Some(before))?;
        }
        operators.check(&entry)?;
        let key = keys::entry(&entry.id);
        let mut txn = Txn::new().expect(key.clone(), before.revision).put(key, entry_to_record(&entry));
        let (old, new) = (keys::unique(before), keys::unique(&entry));
        if old != new {
            txn = txn.delete(old).absent(new.clone()).put(new, entry.id.to_string());
        }
        Ok((txn, entry))
    };
    run(call, request.entries.into_iter().map(plan)).await
}

pub(super) async fn delete(call: &Call<'_>, request: v1::DeleteEntriesRequest) -> Result<v1::EntryResults, Refusal> {
    let plan = |id: String| {
        let entry = find_stored(&call.admitted.view, &id)?;
        let key = keys::entry(&entry.id);
        let txn = Txn::new().expect(key.clone(), entry.revision).delete(key).delete(keys::unique(entry));
        Ok((txn, entry.value.clone()))
    };
    run(call, request.ids.into_iter().map(plan)).await
}

fn find<'a>(view: &'a View, id: &str) -> Result<&'a Entry, Refusal> {
    let id = EntryId::parse(id)?;
    view.entry(&id).ok_or_else(|| {
        Refusal::not_found(format_args!("there is no entry {id}: list them with \"chancery entry list\""))
    })
}

/// The entry of this ID, which an operator made.
fn find_stored<'a>(view: &'a View, id: &str) -> Result<&'a Entry, Refusal> {
    let entry = find(view, id)?;
    match &entry.rule {
        None => Ok(entry),
        Some(rule) => Err(Refusal::precondition(format_args!(
            "entry {id} comes from the rule {rule}: change that, with \"chancery rule update {rule}\" or \"chancery rule \
             delete {rule}\""
        ))),
    }
}

/// What an entry must not be, beyond what its parts must not be.
fn check(call: &Call<'_>, entry: &RegistrationEntry) -> Result<(), Refusal> {
    let (view, now) = (&call.admitted.view, call.admitted.now);
    let ours = view.trust_domain();
    let (id, parent) = (&entry.spiffe_id, &entry.parent);
    let refuse = |text: String| Err(Refusal::invalid(text));
    if let Some(rule) = &entry.rule {
        return refuse(format!(
            "rule {rule}: entries that come from rules are not made by hand; leave the field out, and give another ID"
        ));
    }
    if entry.id.is_derived() {
        return refuse(format!("the ID {} is of the form of those that rules make: choose another", entry.id));
    }
    for (field, id) in [("spiffe_id", id), ("parent", parent)] {
        if !id.is_member_of(ours) || id.path().is_empty() {
            return refuse(format!("{field} {id} is no ID of {ours} with a path: this server issues no others"));
        }
    }
    if id.is_reserved() {
        return refuse(format!(
            "spiffe_id {id} is reserved: IDs under /chancery belong to Chancery's own servers and agents"
        ));
    }
    if parent.is_reserved() && !parent.is_agent() && !parent.is_server() {
        return refuse(format!(
            "parent {parent} is neither an agent, nor a node alias, nor the server {}",
            ours.server_id()
        ));
    }
    if let Some(fault) = entry.selectors.iter().find_map(Selector::fault) {
        return refuse(fault.to_string());
    }
    if id == parent {
        return refuse(format!("parent {parent} is the entry's own spiffe_id: name an agent or a node alias"));
    }
    check_lives(call, [entry.x509_ttl, entry.jwt_ttl, entry.wit_ttl])?;
    if let Some(end) = entry.expires_at.filter(|_| !entry.is_live(now)) {
        return refuse(format!("expires_at {end} is past: it is {now} now"));
    }
    check_federated(view, &entry.federates_with)
}

/// Refuses a DNS name of this server that the entry did not have `before`: who holds such an SVID can pass for this server
/// with those who know it by that name, as Istio's proxies do.
fn check_names(view: &View, entry: &RegistrationEntry, before: Option<&Entry>) -> Result<(), Refusal> {
    let had = |name: &DnsName| before.is_some_and(|before| before.dns_names.contains(name));
    match entry.dns_names.iter().find(|name| is_own_name(name, &view.terms().own_names) && !had(name)) {
        None => Ok(()),
        Some(name) => Err(Refusal::precondition(format_args!(
            "the DNS name {name} is this server's own: who has such an SVID can pass for it. Choose another name, or, where \
             it is meant, as for istiod itself, say so with --allow-server-names"
        ))),
    }
}

/// Whether SVIDs may live so long: X.509, JWT and WIT.
pub(super) fn check_lives(call: &Call<'_>, [x509, jwt, wit]: [Option<Duration>; 3]) -> Result<(), Refusal> {
    x509.map_or(Ok(()), |ttl| call.doors.profile.check_ttl(ttl))?;
    jwt.map_or(Ok(()), |ttl| call.doors.jwt.check_ttl(ttl))?;
    Ok(wit.map_or(Ok(()), |ttl| call.doors.wit.check_ttl(ttl))?)
}

/// Whether there is a bundle of each of these trust domains, none of which is ours.
pub(super) fn check_federated(view: &View, others: &[TrustDomain]) -> Result<(), Refusal> {
    let ours = view.trust_domain();
    for other in others {
        if other == ours {
            return Err(Refusal::invalid(format_args!(
                "federates_with {other} is our own trust domain: every entry has its bundle already"
            )));
        }
        if view.foreign_bundle(other).is_none() {
            return Err(Refusal::precondition(format_args!(
                "there is no bundle of {other} to federate with: set it first with \"chancery bundle set\""
            )));
        }
    }
    Ok(())
}

/// What an operator may not have meant, although it is right; else nothing. A node may well be attested later.
fn warn(call: &Call<'_>, entry: &RegistrationEntry) -> String {
    let (view, parent) = (&call.admitted.view, &entry.parent);
    let mut warnings = Vec::new();
    if !view.knows_parent(parent) {
        warnings.push(format!("no agent or node alias has the ID {parent} yet"));
    }
    if entry.selectors.iter().any(Selector::is_of_program) && !entry.selectors.iter().any(Selector::is_of_user) {
        warnings.push(
            "unix:path and unix:sha256 say what program a process runs now, which any user of the node may: add \
             unix:uid or unix:user"
                .to_owned(),
        );
    }
    warnings.join("; ")
}

/// Commits what was planned, records each result, and answers in the order of the request.
async fn run(
    call: &Call<'_>,
    plans: impl ExactSizeIterator<Item = Result<(Txn, RegistrationEntry), Refusal>>,
) -> Result<v1::EntryResults, Refusal> {
    let count = plans.len();
    if count > MOST {
        return Err(Refusal::invalid(format_args!("{count} entries in one request: at most {MOST} are allowed")));
    }
    let mut record = call.doors.audit.reserve(count)?;
    let mut results: Results = Vec::with_capacity(count);
    let mut planned = Vec::new();
    let mut taken: HashMap<String, EntryId> = HashMap::new();
    for (at, plan) in plans.enumerate() {
        results.push(None);
        let plan = plan.and_then(|(txn, entry)| {
            // The same key twice in one request: the second would undo, or be undone by, the first.
            if let Some(other) = txn.writes.iter().find_map(|write| taken.get(write.key())) {
                return Err(same_in_request(&entry, other));
            }
            taken.extend(txn.writes.iter().map(|write| (write.key().to_owned(), entry.id.clone())));
            Ok(Planned { at, entry, txn })
        });
        match plan {
            Ok(plan) => planned.push(plan),
            Err(refusal) => set(&mut results, at, Err(refusal)),
        }
    }
    for batch in batches(planned) {
        commit(call, batch, &mut results).await;
    }
    let mut answer = v1::EntryResults::default();
    for result in results {
        let result = result.unwrap_or_else(|| Err(Refusal::internal("an entry was left without a result")));
        let mut event = call.event(result.as_ref().map_or_else(Refusal::outcome, |_| Outcome::Changed));
        let mut warning = String::new();
        let outcome = match result {
            Ok((entry, revision)) => {
                warning = warn(call, &entry);
                answer.revision = answer.revision.max(revision);
                event.revision = revision;
                event.subject = Some(entry.spiffe_id.clone());
                event.object = Some(Message::new(entry.parent.as_str()));
                event.entry = Some(entry.id.clone());
                v1::entry_result::Outcome::Entry((&entry).into())
            }
            Err(refusal) => v1::entry_result::Outcome::Refused(refusal.to_wire()),
        };
        call.doors.decided(&mut record, event);
        answer.results.push(v1::EntryResult { outcome: Some(outcome), warning });
    }
    call.doors.views.reached(answer.revision).await;
    Ok(answer)
}

fn set(results: &mut Results, at: usize, result: Result<(RegistrationEntry, Revision), Refusal>) {
    if let Some(place) = results.get_mut(at) {
        *place = Some(result);
    }
}

fn batches(planned: Vec<Planned>) -> Vec<Vec<Planned>> {
    let mut batches: Vec<Vec<Planned>> = Vec::new();
    let (mut keys, mut bytes) = (0, 0);
    for plan in planned {
        (keys, bytes) = (keys + plan.keys(), bytes + plan.bytes());
        match batches.last_mut() {
            Some(batch) if keys <= COMMIT_KEYS && bytes <= COMMIT_BYTES => batch.push(plan),
            _ => {
                (keys, bytes) = (plan.keys(), plan.bytes());
                batches.push(vec![plan]);
            }
        }
    }
    batches
}

/// Commits `batch`; whoever stands in the way of the others is refused and left out.
async fn commit(call: &Call<'_>, mut batch: Vec<Planned>, results: &mut Results) {
    while !batch.is_empty() {
        let txn = batch.iter().fold(Txn::new(), |mut txn, plan| {
            txn.expect.extend(plan.txn.expect.iter().cloned());
            txn.writes.extend(plan.txn.writes.iter().cloned());
            txn
        });
        let error = match call.doors.commit(txn).await {
            Ok(revision) => {
                batch.drain(..).for_each(|plan| set(results, plan.at, Ok((plan.entry, revision))));
                return;
            }
            Err(error) => error,
        };
        let culprit = match &error {
            StoreError::Conflict { key } => {
                batch.iter().position(|plan| plan.txn.expect.iter().any(|(expected, _)| expected == key))
            }
            _ => None,
        };
        let Some(culprit) = culprit else {
            batch.drain(..).for_each(|plan| set(results, plan.at, Err(error.clone().into())));
            return;
        };
        let plan = batch.remove(culprit);
        let refusal = conflict(call, &plan, error).await;
        set(results, plan.at, Err(refusal));
    }
}

/// What a conflict means for the entry that is in it.
async fn conflict(call: &Call<'_>, plan: &Planned, error: StoreError) -> Refusal {
    let StoreError::Conflict { key } = &error else { return error.into() };
    let absent: HashSet<&String> = plan.txn.expect.iter().filter(|(_, at)| at.is_none()).map(|(key, _)| key).collect();
    if !absent.contains(key) {
        return error.into();
    }
    if key.starts_with(keys::ENTRIES) {
        return Refusal::already_exists(format_args!(
            "there is an entry {} already: choose another ID, or update it",
            plan.entry.id
        ));
    }
    // The key holds the other's ID.
    match call.doors.store.range(key).await {
        Ok((found, _)) => match found.iter().find(|held| held.key == *key) {
            Some(other) => same(&String::from_utf8_lossy(&other.value)),
            None => error.into(),
        },
        Err(error) => error.into(),
    }
}

fn same(other: &str) -> Refusal {
    Refusal::already_exists(format_args!(
        "entry {other} has the same SPIFFE ID, parent and selectors already: update that one"
    ))
}

fn same_in_request(entry: &RegistrationEntry, other: &EntryId) -> Refusal {
    if entry.id == *other {
        return Refusal::invalid(format_args!("entry {other} is in this request twice: send it once"));
    }
    same(other.as_str())
}

pub(super) async fn show(call: &Call<'_>, request: v1::ShowEntryRequest) -> Result<v1::Entry, Refusal> {
    Ok((&find(&call.admitted.view, &request.id)?.value).into())
}

#[derive(Default)]
struct Filter {
    spiffe_id: Option<SpiffeId>,
    parent: Option<SpiffeId>,
    selectors: Selectors,
    hint: String,
    federates_with: Option<TrustDomain>,
    admin: Option<bool>,
    rule: Option<RuleId>,
    derived: Option<bool>,
}

impl Filter {
    fn parse(wire: Option<v1::EntryFilter>) -> Result<Self, Refusal> {
        let wire = wire.unwrap_or_default();
        let id = |field, text: &str| (!text.is_empty()).then(|| spiffe_id(field, text)).transpose();
        let domain = |text: &str| (!text.is_empty()).then(|| trust_domain("federates_with", text)).transpose();
        Ok(Self {
            spiffe_id: id("spiffe_id", &wire.spiffe_id)?,
            parent: id("parent", &wire.parent)?,
            selectors: Selectors::parse(&wire.selectors).map_err(WireError::from)?,
            hint: wire.hint,
            federates_with: domain(&wire.federates_with)?,
            admin: wire.admin,
            rule: (!wire.rule.is_empty()).then(|| RuleId::parse(&wire.rule)).transpose()?,
            derived: wire.derived,
        })
    }

    fn matches(&self, entry: &RegistrationEntry) -> bool {
        self.spiffe_id.as_ref().is_none_or(|id| *id == entry.spiffe_id)
            && self.parent.as_ref().is_none_or(|id| *id == entry.parent)
            && self.selectors.is_subset_of(&entry.selectors)
            && (self.hint.is_empty() || self.hint == entry.hint)
            && self.federates_with.as_ref().is_none_or(|name| entry.federates_with.contains(name))
            && self.admin.is_none_or(|admin| admin == entry.admin)
            && self.derived.is_none_or(|derived| derived == entry.rule.is_some())
            && self.rule.as_ref().is_none_or(|rule| entry.rule.as_ref() == Some(rule))
    }

    /// The entries that match, in the order of their IDs, after `after`.
    fn find<'a>(
        &'a self,
        view: &'a View,
        after: Option<&'a EntryId>,
    ) -> Box<dyn Iterator<Item = &'a Entry> + Send + 'a> {
        match &self.parent {
            Some(parent) => {
                let below =
                    view.entries_of(parent).skip_while(move |entry| after.is_some_and(|after| entry.id <= *after));
                Box::new(below.filter(|entry| self.matches(entry)))
            }
            None => Box::new(view.entries_after(after).filter(|entry| self.matches(entry))),
        }
    }
}

pub(super) async fn list(call: &Call<'_>, request: v1::ListEntriesRequest) -> Result<v1::ListEntriesResponse, Refusal> {
    let (filter, size) = (Filter::parse(request.filter)?, page_size(request.page_size)?);
    let after = (!request.page.is_empty()).then(|| EntryId::parse(&request.page)).transpose()?;
    let found = filter.find(&call.admitted.view, after.as_ref());
    let (entries, next_page) = page(found, size, |entry| entry.id.to_string());
    Ok(v1::ListEntriesResponse { entries: entries.into_iter().map(|entry| (&entry.value).into()).collect(), next_page })
}

pub(super) async fn count(call: &Call<'_>, request: v1::CountEntriesRequest) -> Result<v1::CountResponse, Refusal> {
    let view = &call.admitted.view;
    let unfiltered = request.filter.as_ref().is_none_or(|filter| *filter == v1::EntryFilter::default());
    if unfiltered {
        return Ok(v1::CountResponse { count: view.entry_count() as u64 });
    }
    let filter = Filter::parse(request.filter)?;
    Ok(v1::CountResponse { count: filter.find(view, None).count() as u64 })
}
