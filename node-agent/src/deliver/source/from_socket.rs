//! The socket of a Workload API (SPIFFE_Workload_API.md): ours, or any other's.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use rustls_pki_types::CertificateDer;
use spiffe::audience::Audience;
use spiffe::id::{SpiffeId, TrustDomain};
use spiffe::jwt_svid::JwtSvid;
use spiffe::proto::workload as wire;
use spiffe::proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use spiffe::time::{Backoff, Clock, Timestamp};
use spiffe::x509_svid::X509Svid;
use tokio::net::UnixStream;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use zeroize::Zeroizing;

use super::{Trouble, Wish};
use crate::deliver::material::Identity;

const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(15);
/// What fits: bundles of many trust domains.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// See the head of this file.
#[derive(Debug)]
pub(super) struct FromSocket {
    path: PathBuf,
    open: Option<Open>,
    backoff: Backoff,
    retry_at: Option<Timestamp>,
}

/// Open streams and the last that came on each.
#[derive(Debug)]
struct Open {
    client: SpiffeWorkloadApiClient<Channel>,
    svids: Streaming<wire::X509svidResponse>,
    keys: Option<Streaming<wire::JwtBundlesResponse>>,
    last_svids: Option<wire::X509svidResponse>,
    last_keys: Option<wire::JwtBundlesResponse>,
}

impl FromSocket {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, open: None, backoff: Backoff::new(FIRST_WAIT, LONGEST_WAIT), retry_at: None }
    }

    /// Cancel safe.
    pub(super) async fn next(&mut self, wish: &Wish, clock: &dyn Clock) -> Result<Identity, Trouble> {
        if let Some(at) = self.retry_at {
            clock.sleep_until(at).await;
            self.retry_at = None;
        }
        match self.answer(wish).await {
            Ok(identity) => {
                self.backoff.reset();
                Ok(identity)
            }
            Err(why) => {
                self.open = None;
                let chance = spiffe::crypto::random().map_or(0, u32::from_be_bytes);
                self.retry_at = Some(clock.now().plus(self.backoff.after_failure(chance).max(FIRST_WAIT)));
                Err(Trouble::Nothing(why))
            }
        }
    }

    async fn answer(&mut self, wish: &Wish) -> Result<Identity, String> {
        let open = match &mut self.open {
            Some(open) => open,
            None => {
                let new = self.connect(wish).await?;
                self.open.insert(new)
            }
        };
        loop {
            tokio::select! {
                svids = open.svids.message() => {
                    open.last_svids = Some(svids.map_err(|status| words(&status))?.ok_or("the agent ended the stream")?);
                }
                keys = next_keys(&mut open.keys) => {
                    open.last_keys = Some(keys.map_err(|status| words(&status))?.ok_or("the agent ended the stream")?);
                }
            }
            if let Some(svids) = &open.last_svids
                && (open.last_keys.is_some() || open.keys.is_none())
            {
                return identity(svids, open.last_keys.as_ref(), wish);
            }
        }
    }

    async fn connect(&self, wish: &Wish) -> Result<Open, String> {
        let path = self.path.clone();
        let connector = tower::service_fn(move |_: http::Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // Asked by hand first: the channel hides why it cannot connect.
        let asked = UnixStream::connect(&self.path).await;
        asked.map_err(|error| format!("no agent answers at {}: {error}", self.path.display()))?;
        let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await;
        let channel = channel.map_err(|error| format!("no agent answers at {}: {error}", self.path.display()))?;
        let mut client = SpiffeWorkloadApiClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let svids = client.fetch_x509svid(request(wire::X509svidRequest {})).await;
        let svids = svids.map_err(|status| words(&status))?.into_inner();
        let keys = if wish.jwks {
            let keys = client.fetch_jwt_bundles(request(wire::JwtBundlesRequest {})).await;
            Some(keys.map_err(|status| words(&status))?.into_inner())
        } else {
            None
        };
        Ok(Open { client, svids, keys, last_svids: None, last_keys: None })
    }

    /// Asked for as soon as it is polled, beside anything else.
    pub(super) fn token(
        &self,
        id: &SpiffeId,
        audience: &Audience,
    ) -> impl Future<Output = Result<JwtSvid, String>> + use<> {
        let client = self.open.as_ref().map(|open| open.client.clone());
        let message = wire::JwtsvidRequest { audience: audience.values().to_vec(), spiffe_id: id.to_string() };
        async move {
            let mut client = client.ok_or("no agent is connected")?;
            let answer = client.fetch_jwtsvid(request(message)).await.map_err(|status| words(&status))?.into_inner();
            let svid = answer.svids.first().ok_or("the agent sent no JWT-SVID")?;
            JwtSvid::parse(&svid.svid).map_err(|error| format!("the agent sent a JWT-SVID that is none: {error}"))
        }
    }
}

async fn next_keys(
    keys: &mut Option<Streaming<wire::JwtBundlesResponse>>,
) -> Result<Option<wire::JwtBundlesResponse>, Status> {
    match keys {
        Some(keys) => keys.message().await,
        None => std::future::pending().await,
    }
}

/// Every call bears the header that a browser could not be tricked into sending.
fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
    request
}

fn words(status: &Status) -> String {
    match status.code() {
        Code::PermissionDenied => format!(
            "this process has no identity ({}): create an entry whose selectors match it, for example --selector \
             unix:uid:{}",
            status.message(),
            nix::unistd::geteuid()
        ),
        code => format!("the agent does not answer: {} ({code:?})", status.message()),
    }
}

fn identity(
    svids: &wire::X509svidResponse,
    keys: Option<&wire::JwtBundlesResponse>,
    wish: &Wish,
) -> Result<Identity, String> {
    let is_wished =
        |svid: &&wire::X509svid| wish.spiffe_id.as_ref().is_none_or(|wished| wished.as_str() == svid.spiffe_id);
    let chosen = svids.svids.iter().find(is_wished).ok_or_else(|| match &wish.spiffe_id {
        Some(id) => format!("this process is not entitled to {id}: leave spiffe_id out, or create an entry for it"),
        None => "the agent sent no SVID".into(),
    })?;
    let svid = X509Svid::parse(certificates(&chosen.x509_svid)?)
        .map_err(|error| format!("the agent sent an SVID that is none: {error}"))?;
    let mut roots = BTreeMap::from([(svid.id().trust_domain(), certificates(&chosen.bundle)?)]);
    for (id, der) in &svids.federated_bundles {
        roots.insert(trust_domain(id)?, certificates(der)?);
    }
    let key = Arc::new(Zeroizing::new(chosen.x509_svid_key.to_vec()));
    Ok(Identity { svid, key, roots, jwks: jwks(keys.map(|keys| &keys.bundles))? })
}

fn jwks(bundles: Option<&HashMap<String, Bytes>>) -> Result<BTreeMap<TrustDomain, String>, String> {
    let one = |(id, keys): (&String, &Bytes)| {
        let text = String::from_utf8(keys.to_vec()).map_err(|_| "the agent sent a JWK set that is no text")?;
        Ok((trust_domain(id)?, text))
    };
    bundles.into_iter().flatten().map(one).collect()
}

fn trust_domain(id: &str) -> Result<TrustDomain, String> {
    TrustDomain::parse(id).map_err(|error| format!("the agent named a trust domain that is none: {error}"))
}

/// Concatenated DER certificates one by one.
fn certificates(mut der: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut all = Vec::new();
    while !der.is_empty() {
        let (rest, _) = x509_parser::parse_x509_certificate(der)
            .map_err(|error| format!("the agent sent certificates that cannot be read: {error}"))?;
        let (one, _) = der.split_at(der.len() - rest.len());
        all.push(CertificateDer::from(one.to_vec()));
        der = rest;
    }
    Ok(all)
}
