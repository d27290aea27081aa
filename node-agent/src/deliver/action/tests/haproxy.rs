//! Against a runtime API that behaves: one command for each connection, transactions, and HAProxy's own words.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;

use super::*;

/// What is committed, and what is only set, by kind and name.
#[derive(Default)]
struct State {
    committed: BTreeMap<String, String>,
    set: BTreeMap<String, String>,
    /// Says no to commits.
    stubborn: bool,
    /// Has forgotten what the CA file is for, as HAProxy 2.6 does.
    forgetful: bool,
}

fn serve(socket: &Path, known: &[&str]) -> Arc<Mutex<State>> {
    let state = Arc::new(Mutex::new(State::default()));
    state.lock().unwrap().committed = known.iter().map(|name| (name.to_string(), String::new())).collect();
    let (listener, shared) = (UnixListener::bind(socket).unwrap(), state.clone());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (mut command, mut buffer) = (Vec::new(), [0; 4096]);
            // A line; or, where it ends with <<, everything up to the first empty line.
            let text = loop {
                let count = stream.read(&mut buffer).await.unwrap();
                command.extend_from_slice(&buffer[..count]);
                let text = String::from_utf8(command.clone()).unwrap();
                let Some((line, _)) = text.split_once('\n') else { continue };
                if !line.ends_with("<<") || text.ends_with("\n\n") || count == 0 {
                    break text;
                }
            };
            let answer = answer(&mut shared.lock().unwrap(), &text);
            stream.write_all(format!("{answer}\n\n").as_bytes()).await.unwrap();
        }
    });
    state
}

fn answer(state: &mut State, text: &str) -> String {
    let (line, payload) = text.split_once('\n').unwrap();
    let words: Vec<&str> = line.split(' ').collect();
    let name = words[2..4].join(" ");
    match words[0] {
        _ if words[1] != "ssl" => "Unknown command.".into(),
        "show" => {
            if !state.committed.contains_key(&name) {
                return "Can't display the certificate: Not found or the certificate is a bundle!".into();
            }
            let is_used = !(state.forgetful && words[2] == "ca-file");
            format!("Filename: {}\nStatus: {}", words[3], if is_used { "Used" } else { "Unused" })
        }
        "set" if !state.committed.contains_key(&name) => {
            "Can't replace a certificate which is not referenced by the configuration!".into()
        }
        "set" => {
            if words[2] == "cert" {
                let chain: Vec<_> =
                    CertificateDer::pem_slice_iter(payload.as_bytes()).collect::<Result<_, _>>().unwrap();
                let key = PrivatePkcs8KeyDer::from_pem_slice(payload.as_bytes()).unwrap();
                let svid = spiffe::x509_svid::X509Svid::parse(chain).unwrap();
                svid.key_fits(key.secret_pkcs8_der()).unwrap();
            }
            let is_new = state.set.insert(name.clone(), payload.trim_end().into()).is_none();
            format!("Transaction {} for certificate {}!", if is_new { "created" } else { "updated" }, words[3])
        }
        "commit" if state.stubborn => "Error while committing: unable to allocate memory".into(),
        "commit" => match state.set.remove(&name) {
            None => "No ongoing transaction!".into(),
            Some(pem) => {
                state.committed.insert(name, pem);
                format!("Committing {}.\nSuccess!", words[3])
            }
        },
        "abort" => {
            state.set.remove(&name);
            format!("Transaction aborted for certificate '{}'!", words[3])
        }
        _ => "Unknown command.".into(),
    }
}

fn haproxy(socket: &Path, certificate: &str) -> ActionKind {
    ActionKind::Haproxy {
        socket: socket.to_owned(),
        certificate: Some(certificate.into()),
        ca_file: Some("/etc/haproxy/ca.pem".into()),
    }
}

#[tokio::test]
async fn haproxy_takes_chain_and_key_and_roots() {
    let place = TempDir::new().unwrap();
    let socket = place.path().join("admin.sock");
    let error = done(haproxy(&socket, "/etc/haproxy/site.pem"), place.path()).await.unwrap_err();
    assert!(error.contains("cannot connect to HAProxy's socket"), "{error}");
    let state = serve(&socket, &["cert /etc/haproxy/site.pem", "ca-file /etc/haproxy/ca.pem"]);
    for _ in 0..2 {
        done(haproxy(&socket, "/etc/haproxy/site.pem"), place.path()).await.unwrap();
        let state = state.lock().unwrap();
        assert!(state.set.is_empty());
        let committed = &state.committed["cert /etc/haproxy/site.pem"];
        assert!(committed.find("BEGIN CERTIFICATE") < committed.find("BEGIN PRIVATE KEY"));
        assert!(state.committed["ca-file /etc/haproxy/ca.pem"].starts_with("-----BEGIN CERTIFICATE"));
    }
    state.lock().unwrap().forgetful = true;
    let error = done(haproxy(&socket, "/etc/haproxy/site.pem"), place.path()).await.unwrap_err();
    assert!(
        error.contains("does not use /etc/haproxy/ca.pem: it holds the file") && error.contains("reload"),
        "{error}"
    );
    state.lock().unwrap().forgetful = false;
    let error = done(haproxy(&socket, "/other.pem"), place.path()).await.unwrap_err();
    assert!(error.contains("HAProxy does not take /other.pem: Can't replace a certificate which is not"), "{error}");
    state.lock().unwrap().stubborn = true;
    let error = done(haproxy(&socket, "/etc/haproxy/site.pem"), place.path()).await.unwrap_err();
    assert!(error.contains("does not commit /etc/haproxy/site.pem: Error while committing"), "{error}");
    assert!(state.lock().unwrap().set.is_empty(), "what was set is aborted");
}
