//! The JSON documents of `--output json`. Their fields are stable: new ones may come, none goes or changes its
//! meaning. Moments are RFC 3339 (null: never, or not known), lengths of time are text with units (`"1h 30m"`).

use std::time::Duration;

use serde::{Deserialize, Serialize};
use spiffe::proto::v1;
use spiffe::settings::write_duration;
use spiffe::time::Timestamp;

use crate::moments::{self, Moment};

mod agent_status;
mod rule;

pub(crate) use agent_status::AgentStatus;
pub(crate) use rule::{Explained, Rule, Rules, Silent};

/// A registration entry: printed by `entry show|list|create|update|delete`, read by `entry create|update --file`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    /// Its own name; the server makes one for a new entry without.
    #[serde(default)]
    pub(crate) id: String,
    /// The identity that it gives.
    pub(crate) spiffe_id: String,
    /// An agent's ID, a node alias, or the server's ID.
    #[serde(default)]
    pub(crate) parent: String,
    /// `type:value`, all of which must match.
    pub(crate) selectors: Vec<String>,
    /// How long its X.509-SVIDs live; null: as the server's config says.
    #[serde(default)]
    pub(crate) x509_ttl: Option<String>,
    /// How long its JWT-SVIDs live; null: as the server's config says.
    #[serde(default)]
    pub(crate) jwt_ttl: Option<String>,
    /// How long its WIT-SVIDs live; null: as the server's config says.
    #[serde(default)]
    pub(crate) wit_ttl: Option<String>,
    /// Whether its JWT-SVIDs have a `jti`.
    #[serde(default)]
    pub(crate) jti: bool,
    /// DNS names in its SVIDs.
    #[serde(default)]
    pub(crate) dns_names: Vec<String>,
    /// A word to the workload; empty: none.
    #[serde(default)]
    pub(crate) hint: String,
    /// Whether its holder may use the Admin door.
    #[serde(default)]
    pub(crate) admin: bool,
    /// Trust domains whose bundles its workload gets.
    #[serde(default)]
    pub(crate) federates_with: Vec<String>,
    /// When it ceases; null: never.
    #[serde(default)]
    pub(crate) expires_at: Option<String>,
    /// `p256`, `p384` or `ed25519`; null: as the agent's config says.
    #[serde(default)]
    pub(crate) key_type: Option<String>,
    /// Set by the server; passed over in files.
    #[serde(default)]
    pub(crate) created_at: Option<String>,
    /// The rule that it comes from; left out where an operator made it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) rule: String,
}

/// A length of time; nothing where it is not said.
fn length(seconds: u64) -> Option<String> {
    (seconds > 0).then(|| write_duration(Duration::from_secs(seconds)))
}

impl From<v1::Entry> for Entry {
    fn from(wire: v1::Entry) -> Self {
        let moment = |seconds: u64| (seconds > 0).then(|| Timestamp::from_unix(seconds).to_string());
        Self {
            id: wire.id,
            spiffe_id: wire.spiffe_id,
            parent: wire.parent,
            selectors: wire.selectors,
            x509_ttl: length(wire.x509_ttl),
            jwt_ttl: length(wire.jwt_ttl),
            wit_ttl: length(wire.wit_ttl),
            jti: wire.jti,
            dns_names: wire.dns_names,
            hint: wire.hint,
            admin: wire.admin,
            federates_with: wire.federates_with,
            expires_at: moment(wire.expires_at),
            key_type: (!wire.key_type.is_empty()).then_some(wire.key_type),
            created_at: moment(wire.created_at),
            rule: wire.rule,
        }
    }
}

impl TryFrom<Entry> for v1::Entry {
    type Error = String;

    /// To the wire. Only times are read here; the rest is for the server to judge, item by item.
    fn try_from(entry: Entry) -> Result<Self, String> {
        let seconds = |name, text: Option<String>| {
            let length = text.map(|text| spiffe::settings::parse_duration(&text)).transpose();
            length.map(|length| length.map_or(0, |length| length.as_secs())).map_err(|error| format!("{name}: {error}"))
        };
        let expires_at = entry.expires_at.map(|text| moments::parse(&text)).transpose();
        Ok(Self {
            id: entry.id,
            spiffe_id: entry.spiffe_id,
            parent: entry.parent,
            selectors: entry.selectors,
            x509_ttl: seconds("x509_ttl", entry.x509_ttl)?,
            jwt_ttl: seconds("jwt_ttl", entry.jwt_ttl)?,
            wit_ttl: seconds("wit_ttl", entry.wit_ttl)?,
            jti: entry.jti,
            dns_names: entry.dns_names,
            hint: entry.hint,
            admin: entry.admin,
            federates_with: entry.federates_with,
            expires_at: expires_at.map_err(|error| format!("expires_at: {error}"))?.map_or(0, Timestamp::unix),
            key_type: entry.key_type.unwrap_or_default(),
            created_at: 0,
            rule: entry.rule,
        })
    }
}

/// `entry list`, and what `entry create|update --file` reads.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entries {
    /// In the order of the server.
    pub(crate) entries: Vec<Entry>,
}

/// `entry create|update|delete`: what became of each item, in the order in which they were given.
#[derive(Debug, Serialize)]
pub(crate) struct EntryResults {
    /// One for each item.
    pub(crate) results: Vec<EntryResult>,
}

/// What became of one item.
#[derive(Debug, Serialize)]
pub(crate) struct EntryResult {
    /// What it became.
    #[serde(flatten)]
    pub(crate) outcome: EntryOutcome,
    /// What the server has to say about it though it was done; left out where that is nothing.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) warning: String,
}

/// Done or not.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum EntryOutcome {
    /// As it is stored; for a deleted one, as it was.
    Entry(Box<Entry>),
    /// Not done.
    Refused {
        /// The name of a gRPC status code: `already_exists`.
        code: &'static str,
        /// Why.
        message: String,
    },
}

/// `entry count`, `agent count`.
#[derive(Debug, Serialize)]
pub(crate) struct Count {
    /// How many match.
    pub(crate) count: u64,
}

/// `agent show`, and an element of `agent list`.
#[derive(Debug, Serialize)]
pub(crate) struct Agent {
    /// Its SPIFFE ID.
    pub(crate) id: String,
    /// How it attested.
    pub(crate) attestor: String,
    /// What is known of its node.
    pub(crate) selectors: Vec<String>,
    /// Of its present SVID, hexadecimal.
    pub(crate) serial: String,
    /// The end of its present SVID.
    pub(crate) expires_at: Moment,
    /// When it attested last.
    pub(crate) attested_at: Moment,
    /// Whether it may not attest again.
    pub(crate) banned: bool,
    /// Whether it is connected to the answering server.
    pub(crate) connected: bool,
    /// The revision up to which it has applied everything.
    pub(crate) acknowledged: u64,
}

impl From<v1::Agent> for Agent {
    fn from(wire: v1::Agent) -> Self {
        Self {
            id: wire.id,
            attestor: wire.attestor,
            selectors: wire.selectors,
            serial: wire.serial,
            expires_at: Moment(wire.expires_at),
            attested_at: Moment(wire.attested_at),
            banned: wire.banned,
            connected: wire.connected,
            acknowledged: wire.acknowledged,
        }
    }
}

/// `agent list`.
#[derive(Debug, Serialize)]
pub(crate) struct Agents {
    /// In the order of the server.
    pub(crate) agents: Vec<Agent>,
}

/// `agent evict|ban`, `token revoke`, `bundle delete`: what was changed, by its name.
#[derive(Debug, Serialize)]
pub(crate) struct Named {
    /// The ID, or the trust domain.
    pub(crate) id: String,
}

/// `agent purge`.
#[derive(Debug, Serialize)]
pub(crate) struct Purged {
    /// How many agents were forgotten.
    pub(crate) purged: u64,
}

/// `token create`.
#[derive(Debug, Serialize)]
pub(crate) struct NewToken {
    /// The token itself, shown this once.
    pub(crate) token: String,
    /// Its name in lists.
    pub(crate) id: String,
    /// Until when it can be used.
    pub(crate) expires_at: Moment,
    /// The name that its agent can be addressed by; empty: none.
    pub(crate) alias: String,
    /// What to run on the node.
    pub(crate) command: String,
}

/// `token list`.
#[derive(Debug, Serialize)]
pub(crate) struct Tokens {
    /// Unused ones.
    pub(crate) tokens: Vec<Token>,
}

/// An element of `token list`.
#[derive(Debug, Serialize)]
pub(crate) struct Token {
    /// Its name: not the token itself, which the server does not know.
    pub(crate) id: String,
    /// The node alias that its agent will get; empty: none.
    pub(crate) alias: String,
    /// When it was made.
    pub(crate) created_at: Moment,
    /// Until when it can be used.
    pub(crate) expires_at: Moment,
}

/// `bundle show`, and an element of `bundle list`.
#[derive(Debug, Serialize)]
pub(crate) struct Bundle {
    /// The bare name.
    pub(crate) trust_domain: String,
    /// Grows with each change.
    pub(crate) sequence: u64,
    /// How often it should be fetched anew; null: not said.
    pub(crate) refresh_hint: Option<String>,
    /// Its X.509 roots.
    pub(crate) x509_authorities: Vec<Root>,
    /// What its JWT-SVIDs are verified with.
    pub(crate) jwt_authorities: Vec<TokenKey>,
    /// What its WIT-SVIDs are verified with.
    pub(crate) wit_authorities: Vec<TokenKey>,
}

/// One key for tokens of a bundle.
#[derive(Debug, Serialize)]
pub(crate) struct TokenKey {
    /// Its name in the header of the tokens that it signed.
    pub(crate) kid: String,
    /// Whether what it signed is replaced at once.
    pub(crate) tainted: bool,
    /// The public key, a JWK.
    pub(crate) jwk: serde_json::Value,
}

/// One X.509 root of a bundle.
#[derive(Debug, Serialize)]
pub(crate) struct Root {
    /// SHA-256 of the certificate, hexadecimal.
    pub(crate) fingerprint: String,
    /// Its subject.
    pub(crate) subject: String,
    /// Its first valid second.
    pub(crate) not_before: Moment,
    /// Its last valid second.
    pub(crate) not_after: Moment,
    /// Whether SVIDs below it are replaced at once.
    pub(crate) tainted: bool,
    /// The certificate.
    pub(crate) pem: String,
}

/// `bundle list`.
#[derive(Debug, Serialize)]
pub(crate) struct Bundles {
    /// Our own first.
    pub(crate) bundles: Vec<Bundle>,
}

/// `federation show|refresh`, and an element of `federation list`.
#[derive(Debug, Serialize)]
pub(crate) struct Relationship {
    /// Whose bundle it is.
    pub(crate) trust_domain: String,
    /// Where it is fetched from.
    pub(crate) url: String,
    /// `https_web` or `https_spiffe`.
    pub(crate) profile: String,
    /// The SPIFFE ID that the endpoint shows; empty for `https_web`.
    pub(crate) endpoint_spiffe_id: String,
    /// `store` or `config`.
    pub(crate) source: String,
    /// When the server that answers has polled last; null: not yet.
    pub(crate) last_poll_at: Moment,
    /// When a poll last found the endpoint in order; null: not yet.
    pub(crate) last_success_at: Moment,
    /// `unchanged`, `updated`, `emptied`, `rolled_back` or `failed`; empty: none yet.
    pub(crate) last_outcome: String,
    /// Why the last poll brought nothing; empty: it did.
    pub(crate) last_error: String,
    /// When it polls next; null: not known yet.
    pub(crate) next_poll_at: Moment,
    /// Of the bundle that is known; null: none is.
    pub(crate) sequence: Option<u64>,
    /// How often that bundle asks to be fetched; null: it does not say.
    pub(crate) refresh_hint: Option<String>,
    /// How many X.509 roots it has; null: none is known.
    pub(crate) x509_authorities: Option<u32>,
}

/// `federation list`.
#[derive(Debug, Serialize)]
pub(crate) struct Relationships {
    /// In the order of their trust domains.
    pub(crate) relationships: Vec<Relationship>,
}

/// `authority prepare|activate|taint|revoke`, and an element of `authority list`.
#[derive(Debug, Serialize)]
pub(crate) struct Authority {
    /// Its name.
    pub(crate) id: String,
    /// The server that holds its key.
    pub(crate) owner: String,
    /// `x509`, `jwt` or `wit`.
    pub(crate) kind: String,
    /// `prepared`, `active` or `retired`.
    pub(crate) state: String,
    /// Whether SVIDs below it are replaced at once.
    pub(crate) tainted: bool,
    /// Its first valid second.
    pub(crate) not_before: Moment,
    /// Its last valid second.
    pub(crate) not_after: Moment,
    /// SHA-256 of its root certificate, hexadecimal; of a key for tokens its `kid`.
    pub(crate) fingerprint: String,
    /// The name of a key for tokens, in the header of those that it signed; null for X.509.
    pub(crate) kid: Option<String>,
    /// Whether an upstream CA signed it.
    pub(crate) upstream: bool,
    /// How many agents have not applied it yet; only for a prepared one.
    pub(crate) unacknowledged: u64,
    /// When it changes its state by itself; null: not planned.
    pub(crate) next_change_at: Moment,
}

impl From<v1::Authority> for Authority {
    fn from(wire: v1::Authority) -> Self {
        Self {
            id: wire.id,
            kid: (wire.kind != "x509").then(|| wire.fingerprint.clone()),
            owner: wire.owner,
            kind: wire.kind,
            state: wire.state,
            tainted: wire.tainted,
            not_before: Moment(wire.not_before),
            not_after: Moment(wire.not_after),
            fingerprint: wire.fingerprint,
            upstream: wire.upstream,
            unacknowledged: wire.unacknowledged,
            next_change_at: Moment(wire.next_change_at),
        }
    }
}

/// `authority list`.
#[derive(Debug, Serialize)]
pub(crate) struct Authorities {
    /// In the order of the server.
    pub(crate) authorities: Vec<Authority>,
}

/// `fetch x509` and `x509 mint`: one X.509-SVID.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Svid {
    /// The identity.
    pub(crate) spiffe_id: String,
    /// What it is for, in the entry's word; empty: none.
    pub(crate) hint: String,
    /// Of the SVID, hexadecimal.
    pub(crate) serial: String,
    /// Its first valid second.
    pub(crate) not_before: Moment,
    /// Its last valid second.
    pub(crate) not_after: Moment,
    /// The certificates, the SVID first, as PEM.
    pub(crate) svid: String,
    /// The private key, as PEM; only where it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<String>,
    /// The roots of its trust domain, as PEM.
    pub(crate) bundle: String,
}

/// `jwt mint`: one JWT-SVID.
#[derive(Debug, Serialize)]
pub(crate) struct MintedJwt {
    /// The identity.
    pub(crate) spiffe_id: String,
    /// Whom it is for.
    pub(crate) audience: Vec<String>,
    /// The first second at which it does not count any more.
    pub(crate) expires_at: Moment,
    /// The token, in the compact serialization.
    pub(crate) token: String,
}

/// `fetch x509`: all of this process's identities, the default one first.
#[derive(Debug, Serialize)]
pub(crate) struct Svids {
    /// The default identity first.
    pub(crate) svids: Vec<Svid>,
    /// PEM by the names of the foreign trust domains.
    pub(crate) federated_bundles: std::collections::BTreeMap<String, String>,
}

/// `fetch bundle`.
#[derive(Debug, Serialize)]
pub(crate) struct TrustBundles {
    /// By the names of the trust domains.
    pub(crate) bundles: std::collections::BTreeMap<String, TrustBundle>,
}

/// What one trust domain is verified with.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum TrustBundle {
    /// X.509 roots: PEM, a string.
    Roots(String),
    /// Keys for tokens (`--kind jwt|wit`): a JWK set, an object.
    Keys(serde_json::Value),
}

impl TrustBundle {
    /// As it stands in a file of its own.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Roots(pem) => pem.clone(),
            Self::Keys(set) => format!("{set:#}\n"),
        }
    }

    /// `1 root`, `2 keys`.
    pub(crate) fn size(&self) -> String {
        let (count, word) = match self {
            Self::Roots(pem) => (pem.matches("-----BEGIN").count(), "root"),
            Self::Keys(set) => (set["keys"].as_array().map_or(0, Vec::len), "key"),
        };
        if count == 1 { format!("1 {word}") } else { format!("{count} {word}s") }
    }
}

/// `fetch jwt` and `fetch wit`: one token.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct TokenSvid {
    /// The identity.
    pub(crate) spiffe_id: String,
    /// What it is for, in the entry's word; empty: none.
    pub(crate) hint: String,
    /// For whom it is; a WIT-SVID has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) audience: Option<Vec<String>>,
    /// The first second at which it does not count any more.
    pub(crate) expires_at: Moment,
    /// The compact serialization.
    pub(crate) token: String,
    /// The private key of a WIT-SVID, a JWK; only where it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<String>,
}

/// `fetch jwt`.
#[derive(Debug, Serialize)]
pub(crate) struct JwtSvids {
    /// The default identity first.
    pub(crate) svids: Vec<TokenSvid>,
}

/// `fetch wit`.
#[derive(Debug, Serialize)]
pub(crate) struct WitSvids {
    /// The default identity first.
    pub(crate) svids: Vec<TokenSvid>,
}

/// `validate jwt`.
#[derive(Debug, Serialize)]
pub(crate) struct ValidToken {
    /// The subject.
    pub(crate) spiffe_id: String,
    /// The claims that the agent shows.
    pub(crate) claims: std::collections::BTreeMap<String, serde_json::Value>,
}

/// `healthcheck`.
#[derive(Debug, Serialize)]
pub(crate) struct Health {
    /// Whoever was asked answers.
    pub(crate) live: bool,
    /// And is ready; not there when that was not asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ready: Option<bool>,
    /// What was asked.
    pub(crate) of: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_read_as_it_is_printed() {
        let wire = v1::Entry {
            id: "web-1".into(),
            spiffe_id: "spiffe://example.org/web".into(),
            selectors: vec!["unix:uid:1".into()],
            x509_ttl: 5400,
            jwt_ttl: 60,
            jti: true,
            expires_at: 1_795_218_000,
            key_type: "p384".into(),
            created_at: 7,
            ..v1::Entry::default()
        };
        let printed = serde_json::to_value(Entry::from(wire.clone())).unwrap();
        assert_eq!(printed["x509_ttl"], "1h 30m");
        assert_eq!(printed["expires_at"], "2026-11-20T23:40:00Z");
        let read: Entry = serde_json::from_value(printed).unwrap();
        assert_eq!(v1::Entry::try_from(read).unwrap(), v1::Entry { created_at: 0, ..wire });
    }
}
