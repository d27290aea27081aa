//! The API server of the cluster, and the kubelet of the node: where it is, what it is known by, and who the agent is to it.
//!
//! - **TLS** always, by our own provider, and known by the CA that the files name: neither the web's roots nor a server that
//!   is not verified will do, but for a kubelet at a loopback address. No program is run to log in, and no proxy is used.
//! - **Files are read again** after each failure ([`ApiServer::forget`]): CAs and client certificates rotate while an agent
//!   runs. A token in a file of its own is read each minute anyway.
//! - A connection at whose other end nobody is any more is noticed within a minute, by the kernel.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::ConfigExt as _;
use kube::config::{AuthInfo, Kubeconfig};
use kube::{Client, Config};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use secrecy::ExposeSecret;
use spiffe::crypto;
use spiffe::time::{Clock, TlsTime};
use tower::BoxError;
use zeroize::Zeroizing;

use super::unverified::Unverified;
use crate::config::attestors::Cluster;
use crate::config::kubelet::{Kubelet, Trust};

/// Where the kubelet puts the token of a pod's account, and the CA of the API server.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
const ALIVE_EVERY: Duration = Duration::from_secs(20);
const ALIVE_AGAIN: Duration = Duration::from_secs(10);
const ALIVE_TRIES: u32 = 3;

/// Why files lead to no API server.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// There is no kubeconfig, and this is no pod.
    #[error(
        "this agent is no pod with a service account ({0}): name a kubeconfig in [attestors.k8s], or run the agent in the \
         cluster"
    )]
    NoPod(String),
    /// Something in the kubeconfig, or in a file that it names, is no good.
    #[error("kubeconfig {}: {reason}", path.display())]
    Kubeconfig {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// Something that the kubelet is to be asked by is no good.
    #[error("[attestors.k8s.kubelet]: {0}")]
    Kubelet(String),
}

/// Makes a client, of files as they are now.
pub type Connect = Box<dyn Fn() -> Result<Client, AccessError> + Send + Sync>;

/// The API server, or the kubelet, through a client that is made anew after a failure.
pub struct ApiServer {
    connect: Connect,
    client: Mutex<Option<Client>>,
}

impl ApiServer {
    /// The one that `connect` leads to.
    pub fn new(connect: Connect) -> Arc<Self> {
        Arc::new(Self { connect, client: Mutex::default() })
    }

    /// A client of it. Connects to nothing yet.
    pub fn client(&self) -> Result<Client, AccessError> {
        let mut held = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = &*held {
            return Ok(client.clone());
        }
        let client = (self.connect)()?;
        *held = Some(client.clone());
        Ok(client)
    }

    /// Has the next client made anew.
    pub fn forget(&self) {
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// A client of the API server of `cluster`, of its files as they are now. Must be called within a tokio runtime.
pub fn connect(cluster: &Cluster, clock: &Arc<dyn Clock>) -> Result<Client, AccessError> {
    match &cluster.kubeconfig {
        None => {
            let missing = missing_in_pod(|name| std::env::var_os(name).is_some(), Path::new(ACCOUNT));
            missing.map_or(Ok(()), |what| Err(AccessError::NoPod(what)))?;
            let config = Config::incluster().map_err(|error| AccessError::NoPod(error.to_string()))?;
            client(&config, clock).map_err(|error| AccessError::NoPod(error.to_string()))
        }
        Some(path) => {
            let wrong = |reason: String| AccessError::Kubeconfig { path: path.clone(), reason };
            let config = read(path, cluster.context.as_deref()).map_err(wrong)?;
            client(&config, clock).map_err(|error| wrong(error.to_string()))
        }
    }
}

/// What a pod with a service account has, and this one has not. kube's own errors name neither the variable nor the file.
fn missing_in_pod(is_set: impl Fn(&str) -> bool, account: &Path) -> Option<String> {
    if let Some(name) = ["KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"].into_iter().find(|name| !is_set(name)) {
        return Some(format!("{name} is not set"));
    }
    let file = ["token", "ca.crt"].map(|name| account.join(name)).into_iter().find(|file| !file.exists())?;
    Some(format!("{} is not there: set automountServiceAccountToken: true for the pod", file.display()))
}

/// A client of `kubelet`, of its files as they are now. Must be called within a tokio runtime.
pub fn connect_kubelet(kubelet: &Kubelet, clock: &Arc<dyn Clock>) -> Result<Client, AccessError> {
    let wrong = |reason: BoxError| AccessError::Kubelet(reason.to_string());
    let mut config = Config::new(kubelet.address.clone());
    // Read here, too: kube's own error does not say which file it is of.
    let token = kubelet.token_file.display();
    let readable = std::fs::File::open(&kubelet.token_file).map(drop);
    readable.map_err(|error| AccessError::Kubelet(format!("token_file {token} cannot be read: {error}")))?;
    config.auth_info.token_file = Some(token.to_string());
    let tls = match &kubelet.trust {
        Trust::Ca { file, server_name } => {
            config.root_cert = Some(roots(file).map_err(AccessError::Kubelet)?);
            config.tls_server_name.clone_from(server_name);
            tls(&config, Arc::clone(clock))
        }
        Trust::Loopback => unverified(clock),
    };
    through(&config, tls.map_err(wrong)?).map_err(wrong)
}

/// An error of kube's and what is below it: the outermost alone says little.
pub(super) fn in_words(error: &kube::Error) -> String {
    let mut words = error.to_string();
    let mut below = std::error::Error::source(error);
    while let Some(error) = below {
        let more = error.to_string();
        if !words.contains(&more) {
            words = format!("{words}: {more}");
        }
        below = error.source();
    }
    words
}

fn read(path: &Path, context: Option<&str>) -> Result<Config, String> {
    let mut kubeconfig = Kubeconfig::read_from(path).map_err(|error| error.to_string())?;
    let has_proxy = |proxy: &Option<String>| proxy.as_ref().is_some_and(|url| !url.is_empty());
    let clusters = kubeconfig.clusters.iter().filter_map(|named| named.cluster.as_ref());
    if clusters.into_iter().any(|cluster| has_proxy(&cluster.proxy_url)) {
        return Err("names a proxy (proxy-url), and this agent uses none: remove it".into());
    }
    if let Some(context) = context {
        kubeconfig.current_context = Some(context.to_owned());
    }
    Config::try_from(kubeconfig).map_err(|error| error.to_string())
}

fn client(config: &Config, clock: &Arc<dyn Clock>) -> Result<Client, BoxError> {
    if config.accept_invalid_certs {
        return Err("has insecure-skip-tls-verify: remove it, and name certificate-authority".into());
    }
    let auth = &config.auth_info;
    if auth.exec.is_some() || auth.auth_provider.is_some() {
        let words = "logs in by a program (exec or auth-provider), and this agent runs none: use the token of a service \
                     account (token or tokenFile), or a client certificate";
        return Err(words.into());
    }
    through(config, tls(config, Arc::clone(clock))?)
}

/// A client that is secured by `tls`.
fn through(config: &Config, tls: ClientConfig) -> Result<Client, BoxError> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_LIMIT));
    tcp.set_keepalive(Some(ALIVE_EVERY));
    tcp.set_keepalive_interval(Some(ALIVE_AGAIN));
    tcp.set_keepalive_retries(Some(ALIVE_TRIES));
    let mut https = hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls).https_only();
    if let Some(name) = &config.tls_server_name {
        let name = ServerName::try_from(name.clone())?;
        https = https.with_server_name_resolver(hyper_rustls::FixedServerNameResolver::new(name));
    }
    let connections = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .build(https.enable_http1().wrap_connector(tcp));
    let service = tower::ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(connections);
    Ok(Client::new(service, config.default_namespace.clone()))
}

fn tls(config: &Config, clock: Arc<dyn Clock>) -> Result<ClientConfig, BoxError> {
    let mut roots = RootCertStore::empty();
    for der in config.root_cert.iter().flatten() {
        roots.add(CertificateDer::from(der.clone())).map_err(|error| format!("its CA is no good: {error}"))?;
    }
    if roots.is_empty() {
        return Err("names no CA of the API server: set certificate-authority or certificate-authority-data".into());
    }
    let builder = ClientConfig::builder_with_details(crypto::provider(), Arc::new(TlsTime(clock)))
        .with_protocol_versions(&[&TLS13, &TLS12])?
        .with_root_certificates(roots);
    let mut tls = match identity(&config.auth_info)? {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
        None => builder.with_no_client_auth(),
    };
    // A resumed session would skip the verifier.
    tls.resumption = rustls::client::Resumption::disabled();
    Ok(tls)
}

/// Whoever answers is taken for it.
fn unverified(clock: &Arc<dyn Clock>) -> Result<ClientConfig, BoxError> {
    let mut tls = ClientConfig::builder_with_details(crypto::provider(), Arc::new(TlsTime(Arc::clone(clock))))
        .with_protocol_versions(&[&TLS13, &TLS12])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Unverified(crypto::provider())))
        .with_no_client_auth();
    tls.resumption = rustls::client::Resumption::disabled();
    Ok(tls)
}

/// The certificates in the file of a kubelet's CAs.
fn roots(file: &Path) -> Result<Vec<Vec<u8>>, String> {
    let pem = std::fs::read(file).map_err(|error| format!("ca {} cannot be read: {error}", file.display()))?;
    let roots: Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(&pem).map(|found| found.map(|der| der.to_vec())).collect();
    let roots = roots.map_err(|error| format!("ca {}: {error}", file.display()))?;
    if roots.is_empty() {
        return Err(format!("ca {} holds no certificate: name the CAs of the kubelet's, as PEM", file.display()));
    }
    Ok(roots)
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// The client certificate and its key, where there is one.
fn identity(auth: &AuthInfo) -> Result<Option<Identity>, BoxError> {
    let chain =
        part(auth.client_certificate_data.as_deref(), auth.client_certificate.as_deref(), "client-certificate")?;
    let key = auth.client_key_data.as_ref().map(ExposeSecret::expose_secret);
    let key = part(key, auth.client_key.as_deref(), "client-key")?;
    match (chain, key) {
        (None, None) => Ok(None),
        (Some(chain), Some(key)) => {
            let chain: Vec<_> = CertificateDer::pem_slice_iter(&chain).collect::<Result<_, _>>()?;
            if chain.is_empty() {
                return Err("its client certificate holds no certificate".into());
            }
            Ok(Some((chain, PrivateKeyDer::from_pem_slice(&key)?)))
        }
        _ => Err("has a client certificate without its key, or a key without a certificate: give both".into()),
    }
}

/// A part of a kubeconfig that stands in it, or in a file that it names: data wins, as everywhere.
fn part(data: Option<&str>, path: Option<&str>, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, BoxError> {
    match (data, path) {
        (Some(data), _) => {
            let bytes = BASE64.decode(data.trim()).map_err(|error| format!("{name}-data is no base64: {error}"))?;
            Ok(Some(Zeroizing::new(bytes)))
        }
        (None, Some(path)) => {
            let bytes = std::fs::read(path).map_err(|error| format!("{name} {path} cannot be read: {error}"))?;
            Ok(Some(Zeroizing::new(bytes)))
        }
        (None, None) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_in_a_pod_is_named() {
        let account = tempfile::tempdir().unwrap();
        let missing = |set: &[&str]| missing_in_pod(|name| set.contains(&name), account.path());
        assert_eq!(missing(&[]).unwrap(), "KUBERNETES_SERVICE_HOST is not set");
        assert_eq!(missing(&["KUBERNETES_SERVICE_HOST"]).unwrap(), "KUBERNETES_SERVICE_PORT is not set");
        let both = ["KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"];
        for file in ["token", "ca.crt"] {
            let path = account.path().join(file);
            let said = missing(&both).unwrap();
            assert!(said.starts_with(&format!("{} is not there: ", path.display())), "{said}");
            assert!(said.contains("automountServiceAccountToken: true"), "{said}");
            std::fs::write(&path, "x").unwrap();
        }
        assert_eq!(missing(&both), None);
    }
}
