//! Where the material of one delivery comes from: the agent's own cache, or the socket of a Workload API.
//!
//! - *whole*: each time everything that there is now. Who is slow gets the latest, never a queue.
//! - *an outage takes nothing away*: what was there stays delivered.
//! - Tokens are asked for when half of their life is over (`tokens`), beside everything else: one that is slow holds up
//!   neither another one nor new certificates and roots.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use spiffe::audience::Audience;
use spiffe::id::SpiffeId;
use spiffe::jwt_svid::JwtSvid;
use spiffe::time::Clock;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use super::material::{Identity, Material};
use crate::cache::Cache;
use crate::config::deliver::Delivery;

mod from_cache;
mod from_socket;
mod tokens;

use from_cache::FromCache;
use from_socket::FromSocket;
use tokens::Tokens;

/// A token that takes longer is asked for again later.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(15);

/// What a source says.
#[derive(Clone, Debug)]
pub enum Said {
    /// What there is to deliver.
    Material(Box<Material>),
    /// There is nothing, and why.
    Nothing(Arc<str>),
}

/// What one delivery wishes for.
#[derive(Clone, Debug)]
struct Wish {
    name: String,
    /// `None`: the default identity.
    spiffe_id: Option<SpiffeId>,
    audiences: BTreeSet<Audience>,
    jwks: bool,
}

impl Wish {
    fn of(delivery: &Delivery) -> Self {
        Self {
            name: delivery.name.clone(),
            spiffe_id: delivery.spiffe_id.clone(),
            audiences: delivery.audiences(),
            jwks: delivery.has_jwks(),
        }
    }
}

/// A source for one delivery.
#[derive(Debug)]
pub struct Source {
    wish: Wish,
    from: Origin,
}

#[derive(Debug)]
enum Origin {
    Cache(FromCache),
    Socket(Box<FromSocket>),
}

impl Source {
    /// The agent's own cache: the delivery is a workload with the one selector `deliver:<name>`.
    pub fn cache(cache: Cache, delivery: &Delivery) -> Self {
        Self { wish: Wish::of(delivery), from: Origin::Cache(FromCache::new(cache, delivery)) }
    }

    /// The Workload API at this socket: the delivery is whatever this process is attested as.
    pub fn socket(path: PathBuf, delivery: &Delivery) -> Self {
        Self { wish: Wish::of(delivery), from: Origin::Socket(Box::new(FromSocket::new(path))) }
    }

    /// Asks from now on, until what is returned is dropped.
    pub(super) fn follow(self, clock: Arc<dyn Clock>) -> Following {
        let (said, latest) = watch::channel(None);
        let task = tokio::spawn(follow(self, clock, said));
        Following { latest, _task: AbortOnDropHandle::new(task) }
    }
}

/// A source that is asked.
pub(super) struct Following {
    /// The latest; `None` before there is an answer of any kind.
    pub(super) latest: watch::Receiver<Option<Said>>,
    _task: AbortOnDropHandle<()>,
}

/// Why a source has nothing now.
#[derive(Debug)]
enum Trouble {
    /// It may have something later, and says so.
    Nothing(String),
    /// The agent is stopping.
    Stopped,
}

impl Origin {
    /// The next identity. Cancel safe.
    async fn next(&mut self, wish: &Wish, clock: &dyn Clock) -> Result<Identity, Trouble> {
        match self {
            Self::Cache(cache) => cache.next(wish).await,
            Self::Socket(socket) => socket.next(wish, clock).await,
        }
    }

    /// A token of the identity that came last; an error says why there is none.
    fn token(&self, id: &SpiffeId, audience: Audience, clock: Arc<dyn Clock>) -> Asking {
        let asked: BoxFuture<'static, Result<JwtSvid, String>> = match self {
            Self::Cache(cache) => cache.token(audience.clone(), clock.now()).boxed(),
            Self::Socket(socket) => socket.token(id, &audience).boxed(),
        };
        async move {
            let token = tokio::select! {
                token = asked => token,
                () = clock.sleep(TOKEN_TIMEOUT) => Err("no answer came in time".into()),
            };
            (audience, token)
        }
        .boxed()
    }
}

/// A token that is asked for, and for whom.
type Asking = BoxFuture<'static, (Audience, Result<JwtSvid, String>)>;

async fn follow(source: Source, clock: Arc<dyn Clock>, said: watch::Sender<Option<Said>>) {
    let Source { wish, mut from } = source;
    let mut tokens = Tokens::new(wish.audiences.iter().cloned());
    let mut identity: Option<Identity> = None;
    // No more than there are audiences in the config.
    let mut asking: FuturesUnordered<Asking> = FuturesUnordered::new();
    loop {
        let wake = identity.as_ref().and_then(|_| tokens.next_wake());
        let mut is_news = false;
        tokio::select! {
            news = from.next(&wish, clock.as_ref()) => match news {
                Ok(new) => {
                    if identity.as_ref().is_none_or(|old| old.svid.id() != new.svid.id()) {
                        tokens = Tokens::new(wish.audiences.iter().cloned());
                        asking.clear();
                    }
                    identity = Some(new);
                    is_news = true;
                }
                Err(Trouble::Nothing(why)) => {
                    said.send_replace(Some(Said::Nothing(why.into())));
                    identity = None;
                    asking.clear();
                    continue;
                }
                Err(Trouble::Stopped) => return,
            },
            Some((audience, asked)) = asking.next() => {
                if let Err(why) = &asked {
                    warn!(delivery = wish.name, audience = audience.values().join(", "), why, "no JWT-SVID: trying again");
                }
                tokens.answered(&audience, asked.ok(), clock.now());
                is_news = asking.is_empty();
            }
            () = clock.sleep_until(wake.unwrap_or_default()), if wake.is_some() => {}
        }
        let Some(identity) = &identity else { continue };
        for audience in tokens.due(clock.now()) {
            tokens.asked(&audience);
            asking.push(from.token(identity.svid.id(), audience, clock.clone()));
        }
        // What is not there could not be written anyway; what is there is not held up by what is to replace it.
        if is_news && (asking.is_empty() || tokens.are_there(clock.now())) {
            let material = Material { identity: identity.clone(), tokens: tokens.held() };
            said.send_replace(Some(Said::Material(Box::new(material))));
        }
    }
}
