//! `chancery authority`: the CA's own certificates and its keys for tokens. They rotate by themselves; these verbs look
//! on, or force it.

use clap::{Args, Subcommand, ValueEnum};
use spiffe::proto::v1;
use spiffe::time::Timestamp;

use crate::args::Globals;
use crate::connect::{self, Admin};
use crate::documents::{Authorities, Authority};
use crate::exit::Outcome;
use crate::output::{Table, plain};
use crate::wait::Wait;
use crate::{moments, refusal};

/// What can be done with authorities.
#[derive(Debug, Subcommand)]
#[command(after_help = "\
To replace a CA whose key may be stolen:
  chancery authority prepare --wait          a new root reaches every agent
  chancery authority activate NEW --wait     it signs from now on
  chancery authority taint OLD --wait        every SVID below the old one is replaced, within seconds
  chancery authority revoke OLD --wait       the old root leaves every bundle")]
pub(crate) enum Verb {
    /// List the authorities and what each will do next.
    #[command(after_help = "\
Example:
  chancery authority list

FINGERPRINT OR KID: of a CA the SHA-256 of its root, as configs and command lines have it; of a key for tokens its kid,
as the header of each token that it signed has it.")]
    List,
    /// Make a new authority now, and bring its root or key to every agent. Its ID is printed, for `activate`.
    #[command(after_help = "\
Examples:
  chancery authority prepare --wait
  chancery authority prepare --kind jwt --wait")]
    Prepare {
        /// What it will sign: X.509-SVIDs, JWT-SVIDs or WIT-SVIDs.
        #[arg(long, value_name = "KIND", default_value = "x509")]
        kind: Kind,
        #[command(flatten)]
        wait: Wait,
    },
    /// Let a prepared authority sign from now on; the active one retires.
    #[command(after_help = "\
Example, with the ID that `chancery authority prepare` printed (`chancery authority list` shows it too):
  chancery authority activate 9b1e --wait")]
    Activate {
        #[command(flatten)]
        one: One,
        /// Activate it even where proxies of Istio have not all renewed since it was prepared: those that have not refuse
        /// what it signs until they do.
        #[arg(long)]
        now: bool,
    },
    /// Mark a retired authority: every SVID that it signed is replaced at once.
    #[command(after_help = "\
Example, with an ID that `chancery authority list` shows:
  chancery authority taint 77c0 --wait")]
    Taint(One),
    /// Take a retired authority's root or key out of the bundle at once: what it signed is good no more. Taint it first, so
    /// that nobody holds an SVID below it any more.
    #[command(after_help = "\
Example, with an ID that `chancery authority list` shows:
  chancery authority revoke 77c0 --wait")]
    Revoke {
        #[command(flatten)]
        one: One,
        /// Revoke it even where a connected agent has not yet replaced every SVID below it: what its workloads hold is
        /// then good no more.
        #[arg(long)]
        force: bool,
    },
}

/// What an authority signs.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Kind {
    /// X.509-SVIDs.
    X509,
    /// JWT-SVIDs.
    Jwt,
    /// WIT-SVIDs.
    Wit,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::X509 => "x509",
            Self::Jwt => "jwt",
            Self::Wit => "wit",
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct One {
    /// Its ID, as `authority list` prints it.
    id: String,
    #[command(flatten)]
    wait: Wait,
}

impl Verb {
    /// Does it.
    pub(crate) async fn run(self, globals: &Globals) -> Outcome {
        let mut admin = connect::admin(globals).await?;
        let request = |one: &One, force: bool| v1::AuthorityRequest { id: one.id.clone(), force };
        let (answer, wait, past) = match &self {
            Self::List => {
                let authorities = list(&mut admin).await?;
                let text = table(&authorities, moments::now());
                let authorities = authorities.into_iter().map(Authority::from).collect();
                return globals.output.show(&Authorities { authorities }, || text);
            }
            Self::Prepare { kind, wait } => {
                let request = v1::PrepareAuthorityRequest { kind: kind.name().into() };
                (admin.prepare_authority(request).await, wait, "prepared")
            }
            Self::Activate { one, now } => (admin.activate_authority(request(one, *now)).await, &one.wait, "activated"),
            Self::Taint(one) => (admin.taint_authority(request(one, false)).await, &one.wait, "tainted"),
            Self::Revoke { one, force } => (admin.revoke_authority(request(one, *force)).await, &one.wait, "revoked"),
        };
        let answer = answer.map_err(|status| refusal::failure(&status))?.into_inner();
        let authority = Authority::from(answer.authority.unwrap_or_default());
        let said = |authority: &Authority| format!("{past} {}", plain(&authority.id));
        wait.and_show(&mut admin, globals.output, (authority, answer.revision), said).await
    }
}

/// All authorities.
pub(crate) async fn list(admin: &mut Admin) -> Outcome<Vec<v1::Authority>> {
    let answer = admin.list_authorities(v1::ListAuthoritiesRequest {}).await;
    Ok(answer.map_err(|status| refusal::failure(&status))?.into_inner().authorities)
}

/// What an authority does next by itself, and when: `signs in 2h`.
pub(crate) fn next(authority: &v1::Authority, now: Timestamp) -> String {
    let when = |seconds: u64| moments::relative(Timestamp::from_unix(seconds), now);
    let waiting = match authority.unacknowledged {
        0 => String::new(),
        1 => " (1 agent has yet to apply it)".into(),
        agents => format!(" ({agents} agents have yet to apply it)"),
    };
    match (authority.state.as_str(), authority.next_change_at) {
        (_, 0) => waiting.trim().to_owned(),
        ("prepared", at) => format!("signs {}{waiting}", when(at)),
        ("active", at) => format!("retires {}", when(at)),
        ("retired", at) => format!("is removed {}", when(at)),
        (_, at) => format!("changes {}", when(at)),
    }
}

fn table(authorities: &[v1::Authority], now: Timestamp) -> String {
    let mut table = Table::new(["ID", "KIND", "STATE", "EXPIRES", "NEXT", "OWNER", "FINGERPRINT OR KID"]);
    for authority in authorities {
        let mut state = authority.state.clone();
        if authority.tainted {
            state.push_str(", tainted");
        }
        if authority.upstream {
            state.push_str(", by upstream");
        }
        table.row([
            authority.id.clone(),
            authority.kind.clone(),
            state,
            moments::expires(authority.not_after, now),
            next(authority, now),
            authority.owner.clone(),
            fingerprint(authority),
        ]);
    }
    table.text_or("no authorities")
}

/// What the authority is known by elsewhere: a root in configs and on command lines, a key in the headers of its tokens.
fn fingerprint(authority: &v1::Authority) -> String {
    match authority.kind.as_str() {
        "x509" if !authority.fingerprint.is_empty() => format!("sha256:{}", authority.fingerprint),
        _ => authority.fingerprint.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_as_text() {
        let now = Timestamp::from_unix(1_000_000);
        let active = v1::Authority {
            id: "a1".into(),
            owner: "ca-1".into(),
            kind: "x509".into(),
            state: "active".into(),
            not_after: 1_086_400,
            next_change_at: 1_001_740,
            fingerprint: "ab".into(),
            tainted: true,
            ..v1::Authority::default()
        };
        assert!(
            table(std::slice::from_ref(&active), now)
                .contains("a1  x509  active, tainted  in 24h   retires in 29m  ca-1   sha256:ab\n")
        );
        let key = v1::Authority { kind: "jwt".into(), fingerprint: "u5Zc".into(), ..active.clone() };
        assert!(table(std::slice::from_ref(&key), now).ends_with("  u5Zc\n"), "as it stands in the header of a token");
        let prepared = v1::Authority { state: "prepared".into(), unacknowledged: 2, ..active };
        assert_eq!(next(&prepared, now), "signs in 29m (2 agents have yet to apply it)");
    }
}
