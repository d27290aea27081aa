//! A workload: an open stream of the Workload API, and mutual TLS that is fed from it and from nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::CertificateDer;
use spiffe::bundle::{Bundle, X509Authority};
use spiffe::crypto;
use spiffe::id::{SpiffeId, TrustDomain};
use spiffe::mtls::{self, CurrentBundles, CurrentSvid, Peers};
use spiffe::proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use spiffe::proto::workload::{X509svid, X509svidRequest, X509svidResponse};
use spiffe::time::{Clock, Timestamp};
use spiffe::x509_svid::X509Svid;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tonic::{Code, Request, Status};
use x509_parser::prelude::FromDer as _;

use crate::operator::unix;
use crate::patience::that;

/// One identity, parsed.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The SVID; its profile has been checked, its path has not.
    pub svid: X509Svid,
    /// PKCS#8, DER.
    pub key: Vec<u8>,
    /// Of its own trust domain.
    pub bundle: Bundle,
    /// The hint.
    pub hint: String,
}

impl Identity {
    /// Whether at `now` nobody would expect it to have been replaced yet: renewals come at six tenths of a life at
    /// the latest. The beginning of the life is a minute before it was issued.
    pub fn is_fresh(&self, now: Timestamp) -> bool {
        let lifetime = self.svid.lifetime();
        let issued = lifetime.not_before.unix() + 60;
        let life = lifetime.not_after.unix().saturating_sub(issued);
        now.unix() <= issued + life * 6 / 10
    }
}

/// One message of the stream, parsed.
#[derive(Clone, Debug)]
pub struct Context {
    /// In the order of the message.
    pub identities: Vec<Identity>,
    /// By the name of the foreign trust domain: how many roots.
    pub federated: BTreeMap<String, usize>,
    /// The same bundles, whole.
    pub foreign: Vec<Bundle>,
}

impl Context {
    /// The default identity.
    pub fn first(&self) -> &Identity {
        self.identities.first().unwrap()
    }

    /// The identity with this path.
    pub fn identity(&self, path: &str) -> Result<&Identity, String> {
        let found = self.identities.iter().find(|identity| identity.svid.id().path() == path);
        found.ok_or_else(|| format!("no identity {path} among {:?}", self.paths()))
    }

    /// The paths of all identities, in order.
    pub fn paths(&self) -> Vec<&str> {
        self.identities.iter().map(|identity| identity.svid.id().path()).collect()
    }
}

/// What all messages so far had in them.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// How many messages there were.
    pub messages: usize,
    /// Serial numbers of the default identity.
    pub serials: BTreeSet<Vec<u8>>,
    /// SHA-256 of the keys of the default identity.
    pub keys: BTreeSet<[u8; 32]>,
    /// Fingerprints of the roots of the own trust domain.
    pub roots: BTreeSet<String>,
    /// Fingerprints of the certificates behind the SVID in its chain.
    pub intermediates: BTreeSet<String>,
}

type State = Result<Context, Status>;

/// A workload that listens until it is dropped.
#[derive(Debug)]
pub struct Workload {
    states: watch::Receiver<Option<State>>,
    history: Arc<Mutex<History>>,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Workload {
    /// Knocks at the socket, and listens.
    pub async fn open(socket: &Path, clock: Arc<dyn Clock>) -> Self {
        let mut door = SpiffeWorkloadApiClient::new(unix(socket).await.unwrap()).max_decoding_message_size(64 << 20);
        let (svid, bundles) = (CurrentSvid::default(), CurrentBundles::new([]));
        let server = mtls::server_config(svid.clone(), bundles.clone(), Peers::Any, true, clock.clone()).unwrap();
        let client = mtls::client_config(Some(svid.clone()), bundles.clone(), Peers::Any, clock).unwrap();
        let history = Arc::new(Mutex::new(History::default()));
        let (to, states) = watch::channel(None);
        let feeding = Feeding { svid, bundles, history: Arc::clone(&history), to };
        let task = tokio::spawn(async move {
            let ended = feeding.feed(&mut door).await;
            feeding.to.send_replace(Some(Err(ended)));
        });
        Self { states, history, server: Arc::new(server), client: Arc::new(client), task }
    }

    /// What it has now; `None` before the first answer.
    pub fn state(&self) -> Option<State> {
        self.states.borrow().clone()
    }

    /// What it has now, or an objection.
    pub fn context(&self) -> Result<Context, String> {
        match self.state() {
            Some(Ok(context)) => Ok(context),
            Some(Err(status)) => Err(format!("the stream has ended: {status}")),
            None => Err("there was no answer yet".into()),
        }
    }

    /// How the stream ended, or an objection.
    pub fn end(&self) -> Result<Status, String> {
        match self.state() {
            Some(Err(status)) => Ok(status),
            Some(Ok(context)) => Err(format!("it goes on, with {:?}", context.paths())),
            None => Err("there was no answer yet".into()),
        }
    }

    /// Objects while an identity should have been renewed at `now`.
    pub fn fresh(&self, now: Timestamp) -> Result<Context, String> {
        let context = self.context()?;
        for identity in &context.identities {
            that(identity.is_fresh(now), || format!("{} has not been renewed", identity.svid.id()))?;
        }
        Ok(context)
    }

    /// Everything that it was told so far.
    pub fn history(&self) -> History {
        self.history.lock().unwrap().clone()
    }
}

struct Feeding {
    svid: CurrentSvid,
    bundles: CurrentBundles,
    history: Arc<Mutex<History>>,
    to: watch::Sender<Option<State>>,
}

impl Feeding {
    async fn feed(&self, door: &mut SpiffeWorkloadApiClient<tonic::transport::Channel>) -> Status {
        let mut stream = match door.fetch_x509svid(with_header(X509svidRequest {})).await {
            Ok(response) => response.into_inner(),
            Err(status) => return status,
        };
        loop {
            match stream.message().await {
                Ok(Some(message)) => {
                    let context = parse(message);
                    self.take(&context);
                    self.to.send_replace(Some(Ok(context)));
                }
                Ok(None) => return Status::new(Code::Ok, "the stream was closed"),
                Err(status) => return status,
            }
        }
    }

    fn take(&self, context: &Context) {
        let identity = context.first();
        self.bundles.set(std::iter::once(identity.bundle.clone()).chain(context.foreign.clone()));
        // The key fits, or this fails.
        self.svid.set(&identity.svid, &[], &identity.key).unwrap();
        let mut history = self.history.lock().unwrap();
        history.messages += 1;
        history.serials.insert(identity.svid.serial().to_vec());
        history.keys.insert(crypto::sha256(&identity.key));
        history.roots.extend(identity.bundle.x509_authorities().iter().map(X509Authority::fingerprint));
        let above = identity.svid.chain().iter().skip(1);
        history.intermediates.extend(above.map(|certificate| crypto::sha256_hex(certificate)));
    }
}

/// The message with the security header of SPIFFE_Workload_Endpoint.md.
pub fn with_header<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
    request
}

fn parse(message: X509svidResponse) -> Context {
    let identities = message.svids.into_iter().map(identity).collect();
    let foreign = message.federated_bundles.iter();
    let foreign: Vec<Bundle> =
        foreign.map(|(name, der)| bundle(SpiffeId::parse(name).unwrap().trust_domain(), der)).collect();
    let count = |bundle: &Bundle| (bundle.trust_domain().to_string(), bundle.x509_authorities().len());
    Context { identities, federated: foreign.iter().map(count).collect(), foreign }
}

fn identity(wire: X509svid) -> Identity {
    let svid = X509Svid::parse(certificates(&wire.x509_svid)).unwrap();
    assert_eq!(svid.id().as_str(), wire.spiffe_id);
    let key = wire.x509_svid_key.to_vec();
    svid.key_fits(&key).unwrap();
    let trust_domain = svid.id().trust_domain();
    let bundle = bundle(trust_domain, &wire.bundle);
    Identity { svid, key, bundle, hint: wire.hint }
}

/// A bundle out of concatenated DER.
pub fn bundle(trust_domain: TrustDomain, der: &[u8]) -> Bundle {
    let roots = certificates(der).into_iter().map(|root| X509Authority::from_der(root).unwrap()).collect();
    Bundle::new(trust_domain, roots, 1, None).unwrap()
}

/// The certificates in concatenated DER.
pub fn certificates(mut der: &[u8]) -> Vec<CertificateDer<'static>> {
    let mut found = Vec::new();
    while !der.is_empty() {
        let (rest, _) = x509_parser::certificate::X509Certificate::from_der(der).unwrap();
        found.push(der[..der.len() - rest.len()].to_vec().into());
        der = rest;
    }
    found
}

/// One mutual handshake and a byte each way; answers whom the server and the client have seen.
pub async fn handshake(server: &Workload, client: &Workload) -> Result<(SpiffeId, SpiffeId), String> {
    let (near, far) = tokio::io::duplex(16 << 10);
    let accept = async {
        let mut stream = TlsAcceptor::from(server.server.clone()).accept(near).await?;
        stream.write_u8(7).await?;
        stream.flush().await?;
        stream.read_u8().await?;
        Ok::<_, std::io::Error>(peer(stream.get_ref().1.peer_certificates()))
    };
    let connect = async {
        let name = ServerName::try_from("a.test").unwrap();
        let mut stream = TlsConnector::from(client.client.clone()).connect(name, far).await?;
        stream.write_u8(7).await?;
        stream.flush().await?;
        stream.read_u8().await?;
        Ok::<_, std::io::Error>(peer(stream.get_ref().1.peer_certificates()))
    };
    match tokio::join!(accept, connect) {
        (Ok(client), Ok(server)) => Ok((client, server)),
        (accepted, connected) => {
            let words = |result: Result<SpiffeId, std::io::Error>| {
                result.map_or_else(|error| error.to_string(), |_| "ok".into())
            };
            Err(format!("server: {}; client: {}", words(accepted), words(connected)))
        }
    }
}

fn peer(certificates: Option<&[CertificateDer<'_>]>) -> SpiffeId {
    mtls::peer(certificates.unwrap()).unwrap().id().clone()
}
