//! What a workload may have, as secrets. Pure.
//!
//! - *by name*: each secret bears the name by which it was asked for; with everything, its SPIFFE ID or that of its trust
//!   domain. Two entries may give one identity: the older one's SVID is the secret.
//! - *whole or not at all*: a name that the workload may not have (now) refuses all, with what it may have.
//! - *never expired*: an SVID that has expired is not there.
//! - *one trust domain at a time*: plain roots of several in one heap would let anyone of one speak for another. Only the
//!   SPIFFE validator keeps them apart.
//! - *no empty roots*: a bundle without X.509 authorities is not there: a proxy would refuse it.
//! - *version*: a digest of what is public in a secret: the same after every restart, another for whatever differs.
//! - *wiped*: what holds a key is written once, in room that was there from the start, and wiped when nobody has it any more.

use bytes::Bytes;
use prost::Message;
use prost_types::Any;
use spiffe::bundle::Bundle;
use spiffe::crypto::{hex, sha256};
use spiffe::pem;
use spiffe::proto::envoy::config::core::v3::data_source::Specifier;
use spiffe::proto::envoy::config::core::v3::{DataSource, TypedExtensionConfig};
use spiffe::proto::envoy::extensions::transport_sockets::tls::v3::spiffe_cert_validator_config::TrustDomain;
use spiffe::proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret as Wire, SpiffeCertValidatorConfig, TlsCertificate, secret,
};
use spiffe::time::Timestamp;
use zeroize::Zeroizing;

use super::client::Validation;
use super::names::{Meaning, Wanted};
use super::{Refusal, SECRET_TYPE};
use crate::cache::{Identity, WorkloadState};
use crate::config::sds::Sds;
use crate::status::words;

const VALIDATOR: &str = "envoy.tls.cert_validator.spiffe";
const VALIDATOR_TYPE: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";
/// In digests: what tells the kinds of content apart.
const TAGS: [&str; 3] = ["tls_certificate", "trusted_ca", VALIDATOR];

/// One secret that a workload may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secret<'a> {
    /// What it is called in the answer.
    pub name: String,
    content: Content<'a>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Content<'a> {
    Svid(&'a Identity),
    Roots(&'a Bundle),
    Validator(Vec<&'a Bundle>),
}

/// The secrets of `state` that are `wanted`, sorted by name.
pub fn select<'a>(
    state: &'a WorkloadState,
    wanted: &Wanted,
    form: (&Sds, Validation),
    now: Timestamp,
) -> Result<Vec<Secret<'a>>, Refusal> {
    let shelf = Shelf { state, config: form.0, validation: form.1, now };
    let mut secrets = Vec::new();
    match wanted {
        Wanted::Everything => secrets = shelf.everything(),
        Wanted::Names(names) => {
            let mut missing = Vec::new();
            for name in names {
                match shelf.find(name)? {
                    Some(content) => secrets.push(Secret { name: name.clone(), content }),
                    None => missing.push(name.as_str()),
                }
            }
            if !missing.is_empty() {
                return Err(shelf.refusal(&missing));
            }
        }
    }
    secrets.sort_by(|one, other| one.name.cmp(&other.name));
    secrets.dedup_by(|later, earlier| later.name == earlier.name);
    Ok(secrets)
}

/// The version of several secrets together.
pub fn version_of<'a>(secrets: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    digest(secrets.into_iter().flat_map(|(name, version)| [name.as_bytes(), version.as_bytes()]))
}

/// Of 128 bits: nobody gains by two contents of one version.
fn digest<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut text = Vec::new();
    for part in parts {
        text.extend_from_slice(&(part.len() as u64).to_be_bytes());
        text.extend_from_slice(part);
    }
    let mut version = hex(&sha256(&text));
    version.truncate(32);
    version
}

/// What there is.
struct Shelf<'a, 'b> {
    state: &'a WorkloadState,
    config: &'b Sds,
    validation: Validation,
    now: Timestamp,
}

impl<'a> Shelf<'a, '_> {
    fn identities(&self) -> impl Iterator<Item = &'a Identity> {
        let now = self.now;
        self.state.identities.iter().filter(move |identity| now <= identity.svid.lifetime().not_after)
    }

    /// Our own first.
    fn bundles(&self) -> impl Iterator<Item = &'a Bundle> {
        let all = std::iter::once(&self.state.bundle).chain(self.state.federated.values());
        all.filter(|bundle| !bundle.x509_authorities().is_empty())
    }

    fn everything(&self) -> Vec<Secret<'a>> {
        let svid = |identity: &'a Identity| Secret {
            name: identity.svid.id().to_string(),
            content: Content::Svid(identity),
        };
        let bundle = |bundle: &'a Bundle| Secret {
            name: bundle.trust_domain().id().to_string(),
            content: self.of_one(bundle),
        };
        // `select` sorts stably and keeps the first of a name: the oldest.
        self.identities().map(svid).chain(self.bundles().map(bundle)).collect()
    }

    fn of_one(&self, bundle: &'a Bundle) -> Content<'a> {
        match self.validation {
            Validation::Spiffe => Content::Validator(vec![bundle]),
            Validation::Roots | Validation::RootsOrAll => Content::Roots(bundle),
        }
    }

    fn find(&self, name: &str) -> Result<Option<Content<'a>>, Refusal> {
        let Some(meaning) = Meaning::of(name, self.config) else { return Ok(None) };
        let bundle = |named: &spiffe::id::TrustDomain| self.bundles().find(|bundle| bundle.trust_domain() == named);
        Ok(match meaning {
            Meaning::DefaultSvid => self.identities().next().map(Content::Svid),
            Meaning::Svid(id) => self.identities().find(|identity| *identity.svid.id() == id).map(Content::Svid),
            Meaning::OwnBundle => bundle(self.state.bundle.trust_domain()).map(|bundle| self.of_one(bundle)),
            Meaning::Bundle(domain) => bundle(&domain).map(|bundle| self.of_one(bundle)),
            Meaning::AllBundles if self.validation == Validation::Roots => {
                return Err(Refusal::RootsOfAll(name.to_owned()));
            }
            Meaning::AllBundles => {
                let all: Vec<_> = self.bundles().collect();
                (!all.is_empty()).then_some(Content::Validator(all))
            }
        })
    }

    /// What to tell one who has asked for what is not there.
    fn refusal(&self, missing: &[&str]) -> Refusal {
        let config = self.config;
        let mut may: Vec<String> = Vec::new();
        if let Some(default) = self.identities().next() {
            may.push(format!("{} ({})", config.default_svid_name, default.svid.id()));
        }
        may.push(config.default_bundle_name.clone());
        if self.validation != Validation::Roots {
            may.push(config.default_all_bundles_name.clone());
        }
        may.extend(self.everything().into_iter().map(|secret| secret.name));
        // A name with a meaning is somebody's: this workload may not have it. Any other is a mistake.
        let is_known = missing.iter().any(|name| Meaning::of(name, config).is_some());
        let (missing, may) = (words(&missing.join(", ")), words(&may.join(", ")));
        if is_known { Refusal::NotEntitled { missing, may } } else { Refusal::Unknown { missing, may } }
    }
}

impl Secret<'_> {
    /// The version of its content.
    pub fn version(&self) -> String {
        match &self.content {
            Content::Svid(identity) => {
                let chain = identity.svid.chain().iter().map(AsRef::as_ref);
                digest(std::iter::once(TAGS[0].as_bytes()).chain(chain))
            }
            Content::Roots(bundle) => digest(std::iter::once(TAGS[1].as_bytes()).chain(roots(bundle))),
            Content::Validator(bundles) => {
                let of_one = |bundle| std::iter::once(name_of(bundle)).chain(roots(bundle)).chain([&b""[..]]);
                digest(std::iter::once(TAGS[2].as_bytes()).chain(bundles.iter().copied().flat_map(of_one)))
            }
        }
    }

    /// The whole of it as a resource: an encoded `google.protobuf.Any`.
    pub fn packed(&self) -> Bytes {
        let content = match &self.content {
            Content::Svid(identity) => secret::Type::TlsCertificate(certificate(identity)),
            Content::Roots(bundle) => secret::Type::ValidationContext(CertificateValidationContext {
                trusted_ca: Some(inline(bundle.to_pem().into())),
                custom_validator_config: None,
            }),
            Content::Validator(bundles) => secret::Type::ValidationContext(CertificateValidationContext {
                trusted_ca: None,
                custom_validator_config: Some(validator(bundles)),
            }),
        };
        let wire = Wire { name: self.name.clone(), r#type: Some(content) };
        let packed = Packed { type_url: SECRET_TYPE.into(), value: Some(wire) };
        let mut bytes = Zeroizing::new(Vec::with_capacity(packed.encoded_len()));
        // Its room is there: this cannot fail.
        let _ = packed.encode(&mut *bytes);
        Bytes::from_owner(Wiped(bytes))
    }
}

fn certificate(identity: &Identity) -> TlsCertificate {
    let chain: String = identity.svid.chain().iter().map(|der| pem::certificate(der)).collect();
    let key = Bytes::from_owner(WipedText(pem::private_key(&identity.key)));
    TlsCertificate { certificate_chain: Some(inline(chain.into())), private_key: Some(inline(key)) }
}

fn validator(bundles: &[&Bundle]) -> TypedExtensionConfig {
    let domain = |bundle: &&Bundle| TrustDomain {
        name: bundle.trust_domain().name().to_owned(),
        trust_bundle: Some(inline(bundle.to_pem().into())),
    };
    let config = SpiffeCertValidatorConfig { trust_domains: bundles.iter().map(domain).collect() };
    let typed = Any { type_url: VALIDATOR_TYPE.into(), value: config.encode_to_vec() };
    TypedExtensionConfig { name: VALIDATOR.into(), typed_config: Some(typed) }
}

fn inline(bytes: Bytes) -> DataSource {
    DataSource { specifier: Some(Specifier::InlineBytes(bytes)) }
}

fn name_of(bundle: &Bundle) -> &[u8] {
    bundle.trust_domain().name().as_bytes()
}

fn roots(bundle: &Bundle) -> impl Iterator<Item = &[u8]> {
    bundle.x509_authorities().iter().map(|authority| authority.der().as_ref())
}

/// `google.protobuf.Any` with its value in it: the same on the wire, and written in one go.
#[derive(Clone, PartialEq, Message)]
struct Packed {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(message, optional, tag = "2")]
    value: Option<Wire>,
}

struct Wiped(Zeroizing<Vec<u8>>);

impl AsRef<[u8]> for Wiped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

struct WipedText(Zeroizing<String>);

impl AsRef<[u8]> for WipedText {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}
