//! `--wait` on changes: returns when every connected agent has applied the change, or the time is up.

use std::time::Duration;

use clap::Args;
use serde::Serialize;
use spiffe::proto::v1;

use crate::connect::Admin;
use crate::exit::{Failure, Outcome};
use crate::output::{Output, plain};
use crate::refusal;

/// The flag of every verb that changes something.
#[derive(Clone, Debug, Args)]
pub(crate) struct Wait {
    /// Return only when every connected agent has applied the change, for at most this long (30s where no time
    /// is given). Write it with an equals sign: --wait=2m.
    #[arg(
        long,
        value_name = "DURATION",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "30s",
        value_parser = spiffe::settings::parse_duration
    )]
    wait: Option<Duration>,
}

/// Who has applied a change, as documents have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Applied {
    /// How many agents were connected.
    pub(crate) connected: u64,
    /// Those of them that had not applied the change when the time was up.
    pub(crate) behind: Vec<String>,
}

/// A document of a change: what was done, at which revision, and who has applied it.
#[derive(Debug, Serialize)]
pub(crate) struct Changed<T> {
    #[serde(flatten)]
    pub(crate) done: T,
    /// The revision that the change made; 0 when nothing was changed.
    pub(crate) revision: u64,
    /// Only with `--wait`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) applied: Option<Applied>,
}

/// Whom a change is for, where no agent is connected to apply it.
#[derive(Clone, Copy, Debug)]
enum Force {
    /// The agents: each applies it when it connects.
    AtAgents,
    /// The server alone, from now on.
    AtServer,
}

impl Wait {
    /// Waits where that was asked for, then prints the change, then says who is behind: the change itself is made
    /// and shown in any case.
    pub(crate) async fn and_show<T: Serialize>(
        &self,
        admin: &mut Admin,
        output: Output,
        done: (T, u64),
        text: impl FnOnce(&T) -> String,
    ) -> Outcome {
        self.and_show_of(Force::AtAgents, admin, output, done, text).await
    }

    /// The same for a change that is in force at the server as soon as it is made.
    pub(crate) async fn and_show_in_force<T: Serialize>(
        &self,
        admin: &mut Admin,
        output: Output,
        done: (T, u64),
        text: impl FnOnce(&T) -> String,
    ) -> Outcome {
        self.and_show_of(Force::AtServer, admin, output, done, text).await
    }

    async fn and_show_of<T: Serialize>(
        &self,
        force: Force,
        admin: &mut Admin,
        output: Output,
        (done, revision): (T, u64),
        text: impl FnOnce(&T) -> String,
    ) -> Outcome {
        let waited = match self.wait {
            Some(most) if revision > 0 => Some(wait(admin, revision, most).await),
            _ => None,
        };
        let (applied, failed) = match waited {
            None => (None, None),
            Some(Ok(applied)) => (Some(applied), None),
            Some(Err(failure)) => (None, Some(failure)),
        };
        let verdict = applied.as_ref().map(|applied| (said(applied, force), applied.behind.is_empty()));
        let changed = Changed { done, revision, applied };
        output.show(&changed, || {
            let mut text = text(&changed.done);
            if let Some((said, true)) = &verdict {
                text = format!("{}\n{said}", text.trim_end());
            }
            text
        })?;
        match (failed, verdict) {
            (Some(failure), _) => Err(failure),
            (None, Some((said, false))) => Err(Failure::NotApplied(said)),
            _ => Ok(()),
        }
    }
}

async fn wait(admin: &mut Admin, revision: u64, most: Duration) -> Outcome<Applied> {
    let timeout = most.as_secs() + u64::from(most.subsec_nanos() > 0);
    let answer = admin.wait_applied(v1::WaitAppliedRequest { revision, timeout }).await;
    let answer = answer.map_err(|status| refusal::failure(&status))?.into_inner();
    Ok(Applied { connected: answer.connected, behind: answer.behind })
}

fn said(applied: &Applied, force: Force) -> String {
    let agents = |count: u64| if count == 1 { "1 agent".to_owned() } else { format!("{count} agents") };
    if applied.behind.is_empty() {
        return match (applied.connected, force) {
            (_, Force::AtServer) => "it is in force now".into(),
            (0, Force::AtAgents) => "no agent is connected: it is applied by each when it connects".into(),
            (connected, Force::AtAgents) => format!("applied by {}, all that are connected", agents(connected)),
        };
    }
    let names: Vec<String> = applied.behind.iter().map(|id| format!("  {}", plain(id))).collect();
    format!(
        "the change is made, but {} of {} had not applied it when the time was up:\n{}",
        applied.behind.len(),
        agents(applied.connected),
        names.join("\n")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_applied_it_in_words() {
        let applied = |connected, behind: &[&str]| Applied {
            connected,
            behind: behind.iter().map(|id| (*id).to_owned()).collect(),
        };
        let said = |applied: Applied| said(&applied, Force::AtAgents);
        assert_eq!(super::said(&applied(0, &[]), Force::AtServer), "it is in force now");
        assert_eq!(said(applied(3, &[])), "applied by 3 agents, all that are connected");
        assert!(said(applied(0, &[])).starts_with("no agent is connected"));
        assert_eq!(
            said(applied(1, &["spiffe://example.org/chancery/agent/x/1"])),
            "the change is made, but 1 of 1 agent had not applied it when the time was up:\n  \
             spiffe://example.org/chancery/agent/x/1"
        );
    }
}
