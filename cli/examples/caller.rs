//! A small client that calls the greeter every second: `caller ADDRESS SPIFFE-ID-OF-THE-GREETER`. Every call is a
//! new connection, so that each rotation on either side is seen. It stops with an error when a call fails.
#![allow(clippy::print_stdout, missing_docs, unreachable_pub, reason = "a program that shows what happens")]

mod workload;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use rustls_pki_types::ServerName;
use spiffe::id::SpiffeId;
use spiffe::mtls::{self, Peers};
use spiffe::time::{Clock as _, System};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use workload::{Identity, about};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().context("give the address of the greeter")?;
    let greeter = SpiffeId::parse(&arguments.next().context("give the SPIFFE ID of the greeter")?)?;
    let me = Identity::of_this_process().await?;
    let peers = Peers::Ids(vec![greeter]);
    let config = mtls::client_config(Some(me.svid.clone()), me.bundles.clone(), peers, Arc::new(System))?;
    let tls = TlsConnector::from(Arc::new(config));
    println!("calling {address} as {}", me.id);
    loop {
        call(&tls, &address).await.context("the greeter could not be called")?;
        System.sleep(Duration::from_secs(1)).await;
    }
}

async fn call(tls: &TlsConnector, address: &str) -> anyhow::Result<()> {
    // Peers are told apart by their SPIFFE IDs; the name plays no part.
    let name = ServerName::try_from("greeter")?;
    let mut stream = tls.connect(name, TcpStream::connect(address).await?).await?;
    let peer = mtls::peer(stream.get_ref().1.peer_certificates().unwrap_or_default())?;
    let mut greeting = String::new();
    (&mut stream).take(1024).read_to_string(&mut greeting).await?;
    println!("greeted by {}, {}: {}", peer.id(), about(&peer), greeting.trim_end());
    Ok(())
}
