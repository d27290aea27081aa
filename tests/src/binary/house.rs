//! A server and an agent, each the real binary, in a folder of their own.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::command::{Command, Output};
use super::patience::wait_for;
use super::port::free_port;
use super::process::Process;
use crate::certificates::root;

/// How long server and agent may take to be ready, in seconds.
const READY: u64 = 60;

/// A folder with a trust domain in it, `example.org` unless another is named: a server, and an agent that has the node
/// alias [`House::NODE`] (or that of its own trust domain).
#[derive(Debug)]
pub struct House {
    // The order in which they are dropped: the agent first, the folder last.
    agent: Option<Process>,
    server: Option<Process>,
    trust_domain: String,
    address: String,
    health: String,
    folder: TempDir,
}

impl House {
    /// The alias of the agent, the parent of all entries here.
    pub const NODE: &str = "spiffe://example.org/node/one";

    /// A folder with the configs of a server, and nothing that runs. `server` is TOML behind our own keys.
    pub fn empty(server: &str) -> Self {
        Self::empty_of("example.org", server)
    }

    /// The same for another trust domain.
    pub fn empty_of(trust_domain: &str, server: &str) -> Self {
        // Short: a socket's path has 107 bytes at most.
        let folder = tempfile::Builder::new().prefix("chy").tempdir().expect("a folder for temporary files");
        let (address, health) = (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
        let house = Self { agent: None, server: None, trust_domain: trust_domain.into(), address, health, folder };
        house.write_server_config(server);
        house
    }

    /// With a running server.
    pub fn with_server(server: &str) -> Self {
        let mut house = Self::empty(server);
        house.start_server();
        house
    }

    /// With a running server and an agent that has attested by a token. Both texts are TOML behind our own keys.
    pub fn with_agent(server: &str, agent: &str) -> Self {
        Self::empty(server).start(agent)
    }

    /// The same house with its server and an agent that has attested by a token, and is connected: it is up a moment before,
    /// and `--wait` waits for nobody who is not.
    #[must_use]
    #[track_caller]
    pub fn start(mut self, agent: &str) -> Self {
        self.start_server();
        let token = self.token();
        self.write_agent_config(&token, agent);
        self.start_agent();
        let connected = || self.run(&["agent", "count", "--connected"]).succeeded().stdout;
        let is_connected = wait_for(READY, || (connected() == "1\n").then_some(()));
        assert!(is_connected.is_some(), "the agent did not connect within {READY} s");
        self
    }

    /// Writes `server.toml` anew.
    pub fn write_server_config(&self, more: &str) {
        let Self { trust_domain, address, health, .. } = self;
        let (data, socket) = (self.path("server"), self.path("admin.sock"));
        let text = format!(
            "trust_domain = '{trust_domain}'\ndata_dir = {data:?}\nlisten = '{address}'\nhealth_listen = '{health}'\n\
             admin_socket = {socket:?}\n{more}\n"
        );
        self.write("server.toml", &text);
    }

    /// Writes `agent.toml` anew, with `token` in a file beside it.
    pub fn write_agent_config(&self, token: &str, more: &str) {
        self.write("join-token", token);
        let (data, socket, token) = (self.path("agent"), self.path("agent.sock"), self.path("join-token"));
        let (trust_domain, server, fingerprint) = (&self.trust_domain, &self.address, self.fingerprint());
        let text = format!(
            "trust_domain = '{trust_domain}'\nservers = ['{server}']\ndata_dir = {data:?}\nworkload_socket = {socket:?}\n\
             ca_fingerprint = 'sha256:{fingerprint}'\nattest = {{ kind = 'join_token', token_file = {token:?} }}\n{more}\n"
        );
        self.write("agent.toml", &text);
    }

    /// Starts the server, and returns when it is ready.
    #[track_caller]
    pub fn start_server(&mut self) {
        self.server = Some(self.ready("server", "the server answers"));
    }

    /// Starts the agent, and returns when it is ready.
    #[track_caller]
    pub fn start_agent(&mut self) {
        self.agent = Some(self.ready("agent", "agent is up"));
    }

    /// Starts `server` or `agent`, and returns when it says so once more than its log has it.
    #[track_caller]
    fn ready(&self, name: &str, says: &str) -> Process {
        let log = self.path(&format!("{name}.log"));
        let said = || std::fs::read_to_string(&log).unwrap_or_default().matches(says).count();
        let before = said();
        let mut process = self.process(name, &[name, "run", "--config", &format!("{name}.toml")]);
        process.wait_for("being ready", READY, |_| (said() > before).then_some(()));
        process
    }

    /// Starts `chancery` with these words in the folder of the house; its log is `name.log`.
    pub fn process(&self, name: &str, words: &[&str]) -> Process {
        Process::start(self.command(words), self.folder(), name)
    }

    /// The running server.
    pub fn server(&mut self) -> &mut Process {
        self.server.as_mut().expect("the server was started")
    }

    /// The running agent.
    pub fn agent(&mut self) -> &mut Process {
        self.agent.as_mut().expect("the agent was started")
    }

    /// Ends the server by SIGTERM.
    pub fn stop_server(&mut self) {
        self.server = None;
    }

    /// Ends the agent by SIGTERM.
    pub fn stop_agent(&mut self) {
        self.agent = None;
    }

    /// The folder of all that.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A file in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file into the folder.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path
    }

    /// Writes `kubeconfig` of somebody who logs in by the lines `user`, to an API server where nobody listens.
    pub fn write_kubeconfig(&self, user: &str) -> PathBuf {
        self.write("kubernetes.pem", &root("kubernetes").pem());
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: it\n\
             clusters:\n- name: it\n  cluster: {{server: 'https://127.0.0.1:1', certificate-authority: kubernetes.pem}}\n\
             users:\n- name: it\n  user: {{{user}}}\n\
             contexts:\n- name: it\n  context: {{cluster: it, user: it}}\n"
        );
        self.write("kubeconfig", &text)
    }

    /// Where agents connect.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Where `/ready` is.
    pub fn health(&self) -> &str {
        &self.health
    }

    /// What workloads have in `SPIFFE_ENDPOINT_SOCKET`.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.path("agent.sock").display())
    }

    /// `chancery` with these words, in the folder, with the sockets of this house in its environment.
    pub fn command(&self, words: &[&str]) -> Command {
        self.program(super::chancery()).args(words)
    }

    /// Any program in the same place and environment.
    pub fn program(&self, path: impl AsRef<Path>) -> Command {
        Command::new(path)
            .folder(self.folder())
            .env("HOME", self.folder())
            .env("CHANCERY_ADMIN_SOCKET", self.path("admin.sock"))
            .env("SPIFFE_ENDPOINT_SOCKET", self.endpoint())
    }

    /// Runs `chancery` with these words.
    pub fn run(&self, words: &[&str]) -> Output {
        self.command(words).run()
    }

    /// Whose server and agent these are.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// `spiffe://<trust domain>/<path>`.
    pub fn id(&self, path: &str) -> String {
        format!("spiffe://{}/{path}", self.trust_domain)
    }

    /// A join token for [`House::NODE`].
    #[track_caller]
    pub fn token(&self) -> String {
        let made = self.run(&["token", "create", "--alias", &self.id("node/one"), "-o", "json"]).succeeded().json();
        made["token"].as_str().expect("a token").to_owned()
    }

    /// The SHA-256 of the root that agents know the server by.
    #[track_caller]
    pub fn fingerprint(&self) -> String {
        let bundle = self.run(&["bundle", "show", "-o", "json"]).succeeded().json();
        bundle["x509_authorities"][0]["fingerprint"].as_str().expect("a root").to_owned()
    }

    /// An entry below the agent, applied when this returns: `spiffe://<trust domain>/<name>`, for processes that match
    /// `selector`. Returns its ID.
    #[track_caller]
    pub fn entry(&self, name: &str, selector: &str, more: &[&str]) -> String {
        let (id, parent) = (self.id(name), self.id("node/one"));
        let words = ["entry", "create", "--spiffe-id", &id, "--parent", &parent, "--selector", selector];
        let made = self.run(&[&words, &["--wait", "-o", "json"][..], more].concat()).succeeded().json();
        assert!(made["results"][0]["entry"]["id"].is_string(), "{made}");
        made["results"][0]["entry"]["id"].as_str().unwrap_or_default().to_owned()
    }

    /// The selector of every process that a test starts.
    pub fn of_us() -> String {
        format!("unix:uid:{}", nix::unistd::geteuid())
    }
}
