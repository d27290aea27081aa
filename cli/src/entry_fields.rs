//! The flags of `chancery entry create|update` that say what is in an entry.

use std::time::Duration;

use clap::Args;
use spiffe::entry::{DnsName, KeyType};
use spiffe::id::{SpiffeId, TrustDomain};
use spiffe::proto::v1;
use spiffe::selector::Selector;
use spiffe::time::Timestamp;

use crate::moments;

#[derive(Debug, Args)]
#[group(id = "fields", multiple = true)]
pub(crate) struct Fields {
    /// The identity that the entry gives.
    #[arg(long, value_name = "ID")]
    pub(crate) spiffe_id: Option<SpiffeId>,
    /// Below which node: an agent's ID, a node alias, or the server's ID (the entry is then a node alias).
    #[arg(long, value_name = "ID")]
    pub(crate) parent: Option<SpiffeId>,
    /// What must be true of the process, for example unix:uid:1000; all that are given must.
    #[arg(long = "selector", value_name = "TYPE:VALUE")]
    pub(crate) selectors: Vec<Selector>,
    /// How long its X.509-SVIDs live; 0s: as the server's config says.
    #[arg(long, visible_alias = "ttl", value_name = "DURATION", value_parser = spiffe::settings::parse_duration)]
    x509_ttl: Option<Duration>,
    /// How long its JWT-SVIDs live; 0s: as the server's config says.
    #[arg(long, value_name = "DURATION", value_parser = spiffe::settings::parse_duration)]
    jwt_ttl: Option<Duration>,
    /// How long its WIT-SVIDs live; 0s: as the server's config says.
    #[arg(long, value_name = "DURATION", value_parser = spiffe::settings::parse_duration)]
    wit_ttl: Option<Duration>,
    /// Whether its JWT-SVIDs have a jti: each is then made anew, and handed out once.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "true|false")]
    jti: Option<bool>,
    /// A DNS name in its SVIDs; may be repeated, the first is also the common name.
    #[arg(long = "dns", value_name = "NAME")]
    dns_names: Vec<DnsName>,
    /// No DNS name any more.
    #[arg(long, conflicts_with = "dns_names")]
    no_dns: bool,
    /// A word to the workload on what this identity is for.
    #[arg(long, value_name = "TEXT")]
    hint: Option<String>,
    /// Whether its holder may administer the server.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "true|false")]
    admin: Option<bool>,
    /// A foreign trust domain whose bundle its workload gets; may be repeated.
    #[arg(long, value_name = "TRUST_DOMAIN")]
    federates_with: Vec<TrustDomain>,
    /// No foreign trust domain any more.
    #[arg(long, conflicts_with = "federates_with")]
    no_federates_with: bool,
    /// When the entry ceases: a time like 2026-11-20T23:40:00Z, a duration from now, or never.
    #[arg(long, value_name = "WHEN")]
    expires: Option<Expiry>,
    /// The kind of key of its SVIDs: p256, p384 or ed25519.
    #[arg(long, value_name = "KIND")]
    key_type: Option<KeyType>,
}

/// When an entry ceases, as it is written on the command line.
#[derive(Clone, Copy, Debug)]
enum Expiry {
    Never,
    At(Timestamp),
    In(Duration),
}

impl std::str::FromStr for Expiry {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "never" {
            return Ok(Self::Never);
        }
        let either =
            spiffe::settings::parse_duration(text).map(Self::In).or_else(|_| moments::parse(text).map(Self::At));
        if matches!(either, Ok(Self::In(length)) if length.is_zero()) {
            return Err(format!("{text} is no time at all: give more than that, or never"));
        }
        either.map_err(|_| format!("{text:?} is no time: write it like 2026-11-20T23:40:00Z, 30d, or never"))
    }
}

impl Expiry {
    fn seconds(self, now: Timestamp) -> u64 {
        match self {
            Self::Never => 0,
            Self::At(at) => at.unix(),
            Self::In(length) => now.plus(length).unix(),
        }
    }
}

impl Fields {
    /// Whether no flag was given.
    pub(crate) fn are_none(&self) -> bool {
        let one = self.spiffe_id.is_some()
            || self.parent.is_some()
            || self.x509_ttl.is_some()
            || self.jwt_ttl.is_some()
            || self.wit_ttl.is_some()
            || self.jti.is_some()
            || self.hint.is_some()
            || self.admin.is_some()
            || self.no_dns
            || self.no_federates_with
            || self.expires.is_some()
            || self.key_type.is_some();
        !one && self.selectors.is_empty() && self.dns_names.is_empty() && self.federates_with.is_empty()
    }

    /// Lays what was given over `entry`.
    pub(crate) fn over(&self, entry: &mut v1::Entry, now: Timestamp) {
        fn texts<T: ToString>(given: &[T], field: &mut Vec<String>) {
            if !given.is_empty() {
                *field = given.iter().map(ToString::to_string).collect();
            }
        }
        if let Some(id) = &self.spiffe_id {
            entry.spiffe_id = id.to_string();
        }
        if let Some(parent) = &self.parent {
            entry.parent = parent.to_string();
        }
        texts(&self.selectors, &mut entry.selectors);
        texts(&self.dns_names, &mut entry.dns_names);
        texts(&self.federates_with, &mut entry.federates_with);
        if self.no_dns {
            entry.dns_names.clear();
        }
        if self.no_federates_with {
            entry.federates_with.clear();
        }
        if let Some(ttl) = self.x509_ttl {
            entry.x509_ttl = ttl.as_secs();
        }
        if let Some(ttl) = self.jwt_ttl {
            entry.jwt_ttl = ttl.as_secs();
        }
        if let Some(ttl) = self.wit_ttl {
            entry.wit_ttl = ttl.as_secs();
        }
        if let Some(jti) = self.jti {
            entry.jti = jti;
        }
        if let Some(hint) = &self.hint {
            entry.hint.clone_from(hint);
        }
        if let Some(admin) = self.admin {
            entry.admin = admin;
        }
        if let Some(expires) = self.expires {
            entry.expires_at = expires.seconds(now);
        }
        if let Some(key_type) = self.key_type {
            entry.key_type = key_type.to_string();
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        fields: Fields,
    }

    #[test]
    fn what_tokens_are_like_is_laid_over_an_entry() {
        let over = |line: &str, entry: &v1::Entry| {
            let mut entry = entry.clone();
            let line = Line::try_parse_from(line.split(' ')).unwrap();
            line.fields.over(&mut entry, Timestamp::from_unix(1_000));
            entry
        };
        let entry = over("e --jwt-ttl 90s --wit-ttl 2h --jti", &v1::Entry::default());
        assert_eq!((entry.jwt_ttl, entry.wit_ttl, entry.jti), (90, 7200, true));
        let entry = over("e --jwt-ttl 0s --jti=false", &entry);
        assert_eq!((entry.jwt_ttl, entry.wit_ttl, entry.jti), (0, 7200, false));
        assert!(!Line::try_parse_from(["e", "--jti"]).unwrap().fields.are_none());
    }

    #[test]
    fn an_expiry_in_each_form() {
        let now = Timestamp::from_unix(1_000);
        let seconds = |text: &str| text.parse::<Expiry>().map(|expiry| expiry.seconds(now));
        assert_eq!(seconds("never"), Ok(0));
        assert_eq!(seconds("1h"), Ok(4_600));
        assert_eq!(seconds("2026-11-20T23:40:00Z"), Ok(1_795_218_000));
        assert!(seconds("0s").unwrap_err().contains("or never"));
        assert!(seconds("soon").unwrap_err().contains("write it like"));
    }
}
