//! Which addresses an endpoint may have. A URL is an operator's word, but where its name leads is the word of whoever
//! owns the name, and where a redirect leads that of whoever runs the endpoint: neither may turn this server into a way
//! into the networks behind it.
//!
//! - Only public unicast addresses; others where the config allows their network. Where clouds answer their machines
//!   without asking who they are (169.254.169.254 and the like) is not public, nor is Azure's, which looks it.
//! - An IPv6 address that stands for an IPv4 address is judged by that one, or refused.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::config::Network;

/// Why an address is no place for an endpoint: the word for its kind, or nothing.
pub(super) fn objection(address: IpAddr, allowed: &[Network]) -> Option<&'static str> {
    if allowed.iter().any(|network| network.contains(address)) {
        return None;
    }
    match address {
        IpAddr::V4(address) => objection_to_v4(address),
        IpAddr::V6(address) => objection_to_v6(address),
    }
}

/// By the IANA IPv4 Special-Purpose Address Registry.
fn objection_to_v4(address: Ipv4Addr) -> Option<&'static str> {
    let is = match address.octets() {
        [0, ..] => "unspecified",
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => "private",
        [100, 64..=127, ..] => "carrier-grade NAT",
        [127, ..] => "loopback",
        [168, 63, 129, 16] => "cloud platform",
        [169, 254, ..] => "link-local",
        [192, 0, 0, _] | [192, 88, 99, _] => "protocol",
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => "documentation",
        [198, 18..=19, ..] => "benchmarking",
        [224..=239, ..] => "multicast",
        [240..=255, ..] => "reserved",
        _ => return None,
    };
    Some(is)
}

/// By the IANA IPv6 Special-Purpose Address Registry; outside of 2000::/3 nothing is public.
fn objection_to_v6(address: Ipv6Addr) -> Option<&'static str> {
    let is = match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => "unspecified",
        [0, 0, 0, 0, 0, 0, 0, 1] => "loopback",
        [0, 0, 0, 0, 0, 0xffff, _, _] => "IPv4-mapped",
        // NAT64 (RFC 6052): the last four octets are the IPv4 address that it leads to.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            return objection_to_v4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
        }
        [0xfc00..=0xfdff, ..] => "private",
        [0xfe80..=0xfebf, ..] => "link-local",
        [0xff00..=0xffff, ..] => "multicast",
        [0x2001, 0..=0x1ff, ..] => "protocol",
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => "documentation",
        [0x2002, ..] => "6to4",
        [0x2000..=0x3fff, ..] => return None,
        _ => "reserved",
    };
    Some(is)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(address: &str) -> Option<&'static str> {
        objection(address.parse().unwrap(), &[])
    }

    #[test]
    fn public_addresses_are_let_through() {
        for address in ["1.1.1.1", "100.63.0.1", "172.32.0.1", "192.0.1.1", "2606:4700::1", "64:ff9b::101:101"] {
            assert_eq!(kind(address), None, "{address}");
        }
    }

    #[test]
    fn others_are_refused_by_their_kind() {
        for (address, is) in [
            ("0.0.0.0", "unspecified"),
            ("10.1.2.3", "private"),
            ("172.16.0.1", "private"),
            ("192.168.0.1", "private"),
            ("100.64.0.1", "carrier-grade NAT"),
            ("127.0.0.1", "loopback"),
            ("127.255.0.1", "loopback"),
            ("169.254.169.254", "link-local"),
            ("224.0.0.1", "multicast"),
            ("255.255.255.255", "reserved"),
            ("::", "unspecified"),
            ("::1", "loopback"),
            ("::ffff:127.0.0.1", "IPv4-mapped"),
            ("::ffff:8.8.8.8", "IPv4-mapped"),
            ("::7f00:1", "reserved"),
            ("64:ff9b::7f00:1", "loopback"),
            ("64:ff9b:1::1", "reserved"),
            ("fd00::1", "private"),
            ("fe80::1", "link-local"),
            ("ff02::1", "multicast"),
            ("2001::1", "protocol"),
            ("2001:db8::1", "documentation"),
            ("2002:7f00:1::", "6to4"),
        ] {
            assert_eq!(kind(address), Some(is), "{address}");
        }
    }

    #[test]
    fn what_clouds_tell_their_machines_is_out_of_reach() {
        for (address, of) in [
            ("169.254.169.254", "AWS, Azure, Google and most others"),
            ("169.254.170.2", "AWS containers"),
            ("168.63.129.16", "Azure"),
            ("100.100.100.200", "Alibaba"),
            ("192.0.0.192", "Oracle"),
            ("fd00:ec2::254", "AWS"),
            ("fd20:ce::254", "Google"),
            ("64:ff9b::a83f:8110", "Azure by NAT64"),
            ("64:ff9b::a9fe:a9fe", "all by NAT64"),
            ("2002:a9fe:a9fe::", "all by 6to4"),
        ] {
            assert!(kind(address).is_some(), "{address}, of {of}");
        }
    }

    #[test]
    fn the_config_allows_a_network() {
        let allowed = [Network::try_from("127.0.0.0/8".to_owned()).unwrap()];
        assert_eq!(objection("127.0.0.1".parse().unwrap(), &allowed), None);
        assert_eq!(objection("::1".parse().unwrap(), &allowed), Some("loopback"));
        assert_eq!(objection("::ffff:127.0.0.1".parse().unwrap(), &allowed), Some("IPv4-mapped"));
    }
}
