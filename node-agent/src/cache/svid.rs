//! What the machine has to know of an SVID to keep it fresh, whatever its profile.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::ops::Deref;
use std::time::Duration;

use spiffe::bundle::Bundle;
use spiffe::entry::RegistrationEntry;
use spiffe::id::SpiffeId;
use spiffe::time::{Lifetime, Timestamp};
use spiffe::wit_svid::{VerifiedWitSvid, WitSvid};
use spiffe::x509_svid::{VerifiedSvid, X509Svid};

/// An SVID with a key of its own, which is made in the agent.
pub trait Svid: Clone + Debug + Eq + Send + Sync + 'static {
    /// The same, its signature verified.
    type Verified: Deref<Target = Self> + Clone + Debug + Send + 'static;

    /// Whose it is.
    fn id(&self) -> &SpiffeId;

    /// When it is valid.
    fn lifetime(&self) -> Lifetime;

    /// What no other SVID has: renewals are spread by it.
    fn mark(&self) -> &[u8];

    /// Whether it is to be replaced because of what signed it: that is tainted or, where one is to `look_closely`, gone
    /// from the bundle.
    fn has_fallen(&self, bundle: &Bundle, look_closely: bool, now: Timestamp) -> bool;

    /// Whether something that signs SVIDs of this profile is in `before` and not in `after`.
    fn lost_authority(before: &Bundle, after: &Bundle) -> bool;

    /// Whether an SVID issued for one of the entries is as good for the other: nothing that is inside of it differs.
    fn is_the_same_for(one: &RegistrationEntry, other: &RegistrationEntry) -> bool;
}

impl Svid for X509Svid {
    type Verified = VerifiedSvid;

    fn id(&self) -> &SpiffeId {
        self.id()
    }

    fn lifetime(&self) -> Lifetime {
        self.lifetime()
    }

    fn mark(&self) -> &[u8] {
        self.serial()
    }

    fn has_fallen(&self, bundle: &Bundle, look_closely: bool, now: Timestamp) -> bool {
        self.is_tainted_by(bundle) || (look_closely && self.clone().verify(bundle, now).is_err())
    }

    fn lost_authority(before: &Bundle, after: &Bundle) -> bool {
        let roots = |bundle: &Bundle| -> BTreeSet<Vec<u8>> {
            bundle.x509_authorities().iter().map(|authority| authority.der().to_vec()).collect()
        };
        !roots(before).is_subset(&roots(after))
    }

    fn is_the_same_for(one: &RegistrationEntry, other: &RegistrationEntry) -> bool {
        one.issues_the_same_as(other)
    }
}

impl Svid for WitSvid {
    type Verified = VerifiedWitSvid;

    fn id(&self) -> &SpiffeId {
        self.id()
    }

    fn lifetime(&self) -> Lifetime {
        Lifetime {
            not_before: self.issued_at().unwrap_or_default(),
            // The first second at which it does not count is behind the last valid one.
            not_after: self.expires_at().minus(Duration::from_secs(1)),
        }
    }

    fn mark(&self) -> &[u8] {
        self.token().as_bytes()
    }

    fn has_fallen(&self, bundle: &Bundle, look_closely: bool, _now: Timestamp) -> bool {
        let is_there = || bundle.wit_authorities().iter().any(|key| key.kid() == self.kid());
        self.is_tainted_by(bundle) || (look_closely && !is_there())
    }

    fn lost_authority(before: &Bundle, after: &Bundle) -> bool {
        let keys = |bundle: &Bundle| -> BTreeSet<String> {
            bundle.wit_authorities().iter().map(|key| key.kid().to_owned()).collect()
        };
        !keys(before).is_subset(&keys(after))
    }

    fn is_the_same_for(one: &RegistrationEntry, other: &RegistrationEntry) -> bool {
        one.spiffe_id == other.spiffe_id
            && one.wit_ttl == other.wit_ttl
            && one.key_type == other.key_type
            && one.expires_at == other.expires_at
    }
}
