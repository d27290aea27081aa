//! What kubeconfigs are taken, and that an API server that does not answer costs no more than its time.

use std::path::Path;

use futures_util::StreamExt as _;
use spiffe::crypto::generate_key;
use spiffe::entry::KeyType;
use spiffe::time::{Fake, System};

use super::*;

const NAMESPACES: &str = "/api/v1/namespaces";

fn ca() -> String {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.self_signed(&generate_key(KeyType::P256).unwrap()).unwrap().pem()
}

/// A kubeconfig in `folder` of a server at `url`, with these lines for the cluster and for the user.
fn kubeconfig(folder: &Path, url: &str, cluster: &str, user: &str) -> config::Cluster {
    std::fs::write(folder.join("ca.pem"), ca()).unwrap();
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: it\n\
         clusters:\n- name: it\n  cluster: {{server: '{url}', {cluster}}}\n\
         users:\n- name: it\n  user: {{{user}}}\n\
         contexts:\n- name: it\n  context: {{cluster: it, user: it}}\n"
    );
    std::fs::write(folder.join("kubeconfig"), text).unwrap();
    let request_timeout = Duration::from_millis(300);
    config::Cluster { kubeconfig: Some(folder.join("kubeconfig")), request_timeout, ..config::Cluster::default() }
}

fn refusal(url: &str, cluster: &str, user: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let source = kubeconfig(folder.path(), url, cluster, user);
    Access::read(&source).map(|_| ()).unwrap_err().to_string()
}

#[test]
fn a_kubeconfig_is_taken_only_as_far_as_a_ca_may_go() {
    let (url, known) = ("https://127.0.0.1:6443", "certificate-authority: ca.pem");
    let folder = tempfile::tempdir().unwrap();
    let source = kubeconfig(folder.path(), url, known, "token: abc");
    assert!(Access::read(&source).is_ok());
    let other = config::Cluster { context: Some("other".into()), ..source.clone() };
    assert!(Access::read(&other).map(|_| ()).unwrap_err().to_string().contains("other"));
    let none = config::Cluster { kubeconfig: Some(folder.path().join("none")), ..source };
    assert!(Access::read(&none).map(|_| ()).unwrap_err().to_string().contains("cannot be read"));

    assert!(refusal("http://127.0.0.1:80", known, "token: abc").contains("not reached by https"));
    assert!(refusal(url, "insecure-skip-tls-verify: true", "token: abc").contains("remove it, and name"));
    assert!(refusal(url, "disable-compression: true", "token: abc").contains("names no CA"));
    assert!(
        refusal(url, "certificate-authority: ca.pem, proxy-url: 'http://p'", "token: abc").contains("names a proxy")
    );
    let exec = "exec: {apiVersion: client.authentication.k8s.io/v1, command: /bin/false, interactiveMode: Never}";
    assert!(refusal(url, known, exec).contains("logs in by a program"));
    assert!(refusal(url, known, "client-key: ca.pem").contains("a key without a certificate"));
    assert!(refusal(url, known, "client-certificate: ca.pem, client-key: ca.pem").contains("client key is no PEM"));
    assert!(
        refusal(url, known, "tokenFile: /nonexistent/token")
            .contains("(tokenFile): /nonexistent/token: cannot be read")
    );
    let no_pod = Access::read(&config::Cluster::default()).map(|_| ()).unwrap_err().to_string();
    assert!(no_pod.contains("is no pod") && no_pod.contains("KUBERNETES_SERVICE_HOST"), "{no_pod}");
}

/// A cluster whose API server takes connections and says nothing, as long as the listener and the folder are held.
pub(crate) async fn silent() -> (Arc<Cluster>, impl Sized) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let source = kubeconfig(folder.path(), &url, "certificate-authority: ca.pem", "token: abc");
    let name = ClusterName::try_from("main".to_owned()).unwrap();
    let cluster = Cluster::new(&name, &source, Access::read(&source).unwrap(), Arc::new(System));
    (cluster, (listener, folder))
}

#[tokio::test]
async fn an_api_server_that_does_not_answer_costs_its_time_and_no_more() {
    let (cluster, held) = silent().await;
    let ask = || cluster.ask::<serde_json::Value>(Request::get(NAMESPACES).body(Vec::new()).unwrap());
    let silent = ask().await.unwrap_err();
    assert!(matches!(silent, ApiError::Exceeded(Exceeded::Time(..))), "{silent}");
    drop(held);
    let gone = ask().await.unwrap_err();
    assert!(matches!(gone, ApiError::Unreachable(_)), "{gone}");
}

#[tokio::test]
async fn files_that_cannot_be_read_leave_what_was_read_last() {
    let folder = tempfile::tempdir().unwrap();
    let source = kubeconfig(folder.path(), "https://127.0.0.1:6443", "certificate-authority: ca.pem", "token: abc");
    let (clock, name) = (Fake::new(Timestamp::from_unix(1_800_000_000)), ClusterName::try_from("main".to_owned()));
    let cluster = Cluster::new(&name.unwrap(), &source, Access::read(&source).unwrap(), Arc::new(clock.clone()));
    cluster.client().await.unwrap();
    // As a file system that hangs: whoever opens it waits for somebody who writes.
    let file = folder.path().join("kubeconfig");
    std::fs::remove_file(&file).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&file).status().unwrap().success());
    clock.advance(FILES);
    #[expect(clippy::disallowed_methods, reason = "what is tested is that it ends, in the time of the machine")]
    let client = tokio::time::timeout(Duration::from_secs(30), cluster.client()).await;
    // Whoever still reads may end.
    let writer = std::fs::OpenOptions::new().read(true).write(true).open(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    drop(writer);
    client.expect("it waits for the files no longer than for the API server").unwrap();
}

#[tokio::test]
async fn what_kube_itself_asks_of_an_api_server_ends_too() {
    let (cluster, _held) = silent().await;
    let client = cluster.client().await.unwrap();
    let api = ::kube::Api::<k8s_openapi::api::core::v1::Namespace>::all(client);
    let error = api.list(&::kube::api::ListParams::default()).await.unwrap_err();
    let error = ApiError::from(error);
    assert!(error.to_string().contains("the API server of cluster main did not answer"), "{error}");
    let watched = ::kube::runtime::watcher(api, ::kube::runtime::watcher::Config::default());
    let first: Vec<_> = std::pin::pin!(watched).take(2).collect().await;
    assert!(first.iter().any(Result::is_err), "a listing that hangs is told of: {first:?}");
}

#[test]
fn what_an_api_server_says_is_told_on_in_short() {
    let status = br#"{"kind":"Status","reason":"Forbidden","message":"pods is forbidden:\u001b[1m no","code":403}"#;
    let error = said_no(403, status);
    assert_eq!(error.to_string(), "the API server answers 403 Forbidden: pods is forbidden: [1m no");
    assert!(said_no(404, b"<html>").is_not_found() && said_no(410, b"").is_gone());
    assert_eq!(shortened(&"x".repeat(5000)).len(), MAX_WORDS);
}
