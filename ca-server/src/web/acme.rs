//! The certificate of the web by ACME (RFC 8555), proved by TLS-ALPN-01 (RFC 8737) on the listener that shows it.
//!
//! - The account, the certificate and its key are kept in `data_dir/acme`, mode 0600, and used again after a restart.
//! - It is renewed at two thirds of its life, with a fresh key; after a failure with ever longer pauses, while the one that
//!   is there goes on being shown.
//! - A challenge is answered for the name that was asked for, in a connection that says `acme-tls/1` and nothing else, and
//!   only while it is open.

mod client;
mod files;
mod shown;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use instant_acme::{
    Account, AuthorizationStatus, ChallengeType, Error, Identifier, NewAccount, NewOrder, Order, OrderStatus,
    RetryPolicy,
};
use rcgen::{CertificateParams, CustomExtension, DistinguishedName};
use rustls::server::ResolvesServerCert;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use spiffe::crypto::{self, CryptoError};
use spiffe::entry::KeyType;
use spiffe::time::{Backoff, Clock, Timestamp};
use tracing::{error, info};

use super::certificate::CertificateError;
use crate::config::{Acme, ConfigError};
use crate::https::WebRoots;
use client::Client;
use files::Kept;
pub(super) use shown::PROTOCOL;
use shown::Shown;

/// How long one order may take.
const ORDER: Duration = Duration::from_secs(300);
/// How long the pauses after failures are: CAs count failures, and lock out who has too many in an hour.
const PAUSES: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(6 * 3600));
/// The clock is looked at this often at least.
const LOOK_AGAIN: Duration = Duration::from_secs(3600);

/// Why there is no certificate by ACME.
#[derive(Debug, thiserror::Error)]
pub enum AcmeError {
    /// A file cannot be written or read.
    #[error("{path}: {error}: let this user write to data_dir/acme")]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        error: String,
    },
    /// The roots of the CA's web server cannot be read.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// What the CA says, or what is wrong with how it says it.
    #[error("the ACME CA: {0}")]
    Protocol(#[from] Error),
    /// The CA offers no way to prove a name that is ours.
    #[error("the ACME CA offers no tls-alpn-01 challenge for {0}: use certificate files instead")]
    NoChallenge(String),
    /// The CA has refused.
    #[error(
        "the ACME CA does not believe that {names} is here ({status:?}): its TLS connection to port 443 of that name has to reach web.https_web.listen"
    )]
    Refused {
        /// The names that were asked for.
        names: String,
        /// What became of the order.
        status: OrderStatus,
    },
    /// The CA is slow.
    #[error("the ACME CA has not answered in 5 minutes")]
    TooSlow,
    /// A key could not be made.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
    /// The key of a challenge could not be used.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    /// A CSR or a challenge could not be written.
    #[error("the request for a certificate cannot be written: {0}")]
    Write(#[from] rcgen::Error),
    /// What came, or was kept, is no certificate with its key.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

/// The certificate of the web, kept fresh by an ACME CA.
#[derive(Debug)]
pub(super) struct Keeper {
    config: Acme,
    kept: Kept,
    roots: Arc<WebRoots>,
    shown: Shown,
    clock: Arc<dyn Clock>,
}

impl Keeper {
    /// Shows what was kept in `folder`, if it is good.
    pub(super) fn open(config: &Acme, folder: PathBuf, clock: Arc<dyn Clock>) -> Result<Self, AcmeError> {
        let roots = config.roots.as_ref();
        let roots = roots.map(|path| crate::config::certificates("web.https_web.acme.roots", path)).transpose()?;
        let roots = Arc::new(WebRoots::new(roots.unwrap_or_default(), Arc::clone(&clock)));
        Ok(Self { config: config.clone(), kept: Kept::open(folder)?, roots, shown: Shown::default(), clock })
    }

    /// What the listener shows.
    pub(super) fn shown(&self) -> Arc<dyn ResolvesServerCert> {
        Arc::new(self.shown.clone())
    }

    /// Renews until the task is dropped.
    pub(super) async fn keep(self) {
        let mut backoff = Backoff::new(PAUSES.0, PAUSES.1);
        let names = self.names();
        let mut renewal = match self.kept.certificate(&names) {
            Some((pair, renewal)) => {
                self.shown.show(pair);
                renewal
            }
            None => self.clock.now(),
        };
        loop {
            let now = self.clock.now();
            if now >= renewal {
                match self.renew(&names).await {
                    Ok(at) => {
                        backoff.reset();
                        renewal = at;
                        info!(names = names.join(", "), renewal = %at, "there is a new certificate of the web");
                    }
                    Err(error) => {
                        let pause = backoff.after_failure(crypto::random().map_or(0, u32::from_le_bytes));
                        error!(%error, ?pause, "no certificate of the web by ACME: tried again later");
                        renewal = self.clock.now().plus(pause);
                    }
                }
            }
            tokio::select! {
                () = self.clock.sleep_until(renewal) => {}
                () = self.clock.sleep(LOOK_AGAIN) => {}
            }
        }
    }

    fn names(&self) -> Vec<String> {
        self.config.domains.iter().map(ToString::to_string).collect()
    }

    /// Gets a certificate, keeps and shows it; answers when to get the next one.
    async fn renew(&self, names: &[String]) -> Result<Timestamp, AcmeError> {
        #[expect(clippy::disallowed_methods, reason = "a time limit on network input")]
        let ordered = tokio::time::timeout(ORDER, self.order(names)).await;
        self.shown.forget_challenges();
        let (chain, key) = ordered.map_err(|_| AcmeError::TooSlow)??;
        self.kept.keep_certificate(&chain, &key)?;
        let (pair, renewal) = self.kept.certificate(names).ok_or_else(|| AcmeError::File {
            path: self.kept.folder().to_owned(),
            error: "the certificate that came is not for these names, or cannot be read".into(),
        })?;
        self.shown.show(pair);
        Ok(renewal)
    }

    /// The chain, and the key that was made for it, as PEM.
    async fn order(&self, names: &[String]) -> Result<(String, rcgen::KeyPair), AcmeError> {
        let account = self.account().await?;
        let identifiers: Vec<Identifier> = names.iter().cloned().map(Identifier::Dns).collect();
        let mut order = account.new_order(&NewOrder::new(&identifiers)).await?;
        self.prove(&mut order).await?;
        let status = order.poll_ready(&RetryPolicy::default().timeout(ORDER)).await?;
        if status != OrderStatus::Ready {
            return Err(AcmeError::Refused { names: names.join(", "), status });
        }
        let key = crypto::generate_key(KeyType::P256)?;
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = DistinguishedName::new();
        order.finalize_csr(params.serialize_request(&key)?.der()).await?;
        let chain = order.poll_certificate(&RetryPolicy::default().timeout(ORDER)).await?;
        Ok((chain, key))
    }

    /// The account of this server: that which was kept, if it is of this CA, else a new one.
    async fn account(&self) -> Result<Account, AcmeError> {
        let directory = self.config.directory.to_string();
        if let Some(credentials) = self.kept.account(&directory) {
            return Ok(Account::builder_with_http(self.client()).from_credentials(credentials).await?);
        }
        let contact: Vec<&str> = self.config.contact.iter().map(String::as_str).collect();
        let account = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
        let made = Account::builder_with_http(self.client()).create(&account, directory.clone(), None).await;
        let (account, credentials) = made?;
        self.kept.keep_account(&directory, &credentials)?;
        Ok(account)
    }

    fn client(&self) -> Box<Client> {
        Box::new(Client { roots: Arc::clone(&self.roots) })
    }

    /// Answers a challenge for each name that is not believed yet.
    async fn prove(&self, order: &mut Order) -> Result<(), AcmeError> {
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            if authorization.status == AuthorizationStatus::Valid {
                continue;
            }
            let name = authorization.identifier().to_string();
            let challenge = authorization.challenge(ChallengeType::TlsAlpn01);
            let mut challenge = challenge.ok_or_else(|| AcmeError::NoChallenge(name.clone()))?;
            let answer = answer(&name, challenge.key_authorization().digest().as_ref())?;
            self.shown.answer(name, answer);
            challenge.set_ready().await?;
        }
        Ok(())
    }
}

/// The certificate that proves `name` (RFC 8737 section 3).
fn answer(name: &str, digest: &[u8]) -> Result<CertifiedKey, AcmeError> {
    let key = crypto::generate_key(KeyType::P256)?;
    let mut params = CertificateParams::new([name.to_owned()])?;
    params.distinguished_name = DistinguishedName::new();
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let certificate = params.self_signed(&key)?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    // Not read back, as other certificates are: its extension is critical, and known to nobody but the CA.
    Ok(CertifiedKey::new(vec![certificate.der().clone()], crypto::provider().key_provider.load_private_key(key)?))
}
