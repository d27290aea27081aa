//! Which tokens may be issued: (entry, audience or key, profile, the key's life, now, chance) -> what will be signed, or
//! [`Denied`].
//!
//! - The same identities as for X.509, and the same rule of the shortest life.
//! - A JWT-SVID has a `jti` where its entry asks for one, a WIT-SVID always: it is its name in the record.
//! - A WIT-SVID has no `iss`: it is no token of OpenID Connect, and nobody shall take it for one.

use std::time::Duration;

use spiffe::crypto::hex;
use spiffe::csr::ProvenKey;
use spiffe::entry::RegistrationEntry;
use spiffe::id::{SpiffeId, TrustDomain};
use spiffe::jose::Jwk;
use spiffe::jwt_svid::{Audience, JwtClaims};
use spiffe::time::{Lifetime, Timestamp};
use spiffe::wit_svid::{ConfirmationKey, WitClaims};

use super::{Denied, check_ttl, end, usable, workload};

/// What the server's config says about tokens of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenProfile {
    /// Ours.
    pub trust_domain: TrustDomain,
    /// The life of a token when its entry says nothing.
    pub default_ttl: Duration,
    /// The longest life of a token, which its key can honour: the config has been checked for that.
    pub max_ttl: Duration,
    /// The `iss` of JWT-SVIDs.
    pub issuer: Option<String>,
    /// The keys of the config that `max_ttl` depends on.
    pub raise: &'static str,
}

impl TokenProfile {
    /// Refuses a life that no token can have: for entries when they are created, and for minted tokens.
    pub fn check_ttl(&self, ttl: Duration) -> Result<(), Denied> {
        check_ttl(ttl, self.max_ttl, self.raise)
    }
}

/// What every plan of a token needs beside whom it is for.
#[derive(Clone, Copy, Debug)]
pub struct TokenRequest {
    /// The life of the key that will sign.
    pub window: Lifetime,
    /// The present moment.
    pub now: Timestamp,
    /// Fresh random bytes, for a `jti`.
    pub chance: [u8; 16],
}

impl TokenRequest {
    fn jti(&self) -> String {
        hex(&self.chance)
    }
}

/// Plans a JWT-SVID of `entry` for a workload. A TTL beyond the config's is cut, as that of an X.509-SVID is.
pub fn jwt_for_entry(
    entry: &RegistrationEntry,
    audience: Audience,
    request: &TokenRequest,
    profile: &TokenProfile,
) -> Result<JwtClaims, Denied> {
    usable(entry, &profile.trust_domain, request.now)?;
    let ttl = entry.jwt_ttl.unwrap_or(profile.default_ttl).min(profile.max_ttl);
    let until = [Some(request.window.not_after), entry.expires_at];
    Ok(JwtClaims {
        id: entry.spiffe_id.clone(),
        audience,
        issued_at: request.now,
        expires_at: end(request.now, ttl, until)?,
        issuer: profile.issuer.clone(),
        jti: entry.jti.then(|| request.jti()),
    })
}

/// What an administrator asks for, without an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MintJwt {
    /// Whose JWT-SVID.
    pub id: SpiffeId,
    /// Whom it is for.
    pub audience: Audience,
    /// How long; `None`: as the config says.
    pub ttl: Option<Duration>,
}

/// Plans a JWT-SVID that an administrator asks for. A life that its key cannot honour is refused.
pub fn jwt_for_mint(mint: MintJwt, request: &TokenRequest, profile: &TokenProfile) -> Result<JwtClaims, Denied> {
    workload(&mint.id, &profile.trust_domain)?;
    let ttl = mint.ttl.unwrap_or(profile.default_ttl);
    profile.check_ttl(ttl)?;
    Ok(JwtClaims {
        id: mint.id,
        audience: mint.audience,
        issued_at: request.now,
        expires_at: end(request.now, ttl, [Some(request.window.not_after), None])?,
        issuer: profile.issuer.clone(),
        jti: Some(request.jti()),
    })
}

/// Plans a WIT-SVID of `entry` for a workload that holds `key`. The entry's kind of key is that of its X.509-SVIDs.
pub fn wit_for_entry(
    entry: &RegistrationEntry,
    key: &ProvenKey,
    request: &TokenRequest,
    profile: &TokenProfile,
) -> Result<WitClaims, Denied> {
    usable(entry, &profile.trust_domain, request.now)?;
    let jwk = Jwk::from_spki(key.spki_der()).ok().and_then(|jwk| ConfirmationKey::new(&jwk).ok());
    let ttl = entry.wit_ttl.unwrap_or(profile.default_ttl).min(profile.max_ttl);
    let until = [Some(request.window.not_after), entry.expires_at];
    Ok(WitClaims {
        id: entry.spiffe_id.clone(),
        key: jwk.ok_or(Denied::ProofKey(key.key_type()))?,
        issued_at: request.now,
        expires_at: end(request.now, ttl, until)?,
        jti: Some(request.jti()),
    })
}

#[cfg(test)]
mod tests {
    use spiffe::entry::{EntryId, KeyType};
    use spiffe::selector::Selectors;

    use super::*;

    const NOW: Timestamp = Timestamp::from_unix(1_800_000_000);
    const MINUTE: Duration = Duration::from_secs(60);

    fn domain() -> TrustDomain {
        TrustDomain::parse("example.org").unwrap()
    }

    fn profile() -> TokenProfile {
        TokenProfile {
            trust_domain: domain(),
            default_ttl: MINUTE * 5,
            max_ttl: MINUTE * 60,
            issuer: Some("https://oidc.example.org".into()),
            raise: "jwt.max_ttl and jwt.key_ttl",
        }
    }

    fn request(life: Duration) -> TokenRequest {
        let window = Lifetime { not_before: NOW.minus(MINUTE), not_after: NOW.plus(life) };
        TokenRequest { window, now: NOW, chance: [0xab; 16] }
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
            dns_names: vec![],
            hint: String::new(),
            admin: false,
            federates_with: Vec::new(),
            expires_at: None,
            key_type: None,
            created_at: NOW,
            rule: None,
        }
    }

    fn audience() -> Audience {
        Audience::parse(&["reports".into()]).unwrap()
    }

    fn changed(change: impl FnOnce(&mut RegistrationEntry)) -> Result<JwtClaims, Denied> {
        let mut entry = entry();
        change(&mut entry);
        jwt_for_entry(&entry, audience(), &request(MINUTE * 1000), &profile())
    }

    fn key(kind: KeyType) -> ProvenKey {
        let key = spiffe::crypto::generate_key(kind).unwrap();
        ProvenKey::from_csr(&spiffe::csr::create(&key).unwrap()).unwrap()
    }

    #[test]
    fn the_shortest_of_all_lives_counts() {
        let until = |claims: Result<JwtClaims, Denied>| claims.unwrap().expires_at.since(NOW);
        let claims = changed(|_| {}).unwrap();
        assert_eq!((claims.issued_at, claims.expires_at), (NOW, NOW.plus(MINUTE * 5)));
        assert_eq!(until(changed(|e| e.jwt_ttl = Some(MINUTE * 20))), MINUTE * 20);
        assert_eq!(until(changed(|e| e.jwt_ttl = Some(MINUTE * 61))), MINUTE * 60);
        assert_eq!(until(changed(|e| e.expires_at = Some(NOW.plus(MINUTE)))), MINUTE);
        assert_eq!(until(jwt_for_entry(&entry(), audience(), &request(MINUTE * 2), &profile())), MINUTE * 2);
    }

    #[test]
    fn a_jti_where_the_entry_asks_and_the_configs_issuer() {
        let claims = changed(|_| {}).unwrap();
        assert_eq!((claims.jti, claims.issuer.as_deref()), (None, Some("https://oidc.example.org")));
        let jti = changed(|e| e.jti = true).unwrap().jti;
        assert_eq!(jti.as_deref(), Some("abababababababababababababababab"));
    }

    #[test]
    fn each_refusal_says_why() {
        let why = |denied: Result<JwtClaims, Denied>| denied.unwrap_err().to_string();
        assert!(why(changed(|e| e.expires_at = Some(NOW))).contains("entry web-1 expired at"));
        assert!(why(changed(|e| e.parent = domain().server_id())).contains("is a node alias"));
        assert!(why(changed(|e| e.spiffe_id = domain().server_id())).contains("is reserved"));
        assert!(why(changed(|e| e.spiffe_id = domain().id())).contains("give the ID a path"));
        let foreign = SpiffeId::parse("spiffe://other.org/web").unwrap();
        assert!(why(changed(|e| e.spiffe_id = foreign)).contains("not in the trust domain example.org"));
        let ended = jwt_for_entry(&entry(), audience(), &request(Duration::from_secs(1)), &profile());
        assert!(why(ended).contains("within 2s"));
    }

    #[test]
    fn a_minted_token_with_a_life_that_its_key_cannot_honour_is_refused() {
        let mint = |id: &str, ttl| {
            let mint = MintJwt { id: SpiffeId::parse(id).unwrap(), audience: audience(), ttl };
            jwt_for_mint(mint, &request(MINUTE * 1000), &profile())
        };
        let claims = mint("spiffe://example.org/x", None).unwrap();
        assert_eq!((claims.expires_at, claims.jti.is_some()), (NOW.plus(MINUTE * 5), true));
        assert_eq!(
            mint("spiffe://example.org/x", Some(MINUTE * 61)).unwrap_err().to_string(),
            "a life of 1h 1m was asked for, at most 1h is allowed: ask for less, or raise jwt.max_ttl and jwt.key_ttl in \
             the server's config"
        );
        assert!(matches!(mint("spiffe://example.org/chancery/server", None), Err(Denied::Reserved(_))));
        assert!(matches!(mint("spiffe://other.org/x", None), Err(Denied::Foreign { .. })));
    }

    #[test]
    fn a_wit_is_bound_to_a_key_that_signs_proofs() {
        let wit = |kind| wit_for_entry(&entry(), &key(kind), &request(MINUTE * 1000), &profile());
        for kind in [KeyType::P256, KeyType::P384] {
            let claims = wit(kind).unwrap();
            assert!(claims.jti.is_some());
            assert_eq!(claims.expires_at, NOW.plus(MINUTE * 5));
        }
        let refused = wit(KeyType::Ed25519).unwrap_err().to_string();
        assert!(refused.contains("P-256 or P-384 key, the CSR has a ed25519 one"), "{refused}");
    }
}
