//! Who may hold how many connections, and until when.
//!
//! - Who is no agent is a guest on the port: guests hold at most a quarter of the connections, one network a quarter of
//!   that, and none stays for good. So strangers shut out no agent, and one agent no other.
//! - On the admin socket each operator has places of his own. Other users of the machine are told that they are none, on
//!   a few places that they share.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::patience::End;
use crate::api::caller::Caller;
use crate::api::rights::Operators;
use crate::origin::{Origin, Place, Places};

/// What share of the connections guests may hold, and what share of those one network may.
const SHARE: usize = 4;
/// How many connections one agent may hold: it needs two, while it renews.
const CONNECTIONS_OF_ONE_AGENT: usize = 64;
/// How many connections one operator may hold on the admin socket, and all who are none.
const CONNECTIONS_OF_ONE_OPERATOR: usize = 256;
const CONNECTIONS_OF_OTHERS: usize = 16;
/// How long a stranger may stay: twice what an exchange of attestation may take.
const VISIT: Duration = Duration::from_secs(60);

/// A place of one's own, and one of those that all share.
pub(super) type Held = (Place, Option<OwnedSemaphorePermit>);

/// The places for connections from the network.
#[derive(Clone, Debug)]
pub(super) struct NetworkRoom {
    all: Arc<Semaphore>,
    agents: Places,
    guests: Places,
}

impl NetworkRoom {
    pub(super) fn new(connections: usize) -> Self {
        let share = connections / SHARE;
        Self {
            all: Arc::new(Semaphore::new(connections)),
            agents: Places::new(connections, CONNECTIONS_OF_ONE_AGENT),
            guests: Places::new(share, share / SHARE),
        }
    }

    pub(super) fn take(&self, caller: &Caller) -> Option<(Held, End)> {
        let places = if matches!(caller, Caller::Agent(_)) { &self.agents } else { &self.guests };
        let held = (places.take(caller.origin())?, Some(Arc::clone(&self.all).try_acquire_owned().ok()?));
        Some((held, end(caller)))
    }
}

/// When a connection from the network ends.
fn end(caller: &Caller) -> End {
    match caller {
        // A little later than its SVID: a call in between hears why it is refused.
        Caller::Workload(holder) => End::At(holder.not_after.plus(VISIT)),
        Caller::Agent(_) => End::Never,
        Caller::Stranger(_) | Caller::Local { .. } => End::After(VISIT),
    }
}

/// The places on the admin socket: for operators, and a few for those who are only told that they are none.
#[derive(Debug)]
pub(super) struct AdminRoom {
    operators: Operators,
    theirs: Places,
    others: Places,
}

impl AdminRoom {
    pub(super) fn new(operators: Operators) -> Self {
        let theirs = Places::new(usize::MAX, CONNECTIONS_OF_ONE_OPERATOR);
        Self { operators, theirs, others: Places::new(CONNECTIONS_OF_OTHERS, CONNECTIONS_OF_OTHERS / SHARE) }
    }

    pub(super) fn take(&self, uid: u32) -> Option<(Held, End)> {
        let is_operator = self.operators.uids.contains(&uid);
        let (places, end) = if is_operator { (&self.theirs, End::Never) } else { (&self.others, End::After(VISIT)) };
        Some(((places.take(Origin::Uid(uid))?, None), end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::caller::Holder;
    use crate::api::chain;

    fn stranger(last: u8) -> Caller {
        Caller::Stranger(([192, 0, 2, last], 7).into())
    }

    fn holder(id: &str) -> Holder {
        Holder::new(chain::tests::svid(id), ([192, 0, 2, 1], 7).into())
    }

    #[test]
    fn strangers_shut_out_no_agent_and_one_network_no_other() {
        let room = NetworkRoom::new(64);
        let mut held: Vec<_> = (0..4).map(|_| room.take(&stranger(1)).unwrap()).collect();
        assert!(room.take(&stranger(1)).is_none());
        assert!(room.take(&Caller::Workload(holder("web"))).is_none(), "an SVID of a workload is no way around it");
        held.extend((5..17).map(|last| room.take(&stranger(last)).unwrap()));
        assert!(room.take(&stranger(99)).is_none(), "a quarter of 64 are taken");
        for agent in ["a", "b"] {
            let agent = Caller::Agent(holder(&format!("chancery/agent/test/{agent}")));
            held.extend((0..24).map(|_| room.take(&agent).unwrap()));
        }
        drop(held);
        assert!(room.take(&stranger(1)).is_some());
    }

    #[test]
    fn other_users_of_the_machine_shut_out_no_operator() {
        let room = AdminRoom::new(Operators { uids: [0, 7].into() });
        let held: Vec<_> = (0..100).filter_map(|n| room.take(1000 + n / 10)).collect();
        assert_eq!(held.len(), CONNECTIONS_OF_OTHERS);
        assert!(held.iter().all(|(_, end)| *end == End::After(VISIT)));
        let of_one: Vec<_> = (0..1000).filter_map(|_| room.take(7)).collect();
        assert_eq!(of_one.len(), CONNECTIONS_OF_ONE_OPERATOR);
        assert_eq!(room.take(0).unwrap().1, End::Never);
    }

    #[test]
    fn one_agent_shuts_out_no_other() {
        let room = NetworkRoom::new(100);
        let agent = |name| Caller::Agent(holder(&format!("chancery/agent/test/{name}")));
        let _held: Vec<_> = (0..CONNECTIONS_OF_ONE_AGENT).map(|_| room.take(&agent("a")).unwrap()).collect();
        assert!(room.take(&agent("a")).is_none());
        assert!(room.take(&agent("b")).is_some());
    }
}
