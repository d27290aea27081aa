//! The issuers of tokens: one authority and its key, ready to sign JWT-SVIDs or WIT-SVIDs. The hot path, as `issuer` is
//! for X.509: no lock, no store, no clock.
//!
//! - One plan, one signature: what will be signed is taken by value, to the last claim.
//! - What was signed is taken apart and compared with its plan before anybody gets it.
//! - No token outlives its key, and each kind of key signs its own kind of token.

use std::fmt;
use std::sync::Arc;

use spiffe::id::SpiffeId;
use spiffe::jose::{SignatureError, Signer};
use spiffe::jwt_svid::{JwtClaims, JwtSvid};
use spiffe::time::{Lifetime, Timestamp};
use spiffe::wit_svid::{WitClaims, WitSvid};

use super::keys::SigningKey;
use super::{Authority, Public, TokenKey};

/// Why a token was not issued.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenIssueError {
    /// The authority signs something else.
    #[error("authority {0} does not sign tokens of this kind")]
    OtherKind(Arc<str>),
    /// The public key is another.
    #[error("the key of authority {0} is not that of its record: restore both from the same backup")]
    WrongKey(Arc<str>),
    /// The plan goes beyond the life of the key.
    #[error("token would be valid outside the life of its key, which ends {0}")]
    OutsideKey(Timestamp),
    /// The key did not sign.
    #[error("token could not be signed: {0}")]
    Signing(#[from] SignatureError),
    /// What was signed is not what was planned. The token is dropped.
    #[error("signed token differs from its plan in its {0}: it was dropped; please report this as a bug")]
    Differs(&'static str),
}

/// A signed token that was found to be what was planned.
#[derive(Clone, PartialEq, Eq)]
pub struct SignedToken {
    /// Whose it is.
    pub id: SpiffeId,
    /// When it was issued.
    pub issued_at: Timestamp,
    /// The first second at which it does not count any more.
    pub expires_at: Timestamp,
    /// Its own name, where it has one.
    pub jti: Option<String>,
    /// The token itself: whoever has a JWT-SVID can use it.
    pub token: String,
}

impl fmt::Debug for SignedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignedToken").field("id", &self.id).field("jti", &self.jti).finish_non_exhaustive()
    }
}

/// Signs JWT-SVIDs.
#[derive(Debug)]
pub struct JwtIssuer(Key);

impl JwtIssuer {
    /// Joins `authority` and its `key`, when they belong together.
    pub fn new(authority: Authority, key: &SigningKey) -> Result<Self, TokenIssueError> {
        match &authority.public {
            Public::Jwt(public) => Key::new(&authority, public, key).map(Self),
            _ => Err(TokenIssueError::OtherKind(authority.id)),
        }
    }

    /// Whose key it is.
    pub fn authority(&self) -> &Authority {
        &self.0.authority
    }

    /// The name of the key.
    pub fn kid(&self) -> &Arc<str> {
        &self.0.kid
    }

    /// Signs `plan`, takes the token apart and compares the two.
    pub fn sign(&self, plan: JwtClaims) -> Result<SignedToken, TokenIssueError> {
        self.0.outlives(plan.issued_at, plan.expires_at)?;
        let token = plan.sign(&self.0.kid, &self.0.signer)?;
        self.compare(&token, &plan)?;
        let JwtClaims { id, issued_at, expires_at, jti, .. } = plan;
        Ok(SignedToken { id, issued_at, expires_at, jti, token })
    }

    /// Every claim of `token` against `plan`. Not the signature: the verification would cost thrice what signing does,
    /// and whoever gets the token does it.
    fn compare(&self, token: &str, plan: &JwtClaims) -> Result<(), TokenIssueError> {
        let found = JwtSvid::parse(token).map_err(|_| TokenIssueError::Differs("encoding"))?;
        let text = |name: &str| found.claims().get(name).map(|value| value.as_str().unwrap_or_default());
        same(found.kid() == Some(&*self.0.kid), "kid")?;
        same(*found.id() == plan.id, "sub")?;
        same(found.audience() == plan.audience.values(), "aud")?;
        same(found.issued_at() == Some(plan.issued_at), "iat")?;
        same(found.expires_at() == plan.expires_at, "exp")?;
        same(text("iss") == plan.issuer.as_deref(), "iss")?;
        same(text("jti") == plan.jti.as_deref(), "jti")?;
        let count = 4 + usize::from(plan.issuer.is_some()) + usize::from(plan.jti.is_some());
        same(found.claims().len() == count, "claims")
    }
}

/// Signs WIT-SVIDs.
#[derive(Debug)]
pub struct WitIssuer(Key);

impl WitIssuer {
    /// Joins `authority` and its `key`, when they belong together.
    pub fn new(authority: Authority, key: &SigningKey) -> Result<Self, TokenIssueError> {
        match &authority.public {
            Public::Wit(public) => Key::new(&authority, public, key).map(Self),
            _ => Err(TokenIssueError::OtherKind(authority.id)),
        }
    }

    /// Whose key it is.
    pub fn authority(&self) -> &Authority {
        &self.0.authority
    }

    /// The name of the key.
    pub fn kid(&self) -> &Arc<str> {
        &self.0.kid
    }

    /// Signs `plan`, takes the token apart and compares the two.
    pub fn sign(&self, plan: WitClaims) -> Result<SignedToken, TokenIssueError> {
        self.0.outlives(plan.issued_at, plan.expires_at)?;
        let token = plan.sign(&self.0.kid, &self.0.signer)?;
        self.compare(&token, &plan)?;
        let WitClaims { id, issued_at, expires_at, jti, .. } = plan;
        Ok(SignedToken { id, issued_at, expires_at, jti, token })
    }

    fn compare(&self, token: &str, plan: &WitClaims) -> Result<(), TokenIssueError> {
        let found = WitSvid::parse(token).map_err(|_| TokenIssueError::Differs("encoding"))?;
        let jti = found.claims().get("jti").map(|value| value.as_str().unwrap_or_default());
        same(found.kid() == &*self.0.kid, "kid")?;
        same(*found.id() == plan.id, "sub")?;
        same(*found.key() == plan.key, "cnf")?;
        same(found.issued_at() == Some(plan.issued_at), "iat")?;
        same(found.expires_at() == plan.expires_at, "exp")?;
        same(jti == plan.jti.as_deref(), "jti")?;
        same(found.claims().len() == 4 + usize::from(plan.jti.is_some()), "claims")
    }
}

fn same(same: bool, field: &'static str) -> Result<(), TokenIssueError> {
    if same { Ok(()) } else { Err(TokenIssueError::Differs(field)) }
}

/// One authority for tokens and its key.
struct Key {
    authority: Authority,
    kid: Arc<str>,
    signer: Signer,
}

impl Key {
    fn new(authority: &Authority, public: &TokenKey, key: &SigningKey) -> Result<Self, TokenIssueError> {
        if public.spki() != key.public_key() {
            return Err(TokenIssueError::WrongKey(authority.id.clone()));
        }
        Ok(Self { kid: public.kid().into(), signer: key.token_signer()?, authority: authority.clone() })
    }

    fn outlives(&self, issued_at: Timestamp, expires_at: Timestamp) -> Result<(), TokenIssueError> {
        let Lifetime { not_before, not_after } = self.authority.lifetime;
        if issued_at < not_before || expires_at > not_after {
            return Err(TokenIssueError::OutsideKey(not_after));
        }
        Ok(())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("authority", &self.authority.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use spiffe::bundle::Bundle;
    use spiffe::id::TrustDomain;
    use spiffe::jose::Jwk;
    use spiffe::jwt_svid::Audience;
    use spiffe::wit_svid::ConfirmationKey;

    use super::super::keys::KeySpec;
    use super::*;

    const NOW: Timestamp = Timestamp::from_unix(1_800_000_000);
    const HOUR: Duration = Duration::from_secs(3600);

    fn authority(spec: KeySpec, make: fn(TokenKey) -> Public) -> (Authority, SigningKey, TokenKey) {
        let key = SigningKey::generate(spec).unwrap();
        let public = TokenKey::new(&key.public_key()).unwrap();
        let lifetime = Lifetime { not_before: NOW.minus(HOUR), not_after: NOW.plus(HOUR) };
        let authority = Authority::prepared(key.id().clone(), "ca-1".into(), make(public.clone()), lifetime, NOW);
        (authority, key, public)
    }

    fn bundle(jwt: Vec<TokenKey>, wit: Vec<TokenKey>) -> Bundle {
        let keys = |of: Vec<TokenKey>| of.iter().map(|key| key.jwk().clone()).collect();
        let empty = Bundle::empty(TrustDomain::parse("example.org").unwrap());
        empty.with_jwk_authorities(keys(jwt), keys(wit)).unwrap()
    }

    fn jwt() -> JwtClaims {
        JwtClaims {
            id: SpiffeId::parse("spiffe://example.org/web").unwrap(),
            audience: Audience::parse(&["reports".into(), "billing".into()]).unwrap(),
            issued_at: NOW,
            expires_at: NOW.plus(HOUR / 12),
            issuer: Some("https://oidc.example.org".into()),
            jti: Some("a1".into()),
        }
    }

    fn wit() -> WitClaims {
        let key = SigningKey::generate(KeySpec::P384).unwrap();
        WitClaims {
            id: jwt().id,
            key: ConfirmationKey::new(&Jwk::from_spki(&key.public_key()).unwrap()).unwrap(),
            issued_at: NOW,
            expires_at: NOW.plus(HOUR),
            jti: None,
        }
    }

    #[test]
    fn tokens_of_each_algorithm_are_good_svids() {
        for (spec, alg) in [(KeySpec::P256, "ES256"), (KeySpec::P384, "ES384"), (KeySpec::Rsa2048, "RS256")] {
            let (authority, key, public) = authority(spec, Public::Jwt);
            let issuer = JwtIssuer::new(authority, &key).unwrap();
            let signed = issuer.sign(jwt()).unwrap();
            assert_eq!((signed.jti.as_deref(), signed.expires_at), (Some("a1"), NOW.plus(HOUR / 12)));
            let parsed = spiffe::jose::Parsed::read(&signed.token).unwrap();
            assert_eq!(parsed.header.algorithm.name(), alg);
            let svid = JwtSvid::parse(&signed.token).unwrap();
            svid.verify(&bundle(vec![public], vec![]), "billing", NOW).unwrap();
        }
        let (authority, key, public) = authority(KeySpec::P256, Public::Wit);
        let signed = WitIssuer::new(authority, &key).unwrap().sign(wit()).unwrap();
        let svid = WitSvid::parse(&signed.token).unwrap();
        svid.verify(&bundle(vec![], vec![public.clone()]), NOW).unwrap();
        assert!(svid.verify(&bundle(vec![public], vec![]), NOW).is_err(), "a key for JWT-SVIDs says nothing of it");
    }

    #[test]
    fn a_token_that_is_not_its_plan_is_dropped() {
        let (authority, key, _) = authority(KeySpec::P256, Public::Jwt);
        let issuer = JwtIssuer::new(authority, &key).unwrap();
        let compare = |change: fn(&mut JwtClaims)| {
            let mut changed = jwt();
            change(&mut changed);
            issuer.compare(&changed.sign(&issuer.0.kid, &issuer.0.signer).unwrap(), &jwt())
        };
        let differs = |field| Err(TokenIssueError::Differs(field));
        assert_eq!(compare(|_| {}), Ok(()));
        assert_eq!(compare(|c| c.id = SpiffeId::parse("spiffe://example.org/db").unwrap()), differs("sub"));
        assert_eq!(compare(|c| c.audience = Audience::parse(&["reports".into()]).unwrap()), differs("aud"));
        assert_eq!(compare(|c| c.issued_at = NOW.minus(HOUR)), differs("iat"));
        assert_eq!(compare(|c| c.expires_at = NOW.plus(HOUR)), differs("exp"));
        assert_eq!(compare(|c| c.issuer = None), differs("iss"));
        assert_eq!(compare(|c| c.jti = None), differs("jti"));
        let other_kid = jwt().sign("other", &issuer.0.signer).unwrap();
        assert_eq!(issuer.compare(&other_kid, &jwt()), differs("kid"));
        let mut claims = serde_json::to_value(JwtSvid::parse(&other_kid).unwrap().claims()).unwrap();
        claims["admin"] = true.into();
        let more =
            spiffe::jose::write("JWT", Some(&issuer.0.kid), claims.as_object().unwrap(), &issuer.0.signer).unwrap();
        assert_eq!(issuer.compare(&more, &jwt()), differs("claims"));
    }

    #[test]
    fn a_wit_that_is_not_its_plan_is_dropped() {
        let (authority, key, _) = authority(KeySpec::P256, Public::Wit);
        let issuer = WitIssuer::new(authority, &key).unwrap();
        let plan = wit();
        let compare =
            |changed: &WitClaims| issuer.compare(&changed.sign(&issuer.0.kid, &issuer.0.signer).unwrap(), &plan);
        let differs = |field| Err(TokenIssueError::Differs(field));
        assert_eq!(compare(&plan), Ok(()));
        assert_eq!(compare(&WitClaims { key: wit().key, ..plan.clone() }), differs("cnf"));
        assert_eq!(compare(&WitClaims { jti: Some("a".into()), ..plan.clone() }), differs("jti"));
        assert_eq!(compare(&WitClaims { expires_at: NOW, ..plan.clone() }), differs("exp"));
    }

    #[test]
    fn no_token_outlives_its_key() {
        let (authority, key, _) = authority(KeySpec::P256, Public::Jwt);
        let issuer = JwtIssuer::new(authority, &key).unwrap();
        let end = NOW.plus(HOUR);
        let late = JwtClaims { expires_at: end.plus(Duration::from_secs(1)), ..jwt() };
        assert_eq!(issuer.sign(late), Err(TokenIssueError::OutsideKey(end)));
        assert!(issuer.sign(JwtClaims { expires_at: end, ..jwt() }).is_ok());
    }

    #[test]
    fn each_kind_of_authority_signs_its_own_kind_with_its_own_key() {
        let (jwt, key, _) = authority(KeySpec::P256, Public::Jwt);
        let id = jwt.id.clone();
        assert_eq!(WitIssuer::new(jwt.clone(), &key).unwrap_err(), TokenIssueError::OtherKind(id.clone()));
        let other = SigningKey::generate(KeySpec::P256).unwrap();
        assert_eq!(JwtIssuer::new(jwt, &other).unwrap_err(), TokenIssueError::WrongKey(id));
    }
}
