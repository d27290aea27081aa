//! Authorities: the keys of this trust domain that sign SVIDs, their life, and what they sign.
//!
//! `plan` decides when one is prepared, activated, retired and removed, the same for every kind, and is pure; `keys`
//! holds the private keys; `issuer` signs X.509-SVIDs, `token_issuer` JWT-SVIDs and WIT-SVIDs; `upstream` has a CA signed
//! by another. Private keys never enter the store.

pub mod ca;
pub mod issuer;
pub mod keys;
pub mod plan;
pub mod public;
pub mod record;
mod rsa_key;
pub mod step;
mod svid_der;
pub mod token_issuer;
pub mod upstream;

use std::fmt;
use std::sync::Arc;

use spiffe::id::{SpiffeId, TrustDomain};
use spiffe::time::{Lifetime, Timestamp};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

pub use self::public::{Chain, Public, TokenKey};

/// What an authority signs. All kinds go through the same life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// X.509-SVIDs.
    X509,
    /// JWT-SVIDs.
    Jwt,
    /// WIT-SVIDs.
    Wit,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::X509, Self::Jwt, Self::Wit];

    /// Its name, as it stands in the store's keys and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::X509 => "x509",
            Self::Jwt => "jwt",
            Self::Wit => "wit",
        }
    }

    /// The kind of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
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

/// One key of one server that signs SVIDs of one kind. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// Its name: the first 32 hexadecimal digits of the SHA-256 of its public key.
    pub id: Arc<str>,
    /// The server that holds its key.
    pub owner: Arc<str>,
    /// Where it is in its life.
    pub state: State,
    /// Whether everything that it signed is to be replaced at once.
    pub tainted: bool,
    /// Of its own certificate, or of its key.
    pub lifetime: Lifetime,
    /// When it was made.
    pub prepared_at: Timestamp,
    /// When it began to sign; `None` when it never has.
    pub activated_at: Option<Timestamp>,
    /// What others verify with.
    pub public: Public,
}

impl Authority {
    /// A new one of `owner`, in state [`State::Prepared`]. `lifetime` is that of its own certificate, or of its key.
    pub fn prepared(id: Arc<str>, owner: Arc<str>, public: Public, lifetime: Lifetime, now: Timestamp) -> Self {
        Self {
            id,
            owner,
            state: State::Prepared,
            tainted: false,
            lifetime,
            prepared_at: now,
            activated_at: None,
            public,
        }
    }

    /// What it signs.
    pub fn kind(&self) -> Kind {
        self.public.kind()
    }

    /// The trust domain that its own certificate is of, where that is another one than `ours`. `None` also where the
    /// certificate names none, or there is no certificate.
    pub fn trust_domain_if_other(&self, ours: &TrustDomain) -> Option<TrustDomain> {
        let Public::X509(chain) = &self.public else { return None };
        let (_, certificate) = X509Certificate::from_der(chain.own()).ok()?;
        let names = certificate.subject_alternative_name().ok()??;
        let domain = names.value.general_names.iter().find_map(|name| match name {
            GeneralName::URI(id) => SpiffeId::parse(id).ok(),
            _ => None,
        })?;
        Some(domain.trust_domain()).filter(|domain| domain != ours)
    }

    /// Whether an upstream CA signed it.
    pub fn is_upstream(&self) -> bool {
        matches!(&self.public, Public::X509(chain) if chain.is_upstream())
    }
}

/// The authority of `owner` that signs SVIDs of `kind`; `None` when it has none.
pub fn active<'a>(authorities: impl Iterator<Item = &'a Authority>, owner: &str, kind: Kind) -> Option<&'a Authority> {
    let signs = |held: &&Authority| &*held.owner == owner && held.kind() == kind && held.state == State::Active;
    authorities.filter(signs).max_by_key(|authority| authority.activated_at)
}
