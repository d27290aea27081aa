//! `[jwt]`: JWT-SVIDs at this agent.

use std::collections::BTreeSet;

use serde::Deserialize;

/// How JWT-SVIDs are held and looked at.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Jwt {
    /// The most that are held.
    pub cache_entries: usize,
    /// Which claims a workload is told that has a token validated.
    pub claims: Claims,
}

impl Default for Jwt {
    fn default() -> Self {
        // Some 1.5 KiB each.
        Self { cache_entries: 10_000, claims: Claims::Registered }
    }
}

/// The claims that are shown: those that RFC 7519 section 4.1 registers always are.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Written")]
pub enum Claims {
    /// `"registered"`: no others.
    Registered,
    /// `"all"`.
    All,
    /// `["role", "email"]`: these, too.
    These(BTreeSet<String>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Word(String),
    Names(BTreeSet<String>),
}

impl TryFrom<Written> for Claims {
    type Error = String;
    fn try_from(written: Written) -> Result<Self, String> {
        match written {
            Written::Word(word) if word == "registered" => Ok(Self::Registered),
            Written::Word(word) if word == "all" => Ok(Self::All),
            Written::Word(word) => {
                Err(format!("claims = {word:?} is not known: write \"registered\", \"all\" or a list of names"))
            }
            Written::Names(names) => Ok(Self::These(names)),
        }
    }
}

impl Claims {
    /// Whether the claim `name` is shown.
    pub fn show(&self, name: &str) -> bool {
        const REGISTERED: [&str; 7] = ["iss", "sub", "aud", "exp", "nbf", "iat", "jti"];
        REGISTERED.contains(&name)
            || match self {
                Self::Registered => false,
                Self::All => true,
                Self::These(names) => names.contains(name),
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_a_word_or_a_list() {
        let parse = |text: &str| toml::from_str::<Jwt>(text).map(|jwt| jwt.claims);
        assert_eq!(parse("").unwrap(), Claims::Registered);
        assert!(parse("claims = 'all'").unwrap().show("role"));
        let these = parse("claims = ['role']").unwrap();
        assert!(these.show("role") && these.show("sub") && !these.show("email"));
        let wrong = parse("claims = 'some'").unwrap_err().to_string();
        assert!(wrong.contains("a list of names"), "{wrong}");
    }
}
