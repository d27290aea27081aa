//! The chart of `deploy/helm/chancery`, as Helm itself renders it, and the plain manifests that are made of it: held against
//! the schemas of Kubernetes and our own parsers of configs. What a real API server says of them is in `kube_deploy.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say what is wrong by panicking")]

use serde_json::Value;
use tests::binary::House;
use tests::chart::{Chart, configs, containers, documents, find};

/// The oldest and the newest Kubernetes that the schemas are held against, and the API server of our tests.
const VERSIONS: [&str; 3] = ["1.30", "1.35", "1.37"];

#[test]
fn helm_finds_no_fault_with_the_chart() {
    Chart::run(&["lint"], "").succeeded();
    let version = format!("version: {0}\nappVersion: \"{0}\"\n", env!("CARGO_PKG_VERSION"));
    assert!(include_str!("../../deploy/helm/chancery/Chart.yaml").contains(&version), "the chart is of this version");
}

#[test]
fn the_plain_manifests_are_what_the_chart_makes_of_its_defaults() {
    let made = Chart::run(&["manifests"], "").succeeded().stdout;
    let kept = include_str!("../../deploy/kubernetes/chancery.yaml");
    assert!(
        made == kept,
        "the chart has changed: write deploy/kubernetes/chancery.yaml anew, as tests/interop/python/chart.py says"
    );
}

#[test]
fn every_object_is_one_that_kubernetes_knows() {
    for chart in Chart::all() {
        for version in VERSIONS {
            Chart::run(&["validate", version], chart.text()).succeeded();
        }
    }
    Chart::run(&["validate", "1.37"], "apiVersion: v1\nkind: Pod\nmetadata: { name: a }\nspec: { container: [] }\n")
        .failed(1, &["Pod a"]);
}

#[test]
fn values_that_are_not_known_or_make_no_sense_are_refused() {
    for (values, word) in [
        ("trustDomian: a.org", "trustDomian"),
        ("clusterName: EU", "clusterName"),
        ("server: { port: 0 }", "port"),
        ("server: { env: { PATH: x } }", "PATH"),
        ("agent: { serviceAccounts: [chancery] }", "serviceAccounts"),
        ("agent: { socketDir: run }", "socketDir"),
        ("agent: { kubelet: { right: nodes } }", "right"),
        ("agent: { runAsUser: 1000, unixAttestor: true }", "runAsUser"),
        ("publish: { istio: true }", "namespaces"),
        ("image: { digest: latest }", "digest"),
        // Forgotten, as by an upgrade without the file of the installation.
        ("trustDomain: null", "trustDomain"),
        ("image: { repository: null }", "repository"),
    ] {
        let output = Chart::try_with(values);
        output.failed(1, &[word]);
    }
}

#[test]
fn a_service_for_istio_has_a_name_of_the_server_only_while_there_is_one() {
    for (enabled, has) in [("true", true), ("false", false)] {
        let values = format!("istio: {{ enabled: {enabled}, service: {{ enabled: true }} }}");
        let made = documents(&Chart::try_with(&values).succeeded().stdout);
        let is_named = configs(&made).0.dns_names.iter().any(|name| name.to_string() == "istiod.chancery.svc");
        assert_eq!((find(&made, "Service", "istiod").is_some(), is_named), (has, has), "{values}");
    }
}

#[test]
fn the_installation_of_the_page_has_all_that_an_upgrade_needs() {
    let page = include_str!("../../docs/kubernetes.md");
    let upgrade = include_str!("../../docs/kubernetes-upgrade.md");
    let values = page.split("```yaml values.yaml\n").nth(1).unwrap().split("```").next().unwrap();
    let rendered = Chart::try_with(values).succeeded();
    rendered.says(&[
        "image: \"registry.example.org/chancery:0.1.0\"",
        "trust_domain = \"example.org\"",
        "[kubernetes.\"main\"]",
    ]);
    for required in ["trustDomain: ", "clusterName: ", "image: { repository: "] {
        assert!(values.contains(required), "{required}: {values}");
    }
    for (verb, page) in [("install", page), ("upgrade", upgrade)] {
        let command = page.lines().find(|line| line.starts_with(&format!("helm {verb} "))).unwrap();
        assert!(command.ends_with("--values values.yaml"), "{command}");
    }
}

#[test]
fn the_values_of_the_page_give_configs_that_are_taken() {
    let page = include_str!("../../docs/kubernetes.md");
    let values: Vec<&str> =
        page.split("```yaml values.yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert_eq!(values.len(), 4);
    for values in values {
        let text = Chart::try_with(values).succeeded().stdout;
        let made = documents(&text);
        let (server, _) = configs(&made);
        let Some(upstream) = server.authority.upstream else { continue };
        let stateful_set = find(&made, "StatefulSet", "chancery-server").unwrap();
        let volume = mounted(&stateful_set["spec"]["template"]["spec"], upstream.key.to_str().unwrap());
        assert_eq!(volume["secret"]["defaultMode"], 0o400);
    }
}

#[test]
fn every_address_in_the_pages_is_a_service_of_the_chart() {
    let charts = Chart::all();
    let chart = charts.iter().find(|chart| chart.name() == "istio/chancery-ambient.yaml").unwrap();
    let service = chart.object("Service", "chancery-server");
    let host = "chancery-server.chancery.svc";
    let ports: Vec<String> =
        service["spec"]["ports"].as_array().unwrap().iter().map(|one| one["port"].to_string()).collect();
    let root = tests::chart::deploy("..");
    let folders = ["docs", "docs/proxies", "deploy/istio"].map(|folder| std::fs::read_dir(root.join(folder)).unwrap());
    let mut named = 0;
    for path in folders.into_iter().flatten().map(|entry| entry.unwrap().path()).filter(|path| path.is_file()) {
        let text = std::fs::read_to_string(&path).unwrap();
        for (at, _) in text.match_indices(".chancery.svc") {
            let is_of_it = |letter: char| letter.is_ascii_alphanumeric() || "-.:".contains(letter);
            let start = text[..at].rfind(|letter| !is_of_it(letter)).map_or(0, |before| before + 1);
            let end = text[at..].find(|letter| !is_of_it(letter)).map_or(text.len(), |after| at + after);
            let (of, port) = text[start..end].split_once(':').unwrap_or((&text[start..end], &ports[0]));
            assert!(of == host && ports.iter().any(|one| one == port), "{}: {of}:{port}", path.display());
            named += 1;
        }
    }
    assert!(named > 1, "the pages name the server");
}

#[test]
fn the_config_of_the_page_on_istio_is_taken_and_has_the_name_that_proxies_are_given() {
    let page = include_str!("../../docs/istio.md");
    let table = page.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    let config =
        ca_server::config::Config::parse(&format!("trust_domain = \"example.org\"\n{table}"), Vec::new()).unwrap();
    let known = config.istio.expect("[istio]").dns_names;
    let given: Vec<&str> = page.split("caAddress: ").skip(1).map(|rest| rest.split(':').next().unwrap()).collect();
    assert!(!given.is_empty());
    for host in given {
        assert!(known.iter().any(|name| name.to_string() == host), "{host} is not among {known:?}");
    }
    // The sample of ztunnel knows the server by what the chart publishes.
    let ztunnel = std::fs::read_to_string(tests::chart::deploy("istio/ztunnel.yaml")).unwrap();
    let ztunnel = &documents(&ztunnel)[0];
    let file = ztunnel["env"]["CA_ROOT_CA"].as_str().unwrap();
    let (folder, key) = file.rsplit_once('/').unwrap();
    assert_eq!((&ztunnel["volumeMounts"][0]["mountPath"], key), (&folder.into(), "root-cert.pem"));
    assert_eq!(ztunnel["volumes"][0]["configMap"]["name"], "chancery-bundle");
    let of_page = page.split("## 3. ztunnel").nth(1).unwrap().split("```yaml\n").nth(1).unwrap();
    assert_eq!(&documents(of_page.split("```").next().unwrap())[0], ztunnel);
}

#[test]
fn service_accounts_are_taken_in_both_spellings() {
    for mark in [":", "/"] {
        let accounts = format!(
            "agent: {{ serviceAccounts: ['a{mark}b'] }}\nistio: {{ enabled: true, nodeAccounts: ['c{mark}d'] }}"
        );
        let made = documents(&Chart::try_with(&accounts).succeeded().stdout);
        let server = configs(&made).0;
        let agents = &server.attest.k8s_psat.values().next().unwrap().service_accounts[0];
        let nodes = &server.istio.unwrap().trusted_node_accounts[0];
        let named = [&agents.namespace, &agents.name, &nodes.namespace, &nodes.name].map(ToString::to_string);
        assert_eq!(named, ["a", "b", "c", "d"], "{mark}");
    }
}

#[test]
fn names_are_looked_up_in_kube_system_alone_unless_the_values_say_otherwise() {
    let dns = |documents: &[Value]| {
        let policy = find(documents, "NetworkPolicy", "chancery-agent").unwrap();
        let rules = policy["spec"]["egress"].as_array().unwrap();
        rules.iter().find(|rule| rule["ports"][0]["port"] == 53).unwrap()["to"].clone()
    };
    let default = dns(Chart::all()[0].documents());
    assert_eq!(default[0]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"], "kube-system");
    let anywhere = Chart::try_with("networkPolicy: { dns: [] }").succeeded().stdout;
    assert_eq!(dns(&documents(&anywhere)), Value::Null);
}

#[test]
fn a_kubelet_is_asked_by_its_own_right_and_only_where_the_values_say_so() {
    let made = |values: &str| documents(&Chart::try_with(values).succeeded().stdout);
    let rights = |made: &[Value]| {
        let rules = &find(made, "ClusterRole", "chancery-chancery-agent").unwrap()["rules"];
        format!("{} {}", rules[0]["resources"], rules[0]["verbs"])
    };
    let leads_there = |made: &[Value]| {
        let policy = find(made, "NetworkPolicy", "chancery-agent").unwrap();
        policy["spec"]["egress"].as_array().unwrap().iter().any(|rule| rule["ports"][0]["port"] == 10250)
    };
    let default = made("");
    assert_eq!(configs(&default).1.attestors.k8s.unwrap().kubelet, None);
    assert_eq!((rights(&default).as_str(), leads_there(&default)), ("[\"pods\"] [\"list\",\"watch\"]", false));
    for (right, values) in [("nodes/pods", ""), ("nodes/proxy", ", right: nodes/proxy")] {
        let made = made(&format!("agent: {{ kubelet: {{ enabled: true{values} }} }}"));
        let kubelet = configs(&made).1.attestors.k8s.unwrap().kubelet.unwrap();
        assert_eq!(kubelet.address, "https://192.0.2.7:10250", "the kubelet of the pod's own node");
        assert_eq!((rights(&made), leads_there(&made)), (format!("[\"{right}\"] [\"get\"]"), true));
        // Its token and CA are what the kubelet puts into each pod that wants an account.
        let pod = &find(&made, "DaemonSet", "chancery-agent").unwrap()["spec"]["template"]["spec"];
        let account = std::path::Path::new("/var/run/secrets/kubernetes.io/serviceaccount");
        assert_eq!((pod["automountServiceAccountToken"] == true, kubelet.token_file), (true, account.join("token")));
    }
}

#[test]
fn each_config_of_the_chart_is_one_that_server_and_agent_take() {
    for chart in Chart::all() {
        let (server, agent) = configs(chart.documents());
        assert_eq!(server.trust_domain, agent.trust_domain, "{}", chart.name());
        assert_eq!(server.address.as_str(), agent.servers[0].to_string(), "{}", chart.name());
        let (cluster, psat) = server.attest.k8s_psat.first_key_value().expect("agents of this cluster");
        let node_agent::config::Attest::K8sPsat { cluster: of, token_path } = &agent.attest else {
            panic!("{}: {:?}", chart.name(), agent.attest)
        };
        assert_eq!(cluster.as_str(), of, "{}", chart.name());
        // What the agent reads is mounted, and is for this server.
        let daemon_set = chart.object("DaemonSet", "chancery-agent");
        let pod = &daemon_set["spec"]["template"]["spec"];
        let token = mounted(pod, token_path.to_str().unwrap());
        let source = &token["projected"]["sources"][0]["serviceAccountToken"];
        assert_eq!(source["audience"], psat.audience.as_str(), "{}", chart.name());
        let account = pod["serviceAccountName"].as_str().unwrap();
        let account = format!("chancery:{account}");
        assert!(psat.service_accounts.iter().any(|one| format!("{}:{}", one.namespace, one.name) == account));
        // What it knows the server by is what the server publishes in its namespace.
        let publish = server.kubernetes[cluster].publish.clone().expect("the bundle is published");
        let bundle = &token["projected"]["sources"][1]["configMap"];
        assert_eq!(bundle["name"], publish.config_map.as_str(), "{}", chart.name());
        let is_own = publish.namespaces.iter().any(|name| name.as_str() == "chancery");
        assert!(is_own || (publish.namespaces.is_empty() && publish.namespace_label.is_none()), "{}", chart.name());
        // The socket is in the folder of the node that workloads mount.
        let socket = mounted(pod, agent.workload_socket.to_str().unwrap());
        assert_eq!(socket["hostPath"]["path"], agent.workload_socket.parent().unwrap().to_str().unwrap());
    }
}

#[test]
fn containers_have_what_they_need_and_nothing_more() {
    for chart in Chart::all() {
        for (of, pod, container) in containers(chart.documents()) {
            let (name, context) =
                (format!("{} of {}", of["metadata"]["name"], chart.name()), &container["securityContext"]);
            assert_eq!(context["readOnlyRootFilesystem"], true, "{name}");
            assert_eq!(context["allowPrivilegeEscalation"], false, "{name}");
            assert_eq!(context["capabilities"]["drop"], serde_json::json!(["ALL"]), "{name}");
            assert_eq!(context["privileged"], Value::Null, "{name}");
            assert_eq!(pod["hostNetwork"], Value::Null, "{name}");
            assert_eq!(pod["hostIPC"], Value::Null, "{name}");
            assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{name}");
            for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
                let command = &container[probe]["exec"]["command"];
                assert_eq!((&command[0], &command[1]), (&"chancery".into(), &"healthcheck".into()), "{name}: {probe}");
                // Whoever may end it asks only whether it answers.
                let is_live = command.as_array().unwrap().contains(&"--live".into());
                assert_eq!(is_live, probe != "readinessProbe", "{name}: {probe}");
            }
            let is_agent = of["kind"] == "DaemonSet";
            assert_eq!(pod["hostPID"] == true, is_agent, "{name}");
            assert_eq!(pod["securityContext"]["runAsNonRoot"] == true, !is_agent, "{name}");
            let added = &context["capabilities"]["add"];
            let looks_at_programs = chart.name() == "everything" && is_agent;
            let needed = if looks_at_programs { serde_json::json!(["SYS_PTRACE"]) } else { Value::Null };
            assert_eq!(added, &needed, "{name}");
        }
    }
}

#[test]
fn no_role_has_a_wildcard_or_a_secret_and_changes_are_bound_to_names() {
    for chart in Chart::all() {
        let roles =
            chart.documents().iter().filter(|one| ["Role", "ClusterRole"].map(Value::from).contains(&one["kind"]));
        for role in roles {
            for rule in role["rules"].as_array().unwrap() {
                let text = rule.to_string();
                assert!(!text.contains('*') && !text.contains("secrets"), "{text}");
                let verbs: Vec<&str> =
                    rule["verbs"].as_array().unwrap().iter().map(|verb| verb.as_str().unwrap()).collect();
                let known = ["create", "get", "list", "watch", "patch"];
                assert!(verbs.iter().all(|verb| known.contains(verb)), "{text}");
                let changes = verbs.contains(&"patch");
                assert!(!changes || rule["resourceNames"].as_array().is_some_and(|names| !names.is_empty()), "{text}");
            }
        }
        let own = find(chart.documents(), "Role", "chancery-server").is_some();
        assert_eq!(
            own,
            chart.name() == "defaults" || chart.name() == "istio/chancery-sidecar.yaml",
            "{}",
            chart.name()
        );
    }
}

#[test]
fn each_command_of_the_pages_and_of_the_notes_is_one_that_chancery_knows() {
    let house = House::empty("");
    let notes = include_str!("../../deploy/helm/chancery/templates/NOTES.txt");
    let pages = ["kubernetes.md", "kubernetes-upgrade.md", "istio.md", "rules.md", "proxies/istio.md"];
    let pages = pages.map(|page| (page, std::fs::read_to_string(tests::chart::deploy("../docs").join(page)).unwrap()));
    let samples = include_str!("../../deploy/istio/README.md");
    let texts = pages.into_iter().chain([("NOTES.txt", notes.into()), ("istio/README.md", samples.into())]);
    let mut known = Vec::new();
    for (name, text) in texts {
        for command in commands(&text) {
            let words: Vec<&str> = command.split_whitespace().collect();
            let said = house.run(&words);
            // 2: the command line is wrong. There is no server, so nothing comes of those that are right.
            assert!([Some(0), Some(1), Some(3)].contains(&said.code), "{name}: {said}");
            known.push((name, command));
        }
    }
    for name in ["kubernetes.md", "rules.md", "proxies/istio.md", "NOTES.txt", "istio/README.md"] {
        assert!(known.contains(&(name, "rule create pods".into())), "{name}: {known:?}");
    }
}

#[test]
fn the_dockerfile_is_in_order() {
    let hadolint = tests::binary::place("CHANCERY_HELM").join("hadolint");
    let dockerfile = tests::chart::deploy("Dockerfile").display().to_string();
    tests::binary::Command::new(hadolint).args([dockerfile]).run().succeeded();
}

/// What stands behind `chancery` where it is called: at the start of a line or a code span, or behind `--` of `kubectl exec`
/// or variables.
fn commands(text: &str) -> Vec<String> {
    let text = text.replace("\\\n", " ");
    let is_called = |before: &str| {
        let word = before.rsplit(['\n', '`', ' ']).find(|word| !word.is_empty()).unwrap_or_default();
        let is_first = before.is_empty() || before.ends_with(['\n', '`']);
        is_first || (before.ends_with(' ') && (word == "--" || word.starts_with("CHANCERY_")))
    };
    let calls = text.match_indices("chancery ").filter(|(at, _)| is_called(&text[..*at]));
    calls.map(|(at, name)| text[at + name.len()..].split(['\n', '`']).next().unwrap().trim().to_owned()).collect()
}

/// The volume of `pod` in which its container sees the file at `path`.
#[track_caller]
fn mounted<'a>(pod: &'a Value, path: &str) -> &'a Value {
    let mounts = pod["containers"][0]["volumeMounts"].as_array().unwrap();
    let folder = path.rsplit_once('/').unwrap().0;
    let mount = mounts.iter().find(|mount| mount["mountPath"] == folder);
    let mount = mount.unwrap_or_else(|| panic!("nothing is mounted at {folder}: {mounts:?}"));
    let volumes = pod["volumes"].as_array().unwrap();
    volumes.iter().find(|volume| volume["name"] == mount["name"]).expect("a volume")
}
