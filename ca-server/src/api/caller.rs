//! Who is on the other side of a connection. What the caller may do is decided for each request, in `rights`.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use spiffe::id::SpiffeId;
use spiffe::time::Timestamp;
use spiffe::x509_svid::{SvidError, X509Svid};

use super::chain::Chain;
use crate::origin::Origin;

/// The holder of an SVID of our trust domain whose path was verified in the handshake. Clones share what was found of it since.
#[derive(Clone, Debug)]
pub struct Holder {
    /// Its identity.
    pub id: SpiffeId,
    /// The last moment of its SVID.
    pub not_after: Timestamp,
    /// What it showed.
    pub chain: Arc<Chain>,
    /// Where it called from.
    pub address: SocketAddr,
}

impl Holder {
    /// Who showed `svid` from `address`.
    pub fn new(svid: X509Svid, address: SocketAddr) -> Self {
        let (id, not_after) = (svid.id().clone(), svid.lifetime().not_after);
        Self { id, not_after, chain: Arc::new(Chain::new(svid)), address }
    }

    /// The serial number of its SVID.
    pub fn serial(&self) -> &[u8] {
        self.chain.svid().serial()
    }
}

/// Who called.
#[derive(Clone, Debug)]
pub enum Caller {
    /// Someone on the network without a certificate.
    Stranger(SocketAddr),
    /// An agent, by its SVID.
    Agent(Holder),
    /// Anyone else with an SVID.
    Workload(Holder),
    /// A process of this machine, on the admin socket.
    Local {
        /// Its user.
        uid: u32,
        /// Its process, if the kernel said so.
        pid: Option<i32>,
    },
}

impl Caller {
    /// The caller of a TLS connection, from the certificates that the handshake has verified.
    pub fn of_tls(certificates: Option<&[CertificateDer<'static>]>, address: SocketAddr) -> Result<Self, SvidError> {
        let Some(certificates) = certificates.filter(|certificates| !certificates.is_empty()) else {
            return Ok(Self::Stranger(address));
        };
        let holder = Holder::new(spiffe::mtls::peer(certificates)?, address);
        Ok(if holder.id.is_agent() { Self::Agent(holder) } else { Self::Workload(holder) })
    }

    /// The SVID that the caller showed, if it did.
    pub fn holder(&self) -> Option<&Holder> {
        match self {
            Self::Agent(holder) | Self::Workload(holder) => Some(holder),
            Self::Stranger(_) | Self::Local { .. } => None,
        }
    }

    /// As whom it is counted. A workload can have many SVIDs: it counts with its network.
    pub fn origin(&self) -> Origin {
        match self {
            Self::Stranger(address) => Origin::network(address.ip()),
            Self::Workload(holder) => Origin::network(holder.address.ip()),
            Self::Agent(holder) => Origin::Agent(holder.id.clone()),
            Self::Local { uid, .. } => Origin::Uid(*uid),
        }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stranger(address) => write!(f, "stranger {address}"),
            Self::Agent(holder) | Self::Workload(holder) => write!(f, "{}", holder.id),
            Self::Local { uid, pid: Some(pid) } => write!(f, "uid {uid} pid {pid}"),
            Self::Local { uid, pid: None } => write!(f, "uid {uid}"),
        }
    }
}
