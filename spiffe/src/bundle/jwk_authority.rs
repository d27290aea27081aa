//! A key that signs tokens, without a certificate: JWT-SVID.md section 6, WIT-SVID.md section 6.

use std::sync::Arc;

use super::{BundleError, MAX_AUTHORITIES};
use crate::crypto::jws::PublicKey;
use crate::jose::Jwk;

/// One key of a trust domain that signs JWT-SVIDs or WIT-SVIDs. It always has a name. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwkAuthority {
    jwk: Arc<Jwk>,
    kid: Arc<str>,
    tainted: bool,
}

impl JwkAuthority {
    /// Takes a key that has a `kid`.
    pub fn new(jwk: Jwk) -> Result<Self, BundleError> {
        let kid = jwk.kid().ok_or(BundleError::NoKid)?.into();
        Ok(Self { jwk: Arc::new(jwk), kid, tainted: false })
    }

    /// The same authority, marked (or not) as one whose tokens are to be replaced at once.
    #[must_use]
    pub fn with_taint(self, tainted: bool) -> Self {
        Self { tainted, ..self }
    }

    /// The name of the key.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The key and its name.
    pub fn jwk(&self) -> &Jwk {
        &self.jwk
    }

    /// The key.
    pub fn key(&self) -> &PublicKey {
        self.jwk.key()
    }

    /// Whether tokens that it signed are to be replaced at once.
    pub fn is_tainted(&self) -> bool {
        self.tainted
    }
}

/// The same without repeats (tainted if one of the repeats is). Two keys of one name are refused.
pub(super) fn unique(authorities: Vec<JwkAuthority>) -> Result<Vec<JwkAuthority>, BundleError> {
    let mut unique: Vec<JwkAuthority> = Vec::with_capacity(authorities.len().min(MAX_AUTHORITIES));
    for authority in authorities {
        if let Some(known) = unique.iter_mut().find(|known| known.kid == authority.kid) {
            if known.jwk.key() != authority.jwk.key() {
                return Err(BundleError::SameKid(authority.kid.as_ref().to_owned()));
            }
            known.tainted |= authority.tainted;
        } else if unique.len() == MAX_AUTHORITIES {
            return Err(BundleError::TooManyAuthorities(MAX_AUTHORITIES + 1));
        } else {
            unique.push(authority);
        }
    }
    Ok(unique)
}
