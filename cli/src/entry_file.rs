//! Files of registration entries: JSON or YAML; a list of entries, the document of `entry list`, or one entry.

use std::path::Path;

use spiffe::proto::v1;

use crate::documents::{Entries, Entry};
use crate::exit::{Failure, Outcome};
use crate::files;

/// Reads `path`, or stdin for `-`.
pub(crate) fn read(path: &Path) -> Outcome<Vec<v1::Entry>> {
    let place = if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() };
    let text = String::from_utf8(files::read(path)?)
        .map_err(|_| Failure::Refused(format!("{place} is not UTF-8 text: write entries as JSON or YAML")))?;
    parse(&text).map_err(|error| Failure::Refused(format!("{place}: {error}")))
}

/// Reads entries. Errors name the line, or the number of the entry, from 1.
pub(crate) fn parse(text: &str) -> Result<Vec<v1::Entry>, String> {
    // The shape is looked at first, so that an error speaks of the shape that was meant. JSON is read as JSON: its
    // messages are better.
    let is_json = text.trim_start().starts_with(['{', '[']);
    let entries = if is_json {
        let is_list = text.trim_start().starts_with('[');
        let is_document = || {
            let shape: Result<serde_json::Value, _> = serde_json::from_str(text);
            shape.is_ok_and(|shape| shape.get("entries").is_some())
        };
        if is_list {
            serde_json::from_str(text).map_err(|error| error.to_string())
        } else if is_document() {
            serde_json::from_str(text).map(|Entries { entries }| entries).map_err(|error| error.to_string())
        } else {
            serde_json::from_str(text).map(|entry: Entry| vec![entry]).map_err(|error| error.to_string())
        }
    } else {
        let shape: serde_norway::Value = serde_norway::from_str(text).map_err(|error| error.to_string())?;
        if shape.is_sequence() {
            serde_norway::from_str(text).map_err(|error| error.to_string())
        } else if shape.get("entries").is_some() {
            serde_norway::from_str(text).map(|Entries { entries }| entries).map_err(|error| error.to_string())
        } else if shape.is_mapping() {
            serde_norway::from_str(text).map(|entry: Entry| vec![entry]).map_err(|error| error.to_string())
        } else {
            Err("there is no entry: write a list of entries, each with spiffe_id, parent and selectors".into())
        }
    }?;
    let wire =
        |(at, entry): (usize, Entry)| v1::Entry::try_from(entry).map_err(|error| format!("entry {}: {error}", at + 1));
    entries.into_iter().enumerate().map(wire).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const YAML: &str = "
- spiffe_id: spiffe://example.org/web
  parent: spiffe://example.org/chancery/agent/x509pop/1
  selectors: [\"unix:uid:1000\"]
  x509_ttl: 10m
- spiffe_id: spiffe://example.org/db
  selectors:
    - unix:user:postgres
";

    #[test]
    fn yaml_and_json_in_each_shape() {
        let listed = parse(YAML).unwrap();
        assert_eq!(listed.len(), 2);
        assert_eq!(listed[0].x509_ttl, 600);
        assert_eq!(parse(&format!("entries:{}", YAML.replace('\n', "\n  "))).unwrap(), listed);
        assert_eq!(parse("spiffe_id: spiffe://a/b\nselectors: ['x:y']").unwrap().len(), 1);
        let json = r#"{"spiffe_id": "spiffe://a/b", "selectors": ["x:y"]}"#;
        assert_eq!(parse(json).unwrap().len(), 1);
        assert_eq!(parse(&format!("[{json},{json}]")).unwrap().len(), 2);
        assert_eq!(parse(&format!("{{\"entries\":[{json}]}}")).unwrap().len(), 1);
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        let unknown = parse(&YAML.replace("x509_ttl", "x509_tll")).unwrap_err();
        assert!(unknown.contains("x509_tll") && unknown.contains("line 5"), "{unknown}");
        let ttl = parse(&YAML.replace("10m", "ten")).unwrap_err();
        assert!(ttl.starts_with("entry 1: x509_ttl: "), "{ttl}");
        assert!(parse("").unwrap_err().contains("there is no entry"));
        assert!(parse("[{\"spiffe_id\": 1}]").unwrap_err().contains("line 1"));
    }
}
