//! Whom answers are for: a process, and the pod that it is in; or a pod as a whole, for a broker that names one.

use std::fmt;
use std::sync::Arc;

use super::door::Denial;
use crate::attestor::k8s::{Departure, Presence};
use crate::attestor::{AttestError, Peer};

/// As long as it is there it may have answers.
#[derive(Clone, Debug)]
pub(super) enum Subject {
    /// A process, and the pod that it is in, if any.
    Process(Arc<Peer>, Option<Presence>),
    /// A pod.
    Pod(Presence),
}

/// Its name, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Whom {
    /// By its pid.
    Process(u32),
    /// By its UID.
    Pod(String),
}

impl Subject {
    /// Its name.
    pub(super) fn whom(&self) -> Whom {
        match self {
            Self::Process(peer, _) => Whom::Process(peer.pid()),
            Self::Pod(pod) => Whom::Pod(pod.uid().to_owned()),
        }
    }

    /// Returns when it is there no longer: why it has no further answers. Cancel safe.
    pub(super) async fn ended(&self) -> Denial {
        match self {
            Self::Process(peer, None) => {
                peer.ended().await;
                AttestError::Gone(peer.pid()).into()
            }
            Self::Process(peer, Some(pod)) => tokio::select! {
                biased;
                () = peer.ended() => AttestError::Gone(peer.pid()).into(),
                why = pod.ended() => departed(pod, why),
            },
            Self::Pod(pod) => departed(pod, pod.ended().await),
        }
    }
}

fn departed(pod: &Presence, why: Departure) -> Denial {
    let uid = pod.uid().to_owned();
    match why {
        Departure::Gone => Denial::PodGone(uid),
        Departure::Changed => Denial::PodChanged(uid),
    }
}

impl Whom {
    /// The pid of a process.
    pub(super) fn pid(&self) -> Option<u32> {
        match self {
            Self::Process(pid) => Some(*pid),
            Self::Pod(_) => None,
        }
    }
}

impl fmt::Display for Whom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(pid) => write!(f, "process {pid}"),
            Self::Pod(uid) => write!(f, "pod {uid}"),
        }
    }
}
