//! Config documents: TOML with units in the text (`"1h"`), and overrides from the environment. Pure: the text and
//! the variables are arguments.
//!
//! An override is the prefix and the path of the key, upper case, joined by two underscores:
//! with the prefix `CHANCERY_SERVER`, `CHANCERY_SERVER__STORE__KIND=mem` is `store.kind = "mem"`. Its value is read
//! as TOML where it is TOML (`true`, `5`, `["a"]`), and as plain text where it is not.

use std::time::Duration;

use serde::de::DeserializeOwned;

/// Why a config document is refused. The message names the key and the line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// Not TOML.
    #[error("config is not TOML: {0}")]
    Syntax(String),
    /// TOML, but a key is unknown, missing or of the wrong form.
    #[error("config is wrong: {0}")]
    Content(String),
    /// An override from the environment goes through a key that is no table.
    #[error("environment variable {0} names a key inside of one that is no table")]
    Override(String),
}

/// Parses `text`, lays the variables with `prefix` over it, and reads a `T` out of it.
pub fn parse<T: DeserializeOwned>(
    text: &str,
    prefix: &str,
    variables: impl IntoIterator<Item = (String, String)>,
) -> Result<T, SettingsError> {
    let overrides: Vec<(String, String)> = variables
        .into_iter()
        .filter(|(name, _)| name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with("__")))
        .collect();
    if overrides.is_empty() {
        // Straight from the text: the message then shows the line.
        let content = |error| SettingsError::Content(words(&error));
        return toml::from_str(text).map_err(|error| syntax_error(text).unwrap_or_else(|| content(error)));
    }
    let mut table: toml::Table = text.parse().map_err(|error| SettingsError::Syntax(words(&error)))?;
    for (name, value) in overrides {
        let path: Vec<String> =
            name[prefix.len()..].split("__").filter(|part| !part.is_empty()).map(str::to_lowercase).collect();
        lay_over(&mut table, &path, value).ok_or(SettingsError::Override(name))?;
    }
    table.try_into().map_err(|error| SettingsError::Content(words(&error)))
}

fn syntax_error(text: &str) -> Option<SettingsError> {
    text.parse::<toml::Table>().err().map(|error| SettingsError::Syntax(words(&error)))
}

fn words(error: &toml::de::Error) -> String {
    error.to_string().trim_end().to_owned()
}

fn lay_over(table: &mut toml::Table, path: &[String], value: String) -> Option<()> {
    let (last, parents) = path.split_last()?;
    let mut at = table;
    for parent in parents {
        at = at.entry(parent.clone()).or_insert_with(|| toml::Table::new().into()).as_table_mut()?;
    }
    let parsed = format!("v = {value}").parse::<toml::Table>().ok().and_then(|mut table| table.remove("v"));
    at.insert(last.clone(), parsed.unwrap_or(toml::Value::String(value)));
    Some(())
}

/// Reads and writes a [`Duration`] as text with units: `#[serde(with = "spiffe::settings::duration")]`.
pub mod duration {
    use super::{Duration, parse_duration, write_duration};
    use serde::{Deserialize as _, Deserializer, Serializer, de};

    /// Reads `"1h 30m"`.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(from)?;
        parse_duration(&text).map_err(de::Error::custom)
    }

    /// Writes `"1h 30m"`.
    pub fn serialize<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&write_duration(*duration))
    }
}

/// The same for an optional duration; give the field `#[serde(default)]` too.
pub mod optional_duration {
    use super::{Duration, duration, write_duration};
    use serde::{Deserializer, Serializer};

    /// Reads `"1h 30m"`.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        duration::deserialize(from).map(Some)
    }

    /// Writes `"1h 30m"`.
    pub fn serialize<S: Serializer>(duration: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => to.serialize_some(&write_duration(*duration)),
            None => to.serialize_none(),
        }
    }
}

/// Reads a duration with units, for example `90s`, `1h 30m`, `30d`. A bare number is refused.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{text:?} is no duration ({error}): write it like 90s, 15m, 1h or 30d"))
}

/// Writes a duration as [`parse_duration`] reads it, in days, hours, minutes and seconds: `1h 30m`, `30d`. Less than a
/// second is left out, but where there is nothing else.
pub fn write_duration(duration: Duration) -> String {
    let mut seconds = duration.as_secs();
    if seconds == 0 && !duration.is_zero() {
        return humantime::format_duration(duration).to_string();
    }
    let mut words = Vec::new();
    for (length, unit) in [(86_400, 'd'), (3_600, 'h'), (60, 'm'), (1, 's')] {
        let number = seconds / length;
        seconds %= length;
        if number > 0 {
            words.push(format!("{number}{unit}"));
        }
    }
    if words.is_empty() { "0s".into() } else { words.join(" ") }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Config {
        name: String,
        #[serde(default, with = "optional_duration")]
        ttl: Option<Duration>,
        store: Option<Store>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Store {
        kind: String,
        #[serde(default)]
        size: u32,
    }

    fn variables(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_environment_is_laid_over_the_text() {
        let over = variables(&[
            ("T__STORE__KIND", "mem"),
            ("T__STORE__SIZE", "5"),
            ("T__TTL", "90s"),
            ("TOTAL", "x"),
            ("T_X", "y"),
        ]);
        let config: Config = parse("name = 'a'\n[store]\nkind = 'sled'", "T", over).unwrap();
        let store = Some(Store { kind: "mem".into(), size: 5 });
        assert_eq!(config, Config { name: "a".into(), ttl: Some(Duration::from_secs(90)), store });
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let error = parse::<Config>("name = 'a'\nnmae = 'b'", "T", []).unwrap_err();
        assert!(error.to_string().contains("line 2") && error.to_string().contains("unknown field `nmae`"), "{error}");
        let error = parse::<Config>("name = 'a'", "T", variables(&[("T__NMAE", "b")])).unwrap_err();
        assert!(error.to_string().contains("unknown field `nmae`"), "{error}");
        let error = parse::<Config>("name = 'a'", "T", variables(&[("T__NAME__X", "b")])).unwrap_err();
        assert_eq!(error, SettingsError::Override("T__NAME__X".into()));
    }

    #[test]
    fn what_is_no_toml_is_told_from_a_wrong_value() {
        for text in ["name = 'a", "name = 'a'\nname = 'b'", "name: a"] {
            for over in [variables(&[]), variables(&[("T__TTL", "90s")])] {
                let error = parse::<Config>(text, "T", over).unwrap_err();
                assert!(matches!(error, SettingsError::Syntax(_)), "{error}");
            }
        }
        for text in ["name = 5", "nam = 'a'", "name = 'a'\nstore = 3", "name = 'a'\n[store]\nkind = 'a'\nsize = -1"] {
            let error = parse::<Config>(text, "T", []).unwrap_err();
            assert!(matches!(error, SettingsError::Content(_)), "{error}");
        }
    }

    #[test]
    fn durations_have_units() {
        let error = parse::<Config>("name = 'a'\nttl = '90'", "T", []).unwrap_err();
        assert!(error.to_string().contains("write it like 90s"), "{error}");
        assert!(matches!(error, SettingsError::Content(_)), "it is TOML: {error}");
        assert_eq!(write_duration(Duration::from_secs(5400)), "1h 30m");
        // No months: they would be of 30.44 days.
        assert_eq!(write_duration(Duration::from_secs(40 * 86_400)), "40d");
        assert_eq!(write_duration(Duration::ZERO), "0s");
    }
}
