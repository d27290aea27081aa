//! The public half of an authority: what stands in the bundle, and what it is known by.
//!
//! - An authority for X.509-SVIDs is a chain of CA certificates; one for tokens is a bare public key, named by its
//!   thumbprint. There is nothing between the two, and neither is ever empty.

use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use spiffe::bundle::JwkAuthority;
use spiffe::crypto::sha256_hex;
use spiffe::jose::Jwk;

use super::Kind;

/// What an authority shows of itself, by what it signs. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Public {
    /// Of one that signs X.509-SVIDs.
    X509(Chain),
    /// Of one that signs JWT-SVIDs.
    Jwt(TokenKey),
    /// Of one that signs WIT-SVIDs.
    Wit(TokenKey),
}

impl Public {
    /// What the authority signs.
    pub fn kind(&self) -> Kind {
        match self {
            Self::X509(_) => Kind::X509,
            Self::Jwt(_) => Kind::Jwt,
            Self::Wit(_) => Kind::Wit,
        }
    }

    /// By which the authority is told from others outside: the SHA-256 of its root, lower-case hexadecimal, or the `kid`
    /// of its key.
    pub fn fingerprint(&self) -> String {
        match self {
            Self::X509(chain) => sha256_hex(chain.root()),
            Self::Jwt(key) | Self::Wit(key) => key.kid().to_owned(),
        }
    }

    /// Whether whoever knows this one knows `other` too: below one upstream root all are known. Keys for tokens are each
    /// known by themselves.
    pub fn is_known_with(&self, other: &Self) -> bool {
        matches!((self, other), (Self::X509(own), Self::X509(other)) if own.root() == other.root())
    }
}

/// The certificates of an authority for X.509-SVIDs: its own CA certificate first, the root last. Self-signed: itself
/// alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    own: CertificateDer<'static>,
    above: Arc<[CertificateDer<'static>]>,
}

impl Chain {
    /// A CA certificate that signed itself.
    pub fn self_signed(own: CertificateDer<'static>) -> Self {
        Self { own, above: Arc::new([]) }
    }

    /// `own` and those above it, up to the root.
    pub fn new(own: CertificateDer<'static>, above: impl IntoIterator<Item = CertificateDer<'static>>) -> Self {
        Self { own, above: above.into_iter().collect() }
    }

    /// The authority's own certificate.
    pub fn own(&self) -> &CertificateDer<'static> {
        &self.own
    }

    /// What stands in the bundle.
    pub fn root(&self) -> &CertificateDer<'static> {
        self.above.last().unwrap_or(&self.own)
    }

    /// All of them, its own first.
    pub fn iter(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        std::iter::once(&self.own).chain(self.above.iter())
    }

    /// What lies between an SVID and the root, in order.
    pub fn below_root(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        self.iter().take(self.above.len())
    }

    /// Whether another CA signed it.
    pub fn is_upstream(&self) -> bool {
        !self.above.is_empty()
    }
}

/// The public key of an authority for tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenKey {
    spki: Arc<[u8]>,
    jwk: JwkAuthority,
}

impl TokenKey {
    /// From a DER SubjectPublicKeyInfo; `None` when it is of no kind that signs tokens.
    pub fn new(spki: &[u8]) -> Option<Self> {
        let jwk = Jwk::from_spki(spki).ok().filter(|jwk| jwk.algorithm().is_some())?;
        Some(Self { spki: spki.into(), jwk: JwkAuthority::new(jwk).ok()? })
    }

    /// The DER SubjectPublicKeyInfo.
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// The thumbprint of the key (RFC 7638), by which tokens name it.
    pub fn kid(&self) -> &str {
        self.jwk.kid()
    }

    /// As it stands in the bundle.
    pub fn jwk(&self) -> &JwkAuthority {
        &self.jwk
    }
}

#[cfg(test)]
mod tests {
    use super::super::keys::{KeySpec, SigningKey};
    use super::*;

    fn certificate(byte: u8) -> CertificateDer<'static> {
        CertificateDer::from(vec![byte])
    }

    #[test]
    fn only_cas_below_one_root_are_known_together() {
        let key = TokenKey::new(&SigningKey::generate(KeySpec::P256).unwrap().public_key()).unwrap();
        let below = |own| Public::X509(Chain::new(certificate(own), [certificate(9)]));
        let alone = |own| Public::X509(Chain::self_signed(certificate(own)));
        assert!(below(1).is_known_with(&below(2)) && below(1).is_known_with(&alone(9)));
        assert!(!alone(1).is_known_with(&alone(2)));
        assert!(!Public::Jwt(key.clone()).is_known_with(&Public::Jwt(key.clone())));
        assert!(!Public::Jwt(key).is_known_with(&alone(1)));
    }

    #[test]
    fn a_chain_has_its_own_certificate_and_its_root() {
        let bytes = |certificate: &CertificateDer<'_>| certificate[0];
        let chain = Chain::new(certificate(1), [certificate(2), certificate(3)]);
        assert_eq!((bytes(chain.own()), bytes(chain.root())), (1, 3));
        assert_eq!(chain.iter().map(bytes).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(chain.below_root().map(bytes).collect::<Vec<_>>(), [1, 2]);
        let alone = Chain::self_signed(certificate(1));
        assert_eq!((bytes(alone.root()), alone.below_root().count(), alone.is_upstream()), (1, 0, false));
    }

    #[test]
    fn a_key_that_signs_no_tokens_is_no_key_of_an_authority() {
        for (spec, signs) in [(KeySpec::P256, true), (KeySpec::P384, true), (KeySpec::Ed25519, false)] {
            let key = SigningKey::generate(spec).unwrap();
            assert_eq!(TokenKey::new(&key.public_key()).is_some(), signs, "{spec:?}");
        }
        assert_eq!(TokenKey::new(b"nothing"), None);
    }
}
