//! Why a server does not start.

use std::io;
use std::path::PathBuf;

use spiffe::id::TrustDomain;

use crate::api::listen::ListenError;
use crate::audit::AuditError;
use crate::authority::keys::KeyError;
use crate::authority::plan::PolicyError;
use crate::authority::upstream::UpstreamError;
use crate::config::ConfigError;
use crate::kube::client::AccessError;
use crate::own_svid::OwnSvidError;
use crate::rotate::RotateError;
use crate::store::StoreError;
use crate::view::follow::FollowError;
use crate::web::WebError;

/// Why a server did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// A folder could not be made.
    #[error("cannot make the folder {path}: {error}: choose another data_dir, or make it writable for this user")]
    Folder {
        /// Which.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A file that the config names is no good.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The lifetimes do not fit.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The store did not open.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store's records cannot be read.
    #[error(transparent)]
    Follow(#[from] FollowError),
    /// The keys cannot be had.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The upstream CA is no good.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// The first authority could not be made.
    #[error(transparent)]
    Rotate(#[from] RotateError),
    /// The server has no SVID of its own.
    #[error("the server's own SVID could not be made: {0}")]
    OwnSvid(#[from] OwnSvidError),
    /// A port or socket could not be had.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The audit record did not open.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// The own bundle cannot be served to others.
    #[error(transparent)]
    Web(#[from] WebError),
    /// The files of a Kubernetes cluster are no good.
    #[error("kubernetes.{cluster}: {error}")]
    Cluster {
        /// Its name.
        cluster: String,
        /// What is wrong with them.
        error: Box<AccessError>,
    },
    /// TLS could not be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    /// The state is another trust domain's.
    #[error(
        "data_dir {path} holds the CA of trust domain {held}, and the config says {asked}: set trust_domain = \
         \"{held}\", or choose an empty data_dir for {asked}"
    )]
    TrustDomain {
        /// The folder.
        path: PathBuf,
        /// Of the authorities that are there.
        held: TrustDomain,
        /// Of the config.
        asked: TrustDomain,
    },
    /// Proxies are taken of a cluster that nobody can be asked about.
    #[error("istio.clusters names cluster {0}, of which no API server is known: add [kubernetes.{0}]")]
    IstioCluster(String),
    /// The active authority's key cannot be used, although a new authority was tried.
    #[error("this server has no authority that can sign: see the log above for the reason")]
    NoAuthority,
}
