//! `chancery agent status`: how the agent of this machine is, asked of itself.

use std::path::PathBuf;

use clap::Args;
use spiffe::proto::v1;
use spiffe::proto::v1::agent_status_client::AgentStatusClient;
use spiffe::time::Timestamp;

use crate::args::Globals;
use crate::connect::{ownership, unix_channel};
use crate::documents::AgentStatus;
use crate::exit::{Failure, Outcome};
use crate::folders::Folders;
use crate::output::{Sheet, Table};
use crate::{moments, refusal};

/// Thousands of SVIDs and proxies.
const MAX_ANSWER_BYTES: usize = 64 << 20;
/// How much of a version is enough to tell it from the next.
const SHORT: usize = 8;

/// The flags.
#[derive(Debug, Args)]
pub(crate) struct Settings {
    /// The agent's status socket (status_socket in its config). Where it is not given, the first of these that exists:
    /// /var/lib/chancery/agent/status.sock, that of an agent of your own, that of `chancery dev`.
    #[arg(long, env = "CHANCERY_STATUS_SOCKET", value_name = "PATH")]
    status_socket: Option<PathBuf>,
}

impl Settings {
    /// Does it.
    pub(crate) async fn run(self, globals: &Globals) -> Outcome {
        let path = self.status_socket.unwrap_or_else(|| {
            // One that may not be looked at is there, too.
            Folders::of_this_process().status_socket(|path| path.try_exists().unwrap_or(true))
        });
        let channel = unix_channel(&path).await.map_err(|error| {
            let place = path.display();
            match error.kind() {
                std::io::ErrorKind::PermissionDenied => Failure::Refused(format!(
                    "permission denied: you may not use the agent's status socket {place}{}: it is for root and the \
                     agent's own user",
                    ownership(&path)
                )),
                _ => Failure::Unreachable(format!(
                    "no agent answers at {place} ({error}): start one with `chancery agent run`, or name its socket with \
                     --status-socket"
                )),
            }
        })?;
        let mut client = AgentStatusClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES);
        let answer = client.show(v1::ShowAgentStatusRequest {}).await;
        let status = answer.map_err(|status| refusal::failure(&status))?.into_inner();
        let text = text(&status, moments::now());
        globals.output.show(&AgentStatus::from(status), || text)
    }
}

fn text(status: &v1::ShowAgentStatusResponse, now: Timestamp) -> String {
    let revision = if status.revision > 0 { format!(", revision {} applied", status.revision) } else { String::new() };
    let server = if status.connected { "connected" } else { "not connected: what is held is served on" };
    let mut sheet = Sheet::default()
        .line("id", &status.id)
        .line("svid", moments::expiry(status.svid_expires_at, now))
        .line("server", format!("{server}{revision}"));
    if status.pods_told_at > 0 {
        let told = moments::relative(Timestamp::from_unix(status.pods_told_at), now);
        sheet = sheet.line("pods", format!("{}, last told of {told}", status.pods));
    }
    let mut text = sheet.text();
    for part in [svids(status, now), proxies(status, now), deliveries(status, now)].into_iter().flatten() {
        text.push('\n');
        text.push_str(&part.text());
    }
    text
}

fn svids(status: &v1::ShowAgentStatusResponse, now: Timestamp) -> Option<Table> {
    let mut table = Table::new(["SVID", "ENTRY", "EXPIRES"]);
    for svid in &status.svids {
        table.row([svid.spiffe_id.clone(), svid.entry_id.clone(), moments::expires(svid.expires_at, now)]);
    }
    (!status.svids.is_empty()).then_some(table)
}

fn proxies(status: &v1::ShowAgentStatusResponse, now: Timestamp) -> Option<Table> {
    let mut table = Table::new(["PROXY", "PID", "SECRETS", "SENT", "TAKEN", "LAST REJECTION"]);
    for proxy in &status.proxies {
        let names = if proxy.names.is_empty() { "everything".into() } else { proxy.names.join(", ") };
        let rejection = proxy.rejection.as_ref().map(|failure| told(failure, now)).unwrap_or_default();
        let versions = [&proxy.sent, &proxy.acknowledged].map(|version| short(version));
        let [sent, taken] = versions;
        table.row([proxy.node.clone(), proxy.pid.to_string(), names, sent, taken, rejection]);
    }
    (!status.proxies.is_empty()).then_some(table)
}

fn deliveries(status: &v1::ShowAgentStatusResponse, now: Timestamp) -> Option<Table> {
    let mut table = Table::new(["DELIVERY", "IDENTITY", "VERSION", "DONE", "NEXT TRY", "LAST FAILURE"]);
    let moment = |seconds: u64| match seconds {
        0 => String::new(),
        _ => moments::relative(Timestamp::from_unix(seconds), now),
    };
    for delivery in &status.deliveries {
        table.row([
            delivery.name.clone(),
            delivery.spiffe_id.clone(),
            short(&delivery.version),
            moment(delivery.succeeded_at),
            moment(delivery.next_try),
            delivery.failure.as_ref().map(|failure| told(failure, now)).unwrap_or_default(),
        ]);
    }
    (!status.deliveries.is_empty()).then_some(table)
}

fn told(failure: &v1::Failure, now: Timestamp) -> String {
    format!("{}: {}", moments::relative(Timestamp::from_unix(failure.at), now), failure.words)
}

fn short(version: &str) -> String {
    version.chars().take(SHORT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_as_text() {
        let now = Timestamp::from_unix(1_000_000);
        let status = v1::ShowAgentStatusResponse {
            id: "spiffe://example.org/chancery/agent/join_token/1".into(),
            svid_expires_at: 1_001_800,
            connected: true,
            revision: 7,
            ..v1::ShowAgentStatusResponse::default()
        };
        let bare = text(&status, now);
        assert_eq!(bare.lines().count(), 3, "{bare}");
        assert!(bare.contains("connected, revision 7 applied") && bare.contains("expires in 30m"), "{bare}");

        let failure = |words: &str| Some(v1::Failure { at: 999_700, words: words.into() });
        let status = v1::ShowAgentStatusResponse {
            connected: false,
            pods: 110,
            pods_told_at: 999_700,
            svids: vec![v1::HeldSvid {
                entry_id: "web".into(),
                spiffe_id: "spiffe://example.org/web".into(),
                expires_at: 1_000_060,
            }],
            proxies: vec![v1::Proxy {
                pid: 77,
                node: "front".into(),
                sent: "0123456789abcdef".into(),
                rejection: failure("Failed to load certificate chain"),
                ..v1::Proxy::default()
            }],
            deliveries: vec![v1::Delivery {
                name: "nginx".into(),
                failure: failure("no such pid"),
                next_try: 1_000_030,
                ..v1::Delivery::default()
            }],
            ..status
        };
        let whole = text(&status, now);
        let line = |word: &str| whole.lines().find(|line| line.contains(word)).unwrap_or_default().to_owned();
        assert!(line("server").contains("not connected"), "{whole}");
        assert!(line("pods").ends_with("110, last told of 5m ago"), "{whole}");
        assert!(line("web").ends_with("in 60s"), "{whole}");
        let proxy = line("front");
        assert!(
            proxy.contains("77   everything  01234567  -      5m ago: Failed to load certificate chain"),
            "{whole}"
        );
        assert!(line("nginx").ends_with("in 30s    5m ago: no such pid"), "{whole}");
    }
}
