//! The way to the Admin door: the unix socket of the server on this machine, or mutual TLS with an admin's SVID.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use spiffe::mtls::{self, CurrentBundles, Peers};
use spiffe::proto::v1::admin_client::AdminClient;
use spiffe::time::System;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::args::Globals;
use crate::exit::{Failure, Outcome};
use crate::folders::Folders;
use crate::svid_files::SvidFiles;

/// A connection to the Admin door.
pub(crate) type Admin = AdminClient<Channel>;

/// The largest answer that is taken: a page of a thousand large entries.
const MAX_ANSWER_BYTES: usize = 64 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects as the command line says.
pub(crate) async fn admin(globals: &Globals) -> Outcome<Admin> {
    let channel = match (globals.server.as_slice(), globals.svid.as_slice()) {
        ([], []) => {
            let default = || Folders::of_this_process().admin_socket(Path::exists);
            over_socket(&globals.socket.clone().unwrap_or_else(default)).await?
        }
        ([], _) => return Err(Failure::Usage("--svid goes with --server HOST:PORT: name the server too".into())),
        (_, []) => {
            return Err(Failure::Usage(
                "--server needs --svid: the folder that `chancery fetch x509 --write FOLDER` wrote as an admin".into(),
            ));
        }
        ([address], files) => over_tls(address, &SvidFiles::named(files)?).await?,
        _ => return Err(Failure::Usage("name one server with --server: admin verbs talk to one at a time".into())),
    };
    Ok(AdminClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES))
}

/// Connects to the socket of a server in this process.
pub(crate) async fn admin_at(socket: &Path) -> Outcome<Admin> {
    Ok(AdminClient::new(over_socket(socket).await?).max_decoding_message_size(MAX_ANSWER_BYTES))
}

async fn over_socket(path: &Path) -> Outcome<Channel> {
    unix_channel(path).await.map_err(|error| {
        let place = path.display();
        match error.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => Failure::Unreachable(format!(
                "no server answers at {place}: start one with `chancery server run` or `chancery dev`, or name its \
                 socket with --socket"
            )),
            std::io::ErrorKind::PermissionDenied => Failure::Refused(format!(
                "permission denied: you may not use the admin socket {place}{}: run this as the server's own user or \
                 as root",
                ownership(path)
            )),
            _ => Failure::Unreachable(format!("{place} cannot be reached: {error}")),
        }
    })
}

/// Whose what stands in the way to `path` is: the socket, or the first folder on its way that may not be entered.
pub(crate) fn ownership(path: &Path) -> String {
    use std::os::unix::fs::MetadataExt as _;
    let seen = path.ancestors().find_map(|place| Some((place, place.metadata().ok()?)));
    let Some((place, metadata)) = seen else { return String::new() };
    let name = nix::unistd::User::from_uid(metadata.uid().into()).ok().flatten().map(|user| user.name);
    let owner = name.unwrap_or_else(|| format!("uid {}", metadata.uid()));
    let what = if place == path { "which".to_owned() } else { format!("whose folder {}", place.display()) };
    format!(", {what} is owned by {owner} (mode {:04o})", metadata.mode() & 0o7777)
}

/// A channel over a unix socket that has been seen to accept.
pub(crate) async fn unix_channel(path: &Path) -> std::io::Result<Channel> {
    let first = UnixStream::connect(path).await?;
    let first = Arc::new(std::sync::Mutex::new(Some(first)));
    let path = PathBuf::from(path);
    let connector = tower::service_fn(move |_: Uri| {
        // The connection that was tried out is the first one that is used.
        let ready = first.lock().ok().and_then(|mut first| first.take());
        let path = path.clone();
        async move {
            match ready {
                Some(stream) => Ok(TokioIo::new(stream)),
                None => UnixStream::connect(path).await.map(TokioIo::new),
            }
        }
    });
    Endpoint::from_static("http://localhost").connect_with_connector(connector).await.map_err(std::io::Error::other)
}

async fn over_tls(address: &str, files: &SvidFiles) -> Outcome<Channel> {
    let bad = || Failure::Usage(format!("{address:?} is no address of a server: write it like ca.example.org:8443"));
    let (host, port) = address.rsplit_once(':').ok_or_else(bad)?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let port: u16 = port.parse().map_err(|_| bad())?;
    let name = ServerName::try_from(host.clone()).map_err(|_| bad())?;

    let identity = files.load()?;
    let server = identity.bundle.trust_domain().server_id();
    let bundles = CurrentBundles::new([identity.bundle]);
    let mut config = mtls::client_config(Some(identity.svid), bundles, Peers::Ids(vec![server]), Arc::new(System))
        .map_err(|error| Failure::Refused(format!("TLS cannot be set up: {error}")))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tls = TlsConnector::from(Arc::new(config));

    let unreachable = |error: std::io::Error| {
        Failure::Unreachable(format!("no server answers at {address}: {error}: is it running, and the address right?"))
    };
    let connect = async {
        let stream = TcpStream::connect((host.as_str(), port)).await.map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        tls.connect(name, stream).await.map_err(|error| {
            Failure::Refused(format!(
                "{address} and we did not accept each other: {error}: is {} of its trust domain, and not expired?",
                files.place()
            ))
        })
    };
    #[expect(clippy::disallowed_methods, reason = "input and output of the network")]
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, connect).await.map_err(|_| {
        Failure::Unreachable(format!("{address} did not answer within {} s", CONNECT_TIMEOUT.as_secs()))
    })??;
    let mut stream = Some(stream);
    let connector = tower::service_fn(move |_: Uri| {
        let stream = stream.take().ok_or_else(|| std::io::Error::other("the server closed the connection"));
        async move { stream.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost")
        .connect_with_connector(connector)
        .await
        .map_err(|error| Failure::Unreachable(format!("the connection to {address} broke: {error}")))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::Chancery;

    async fn failure(arguments: &[&str]) -> Failure {
        let line = ["chancery", "agent", "list"].iter().chain(arguments);
        admin(&Chancery::parse_from(line).globals).await.unwrap_err()
    }

    #[tokio::test]
    async fn a_missing_server_is_told_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("admin.sock");
        let failure = failure(&["--socket", socket.to_str().unwrap()]).await;
        assert_eq!(failure.exit(), 3);
        let text = failure.to_string();
        assert!(text.starts_with("no server answers at ") && text.contains("chancery server run"), "{text}");
    }

    #[test]
    fn a_closed_door_is_told_with_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("none.sock");
        let text = ownership(&place);
        assert!(text.starts_with(&format!(", whose folder {} is owned by ", folder.path().display())), "{text}");
        assert!(text.ends_with(" (mode 0700)"), "{text}");
        assert!(ownership(folder.path()).starts_with(", which is owned by "));
    }

    #[tokio::test]
    async fn a_half_named_remote_server_is_a_wrong_command_line() {
        for (arguments, word) in [
            (&["--server", "a:1"][..], "--svid"),
            (&["--svid", "me"], "--server"),
            (&["--server", "a:1,b:1", "--svid", "me"], "one server"),
            (&["--server", "a:1", "--svid", "a,b"], "three files"),
        ] {
            let failure = failure(arguments).await;
            assert_eq!(failure.exit(), 2, "{failure}");
            assert!(failure.to_string().contains(word), "{failure}");
        }
    }
}
