//! Deliveries of the whole agent, and the same files by the socket of its Workload API.

use std::path::{Path, PathBuf};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use spiffe::jwt_svid::JwtSvid;

use super::*;
use crate::config::deliver::{Delivery, Standalone};
use crate::deliver::source::Source;
use crate::deliver::{deliver_all, deliver_once};

const FILES: &str = "[[deliver.file]]\nkind = 'chain'\nname = 'tls.crt'\n[[deliver.file]]\nkind = 'key'\nname = 'tls.key'\n\
    [[deliver.file]]\nkind = 'jwt'\nname = 'token'\naudience = 'db'\n[[deliver.file]]\nkind = 'jwks'\nname = 'keys'\n";

fn written(dir: &Path) -> String {
    format!("[[deliver]]\nname = 'nginx'\ndir = '{}'\n{FILES}", dir.display())
}

fn delivered(dir: &Path) -> Option<X509Svid> {
    let chain = CertificateDer::pem_file_iter(dir.join("tls.crt")).ok()?.collect::<Result<Vec<_>, _>>().unwrap();
    Some(X509Svid::parse(chain).unwrap())
}

fn token(dir: &Path) -> JwtSvid {
    JwtSvid::parse(&std::fs::read_to_string(dir.join("token")).unwrap()).unwrap()
}

/// An agent with a delivery, of which one entry is, and another of the user who runs this test.
async fn delivering(house: &House, place: &TempDir) -> (Agent, crate::test_house::Serving, PathBuf) {
    house.state().tokens.insert("abc".into());
    let nginx = RegistrationEntry { selectors: Selectors::parse(["deliver:nginx"]).unwrap(), ..entry("nginx") };
    house.state().entries.extend([nginx, entry("web")]);
    let (serving, dir) = (house.serve(None).await, place.path().join("files"));
    let mut config = config(house, place, &serving.address, "abc");
    config.deliveries = Standalone::parse(&written(&dir), []).unwrap().deliveries;
    (start(house, config).await.unwrap(), serving, dir)
}

#[tokio::test]
async fn a_delivery_is_a_workload_of_its_own_and_rotates() {
    let (house, place) = (House::new(NOW), TempDir::new().unwrap());
    let (agent, _serving, dir) = delivering(&house, &place).await;
    until(|| delivered(&dir).is_some()).await;
    let first = delivered(&dir).unwrap();
    assert_eq!((first.id().path(), token(&dir).id().path()), ("/nginx", "/nginx"));
    let keys: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.join("keys")).unwrap()).unwrap();
    assert_eq!(keys["keys"].as_array().unwrap().len(), 1);
    // No process has the selector of a delivery, and the delivery has none of a process.
    let svids = Workload::open(&agent).await.next().await;
    assert_eq!(svids.iter().map(|svid| svid.id().path()).collect::<Vec<_>>(), ["/web"]);

    let _ticking = tick(&house);
    let (mut last, mut tokens) = (first, vec![token(&dir).token().to_owned()]);
    while last.lifetime().not_after < NOW.plus(120 * MINUTE) {
        until(|| delivered(&dir).is_some_and(|now| now.serial() != last.serial())).await;
        let next = delivered(&dir).unwrap();
        assert!(next.lifetime().not_before < last.lifetime().not_after, "in time");
        assert!(token(&dir).expires_at() > next.lifetime().issued());
        tokens.push(token(&dir).token().to_owned());
        last = next;
    }
    tokens.dedup();
    assert!(tokens.len() > 2);
    assert!(agent.metrics().render().contains("chancery_agent_delivery_failures_total{delivery=\"nginx\"} 0\n"));
    soon(agent.shutdown()).await.unwrap();
    assert!(delivered(&dir).is_some(), "the files stay");
}

#[tokio::test]
async fn a_process_of_its_own_delivers_by_the_workload_api() {
    let (house, place) = (House::new(NOW), TempDir::new().unwrap());
    let (agent, _serving, _) = delivering(&house, &place).await;
    let dir = place.path().join("own");
    let delivery: Delivery = Standalone::parse(&written(&dir), []).unwrap().deliveries.remove(0);
    let source = |path: &Path| Source::socket(path.to_owned(), &delivery);
    let clock = Arc::new(house.clock());
    soon(deliver_once(delivery.clone(), source(agent.workload_socket()), clock.clone())).await.unwrap();
    assert_eq!((delivered(&dir).unwrap().id().path(), token(&dir).id().path()), ("/web", "/web"));
    soon(agent.shutdown()).await.unwrap();
}

#[tokio::test]
async fn a_process_of_its_own_outlives_the_agent_and_finds_it_again() {
    let (house, place) = (House::new(NOW), TempDir::new().unwrap());
    let (agent, serving, _) = delivering(&house, &place).await;
    let (dir, shutdown) = (place.path().join("own"), CancellationToken::new());
    let delivery: Delivery = Standalone::parse(&written(&dir), []).unwrap().deliveries.remove(0);
    let source = Source::socket(agent.workload_socket().to_owned(), &delivery);
    let watchers = Watchers { clock: Arc::new(house.clock()), ..Watchers::default() };
    let running = tokio::spawn(deliver_all(vec![(delivery, source)], watchers.clone(), shutdown.clone()));
    until(|| delivered(&dir).is_some()).await;
    let first = delivered(&dir).unwrap();
    soon(agent.shutdown()).await.unwrap();
    until(|| watchers.status.deliveries()[0].failure.is_some()).await;
    assert_eq!(delivered(&dir).unwrap(), first, "an outage takes nothing away");

    // Keys are in no file of the agent: whoever it serves after a start gets a new one.
    let _ticking = tick(&house);
    let agent = start(&house, config(&house, &place, &serving.address, "none is left")).await.unwrap();
    until(|| delivered(&dir).is_some_and(|now| now.serial() != first.serial())).await;
    until(|| watchers.status.deliveries()[0].failure.is_none()).await;
    shutdown.cancel();
    soon(running).await.unwrap();
    soon(agent.shutdown()).await.unwrap();
}
