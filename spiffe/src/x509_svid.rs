//! X.509-SVIDs: accept exactly what X509-SVID.md accepts. A parsed one has kept the profile of a leaf; a verified
//! one also has a path to a root of its trust domain's bundle.

use std::sync::Arc;

use rustls_pki_types::CertificateDer;

use crate::bundle::Bundle;
use crate::id::SpiffeId;
use crate::time::{Lifetime, Timestamp};

/// The most certificates in one chain.
pub const MAX_CHAIN: usize = 8;
/// The largest single certificate, in bytes.
pub const MAX_CERTIFICATE_BYTES: usize = 16 << 10;

/// Why a chain is no good X.509-SVID.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SvidError {
    /// There is no certificate.
    #[error("there is no certificate")]
    Empty,
}

/// A chain whose first certificate keeps the profile of an X.509-SVID (X509-SVID.md sections 2 to 5). Its path is
/// not verified yet. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct X509Svid {
    chain: Arc<[CertificateDer<'static>]>,
    id: SpiffeId,
    serial: Arc<[u8]>,
    lifetime: Lifetime,
}

impl X509Svid {
    /// Parses the leaf and checks it against the profile; `chain` has the leaf first.
    pub fn parse(chain: Vec<CertificateDer<'static>>) -> Result<Self, SvidError> {
        let _ = chain;
        Err(SvidError::Empty)
    }

    /// Verifies the path to a root of `bundle` at `now` (X509-SVID.md section 5.2): the trust domain must be the
    /// bundle's.
    pub fn verify(self, bundle: &Bundle, now: Timestamp) -> Result<VerifiedSvid, SvidError> {
        let _ = (bundle, now);
        Err(SvidError::Empty)
    }

    /// The one SPIFFE ID.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The chain, the SVID first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The serial number's bytes, without leading zeros.
    pub fn serial(&self) -> &[u8] {
        &self.serial
    }

    /// From when to when the SVID is valid.
    pub fn lifetime(&self) -> Lifetime {
        self.lifetime
    }

    /// Whether a root of `bundle` that is marked tainted is in this SVID's path (by issuer key identifiers).
    pub fn is_tainted_by(&self, bundle: &Bundle) -> bool {
        let _ = bundle;
        false
    }
}

/// An [`X509Svid`] with a verified path: who the peer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedSvid(X509Svid);

impl std::ops::Deref for VerifiedSvid {
    type Target = X509Svid;
    fn deref(&self) -> &X509Svid {
        &self.0
    }
}
