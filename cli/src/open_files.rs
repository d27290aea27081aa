//! How many files a server or an agent may have open: each connection is one, or two.
//!
//! - The soft limit, which is low for the sake of old programs, is raised to the hard one.
//! - Where the hard one is too low for what the config allows, the log says so: connections would fail at random.

use ca_server::api::listen::HANDSHAKES;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What a process has open besides its connections: handshakes, which have no connection's place yet; the store, the
/// record, sockets, libraries.
const BESIDES: u64 = HANDSHAKES as u64 + 256;

/// Makes room for `connections`, of `each` open files, as the config allows them under `key`.
pub(crate) fn make_room(key: &str, connections: usize, each: u64) {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
    if let Some(warning) = shortage(getrlimit(Resource::Nofile).current, key, connections, each) {
        tracing::warn!("{warning}");
    }
}

/// What to say when `limit` (`None`: there is none) is too low.
fn shortage(limit: Option<u64>, key: &str, connections: usize, each: u64) -> Option<String> {
    let wanted = u64::try_from(connections).unwrap_or(u64::MAX).saturating_mul(each).saturating_add(BESIDES);
    let limit = limit.filter(|limit| *limit < wanted)?;
    Some(format!(
        "{key} = {connections} may take {wanted} open files, and this process may have {limit}: raise the hard limit \
         (LimitNOFILE={wanted} in the systemd unit, or ulimit -Hn), or lower {key}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_said() {
        assert_eq!(shortage(Some(2280), "limits.connections", 1000, 1), None);
        assert_eq!(shortage(None, "limits.connections", 1_000_000, 1), None);
        assert_eq!(
            shortage(Some(1024), "limits.connections", 1000, 2).unwrap(),
            "limits.connections = 1000 may take 3280 open files, and this process may have 1024: raise the hard limit \
             (LimitNOFILE=3280 in the systemd unit, or ulimit -Hn), or lower limits.connections"
        );
    }
}
