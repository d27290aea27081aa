//! The cache: which entries this node has, which SVIDs it holds for them, and who listens.
//!
//! `machine` decides and is pure; `run` carries out; `follow` keeps the stream from the server open. Everyone else holds a [`Cache`] and subscribes with what the
//! attestors found.

use std::collections::BTreeMap;
use std::sync::Arc;

use spiffe::bundle::Bundle;
use spiffe::entry::RegistrationEntry;
use spiffe::id::TrustDomain;
use spiffe::x509_svid::X509Svid;
use zeroize::Zeroizing;

mod attempts;
pub mod directory;
pub mod event;
mod follow;
pub mod machine;
pub mod run;
pub mod subscription;
mod svid;
pub mod tokens;

pub use subscription::{Cache, Look, Mailbox, Stopped, Subscribe, Subscription, mailbox};
pub use svid::Svid;

/// One identity that a workload holds: the entry that gives it, its SVID, and the private key.
#[derive(Clone)]
pub struct Identity<S = X509Svid> {
    /// Why the workload has it. Its hint is not always to be shown: see `hint`.
    pub entry: Arc<RegistrationEntry>,
    /// The entry's hint; empty where the entry has none, or where an older identity of the same workload has the
    /// same one (SPIFFE_Workload_API.md section 5.2.1: hints are unique within a response).
    pub hint: Arc<str>,
    /// The SVID and its intermediates.
    pub svid: S,
    /// PKCS#8, DER.
    pub key: Arc<Zeroizing<Vec<u8>>>,
}

impl<S> std::fmt::Debug for Identity<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let id = &self.entry.spiffe_id;
        f.debug_struct("Identity").field("entry", &self.entry.id).field("spiffe_id", id).finish_non_exhaustive()
    }
}

impl<S: PartialEq> PartialEq for Identity<S> {
    /// Equal where a workload sees no difference. The key belongs to the SVID: it needs no comparing.
    fn eq(&self, other: &Self) -> bool {
        self.svid == other.svid && self.entry.id == other.entry.id && self.hint == other.hint
    }
}

impl<S: Eq> Eq for Identity<S> {}

/// Everything that one workload is entitled to, whole each time. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadState<S = X509Svid> {
    /// The oldest entry first: it is the default identity. Empty: this workload is entitled to none (now), and is
    /// told so with `PermissionDenied` (SPIFFE_Workload_API.md section 5.2.1).
    pub identities: Arc<[Identity<S>]>,
    /// Our own trust domain's.
    pub bundle: Bundle,
    /// Those of the trust domains that the workload's entries federate with and whose bundle is known.
    pub federated: Arc<BTreeMap<TrustDomain, Bundle>>,
}
