//! An Envoy of `docs/proxies/envoy.md` as the other side of a connection: it has its SVID and roots by SDS, lets in or calls
//! one SPIFFE ID alone, and remembers no session.

use super::{Envoy, Recipe, entry_of, program};
use crate::binary::{House, free_port};

const SOCKET: &str = "/run/chancery/workload.sock";

/// `spiffe://<trust domain>/web` behind mutual TLS, before a service.
#[derive(Debug)]
pub struct Web {
    /// The Envoy.
    pub envoy: Envoy,
    /// Where it is called.
    pub port: u16,
}

/// `spiffe://<trust domain>/front`, which calls another by mutual TLS. Each request is a handshake.
#[derive(Debug)]
pub struct Front {
    /// The Envoy.
    pub envoy: Envoy,
    /// Where it is called in plain HTTP.
    pub port: u16,
}

impl Web {
    /// Starts it: `caller` may come in, and is handed on to the service at that port. Its entry says `entry` too.
    #[track_caller]
    pub fn start(house: &House, (caller, service): (&str, u16), entry: &[&str]) -> Self {
        let (admin, port, program_name) = (free_port(), free_port(), "envoy-web");
        entry_of(house, "web", &program(house, "CHANCERY_ENVOY", program_name), entry);
        let recipe = Recipe::read("envoy", "web.yaml")
            .with(SOCKET, &house.path("agent.sock").display().to_string())
            .with("spiffe://example.org/front", caller)
            .with_port("port_value: ", 9901, admin)
            .with_port("port_value: ", 8443, port)
            .with_port("port_value: ", 8080, service);
        let mut envoy = Envoy::start(house, "web", (program_name, &recipe, admin));
        envoy.wait_until_ready();
        Self { envoy, port }
    }
}

impl Front {
    /// Starts it with an entry: it calls that port, and expects `peer` there.
    #[track_caller]
    pub fn start(house: &House, peer: &str, called: u16) -> Self {
        Self::enter(house, "front", &[]);
        Self::start_as(house, "front", (peer, called))
    }

    /// An entry for any number of them, which have the path `name` in their ID.
    #[track_caller]
    pub fn enter(house: &House, name: &str, entry: &[&str]) {
        entry_of(house, name, &program(house, "CHANCERY_ENVOY", &format!("envoy-{name}")), entry);
    }

    /// Starts one more with the entry of that name.
    #[track_caller]
    pub fn start_as(house: &House, name: &str, (peer, called): (&str, u16)) -> Self {
        let (admin, port) = (free_port(), free_port());
        let recipe = Recipe::read("envoy", "front.yaml")
            .with(SOCKET, &house.path("agent.sock").display().to_string())
            .with("spiffe://example.org/web", peer)
            .with_port("port_value: ", 9902, admin)
            .with_port("port_value: ", 8443, called)
            .with_port("port_value: ", 8081, port)
            .with("max_connection_duration: 3600s", "max_requests_per_connection: 1");
        let mut envoy = Envoy::start(house, &format!("{name}-{port}"), (&format!("envoy-{name}"), &recipe, admin));
        envoy.wait_until_ready();
        Self { envoy, port }
    }
}
