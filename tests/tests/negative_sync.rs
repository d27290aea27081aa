//! The Sync stream against an agent that opens many and reads none.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::time::Duration;

use spiffe::proto::v1;
use tests::House;
use tests::by_hand::{Caller, Syncing};
use tests::operator::entry;
use tests::patience::{self, that};
use tonic::Code;

/// A house and an agent of so many entries that it cannot be told of them without reading.
async fn with_much_to_tell() -> (House, Caller) {
    let house = House::start(&[]).await;
    let agent = Caller::attest(&house).await;
    let mut operator = house.operator().await;
    for batch in 0..8 {
        let large = |n: u32| v1::Entry {
            selectors: vec![format!("unix:path:/{}", "x".repeat(4000))],
            hint: "x".repeat(1000),
            ..entry(agent.id(), &format!("/web/{batch}/{n}"))
        };
        let entries = (0..500).map(large).collect();
        let results = operator
            .door
            .create_entries(v1::CreateEntriesRequest { entries, ..Default::default() })
            .await
            .unwrap()
            .into_inner();
        assert!(results.revision > 0);
    }
    (house, agent)
}

/// Opens a stream and reads nothing.
async fn stuck(house: &House, agent: &Caller) -> Syncing {
    agent.sync(house).await.unwrap()
}

async fn is_let_go(house: &House) {
    let connected = &house.server().doors().connected;
    patience::eventually("the stream ends", async || {
        that(connected.count() == 0, || "the agent still counts as connected".into())
    })
    .await;
}

#[tokio::test]
async fn an_agent_that_reads_nothing_is_let_go_when_it_is_banned_and_when_its_svid_ends() {
    let (house, agent) = with_much_to_tell().await;
    let stream = stuck(&house, &agent).await;
    house.operator().await.door.ban_agent(v1::BanAgentRequest { id: agent.id().to_string() }).await.unwrap();
    is_let_go(&house).await;
    drop(stream);

    let (house, agent) = with_much_to_tell().await;
    let _stream = stuck(&house, &agent).await;
    house.clock.set(agent.svid.lifetime().not_after.plus(Duration::from_secs(1)));
    is_let_go(&house).await;
}

#[tokio::test]
async fn an_agent_that_opens_many_streams_and_reads_none_gets_no_more_of_them() {
    let (house, agent) = with_much_to_tell().await;
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(stuck(&house, &agent).await);
    }
    let refused = agent.sync(&house).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let expected =
        "this agent has too many Sync streams that it does not read: it has to close them: try again in 1000 ms";
    assert_eq!(refused.message(), expected);
    // All but the last have ended, and nothing more is kept for them than what is on its way.
    let told = &mut streams[0].incoming;
    let mut messages = 0;
    let why = patience::soon("it is told why", async {
        loop {
            match told.message().await {
                Ok(Some(_)) => messages += 1,
                Ok(None) => panic!("it was not told"),
                Err(why) => return why,
            }
        }
    })
    .await;
    assert_eq!((why.code(), why.message()), (Code::Aborted, "this agent has opened another Sync stream"));
    assert!(messages <= 3, "{messages} of eight messages were kept");
    // Whoever closes them has room again.
    drop(streams);
    house
        .eventually("another stream is taken", async || {
            agent.sync(&house).await.map(drop).map_err(|status| status.to_string())
        })
        .await;
}

#[tokio::test]
async fn an_agent_that_reads_late_is_told_what_was_committed_meanwhile() {
    let (house, agent) = with_much_to_tell().await;
    let mut stream = stuck(&house, &agent).await;
    let operator = house.operator().await;
    let (late, _) = operator.register(entry(agent.id(), "/late")).await;
    let gone = operator.register(entry(agent.id(), "/gone")).await.0;
    let revision = operator.delete(&gone.id).await;
    let (mut entries, mut told) = (0, 0);
    patience::soon("everything is told", async {
        while told < revision {
            let message = stream.incoming.message().await.unwrap().unwrap();
            assert!(message.entries.iter().all(|entry| entry.id != gone.id));
            entries += message.entries.len();
            told = if message.more { told } else { message.revision };
            if message.entries.iter().any(|entry| entry.id == late.id) {
                assert_eq!(message.revision, revision);
            }
        }
    })
    .await;
    assert_eq!(entries, 4001);
}
