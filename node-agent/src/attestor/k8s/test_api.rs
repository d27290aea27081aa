//! For tests: an API server that behaves, and one that does not: lists, watches and owners, as a service under kube's client.
//! It answers as the kubelet of the node, too.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::client::ApiServer;

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// How it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Mood {
    /// As it should be.
    #[default]
    Well,
    /// It answers everything with this status.
    Refusing(u16),
    /// It never answers.
    Hanging,
    /// It ends each watch at once.
    Flapping,
    /// It answers everything with these words.
    Saying(&'static str),
}

#[derive(Default)]
pub(super) struct State {
    pub(super) mood: Mood,
    /// By their UIDs.
    pods: BTreeMap<String, Value>,
    /// The owners of ReplicaSets and Jobs, by the path that ends in their names.
    pub(super) owners: BTreeMap<String, Value>,
    version: u64,
    watchers: Vec<mpsc::UnboundedSender<Value>>,
    /// Paths with their queries.
    pub(super) asked: Vec<String>,
}

/// An API server. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Api(Arc<Mutex<State>>);

impl Api {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub(super) fn server(&self) -> Arc<ApiServer> {
        let api = self.clone();
        ApiServer::new(Box::new(move || {
            let api = api.clone();
            let service = tower::service_fn(move |request: Request<Body>| {
                let api = api.clone();
                let path = request.uri().path_and_query().unwrap().as_str().to_owned();
                async move { Ok::<_, Infallible>(api.answer(path).await) }
            });
            Ok(Client::new(service, "default"))
        }))
    }

    /// Creates a pod, or changes it.
    pub(super) fn put(&self, mut pod: Value) {
        let mut state = self.state();
        state.version += 1;
        pod["metadata"]["resourceVersion"] = json!(state.version.to_string());
        let uid = pod["metadata"]["uid"].as_str().unwrap().to_owned();
        let kind = if state.pods.insert(uid, pod.clone()).is_some() { "MODIFIED" } else { "ADDED" };
        state.tell(&json!({"type": kind, "object": pod}));
    }

    pub(super) fn delete(&self, uid: &str) {
        let mut state = self.state();
        let pod = state.pods.remove(uid).unwrap();
        state.version += 1;
        state.tell(&json!({"type": "DELETED", "object": pod}));
    }

    /// Changes pods unseen, and forgets what was before.
    pub(super) fn lose_history(&self, gone: &str) {
        let mut state = self.state();
        state.pods.remove(gone);
        state.version += 1000;
        state.tell(&json!({"type": "ERROR", "object": {"kind": "Status", "status": "Failure", "message": "too old resource version",
                                                     "reason": "Expired", "code": 410}}));
        state.watchers.clear();
    }

    /// Ends all watches, and is in this mood from now on.
    pub(super) fn become_now(&self, mood: Mood) {
        let mut state = self.state();
        state.mood = mood;
        state.watchers.clear();
    }

    /// How often anything was asked whose path has this in it.
    pub(super) fn asked(&self, words: &str) -> usize {
        self.state().asked.iter().filter(|path| path.contains(words)).count()
    }

    async fn answer(&self, path: String) -> Answer {
        self.state().asked.push(path.clone());
        let mood = self.state().mood;
        match mood {
            Mood::Refusing(code) => return refusal(code),
            Mood::Hanging => std::future::pending().await,
            Mood::Saying(words) => return Response::new(Full::new(Bytes::from(words)).boxed_unsync()),
            Mood::Well | Mood::Flapping => {}
        }
        if path == "/pods" {
            let pods: Vec<Value> = self.state().pods.values().cloned().collect();
            return whole(
                StatusCode::OK,
                &json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": pods}),
            );
        }
        if !path.starts_with("/api/v1/pods") {
            let owner = self.state().owners.get(path.split('?').next().unwrap()).cloned();
            return owner.map_or_else(|| refusal(404), |owner| whole(StatusCode::OK, &owner));
        }
        assert!(path.contains("fieldSelector=spec.nodeName%3Dnode-a"), "{path}");
        if !path.contains("watch=true") {
            let state = self.state();
            let pods: Vec<&Value> = state.pods.values().collect();
            let version = state.version.to_string();
            return whole(
                StatusCode::OK,
                &json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": version}, "items": pods}),
            );
        }
        let (to, events) = mpsc::unbounded_channel();
        if mood == Mood::Well {
            self.state().watchers.push(to);
        }
        let lines = UnboundedReceiverStream::new(events)
            .map(|event: Value| Ok::<_, Infallible>(Frame::data(Bytes::from(format!("{event}\n")))));
        Response::new(StreamBody::new(lines).boxed_unsync())
    }
}

impl State {
    fn tell(&mut self, event: &Value) {
        self.watchers.retain(|watcher| watcher.send(event.clone()).is_ok());
    }
}

fn refusal(code: u16) -> Answer {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "no", "reason": "No", "code": code});
    whole(StatusCode::from_u16(code).unwrap(), &status)
}

fn whole(status: StatusCode, document: &Value) -> Answer {
    let mut response = Response::new(Full::new(Bytes::from(document.to_string())).boxed_unsync());
    *response.status_mut() = status;
    response
}
