//! What ends a command, and with which exit code. Scripts rely on these codes: they never change their meaning.

use std::fmt;

/// The exit codes, as `chancery --help` and the documentation print them.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  refused or failed (for batches: at least one item was refused)
  2  the command line is wrong
  3  no server or agent could be reached, or it cannot answer now: try again
  4  the change was made, but not every connected agent had applied it when the time of --wait was up";

/// A command's outcome.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

/// Why a command ended without having done what it was told. The text says what was wrong, where, and what to do.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It was refused, or could not be done.
    Refused(String),
    /// The command line asks for something that cannot be.
    Usage(String),
    /// Nobody answered, or whoever did cannot help now.
    Unreachable(String),
    /// The change is made, but these agents had not applied it when the time was up.
    NotApplied(String),
    /// Whoever read our output reads no more: the reader's wish, not a failure.
    OutputClosed,
}

impl Failure {
    /// The exit code of the process.
    pub(crate) fn exit(&self) -> u8 {
        match self {
            Self::OutputClosed => 0,
            Self::Refused(_) => 1,
            Self::Usage(_) => 2,
            Self::Unreachable(_) => 3,
            Self::NotApplied(_) => 4,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(text) | Self::Usage(text) | Self::Unreachable(text) | Self::NotApplied(text) => {
                f.write_str(text)
            }
            Self::OutputClosed => Ok(()),
        }
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_codes_are_the_ones_in_use() {
        let all = [
            Failure::OutputClosed,
            Failure::Refused(String::new()),
            Failure::Usage(String::new()),
            Failure::Unreachable(String::new()),
            Failure::NotApplied(String::new()),
        ];
        for (code, failure) in all.iter().enumerate() {
            assert_eq!(usize::from(failure.exit()), code);
            assert!(EXIT_CODES.contains(&format!("\n  {code}  ")));
        }
    }
}
