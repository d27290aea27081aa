//! The agent's attestor of pods beside a kubelet that it asks instead of the API server, with processes in real cgroups.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say what is wrong by panicking")]

use std::time::Duration;

use serde_json::{Value, json};
use spiffe::proto::v1;
use tests::certificates::{self, Ca};
use tests::cgroup::{Cgroup, Shape};
use tests::cluster::{Cluster, Container, Pod, uid};
use tests::contained::Contained;
use tests::house::text;
use tests::kubelet::{Kubelet, Mood};
use tests::operator::entry;
use tests::patience::that;
use tests::{House, Node, Workload};
use tonic::Code;

/// Longer than a process waits for its container.
const PATIENCE: Duration = Duration::from_secs(15);
const TOKEN: &str = "the-first-token";

/// A node with its agent and its kubelet, and a namespace of the same name.
struct Scene {
    name: &'static str,
    house: House,
    kubelet: Kubelet,
    ca: Ca,
    node: Node,
}

impl Scene {
    /// With these settings beside those of every scene.
    async fn start(name: &'static str, settings: &[(&str, &str)]) -> Self {
        let ca = certificates::root("Kubelets");
        let kubelet = Kubelet::start(&ca, TOKEN).await;
        Self::beside(kubelet, ca, name, settings).await
    }

    /// With a kubelet that may be known by this CA, or not.
    async fn beside(kubelet: Kubelet, ca: Ca, name: &'static str, settings: &[(&str, &str)]) -> Self {
        let house = House::start(&[]).await;
        let node = Self::node(&house, &ca, &kubelet, name, settings).await;
        Self { name, house, kubelet, ca, node }
    }

    async fn node(house: &House, ca: &Ca, kubelet: &Kubelet, name: &str, settings: &[(&str, &str)]) -> Node {
        let (ca, token, url) =
            (house.write("kubelet-ca.pem", ca.pem()), house.write("kubelet-token", TOKEN), kubelet.url());
        let own = [
            ("attestors.unix.sha256_limit", "0B"),
            ("attestors.k8s.node_name", name),
            ("attestors.k8s.kubelet.address", &url),
            ("attestors.k8s.kubelet.token_file", &token),
        ];
        let by_ca = [("attestors.k8s.kubelet.ca", ca.as_str())];
        let is_verified = !settings.iter().any(|(key, _)| key.ends_with("skip_verification"));
        let by_ca = by_ca.iter().filter(|_| is_verified);
        let all: Vec<_> = own.iter().chain(by_ca).chain(settings).copied().collect();
        Node::start(house, "node", &all).await
    }

    /// Registers what everything with `selectors` is.
    async fn register(&self, path: &str, selectors: &[&str]) {
        let selectors = selectors.iter().map(ToString::to_string).collect();
        let entry = v1::Entry { selectors, ..entry(&self.node.id(), path) };
        self.house.operator().await.register(entry).await;
    }

    /// A pod that runs on the node, as a kubelet tells of it.
    fn pod(&self, name: &str) -> Running {
        let container = Container::new("main", "example/main:1");
        let uid = uuid();
        let pod = json!({
            "metadata": { "uid": uid, "name": name, "namespace": self.name, "labels": { "app": name } },
            "spec": { "nodeName": self.name, "serviceAccountName": "web", "containers": [{ "name": "main" }] },
            "status": { "phase": "Running", "containerStatuses": [{
                "name": "main", "image": "example/main:1", "imageID": container.image_id(),
                "containerID": format!("containerd://{}", container.id), "state": { "running": {} },
            }] },
        });
        Running { pod, container }
    }

    /// A process in the container of a pod.
    fn process(&self, shape: Shape, of: &Running) -> Contained {
        let group = Cgroup::of(shape, uid(&of.pod), &of.container.id);
        Contained::start(group, &self.house.path(""), self.node.socket())
    }

    /// What the process asks for by itself.
    async fn workload(&self, of: &Contained) -> Workload {
        of.workload(self.house.clock()).await
    }

    /// Waits until a workload has exactly these identities.
    async fn has(&self, workload: &Workload, paths: &[&str]) {
        self.house
            .eventually("the identities of a pod", async || {
                let context = workload.context()?;
                that(context.paths() == paths, || format!("it has {:?}", context.paths()))
            })
            .await;
    }

    /// Asks anew and anew, until the process has exactly these identities.
    async fn comes_to_have(&self, of: &Contained, paths: &[&str]) {
        for _ in 0..100 {
            let workload = self.workload(of).await;
            let state = self.house.eventually("an answer", async || workload.state().ok_or_else(|| "none yet".into()));
            if state.await.is_ok_and(|context| context.paths() == paths) {
                return;
            }
            self.house.jump(PATIENCE);
        }
        panic!("it never has {paths:?}");
    }

    /// Waits until a workload is refused, and returns what it is told.
    async fn refused(&self, workload: &Workload) -> String {
        let status = self.house.eventually("a workload is refused", async || workload.end()).await;
        assert_eq!(status.code(), Code::PermissionDenied, "{status}");
        status.message().to_owned()
    }

    /// Lets time pass until the kubelet was asked so many times more.
    async fn is_asked(&self, times: usize) {
        let enough = self.kubelet.asked() + times;
        let condition = async || that(self.kubelet.asked() >= enough, || format!("{} times", self.kubelet.asked()));
        self.house.eventually("the kubelet is asked", condition).await;
    }
}

/// A pod and its container.
struct Running {
    pod: Value,
    container: Container,
}

/// A UID that no other pod has.
fn uuid() -> String {
    let hex = spiffe::crypto::random::<16>().unwrap().map(|byte| format!("{byte:02x}")).concat();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

#[tokio::test]
async fn a_process_has_its_identity_by_the_kubelet_and_its_deployment_by_the_api_server() {
    let (name, cluster) = ("by-kubelet", Cluster::shared());
    cluster.namespace(name, &[]);
    cluster.node(name, &[]);
    cluster.service_account(name, "web");
    cluster.service_account(name, "agent");
    // Pods it may not ask for.
    cluster.grant(name, "agent", &json!([{ "apiGroups": ["apps"], "resources": ["replicasets"], "verbs": ["get"] }]));
    let kubeconfig = text(&cluster.kubeconfig_of(name, "agent"));
    let scene = Scene::start(name, &[("attestors.k8s.kubeconfig", &kubeconfig)]).await;
    let set = cluster.replica_set(name, "web-1", Some(&cluster.deployment(name, "web")));
    let container = Container::new("main", "example/main:1");
    let pod = Pod::new(name, "web-1-x", "web").on(name).label("app", "web").container(&container).owned_by(&set);
    let running = Running { pod: cluster.run(&pod), container };
    let mut elsewhere = scene.pod("elsewhere");
    elsewhere.pod["spec"]["nodeName"] = "another".into();
    let other = scene.pod("other");
    scene.kubelet.tells([&running.pod, &elsewhere.pod, &other.pod]);
    let (by_uid, deployment) = (format!("k8s:pod-uid:{}", uid(&running.pod)), "k8s:owner:Deployment:web");
    let selectors =
        ["k8s:ns:by-kubelet", "k8s:sa:web", "k8s:pod-label:app:web", "k8s:container-name:main", &by_uid, deployment];
    scene.register("/web", &selectors).await;
    scene.register("/any", &["k8s:ns:by-kubelet"]).await;
    let process = scene.process(Shape::Containerd, &running);
    let workload = scene.workload(&process).await;
    scene.has(&workload, &["/web", "/any"]).await;
    let stranger = scene.process(Shape::Crio, &elsewhere);
    let told = scene.refused(&scene.workload(&stranger).await).await;
    assert!(!told.contains("k8s:"), "of another node: {told}");
    scene.kubelet.tells([&other.pod]);
    let told = scene.refused(&workload).await;
    assert!(told.contains("is gone from this node"), "{told}");
}

#[tokio::test]
async fn a_new_pod_is_seen_when_its_process_knocks_and_not_only_a_minute_later() {
    let scene = Scene::start("knocking", &[("attestors.k8s.kubelet.every", "1m")]).await;
    scene.register("/web", &["k8s:ns:knocking"]).await;
    let old = scene.pod("old");
    scene.kubelet.tells([&old.pod]);
    scene.comes_to_have(&scene.process(Shape::Containerd, &old), &["/web"]).await;
    let new = scene.pod("new");
    let (process, beside) = (scene.process(Shape::Containerd, &new), scene.process(Shape::Containerd, &new));
    scene.kubelet.tells([&old.pod, &new.pod]);
    let (began, asked) = (scene.house.now(), scene.kubelet.asked());
    let (workload, another) = (scene.workload(&process).await, scene.workload(&beside).await);
    scene.has(&workload, &["/web"]).await;
    scene.has(&another, &["/web"]).await;
    let passed = scene.house.now().since(began);
    assert!(passed < Duration::from_secs(60), "{passed:?}");
    // Both were waited for together.
    let looks = u64::try_from(scene.kubelet.asked() - asked).unwrap();
    assert!(looks <= passed.as_secs() + 1, "{looks} looks in {passed:?}");
}

#[tokio::test]
async fn a_kubelet_that_is_lost_changes_no_identity() {
    let scene = Scene::start("lost-kubelet", &[]).await;
    scene.register("/web", &["k8s:ns:lost-kubelet"]).await;
    let (running, late) = (scene.pod("web"), scene.pod("late"));
    scene.kubelet.tells([&running.pod]);
    let process = scene.process(Shape::Cgroupfs, &running);
    scene.comes_to_have(&process, &["/web"]).await;
    let workload = scene.workload(&process).await;
    scene.has(&workload, &["/web"]).await;
    scene.kubelet.tells([&late.pod]);
    for answer in [
        "500 Internal Server Error\r\nContent-Length: 0\r\n\r\n",
        "403 Forbidden\r\nContent-Length: 9\r\n\r\nForbidden",
        "302 Found\r\nLocation: https://127.0.0.1/pods\r\nContent-Length: 0\r\n\r\n",
        "200 OK\r\nContent-Length: 20\r\n\r\n<html>I am a teapot!",
        "200 OK\r\nContent-Length: 99\r\n\r\n{\"kind\":\"PodList\",\"items\":[",
        "200 OK\r\nContent-Length: 999999999\r\n\r\n{\"kind\":\"PodList\",\"items\":[]}",
        "200 OK\r\nContent-Length: 31\r\n\r\n{\"kind\":\"PodList\",\"items\":null}",
        "",
    ] {
        scene.kubelet.is(Mood::Saying(answer));
        scene.is_asked(2).await;
        workload.context().expect("the stream goes on");
        scene.has(&scene.workload(&process).await, &["/web"]).await;
    }
    scene.kubelet.is(Mood::Hanging);
    scene.is_asked(1).await;
    scene.has(&scene.workload(&process).await, &["/web"]).await;
    workload.context().expect("the stream goes on");
    // It is believed again, and the pod that it knows no more is gone.
    scene.kubelet.is(Mood::Well);
    scene.refused(&workload).await;
    scene.comes_to_have(&scene.process(Shape::Crio, &late), &["/web"]).await;
}

#[tokio::test]
async fn a_kubelet_of_another_ca_is_told_no_token_and_believed_nothing() {
    let kubelet = Kubelet::start(&certificates::root("Kubelets"), TOKEN).await;
    let scene = Scene::beside(kubelet, certificates::root("Kubelets"), "other-ca", &[]).await;
    scene.register("/web", &["k8s:ns:other-ca"]).await;
    let running = scene.pod("web");
    scene.kubelet.tells([&running.pod]);
    let process = scene.process(Shape::Containerd, &running);
    let told = scene.refused(&scene.workload(&process).await).await;
    assert!(!told.contains("k8s:"), "{told}");
    assert_eq!(scene.kubelet.asked(), 0, "it has seen no token");
    scene.kubelet.is_certified_by(&scene.ca);
    scene.comes_to_have(&process, &["/web"]).await;
}

#[tokio::test]
async fn a_kubelet_on_this_machine_is_taken_unseen_where_the_config_says_so() {
    let kubelet = Kubelet::start(&certificates::root("Nobody"), TOKEN).await;
    let settings = [("attestors.k8s.kubelet.skip_verification", "true")];
    let scene = Scene::beside(kubelet, certificates::root("Kubelets"), "unseen", &settings).await;
    scene.register("/web", &["k8s:ns:unseen"]).await;
    let running = scene.pod("web");
    scene.kubelet.tells([&running.pod]);
    scene.comes_to_have(&scene.process(Shape::Docker, &running), &["/web"]).await;
}

#[tokio::test]
async fn a_token_that_was_renewed_is_read_again() {
    let scene = Scene::start("renewed", &[]).await;
    scene.register("/web", &["k8s:ns:renewed"]).await;
    let (running, late) = (scene.pod("web"), scene.pod("late"));
    scene.kubelet.tells([&running.pod]);
    let process = scene.process(Shape::Containerd, &running);
    scene.comes_to_have(&process, &["/web"]).await;
    scene.kubelet.takes("the-second-token");
    scene.kubelet.tells([&running.pod, &late.pod]);
    let refused = async || that(scene.kubelet.refused() > 1, || "the first token still does".into());
    scene.house.eventually("the first token is refused", refused).await;
    scene.has(&scene.workload(&process).await, &["/web"]).await;
    scene.house.write("kubelet-token", "the-second-token");
    scene.comes_to_have(&scene.process(Shape::Containerd, &late), &["/web"]).await;
}
