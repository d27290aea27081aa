//! How SVIDs are had from a server: keys are made, CSRs sent, and what comes is verified before anybody sees it.

use std::sync::Arc;

use spiffe::bundle::Bundle;
use spiffe::crypto;
use spiffe::entry::{EntryId, KeyType, RegistrationEntry};
use spiffe::jwt_svid::{JwtSvid, VerifiedJwtSvid};
use spiffe::mtls::CurrentBundles;
use spiffe::proto::v1;
use spiffe::time::{Clock, Timestamp};
use spiffe::wit_svid::{ConfirmationKey, VerifiedWitSvid, WitSvid};
use spiffe::x509_svid::{VerifiedSvid, X509Svid};
use tracing::warn;

use crate::cache::Svid;
use crate::cache::event::{Answer, Key, Outcome};
use crate::cache::tokens::machine as tokens;
use crate::client::{self, Client, ClientError};

/// gRPC codes by which a server says no to one entry, for the time being: NOT_FOUND, PERMISSION_DENIED,
/// FAILED_PRECONDITION, INVALID_ARGUMENT, UNIMPLEMENTED.
const REFUSALS: [i32; 5] = [5, 7, 9, 3, 12];

/// What differs between profiles when SVIDs with a key of their own are issued.
pub(super) trait Issued: Svid {
    /// As it comes.
    type Wire: Send + 'static;

    /// The kind of key for an entry that wants `wanted`.
    fn key_type(wanted: KeyType) -> KeyType;

    /// Asks for one SVID for each CSR.
    fn ask(
        client: &Client,
        requests: Vec<(EntryId, Vec<u8>)>,
    ) -> impl Future<Output = Result<Vec<Result<Self::Wire, v1::Refusal>>, ClientError>> + Send;

    /// What came, if `bundle` stands for it and it is for `key`.
    fn verify(wire: Self::Wire, key: &Key, bundle: &Bundle, now: Timestamp) -> Result<Self::Verified, String>;
}

impl Issued for X509Svid {
    type Wire = v1::X509Svid;

    fn key_type(wanted: KeyType) -> KeyType {
        wanted
    }

    async fn ask(
        client: &Client,
        requests: Vec<(EntryId, Vec<u8>)>,
    ) -> Result<Vec<Result<v1::X509Svid, v1::Refusal>>, ClientError> {
        client.issue_x509_svids(requests).await
    }

    fn verify(wire: v1::X509Svid, key: &Key, bundle: &Bundle, now: Timestamp) -> Result<VerifiedSvid, String> {
        let svid = client::svid(wire).map_err(|error| error.to_string())?;
        svid.key_fits(&key.0).map_err(|error| error.to_string())?;
        svid.verify(bundle, now).map_err(|error| error.to_string())
    }
}

impl Issued for WitSvid {
    type Wire = v1::Token;

    fn key_type(wanted: KeyType) -> KeyType {
        match wanted {
            // No algorithm that WIT-SVID.md permits signs with it (section 2.3).
            KeyType::Ed25519 => KeyType::P256,
            other => other,
        }
    }

    async fn ask(
        client: &Client,
        requests: Vec<(EntryId, Vec<u8>)>,
    ) -> Result<Vec<Result<v1::Token, v1::Refusal>>, ClientError> {
        client.issue_wit_svids(requests).await
    }

    fn verify(wire: v1::Token, key: &Key, bundle: &Bundle, now: Timestamp) -> Result<VerifiedWitSvid, String> {
        let svid = WitSvid::parse(&wire.token).map_err(|error| error.to_string())?;
        let own = key.jwk().and_then(|jwk| ConfirmationKey::new(&jwk).ok());
        if own.as_ref() != Some(svid.key()) {
            return Err("it is for another key".into());
        }
        svid.verify(bundle, now).map_err(|error| error.to_string())
    }
}

/// The way to the server. Cheap to clone.
#[derive(Clone)]
pub(super) struct Issue {
    pub(super) client: Arc<Client>,
    pub(super) bundles: CurrentBundles,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) key_type: KeyType,
}

/// A key that waits for its SVID.
struct Asked {
    entry: Arc<RegistrationEntry>,
    key: Key,
    csr: Vec<u8>,
}

impl Issue {
    /// One answer for each entry, whatever happens.
    pub(super) async fn batch<S: Issued>(self, entries: Vec<Arc<RegistrationEntry>>) -> Vec<Answer<S>> {
        let ids: Vec<EntryId> = entries.iter().map(|entry| entry.id.clone()).collect();
        match self.try_batch::<S>(entries).await {
            Ok(answers) => answers,
            Err(why) => {
                warn!(entries = ids.len(), why, "SVIDs could not be issued: trying again");
                ids.into_iter().map(|entry| Answer { entry, outcome: Outcome::Failed }).collect()
            }
        }
    }

    async fn try_batch<S: Issued>(self, entries: Vec<Arc<RegistrationEntry>>) -> Result<Vec<Answer<S>>, String> {
        let key_type = self.key_type;
        let make = move |entry: Arc<RegistrationEntry>| {
            let key_type = S::key_type(entry.key_type.unwrap_or(key_type));
            Asked::new(entry, key_type)
        };
        let made =
            tokio::task::spawn_blocking(move || entries.into_iter().map(make).collect::<Result<Vec<_>, String>>());
        let mut asked = made.await.map_err(|error| error.to_string())??;
        let requests = asked.iter_mut().map(|asked| (asked.entry.id.clone(), std::mem::take(&mut asked.csr))).collect();
        let outcomes = S::ask(&self.client, requests).await.map_err(|error| error.to_string())?;
        let checked = tokio::task::spawn_blocking(move || {
            asked.into_iter().zip(outcomes).map(|(asked, outcome)| self.check(asked, outcome)).collect()
        });
        checked.await.map_err(|error| error.to_string())
    }

    fn check<S: Issued>(&self, asked: Asked, outcome: Result<S::Wire, v1::Refusal>) -> Answer<S> {
        let Asked { entry, key, .. } = asked;
        let verified = |wire| S::verify(wire, &key, &self.bundle(&entry)?, self.clock.now());
        let outcome = match outcome.map(verified) {
            Ok(Ok(svid)) => Outcome::Issued { svid, key },
            Ok(Err(why)) => {
                warn!(entry = %entry.id, spiffe_id = %entry.spiffe_id, why, "SVID from the server is no good");
                Outcome::Failed
            }
            Err(refusal) if is_refused(&entry, &refusal) => Outcome::Refused,
            Err(_) => Outcome::Failed,
        };
        Answer { entry: entry.id.clone(), outcome }
    }

    /// One answer for each request, whatever happens.
    pub(super) async fn tokens(self, requests: Vec<tokens::Request>) -> Vec<tokens::Answer> {
        let asked = requests.iter().map(|request| (request.entry.id.clone(), request.audience.clone())).collect();
        let outcomes = match self.client.issue_jwt_svids(asked).await {
            Ok(outcomes) => outcomes,
            Err(error) => {
                warn!(tokens = requests.len(), %error, "JWT-SVIDs could not be issued: trying again");
                let failed =
                    |request: tokens::Request| tokens::Answer { request: request.id, outcome: tokens::Outcome::Failed };
                return requests.into_iter().map(failed).collect();
            }
        };
        requests.iter().zip(outcomes).map(|(request, outcome)| self.check_token(request, outcome)).collect()
    }

    fn check_token(&self, request: &tokens::Request, outcome: Result<v1::Token, v1::Refusal>) -> tokens::Answer {
        let entry = &request.entry;
        let outcome = match outcome.map(|wire| self.verify_token(request, &wire)) {
            Ok(Ok(svid)) => tokens::Outcome::Issued(svid),
            Ok(Err(why)) => {
                warn!(entry = %entry.id, spiffe_id = %entry.spiffe_id, why, "JWT-SVID from the server is no good");
                tokens::Outcome::Failed
            }
            Err(refusal) if is_refused(entry, &refusal) => tokens::Outcome::Refused(refusal.message.into()),
            Err(_) => tokens::Outcome::Failed,
        };
        tokens::Answer { request: request.id, outcome }
    }

    fn verify_token(&self, request: &tokens::Request, wire: &v1::Token) -> Result<VerifiedJwtSvid, String> {
        let svid = JwtSvid::parse(&wire.token).map_err(|error| error.to_string())?;
        if svid.audience() != request.audience.values() {
            return Err("it is for another audience".into());
        }
        let audience = request.audience.values().first().map(String::as_str).unwrap_or_default();
        svid.verify(&self.bundle(&request.entry)?, audience, self.clock.now()).map_err(|error| error.to_string())
    }

    fn bundle(&self, entry: &RegistrationEntry) -> Result<Bundle, String> {
        let bundles = self.bundles.load();
        let bundle = bundles.get(&entry.spiffe_id.trust_domain());
        bundle.cloned().ok_or_else(|| format!("no bundle of {} is known", entry.spiffe_id.trust_domain_name()))
    }
}

/// Whether the server will go on saying no for a while.
fn is_refused(entry: &RegistrationEntry, refusal: &v1::Refusal) -> bool {
    let v1::Refusal { code, message } = refusal;
    warn!(entry = %entry.id, spiffe_id = %entry.spiffe_id, code, why = message, "SVID was refused");
    REFUSALS.contains(code)
}

impl Asked {
    fn new(entry: Arc<RegistrationEntry>, key_type: KeyType) -> Result<Self, String> {
        let key = crypto::generate_key(key_type).map_err(|error| error.to_string())?;
        let csr = spiffe::csr::create(&key).map_err(|error| error.to_string())?;
        Ok(Self { entry, key: Key::new(key), csr })
    }
}
