//! The start of a whole server: what an operator is told, and what is left on the disk.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say what is wrong by panicking")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use ca_server::app::{self, Server};
use ca_server::config::Config;
use spiffe::time::{Clock as _, System};

/// A config with its state in `folder/data` and everything else on free ports, and `more` after it.
fn config(folder: &Path, socket: &str, more: &str) -> Config {
    let folder = folder.display();
    let text = format!(
        "trust_domain = 'example.org'\ndata_dir = '{folder}/data'\nlisten = '127.0.0.1:0'\n\
         health_listen = '127.0.0.1:0'\nadmin_socket = '{folder}/{socket}'\n{more}"
    );
    Config::parse(&text, []).unwrap()
}

async fn start(config: Config) -> Result<Server, String> {
    Server::start(config, Arc::new(System)).await.map_err(|error| error.to_string())
}

#[tokio::test]
async fn a_file_that_is_not_there_is_named_with_its_key_before_anything_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let missing = format!("{}/none.pem", folder.path().display());
    for (key, more) in [
        (
            "authority.upstream.certificate",
            format!("[authority.upstream]\ncertificate = '{missing}'\nkey = '{missing}'"),
        ),
        ("attest.x509pop.ca_bundle", format!("[attest.x509pop]\nca_bundle = '{missing}'")),
    ] {
        let config = config(folder.path(), "a.sock", &more);
        let expected = format!(
            "{key}: {missing}: cannot be read: No such file or directory (os error 2): put the file there, or correct the \
             path in the config"
        );
        assert_eq!(app::check(&config, System.now()).unwrap_err().to_string(), expected);
        assert_eq!(start(config).await.unwrap_err(), expected);
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn two_servers_do_not_share_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let first = start(config(folder.path(), "a.sock", "")).await.unwrap();
    let keys = || -> Vec<_> {
        let keys = std::fs::read_dir(folder.path().join("data/keys")).unwrap();
        keys.map(|key| key.unwrap().file_name()).collect()
    };
    // One that is being written just now.
    std::fs::write(folder.path().join("data/keys/ab.new"), "").unwrap();
    let before = keys();
    let message = start(config(folder.path(), "b.sock", "")).await.unwrap_err();
    assert!(message.contains("data/store is in use by another process: stop that server first"), "{message}");
    assert_eq!(keys(), before, "the keys of the first are left alone");
    first.shutdown().await;
    start(config(folder.path(), "b.sock", "")).await.unwrap().shutdown().await;
}

#[tokio::test]
async fn the_folder_is_private_but_for_operators_on_their_way_to_the_socket() {
    for (socket, more, found, expected) in [
        ("data/a.sock", "", None, 0o700),
        ("data/a.sock", "admin_uids = [4711]", None, 0o711),
        ("a.sock", "admin_uids = [4711]", None, 0o700),
        // What the operator has made is the operator's.
        ("data/a.sock", "", Some(0o755), 0o755),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        if let Some(mode) = found {
            std::fs::create_dir(&data).unwrap();
            std::fs::set_permissions(&data, PermissionsExt::from_mode(mode)).unwrap();
        }
        let more = format!("{more}\n[store]\nkind = 'mem'");
        let server = start(config(folder.path(), socket, &more)).await.unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&data), expected, "{socket} {more}");
        assert_eq!((mode(&data.join("keys")), mode(&data.join("audit.log"))), (0o700, 0o600));
        server.shutdown().await;
    }
}

#[tokio::test]
async fn the_state_of_another_trust_domain_is_not_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    start(config(folder.path(), "a.sock", "")).await.unwrap().shutdown().await;
    let mut other = config(folder.path(), "a.sock", "");
    other.trust_domain = spiffe::id::TrustDomain::parse("other.org").unwrap();
    let data = folder.path().join("data");
    assert_eq!(
        start(other).await.unwrap_err(),
        format!(
            "data_dir {} holds the CA of trust domain example.org, and the config says other.org: set trust_domain = \
             \"example.org\", or choose an empty data_dir for other.org",
            data.display()
        )
    );
    start(config(folder.path(), "a.sock", "")).await.unwrap().shutdown().await;
}

#[tokio::test]
async fn a_port_in_use_is_named_with_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = holder.local_addr().unwrap();
    for key in ["listen", "health_listen"] {
        let mut config = config(folder.path(), "a.sock", "");
        match key {
            "listen" => config.listen = address,
            _ => config.health_listen = address,
        }
        let message = start(config).await.unwrap_err();
        assert!(message.starts_with(&format!("cannot listen on {key} {address}: ")), "{message}");
        assert!(message.contains("another process has this port"), "{message}");
    }
}
