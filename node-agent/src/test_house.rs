//! For tests: a CA, and a server that behaves: the Node door over mutual TLS, with tokens that are good once, entries,
//! acknowledgements, refusals and bans.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::{Stream, StreamExt as _, stream};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use spiffe::bundle::{Bundle, X509Authority};
use spiffe::crypto;
use spiffe::csr::ProvenKey;
use spiffe::entry::{KeyType, RegistrationEntry};
use spiffe::id::{SpiffeId, TrustDomain};
use spiffe::jose::Jwk;
use spiffe::jwt_svid::Audience;
use spiffe::mtls::{self, CurrentBundles, CurrentSvid, Peers};
use spiffe::proto::v1;
use spiffe::time::{Clock, Fake, Lifetime, Timestamp};
use spiffe::wit_svid::ConfirmationKey;
use spiffe::x509_svid::X509Svid;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::{ReceiverStream, WatchStream};
use tonic::transport::server::{Connected, TcpConnectInfo, TlsConnectInfo};
use tonic::{Request, Response, Status, Streaming};
use v1::node_server::{Node, NodeServer};

use crate::cache::event::Key;
use crate::config::Address;
use crate::node::NodeIdentity;
use crate::test_tokens::{self, TokenKey};

const DAY: Duration = Duration::from_secs(86_400);

/// A self-signed root.
pub(crate) struct Authority {
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Valid from a day before `now` to ten years behind it.
    pub(crate) fn new(name: &str, now: Timestamp) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = now.minus(DAY).to_date_time();
        params.not_after = now.plus(DAY * 3650).to_date_time();
        let key = crypto::generate_key(KeyType::P256).unwrap();
        let der = params.self_signed(&key).unwrap().der().clone();
        Self { der, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    pub(crate) fn x509_authority(&self) -> X509Authority {
        X509Authority::from_der(self.der.clone()).unwrap()
    }

    pub(crate) fn sign(&self, id: &SpiffeId, key: &impl PublicKeyData, life: Lifetime) -> Vec<CertificateDer<'static>> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "SPIFFE");
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into().unwrap())];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let mut serial: [u8; 16] = crypto::random().unwrap();
        serial[0] = 0x40;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.not_before = life.not_before.to_date_time();
        params.not_after = life.not_after.to_date_time();
        vec![params.signed_by(key, &self.issuer).unwrap().der().clone()]
    }
}

/// What the server knows.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) tokens: BTreeSet<String>,
    pub(crate) entries: Vec<RegistrationEntry>,
    /// By their ID.
    pub(crate) refused_entries: BTreeSet<String>,
    pub(crate) banned: bool,
    pub(crate) acknowledged: u64,
    pub(crate) batches: Vec<usize>,
    /// Of JWT-SVIDs and WIT-SVIDs.
    pub(crate) token_batches: Vec<usize>,
    pub(crate) renewals: usize,
    pub(crate) ttl: Duration,
}

/// A trust domain with one server. Clones share it.
#[derive(Clone)]
pub(crate) struct House(Arc<Inner>);

struct Inner {
    clock: Fake,
    authority: Authority,
    /// For JWT-SVIDs, and for WIT-SVIDs.
    keys: [TokenKey; 2],
    svid: CurrentSvid,
    state: Mutex<State>,
    revision: watch::Sender<u64>,
}

/// A server that listens. Dropped it is gone as a process that dies: with its connections.
pub(crate) struct Serving {
    pub(crate) address: Address,
    runtime: Option<Runtime>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        let runtime = self.runtime.take().unwrap();
        // On a thread of its own: a runtime must not be waited for in another.
        std::thread::spawn(move || runtime.shutdown_timeout(Duration::from_secs(5))).join().unwrap();
    }
}

impl House {
    pub(crate) fn new(now: Timestamp) -> Self {
        let authority = Authority::new("root", now);
        let state = State { ttl: Duration::from_secs(3600), ..State::default() };
        let inner = Inner {
            clock: Fake::new(now),
            authority,
            keys: [TokenKey::new(), TokenKey::new()],
            svid: CurrentSvid::default(),
            state: Mutex::new(state),
            revision: watch::channel(1).0,
        };
        let house = Self(Arc::new(inner));
        let key = crypto::generate_key(KeyType::P256).unwrap();
        let life = Lifetime { not_before: now.minus(DAY), not_after: now.plus(DAY * 3000) };
        let chain = house.0.authority.sign(&house.trust_domain().server_id(), &key, life);
        let root = [house.0.authority.der().clone()];
        house.0.svid.set(&X509Svid::parse(chain).unwrap(), &root, &key.serialize_der()).unwrap();
        house
    }

    pub(crate) fn trust_domain(&self) -> TrustDomain {
        TrustDomain::parse("example.org").unwrap()
    }

    pub(crate) fn clock(&self) -> Fake {
        self.0.clock.clone()
    }

    pub(crate) fn bundle(&self) -> Bundle {
        let bundle = Bundle::new(self.trust_domain(), vec![self.0.authority.x509_authority()], 1, None).unwrap();
        test_tokens::with_keys(bundle, &[&self.0.keys[0]], &[&self.0.keys[1]])
    }

    pub(crate) fn fingerprint(&self) -> [u8; 32] {
        crypto::sha256(self.0.authority.der())
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
    }

    /// Changes what the server knows, and tells the agents.
    pub(crate) fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.0.revision.send_modify(|revision| *revision += 1);
    }

    pub(crate) fn revision(&self) -> u64 {
        *self.0.revision.borrow()
    }

    /// The agent `name` with an SVID of this moment.
    pub(crate) fn agent(&self, name: &str) -> NodeIdentity {
        let key = crypto::generate_key(KeyType::P256).unwrap();
        let svid =
            X509Svid::parse(self.sign(&self.trust_domain().agent_id("join_token", name).unwrap(), &key)).unwrap();
        NodeIdentity { svid, key: Key::new(key) }
    }

    fn sign(&self, id: &SpiffeId, key: &impl PublicKeyData) -> Vec<CertificateDer<'static>> {
        let now = self.0.clock.now();
        let life = Lifetime { not_before: now.minus(Duration::from_secs(60)), not_after: now.plus(self.state().ttl) };
        self.0.authority.sign(id, key, life)
    }

    fn wire_svid(&self, id: &SpiffeId, csr: &[u8]) -> Result<v1::X509Svid, Status> {
        let key = ProvenKey::from_csr(csr).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let chain = self.sign(id, &key).into_iter().map(|der| der.to_vec().into()).collect();
        Ok(v1::X509Svid { spiffe_id: id.to_string(), chain })
    }

    /// Listens on `address` (`None`: on any free port).
    pub(crate) async fn serve(&self, address: Option<&Address>) -> Serving {
        let place = address.map_or_else(|| "127.0.0.1:0".to_owned(), ToString::to_string);
        let listener = TcpListener::bind(place).await.unwrap();
        let address = listener.local_addr().unwrap().to_string().parse().unwrap();
        let bundles = CurrentBundles::new([self.bundle()]);
        let clock = Arc::new(self.clock());
        let mut tls = mtls::server_config(self.0.svid.clone(), bundles, Peers::Any, false, clock).unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let (connections, incoming) = mpsc::channel(16);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = listener.into_std().unwrap();
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, connections) = (acceptor.clone(), connections.clone());
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        let _ = connections.send(Ok::<_, std::io::Error>(stream)).await;
                    }
                });
            }
        });
        let node = NodeServer::new(self.clone());
        let server = tonic::transport::Server::builder().add_service(node);
        runtime.spawn(server.serve_with_incoming(ReceiverStream::new(incoming)));
        Serving { address, runtime: Some(runtime) }
    }

    fn caller<T>(&self, request: &Request<T>) -> Result<SpiffeId, Status> {
        type Info = TlsConnectInfo<TcpConnectInfo>;
        let certificates = request.extensions().get::<Info>().and_then(Info::peer_certs);
        let certificates = certificates.ok_or_else(|| Status::unauthenticated("who are you"))?;
        if self.state().banned {
            return Err(Status::permission_denied("this agent is banned"));
        }
        Ok(mtls::peer(&certificates).unwrap().id().clone())
    }

    fn snapshot(&self, revision: u64) -> v1::SyncResponse {
        v1::SyncResponse {
            revision,
            snapshot: true,
            entries: self.state().entries.iter().map(v1::Entry::from).collect(),
            bundles: vec![(&self.bundle()).into()],
            ..Default::default()
        }
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Node for House {
    type AttestStream = Answers<v1::AttestResponse>;
    type SyncStream = Answers<v1::SyncResponse>;

    async fn attest(
        &self,
        request: Request<Streaming<v1::AttestRequest>>,
    ) -> Result<Response<Self::AttestStream>, Status> {
        let mut messages = request.into_inner();
        let Some(v1::attest_request::Step::Start(start)) = messages.message().await?.and_then(|first| first.step)
        else {
            return Err(Status::invalid_argument("start first"));
        };
        let respond = |step| v1::AttestResponse { step: Some(step) };
        let evidence = String::from_utf8(start.evidence.to_vec()).unwrap();
        if start.attestor == "join_token" && !self.state().tokens.remove(&evidence) {
            return Err(Status::permission_denied(
                "join token is not known (used already, or revoked): create another with \"chancery token create\"",
            ));
        }
        let claims: serde_json::Value = serde_json::from_str(&evidence).unwrap_or_default();
        if start.attestor == "k8s_psat" && !self.state().tokens.contains(claims["token"].as_str().unwrap_or_default()) {
            return Err(Status::permission_denied("the token is refused: it has expired"));
        }
        let id = self.trust_domain().agent_id(&start.attestor, "node").unwrap();
        let svid = self.wire_svid(&id, &start.csr)?;
        let result = v1::AttestResult { svid: Some(svid), bundle: Some((&self.bundle()).into()) };
        let result = respond(v1::attest_response::Step::Result(result));
        if start.attestor != "x509pop" {
            return Ok(Response::new(Box::pin(stream::iter([Ok(result)]))));
        }
        let challenge = respond(v1::attest_response::Step::Challenge(vec![7; 32].into()));
        let last = stream::once(async move {
            match messages.message().await?.and_then(|answer| answer.step) {
                Some(v1::attest_request::Step::ChallengeResponse(answer)) if answer.starts_with(b"{") => Ok(result),
                _ => Err(Status::permission_denied("no answer")),
            }
        });
        Ok(Response::new(Box::pin(stream::iter([Ok(challenge)]).chain(last))))
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::RenewResponse>, Status> {
        let caller = self.caller(&request)?;
        self.state().renewals += 1;
        let svid = self.wire_svid(&caller, &request.into_inner().csr)?;
        Ok(Response::new(v1::RenewResponse { svid: Some(svid) }))
    }

    async fn sync(&self, request: Request<Streaming<v1::SyncRequest>>) -> Result<Response<Self::SyncStream>, Status> {
        self.caller(&request)?;
        let (house, mut messages) = (self.clone(), request.into_inner());
        tokio::spawn(async move {
            while let Ok(Some(message)) = messages.message().await {
                house.state().acknowledged = message.acknowledged;
            }
        });
        let house = self.clone();
        let updates = WatchStream::new(self.0.revision.subscribe()).map(move |revision| match house.state().banned {
            true => Err(Status::permission_denied("this agent is banned")),
            false => Ok(revision),
        });
        let house = self.clone();
        Ok(Response::new(Box::pin(updates.map(move |revision| revision.map(|revision| house.snapshot(revision))))))
    }

    async fn issue_x509_svids(
        &self,
        request: Request<v1::IssueX509SvidsRequest>,
    ) -> Result<Response<v1::IssueX509SvidsResponse>, Status> {
        self.caller(&request)?;
        let requests = request.into_inner().requests;
        self.state().batches.push(requests.len());
        let refused =
            |code, message: &str| v1::x509_svid_result::Outcome::Refused(v1::Refusal { code, message: message.into() });
        let outcome = |request: v1::X509SvidRequest| {
            let entry = self.state().entries.iter().find(|entry| entry.id.as_str() == request.entry_id).cloned();
            match entry {
                None => refused(5, "no such entry"),
                Some(entry) if self.state().refused_entries.contains(entry.id.as_str()) => refused(7, "not this one"),
                Some(entry) => match self.wire_svid(&entry.spiffe_id, &request.csr) {
                    Ok(svid) => v1::x509_svid_result::Outcome::Svid(svid),
                    Err(status) => refused(status.code() as i32, status.message()),
                },
            }
        };
        let results = requests.into_iter().map(|request| v1::X509SvidResult { outcome: Some(outcome(request)) });
        Ok(Response::new(v1::IssueX509SvidsResponse { results: results.collect() }))
    }

    async fn issue_jwt_svids(
        &self,
        request: Request<v1::IssueJwtSvidsRequest>,
    ) -> Result<Response<v1::IssueJwtSvidsResponse>, Status> {
        self.caller(&request)?;
        let requests = request.into_inner().requests;
        self.state().token_batches.push(requests.len());
        let results = requests.into_iter().map(|request| {
            let life = (self.0.clock.now(), Duration::from_secs(300));
            let sign = |entry: RegistrationEntry| {
                let audience = Audience::parse(&request.audience).unwrap();
                let jti = entry.jti.then(|| crypto::hex(&crypto::random::<8>().unwrap()));
                self.0.keys[0].jwt_svid(&entry.spiffe_id, &audience, life, jti)
            };
            self.token(&request.entry_id, life, sign)
        });
        Ok(Response::new(v1::IssueJwtSvidsResponse { results: results.collect() }))
    }

    async fn issue_wit_svids(
        &self,
        request: Request<v1::IssueWitSvidsRequest>,
    ) -> Result<Response<v1::IssueWitSvidsResponse>, Status> {
        self.caller(&request)?;
        let requests = request.into_inner().requests;
        self.state().token_batches.push(requests.len());
        let results = requests.into_iter().map(|request| {
            let life = (self.0.clock.now(), self.state().ttl);
            let key = ProvenKey::from_csr(&request.csr).unwrap();
            let jwk = Jwk::from_spki(&key.subject_public_key_info()).unwrap();
            let sign = |entry: RegistrationEntry| {
                self.0.keys[1].wit_svid(&entry.spiffe_id, ConfirmationKey::new(&jwk).unwrap(), life)
            };
            self.token(&request.entry_id, life, sign)
        });
        Ok(Response::new(v1::IssueWitSvidsResponse { results: results.collect() }))
    }
}

impl House {
    fn token(
        &self,
        entry: &str,
        (now, ttl): (Timestamp, Duration),
        sign: impl FnOnce(RegistrationEntry) -> String,
    ) -> v1::TokenResult {
        use v1::token_result::Outcome;
        let refused = |code, message: &str| Outcome::Refused(v1::Refusal { code, message: message.into() });
        let known = self.state().entries.iter().find(|known| known.id.as_str() == entry).cloned();
        let outcome = match known {
            None => refused(5, "no such entry"),
            Some(entry) if self.state().refused_entries.contains(entry.id.as_str()) => refused(7, "not this one"),
            Some(entry) => Outcome::Token(v1::Token {
                spiffe_id: entry.spiffe_id.to_string(),
                issued_at: now.unix(),
                expires_at: now.plus(ttl).unix(),
                token: sign(entry),
            }),
        };
        v1::TokenResult { outcome: Some(outcome) }
    }
}

// `TlsStream<TcpStream>` tells tonic who its peer is; this line fails where it ceases to.
const _: fn() = || {
    fn is_connected<T: Connected>() {}
    is_connected::<tokio_rustls::server::TlsStream<tokio::net::TcpStream>>();
};
