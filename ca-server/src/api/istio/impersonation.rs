//! Whether the proxy of a node may have the identity of a pod beside it. Pure.
//!
//! - Only a service account that the config trusts, by a token that is bound to a pod.
//! - Only an identity of our own trust domain.
//! - Only of a service account that has a pod on the node of the caller's pod now, as the API server of the caller's own
//!   cluster tells it. The caller's word for its node counts for nothing.
//! - A node is told by its UID, as an agent's is: the token of a node that was made anew says nothing about the new one.

use spiffe::id::{SpiffeId, TrustDomain};

use super::account::Account;
use crate::attest::k8s_psat;
use crate::config::kubernetes::AccountName;
use crate::kube::review::ServiceAccount;
use crate::view::pods::Pods;

/// Why not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Denied {
    #[error("{namespace}/{name} asks for the identity of another: istio.trusted_node_accounts does not name it")]
    NotTrusted { namespace: String, name: String },
    #[error("{0:?} was asked for, which is the identity of no service account: {1}")]
    NotAnAccount(String, String),
    #[error("{id} was asked for, and is not in the trust domain {trust_domain} of this server")]
    Foreign { id: SpiffeId, trust_domain: TrustDomain },
    #[error("the caller's token is bound to no pod: use a projected token")]
    NoPod,
    #[error("pod {0} (UID {1}), to which the caller's token is bound, is on no node that is known here: try again")]
    UnknownPod(String, String),
    #[error("the API server says that pod {0} is another one than the caller's token does")]
    OtherPod(String),
    #[error("node {0} is another one now than that of the caller's token (UID {1}): start the caller's pod anew")]
    OtherNode(String, String),
    #[error("no pod of {namespace}/{name} runs on node {node}")]
    NotOnNode { namespace: String, name: String, node: String },
}

/// Who asks, and for what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish<'a> {
    /// The caller, by its token.
    pub(super) caller: &'a ServiceAccount,
    /// Its cluster, by our name.
    pub(super) cluster: &'a str,
    /// The identity that it asks for.
    pub(super) asked: &'a str,
}

/// The identity that was asked for, if the caller may have it now.
pub(super) fn allowed(
    wish: Wish<'_>,
    trusted: &[AccountName],
    trust_domain: &TrustDomain,
    pods: &Pods,
) -> Result<SpiffeId, Denied> {
    let Wish { caller, cluster, asked } = wish;
    if !trusted.iter().any(|account| account.is(&caller.namespace, &caller.name)) {
        return Err(Denied::NotTrusted { namespace: caller.namespace.clone(), name: caller.name.clone() });
    }
    let none = |why: String| Denied::NotAnAccount(asked.chars().take(256).collect(), why);
    let id = SpiffeId::parse(asked).map_err(|error| none(error.to_string()))?;
    if !id.is_member_of(trust_domain) {
        return Err(Denied::Foreign { id, trust_domain: trust_domain.clone() });
    }
    let account = Account::of_id(&id).ok_or_else(|| none("its path is not /ns/<namespace>/sa/<name>".into()))?;

    let bound = caller.pod.as_ref().ok_or(Denied::NoPod)?;
    let of_caller = pods.find(cluster, &bound.uid);
    let of_caller = of_caller.ok_or_else(|| Denied::UnknownPod(bound.name.clone(), bound.uid.clone()))?;
    // The UID alone tells; where the rest differs, somebody is mistaken, and it is not known who.
    let is_same = *of_caller.name == *bound.name
        && *of_caller.namespace == *caller.namespace
        && *of_caller.service_account == *caller.name
        && caller.node.as_ref().is_none_or(|node| *of_caller.node_name == *node.name);
    if !is_same {
        return Err(Denied::OtherPod(bound.name.clone()));
    }
    if let Some(node) = &caller.node {
        let agent = trust_domain.agent_id(k8s_psat::KIND, &k8s_psat::node_path(cluster, &node.uid));
        if agent.ok().as_ref() != Some(&of_caller.agent) {
            return Err(Denied::OtherNode(node.name.clone(), node.uid.clone()));
        }
    }
    let is_there = pods.of_agent(&of_caller.agent).any(|pod| {
        *pod.cluster == *cluster && *pod.namespace == *account.namespace && *pod.service_account == *account.name
    });
    if !is_there {
        let node = of_caller.node_name.to_string();
        return Err(Denied::NotOnNode { namespace: account.namespace.into(), name: account.name.into(), node });
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube::review::Bound;
    use crate::view::pods::{Labels, Pod, PodEvent};

    fn domain() -> TrustDomain {
        TrustDomain::parse("example.org").unwrap()
    }

    fn pod(cluster: &str, node: &str, namespace: &str, account: &str) -> Pod {
        Pod {
            cluster: cluster.into(),
            uid: format!("uid-{cluster}-{node}-{account}").into(),
            namespace: namespace.into(),
            name: format!("{account}-{node}").into(),
            service_account: account.into(),
            node_name: node.into(),
            agent: domain().agent_id("k8s_psat", &format!("{cluster}/{node}")).unwrap(),
            labels: Labels::default(),
            namespace_labels: Labels::default(),
        }
    }

    /// `web` and ztunnel on node one, `db` and ztunnel on node two, `far` on node one of another cluster.
    fn pods() -> Pods {
        let all = [
            pod("main", "one", "istio-system", "ztunnel"),
            pod("main", "one", "shop", "web"),
            pod("main", "two", "istio-system", "ztunnel"),
            pod("main", "two", "shop", "db"),
            pod("east", "one", "shop", "far"),
        ];
        all.into_iter().fold(Pods::default(), |pods, pod| pods.after(PodEvent::Put(pod)).0)
    }

    fn ztunnel(node: &str) -> ServiceAccount {
        ServiceAccount {
            namespace: "istio-system".into(),
            name: "ztunnel".into(),
            uid: "account".into(),
            pod: Some(Bound { name: format!("ztunnel-{node}"), uid: format!("uid-main-{node}-ztunnel") }),
            node: Some(Bound { name: node.into(), uid: node.into() }),
        }
    }

    fn ask(caller: &ServiceAccount, asked: &str) -> Result<SpiffeId, Denied> {
        let trusted = [AccountName { namespace: "istio-system".into(), name: "ztunnel".into() }];
        allowed(Wish { caller, cluster: "main", asked }, &trusted, &domain(), &pods())
    }

    const WEB: &str = "spiffe://example.org/ns/shop/sa/web";
    const DB: &str = "spiffe://example.org/ns/shop/sa/db";

    #[test]
    fn the_proxy_of_a_node_gets_the_identities_of_its_own_pods_and_no_others() {
        assert_eq!(ask(&ztunnel("one"), WEB).unwrap().as_str(), WEB);
        assert_eq!(ask(&ztunnel("two"), DB).unwrap().as_str(), DB);
        let own = "spiffe://example.org/ns/istio-system/sa/ztunnel";
        assert_eq!(ask(&ztunnel("one"), own).unwrap().as_str(), own);
        let why = |asked: &str| ask(&ztunnel("one"), asked).unwrap_err();
        assert_eq!(why(DB).to_string(), "no pod of shop/db runs on node one");
        assert!(matches!(why("spiffe://example.org/ns/shop/sa/far"), Denied::NotOnNode { .. }), "of another cluster");
        assert!(matches!(why("spiffe://example.org/ns/other/sa/web"), Denied::NotOnNode { .. }));
    }

    #[test]
    fn only_service_accounts_of_our_own_trust_domain_have_an_identity() {
        let why = |asked: &str| ask(&ztunnel("one"), asked).unwrap_err();
        assert!(matches!(why("spiffe://other.org/ns/shop/sa/web"), Denied::Foreign { .. }));
        for none in ["web", "", "spiffe://example.org/web", "spiffe://example.org/ns/shop/sa/web/x"] {
            assert!(matches!(why(none), Denied::NotAnAccount(..)), "{none}");
        }
        assert!(matches!(why("spiffe://example.org/chancery/server"), Denied::NotAnAccount(..)));
        assert!(why(&"x".repeat(9000)).to_string().len() < 500);
    }

    #[test]
    fn who_is_not_trusted_is_refused_even_its_own_identity() {
        let web = ServiceAccount {
            namespace: "shop".into(),
            name: "web".into(),
            pod: Some(Bound { name: "web-one".into(), uid: "uid-main-one-web".into() }),
            ..ztunnel("one")
        };
        assert!(matches!(ask(&web, WEB), Err(Denied::NotTrusted { .. })));
        let elsewhere = ServiceAccount { namespace: "shop".into(), ..ztunnel("one") };
        assert!(matches!(ask(&elsewhere, WEB), Err(Denied::NotTrusted { .. })), "the name alone is not enough");
        let wish = Wish { caller: &ztunnel("one"), cluster: "main", asked: WEB };
        assert!(matches!(allowed(wish, &[], &domain(), &pods()), Err(Denied::NotTrusted { .. })));
    }

    #[test]
    fn the_callers_pod_is_that_of_its_token_and_known() {
        let caller = ztunnel("one");
        let with = |pod: Option<(&str, &str)>| {
            let pod = pod.map(|(name, uid)| Bound { name: name.into(), uid: uid.into() });
            ask(&ServiceAccount { pod, ..caller.clone() }, WEB).unwrap_err()
        };
        assert_eq!(with(None), Denied::NoPod);
        assert!(matches!(with(Some(("ztunnel-one", "gone"))), Denied::UnknownPod(..)));
        assert!(matches!(with(Some(("ztunnel-two", "uid-main-one-ztunnel"))), Denied::OtherPod(_)));
        assert!(
            matches!(with(Some(("web-one", "uid-main-one-web"))), Denied::OtherPod(_)),
            "the pod of another account"
        );
        let node = Some(Bound { name: "two".into(), uid: "two".into() });
        let moved = ServiceAccount { node, ..caller.clone() };
        assert!(matches!(ask(&moved, WEB), Err(Denied::OtherPod(_))), "the token knows another node");
        for uid in ["one-before", "two", "", "one/.."] {
            let node = Some(Bound { name: "one".into(), uid: uid.into() });
            let before = ServiceAccount { node, ..caller.clone() };
            assert!(matches!(ask(&before, WEB), Err(Denied::OtherNode(..))), "a node of that name was made anew");
        }
        assert!(ask(&ServiceAccount { node: None, ..caller.clone() }, WEB).is_ok(), "before Kubernetes 1.32");
        let trusted = [AccountName { namespace: "istio-system".into(), name: "ztunnel".into() }];
        let wish = Wish { caller: &caller, cluster: "east", asked: WEB };
        assert!(matches!(allowed(wish, &trusted, &domain(), &pods()), Err(Denied::UnknownPod(..))), "another cluster");
    }
}
