//! Whom a JWT-SVID is for (JWT-SVID.md section 3.2): a set, so that the order in which somebody asks makes no other token.

use std::sync::Arc;

/// The most values of one audience.
pub const MAX_AUDIENCES: usize = 32;
/// The longest value, in bytes.
pub const MAX_AUDIENCE_BYTES: usize = 512;
/// The most bytes of all values together: a token travels in a header, and many servers take none of more than 8 KiB.
pub const MAX_BYTES_IN_ALL: usize = 4096;

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
    /// All values together are longer than [`MAX_BYTES_IN_ALL`].
    #[error("the audiences have {0} bytes together: at most 4096 are allowed; ask for several tokens")]
    TooLongInAll(usize),
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
        match values.iter().map(String::len).sum() {
            0 => Err(AudienceError::None),
            1..=MAX_BYTES_IN_ALL => Ok(Self(values.into())),
            long => Err(AudienceError::TooLongInAll(long)),
        }
    }

    /// The values, sorted.
    pub fn values(&self) -> &[String] {
        &self.0
    }

    /// How many bytes the values take in JSON, as a token has them: an array of strings.
    pub fn json_bytes(&self) -> usize {
        let string = |value: &String| 2 + value.bytes().map(json_bytes).sum::<usize>();
        // A comma or a bracket behind each, and a bracket before the first.
        1 + self.0.iter().map(|value| string(value) + 1).sum::<usize>()
    }

    /// Whether `value` is one of them.
    pub fn contains(&self, value: &str) -> bool {
        self.0.binary_search_by(|known| known.as_str().cmp(value)).is_ok()
    }
}

/// How many bytes one byte of a string takes (RFC 8259 section 7).
fn json_bytes(byte: u8) -> usize {
    match byte {
        b'"' | b'\\' | 0x08 | b'\t' | b'\n' | 0x0c | b'\r' => 2,
        0..=0x1f => 6,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
        let long = |count: usize| (0..count).map(|at| format!("{at:0512}")).collect::<Vec<_>>();
        assert!(Audience::parse(&long(8)).is_ok());
        assert_eq!(Audience::parse(&long(9)), Err(AudienceError::TooLongInAll(4608)));
        // What is there twice counts once.
        assert!(parse(&[&*"a".repeat(MAX_AUDIENCE_BYTES); MAX_AUDIENCES]).is_ok());
    }

    proptest! {
        #[test]
        fn what_it_takes_in_json_is_known(values in prop::collection::vec("[\\x00-\\x7fäλ\u{1f512}]{1,40}", 1..8)) {
            let audience = Audience::parse(&values).unwrap();
            prop_assert_eq!(audience.json_bytes(), serde_json::to_string(audience.values()).unwrap().len());
        }
    }
}
