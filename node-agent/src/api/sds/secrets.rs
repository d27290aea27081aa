//! What a workload may have, as secrets. Pure.
//!
//! - *by name*: each secret bears the name by which it was asked for; with everything, its SPIFFE ID or that of its trust
//!   domain. Two entries may give one identity: the older one's SVID is the secret.
//! - *whole or not at all*: a name that the workload may not have (now) refuses all, with what it may have.
//! - *never expired*: an SVID that has expired is not there.
//! - *one trust domain at a time*: plain roots of several in one heap would let anyone of one speak for another. Only the
//!   SPIFFE validator keeps them apart.
//! - *nobody*: of a trust domain without X.509 authorities (any more), and of one that was given to this proxy and is not
//!   federated with any more, there are roots that nobody has the key of. A proxy keeps what it has until something else
//!   comes: without them it would go on trusting what was revoked.
//! - *version*: a digest of what is public in a secret: the same after every restart, another for whatever differs.
//! - *wiped*: what holds a key is written once, in room that was there from the start, and wiped when nobody has it any more.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use bytes::Bytes;
use prost::Message;
use prost_types::Any;
use spiffe::bundle::Bundle;
use spiffe::crypto::{hex, sha256};
use spiffe::entry::KeyType;
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
const VALIDATOR_TYPE: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";
/// In digests: what tells the kinds of content apart.
const TAGS: [&str; 4] = ["tls_certificate", "trusted_ca", VALIDATOR, "nobody"];
/// A root, PEM, whose key was thrown away when it was made. Another one after each start: nobody has the key of that
/// one either.
static NOBODY: LazyLock<String> = LazyLock::new(|| {
    let mut root = rcgen::CertificateParams::default();
    root.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    root.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    root.distinguished_name = rcgen::DistinguishedName::new();
    root.distinguished_name.push(rcgen::DnType::CommonName, "nobody");
    let key = spiffe::crypto::generate_key(KeyType::P256).ok();
    let made = key.and_then(|key| root.self_signed(&key).ok());
    made.map(|root| pem::certificate(root.der())).unwrap_or_default()
});

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
    Nobody(spiffe::id::TrustDomain, Validation),
}

/// How secrets are asked for.
#[derive(Clone, Copy, Debug)]
pub struct Form<'b> {
    /// What names mean.
    pub config: &'b Sds,
    /// What the proxy verifies with.
    pub validation: Validation,
    /// What it was given last, by name.
    pub given: &'b BTreeSet<String>,
}

/// The secrets of `state` that are `wanted`, sorted by name.
pub fn select<'a>(
    state: &'a WorkloadState,
    wanted: &Wanted,
    form: Form<'_>,
    now: Timestamp,
) -> Result<Vec<Secret<'a>>, Refusal> {
    let shelf = Shelf { state, form, now };
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
    form: Form<'b>,
    now: Timestamp,
}

impl<'a> Shelf<'a, '_> {
    fn identities(&self) -> impl Iterator<Item = &'a Identity> {
        let now = self.now;
        self.state.identities.iter().filter(move |identity| now <= identity.svid.lifetime().not_after)
    }

    /// Our own first.
    fn bundles(&self) -> impl Iterator<Item = &'a Bundle> {
        std::iter::once(&self.state.bundle).chain(self.state.federated.values())
    }

    fn everything(&self) -> Vec<Secret<'a>> {
        let svid =
            |identity: &'a Identity| Secret { name: identity.svid.id().to_string(), content: Content::Svid(identity) };
        let bundle =
            |bundle: &'a Bundle| Secret { name: bundle.trust_domain().id().to_string(), content: self.of_one(bundle) };
        // `select` sorts stably and keeps the first of a name: the oldest.
        self.identities().map(svid).chain(self.bundles().map(bundle)).collect()
    }

    fn of_one(&self, bundle: &'a Bundle) -> Content<'a> {
        match self.form.validation {
            validation if is_empty(bundle) => Content::Nobody(bundle.trust_domain().clone(), validation),
            Validation::Spiffe => Content::Validator(vec![bundle]),
            Validation::Roots | Validation::RootsOrAll => Content::Roots(bundle),
        }
    }

    fn find(&self, name: &str) -> Result<Option<Content<'a>>, Refusal> {
        let Some(meaning) = Meaning::of(name, self.form.config) else { return Ok(None) };
        let bundle = |named: &spiffe::id::TrustDomain| self.bundles().find(|bundle| bundle.trust_domain() == named);
        Ok(match meaning {
            Meaning::DefaultSvid => self.identities().next().map(Content::Svid),
            Meaning::Svid(id) => self.identities().find(|identity| *identity.svid.id() == id).map(Content::Svid),
            Meaning::OwnBundle => bundle(self.state.bundle.trust_domain()).map(|bundle| self.of_one(bundle)),
            Meaning::Bundle(domain) => match bundle(&domain) {
                Some(bundle) => Some(self.of_one(bundle)),
                None if self.form.given.contains(name) => Some(Content::Nobody(domain, self.form.validation)),
                None => None,
            },
            Meaning::AllBundles if self.form.validation == Validation::Roots => {
                return Err(Refusal::RootsOfAll(name.to_owned()));
            }
            Meaning::AllBundles => {
                let all: Vec<_> = self.bundles().filter(|bundle| !is_empty(bundle)).collect();
                Some(if all.is_empty() { self.of_one(&self.state.bundle) } else { Content::Validator(all) })
            }
        })
    }

    /// What to tell one who has asked for what is not there.
    fn refusal(&self, missing: &[&str]) -> Refusal {
        let config = self.form.config;
        let mut may: Vec<String> = Vec::new();
        if let Some(default) = self.identities().next() {
            may.push(format!("{} ({})", config.default_svid_name, default.svid.id()));
        }
        may.push(config.default_bundle_name.clone());
        if self.form.validation != Validation::Roots {
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
            Content::Nobody(domain, _) => digest([TAGS[3].as_bytes(), domain.name().as_bytes()]),
        }
    }

    /// The whole of it as a resource: an encoded `google.protobuf.Any`.
    pub fn packed(&self) -> Bytes {
        let content = match &self.content {
            Content::Svid(identity) => secret::Type::TlsCertificate(certificate(identity)),
            Content::Roots(bundle) => trusted_ca(bundle.to_pem()),
            Content::Validator(bundles) => {
                validator(bundles.iter().map(|bundle| (bundle.trust_domain().name(), bundle.to_pem())))
            }
            Content::Nobody(domain, Validation::Spiffe) => validator([(domain.name(), NOBODY.clone())]),
            Content::Nobody(_, Validation::Roots | Validation::RootsOrAll) => trusted_ca(NOBODY.clone()),
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

fn trusted_ca(roots: String) -> secret::Type {
    secret::Type::ValidationContext(CertificateValidationContext {
        trusted_ca: Some(inline(roots.into())),
        custom_validator_config: None,
    })
}

/// Of trust domains by their names, each with its own roots.
fn validator<'a>(trusted: impl IntoIterator<Item = (&'a str, String)>) -> secret::Type {
    let domain =
        |(name, roots): (&str, String)| TrustDomain { name: name.to_owned(), trust_bundle: Some(inline(roots.into())) };
    let config = SpiffeCertValidatorConfig { trust_domains: trusted.into_iter().map(domain).collect() };
    let typed = Any { type_url: VALIDATOR_TYPE.into(), value: config.encode_to_vec() };
    secret::Type::ValidationContext(CertificateValidationContext {
        trusted_ca: None,
        custom_validator_config: Some(TypedExtensionConfig { name: VALIDATOR.into(), typed_config: Some(typed) }),
    })
}

fn is_empty(bundle: &Bundle) -> bool {
    bundle.x509_authorities().is_empty()
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use spiffe::id::TrustDomain as Domain;
    use spiffe::proto::envoy::extensions::transport_sockets::tls::v3::Secret as Wire;

    use super::super::test_world::{chain, state, text, unpacked};
    use super::*;
    use crate::api::test_office::{NOW, Office};

    fn form(validation: Validation) -> Form<'static> {
        static NAMES: LazyLock<Sds> = LazyLock::new(Sds::default);
        static GIVEN: BTreeSet<String> = BTreeSet::new();
        Form { config: &NAMES, validation, given: &GIVEN }
    }

    fn wanted(names: &[&str]) -> Wanted {
        Wanted::parse(names.iter().map(ToString::to_string).collect()).unwrap()
    }

    fn packed(state: &WorkloadState, names: &[&str], validation: Validation) -> Result<Vec<Wire>, Refusal> {
        let secrets = select(state, &wanted(names), form(validation), NOW)?;
        Ok(secrets.iter().map(|secret| unpacked(&secret.packed())).collect())
    }

    fn context(wire: &Wire) -> &CertificateValidationContext {
        let Some(secret::Type::ValidationContext(context)) = &wire.r#type else { panic!("{}", wire.name) };
        context
    }

    fn domains(wire: &Wire) -> Vec<(String, String)> {
        let config = context(wire).custom_validator_config.as_ref().unwrap();
        assert_eq!(config.name, VALIDATOR);
        let typed = config.typed_config.as_ref().unwrap();
        assert_eq!(typed.type_url, VALIDATOR_TYPE);
        let config = SpiffeCertValidatorConfig::decode(&*typed.value).unwrap();
        config.trust_domains.into_iter().map(|domain| (domain.name, text(domain.trust_bundle.as_ref()))).collect()
    }

    #[test]
    fn an_svid_is_its_chain_and_key_in_pem() {
        let state = state(2);
        let secrets = packed(&state, &["default", "spiffe://example.org/api"], Validation::Spiffe).unwrap();
        for (wire, identity) in secrets.iter().zip(state.identities.iter()) {
            let Some(secret::Type::TlsCertificate(certificate)) = &wire.r#type else { panic!("{}", wire.name) };
            let chain: String = identity.svid.chain().iter().map(|der| pem::certificate(der)).collect();
            assert_eq!(text(certificate.certificate_chain.as_ref()), chain);
            assert_eq!(text(certificate.private_key.as_ref()), *pem::private_key(&identity.key));
        }
        assert_eq!(
            secrets.iter().map(|wire| wire.name.as_str()).collect::<Vec<_>>(),
            ["default", "spiffe://example.org/api"]
        );
    }

    #[test]
    fn names_of_all_kinds_are_answered_in_one_request() {
        let all =
            ["ALL", "ROOTCA", "default", "spiffe://example.org", "spiffe://example.org/api", "spiffe://other.org"];
        let secrets = packed(&state(0b1010), &all, Validation::Spiffe).unwrap();
        assert_eq!(secrets.iter().map(|wire| wire.name.as_str()).collect::<Vec<_>>(), all);
        let names = |wire| domains(wire).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names(&secrets[0]), ["example.org", "other.org"]);
        assert_eq!(names(&secrets[1]), ["example.org"]);
        assert_eq!(names(&secrets[5]), ["other.org"]);
    }

    #[test]
    fn roots_are_of_one_trust_domain_or_kept_apart() {
        let state = state(0b1100);
        let own = state.bundle.to_pem();
        for validation in [Validation::Roots, Validation::RootsOrAll] {
            let secrets = packed(&state, &["ROOTCA", "spiffe://example.org"], validation).unwrap();
            for wire in &secrets {
                assert_eq!(text(context(wire).trusted_ca.as_ref()), own);
                assert_eq!(context(wire).custom_validator_config, None);
            }
        }
        let refusal = packed(&state, &["ALL"], Validation::Roots).unwrap_err();
        assert!(refusal.to_string().contains("anyone of one trust domain could speak for another"), "{refusal}");
        for validation in [Validation::Spiffe, Validation::RootsOrAll] {
            let [all] = &packed(&state, &["ALL"], validation).unwrap()[..] else { panic!() };
            assert_eq!(context(all).trusted_ca, None);
            assert_eq!(domains(all)[0], ("example.org".into(), own.clone()));
        }
        let everything = packed(&state, &[], Validation::Roots).unwrap();
        assert!(everything.iter().all(|wire| wire.name != "ALL"));
        assert_eq!(everything.len(), 3);
    }

    #[test]
    fn an_svid_that_has_expired_is_not_there() {
        let state = state(0);
        let at = |after: u64| {
            let now = NOW.plus(std::time::Duration::from_secs(after));
            select(&state, &wanted(&["default"]), form(Validation::Spiffe), now)
        };
        assert_eq!(at(3600).unwrap().len(), 1, "its last second");
        assert!(matches!(at(3601), Err(Refusal::NotEntitled { .. })));
    }

    #[test]
    fn of_two_entries_with_one_identity_the_older_is_the_secret() {
        let office = Office::new();
        let (older, younger) = (office.identity("web", "", 1), office.identity("web", "", 2));
        let state = office.state(vec![older.clone(), younger]);
        let everything = select(&state, &Wanted::Everything, form(Validation::Spiffe), NOW).unwrap();
        assert_eq!(everything.len(), 2);
        assert_eq!(chain(&everything[1].packed()), pem::certificate(&older.svid.chain()[0]));
    }

    /// The roots of which nobody has the key.
    fn is_nobody(pem: &str) -> bool {
        let roots = Bundle::from_pem(Domain::parse("nobody.org").unwrap(), pem.as_bytes());
        pem == *NOBODY && roots.unwrap().x509_authorities().len() == 1
    }

    #[test]
    fn of_a_trust_domain_without_roots_nobody_is_trusted_and_the_others_go_on() {
        let office = Office::new();
        let empty = Bundle::empty(Domain::parse("other.org").unwrap());
        let federated = Arc::new([(empty.trust_domain().clone(), empty)].into());
        let state = WorkloadState { federated, ..office.state(vec![office.identity("web", "", 1)]) };
        let secrets = packed(&state, &["ALL", "default", "spiffe://other.org"], Validation::Spiffe).unwrap();
        assert_eq!(domains(&secrets[0]).len(), 1, "the validator knows no other trust domain");
        let [(domain, roots)] = &domains(&secrets[2])[..] else { panic!() };
        assert!(domain == "other.org" && is_nobody(roots), "{domain}: {roots}");
        let plain = packed(&state, &["spiffe://other.org"], Validation::Roots).unwrap();
        assert!(is_nobody(&text(context(&plain[0]).trusted_ca.as_ref())));
    }

    #[test]
    fn a_trust_domain_that_was_given_and_is_gone_is_taken_back() {
        let state = state(0);
        let name = "spiffe://gone.org";
        assert!(matches!(packed(&state, &[name], Validation::Spiffe), Err(Refusal::NotEntitled { .. })));
        let given = BTreeSet::from([name.to_owned(), "spiffe://example.org/gone".to_owned()]);
        let form = Form { given: &given, ..form(Validation::Spiffe) };
        let secrets = select(&state, &wanted(&[name, "default"]), form, NOW).unwrap();
        let [(domain, roots)] = &domains(&unpacked(&secrets[1].packed()))[..] else { panic!() };
        assert!(domain == "gone.org" && is_nobody(roots));
        let svid = select(&state, &wanted(&["spiffe://example.org/gone"]), form, NOW);
        assert!(matches!(svid, Err(Refusal::NotEntitled { .. })), "there is no SVID of nobody");
    }

    #[test]
    fn a_refusal_says_what_there_is_and_stays_short() {
        let refusal = packed(&state(0b1010), &["webb", "default"], Validation::Spiffe).unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "nothing is called webb; this workload may have: default (spiffe://example.org/web), ROOTCA, ALL, \
             spiffe://example.org/web, spiffe://example.org/api, spiffe://example.org, spiffe://other.org"
        );
        let long = "spiffe://example.org/".to_owned() + &"x".repeat(2000);
        assert!(packed(&state(0), &[&long], Validation::Spiffe).unwrap_err().to_string().len() < 1000);
    }

    #[test]
    fn a_version_is_of_the_content_and_its_form() {
        let version = |number: u8, name: &str, validation| {
            let state = state(number);
            let secrets = select(&state, &wanted(&[name]), form(validation), NOW).unwrap();
            secrets[0].version()
        };
        let spiffe = Validation::Spiffe;
        assert_eq!(version(0, "default", spiffe), version(14, "spiffe://example.org/web", spiffe));
        assert_ne!(version(0, "default", spiffe), version(1, "default", spiffe));
        assert_eq!(version(0, "ROOTCA", spiffe), version(11, "spiffe://example.org", spiffe));
        assert_ne!(version(0, "ROOTCA", spiffe), version(4, "ROOTCA", spiffe));
        assert_ne!(version(0, "ROOTCA", spiffe), version(0, "ROOTCA", Validation::Roots));
        assert_ne!(version(0, "ALL", spiffe), version(8, "ALL", spiffe));
        assert_eq!(version(0, "ALL", spiffe).len(), 32);
    }
}
