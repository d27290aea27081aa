//! `chancery explain`: why a pod of Kubernetes has the identities that it has, or none.

use clap::Args;
use spiffe::proto::v1;
use spiffe::time::Timestamp;

use crate::args::Globals;
use crate::connect;
use crate::documents::{Explained, Silent};
use crate::exit::{Failure, Outcome};
use crate::output::{Sheet, Table};
use crate::{moments, refusal};

/// Say why a pod has the identities that it has, or none: what each rule comes to, and how its node's agent is.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  chancery explain shop/web-7d4b9-x1
  chancery explain --uid 0b9c1e7a-5f0c-4d4e-9e5e-2f4f6a1b2c3d

What is shown is what the server knows: a pod is known once it is bound to a node, and until it has ended.")]
pub(crate) struct Explain {
    /// The pod, by its namespace and name.
    #[arg(value_name = "NAMESPACE/POD", required_unless_present = "uid", conflicts_with = "uid")]
    pod: Option<String>,
    /// The pod, by its UID.
    #[arg(long, value_name = "UID")]
    uid: Option<String>,
    /// Its cluster, where more than one has such a pod.
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
}

impl Explain {
    /// Does it.
    pub(crate) async fn run(self, globals: &Globals) -> Outcome {
        let request = self.request()?;
        let answer = connect::admin(globals).await?.explain_pod(request).await;
        let explained = answer.map_err(|status| refusal::failure(&status))?.into_inner();
        let text = text(&explained, moments::now());
        globals.output.show(&Explained::from(explained), || text)
    }

    fn request(self) -> Outcome<v1::ExplainPodRequest> {
        let (namespace, name) = match &self.pod {
            None => ("", ""),
            Some(pod) => pod
                .split_once('/')
                .filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty())
                .ok_or_else(|| {
                    Failure::Usage(format!("{pod:?} names no pod: write it as NAMESPACE/POD, for example shop/web-1"))
                })?,
        };
        Ok(v1::ExplainPodRequest {
            cluster: self.cluster.unwrap_or_default(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: self.uid.unwrap_or_default(),
        })
    }
}

fn text(pod: &v1::ExplainPodResponse, now: Timestamp) -> String {
    let agent = match (pod.attested, pod.banned, pod.connected) {
        (_, true, _) => "banned: it gets nothing. \"chancery agent evict\" lifts that".to_owned(),
        (false, ..) => {
            format!("not attested: no agent serves this node yet, look at the agent's pod on node {}", pod.node_name)
        }
        (true, _, false) => "attested, not connected to the server that answers".to_owned(),
        (true, _, true) => "attested and connected".to_owned(),
    };
    let sheet = Sheet::default()
        .line("pod", format!("{}/{}", pod.namespace, pod.name))
        .line("cluster", &pod.cluster)
        .line("uid", &pod.uid)
        .line("service account", &pod.service_account)
        .lines("labels", &pod.labels)
        .lines("namespace labels", &pod.namespace_labels)
        .line("node", &pod.node_name)
        .line("agent", &pod.agent)
        .line("", agent)
        .lines("note", Silent::notes(&pod.silent, now))
        .text();
    let mut table = Table::new(["RULE", "COMES TO", "SPIFFE ID, OR WHY NOT", "SELECTORS"]);
    for verdict in &pod.verdicts {
        let entry = verdict.entry.clone().unwrap_or_default();
        let what = if verdict.reason.is_empty() { entry.spiffe_id } else { verdict.reason.clone() };
        table.row([verdict.rule.clone(), verdict.outcome.clone(), what, entry.selectors.join(" ")]);
    }
    format!("{sheet}\n{}", table.text_or("no rules"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_explained_as_text() {
        let entry = v1::Entry {
            spiffe_id: "spiffe://example.org/ns/shop/sa/web".into(),
            selectors: vec!["k8s:ns:shop".into(), "k8s:sa:web".into()],
            ..v1::Entry::default()
        };
        let gives =
            v1::RuleVerdict { rule: "pods".into(), outcome: "gives".into(), reason: String::new(), entry: Some(entry) };
        let differs = v1::RuleVerdict {
            rule: "db".into(),
            outcome: "differs".into(),
            reason: "its pod has no label tier".into(),
            entry: None,
        };
        let pod = v1::ExplainPodResponse {
            namespace: "shop".into(),
            name: "web-1".into(),
            attested: true,
            verdicts: vec![gives, differs],
            silent: vec![v1::SilentCluster { cluster: "prod".into(), heard_at: 1_000_000 }],
            ..v1::ExplainPodResponse::default()
        };
        let alone = v1::ExplainPodResponse { attested: false, node_name: "one".into(), ..pod.clone() };
        let said = text(&alone, Timestamp::from_unix(1_000_600));
        assert!(
            said.contains("not attested: no agent serves this node yet, look at the agent's pod on node one\n"),
            "{said}"
        );
        let said = text(&pod, Timestamp::from_unix(1_000_600));
        assert!(said.contains("\nnote  cluster prod was last heard of 10m ago: what is said of its pods"), "{said}");
        assert!(said.starts_with("pod   shop/web-1\n      attested, not connected"), "{said}");
        assert!(
            said.contains("pods  gives     spiffe://example.org/ns/shop/sa/web  k8s:ns:shop k8s:sa:web\n"),
            "{said}"
        );
        assert!(said.contains("db    differs   its pod has no label tier            -\n"), "{said}");
    }

    #[test]
    fn a_pod_is_named_by_its_namespace_and_name() {
        let request = |pod: &str| Explain { pod: Some(pod.into()), uid: None, cluster: None }.request();
        let named = request("shop/web-1").unwrap();
        assert_eq!((named.namespace.as_str(), named.name.as_str()), ("shop", "web-1"));
        for wrong in ["web-1", "/web-1", "shop/"] {
            assert!(request(wrong).is_err_and(|failure| failure.exit() == 2), "{wrong}");
        }
    }
}
