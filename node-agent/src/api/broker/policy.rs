//! Which broker may ask for what (SPIFFE_Broker_API.md section 4.1): an allow list out of the config, and nothing else.
//! Pure.
//!
//! - Who is not listed may nothing.
//! - A rule allows a request as a whole or not at all: the kind of reference, what is true of the workload, and the
//!   audiences. Of several rules of one broker one has to allow it: [`Rights`] are the rules that still do.

use std::collections::HashMap;

use spiffe::audience::Audience;
use spiffe::id::SpiffeId;
use spiffe::selector::Selectors;

use crate::api::subject::Whom;
use crate::config::broker::{ReferenceKind, Rule};

/// How much of an audience goes into a message.
const SHOWN: usize = 100;

/// Why a broker may not have what it asks for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Forbidden {
    /// No rule names it.
    #[error("{0} is no broker of this agent: list it as [[broker.allow]] in the agent's config")]
    Unlisted(SpiffeId),
    /// No rule lets it name workloads in this way.
    #[error("{broker} may not name workloads by {kind}: its [[broker.allow]] has no such references")]
    Reference {
        /// Who asks.
        broker: SpiffeId,
        /// How.
        kind: &'static str,
    },
    /// No rule lets it have tokens for that.
    #[error("{broker} may not have a JWT-SVID for {audience:?}: its [[broker.allow]] has other audiences")]
    Audience {
        /// Who asks.
        broker: SpiffeId,
        /// For which audience, or the beginning of it.
        audience: String,
    },
    /// No rule is about such a workload.
    #[error("{broker} may not act for {whom}: the selectors of its [[broker.allow]] are not all true of it")]
    Workload {
        /// Who asks.
        broker: SpiffeId,
        /// For whom.
        whom: Whom,
    },
}

/// The allow list.
#[derive(Debug)]
pub(super) struct Policy(HashMap<SpiffeId, Vec<Rule>>);

impl Policy {
    pub(super) fn new(rules: Vec<Rule>) -> Self {
        let mut by_broker: HashMap<SpiffeId, Vec<Rule>> = HashMap::new();
        for rule in rules {
            by_broker.entry(rule.id.clone()).or_default().push(rule);
        }
        Self(by_broker)
    }

    /// Everything that `broker` may.
    pub(super) fn rights_of(&self, broker: &SpiffeId) -> Result<Rights<'_>, Forbidden> {
        let (broker, rules) = self.0.get_key_value(broker).ok_or_else(|| Forbidden::Unlisted(broker.clone()))?;
        Ok(Rights { broker, rules: rules.iter().collect() })
    }
}

/// The rules of one broker that allow what is known of its request so far. Never empty.
#[derive(Clone, Debug)]
pub(super) struct Rights<'a> {
    broker: &'a SpiffeId,
    rules: Vec<&'a Rule>,
}

impl<'a> Rights<'a> {
    /// Those left for a request that names its workload by `kind`.
    pub(super) fn by(self, kind: ReferenceKind) -> Result<Self, Forbidden> {
        let words = match kind {
            ReferenceKind::Pid => "pid",
            ReferenceKind::Pod => "pod",
        };
        let forbidden = Forbidden::Reference { broker: self.broker.clone(), kind: words };
        self.narrow(|rule| rule.references.contains(&kind), forbidden)
    }

    /// Those left for a JWT-SVID for `audience`: one rule has to have all of its values.
    pub(super) fn to(self, audience: &Audience) -> Result<Self, Forbidden> {
        let shown = audience.values().join(", ").chars().take(SHOWN).collect();
        let forbidden = Forbidden::Audience { broker: self.broker.clone(), audience: shown };
        let has = |allowed: &Audience| audience.values().iter().all(|value| allowed.contains(value));
        self.narrow(|rule| rule.audiences.as_ref().is_none_or(has), forbidden)
    }

    /// Those left for the workload `whom`, of which `found` is true.
    pub(super) fn over(self, whom: Whom, found: &Selectors) -> Result<Self, Forbidden> {
        let forbidden = Forbidden::Workload { broker: self.broker.clone(), whom };
        self.narrow(|rule| rule.selectors.is_subset_of(found), forbidden)
    }

    fn narrow(self, allows: impl Fn(&Rule) -> bool, forbidden: Forbidden) -> Result<Self, Forbidden> {
        let rules: Vec<&'a Rule> = self.rules.into_iter().filter(|rule| allows(rule)).collect();
        if rules.is_empty() { Err(forbidden) } else { Ok(Self { rules, broker: self.broker }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROCESS: Whom = Whom::Process(7);

    fn id(name: &str) -> SpiffeId {
        SpiffeId::parse(&format!("spiffe://example.org/{name}")).unwrap()
    }

    fn rule(name: &str, selectors: &[&str]) -> Rule {
        let selectors = Selectors::parse(selectors).unwrap();
        Rule { id: id(name), references: vec![ReferenceKind::Pid], selectors, audiences: None }
    }

    fn found(uid: u32) -> Selectors {
        Selectors::parse([format!("unix:uid:{uid}"), "unix:path:/usr/bin/web".into()]).unwrap()
    }

    #[test]
    fn who_is_not_listed_may_nothing() {
        let policy = Policy::new(vec![rule("proxy", &[])]);
        assert_eq!(policy.rights_of(&id("web")).unwrap_err(), Forbidden::Unlisted(id("web")));
        policy.rights_of(&id("proxy")).unwrap().by(ReferenceKind::Pid).unwrap().over(PROCESS, &found(1000)).unwrap();
    }

    #[test]
    fn all_selectors_of_a_rule_have_to_be_true() {
        let policy = Policy::new(vec![rule("proxy", &["unix:uid:1000", "unix:path:/usr/bin/web"])]);
        let rights = policy.rights_of(&id("proxy")).unwrap();
        rights.clone().over(PROCESS, &found(1000)).unwrap();
        assert_eq!(
            rights.clone().over(PROCESS, &found(1001)).unwrap_err(),
            Forbidden::Workload { broker: id("proxy"), whom: PROCESS }
        );
        rights.over(PROCESS, &Selectors::parse(["unix:uid:1000"]).unwrap()).unwrap_err();
    }

    #[test]
    fn one_rule_has_to_have_all_audiences() {
        let audience = |values: &[&str]| Audience::parse(&values.iter().map(ToString::to_string).collect::<Vec<_>>());
        let only = |values: &[&str]| Rule { audiences: Some(audience(values).unwrap()), ..rule("proxy", &[]) };
        let policy = Policy::new(vec![only(&["billing", "reports"]), only(&["mail"])]);
        let may = |values: &[&str]| policy.rights_of(&id("proxy")).unwrap().to(&audience(values).unwrap());
        may(&["billing"]).unwrap();
        may(&["reports", "billing"]).unwrap();
        may(&["mail"]).unwrap();
        may(&["mail", "billing"]).unwrap_err();
        let refused = may(&["bill"]).unwrap_err();
        assert_eq!(refused, Forbidden::Audience { broker: id("proxy"), audience: "bill".into() });
        let policy = Policy::new(vec![rule("proxy", &[])]);
        policy.rights_of(&id("proxy")).unwrap().to(&audience(&["anything"]).unwrap()).unwrap();
    }

    #[test]
    fn one_of_several_rules_is_enough_and_two_halves_are_not() {
        let kinds_without_selectors = Rule { references: Vec::new(), ..rule("proxy", &[]) };
        let policy = Policy::new(vec![
            rule("proxy", &["unix:uid:1000"]),
            rule("proxy", &["unix:uid:1001"]),
            kinds_without_selectors.clone(),
        ]);
        let rights = || policy.rights_of(&id("proxy")).unwrap().by(ReferenceKind::Pid).unwrap();
        rights().over(PROCESS, &found(1001)).unwrap();
        rights().over(PROCESS, &found(1002)).unwrap_err();
        let policy = Policy::new(vec![kinds_without_selectors]);
        let refused = policy.rights_of(&id("proxy")).unwrap().by(ReferenceKind::Pid).unwrap_err();
        assert_eq!(refused, Forbidden::Reference { broker: id("proxy"), kind: "pid" });
    }
}
