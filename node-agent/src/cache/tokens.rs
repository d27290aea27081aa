//! The JWT-SVIDs that are held, to be read by everyone at once, and the words of those who ask for one.
//!
//! - `machine` decides which are held; what it holds is published, and a door that finds a token there needs nobody.
//! - Whoever gives a token out marks it as used: one that nobody uses is not renewed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rpds::HashTrieMapSync;
use spiffe::bundle::Bundle;
use spiffe::entry::{EntryId, RegistrationEntry};
use spiffe::jwt_svid::{Audience, JwtSvid};
use spiffe::time::Timestamp;
use tokio::sync::mpsc;

pub mod machine;

/// With less of its life than this left a token is not given out: it would expire on its way.
const LEAST_LIFE: Duration = Duration::from_secs(5);

/// What a token is held for.
pub type Name = (EntryId, Audience);

/// The tokens that are held. Cheap to clone: what has not changed is shared.
pub type Tokens = HashTrieMapSync<Name, Arc<Token>>;

/// A verified JWT-SVID.
#[derive(Debug)]
pub struct Token {
    svid: JwtSvid,
    got_at: Timestamp,
    given_until: Timestamp,
    /// Unix seconds; 0: nobody has yet.
    used_at: AtomicU64,
}

impl Token {
    /// A token that came at `now`.
    pub fn new(svid: JwtSvid, now: Timestamp) -> Self {
        let expires_at = svid.expires_at();
        let least = LEAST_LIFE.min(expires_at.since(now) / 2);
        Self { svid, got_at: now, given_until: expires_at.minus(least), used_at: AtomicU64::new(0) }
    }

    /// The JWT-SVID.
    pub fn svid(&self) -> &JwtSvid {
        &self.svid
    }

    /// Whether it may be given out at `now`.
    pub fn is_good(&self, now: Timestamp) -> bool {
        now < self.given_until
    }

    /// Marks it as used.
    pub fn use_at(&self, now: Timestamp) {
        self.used_at.store(now.unix(), Ordering::Relaxed);
    }

    fn is_used(&self) -> bool {
        self.used_at.load(Ordering::Relaxed) > 0
    }

    fn last_used(&self) -> Timestamp {
        Timestamp::from_unix(self.used_at.load(Ordering::Relaxed)).max(self.got_at)
    }

    /// Whether the key that signed it is in `bundle` and not tainted.
    fn is_trusted_by(&self, bundle: &Bundle) -> bool {
        let kid = self.svid.kid();
        bundle.jwt_authorities().iter().any(|key| Some(key.kid()) == kid && !key.is_tainted())
    }
}

/// Someone asks for a token that is not held.
#[derive(Debug)]
pub struct Want {
    /// For which entry.
    pub entry: EntryId,
    /// For whom the token is to be.
    pub audience: Audience,
    /// Where the one answer goes. Whoever waits no longer drops the other end.
    pub told: mpsc::Sender<Told>,
}

/// What comes of it.
#[derive(Clone, Debug)]
pub enum Told {
    /// The token.
    Token(Arc<Token>),
    /// The server said no, and why.
    Refused(Arc<str>),
    /// It went wrong on the way, and is not tried again for this one who asks.
    Failed,
    /// There is no such entry (any more).
    Gone,
}

/// Whether a JWT-SVID issued for one of the entries is as good for the other: nothing that is inside of it differs.
fn is_the_same_for(one: &RegistrationEntry, other: &RegistrationEntry) -> bool {
    one.spiffe_id == other.spiffe_id
        && one.jwt_ttl == other.jwt_ttl
        && one.jti == other.jti
        && one.expires_at == other.expires_at
}
