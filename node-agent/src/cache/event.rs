//! What goes into the machine, and what comes out of it.

use std::sync::Arc;

use spiffe::bundle::Bundle;
use spiffe::entry::{EntryId, RegistrationEntry};
use spiffe::jose::{self, Jwk};
use spiffe::selector::Selectors;
use spiffe::x509_svid::X509Svid;
use zeroize::Zeroizing;

use super::{Svid, WorkloadState};
use crate::client::Update;

/// The name of a subscriber, given by the loop; never used twice.
pub type SubscriberId = u64;

/// What happened.
#[derive(Debug)]
pub enum Event<S: Svid = X509Svid> {
    /// The server said what there is: everything, or what has changed.
    Synced(Update),
    /// There is no connection to any server.
    ServerGone,
    /// The answers to an [`Action::Issue`], all of it or some.
    Answered(Vec<Answer<S>>),
    /// Somebody wants to be told.
    Subscribed(SubscriberId, Selectors),
    /// Somebody listens no more.
    Unsubscribed(SubscriberId),
    /// Time has passed.
    Tick,
}

/// What came of asking for one entry's SVID.
#[derive(Debug)]
pub struct Answer<S: Svid = X509Svid> {
    /// Which entry.
    pub entry: EntryId,
    /// What came.
    pub outcome: Outcome<S>,
}

/// An SVID, or none.
#[derive(Debug)]
pub enum Outcome<S: Svid = X509Svid> {
    /// A verified SVID and its key.
    Issued {
        /// Verified against the bundle as it was when the SVID arrived.
        svid: S::Verified,
        /// PKCS#8, DER.
        key: Key,
    },
    /// The server said no to this entry: asking again soon will not help.
    Refused,
    /// It went wrong on the way: asking again may help.
    Failed,
}

/// A private key, PKCS#8 DER, wiped when the last who holds it lets go. Never printed.
#[derive(Clone)]
pub struct Key(pub Arc<Zeroizing<Vec<u8>>>);

impl Key {
    /// Takes over the private half of `key`.
    pub fn new(mut key: rcgen::KeyPair) -> Self {
        let pkcs8 = Zeroizing::new(key.serialize_der());
        zeroize::Zeroize::zeroize(&mut key);
        Self(Arc::new(pkcs8))
    }

    /// The public half; `None` for a kind of key that has no JWK.
    pub fn jwk(&self) -> Option<Jwk> {
        jose::public_jwk(&self.0).ok()
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

/// What is to be done.
#[derive(Debug)]
pub enum Action<S = X509Svid> {
    /// Ask the server for SVIDs, and answer for each entry, whatever comes.
    Issue(Vec<Arc<RegistrationEntry>>),
    /// Tell this subscriber.
    Publish(SubscriberId, WorkloadState<S>),
    /// The bundle of the own trust domain has changed: verify the servers against it, and keep it for the next start.
    Trust(Bundle),
    /// Tell the server that everything up to this revision is applied.
    Acknowledge(u64),
}
