//! A kubelet as far as an agent sees one: HTTPS at a port of this machine, tokens, `GET /pods`, and what may go wrong with that.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use spiffe::crypto;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::certificates::{self, Ca};

/// How it is.
#[derive(Clone, Debug, Default)]
pub enum Mood {
    /// As it should be.
    #[default]
    Well,
    /// It takes requests and never answers.
    Hanging,
    /// It answers everything with these words, behind the head.
    Saying(&'static str),
}

#[derive(Default)]
struct State {
    mood: Mood,
    token: String,
    pods: Vec<Value>,
    tls: Option<TlsAcceptor>,
    asked: usize,
    refused: usize,
}

/// See the head of this file. Dropping it closes its port.
pub struct Kubelet {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    serving: JoinHandle<()>,
}

impl Kubelet {
    /// One with a certificate of `ca` for its address, that takes this token alone and knows no pods.
    pub async fn start(ca: &Ca, token: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State { token: token.into(), ..State::default() }));
        let serving = tokio::spawn(serve(listener, Arc::clone(&state)));
        let kubelet = Self { address, state, serving };
        kubelet.is_certified_by(ca);
        kubelet
    }

    /// Where it answers.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Shows a certificate of this CA from now on.
    pub fn is_certified_by(&self, ca: &Ca) {
        let (chain, key) = certificates::web(&["127.0.0.1"], ca);
        let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>().unwrap();
        let config = ServerConfig::builder_with_provider(crypto::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap())
            .unwrap();
        self.state().tls = Some(TlsAcceptor::from(Arc::new(config)));
    }

    /// Takes this token from now on, and no other.
    pub fn takes(&self, token: &str) {
        self.state().token = token.into();
    }

    /// Tells of these pods from now on.
    pub fn tells<'a>(&self, pods: impl IntoIterator<Item = &'a Value>) {
        self.state().pods = pods.into_iter().cloned().collect();
    }

    /// Is like this from now on.
    pub fn is(&self, mood: Mood) {
        self.state().mood = mood;
    }

    /// How many requests it has had, with whatever token.
    pub fn asked(&self) -> usize {
        self.state().asked
    }

    /// How many of them it has refused for their token.
    pub fn refused(&self) -> usize {
        self.state().refused
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(listener: TcpListener, state: Arc<Mutex<State>>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        tokio::spawn(answer(stream, Arc::clone(&state)));
    }
}

/// One request; the connection is closed behind it.
async fn answer(stream: TcpStream, state: Arc<Mutex<State>>) {
    let Some(tls) = lock(&state).tls.clone() else { return };
    let Ok(mut stream) = tls.accept(stream).await else { return };
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let Some(answer) = reply(&String::from_utf8_lossy(&head), &mut lock(&state)) else {
        return std::future::pending().await;
    };
    if stream.write_all(answer.as_bytes()).await.is_ok() {
        let _ = stream.shutdown().await;
    }
}

/// `None`: nothing, ever.
fn reply(head: &str, state: &mut State) -> Option<String> {
    state.asked += 1;
    let answer = |status: &str, body: &str| {
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
    };
    let field = |line: &str| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("authorization").then(|| value.trim().to_owned())
    };
    match state.mood {
        Mood::Hanging => return None,
        Mood::Saying(words) => return Some(format!("HTTP/1.1 {words}")),
        Mood::Well => {}
    }
    if head.lines().find_map(field) != Some(format!("Bearer {}", state.token)) {
        state.refused += 1;
        return Some(answer("401 Unauthorized", "Unauthorized"));
    }
    if !head.starts_with("GET /pods HTTP/1.1\r\n") {
        return Some(answer("404 Not Found", "404 page not found"));
    }
    let list = json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": state.pods });
    Some(answer("200 OK", &list.to_string()))
}
