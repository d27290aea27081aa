//! A small service that greets whoever shows an SVID of its own trust domain: `greeter [ADDRESS]`, an address of
//! 127.0.0.1 where none is given. It reads no file and handles no key; see `workload/mod.rs`.
#![allow(clippy::print_stdout, missing_docs, unreachable_pub, reason = "a program that shows what happens")]

mod workload;

use std::sync::Arc;

use anyhow::Context as _;
use spiffe::mtls::{self, Peers};
use spiffe::time::System;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use workload::{Identity, about};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:0".into());
    let me = Identity::of_this_process().await?;
    let peers = Peers::TrustDomains(vec![me.id.trust_domain()]);
    let config = mtls::server_config(me.svid.clone(), me.bundles.clone(), peers, true, Arc::new(System))?;
    let tls = TlsAcceptor::from(Arc::new(config));

    let listener = TcpListener::bind(&address).await.with_context(|| format!("cannot listen on {address}"))?;
    println!("listening on {}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        let tls = tls.clone();
        tokio::spawn(async move {
            if let Err(error) = greet(&tls, stream).await {
                println!("a caller was not greeted: {error:#}");
            }
        });
    }
}

async fn greet(tls: &TlsAcceptor, stream: TcpStream) -> anyhow::Result<()> {
    let mut stream = tls.accept(stream).await?;
    let peer = mtls::peer(stream.get_ref().1.peer_certificates().unwrap_or_default())?;
    println!("called by {}, {}", peer.id(), about(&peer));
    stream.write_all(format!("hello, {}\n", peer.id()).as_bytes()).await?;
    stream.shutdown().await?;
    Ok(())
}
