//! `chancery dev`: a server and an agent in one process, for one user, on one machine.
//!
//! - Its state is in a folder of the user's, and is picked up again at the next start, however it ended.
//! - Every process of the user has `spiffe://dev.local/user/<name>/default`. Entries from `--entries` are older
//!   than that one, so that they are the default identity of what they match.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::{User, geteuid};
use spiffe::id::{SpiffeId, TrustDomain};
use spiffe::proto::v1;

use crate::args::Globals;
use crate::connect::{self, Admin};
use crate::dev_watch;
use crate::exit::{Failure, Outcome};
use crate::folders::Folders;
use crate::overrides::Overrides;
use crate::running::told_to_stop;
use crate::token::shell_word;
use crate::{agent_run, entry, entry_file, files, moments, output, refusal, server};

const TRUST_DOMAIN: &str = "dev.local";
/// The node alias that stands for this machine's agent, however often it has attested.
const ALIAS: &str = "spiffe://dev.local/dev/agent";

/// Run a server and an agent for yourself, in the foreground: every process of yours has an identity.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  chancery dev
  chancery dev --ttl 1m --ca-ttl 10m --entries entries.yaml

An --entries file is like that of `entry create --file`; where an entry has no parent, it is this agent:

  - spiffe_id: spiffe://dev.local/web
    selectors: [\"unix:path:/usr/bin/python3.11\"]

The identities in it come first for what they match, in the order of the file.")]
pub(crate) struct Dev {
    /// Entries to create, a JSON or YAML file.
    #[arg(long, value_name = "FILE")]
    entries: Option<PathBuf>,
    /// How long SVIDs live: short to see rotations.
    #[arg(long, value_name = "DURATION", value_parser = moments::parse_some_time)]
    ttl: Option<Duration>,
    /// How long a CA certificate lives; at least six times --ttl.
    #[arg(long, value_name = "DURATION", value_parser = moments::parse_some_time)]
    ca_ttl: Option<Duration>,
    /// Where the server listens; a free port where it is not given.
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// The folder of the state; chancery/dev in the user's data folder where none is given.
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
}

/// Held while `dev` runs in a folder.
type Lock = Flock<File>;

impl Dev {
    /// Does it.
    pub(crate) async fn run(self, globals: &Globals) -> Outcome {
        let folder = self.folder()?;
        files::make_private_folder(&folder)?;
        let _lock = lock(&folder)?;
        let from_file = self.entries.as_deref().map(entry_file::read).transpose()?.unwrap_or_default();
        let user = user_name();

        let server = server::start(self.server_config(&folder)?).await?;
        let mut admin = connect::admin_at(server.admin_socket()).await?;
        let token = create_token(&mut admin).await?;
        let mut agent = agent_run::start(self.agent_config(&folder, &server.address().to_string(), &token)?).await?;
        // An agent that was let in before did not need it.
        let _ = admin.revoke_join_token(v1::RevokeJoinTokenRequest { id: token.id }).await;

        let mine = own_entry(&user)?;
        lay_down(&mut admin, from_file, &mine).await?;
        let socket = agent.workload_socket().to_owned();
        output::print(&welcome(&folder, &mine.spiffe_id, &socket, server.admin_socket()))?;
        let stopped = tokio::select! {
            told = told_to_stop() => told,
            closed = dev_watch::rotations(&mut admin, &socket, globals.output) => closed,
            () = server.finished() => Err(Failure::Refused("the server has stopped by itself: its log says why".into())),
            ended = agent.finished() => Err(agent_run::ended_by_itself(ended)),
        };
        output::remark("stopping");
        drop(admin);
        let ended = agent_run::stop(agent).await;
        server.shutdown().await;
        stopped.and(ended)
    }

    fn folder(&self) -> Outcome<PathBuf> {
        let folder = self.data_dir.clone().or_else(|| Folders::of_this_process().dev()).ok_or_else(|| {
            Failure::Usage("there is no home folder (HOME is not set): name one for the state with --data-dir".into())
        })?;
        // Sockets are named by absolute paths.
        std::path::absolute(&folder).map_err(|error| Failure::Usage(format!("{}: {error}", folder.display())))
    }

    fn server_config(&self, folder: &Path) -> Outcome<ca_server::config::Config> {
        let text = |duration: Option<Duration>| duration.map(spiffe::settings::write_duration);
        let over = Overrides::new(ca_server::config::PREFIX)
            .flag("trust_domain", Some(TRUST_DOMAIN))
            .flag("data_dir", Some(folder.join("server")))
            .flag("listen", Some(self.listen))
            .flag("health_listen", Some("127.0.0.1:0"))
            .flag("admin_socket", Some(folder.join("admin.sock")))
            .flag("svid.ttl", text(self.ttl))
            .flag("authority.ca_ttl", text(self.ca_ttl));
        ca_server::config::Config::parse("", over.alone()).map_err(|error| wrong(&error))
    }

    fn agent_config(&self, folder: &Path, server: &str, token: &DevToken) -> Outcome<node_agent::config::Config> {
        let over = Overrides::new(node_agent::config::ENVIRONMENT_PREFIX)
            .flag("trust_domain", Some(TRUST_DOMAIN))
            .flag("servers", Some([server]))
            .flag("data_dir", Some(folder.join("agent")))
            .flag("workload_socket", Some(folder.join("workload.sock")))
            .flag("ca_fingerprint", Some(format!("sha256:{}", token.ca_fingerprint)))
            .flag("attest.kind", Some("join_token"))
            .flag("attest.token", Some(&token.token));
        node_agent::config::Config::parse("", over.alone()).map_err(|error| wrong(&error))
    }
}

fn wrong(error: &dyn std::fmt::Display) -> Failure {
    Failure::Usage(format!("`chancery dev` cannot run like that: {error}"))
}

/// Makes sure that this is the only `dev` in the folder.
fn lock(folder: &Path) -> Outcome<Lock> {
    let path = folder.join("lock");
    let failed = |error: &dyn std::fmt::Display| {
        Failure::Refused(format!("{} cannot be locked: {error}: choose another folder with --data-dir", path.display()))
    };
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(files::PRIVATE).open(&path);
    match Flock::lock(open.map_err(|error| failed(&error))?, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            let written = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
            written.map_err(|error| failed(&error))?;
            Ok(lock)
        }
        Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
            let mut holder = String::new();
            // Only for the message.
            let _ = file.read_to_string(&mut holder);
            Err(Failure::Refused(format!(
                "another `chancery dev` runs in {} (process {}): stop it, or choose another folder with --data-dir",
                folder.display(),
                holder.trim()
            )))
        }
        Err((_, error)) => Err(failed(&error)),
    }
}

/// The user's name as a segment of a path; the number where there is no name.
fn user_name() -> String {
    let uid = geteuid();
    let name = User::from_uid(uid).ok().flatten().map(|user| user.name).unwrap_or_default();
    segment(&name).unwrap_or_else(|| uid.to_string())
}

/// A name with what a SPIFFE ID does not take replaced by dashes.
fn segment(name: &str) -> Option<String> {
    let legal = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    let segment: String = name.chars().map(legal).collect();
    (!segment.is_empty() && segment != "." && segment != "..").then_some(segment)
}

/// What every process of this user is.
fn own_entry(user: &str) -> Outcome<v1::Entry> {
    let domain = TrustDomain::parse(TRUST_DOMAIN).map_err(|error| wrong(&error))?;
    let id: SpiffeId = domain.member(&format!("/user/{user}/default")).map_err(|error| wrong(&error))?;
    let uid = geteuid();
    Ok(v1::Entry {
        // Entries of one second are in the order of their IDs: this one comes behind the server's own.
        id: format!("user-{uid}"),
        spiffe_id: id.to_string(),
        parent: ALIAS.into(),
        selectors: vec![format!("unix:uid:{uid}")],
        ..v1::Entry::default()
    })
}

/// A token and the CA to know the server by.
struct DevToken {
    token: String,
    id: String,
    ca_fingerprint: String,
}

async fn create_token(admin: &mut Admin) -> Outcome<DevToken> {
    let info = admin.server_info(v1::ServerInfoRequest {}).await;
    let info = info.map_err(|status| refusal::failure(&status))?.into_inner();
    let answer = admin.create_join_token(v1::CreateJoinTokenRequest { ttl: 600, alias: ALIAS.into() }).await;
    let answer = answer.map_err(|status| refusal::failure(&status))?.into_inner();
    Ok(DevToken { token: answer.token, id: answer.id, ca_fingerprint: info.ca_fingerprint })
}

/// Creates the entries of the file, or brings those that are there already to what the file says; then the user's
/// own entry, anew, so that it is the youngest.
async fn lay_down(admin: &mut Admin, from_file: Vec<v1::Entry>, mine: &v1::Entry) -> Outcome {
    let old = v1::DeleteEntriesRequest { ids: vec![mine.id.clone()] };
    // At the first start there is none: a refused item is no failed call.
    admin.delete_entries(old).await.map_err(|status| refusal::failure(&status))?;
    let present = entry::list(admin, v1::EntryFilter::default()).await?;
    let (mut fresh, mut known) = (Vec::new(), Vec::new());
    for mut entry in from_file {
        if entry.parent.is_empty() {
            entry.parent = ALIAS.into();
        }
        match present.iter().find(|other| is_same(other, &entry)) {
            Some(other) => {
                entry.id.clone_from(&other.id);
                known.push(entry);
            }
            None => fresh.push(entry),
        }
    }
    if !known.is_empty() {
        let answer = admin.update_entries(v1::UpdateEntriesRequest { entries: known, ..Default::default() }).await;
        all_done(answer.map_err(|status| refusal::failure(&status))?.into_inner())?;
    }
    fresh.push(mine.clone());
    let answer = admin.create_entries(v1::CreateEntriesRequest { entries: fresh, ..Default::default() }).await;
    all_done(answer.map_err(|status| refusal::failure(&status))?.into_inner())
}

/// Whether the server would take them for the same entry: identity, parent and selectors.
fn is_same(one: &v1::Entry, other: &v1::Entry) -> bool {
    let sorted = |entry: &v1::Entry| {
        let mut selectors = entry.selectors.clone();
        selectors.sort();
        selectors
    };
    one.spiffe_id == other.spiffe_id && one.parent == other.parent && sorted(one) == sorted(other)
}

fn all_done(results: v1::EntryResults) -> Outcome {
    for (at, result) in results.results.into_iter().enumerate() {
        if let Some(v1::entry_result::Outcome::Refused(refused)) = result.outcome {
            let text = refusal::of_item(&refused);
            return Err(Failure::Refused(format!("entry {} of --entries was refused: {text}", at + 1)));
        }
    }
    Ok(())
}

fn welcome(folder: &Path, id: &str, workload: &Path, admin: &Path) -> String {
    let word = |path: &Path| shell_word(&path.display().to_string());
    format!(
        "chancery dev runs. Every process of yours is {id}\n\
         State is in {}. Stop it with ctrl-C.\n\n\
         In other shells:\n\n  \
         export SPIFFE_ENDPOINT_SOCKET=unix://{}\n  \
         export CHANCERY_ADMIN_SOCKET={}\n  \
         chancery fetch x509\n  \
         chancery entry list\n\n\
         Rotations as they happen:\n",
        folder.display(),
        word(workload),
        word(admin)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_server::FakeServer;

    #[test]
    fn names_become_segments() {
        assert_eq!(segment("ada").as_deref(), Some("ada"));
        assert_eq!(segment("DOM\\ada l").as_deref(), Some("DOM-ada-l"));
        assert_eq!(segment(".."), None);
        assert_eq!(segment(""), None);
    }

    #[test]
    fn a_second_one_in_the_same_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let first = lock(folder.path()).unwrap();
        let text = lock(folder.path()).unwrap_err().to_string();
        assert!(text.contains(&format!("(process {})", std::process::id())), "{text}");
        assert!(text.contains("--data-dir"), "{text}");
        drop(first);
        lock(folder.path()).unwrap();
    }

    #[tokio::test]
    async fn entries_of_the_file_come_before_the_user_s_own_at_each_start() {
        let door = FakeServer::start();
        let mut admin = connect::admin_at(&door.socket).await.unwrap();
        let mine = own_entry("ada").unwrap();
        let file = "- {spiffe_id: 'spiffe://dev.local/web', selectors: ['unix:uid:1'], x509_ttl: 10m}";
        for ttl in ["10m", "20m"] {
            let entries = entry_file::parse(&file.replace("10m", ttl)).unwrap();
            lay_down(&mut admin, entries, &mine).await.unwrap();
        }
        let entries = door.server.entries();
        assert_eq!(entries.len(), 2);
        assert_eq!((entries[0].spiffe_id.as_str(), entries[0].x509_ttl), ("spiffe://dev.local/web", 1200));
        assert_eq!(entries[0].parent, ALIAS);
        assert_eq!(entries[1].spiffe_id, "spiffe://dev.local/user/ada/default");
    }
}
