//! SDS over the real socket, asked as an Envoy asks: a request on a stream, an answer to each response.

use spiffe::proto::details;
use spiffe::proto::envoy::config::core::v3::Node;
use spiffe::proto::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::Channel;

use super::test_world::{chain, names_of, state};
use super::*;
use crate::api::Limits;
use crate::api::test_office::{NOW, Office};
use crate::api::tests::{House, within};
use crate::cache::Subscribe;

/// An Envoy's stream of one secret, or of several.
struct Envoy {
    requests: mpsc::Sender<DiscoveryRequest>,
    responses: Streaming<DiscoveryResponse>,
    names: Vec<String>,
    /// In force.
    version: String,
}

impl Envoy {
    /// Connects and asks; the house answers its subscription with `state`.
    async fn open(house: &mut House, names: &[&str], first: WorkloadState) -> (Result<Self, GrpcStatus>, Subscribe) {
        let mut client = client(house).await;
        let (requests, receiver) = mpsc::channel(8);
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        // A proxy that comes back names the version that it has.
        let node = Some(Node { id: "front".into(), ..Node::default() });
        let request = DiscoveryRequest { node, version_info: "old".into(), ..request(&names) };
        requests.send(request).await.unwrap();
        let (opened, subscribe) = tokio::join!(client.stream_secrets(ReceiverStream::new(receiver)), async {
            let subscribe = house.mailbox.next().await.unwrap();
            subscribe.states.send_replace(Some(first));
            subscribe
        });
        let opened =
            opened.map(|response| Self { requests, responses: response.into_inner(), names, version: String::new() });
        (opened, subscribe)
    }

    async fn next(&mut self) -> Result<DiscoveryResponse, GrpcStatus> {
        within(self.responses.message()).await.map(|response| response.expect("the stream has ended"))
    }

    /// Takes a response.
    async fn take(&mut self, response: &DiscoveryResponse) {
        self.version.clone_from(&response.version_info);
        let nonce = response.nonce.clone();
        let acknowledgement =
            DiscoveryRequest { version_info: self.version.clone(), response_nonce: nonce, ..request(&self.names) };
        self.requests.send(acknowledgement).await.unwrap();
    }

    /// Rejects a response.
    async fn reject(&mut self, response: &DiscoveryResponse, words: &str) {
        let rejection = DiscoveryRequest {
            version_info: self.version.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: Some(details::Status { code: 13, message: words.into(), details: Vec::new() }),
            ..request(&self.names)
        };
        self.requests.send(rejection).await.unwrap();
    }
}

async fn client(house: &House) -> SecretDiscoveryServiceClient<Channel> {
    SecretDiscoveryServiceClient::new(house.channel().await.unwrap())
}

fn request(names: &[String]) -> DiscoveryRequest {
    DiscoveryRequest { resource_names: names.to_vec(), type_url: SECRET_TYPE.into(), ..DiscoveryRequest::default() }
}

/// Waits until the status says so.
async fn until(house: &House, is_so: impl Fn(&[Proxy]) -> bool) -> Vec<Proxy> {
    within(async {
        loop {
            let proxies = house.status.proxies(NOW);
            if is_so(&proxies) {
                return proxies;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

#[tokio::test]
async fn an_envoy_gets_its_certificate_and_each_renewal_of_it() {
    let mut house = House::new(Limits::default());
    let (envoy, subscribe) = Envoy::open(&mut house, &["default"], state(0)).await;
    let mut envoy = envoy.unwrap();
    let first = envoy.next().await.unwrap();
    assert_eq!(names_of(&first.resources), ["default"]);
    envoy.take(&first).await;
    until(&house, |proxies| proxies[0].acknowledged == first.version_info).await;
    // Another root is none of its business, another SVID is.
    subscribe.states.send_replace(Some(state(4)));
    subscribe.states.send_replace(Some(state(5)));
    let renewed = envoy.next().await.unwrap();
    assert_ne!(chain(&first.resources[0]), chain(&renewed.resources[0]));
    envoy.take(&renewed).await;
    assert_eq!(house.metrics.sds_responses.get(), 2);
    assert_eq!(house.metrics.sds_streams.get(), 1);
    drop(envoy);
    within(subscribe.states.closed()).await;
    assert_eq!((house.status.proxies(NOW), house.metrics.sds_streams.get()), (Vec::new(), 0));
}

#[tokio::test]
async fn what_an_envoy_rejects_is_shown_with_its_words_and_not_sent_again() {
    let mut house = House::new(Limits::default());
    let (envoy, subscribe) = Envoy::open(&mut house, &["ROOTCA"], state(0)).await;
    let mut envoy = envoy.unwrap();
    let first = envoy.next().await.unwrap();
    envoy.take(&first).await;
    until(&house, |proxies| proxies[0].acknowledged == first.version_info).await;
    subscribe.states.send_replace(Some(state(4)));
    let second = envoy.next().await.unwrap();
    envoy.reject(&second, "Failed to load\ntrusted CA").await;
    let [proxy] = &until(&house, |proxies| proxies[0].rejection.is_some()).await[..] else { panic!() };
    assert_eq!((proxy.node.as_str(), &proxy.names[..]), ("front", &["ROOTCA".to_owned()][..]));
    assert_eq!((&proxy.sent, &proxy.acknowledged), (&second.version_info, &first.version_info));
    assert_eq!(proxy.rejection, Some(Failure { at: NOW, words: "Failed to load trusted CA".into() }));
    assert_eq!(proxy.pid, std::process::id());
    assert_eq!(house.metrics.sds_rejected.get(), 1);
    // The same again is silent, what comes next is not.
    subscribe.states.send_replace(Some(state(5)));
    subscribe.states.send_replace(Some(state(0)));
    let third = envoy.next().await.unwrap();
    assert_eq!(third.version_info, first.version_info);
    envoy.take(&third).await;
    until(&house, |proxies| proxies[0].rejection.is_none()).await;
}

#[tokio::test]
async fn names_may_change_on_a_stream() {
    let mut house = House::new(Limits::default());
    let (envoy, _subscribe) = Envoy::open(&mut house, &[], state(8)).await;
    let mut envoy = envoy.unwrap();
    let everything = envoy.next().await.unwrap();
    let all = ["spiffe://example.org", "spiffe://example.org/web", "spiffe://other.org"];
    assert_eq!(names_of(&everything.resources), all);
    envoy.names = vec!["ROOTCA".into(), "default".into()];
    envoy.take(&everything).await;
    assert_eq!(names_of(&envoy.next().await.unwrap().resources), ["ROOTCA", "default"]);
}

#[tokio::test]
async fn who_asks_for_what_is_not_his_is_told_what_is() {
    let mut house = House::new(Limits::default());
    for (name, code) in [("spiffe://example.org/db", Code::PermissionDenied), ("web", Code::InvalidArgument)] {
        let (envoy, _subscribe) = Envoy::open(&mut house, &["default", name], state(0)).await;
        let status = envoy.unwrap().next().await.unwrap_err();
        assert_eq!(status.code(), code);
        assert!(status.message().contains(name), "{}", status.message());
        assert!(status.message().contains("default (spiffe://example.org/web)"), "{}", status.message());
        until(&house, |proxies| proxies.iter().any(|proxy| proxy.names == ["default", name])).await;
        let told = house.status.proxies(NOW).into_iter().find(|proxy| proxy.names == ["default", name]).unwrap();
        assert!(told.rejection.unwrap().words.contains(name), "the operator is told as well");
    }
    assert_eq!(house.metrics.sds_refused.get(), 2);
}

#[tokio::test]
async fn without_an_identity_permission_is_denied() {
    let mut house = House::new(Limits::default());
    let office = Office::new();
    let (envoy, _subscribe) = Envoy::open(&mut house, &["default"], office.state(Vec::new())).await;
    let status = envoy.err().unwrap();
    assert_eq!(status.code(), Code::PermissionDenied);
    let told = house.status.proxies(NOW).remove(0).rejection.unwrap();
    assert!(told.words.contains("no registration entry of this node"), "{}", told.words);
    let (envoy, subscribe) = Envoy::open(&mut house, &["default"], state(0)).await;
    let mut envoy = envoy.unwrap();
    envoy.next().await.unwrap();
    subscribe.states.send_replace(Some(office.state(Vec::new())));
    assert_eq!(envoy.next().await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn streams_have_their_places_and_end_with_the_agent() {
    let mut house = House::new(Limits { streams: 8, streams_per_user: 1, ..Limits::default() });
    let (envoy, _subscribe) = Envoy::open(&mut house, &["default"], state(0)).await;
    let mut envoy = envoy.unwrap();
    envoy.next().await.unwrap();
    let full = client(&house).await.fetch_secrets(request(&[])).await.unwrap_err();
    assert_eq!(full.code(), Code::ResourceExhausted);
    house.shutdown.cancel();
    assert_eq!(envoy.next().await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn a_fetch_is_answered_once() {
    let mut house = House::new(Limits::default());
    let mut client = client(&house).await;
    let (fetched, subscribe) = tokio::join!(client.fetch_secrets(request(&["default".into()])), async {
        let subscribe = house.mailbox.next().await.unwrap();
        subscribe.states.send_replace(Some(state(1)));
        subscribe
    });
    let response = fetched.unwrap().into_inner();
    assert_eq!(names_of(&response.resources), ["default"]);
    assert!(response.nonce.is_empty() && !response.version_info.is_empty());
    within(subscribe.states.closed()).await;
}

#[tokio::test]
async fn deltas_are_what_has_changed() {
    let mut house = House::new(Limits::default());
    let mut client = client(&house).await;
    let (requests, receiver) = mpsc::channel(8);
    let names = vec!["default".to_owned(), "ROOTCA".into()];
    let first = DeltaDiscoveryRequest { resource_names_subscribe: names, ..DeltaDiscoveryRequest::default() };
    requests.send(first).await.unwrap();
    let (opened, subscribe) = tokio::join!(client.delta_secrets(ReceiverStream::new(receiver)), async {
        let subscribe = house.mailbox.next().await.unwrap();
        subscribe.states.send_replace(Some(state(0)));
        subscribe
    });
    let mut responses = opened.unwrap().into_inner();
    let both = within(responses.message()).await.unwrap().unwrap();
    assert_eq!(both.resources.len(), 2);
    let nonce = both.nonce.clone();
    requests.send(DeltaDiscoveryRequest { response_nonce: nonce, ..DeltaDiscoveryRequest::default() }).await.unwrap();
    until(&house, |proxies| proxies[0].acknowledged == both.system_version_info).await;
    subscribe.states.send_replace(Some(state(1)));
    let renewed = within(responses.message()).await.unwrap().unwrap();
    let [resource] = &renewed.resources[..] else { panic!("{} resources", renewed.resources.len()) };
    assert_eq!(resource.name, "default");
    assert_ne!(chain(&resource.resource), chain(&both.resources[1].resource));
}

#[tokio::test]
async fn what_is_not_said_to_be_grpc_is_refused() {
    let house = House::new(Limits::default());
    for kind in [None, Some("text/plain"), Some("application/x-www-form-urlencoded"), Some("application/grpc-web")] {
        let confused =
            tower::util::MapRequest::new(house.channel().await.unwrap(), move |mut request: http::Request<_>| {
                request.headers_mut().remove(http::header::CONTENT_TYPE);
                if let Some(kind) = kind {
                    request.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
                }
                request
            });
        let mut client = SecretDiscoveryServiceClient::new(confused);
        let error = within(client.fetch_secrets(request(&[]))).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{kind:?}");
        assert!(error.message().contains("gRPC alone"), "{}", error.message());
    }
}

#[tokio::test]
async fn the_workload_api_beside_it_still_asks_for_its_header() {
    use spiffe::proto::workload::X509svidRequest;
    use spiffe::proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
    let house = House::new(Limits::default());
    let mut client = SpiffeWorkloadApiClient::new(house.channel().await.unwrap());
    let error = client.fetch_x509svid(X509svidRequest {}).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
}
