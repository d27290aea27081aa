//! What a plain Rust service needs to be somebody: it asks the Workload API who it is, and keeps a pair of values
//! current, the SVID that it presents and the bundles that it verifies peers against. TLS configurations made from
//! them follow every rotation; nothing is rebuilt.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, bail};
use hyper_util::rt::TokioIo;
use rustls_pki_types::CertificateDer;
use spiffe::bundle::{Bundle, X509Authority};
use spiffe::id::{SpiffeId, TrustDomain};
use spiffe::mtls::{CurrentBundles, CurrentSvid};
use spiffe::proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use spiffe::proto::workload::{X509svidRequest, X509svidResponse};
use spiffe::time::{Clock as _, System, Timestamp};
use spiffe::x509_svid::X509Svid;
use tokio::net::UnixStream;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Streaming};

/// Who this process is, always current.
#[derive(Debug)]
pub struct Identity {
    /// The default identity.
    pub id: SpiffeId,
    /// What is presented to peers.
    pub svid: CurrentSvid,
    /// What peers are verified against.
    pub bundles: CurrentBundles,
}

impl Identity {
    /// Asks the Workload API at `SPIFFE_ENDPOINT_SOCKET`, waits until this process has an identity, and follows
    /// its rotations from then on, with a line on the screen for each.
    pub async fn of_this_process() -> anyhow::Result<Self> {
        let socket = std::env::var("SPIFFE_ENDPOINT_SOCKET").context("SPIFFE_ENDPOINT_SOCKET is not set")?;
        let path = socket.trim_start_matches("unix:").trim_start_matches("//").to_owned();
        let (mut stream, first) = open(&path).await?;
        let (svid, bundles) = (CurrentSvid::default(), CurrentBundles::new([]));
        let mut current = take(&first, &svid, &bundles)?;
        println!("I am {}, {}", current.id(), about(&current));

        let identity = Self { id: current.id().clone(), svid: svid.clone(), bundles: bundles.clone() };
        tokio::spawn(async move {
            loop {
                match stream.message().await {
                    Ok(Some(answer)) => {
                        let trusted = bundles.load();
                        match take(&answer, &svid, &bundles) {
                            Ok(fresh) if fresh.serial() != current.serial() => {
                                println!("rotated: {}", about(&fresh));
                                current = fresh;
                            }
                            Ok(_) if bundles.load() != trusted => println!("the bundle changed"),
                            Ok(_) => {}
                            Err(error) => println!("an answer of the Workload API is passed over: {error:#}"),
                        }
                    }
                    // The agent went away: what is there stays in use, and we ask again.
                    Ok(None) | Err(_) => match open(&path).await {
                        Ok((again, _)) => stream = again,
                        Err(_) => System.sleep(Duration::from_secs(1)).await,
                    },
                }
            }
        });
        Ok(identity)
    }
}

/// Opens the stream and waits for the first identity.
async fn open(path: &str) -> anyhow::Result<(Streaming<X509svidResponse>, X509svidResponse)> {
    for _ in 0..30 {
        let mut client = SpiffeWorkloadApiClient::new(connect(path.to_owned()).await?);
        let mut request = Request::new(X509svidRequest {});
        request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
        let answer = match client.fetch_x509svid(request).await {
            Ok(stream) => {
                let mut stream = stream.into_inner();
                stream.message().await.map(|first| (stream, first))
            }
            Err(status) => Err(status),
        };
        match answer {
            Ok((stream, Some(first))) => return Ok((stream, first)),
            Err(status) if status.code() != Code::PermissionDenied => bail!("the Workload API says: {status}"),
            // No identity yet: an entry may be on its way.
            _ => System.sleep(Duration::from_secs(1)).await,
        }
    }
    bail!("this process has no identity: create an entry whose selectors match it")
}

async fn connect(path: String) -> anyhow::Result<Channel> {
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await;
    channel.context("no agent answers at SPIFFE_ENDPOINT_SOCKET")
}

/// Makes an answer the current state: the bundles first, so that nothing is presented that we could not verify.
fn take(answer: &X509svidResponse, svid: &CurrentSvid, bundles: &CurrentBundles) -> anyhow::Result<X509Svid> {
    let default = answer.svids.first().context("an answer without an SVID")?;
    let fresh = X509Svid::parse(certificates(&default.x509_svid)?)?;
    let own = fresh.id().trust_domain();
    let mut all = BTreeMap::from([(own.clone(), bundle(&own, &default.bundle)?)]);
    for (name, der) in &answer.federated_bundles {
        let name = TrustDomain::parse(name)?;
        all.insert(name.clone(), bundle(&name, der)?);
    }
    bundles.set(all.into_values());
    svid.set(&fresh, &[], &default.x509_svid_key)?;
    Ok(fresh)
}

fn bundle(trust_domain: &TrustDomain, der: &[u8]) -> anyhow::Result<Bundle> {
    let roots: Result<Vec<_>, _> = certificates(der)?.into_iter().map(X509Authority::from_der).collect();
    Ok(Bundle::new(trust_domain.clone(), roots?, 0, None)?)
}

/// Concatenated DER, one by one.
fn certificates(mut der: &[u8]) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let mut all = Vec::new();
    while !der.is_empty() {
        let (rest, _) = x509_parser::parse_x509_certificate(der)?;
        all.push(CertificateDer::from(der[..der.len() - rest.len()].to_vec()));
        der = rest;
    }
    Ok(all)
}

/// What tells one SVID from the next.
pub fn about(svid: &X509Svid) -> String {
    let now = System.now();
    let left = |at: Timestamp| at.since(now).as_secs();
    let serial = spiffe::crypto::hex(svid.serial());
    format!("serial {serial}, expires in {} s", left(svid.lifetime().not_after))
}
