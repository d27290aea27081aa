//! The path of an SVID to a root of its bundle: by webpki, with webpki's own limits on the work that a hostile chain
//! can make. And the way up by key identifiers alone, to find tainted roots.

use rustls_pki_types::CertificateDer;
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter, KeyUsage};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::FromDer;

use super::{SvidError, X509Svid};
use crate::bundle::Bundle;
use crate::time::Timestamp;

/// What a peer uses its SVID for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// It is the server of a TLS connection.
    Server,
    /// It is the client of a TLS connection.
    Client,
    /// The one or the other.
    Any,
}

impl ExtendedKeyUsageValidator for Purpose {
    /// Where an extended key usage is there, it must have the purpose; the leaf's own is checked by its profile.
    fn validate(&self, found: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        let wanted: &[&[usize]] = match self {
            Self::Server => return KeyUsage::server_auth().validate(found),
            Self::Client => return KeyUsage::client_auth().validate(found),
            Self::Any => &[KeyUsage::SERVER_AUTH_REPR, KeyUsage::CLIENT_AUTH_REPR],
        };
        let mut empty = true;
        for id in found {
            empty = false;
            if wanted.contains(&id?.to_decoded_oid().as_slice()) {
                return Ok(());
            }
        }
        if empty { Ok(()) } else { Err(webpki::Error::EmptyEkuExtension) }
    }
}

pub(super) fn verify(svid: &X509Svid, bundle: &Bundle, now: Timestamp, purpose: Purpose) -> Result<(), SvidError> {
    let (id, lifetime) = (svid.id(), svid.lifetime());
    if !id.is_member_of(bundle.trust_domain()) {
        return Err(SvidError::WrongTrustDomain { id: id.clone(), trust_domain: bundle.trust_domain().clone() });
    }
    if now < lifetime.not_before {
        return Err(SvidError::NotYetValid { id: id.clone(), not_before: lifetime.not_before, now });
    }
    if now > lifetime.not_after {
        return Err(SvidError::Expired { id: id.clone(), not_after: lifetime.not_after, now });
    }
    let (leaf, intermediates) = svid.chain().split_first().ok_or(SvidError::Empty)?;
    EndEntityCert::try_from(leaf)
        .and_then(|leaf| {
            leaf.verify_for_usage(
                webpki::ALL_VERIFICATION_ALGS,
                bundle.trust_anchors(),
                intermediates,
                now.to_unix_time(),
                purpose,
                None,
                None,
            )
            .map(|_| ())
        })
        .map_err(|error| refusal(svid, now, error))
}

fn refusal(svid: &X509Svid, now: Timestamp, error: webpki::Error) -> SvidError {
    let id = svid.id().clone();
    match error {
        webpki::Error::CertExpired { not_after, .. } => {
            SvidError::Expired { id, not_after: Timestamp::from_unix(not_after.as_secs()), now }
        }
        webpki::Error::CertNotValidYet { not_before, .. } => {
            SvidError::NotYetValid { id, not_before: Timestamp::from_unix(not_before.as_secs()), now }
        }
        webpki::Error::UnknownIssuer => SvidError::UnknownAuthority(id),
        webpki::Error::InvalidSignatureForPublicKey
        | webpki::Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => SvidError::Signature(id),
        other => SvidError::Path { id, rule: other.to_string() },
    }
}

/// Goes up from the leaf, issuer by issuer, and looks for a tainted CA among those that are named. Nothing is
/// verified: the SVID is one's own.
pub(super) fn is_tainted(chain: &[CertificateDer<'static>], bundle: &Bundle) -> bool {
    let tainted = || bundle.x509_authorities().iter().filter(|authority| authority.is_tainted());
    if tainted().next().is_none() && bundle.tainted_intermediates().is_empty() {
        return false;
    }
    let below = |key_id: Option<&[u8]>| bundle.tainted_intermediates().iter().any(|id| Some(&**id) == key_id);
    let mut links = chain.iter().filter_map(|der| X509Certificate::from_der(der).ok()).map(|(_, link)| Link::of(&link));
    let Some(mut current) = links.next() else {
        return false;
    };
    let mut above: Vec<Link> = links.collect();
    loop {
        let issuer_key_id = current.issuer_key_id.as_deref();
        if below(issuer_key_id) || tainted().any(|root| root.is_named_by(&current.issuer, issuer_key_id)) {
            return true;
        }
        // Each link is taken once, so the walk ends.
        let Some(next) = above.iter().position(|link| link.is_issuer_of(&current)) else {
            return false;
        };
        current = above.swap_remove(next);
    }
}

struct Link {
    subject: Vec<u8>,
    key_id: Option<Vec<u8>>,
    issuer: Vec<u8>,
    issuer_key_id: Option<Vec<u8>>,
}

impl Link {
    fn of(certificate: &X509Certificate<'_>) -> Self {
        let mut link = Self {
            subject: certificate.subject().as_raw().to_vec(),
            key_id: None,
            issuer: certificate.issuer().as_raw().to_vec(),
            issuer_key_id: None,
        };
        for extension in certificate.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => link.key_id = Some(id.0.to_vec()),
                ParsedExtension::AuthorityKeyIdentifier(id) => {
                    link.issuer_key_id = id.key_identifier.as_ref().map(|id| id.0.to_vec());
                }
                _ => {}
            }
        }
        link
    }

    fn is_issuer_of(&self, other: &Self) -> bool {
        match (&other.issuer_key_id, &self.key_id) {
            (Some(named), Some(own)) => named == own,
            _ => other.issuer == self.subject,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{ExtendedKeyUsagePurpose, IsCa};

    use super::*;
    use crate::id::{SpiffeId, TrustDomain};
    use crate::test_certificates::{Authority, Leaf, NOW, leaf_params};

    const WEB: &str = "spiffe://example.org/web";

    fn web() -> SpiffeId {
        SpiffeId::parse(WEB).unwrap()
    }

    fn verified(leaf: Leaf, bundle: &Bundle, now: Timestamp) -> Result<SpiffeId, SvidError> {
        Ok(X509Svid::parse(leaf.chain).unwrap().verify(bundle, now)?.id().clone())
    }

    #[test]
    fn a_path_leads_to_the_root_with_and_without_intermediates() {
        let root = Authority::root("root");
        let bundle = root.bundle("example.org");
        assert_eq!(verified(root.leaf(WEB), &bundle, NOW), Ok(web()));
        let deep = root.intermediate("one").intermediate("two");
        assert_eq!(verified(deep.leaf(WEB), &bundle, NOW), Ok(web()));
        // The root itself may come along.
        let mut leaf = deep.leaf(WEB);
        leaf.chain.push(root.der().clone());
        assert_eq!(verified(leaf, &bundle, NOW), Ok(web()));
    }

    #[test]
    fn each_reason_has_its_error() {
        let root = Authority::root("root");
        let bundle = root.bundle("example.org");
        let lifetime = X509Svid::parse(root.leaf(WEB).chain).unwrap().lifetime();
        let second = Duration::from_secs(1);

        assert!(verified(root.leaf(WEB), &bundle, lifetime.not_after).is_ok());
        let now = lifetime.not_after.plus(second);
        let expired = SvidError::Expired { id: web(), not_after: lifetime.not_after, now };
        assert_eq!(verified(root.leaf(WEB), &bundle, now), Err(expired));

        assert!(verified(root.leaf(WEB), &bundle, lifetime.not_before).is_ok());
        let now = lifetime.not_before.minus(second);
        let early = SvidError::NotYetValid { id: web(), not_before: lifetime.not_before, now };
        assert_eq!(verified(root.leaf(WEB), &bundle, now), Err(early));

        let other = Authority::root("other").bundle("example.org");
        assert_eq!(verified(root.leaf(WEB), &other, NOW), Err(SvidError::UnknownAuthority(web())));
        let namesake = Authority::root("root").bundle("example.org");
        assert_eq!(verified(root.leaf(WEB), &namesake, NOW), Err(SvidError::Signature(web())));
        let empty = Bundle::new(TrustDomain::parse("example.org").unwrap(), Vec::new(), 0, None).unwrap();
        assert_eq!(verified(root.leaf(WEB), &empty, NOW), Err(SvidError::UnknownAuthority(web())));

        let mut cut = root.intermediate("one").leaf(WEB);
        cut.chain.truncate(1);
        assert_eq!(verified(cut, &bundle, NOW), Err(SvidError::UnknownAuthority(web())));
    }

    #[test]
    fn the_same_root_of_another_trust_domain_does_not_count() {
        let root = Authority::root("root");
        let trust_domain = TrustDomain::parse("other.org").unwrap();
        let wrong = SvidError::WrongTrustDomain { id: web(), trust_domain };
        assert_eq!(verified(root.leaf(WEB), &root.bundle("other.org"), NOW), Err(wrong));
    }

    #[test]
    fn a_leaf_issues_nothing() {
        let root = Authority::root("root");
        let fake = root.intermediate_with("fake", |params| params.is_ca = IsCa::ExplicitNoCa);
        assert!(matches!(verified(fake.leaf(WEB), &root.bundle("example.org"), NOW), Err(SvidError::Path { .. })));
    }

    #[test]
    fn a_name_constraint_on_uris_is_never_overlooked() {
        // webpki knows none for URIs, and lets nothing pass below one: nobody is let in whom it would keep out.
        let root = Authority::root("root");
        let constrained = |namespace: &str| {
            let name = [&[0x86, u8::try_from(namespace.len()).unwrap()], namespace.as_bytes()].concat();
            let wrapped = |tag, content: &[u8]| [&[tag, u8::try_from(content.len()).unwrap()], content].concat();
            let permitted = wrapped(0x30, &wrapped(0xa0, &wrapped(0x30, &name)));
            root.intermediate_with("constrained", |params| {
                let mut extension = rcgen::CustomExtension::from_oid_content(&[2, 5, 29, 30], permitted);
                extension.set_criticality(true);
                params.custom_extensions = vec![extension];
            })
        };
        for namespace in ["other.org", "example.org"] {
            let refused = verified(constrained(namespace).leaf(WEB), &root.bundle("example.org"), NOW);
            assert!(matches!(refused, Err(SvidError::Path { .. })), "{refused:?}");
        }
    }

    #[test]
    fn an_unknown_critical_extension_is_refused() {
        let root = Authority::root("root");
        let mut params = leaf_params(WEB);
        let mut extension = rcgen::CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
        extension.set_criticality(true);
        params.custom_extensions = vec![extension];
        let refused = verified(root.sign(params), &root.bundle("example.org"), NOW);
        assert!(matches!(refused, Err(SvidError::Path { .. })), "{refused:?}");
    }

    #[test]
    fn an_intermediate_for_clients_is_none_for_servers() {
        let root = Authority::root("root");
        let only = |purpose: ExtendedKeyUsagePurpose| {
            let middle = root.intermediate_with("m", |params| params.extended_key_usages = vec![purpose]);
            X509Svid::parse(middle.leaf(WEB).chain).unwrap()
        };
        let bundle = root.bundle("example.org");
        let clients = only(ExtendedKeyUsagePurpose::ClientAuth);
        assert!(clients.clone().verify_as(&bundle, NOW, Purpose::Client).is_ok());
        assert!(clients.clone().verify_as(&bundle, NOW, Purpose::Server).is_err());
        assert!(clients.verify(&bundle, NOW).is_ok());
        assert!(only(ExtendedKeyUsagePurpose::CodeSigning).verify(&bundle, NOW).is_err());
    }

    #[test]
    fn a_taint_is_found_through_intermediates_and_by_key_not_by_name() {
        let (old, new) = (Authority::root("root"), Authority::root("root"));
        let bundle = |tainted_old: bool, tainted_new: bool| {
            let authorities =
                vec![old.x509_authority().with_taint(tainted_old), new.x509_authority().with_taint(tainted_new)];
            Bundle::new(TrustDomain::parse("example.org").unwrap(), authorities, 1, None).unwrap()
        };
        let of = |authority: &Authority| X509Svid::parse(authority.leaf(WEB).chain).unwrap();
        let below = of(&old.intermediate("one").intermediate("two"));
        assert!(of(&old).is_tainted_by(&bundle(true, false)) && below.is_tainted_by(&bundle(true, false)));
        assert!(!of(&old).is_tainted_by(&bundle(false, true)) && !below.is_tainted_by(&bundle(false, true)));
        assert!(of(&new).is_tainted_by(&bundle(false, true)));
        assert!(!of(&old).is_tainted_by(&bundle(false, false)));
        let stranger = X509Svid::parse(old.leaf("spiffe://other.org/web").chain).unwrap();
        assert!(!stranger.is_tainted_by(&bundle(true, true)));
    }
}
