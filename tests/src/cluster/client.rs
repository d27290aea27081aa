//! Requests to the API server, as JSON, from any test.

use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use http::Request;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};

use super::Cluster;

/// No request of ours takes this long, unless the API server is frozen.
const LIMIT: Duration = Duration::from_secs(30);
/// How many requests are under way at once, where there are many.
const AT_ONCE: usize = 32;

/// Apart from the runtime of a test, which may have no thread to spare.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime for requests")
});

/// The same runtime, for whatever else has to wait.
pub(super) fn wait<T: Send>(work: impl Future<Output = T> + Send) -> T {
    std::thread::scope(|scope| scope.spawn(|| RUNTIME.block_on(work)).join().expect("it comes to an end"))
}

/// A client as a kubeconfig file describes it.
pub(super) fn connect(kubeconfig: &Path) -> kube::Client {
    wait(async {
        let kubeconfig = Kubeconfig::read_from(kubeconfig).expect("a kubeconfig file");
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
        let mut config = config.expect("a good kubeconfig");
        config.read_timeout = Some(LIMIT);
        kube::Client::try_from(config).expect("a client")
    })
}

/// Whether the API server says that it is ready.
pub(super) fn is_ready(client: &kube::Client) -> bool {
    let request = Request::get("/readyz").body(Vec::new()).expect("a good request");
    wait(client.request_text(request)).is_ok()
}

impl Cluster {
    /// One request with this JSON. A change (PATCH) is a merge patch.
    ///
    /// # Errors
    /// What the API server says against it.
    pub fn call(&self, method: &str, path: &str, body: Option<&Value>) -> kube::Result<Value> {
        wait(self.client.request(request(method, path, body)))
    }

    /// Many requests with JSON, some at once, in any order.
    ///
    /// # Panics
    /// When one of them is refused.
    pub(super) fn call_all(&self, requests: impl IntoIterator<Item = (String, Value), IntoIter: Send>) {
        let mut requests = requests.into_iter().map(|(path, body)| request("POST", &path, Some(&body)));
        let workers = async {
            let mut under_way = tokio::task::JoinSet::new();
            loop {
                while under_way.len() < AT_ONCE
                    && let Some(request) = requests.next()
                {
                    let client = self.client.clone();
                    under_way.spawn(async move { client.request::<Value>(request).await.map(drop) });
                }
                let Some(done) = under_way.join_next().await else { break };
                done.expect("a request ends").expect("the API server takes it");
            }
        };
        wait(workers);
    }
}

fn request(method: &str, path: &str, body: Option<&Value>) -> Request<Vec<u8>> {
    let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let request = Request::builder().method(method).uri(path).header("content-type", kind);
    request.body(body.map(|body| body.to_string().into_bytes()).unwrap_or_default()).expect("a good request")
}
