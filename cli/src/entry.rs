//! `chancery entry`: registration entries.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use spiffe::entry::{EntryId, RuleId};
use spiffe::id::{SpiffeId, TrustDomain};
use spiffe::proto::v1;
use spiffe::selector::Selector;
use spiffe::time::Timestamp;

use crate::args::Globals;
use crate::connect::{self, Admin};
use crate::documents::{Count, Entries, Entry, EntryOutcome, EntryResult, EntryResults};
use crate::entry_fields::Fields;
use crate::exit::{Failure, Outcome};
use crate::output::{Output, Sheet, Table, plain};
use crate::wait::Wait;
use crate::{entry_file, moments, refusal};

/// How many entries go in one call: half of what the server takes, for large ones.
const BATCH: usize = 500;
const PAGE: u32 = 1_000;

/// What can be done with entries.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Create one entry from flags, or many from a file.
    #[command(after_help = "\
Examples:
  chancery entry create --spiffe-id spiffe://example.org/web --selector unix:user:web \\
      --parent spiffe://example.org/chancery/agent/join_token/4a1c --wait
  chancery entry create --file entries.yaml
  chancery entry list --derived=false -o json | chancery --socket OTHER entry create --file -

A file is JSON or YAML: a list of entries with the fields of `entry list -o json`, of which spiffe_id, parent and
selectors have to be there.")]
    Create(Create),
    /// Show one entry.
    #[command(after_help = "\
Example, with an ID that `chancery entry list` shows:
  chancery entry show 5f0c")]
    Show {
        /// Its ID.
        id: EntryId,
    },
    /// List the entries that match every given flag; all of them without one.
    #[command(after_help = "\
Examples:
  chancery entry list
  chancery entry list --spiffe-id spiffe://example.org/web
  chancery entry list --selector unix:uid:1000 -o json")]
    List(Filter),
    /// Count the entries that match every given flag.
    #[command(after_help = "\
Example:
  chancery entry count --federates-with other.org")]
    Count(Filter),
    /// Change one entry by flags (what is not given stays), or replace many from a file.
    #[command(after_help = "\
Examples, with an ID that `chancery entry list` shows:
  chancery entry update 5f0c --x509-ttl 30m --wait
  chancery entry update 5f0c --federates-with other.org --federates-with third.org
  chancery entry update --file entries.yaml

A flag that may be repeated replaces all values of before.")]
    Update(Update),
    /// Delete entries.
    #[command(after_help = "\
Example, with IDs that `chancery entry list` shows:
  chancery entry delete 5f0c 77aa --wait")]
    Delete {
        /// Their IDs.
        #[arg(required = true)]
        ids: Vec<EntryId>,
        #[command(flatten)]
        wait: Wait,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Read entries from a JSON or YAML file; - is standard input.
    #[arg(long, value_name = "FILE", exclusive = false, conflicts_with = "fields")]
    file: Option<PathBuf>,
    /// The name of the entry itself; the server makes one where none is given.
    #[arg(long, conflicts_with = "file")]
    id: Option<EntryId>,
    #[command(flatten)]
    fields: Fields,
    #[command(flatten)]
    names: ServerNames,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct ServerNames {
    /// Let DNS names be those of the server itself: who has such an SVID can pass for the server.
    #[arg(long)]
    allow_server_names: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Update {
    /// The entry to change.
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    id: Option<EntryId>,
    /// Read entries from a JSON or YAML file, each of which replaces the one of its id; - is standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "fields")]
    file: Option<PathBuf>,
    #[command(flatten)]
    fields: Fields,
    #[command(flatten)]
    names: ServerNames,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Debug, Args)]
pub(crate) struct Filter {
    /// Those that give this identity.
    #[arg(long, value_name = "ID")]
    spiffe_id: Option<SpiffeId>,
    /// Those below this node.
    #[arg(long, value_name = "ID")]
    parent: Option<SpiffeId>,
    /// Those that have this selector; all that are given.
    #[arg(long = "selector", value_name = "TYPE:VALUE")]
    selectors: Vec<Selector>,
    /// Those with this hint.
    #[arg(long, value_name = "TEXT")]
    hint: Option<String>,
    /// Those that federate with this trust domain.
    #[arg(long, value_name = "TRUST_DOMAIN")]
    federates_with: Option<TrustDomain>,
    /// Those marked admin, or, with --admin=false, those that are not.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "true|false")]
    admin: Option<bool>,
    /// Those that come from this rule.
    #[arg(long, value_name = "NAME")]
    rule: Option<RuleId>,
    /// Those that come from rules, or, with --derived=false, those that operators made.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "true|false")]
    derived: Option<bool>,
}

impl From<Filter> for v1::EntryFilter {
    fn from(filter: Filter) -> Self {
        Self {
            spiffe_id: filter.spiffe_id.map(|id| id.to_string()).unwrap_or_default(),
            parent: filter.parent.map(|id| id.to_string()).unwrap_or_default(),
            selectors: filter.selectors.iter().map(ToString::to_string).collect(),
            hint: filter.hint.unwrap_or_default(),
            federates_with: filter.federates_with.map(|name| name.to_string()).unwrap_or_default(),
            admin: filter.admin,
            rule: filter.rule.map(|rule| rule.to_string()).unwrap_or_default(),
            derived: filter.derived,
        }
    }
}

/// Which change is made to each of many entries.
#[derive(Clone, Copy)]
enum Change {
    Create(ServerNames),
    Update(ServerNames),
    Delete,
}

impl Change {
    fn past(self) -> &'static str {
        match self {
            Self::Create(_) => "created",
            Self::Update(_) => "updated",
            Self::Delete => "deleted",
        }
    }
}

impl Verb {
    /// Does it.
    pub(crate) async fn run(self, globals: &Globals) -> Outcome {
        let output = globals.output;
        match self {
            Self::Create(create) => {
                let entries = create.entries()?;
                let mut admin = connect::admin(globals).await?;
                change(&mut admin, output, &create.wait, Change::Create(create.names), entries).await
            }
            Self::Update(update) => {
                let entries = match (&update.file, &update.id) {
                    (Some(file), _) => entry_file::read(file)?,
                    (None, Some(id)) if update.fields.are_none() => {
                        return Err(Failure::Usage(format!("no flag says what to change of entry {id}")));
                    }
                    (None, Some(id)) => {
                        let mut admin = connect::admin(globals).await?;
                        let before = show(&mut admin, id).await?;
                        let mut entry = before.clone();
                        update.fields.over(&mut entry, moments::now());
                        if entry == before {
                            return unchanged(&mut admin, output, &update.wait, entry).await;
                        }
                        return change(&mut admin, output, &update.wait, Change::Update(update.names), vec![entry])
                            .await;
                    }
                    (None, None) => return Err(Failure::Usage("name the entry to change, or a --file".into())),
                };
                change(&mut connect::admin(globals).await?, output, &update.wait, Change::Update(update.names), entries)
                    .await
            }
            Self::Delete { ids, wait } => {
                let mut admin = connect::admin(globals).await?;
                let named = |id: &EntryId| v1::Entry { id: id.to_string(), ..v1::Entry::default() };
                let entries = ids.iter().map(named).collect();
                change(&mut admin, output, &wait, Change::Delete, entries).await
            }
            Self::Show { id } => {
                let entry = show(&mut connect::admin(globals).await?, &id).await?;
                output.show(&Entry::from(entry.clone()), || sheet(&entry, moments::now()))
            }
            Self::List(filter) => {
                let entries = list(&mut connect::admin(globals).await?, filter.into()).await?;
                let text = table(&entries, moments::now());
                output.show(&Entries { entries: entries.into_iter().map(Entry::from).collect() }, || text)
            }
            Self::Count(filter) => {
                let request = v1::CountEntriesRequest { filter: Some(filter.into()) };
                let answer = connect::admin(globals).await?.count_entries(request).await;
                let count = answer.map_err(|status| refusal::failure(&status))?.into_inner().count;
                output.show(&Count { count }, || count.to_string())
            }
        }
    }
}

impl Create {
    fn entries(&self) -> Outcome<Vec<v1::Entry>> {
        if let Some(file) = &self.file {
            return entry_file::read(file);
        }
        let fields = &self.fields;
        if fields.spiffe_id.is_none() || fields.parent.is_none() || fields.selectors.is_empty() {
            let text = "an entry needs --spiffe-id, --parent and at least one --selector (or --file with entries)";
            return Err(Failure::Usage(text.into()));
        }
        let mut entry =
            v1::Entry { id: self.id.as_ref().map(ToString::to_string).unwrap_or_default(), ..Default::default() };
        fields.over(&mut entry, moments::now());
        Ok(vec![entry])
    }
}

/// Shows an entry that is already as it is to be. Nothing was changed, so nobody is waited for.
async fn unchanged(admin: &mut Admin, output: Output, wait: &Wait, entry: v1::Entry) -> Outcome {
    let text = format!("unchanged {}  {}", plain(&entry.id), plain(&entry.spiffe_id));
    let result = EntryResult { outcome: EntryOutcome::Entry(Box::new(entry.into())), warning: String::new() };
    wait.and_show(admin, output, (EntryResults { results: vec![result] }, 0), |_| text).await
}

/// One entry by its ID.
pub(crate) async fn show(admin: &mut Admin, id: &EntryId) -> Outcome<v1::Entry> {
    let answer = admin.show_entry(v1::ShowEntryRequest { id: id.to_string() }).await;
    Ok(answer.map_err(|status| refusal::failure(&status))?.into_inner())
}

/// All entries that match, page by page.
pub(crate) async fn list(admin: &mut Admin, filter: v1::EntryFilter) -> Outcome<Vec<v1::Entry>> {
    let mut entries = Vec::new();
    let mut page = String::new();
    loop {
        let request = v1::ListEntriesRequest { filter: Some(filter.clone()), page_size: PAGE, page };
        let answer = admin.list_entries(request).await.map_err(|status| refusal::failure(&status))?.into_inner();
        entries.extend(answer.entries);
        if answer.next_page.is_empty() {
            return Ok(entries);
        }
        page = answer.next_page;
    }
}

/// Makes the change to each entry, in batches, and shows what became of each.
async fn change(admin: &mut Admin, output: Output, wait: &Wait, change: Change, entries: Vec<v1::Entry>) -> Outcome {
    let mut answers = Vec::with_capacity(entries.len());
    let mut revision = 0;
    let mut cut_short = None;
    for batch in entries.chunks(BATCH) {
        match call(admin, change, batch.to_vec()).await {
            Ok(answer) => {
                revision = revision.max(answer.revision);
                answers.extend(answer.results);
            }
            // What was done before is done: it is shown, and then the failure.
            Err(failure) if answers.is_empty() => return Err(failure),
            Err(failure) => {
                cut_short = Some(failure);
                break;
            }
        }
    }
    let text = lines(change, &entries, &answers);
    let notes = notes(&answers);
    let results: Vec<EntryResult> = answers.into_iter().map(result).collect();
    let refused = results.iter().filter(|result| matches!(result.outcome, EntryOutcome::Refused { .. })).count();
    let all = entries.len();
    let done = EntryResults { results };
    let shown = wait.and_show(admin, output, (done, revision), |_| text).await;
    if output == Output::Text {
        notes.iter().for_each(|note| crate::output::remark(note));
    }
    match (cut_short, refused) {
        (Some(failure), _) => Err(failure),
        (None, 0) => shown,
        (None, refused) => {
            // A wait that came to nothing is told too, but a refusal decides the exit code.
            if let Err(failure @ Failure::NotApplied(_)) = &shown {
                crate::output::complain(failure);
            }
            Err(Failure::Refused(format!("{refused} of {all} {} not {}", entries_word(all), change.past())))
        }
    }
}

fn entries_word(count: usize) -> &'static str {
    if count == 1 { "entry was" } else { "entries were" }
}

async fn call(admin: &mut Admin, change: Change, entries: Vec<v1::Entry>) -> Outcome<v1::EntryResults> {
    let answer = match change {
        Change::Create(ServerNames { allow_server_names }) => {
            admin.create_entries(v1::CreateEntriesRequest { entries, allow_server_names }).await
        }
        Change::Update(ServerNames { allow_server_names }) => {
            admin.update_entries(v1::UpdateEntriesRequest { entries, allow_server_names }).await
        }
        Change::Delete => {
            let ids = entries.into_iter().map(|entry| entry.id).collect();
            admin.delete_entries(v1::DeleteEntriesRequest { ids }).await
        }
    };
    Ok(answer.map_err(|status| refusal::failure(&status))?.into_inner())
}

fn result(answer: v1::EntryResult) -> EntryResult {
    use v1::entry_result::Outcome as Became;
    let outcome = match answer.outcome {
        Some(Became::Entry(entry)) => EntryOutcome::Entry(Box::new(entry.into())),
        Some(Became::Refused(refused)) => EntryOutcome::Refused {
            code: refusal::code_name(tonic::Code::from(refused.code)),
            message: refused.message,
        },
        None => EntryOutcome::Refused { code: "unknown", message: "the server gave no result".into() },
    };
    EntryResult { outcome, warning: answer.warning }
}

/// What the server has to say about entries that it took: one line for each.
fn notes(answers: &[v1::EntryResult]) -> Vec<String> {
    use v1::entry_result::Outcome as Became;
    let note = |answer: &v1::EntryResult| match &answer.outcome {
        Some(Became::Entry(entry)) if !answer.warning.is_empty() => {
            Some(format!("note: entry {}: {}", plain(&entry.id), plain(&answer.warning)))
        }
        _ => None,
    };
    answers.iter().filter_map(note).collect()
}

/// One line for each item, in the order in which they were given.
fn lines(change: Change, asked: &[v1::Entry], answers: &[v1::EntryResult]) -> String {
    use v1::entry_result::Outcome as Became;
    let line = |(at, (asked, answer)): (usize, (&v1::Entry, &v1::EntryResult))| match &answer.outcome {
        Some(Became::Entry(entry)) => format!("{} {}  {}", change.past(), plain(&entry.id), plain(&entry.spiffe_id)),
        Some(Became::Refused(refused)) => {
            let name = if asked.spiffe_id.is_empty() { &asked.id } else { &asked.spiffe_id };
            format!("refused {} ({}): {}", at + 1, plain(name), refusal::of_item(refused))
        }
        None => format!("refused {}: the server gave no result", at + 1),
    };
    asked.iter().zip(answers).enumerate().map(line).collect::<Vec<_>>().join("\n")
}

fn table(entries: &[v1::Entry], now: Timestamp) -> String {
    let mut table = Table::new(["ID", "SPIFFE ID", "SELECTORS", "PARENT", "TTL", "MARKS"]);
    for entry in entries {
        let mut marks = Vec::new();
        if entry.admin {
            marks.push("admin".to_owned());
        }
        if !entry.rule.is_empty() {
            marks.push(format!("rule {}", entry.rule));
        }
        if entry.expires_at > 0 {
            marks.push(moments::expiry(entry.expires_at, now));
        }
        if !entry.hint.is_empty() {
            marks.push(format!("hint {:?}", entry.hint));
        }
        if !entry.federates_with.is_empty() {
            marks.push(format!("federates with {}", entry.federates_with.join(" ")));
        }
        table.row([
            entry.id.clone(),
            entry.spiffe_id.clone(),
            entry.selectors.join(" "),
            entry.parent.clone(),
            length(entry.x509_ttl),
            marks.join(", "),
        ]);
    }
    table.text_or("no entries")
}

/// A life in seconds; nothing where the server's config says it.
fn length(seconds: u64) -> String {
    match seconds {
        0 => String::new(),
        seconds => spiffe::settings::write_duration(Duration::from_secs(seconds)),
    }
}

fn sheet(entry: &v1::Entry, now: Timestamp) -> String {
    let expires = match entry.expires_at {
        0 => "never".to_owned(),
        at => format!("{} ({})", moments::expires(at, now), Timestamp::from_unix(at)),
    };
    let created = Timestamp::from_unix(entry.created_at);
    Sheet::default()
        .line("id", &entry.id)
        .line("spiffe id", &entry.spiffe_id)
        .line("parent", &entry.parent)
        .lines("selectors", &entry.selectors)
        .line("x509 ttl", length(entry.x509_ttl))
        .line("jwt ttl", length(entry.jwt_ttl))
        .line("wit ttl", length(entry.wit_ttl))
        .line("jti", if entry.jti { "yes" } else { "" })
        .lines("dns names", &entry.dns_names)
        .line("hint", &entry.hint)
        .line("admin", if entry.admin { "yes" } else { "" })
        .lines("federates with", &entry.federates_with)
        .line("key type", &entry.key_type)
        .line("rule", &entry.rule)
        .line("expires", expires)
        .line("created", format!("{} ({created})", moments::relative(created, now)))
        .text()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> v1::Entry {
        v1::Entry {
            id: "web-1".into(),
            spiffe_id: "spiffe://example.org/web".into(),
            parent: "spiffe://example.org/chancery/agent/x509pop/1".into(),
            selectors: vec!["unix:gid:1".into(), "unix:uid:1".into()],
            x509_ttl: 600,
            admin: true,
            expires_at: 1_003_600,
            created_at: 1_000_000,
            ..v1::Entry::default()
        }
    }

    #[test]
    fn entries_as_text() {
        let now = Timestamp::from_unix(1_000_060);
        let table = table(&[entry()], now);
        assert_eq!(
            table.lines().nth(1).unwrap(),
            "web-1  spiffe://example.org/web  unix:gid:1 unix:uid:1  spiffe://example.org/chancery/agent/x509pop/1  10m  \
             admin, expires in 59m"
        );
        let sheet = sheet(&v1::Entry { jwt_ttl: 90, jti: true, ..entry() }, now);
        assert!(sheet.contains("x509 ttl   10m\njwt ttl    1m 30s\njti        yes\n"), "{sheet}");
        assert!(sheet.contains("\nselectors  unix:gid:1\n           unix:uid:1\n"), "{sheet}");
        assert!(sheet.contains("created    60s ago (1970-01-12T13:46:40Z)"), "{sheet}");
    }

    #[test]
    fn a_refused_item_is_named_by_its_place() {
        use v1::entry_result::Outcome as Became;
        let refused =
            v1::Refusal { code: tonic::Code::AlreadyExists as i32, message: "entry web-0 is the same".into() };
        let answers = [
            v1::EntryResult { outcome: Some(Became::Entry(entry())), ..Default::default() },
            v1::EntryResult { outcome: Some(Became::Refused(refused)), ..Default::default() },
        ];
        assert_eq!(
            lines(Change::Create(ServerNames { allow_server_names: false }), &[entry(), entry()], &answers),
            "created web-1  spiffe://example.org/web\n\
             refused 2 (spiffe://example.org/web): already exists: entry web-0 is the same"
        );
    }

    #[test]
    fn a_warning_is_a_note_and_a_field() {
        let outcome = Some(v1::entry_result::Outcome::Entry(entry()));
        let quiet = v1::EntryResult { outcome: outcome.clone(), ..Default::default() };
        let loud = v1::EntryResult { outcome, warning: "no agent has this parent".into() };
        assert_eq!(notes(&[quiet.clone(), loud.clone()]), ["note: entry web-1: no agent has this parent"]);
        let json = |answer| serde_json::to_value(result(answer)).unwrap();
        assert_eq!(json(loud)["warning"], "no agent has this parent");
        let quiet = json(quiet);
        assert_eq!((&quiet["entry"]["id"], quiet.get("warning")), (&"web-1".into(), None));
    }
}
