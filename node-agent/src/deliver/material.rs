//! What there is to deliver: one identity, the bundles that come with it, and its tokens.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use spiffe::audience::Audience;
use spiffe::id::{SpiffeId, TrustDomain};
use spiffe::jwt_svid::JwtSvid;
use spiffe::x509_svid::X509Svid;
use zeroize::Zeroizing;

use crate::config::deliver::Delivery;

/// One identity and what belongs to it. Cheap to clone, and never printed with its key.
#[derive(Clone)]
pub struct Material {
    /// The X.509-SVID, its key, and the bundles.
    pub identity: Identity,
    /// The JWT-SVIDs that are wanted, as far as they are there.
    pub tokens: BTreeMap<Audience, JwtSvid>,
}

/// The X.509-SVID, its key, and the bundles that come with it.
#[derive(Clone)]
pub struct Identity {
    /// The SVID and its intermediates.
    pub svid: X509Svid,
    /// PKCS#8, DER.
    pub key: Arc<Zeroizing<Vec<u8>>>,
    /// The roots of each trust domain, the SVID's own among them.
    pub roots: BTreeMap<TrustDomain, Vec<CertificateDer<'static>>>,
    /// The keys for JWT-SVIDs of each trust domain, a JWK set; nothing where nobody wants them.
    pub jwks: BTreeMap<TrustDomain, String>,
}

impl Identity {
    /// The roots of the SVID's own trust domain.
    pub fn own_roots(&self) -> &[CertificateDer<'static>] {
        self.roots.get(&self.svid.id().trust_domain()).map_or(&[], Vec::as_slice)
    }
}

impl Material {
    /// Whose it is.
    pub fn id(&self) -> &SpiffeId {
        self.identity.svid.id()
    }

    /// Sixteen hexadecimal digits: the same as long as nothing changes of what `delivery` is made of, others for any other.
    /// They tell nothing of the key: what is public of it is in the certificate.
    pub fn version(&self, delivery: &Delivery) -> String {
        let mut text = Vec::new();
        if delivery.has_svid() {
            self.identity.svid.chain().iter().for_each(|certificate| put(&mut text, certificate));
        }
        let (own, others) = delivery.has_roots();
        for (domain, roots) in &self.identity.roots {
            let counts = if self.id().is_member_of(domain) { own } else { others };
            if counts {
                put(&mut text, domain.name().as_bytes());
                roots.iter().for_each(|root| put(&mut text, root));
            }
        }
        for (domain, keys) in &self.identity.jwks {
            put(&mut text, domain.name().as_bytes());
            put(&mut text, keys.as_bytes());
        }
        self.tokens.values().for_each(|token| put(&mut text, token.token().as_bytes()));
        spiffe::crypto::hex(&spiffe::crypto::sha256(&text)[..8])
    }
}

/// A part with its length before it: parts that are cut in another way give another text.
fn put(text: &mut Vec<u8>, part: &[u8]) {
    text.extend_from_slice(&(part.len() as u64).to_be_bytes());
    text.extend_from_slice(part);
}

impl std::fmt::Debug for Material {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Material").field("id", self.id()).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("id", self.svid.id()).finish_non_exhaustive()
    }
}
