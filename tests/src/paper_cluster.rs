//! A cluster of paper: an API server that says whose a token is, and pods on nodes, without Kubernetes.
//!
//! It behaves: a token ends with its time, with its pod, and with its service account, also when another one of that name
//! is made; it is good for its audience alone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use ca_server::kube::review::{Bound, ReviewError, ServiceAccount, TokenReviewer};
use ca_server::view::pods::{Labels, Pod, PodEvent, Pods};
use spiffe::time::{Clock as _, Fake, Timestamp};

use crate::house::trust_domain;

/// See the head of this file. Clones share it.
#[derive(Clone, Debug)]
pub struct PaperCluster {
    name: Arc<str>,
    clock: Fake,
    /// Those of this cluster; the server hears of them by [`crate::House::told`].
    pods: Arc<ArcSwap<Pods>>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    tokens: HashMap<String, Token>,
    /// Which of several of one name it is.
    accounts: HashMap<(String, String), u64>,
    numbers: u64,
    reviews: u64,
    is_away: bool,
}

#[derive(Clone, Debug)]
struct Token {
    account: ServiceAccount,
    audience: String,
    expires_at: Timestamp,
}

impl State {
    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    fn uid(&mut self, namespace: &str, account: &str) -> String {
        let number = self.number();
        let uid = self.accounts.entry((namespace.into(), account.into())).or_insert(number);
        format!("account-{uid}")
    }
}

impl PaperCluster {
    /// Without pods.
    pub fn new(name: &str, clock: &Fake) -> Self {
        Self { name: name.into(), clock: clock.clone(), pods: Arc::default(), state: Arc::default() }
    }

    /// All of its pods, as they are told to a server.
    pub fn all(&self) -> PodEvent {
        let pods = self.pods.load();
        let all = pods.agents().flat_map(|agent| pods.of_agent(agent)).map(|pod| Pod::clone(pod)).collect();
        PodEvent::All { cluster: Arc::clone(&self.name), pods: all }
    }

    /// Whether somebody knows all of its pods, and none that has gone.
    pub fn is_known(&self, to: &Pods) -> bool {
        let pods = self.pods.load();
        let is_same = |pod: &Arc<Pod>| to.find(&self.name, &pod.uid) == Some(pod);
        let known = to.agents().flat_map(|agent| to.of_agent(agent)).filter(|pod| pod.cluster == self.name).count();
        pods.count() == known && pods.agents().flat_map(|agent| pods.of_agent(agent)).all(is_same)
    }

    /// A new pod of a service account on a node.
    pub fn pod(&self, node: &str, namespace: &str, account: &str) -> Bound {
        let number = self.state().number();
        let (name, uid) = (format!("{account}-{number}"), format!("{}-pod-{number}", self.name));
        self.tell(&PodEvent::Put(Pod {
            cluster: Arc::clone(&self.name),
            uid: uid.as_str().into(),
            namespace: namespace.into(),
            name: name.as_str().into(),
            service_account: account.into(),
            node_name: node.into(),
            agent: trust_domain().agent_id("k8s_psat", &format!("{}/{}", self.name, node_uid(node))).unwrap(),
            labels: Labels::default(),
            namespace_labels: Labels::default(),
        }));
        Bound { name, uid }
    }

    /// Deletes a pod.
    pub fn delete(&self, pod: &Bound) {
        self.tell(&PodEvent::Gone { cluster: Arc::clone(&self.name), uid: pod.uid.as_str().into() });
    }

    /// Deletes a service account, and makes another one of its name.
    pub fn make_again(&self, namespace: &str, account: &str) {
        self.state().accounts.remove(&(namespace.into(), account.into()));
        self.state().uid(namespace, account);
    }

    /// A token for `istio-ca` that lives for an hour, bound to a pod.
    pub fn token(&self, namespace: &str, account: &str, pod: &Bound) -> String {
        self.token_for(namespace, account, Some(pod), "istio-ca")
    }

    /// A token that lives for an hour.
    pub fn token_for(&self, namespace: &str, account: &str, pod: Option<&Bound>, audience: &str) -> String {
        let node = pod.and_then(|pod| self.pods.load().find(&self.name, &pod.uid).map(|pod| pod.node_name.to_string()));
        let mut state = self.state();
        let account = ServiceAccount {
            namespace: namespace.into(),
            name: account.into(),
            uid: state.uid(namespace, account),
            pod: pod.cloned(),
            node: node.map(|name| Bound { uid: node_uid(&name), name }),
        };
        let text = format!("paper.{}.{}", self.name, state.number());
        let expires_at = self.clock.now().plus(Duration::from_secs(3600));
        state.tokens.insert(text.clone(), Token { account, audience: audience.into(), expires_at });
        text
    }

    /// Whether the API server cannot be reached.
    pub fn go_away(&self, is_away: bool) {
        self.state().is_away = is_away;
    }

    /// How often it was asked.
    pub fn reviews(&self) -> u64 {
        self.state().reviews
    }

    fn tell(&self, event: &PodEvent) {
        self.pods.rcu(|pods| pods.after(event.clone()).0);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

fn node_uid(node: &str) -> String {
    format!("uid-of-{node}")
}

#[async_trait]
impl TokenReviewer for PaperCluster {
    fn cluster(&self) -> &str {
        &self.name
    }

    async fn review(&self, token: &str, audience: &str) -> Result<ServiceAccount, ReviewError> {
        let mut state = self.state();
        state.reviews += 1;
        if state.is_away {
            return Err(ReviewError::Unavailable { cluster: self.name.to_string(), reason: "it is away".into() });
        }
        let refused = |why: &str| Err(ReviewError::Refused(why.into()));
        let Some(Token { account, audience: made_for, expires_at }) = state.tokens.get(token).cloned() else {
            return refused("nobody made it");
        };
        if made_for != audience {
            return refused("it is for another audience");
        }
        if self.clock.now() >= expires_at {
            return refused("it has expired");
        }
        if state.uid(&account.namespace, &account.name) != account.uid {
            return refused("the service account is another one now");
        }
        let is_gone = |pod: &Bound| self.pods.load().find(&self.name, &pod.uid).is_none();
        if account.pod.as_ref().is_some_and(is_gone) {
            return refused("the pod is gone");
        }
        Ok(account)
    }
}
