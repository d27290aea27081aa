//! What the benchmarks share: the real binary as a child process, what it costs in CPU time and memory, clients of its
//! doors, and figures of many measurements.

#![allow(dead_code, reason = "each benchmark uses its part of this")]

pub(crate) mod limit;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use hyper_util::rt::TokioIo;
use spiffe::bundle::Bundle;
use spiffe::id::{SpiffeId, TrustDomain};
use spiffe::mtls::{self, CurrentBundles, CurrentSvid, Peers};
use spiffe::proto::v1::admin_client::AdminClient;
use spiffe::proto::v1::node_client::NodeClient;
use spiffe::proto::v1::{self, attest_request, attest_response};
use spiffe::proto::workload::X509svidResponse;
use spiffe::time::System;
use spiffe::x509_svid::X509Svid;
use tempfile::TempDir;
use tests::binary::free_port;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

/// The trust domain of every benchmark.
pub(crate) const DOMAIN: &str = "bench.test";

/// Where the release binary is: `CHANCERY_BIN`, or where cargo puts it.
pub(crate) fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("CHANCERY_BIN") {
        return Ok(path.into());
    }
    let beside = std::env::current_exe()?;
    let folder = beside.ancestors().nth(2).context("no target folder")?;
    let path = folder.join("chancery");
    if !path.exists() {
        bail!("{} is not there: run \"cargo build --release -p cli\" first", path.display());
    }
    Ok(path)
}

/// A child process that ends with its value.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn spawn(program: &Path, arguments: &[&str], log: &Path) -> Result<Self> {
        let log = fs::File::create(log)?;
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Self(child))
    }

    /// CPU time that the process has used so far, all threads, user and system.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let mut sum = Duration::ZERO;
        for task in fs::read_dir(format!("/proc/{}/task", self.0.id()))? {
            // The first number of schedstat is nanoseconds on a CPU.
            let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
            let nanos = text.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0);
            sum += Duration::from_nanos(nanos);
        }
        Ok(sum)
    }

    /// Resident memory in MiB.
    pub(crate) fn resident(&self) -> Result<f64> {
        self.memory("VmRSS:")
    }

    /// The most resident memory that it has had, in MiB.
    pub(crate) fn most_resident(&self) -> Result<f64> {
        self.memory("VmHWM:")
    }

    fn memory(&self, key: &str) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = status.lines().find(|line| line.starts_with(key)).with_context(|| format!("no {key}"))?;
        let kib: f64 = line.split_whitespace().nth(1).context("no number")?.parse()?;
        Ok(kib / 1024.0)
    }

    /// Ends it as a service manager would, and waits.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.terminate();
        self.0.wait()?;
        Ok(())
    }

    fn terminate(&self) {
        if let Ok(pid) = i32::try_from(self.0.id()) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A real server on sled.
pub(crate) struct Server {
    pub(crate) process: Process,
    pub(crate) folder: Arc<TempDir>,
    pub(crate) port: u16,
    health: u16,
}

impl Server {
    pub(crate) async fn start(folder: &Arc<TempDir>) -> Result<Self> {
        Self::start_with(folder, "").await
    }

    /// The same with these tables at the end of its config.
    pub(crate) async fn start_with(folder: &Arc<TempDir>, more: &str) -> Result<Self> {
        let port = free_port();
        let health = free_port();
        let root = folder.path();
        let config = format!(
            "trust_domain = '{DOMAIN}'\ndata_dir = '{0}/server'\nlisten = '127.0.0.1:{port}'\n\
             admin_socket = '{0}/admin.sock'\nhealth_listen = '127.0.0.1:{health}'\n\
             [limits]\nissue_concurrency = 1024\nattest_per_second = 1000\nattest_burst = 1000\njoin_tokens = 10000\n{more}",
            root.display()
        );
        fs::write(root.join("server.toml"), config)?;
        let path = root.join("server.toml");
        let arguments = ["server", "run", "--config", path.to_str().context("path")?];
        let process = Process::spawn(&binary()?, &arguments, &root.join("server.log"))?;
        let server = Self { process, folder: Arc::clone(folder), port, health };
        server.answers().await?;
        Ok(server)
    }

    async fn answers(&self) -> Result<()> {
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(60) {
            if let Ok(mut admin) = self.admin().await
                && admin.server_info(v1::ServerInfoRequest {}).await.is_ok()
            {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bail!("the server does not answer: {}", fs::read_to_string(self.folder.path().join("server.log"))?)
    }

    pub(crate) async fn admin(&self) -> Result<AdminClient<Channel>> {
        let channel = unix_channel(self.folder.path().join("admin.sock")).await?;
        Ok(AdminClient::new(channel).max_decoding_message_size(64 << 20))
    }

    /// What `/metrics` says of this, its labels included.
    pub(crate) async fn metric(&self, name: &str) -> Result<Option<f64>> {
        let text = tests::web::get(([127, 0, 0, 1], self.health).into(), "/metrics").await;
        let mut values = text.lines().filter_map(|line| line.strip_prefix(name));
        Ok(values.next().map(|value| value.trim().parse()).transpose()?)
    }

    pub(crate) async fn token(&self) -> Result<(String, String)> {
        let mut admin = self.admin().await?;
        let info = admin.server_info(v1::ServerInfoRequest {}).await?.into_inner();
        let token = admin.create_join_token(v1::CreateJoinTokenRequest::default()).await?.into_inner();
        Ok((token.token, info.ca_fingerprint))
    }

    /// Attests as an agent and keeps its SVID.
    pub(crate) async fn attest(&self) -> Result<Identity> {
        let (token, fingerprint) = self.token().await?;
        let mut bytes = [0; 32];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(fingerprint.get(2 * at..2 * at + 2).context("short fingerprint")?, 16)?;
        }
        let peers = Peers::Ids(vec![TrustDomain::parse(DOMAIN)?.server_id()]);
        let config = mtls::client_config_by_fingerprint(bytes, peers, Arc::new(System))?;
        let mut node = NodeClient::new(tls_channel(self.port, config).await?);
        let key = spiffe::crypto::generate_key(spiffe::entry::KeyType::P256)?;
        let start = v1::AttestStart {
            attestor: "join_token".into(),
            evidence: token.into_bytes().into(),
            csr: spiffe::csr::create(&key)?.into(),
        };
        let request = v1::AttestRequest { step: Some(attest_request::Step::Start(start)) };
        let mut answers = node.attest(tokio_stream::iter([request])).await?.into_inner();
        let answer = answers.message().await?.and_then(|answer| answer.step);
        let Some(attest_response::Step::Result(result)) = answer else { bail!("no result of attestation") };
        let svid = result.svid.context("no SVID")?;
        let svid = X509Svid::parse(svid.chain.iter().map(|der| der.to_vec().into()).collect())?;
        let current = CurrentSvid::default();
        current.set(&svid, &[], &key.serialize_der())?;
        let bundle = Bundle::try_from(result.bundle.context("no bundle")?)?;
        Ok(Identity { id: svid.id().clone(), svid: current, bundles: CurrentBundles::new([bundle]) })
    }

    /// The Node door for an attested agent, on a connection of its own.
    pub(crate) async fn node(&self, identity: &Identity) -> Result<NodeClient<Channel>> {
        let peers = Peers::Ids(vec![TrustDomain::parse(DOMAIN)?.server_id()]);
        let (svid, bundles) = (identity.svid.clone(), identity.bundles.clone());
        let config = mtls::client_config(Some(svid), bundles, peers, Arc::new(System))?;
        Ok(NodeClient::new(tls_channel(self.port, config).await?))
    }
}

/// An attested agent.
pub(crate) struct Identity {
    pub(crate) id: SpiffeId,
    svid: CurrentSvid,
    bundles: CurrentBundles,
}

async fn tls_channel(port: u16, mut config: rustls::ClientConfig) -> Result<Channel> {
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = TlsConnector::from(Arc::new(config));
    let connect = service_fn(move |_: Uri| {
        let connector = connector.clone();
        async move {
            let stream = TcpStream::connect(("127.0.0.1", port)).await?;
            stream.set_nodelay(true)?;
            let name = rustls_pki_types::ServerName::try_from("localhost").map_err(std::io::Error::other)?;
            Ok::<_, std::io::Error>(TokioIo::new(connector.connect(name, stream).await?))
        }
    });
    Ok(Endpoint::from_static("http://server").connect_with_connector(connect).await?)
}

/// A channel over a unix socket.
pub(crate) async fn unix_channel(path: PathBuf) -> Result<Channel> {
    let connect = service_fn(move |_: Uri| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    Ok(Endpoint::from_static("http://socket").connect_with_connector(connect).await?)
}

/// Opens FetchX509SVID on an agent's socket, on a connection of its own.
pub(crate) async fn workload_stream(socket: &Path) -> Result<Streaming<X509svidResponse>> {
    use spiffe::proto::workload::X509svidRequest;
    use spiffe::proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
    let mut client = SpiffeWorkloadApiClient::new(unix_channel(socket.to_owned()).await?);
    let mut request = tonic::Request::new(X509svidRequest {});
    request.metadata_mut().insert("workload.spiffe.io", tonic::metadata::MetadataValue::from_static("true"));
    Ok(client.fetch_x509svid(request).await?.into_inner())
}

/// An entry for this user below `parent`.
pub(crate) fn entry(path: &str, parent: &SpiffeId) -> v1::Entry {
    v1::Entry {
        spiffe_id: format!("spiffe://{DOMAIN}{path}"),
        parent: parent.to_string(),
        selectors: vec![format!("unix:uid:{}", nix::unistd::geteuid())],
        ..v1::Entry::default()
    }
}

/// Creates entries, and fails where one is refused.
pub(crate) async fn create(admin: &mut AdminClient<Channel>, entries: Vec<v1::Entry>) -> Result<Vec<String>> {
    let results =
        admin.create_entries(v1::CreateEntriesRequest { entries, ..Default::default() }).await?.into_inner().results;
    let id = |result: v1::EntryResult| match result.outcome {
        Some(v1::entry_result::Outcome::Entry(entry)) => Ok(entry.id),
        other => bail!("entry refused: {other:?}"),
    };
    results.into_iter().map(id).collect()
}

/// Many measurements of one thing.
#[derive(Default)]
pub(crate) struct Figures(Vec<Duration>);

impl Figures {
    pub(crate) fn add(&mut self, figure: Duration) {
        self.0.push(figure);
    }

    pub(crate) fn extend(&mut self, others: Figures) {
        self.0.extend(others.0);
    }

    /// The share `percent` of the measurements took this long at most, in milliseconds.
    pub(crate) fn percentile(&mut self, percent: usize) -> f64 {
        self.0.sort_unstable();
        let at = (self.0.len() * percent).div_ceil(100).saturating_sub(1);
        self.0.get(at).map_or(f64::NAN, |duration| duration.as_secs_f64() * 1e3)
    }
}
