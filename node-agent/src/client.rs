//! The Node door over mutual TLS: one connection to one of the servers, found anew when it is gone.
//!
//! - The server must be `spiffe://<trust domain>/chancery/server`, verified at each handshake against the bundle of
//!   that moment; the agent presents the SVID of that moment.
//! - The address that answered last is tried first; then the others in turn.
//! - Pings notice a dead server within 15 seconds.
//! - After a renewal ([`Client::reopen`]) new calls take a new connection: a server ends what was opened with an SVID
//!   that has expired.

use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustls::ClientConfig;
use rustls_pki_types::CertificateDer;
use spiffe::bundle::Bundle;
use spiffe::entry::EntryId;
use spiffe::id::TrustDomain;
use spiffe::jwt_svid::Audience;
use spiffe::mtls::{self, CurrentBundles, CurrentSvid, Peers};
use spiffe::proto::{WireError, v1};
use spiffe::time::Clock;
use spiffe::x509_svid::{SvidError, X509Svid};
use tokio::sync::{Mutex, Notify, mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, WatchStream};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use v1::node_client::NodeClient;

use crate::config::Address;

mod connect;
mod session;

use connect::{connect_any, with_http2};
pub use session::{Session, Update};

const CALL_LIMIT: Duration = Duration::from_secs(30);
const MAX_MESSAGE_BYTES: usize = 16 << 20;
const MAX_CHALLENGES: usize = 8;

/// Why a call of the Node door came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No address answered as a server of ours: what each did.
    #[error("{0}")]
    Unreachable(String),
    /// The server, or the way to it, failed.
    #[error("server: {} ({:?})", .0.message(), .0.code())]
    Status(Box<Status>),
    /// The server closed a stream.
    #[error("the server has closed the stream")]
    Closed,
    /// The server said something that it must not say.
    #[error("the server's answer cannot be used: {0}")]
    Answer(String),
    /// The answer to a challenge could not be made.
    #[error("{0}")]
    Challenge(String),
    /// TLS could not be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

impl ClientError {
    /// Whether the server decided: asking the same again will not help.
    pub fn is_refusal(&self) -> bool {
        use Code::{
            AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, Unauthenticated,
            Unimplemented,
        };
        match self {
            Self::Status(status) => matches!(
                status.code(),
                AlreadyExists
                    | FailedPrecondition
                    | InvalidArgument
                    | NotFound
                    | PermissionDenied
                    | Unauthenticated
                    | Unimplemented
            ),
            Self::Challenge(_) => true,
            _ => false,
        }
    }

    /// What to tell an operator: the server's own words where it was that which said no.
    pub fn words(&self) -> String {
        match self {
            Self::Status(status) => status.message().to_owned(),
            _ => self.to_string(),
        }
    }

    /// Whether the server will not have this agent, even if it is attested anew.
    pub fn is_ban(&self) -> bool {
        matches!(self, Self::Status(status) if status.code() == Code::PermissionDenied)
    }

    /// Whether the server will not have this agent (any more).
    pub fn is_identity_refusal(&self) -> bool {
        matches!(self, Self::Status(status) if matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated))
    }

    /// Whether the connection is better given up.
    fn breaks_connection(&self) -> bool {
        use Code::{Cancelled, DeadlineExceeded, Internal, Unavailable, Unknown};
        matches!(self, Self::Status(status)
            if matches!(status.code(), Cancelled | DeadlineExceeded | Internal | Unavailable | Unknown))
    }
}

impl From<Status> for ClientError {
    fn from(status: Status) -> Self {
        // A transport's own failure says "transport error", and why only in its sources.
        let mut words = status.message().to_owned();
        let mut source = status.source();
        while let Some(error) = source {
            words = format!("{words}: {error}");
            source = error.source();
        }
        Self::Status(Box::new(Status::new(status.code(), words)))
    }
}

impl From<WireError> for ClientError {
    fn from(error: WireError) -> Self {
        Self::Answer(error.to_string())
    }
}

impl From<SvidError> for ClientError {
    fn from(error: SvidError) -> Self {
        Self::Answer(error.to_string())
    }
}

/// What a client is made of.
#[derive(Debug)]
pub struct Parts {
    /// Of the servers.
    pub trust_domain: TrustDomain,
    /// In the order in which they are tried. Never empty.
    pub servers: Vec<Address>,
    /// What the agent presents.
    pub svid: CurrentSvid,
    /// What the servers are verified against.
    pub bundles: CurrentBundles,
    /// For the lifetimes in handshakes.
    pub clock: Arc<dyn Clock>,
}

/// The Node door. Share it in an `Arc`.
#[derive(Debug)]
pub struct Client {
    servers: Vec<Address>,
    tls: Arc<ClientConfig>,
    good: AtomicUsize,
    open: Mutex<Open>,
    reopened: watch::Sender<u64>,
    refused: Notify,
}

#[derive(Debug, Default)]
struct Open {
    channel: Option<Channel>,
    generation: u64,
}

impl Client {
    /// Connects to nothing yet.
    pub fn new(parts: Parts) -> Result<Self, ClientError> {
        let peers = Peers::Ids(vec![parts.trust_domain.server_id()]);
        let tls = mtls::client_config(Some(parts.svid), parts.bundles, peers, parts.clock)?;
        Ok(Self {
            servers: parts.servers,
            tls: with_http2(tls),
            good: AtomicUsize::new(0),
            open: Mutex::default(),
            reopened: watch::channel(0).0,
            refused: Notify::new(),
        })
    }

    /// Asks for an X.509-SVID for each entry by its CSR; the outcomes are in the same order.
    pub async fn issue_x509_svids(
        &self,
        requests: Vec<(EntryId, Vec<u8>)>,
    ) -> Result<Vec<Result<v1::X509Svid, v1::Refusal>>, ClientError> {
        use v1::x509_svid_result::Outcome;
        let asked = requests.len();
        let wire =
            |(entry, csr): (EntryId, Vec<u8>)| v1::X509SvidRequest { entry_id: entry.to_string(), csr: csr.into() };
        let message = v1::IssueX509SvidsRequest { requests: requests.into_iter().map(wire).collect() };
        let call = async |mut door: Door| Ok(door.issue_x509_svids(limited(message)).await?.into_inner());
        let outcome = |result: v1::X509SvidResult| match result.outcome? {
            Outcome::Svid(svid) => Some(Ok(svid)),
            Outcome::Refused(refusal) => Some(Err(refusal)),
        };
        one_for_each(self.call(call).await?.results, asked, outcome)
    }

    /// Asks for a JWT-SVID for each entry and audience; the outcomes are in the same order.
    pub async fn issue_jwt_svids(
        &self,
        requests: Vec<(EntryId, Audience)>,
    ) -> Result<Vec<Result<v1::Token, v1::Refusal>>, ClientError> {
        let asked = requests.len();
        let wire = |(entry, audience): (EntryId, Audience)| v1::JwtSvidRequest {
            entry_id: entry.to_string(),
            audience: audience.values().to_vec(),
        };
        let message = v1::IssueJwtSvidsRequest { requests: requests.into_iter().map(wire).collect() };
        let call = async |mut door: Door| Ok(door.issue_jwt_svids(limited(message)).await?.into_inner());
        one_for_each(self.call(call).await?.results, asked, token)
    }

    /// Asks for a WIT-SVID for each entry by its CSR; the outcomes are in the same order.
    pub async fn issue_wit_svids(
        &self,
        requests: Vec<(EntryId, Vec<u8>)>,
    ) -> Result<Vec<Result<v1::Token, v1::Refusal>>, ClientError> {
        let asked = requests.len();
        let wire =
            |(entry, csr): (EntryId, Vec<u8>)| v1::WitSvidRequest { entry_id: entry.to_string(), csr: csr.into() };
        let message = v1::IssueWitSvidsRequest { requests: requests.into_iter().map(wire).collect() };
        let call = async |mut door: Door| Ok(door.issue_wit_svids(limited(message)).await?.into_inner());
        one_for_each(self.call(call).await?.results, asked, token)
    }

    /// A fresh SVID for the agent itself.
    pub async fn renew(&self, csr: Vec<u8>) -> Result<X509Svid, ClientError> {
        let message = v1::RenewRequest { csr: csr.into() };
        let call = async |mut door: Door| Ok(door.renew(limited(message)).await?.into_inner());
        svid(self.call(call).await?.svid.ok_or(WireError::Missing("svid"))?)
    }

    /// Opens the stream of what this node has to know.
    pub async fn sync(&self) -> Result<Session, ClientError> {
        let (acknowledged, receiver) = watch::channel(0);
        let messages =
            futures_util::StreamExt::map(WatchStream::new(receiver), |acknowledged| v1::SyncRequest { acknowledged });
        // The answer to this comes once the server has looked at the call: no time limit would fit the stream.
        let call = async |mut door: Door| Ok(door.sync(messages).await?.into_inner());
        let incoming = self.call(call).await?;
        Ok(Session::new(incoming, acknowledged))
    }

    /// Takes a new connection for what comes from now on: the agent has another SVID.
    pub async fn reopen(&self) {
        let mut open = self.open.lock().await;
        open.channel = None;
        open.generation += 1;
        drop(open);
        self.reopened.send_modify(|times| *times += 1);
    }

    /// Changes with each [`Client::reopen`].
    pub fn reopened(&self) -> watch::Receiver<u64> {
        self.reopened.subscribe()
    }

    /// Returns when a server has said that it will not have this agent.
    pub async fn identity_refused(&self) {
        self.refused.notified().await;
    }

    /// Tells [`Client::identity_refused`] what `error` says, for streams that end with one.
    pub fn note(&self, error: &ClientError) {
        if error.is_identity_refusal() {
            self.refused.notify_one();
        }
    }

    async fn call<T>(&self, call: impl AsyncFnOnce(Door) -> Result<T, ClientError>) -> Result<T, ClientError> {
        let (channel, generation) = self.channel().await?;
        let result = call(door(channel)).await;
        if let Err(error) = &result {
            self.note(error);
            if error.breaks_connection() {
                self.forget(generation).await;
            }
        }
        result
    }

    async fn channel(&self) -> Result<(Channel, u64), ClientError> {
        let mut open = self.open.lock().await;
        if let Some(channel) = &open.channel {
            return Ok((channel.clone(), open.generation));
        }
        let (channel, at) = connect_any(&self.servers, self.good.load(Ordering::Relaxed), &self.tls).await?;
        self.good.store(at, Ordering::Relaxed);
        open.channel = Some(channel.clone());
        open.generation += 1;
        Ok((channel, open.generation))
    }

    /// Gives the connection up, unless somebody has already.
    pub async fn lose(&self) {
        let generation = self.open.lock().await.generation;
        self.forget(generation).await;
    }

    async fn forget(&self, generation: u64) {
        let mut open = self.open.lock().await;
        if open.generation == generation && open.channel.take().is_some() {
            // The next one has its turn first: this one may accept connections and do nothing.
            self.good.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What a server answers to `asked` requests at once.
fn one_for_each<R, T>(
    results: Vec<R>,
    asked: usize,
    outcome: impl Fn(R) -> Option<Result<T, v1::Refusal>>,
) -> Result<Vec<Result<T, v1::Refusal>>, ClientError> {
    if results.len() != asked {
        return Err(ClientError::Answer(format!("{} results for {asked} requests", results.len())));
    }
    results.into_iter().map(|result| outcome(result).ok_or(WireError::Missing("outcome").into())).collect()
}

fn token(result: v1::TokenResult) -> Option<Result<v1::Token, v1::Refusal>> {
    match result.outcome? {
        v1::token_result::Outcome::Token(token) => Some(Ok(token)),
        v1::token_result::Outcome::Refused(refusal) => Some(Err(refusal)),
    }
}

type Door = NodeClient<Channel>;

fn door(channel: Channel) -> Door {
    NodeClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES)
}

fn limited<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_LIMIT);
    request
}

/// Parses an SVID from the wire. Its path is not verified.
pub fn svid(wire: v1::X509Svid) -> Result<X509Svid, ClientError> {
    let chain = wire.chain.into_iter().map(|der| CertificateDer::from(der.to_vec())).collect();
    Ok(X509Svid::parse(chain)?)
}

/// What a stranger sends to be attested.
#[derive(Debug)]
pub struct Attestation {
    /// The kind of attestor.
    pub attestor: &'static str,
    /// In the attestor's own form.
    pub evidence: Vec<u8>,
    /// PKCS#10, DER.
    pub csr: Vec<u8>,
}

/// Has a node attested at the first of `servers` that answers; `answer` answers challenges. `tls` presents no SVID.
pub async fn attest(
    servers: &[Address],
    tls: ClientConfig,
    attestation: Attestation,
    answer: impl Fn(&[u8]) -> Result<Vec<u8>, String>,
) -> Result<(X509Svid, Bundle), ClientError> {
    let (channel, _) = connect_any(servers, 0, &with_http2(tls)).await?;
    let (send, messages) = mpsc::channel(1);
    let Attestation { attestor, evidence, csr } = attestation;
    let start = v1::AttestStart { attestor: attestor.to_owned(), evidence: evidence.into(), csr: csr.into() };
    let step = |step| v1::AttestRequest { step: Some(step) };
    // The channel has room for one, and nobody else sends.
    let _ = send.send(step(v1::attest_request::Step::Start(start))).await;
    let mut incoming = door(channel).attest(limited(ReceiverStream::new(messages))).await?.into_inner();
    for _ in 0..=MAX_CHALLENGES {
        match incoming.message().await?.ok_or(ClientError::Closed)?.step {
            Some(v1::attest_response::Step::Challenge(challenge)) => {
                let answer = answer(&challenge).map_err(ClientError::Challenge)?;
                let answer = v1::attest_request::Step::ChallengeResponse(answer.into());
                send.send(step(answer)).await.map_err(|_| ClientError::Closed)?;
            }
            Some(v1::attest_response::Step::Result(result)) => {
                let bundle = result.bundle.ok_or(WireError::Missing("bundle"))?;
                return Ok((svid(result.svid.ok_or(WireError::Missing("svid"))?)?, Bundle::try_from(bundle)?));
            }
            None => return Err(WireError::Missing("step").into()),
        }
    }
    Err(ClientError::Answer(format!("more than {MAX_CHALLENGES} challenges")))
}
