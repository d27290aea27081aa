//! `chancery server`: the certificate authority itself.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ca_server::app::{self, Server};
use ca_server::config::publish::{ISTIO_CONFIG_MAP, Publish};
use ca_server::config::{Config, PREFIX, WebCertificate};
use clap::{Args, Subcommand};
use serde::Serialize;
use spiffe::id::TrustDomain;
use spiffe::settings::write_duration;
use spiffe::time::{Clock as _, System};

use crate::args::Globals;
use crate::exit::{Failure, Outcome};
use crate::folders::Folders;
use crate::open_files;
use crate::output::Sheet;
use crate::overrides::{Overrides, with_flags, wrong};
use crate::running::told_to_stop;

const USUAL_CONFIG: &str = "/etc/chancery/server.toml";

/// The keys that are flags too, for messages.
const FLAGS: &[(&str, &str)] = &[
    ("trust_domain", "--trust-domain"),
    ("data_dir", "--data-dir"),
    ("listen", "--listen"),
    ("address", "--address"),
    ("health_listen", "--health-listen"),
    ("admin_socket", "--admin-socket"),
];

/// What can be done with a server.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Run a server in the foreground until it is told to stop.
    #[command(after_help = "\
Example:
  chancery server run --trust-domain example.org --listen 0.0.0.0:8443

Every key of the config can also be set from the environment: CHANCERY_SERVER__SVID__TTL=30m is svid.ttl.")]
    Run(Settings),
    /// Say whether a config is right, the files that it names included, without running it.
    #[command(after_help = "\
Example:
  chancery server validate --config /etc/chancery/server.toml")]
    Validate(Settings),
}

#[derive(Debug, Args)]
pub(crate) struct Settings {
    /// The config file; /etc/chancery/server.toml where none is given and that exists. Flags win over it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The trust domain whose SVIDs the server signs.
    #[arg(long, value_name = "NAME")]
    trust_domain: Option<TrustDomain>,
    /// The folder of the store, the keys and the audit log.
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    /// Where agents and remote admins connect.
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<SocketAddr>,
    /// Where agents are told to connect.
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<String>,
    /// Where health and metrics are answered; a loopback address.
    #[arg(long, value_name = "IP:PORT")]
    health_listen: Option<SocketAddr>,
    /// Where the admin socket is made. --socket and `CHANCERY_ADMIN_SOCKET` say where clients look for it, not this.
    #[arg(long, value_name = "PATH")]
    admin_socket: Option<PathBuf>,
}

/// `server validate`: the main things of a config that is right.
#[derive(Debug, Serialize)]
struct Valid {
    trust_domain: String,
    data_dir: PathBuf,
    listen: SocketAddr,
    address: String,
    admin_socket: PathBuf,
    ca_ttl: String,
    svid_ttl: String,
    jwt_ttl: String,
    wit_ttl: String,
    web: Vec<Served>,
    oidc_issuer: Option<String>,
    federation: Federation,
    /// Each Kubernetes cluster, and what is done there.
    kubernetes: Vec<Cluster>,
    /// The door for Istio's proxies; null: none.
    istio: Option<Door>,
}

/// The door for Istio's proxies.
#[derive(Debug, Serialize)]
struct Door {
    listen: SocketAddr,
    /// Our names of clusters, by Istio's.
    clusters: BTreeMap<String, String>,
    /// Who may ask for other pods of its node, each `namespace/name`.
    trusted_node_accounts: Vec<String>,
    dns_names: Vec<String>,
}

/// One Kubernetes cluster.
#[derive(Debug, Serialize)]
struct Cluster {
    name: String,
    /// Whether its agents are taken.
    k8s_psat: bool,
    /// The ConfigMaps in which the bundle is written there, and the ClusterTrustBundle.
    publish: Vec<String>,
}

/// One listener where the bundle is served.
#[derive(Debug, Serialize)]
struct Served {
    profile: &'static str,
    listen: SocketAddr,
    /// What the listener shows: `files`, `acme` or `svid`.
    certificate: &'static str,
}

/// Whose bundles are fetched, and from where.
#[derive(Debug, Serialize)]
struct Federation {
    /// The relationships of the config.
    relationships: Vec<String>,
    /// Networks that are not public and may be polled.
    allow_networks: Vec<String>,
}

impl Settings {
    fn config(self) -> Outcome<Config> {
        let over = Overrides::new(PREFIX)
            .default("data_dir", Folders::of_this_process().state("server"))
            .flag("trust_domain", self.trust_domain)
            .flag("data_dir", self.data_dir)
            .flag("listen", self.listen)
            .flag("address", self.address)
            .flag("health_listen", self.health_listen)
            .flag("admin_socket", self.admin_socket);
        let laid = over.read(self.config.as_deref(), Path::new(USUAL_CONFIG))?;
        let parsed = Config::parse(&laid.text, laid.variables);
        parsed.map_err(|error| wrong(&error, &laid.place, FLAGS))
    }
}

impl Verb {
    /// Does it.
    pub(crate) async fn run(self, globals: &Globals) -> Outcome {
        match self {
            Self::Run(settings) => run(settings.config()?).await,
            Self::Validate(settings) => {
                let config = settings.config()?;
                app::check(&config, System.now()).map_err(|error| Failure::Refused(error.to_string()))?;
                let valid = Valid::of(&config);
                globals.output.show(&valid, || valid.text())
            }
        }
    }
}

impl Valid {
    fn of(config: &Config) -> Self {
        let https_web = config.web.https_web.as_ref().map(|web| Served {
            profile: "https_web",
            listen: web.listen,
            certificate: match web.certificate {
                WebCertificate::Files(_) => "files",
                WebCertificate::Acme(_) => "acme",
            },
        });
        let https_spiffe = config.web.https_spiffe.as_ref();
        let https_spiffe =
            https_spiffe.map(|web| Served { profile: "https_spiffe", listen: web.listen, certificate: "svid" });
        let relationships = config.federation.relationships.iter();
        let relationships = relationships.map(|one| one.relationship.trust_domain.to_string()).collect();
        let allow_networks = config.federation.allow_networks.iter().map(ToString::to_string).collect();
        let clusters = config.kubernetes.iter().map(|(name, cluster)| Cluster {
            name: name.to_string(),
            k8s_psat: config.attest.k8s_psat.contains_key(name),
            publish: cluster.publish.as_ref().map(published).unwrap_or_default(),
        });
        let istio = config.istio.as_ref().map(|istio| Door {
            listen: istio.listen,
            clusters: istio.clusters.clone(),
            trusted_node_accounts: istio
                .trusted_node_accounts
                .iter()
                .map(|account| format!("{}/{}", account.namespace, account.name))
                .collect(),
            dns_names: istio.dns_names.iter().map(ToString::to_string).collect(),
        });
        Self {
            trust_domain: config.trust_domain.to_string(),
            data_dir: config.data_dir.clone(),
            listen: config.listen,
            address: config.address.as_str().to_owned(),
            admin_socket: config.admin_socket.as_path().to_owned(),
            ca_ttl: write_duration(config.authority.ca_ttl),
            svid_ttl: write_duration(config.svid.ttl),
            jwt_ttl: write_duration(config.jwt.ttl),
            wit_ttl: write_duration(config.wit.ttl),
            web: https_web.into_iter().chain(https_spiffe).collect(),
            oidc_issuer: config.web.oidc.as_ref().map(|oidc| oidc.issuer.as_str().to_owned()),
            federation: Federation { relationships, allow_networks },
            kubernetes: clusters.collect(),
            istio,
        }
    }

    fn text(&self) -> String {
        let Self { ca_ttl, svid_ttl, jwt_ttl, wit_ttl, .. } = self;
        let served = |one: &Served| format!("{} on {} ({})", one.profile, one.listen, one.certificate);
        let served: Vec<String> = self.web.iter().map(served).collect();
        let Federation { relationships, allow_networks } = &self.federation;
        let listed = |names: &[String], none: &str| if names.is_empty() { none.to_owned() } else { names.join(", ") };
        let cluster = |one: &Cluster| {
            let agents = one.k8s_psat.then(|| "agents by k8s_psat".to_owned());
            let publish = (!one.publish.is_empty()).then(|| format!("publishes {}", one.publish.join(" and ")));
            let does: Vec<String> = agents.into_iter().chain(publish).collect();
            if does.is_empty() { one.name.clone() } else { format!("{} ({})", one.name, does.join(", ")) }
        };
        let clusters: Vec<String> = self.kubernetes.iter().map(cluster).collect();
        let istio = self.istio.as_ref().map_or_else(
            || vec!["none ([istio])".to_owned()],
            |Door { listen, clusters, trusted_node_accounts, dns_names }| {
                let clusters: Vec<_> = clusters.iter().map(|(theirs, ours)| format!("{theirs} = {ours}")).collect();
                vec![
                    format!("listens on {listen} for proxies of {}", clusters.join(", ")),
                    format!("known as {}", listed(dns_names, "no name (istio.dns_names)")),
                    format!("for others of their node ask {}", listed(trusted_node_accounts, "no accounts")),
                ]
            },
        );
        let sheet = Sheet::default()
            .line("trust domain", &self.trust_domain)
            .line("state in", self.data_dir.display().to_string())
            .line("agents", format!("listens on {}, told as {}", self.listen, self.address))
            .line("operators", self.admin_socket.display().to_string())
            .line("lifetimes", format!("CA {ca_ttl}, X.509-SVIDs {svid_ttl}, JWT-SVIDs {jwt_ttl}, WIT-SVIDs {wit_ttl}"))
            .line("bundle", listed(&served, "served nowhere ([web.https_web], [web.https_spiffe])"))
            .line("oidc issuer", self.oidc_issuer.as_deref().unwrap_or("none ([web.oidc])"))
            .line("federation", listed(relationships, "no relationship in the config, others in the store"))
            .line("clusters", listed(&clusters, "none ([kubernetes.<name>])"))
            .lines("istio", istio)
            .line("polled", [&["public addresses".to_owned()], allow_networks.as_slice()].concat().join(", "));
        format!("the config is right\n\n{}", sheet.text())
    }
}

/// What is written in a cluster.
fn published(publish: &Publish) -> Vec<String> {
    let istio = publish.istio.then(|| format!("ConfigMap {ISTIO_CONFIG_MAP}"));
    let trust_bundle = publish.cluster_trust_bundle.as_ref();
    let trust_bundle = trust_bundle.map(|name| format!("ClusterTrustBundle {}", name.as_str()));
    [format!("ConfigMap {}", publish.config_map.as_str())].into_iter().chain(istio).chain(trust_bundle).collect()
}

async fn run(config: Config) -> Outcome {
    // Handshakes have no connection's place yet.
    open_files::make_room("limits.connections", config.limits.connections, 1);
    let server = start(config).await?;
    let stopped = tokio::select! {
        told = told_to_stop() => told,
        () = server.finished() => Err(Failure::Refused("the server has stopped by itself: its log says why".into())),
    };
    tracing::info!("the server stops");
    server.shutdown().await;
    stopped
}

/// Starts a server in this process.
pub(crate) async fn start(config: Config) -> Outcome<Server> {
    let started = Server::start(config, Arc::new(System)).await;
    started.map_err(|error| Failure::Refused(with_flags(format!("the server cannot start: {error}"), FLAGS)))
}
