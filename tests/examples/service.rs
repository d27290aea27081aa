//! A service that speaks mutual TLS by its SVID: `service <listen> <SPIFFE ID of the caller>`.
#![allow(clippy::print_stderr, reason = "a program for a page: docs/proxies/rust.md")]

use std::sync::Arc;

use anyhow::{Context as _, Result};
use hyper_util::rt::TokioIo;
use rustls_pki_types::CertificateDer;
use spiffe::bundle::{Bundle, X509Authority};
use spiffe::id::SpiffeId;
use spiffe::mtls::{self, CurrentBundles, CurrentSvid, Peers};
use spiffe::proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use spiffe::proto::workload::{X509svidRequest, X509svidResponse};
use spiffe::time::{Clock as _, System};
use spiffe::x509_svid::X509Svid;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio_rustls::TlsAcceptor;
use tonic::metadata::MetadataValue;
use tonic::transport::{Endpoint, Uri};
use x509_parser::prelude::{FromDer as _, X509Certificate};

#[tokio::main]
async fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let listen = words.next().context("say where to listen: 0.0.0.0:8443")?;
    let caller = SpiffeId::parse(&words.next().context("say who may call: spiffe://example.org/front")?)?;

    // Both are read at each handshake. The task below changes them, and nothing else has to be done at a rotation.
    let (svid, bundles) = (CurrentSvid::default(), CurrentBundles::new([]));
    let peers = Peers::Ids(vec![caller]);
    let config = mtls::server_config(svid.clone(), bundles.clone(), peers, true, Arc::new(System))?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        loop {
            // The stream ends when the agent does. What we have is good until it expires: we ask again.
            if let Err(error) = follow(&svid, &bundles).await {
                eprintln!("asking the agent again: {error:#}");
            }
            System.sleep(std::time::Duration::from_secs(1)).await;
        }
    });

    let listener = TcpListener::bind(&listen).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            if let Err(error) = serve(acceptor, stream).await {
                eprintln!("refused: {error:#}");
            }
        });
    }
}

/// Takes what the Workload API says, for as long as it says anything.
async fn follow(svid: &CurrentSvid, bundles: &CurrentBundles) -> Result<()> {
    let socket = std::env::var("SPIFFE_ENDPOINT_SOCKET").context("SPIFFE_ENDPOINT_SOCKET is not set")?;
    let path = socket.strip_prefix("unix://").context("SPIFFE_ENDPOINT_SOCKET does not begin with unix://")?.to_owned();
    let connect = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    let channel = Endpoint::from_static("http://agent").connect_with_connector(connect).await?;
    let mut request = tonic::Request::new(X509svidRequest {});
    request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
    let mut updates = SpiffeWorkloadApiClient::new(channel).fetch_x509svid(request).await?.into_inner();
    while let Some(update) = updates.message().await? {
        take(update, svid, bundles)?;
    }
    Ok(())
}

/// The first identity is the default one.
fn take(update: X509svidResponse, svid: &CurrentSvid, bundles: &CurrentBundles) -> Result<()> {
    let first = update.svids.into_iter().next().context("no identity")?;
    let new = X509Svid::parse(certificates(&first.x509_svid)?)?;
    let roots = certificates(&first.bundle)?.into_iter().map(X509Authority::from_der).collect::<Result<_, _>>()?;
    bundles.set([Bundle::new(new.id().trust_domain(), roots, 0, None)?]);
    svid.set(&new, &[], &first.x509_svid_key)?;
    Ok(())
}

/// The Workload API writes certificates one behind the other.
fn certificates(mut der: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    let mut found = Vec::new();
    while !der.is_empty() {
        let (rest, _) = X509Certificate::from_der(der)?;
        found.push(der[..der.len() - rest.len()].to_vec().into());
        der = rest;
    }
    Ok(found)
}

/// One request of somebody who is known.
async fn serve(acceptor: TlsAcceptor, stream: TcpStream) -> Result<()> {
    let mut stream = BufReader::new(acceptor.accept(stream).await?);
    let certificates = stream.get_ref().get_ref().1.peer_certificates().unwrap_or_default();
    let caller = mtls::peer(certificates)?.id().to_string();
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 2 {
        line.clear();
    }
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", caller.len());
    stream.write_all(format!("{head}{caller}").as_bytes()).await?;
    stream.shutdown().await?;
    Ok(())
}
