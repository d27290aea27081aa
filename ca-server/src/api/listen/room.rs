//! Who may hold how many connections, and until when.
//!
//! - Who is no agent is a guest on the port: guests hold at most a quarter of the connections, one network a quarter of
//!   that, and none stays for good. So strangers shut out no agent, and one agent no other.
//! - At the port for proxies everyone is a guest, and may stay for an hour: all the room is theirs, a quarter for one network.
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
/// How long a proxy may stay: twice as long as it takes until it is told, kindly, to come again.
const STAY: Duration = Duration::from_secs(3600);

/// A place of one's own, and one of those that all share.
pub(super) type Held = (Place, Option<OwnedSemaphorePermit>);

/// The places for connections from the network.
#[derive(Clone, Debug)]
pub struct NetworkRoom {
    all: Arc<Semaphore>,
    agents: Places,
    guests: Places,
    /// How long a stranger may stay.
    visit: Duration,
}

impl NetworkRoom {
    /// At a port where agents connect.
    pub fn of_agents(connections: usize) -> Self {
        let share = connections / SHARE;
        Self::new(connections, Places::new(share, share / SHARE), VISIT)
    }

    /// At a port where proxies connect, which have no certificate, or not yet.
    pub fn of_proxies(connections: usize) -> Self {
        Self::new(connections, Places::new(connections, connections / SHARE), STAY)
    }

    fn new(connections: usize, guests: Places, visit: Duration) -> Self {
        let agents = Places::new(connections, CONNECTIONS_OF_ONE_AGENT);
        Self { all: Arc::new(Semaphore::new(connections)), agents, guests, visit }
    }

    pub(super) fn take(&self, caller: &Caller) -> Option<(Held, End)> {
        let places = if matches!(caller, Caller::Agent(_)) { &self.agents } else { &self.guests };
        let held = (places.take(caller.origin())?, Some(Arc::clone(&self.all).try_acquire_owned().ok()?));
        Some((held, self.end(caller)))
    }

    /// When a connection ends.
    fn end(&self, caller: &Caller) -> End {
        match caller {
            // A little later than its SVID: a call in between hears why it is refused.
            Caller::Workload(holder) => End::At(holder.not_after.plus(VISIT)),
            Caller::Agent(_) => End::Never,
            Caller::Stranger(_) | Caller::Local { .. } => End::After(self.visit),
        }
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
        let room = NetworkRoom::of_agents(64);
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
    fn proxies_have_all_the_room_of_their_port_and_one_network_a_quarter() {
        let room = NetworkRoom::of_proxies(64);
        let held: Vec<_> = (0..100).filter_map(|n| room.take(&stranger(n / 25))).collect();
        assert_eq!(held.len(), 64);
        assert!(held.iter().all(|(_, end)| *end == End::After(STAY)));
        drop(held);
        let of_one = (0..100).map_while(|_| room.take(&stranger(1))).collect::<Vec<_>>();
        assert_eq!(of_one.len(), 16);
    }

    #[test]
    fn one_agent_shuts_out_no_other() {
        let room = NetworkRoom::of_agents(100);
        let agent = |name| Caller::Agent(holder(&format!("chancery/agent/test/{name}")));
        let _held: Vec<_> = (0..CONNECTIONS_OF_ONE_AGENT).map(|_| room.take(&agent("a")).unwrap()).collect();
        assert!(room.take(&agent("a")).is_none());
        assert!(room.take(&agent("b")).is_some());
    }
}
