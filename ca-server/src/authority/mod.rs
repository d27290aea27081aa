//! Authorities: the CA keys of this trust domain, their life, and what they sign.
//!
//! `plan` decides when one is prepared, activated, retired and removed, and is pure; `keys` holds the private keys;
//! `issuer` signs; `upstream` has a CA signed by another. Private keys never enter the store.

pub mod ca;
pub mod issuer;
pub mod keys;
pub mod plan;
pub mod record;
pub mod step;
mod svid_der;
pub mod upstream;

use std::fmt;
use std::sync::Arc;

use rustls_pki_types::CertificateDer;

use spiffe::id::{SpiffeId, TrustDomain};
use spiffe::time::{Lifetime, Timestamp};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// What an authority signs. JWT and WIT keys will be further kinds of the same machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// X.509-SVIDs.
    X509,
}

impl Kind {
    /// Its name, as it stands in the store's keys and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::X509 => "x509",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where an authority is in its life. Only an operator's revoke, or its own end, takes it out of the bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// In the bundle, so that everyone learns of it; signs nothing yet.
    Prepared,
    /// Signs. Exactly one of each owner and kind.
    Active,
    /// Signs no more; what it signed is still good.
    Retired,
}

impl State {
    /// Its name, as it is shown to people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Prepared => "prepared",
            Self::Active => "active",
            Self::Retired => "retired",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One CA certificate of one server. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// Its name: the first 32 hexadecimal digits of the SHA-256 of its public key.
    pub id: Arc<str>,
    /// The server that holds its key.
    pub owner: Arc<str>,
    /// What it signs.
    pub kind: Kind,
    /// Where it is in its life.
    pub state: State,
    /// Whether everything below it is to be replaced at once.
    pub tainted: bool,
    /// Of its own certificate.
    pub lifetime: Lifetime,
    /// When it was made.
    pub prepared_at: Timestamp,
    /// When it began to sign; `None` when it never has.
    pub activated_at: Option<Timestamp>,
    /// Its own CA certificate first, the root last. Self-signed: itself alone.
    pub chain: Arc<[CertificateDer<'static>]>,
}

impl Authority {
    /// A new one of `owner` for X.509, in state [`State::Prepared`]. `chain` has its own certificate first, the root
    /// last; `lifetime` is that of its own certificate.
    pub fn prepared(
        id: Arc<str>,
        owner: Arc<str>,
        chain: Vec<CertificateDer<'static>>,
        lifetime: Lifetime,
        now: Timestamp,
    ) -> Self {
        Self {
            id,
            owner,
            kind: Kind::X509,
            state: State::Prepared,
            tainted: false,
            lifetime,
            prepared_at: now,
            activated_at: None,
            chain: chain.into(),
        }
    }

    /// The root of its chain: what stands in the bundle. `None` for an empty chain, which [`record`] never reads.
    pub fn root(&self) -> Option<&CertificateDer<'static>> {
        self.chain.last()
    }

    /// The trust domain that its own certificate is of, where that is another one than `ours`. `None` also where the
    /// certificate names none.
    pub fn trust_domain_if_other(&self, ours: &TrustDomain) -> Option<TrustDomain> {
        let (_, certificate) = X509Certificate::from_der(self.chain.first()?).ok()?;
        let names = certificate.subject_alternative_name().ok()??;
        let domain = names.value.general_names.iter().find_map(|name| match name {
            GeneralName::URI(id) => SpiffeId::parse(id).ok(),
            _ => None,
        })?;
        Some(domain.trust_domain()).filter(|domain| domain != ours)
    }

    /// Whether an upstream CA signed it.
    pub fn is_upstream(&self) -> bool {
        self.chain.len() > 1
    }
}
