//! A yes that is remembered for a few seconds, so that whoever shows one token often costs an API server one question.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use spiffe::crypto::sha256;
use spiffe::time::{Clock, Timestamp};

use super::{ReviewError, ServiceAccount, TokenReviewer, claims};
use crate::kube::client::{Cluster, Reviewed};

/// How long a yes is remembered: shorter than an API server itself goes on saying yes after a pod is gone, which takes
/// reviews from a cache of its own (seven to ten seconds).
const REMEMBERED: Duration = Duration::from_secs(5);

/// The most answers that are remembered: one for each of 10,000 clients that ask within those seconds.
const MOST: usize = 10_000;

/// Asks another reviewer, and remembers what it says yes to.
///
/// - **Only a yes**, for `REMEMBERED` at most, and never past the token's own `exp`: a token whose end cannot be read
///   is not remembered. A no is asked again each time, so nobody is kept out by an answer that is out of date.
/// - **Once at a time**: who shows a token that is being asked about waits for that answer, a no as well. It is as old as
///   the question, which has a time limit. One who asked and went away takes the answer from nobody.
/// - **What it allows**: a token whose pod or service account has just been deleted counts for `REMEMBERED` longer
///   than the API server lets it, which itself goes on saying yes for seven to ten seconds. What is issued for a token
///   outlives both many times: who had the token a moment earlier got the same. Nothing else about a caller is remembered: where his pod
///   runs is looked up in what the watches say now.
/// - **By the hash** of token and audience: the token itself is not kept, and a yes for one audience is none for another.
/// - **Bounded**: when it is full and nothing in it has ended, a yes is not remembered. Questions are as many as callers.
#[derive(Debug)]
pub struct Remembering {
    cluster: Arc<Cluster>,
    memory: Memory,
}

impl Remembering {
    /// Remembers what `ask`, the reviewer of `cluster`, says yes to.
    pub fn new(cluster: Arc<Cluster>, ask: Arc<dyn TokenReviewer>, clock: Arc<dyn Clock>) -> Self {
        Self { cluster, memory: Memory { ask, clock, known: Arc::default() } }
    }
}

#[async_trait]
impl TokenReviewer for Remembering {
    fn cluster(&self) -> &str {
        self.cluster.name()
    }

    async fn review(&self, token: &str, audience: &str) -> Result<ServiceAccount, ReviewError> {
        let (answer, is_own) = self.memory.review(token, audience).await;
        if !is_own && answer.is_ok() {
            self.cluster.reviews().count(Reviewed::Remembered);
        }
        answer
    }
}

type Answer = Result<ServiceAccount, ReviewError>;

/// What is asked about now, for everybody who waits for it.
type Question = Shared<BoxFuture<'static, Answer>>;

#[derive(Debug)]
struct Memory {
    ask: Arc<dyn TokenReviewer>,
    clock: Arc<dyn Clock>,
    known: Arc<Mutex<Known>>,
}

impl Memory {
    /// The answer, and whether it was asked for this caller.
    async fn review(&self, token: &str, audience: &str) -> (Answer, bool) {
        let key = key(token, audience);
        let (question, is_own) = {
            let mut known = lock(&self.known);
            if let Some(account) = known.find(&key, self.clock.now()) {
                return (Ok(account), false);
            }
            match known.asked.get(&key).and_then(WeakShared::upgrade) {
                Some(question) => (question, false),
                None => (known.begin(key, self.question(key, token, audience)), true),
            }
        };
        (question.await, is_own)
    }

    fn question(&self, key: Key, token: &str, audience: &str) -> Question {
        let (ask, clock, known) = (Arc::clone(&self.ask), Arc::clone(&self.clock), Arc::clone(&self.known));
        let (token, audience) = (token.to_owned(), audience.to_owned());
        let work = async move {
            // From when it was asked: an answer that took its time is that much older.
            let asked_at = clock.now();
            let account = ask.review(&token, &audience).await?;
            if let Some(until) = until(&token, asked_at) {
                lock(&known).put(key, until, account.clone(), clock.now());
            }
            Ok(account)
        };
        work.boxed().shared()
    }
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

type Key = [u8; 32];

/// No two pairs have one key: the audience's length is in it, and both ends are where they are.
fn key(token: &str, audience: &str) -> Key {
    let length = (audience.len() as u64).to_be_bytes();
    sha256(&[&length, audience.as_bytes(), token.as_bytes()].concat())
}

/// Until when a yes that was asked for at `now` may be remembered.
fn until(token: &str, now: Timestamp) -> Option<Timestamp> {
    Some(now.plus(REMEMBERED).min(claims::end(token)?))
}

#[derive(Debug, Default)]
struct Known {
    answers: HashMap<Key, (Timestamp, ServiceAccount)>,
    /// Questions that somebody waits for.
    asked: HashMap<Key, WeakShared<BoxFuture<'static, Answer>>>,
}

impl Known {
    /// Notes a question that has just been made, and forgets those that nobody waits for any more.
    fn begin(&mut self, key: Key, question: Question) -> Question {
        self.asked.retain(|_, question| question.upgrade().is_some());
        self.asked.extend(question.downgrade().map(|weak| (key, weak)));
        question
    }

    fn find(&self, key: &Key, now: Timestamp) -> Option<ServiceAccount> {
        // A clock that was put back must not make an answer live longer.
        let counts = |until: Timestamp| now < until && until.since(now) <= REMEMBERED;
        self.answers.get(key).filter(|(until, _)| counts(*until)).map(|(_, account)| account.clone())
    }

    fn put(&mut self, key: Key, until: Timestamp, account: ServiceAccount, now: Timestamp) {
        if self.answers.len() >= MOST {
            self.answers.retain(|_, (until, _)| now < *until);
        }
        if self.answers.len() < MOST && now < until {
            self.answers.insert(key, (until, account));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
    use spiffe::time::Fake;
    use tokio::sync::Semaphore;

    use super::*;

    const NOW: Timestamp = Timestamp::from_unix(1_795_218_000);

    fn token(claims: &str) -> String {
        format!("e30.{}.c2ln", BASE64.encode(claims))
    }

    fn account(name: &str) -> ServiceAccount {
        let text = |text: &str| text.to_owned();
        ServiceAccount { namespace: text("a"), name: text(name), uid: text("u"), pod: None, node: None }
    }

    fn after(seconds: u64) -> Timestamp {
        NOW.plus(Duration::from_secs(seconds))
    }

    #[test]
    fn a_yes_counts_for_a_few_seconds_and_never_past_the_tokens_end() {
        assert_eq!(until(&token(r#"{"exp":1795219000}"#), NOW), Some(after(5)));
        assert_eq!(until(&token(r#"{"exp":1795218002}"#), NOW), Some(after(2)));
        for unreadable in [token("{}"), token(r#"{"exp":"x"}"#), token("x"), "a.b.c".into(), "a".into()] {
            assert_eq!(until(&unreadable, NOW), None, "{unreadable}");
        }
        let mut known = Known::default();
        known.put(key("t", "a"), after(5), account("x"), NOW);
        assert_eq!(known.find(&key("t", "a"), after(4)), Some(account("x")));
        assert_eq!(known.find(&key("t", "a"), after(5)), None);
        assert_eq!(known.find(&key("t", "a"), NOW.minus(REMEMBERED)), None, "a clock that was put back");
        assert_eq!(known.find(&key("t", "b"), NOW), None, "another audience");
    }

    #[test]
    fn it_is_bounded_and_what_has_ended_makes_room() {
        let mut known = Known::default();
        for number in 0..MOST + 5 {
            known.put(key(&number.to_string(), "a"), after(5), account("x"), NOW);
        }
        assert_eq!(known.answers.len(), MOST);
        known.put(key("late", "a"), after(10), account("y"), after(5));
        assert_eq!((known.answers.len(), known.find(&key("late", "a"), after(6))), (1, Some(account("y"))));
        assert_ne!(key("b", "a"), key("", "ab"), "no two pairs have one key");
    }

    /// Answers when it is let; says yes to tokens that begin with `e`.
    #[derive(Debug)]
    struct Slow {
        asked: AtomicUsize,
        let_go: Semaphore,
    }

    #[async_trait]
    impl TokenReviewer for Slow {
        fn cluster(&self) -> &str {
            "main"
        }

        async fn review(&self, token: &str, _: &str) -> Answer {
            self.asked.fetch_add(1, Ordering::Relaxed);
            self.let_go.acquire().await.unwrap().forget();
            if token.starts_with('e') { Ok(account("x")) } else { Err(ReviewError::Refused("no".into())) }
        }
    }

    fn slow() -> (Arc<Slow>, Memory) {
        let slow = Arc::new(Slow { asked: AtomicUsize::new(0), let_go: Semaphore::new(0) });
        let clock: Arc<dyn Clock> = Arc::new(Fake::new(NOW));
        (Arc::clone(&slow), Memory { ask: slow, clock, known: Arc::default() })
    }

    #[tokio::test]
    async fn all_who_show_one_token_at_once_cost_one_question() {
        let good = token(r#"{"exp":1795219000}"#);
        for (token, is_good) in [(&*good, true), ("bad.token.x", false)] {
            let (slow, memory) = slow();
            let all = futures_util::future::join_all((0..110).map(|_| memory.review(token, "a")));
            let (answers, ()) = tokio::join!(all, async { slow.let_go.add_permits(1) });
            assert!(answers.iter().all(|(answer, _)| answer.is_ok() == is_good), "{answers:?}");
            assert_eq!(answers.iter().filter(|(_, is_own)| *is_own).count(), 1);
            assert_eq!(slow.asked.load(Ordering::Relaxed), 1);
            // A yes is remembered, a no is asked again.
            slow.let_go.add_permits(1);
            assert_eq!(memory.review(token, "a").await.1, !is_good);
            assert_eq!(slow.asked.load(Ordering::Relaxed), 2 - usize::from(is_good));
        }
    }

    #[tokio::test]
    async fn who_goes_away_takes_the_answer_from_nobody_and_leaves_nothing() {
        let (slow, memory) = slow();
        let (first, second) = (memory.review("a.b.c", "a"), memory.review("a.b.c", "a"));
        let mut first = Box::pin(first);
        assert!((&mut first).now_or_never().is_none());
        let mut second = Box::pin(second);
        assert!((&mut second).now_or_never().is_none());
        drop(first);
        slow.let_go.add_permits(1);
        assert!(second.await.0.is_err());
        assert_eq!(slow.asked.load(Ordering::Relaxed), 1);
        let mut third = Box::pin(memory.review("d.b.c", "a"));
        assert!((&mut third).now_or_never().is_none());
        assert_eq!(lock(&memory.known).asked.len(), 1, "what nobody waits for is forgotten");
    }
}
