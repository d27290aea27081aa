//! The cache: which entries this node has, which SVIDs it holds for them, and who listens.
//!
//! `machine` decides and is pure; `run` carries out. Everyone else holds a [`Cache`] and subscribes with what the
//! attestors found.

use std::collections::BTreeMap;
use std::sync::Arc;

use spiffe::bundle::Bundle;
use spiffe::entry::RegistrationEntry;
use spiffe::id::TrustDomain;
use spiffe::x509_svid::X509Svid;
use zeroize::Zeroizing;

/// One identity that a workload holds: the entry that gives it, its SVID, and the private key.
#[derive(Clone)]
pub struct Identity {
    /// Why the workload has it.
    pub entry: Arc<RegistrationEntry>,
    /// The SVID and its intermediates.
    pub svid: X509Svid,
    /// PKCS#8, DER.
    pub key: Arc<Zeroizing<Vec<u8>>>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("entry", &self.entry.id).field("svid", &self.svid.id()).finish_non_exhaustive()
    }
}

/// Everything that one workload is entitled to, whole each time.
#[derive(Clone, Debug)]
pub struct WorkloadState {
    /// The oldest entry first: it is the default identity. Empty: no identity was issued to this workload.
    pub identities: Vec<Identity>,
    /// Our own trust domain's.
    pub bundle: Bundle,
    /// Those of the trust domains that the workload's entries federate with and whose bundle is known.
    pub federated: BTreeMap<TrustDomain, Bundle>,
}
