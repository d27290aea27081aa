//! Whom a JWT-SVID is for (JWT-SVID.md section 3.2): a set, so that the order in which somebody asks makes no other token.

use std::sync::Arc;

/// The most values of one audience.
pub const MAX_AUDIENCES: usize = 32;
/// The longest value, in bytes.
pub const MAX_AUDIENCE_BYTES: usize = 512;

/// Why something is no audience.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AudienceError {
    /// There is no value.
    #[error("there is no audience: say for whom the token is")]
    None,
    /// A value is empty.
    #[error("an audience is empty: leave it out, or say for whom the token is")]
    Empty,
    /// There are more than [`MAX_AUDIENCES`].
    #[error("there are {0} audiences: at most 32 are allowed, and one is best")]
    TooMany(usize),
    /// A value is longer than [`MAX_AUDIENCE_BYTES`].
    #[error("an audience has {0} bytes: at most 512 are allowed")]
    TooLong(usize),
    /// In a token: neither a string nor an array of strings.
    #[error("it is neither a string nor an array of strings")]
    Form,
}

/// The values of an audience: at least one, none empty, sorted, each once. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Audience(Arc<[String]>);

impl Audience {
    /// Takes what somebody asks for.
    pub fn parse(values: &[String]) -> Result<Self, AudienceError> {
        if values.len() > MAX_AUDIENCES {
            return Err(AudienceError::TooMany(values.len()));
        }
        for value in values {
            match value.len() {
                0 => return Err(AudienceError::Empty),
                1..=MAX_AUDIENCE_BYTES => {}
                long => return Err(AudienceError::TooLong(long)),
            }
        }
        let mut values = values.to_vec();
        values.sort_unstable();
        values.dedup();
        if values.is_empty() { Err(AudienceError::None) } else { Ok(Self(values.into())) }
    }

    /// The values, sorted.
    pub fn values(&self) -> &[String] {
        &self.0
    }

    /// Whether `value` is one of them.
    pub fn contains(&self, value: &str) -> bool {
        self.0.binary_search_by(|known| known.as_str().cmp(value)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(values: &[&str]) -> Result<Audience, AudienceError> {
        Audience::parse(&values.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn an_audience_is_a_set() {
        let both = parse(&["reports", "billing", "reports"]).unwrap();
        assert_eq!(both.values(), ["billing", "reports"]);
        assert_eq!(Ok(&both), parse(&["billing", "reports"]).as_ref());
        assert!(both.contains("billing") && both.contains("reports") && !both.contains("report"));
    }

    #[test]
    fn each_limit_has_its_error() {
        assert_eq!(parse(&[]), Err(AudienceError::None));
        assert_eq!(parse(&["a", ""]), Err(AudienceError::Empty));
        assert_eq!(parse(&["a"; MAX_AUDIENCES + 1]), Err(AudienceError::TooMany(33)));
        assert_eq!(parse(&[&"a".repeat(MAX_AUDIENCE_BYTES + 1)]), Err(AudienceError::TooLong(513)));
        assert!(parse(&[&"a".repeat(MAX_AUDIENCE_BYTES)]).is_ok());
    }
}
