//! Kubernetes, as the server sees it: the API servers of its clusters. What they are asked (whose a service-account
//! token is) and what they tell (which pods run where).
//!
//! - An API server that is lost, hangs or flaps changes nothing that is known: what was last said stays.
//! - Whatever it is asked has a time limit.

pub mod client;
pub mod lookup;
pub mod object;
pub mod publish;
pub mod review;
pub mod watch;

use std::sync::Arc;

use tokio::sync::mpsc;

use self::review::TokenReviewer;
use crate::view::pods::PodEvent;

/// What somebody else tells of Kubernetes than the API servers of the config: for whoever runs a server inside of another
/// program.
#[derive(Debug, Default)]
pub struct Told {
    /// Who knows whose a token is, one for each cluster.
    pub reviewers: Vec<Arc<dyn TokenReviewer>>,
    /// What happens to pods; `None`: it is as the API servers of the config say.
    pub pods: Option<mpsc::Receiver<PodEvent>>,
}
