//! What operators order of the rotation. The rotation alone changes authorities; who orders waits for its answer.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::authority::Authority;
use crate::store::Revision;

/// How many orders may wait.
const WAITING: usize = 16;

/// One order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Make a new authority now.
    Prepare,
    /// Let this prepared authority sign from now on.
    Activate(Arc<str>),
    /// Have everything below this authority replaced.
    Taint(Arc<str>),
    /// Take this authority out of the bundle.
    Revoke(Arc<str>),
}

/// What became of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obeyed {
    /// The authority as it is now; a revoked one, as it was.
    pub authority: Authority,
    /// The revision that the change made.
    pub revision: Revision,
}

/// Why an order is not obeyed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// There is no such authority.
    #[error("there is no authority {0}: list them with \"chancery authority list\"")]
    NotFound(String),
    /// The state of things forbids it; the text says why, and what to do first.
    #[error("{0}")]
    Refused(String),
    /// It could not be done now.
    #[error("{0}: try again")]
    Unavailable(String),
}

/// An order, and where the answer is awaited.
#[derive(Debug)]
pub struct Pending {
    /// What to do.
    pub order: Order,
    /// Where to say what became of it.
    pub answer: oneshot::Sender<Result<Obeyed, OrderError>>,
}

/// Where orders are given. Clones share it.
#[derive(Clone, Debug)]
pub struct Orders(mpsc::Sender<Pending>);

impl Orders {
    /// The place to give orders, and the end that the rotation takes them from.
    pub fn channel() -> (Self, mpsc::Receiver<Pending>) {
        let (to, from) = mpsc::channel(WAITING);
        (Self(to), from)
    }

    /// Gives `order` and waits for what becomes of it.
    pub async fn give(&self, order: Order) -> Result<Obeyed, OrderError> {
        let gone = || OrderError::Unavailable("the server is stopping".into());
        let (answer, answered) = oneshot::channel();
        self.0.try_send(Pending { order, answer }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => OrderError::Unavailable("too many orders wait".into()),
            mpsc::error::TrySendError::Closed(_) => gone(),
        })?;
        answered.await.map_err(|_| gone())?
    }
}
