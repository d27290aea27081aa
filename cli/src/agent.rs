//! `chancery agent`: node agents.

use std::time::Duration;

use clap::{Args, Subcommand};
use spiffe::id::SpiffeId;
use spiffe::proto::v1;
use spiffe::selector::Selector;
use spiffe::time::Timestamp;

use crate::args::Globals;
use crate::connect::{self, Admin};
use crate::documents::{Agent, Agents, Count, Named, Purged};
use crate::exit::Outcome;
use crate::output::{Sheet, Table, plain};
use crate::wait::Wait;
use crate::{agent_run, agent_status, moments, refusal};

const PAGE: u32 = 1_000;

/// What can be done with agents.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Run an agent in the foreground until it is told to stop.
    #[command(after_help = "\
Example, as `chancery token create` prints it:
  chancery agent run --server ca.example.org:8443 --trust-domain example.org --join-token TOKEN \\
      --ca-fingerprint sha256:...

Every key of the config can also be set from the environment: CHANCERY_AGENT__PREFETCH=50 is prefetch.")]
    Run(agent_run::Settings),
    /// Say whether a config is right, the bootstrap bundle included, without running it.
    #[command(after_help = "\
Example:
  chancery agent validate --config /etc/chancery/agent.toml")]
    Validate(agent_run::Settings),
    /// Ask the agent of this machine how it is: its server, the SVIDs that it holds, the proxies and deliveries that it
    /// serves.
    #[command(after_help = "\
Examples:
  chancery agent status
  chancery agent status -o json --status-socket /var/lib/chancery/agent/status.sock")]
    Status(agent_status::Settings),
    /// List the agents that match every given flag; all of them without one.
    #[command(after_help = "\
Examples:
  chancery agent list
  chancery agent list --connected=false --attestor join_token")]
    List(Filter),
    /// Show one agent.
    #[command(after_help = "\
Example, with an ID that `chancery agent list` shows:
  chancery agent show spiffe://example.org/chancery/agent/join_token/4a1c")]
    Show {
        /// Its SPIFFE ID.
        id: SpiffeId,
    },
    /// Count the agents that match every given flag.
    #[command(after_help = "\
Example:
  chancery agent count --connected")]
    Count(Filter),
    /// Make an agent's SVID good no more. It may attest again (by a join token: with a new one).
    #[command(after_help = "\
Example, with an ID that `chancery agent list` shows:
  chancery agent evict spiffe://example.org/chancery/agent/join_token/4a1c")]
    Evict(One),
    /// Make an agent's SVID good no more, and let it not attest again until it is evicted. What its workloads hold
    /// stays good until it expires.
    #[command(after_help = "\
Example, with an ID that `chancery agent list` shows:
  chancery agent ban spiffe://example.org/chancery/agent/join_token/4a1c --wait")]
    Ban(One),
    /// Forget agents whose SVIDs have been expired for long. Banned ones stay.
    #[command(after_help = "\
Example:
  chancery agent purge --expired-for 90d")]
    Purge {
        /// For how long they have been expired.
        #[arg(long, value_name = "DURATION", default_value = "30d", value_parser = spiffe::settings::parse_duration)]
        expired_for: Duration,
        #[command(flatten)]
        wait: Wait,
    },
}

#[derive(Debug, Args)]
pub(crate) struct One {
    /// Its SPIFFE ID.
    id: SpiffeId,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Debug, Args)]
pub(crate) struct Filter {
    /// Those that attested by this kind, for example join_token.
    #[arg(long, value_name = "KIND")]
    attestor: Option<String>,
    /// Those that have this selector; all that are given.
    #[arg(long = "selector", value_name = "TYPE:VALUE")]
    selectors: Vec<Selector>,
    /// Those that are banned, or, with --banned=false, those that are not.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "true|false")]
    banned: Option<bool>,
    /// Those that are connected to the answering server, or, with --connected=false, those that are not.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "true|false")]
    connected: Option<bool>,
}

impl From<Filter> for v1::AgentFilter {
    fn from(filter: Filter) -> Self {
        Self {
            attestor: filter.attestor.unwrap_or_default(),
            selectors: filter.selectors.iter().map(ToString::to_string).collect(),
            banned: filter.banned,
            connected: filter.connected,
        }
    }
}

impl Verb {
    /// Does it.
    pub(crate) async fn run(self, globals: &Globals) -> Outcome {
        let output = globals.output;
        match self {
            Self::Run(settings) => settings.run().await,
            Self::Validate(settings) => settings.validate(globals),
            Self::Status(settings) => settings.run(globals).await,
            Self::List(filter) => {
                let mut admin = connect::admin(globals).await?;
                // Asked first: an agent that applies something in between is not behind.
                let latest = revision(&mut admin).await?;
                let agents = list(&mut admin, filter.into()).await?;
                let text = table(&agents, latest, moments::now());
                output.show(&Agents { agents: agents.into_iter().map(Agent::from).collect() }, || text)
            }
            Self::Show { id } => {
                let request = v1::ShowAgentRequest { id: id.to_string() };
                let answer = connect::admin(globals).await?.show_agent(request).await;
                let agent = answer.map_err(|status| refusal::failure(&status))?.into_inner();
                let text = sheet(&agent, moments::now());
                output.show(&Agent::from(agent), || text)
            }
            Self::Count(filter) => {
                let request = v1::CountAgentsRequest { filter: Some(filter.into()) };
                let answer = connect::admin(globals).await?.count_agents(request).await;
                let count = answer.map_err(|status| refusal::failure(&status))?.into_inner().count;
                output.show(&Count { count }, || count.to_string())
            }
            Self::Evict(one) => {
                let id = one.id.to_string();
                let mut admin = connect::admin(globals).await?;
                let answer = admin.evict_agent(v1::EvictAgentRequest { id: id.clone() }).await;
                let revision = answer.map_err(|status| refusal::failure(&status))?.into_inner().revision;
                one.wait.and_show_in_force(&mut admin, output, (Named { id }, revision), evicted).await
            }
            Self::Ban(one) => {
                let id = one.id.to_string();
                let mut admin = connect::admin(globals).await?;
                let answer = admin.ban_agent(v1::BanAgentRequest { id: id.clone() }).await;
                let revision = answer.map_err(|status| refusal::failure(&status))?.into_inner().revision;
                one.wait.and_show_in_force(&mut admin, output, (Named { id }, revision), banned).await
            }
            Self::Purge { expired_for, wait } => {
                let mut admin = connect::admin(globals).await?;
                let answer = admin.purge_agents(v1::PurgeAgentsRequest { expired_for: expired_for.as_secs() }).await;
                let answer = answer.map_err(|status| refusal::failure(&status))?.into_inner();
                let done = (Purged { purged: answer.purged }, answer.revision);
                wait.and_show(&mut admin, output, done, |done| match done.purged {
                    1 => "forgot 1 agent".into(),
                    purged => format!("forgot {purged} agents"),
                })
                .await
            }
        }
    }
}

/// The server's present revision.
async fn revision(admin: &mut Admin) -> Outcome<u64> {
    let info = admin.server_info(v1::ServerInfoRequest {}).await;
    Ok(info.map_err(|status| refusal::failure(&status))?.into_inner().revision)
}

async fn list(admin: &mut Admin, filter: v1::AgentFilter) -> Outcome<Vec<v1::Agent>> {
    let mut agents = Vec::new();
    let mut page = String::new();
    loop {
        let request = v1::ListAgentsRequest { filter: Some(filter.clone()), page_size: PAGE, page };
        let answer = admin.list_agents(request).await.map_err(|status| refusal::failure(&status))?.into_inner();
        agents.extend(answer.agents);
        if answer.next_page.is_empty() {
            return Ok(agents);
        }
        page = answer.next_page;
    }
}

fn evicted(agent: &Named) -> String {
    // A token is good once: the one by which it came does not let it in again.
    let how = if agent.id.contains("/chancery/agent/join_token/") {
        ", with a new token: `chancery token create` makes one"
    } else {
        ""
    };
    format!("evicted {}: it may attest again{how}", plain(&agent.id))
}

fn banned(agent: &Named) -> String {
    format!(
        "banned {}: `chancery agent evict` lets it in again\nThe SVIDs that its workloads hold stay good until they \
         expire: its node gets no new ones",
        plain(&agent.id)
    )
}

/// A word on how an agent is.
fn state(agent: &v1::Agent, now: Timestamp) -> &'static str {
    if agent.banned {
        "banned"
    } else if agent.connected {
        "connected"
    } else if Timestamp::from_unix(agent.expires_at) < now {
        "expired"
    } else {
        "away"
    }
}

/// The revision that an agent has applied, and how far that is behind `latest`; nothing for one that is away.
fn applied(agent: &v1::Agent, latest: u64) -> String {
    match latest.saturating_sub(agent.acknowledged) {
        _ if !agent.connected => String::new(),
        0 => agent.acknowledged.to_string(),
        behind => format!("{} ({behind} behind)", agent.acknowledged),
    }
}

fn table(agents: &[v1::Agent], latest: u64, now: Timestamp) -> String {
    let mut table = Table::new(["ID", "STATE", "ATTESTED", "EXPIRES", "REVISION"]);
    for agent in agents {
        table.row([
            agent.id.clone(),
            state(agent, now).into(),
            moments::relative(Timestamp::from_unix(agent.attested_at), now),
            moments::expires(agent.expires_at, now),
            applied(agent, latest),
        ]);
    }
    table.text_or("no agents: let one in with `chancery token create`")
}

fn sheet(agent: &v1::Agent, now: Timestamp) -> String {
    let moment = |seconds: u64| {
        let at = Timestamp::from_unix(seconds);
        format!("{} ({at})", moments::relative(at, now))
    };
    let acknowledged = if agent.connected { agent.acknowledged.to_string() } else { String::new() };
    Sheet::default()
        .line("id", &agent.id)
        .line("state", state(agent, now))
        .line("attestor", &agent.attestor)
        .lines("selectors", &agent.selectors)
        .line("serial", &agent.serial)
        .line("attested", moment(agent.attested_at))
        .line("svid expires", moment(agent.expires_at))
        .line("has applied", if acknowledged.is_empty() { acknowledged } else { format!("revision {acknowledged}") })
        .text()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_eviction_leaves_to_do() {
        let named = |id: &str| Named { id: id.into() };
        assert!(evicted(&named("spiffe://example.org/chancery/agent/join_token/1")).contains("chancery token create"));
        assert!(evicted(&named("spiffe://example.org/chancery/agent/x509pop/1")).ends_with("it may attest again"));
    }

    #[test]
    fn agents_as_text() {
        let now = Timestamp::from_unix(1_000_000);
        let agent = v1::Agent {
            id: "spiffe://example.org/chancery/agent/join_token/1".into(),
            attestor: "join_token".into(),
            expires_at: 1_001_800,
            attested_at: 1_000_000 - 259_200,
            connected: true,
            acknowledged: 7,
            ..v1::Agent::default()
        };
        let gone = v1::Agent { connected: false, expires_at: 999_000, ..agent.clone() };
        let text = table(&[agent.clone(), gone], 7, now);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].ends_with("connected  3d ago    in 30m   7"), "{text}");
        assert!(lines[2].ends_with("expired    3d ago    16m ago  -"), "{text}");
        assert!(sheet(&agent, now).contains("has applied   revision 7"));
        assert!(table(std::slice::from_ref(&agent), 12, now).contains("7 (5 behind)\n"));
        assert!(table(&[], 12, now).contains("chancery token create"));
    }
}
