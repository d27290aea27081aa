//! The port against those who only take up room: connections that say nothing, that stay, and too many of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::time::Duration;

use tests::House;
use tests::by_hand::{Caller, silent};
use tests::patience::{self, that};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// What a client of HTTP/2 begins with: the preface, and a SETTINGS frame that says nothing.
const OPENING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// How long the house keeps a connection that says no more.
async fn kept(house: &House, mut connection: TlsStream<TcpStream>) -> Duration {
    let before = house.now();
    // How it is closed, with an alert or without, does not matter.
    let reading = tokio::spawn(async move { connection.read_to_end(&mut Vec::new()).await.map(drop).ok() });
    let closed = async || that(reading.is_finished(), || "it is still open".into());
    house.eventually("the server closes the connection", closed).await;
    house.now().since(before)
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed() {
    let house = House::start(&[]).await;
    let connection = silent(&house, [127, 0, 0, 1]).await;
    let kept = kept(&house, connection).await;
    assert!((10..20).contains(&kept.as_secs()), "{kept:?}");
}

#[tokio::test]
async fn a_stranger_does_not_stay() {
    let house = House::start(&[]).await;
    let mut connection = silent(&house, [127, 0, 0, 1]).await;
    connection.write_all(OPENING).await.unwrap();
    let kept = kept(&house, connection).await;
    assert!((60..80).contains(&kept.as_secs()), "{kept:?}");
}

#[tokio::test]
async fn strangers_shut_out_no_agent_and_one_address_no_other() {
    let house = House::start(&[("limits.connections", "32")]).await;
    let agent = Caller::attest(&house).await;
    let mut held = Vec::new();
    for address in 2..6 {
        for _ in 0..2 {
            let mut connection = silent(&house, [127, 0, 0, address]).await;
            // The server speaks first: it has taken this one.
            connection.read_u8().await.unwrap();
            held.push(connection);
        }
        let mut third = silent(&house, [127, 0, 0, address]).await;
        let closed = patience::soon("it is closed", third.read_to_end(&mut Vec::new())).await;
        assert!(closed.is_err() || closed.unwrap() == 0);
    }
    let mut another = silent(&house, [127, 0, 0, 9]).await;
    let closed = patience::soon("it is closed", another.read_to_end(&mut Vec::new())).await;
    assert!(closed.is_err() || closed.unwrap() == 0);
    assert_eq!(agent.knock(&house).await, Ok(()));
    // They leave, and there is room again.
    for connection in held {
        drop(connection);
    }
    house
        .eventually("a stranger gets in again", async || {
            silent(&house, [127, 0, 0, 2]).await.read_u8().await.map_err(|error| error.to_string())
        })
        .await;
}
