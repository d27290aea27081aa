//! Attestors: what is true of the process at the other end of the workload socket, or of the one that a broker names,
//! as selectors.
//!
//! - A process is pinned when it connects or is named ([`Peer`]): its facts are read only while it is provably the same one, and
//!   are thrown away when it is not any more afterwards.
//! - A selector that is missing only ever takes identities away: an attestor that fails is logged and the others
//!   still count. When all fail there is no answer, and the caller is to try again.
//! - An attestor speaks only for its own selector type, and has a time limit.
//! - Any process may have an attestor fail, as often as it likes: of each one the log has a line in a second.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use spiffe::selector::{MAX_SELECTORS, Selector, Selectors};
use spiffe::time::{Clock, Timestamp};
use tracing::{debug, warn};

pub mod k8s;
pub mod peer;
pub mod process_file;
pub mod systemd;
pub(crate) mod turns;
pub mod unix;

use k8s::Presence;
pub use peer::Peer;
use process_file::Credentials;

/// How long one attestor may take: longer than [`unix`] waits for a hash.
const LIMIT: Duration = Duration::from_secs(15);

/// Why nothing can be said of a process.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// The kernel did not name the process at the other end of the socket.
    #[error("the kernel does not say who is at the other end of the socket: {0}")]
    Credentials(#[source] std::io::Error),
    /// The process is in a pid namespace that this agent does not see.
    #[error(
        "the calling process is not visible in the agent's pid namespace: run the agent in the host's (hostPID: true)"
    )]
    Hidden,
    /// The process has ended.
    #[error("process {0} has ended")]
    Gone(u32),
    /// The process acts for another user or group than when it was pinned, as after running a setuid program.
    #[error("process {0} has changed its user or group since it connected or was named: begin anew")]
    Changed(u32),
    /// The process could not be pinned.
    #[error("process {pid} cannot be pinned: {source}")]
    Pin {
        /// Which.
        pid: u32,
        /// Why not.
        source: std::io::Error,
    },
    /// The number is that of a thread.
    #[error("{0} is no process but a thread, of a process or of the kernel: name the process itself")]
    Thread(u32),
    /// A setuid or setgid program.
    #[error(
        "process {0} acts for another user or group than started it (setuid): it is no workload of either until that ends"
    )]
    TwoUsers(u32),
    /// Something below `/proc` could not be read or understood.
    #[error("/proc/{pid}/{file} cannot be read: {reason}")]
    ProcessFile {
        /// Whose.
        pid: u32,
        /// Which file.
        file: &'static str,
        /// Why not.
        reason: String,
    },
    /// The process is in a container that is not known, or not to be believed.
    #[error(transparent)]
    Kubernetes(#[from] k8s::K8sError),
    /// It took too long.
    #[error("process {0} could not be looked at within 15 seconds")]
    TooLong(u32),
    /// A task of the agent's own ended too early.
    #[error("the attestor was interrupted: the agent is stopping")]
    Interrupted,
    /// No attestor had an answer.
    #[error("no attestor could look at process {0}: see the agent's log")]
    AllFailed(u32),
}

/// One way to find out what is true of a process.
#[async_trait]
pub trait WorkloadAttestor: Send + Sync {
    /// The type of its selectors: what stands before their first colon.
    fn kind(&self) -> &'static str;

    /// What is true of `peer`, which acts with `credentials`. Whoever calls checks afterwards that it was the same process,
    /// with the same credentials, all the time.
    async fn attest(&self, peer: &Peer, credentials: &Credentials) -> Result<Vec<Selector>, AttestError>;

    /// What has to stay there for what was `found` to stay true, beside the process itself.
    fn presence(&self, _found: &Selectors) -> Option<Presence> {
        None
    }

    /// The UID of the pod that `peer` is in, as its cgroup has it, whether anything is known of that pod or not.
    fn pod(&self, _peer: &Peer) -> Option<String> {
        None
    }
}

/// All attestors of this agent.
pub struct Attestors {
    all: Vec<(Box<dyn WorkloadAttestor>, Complaints)>,
    clock: Arc<dyn Clock>,
}

impl Attestors {
    /// These, in this order: where a process has too many selectors, those of the last are cut off.
    pub fn new(attestors: Vec<Box<dyn WorkloadAttestor>>, clock: Arc<dyn Clock>) -> Self {
        Self { all: attestors.into_iter().map(|attestor| (attestor, Complaints::default())).collect(), clock }
    }

    /// The UID of the pod that `peer` is in, as its cgroup has it.
    pub fn pod(&self, peer: &Peer) -> Option<String> {
        self.all.iter().find_map(|(attestor, _)| attestor.pod(peer))
    }

    /// Everything that is true of `peer`, which was the same process from the first look to the last.
    pub async fn attest(&self, peer: &Peer) -> Result<Selectors, AttestError> {
        let credentials = peer.credentials()?;
        let answers =
            join_all(self.all.iter().map(|(attestor, _)| limited(peer, attestor.attest(peer, &credentials)))).await;
        if peer.check()? != credentials {
            return Err(AttestError::Changed(peer.pid()));
        }
        let mut found = Vec::new();
        let mut failed = 0;
        for ((attestor, complaints), answer) in self.all.iter().zip(answers) {
            match answer {
                Ok(selectors) => found.extend(selectors.into_iter().filter(|found| found.kind() == attestor.kind())),
                Err(error) => {
                    failed += 1;
                    let (attestor, pid) = (attestor.kind(), peer.pid());
                    match complaints.next(self.clock.now()) {
                        Some(unsaid) => warn!(attestor, pid, %error, unsaid, "attestor failed"),
                        None => debug!(attestor, pid, %error, "attestor failed"),
                    }
                }
            }
        }
        if failed == self.all.len() {
            return Err(AttestError::AllFailed(peer.pid()));
        }
        if found.len() > MAX_SELECTORS {
            warn!(pid = peer.pid(), count = found.len(), "process has too many selectors: the last are left out");
            found.truncate(MAX_SELECTORS);
        }
        // Unwrap safety: the only error is having too many, and there are at most that many now.
        #[expect(clippy::expect_used, reason = "cut to the limit in the lines above")]
        Ok(Selectors::new(found).expect("at most MAX_SELECTORS"))
    }

    /// What has to stay there for what was `found` to stay true, beside the process itself.
    pub fn presence(&self, found: &Selectors) -> Option<Presence> {
        self.all.iter().find_map(|(attestor, _)| attestor.presence(found))
    }
}

/// What is said of an attestor: one thing in a second.
#[derive(Default)]
struct Complaints {
    said: AtomicU64,
    unsaid: AtomicU64,
}

impl Complaints {
    /// How many were not said since the last one that was; `None`: this one is not, either.
    fn next(&self, now: Timestamp) -> Option<u64> {
        if self.said.swap(now.unix(), Ordering::Relaxed) == now.unix() {
            self.unsaid.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(self.unsaid.swap(0, Ordering::Relaxed))
    }
}

async fn limited(
    peer: &Peer,
    attesting: impl Future<Output = Result<Vec<Selector>, AttestError>>,
) -> Result<Vec<Selector>, AttestError> {
    #[expect(clippy::disallowed_methods, reason = "a time limit on what a local process has the agent read")]
    let answer = tokio::time::timeout(LIMIT, attesting).await;
    answer.unwrap_or(Err(AttestError::TooLong(peer.pid())))
}

/// `<kind>:<name>:<value>`, or nothing where that is no selector (a control character in a path, for example).
fn selector(kind: &str, name: &str, value: impl std::fmt::Display) -> Option<Selector> {
    Selector::parse(&format!("{kind}:{name}:{value}"))
        .inspect_err(|error| debug!(kind, name, %error, "a fact is left out: it is no selector"))
        .ok()
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixStream;

    use super::*;

    struct Says(&'static str, Result<Vec<String>, ()>);

    #[async_trait]
    impl WorkloadAttestor for Says {
        fn kind(&self) -> &'static str {
            self.0
        }

        async fn attest(&self, peer: &Peer, _: &Credentials) -> Result<Vec<Selector>, AttestError> {
            let texts = self.1.as_ref().map_err(|()| AttestError::Gone(peer.pid()))?;
            Ok(texts.iter().map(|text| Selector::parse(text).unwrap()).collect())
        }
    }

    async fn found(attestors: Vec<Says>) -> Result<String, AttestError> {
        let (_ours, theirs) = UnixStream::pair().unwrap();
        let peer = Peer::of(&theirs)?;
        let attestors = attestors.into_iter().map(|says| Box::new(says) as Box<dyn WorkloadAttestor>).collect();
        Ok(Attestors::new(attestors, Arc::new(spiffe::time::System)).attest(&peer).await?.to_string())
    }

    #[tokio::test]
    async fn one_that_fails_leaves_the_others_theirs() {
        let both = vec![Says("a", Err(())), Says("b", Ok(vec!["b:x".into()]))];
        assert_eq!(found(both).await.unwrap(), "b:x");
        assert!(matches!(found(vec![Says("a", Err(()))]).await, Err(AttestError::AllFailed(_))));
    }

    #[test]
    fn whoever_has_an_attestor_fail_over_and_over_does_not_fill_the_log() {
        let complaints = Complaints::default();
        let at = |second| complaints.next(Timestamp::from_unix(second));
        assert_eq!([at(7), at(7), at(7), at(8), at(8), at(9)], [Some(0), None, None, Some(2), None, Some(1)]);
    }

    #[tokio::test]
    async fn an_attestor_speaks_only_for_its_own_type() {
        assert_eq!(found(vec![Says("a", Ok(vec!["b:x".into(), "a:y".into()]))]).await.unwrap(), "a:y");
    }

    #[tokio::test]
    async fn too_many_selectors_are_cut_off_at_the_end() {
        let many = (0..300).map(|n| format!("z:{n}")).collect();
        let all = found(vec![Says("a", Ok(vec!["a:first".into()])), Says("z", Ok(many))]).await.unwrap();
        assert!(all.starts_with("a:first, z:0") && !all.contains("z:299"), "{all}");
    }
}
