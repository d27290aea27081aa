//! Keys that sign tokens for the tests of this crate, the bad ones too.

use std::sync::LazyLock;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use crate::bundle::{Bundle, JwkAuthority};
use crate::crypto;
use crate::crypto::jws::{Curve, PublicKey, Signer};
use crate::entry::KeyType;
use crate::id::TrustDomain;
use crate::jose::Jwk;

pub(crate) struct Key {
    jwk: Jwk,
    signer: Signer,
}

impl Key {
    pub(crate) fn of_kind(kind: KeyType) -> Self {
        let pair = crypto::generate_key(kind).unwrap();
        let jwk = Jwk::from_spki(&rcgen::PublicKeyData::subject_public_key_info(&pair)).unwrap();
        Self { jwk, signer: Signer::from_pkcs8(&pair.serialize_der()).unwrap() }
    }

    /// A P-256 key.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: LazyLock<Key> = LazyLock::new(|| Key::of_kind(KeyType::P256));
        &SHARED
    }

    /// A public key that ring cannot use, with a signer that is not its own.
    pub(crate) fn p521() -> Self {
        let key = PublicKey::Ec { curve: Curve::P521, x: vec![1; 66], y: vec![1; 66] };
        Self { jwk: Jwk::new(key).with_kid("p521".into()), ..Self::of_kind(KeyType::P256) }
    }

    /// The same key under another name.
    pub(crate) fn named(self, kid: &str) -> Self {
        Self { jwk: self.jwk.with_kid(kid.to_owned()), ..self }
    }

    pub(crate) fn kid(&self) -> &str {
        self.jwk.kid().unwrap()
    }

    pub(crate) fn jwk(&self) -> &Jwk {
        &self.jwk
    }

    pub(crate) fn signer(&self) -> &Signer {
        &self.signer
    }

    pub(crate) fn authority(&self) -> JwkAuthority {
        JwkAuthority::new(self.jwk.clone()).unwrap()
    }

    /// A token with any header and claims, signed all the same.
    pub(crate) fn sign(&self, header: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(header), part(claims));
        let signature = self.signer.sign(signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// A bundle with these keys for JWT-SVIDs and for WIT-SVIDs.
pub(crate) fn bundle(trust_domain: &str, jwt: &[&Key], wit: &[&Key]) -> Bundle {
    let authorities = |keys: &[&Key]| keys.iter().map(|key| key.authority()).collect();
    let bundle = Bundle::empty(TrustDomain::parse(trust_domain).unwrap());
    bundle.with_jwk_authorities(authorities(jwt), authorities(wit)).unwrap()
}

pub(crate) fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}
