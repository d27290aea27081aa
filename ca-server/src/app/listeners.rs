//! Every address of a server, taken before anything else is done: what cannot be had ends the start.

use std::net::SocketAddr;

use tokio::net::{TcpListener, UnixListener};

use crate::api::listen::{self, ListenError};
use crate::config::Config;
use crate::web;

/// The addresses, none of them served yet.
pub(super) struct Listeners {
    pub(super) tls: TcpListener,
    pub(super) health: TcpListener,
    pub(super) health_address: SocketAddr,
    pub(super) admin: UnixListener,
    pub(super) web: web::Ports,
    pub(super) istio: Option<TcpListener>,
}

impl Listeners {
    pub(super) async fn bind(config: &Config) -> Result<Self, ListenError> {
        let mut web = web::Ports::default();
        if let Some(https_web) = &config.web.https_web {
            web.https_web = Some(listen::bind_tcp("web.https_web.listen", https_web.listen).await?);
        }
        if let Some(https_spiffe) = &config.web.https_spiffe {
            web.https_spiffe = Some(listen::bind_tcp("web.https_spiffe.listen", https_spiffe.listen).await?);
        }
        let istio = match &config.istio {
            Some(istio) => Some(listen::bind_tcp("istio.listen", istio.listen).await?),
            None => None,
        };
        let tls = listen::bind_tcp("listen", config.listen).await?;
        let health = listen::bind_tcp("health_listen", config.health_listen).await?;
        let failed = |error| super::listen_error("health_listen", config.health_listen, error);
        Ok(Self {
            web,
            istio,
            tls,
            health_address: health.local_addr().map_err(failed)?,
            health,
            admin: listen::bind_unix(config.admin_socket.as_path(), config.admin_socket_mode.bits()).await?,
        })
    }
}
