//! The workload socket as a workload sees it: a real socket, a real client, and the other end of the cache's handle.
#![expect(clippy::disallowed_methods, reason = "waits for input and output, and measures it")]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::time::Instant;

use hyper_util::rt::TokioIo;
use spiffe::bundle::Bundle;
use spiffe::id::TrustDomain;
use spiffe::proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use spiffe::proto::workload::{
    JwtsvidRequest, X509BundlesRequest, X509BundlesResponse, X509svidRequest, X509svidResponse,
};
use spiffe::selector::Selectors;
use spiffe::time::Fake;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use tonic_reflection::pb::{v1, v1alpha};

use super::test_office::{NOW, Office};
use super::*;
use crate::attestor::unix::Unix;
use crate::cache::{Mailbox, Subscribe, WorkloadState, mailbox};

/// In the environment of a test that is its own workload.
const CHILD_SOCKET: &str = "CHANCERY_TEST_CHILD_SOCKET";

/// A workload socket, and the cache behind it in our hands.
pub(super) struct House {
    folder: tempfile::TempDir,
    pub(super) mailbox: Mailbox,
    pub(super) clock: Fake,
    pub(super) status: crate::status::Status,
    pub(super) metrics: Metrics,
    pub(super) shutdown: CancellationToken,
    served: JoinHandle<Result<(), ApiError>>,
}

impl House {
    pub(super) fn new(limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (cache, mailbox) = mailbox();
        let (clock, shutdown) = (Fake::new(NOW), CancellationToken::new());
        let attestors =
            Arc::new(Attestors::new(vec![Box::new(Unix::new(0, Arc::new(clock.clone())))], Arc::new(clock.clone())));
        let (status, metrics) = (crate::status::Status::default(), Metrics::default());
        let endpoint = Endpoint {
            cache,
            attestors,
            limits,
            claims: Claims::Registered,
            sds: Sds::default(),
            status: status.clone(),
            metrics: metrics.clone(),
            clock: Arc::new(clock.clone()),
        };
        let listener = Listener::bind(&folder.path().join("agent.sock"), listen::DEFAULT_MODE).unwrap();
        let served = tokio::spawn(endpoint.serve(listener, shutdown.clone()));
        Self { folder, mailbox, clock, status, metrics, shutdown, served }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("agent.sock")
    }

    pub(super) async fn channel(&self) -> Result<Channel, tonic::transport::Error> {
        channel(self.socket()).await
    }

    async fn client(&self) -> SpiffeWorkloadApiClient<Channel> {
        SpiffeWorkloadApiClient::new(self.channel().await.unwrap())
    }

    /// Opens a stream of SVIDs and answers it.
    async fn svids(&mut self, state: WorkloadState) -> (Result<Streaming<X509svidResponse>, Status>, Subscribe) {
        let mut client = self.client().await;
        let (opened, subscribe) = tokio::join!(client.fetch_x509svid(request(X509svidRequest {})), async {
            let subscribe = self.mailbox.next().await.unwrap();
            subscribe.states.send_replace(Some(state));
            subscribe
        });
        (opened.map(tonic::Response::into_inner), subscribe)
    }

    /// Opens a stream of bundles and answers it.
    async fn bundles(&mut self, state: WorkloadState) -> (Result<Streaming<X509BundlesResponse>, Status>, Subscribe) {
        let mut client = self.client().await;
        let (opened, subscribe) = tokio::join!(client.fetch_x509_bundles(request(X509BundlesRequest {})), async {
            let subscribe = self.mailbox.next().await.unwrap();
            subscribe.states.send_replace(Some(state));
            subscribe
        });
        (opened.map(tonic::Response::into_inner), subscribe)
    }
}

pub(super) async fn channel(socket: PathBuf) -> Result<Channel, tonic::transport::Error> {
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
    });
    tonic::transport::Endpoint::from_static("http://localhost").connect_with_connector(connector).await
}

fn request<T>(message: T) -> Request<T> {
    with_header(message, &["true"])
}

fn with_header<T>(message: T, values: &[&'static str]) -> Request<T> {
    let mut request = Request::new(message);
    for value in values {
        request.metadata_mut().append("workload.spiffe.io", tonic::metadata::MetadataValue::from_static(value));
    }
    request
}

pub(super) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("it takes too long")
}

#[tokio::test]
async fn a_request_without_exactly_the_security_header_is_an_invalid_argument() {
    let house = House::new(Limits::default());
    let mut client = house.client().await;
    for values in [&[][..], &["True"], &["false"], &[""], &["true", "true"], &["true", "false"]] {
        let error = client.fetch_x509svid(with_header(X509svidRequest {}, values)).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{values:?}");
        assert!(error.message().contains("workload.spiffe.io: true"), "{}", error.message());
        let error = client.fetch_x509_bundles(with_header(X509BundlesRequest {}, values)).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{values:?}");
        let error = client.fetch_jwtsvid(with_header(JwtsvidRequest::default(), values)).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{values:?}");
    }
}

#[tokio::test]
async fn the_cache_is_asked_with_what_is_true_of_the_process() {
    let mut house = House::new(Limits::default());
    let office = Office::new();
    let (_stream, subscribe) = house.svids(office.state(vec![office.identity("web", "", 1)])).await;
    let own = Selectors::parse([format!("unix:uid:{}", nix::unistd::geteuid())]).unwrap();
    assert!(own.is_subset_of(&subscribe.selectors), "{}", subscribe.selectors);
}

#[tokio::test]
async fn without_an_identity_permission_is_denied() {
    let mut house = House::new(Limits::default());
    let office = Office::new();
    for error in [
        house.svids(office.state(Vec::new())).await.0.unwrap_err(),
        house.bundles(office.state(Vec::new())).await.0.unwrap_err(),
    ] {
        assert_eq!(error.code(), Code::PermissionDenied);
        let own = format!("unix:uid:{}", nix::unistd::geteuid());
        assert!(error.message().contains(&own), "{}", error.message());
    }
}

#[tokio::test]
async fn a_response_is_the_whole_state_with_the_default_identity_first() {
    let mut house = House::new(Limits::default());
    let (office, foreign) = (Office::new(), Office::new());
    let (oldest, younger) = (office.identity("web", "internal", 1), office.identity("api", "", 2));
    let other = TrustDomain::parse("other.org").unwrap();
    let unknown = TrustDomain::parse("unknown.org").unwrap();
    let federated = BTreeMap::from([(other, foreign.bundle("other.org")), (unknown.clone(), Bundle::empty(unknown))]);
    let state = WorkloadState { federated: Arc::new(federated), ..office.state(vec![oldest.clone(), younger.clone()]) };

    for _ in 0..3 {
        let (stream, _subscribe) = house.svids(state.clone()).await;
        let response = within(stream.unwrap().message()).await.unwrap().unwrap();
        let [first, second] = &response.svids[..] else { panic!("two SVIDs, not {}", response.svids.len()) };
        assert_eq!((first.spiffe_id.as_str(), first.hint.as_str()), ("spiffe://example.org/web", "internal"));
        assert_eq!((second.spiffe_id.as_str(), second.hint.as_str()), ("spiffe://example.org/api", ""));
        assert_eq!(first.x509_svid, oldest.svid.chain()[0].as_ref());
        assert_eq!(first.x509_svid_key, oldest.key.as_slice());
        assert_eq!(second.x509_svid_key, younger.key.as_slice());
        assert_eq!(first.bundle, office.root.der().as_ref());
        let federated: Vec<_> = response.federated_bundles.iter().collect();
        assert_eq!(federated, [(&"spiffe://other.org".to_owned(), &foreign.root.der().to_vec().into())]);
        assert!(response.crl.is_empty());
    }

    let (stream, _subscribe) = house.bundles(state).await;
    let response = within(stream.unwrap().message()).await.unwrap().unwrap();
    assert_eq!(response.bundles.len(), 2);
    assert_eq!(response.bundles["spiffe://example.org"], office.root.der().as_ref());
    assert_eq!(response.bundles["spiffe://other.org"], foreign.root.der().as_ref());
}

#[tokio::test]
async fn a_stream_gets_each_update_until_the_last_identity_goes() {
    let mut house = House::new(Limits::default());
    let office = Office::new();
    let (stream, subscribe) = house.svids(office.state(vec![office.identity("web", "", 1)])).await;
    let mut stream = stream.unwrap();
    let first = within(stream.message()).await.unwrap().unwrap();
    subscribe.states.send_replace(Some(office.state(vec![office.identity("web", "", 2)])));
    let renewed = within(stream.message()).await.unwrap().unwrap();
    assert_ne!(first.svids[0].x509_svid, renewed.svids[0].x509_svid);
    assert_ne!(first.svids[0].x509_svid_key, renewed.svids[0].x509_svid_key);
    subscribe.states.send_replace(Some(office.state(Vec::new())));
    assert_eq!(within(stream.message()).await.unwrap_err().code(), Code::PermissionDenied);
    within(subscribe.states.closed()).await;
}

#[tokio::test]
async fn a_bundle_stream_is_silent_on_renewal() {
    let mut house = House::new(Limits::default());
    let (office, next_office) = (Office::new(), Office::new());
    let (stream, subscribe) = house.bundles(office.state(vec![office.identity("web", "", 1)])).await;
    let mut stream = stream.unwrap();
    let first = within(stream.message()).await.unwrap().unwrap();
    for serial in 2..5 {
        subscribe.states.send_replace(Some(office.state(vec![office.identity("web", "", serial)])));
        let silence = tokio::time::timeout(Duration::from_millis(50), stream.message()).await;
        assert!(silence.is_err(), "{silence:?}");
    }
    subscribe.states.send_replace(Some(next_office.state(vec![office.identity("web", "", 5)])));
    let changed = within(stream.message()).await.unwrap().unwrap();
    assert_ne!(first, changed);
    assert_eq!(changed.bundles["spiffe://example.org"], next_office.root.der().as_ref());
}

#[tokio::test]
async fn identities_that_do_not_come_in_time_are_unavailable() {
    let mut house = House::new(Limits::default());
    let mut client = house.client().await;
    let asked = tokio::spawn(async move { client.fetch_x509svid(request(X509svidRequest {})).await.map(drop) });
    let subscribe = within(house.mailbox.next()).await.unwrap();
    while house.clock.next_wake().is_none() {
        tokio::task::yield_now().await;
    }
    assert!(!asked.is_finished());
    house.clock.advance(Limits::default().first_answer);
    let error = within(asked).await.unwrap().unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    within(subscribe.states.closed()).await;
}

#[tokio::test]
async fn when_the_agent_stops_streams_are_unavailable_and_the_socket_is_gone() {
    let mut house = House::new(Limits::default());
    let office = Office::new();
    let (stream, _subscribe) = house.svids(office.state(vec![office.identity("web", "", 1)])).await;
    let mut stream = stream.unwrap();
    within(stream.message()).await.unwrap().unwrap();
    house.shutdown.cancel();
    assert_eq!(within(stream.message()).await.unwrap_err().code(), Code::Unavailable);
    drop(stream);
    let socket = house.socket();
    within(house.served).await.unwrap().unwrap();
    assert!(!socket.exists());
}

#[tokio::test]
async fn streams_beyond_the_limits_are_refused_until_one_ends() {
    let limits = Limits { streams: 8, streams_per_user: 2, ..Limits::default() };
    let mut house = House::new(limits);
    let office = Office::new();
    let state = office.state(vec![office.identity("web", "", 1)]);
    let (_one, _held) = house.svids(state.clone()).await;
    let (two, subscribe) = house.bundles(state.clone()).await;
    let mut client = house.client().await;
    let error = within(client.fetch_x509svid(request(X509svidRequest {}))).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert!(error.message().contains("all 2 places that one may"), "{}", error.message());
    drop(two);
    within(subscribe.states.closed()).await;
    let (three, _held) = within(house.svids(state)).await;
    assert!(three.is_ok(), "{three:?}");
}

#[tokio::test]
async fn connections_beyond_the_limits_are_closed() {
    let house = House::new(Limits { connections_per_user: 1, ..Limits::default() });
    let held = UnixStream::connect(house.socket()).await.unwrap();
    let refused = within(async {
        // The first may not have been taken up yet, but it is before the second.
        let mut second = UnixStream::connect(house.socket()).await.unwrap();
        tokio::io::AsyncReadExt::read(&mut second, &mut [0; 64]).await
    });
    assert!(matches!(refused.await, Ok(0) | Err(_)));
    drop(held);
}

#[tokio::test]
async fn the_end_of_the_process_ends_its_streams_whoever_holds_the_connection() {
    let mut house = House::new(Limits::default());
    let office = Office::new();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "api::tests::a_workload_whose_child_holds_its_connection", "--nocapture"])
        .env(CHILD_SOCKET, house.socket())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let subscribe = within(house.mailbox.next()).await.unwrap();
    assert!(!subscribe.selectors.is_empty());
    subscribe.states.send_replace(Some(office.state(vec![office.identity("web", "", 1)])));
    let output = child.stdout.take().unwrap();
    let holder = tokio::task::spawn_blocking(move || {
        let mut lines = BufReader::new(output).lines().map_while(Result::ok);
        lines.find_map(|line| line.strip_prefix("holder ").map(|pid| pid.parse::<i32>().unwrap())).unwrap()
    });
    let holder = within(holder).await.unwrap();
    assert!(!subscribe.states.is_closed());
    child.kill().unwrap();
    within(subscribe.states.closed()).await;
    // The connection was not what ended: somebody held it all the time.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(holder), nix::sys::signal::Signal::SIGKILL).unwrap();
    child.wait().unwrap();
}

/// No test by itself: the workload of the test above, which ends it and its child.
#[tokio::test]
#[expect(clippy::zombie_processes, reason = "this process is killed before its child")]
async fn a_workload_whose_child_holds_its_connection() {
    let Some(socket) = std::env::var_os(CHILD_SOCKET) else { return };
    let mut client = SpiffeWorkloadApiClient::new(channel(socket.into()).await.unwrap());
    let mut stream = client.fetch_x509svid(request(X509svidRequest {})).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    for file in std::fs::read_dir("/proc/self/fd").unwrap() {
        let number: i32 = file.unwrap().file_name().to_str().unwrap().parse().unwrap();
        if std::fs::read_link(format!("/proc/self/fd/{number}"))
            .is_ok_and(|link| link.to_string_lossy().starts_with("socket:"))
        {
            hand_on(number);
        }
    }
    let holder = Command::new("sleep").arg("60").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    writeln!(std::io::stdout(), "\nholder {}", holder.id()).unwrap();
    stream.message().await.unwrap();
}

/// Lets child processes inherit a copy of the descriptor `number`; made through our own pidfd, so that no unsafe code
/// is needed.
fn hand_on(number: i32) {
    let pidfd = rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty()).unwrap();
    let copy = rustix::process::pidfd_getfd(&pidfd, number, rustix::process::PidfdGetfdFlags::empty()).unwrap();
    nix::fcntl::fcntl(&copy, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    std::mem::forget(copy);
}

#[tokio::test]
async fn reflection_lists_and_describes_the_workload_api() {
    let house = House::new(Limits::default());
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(house.channel().await.unwrap());
    let ask = |question| {
        futures_util::stream::iter([v1::ServerReflectionRequest {
            host: String::new(),
            message_request: Some(question),
        }])
    };
    use v1::server_reflection_request::MessageRequest as Question;
    use v1::server_reflection_response::MessageResponse as Answer;

    let error = client.server_reflection_info(ask(Question::ListServices(String::new()))).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "every request needs the header");

    let listed = client.server_reflection_info(request(ask(Question::ListServices(String::new())))).await.unwrap();
    let answer = within(listed.into_inner().message()).await.unwrap().unwrap().message_response;
    let Some(Answer::ListServicesResponse(list)) = answer else { panic!("{answer:?}") };
    assert!(list.service.iter().any(|service| service.name == "SpiffeWorkloadAPI"), "{list:?}");

    for symbol in ["SpiffeWorkloadAPI", "SpiffeWorkloadAPI.FetchX509SVID", "X509SVIDResponse", "google.protobuf.Struct"]
    {
        let described = client.server_reflection_info(request(ask(Question::FileContainingSymbol(symbol.into()))));
        let answer = within(described.await.unwrap().into_inner().message()).await.unwrap().unwrap();
        assert!(matches!(answer.message_response, Some(Answer::FileDescriptorResponse(_))), "{symbol}: {answer:?}");
    }

    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(house.channel().await.unwrap());
    let question = v1alpha::server_reflection_request::MessageRequest::ListServices(String::new());
    let question = v1alpha::ServerReflectionRequest { host: String::new(), message_request: Some(question) };
    let listed = client.server_reflection_info(request(futures_util::stream::iter([question]))).await.unwrap();
    assert!(within(listed.into_inner().message()).await.unwrap().is_some());
}

#[tokio::test]
async fn a_prefetched_identity_arrives_within_5_ms_of_connecting() {
    let mut house = House::new(Limits::default());
    let office = Office::new();
    let state = office.state(vec![office.identity("web", "", 1)]);
    let mut best = Duration::MAX;
    for _ in 0..50 {
        let started = Instant::now();
        let (stream, _subscribe) = house.svids(state.clone()).await;
        within(stream.unwrap().message()).await.unwrap().unwrap();
        best = best.min(started.elapsed());
    }
    // The best of many: the others show how busy this machine is.
    assert!(best < Duration::from_millis(5), "{best:?}");
}

#[tokio::test]
async fn whatever_a_client_calls_the_socket_it_is_let_in() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let house = House::new(Limits::default());
    let text = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
    // As it is, and Huffman-coded ("/a").
    for authority in [text("[::1]:80"), text("/run/a:b.sock"), text("tmp%2Fa.sock"), vec![0x82, 0x60, 0x7f]] {
        let path = text("/SpiffeWorkloadAPI/FetchX509SVID");
        let content_type = [text("content-type"), text("application/grpc")].concat();
        let fields = [&[0x83, 0x86, 0x04][..], &path, &[0x01], &authority, &[0x00], &content_type].concat();
        let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        // HEADERS of stream 1, with the end of the fields and of the stream.
        let headers = [0, 0, fields.len() as u8, 1, 5, 0, 0, 0, 1];
        let mut stream = UnixStream::connect(house.socket()).await.unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        stream.write_all(&[&settings[..], &headers, &fields].concat()).await.unwrap();
        let answer = within(async {
            loop {
                let mut head = [0; 9];
                stream.read_exact(&mut head).await.unwrap();
                let [high, middle, low, kind, _, _, _, _, id] = head;
                let mut payload = vec![0; u32::from_be_bytes([0, high, middle, low]) as usize];
                stream.read_exact(&mut payload).await.unwrap();
                if id == 1 {
                    return kind;
                }
            }
        });
        assert_eq!(answer.await, 1, "{authority:?}: answered by HEADERS, not by RST_STREAM");
    }
}
