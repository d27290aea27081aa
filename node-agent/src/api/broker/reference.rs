//! What a broker calls a workload (SPIFFE_Broker_API.md section 3.1), parsed. Pure: whether there is such a workload is
//! looked at elsewhere.
//!
//! - The type is what stands behind the last slash of the type URL, as of every `google.protobuf.Any`.
//! - A type that is not one of the standard's is refused: this agent has none of its own.
//! - The references of Kubernetes are read to the letter of the standard, so that a wrong one is told from one that this
//!   agent cannot resolve.

use std::fmt;

use prost::Message as _;
use spiffe::proto::broker::{
    KubernetesObjectKey, KubernetesObjectReference, KubernetesObjectType, WorkloadPidReference, WorkloadReference,
};

const PID: &str = "spiffe.broker.WorkloadPIDReference";
const KUBERNETES: &str = "spiffe.broker.KubernetesObjectReference";
/// The longest name of an object and of an API group in Kubernetes.
const MAX_NAME_BYTES: usize = 253;
/// The longest name of a namespace.
const MAX_NAMESPACE_BYTES: usize = 63;
/// How much of a foreign text goes into a message.
const SHOWN: usize = 100;

/// One workload, in a broker's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// The process of this machine with this pid.
    Pid(u32),
    /// An object of the Kubernetes cluster that this machine is part of.
    Kubernetes(KubernetesObject),
}

/// An object of Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubernetesObject {
    /// The plural name of its kind: `pods`.
    pub plural: String,
    /// The API group of its kind: `apps`; `core` for those that have none in Kubernetes.
    pub group: String,
    /// What identifies it.
    pub identifier: KubernetesIdentifier,
}

/// What identifies an object among those of its kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KubernetesIdentifier {
    /// Whatever has that name now.
    Key(ObjectKey),
    /// That very one.
    Uid(String),
    /// That very one, which has to have that name.
    Both(ObjectKey, String),
}

/// The name of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectKey {
    /// `None`: its kind belongs to the whole cluster.
    pub namespace: Option<String>,
    /// Within the namespace.
    pub name: String,
}

/// From where a reference comes: one to a process is good on its own machine only (section 3.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whence {
    /// From a process that calls processes by the same pids as the agent.
    ThisMachine,
    /// From a process of this machine to which the same pids are other processes.
    OtherPidNamespace,
    /// From anywhere.
    Network,
}

/// Why a reference is none, or leads nowhere from where it comes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// The request has none.
    #[error("workload reference is missing: name the workload, for example by a WorkloadPIDReference")]
    Missing,
    /// The type is none that is known here.
    #[error(
        "workload reference is of the unknown type {0:?}: this agent knows type.googleapis.com/{PID} and \
         type.googleapis.com/{KUBERNETES}"
    )]
    UnknownType(String),
    /// The bytes are no message of their type.
    #[error("workload reference cannot be read as {of}: {why}")]
    Malformed {
        /// The type.
        of: &'static str,
        /// Why not.
        why: String,
    },
    /// Section 3.1.3: positive.
    #[error("workload reference has the pid {0}: a pid is a positive number")]
    Pid(i32),
    /// A field that has to be there.
    #[error("Kubernetes reference has no {0}")]
    Lacks(&'static str),
    /// A field that is no name, or no UUID.
    #[error("Kubernetes reference has the {field} {value:?}: {rule}")]
    Wrong {
        /// Which field.
        field: &'static str,
        /// What is in it.
        value: String,
        /// What should be.
        rule: &'static str,
    },
    /// A pid, from afar.
    #[error("a pid means nothing over the network: ask on the unix socket of the agent that is beside the workload")]
    PidOverNetwork,
    /// A pid of another numbering.
    #[error(
        "the broker is in another pid namespace than the agent, where the same pid is another process: run it in the \
         agent's (hostPID: true)"
    )]
    PidOfOtherNamespace,
    /// Not an error of the reference, but the standard's word for a type that a server does not understand
    /// (section 3.1.1) is the same: no other attempt with it can succeed here, and it is no RPC that is missing.
    #[error(
        "Kubernetes is not set up on this agent: name the workload by a WorkloadPIDReference, or add [attestors.k8s]"
    )]
    NoKubernetes,
    /// An object of which this agent knows nothing.
    #[error("Kubernetes reference is to {plural} of {group}: this agent knows pods of core, those of its own node")]
    NoPod {
        /// Of which kind.
        plural: String,
        /// Of which group.
        group: String,
    },
}

impl Reference {
    /// Parses the reference of a request; `None`: the request has none.
    pub fn parse(wire: Option<WorkloadReference>) -> Result<Self, ReferenceError> {
        let any = wire.and_then(|wire| wire.reference).filter(|any| !any.type_url.is_empty());
        let any = any.ok_or(ReferenceError::Missing)?;
        let malformed = |of| move |error: prost::DecodeError| ReferenceError::Malformed { of, why: error.to_string() };
        match any.type_url.rsplit_once('/') {
            Some((_, PID)) => {
                let WorkloadPidReference { pid } = WorkloadPidReference::decode(&*any.value).map_err(malformed(PID))?;
                let positive = u32::try_from(pid).ok().filter(|pid| *pid > 0);
                positive.map(Self::Pid).ok_or(ReferenceError::Pid(pid))
            }
            Some((_, KUBERNETES)) => {
                let wire = KubernetesObjectReference::decode(&*any.value).map_err(malformed(KUBERNETES))?;
                KubernetesObject::parse(wire).map(Self::Kubernetes)
            }
            _ => Err(ReferenceError::UnknownType(shown(&any.type_url))),
        }
    }
}

impl Reference {
    /// What it leads to, from `whence`, on an agent that knows pods or does not.
    pub fn resolve(self, whence: Whence, knows_pods: bool) -> Result<Target, ReferenceError> {
        match (self, whence) {
            (Self::Pid(pid), Whence::ThisMachine) => Ok(Target::Process(pid)),
            (Self::Pid(_), Whence::OtherPidNamespace) => Err(ReferenceError::PidOfOtherNamespace),
            (Self::Pid(_), Whence::Network) => Err(ReferenceError::PidOverNetwork),
            (Self::Kubernetes(_), _) if !knows_pods => Err(ReferenceError::NoKubernetes),
            (Self::Kubernetes(object), _) => {
                if (object.plural.as_str(), object.group.as_str()) != ("pods", "core") {
                    return Err(ReferenceError::NoPod { plural: object.plural, group: object.group });
                }
                match &object.identifier {
                    KubernetesIdentifier::Key(key) | KubernetesIdentifier::Both(key, _) if key.namespace.is_none() => {
                        Err(ReferenceError::Lacks("key.namespace, and a pod is in one"))
                    }
                    _ => Ok(Target::Pod(object.identifier)),
                }
            }
        }
    }
}

/// What a reference leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The process with this pid.
    Process(u32),
    /// The pod with this name or UID.
    Pod(KubernetesIdentifier),
}

impl KubernetesIdentifier {
    /// Whether it means the one with this namespace, name and UID.
    pub fn means(&self, namespace: &str, name: &str, uid: &str) -> bool {
        let has = |key: &ObjectKey| key.namespace.as_deref() == Some(namespace) && key.name == name;
        match self {
            Self::Key(key) => has(key),
            Self::Uid(wanted) => wanted == uid,
            Self::Both(key, wanted) => has(key) && wanted == uid,
        }
    }
}

impl fmt::Display for KubernetesIdentifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(key) => key.fmt(f),
            Self::Uid(uid) => f.write_str(uid),
            Self::Both(key, uid) => write!(f, "{key}, {uid}"),
        }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{namespace}/{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

impl KubernetesObject {
    fn parse(wire: KubernetesObjectReference) -> Result<Self, ReferenceError> {
        let KubernetesObjectReference { r#type, key, uid } = wire;
        let KubernetesObjectType { plural, group } = r#type.ok_or(ReferenceError::Lacks("type"))?;
        let key = key.map(ObjectKey::parse).transpose()?;
        let uid = if uid.is_empty() { None } else { Some(parse_uid(uid)?) };
        let identifier = match (key, uid) {
            (Some(key), None) => KubernetesIdentifier::Key(key),
            (None, Some(uid)) => KubernetesIdentifier::Uid(uid),
            (Some(key), Some(uid)) => KubernetesIdentifier::Both(key, uid),
            (None, None) => return Err(ReferenceError::Lacks("key and no uid: give at least one of them")),
        };
        let (plural, group) = (resource("type.plural", plural)?, resource("type.group", group)?);
        Ok(Self { plural, group, identifier })
    }
}

impl ObjectKey {
    fn parse(wire: KubernetesObjectKey) -> Result<Self, ReferenceError> {
        let KubernetesObjectKey { namespace, name } = wire;
        let namespace = if namespace.is_empty() { None } else { Some(parse_namespace(namespace)?) };
        if name.is_empty() {
            return Err(ReferenceError::Lacks("key.name"));
        }
        let is_segment = name != "." && name != ".." && !name.contains(['/', '%']);
        if !is_segment || name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
            let rule = "a name has at most 253 bytes, is not a dot or two, and has no slash and no percent sign";
            return Err(ReferenceError::Wrong { field: "key.name", value: shown(&name), rule });
        }
        Ok(Self { namespace, name })
    }
}

/// `pods`, `kustomize.toolkit.fluxcd.io`: labels of RFC 1123 with dots between them.
fn resource(field: &'static str, value: String) -> Result<String, ReferenceError> {
    if value.is_empty() {
        let core =
            if field == "type.group" { "type.group: write \"core\" for Kubernetes' own resources" } else { field };
        return Err(ReferenceError::Lacks(core));
    }
    if value.len() <= MAX_NAME_BYTES && value.split('.').all(is_label) {
        return Ok(value);
    }
    let rule = "it has a-z, 0-9, dashes and dots, and at most 253 bytes";
    Err(ReferenceError::Wrong { field, value: shown(&value), rule })
}

fn parse_namespace(value: String) -> Result<String, ReferenceError> {
    if value.len() <= MAX_NAMESPACE_BYTES && is_label(&value) {
        return Ok(value);
    }
    let rule = "a namespace has a-z, 0-9 and dashes, and at most 63 bytes";
    Err(ReferenceError::Wrong { field: "key.namespace", value: shown(&value), rule })
}

fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// `a1b2c3d4-e5f6-7890-abcd-ef1234567890`
fn parse_uid(uid: String) -> Result<String, ReferenceError> {
    let groups: Vec<&str> = uid.split('-').collect();
    let lengths: Vec<usize> = groups.iter().map(|group| group.len()).collect();
    if lengths == [8, 4, 4, 4, 12] && groups.iter().all(|group| group.bytes().all(|byte| byte.is_ascii_hexdigit())) {
        return Ok(uid);
    }
    let rule = "a UID is a UUID, 32 hexadecimal digits in five groups";
    Err(ReferenceError::Wrong { field: "uid", value: shown(&uid), rule })
}

fn shown(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost_types::Any;

    use super::*;

    const UID: &str = "a1b2c3d4-e5f6-7890-abcd-ef1234567890";

    fn packed(type_name: &str, value: Vec<u8>) -> Option<WorkloadReference> {
        let any = Any { type_url: format!("type.googleapis.com/{type_name}"), value };
        Some(WorkloadReference { reference: Some(any) })
    }

    fn pid(pid: i32) -> Result<Reference, ReferenceError> {
        Reference::parse(packed(PID, WorkloadPidReference { pid }.encode_to_vec()))
    }

    /// Of `kind` (plural and group), `key` (namespace and name), and `uid`.
    fn object(kind: (&str, &str), key: Option<(&str, &str)>, uid: &str) -> Result<KubernetesObject, String> {
        let wire = KubernetesObjectReference {
            r#type: Some(KubernetesObjectType { plural: kind.0.into(), group: kind.1.into() }),
            key: key.map(|(namespace, name)| KubernetesObjectKey { namespace: namespace.into(), name: name.into() }),
            uid: uid.into(),
        };
        match Reference::parse(packed(KUBERNETES, wire.encode_to_vec())) {
            Ok(Reference::Kubernetes(object)) => Ok(object),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn a_pid_is_positive() {
        assert_eq!(pid(1), Ok(Reference::Pid(1)));
        assert_eq!(pid(i32::MAX), Ok(Reference::Pid(2_147_483_647)));
        for wrong in [0, -1, i32::MIN] {
            assert_eq!(pid(wrong), Err(ReferenceError::Pid(wrong)));
        }
    }

    #[test]
    fn a_pid_is_good_on_its_own_machine_only() {
        let pid = |whence| Reference::Pid(7).resolve(whence, true);
        assert_eq!(pid(Whence::ThisMachine), Ok(Target::Process(7)));
        assert_eq!(pid(Whence::Network), Err(ReferenceError::PidOverNetwork));
        assert_eq!(pid(Whence::OtherPidNamespace), Err(ReferenceError::PidOfOtherNamespace));
    }

    #[test]
    fn a_pod_is_good_from_everywhere_and_nothing_else_of_kubernetes_is() {
        let resolve = |object: &KubernetesObject, whence| Reference::Kubernetes(object.clone()).resolve(whence, true);
        let pod = object(("pods", "core"), Some(("shop", "web-0")), UID).unwrap();
        for whence in [Whence::ThisMachine, Whence::OtherPidNamespace, Whence::Network] {
            assert_eq!(resolve(&pod, whence), Ok(Target::Pod(pod.identifier.clone())));
            let blind = Reference::Kubernetes(pod.clone()).resolve(whence, false);
            assert_eq!(blind, Err(ReferenceError::NoKubernetes));
        }
        for other in [("deployments", "apps"), ("pods", "metrics.k8s.io"), ("serviceaccounts", "core")] {
            let error = resolve(&object(other, None, UID).unwrap(), Whence::ThisMachine).unwrap_err();
            assert!(error.to_string().contains("this agent knows pods of core"), "{error}");
        }
        let nowhere = object(("pods", "core"), Some(("", "web-0")), "").unwrap();
        assert_eq!(
            resolve(&nowhere, Whence::Network),
            Err(ReferenceError::Lacks("key.namespace, and a pod is in one"))
        );
    }

    #[test]
    fn a_pod_has_to_have_both_its_name_and_its_uid_where_both_are_given() {
        let means = |key, uid: &str, found: (&str, &str, &str)| {
            object(("pods", "core"), key, uid).unwrap().identifier.means(found.0, found.1, found.2)
        };
        let (web, other) = (("shop", "web-0", UID), "00000000-e5f6-7890-abcd-ef1234567890");
        assert!(
            means(Some(("shop", "web-0")), UID, web)
                && means(None, UID, web)
                && means(Some(("shop", "web-0")), "", web)
        );
        assert!(!means(Some(("shop", "web-0")), other, web) && !means(None, other, web));
        assert!(!means(Some(("mail", "web-0")), UID, web) && !means(Some(("shop", "web-1")), "", web));
    }

    #[test]
    fn what_is_no_reference_is_refused_with_its_reason() {
        assert_eq!(Reference::parse(None), Err(ReferenceError::Missing));
        assert_eq!(Reference::parse(Some(WorkloadReference { reference: None })), Err(ReferenceError::Missing));
        let empty = WorkloadReference { reference: Some(Any::default()) };
        assert_eq!(Reference::parse(Some(empty)), Err(ReferenceError::Missing));
        for unknown in
            ["example.org.Reference", "spiffe.broker.WorkloadPidReference", "spiffe.broker.WorkloadReference"]
        {
            let error = Reference::parse(packed(unknown, Vec::new())).unwrap_err();
            assert!(error.to_string().contains("unknown type"), "{error}");
        }
        let bare = Any { type_url: PID.into(), value: WorkloadPidReference { pid: 1 }.encode_to_vec() };
        let bare = Reference::parse(Some(WorkloadReference { reference: Some(bare) }));
        assert!(matches!(bare, Err(ReferenceError::UnknownType(_))), "{bare:?}");
        let broken = Reference::parse(packed(PID, vec![0x0a, 0x7f]));
        assert!(matches!(broken, Err(ReferenceError::Malformed { of: PID, .. })), "{broken:?}");
    }

    #[test]
    fn the_examples_of_the_standard_are_objects() {
        let key =
            |namespace: Option<&str>, name: &str| ObjectKey { namespace: namespace.map(Into::into), name: name.into() };
        let pod = object(("pods", "core"), Some(("shop", "checkout-7c9f")), UID).unwrap();
        assert_eq!((pod.plural.as_str(), pod.group.as_str()), ("pods", "core"));
        assert_eq!(pod.identifier, KubernetesIdentifier::Both(key(Some("shop"), "checkout-7c9f"), UID.into()));
        let pod = object(("pods", "core"), None, UID).unwrap();
        assert_eq!(pod.identifier, KubernetesIdentifier::Uid(UID.into()));
        let deployment = object(("deployments", "apps"), Some(("shop", "checkout")), "").unwrap();
        assert_eq!(deployment.identifier, KubernetesIdentifier::Key(key(Some("shop"), "checkout")));
        object(("kustomizations", "kustomize.toolkit.fluxcd.io"), None, UID).unwrap();
        let node = object(("nodes", "core"), Some(("", "ip-10-0-1-42.ec2.internal")), "").unwrap();
        assert_eq!(node.identifier, KubernetesIdentifier::Key(key(None, "ip-10-0-1-42.ec2.internal")));
    }

    #[test]
    fn an_object_that_the_standard_does_not_allow_is_refused() {
        let long = "n".repeat(254);
        let cases = [
            (object(("", "core"), None, UID), "has no type.plural"),
            (object(("pods", ""), None, UID), "write \"core\""),
            (object(("pods", "core"), None, ""), "give at least one of them"),
            (object(("pods", "core"), Some(("shop", "")), UID), "has no key.name"),
            (object(("pods", "core"), None, "a1b2c3d4"), "a UID is a UUID"),
            (object(("pods", "core"), None, &UID.replace('a', "g")), "a UID is a UUID"),
            (object(("Pods", "core"), None, UID), "the type.plural \"Pods\""),
            (object(("pods", "core/v1"), None, UID), "the type.group \"core/v1\""),
            (object(("pods", "core"), Some(("a.b", "x")), ""), "the key.namespace \"a.b\""),
            (object(("pods", "core"), Some(("shop", "../x")), ""), "no slash"),
            (object(("pods", "core"), Some(("shop", &long)), ""), "at most 253 bytes"),
        ];
        for (parsed, words) in cases {
            let error = parsed.unwrap_err();
            assert!(error.contains(words), "{error}\n(wanted: {words})");
        }
        let untyped = KubernetesObjectReference { uid: UID.into(), ..Default::default() };
        let untyped = Reference::parse(packed(KUBERNETES, untyped.encode_to_vec()));
        assert_eq!(untyped, Err(ReferenceError::Lacks("type")));
    }

    proptest! {
        #[test]
        fn only_positive_pids_come_out(number: i32) {
            prop_assert_eq!(pid(number).ok(), (number > 0).then(|| Reference::Pid(number.unsigned_abs())));
        }

        #[test]
        fn nothing_panics(type_name in "(spiffe\\.broker\\.(WorkloadPIDReference|KubernetesObjectReference))|.{0,40}", value: Vec<u8>) {
            if let Err(error) = Reference::parse(packed(&type_name, value)) {
                prop_assert!(error.to_string().len() < 1000);
            }
        }
    }
}
