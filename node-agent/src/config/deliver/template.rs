//! The names of delivered files: text with `{{name}}`, `{{spiffe_id_path}}` and `{{trust_domain}}` in it.
//!
//! - What is filled in is a name inside of one folder: no slash, no `.` and `..`, and none that begins with `..`, as the
//!   folders of the versions do.

use spiffe::id::{SpiffeId, TrustDomain};

/// The longest name of a file, in bytes: the kernel's `NAME_MAX`.
const MAX_BYTES: usize = 255;

/// Why something is no name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A variable that nobody knows.
    #[error("{{{{{0}}}}} is not known: there are {{{{name}}}}, {{{{spiffe_id_path}}}} and {{{{trust_domain}}}}")]
    Unknown(String),
    /// Braces that are not closed.
    #[error("its {{{{ is not closed: write {{{{trust_domain}}}}, for example")]
    Open,
    /// Not a name of a file of this folder.
    #[error("{0:?} is no name inside of one folder: no slash, nothing that begins with two dots, 255 bytes at most")]
    Name(String),
}

/// A name with variables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Name,
    SpiffeIdPath,
    TrustDomain,
}

/// What is put in for the variables.
#[derive(Clone, Copy, Debug)]
pub struct Values<'a> {
    /// The delivery's.
    pub name: &'a str,
    /// The SVID's.
    pub spiffe_id: &'a SpiffeId,
    /// Whose bundle it is; for other files the SVID's own.
    pub trust_domain: &'a TrustDomain,
}

impl Template {
    /// Reads a name.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let (mut parts, mut rest) = (Vec::new(), text);
        while let Some((before, after)) = rest.split_once("{{") {
            let (variable, after) = after.split_once("}}").ok_or(TemplateError::Open)?;
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            parts.push(match variable.trim() {
                "name" => Part::Name,
                "spiffe_id_path" => Part::SpiffeIdPath,
                "trust_domain" => Part::TrustDomain,
                other => return Err(TemplateError::Unknown(other.to_owned())),
            });
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        // What can be seen to be wrong already is said already.
        let has_slash = parts.iter().any(|part| matches!(part, Part::Text(text) if text.contains('/')));
        if let ([] | [Part::Text(_)], _) | (_, true) = (&parts[..], has_slash) {
            checked(text.to_owned())?;
        }
        Ok(Self(parts))
    }

    /// The name for these values.
    pub fn fill(&self, values: Values<'_>) -> Result<String, TemplateError> {
        let part = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Name => values.name.to_owned(),
            Part::SpiffeIdPath => values.spiffe_id.path().trim_start_matches('/').replace('/', "-"),
            Part::TrustDomain => values.trust_domain.to_string(),
        };
        checked(self.0.iter().map(part).collect())
    }

    /// Whether it makes another name for each trust domain.
    pub fn tells_trust_domains_apart(&self) -> bool {
        self.0.contains(&Part::TrustDomain)
    }
}

fn checked(name: String) -> Result<String, TemplateError> {
    let is_wrong = name.is_empty()
        || name.len() > MAX_BYTES
        || name == "."
        || name.starts_with("..")
        || name.contains(|c: char| c == '/' || c.is_control());
    if is_wrong { Err(TemplateError::Name(name)) } else { Ok(name) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fill(template: &str, id: &str) -> Result<String, TemplateError> {
        let id = SpiffeId::parse(id).unwrap();
        let values = Values { name: "nginx", spiffe_id: &id, trust_domain: &id.trust_domain() };
        Template::parse(template)?.fill(values)
    }

    #[test]
    fn variables_are_filled_in() {
        let id = "spiffe://example.org/shop/web";
        assert_eq!(fill("tls.crt", id).unwrap(), "tls.crt");
        assert_eq!(fill("{{name}}-{{ spiffe_id_path }}.pem", id).unwrap(), "nginx-shop-web.pem");
        assert_eq!(fill("bundle.{{trust_domain}}.pem", id).unwrap(), "bundle.example.org.pem");
    }

    #[test]
    fn each_wrong_name_says_why() {
        let id = "spiffe://example.org/web";
        for (template, words) in [
            ("", "no name inside of one folder"),
            ("a/b", "no slash"),
            ("{{name}}/b", "no slash"),
            ("..", "no name inside"),
            ("..data", "two dots"),
            (".", "no name inside"),
            ("a\nb", "no name inside"),
            ("{{names}}", "{{names}} is not known: there are {{name}}"),
            ("{{name", "is not closed"),
        ] {
            let error = fill(template, id).unwrap_err().to_string();
            assert!(error.contains(words), "{error}\n(wanted: {words})");
        }
    }

    proptest! {
        #[test]
        fn a_name_never_leads_out_of_its_folder(text in "[a.{}/\\x00-\\x02]{0,12}|(\\{\\{(name|trust_domain)\\}\\}|\\.|a|/){0,6}") {
            if let Ok(name) = fill(&text, "spiffe://example.org/a/b") {
                prop_assert!(!name.is_empty() && !name.contains('/') && !name.starts_with("..") && name != ".");
            }
        }
    }
}
