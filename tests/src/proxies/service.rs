//! The service behind a proxy. It answers each request with what the proxy says of the caller: the value of the header
//! `x-forwarded-client-cert`.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

/// Runs until the test ends.
#[derive(Debug)]
pub struct Service {
    /// Where it listens, on the loopback.
    pub port: u16,
}

impl Service {
    /// Starts it on a free port.
    ///
    /// # Panics
    /// When there is none.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("its number").port();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || serve(&stream));
            }
        });
        Self { port }
    }
}

/// One request and its answer. Who says nothing gets none.
fn serve(stream: &TcpStream) -> Option<()> {
    stream.set_read_timeout(Some(Duration::from_secs(20))).ok()?;
    let mut caller = String::from("nobody");
    for line in BufReader::new(stream).lines() {
        let line = line.ok()?;
        match line.split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("x-forwarded-client-cert") => caller = value.into(),
            None if line.is_empty() => break,
            _ => {}
        }
    }
    let length = caller.len();
    let mut stream = stream;
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{caller}").ok()
}
