//! Programs that take files, as the real programs, with the configs of `docs/proxies`: certificate and key are always of one
//! version, and no request is lost while they change.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say what is wrong by panicking")]

use tests::binary::{Command, House, Process, free_port, place, wait_for};
use tests::proxies::{Checker, Front, Load, Nginx, Recipe, Service, Web, get, rotate};

/// How often each certificate is to be renewed under load.
const ROTATIONS: u64 = 100;
/// An SVID of three seconds is renewed after one.
const SHORT: [&str; 2] = ["--ttl", "3s"];

/// An nginx with a config of the page.
struct Running {
    _nginx: Nginx,
    /// Where it is called by mutual TLS, and in plain HTTP.
    tls: u16,
    plain: u16,
}

impl Running {
    /// The delivery of the page in `file`, to the folder `name`, for an nginx of that name.
    fn delivery(house: &House, name: &str, file: &str) -> Recipe {
        Recipe::read("nginx", file)
            .with("\"nginx", &format!("\"{name}"))
            .with("/etc/nginx", &house.path(name).display().to_string())
            .with("/run/nginx.pid", &house.path(&format!("{name}.pid")).display().to_string())
            // That of whoever runs the tests.
            .with("group = \"www-data\"\n", "")
    }

    fn start(house: &House, name: &str, (file, service, api): (&str, u16, u16)) -> Self {
        let (tls, plain) = (free_port(), free_port());
        let mut config = Recipe::read("nginx", file)
            .with("/etc/nginx", &house.path(name).display().to_string())
            .with_port("listen ", 8443, tls)
            .with_port("127.0.0.1:", 8080, service);
        if config.text().contains("127.0.0.1:8081") {
            config = config.with_port("127.0.0.1:", 8081, plain).with_port("127.0.0.1:", 9443, api);
        }
        Self { _nginx: Nginx::start(house, name, config), tls, plain }
    }
}

/// A running HAProxy.
struct Haproxy {
    _process: Process,
    /// Where it is called by mutual TLS, and in plain HTTP.
    tls: u16,
    plain: u16,
}

impl Haproxy {
    fn delivery(house: &House) -> Recipe {
        Recipe::read("haproxy", "agent.toml")
            .with("/etc/haproxy", &house.path("haproxy").display().to_string())
            .with("/run/haproxy.pid", &house.path("haproxy.pid").display().to_string())
            .with("/run/haproxy/admin.sock", &house.path("haproxy.sock").display().to_string())
    }

    fn start(house: &House, service: u16, api: u16) -> Self {
        let (tls, plain) = (free_port(), free_port());
        let config = Recipe::read("haproxy", "haproxy.cfg")
            .with("/etc/haproxy", &house.path("haproxy").display().to_string())
            .with("/run/haproxy/admin.sock", &house.path("haproxy.sock").display().to_string())
            .with("bind :8443", &format!("bind 127.0.0.1:{tls}"))
            .with_port("127.0.0.1:", 8080, service)
            .with_port("127.0.0.1:", 8081, plain)
            .with_port("127.0.0.1:", 9443, api);
        let config = house.write("haproxy.cfg", config.text()).display().to_string();
        let pid = house.path("haproxy.pid").display().to_string();
        let command = Command::new(place("CHANCERY_HAPROXY")).args(["-W", "-p", &pid, "-f", &config]);
        Self { _process: Process::start(command, house.folder(), "haproxy"), tls, plain }
    }
}

/// Starts the agent of `house` with these deliveries.
fn deliver(house: &mut House, deliveries: &[Recipe]) {
    let text: Vec<&str> = deliveries.iter().map(Recipe::text).collect();
    house.write_agent_config(&house.token(), &text.join("\n"));
    house.start_agent();
}

#[test]
fn nobody_is_refused_through_a_hundred_rotations() {
    let mut house = House::with_server("");
    let nginx = [("static", "agent.toml"), ("variable", "variable.toml")];
    let [fixed, variable] = nginx.map(|(name, file)| Running::delivery(&house, name, file));
    let deliveries = [fixed, variable, Haproxy::delivery(&house)];
    // What Debian's packages have made.
    for name in ["static", "variable", "haproxy"] {
        std::fs::create_dir(house.path(name)).unwrap();
    }
    deliver(&mut house, &deliveries);
    for name in ["static", "variable", "haproxy"] {
        house.entry("web", &format!("deliver:{name}"), &[&SHORT[..], &["--dns", "web.example.org"]].concat());
    }
    for name in ["variable-roots", "haproxy-roots"] {
        house.entry("web", &format!("deliver:{name}"), &[]);
    }
    let checkers =
        [("static", "tls.crt", "tls.key"), ("variable", "tls.crt", "tls.key"), ("haproxy", "web.pem", "web.pem")];
    let checkers = checkers.map(|(name, chain, key)| Checker::start(&house.path(name).join("spiffe"), chain, key));
    let roots = ["variable", "haproxy"].map(|name| house.path(name).join("roots"));
    for folder in &roots {
        wait_for(60, || folder.join("bundle.pem").exists().then_some(())).expect("roots are delivered");
    }

    let service = Service::start().port;
    let api = Web::start(&house, ("spiffe://example.org/web", service), &["--dns", "api.example.org"]);
    let nginx = |name: &str, file: &str| Running::start(&house, name, (file, service, api.port));
    let (fixed, variable) = (nginx("static", "nginx.conf"), nginx("variable", "variable.conf"));
    let haproxy = Haproxy::start(&house, service, api.port);

    Front::enter(&house, "front", &["--dns", "front.example.org"]);
    Front::enter(&house, "stranger", &["--dns", "stranger.example.org"]);
    let expected = "spiffe://example.org/web";
    let fronts = [fixed.tls, variable.tls, haproxy.tls].map(|port| Front::start_as(&house, "front", (expected, port)));
    for (front, port) in fronts.iter().zip([fixed.tls, variable.tls, haproxy.tls]) {
        let answer = wait_for(60, || get(front.port, "/").ok().filter(|answer| answer.status == 200));
        let answer = answer.unwrap_or_else(|| panic!("{:?}", get(front.port, "/")));
        assert!(answer.body.contains("front.example.org"), "{answer:?}");
        let stranger = Front::start_as(&house, "stranger", (expected, port));
        assert_eq!(get(stranger.port, "/").unwrap().status, 403);
        let wrong = Front::start_as(&house, "front", ("spiffe://example.org/other", port));
        assert_eq!(get(wrong.port, "/").unwrap().status, 503);
    }
    // Who calls on, is known by his SPIFFE ID there.
    for port in [fixed.plain, haproxy.plain] {
        let answer = get(port, "/").unwrap();
        assert!(answer.status == 200 && answer.body.ends_with("URI=spiffe://example.org/web"), "{answer:?}");
    }

    let [one, two, three] = fronts.each_ref().map(|front| Load::start(front.port));
    let others = [fixed.plain, haproxy.plain].map(Load::start);
    let rotated = |more: u64| {
        let goal = checkers.each_ref().map(|checker| checker.versions() + more);
        let all = || checkers.iter().zip(goal).all(|(checker, goal)| checker.versions() >= goal).then_some(());
        wait_for(300, all).expect("rotations");
    };
    let version = || roots.each_ref().map(|folder| std::fs::read_link(folder.join("..data")).unwrap());
    let before = version();
    rotated(ROTATIONS);
    assert_eq!(version(), before, "nobody is reloaded for a new certificate alone");
    rotate(&house, || rotated(3));
    rotated(3);
    assert!(version().iter().zip(&before).all(|(now, before)| now != before), "they are for new roots");
    [one, two, three].into_iter().chain(others).for_each(|load| _ = load.end());
    for checker in checkers {
        assert!(checker.end() > ROTATIONS);
    }
}

/// PostgreSQL's own folder, which has to belong to whom it runs as: never root.
struct Postgres {
    folder: tempfile::TempDir,
    port: u16,
    process: Option<Process>,
}

impl Postgres {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("chypg").tempdir().unwrap();
        if nix::unistd::geteuid().is_root() {
            let user =
                nix::unistd::User::from_name("postgres").unwrap().expect("Debian's package adds the user postgres");
            nix::unistd::chown(folder.path(), Some(user.uid), Some(user.gid)).unwrap();
        }
        Self { folder, port: free_port(), process: None }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// A program of PostgreSQL's, as the user postgres where the test is root.
    fn program(name: &str) -> Command {
        let program = place("CHANCERY_POSTGRESQL").join(name).display().to_string();
        if nix::unistd::geteuid().is_root() {
            let words = ["--reuid=postgres", "--regid=postgres", "--clear-groups", &program];
            Command::new("/usr/bin/setpriv").args(words)
        } else {
            Command::new(program)
        }
    }

    fn delivery(&self) -> Recipe {
        let recipe = Recipe::read("postgresql", "agent.toml")
            .with("/etc/postgresql/spiffe", &self.path("spiffe"))
            .with("/var/lib/postgresql/15/main/postmaster.pid", &self.path("data/postmaster.pid"));
        // Nobody but root can give files to others.
        if nix::unistd::geteuid().is_root() {
            recipe
        } else {
            recipe.with("owner = \"postgres\"\ngroup = \"postgres\"\n", "")
        }
    }

    /// Makes a database with the configs of the page, and starts it.
    #[track_caller]
    fn start(&mut self, house: &House) {
        let data = self.path("data");
        let words = ["-D", &data, "--username=postgres", "--auth=trust", "--no-sync", "--no-instructions"];
        Self::program("initdb").args(words).run().succeeded();
        let page = |file: &str| Recipe::read("postgresql", file);
        let config = page("postgresql.conf").with("/etc/postgresql/spiffe", &self.path("spiffe"));
        let more = format!("unix_socket_directories = '{}'\nport = {}\n", self.path(""), self.port);
        let write = |file: &str, text: &str| std::fs::write(self.folder.path().join("data").join(file), text).unwrap();
        write("postgresql.conf", &format!("{}{more}", config.text()));
        // The administrator of this database is whoever runs the tests.
        let rules = page("pg_hba.conf").with("local   all       all              peer", "local all all trust");
        write("pg_hba.conf", rules.text());
        write("pg_ident.conf", page("pg_ident.conf").text());
        let mut process = Process::start(Self::program("postgres").args(["-D", &data]), house.folder(), "postgres");
        process.wait_for("being ready", 60, |_| {
            let ready = Self::program("pg_isready").args(["-h", &self.path(""), "-p", &self.port.to_string()]).run();
            (ready.code == Some(0)).then_some(())
        });
        self.process = Some(process);
        let made = self.admin("CREATE ROLE shop LOGIN; CREATE ROLE other LOGIN");
        made.succeeded();
    }

    fn admin(&self, statement: &str) -> tests::binary::Output {
        let (socket, port) = (self.path(""), self.port.to_string());
        let words = ["-h", &socket, "-p", &port, "-U", "postgres", "-d", "postgres", "-At", "-c", statement];
        Self::program("psql").args(words).run()
    }

    /// What psql says, with the connection of the page and the files in this folder of the house.
    fn login(&self, house: &House, files: &str, user: &str) -> tests::binary::Output {
        let connection = Recipe::read("postgresql", "connection")
            .with(
                "host=db.example.org port=5432",
                &format!("host=db.example.org hostaddr=127.0.0.1 port={}", self.port),
            )
            .with("user=shop", &format!("user={user}"))
            .with("/var/lib/shop/spiffe", &house.path(files).display().to_string());
        let statement = "SELECT usename || ' ' || client_serial FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                         WHERE pid = pg_backend_pid()";
        let psql = place("CHANCERY_POSTGRESQL").join("psql");
        house.program(psql).args([connection.text().trim(), "-At", "-c", statement]).run()
    }
}

#[test]
fn postgresql_takes_an_svid_for_a_password_before_and_after_each_rotation() {
    let (mut house, mut postgres) = (House::with_server(""), Postgres::new());
    deliver(&mut house, &[postgres.delivery()]);
    house.entry("db", "deliver:postgresql", &["--ttl", "8s", "--dns", "db.example.org"]);
    // A client is a process of its own, by the page; two of them that may not come in.
    let clients = [
        ("shop", &["--ttl", "8s", "--dns", "shop.example.org"][..]),
        ("other", &["--dns", "other.example.org"]),
        ("nameless", &[]),
    ];
    let _running = clients.map(|(name, entry)| {
        let program = house.path(&format!("deliver-{name}"));
        std::fs::copy(tests::binary::chancery(), &program).unwrap();
        house.entry(name, &format!("unix:path:{}", program.display()), entry);
        let config = Recipe::read("postgresql", "client.toml")
            .with("/run/chancery/workload.sock", &house.path("agent.sock").display().to_string())
            .with("/var/lib/shop/spiffe", &house.path(name).display().to_string());
        let config = house.write(&format!("{name}.toml"), config.text()).display().to_string();
        let command = house.program(program).args(["deliver", "--config", &config]);
        let mut process = Process::start(command, house.folder(), &format!("deliver-{name}"));
        process.wait_for("its files", 60, |_| house.path(name).join("tls.key").exists().then_some(()));
        process
    });
    let server = Checker::start(&postgres.folder.path().join("spiffe"), "tls.crt", "tls.key");
    postgres.start(&house);

    let mut serials = std::collections::BTreeSet::new();
    for rotation in 1..=3 {
        serials.insert(postgres.login(&house, "shop", "shop").succeeded().says(&["shop "]).stdout);
        assert_eq!(serials.len(), rotation, "{serials:?}");
        let seen = server.versions();
        wait_for(60, || (server.versions() > seen).then_some(())).expect("a rotation of the server");
        let serial = || postgres.login(&house, "shop", "shop").stdout;
        wait_for(60, || (!serials.contains(&serial())).then_some(())).expect("a rotation of the client");
    }
    postgres.login(&house, "shop", "other").failed(2, &["certificate authentication failed"]);
    postgres.login(&house, "other", "shop").failed(2, &["certificate authentication failed"]);
    postgres.login(&house, "nameless", "shop").failed(2, &["certificate authentication failed"]);
    // Nor is one who comes from another CA, whatever it says of him.
    let (foreign, folder) = (House::with_agent("", ""), house.path("foreign"));
    foreign.entry("shop", &House::of_us(), &["--dns", "shop.example.org"]);
    foreign.run(&["fetch", "x509", "--write", &folder.display().to_string()]).succeeded();
    for (from, to) in [("svid.pem", "tls.crt"), ("key.pem", "tls.key")] {
        std::fs::rename(folder.join(from), folder.join(to)).unwrap();
    }
    std::fs::copy(house.path("shop/bundle.pem"), folder.join("bundle.pem")).unwrap();
    postgres.login(&house, "foreign", "shop").failed(2, &["unknown ca"]);
    server.end();
}
