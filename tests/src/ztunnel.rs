//! The proxy of a node, as Istio's ztunnel behaves towards its CA: what it sends, what it makes of the answer, when it
//! comes again.
//!
//! - The CA is known by a file of roots and its DNS name; no certificate is shown to it.
//! - A CSR has a P-256 key, an empty subject and one critical URI SAN; the identity is in the metadata, too.
//! - Of the answer the last element are the roots, the first the certificate; it must be the identity that was asked for.
//! - It comes again at half of a certificate's life; after a failure in a second, then two, up to 150, and keeps what it has.
//! - At most eight requests are open at once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use spiffe::crypto;
use spiffe::entry::KeyType;
use spiffe::proto::istio::IstioCertificateRequest;
use spiffe::proto::istio::istio_certificate_service_client::IstioCertificateServiceClient;
use spiffe::time::{Backoff, Clock, Fake, Timestamp, TlsTime};
use spiffe::x509_svid::X509Svid;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::house::House;

/// Under this name proxies know their CA.
pub const ISTIOD: &str = "istiod.istio-system.svc";
/// What the metadata calls the identity that is asked for.
pub const IMPERSONATED: &str = "ImpersonatedIdentity";

const AT_ONCE: usize = 8;

/// How a proxy reaches its CA. Clones share the connection.
#[derive(Clone, Debug)]
pub struct Ca {
    door: IstioCertificateServiceClient<Channel>,
}

/// A certificate that a proxy shows, as TLS has it: the chain, and its key.
pub type Shown = (Vec<CertificateDer<'static>>, Vec<u8>);

/// How a CA is reached.
#[derive(Clone, Debug)]
pub struct Way {
    /// Where.
    pub address: SocketAddr,
    /// The name by which it is known.
    pub name: &'static str,
    /// PEM: the roots by which it is known, read at each connection.
    pub mounted: Arc<ArcSwap<String>>,
    /// What is shown to it.
    pub shown: Option<Shown>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
}

impl Way {
    /// To the CA of this house, as proxies take it.
    pub fn to(house: &House, mounted: &Arc<ArcSwap<String>>) -> Self {
        let address = house.server().istio_address().unwrap();
        Self { address, name: ISTIOD, mounted: Arc::clone(mounted), shown: None, clock: house.clock() }
    }
}

impl Ca {
    /// Connects at the first call, and again whenever the connection is gone.
    pub fn at(way: Way) -> Self {
        let Way { address, name, mounted, shown, clock } = way;
        let name = ServerName::try_from(name).unwrap();
        let connector = tower::service_fn(move |_: http::Uri| {
            let (tls, name) = (tls(&mounted.load(), shown.clone(), Arc::clone(&clock)), name.clone());
            async move { connect(address, tls, name).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://istiod").connect_with_connector_lazy(connector);
        Self { door: IstioCertificateServiceClient::new(channel) }
    }

    /// One call: the elements of the answer.
    pub async fn ask(&self, request: Request<IstioCertificateRequest>) -> Result<Vec<String>, Status> {
        Ok(self.door.clone().create_certificate(request).await?.into_inner().cert_chain)
    }
}

async fn connect(
    address: SocketAddr,
    tls: ClientConfig,
    name: ServerName<'static>,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    TlsConnector::from(Arc::new(tls)).connect(name, stream).await
}

fn tls(roots: &str, shown: Option<Shown>, clock: Arc<dyn Clock>) -> ClientConfig {
    let builder = ClientConfig::builder_with_details(crypto::provider(), Arc::new(TlsTime(clock)))
        .with_protocol_versions(&[&TLS13, &TLS12])
        .unwrap()
        .with_root_certificates(store(roots));
    let mut config = match shown {
        Some((chain, key)) => builder.with_client_auth_cert(chain, PrivatePkcs8KeyDer::from(key).into()).unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

fn ders(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().unwrap()
}

fn store(pem: &str) -> RootCertStore {
    let mut store = RootCertStore::empty();
    ders(pem).into_iter().for_each(|root| store.add(root).unwrap());
    store
}

/// A CSR as ztunnel makes it (PEM), and its key.
pub fn csr(identity: &str) -> (String, KeyPair) {
    let key = crypto::generate_key(KeyType::P256).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.try_into().unwrap())];
    let csr = params.serialize_request(&key).unwrap();
    (csr.pem().unwrap(), key)
}

/// A request as ztunnel makes it, without headers.
pub fn request(csr: String, ttl: i64, identity: Option<&str>) -> IstioCertificateRequest {
    let text = |text: &str| prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(text.into())) };
    let metadata = identity.map(|id| prost_types::Struct { fields: [(IMPERSONATED.into(), text(id))].into() });
    IstioCertificateRequest { csr, validity_duration: ttl, metadata }
}

/// The same with the headers of a caller with this token, of this cluster.
pub fn with_token<T>(message: T, token: &str, cluster: &str) -> Request<T> {
    let mut request = Request::new(message);
    let headers = request.metadata_mut();
    headers.insert("authorization", MetadataValue::try_from(format!("Bearer {token}")).unwrap());
    headers.insert("clusterid", MetadataValue::try_from(cluster).unwrap());
    request
}

/// What ztunnel makes of an answer.
#[derive(Debug)]
pub struct Certificate {
    /// The certificate and what is between it and its root.
    pub chain: Vec<CertificateDer<'static>>,
    /// Whom it trusts.
    pub roots: Arc<RootCertStore>,
    /// The answer itself.
    pub elements: Vec<String>,
    /// The certificate taken apart.
    pub svid: X509Svid,
    /// PKCS#8, DER.
    pub key: Vec<u8>,
}

impl Certificate {
    /// Takes an answer apart; the certificate has to be for this key.
    pub fn new(elements: Vec<String>, key: &KeyPair) -> Self {
        let (roots, chain) = elements.split_last().unwrap();
        let chain: Vec<_> = chain.iter().map(|element| <[_; 1]>::try_from(ders(element)).unwrap()[0].clone()).collect();
        let svid = X509Svid::parse(chain.clone()).unwrap();
        let key = key.serialize_der();
        svid.key_fits(&key).unwrap();
        Self { roots: store(roots).into(), svid, chain, key, elements }
    }

    /// When it is renewed: at half of its life.
    pub fn refresh_at(&self) -> Timestamp {
        let life = self.svid.lifetime();
        life.not_before.plus(life.length() / 2)
    }

    /// Whether rustls, without a line of ours, takes `peer` for a client and for a server by the roots of this one.
    pub fn trusts(&self, peer: &Self, now: Timestamp) -> Result<(), rustls::Error> {
        let (provider, now) = (crypto::provider(), now.to_unix_time());
        let (leaf, intermediates) = peer.chain.split_first().unwrap();
        let roots = Arc::clone(&self.roots);
        let client = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider)).build().unwrap();
        client.verify_client_cert(leaf, intermediates, now)?;
        let algorithms = provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(leaf)?,
            &self.roots,
            intermediates,
            now,
            algorithms,
        )
    }
}

/// The proxy of one node.
pub struct Ztunnel {
    ca: Ca,
    clock: Fake,
    cluster: String,
    /// The file of its projected token, as the kubelet writes it.
    token: Arc<ArcSwap<String>>,
    ttl: i64,
    held: BTreeMap<String, Held>,
}

/// One identity.
#[derive(Debug)]
pub struct Held {
    /// The newest certificate.
    pub certificate: Option<Certificate>,
    /// When it is next asked for.
    pub due: Timestamp,
    /// How many have come.
    pub renewals: usize,
    backoff: Backoff,
}

impl Ztunnel {
    /// Asks `ca` as one of `cluster`, with the token in the file `token`, for lives of `ttl` seconds.
    pub fn new(house: &House, ca: Ca, cluster: &str, token: Arc<ArcSwap<String>>, ttl: i64) -> Self {
        Self { ca, clock: house.clock.clone(), cluster: cluster.into(), token, ttl, held: BTreeMap::new() }
    }

    /// Wants a certificate for this identity from now on.
    pub fn want(&mut self, identity: &str) {
        let backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(150));
        let held = Held { certificate: None, due: self.clock.now(), renewals: 0, backoff };
        self.held.insert(identity.into(), held);
    }

    /// What it holds, by identity.
    pub fn held(&self) -> &BTreeMap<String, Held> {
        &self.held
    }

    /// Asks for everything that is due; answers the refusals.
    pub async fn work(&mut self) -> Vec<(String, Status)> {
        let now = self.clock.now();
        let due: Vec<String> =
            self.held.iter().filter(|(_, held)| held.due <= now).map(|(identity, _)| identity.clone()).collect();
        let mut waiting = due.into_iter();
        let (mut open, mut refused) = (JoinSet::new(), Vec::new());
        loop {
            while open.len() < AT_ONCE
                && let Some(identity) = waiting.next()
            {
                open.spawn(self.fetch(identity));
            }
            let Some(fetched) = open.join_next().await else { return refused };
            let (identity, fetched) = fetched.unwrap();
            let held = self.held.get_mut(&identity).unwrap();
            match fetched {
                Ok(certificate) => {
                    assert_eq!(certificate.svid.id().as_str(), identity, "another identity came");
                    held.due = certificate.refresh_at();
                    held.certificate = Some(certificate);
                    held.renewals += 1;
                    held.backoff.reset();
                }
                Err(status) => {
                    held.due = now.plus(held.backoff.after_failure(0));
                    refused.push((identity, status));
                }
            }
        }
    }

    fn fetch(&self, identity: String) -> impl Future<Output = (String, Result<Certificate, Status>)> + Send + use<> {
        let (csr, key) = csr(&identity);
        let message = request(csr, self.ttl, Some(&identity));
        let request = with_token(message, &self.token.load(), &self.cluster);
        let ca = self.ca.clone();
        async move {
            let answer = ca.ask(request).await;
            (identity, answer.map(|elements| Certificate::new(elements, &key)))
        }
    }
}

impl std::fmt::Debug for Ztunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ztunnel").field("held", &self.held.len()).finish_non_exhaustive()
    }
}
