//! A broker: it has an SVID of its own, and asks the Broker API for what another process is entitled to.
//!
//! The public crate gives the messages and the header; the mutual TLS below them is the caller's. Here it is rustls with
//! the crate's X.509 context: the chain by webpki against the context's bundle, the SPIFFE ID by the crate.

use std::sync::Arc;

use hyper_util::rt::TokioIo;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use serde_json::json;
use spiffe::broker_api::SecurityHeader;
use spiffe::broker_api::pb::spiffe::broker::api_client::ApiClient;
use spiffe::broker_api::pb::spiffe::broker::{
    FetchJwtsvidRequest, SubscribeToJwtBundlesRequest, SubscribeToX509BundlesRequest, SubscribeToX509svidRequest,
    WorkloadPidReference, WorkloadReference,
};
use spiffe::{SpiffeId, WorkloadApiClient, X509Context};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use crate::{Arguments, Outcome};

pub async fn act(arguments: &Arguments) -> Outcome<()> {
    let own = WorkloadApiClient::connect_env().await?.fetch_x509_context().await?;
    let channel = connect(arguments, &own).await?;
    let mut api = ApiClient::with_interceptor(channel, SecurityHeader::new());
    let reference = || Some(WorkloadReference::from(WorkloadPidReference { pid: arguments.pid }));

    let mut svids =
        api.subscribe_to_x509svid(SubscribeToX509svidRequest { reference: reference() }).await?.into_inner();
    for _ in 0..arguments.updates {
        let update = svids.message().await?.ok_or("the stream ended")?;
        let ids: Vec<_> = update.svids.iter().map(|svid| svid.spiffe_id.clone()).collect();
        println!("{}", json!({ "client": "spiffe-rust", "broker": ids, "federated": update.federated_bundles.len() }));
    }
    let request = SubscribeToX509BundlesRequest { reference: reference() };
    let bundles = api.subscribe_to_x509_bundles(request).await?.into_inner().message().await?;
    let domains: Vec<_> = bundles.ok_or("no X.509 bundles")?.bundles.into_keys().collect();
    println!("{}", json!({ "client": "spiffe-rust", "x509_bundles": domains }));
    if arguments.audience.is_empty() {
        return Ok(());
    }
    let request = SubscribeToJwtBundlesRequest { reference: reference() };
    let bundles = api.subscribe_to_jwt_bundles(request).await?.into_inner().message().await?;
    let domains: Vec<_> = bundles.ok_or("no JWT bundles")?.bundles.into_keys().collect();
    println!("{}", json!({ "client": "spiffe-rust", "jwt_bundles": domains }));
    let request =
        FetchJwtsvidRequest { reference: reference(), audience: arguments.audience.clone(), spiffe_id: String::new() };
    let tokens = api.fetch_jwtsvid(request).await?.into_inner().svids;
    let tokens: Vec<_> = tokens.iter().map(|svid| json!({ "spiffe_id": svid.spiffe_id, "token": svid.svid })).collect();
    println!("{}", json!({ "client": "spiffe-rust", "tokens": tokens }));
    Ok(())
}

async fn connect(arguments: &Arguments, own: &X509Context) -> Outcome<Channel> {
    let tls = TlsConnector::from(Arc::new(config(own, SpiffeId::new(&arguments.peer)?)?));
    let name = ServerName::try_from("broker.invalid")?;
    let (socket, address) = (arguments.socket.clone(), arguments.address.clone());
    let connector = tower::service_fn(move |_| {
        let (tls, name, socket, address) = (tls.clone(), name.clone(), socket.clone(), address.clone());
        async move {
            let io: Box<dyn Io> = match (socket, address) {
                (Some(path), None) => Box::new(tls.connect(name, UnixStream::connect(path).await?).await?),
                (None, Some(at)) => Box::new(tls.connect(name, TcpStream::connect(at).await?).await?),
                _ => return Err(std::io::Error::other("give --socket or --address")),
            };
            Ok(TokioIo::new(io))
        }
    });
    Ok(Endpoint::from_static("http://broker.invalid").connect_with_connector(connector).await?)
}

trait Io: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Io for T {}

fn config(own: &X509Context, peer: SpiffeId) -> Outcome<ClientConfig> {
    let svid = own.svids().first().ok_or("this broker has no SVID")?;
    let bundle = own.bundle_set().get(svid.spiffe_id().trust_domain()).ok_or("no bundle beside the SVID")?;
    let mut roots = RootCertStore::empty();
    for root in bundle.authorities() {
        roots.add(CertificateDer::from(root.as_bytes().to_vec()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build()?;
    let certificates = svid.cert_chain().iter().map(|der| CertificateDer::from(der.as_bytes().to_vec())).collect();
    let key = PrivatePkcs8KeyDer::from(svid.private_key().as_bytes().to_vec()).into();
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier { chain, peer }))
        .with_client_auth_cert(certificates, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// The path by webpki, whatever name it is asked for; the SPIFFE ID by the crate.
#[derive(Debug)]
struct Verifier {
    chain: Arc<WebPkiServerVerifier>,
    peer: SpiffeId,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        use rustls::CertificateError::{NotValidForName, NotValidForNameContext};
        match self.chain.verify_server_cert(leaf, intermediates, name, ocsp, now) {
            // The path is verified before the name, which no SVID has to have.
            Ok(_) | Err(rustls::Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. })) => {}
            Err(error) => return Err(error),
        }
        let id = spiffe_id(leaf).ok_or_else(|| rustls::Error::General("the peer has no SPIFFE ID".into()))?;
        if id != self.peer {
            return Err(rustls::Error::General(format!("the peer is {id}, not {}", self.peer)));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

fn spiffe_id(leaf: &[u8]) -> Option<SpiffeId> {
    use x509_parser::extensions::GeneralName;
    use x509_parser::prelude::{FromDer as _, X509Certificate};
    let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
    let names = certificate.subject_alternative_name().ok()??.value.general_names.clone();
    let [GeneralName::URI(id)] = names.as_slice() else { return None };
    SpiffeId::new(id).ok()
}
