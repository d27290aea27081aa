//! The agent's attestor of pods against a real API server, with processes in real cgroups.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say what is wrong by panicking")]

use serde_json::{Value, json};
use tests::cgroup::{Cgroup, Shape};
use tests::cluster::{Cluster, Container, Pod, uid};
use tests::contained::Contained;
use tests::host::PATIENCE;
use tests::house::text;
use tests::patience::that;
use tests::{Host, House};

/// A node of a cluster: its agent, and a namespace and an account of the same name.
struct Scene {
    name: &'static str,
    host: Host,
}

impl Scene {
    async fn start(cluster: &Cluster, name: &'static str) -> Self {
        cluster.namespace(name, &[]);
        cluster.node(name, &[]);
        cluster.service_account(name, "web");
        cluster.service_account(name, "agent");
        cluster.grant(name, "agent", &rights());
        let kubeconfig = text(&cluster.kubeconfig_of(name, "agent"));
        let settings = [("attestors.k8s.kubeconfig", kubeconfig.as_str())];
        Self { name, host: Host::start(House::start(&[]).await, name, &settings).await }
    }

    /// A pod of this node.
    fn pod(&self, name: &str, container: &Container) -> Pod {
        Pod::new(self.name, name, "web").on(self.name).label("app", name).container(container)
    }

    /// A process in this container of a pod that was created.
    fn process(&self, shape: Shape, pod: &Value, container: &Container) -> Contained {
        self.host.process(Cgroup::of(shape, uid(pod), &container.id))
    }
}

/// What the agent may do: docs/attestation.md.
fn rights() -> Value {
    json!([
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
        {"apiGroups": ["apps"], "resources": ["replicasets"], "verbs": ["get"]},
        {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get"]},
    ])
}

#[tokio::test]
async fn a_process_of_a_pod_has_its_identity_until_the_pod_is_gone() {
    let cluster = Cluster::shared();
    let scene = Scene::start(&cluster, "shapes").await;
    let deployment = cluster.deployment("shapes", "web");
    let set = cluster.replica_set("shapes", "web-1", Some(&deployment));
    for (number, shape) in [Shape::Containerd, Shape::Crio, Shape::Docker, Shape::Cgroupfs].into_iter().enumerate() {
        let (name, container) = (format!("web-{number}"), Container::new("main", "example/main:1"));
        let (_, digest) = container.image_id().split_once('@').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
        let pod = scene.pod(&name, &container).owned_by(&set);
        let created = cluster.run(&pod);
        let path = format!("/{name}");
        let selectors = [
            "k8s:ns:shapes".to_owned(),
            "k8s:sa:web".into(),
            "k8s:node-name:shapes".into(),
            format!("k8s:pod-name:{name}"),
            format!("k8s:pod-uid:{}", uid(&created)),
            format!("k8s:pod-label:app:{name}"),
            "k8s:pod-image-count:1".into(),
            "k8s:owner:ReplicaSet:web-1".into(),
            "k8s:owner:Deployment:web".into(),
            format!("k8s:owner-uid:Deployment:{}", uid(&deployment)),
            "k8s:container-name:main".into(),
            "k8s:container-image:example/main:1".into(),
            format!("k8s:container-image-digest:{digest}"),
        ];
        scene.host.register(&path, &selectors.iter().map(String::as_str).collect::<Vec<_>>()).await;
        let process = scene.process(shape, &created, &container);
        let workload = scene.host.workload(&process).await;
        scene.host.has(&workload, &[&path]).await;
        cluster.delete(&created);
        let told = scene.host.refused(&workload).await;
        assert!(told.contains("is gone from this node"), "{shape:?}: {told}");
        // Who asks anew is in a container that nobody knows.
        let told = scene.host.refused(&scene.host.workload(&process).await).await;
        assert!(told.contains("unix:uid:") && !told.contains("k8s:"), "{shape:?}: {told}");
    }
}

#[tokio::test]
async fn a_process_that_is_seen_before_its_container_waits_for_it() {
    let cluster = Cluster::shared();
    let scene = Scene::start(&cluster, "early").await;
    scene.host.register("/web", &["k8s:ns:early", "k8s:container-name:main"]).await;
    let container = Container::new("main", "example/main:1");
    let pod = scene.pod("web", &container);
    let created = cluster.pod(&pod);
    let process = scene.process(Shape::Containerd, &created, &container);
    let workload = scene.host.workload(&process).await;
    // It has asked, and time stands still.
    tests::eventually("the agent has been asked", async || {
        that(std::fs::read_dir(format!("/proc/{}/task", process.pid())).unwrap().count() > 1, || "not yet".into())
    })
    .await;
    assert!(workload.state().is_none());
    cluster.report(&created, &pod);
    scene.host.has(&workload, &["/web"]).await;
}

#[tokio::test]
async fn an_api_server_that_is_gone_hangs_or_forgets_changes_no_identity() {
    let cluster = Cluster::start();
    let scene = Scene::start(&cluster, "lost").await;
    scene.host.register("/web", &["k8s:ns:lost", "k8s:sa:web"]).await;
    let container = Container::new("main", "example/main:1");
    let created = cluster.run(&scene.pod("web", &container));
    let process = scene.process(Shape::Containerd, &created, &container);
    let workload = scene.host.workload(&process).await;
    scene.host.has(&workload, &["/web"]).await;
    let still = async || {
        scene.host.house.jump(PATIENCE);
        workload.context().expect("the stream goes on");
        scene.host.has(&scene.host.workload(&process).await, &["/web"]).await;
    };
    cluster.stop();
    still().await;
    cluster.start_again();
    cluster.freeze();
    still().await;
    cluster.thaw();
    cluster.lose_history();
    still().await;
    // It is listened to again.
    let container = Container::new("main", "example/main:1");
    let late = cluster.run(&scene.pod("late", &container));
    let late = scene.process(Shape::Crio, &late, &container);
    scene.host.comes_to_have(&late, &["/web"]).await;
    cluster.delete(&created);
    scene.host.refused(&workload).await;
}

#[tokio::test]
async fn rights_that_are_taken_away_change_nothing_for_pods_that_are_known() {
    let cluster = Cluster::shared();
    let scene = Scene::start(&cluster, "rights").await;
    scene.host.register("/web", &["k8s:ns:rights"]).await;
    let container = Container::new("main", "example/main:1");
    let created = cluster.run(&scene.pod("web", &container));
    let process = scene.process(Shape::Containerd, &created, &container);
    let workload = scene.host.workload(&process).await;
    scene.host.has(&workload, &["/web"]).await;
    let name = json!({ "name": "rights-agent" });
    cluster.delete(&json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": name,
    }));
    scene.host.house.jump(PATIENCE);
    scene.host.has(&scene.host.workload(&process).await, &["/web"]).await;
    workload.context().expect("the stream goes on");
}

#[tokio::test]
async fn a_mount_namespace_that_lies_changes_nothing() {
    let cluster = Cluster::shared();
    let scene = Scene::start(&cluster, "forged").await;
    scene.host.register("/victim", &["k8s:ns:forged", "k8s:pod-label:app:victim"]).await;
    scene.host.register("/thief", &["k8s:ns:forged", "k8s:pod-label:app:thief"]).await;
    let (victims, thiefs) = (Container::new("main", "example/main:1"), Container::new("main", "example/main:1"));
    let victim = cluster.run(&scene.pod("victim", &victims));
    let thief = cluster.run(&scene.pod("thief", &thiefs));
    let owned = scene.process(Shape::Containerd, &victim, &victims);
    let files = scene.host.house.path("victim.cgroup");
    std::fs::copy(format!("/proc/{}/cgroup", owned.pid()), &files).unwrap();
    let before = [
        "mount --make-rprivate /".to_owned(),
        "mount -t tmpfs none /sys/fs/cgroup".into(),
        format!("mount --bind {} /proc/$$/cgroup", files.display()),
        format!("mount --bind /proc/{} /proc/self", owned.pid()),
    ];
    let group = Cgroup::of(Shape::Containerd, uid(&thief), &thiefs.id);
    let process = scene.host.process_after(before.get(..3).unwrap(), group);
    scene.host.has(&scene.host.workload(&process).await, &["/thief"]).await;
    scene.host.has(&scene.host.workload(&owned).await, &["/victim"]).await;
}

#[tokio::test]
async fn a_cgroup_that_a_user_made_up_is_no_pod() {
    let cluster = Cluster::shared();
    let scene = Scene::start(&cluster, "made-up").await;
    scene.host.register("/web", &["k8s:ns:made-up"]).await;
    let container = Container::new("main", "example/main:1");
    let created = cluster.run(&scene.pod("web", &container));
    let inner = Shape::Containerd.path(uid(&created), &container.id);
    for above in [
        // A user whom no machine has.
        "user.slice/user-4294900000.slice/user@4294900000.service".to_owned(),
        format!("system.slice/docker-{}.scope", "b".repeat(64)),
    ] {
        let process = scene.host.process(Cgroup::new(&format!("{above}/{inner}")));
        let told = scene.host.refused(&scene.host.workload(&process).await).await;
        assert!(!told.contains("k8s:"), "{above}: {told}");
    }
    // What a container makes up below itself changes nothing either.
    let other = Container::new("main", "example/main:1");
    cluster.namespace("made-up-too", &[]);
    cluster.service_account("made-up-too", "web");
    let another = cluster.run(&Pod::new("made-up-too", "web", "web").on("made-up").container(&other));
    let below = format!("{}/{inner}", Shape::Containerd.path(uid(&another), &other.id));
    let process = scene.host.process(Cgroup::new(&below));
    let told = scene.host.refused(&scene.host.workload(&process).await).await;
    assert!(told.contains("k8s:ns:made-up-too") && !told.contains("k8s:ns:made-up,"), "{told}");
}

#[tokio::test]
async fn a_container_of_two_pods_is_of_neither() {
    let cluster = Cluster::shared();
    let scene = Scene::start(&cluster, "twice").await;
    scene.host.register("/web", &["k8s:ns:twice"]).await;
    let container = Container::new("main", "example/main:1");
    let (one, other) = (cluster.run(&scene.pod("one", &container)), cluster.run(&scene.pod("other", &container)));
    for pod in [&one, &other] {
        let process = scene.process(Shape::Containerd, pod, &container);
        let told = scene.host.refused(&scene.host.workload(&process).await).await;
        assert!(!told.contains("k8s:"), "{told}");
    }
    cluster.delete(&other);
    let process = scene.process(Shape::Containerd, &one, &container);
    scene.host.comes_to_have(&process, &["/web"]).await;
}
