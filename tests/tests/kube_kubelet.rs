//! The agent's attestor of pods beside a kubelet that it asks instead of the API server, with processes in real cgroups.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say what is wrong by panicking")]

use std::time::Duration;

use serde_json::{Value, json};
use tests::certificates::{self, Ca};
use tests::cgroup::{Cgroup, Shape};
use tests::cluster::{Cluster, Container, Pod, uid};
use tests::contained::Contained;
use tests::house::text;
use tests::kubelet::{Kubelet, Mood};
use tests::patience::that;
use tests::{Host, House};

const TOKEN: &str = "the-first-token";

/// A node with its agent and its kubelet, and a namespace of the same name.
struct Scene {
    name: &'static str,
    host: Host,
    kubelet: Kubelet,
    ca: Ca,
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
        let (pem, token, url) =
            (house.write("kubelet-ca.pem", ca.pem()), house.write("kubelet-token", TOKEN), kubelet.url());
        let own =
            [("attestors.k8s.kubelet.address", url.as_str()), ("attestors.k8s.kubelet.token_file", token.as_str())];
        let by_ca = [("attestors.k8s.kubelet.ca", pem.as_str())];
        let is_verified = !settings.iter().any(|(key, _)| key.ends_with("skip_verification"));
        let by_ca = by_ca.iter().filter(|_| is_verified);
        let all: Vec<_> = own.iter().chain(by_ca).chain(settings).copied().collect();
        Self { name, host: Host::start(house, name, &all).await, kubelet, ca }
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
        self.host.process(Cgroup::of(shape, uid(&of.pod), &of.container.id))
    }

    /// Lets time pass until the kubelet was asked so many times more.
    async fn is_asked(&self, times: usize) {
        let enough = self.kubelet.asked() + times;
        let condition = async || that(self.kubelet.asked() >= enough, || format!("{} times", self.kubelet.asked()));
        self.host.house.eventually("the kubelet is asked", condition).await;
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
    scene.host.register("/web", &selectors).await;
    scene.host.register("/any", &["k8s:ns:by-kubelet"]).await;
    let process = scene.process(Shape::Containerd, &running);
    let workload = scene.host.workload(&process).await;
    scene.host.has(&workload, &["/web", "/any"]).await;
    let stranger = scene.process(Shape::Crio, &elsewhere);
    let told = scene.host.refused(&scene.host.workload(&stranger).await).await;
    assert!(!told.contains("k8s:"), "of another node: {told}");
    scene.kubelet.tells([&other.pod]);
    let told = scene.host.refused(&workload).await;
    assert!(told.contains("is gone from this node"), "{told}");
}

#[tokio::test]
async fn a_new_pod_is_seen_when_its_process_knocks_and_not_only_a_minute_later() {
    let scene = Scene::start("knocking", &[("attestors.k8s.kubelet.every", "1m")]).await;
    scene.host.register("/web", &["k8s:ns:knocking"]).await;
    let old = scene.pod("old");
    scene.kubelet.tells([&old.pod]);
    scene.host.comes_to_have(&scene.process(Shape::Containerd, &old), &["/web"]).await;
    let new = scene.pod("new");
    let (process, beside) = (scene.process(Shape::Containerd, &new), scene.process(Shape::Containerd, &new));
    scene.kubelet.tells([&old.pod, &new.pod]);
    let (began, asked) = (scene.host.house.now(), scene.kubelet.asked());
    let (workload, another) = (scene.host.workload(&process).await, scene.host.workload(&beside).await);
    scene.host.has(&workload, &["/web"]).await;
    scene.host.has(&another, &["/web"]).await;
    let passed = scene.host.house.now().since(began);
    assert!(passed < Duration::from_secs(60), "{passed:?}");
    // Both were waited for together.
    let looks = u64::try_from(scene.kubelet.asked() - asked).unwrap();
    assert!(looks <= passed.as_secs() + 1, "{looks} looks in {passed:?}");
}

#[tokio::test]
async fn a_kubelet_that_is_lost_changes_no_identity() {
    let scene = Scene::start("lost-kubelet", &[]).await;
    scene.host.register("/web", &["k8s:ns:lost-kubelet"]).await;
    let (running, late) = (scene.pod("web"), scene.pod("late"));
    scene.kubelet.tells([&running.pod]);
    let process = scene.process(Shape::Cgroupfs, &running);
    scene.host.comes_to_have(&process, &["/web"]).await;
    let workload = scene.host.workload(&process).await;
    scene.host.has(&workload, &["/web"]).await;
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
        scene.host.has(&scene.host.workload(&process).await, &["/web"]).await;
    }
    scene.kubelet.is(Mood::Hanging);
    scene.is_asked(1).await;
    scene.host.has(&scene.host.workload(&process).await, &["/web"]).await;
    workload.context().expect("the stream goes on");
    // It is believed again, and the pod that it knows no more is gone.
    scene.kubelet.is(Mood::Well);
    scene.host.refused(&workload).await;
    scene.host.comes_to_have(&scene.process(Shape::Crio, &late), &["/web"]).await;
}

#[tokio::test]
async fn a_kubelet_of_another_ca_is_told_no_token_and_believed_nothing() {
    let kubelet = Kubelet::start(&certificates::root("Kubelets"), TOKEN).await;
    let scene = Scene::beside(kubelet, certificates::root("Kubelets"), "other-ca", &[]).await;
    scene.host.register("/web", &["k8s:ns:other-ca"]).await;
    let running = scene.pod("web");
    scene.kubelet.tells([&running.pod]);
    let process = scene.process(Shape::Containerd, &running);
    let told = scene.host.refused(&scene.host.workload(&process).await).await;
    assert!(!told.contains("k8s:"), "{told}");
    assert_eq!(scene.kubelet.asked(), 0, "it has seen no token");
    scene.kubelet.is_certified_by(&scene.ca);
    scene.host.comes_to_have(&process, &["/web"]).await;
}

#[tokio::test]
async fn a_kubelet_on_this_machine_is_taken_unseen_where_the_config_says_so() {
    let kubelet = Kubelet::start(&certificates::root("Nobody"), TOKEN).await;
    let settings = [("attestors.k8s.kubelet.skip_verification", "true")];
    let scene = Scene::beside(kubelet, certificates::root("Kubelets"), "unseen", &settings).await;
    scene.host.register("/web", &["k8s:ns:unseen"]).await;
    let running = scene.pod("web");
    scene.kubelet.tells([&running.pod]);
    scene.host.comes_to_have(&scene.process(Shape::Docker, &running), &["/web"]).await;
}

#[tokio::test]
async fn a_token_that_was_renewed_is_read_again() {
    let scene = Scene::start("renewed", &[]).await;
    scene.host.register("/web", &["k8s:ns:renewed"]).await;
    let (running, late) = (scene.pod("web"), scene.pod("late"));
    scene.kubelet.tells([&running.pod]);
    let process = scene.process(Shape::Containerd, &running);
    scene.host.comes_to_have(&process, &["/web"]).await;
    scene.kubelet.takes("the-second-token");
    scene.kubelet.tells([&running.pod, &late.pod]);
    let refused = async || that(scene.kubelet.refused() > 1, || "the first token still does".into());
    scene.host.house.eventually("the first token is refused", refused).await;
    scene.host.has(&scene.host.workload(&process).await, &["/web"]).await;
    scene.host.house.write("kubelet-token", "the-second-token");
    scene.host.comes_to_have(&scene.process(Shape::Containerd, &late), &["/web"]).await;
}
