//! What Kong is told of an identity, whether over its Admin API or in a declarative file: one certificate entity, and one
//! CA certificate entity for each root. Pure.
//!
//! - *one for each*: Kong takes one certificate in an entity, so each root has its own, whose ID is made of its bytes.
//! - *only good ones*: Kong refuses a CA certificate that has expired, so such a root is left out.

use spiffe::time::Timestamp;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

use super::material::Material;
use super::render::pem;
use crate::config::deliver::kong::KongEntities;

/// The tag of everything that any delivery has put into Kong.
const TAG: &str = "chancery";

/// What Kong is told.
pub(super) struct KongIdentity {
    /// Of the certificate entity.
    pub(super) certificate_id: String,
    /// The chain, PEM.
    pub(super) chain: String,
    /// PEM.
    pub(super) key: Zeroizing<Vec<u8>>,
    /// ID and PEM of each root.
    pub(super) roots: Vec<(String, String)>,
    /// What is tagged with the second of them is this delivery's.
    pub(super) tags: [String; 2],
}

impl KongIdentity {
    /// What Kong is told by the delivery `name` at `now`.
    pub(super) fn new(name: &str, entities: &KongEntities, material: &Material, now: Timestamp) -> Self {
        let good = material.identity.own_roots().iter().filter(|root| !has_expired(root, now));
        let root =
            |der: &rustls_pki_types::CertificateDer<'static>| (uuid(der), pem::certificates(std::slice::from_ref(der)));
        Self {
            certificate_id: entities.certificate_id.clone().unwrap_or_else(|| uuid(format!("{TAG}/{name}").as_bytes())),
            chain: pem::certificates(material.identity.svid.chain()),
            key: pem::private_key(&material.identity.key),
            roots: good.map(root).collect(),
            tags: [TAG.to_owned(), format!("{TAG}-{name}")],
        }
    }

    /// The key as text.
    pub(super) fn key(&self) -> &str {
        std::str::from_utf8(&self.key).unwrap_or_default()
    }
}

fn has_expired(root: &[u8], now: Timestamp) -> bool {
    let until = X509Certificate::from_der(root).map(|(_, root)| root.validity().not_after.timestamp());
    until.is_ok_and(|until| u64::try_from(until).unwrap_or_default() < now.unix())
}

/// A UUID that is made of a text (RFC 9562, version 8): the same text, the same UUID.
fn uuid(text: &[u8]) -> String {
    let mut bytes = spiffe::crypto::sha256(text);
    bytes[6] = (bytes[6] & 0x0f) | 0x80;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex = spiffe::crypto::hex(&bytes[..16]);
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::deliver::test_material::{NOW, material};

    #[test]
    fn ids_are_made_of_what_they_name() {
        let material = material();
        let one = KongIdentity::new("web", &KongEntities::default(), &material, NOW);
        let again = KongIdentity::new("web", &KongEntities::default(), &material, NOW);
        let other = KongIdentity::new("api", &KongEntities::default(), &material, NOW);
        assert_eq!((&one.certificate_id, &one.roots), (&again.certificate_id, &again.roots));
        assert_eq!(one.roots, other.roots, "a root is one entity, however many deliver it");
        assert_ne!(one.certificate_id, other.certificate_id);
        let parts: Vec<usize> = one.certificate_id.split('-').map(str::len).collect();
        assert_eq!(parts, [8, 4, 4, 4, 12]);
        assert_eq!(one.tags, ["chancery", "chancery-web"]);
    }

    #[test]
    fn a_root_that_has_expired_is_left_out() {
        let material = material();
        let at = |now| KongIdentity::new("web", &KongEntities::default(), &material, now).roots.len();
        let decade = Duration::from_secs(86_400 * 3650);
        assert_eq!((at(NOW), at(NOW.plus(decade)), at(NOW.plus(decade + Duration::from_secs(1)))), (1, 1, 0));
    }
}
