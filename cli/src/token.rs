//! `chancery token`: join tokens.

use std::time::Duration;

use clap::Subcommand;
use spiffe::id::SpiffeId;
use spiffe::proto::v1;
use spiffe::time::Timestamp;

use crate::args::Globals;
use crate::connect;
use crate::documents::{Named, NewToken, Token, Tokens};
use crate::exit::Outcome;
use crate::moments::{self, Moment};
use crate::output::{Sheet, Table, plain};
use crate::refusal;
use crate::wait::Wait;

/// What can be done with join tokens.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Create a token, and print the command to run on the node.
    #[command(after_help = "\
Examples:
  chancery token create
  chancery token create --ttl 1h --alias spiffe://example.org/pool/web")]
    Create {
        /// For how long it can be used.
        #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = moments::parse_some_time)]
        ttl: Duration,
        /// A node alias that the agent gets: entries may name it as their parent.
        #[arg(long, value_name = "ID")]
        alias: Option<SpiffeId>,
        #[command(flatten)]
        wait: Wait,
    },
    /// List the tokens that nobody has used.
    #[command(after_help = "\
Example:
  chancery token list")]
    List,
    /// Make a token good no more.
    #[command(after_help = "\
Example, with an ID that `chancery token list` shows:
  chancery token revoke 4a1c")]
    Revoke {
        /// Its ID, as `token list` prints it.
        id: String,
        #[command(flatten)]
        wait: Wait,
    },
}

impl Verb {
    /// Does it.
    pub(crate) async fn run(self, globals: &Globals) -> Outcome {
        let output = globals.output;
        let mut admin = connect::admin(globals).await?;
        match self {
            Self::Create { ttl, alias, wait } => {
                let alias = alias.map(|id| id.to_string()).unwrap_or_default();
                let info = admin.server_info(v1::ServerInfoRequest {}).await;
                let info = info.map_err(|status| refusal::failure(&status))?.into_inner();
                let request = v1::CreateJoinTokenRequest { ttl: ttl.as_secs().max(1), alias: alias.clone() };
                let answer = admin.create_join_token(request).await;
                let answer = answer.map_err(|status| refusal::failure(&status))?.into_inner();
                let done = NewToken {
                    command: command(&info, &answer.token),
                    token: answer.token,
                    id: answer.id,
                    expires_at: Moment(answer.expires_at),
                    alias,
                };
                wait.and_show(&mut admin, output, (done, answer.revision), |done| sheet(done, moments::now())).await
            }
            Self::List => {
                let answer = admin.list_join_tokens(v1::ListJoinTokensRequest {}).await;
                let tokens = answer.map_err(|status| refusal::failure(&status))?.into_inner().tokens;
                let text = table(&tokens, moments::now());
                let document = |token: v1::JoinToken| Token {
                    id: token.id,
                    alias: token.alias,
                    created_at: Moment(token.created_at),
                    expires_at: Moment(token.expires_at),
                };
                output.show(&Tokens { tokens: tokens.into_iter().map(document).collect() }, || text)
            }
            Self::Revoke { id, wait } => {
                let answer = admin.revoke_join_token(v1::RevokeJoinTokenRequest { id: id.clone() }).await;
                let revision = answer.map_err(|status| refusal::failure(&status))?.into_inner().revision;
                let said = |named: &Named| format!("revoked {}", plain(&named.id));
                wait.and_show(&mut admin, output, (Named { id }, revision), said).await
            }
        }
    }
}

/// What to run on the node. Every word from the server is quoted where a shell would read more than a word in it.
fn command(info: &v1::ServerInfoResponse, token: &str) -> String {
    let fingerprint = format!("sha256:{}", info.ca_fingerprint);
    let words = [
        "chancery",
        "agent",
        "run",
        "--server",
        &info.address,
        "--trust-domain",
        &info.trust_domain,
        "--join-token",
        token,
        "--ca-fingerprint",
        &fingerprint,
    ];
    words.map(shell_word).join(" ")
}

/// A word as a POSIX shell reads it back.
pub(crate) fn shell_word(word: &str) -> String {
    let harmless = |c: char| c.is_ascii_alphanumeric() || "-_./:=@,+".contains(c);
    if !word.is_empty() && word.chars().all(harmless) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn sheet(token: &NewToken, now: Timestamp) -> String {
    let expires = Timestamp::from_unix(token.expires_at.0);
    let sheet = Sheet::default()
        .line("token", format!("{} (shown only now)", token.token))
        .line("id", &token.id)
        .line("alias", &token.alias)
        .line("expires", format!("{} ({expires})", moments::relative(expires, now)));
    format!("{}\nRun this on the node:\n\n  {}\n", sheet.text(), plain(&token.command))
}

fn table(tokens: &[v1::JoinToken], now: Timestamp) -> String {
    let mut table = Table::new(["ID", "ALIAS", "CREATED", "EXPIRES"]);
    for token in tokens {
        table.row([
            token.id.clone(),
            token.alias.clone(),
            moments::relative(Timestamp::from_unix(token.created_at), now),
            moments::expires(token.expires_at, now),
        ]);
    }
    table.text_or("no tokens: create one with `chancery token create`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_to_paste_is_whole_and_harmless() {
        let mut info = v1::ServerInfoResponse {
            trust_domain: "example.org".into(),
            ca_fingerprint: "ab12".into(),
            address: "ca.example.org:8443".into(),
            ..v1::ServerInfoResponse::default()
        };
        assert_eq!(
            command(&info, "tok-1"),
            "chancery agent run --server ca.example.org:8443 --trust-domain example.org --join-token tok-1 \
             --ca-fingerprint sha256:ab12"
        );
        info.address = "a; rm -rf ~ '$(x)'".into();
        assert!(command(&info, "t").contains(r"--server 'a; rm -rf ~ '\''$(x)'\''' --trust"));
    }
}
