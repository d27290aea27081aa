//! For tests: keys that sign tokens, as a server has them.

use std::time::Duration;

use spiffe::bundle::{Bundle, JwkAuthority};
use spiffe::crypto;
use spiffe::entry::KeyType;
use spiffe::id::SpiffeId;
use spiffe::jose::{Jwk, Signer};
use spiffe::jwt_svid::{Audience, JwtClaims};
use spiffe::time::Timestamp;
use spiffe::wit_svid::{ConfirmationKey, WitClaims};

/// A key that signs JWT-SVIDs or WIT-SVIDs.
pub(crate) struct TokenKey {
    signer: Signer,
    jwk: Jwk,
}

impl TokenKey {
    pub(crate) fn new() -> Self {
        let pair = crypto::generate_key(KeyType::P256).unwrap();
        let jwk = Jwk::from_spki(&rcgen::PublicKeyData::subject_public_key_info(&pair)).unwrap();
        Self { signer: Signer::from_pkcs8(&pair.serialize_der()).unwrap(), jwk }
    }

    pub(crate) fn authority(&self) -> JwkAuthority {
        JwkAuthority::new(self.jwk.clone()).unwrap()
    }

    fn kid(&self) -> &str {
        self.jwk.kid().unwrap()
    }

    pub(crate) fn jwt_svid(
        &self,
        id: &SpiffeId,
        audience: &Audience,
        (now, ttl): (Timestamp, Duration),
        jti: Option<String>,
    ) -> String {
        let (id, audience) = (id.clone(), audience.clone());
        let claims = JwtClaims { id, audience, issued_at: now, expires_at: now.plus(ttl), issuer: None, jti };
        claims.sign(self.kid(), &self.signer).unwrap()
    }

    pub(crate) fn wit_svid(&self, id: &SpiffeId, key: ConfirmationKey, (now, ttl): (Timestamp, Duration)) -> String {
        let random: [u8; 8] = crypto::random().unwrap();
        let jti = crypto::hex(&random);
        let claims = WitClaims { id: id.clone(), key, issued_at: now, expires_at: now.plus(ttl), jti: Some(jti) };
        claims.sign(self.kid(), &self.signer).unwrap()
    }
}

pub(crate) fn audience(values: &[&str]) -> Audience {
    Audience::parse(&values.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap()
}

/// `bundle` with keys for both kinds of token.
pub(crate) fn with_keys(bundle: Bundle, jwt: &[&TokenKey], wit: &[&TokenKey]) -> Bundle {
    let authorities = |keys: &[&TokenKey]| keys.iter().map(|key| key.authority()).collect();
    bundle.with_jwk_authorities(authorities(jwt), authorities(wit)).unwrap()
}
