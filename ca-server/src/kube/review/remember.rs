//! A yes that is remembered for a few seconds, so that whoever shows one token often costs an API server one question.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use spiffe::crypto::sha256;
use spiffe::time::{Clock, Timestamp};

use super::{ReviewError, ServiceAccount, TokenReviewer};
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
/// - **What it allows**: a token whose pod or service account has just been deleted counts for `REMEMBERED` longer
///   than the API server lets it, which itself goes on saying yes for seven to ten seconds. What is issued for a token
///   outlives both many times: who had the token a moment earlier got the same. Nothing else about a caller is remembered: where his pod
///   runs is looked up in what the watches say now.
/// - **By the hash** of token and audience: the token itself is not kept, and a yes for one audience is none for another.
/// - **Bounded**: when it is full and nothing in it has ended, a yes is not remembered.
#[derive(Debug)]
pub struct Remembering {
    cluster: Arc<Cluster>,
    ask: Arc<dyn TokenReviewer>,
    clock: Arc<dyn Clock>,
    known: Mutex<Known>,
}

impl Remembering {
    /// Remembers what `ask`, the reviewer of `cluster`, says yes to.
    pub fn new(cluster: Arc<Cluster>, ask: Arc<dyn TokenReviewer>, clock: Arc<dyn Clock>) -> Self {
        Self { cluster, ask, clock, known: Mutex::default() }
    }
}

#[async_trait]
impl TokenReviewer for Remembering {
    fn cluster(&self) -> &str {
        self.ask.cluster()
    }

    async fn review(&self, token: &str, audience: &str) -> Result<ServiceAccount, ReviewError> {
        let key = key(token, audience);
        let asked_at = self.clock.now();
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).find(&key, asked_at);
        if let Some(account) = known {
            self.cluster.reviews().count(Reviewed::Remembered);
            return Ok(account);
        }
        let account = self.ask.review(token, audience).await?;
        // From when it was asked: an answer that took its time is that much older.
        if let Some(until) = until(token, asked_at) {
            self.known.lock().unwrap_or_else(PoisonError::into_inner).put(
                key,
                until,
                account.clone(),
                self.clock.now(),
            );
        }
        Ok(account)
    }
}

type Key = [u8; 32];

/// No two pairs have one key: the audience's length is in it, and both ends are where they are.
fn key(token: &str, audience: &str) -> Key {
    let length = (audience.len() as u64).to_be_bytes();
    sha256(&[&length, audience.as_bytes(), token.as_bytes()].concat())
}

/// Until when a yes that was asked for at `now` may be remembered.
fn until(token: &str, now: Timestamp) -> Option<Timestamp> {
    #[derive(serde::Deserialize)]
    struct Claims {
        exp: u64,
    }
    let payload = BASE64.decode(token.split('.').nth(1)?).ok()?;
    let Claims { exp } = serde_json::from_slice(&payload).ok()?;
    Some(now.plus(REMEMBERED).min(Timestamp::from_unix(exp)))
}

#[derive(Debug, Default)]
struct Known(HashMap<Key, (Timestamp, ServiceAccount)>);

impl Known {
    fn find(&self, key: &Key, now: Timestamp) -> Option<ServiceAccount> {
        // A clock that was put back must not make an answer live longer.
        let counts = |until: Timestamp| now < until && until.since(now) <= REMEMBERED;
        self.0.get(key).filter(|(until, _)| counts(*until)).map(|(_, account)| account.clone())
    }

    fn put(&mut self, key: Key, until: Timestamp, account: ServiceAccount, now: Timestamp) {
        if self.0.len() >= MOST {
            self.0.retain(|_, (until, _)| now < *until);
        }
        if self.0.len() < MOST && now < until {
            self.0.insert(key, (until, account));
        }
    }
}

#[cfg(test)]
mod tests {
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
        assert_eq!(known.0.len(), MOST);
        known.put(key("late", "a"), after(10), account("y"), after(5));
        assert_eq!((known.0.len(), known.find(&key("late", "a"), after(6))), (1, Some(account("y"))));
        assert_ne!(key("b", "a"), key("", "ab"), "no two pairs have one key");
    }
}
