//! For tests: material as a source has it, and deliveries of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use spiffe::audience::Audience;
use spiffe::crypto;
use spiffe::entry::KeyType;
use spiffe::id::TrustDomain;
use spiffe::jwt_svid::JwtSvid;
use spiffe::time::{Lifetime, Timestamp};
use spiffe::x509_svid::X509Svid;
use zeroize::Zeroizing;

use super::material::{Identity, Material};
use crate::config::deliver::{Delivery, Standalone};
use crate::test_house::Authority;
use crate::test_tokens::TokenKey;

pub(crate) const NOW: Timestamp = Timestamp::from_unix(1_800_000_000);
pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// An identity of an hour, and the trust domain other.org.
pub(crate) fn identity() -> Identity {
    let root = Authority::new("root", NOW);
    let other = Authority::new("other", NOW);
    let key = crypto::generate_key(KeyType::P256).unwrap();
    let life = Lifetime { not_before: NOW.minus(Duration::from_secs(60)), not_after: NOW.plus(HOUR) };
    let svid = X509Svid::parse(root.sign(&domain("example.org").member("/shop/web").unwrap(), &key, life)).unwrap();
    let roots = [("example.org", &root), ("other.org", &other)];
    Identity {
        svid,
        key: Arc::new(Zeroizing::new(key.serialize_der())),
        roots: roots.map(|(name, root)| (domain(name), vec![root.der().clone()])).into(),
        jwks: BTreeMap::from([(domain("example.org"), r#"{"keys":[]}"#.to_owned())]),
    }
}

pub(crate) fn material() -> Material {
    Material { identity: identity(), tokens: BTreeMap::new() }
}

/// A JWT-SVID of an hour.
pub(crate) fn token(audience: &Audience, now: Timestamp) -> JwtSvid {
    let id = domain("example.org").member("/shop/web").unwrap();
    JwtSvid::parse(&TokenKey::new().jwt_svid(&id, audience, (now, HOUR), None)).unwrap()
}

pub(crate) fn domain(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

/// The delivery with these files and actions, as they are written in a config.
pub(crate) fn delivery(dir: &std::path::Path, rest: &str) -> Delivery {
    let text = format!("[[deliver]]\nname = 'nginx'\ndir = '{}'\n{rest}", dir.display());
    Standalone::parse(&text, []).unwrap().deliveries.remove(0)
}

/// A chain, its key and the roots.
pub(crate) const THREE: &str = "[[deliver.file]]\nkind = 'chain'\nname = 'tls.crt'\n[[deliver.file]]\nkind = 'key'\n\
    name = 'tls.key'\n[[deliver.file]]\nkind = 'bundle'\nname = 'ca.crt'\n";
