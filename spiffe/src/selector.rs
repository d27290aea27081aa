//! Selectors: what an attestor found to be true of a node or a process, as `type:value`.
//!
//! - The type is everything before the first colon; the value may have colons of its own.
//! - A set of selectors matches when it is a subset of what was found: all must match.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The longest selector, in bytes, type and colon included.
pub const MAX_SELECTOR_BYTES: usize = 4096;
/// The most selectors in one set.
pub const MAX_SELECTORS: usize = 256;

/// Why a text is no selector, or a list no set of selectors.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// There is no colon.
    #[error("selector {0:?} has no colon: write it as type:value, for example unix:uid:1000")]
    NoColon(String),
    /// Nothing, or something else than `[a-z0-9_]`, stands before the first colon.
    #[error("selector {0:?} has no proper type: before the first colon only a-z, 0-9 and underscore are allowed")]
    Type(String),
    /// Nothing stands behind the first colon.
    #[error("selector {0:?} has no value: write one behind the colon")]
    NoValue(String),
    /// A control character, which no attestor produces and a terminal would obey.
    #[error("selector has a control character: remove it")]
    ControlCharacter,
    /// Of a kind that is known, and such as its attestor never finds.
    #[error("selector {selector:?} matches no process: {why}")]
    Unmatchable {
        /// The whole selector.
        selector: String,
        /// What it should be.
        why: &'static str,
    },
    /// Longer than [`MAX_SELECTOR_BYTES`].
    #[error("selector has {0} bytes: at most 4096 are allowed")]
    TooLong(usize),
    /// More than [`MAX_SELECTORS`].
    #[error("{0} selectors: at most 256 are allowed")]
    TooMany(usize),
}

/// One fact about a node or a process, `type:value`. Cheap to clone; ordered by its text.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Selector(Arc<str>);

impl Selector {
    /// Parses `type:value`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        if text.len() > MAX_SELECTOR_BYTES {
            return Err(SelectorError::TooLong(text.len()));
        }
        if text.chars().any(char::is_control) {
            return Err(SelectorError::ControlCharacter);
        }
        let (kind, value) = text.split_once(':').ok_or_else(|| SelectorError::NoColon(text.into()))?;
        if kind.is_empty() || !kind.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_')) {
            return Err(SelectorError::Type(text.into()));
        }
        if value.is_empty() {
            return Err(SelectorError::NoValue(text.into()));
        }
        Ok(Self(text.into()))
    }

    /// Why no process can ever have this selector, where that is certain: the attestor of its kind is known, and finds
    /// nothing of this form. `None` for kinds that are not known here.
    pub fn fault(&self) -> Option<SelectorError> {
        let (key, value) = self.value().split_once(':').unwrap_or((self.value(), ""));
        let why = match self.kind() {
            "unix" => fault_of_process(key, value),
            "k8s" => fault_of_pod(key, value),
            _ => None,
        };
        Some(SelectorError::Unmatchable { selector: self.to_string(), why: why? })
    }

    /// Whether it says which program a process runs, and not who runs it.
    pub fn is_of_program(&self) -> bool {
        ["unix:path:", "unix:sha256:"].iter().any(|kind| self.0.starts_with(kind))
    }

    /// Whether it says which user a process belongs to.
    pub fn is_of_user(&self) -> bool {
        ["unix:uid:", "unix:user:"].iter().any(|kind| self.0.starts_with(kind))
    }

    /// The whole selector as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What stands before the first colon: the attestor that vouches for it.
    pub fn kind(&self) -> &str {
        self.0.split_once(':').map_or("", |(kind, _)| kind)
    }

    /// What stands behind the first colon.
    pub fn value(&self) -> &str {
        self.0.split_once(':').map_or("", |(_, value)| value)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Selector {
    type Err = SelectorError;
    fn from_str(text: &str) -> Result<Self, SelectorError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for Selector {
    type Error = SelectorError;
    fn try_from(text: String) -> Result<Self, SelectorError> {
        Self::parse(&text)
    }
}

impl From<Selector> for String {
    fn from(selector: Selector) -> String {
        selector.0.as_ref().to_owned()
    }
}

/// What is wrong with `unix:<key>:<value>`.
fn fault_of_process(key: &str, value: &str) -> Option<&'static str> {
    match key {
        "uid" | "gid" | "supplementary_gid" => (!is_number(value)).then_some(
            "uid, gid and supplementary_gid are numbers, for example unix:uid:1000; a name is unix:user:NAME or \
             unix:group:NAME",
        ),
        "user" | "group" | "supplementary_group" => {
            value.is_empty().then_some("a name is missing behind the last colon")
        }
        "path" => (!value.starts_with('/')).then_some("the path must be absolute, for example unix:path:/usr/bin/web"),
        "sha256" => {
            (!is_hash(value)).then_some("the hash has 64 hexadecimal digits in lower case, as sha256sum prints it")
        }
        _ => Some(
            "unix has uid, user, gid, group, supplementary_gid, supplementary_group, path and sha256 (unix:uid:1000)",
        ),
    }
}

/// What is wrong with `k8s:<key>:<value>`.
fn fault_of_pod(key: &str, value: &str) -> Option<&'static str> {
    match key {
        "ns" | "sa" | "node-name" | "pod-name" | "pod-uid" | "container-name" | "container-image" => {
            value.is_empty().then_some("nothing stands behind the last colon")
        }
        "pod-label" => {
            let is_pair = value.split_once(':').is_some_and(|(key, _)| !key.is_empty());
            (!is_pair).then_some("a label is its key and its value, for example k8s:pod-label:app:web")
        }
        "owner" | "owner-uid" => {
            let is_pair = value.split_once(':').is_some_and(|(kind, name)| !kind.is_empty() && !name.is_empty());
            (!is_pair).then_some("an owner is its kind and its name or UID, for example k8s:owner:Deployment:web")
        }
        "pod-image-count" => (!is_number(value)).then_some("it is a number, for example k8s:pod-image-count:2"),
        "container-image-digest" => {
            let is_digest = value.strip_prefix("sha256:").is_some_and(is_hash);
            (!is_digest).then_some("a digest is sha256: and 64 hexadecimal digits in lower case")
        }
        "init-container" | "ephemeral-container" => (value != "true").then_some(
            "a container of that kind has k8s:init-container:true or k8s:ephemeral-container:true, the others have neither",
        ),
        "pod-owner" | "pod-owner-uid" => Some("it is k8s:owner:KIND:NAME or k8s:owner-uid:KIND:UID here"),
        _ => Some(
            "k8s has ns, sa, node-name, pod-name, pod-uid, pod-label, pod-image-count, owner, owner-uid, container-name, \
             container-image, container-image-digest, init-container and ephemeral-container (k8s:ns:default)",
        ),
    }
}

fn is_number(text: &str) -> bool {
    text.parse::<u32>().is_ok_and(|number| number.to_string() == text)
}

/// Of SHA-256.
fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// A sorted set of selectors without repeats, so that equal sets are equal values.
#[derive(Clone, Default, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "Vec<Selector>", into = "Vec<Selector>")]
pub struct Selectors(Arc<[Selector]>);

impl Selectors {
    /// Sorts, drops repeats, and refuses more than [`MAX_SELECTORS`].
    pub fn new(selectors: impl IntoIterator<Item = Selector>) -> Result<Self, SelectorError> {
        let mut sorted: Vec<Selector> = selectors.into_iter().collect();
        sorted.sort_unstable();
        sorted.dedup();
        if sorted.len() > MAX_SELECTORS {
            return Err(SelectorError::TooMany(sorted.len()));
        }
        Ok(Self(sorted.into()))
    }

    /// Parses each text as a selector.
    pub fn parse<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> Result<Self, SelectorError> {
        let parsed: Result<Vec<_>, _> = texts.into_iter().map(|text| Selector::parse(text.as_ref())).collect();
        Self::new(parsed?)
    }

    /// Whether every selector of this set is in `found`. The empty set is a subset of everything:
    /// an entry must therefore never have an empty one.
    pub fn is_subset_of(&self, found: &Selectors) -> bool {
        self.0.iter().all(|selector| found.contains(selector))
    }

    /// Whether `selector` is in the set.
    pub fn contains(&self, selector: &Selector) -> bool {
        self.0.binary_search(selector).is_ok()
    }

    /// The selectors, sorted.
    pub fn iter(&self) -> std::slice::Iter<'_, Selector> {
        self.0.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Selectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, selector) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str(", ")?;
            }
            fmt::Display::fmt(selector, f)?;
        }
        Ok(())
    }
}

impl<'a> IntoIterator for &'a Selectors {
    type Item = &'a Selector;
    type IntoIter = std::slice::Iter<'a, Selector>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl TryFrom<Vec<Selector>> for Selectors {
    type Error = SelectorError;
    fn try_from(selectors: Vec<Selector>) -> Result<Self, SelectorError> {
        Self::new(selectors)
    }
}

impl From<Selectors> for Vec<Selector> {
    fn from(selectors: Selectors) -> Self {
        selectors.0.to_vec()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_selector_is_cut_at_its_first_colon() {
        let selector = Selector::parse("unix:path:/usr/bin/a:b").unwrap();
        assert_eq!((selector.kind(), selector.value()), ("unix", "path:/usr/bin/a:b"));
    }

    #[test]
    fn each_fault_has_its_error() {
        assert!(matches!(Selector::parse("unix"), Err(SelectorError::NoColon(_))));
        assert!(matches!(Selector::parse(":uid"), Err(SelectorError::Type(_))));
        assert!(matches!(Selector::parse("Unix:uid"), Err(SelectorError::Type(_))));
        assert!(matches!(Selector::parse("unix:"), Err(SelectorError::NoValue(_))));
        assert_eq!(Selector::parse("unix:user:a\x1b[2J"), Err(SelectorError::ControlCharacter));
        assert_eq!(Selector::parse(&format!("unix:{}", "a".repeat(4096))), Err(SelectorError::TooLong(4101)));
        let many = (0..257).map(|n| Selector::parse(&format!("unix:uid:{n}")).unwrap());
        assert_eq!(Selectors::new(many), Err(SelectorError::TooMany(257)));
    }

    #[test]
    fn what_no_process_can_have_is_said_where_it_is_certain() {
        let hash = "0a".repeat(32);
        let fine = [
            "unix:uid:0",
            "unix:supplementary_gid:27",
            "unix:user:web",
            "unix:path:/a:b",
            "k8s:ns:shop",
            "k8s:pod-label:app:web",
            "k8s:pod-label:a.org/b:",
            "k8s:owner:Deployment:web",
            "k8s:owner-uid:Job:u",
            "k8s:pod-image-count:0",
            "k8s:container-image:a.org:5000/web:1",
            "k8s:init-container:true",
            "docker:x:y",
        ];
        let hashes = ["unix:", "k8s:container-image-digest:"].map(|before| format!("{before}sha256:{hash}"));
        for good in fine.into_iter().map(str::to_owned).chain(hashes) {
            assert_eq!(Selector::parse(&good).unwrap().fault(), None, "{good}");
        }
        for (bad, words) in [
            ("unix:uid:web".to_owned(), "are numbers"),
            ("unix:gid:-1".into(), "are numbers"),
            ("unix:gid:007".into(), "are numbers"),
            ("unix:supplementary_gid:4294967296".into(), "are numbers"),
            ("unix:user:".into(), "a name is missing"),
            ("unix:supplementary_group".into(), "a name is missing"),
            ("unix:path:web".into(), "must be absolute"),
            (format!("unix:sha256:{}", hash.to_uppercase()), "64 hexadecimal digits"),
            ("unix:sha256:0a".into(), "64 hexadecimal digits"),
            ("unix:usr:web".into(), "unix has uid, user, gid, group"),
            ("k8s:namespace:shop".into(), "k8s has ns, sa, node-name"),
            ("k8s:pod".into(), "k8s has ns, sa, node-name"),
            ("k8s:sa".into(), "nothing stands behind"),
            ("k8s:pod-label:app".into(), "k8s:pod-label:app:web"),
            ("k8s:pod-label::web".into(), "k8s:pod-label:app:web"),
            ("k8s:owner:web".into(), "k8s:owner:Deployment:web"),
            ("k8s:owner-uid:Deployment:".into(), "k8s:owner:Deployment:web"),
            ("k8s:pod-owner:Deployment:web".into(), "it is k8s:owner:KIND:NAME"),
            ("k8s:pod-image-count:two".into(), "it is a number"),
            ("k8s:container-image-digest:sha256:0a".into(), "64 hexadecimal digits"),
            (format!("k8s:container-image-digest:{hash}"), "64 hexadecimal digits"),
            ("k8s:init-container:false".into(), "the others have neither"),
        ] {
            let fault = Selector::parse(&bad).unwrap().fault().unwrap().to_string();
            assert!(fault.contains(&format!("{bad:?}")) && fault.contains(words), "{fault}");
        }
    }

    proptest! {
        #[test]
        fn a_subset_is_what_sets_say_it_is(few in prop::collection::btree_set(0u8..20, 0..8),
                                          many in prop::collection::btree_set(0u8..20, 0..20)) {
            let set = |numbers: &std::collections::BTreeSet<u8>| {
                Selectors::parse(numbers.iter().rev().map(|n| format!("unix:uid:{n}"))).unwrap()
            };
            prop_assert_eq!(set(&few).is_subset_of(&set(&many)), few.is_subset(&many));
        }
    }
}
