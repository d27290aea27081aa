//! What JWT-SVIDs and WIT-SVIDs have in common: whose they are, until when they count, and whose signature they bear.
//!
//! - The subject is a SPIFFE ID, and only the bundle of its trust domain counts (SPIFFE_Workload_API.md section 6.3): a
//!   key of ours says nothing about the identities of others.
//! - Keys are asked that the bundle has for this kind of token, no others; with a `kid`, the key of that name alone.
//!   Without one at most [`MAX_TRIED`] are tried: a token costs a bounded number of signatures, whoever sent it.
//! - `exp` is required; at that second the token has ended. `nbf` counts where it is there, `iat` refuses nothing
//!   (WIT-SVID.md section 3.6). Clocks may differ by [`LEEWAY`].
//! - Moments are numbers of seconds from 0 to the end of the year 9999; fractions are dropped (RFC 7519 section 2).

use std::time::Duration;

use serde_json::{Map, Value};

use crate::audience::AudienceError;
use crate::bundle::{Bundle, JwkAuthority};
use crate::crypto::jws::SignatureError;
use crate::id::{IdError, SpiffeId, TrustDomain};
use crate::jose::{JwkError, JwsError, Parsed};
use crate::time::Timestamp;

/// By how much the clocks of issuer and validator may differ (RFC 7519 sections 4.1.4 and 4.1.5).
pub const LEEWAY: Duration = Duration::from_secs(5);

/// How many keys are tried for a token that names none: a trust domain that rotates has two or three.
pub const MAX_TRIED: usize = 16;

/// The last moment that a token may name: the end of the year 9999.
const LAST_SECOND: u64 = 253_402_300_799;
/// How much of a text of the token an error shows, in characters.
const SHOWN: usize = 64;

/// Why a token is no SVID, or is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is no token, or one that no key of the bundle signed.
    #[error(transparent)]
    Jws(#[from] JwsError),
    /// It is a token of another kind (JWT-SVID.md section 2.3, WIT-SVID.md section 2.2).
    #[error("token has typ {found:?}: {wanted}")]
    Kind {
        /// What its header says; empty where it says nothing.
        found: String,
        /// What it has to say.
        wanted: &'static str,
    },
    /// There is a header parameter that no JWT-SVID has (JWT-SVID.md section 2).
    #[error("token has the header parameter {0:?}: a JWT-SVID has no others than alg, kid and typ")]
    Parameter(String),
    /// A WIT-SVID does not say which key signed it (WIT-SVID.md section 2.1).
    #[error("token has no kid: a WIT-SVID has to name the key that signed it")]
    NoKid,
    /// A claim that is required is not there.
    #[error("token has no claim \"{0}\": every SVID has to have it")]
    Missing(&'static str),
    /// A claim is no string.
    #[error("claim \"{0}\" of the token is no string")]
    NotText(&'static str),
    /// A claim is no moment.
    #[error("claim \"{0}\" of the token is no moment: it has to be a number of seconds from 0 to 253402300799")]
    NotAMoment(&'static str),
    /// The subject is no SPIFFE ID.
    #[error("subject of the token is no SPIFFE ID: {0}")]
    Subject(#[from] IdError),
    /// The audience of a JWT-SVID is malformed.
    #[error("audience of the token: {0}")]
    Audience(#[from] AudienceError),
    /// A JWT-SVID is for somebody else (JWT-SVID.md section 3.2).
    #[error("token of {id} is not for the audience {wanted:?}: it has to be fetched for this audience")]
    OtherAudience {
        /// Whose SVID it is.
        id: SpiffeId,
        /// Who looks at it.
        wanted: String,
    },
    /// A WIT-SVID has an audience (WIT-SVID.md section 3.8).
    #[error("token has an audience (\"aud\"), which no WIT-SVID has: the proof of possession says whom it is for")]
    HasAudience,
    /// A WIT-SVID does not confirm one public key that can be used (WIT-SVID.md section 3.2).
    #[error("claim \"cnf\" of the token is no confirmation of a key: {0}")]
    Confirmation(#[from] ConfirmationError),
    /// It has ended.
    #[error("token of {id} expired at {expires_at}, {} ago: fetch a new one", humantime::format_duration(now.since(*expires_at)))]
    Expired {
        /// Whose SVID it is.
        id: SpiffeId,
        /// The first second at which it does not count.
        expires_at: Timestamp,
        /// The moment of verification.
        now: Timestamp,
    },
    /// It counts from later on.
    #[error("token of {id} is not valid before {not_before}; it is now {now}: are the clocks right?")]
    NotYetValid {
        /// Whose SVID it is.
        id: SpiffeId,
        /// The first valid second.
        not_before: Timestamp,
        /// The moment of verification.
        now: Timestamp,
    },
    /// The bundle is that of another trust domain.
    #[error("token of {id} is not of the trust domain {trust_domain}: verify it with the bundle of its own")]
    OtherTrustDomain {
        /// Whose SVID it is.
        id: SpiffeId,
        /// Whose bundle it is.
        trust_domain: TrustDomain,
    },
    /// The trust domain has no tokens of this kind (JWT-SVID.md section 6.2, WIT-SVID.md section 6.2).
    #[error("bundle of {trust_domain} has no keys for {kind}s: it does not support them, or the bundle is out of date")]
    NoKeys {
        /// Whose bundle it is.
        trust_domain: TrustDomain,
        /// The kind of token.
        kind: &'static str,
    },
    /// The bundle has no key of this name for this kind of token.
    #[error("bundle of {trust_domain} has no key {kid:?} for {kind}s: is the bundle out of date?")]
    UnknownKey {
        /// Whose bundle it is.
        trust_domain: TrustDomain,
        /// The kind of token.
        kind: &'static str,
        /// The name, shortened if it is long.
        kid: String,
    },
    /// The token names no key, and too many could have signed it.
    #[error(
        "token has no kid, and {fitting} keys of the bundle of {trust_domain} could have signed it: at most 16 are tried, \
         have its issuer name the key"
    )]
    TooManyKeys {
        /// Whose bundle it is.
        trust_domain: TrustDomain,
        /// How many keys sign by the token's algorithm.
        fitting: usize,
    },
}

/// Why a `cnf` confirms no key (RFC 7800 section 3, WIT-SVID.md section 3.2).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfirmationError {
    /// There is no `jwk` in it.
    #[error("it has to be an object with a \"jwk\" in it")]
    NoJwk,
    /// There is another key beside it.
    #[error("it has another key (\"{0}\") beside \"jwk\": one is allowed")]
    Another(&'static str),
    /// The key does not say what it signs with.
    #[error("its JWK has no \"alg\": it has to say what the key signs with")]
    NoAlgorithm,
    /// The key is of a kind that no permitted algorithm signs with.
    #[error("its JWK signs with none of the permitted algorithms: take a P-256, P-384 or RSA key")]
    NoSigningKey,
    /// The key cannot be taken.
    #[error(transparent)]
    Jwk(#[from] JwkError),
}

/// A token whose common claims have been read. Nobody has looked at its signature yet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) parsed: Parsed,
    pub(crate) id: SpiffeId,
    pub(crate) issued_at: Option<Timestamp>,
    pub(crate) not_before: Option<Timestamp>,
    pub(crate) expires_at: Timestamp,
}

impl Token {
    pub(crate) fn read(token: &str) -> Result<Self, TokenError> {
        let parsed = Parsed::read(token)?;
        let claims = &parsed.claims;
        let id = SpiffeId::parse(text(claims, "sub")?.ok_or(TokenError::Missing("sub"))?)?;
        let expires_at = moment(claims, "exp")?.ok_or(TokenError::Missing("exp"))?;
        let (issued_at, not_before) = (moment(claims, "iat")?, moment(claims, "nbf")?);
        text(claims, "iss")?;
        text(claims, "jti")?;
        Ok(Self { parsed, id, issued_at, not_before, expires_at })
    }

    /// Whether it is of `bundle`'s trust domain and counts at `now`.
    pub(crate) fn is_current(&self, bundle: &Bundle, now: Timestamp) -> Result<(), TokenError> {
        let id = || self.id.clone();
        if !self.id.is_member_of(bundle.trust_domain()) {
            return Err(TokenError::OtherTrustDomain { id: id(), trust_domain: bundle.trust_domain().clone() });
        }
        if self.expires_at.plus(LEEWAY) <= now {
            return Err(TokenError::Expired { id: id(), expires_at: self.expires_at, now });
        }
        match self.not_before {
            Some(not_before) if now.plus(LEEWAY) < not_before => {
                Err(TokenError::NotYetValid { id: id(), not_before, now })
            }
            _ => Ok(()),
        }
    }

    /// Whether one of `authorities`, those of `bundle` for this `kind` of token, signed it.
    pub(crate) fn is_signed_by(
        &self,
        authorities: &[JwkAuthority],
        bundle: &Bundle,
        kind: &'static str,
    ) -> Result<(), TokenError> {
        let trust_domain = || bundle.trust_domain().clone();
        if authorities.is_empty() {
            return Err(TokenError::NoKeys { trust_domain: trust_domain(), kind });
        }
        if let Some(kid) = &self.parsed.header.kid {
            let named = authorities.iter().find(|authority| authority.kid() == kid);
            let unknown = || TokenError::UnknownKey { trust_domain: trust_domain(), kind, kid: shown(kid) };
            return Ok(self.is_signed_with(named.ok_or_else(unknown)?)?);
        }
        let fits = |authority: &&JwkAuthority| authority.key().fits(self.parsed.header.algorithm);
        let fitting = authorities.iter().filter(fits).count();
        if fitting > MAX_TRIED {
            return Err(TokenError::TooManyKeys { trust_domain: trust_domain(), fitting });
        }
        let mut refusal = SignatureError::Wrong.into();
        for authority in authorities.iter().filter(fits) {
            match self.is_signed_with(authority) {
                Ok(()) => return Ok(()),
                Err(error) => refusal = error,
            }
        }
        Err(refusal.into())
    }

    /// A key that says what it signs with has signed by nothing else (RFC 7517 section 4.4).
    fn is_signed_with(&self, authority: &JwkAuthority) -> Result<(), JwsError> {
        let algorithm = self.parsed.header.algorithm;
        match authority.jwk().algorithm() {
            Some(only) if only != algorithm => Err(SignatureError::OtherAlgorithm(algorithm).into()),
            _ => self.parsed.verify(authority.key()),
        }
    }
}

/// A claim that is a string, if it is there.
pub(crate) fn text<'a>(claims: &'a Map<String, Value>, name: &'static str) -> Result<Option<&'a str>, TokenError> {
    claims.get(name).map(|value| value.as_str().ok_or(TokenError::NotText(name))).transpose()
}

/// A claim that is a NumericDate, if it is there.
pub(crate) fn moment(claims: &Map<String, Value>, name: &'static str) -> Result<Option<Timestamp>, TokenError> {
    let Some(value) = claims.get(name) else {
        return Ok(None);
    };
    let within = |seconds: &f64| (0.0..LAST_SECOND as f64).contains(seconds);
    let whole = value.as_u64().or_else(|| value.as_f64().filter(within).map(|seconds| seconds as u64));
    let whole = whole.filter(|seconds| *seconds <= LAST_SECOND).ok_or(TokenError::NotAMoment(name))?;
    Ok(Some(Timestamp::from_unix(whole)))
}

/// As much of a text from outside as an error should repeat.
pub(crate) fn shown(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_moment_is_a_number_of_seconds_of_our_era() {
        let read = |value: Value| moment(json!({ "exp": value }).as_object().unwrap(), "exp");
        for (value, seconds) in
            [(json!(0), 0), (json!(12.9), 12), (json!(1.5e3), 1500), (json!(LAST_SECOND), LAST_SECOND)]
        {
            assert_eq!(read(value.clone()), Ok(Some(Timestamp::from_unix(seconds))), "{value}");
        }
        for refused in [json!("12"), json!(-1), json!(-0.5), json!(1e308), json!(u64::MAX), json!(null), json!([1])] {
            assert_eq!(read(refused.clone()), Err(TokenError::NotAMoment("exp")), "{refused}");
        }
        assert_eq!(moment(&Map::new(), "exp"), Ok(None));
    }
}
