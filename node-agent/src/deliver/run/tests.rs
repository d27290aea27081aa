use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use spiffe::bundle::Bundle;
use spiffe::entry::{EntryId, RegistrationEntry};
use spiffe::time::{Fake, System};
use spiffe::x509_svid::X509Svid;
use tempfile::TempDir;

use super::*;
use crate::cache::subscription::Subscribe;
use crate::cache::{self, Cache, Mailbox, WorkloadState};
use crate::deliver::test_material::{HOUR, NOW, THREE, delivery, domain, identity};
use crate::deliver::{deliver, test_material};

/// A cache that is served by hand, a clock, and a folder.
struct Scene {
    cache: Cache,
    mailbox: Mailbox,
    clock: Fake,
    watchers: Watchers,
    place: TempDir,
}

impl Scene {
    fn new() -> Self {
        let (cache, mailbox) = cache::mailbox();
        let clock = Fake::new(NOW);
        let watchers = Watchers { clock: Arc::new(clock.clone()), ..Watchers::default() };
        Self { cache, mailbox, clock, watchers, place: TempDir::new().unwrap() }
    }

    fn dir(&self, name: &str) -> std::path::PathBuf {
        self.place.path().join(name)
    }

    /// Begins with these deliveries; their subscribers, in the order of their names.
    async fn start(&mut self, deliveries: Vec<Delivery>) -> (CancellationToken, Vec<Subscribe>) {
        let (shutdown, count) = (CancellationToken::new(), deliveries.len());
        tokio::spawn(deliver(deliveries, self.cache.clone(), self.watchers.clone(), shutdown.clone()));
        let mut subscribers = Vec::new();
        for _ in 0..count {
            subscribers.push(soon(self.mailbox.next()).await.unwrap());
        }
        subscribers.sort_by_key(|subscriber| subscriber.selectors.to_string());
        (shutdown, subscribers)
    }
}

/// A fresh identity, as the cache tells it, and its serial number.
fn state() -> (WorkloadState, Vec<u8>) {
    let identity = identity();
    let entry = RegistrationEntry {
        id: EntryId::parse("web").unwrap(),
        spiffe_id: identity.svid.id().clone(),
        parent: domain("example.org").agent_id("join_token", "node").unwrap(),
        selectors: "deliver:nginx"
            .parse()
            .map(|selector| spiffe::selector::Selectors::new([selector]).unwrap())
            .unwrap(),
        x509_ttl: None,
        jwt_ttl: None,
        wit_ttl: None,
        jti: false,
        dns_names: Vec::new(),
        hint: String::new(),
        admin: false,
        federates_with: Vec::new(),
        expires_at: None,
        key_type: None,
        created_at: NOW,
        rule: None,
    };
    let serial = identity.svid.serial().to_vec();
    let identity = cache::Identity { entry: Arc::new(entry), hint: "".into(), svid: identity.svid, key: identity.key };
    let bundle = Bundle::empty(domain("example.org"));
    (WorkloadState { identities: Arc::new([identity]), bundle, federated: Arc::default() }, serial)
}

fn nothing() -> WorkloadState {
    WorkloadState { identities: Arc::new([]), bundle: Bundle::empty(domain("example.org")), federated: Arc::default() }
}

fn serial(dir: &Path) -> Option<Vec<u8>> {
    let chain = CertificateDer::pem_file_iter(dir.join("tls.crt")).ok()?.collect::<Result<Vec<_>, _>>().unwrap();
    Some(X509Svid::parse(chain).unwrap().serial().to_vec())
}

#[expect(clippy::disallowed_methods, reason = "a test that hangs should say so")]
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("it takes too long")
}

async fn until(what: impl Fn() -> bool) {
    soon(async {
        while !what() {
            System.sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// An action that adds a line to `log`, and fails while `fails` exists.
fn logging(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "[[deliver.action]]\nkind = 'command'\ntimeout = '10m'\nargv = ['/bin/sh', '-c', 'test ! -e {dir}.fails; code=$?; echo x >> {dir}.log; exit $code']\n"
    )
}

fn lines(dir: &Path) -> usize {
    std::fs::read_to_string(format!("{}.log", dir.display())).map_or(0, |text| text.lines().count())
}

#[tokio::test]
async fn each_change_is_written_and_the_last_stays() {
    let mut scene = Scene::new();
    let dir = scene.dir("a");
    let (shutdown, subscribers) = scene.start(vec![delivery(&dir, &format!("{THREE}{}", logging(&dir)))]).await;
    assert_eq!(subscribers[0].selectors.to_string(), "deliver:nginx");
    for round in 1..4 {
        let (state, expected) = state();
        subscribers[0].states.send_replace(Some(state.clone()));
        until(|| serial(&dir).as_ref() == Some(&expected) && lines(&dir) == round).await;
        // The same once more is no change.
        subscribers[0].states.send_replace(Some(state));
    }
    let last = serial(&dir);
    subscribers[0].states.send_replace(Some(nothing()));
    System.sleep(Duration::from_millis(100)).await;
    assert_eq!((serial(&dir), lines(&dir)), (last, 3));
    shutdown.cancel();
    soon(subscribers[0].states.closed()).await;
}

#[tokio::test]
async fn a_failed_action_is_tried_again_for_the_newest() {
    let mut scene = Scene::new();
    let dir = scene.dir("a");
    let fails = format!("{}.fails", dir.display());
    std::fs::write(&fails, "").unwrap();
    let (_shutdown, subscribers) = scene.start(vec![delivery(&dir, &format!("{THREE}{}", logging(&dir)))]).await;
    subscribers[0].states.send_replace(Some(state().0));
    until(|| lines(&dir) == 1).await;
    // Something new is written at once, and its action follows at once.
    let (new, expected) = state();
    subscribers[0].states.send_replace(Some(new));
    until(|| serial(&dir).as_ref() == Some(&expected) && lines(&dir) == 2).await;
    System.sleep(Duration::from_millis(100)).await;
    assert_eq!(lines(&dir), 2, "before its time nothing is tried again");
    let passes = |lines_then| {
        let (clock, dir) = (scene.clock.clone(), dir.clone());
        until(move || {
            clock.advance(Duration::from_secs(1));
            lines(&dir) == lines_then
        })
    };
    passes(3).await;
    let report = scene.watchers.status.deliveries().remove(0);
    assert!(report.failure.is_some_and(|failure| failure.words.starts_with("action 1 (command): ")));
    std::fs::remove_file(fails).unwrap();
    passes(4).await;
    until(|| scene.watchers.status.deliveries()[0].failure.is_none()).await;
    scene.clock.advance(HOUR / 2);
    System.sleep(Duration::from_millis(100)).await;
    assert_eq!(lines(&dir), 4, "what went well is not done again");
    let report = scene.watchers.status.deliveries().remove(0);
    assert_eq!((report.name.as_str(), report.spiffe_id.as_str()), ("nginx", "spiffe://example.org/shop/web"));
    assert!(report.failure.is_none() && report.next_try.is_none() && report.succeeded_at > Some(NOW));
    let metrics = scene.watchers.metrics.render();
    assert!(metrics.contains("chancery_agent_delivery_writes_total{delivery=\"nginx\"} 2\n"), "{metrics}");
    assert!(metrics.contains("chancery_agent_delivery_failures_total{delivery=\"nginx\"} 3\n"), "{metrics}");
}

#[tokio::test]
async fn an_action_that_hangs_holds_up_no_other_delivery() {
    let mut scene = Scene::new();
    let (a, b) = (scene.dir("a"), scene.dir("b"));
    let hangs = "[[deliver.action]]\nkind = 'command'\nargv = ['/bin/sleep', '600']\n";
    let other = Delivery { name: "other".into(), ..delivery(&b, &format!("{THREE}{}", logging(&b))) };
    let (shutdown, subscribers) = scene.start(vec![delivery(&a, &format!("{THREE}{hangs}")), other]).await;
    for round in 1..4 {
        for subscriber in &subscribers {
            subscriber.states.send_replace(Some(state().0));
        }
        until(|| lines(&b) == round).await;
    }
    assert!(serial(&a).is_some());
    shutdown.cancel();
    soon(subscribers[0].states.closed()).await;
}

#[tokio::test]
async fn an_expired_certificate_is_not_written() {
    let mut scene = Scene::new();
    let dir = scene.dir("a");
    let (_shutdown, subscribers) = scene.start(vec![delivery(&dir, THREE)]).await;
    let (first, expected) = state();
    subscribers[0].states.send_replace(Some(first));
    until(|| serial(&dir).as_ref() == Some(&expected)).await;
    scene.clock.advance(2 * HOUR);
    subscribers[0].states.send_replace(Some(state().0));
    System.sleep(Duration::from_millis(200)).await;
    assert_eq!(serial(&dir), Some(expected));
}

#[test]
fn what_is_tried_again_is_made_of_the_newest() {
    let place = TempDir::new().unwrap();
    let roots = delivery(place.path(), "[[deliver.file]]\nkind = 'bundle'\nname = 'ca.crt'\n");
    let mut running = Running::new(roots, &Watchers { clock: Arc::new(Fake::new(NOW)), ..Watchers::default() });
    let (old, new) = (test_material::material(), test_material::material());
    let mut renewed = old.clone();
    (renewed.identity.svid, renewed.identity.key) = (new.identity.svid, new.identity.key);
    running.take_in(Some(Said::Material(Box::new(old))));
    let version = running.version.clone();
    running.progress.succeeded();
    running.take_in(Some(Said::Material(Box::new(renewed.clone()))));
    assert_eq!(running.version, version);
    assert_eq!(running.material.as_ref().unwrap().identity.svid, renewed.identity.svid);
    assert!(running.is_done(), "the same roots are not delivered again");
}

#[tokio::test]
async fn a_slow_token_holds_up_no_new_certificate() {
    let mut scene = Scene::new();
    let dir = scene.dir("a");
    let jwt = "[[deliver.file]]\nkind = 'jwt'\nname = 'token'\naudience = 'db'\n";
    let audience = spiffe::audience::Audience::parse(&["db".to_owned()]).unwrap();
    let held = cache::tokens::Token::new(test_material::token(&audience, NOW), NOW);
    let name = (EntryId::parse("web").unwrap(), audience);
    scene.mailbox.tokens.store(Arc::new([(name, Arc::new(held))].into_iter().collect()));
    let (_shutdown, subscribers) = scene.start(vec![delivery(&dir, &format!("{THREE}{jwt}"))]).await;
    let (first, expected) = state();
    subscribers[0].states.send_replace(Some(first));
    until(|| serial(&dir).as_ref() == Some(&expected)).await;
    // The next token is asked for, and does not come; the time stands still.
    scene.mailbox.tokens.store(Arc::default());
    scene.clock.advance(HOUR / 2);
    let _unanswered = soon(scene.mailbox.wants.recv()).await.unwrap();
    let (new, expected) = state();
    subscribers[0].states.send_replace(Some(new));
    until(|| serial(&dir).as_ref() == Some(&expected)).await;
    assert!(dir.join("token").exists());
}

#[tokio::test]
async fn once_is_over_when_all_is_done_and_fails_with_the_first_action() {
    let mut scene = Scene::new();
    let dir = scene.dir("a");
    for fails in [false, true] {
        let one = delivery(&dir, &format!("{THREE}{}", logging(&dir)));
        let source = Source::cache(scene.cache.clone(), &one);
        let once = tokio::spawn(deliver_once(one, source, Arc::new(scene.clock.clone())));
        let subscriber = soon(scene.mailbox.next()).await.unwrap();
        // Without an identity it waits.
        subscriber.states.send_replace(Some(nothing()));
        System.sleep(Duration::from_millis(50)).await;
        assert!(!once.is_finished());
        if fails {
            std::fs::write(format!("{}.fails", dir.display()), "").unwrap();
        }
        let (state, expected) = state();
        subscriber.states.send_replace(Some(state));
        let done = soon(once).await.unwrap();
        assert_eq!(serial(&dir), Some(expected));
        match done {
            Ok(()) => assert!(!fails),
            Err(error) => assert!(fails && error.to_string().starts_with("action 1 (command): /bin/sh ended with")),
        }
    }
}
