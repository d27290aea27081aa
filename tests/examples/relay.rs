//! A process of a container, for tests: `relay NEAR FAR` takes connections on the unix socket NEAR, and for each of them has one of its
//! own to the unix socket FAR, through which everything goes both ways. Who is at FAR sees this process.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

fn main() -> io::Result<()> {
    let mut words = std::env::args().skip(1);
    let (Some(near), Some(far)) = (words.next(), words.next()) else {
        return Err(io::Error::other("use: relay NEAR FAR"));
    };
    let listener = UnixListener::bind(near)?;
    for near in listener.incoming() {
        let (near, far) = (near?, UnixStream::connect(&far)?);
        carry(near.try_clone()?, far.try_clone()?);
        carry(far, near);
    }
    Ok(())
}

/// Carries one way, in a thread of its own, until there is nothing more.
fn carry(from: UnixStream, to: UnixStream) {
    thread::spawn(move || {
        let _ = io::copy(&mut &from, &mut &to);
        let _ = to.shutdown(Shutdown::Write);
    });
}
