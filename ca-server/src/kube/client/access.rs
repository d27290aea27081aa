//! What the files of a cluster say: its address, its CA, and what we show it. Read, judged, and held to be compared.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::kube::Config;
use ::kube::config::{AuthInfo, InClusterError, Kubeconfig};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use secrecy::{ExposeSecret as _, SecretString};
use spiffe::crypto;
use spiffe::time::{Clock, TlsTime};
use zeroize::Zeroizing;

use crate::config::{self, ConfigError, kubernetes};

/// Where a pod has the files of its service account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Why files lead to no API server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] ConfigError),
    /// The kubeconfig is none, or something in it is no good.
    #[error("kubeconfig {path}: {reason}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// There is no kubeconfig, and this is no pod.
    #[error("this server is no pod with a service account ({0}): name a kubeconfig, or run it in the cluster")]
    NoPod(String),
    /// What was read makes no TLS.
    #[error("{0}")]
    Tls(String),
}

/// What the files say.
pub struct Access {
    config: Config,
    roots: RootCertStore,
    identity: Option<Identity>,
    /// Whether a secret stood in the kubeconfig itself.
    has_secret: bool,
    /// Of everything that was read, but tokens in files of their own: kube reads those again by itself.
    digest: [u8; 32],
}

struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Access {
    /// Reads the files of `cluster`, and refuses what this server does not do.
    pub fn read(cluster: &kubernetes::Cluster) -> Result<Self, AccessError> {
        match &cluster.kubeconfig {
            Some(path) => Self::from_kubeconfig(path, cluster.context.as_deref()),
            None => {
                let config = Config::incluster().map_err(|error| AccessError::NoPod(missing(&error)))?;
                Self::new(config, b"").map_err(AccessError::NoPod)
            }
        }
    }

    fn from_kubeconfig(path: &Path, context: Option<&str>) -> Result<Self, AccessError> {
        let wrong = |reason: String| AccessError::Kubeconfig { path: path.to_owned(), reason };
        let text = Zeroizing::new(config::read_limited("kubernetes.<cluster>.kubeconfig", path)?);
        let mut kubeconfig = Kubeconfig::read_from(path).map_err(|error| wrong(error.to_string()))?;
        if let Some(context) = context {
            kubeconfig.current_context = Some(context.to_owned());
        }
        let has_proxy = kubeconfig.clusters.iter().any(|named| {
            named.cluster.as_ref().is_some_and(|cluster| cluster.proxy_url.as_ref().is_some_and(|url| !url.is_empty()))
        });
        if has_proxy {
            return Err(wrong("names a proxy (proxy-url), and this server uses none: remove it".into()));
        }
        let config = Config::try_from(kubeconfig).map_err(|error| wrong(error.to_string()))?;
        Self::new(config, &text).map_err(wrong)
    }

    fn new(config: Config, text: &[u8]) -> Result<Self, String> {
        if config.cluster_url.scheme() != Some(&http::uri::Scheme::HTTPS) {
            return Err(format!("the server {} is not reached by https: correct its URL", config.cluster_url));
        }
        if config.accept_invalid_certs {
            return Err("has insecure-skip-tls-verify: remove it, and name certificate-authority".into());
        }
        let auth = &config.auth_info;
        if auth.exec.is_some() || auth.auth_provider.is_some() {
            return Err("logs in by a program (exec or auth-provider), and this server runs none: use the token of a \
                        service account (token or tokenFile), or a client certificate"
                .into());
        }
        let ders = config.root_cert.iter().flatten();
        let mut roots = RootCertStore::empty();
        for der in ders.clone() {
            roots.add(CertificateDer::from(der.clone())).map_err(|error| format!("its CA is no good: {error}"))?;
        }
        if roots.is_empty() {
            return Err("names no CA of the API server: set certificate-authority or certificate-authority-data".into());
        }
        if let (None, Some(path)) = (&auth.token, &auth.token_file) {
            let key = "the token of a service account (tokenFile)";
            let token = Zeroizing::new(config::read_limited(key, Path::new(path)).map_err(|error| error.to_string())?);
            if token.trim_ascii().is_empty() {
                return Err(format!("the token file {path} is empty: put the token of a service account there"));
            }
        }
        let has_secret = auth.token.is_some() || auth.client_key_data.is_some() || auth.password.is_some();
        let pem = identity_pem(auth)?;
        let identity = pem.as_ref().map(identity).transpose()?;
        let mut all = Zeroizing::new(crypto::sha256(text).to_vec());
        ders.chain(pem.iter().flat_map(|(chain, key)| [&**chain, &**key])).for_each(|part| {
            all.extend(crypto::sha256(part));
        });
        let digest = crypto::sha256(&all);
        let access = Self { config, roots, identity, has_secret, digest };
        // What cannot be used should be said at the start.
        access.tls(Arc::new(spiffe::time::System)).map_err(|error| error.to_string())?;
        Ok(access)
    }

    /// Whether a secret stood in the kubeconfig itself: others should not read that.
    pub fn has_secret(&self) -> bool {
        self.has_secret
    }

    /// Whether both were read from the same.
    pub(super) fn same_as(&self, other: &Self) -> bool {
        self.digest == other.digest
    }

    /// For the layers that kube has for credentials.
    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    /// What the API server is known by, and what it is shown.
    pub(super) fn tls(&self, clock: Arc<dyn Clock>) -> Result<ClientConfig, AccessError> {
        let wrong = |error: rustls::Error| AccessError::Tls(format!("TLS to the API server cannot be set up: {error}"));
        let builder = ClientConfig::builder_with_details(crypto::provider(), Arc::new(TlsTime(clock)))
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(wrong)?
            .with_root_certificates(self.roots.clone());
        let mut config = match &self.identity {
            Some(Identity { chain, key }) => {
                builder.with_client_auth_cert(chain.clone(), key.clone_key()).map_err(wrong)?
            }
            None => builder.with_no_client_auth(),
        };
        // A resumed session would skip the verifier.
        config.resumption = rustls::client::Resumption::disabled();
        Ok(config)
    }
}

/// What of a pod is not there.
fn missing(error: &InClusterError) -> String {
    let file = |name: &str, error: &std::io::Error| {
        format!("{ACCOUNT}/{name} cannot be read, {error}: set automountServiceAccountToken: true")
    };
    match error {
        InClusterError::ReadEnvironmentVariable(_) => {
            "KUBERNETES_SERVICE_HOST or KUBERNETES_SERVICE_PORT is not set".to_owned()
        }
        InClusterError::ReadDefaultNamespace(error) => file("namespace", error),
        InClusterError::ReadCertificateBundle(error) => file("ca.crt", error),
        other => other.to_string(),
    }
}

type Pem = (Zeroizing<Vec<u8>>, Zeroizing<Vec<u8>>);

/// The client certificate and its key, where there is one: data wins over a file, as everywhere with kubeconfigs.
fn identity_pem(auth: &AuthInfo) -> Result<Option<Pem>, String> {
    let part = |data: Option<&str>, path: Option<&String>, name: &str| match (data, path) {
        (Some(data), _) => {
            BASE64.decode(data.trim()).map(Some).map_err(|error| format!("{name}-data is no base64: {error}"))
        }
        (None, Some(path)) => {
            let key = "kubernetes.<cluster>.kubeconfig (client-certificate or client-key)";
            config::read_limited(key, Path::new(path)).map(Some).map_err(|error| error.to_string())
        }
        (None, None) => Ok(None),
    };
    let chain = part(auth.client_certificate_data.as_deref(), auth.client_certificate.as_ref(), "client-certificate")?;
    let key = auth.client_key_data.as_ref().map(SecretString::expose_secret);
    let key = part(key, auth.client_key.as_ref(), "client-key")?.map(Zeroizing::new);
    match (chain, key) {
        (Some(chain), Some(key)) => Ok(Some((Zeroizing::new(chain), key))),
        (None, None) => Ok(None),
        _ => Err("has a client certificate without its key, or a key without a certificate: give both".into()),
    }
}

fn identity((chain, key): &Pem) -> Result<Identity, String> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("its client certificate is no PEM ({error})"))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| format!("its client key is no PEM ({error})"))?;
    if chain.is_empty() {
        return Err("its client certificate holds no certificate".into());
    }
    Ok(Identity { chain, key })
}
