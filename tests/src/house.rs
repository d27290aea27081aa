//! A whole house on fake time.
//!
//! - Time moves only by [`House::pass`], [`House::jump`] and, slowly, while [`House::eventually`] waits.
//! - Settings are pairs of a config's key and its value, laid over defaults that suit tests (everything in memory).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ca_server::app::{AppError, Server};
use ca_server::config::{Config, ConfigError};
use ca_server::kube::Told;
use ca_server::kube::review::TokenReviewer;
use ca_server::view::pods::PodEvent;
use spiffe::id::{SpiffeId, TrustDomain};
use spiffe::time::{Clock, Fake, Timestamp};
use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::operator::Operator;
use crate::paper_cluster::PaperCluster;
use crate::patience;
use crate::workload::Workload;

/// When each house begins: 2026-11-20T23:40:00Z.
pub const BEGINNING: Timestamp = Timestamp::from_unix(1_795_218_000);
/// The trust domain of every house.
pub const TRUST_DOMAIN: &str = "example.org";

/// What a config is made of: `("authority.ca_ttl", "24h")`.
pub type Settings<'a> = &'a [(&'a str, &'a str)];

/// See the head of this file.
#[derive(Debug)]
pub struct House {
    /// Everybody's clock.
    pub clock: Fake,
    folder: TempDir,
    settings: BTreeMap<String, String>,
    clusters: Vec<PaperCluster>,
    server: Option<Server>,
    address: Option<SocketAddr>,
    pods: Option<mpsc::Sender<PodEvent>>,
}

impl House {
    /// A server with `settings` that answers.
    pub async fn start(settings: Settings<'_>) -> Self {
        let mut house = Self::empty(settings);
        house.start_server().await.unwrap();
        house
    }

    /// A house whose server is not started yet.
    pub fn empty(settings: Settings<'_>) -> Self {
        // With RUST_LOG=info a test that fails shows what everybody in the house said. Only the first can set it.
        let log = tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env());
        let _ = log.with_test_writer().try_init();
        let folder = tempfile::Builder::new().prefix("house").tempdir().unwrap();
        let data = folder.path().join("server");
        let defaults = [
            ("trust_domain", TRUST_DOMAIN),
            ("listen", "127.0.0.1:0"),
            ("health_listen", "127.0.0.1:0"),
            ("store.kind", "mem"),
            ("authority.keys", "memory"),
        ];
        let mut all = own(&defaults);
        all.insert("data_dir".into(), text(&data));
        all.extend(own(settings));
        Self {
            clock: Fake::new(BEGINNING),
            folder,
            settings: all,
            clusters: Vec::new(),
            server: None,
            address: None,
            pods: None,
        }
    }

    /// Settings for a server that remembers everything over a restart.
    pub const ON_DISK: Settings<'static> = &[("store.kind", "sled"), ("authority.keys", "disk")];

    /// Changes a setting, for the next start.
    pub fn set(&mut self, key: &str, value: &str) {
        self.settings.insert(key.into(), value.into());
    }

    /// Takes a table out of the config, for the next start: what it said, to be set again.
    pub fn take(&mut self, table: &str) -> Vec<(String, String)> {
        let is_in = |(key, _): &(String, String)| key.split('.').next() == Some(table);
        let (taken, left): (Vec<_>, _) = std::mem::take(&mut self.settings).into_iter().partition(is_in);
        self.settings = left.into_iter().collect();
        taken
    }

    /// A cluster of this name, without pods, for the next start.
    pub fn cluster(&mut self, name: &str) -> PaperCluster {
        let cluster = PaperCluster::new(name, &self.clock);
        self.clusters.push(cluster.clone());
        cluster
    }

    /// The server's config, as a start would read it.
    pub fn config(&self) -> Result<Config, ConfigError> {
        Config::parse("", variables(ca_server::config::PREFIX, &self.settings))
    }

    /// Starts the server: at the address that it had before, if it had one.
    pub async fn start_server(&mut self) -> Result<(), AppError> {
        let config = self.config().unwrap();
        let (pods, told) = mpsc::channel(64);
        let reviewer = |cluster: &PaperCluster| Arc::new(cluster.clone()) as Arc<dyn TokenReviewer>;
        // Where the config names real clusters alone, these tell.
        let is_told = config.kubernetes.is_empty() || !self.clusters.is_empty();
        let told = Told { reviewers: self.clusters.iter().map(reviewer).collect(), pods: is_told.then_some(told) };
        let starting = Server::start_told(config, self.clock(), told);
        let server = Box::pin(patience::soon("the server starts", starting)).await?;
        self.pods = Some(pods);
        self.address = Some(server.address());
        self.set("listen", &server.address().to_string());
        if let Some(address) = server.istio_address() {
            self.set("istio.listen", &address.to_string());
        }
        self.server = Some(server);
        self.told().await;
        Ok(())
    }

    /// Stops the server as a signal would.
    pub async fn stop_server(&mut self) {
        let server = self.server.take().unwrap();
        patience::soon("the server stops", server.shutdown()).await;
    }

    /// Tells the server of the pods of every cluster, and waits until it knows them.
    pub async fn told(&self) {
        for cluster in &self.clusters {
            self.tell(cluster.all()).await;
        }
        let known = async || {
            let view = self.server().doors().views.load();
            let is_known = self.clusters.iter().all(|cluster| cluster.is_known(view.pods()));
            patience::that(is_known, || format!("{} pods are known", view.pods().count()))
        };
        patience::eventually("the server knows the pods", known).await;
    }

    /// Tells the server of pods, as an API server would.
    pub async fn tell(&self, event: PodEvent) {
        self.pods.as_ref().unwrap().send(event).await.unwrap();
    }

    /// The running server.
    pub fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }

    /// Where the server answers, or answered last.
    pub fn address(&self) -> SocketAddr {
        self.address.unwrap()
    }

    /// An operator on the admin socket.
    pub async fn operator(&self) -> Operator {
        Operator::at(self.server().admin_socket()).await
    }

    /// A path in the folder of this house.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file in the folder of this house.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        std::fs::write(&path, content).unwrap();
        text(&path)
    }

    /// The last line of the audit record, once it is a refusal for this reason.
    pub async fn refused(&self, why: &str) -> String {
        patience::eventually("the record says why", async || {
            let text = std::fs::read_to_string(self.path("server/audit.log")).map_err(|error| error.to_string())?;
            let last = text.lines().last().unwrap_or_default().to_owned();
            let is_so = last.contains(why) && last.contains("\"outcome\":\"refused\"");
            patience::that(is_so, || format!("{why}: {last}"))?;
            Ok(last)
        })
        .await
    }

    /// The clock, as loops hold it.
    pub fn clock(&self) -> Arc<dyn Clock> {
        Arc::new(self.clock.clone())
    }

    /// What time it is.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Turns the clock, without waiting for anything.
    pub fn jump(&self, duration: Duration) {
        self.clock.advance(duration);
    }

    /// Turns the clock back, without waiting for anything.
    pub fn jump_back(&self, duration: Duration) {
        self.clock.set(self.now().minus(duration));
    }

    /// Lets `duration` pass, from one moment at which somebody wants to wake to the next, and waits at each of them
    /// until `settled` has no objection. It must ask of everything that could be due. Moments closer together than `least` are taken together.
    pub async fn pass(
        &self,
        duration: Duration,
        least: Duration,
        mut settled: impl AsyncFnMut() -> Result<(), String>,
    ) {
        let end = self.now().plus(duration);
        while self.now() < end {
            let wake = self.clock.next_wake().unwrap_or(end);
            self.clock.set(wake.max(self.now().plus(least)).min(end));
            self.eventually("the house settles", &mut settled).await;
        }
    }

    /// Lets `duration` pass in steps of five minutes or more; at each of them every agent is connected and has renewed
    /// its SVID of the life `agent_ttl`, and so has every workload.
    pub async fn live(&self, duration: Duration, operator: &Operator, agent_ttl: Duration, workloads: &[&Workload]) {
        let settled = async || {
            for workload in workloads {
                workload.fresh(self.now())?;
            }
            operator.settled(self.now(), agent_ttl).await
        };
        self.pass(duration, Duration::from_secs(300), settled).await;
    }

    /// Asks `condition` until it answers, while time goes on, a second for each twenty looks:
    /// who has failed and waits to try again gets his turn.
    pub async fn eventually<T>(&self, what: &str, mut condition: impl AsyncFnMut() -> Result<T, String>) -> T {
        let mut looks = 0_u32;
        patience::eventually(what, async || {
            if looks > 0 && looks.is_multiple_of(20) {
                self.clock.advance(Duration::from_secs(1));
            }
            looks += 1;
            condition().await
        })
        .await
    }
}

/// The trust domain of every house.
pub fn trust_domain() -> TrustDomain {
    TrustDomain::parse(TRUST_DOMAIN).unwrap()
}

/// `spiffe://example.org` and this path.
pub fn id(path: &str) -> SpiffeId {
    trust_domain().member(path).unwrap()
}

/// A path as the text of a setting.
pub fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

pub(crate) fn own(settings: Settings<'_>) -> BTreeMap<String, String> {
    settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// The environment variables that say these settings.
pub(crate) fn variables(prefix: &str, settings: &BTreeMap<String, String>) -> Vec<(String, String)> {
    let name = |key: &str| format!("{prefix}__{}", key.replace('.', "__").to_uppercase());
    settings.iter().map(|(key, value)| (name(key), value.clone())).collect()
}
