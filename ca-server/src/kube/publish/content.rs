//! What is written: the roots as PEM, the bundle as SPIFFE has it, and the requests that carry them. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::{Method, Request, header};
use serde_json::{Value, json};
use spiffe::bundle::Bundle;
use spiffe::crypto;

use super::publication::{Digest, Place};
use crate::config::publish::ISTIO_CONFIG_MAP;

/// The key of the roots, as Istio has it.
const ROOTS: &str = "root-cert.pem";
/// The key of the bundle as a SPIFFE JWKS document.
const BUNDLE: &str = "bundle.json";
/// Under which our writes stand in the objects.
const MANAGER: &str = "chancery";

/// What one bundle makes.
#[derive(Clone, Debug)]
pub(super) struct Content {
    pem: String,
    /// By the names of the ConfigMaps.
    maps: BTreeMap<Arc<str>, BTreeMap<&'static str, String>>,
}

impl Content {
    /// The content of the ConfigMap `name`, and of Istio's if it is asked for.
    pub(super) fn new(bundle: &Bundle, name: &str, istio: bool) -> Self {
        let pem = bundle.to_pem();
        let mut maps = BTreeMap::new();
        // Before the first authority there is nothing that anybody could know us by.
        if bundle.x509_authorities().is_empty() {
            return Self { pem, maps };
        }
        maps.insert(Arc::from(name), BTreeMap::from([(ROOTS, pem.clone()), (BUNDLE, bundle.to_jwks())]));
        if istio {
            maps.insert(Arc::from(ISTIO_CONFIG_MAP), BTreeMap::from([(ROOTS, pem.clone())]));
        }
        Self { pem, maps }
    }

    /// The roots.
    pub(super) fn pem(&self) -> &str {
        &self.pem
    }

    /// What each ConfigMap has to hold.
    pub(super) fn digests(&self) -> BTreeMap<Arc<str>, Digest> {
        let digest = |keys: &BTreeMap<&str, String>| digest(keys.iter().map(|(key, text)| (*key, text.as_str())));
        self.maps.iter().map(|(name, keys)| (Arc::clone(name), digest(keys))).collect()
    }

    /// The request that makes `place` hold this; `None`: nothing of ours has that name.
    pub(super) fn apply(&self, place: &Place) -> Option<Request<Vec<u8>>> {
        let Place { namespace, name } = place;
        let data = self.maps.get(name)?;
        let path = format!("/api/v1/namespaces/{namespace}/configmaps/{name}");
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": &**name, "namespace": &**namespace }, "data": data,
        });
        Some(apply(&path, &map))
    }
}

/// What a ConfigMap of the name `name` holds, as far as its keys are ours.
pub(super) fn held(name: &str, data: &BTreeMap<String, String>) -> Digest {
    let ours: &[&str] = if name == ISTIO_CONFIG_MAP { &[ROOTS] } else { &[BUNDLE, ROOTS] };
    digest(ours.iter().filter_map(|key| Some((*key, data.get(*key)?.as_str()))))
}

/// A server-side apply of `object` at `path`.
pub(super) fn apply(path: &str, object: &Value) -> Request<Vec<u8>> {
    let mut request = Request::new(object.to_string().into_bytes());
    *request.method_mut() = Method::PATCH;
    // A path of our own making: namespaces and names are plain.
    *request.uri_mut() = format!("{path}?fieldManager={MANAGER}&force=true").parse().unwrap_or_default();
    let json = header::HeaderValue::from_static("application/apply-patch+yaml");
    request.headers_mut().insert(header::CONTENT_TYPE, json);
    request
}

/// In the order of the keys; lengths keep keys and texts apart.
fn digest<'a>(data: impl Iterator<Item = (&'a str, &'a str)>) -> Digest {
    let mut bytes = Vec::new();
    for part in data.flat_map(|(key, text)| [key, text]) {
        bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
        bytes.extend_from_slice(part.as_bytes());
    }
    crypto::sha256(&bytes)
}

#[cfg(test)]
mod tests {
    use spiffe::bundle::X509Authority;
    use spiffe::id::TrustDomain;

    use super::*;

    fn bundle(sequence: u64) -> Bundle {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        let key = crypto::generate_key(spiffe::entry::KeyType::P256).unwrap();
        let root = X509Authority::from_der(params.self_signed(&key).unwrap().der().clone()).unwrap();
        Bundle::new(TrustDomain::parse("example.org").unwrap(), vec![root], sequence, None).unwrap()
    }

    #[test]
    fn a_config_map_holds_both_forms_and_istios_the_roots_alone() {
        let bundle = bundle(7);
        let content = Content::new(&bundle, "roots", true);
        let place = |name: &str| Place { namespace: "shop".into(), name: name.into() };
        let request = content.apply(&place("roots")).unwrap();
        assert_eq!(request.method(), Method::PATCH);
        assert_eq!(request.uri(), "/api/v1/namespaces/shop/configmaps/roots?fieldManager=chancery&force=true");
        let written: Value = serde_json::from_slice(request.body()).unwrap();
        assert_eq!(written["data"]["bundle.json"], bundle.to_jwks());
        let istio: Value = serde_json::from_slice(content.apply(&place(ISTIO_CONFIG_MAP)).unwrap().body()).unwrap();
        assert_eq!(istio["data"], json!({ "root-cert.pem": bundle.to_pem() }));
        assert!(content.apply(&place("others")).is_none());
        let nothing = Content::new(&Bundle::empty(bundle.trust_domain().clone()), "roots", true);
        assert!(nothing.digests().is_empty(), "no bundle is no bundle to publish");
    }

    #[test]
    fn what_is_read_back_is_what_was_written_and_keys_of_others_do_not_count() {
        let content = Content::new(&bundle(7), "roots", true);
        let mut data: BTreeMap<String, String> =
            content.maps["roots"].iter().map(|(key, text)| ((*key).to_owned(), text.clone())).collect();
        data.insert("ours-too".into(), "no".into());
        assert_eq!(held("roots", &data), content.digests()["roots"]);
        assert_eq!(held(ISTIO_CONFIG_MAP, &data), content.digests()[ISTIO_CONFIG_MAP]);
        assert_ne!(content.digests(), Content::new(&bundle(8), "roots", true).digests(), "another bundle");
        data.insert("root-cert.pem".into(), "forged".into());
        assert_ne!(held("roots", &data), content.digests()["roots"]);
        data.remove("root-cert.pem");
        assert_ne!(held("roots", &data), content.digests()["roots"]);
    }
}
