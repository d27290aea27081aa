//! The handshakes that run now.
//!
//! - One network runs so many and no more.
//! - When so many run in all that there is no turn left, the oldest gives way: it has had the longest time to say
//!   something, and whoever means it needs a fraction of a second. So strangers of many networks, who open connections
//!   and say nothing, hold up nobody.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::origin::{Origin, Place, Places};

/// How many may run in all.
pub const HANDSHAKES: usize = 1024;
/// And from one network.
const OF_ONE: usize = 256;

/// See the head of this file. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Handshakes {
    networks: Places,
    running: Arc<Mutex<Running>>,
}

#[derive(Debug, Default)]
struct Running {
    /// By age, the oldest first.
    by_number: BTreeMap<u64, CancellationToken>,
    next: u64,
}

impl Handshakes {
    pub(super) fn new() -> Self {
        Self { networks: Places::new(usize::MAX, OF_ONE), running: Arc::default() }
    }

    /// A turn for a handshake from `address`; `None`: its network has enough.
    pub(super) fn begin(&self, address: IpAddr) -> Option<Turn> {
        let place = self.networks.take(Origin::network(address))?;
        let mut running = self.running();
        if running.by_number.len() >= HANDSHAKES
            && let Some((_, oldest)) = running.by_number.pop_first()
        {
            oldest.cancel();
        }
        let (number, over) = (running.next, CancellationToken::new());
        running.next += 1;
        running.by_number.insert(number, over.clone());
        Some(Turn { handshakes: self.clone(), number, over, _place: place })
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A turn, until it is dropped.
#[must_use = "a turn that is dropped is over"]
#[derive(Debug)]
pub(super) struct Turn {
    handshakes: Handshakes,
    number: u64,
    over: CancellationToken,
    _place: Place,
}

impl Turn {
    /// Returns when it has to give way to another.
    pub(super) async fn over(&self) {
        self.over.cancelled().await;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.handshakes.running().by_number.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(network: usize) -> IpAddr {
        let [.., third, fourth] = u32::try_from(network).unwrap().to_be_bytes();
        [10, 0, third, fourth].into()
    }

    #[test]
    fn one_network_holds_up_no_other() {
        let handshakes = Handshakes::new();
        let held: Vec<Turn> = (0..OF_ONE).map(|_| handshakes.begin(address(1)).unwrap()).collect();
        assert!(handshakes.begin(address(1)).is_none());
        assert!(handshakes.begin(address(2)).is_some());
        drop(held);
        assert!(handshakes.begin(address(1)).is_some());
        assert!(handshakes.running().by_number.is_empty());
    }

    #[test]
    fn many_networks_hold_up_nobody_for_the_oldest_gives_way() {
        let handshakes = Handshakes::new();
        let mut held: Vec<Turn> = (0..HANDSHAKES).map(|network| handshakes.begin(address(network)).unwrap()).collect();
        // One that has ended counts no longer.
        drop(held.remove(7));
        let next = handshakes.begin(address(5000)).unwrap();
        assert!(held.iter().all(|turn| !turn.over.is_cancelled()));
        let another = handshakes.begin(address(5001)).unwrap();
        assert!(held[0].over.is_cancelled());
        assert!(held[1..].iter().chain([&next, &another]).all(|turn| !turn.over.is_cancelled()));
        assert_eq!(handshakes.running().by_number.len(), HANDSHAKES);
    }
}
