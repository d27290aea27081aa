//! The only place that joins things: store, keys, View, doors and loops become a running server, and stop as one.

mod clusters;
mod error;
mod istio;
mod listeners;
mod lives;
mod observe;

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use spiffe::bundle::Bundle;
use spiffe::federation::Relationship;
use spiffe::mtls::{self, CurrentBundles, CurrentSvid, Peers};
use spiffe::proto::v1::admin_server::AdminServer;
use spiffe::proto::v1::node_server::NodeServer;
use spiffe::time::{Clock, Timestamp};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::api::Doors;
use crate::api::admin::{AdminDoor, AdminSettings};
use crate::api::istio::IstioDoor;
use crate::api::limits::Attempts;
use crate::api::listen::{self, Arrivals, ListenError, NetworkRoom};
use crate::api::node::NodeDoor;
use crate::api::rights::{Guard, Operators};
use crate::attest::Attestors;
use crate::audit::{self, Audit};
use crate::authority::State;
use crate::authority::keys::{Disk, KeyStore, Memory, owned};
use crate::authority::upstream::Upstream;
use crate::config::{self, Config, ConfigError, Keys, StoreKind};
use crate::connected::Connected;
use crate::federation::{self, Federation};
use crate::health;
use crate::https::WebRoots;
use crate::kube::Told;
use crate::kube::client::Access;
use crate::kube::{review, watch};
use crate::metrics::Metrics;
use crate::origin::Places;
use crate::own_svid::OwnSvid;
use crate::prune;
use crate::rotate::{self, Acknowledged, Rotator, Rule};
use crate::store::mem::MemStore;
use crate::store::sled::SledStore;
use crate::store::{Revision, Store, StoreError};
use crate::view::follow::{self, Signers, Views};
use crate::view::{Terms, keys};
use crate::web;
pub use error::AppError;
use listeners::Listeners;

/// How long open calls may take to end when the server stops.
const GRACE: Duration = Duration::from_secs(10);
/// How often the other side of a silent connection is asked whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// How long it may take to answer that.
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(5);
/// The most calls and streams open on one connection.
const STREAMS_PER_CONNECTION: u32 = 256;
/// The largest message that an operator may send, in bytes.
const MAX_MESSAGE: usize = 4 << 20;
/// The largest message that an agent or a stranger may send: four times what a full batch of CSRs takes.
const MAX_NODE_MESSAGE: usize = 1 << 20;
/// How many exchanges of attestation may be open at once, in all and of one origin. With the size of a message this
/// bounds what strangers hold.
const OPEN_ATTESTATIONS: usize = 128;
const OPEN_ATTESTATIONS_OF_ONE: usize = OPEN_ATTESTATIONS / 4;
/// How many Sync streams one agent may have open: the one that counts, and those that end.
const SYNCS_OF_ONE_AGENT: usize = 4;
/// How long the last lines of the audit record may take to be written when the server stops.
const LAST_LINES: Duration = Duration::from_secs(5);

/// A running server.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    health_address: SocketAddr,
    web: web::Addresses,
    istio: Option<SocketAddr>,
    admin_socket: PathBuf,
    doors: Arc<Doors>,
    stop: CancellationToken,
    serving: JoinHandle<()>,
    ended: CancellationToken,
    loops: TaskTracker,
    writer: audit::Writer,
}

/// What follows from the config and the files that it names.
struct Judged {
    upstream: Option<Upstream>,
    rules: Vec<Rule>,
    attestors: Attestors,
    relationships: Vec<(Relationship, Option<Bundle>)>,
    web_roots: Vec<CertificateDer<'static>>,
    clusters: Vec<Access>,
}

/// Whether a server could start by `config` at `now`, as far as its values and the files that it names go. Changes nothing.
pub fn check(config: &Config, now: Timestamp) -> Result<(), AppError> {
    judge(config, now)?;
    // At a start the reviewers are looked at instead: a test brings its own.
    let mut named = config.istio.iter().flat_map(|istio| istio.clusters.values());
    match named.find(|name| !config.kubernetes.keys().any(|known| known.as_str() == **name)) {
        Some(unknown) => Err(AppError::IstioCluster(unknown.clone())),
        None => Ok(()),
    }
}

fn judge(config: &Config, now: Timestamp) -> Result<Judged, AppError> {
    // First, because its messages name the key of the config.
    config.check_files()?;
    let upstream = config.authority.upstream.as_ref();
    let upstream = upstream.map(|paths| Upstream::open(&paths.certificate, &paths.key, now)).transpose()?;
    let rules = lives::rules(config)?;
    let configured = config.federation.relationships.iter();
    let relationships = configured.map(|one| Ok((one.relationship.clone(), one.initial_bundle()?)));
    let relationships = relationships.collect::<Result<_, ConfigError>>()?;
    let web_roots = config.federation.web_roots.as_ref();
    let web_roots = web_roots.map(|path| config::certificates("federation.web_roots", path)).transpose()?;
    let attestors = Attestors::from_config(&config.attest)?;
    let (web_roots, clusters) = (web_roots.unwrap_or_default(), clusters::read(config)?);
    Ok(Judged { upstream, rules, attestors, relationships, web_roots, clusters })
}

impl Server {
    /// Starts a server and returns when it answers on all of its addresses.
    pub async fn start(config: Config, clock: Arc<dyn Clock>) -> Result<Self, AppError> {
        Self::start_told(config, clock, Told::default()).await
    }

    /// The same, where somebody else tells of Kubernetes.
    pub async fn start_told(config: Config, clock: Arc<dyn Clock>, told: Told) -> Result<Self, AppError> {
        let Judged { upstream, rules, attestors, relationships, web_roots, clusters } = judge(&config, clock.now())?;
        let clusters = clusters::open(&config, clusters, &clock);
        let attestors = clusters::with_agents(attestors, &config, &clusters);
        // Before the socket in it, whose folder would be made for everybody to enter.
        make_data_dir(&config)?;
        let listeners = Listeners::bind(&config).await?;
        let (stop, loops) = (CancellationToken::new(), TaskTracker::new());
        // A start that fails ends what it has begun.
        let begun = stop.clone().drop_guard();
        let (starting, health_address) = (health::Starting::default(), listeners.health_address);
        loops.spawn(health::serve(listeners.health, Arc::clone(&starting), stop.clone()));
        let store = open_store(&config).await?;
        let keys: Arc<dyn KeyStore> = match config.authority.keys {
            Keys::Disk => Arc::new(Disk::open(&config.keys_dir())?),
            Keys::Memory => Arc::new(Memory::default()),
        };
        let (audit, writer) = Audit::open(&config.audit)?;

        let signers = Signers { keys: Arc::clone(&keys), owner: config.name.as_str().into() };
        let view = follow::load(config.trust_domain.clone(), &*store, &signers).await?;
        if let Some(held) = view.authorities().iter().find_map(|held| held.trust_domain_if_other(&config.trust_domain))
        {
            let (path, asked) = (config.data_dir.as_path().to_owned(), config.trust_domain);
            return Err(AppError::TrustDomain { path, held, asked });
        }
        let told_clusters = clusters::told(&clusters);
        // Each once: of all rules is said that there is no cluster.
        let notes: BTreeSet<String> = view.rules().filter_map(|rule| told_clusters.note(rule, view.pods())).collect();
        notes.iter().for_each(|note| warn!("{note}"));
        let terms = Terms { most: config.limits.derived_entries, own_names: config.own_names().into() };
        let awaited = clusters.iter().map(|cluster| Arc::clone(cluster.name()));
        let views = Views::new(view.on_terms(terms).awaiting(awaited));
        let connected = Connected::default();
        let polled = Arc::default();
        let metrics = Arc::new(Metrics::new(
            env!("CARGO_PKG_VERSION"),
            observe::observe(
                Arc::clone(&views),
                connected.clone(),
                audit.clone(),
                Arc::clone(&clock),
                Arc::clone(&polled),
                clusters.clone(),
            ),
        ));
        let spawn = Spawner { loops: &loops, stop: &stop };

        let reviewers = [review::remembering(&clusters, &clock), told.reviewers].concat();
        let (watching, watched) = watch::watch(clusters.clone(), config.trust_domain.clone(), Arc::clone(&clock));
        spawn.run(watching);
        let pods = Some(told.pods.unwrap_or(watched));
        spawn.run(follow::follow(Arc::clone(&store), Arc::clone(&views), signers, Arc::clone(&clock), pods));
        let rotator = Arc::new(Rotator::new(rotate::Parts {
            store: Arc::clone(&store),
            keys,
            upstream,
            trust_domain: config.trust_domain.clone(),
            rules,
            clock: Arc::clone(&clock),
            acknowledged: acknowledged(Arc::clone(&views), connected.clone(), Arc::clone(&clock)),
        }));
        rotator.rotate().await?;
        let (_, revision) = store.range(keys::AUTHORITIES).await?;
        let view = views.reached(revision).await;
        let issuer = view.issuer().ok_or(AppError::NoAuthority)?;
        loops.spawn({
            let (rotator, stop) = (Arc::clone(&rotator), stop.clone());
            async move { rotator.run(stop).await }
        });
        clusters::publishers(&config, &clusters, &views, &clock).into_iter().for_each(|one| spawn.run(one.run()));
        spawn.run(wake_rotation(Arc::clone(&rotator), Arc::clone(&views), connected.clone()));

        let profile = lives::x509(&config);
        let (svid, bundles) = (CurrentSvid::default(), CurrentBundles::new([view.bundle().clone()]));
        let own = OwnSvid {
            svid: svid.clone(),
            bundles: bundles.clone(),
            dns_names: config.own_names(),
            profile: profile.clone(),
            views: Arc::clone(&views),
            metrics: Arc::clone(&metrics),
            clock: Arc::clone(&clock),
        };
        spawn.run(own.begin(issuer)?.keep());

        let address = listeners.tls.local_addr().map_err(|error| listen_error("listen", config.listen, error))?;
        let advertised = config.address.as_str();
        let advertised = match advertised.strip_suffix(":0") {
            Some(host) => format!("{host}:{}", address.port()),
            None => advertised.to_owned(),
        };
        let doors = Arc::new(Doors {
            store,
            views: Arc::clone(&views),
            connected,
            attestors,
            profile,
            jwt: lives::jwt(&config),
            wit: lives::wit(&config),
            audit: audit.clone(),
            metrics: Arc::clone(&metrics),
            clock: Arc::clone(&clock),
            issuing: Semaphore::new(config.limits.issue_concurrency),
            open_attestations: Places::new(OPEN_ATTESTATIONS, OPEN_ATTESTATIONS_OF_ONE),
            syncing: Places::new(usize::MAX, SYNCS_OF_ONE_AGENT),
            attesting: Attempts::new(config.limits.attest_per_second, config.limits.attest_burst, clock.now()),
            stop: stop.clone(),
        });
        let (federation, asks) = Federation::new(federation::Parts {
            configured: relationships,
            most: config.federation.most,
            limits: federation::Limits {
                timeout: config.federation.timeout,
                allow_networks: config.federation.allow_networks.clone(),
            },
            web_roots: WebRoots::new(web_roots, Arc::clone(&clock)),
            store: Arc::clone(&doors.store),
            views: Arc::clone(&views),
            audit: audit.clone(),
            metrics: Arc::clone(&metrics),
            clock: Arc::clone(&clock),
        });
        // The numbers are older than the loop that they are asked of.
        let _ = polled.set(Arc::downgrade(&federation));
        spawn.run(Arc::clone(&federation).run(asks));
        let settings = AdminSettings {
            version: env!("CARGO_PKG_VERSION"),
            address: advertised,
            most_entries: config.limits.entries,
            most_rules: config.limits.rules,
            clusters: told_clusters,
            gives_service_accounts: config.istio.is_some(),
            most_tokens: config.limits.join_tokens,
            token_max_ttl: config.attest.join_token.max_ttl,
            rotator,
            federation,
        };
        let admin = AdminDoor { doors: Arc::clone(&doors), settings: Arc::new(settings) };
        let agents_after = config.purge.agents_expired_for;
        spawn.run(prune::run(
            Arc::clone(&doors.store),
            Arc::clone(&views),
            audit.clone(),
            Arc::clone(&clock),
            agents_after,
        ));
        let ready = observe::ready(views.clone(), audit, Arc::clone(&clock));
        // Nobody else sets it.
        let _ = starting.set(health::Known { ready, metrics });

        let web = web::serve(
            listeners.web,
            &web::Parts {
                config: &config.web,
                acme_dir: config.acme_dir(),
                svid: svid.clone(),
                views: Arc::clone(&views),
                clock: Arc::clone(&clock),
                loops: &loops,
                stop: &stop,
            },
        )?;
        let mut tls = mtls::server_config(svid, bundles, Peers::Any, false, Arc::clone(&clock))?;
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let (to, connections) = mpsc::channel(64);
        let opening = config.limits.handshake_timeout;
        let arrivals = Arrivals { to, opening, clock: Arc::clone(&clock), stop: stop.clone() };
        let tls = Arc::new(tls);
        let room = NetworkRoom::of_agents(config.limits.connections);
        loops.spawn(listen::accept_tls(listeners.tls, Arc::clone(&tls), room, arrivals.clone()));
        let mut uids = config.admin_uids.clone();
        uids.extend([0, nix::unistd::geteuid().as_raw()]);
        let operators = Operators { uids: uids.into() };
        loops.spawn(listen::accept_unix(listeners.admin, operators.clone(), arrivals.clone()));
        let guard = Guard { views, operators, clock };
        let request_timeout = config.limits.request_timeout;
        let istio_address = listeners.istio.as_ref().and_then(|port| port.local_addr().ok());
        if let (Some(port), Some(istio)) = (listeners.istio, &config.istio) {
            let settings = Arc::new(istio::settings(&config, istio, reviewers, guard.clock.now())?);
            let (to, connections) = mpsc::channel(64);
            let room = NetworkRoom::of_proxies(istio.connections);
            loops.spawn(listen::accept_tls(port, tls, room, Arrivals { to, ..arrivals }));
            if let Some(address) = &istio_address {
                info!(%address, "Istio's proxies are answered");
            }
            let door = IstioDoor { doors: Arc::clone(&doors), settings };
            loops.spawn(istio::serve(door, guard.clone(), request_timeout, connections));
        }
        let ended = CancellationToken::new();
        let serving = serve(Arc::clone(&doors), admin, guard, request_timeout, connections);
        let serving = tokio::spawn({
            // Also when the task is dropped or ends in a panic.
            let ended = ended.clone().drop_guard();
            async move {
                serving.await;
                drop(ended);
            }
        });
        loops.close();
        begun.disarm();
        info!(%address, admin_socket = %config.admin_socket.as_path().display(), trust_domain = %config.trust_domain, "the server answers");
        Ok(Self {
            address,
            health_address,
            web,
            istio: istio_address,
            admin_socket: config.admin_socket.as_path().to_owned(),
            doors,
            stop,
            serving,
            ended,
            loops,
            writer,
        })
    }

    /// Where agents and remote operators connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where `/live`, `/ready` and `/metrics` are.
    pub fn health_address(&self) -> SocketAddr {
        self.health_address
    }

    /// Where the own bundle is served to other trust domains.
    pub fn web_addresses(&self) -> web::Addresses {
        self.web
    }

    /// Where Istio's proxies connect.
    pub fn istio_address(&self) -> Option<SocketAddr> {
        self.istio
    }

    /// Where local operators connect.
    pub fn admin_socket(&self) -> &Path {
        &self.admin_socket
    }

    /// What the doors have behind them: for whoever runs a server inside of another program.
    pub fn doors(&self) -> &Arc<Doors> {
        &self.doors
    }

    /// Returns when the server has ended by itself, which it should not.
    pub async fn finished(&self) {
        self.ended.cancelled().await;
    }

    /// Takes no more calls, lets open ones end, tells streams to go elsewhere, and writes what is to be written.
    pub async fn shutdown(self) {
        self.stop.cancel();
        #[expect(clippy::disallowed_methods, reason = "a time limit on what peers on the network leave open")]
        let ended = tokio::time::timeout(GRACE, async {
            let _ = self.serving.await;
            self.loops.wait().await;
        });
        if ended.await.is_err() {
            error!("calls were still open 10 seconds after the server was stopped: they are cut off");
        }
        drop(self.doors);
        // The writer ends when the last handle on the audit is gone: a connection that was cut off may keep one.
        let writer = self.writer;
        let finished = tokio::task::spawn_blocking(move || writer.finish());
        #[expect(clippy::disallowed_methods, reason = "a time limit on what peers on the network leave open")]
        if tokio::time::timeout(LAST_LINES, finished).await.is_err() {
            error!("connections were still open 5 seconds later: not waiting for the audit record any longer");
        }
        // A socket that is gone already is as good.
        let _ = std::fs::remove_file(&self.admin_socket);
        info!("the server has stopped");
    }
}

fn listen_error(key: &'static str, address: SocketAddr, error: io::Error) -> ListenError {
    ListenError::Port { key, address, error, hint: "" }
}

/// Starts loops that end when the server stops.
struct Spawner<'a> {
    loops: &'a TaskTracker,
    stop: &'a CancellationToken,
}

impl Spawner<'_> {
    fn run(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.loops.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = work => {}
            }
        });
    }
}

async fn serve(
    doors: Arc<Doors>,
    admin: AdminDoor,
    guard: Guard,
    request_timeout: Duration,
    connections: mpsc::Receiver<io::Result<listen::Connection>>,
) {
    let stop = doors.stop.clone();
    let node = NodeServer::new(NodeDoor(doors)).max_decoding_message_size(MAX_NODE_MESSAGE);
    let admin = AdminServer::new(admin).max_decoding_message_size(MAX_MESSAGE);
    let served = tonic::transport::Server::builder()
        .timeout(request_timeout)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_ANSWER))
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .layer(guard)
        .add_service(node)
        .add_service(admin)
        .serve_with_incoming_shutdown(ReceiverStream::new(connections), stop.cancelled_owned())
        .await;
    if let Err(error) = served {
        error!(%error, "the server's listener failed");
    }
}

/// Makes `data_dir` for this user alone; others may pass through it where its admin socket is for them too. One that is
/// there is this user's or root's, and the operator's affair: its mode stays, and one that is too wide is told of. What lies in it has narrow modes itself.
fn make_data_dir(config: &Config) -> Result<(), AppError> {
    use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
    let (path, socket) = (config.data_dir.as_path(), config.admin_socket.as_path());
    let is_passed = socket.starts_with(path) && config.admin_socket_mode.bits() & 0o066 != 0;
    let failed = |error| AppError::Folder { path: path.to_owned(), error };
    if let Some(above) = path.parent().filter(|above| !above.as_os_str().is_empty()) {
        std::fs::create_dir_all(above).map_err(failed)?;
    }
    let mode = if is_passed { 0o711 } else { 0o700 };
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(path).map_err(failed)?;
    owned(path)?;
    let found = std::fs::metadata(path).map_err(failed)?.permissions().mode() & 0o7777;
    if found & 0o066 != 0 {
        let mode = format!("{found:04o}");
        warn!(path = %path.display(), mode, "others may list data_dir, or put files of their own in it: run chmod go-rw on it");
    }
    Ok(())
}

async fn open_store(config: &Config) -> Result<Arc<dyn Store>, AppError> {
    match config.store.kind {
        StoreKind::Mem => Ok(Arc::new(MemStore::new())),
        StoreKind::Sled => {
            let path = config.store_dir();
            let opened = tokio::task::spawn_blocking(move || SledStore::open(&path)).await;
            let opened = opened.map_err(|error| StoreError::Unavailable(format!("opening it failed: {error}")))?;
            Ok(Arc::new(opened?))
        }
    }
}

/// Which authorities every live agent knows: one that has attested, is not banned and whose SVID has not ended.
fn acknowledged(views: Arc<Views>, connected: Connected, clock: Arc<dyn Clock>) -> Acknowledged {
    Arc::new(move |prepared| {
        let (view, now) = (views.load(), clock.now());
        let known = |revision: Revision| {
            let mut live = view.nodes_after(None).filter(|node| node.is_live(now));
            live.all(|node| connected.applied(&node.id).is_some_and(|applied| applied >= revision))
        };
        prepared.iter().filter(|(_, revision)| known(*revision)).map(|(id, _)| Arc::clone(id)).collect()
    })
}

/// Wakes the rotation when an acknowledgement may let a prepared authority become the active one, and when somebody
/// else has changed an authority.
async fn wake_rotation(rotator: Arc<Rotator>, views: Arc<Views>, connected: Connected) {
    let mut changes = connected.changes();
    let (mut view, mut listener) = views.listen();
    loop {
        tokio::select! {
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
                if view.authorities().iter().any(|held| held.state == State::Prepared) {
                    rotator.wake();
                }
            }
            published = listener.next() => {
                let Some(published) = published else { return };
                if published.view.bundle().sequence() != view.bundle().sequence() {
                    rotator.wake();
                }
                view = published.view;
            }
        }
    }
}
