//! Who listens at a port of this machine: whoever does is given a private key over plain http.
//!
//! - *whose it is*: the listening socket belongs to root, to us, or to the user that the config names. Every user may listen
//!   at a port above 1023 while Kong does not.
//! - *the one that is reached*: a socket of that very address goes before one of all addresses, as in the kernel.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use super::{ActionError, aside, failed};
use crate::config::deliver::kong::KongAdmin;
use crate::deliver::owner;

/// More than the kernel writes into a line.
const MAX_LINE_BYTES: u64 = 1024;

/// Whether what listens there may be given a key.
pub(super) async fn check(admin: &KongAdmin, host: &str, port: u16) -> Result<(), ActionError> {
    let (url, user) = (admin.url.to_string(), admin.user.clone());
    // The config takes no name without TLS.
    let address = host.parse().map_err(|_| ActionError::NoListener(url.clone()))?;
    aside(move || {
        let mut allowed = vec![0, nix::unistd::geteuid().as_raw()];
        if let Some(name) = &user {
            let wrong = |why: owner::OwnerError| ActionError::Unreachable { url: url.clone(), why: why.to_string() };
            allowed.push(owner::user(name).map_err(wrong)?);
        }
        let users = reached(&all()?, SocketAddr::new(address, port));
        match users.iter().find(|user| !allowed.contains(user)) {
            _ if users.is_empty() => Err(ActionError::NoListener(url)),
            Some(&user) => Err(ActionError::Listener { url, user }),
            None => Ok(()),
        }
    })
    .await
}

/// A socket that listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Listening {
    at: SocketAddr,
    user: u32,
}

/// All of this machine, as far as we see it.
fn all() -> Result<Vec<Listening>, ActionError> {
    let mut all = Vec::new();
    for path in ["/proc/self/net/tcp", "/proc/self/net/tcp6"].map(Path::new) {
        let file = match File::open(path) {
            // A kernel without IPv6.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            opened => opened.map_err(|error| failed("read", path, error))?,
        };
        let mut lines = BufReader::new(file);
        loop {
            let mut line = Vec::new();
            let read = (&mut lines).take(MAX_LINE_BYTES).read_until(b'\n', &mut line);
            if read.map_err(|error| failed("read", path, error))? == 0 {
                break;
            }
            all.extend(parse(&String::from_utf8_lossy(&line)));
        }
    }
    Ok(all)
}

/// A line of `/proc/net/tcp` or `tcp6` (proc(5)); `None` for any that tells of no listening socket.
fn parse(line: &str) -> Option<Listening> {
    const LISTEN: &str = "0A";
    let mut words = line.split_ascii_whitespace().skip(1);
    let (local, state) = (words.next()?, words.nth(1)?);
    // Queues, timers and retransmissions stand before the user.
    let user = words.nth(3)?.parse().ok()?;
    let (address, port) = local.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    (state == LISTEN).then_some(Listening { at: SocketAddr::new(parse_address(address)?, port), user })
}

/// Words of 32 bits, each in the byte order of this machine.
fn parse_address(hex: &str) -> Option<IpAddr> {
    let word = |from: usize| Some(u32::from_str_radix(hex.get(from..from + 8)?, 16).ok()?.to_ne_bytes());
    match hex.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?];
            let bytes: [u8; 16] = words.concat().try_into().ok()?;
            Some(Ipv6Addr::from(bytes).to_canonical())
        }
        _ => None,
    }
}

/// The users of the sockets of which one is reached at `at`. Pure.
fn reached(all: &[Listening], at: SocketAddr) -> Vec<u32> {
    let of = |address: IpAddr| -> Vec<u32> {
        all.iter().filter(|one| one.at == SocketAddr::new(address, at.port())).map(|one| one.user).collect()
    };
    let wildcards: &[IpAddr] = match at.ip() {
        IpAddr::V4(_) => &[IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)],
        IpAddr::V6(_) => &[IpAddr::V6(Ipv6Addr::UNSPECIFIED)],
    };
    let places = std::iter::once(at.ip()).chain(wildcards.iter().copied());
    places.map(of).find(|users| !users.is_empty()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As the kernel writes it.
    fn line(at: SocketAddr, state: u8, user: u32) -> String {
        let hex = |bytes: &[u8]| -> String {
            let words = bytes.chunks(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap()));
            words.map(|word| format!("{word:08X}")).collect()
        };
        let address = match at.ip() {
            IpAddr::V4(ip) => hex(&ip.octets()),
            IpAddr::V6(ip) => hex(&ip.octets()),
        };
        let rest = "00000000:00000000 00:00000000 00000000";
        format!("   0: {address}:{:04X} 00000000:0000 {state:02X} {rest} {user:>5}        0 28153 1 0 100 0", at.port())
    }

    #[test]
    fn the_line_of_a_listening_socket_is_read() {
        let header = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode";
        assert_eq!(parse(header), None);
        let at = "127.0.0.1:8001".parse().unwrap();
        assert_eq!(parse(&line(at, 10, 990)), Some(Listening { at, user: 990 }));
        assert_eq!(parse(&line(at, 1, 990)), None, "it is a connection");
        if cfg!(target_endian = "little") {
            let real =
                "   1: 0100007F:1F41 00000000:0000 0A 00000000:00000000 00:00000000 00000000   105        0 20 1";
            assert_eq!(parse(real), Some(Listening { at, user: 105 }));
        }
    }

    #[test]
    fn what_is_reached_is_what_the_kernel_chooses() {
        let all: Vec<_> = [("127.0.0.1:80", 1), ("0.0.0.0:80", 2), ("[::]:80", 3), ("[::]:81", 4), ("127.0.0.1:82", 5)]
            .map(|(at, user)| Listening { at: at.parse().unwrap(), user })
            .into();
        for (at, users) in [
            ("127.0.0.1:80", vec![1]),
            ("127.0.0.2:80", vec![2]),
            ("[::1]:80", vec![3]),
            ("127.0.0.1:81", vec![4]),
            ("[::1]:82", vec![]),
        ] {
            assert_eq!(reached(&all, at.parse().unwrap()), users, "{at}");
        }
    }

    #[test]
    fn a_socket_of_our_own_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = nix::unistd::geteuid().as_raw();
        assert_eq!(reached(&all().unwrap(), listener.local_addr().unwrap()), [ours]);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(at: SocketAddr, user: u32) {
            let canonical = SocketAddr::new(at.ip().to_canonical(), at.port());
            prop_assert_eq!(parse(&line(at, 10, user)), Some(Listening { at: canonical, user }));
        }

        #[test]
        fn nothing_breaks_it(line in ".{0,200}", hex in "[0-9A-Fa-fé:]{0,40}") {
            let _ = (parse(&line), parse(&format!("0: {hex}:1F41 0:0 0A a b c 7")), parse_address(&hex));
        }
    }
}
