//! The agent's own identity: proved once, kept on disk, renewed for as long as the agent runs.
//!
//! | file | owns |
//! |---|---|
//! | `attest` | how the node proves which it is, and how it knows the server while it knows nothing else |
//! | `x509pop` | the proof by a certificate that the node already has |
//! | `k8s_psat` | the proof by the token of the agent's service account |
//! | `folder` | the agent's SVID, key and bundle on disk |
//! | `keep` | the loop that renews |

use std::path::PathBuf;

use spiffe::bundle::BundleError;
use spiffe::crypto::{self, CryptoError};
use spiffe::csr::CsrError;
use spiffe::entry::KeyType;
use spiffe::time::{Timestamp, renew_at};
use spiffe::x509_svid::{SvidError, X509Svid};

use crate::cache::event::Key;
use crate::client::ClientError;

pub mod attest;
pub mod folder;
pub mod k8s_psat;
pub mod keep;
pub mod x509pop;

/// Why the agent has no identity of its own.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A file cannot be read or written.
    #[error("cannot {doing} {path}: {source}")]
    File {
        /// What was tried, as a verb.
        doing: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// Another agent has the folder open.
    #[error("another agent uses data_dir {}: stop it, or give this one its own data_dir", .0.display())]
    InUse(PathBuf),
    /// Nothing says how to know the server.
    #[error(
        "the agent must know its server, and no bundle of an earlier start is stored in data_dir: give \
         bootstrap_bundle (--bootstrap-bundle FILE: the trust domain's roots) or ca_fingerprint (--ca-fingerprint \
         sha256:..., printed by \"chancery token create\")"
    )]
    NoBootstrap,
    /// A file has something else in it than it should.
    #[error("{path}: {why}")]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// There is no stored SVID that is still valid, and no token.
    #[error(
        "no join token is configured, and no valid SVID of this agent is stored: create a token with \
         \"chancery token create\" and give it with --join-token, or as attest.token or attest.token_file in the config"
    )]
    NoToken,
    /// The server said no to the token.
    #[error("the server does not take the join token: {0}")]
    Token(String),
    /// The server said no to the node's proof.
    #[error("the server does not accept this node: {0}")]
    Refused(String),
    /// The server could not be asked.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// What the server signed is no good.
    #[error("the SVID that the server issued to this agent is no good: {0}")]
    Svid(#[from] SvidError),
    /// The server issued another kind of identity.
    #[error("the server issued {0} to this agent, which is no agent's ID of its trust domain")]
    NotAnAgent(String),
    /// The bootstrap bundle, or the stored one, is no good.
    #[error("{path}: {source}")]
    Bundle {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: BundleError,
    },
    /// No key could be made.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
    /// No CSR could be made.
    #[error(transparent)]
    Csr(#[from] CsrError),
}

impl NodeError {
    /// Whether the server will not have this agent, however it proves what it is.
    fn is_ban(&self) -> bool {
        matches!(self, Self::Client(error) if error.is_ban())
    }

    /// Whether asking again may help without anyone doing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Client(error) if !error.is_refusal())
    }
}

/// The agent's SVID and its key.
#[derive(Clone, Debug)]
pub struct NodeIdentity {
    /// The SVID and its intermediates.
    pub svid: X509Svid,
    /// Its private key.
    pub key: Key,
}

impl NodeIdentity {
    /// Whether the SVID is still valid. One of the future counts as valid: more likely the clock is wrong.
    pub fn is_valid(&self, now: Timestamp) -> bool {
        now <= self.svid.lifetime().not_after
    }

    /// When it is to be renewed.
    pub fn renew_at(&self) -> Timestamp {
        let lifetime = self.svid.lifetime();
        renew_at(lifetime.issued(), lifetime.not_after, self.svid.serial())
    }

    /// Whether it is to be renewed at `now`: half of its life is over, or the clock was put back before it.
    pub fn is_due(&self, now: Timestamp) -> bool {
        now >= self.renew_at() || now < self.svid.lifetime().not_before
    }
}

/// A new key, and the CSR for it.
fn fresh_key(key_type: KeyType) -> Result<(Key, Vec<u8>), NodeError> {
    let key = crypto::generate_key(key_type)?;
    let csr = spiffe::csr::create(&key)?;
    Ok((Key::new(key), csr))
}
