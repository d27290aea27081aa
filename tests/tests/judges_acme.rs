//! pebble, the ACME server that certificate authorities test with, gives the web listener its certificate. It is found by
//! `CHANCERY_PEBBLE`, and its DNS server for tests beside it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say what is wrong by panicking")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use ca_server::app::Server;
use ca_server::config::{Config, PREFIX};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::json;
use spiffe::time::System;
use tests::binary::free_port;
use tests::patience;
use tests::web::Browser;

const NAME: &str = "bundles.example.org";

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn pebble() -> PathBuf {
    let path = std::env::var_os("CHANCERY_PEBBLE").map(PathBuf::from).unwrap_or_else(|| {
        panic!("CHANCERY_PEBBLE is not set: run `./check test`, which installs pebble and says where it is")
    });
    assert!(path.exists(), "CHANCERY_PEBBLE names {}, which is not there", path.display());
    path
}

fn start(program: &Path, arguments: &[&str]) -> Running {
    let mut command = Command::new(program);
    command.args(arguments).env("PEBBLE_VA_NOSLEEP", "1").env("PEBBLE_WFE_NONCEREJECT", "20");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Running(command.spawn().unwrap_or_else(|error| panic!("{}: {error}", program.display())))
}

#[tokio::test]
async fn pebble_gives_the_web_listener_its_certificate() {
    // With RUST_LOG=info a test that fails shows what the server said.
    let log = tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env());
    let _ = log.with_test_writer().try_init();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let [acme, management, dns, dns_management, web] = [(); 5].map(|()| free_port());
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let pebbles = file("pebble.pem", &made.cert.pem());
    let config = json!({ "pebble": {
        "listenAddress": format!("127.0.0.1:{acme}"),
        "managementListenAddress": format!("127.0.0.1:{management}"),
        "certificate": pebbles,
        "privateKey": file("pebble.key", &made.signing_key.serialize_pem()),
        "httpPort": 1,
        "tlsPort": web,
        "ocspResponderURL": "",
        "externalAccountBindingRequired": false,
    }});
    let config = file("pebble.json", &config.to_string());
    let names = pebble().with_file_name("pebble-challtestsrv");
    let listen = |port: u16| format!("127.0.0.1:{port}");
    let _names = start(
        &names,
        &[
            &["-defaultIPv4", "127.0.0.1", "-defaultIPv6", "", "-dns01", &listen(dns)],
            &["-management", &listen(dns_management), "-http01", "", "-https01", "", "-tlsalpn01", ""][..],
        ]
        .concat(),
    );
    let _pebble = start(&pebble(), &["-config", &config, "-dnsserver", &listen(dns)]);
    let management_door = Browser::new(management, "127.0.0.1", vec![made.cert.der().clone()]);
    let root = patience::eventually("pebble answers", async || {
        let (_, answer) = management_door.get("/roots/0").await?;
        let pem = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).ok_or("no body")?;
        CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| format!("{error}: {answer}"))
    })
    .await;

    let server_config = || {
        let settings = [
            ("TRUST_DOMAIN", "example.org".to_owned()),
            ("DATA_DIR", folder.path().join("server").to_str().unwrap().to_owned()),
            ("LISTEN", "127.0.0.1:0".into()),
            ("HEALTH_LISTEN", "127.0.0.1:0".into()),
            ("STORE__KIND", "mem".into()),
            ("AUTHORITY__KEYS", "memory".into()),
            ("WEB__HTTPS_WEB__LISTEN", listen(web)),
            ("WEB__HTTPS_WEB__ACME__DIRECTORY", format!("https://127.0.0.1:{acme}/dir")),
            ("WEB__HTTPS_WEB__ACME__DOMAINS", format!("[\"{NAME}\"]")),
            ("WEB__HTTPS_WEB__ACME__CONTACT", "[\"mailto:admin@example.org\"]".into()),
            ("WEB__HTTPS_WEB__ACME__TERMS_OF_SERVICE_AGREED", "true".into()),
            ("WEB__HTTPS_WEB__ACME__ROOTS", pebbles.clone()),
        ];
        Config::parse("", settings.map(|(key, value)| (format!("{PREFIX}__{key}"), value))).unwrap()
    };
    let serve = async || Box::pin(Server::start(server_config(), Arc::new(System))).await.unwrap();
    let browser = Browser::new(web, NAME, vec![root]);
    let ask = async || browser.get("/").await;
    let server = serve().await;
    let (first, answer) = patience::eventually("the certificate is shown", ask).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("\"spiffe_sequence\""), "{answer}");
    let kept = folder.path().join("server/acme");
    for name in ["account.json", "certificate.pem"] {
        let mode = std::fs::metadata(kept.join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    server.shutdown().await;

    // A restart shows what was kept.
    let server = serve().await;
    let (again, _) = patience::eventually("the certificate is shown", ask).await;
    assert_eq!(again, first);
    server.shutdown().await;

    // One that is gone is got anew, with the account that is there.
    let account = std::fs::read(kept.join("account.json")).unwrap();
    std::fs::remove_file(kept.join("certificate.pem")).unwrap();
    let server = serve().await;
    let (another, _) = patience::eventually("a new certificate is shown", ask).await;
    assert_ne!(another, first);
    assert_eq!(std::fs::read(kept.join("account.json")).unwrap(), account);
    server.shutdown().await;
}
