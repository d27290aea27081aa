//! The bundle of the own trust domain, as others see it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use tests::House;
use tests::house::id;
use tests::operator::entry;

#[tokio::test]
async fn each_change_of_the_own_bundle_has_a_greater_sequence_and_nothing_else_has() {
    let house = House::start(&[]).await;
    let operator = house.operator().await;
    let first = operator.bundle().await;
    let token = operator.token("").await;
    assert!(!token.is_empty());
    operator.register(entry(&id("/chancery/agent/join_token/node"), "/web")).await;
    assert_eq!(operator.bundle().await, first, "entries and tokens are not in it");

    let old = operator.active().await;
    let new = operator.prepare().await;
    let both = operator.bundle().await;
    assert!(both.sequence() > first.sequence());
    assert_eq!(both.x509_authorities().len(), first.x509_authorities().len() + 1);

    operator.activate(&new.id).await.unwrap();
    operator.taint(&old.id).await.unwrap();
    let tainted = operator.bundle().await;
    assert!(tainted.sequence() > both.sequence());
    operator.revoke(&old.id).await.unwrap();
    let last = operator.bundle().await;
    assert!(last.sequence() > tainted.sequence());
    assert_eq!(last.x509_authorities().len(), 1);
}
