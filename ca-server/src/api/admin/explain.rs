//! Why a pod has the identities that it has, or none: what each rule comes to, and how the agent of its node is.

use std::collections::BTreeMap;
use std::sync::Arc;

use spiffe::proto::v1;

use super::{Call, clusters, rules};
use crate::api::status::Refusal;
use crate::view::View;
use crate::view::derive::Verdict;
use crate::view::pods::Pod;

pub(super) async fn explain(
    call: &Call<'_>,
    request: v1::ExplainPodRequest,
) -> Result<v1::ExplainPodResponse, Refusal> {
    let view = &call.admitted.view;
    let clusters = &call.settings.clusters;
    let silent = |only| clusters.silent(only, view.pods(), call.admitted.now);
    let asked = Some(&*request.cluster).filter(|name| !name.is_empty());
    let pod = find(view, &request, clusters.count() == 0, || silent(asked))?;
    let node = view.node(&pod.agent);
    let verdicts = view.explain(pod).into_iter().map(|(rule, verdict)| v1::RuleVerdict {
        rule: rule.id.to_string(),
        outcome: outcome(&verdict).to_owned(),
        reason: rules::reason(&verdict),
        entry: match &verdict {
            Verdict::Gives(entry) => Some((&**entry).into()),
            _ => None,
        },
    });
    Ok(v1::ExplainPodResponse {
        cluster: pod.cluster.to_string(),
        namespace: pod.namespace.to_string(),
        name: pod.name.to_string(),
        uid: pod.uid.to_string(),
        service_account: pod.service_account.to_string(),
        node_name: pod.node_name.to_string(),
        labels: shown(&pod.labels),
        namespace_labels: shown(&pod.namespace_labels),
        agent: pod.agent.to_string(),
        attested: node.is_some_and(|node| node.is_live(call.admitted.now)),
        banned: node.is_some_and(|node| node.banned),
        connected: call.doors.connected.applied(&pod.agent).is_some(),
        verdicts: verdicts.collect(),
        silent: silent(Some(&pod.cluster)),
    })
}

fn outcome(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Gives(_) => "gives",
        Verdict::Same(_) => "same",
        Verdict::Differs(_) => "differs",
        Verdict::Refused(_) | Verdict::Operator(_) | Verdict::OwnName(_) => "refused",
        Verdict::Limit => "limit",
    }
}

fn shown(labels: &BTreeMap<String, String>) -> Vec<String> {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect()
}

/// The one pod that is asked for. Where there is none, `silent` are the clusters that could not tell of it.
fn find<'a>(
    view: &'a View,
    asked: &v1::ExplainPodRequest,
    has_no_clusters: bool,
    silent: impl FnOnce() -> Vec<v1::SilentCluster>,
) -> Result<&'a Arc<Pod>, Refusal> {
    let v1::ExplainPodRequest { cluster, namespace, name, uid } = asked;
    if uid.is_empty() && (namespace.is_empty() || name.is_empty()) {
        return Err(Refusal::invalid("name a pod by its namespace and name, or by its uid"));
    }
    let is_it = |pod: &&Arc<Pod>| match uid.is_empty() {
        true => *pod.namespace == **namespace && *pod.name == **name,
        false => *pod.uid == **uid,
    };
    let pods = view.pods();
    let all = pods.agents().flat_map(|agent| pods.of_agent(agent));
    let mut found = all.filter(|pod| cluster.is_empty() || *pod.cluster == **cluster).filter(is_it);
    match (found.next(), found.next()) {
        (Some(pod), None) => Ok(pod),
        (Some(one), Some(other)) => Err(Refusal::precondition(format_args!(
            "several pods are called so, of the clusters {} and {}: say --cluster {}, or --uid",
            one.cluster, other.cluster, one.cluster
        ))),
        (None, _) if has_no_clusters && pods.count() == 0 => Err(Refusal::not_found(clusters::NONE)),
        (None, _) => {
            let silent: Vec<String> = silent().into_iter().map(|silent| silent.cluster).collect();
            let more = match silent.is_empty() {
                true => String::new(),
                false => {
                    format!(". Not heard of for long, or never since this server has started: {}", silent.join(", "))
                }
            };
            Err(Refusal::not_found(format_args!(
                "this server knows no such pod among {}: a pod is known once it is bound to a node and until it has ended{more}",
                pods.count()
            )))
        }
    }
}
