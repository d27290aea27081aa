//! What may be issued: (entry or node, public key, profile, issuer, serial, now) -> [`SvidPlan`], or [`Denied`].
//!
//! - An identity under `/chancery` goes to agents and servers only, each through its own function.
//! - The life is the shortest of: what was asked for, what the config allows, the entry's, the CA's.
//! - An SVID that would end within [`SHORTEST_LIFE`] is not issued.
//! - Of a CSR only the key counts.
//! - `tokens` has the same rules for JWT-SVIDs and WIT-SVIDs, `service_account` those for whoever comes without an entry.

pub mod service_account;
pub mod tokens;

use std::time::Duration;

use spiffe::csr::ProvenKey;
use spiffe::entry::{DnsName, KeyType, MAX_DNS_NAMES, RegistrationEntry};
use spiffe::id::{SpiffeId, TrustDomain};
use spiffe::time::{Lifetime, Timestamp};

use crate::authority::ca::BACKDATE;
pub use crate::authority::issuer::{Serial, SvidPlan};

/// An SVID that would live shorter than this is refused: it would be gone before it is in use.
pub const SHORTEST_LIFE: Duration = Duration::from_secs(2);

/// Why nothing is issued.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The entry has run out.
    #[error("entry {entry} expired at {at}: update its expiry, or delete it")]
    EntryExpired {
        /// The entry.
        entry: String,
        /// When it did.
        at: Timestamp,
    },
    /// The entry names nodes.
    #[error("entry {0} is a node alias: it names nodes, and is the identity of no workload")]
    NodeAlias(String),
    /// The key is of another kind than the entry wants.
    #[error("entry {entry} wants a {wanted} key, the CSR has a {sent} one: make a {wanted} key")]
    KeyType {
        /// The entry.
        entry: String,
        /// What the entry says.
        wanted: KeyType,
        /// What came.
        sent: KeyType,
    },
    /// A WIT-SVID was asked for with a key that signs no proofs.
    #[error(
        "a WIT-SVID is bound to a P-256 or P-384 key, the CSR has a {0} one, which signs no Workload Proof Tokens: make \
         a p256 key"
    )]
    ProofKey(KeyType),
    /// The ID is one of Chancery's own.
    #[error("{0} is reserved: IDs under /chancery belong to Chancery's own servers and agents")]
    Reserved(SpiffeId),
    /// The ID is no agent's.
    #[error("{0} is no agent's ID")]
    NotAgent(SpiffeId),
    /// The ID is of another trust domain.
    #[error("{id} is not in the trust domain {trust_domain} of this server")]
    Foreign {
        /// The ID.
        id: SpiffeId,
        /// Ours.
        trust_domain: TrustDomain,
    },
    /// The ID is the trust domain's own.
    #[error("{0} names a trust domain, not a workload: give the ID a path")]
    NoPath(SpiffeId),
    /// The life asked for is longer than the config allows, and the config allows no more than the CA can honour.
    #[error("a life of {} was asked for, at most {} is allowed: ask for less, or raise {raise} in the server's config", text(.asked), text(.most))]
    TooLong {
        /// What was asked for.
        asked: Duration,
        /// What is allowed.
        most: Duration,
        /// The keys of the config that say so.
        raise: &'static str,
    },
    /// The life asked for is shorter than [`SHORTEST_LIFE`].
    #[error("a life of {} was asked for: it has to be 2s at least", text(.0))]
    TooShort(Duration),
    /// More DNS names than one SVID may have.
    #[error("{0} DNS names were asked for: at most 64 are allowed")]
    TooManyDnsNames(usize),
    /// The entry or the CA ends too soon.
    #[error("SVID would end at {0}, within 2s: the CA or the entry is about to expire, try again when it is renewed")]
    NoLifeLeft(Timestamp),
}

fn text(duration: &Duration) -> String {
    spiffe::settings::write_duration(*duration)
}

/// What the server's config says about SVIDs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Ours.
    pub trust_domain: TrustDomain,
    /// The life of an SVID when its entry says nothing.
    pub default_ttl: Duration,
    /// The longest life of an SVID, which the CA can honour: the config has been checked for that.
    pub max_ttl: Duration,
    /// The life of the SVIDs of agents and servers.
    pub agent_ttl: Duration,
}

impl Profile {
    /// Refuses a life that no SVID can have: for entries when they are created, and for minted SVIDs.
    pub fn check_ttl(&self, ttl: Duration) -> Result<(), Denied> {
        check_ttl(ttl, self.max_ttl, "svid.max_ttl and authority.ca_ttl")
    }
}

fn check_ttl(ttl: Duration, most: Duration, raise: &'static str) -> Result<(), Denied> {
    if ttl > most {
        return Err(Denied::TooLong { asked: ttl, most, raise });
    }
    if ttl < SHORTEST_LIFE {
        return Err(Denied::TooShort(ttl));
    }
    Ok(())
}

/// What every plan needs beside whom it is for.
#[derive(Debug)]
pub struct Request {
    /// The key, its possession proved.
    pub key: ProvenKey,
    /// Made of fresh random bytes.
    pub serial: Serial,
    /// [`Issuer::window`](crate::authority::issuer::Issuer::window) of the issuer that will sign.
    pub window: Lifetime,
    /// The present moment.
    pub now: Timestamp,
}

/// Plans the SVID of `entry` for a workload. A TTL beyond the config's, left from before the config was changed, is
/// cut, not refused: workloads must not stop over it.
pub fn for_entry(entry: &RegistrationEntry, request: Request, profile: &Profile) -> Result<SvidPlan, Denied> {
    usable(entry, &profile.trust_domain, request.now)?;
    at_most(&entry.dns_names)?;
    let sent = request.key.key_type();
    if let Some(wanted) = entry.key_type.filter(|wanted| *wanted != sent) {
        return Err(Denied::KeyType { entry: entry.id.to_string(), wanted, sent });
    }
    let ttl = entry.x509_ttl.unwrap_or(profile.default_ttl).min(profile.max_ttl);
    plan(entry.spiffe_id.clone(), entry.dns_names.clone(), request, ttl, entry.expires_at)
}

/// Plans the SVID of an agent that has been attested as `id`.
pub fn for_agent(id: SpiffeId, request: Request, profile: &Profile) -> Result<SvidPlan, Denied> {
    member(&id, &profile.trust_domain)?;
    if !id.is_agent() {
        return Err(Denied::NotAgent(id));
    }
    plan(id, Vec::new(), request, profile.agent_ttl, None)
}

/// Plans the SVID of the server itself, with the DNS names under which it is reached.
pub fn for_server(dns_names: Vec<DnsName>, request: Request, profile: &Profile) -> Result<SvidPlan, Denied> {
    at_most(&dns_names)?;
    plan(profile.trust_domain.server_id(), dns_names, request, profile.agent_ttl, None)
}

/// What an administrator asks for, without an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mint {
    /// Whose SVID.
    pub id: SpiffeId,
    /// DNS names beside it.
    pub dns_names: Vec<DnsName>,
    /// How long; `None`: as the config says.
    pub ttl: Option<Duration>,
}

/// Plans an SVID that an administrator asks for. A life that the CA cannot honour is refused.
pub fn for_mint(mint: Mint, request: Request, profile: &Profile) -> Result<SvidPlan, Denied> {
    workload(&mint.id, &profile.trust_domain)?;
    at_most(&mint.dns_names)?;
    let ttl = mint.ttl.unwrap_or(profile.default_ttl);
    profile.check_ttl(ttl)?;
    plan(mint.id, mint.dns_names, request, ttl, None)
}

/// Whether `entry` gives anything to a workload at `now`.
fn usable(entry: &RegistrationEntry, trust_domain: &TrustDomain, now: Timestamp) -> Result<(), Denied> {
    if let Some(at) = entry.expires_at.filter(|_| !entry.is_live(now)) {
        return Err(Denied::EntryExpired { entry: entry.id.to_string(), at });
    }
    if entry.is_node_alias() {
        return Err(Denied::NodeAlias(entry.id.to_string()));
    }
    workload(&entry.spiffe_id, trust_domain)
}

/// Whether an entry or a mint may name `id`: in our trust domain, with a path, and none of our own.
fn workload(id: &SpiffeId, trust_domain: &TrustDomain) -> Result<(), Denied> {
    member(id, trust_domain)?;
    if id.path().is_empty() {
        return Err(Denied::NoPath(id.clone()));
    }
    if id.is_reserved() {
        return Err(Denied::Reserved(id.clone()));
    }
    Ok(())
}

fn member(id: &SpiffeId, trust_domain: &TrustDomain) -> Result<(), Denied> {
    if !id.is_member_of(trust_domain) {
        return Err(Denied::Foreign { id: id.clone(), trust_domain: trust_domain.clone() });
    }
    Ok(())
}

fn at_most(dns_names: &[DnsName]) -> Result<(), Denied> {
    if dns_names.len() > MAX_DNS_NAMES {
        return Err(Denied::TooManyDnsNames(dns_names.len()));
    }
    Ok(())
}

/// The end of a life of `ttl` that begins at `now` and goes beyond none of these moments.
fn end(now: Timestamp, ttl: Duration, until: [Option<Timestamp>; 2]) -> Result<Timestamp, Denied> {
    let end = until.into_iter().flatten().fold(now.plus(ttl), Timestamp::min);
    if end.since(now) < SHORTEST_LIFE { Err(Denied::NoLifeLeft(end)) } else { Ok(end) }
}

fn plan(
    id: SpiffeId,
    dns_names: Vec<DnsName>,
    request: Request,
    ttl: Duration,
    until: Option<Timestamp>,
) -> Result<SvidPlan, Denied> {
    let Request { key, serial, window, now } = request;
    let not_after = end(now, ttl, [Some(window.not_after), until])?;
    let not_before = now.minus(BACKDATE).max(window.not_before);
    Ok(SvidPlan { id, dns_names, key, serial, lifetime: Lifetime { not_before, not_after } })
}

#[cfg(test)]
mod tests {
    use spiffe::entry::EntryId;
    use spiffe::selector::Selectors;

    use super::*;

    const NOW: Timestamp = Timestamp::from_unix(1_800_000_000);
    const HOUR: Duration = Duration::from_secs(3600);

    fn domain() -> TrustDomain {
        TrustDomain::parse("example.org").unwrap()
    }

    fn profile() -> Profile {
        Profile { trust_domain: domain(), default_ttl: HOUR, max_ttl: HOUR * 6, agent_ttl: HOUR * 2 }
    }

    fn request(kind: KeyType) -> Request {
        let key = spiffe::crypto::generate_key(kind).unwrap();
        Request {
            key: ProvenKey::from_csr(&spiffe::csr::create(&key).unwrap()).unwrap(),
            serial: Serial::from_random([1; 16]),
            window: Lifetime { not_before: NOW.minus(HOUR), not_after: NOW.plus(HOUR * 24) },
            now: NOW,
        }
    }

    fn entry() -> RegistrationEntry {
        RegistrationEntry {
            id: EntryId::parse("web-1").unwrap(),
            spiffe_id: SpiffeId::parse("spiffe://example.org/web").unwrap(),
            parent: domain().agent_id("join_token", "1").unwrap(),
            selectors: Selectors::parse(&["unix:uid:1000".to_owned()]).unwrap(),
            x509_ttl: None,
            jwt_ttl: None,
            wit_ttl: None,
            jti: false,
            dns_names: vec![DnsName::parse("web.example.org").unwrap()],
            hint: String::new(),
            admin: false,
            federates_with: Vec::new(),
            expires_at: None,
            key_type: None,
            created_at: NOW,
            rule: None,
        }
    }

    fn changed(change: impl FnOnce(&mut RegistrationEntry)) -> Result<SvidPlan, Denied> {
        let mut entry = entry();
        change(&mut entry);
        for_entry(&entry, request(KeyType::P256), &profile())
    }

    fn until(plan: Result<SvidPlan, Denied>) -> Duration {
        plan.unwrap().lifetime.not_after.since(NOW)
    }

    #[test]
    fn the_shortest_of_all_lives_counts() {
        let plan = changed(|_| {}).unwrap();
        assert_eq!(plan.lifetime.not_before, NOW.minus(Duration::from_secs(60)));
        assert_eq!(until(Ok(plan)), HOUR);
        assert_eq!(until(changed(|e| e.x509_ttl = Some(HOUR * 2))), HOUR * 2);
        assert_eq!(until(changed(|e| e.x509_ttl = Some(HOUR * 7))), HOUR * 6);
        assert_eq!(until(changed(|e| e.expires_at = Some(NOW.plus(HOUR / 2)))), HOUR / 2);
        let mut near_end = request(KeyType::P256);
        near_end.window = Lifetime { not_before: NOW, not_after: NOW.plus(HOUR / 3) };
        let plan = for_entry(&entry(), near_end, &profile()).unwrap();
        assert_eq!(plan.lifetime, Lifetime { not_before: NOW, not_after: NOW.plus(HOUR / 3) });
    }

    #[test]
    fn each_refusal_says_why() {
        let why = |denied: Result<SvidPlan, Denied>| denied.unwrap_err().to_string();
        assert_eq!(
            why(changed(|e| e.expires_at = Some(NOW))),
            "entry web-1 expired at 2027-01-15T08:00:00Z: update its expiry, or delete it"
        );
        assert!(why(changed(|e| e.expires_at = Some(NOW.plus(Duration::from_secs(1))))).contains("within 2s"));
        assert!(why(changed(|e| e.parent = domain().server_id())).contains("is a node alias"));
        assert_eq!(
            why(changed(|e| e.key_type = Some(KeyType::P384))),
            "entry web-1 wants a p384 key, the CSR has a p256 one: make a p384 key"
        );
        assert!(why(changed(|e| e.spiffe_id = domain().server_id())).contains("is reserved"));
        assert!(why(changed(|e| e.spiffe_id = domain().agent_id("x509pop", "a").unwrap())).contains("is reserved"));
        assert!(why(changed(|e| e.spiffe_id = domain().id())).contains("give the ID a path"));
        let foreign = SpiffeId::parse("spiffe://other.org/web").unwrap();
        assert!(why(changed(|e| e.spiffe_id = foreign)).contains("not in the trust domain example.org"));
        assert!(why(changed(|e| e.dns_names = vec![e.dns_names[0].clone(); 65])).contains("65 DNS names"));
    }

    #[test]
    fn agents_and_servers_get_their_own_ids_and_no_others() {
        let agent = domain().agent_id("join_token", "1").unwrap();
        let plan = for_agent(agent.clone(), request(KeyType::P256), &profile()).unwrap();
        assert_eq!((plan.id, plan.lifetime.not_after), (agent, NOW.plus(HOUR * 2)));
        for other in ["spiffe://example.org/chancery/server", "spiffe://example.org/web"] {
            let id = SpiffeId::parse(other).unwrap();
            assert_eq!(for_agent(id.clone(), request(KeyType::P256), &profile()).unwrap_err(), Denied::NotAgent(id));
        }
        let foreign = SpiffeId::parse("spiffe://other.org/chancery/agent/a/b").unwrap();
        assert!(matches!(for_agent(foreign, request(KeyType::P256), &profile()), Err(Denied::Foreign { .. })));
        let server = for_server(entry().dns_names, request(KeyType::P256), &profile()).unwrap();
        assert!(server.id.is_server());
    }

    #[test]
    fn a_minted_svid_with_a_life_that_the_ca_cannot_honour_is_refused() {
        let mint = |id: &str, ttl| {
            let mint = Mint { id: SpiffeId::parse(id).unwrap(), dns_names: Vec::new(), ttl };
            for_mint(mint, request(KeyType::Ed25519), &profile())
        };
        assert_eq!(until(mint("spiffe://example.org/x", None)), HOUR);
        assert_eq!(until(mint("spiffe://example.org/x", Some(HOUR * 6))), HOUR * 6);
        let refused = mint("spiffe://example.org/x", Some(HOUR * 7)).unwrap_err().to_string();
        assert!(refused.starts_with("a life of 7h was asked for, at most 6h is allowed"), "{refused}");
        let short = mint("spiffe://example.org/x", Some(Duration::from_secs(1)));
        assert_eq!(short.unwrap_err(), Denied::TooShort(Duration::from_secs(1)));
        assert!(matches!(mint("spiffe://example.org/chancery/server", None), Err(Denied::Reserved(_))));
    }
}
