//! Templates: text with variables in double braces that stand for facts about a pod, such as
//! `spiffe://example.org/ns/{{ns}}/sa/{{sa}}`.
//!
//! - *parsed once*: a variable that is not known, and text between variables that no SPIFFE ID or DNS name could have, are
//!   refused when the template is read.
//! - *never escaped*: a value that is empty, or not one whole path segment or DNS label by its characters, refuses the
//!   result; nothing is left out, replaced or quoted.
//! - *no more segments*: what is rendered has exactly the segments of its template, in the trust domain of its template.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::entry::{DnsName, EntryError};
use crate::id::{IdError, MAX_ID_BYTES, SpiffeId, TrustDomain};

/// The most variables in one template.
pub const MAX_VARIABLES: usize = 32;
/// The longest key of a label: a prefix of 253 bytes, a slash, and a name of 63.
pub const MAX_LABEL_KEY_BYTES: usize = 317;
/// How much of a value is shown where it is refused.
const SHOWN: usize = 80;

/// What is known of a pod.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The name of its cluster.
    pub cluster: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
    /// The labels of its namespace.
    pub namespace_labels: &'a BTreeMap<String, String>,
    /// Its service account.
    pub service_account: &'a str,
    /// Its name.
    pub pod_name: &'a str,
    /// Its UID.
    pub pod_uid: &'a str,
    /// Its own labels.
    pub pod_labels: &'a BTreeMap<String, String>,
    /// The name of the node that it runs on.
    pub node_name: &'a str,
}

/// Why a text is no template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// Longer than a SPIFFE ID may be.
    #[error("template has {0} bytes: at most 2048 are allowed")]
    TooLong(usize),
    /// More than [`MAX_VARIABLES`].
    #[error("template has more than 32 variables: use fewer")]
    TooMany,
    /// Braces are opened and not closed.
    #[error("template {0:?} has {{{{ without }}}} behind it: write a variable as {{{{ns}}}}")]
    Unclosed(String),
    /// There is no such variable.
    #[error(
        "template has the unknown variable {0:?}: use ns, sa, cluster, pod-name, pod-uid, node-name, pod-label:KEY or \
         ns-label:KEY"
    )]
    Unknown(String),
    /// Not the key of a label.
    #[error(
        "{0:?} is no key of a label: 1 to 317 letters, digits, dots, dashes, underscores, and a slash behind a prefix"
    )]
    LabelKey(String),
    /// A variable stands where the trust domain does.
    #[error("template {0:?} must begin with spiffe://<trust domain>/, written out: no variable may stand for it")]
    TrustDomain(String),
    /// What is between the variables makes no SPIFFE ID, whatever they stand for.
    #[error("template is no SPIFFE ID, whatever its variables stand for: {0}")]
    Id(IdError),
    /// What is rendered would be Chancery's own.
    #[error("template gives IDs under /chancery, which belong to Chancery's own servers and agents")]
    Reserved,
    /// There is nothing behind the trust domain.
    #[error("template has no path: write one behind the trust domain")]
    NoPath,
    /// What is between the variables makes no DNS name, whatever they stand for.
    #[error("template is no DNS name, whatever its variables stand for: {0}")]
    DnsName(EntryError),
}

/// Why a pod does not get what a template says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A label that the template needs is not there.
    #[error("{0} has no value here: set the label, or select by it (a rule applies only to what it selects)")]
    Missing(Variable),
    /// A value cannot stand in a SPIFFE ID.
    #[error("{0} is {1:?}, which is no segment of a SPIFFE ID's path (letters, digits, dot, dash and underscore)")]
    Segment(Variable, String),
    /// A value cannot stand in a DNS name.
    #[error("{0} is {1:?}, which is no label of a DNS name (1 to 63 of a-z, 0-9 and dash)")]
    Label(Variable, String),
    /// The whole is no SPIFFE ID.
    #[error("what the template gives is no SPIFFE ID: {0}")]
    Id(IdError),
    /// The whole is Chancery's own.
    #[error("{0} is reserved: IDs under /chancery belong to Chancery's own servers and agents")]
    Reserved(SpiffeId),
    /// The whole is no DNS name.
    #[error("what the template gives is no DNS name: {0}")]
    DnsName(EntryError),
    /// There would be more selectors than an entry may have.
    #[error("the entry would have too many selectors: use fewer labels and variables in the rule")]
    Selectors,
}

/// What a template can name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Variable {
    /// `ns`
    Namespace,
    /// `sa`
    ServiceAccount,
    /// `cluster`
    Cluster,
    /// `pod-name`
    PodName,
    /// `pod-uid`
    PodUid,
    /// `node-name`
    NodeName,
    /// `pod-label:KEY`
    PodLabel(Arc<str>),
    /// `ns-label:KEY`
    NamespaceLabel(Arc<str>),
}

impl Variable {
    const PLAIN: [(&'static str, Self); 6] = [
        ("ns", Self::Namespace),
        ("sa", Self::ServiceAccount),
        ("cluster", Self::Cluster),
        ("pod-name", Self::PodName),
        ("pod-uid", Self::PodUid),
        ("node-name", Self::NodeName),
    ];

    fn parse(text: &str) -> Result<Self, TemplateError> {
        if let Some(key) = text.strip_prefix("pod-label:") {
            return Ok(Self::PodLabel(label_key(key)?));
        }
        if let Some(key) = text.strip_prefix("ns-label:") {
            return Ok(Self::NamespaceLabel(label_key(key)?));
        }
        let known = Self::PLAIN.into_iter().find(|(name, _)| *name == text).map(|(_, variable)| variable);
        known.ok_or_else(|| TemplateError::Unknown(shown(text)))
    }

    /// What it stands for; `None`: there is no such label.
    pub fn value<'a>(&self, facts: &Facts<'a>) -> Option<&'a str> {
        match self {
            Self::Namespace => Some(facts.namespace),
            Self::ServiceAccount => Some(facts.service_account),
            Self::Cluster => Some(facts.cluster),
            Self::PodName => Some(facts.pod_name),
            Self::PodUid => Some(facts.pod_uid),
            Self::NodeName => Some(facts.node_name),
            Self::PodLabel(key) => facts.pod_labels.get(&**key).map(String::as_str),
            Self::NamespaceLabel(key) => facts.namespace_labels.get(&**key).map(String::as_str),
        }
    }
}

impl fmt::Display for Variable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PodLabel(key) => write!(f, "{{{{pod-label:{key}}}}}"),
            Self::NamespaceLabel(key) => write!(f, "{{{{ns-label:{key}}}}}"),
            plain => {
                let name = Self::PLAIN.iter().find(|(_, known)| known == plain).map_or("", |(name, _)| name);
                write!(f, "{{{{{name}}}}}")
            }
        }
    }
}

/// The key of a label, which Kubernetes writes as `name` or `prefix/name`.
pub(super) fn label_key(text: &str) -> Result<Arc<str>, TemplateError> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'/');
    if text.is_empty() || text.len() > MAX_LABEL_KEY_BYTES || !text.bytes().all(legal) {
        return Err(TemplateError::LabelKey(shown(text)));
    }
    Ok(text.into())
}

fn shown(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(Arc<str>),
    Variable(Variable),
}

/// A template, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pieces {
    text: Arc<str>,
    pieces: Arc<[Piece]>,
}

impl Pieces {
    fn parse(text: &str) -> Result<Self, TemplateError> {
        if text.len() > MAX_ID_BYTES {
            return Err(TemplateError::TooLong(text.len()));
        }
        let (mut pieces, mut rest) = (Vec::new(), text);
        while let Some((before, behind)) = rest.split_once("{{") {
            let Some((name, after)) = behind.split_once("}}") else {
                return Err(TemplateError::Unclosed(shown(text)));
            };
            if !before.is_empty() {
                pieces.push(Piece::Text(before.into()));
            }
            pieces.push(Piece::Variable(Variable::parse(name.trim())?));
            rest = after;
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest.into()));
        }
        let template = Self { text: text.into(), pieces: pieces.into() };
        if template.variables().count() > MAX_VARIABLES {
            return Err(TemplateError::TooMany);
        }
        Ok(template)
    }

    fn variables(&self) -> impl Iterator<Item = &Variable> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Variable(variable) => Some(variable),
            Piece::Text(_) => None,
        })
    }

    /// The shortest and plainest that it could be rendered as: what is wrong with this is wrong with the text.
    fn sample(&self) -> String {
        let piece = |piece: &Piece| match piece {
            Piece::Text(text) => text.to_string(),
            Piece::Variable(_) => "x".to_owned(),
        };
        self.pieces.iter().map(piece).collect()
    }

    /// The text with the values in it, each of which `judge` has looked at.
    fn join(
        &self,
        facts: &Facts<'_>,
        judge: impl Fn(&Variable, &str) -> Result<(), Refused>,
    ) -> Result<String, Refused> {
        let mut text = String::with_capacity(self.text.len() + 64);
        for piece in &*self.pieces {
            match piece {
                Piece::Text(between) => text.push_str(between),
                Piece::Variable(variable) => {
                    let value = variable.value(facts).ok_or_else(|| Refused::Missing(variable.clone()))?;
                    judge(variable, value)?;
                    text.push_str(value);
                }
            }
        }
        Ok(text)
    }
}

/// A template of SPIFFE IDs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    pieces: Pieces,
    trust_domain: TrustDomain,
}

impl Template {
    /// Parses a template, whose trust domain is written out.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let pieces = Pieces::parse(text)?;
        let sample = SpiffeId::parse(&pieces.sample()).map_err(TemplateError::Id)?;
        if sample.path().is_empty() {
            return Err(TemplateError::NoPath);
        }
        let trust_domain = sample.trust_domain();
        let written = match pieces.pieces.first() {
            Some(Piece::Text(first)) => first.starts_with(&format!("{}/", trust_domain.id())),
            _ => false,
        };
        if !written {
            return Err(TemplateError::TrustDomain(shown(text)));
        }
        if sample.is_reserved() {
            return Err(TemplateError::Reserved);
        }
        Ok(Self { pieces, trust_domain })
    }

    /// By namespace and service account, as the rest of the field has it.
    pub fn by_service_account(trust_domain: &TrustDomain) -> String {
        format!("{}/ns/{{{{ns}}}}/sa/{{{{sa}}}}", trust_domain.id())
    }

    /// Whose IDs it gives.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The ID of what has these facts.
    pub fn render(&self, facts: &Facts<'_>) -> Result<SpiffeId, Refused> {
        let judge = |variable: &Variable, value: &str| match is_segment(value) {
            true => Ok(()),
            false => Err(Refused::Segment(variable.clone(), shown(value))),
        };
        let id = SpiffeId::parse(&self.pieces.join(facts, judge)?).map_err(Refused::Id)?;
        if id.is_reserved() {
            return Err(Refused::Reserved(id));
        }
        Ok(id)
    }

    /// Whether values could make `id` of it, where a variable stands for one of `values`; none: for any segment. Does not
    /// ask for one value in both places where a variable stands twice.
    pub fn could_give<'a>(&self, id: &SpiffeId, values: impl Fn(&Variable) -> &'a [Arc<str>]) -> bool {
        let text = id.as_str();
        // Up to which bytes the pieces until now can reach.
        let mut reached = vec![0];
        for piece in &*self.pieces.pieces {
            let mut next: Vec<usize> = Vec::new();
            let step = |known: &str, at: &usize| text.get(*at..)?.starts_with(known).then_some(at + known.len());
            match piece {
                Piece::Text(known) => next.extend(reached.iter().filter_map(|at| step(known, at))),
                Piece::Variable(variable) => match values(variable) {
                    [] => {
                        for at in &reached {
                            let segment = text.get(*at..).and_then(|rest| rest.split('/').next()).map_or(0, str::len);
                            // Whatever lies behind was added from here.
                            let from = next.last().map_or(at + 1, |last| (last + 1).max(at + 1));
                            next.extend(from..=at + segment);
                        }
                    }
                    values => {
                        next.extend(reached.iter().flat_map(|at| values.iter().filter_map(|known| step(known, at))));
                        next.sort_unstable();
                        next.dedup();
                    }
                },
            }
            reached = next;
        }
        reached.last() == Some(&text.len())
    }

    /// Whether this and `other` could give one ID: their segments are as many, and none of them says that they cannot.
    pub fn may_meet(&self, other: &Self) -> bool {
        let (mine, others) = (self.segments(), other.segments());
        let head = |segment: &[Option<String>]| segment.first().cloned().flatten().unwrap_or_default();
        mine.len() == others.len()
            && mine.iter().zip(&others).all(|(one, two)| match (&one[..], &two[..]) {
                ([Some(one)], [Some(two)]) => one == two,
                (one, two) => {
                    let (one, two) = (head(one), head(two));
                    one.starts_with(&two) || two.starts_with(&one)
                }
            })
    }

    /// Each segment by its pieces; `None`: a variable.
    fn segments(&self) -> Vec<Vec<Option<String>>> {
        let mut segments = vec![Vec::new()];
        for piece in &*self.pieces.pieces {
            let Piece::Text(text) = piece else {
                segments.last_mut().into_iter().for_each(|segment| segment.push(None));
                continue;
            };
            for (at, part) in text.split('/').enumerate() {
                if at > 0 {
                    segments.push(Vec::new());
                }
                if let Some(segment) = segments.last_mut().filter(|_| !part.is_empty()) {
                    segment.push(Some(part.to_owned()));
                }
            }
        }
        segments
    }

    /// The variables in it.
    pub fn variables(&self) -> impl Iterator<Item = &Variable> {
        self.pieces.variables()
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.pieces.text
    }
}

/// A template of DNS names. Each variable stands within one label: a value with a dot is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsTemplate(Pieces);

impl DnsTemplate {
    /// Parses a template.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let pieces = Pieces::parse(text)?;
        DnsName::parse(&pieces.sample()).map_err(TemplateError::DnsName)?;
        Ok(Self(pieces))
    }

    /// The DNS name of what has these facts.
    pub fn render(&self, facts: &Facts<'_>) -> Result<DnsName, Refused> {
        let judge = |variable: &Variable, value: &str| match is_label(value) {
            true => Ok(()),
            false => Err(Refused::Label(variable.clone(), shown(value))),
        };
        DnsName::parse(&self.0.join(facts, judge)?).map_err(Refused::DnsName)
    }

    /// The variables in it.
    pub fn variables(&self) -> impl Iterator<Item = &Variable> {
        self.0.variables()
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0.text
    }
}

/// Whether a value may stand in a path (SPIFFE-ID.md section 2.2).
fn is_segment(value: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    !value.is_empty() && !matches!(value, "." | "..") && value.bytes().all(legal)
}

fn is_label(value: &str) -> bool {
    (1..=63).contains(&value.len()) && value.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn with_facts<T>(pod: &[(&str, &str)], look: impl FnOnce(&Facts<'_>) -> T) -> T {
        look(&Facts {
            cluster: "prod",
            namespace: "shop",
            namespace_labels: &labels(&[("team", "blue")]),
            service_account: "web",
            pod_name: "web-7d4b9-x1",
            pod_uid: "0b9c1e7a-5f0c-4d4e-9e5e-2f4f6a1b2c3d",
            pod_labels: &labels(pod),
            node_name: "node-1.example.org",
        })
    }

    fn rendered(template: &str, pod: &[(&str, &str)]) -> Result<String, Refused> {
        with_facts(pod, |facts| Template::parse(template).unwrap().render(facts).map(|id| id.to_string()))
    }

    #[test]
    fn every_variable_stands_for_its_fact() {
        let all = "spiffe://example.org/{{cluster}}/{{ns}}/{{ sa }}/{{pod-name}}/{{pod-uid}}/n-{{node-name}}/{{pod-label:app.kubernetes.io/name}}/{{ns-label:team}}";
        assert_eq!(
            rendered(all, &[("app.kubernetes.io/name", "Web_1")]).unwrap(),
            "spiffe://example.org/prod/shop/web/web-7d4b9-x1/0b9c1e7a-5f0c-4d4e-9e5e-2f4f6a1b2c3d/n-node-1.example.org/Web_1/blue"
        );
        let usual = Template::by_service_account(&TrustDomain::parse("example.org").unwrap());
        assert_eq!(rendered(&usual, &[]).unwrap(), "spiffe://example.org/ns/shop/sa/web");
        let template = Template::parse(all).unwrap();
        assert_eq!((template.as_str(), template.trust_domain().name()), (all, "example.org"));
        assert_eq!(template.variables().last().unwrap().to_string(), "{{ns-label:team}}");
    }

    #[test]
    fn what_is_no_template_is_refused_with_the_reason() {
        let wrong = |text: &str| Template::parse(text).unwrap_err().to_string();
        for (text, words) in [
            ("spiffe://example.org/{{namespace}}", "unknown variable \"namespace\": use ns, sa, cluster"),
            ("spiffe://example.org/{{}}", "unknown variable \"\""),
            ("spiffe://example.org/{{ns", "has {{ without }}"),
            ("spiffe://example.org/{{pod-label:}}", "no key of a label"),
            ("spiffe://example.org/{{pod-label:a b}}", "no key of a label"),
            ("spiffe://{{cluster}}/ns/{{ns}}", "no variable may stand for it"),
            ("spiffe://example.{{cluster}}/ns", "no variable may stand for it"),
            ("spiffe://example.org{{cluster}}", "no path"),
            ("spiffe://example.org", "no path"),
            ("{{ns}}", "must begin with spiffe://"),
            ("", "is empty"),
            ("spiffe://example.org/a//{{ns}}", "empty segment"),
            ("spiffe://example.org/a b/{{ns}}", "the character ' '"),
            ("spiffe://example.org/{ns}", "the character '{'"),
            ("spiffe://example.org/../{{ns}}", "relative segments"),
            ("spiffe://example.org/{{ns}}/", "ends with a slash"),
            ("spiffe://example.org/chancery/agent/{{ns}}", "under /chancery"),
            ("https://example.org/{{ns}}", "must begin with spiffe://"),
        ] {
            assert!(wrong(text).contains(words), "{text}: {}", wrong(text));
        }
        let many = format!("spiffe://example.org/{}", "{{ns}}".repeat(33));
        assert!(wrong(&many).contains("more than 32"));
        assert!(wrong(&"x".repeat(2049)).contains("2049 bytes"));
    }

    #[test]
    fn a_value_is_taken_as_it_is_or_refused() {
        let by_label = "spiffe://example.org/app/{{pod-label:app}}";
        assert_eq!(rendered(by_label, &[("app", "web.v2")]).unwrap(), "spiffe://example.org/app/web.v2");
        for hostile in ["", ".", "..", "a/b", "../admin", "a%2fb", "a b", "ä", "a?b", "a\nb", "{{ns}}"] {
            let refused = rendered(by_label, &[("app", hostile)]).unwrap_err();
            assert!(matches!(refused, Refused::Segment(..)), "{hostile}: {refused}");
        }
        let missing = rendered(by_label, &[]).unwrap_err().to_string();
        assert!(missing.contains("{{pod-label:app}} has no value here"), "{missing}");
        let two = rendered("spiffe://example.org/{{pod-label:a}}{{pod-label:b}}/x", &[("a", "-"), ("b", "v2")]);
        assert_eq!(two.unwrap(), "spiffe://example.org/-v2/x");
        let first = "spiffe://example.org/{{pod-label:a}}/agent/x509pop/{{pod-label:b}}";
        let reserved = rendered(first, &[("a", "chancery"), ("b", "1")]).unwrap_err();
        assert!(matches!(reserved, Refused::Reserved(_)), "{reserved}");
        let joined = rendered("spiffe://example.org/chan{{pod-label:a}}", &[("a", "cery")]).unwrap_err();
        assert!(matches!(joined, Refused::Reserved(_)), "{joined}");
        let dots = rendered("spiffe://example.org/.{{pod-label:a}}", &[("a", ".")]).unwrap_err();
        assert!(matches!(dots, Refused::Segment(..)), "{dots}");
    }

    #[test]
    fn dns_names_are_made_of_labels() {
        let name = |template: &str, pod: &[(&str, &str)]| {
            with_facts(pod, |facts| DnsTemplate::parse(template).unwrap().render(facts).map(|name| name.to_string()))
        };
        assert_eq!(name("{{sa}}.{{ns}}.svc.cluster.local", &[]).unwrap(), "web.shop.svc.cluster.local");
        assert_eq!(name("*.{{ns}}.example.org", &[]).unwrap(), "*.shop.example.org");
        assert!(matches!(name("{{node-name}}", &[]), Err(Refused::Label(..))), "a dot makes two labels");
        for hostile in ["", "*", "a.b", "Web", "a_b", "evil.example.com"] {
            let refused = name("{{pod-label:app}}.example.org", &[("app", hostile)]).unwrap_err();
            assert!(matches!(refused, Refused::Label(..)), "{hostile}: {refused}");
        }
        assert!(matches!(name("{{pod-label:app}}.example.org", &[("app", "-a")]), Err(Refused::DnsName(_))));
        let wrong = DnsTemplate::parse("{{ns}}_x.example.org").unwrap_err().to_string();
        assert!(wrong.contains("template is no DNS name"), "{wrong}");
        assert!(matches!(DnsTemplate::parse("{{nS}}.org"), Err(TemplateError::Unknown(_))));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn no_more_segments_and_never_escaped(
            segments in prop::collection::vec("[a-z.-]{0,3}(\\{\\{(ns|sa|pod-label:a|ns-label:b)\\}\\}){0,2}[a-z]{0,2}", 1..5),
            values in prop::collection::vec("[a-zA-Z0-9./ %_-]{0,6}|\\PC{0,4}|chancery", 4),
        ) {
            let text = format!("spiffe://example.org/{}", segments.join("/"));
            let Ok(template) = Template::parse(&text) else { return Ok(()) };
            let (pod, namespace) = (labels(&[("a", &values[2])]), labels(&[("b", &values[3])]));
            let facts = Facts {
                cluster: "c", namespace: &values[0], namespace_labels: &namespace, service_account: &values[1],
                pod_name: "p", pod_uid: "u", pod_labels: &pod, node_name: "n",
            };
            let Ok(id) = template.render(&facts) else { return Ok(()) };
            prop_assert_eq!(SpiffeId::parse(id.as_str()), Ok(id.clone()));
            prop_assert!(id.is_member_of(template.trust_domain()) && !id.is_reserved());
            let found: Vec<&str> = id.path().split('/').skip(1).collect();
            prop_assert_eq!(found.len(), segments.len());
            for (found, segment) in found.iter().zip(&segments) {
                let by_hand = [("ns", 0), ("sa", 1), ("pod-label:a", 2), ("ns-label:b", 3)]
                    .iter()
                    .fold(segment.clone(), |text, (name, at)| text.replace(&format!("{{{{{name}}}}}"), &values[*at]));
                prop_assert_eq!(*found, by_hand);
            }
        }

        #[test]
        fn nothing_makes_it_panic(text in "\\PC{0,48}") {
            let _ = Template::parse(&format!("spiffe://example.org/{text}"));
            let _ = Template::parse(&text);
            let _ = DnsTemplate::parse(&text);
        }
    }
}
