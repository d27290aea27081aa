//! Ports for programs that are told where to listen.

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};

/// Below the ports that Linux gives to connections by itself (from 32768): any of those can be a connection's before the
/// program that was told to listen there has started, and a suite opens many.
const PORTS: std::ops::Range<u16> = 16_384..32_768;

/// A TCP port that nobody has, on any address of this machine, and that no other test is given while this one runs.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn free_port() -> u16 {
    // Each process begins elsewhere: what the last one has just given back stays alone for a while.
    let first = u16::try_from(std::process::id() % 64).unwrap_or_default() * ((PORTS.end - PORTS.start) / 64);
    let (before, after) = (PORTS.start..PORTS.start + first, PORTS.start + first..PORTS.end);
    let port = after.chain(before).find(|port| claim(*port) && TcpListener::bind(("0.0.0.0", *port)).is_ok());
    port.unwrap_or_else(|| panic!("of the ports {PORTS:?} none is free"))
}

/// Whether the port is now this process's alone among tests: a name in the kernel, until the process ends.
fn claim(port: u16) -> bool {
    let name = SocketAddr::from_abstract_name(format!("chancery-test-port-{port}")).expect("a short name");
    UnixListener::bind_addr(&name).map(std::mem::forget).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_given_twice_and_none_that_is_taken() {
        let given: Vec<u16> = (0..8).map(|_| free_port()).collect();
        assert!(given.iter().all(|port| PORTS.contains(port) && !claim(*port)), "{given:?}");
        let next = given[7] + 1;
        let Ok(_taken) = TcpListener::bind(("127.0.0.1", next)) else { return };
        let more = [free_port(), free_port()];
        assert!(!more.contains(&next) && more.iter().all(|port| !given.contains(port)), "{given:?}, then {more:?}");
    }
}
