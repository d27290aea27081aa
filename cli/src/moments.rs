//! Times as people say them: "in 29m", "3d ago"; and as documents have them: RFC 3339.

use std::time::Duration;

use serde::{Serialize, Serializer};
use spiffe::time::{Clock as _, System, Timestamp};

/// The present moment.
pub(crate) fn now() -> Timestamp {
    System.now()
}

/// A moment in a document of ours: RFC 3339, or null for 0, which stands for "none" on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment(pub(crate) u64);

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            0 => to.serialize_none(),
            seconds => to.collect_str(&Timestamp::from_unix(seconds)),
        }
    }
}

/// A length of time in its largest unit that leaves at least two of it: `90s`, `59m`, `47h`, `30d`.
pub(crate) fn length(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A duration from the command line that has to be longer than nothing.
pub(crate) fn parse_some_time(text: &str) -> Result<Duration, String> {
    let duration = spiffe::settings::parse_duration(text)?;
    if duration.is_zero() {
        return Err(format!("{text} is no time at all: give more than that, for example 10m"));
    }
    Ok(duration)
}

/// `in 29m`, `now`, or `2h ago`.
pub(crate) fn relative(at: Timestamp, now: Timestamp) -> String {
    match at.cmp(&now) {
        std::cmp::Ordering::Greater => format!("in {}", length(at.since(now))),
        std::cmp::Ordering::Equal => "now".into(),
        std::cmp::Ordering::Less => format!("{} ago", length(now.since(at))),
    }
}

/// `expires in 3d` or `expired 2h ago`; `never expires` for 0.
pub(crate) fn expiry(seconds: u64, now: Timestamp) -> String {
    let at = Timestamp::from_unix(seconds);
    match seconds {
        0 => "never expires".into(),
        _ if at < now => format!("expired {}", relative(at, now)),
        _ => format!("expires {}", relative(at, now)),
    }
}

/// The same for a column headed "expires": `in 3d`, `2h ago`, `never`.
pub(crate) fn expires(seconds: u64, now: Timestamp) -> String {
    if seconds == 0 { "never".into() } else { relative(Timestamp::from_unix(seconds), now) }
}

/// Reads a moment in RFC 3339, for example `2026-11-20T23:40:00Z`.
pub(crate) fn parse(text: &str) -> Result<Timestamp, String> {
    let at = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339)
        .map_err(|error| format!("{text:?} is no time ({error}): write it like 2026-11-20T23:40:00Z"))?;
    let seconds = u64::try_from(at.unix_timestamp()).map_err(|_| format!("{text:?} is before 1970"))?;
    Ok(Timestamp::from_unix(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_distances() {
        for (seconds, text) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (7_199, "119m"),
            (7_200, "2h"),
            (172_799, "47h"),
            (2_600_000, "30d"),
        ] {
            assert_eq!(length(Duration::from_secs(seconds)), text);
        }
        let now = Timestamp::from_unix(1_000_000);
        assert_eq!(relative(Timestamp::from_unix(1_001_799), now), "in 29m");
        assert_eq!(relative(now, now), "now");
        assert_eq!(expiry(1_000_000 - 7_300, now), "expired 2h ago");
        assert_eq!(expiry(1_000_000 + 3 * 86_400, now), "expires in 3d");
        assert_eq!(expiry(0, now), "never expires");
        assert_eq!(expires(0, now), "never");
    }

    #[test]
    fn moments_are_read_as_they_are_written() {
        let text = serde_json::to_string(&Moment(1_795_218_000)).unwrap();
        assert_eq!(text, "\"2026-11-20T23:40:00Z\"");
        assert_eq!(parse(text.trim_matches('"')), Ok(Timestamp::from_unix(1_795_218_000)));
        assert_eq!(serde_json::to_string(&Moment(0)).unwrap(), "null");
        assert!(parse("tomorrow").unwrap_err().contains("write it like"));
    }
}
