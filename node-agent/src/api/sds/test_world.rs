//! For tests: a few states that a workload may be in, made once, and a reference of what they look like from outside.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use prost::Message as _;
use prost_types::Any;
use spiffe::bundle::{Bundle, X509Authority};
use spiffe::id::TrustDomain;
use spiffe::proto::envoy::config::core::v3::DataSource;
use spiffe::proto::envoy::config::core::v3::data_source::Specifier;
use spiffe::proto::envoy::extensions::transport_sockets::tls::v3::{Secret, secret};

use super::SECRET_TYPE;
use crate::api::test_office::Office;
use crate::cache::{Identity, WorkloadState};

/// How many states there are.
pub(super) const STATES: u8 = 16;

struct World {
    office: Office,
    next_office: Office,
    /// By their number.
    web: [Identity; 2],
    api: Identity,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let office = Office::new();
    let web = [office.identity("web", "", 1), office.identity("web", "", 2)];
    let api = office.identity("api", "", 3);
    World { next_office: Office::new(), office, web, api }
});

/// A state by its number: which SVID of `web`, whether there is `api` behind it, one root or two, whether a foreign trust
/// domain is federated with.
pub(super) fn state(number: u8) -> WorkloadState {
    let (web, api, two, foreign) = bits(number);
    let mut identities = vec![WORLD.web[usize::from(web)].clone()];
    identities.extend(api.then(|| WORLD.api.clone()));
    let mut roots = vec![WORLD.office.root.clone()];
    roots.extend(two.then(|| WORLD.next_office.root.clone()));
    let other = bundle("other.org", vec![WORLD.next_office.root.clone()]);
    let federated = foreign.then(|| (other.trust_domain().clone(), other));
    WorkloadState {
        identities: identities.into(),
        bundle: bundle("example.org", roots),
        federated: Arc::new(federated.into_iter().collect()),
    }
}

fn bundle(name: &str, roots: Vec<X509Authority>) -> Bundle {
    Bundle::new(TrustDomain::parse(name).unwrap(), roots, 1, None).unwrap()
}

fn bits(number: u8) -> (bool, bool, bool, bool) {
    (number & 1 != 0, number & 2 != 0, number & 4 != 0, number & 8 != 0)
}

/// Lists of names that the workload may have in each of the states.
pub(super) const LISTS: [&[&str]; 6] = [
    &[],
    &["default"],
    &["ROOTCA"],
    &["spiffe://example.org/web", "spiffe://example.org"],
    &["ALL", "ROOTCA", "default", "spiffe://example.org/web"],
    &["spiffe://example.org"],
];

pub(super) fn list_of(list: usize) -> Vec<String> {
    LISTS[list].iter().map(ToString::to_string).collect()
}

/// What a proxy that asked for these names should see in that state: a word for each content. Said by the numbers alone.
pub(super) fn seen(state: u8, names: &[String]) -> BTreeMap<String, String> {
    let (web, api, two, foreign) = bits(state);
    let of = |name: &str| match name {
        "default" | "spiffe://example.org/web" => format!("web {web}"),
        "spiffe://example.org/api" => "api".to_owned(),
        "ROOTCA" | "spiffe://example.org" => format!("own {two}"),
        "ALL" => format!("own {two} foreign {foreign}"),
        "spiffe://other.org" => "other".to_owned(),
        _ => panic!("{name}"),
    };
    let mut all = vec!["spiffe://example.org/web", "spiffe://example.org"];
    all.extend(api.then_some("spiffe://example.org/api"));
    all.extend(foreign.then_some("spiffe://other.org"));
    let asked: Vec<&str> = if names.is_empty() { all } else { names.iter().map(String::as_str).collect() };
    asked.into_iter().map(|name| (name.to_owned(), of(name))).collect()
}

/// A resource as an Envoy reads it.
pub(super) fn unpacked(resource: &[u8]) -> Secret {
    let any = Any::decode(resource).unwrap();
    assert_eq!(any.type_url, SECRET_TYPE);
    Secret::decode(&*any.value).unwrap()
}

/// The names of resources, in their order.
pub(super) fn names_of<'a>(resources: impl IntoIterator<Item = &'a bytes::Bytes>) -> Vec<String> {
    resources.into_iter().map(|resource| unpacked(resource).name).collect()
}

/// The text of a PEM that travels in a message.
pub(super) fn text(source: Option<&DataSource>) -> String {
    let Some(Specifier::InlineBytes(bytes)) = source.and_then(|source| source.specifier.as_ref()) else {
        panic!("{source:?}")
    };
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The PEM of the chain of a secret.
pub(super) fn chain(resource: &[u8]) -> String {
    match unpacked(resource).r#type {
        Some(secret::Type::TlsCertificate(certificate)) => text(certificate.certificate_chain.as_ref()),
        other => panic!("{other:?}"),
    }
}
