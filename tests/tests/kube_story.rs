//! The whole way in a cluster, with a real API server and the rights of the chart: an agent attests by its projected token, pods
//! get their identities by a rule, keep them, and lose them when they are deleted.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say what is wrong by panicking")]

use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use spiffe::proto::broker::{
    KubernetesObjectKey, KubernetesObjectReference, KubernetesObjectType, SubscribeToX509svidResponse,
    WorkloadReference,
};
use spiffe::proto::v1;
use spiffe::time::{Clock as _, System};
use spiffe::x509_svid::X509Svid;
use tests::broker::scene::{info, next, svids};
use tests::broker::{Broker, Door, error_info, reference};
use tests::cgroup::{Cgroup, Shape};
use tests::chart::{documents, find};
use tests::cluster::{Cluster, Container, Pod, Token, uid};
use tests::contained::Contained;
use tests::house::{BEGINNING, Settings, id, text};
use tests::operator::entry;
use tests::patience::{eventually, that};
use tests::workload::{certificates, handshake};
use tests::{House, Node, Operator, Workload};
use tonic::{Code, Status};

const HOUR: Duration = Duration::from_secs(3600);
/// How long an SVID by the rule is good where a test wants many.
const LIFE: Duration = Duration::from_secs(600);
/// How long tokens are good that a test does not want to end.
const DAY: u32 = 86_400;

/// A node of a cluster, with an agent that has attested as its pod, and the server that it has attested to.
struct Scene {
    cluster: Arc<Cluster>,
    name: &'static str,
    house: House,
    operator: Operator,
    machine: Value,
    /// The pod of the agent.
    pod: Value,
    node: Node,
}

impl Scene {
    /// Everything has this name: the namespace, the node, the pod of the agent.
    async fn start(cluster: Arc<Cluster>, name: &'static str, settings: Settings<'_>) -> Self {
        let manifests = documents(include_str!("../../deploy/kubernetes/chancery.yaml"));
        let rights = |role| &find(&manifests, "ClusterRole", role).expect("a role of the chart")["rules"];
        cluster.namespace(name, &[]);
        for account in ["server", "agent", "web", "api"] {
            cluster.service_account(name, account);
        }
        cluster.grant(name, "server", rights("chancery-chancery-server"));
        cluster.grant(name, "agent", rights("chancery-chancery-agent"));
        for kind in ["Role", "RoleBinding"] {
            let mut object = find(&manifests, kind, "chancery-server").expect("a role of the chart").clone();
            object["metadata"]["namespace"] = name.into();
            if kind == "RoleBinding" {
                object["subjects"] = json!([{ "kind": "ServiceAccount", "namespace": name, "name": "server" }]);
            }
            cluster.create(&object);
        }
        let machine = cluster.node(name, &[]);

        let mut house = House::empty(&[("kubernetes.main.request_timeout", "2s")]);
        // Tokens of a real cluster are of the present.
        house.jump(System.now().since(BEGINNING));
        house.set("kubernetes.main.kubeconfig", &text(&cluster.kubeconfig_of(name, "server")));
        house.set("attest.k8s_psat.main.service_accounts", &format!("[\"{name}:agent\"]"));
        house.set("kubernetes.main.publish.namespaces", &format!("[\"{name}\"]"));
        house.start_server().await.unwrap();

        let pod = cluster.run(&Pod::new(name, "agent", "agent").on(name));
        let mut node = Node::new(&house, "node", settings).await;
        // What it knows the server by is what that has published, as a kubelet mounts it.
        node.unset("ca_fingerprint");
        node.set("bootstrap_bundle", &house.write("root-cert.pem", published(&cluster, &house, name).await));
        node.set("attest.kind", "k8s_psat");
        node.set("attest.cluster", "main");
        node.set("attest.token_path", &house.write("token", token(&cluster, &pod, 3600)));
        node.set("attestors.unix.sha256_limit", "0B");
        node.set("attestors.k8s.node_name", name);
        node.set("attestors.k8s.kubeconfig", &text(&cluster.kubeconfig_of(name, "agent")));
        node.start_agent(&house).await.unwrap();
        let operator = house.operator().await;
        Self { cluster, name, house, operator, machine, pod, node }
    }

    /// The kubelet writes a token anew that is good for so many seconds.
    fn write_token(&self, seconds: u32) {
        self.house.write("token", token(&self.cluster, &self.pod, seconds));
    }

    /// The rule that operators make first: by namespace and service account.
    async fn rule(&self, life: Duration) {
        let namespaces = vec![self.name.into()];
        let rule = v1::Rule { id: "pods".into(), namespaces, x509_ttl: life.as_secs(), ..v1::Rule::default() };
        let request = v1::CreateRuleRequest { rule: Some(rule) };
        self.operator.door.clone().create_rule(request).await.unwrap();
    }

    /// How many entries the rule gives, once they are so many.
    async fn gives(&self, entries: u64) {
        self.house
            .eventually("what the rule gives", async || {
                let request = v1::ShowRuleRequest { id: "pods".into() };
                let status = self.operator.door.clone().show_rule(request).await.unwrap().into_inner();
                // The agent is a pod, too, with a service account of its own.
                that(status.entries == entries + 1, || format!("{status:?}"))
            })
            .await;
    }

    /// Why a pod has what it has, as the server explains it.
    async fn explain(&self, pod: &str) -> Result<v1::ExplainPodResponse, Status> {
        let (namespace, name) = (self.name.into(), pod.into());
        let request = v1::ExplainPodRequest { namespace, name, ..v1::ExplainPodRequest::default() };
        Ok(self.operator.door.clone().explain_pod(request).await?.into_inner())
    }

    /// A pod of this node that runs, and a process in its container.
    fn run(&self, name: &str, account: &str) -> (Value, Contained) {
        let container = Container::new("main", "example/main:1");
        let pod = self.cluster.run(&Pod::new(self.name, name, account).on(self.name).container(&container));
        let group = Cgroup::of(Shape::Containerd, uid(&pod), &container.id);
        (pod, Contained::start(group, &self.house.path(""), self.node.socket()))
    }

    /// What pods of this service account are.
    fn identity(&self, account: &str) -> String {
        format!("/ns/{}/sa/{account}", self.name)
    }

    /// A process asks, again and again as long as it is refused, until it is a pod of this service account.
    async fn becomes(&self, process: &Contained, account: &str) -> Workload {
        let wanted = self.identity(account);
        let mut workload = process.workload(self.house.clock()).await;
        self.house
            .eventually("a process has its identity", async || match workload.state() {
                None => Err("there was no answer yet".into()),
                Some(Ok(context)) => that(context.paths() == [wanted.as_str()], || format!("{:?}", context.paths())),
                Some(Err(status)) => {
                    workload = process.workload(self.house.clock()).await;
                    Err(status.to_string())
                }
            })
            .await;
        workload
    }

    /// Lets more than half of a life pass: an open stream has another SVID then, with the same identity, which the server's
    /// bundle verifies.
    async fn renews(&self, workload: &Workload, account: &str) {
        let before = workload.context().unwrap();
        let life = before.first().svid.lifetime();
        self.house.jump(life.not_after.since(self.house.now()) * 6 / 10);
        let after = self
            .house
            .eventually("an SVID is renewed", async || {
                let after = workload.fresh(self.house.now())?;
                let is_same = after.first().svid.serial() == before.first().svid.serial();
                that(!is_same, || "it is still the same".into())?;
                Ok(after)
            })
            .await;
        assert_eq!(after.paths(), [self.identity(account)]);
        assert_ne!(after.first().key, before.first().key, "each SVID has a key of its own");
        self.verify(after.first().svid.clone()).await;
    }

    async fn verify(&self, svid: X509Svid) {
        svid.verify(&self.operator.bundle().await, self.house.now()).unwrap();
    }

    /// Waits until a stream is ended because the pod is gone, and returns what is said; whoever asks anew is nobody. Of the last
    /// pod of its kind the agent may hear from the server first, that it has no entry, or from the API server.
    async fn ends(&self, workload: &Workload, process: &Contained) -> String {
        let ended = self.house.eventually("the stream ends", async || workload.end()).await;
        assert_eq!(ended.code(), Code::PermissionDenied, "{ended}");
        let mut anew = process.workload(self.house.clock()).await;
        self.house
            .eventually("a process of no pod is refused", async || {
                let status = anew.end()?;
                assert_eq!(status.code(), Code::PermissionDenied, "{status}");
                if status.message().contains("k8s:") {
                    anew = process.workload(self.house.clock()).await;
                    return Err(format!("it is still one of a pod: {status}"));
                }
                Ok(())
            })
            .await;
        ended.message().to_owned()
    }

    /// Waits until a line of the audit record has all these words in it.
    async fn recorded(&self, words: &[&str]) {
        self.house
            .eventually("it is recorded", async || {
                let path = self.house.path("server/audit.log");
                let record = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
                let is_meant = |line: &str| words.iter().all(|word| line.contains(word));
                that(record.lines().any(is_meant), || format!("{words:?} in no line of {record}"))
            })
            .await;
    }

    /// What `work` comes to, while time goes on.
    async fn passing<T>(&self, work: impl Future<Output = T>) -> T {
        let time = self.house.eventually("something happens", async || Err::<(), _>("time goes on".to_owned()));
        tokio::select! {
            done = work => done,
            () = time => panic!("it cannot end"),
        }
    }

    /// Waits until the agent is connected, or is not; returns what is known of it.
    async fn connected(&self, wanted: bool) -> v1::Agent {
        self.house
            .eventually("the agent is connected or not, as wanted", async || {
                let agent = self.operator.agent(&self.node.id()).await.map_err(|status| status.to_string())?;
                that(agent.connected == wanted, || format!("connected: {}", agent.connected))?;
                Ok(agent)
            })
            .await
    }
}

/// The roots in the ConfigMap of the chart.
async fn published(cluster: &Cluster, house: &House, namespace: &str) -> String {
    let metadata = json!({ "namespace": namespace, "name": "chancery-bundle" });
    let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata });
    house
        .eventually("the bundle is published", async || {
            let map = cluster.read(&map).ok_or("there is no ConfigMap yet")?;
            Ok(map["data"]["root-cert.pem"].as_str().unwrap().to_owned())
        })
        .await
}

/// What a kubelet mounts into the pod of an agent.
fn token(cluster: &Cluster, pod: &Value, seconds: u32) -> String {
    let namespace = pod["metadata"]["namespace"].as_str().unwrap();
    cluster.token(&Token::of(namespace, "agent").audience("chancery").bound_to(pod).seconds(seconds))
}

#[tokio::test]
async fn a_pod_is_what_its_rule_says_until_it_is_deleted() {
    // A cluster, a server that may do in it what the chart says, and an agent that shows the token of its pod: it is its node.
    let scene = Scene::start(Cluster::shared(), "story", &[]).await;
    assert_eq!(scene.node.id(), id(&format!("/chancery/agent/k8s_psat/main/{}", uid(&scene.machine))));

    // An operator makes one rule. Two pods of one service account come, and one of another.
    scene.rule(LIFE).await;
    let (web, web_process) = scene.run("web-1", "web");
    let (twin, twin_process) = scene.run("web-2", "web");
    let (_api, api_process) = scene.run("api", "api");

    // Their processes ask the Workload API, with no credentials, and are who they are.
    let web_stream = scene.becomes(&web_process, "web").await;
    let twin_stream = scene.becomes(&twin_process, "web").await;
    let api_stream = scene.becomes(&api_process, "api").await;
    scene.verify(web_stream.context().unwrap().first().svid.clone()).await;
    let seen = handshake(&web_stream, &api_stream).await.unwrap();
    assert_eq!(seen, (id(&scene.identity("api")), id(&scene.identity("web"))));

    // The server can say why, and has written it down.
    let subject = format!("\"subject\":\"{}\"", id(&scene.identity("web")));
    scene.recorded(&[&subject, "\"object\":\"rule pods\""]).await;
    scene.gives(2).await;
    let explained = scene.explain("web-1").await.unwrap();
    assert!(
        explained.attested && explained.connected && explained.agent == scene.node.id().to_string(),
        "{explained:?}"
    );
    let [verdict] = &explained.verdicts[..] else { panic!("{explained:?}") };
    assert_eq!((verdict.rule.as_str(), verdict.outcome.as_str()), ("pods", "gives"));

    // Time passes.
    scene.renews(&web_stream, "web").await;

    // A pod is deleted: its stream ends at once, and nobody else's.
    scene.cluster.delete(&web);
    let told = scene.ends(&web_stream, &web_process).await;
    assert!(told.contains("is gone from this node"), "{told}");
    for (stream, account) in [(&twin_stream, "web"), (&api_stream, "api")] {
        scene.renews(stream, account).await;
        assert_eq!(stream.context().unwrap().paths(), [scene.identity(account)]);
    }
    scene
        .house
        .eventually("the server knows that it is gone", async || match scene.explain("web-1").await {
            Err(status) if status.code() == Code::NotFound => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;

    // The last one of its service account: that is no identity of this node any more.
    scene.gives(2).await;
    scene.cluster.delete(&twin);
    scene.ends(&twin_stream, &twin_process).await;
    scene.gives(1).await;
    scene.renews(&api_stream, "api").await;
}

#[tokio::test]
async fn an_agent_attests_anew_with_the_token_that_is_there_then_and_no_stream_notices() {
    let scene = Scene::start(Cluster::shared(), "anew", &[]).await;
    let socket = || std::fs::metadata(scene.node.socket()).unwrap().ino();
    let at_first = socket();
    // Longer than an agent's own SVID is good.
    scene.rule(20 * HOUR).await;
    let (_pod, process) = scene.run("web", "web");
    let stream = scene.becomes(&process, "web").await;

    // The server forgets the agent: it attests anew, by itself.
    let before = scene.connected(true).await.serial;
    let request = v1::EvictAgentRequest { id: scene.node.id().to_string() };
    scene.operator.door.clone().evict_agent(request).await.unwrap();
    scene
        .house
        .eventually("the agent has attested anew", async || {
            let agent = scene.operator.agent(&scene.node.id()).await.map_err(|status| status.to_string())?;
            that(agent.connected && agent.serial != before, || format!("{agent:?}"))
        })
        .await;

    // Its SVID ends while the token in its file has ended, too: what is held is served.
    let messages = stream.history().messages;
    scene.house.jump(2 * HOUR);
    scene.connected(false).await;
    scene.recorded(&["\"outcome\":\"refused\"", "it has expired"]).await;
    let newcomer = scene.becomes(&process, "web").await;
    let context = newcomer.context().unwrap();
    assert_eq!(context.first().svid.serial(), stream.context().unwrap().first().svid.serial());
    assert_eq!(stream.history().messages, messages);

    // The kubelet writes the next token, and that one is taken.
    scene.write_token(DAY);
    scene.connected(true).await;
    scene.renews(&stream, "web").await;
    assert!(newcomer.context().is_ok());
    assert_eq!(socket(), at_first, "the socket is the same one");
}

/// A pod as a broker names it: by namespace and name, by UID, or by both.
fn named(pod: Option<&Value>, uid: &str) -> Option<WorkloadReference> {
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    let key = pod.map(|pod| &pod["metadata"]);
    let key = key.map(|of| KubernetesObjectKey { namespace: word(&of["namespace"]), name: word(&of["name"]) });
    let kind = KubernetesObjectType { plural: "pods".into(), group: "core".into() };
    let object = KubernetesObjectReference { r#type: Some(kind), key, uid: uid.into() };
    reference("spiffe.broker.KubernetesObjectReference", &object)
}

#[tokio::test]
async fn a_broker_acts_for_the_pods_that_it_names_and_only_while_they_are_there() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("broker.sock");
    let allow = format!(
        "[{{ id = \"{}\", references = [\"pod\"], selectors = [\"k8s:ns:broker\", \"k8s:sa:web\"] }}]",
        id("/proxy")
    );
    let settings = [("broker.socket", &*text(&socket)), ("broker.allow", &allow)];
    let scene = Scene::start(Cluster::shared(), "broker", &settings).await;
    // The broker is this process, which is in no pod.
    scene.operator.register(entry(&scene.node.id(), "/proxy")).await;
    scene.rule(LIFE).await;
    let itself = scene.node.workload(&scene.house).await;
    let proxy = scene
        .house
        .eventually("the broker has its SVID", async || {
            let context = itself.context()?;
            let own = context.identity("/proxy")?;
            let svid = Some((own.svid.clone(), own.key.clone()));
            Ok(Broker { svid, bundle: own.bundle.clone(), agent: scene.node.id(), clock: scene.house.clock() })
        })
        .await;
    let door = Door::Socket(socket);
    let run = |name, account| scene.cluster.run(&Pod::new(scene.name, name, account).on(scene.name));
    // In the order in which the agent hears of them.
    let (api, web, twin) = (run("api", "api"), run("web-1", "web"), run("web-2", "web"));
    let first = async |workload: Option<WorkloadReference>| {
        let mut stream = svids(&proxy, &door, workload).await?;
        let SubscribeToX509svidResponse { svids, .. } = next(&mut stream).await?;
        let [svid] = <[_; 1]>::try_from(svids).unwrap();
        let parsed = X509Svid::parse(certificates(&svid.x509_svid)).unwrap();
        parsed.key_fits(&svid.x509_svid_key).unwrap();
        scene.verify(parsed.clone()).await;
        assert_eq!(parsed.id(), &id(&scene.identity("web")));
        Ok::<_, Status>(stream)
    };
    // As long as the agent has not heard of the pod, or of its entry, a broker asks again.
    let until = async |pod: &Value| {
        let asking = eventually("a broker acts for a pod", async || {
            first(named(None, uid(pod))).await.map_err(|status| status.to_string())
        });
        scene.passing(asking).await
    };
    let (mut of_web, mut of_twin) = (until(&web).await, until(&twin).await);
    for name in [named(Some(&web), ""), named(Some(&web), uid(&web))] {
        scene.passing(first(name)).await.unwrap();
    }

    // Not one whose name and UID are of two pods, and not one that its rule does not cover.
    let refused = async |workload| scene.passing(first(workload)).await.map(drop).unwrap_err();
    let both = refused(named(Some(&web), uid(&twin))).await;
    assert_eq!((both.code(), error_info(&both)), (Code::NotFound, info("WORKLOAD_NOT_FOUND", None)));
    let other = refused(named(None, uid(&api))).await;
    assert_eq!((other.code(), error_info(&other)), (Code::PermissionDenied, info("WORKLOAD_NOT_ENTITLED", None)));

    // The pod is deleted: its stream ends, it cannot be named any more, and one that takes its name is another one.
    scene.cluster.delete(&web);
    let ended = scene.passing(next(&mut of_web)).await.unwrap_err();
    assert_eq!((ended.code(), error_info(&ended)), (Code::NotFound, info("WORKLOAD_NOT_FOUND", None)));
    let again = run("web-1", "web");
    until(&again).await;
    for gone in [named(None, uid(&web)), named(Some(&web), uid(&web))] {
        assert_eq!(refused(gone).await.code(), Code::NotFound);
    }
    // Another pod's stream goes on, with the next SVID.
    scene.house.jump(LIFE * 6 / 10);
    let renewed = scene.passing(next(&mut of_twin)).await.unwrap();
    assert_eq!(renewed.svids[0].spiffe_id, id(&scene.identity("web")).to_string());
}

#[tokio::test]
async fn a_workload_does_not_notice_that_the_api_server_comes_and_goes() {
    let scene = Scene::start(Arc::new(Cluster::start()), "flaps", &[]).await;
    scene.rule(LIFE).await;
    let (web, process) = scene.run("web", "web");
    let stream = scene.becomes(&process, "web").await;
    scene.gives(1).await;
    // What server and agent know lasts, for who has a stream and for who comes anew: nothing depends on the API server.
    let goes_on = async || {
        scene.renews(&stream, "web").await;
        scene.becomes(&process, "web").await;
    };
    for _ in 0..3 {
        scene.cluster.freeze();
        goes_on().await;
        scene.cluster.thaw();
        scene.cluster.stop();
        goes_on().await;
        scene.cluster.start_again();
    }
    scene.cluster.lose_history();
    goes_on().await;
    let keys = stream.history().keys.len();
    assert!(keys >= 8, "{keys} SVIDs");
    // It is listened to again, by both.
    let (_late, late_process) = scene.run("late", "api");
    let late = scene.becomes(&late_process, "api").await;
    scene.cluster.delete(&web);
    scene.ends(&stream, &process).await;
    scene.gives(1).await;
    scene.renews(&late, "api").await;
}
