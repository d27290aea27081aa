//! The server's own SVID, with which it meets its callers: signed by its own active authority, kept in memory only,
//! made anew at half of its life and whenever another authority becomes the active one.

use std::sync::Arc;
use std::time::Duration;

use spiffe::crypto::{self, CryptoError};
use spiffe::csr::{self, CsrError, ProvenKey};
use spiffe::entry::{DnsName, KeyType};
use spiffe::mtls::{CurrentBundles, CurrentSvid};
use spiffe::time::{Clock, Timestamp, renew_at};
use spiffe::x509_svid::{SvidError, X509Svid};
use tracing::{error, info};
use zeroize::Zeroizing;

use crate::authority::issuer::{IssueError, Issuer, Serial};
use crate::issuance::{self, Denied, Profile, Request};
use crate::metrics::{IssuedFor, Metrics};
use crate::view::follow::Views;

/// The clock is looked at this often at least, so that one that is put back keeps no agent out for longer.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Why the server has no new SVID.
#[derive(Debug, thiserror::Error)]
pub enum OwnSvidError {
    /// No key could be made.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
    /// The server's own CSR is refused.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// The plan is refused.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// It was not signed.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// What was signed is no SVID, or not of this key.
    #[error(transparent)]
    Svid(#[from] SvidError),
}

/// What the server shows, and what it verifies callers against: both are read at each handshake.
#[derive(Debug)]
pub struct OwnSvid {
    /// What it shows.
    pub svid: CurrentSvid,
    /// What callers are verified against.
    pub bundles: CurrentBundles,
    /// Names under which agents reach it.
    pub dns_names: Vec<DnsName>,
    /// What SVIDs look like.
    pub profile: Profile,
    /// Where the authorities are.
    pub views: Arc<Views>,
    /// The numbers.
    pub metrics: Arc<Metrics>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
}

impl OwnSvid {
    /// Makes the first one.
    pub fn begin(self, issuer: &Arc<Issuer>) -> Result<Keeping, OwnSvidError> {
        let renewal = self.renew(issuer)?;
        let made_at = self.clock.now();
        Ok(Keeping { own: self, signed_by: Arc::clone(issuer), made_at, renewal })
    }

    /// Makes and shows a new one; answers when to make the next.
    fn renew(&self, issuer: &Issuer) -> Result<Timestamp, OwnSvidError> {
        let now = self.clock.now();
        let key = Zeroizing::new(crypto::generate_key(KeyType::P256)?);
        let request = Request {
            key: ProvenKey::from_csr(&csr::create(&key)?)?,
            serial: Serial::from_random(crypto::random()?),
            window: issuer.window(),
            now,
        };
        let signed = issuer.sign(issuance::for_server(self.dns_names.clone(), request, &self.profile)?)?;
        let svid = X509Svid::parse(signed.chain().cloned().collect())?;
        // The root goes along, for agents that know it by its fingerprint only.
        let root = std::slice::from_ref(issuer.chain().root());
        self.svid.set(&svid, root, &Zeroizing::new(key.serialize_der()))?;
        self.metrics.issued(IssuedFor::Server);
        info!(serial = %signed.serial, not_after = %signed.lifetime.not_after, "the server has a new SVID");
        Ok(renew_at(now, signed.lifetime.not_after, signed.serial.bytes()))
    }
}

/// An [`OwnSvid`] that has been made once.
#[derive(Debug)]
pub struct Keeping {
    own: OwnSvid,
    signed_by: Arc<Issuer>,
    made_at: Timestamp,
    renewal: Timestamp,
}

impl Keeping {
    /// Follows the View until the task is dropped.
    pub async fn keep(mut self) {
        let (mut view, mut listener) = self.own.views.listen();
        loop {
            self.own.bundles.set([view.bundle().clone()]);
            if let Some(issuer) = view.issuer() {
                let same = Arc::ptr_eq(&self.signed_by, issuer);
                // Before it was made: the clock was put back, and perhaps nobody takes it for valid yet.
                let now = self.own.clock.now();
                if !same || now >= self.renewal || now < self.made_at {
                    match self.own.renew(issuer) {
                        Ok(at) => (self.made_at, self.renewal, self.signed_by) = (now, at, Arc::clone(issuer)),
                        Err(error) => {
                            error!(%error, "the server's own SVID could not be made: trying again in 5 seconds");
                            (self.made_at, self.renewal) = (now, now.plus(Duration::from_secs(5)));
                        }
                    }
                }
            }
            let renewal = async {
                match view.issuer() {
                    Some(_) => self.own.clock.sleep_until(self.renewal).await,
                    // Nothing to sign with: the next View brings it.
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                published = listener.next() => match published {
                    Some(published) => view = published.view,
                    None => return,
                },
                () = renewal => {}
                () = self.own.clock.sleep(LOOK_AGAIN) => {}
            }
        }
    }
}
