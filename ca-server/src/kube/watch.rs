//! Which pods run where, told by the API servers' watches as [`PodEvent`]s.
//!
//! - Each cluster has three watches (pods, nodes, namespaces): `feed` lists in pages, watches from there on, and comes
//!   back after whatever happens; `picture` (pure) says which events follow.
//! - **Nothing is told before all three are known**, and then everything at once: a pod is never shown without its node.
//! - **A new pod is shown on a node of which was heard since**: where the watch of nodes is silent, its node is looked up.
//! - **A lost API server takes nothing away**: what it said last stays until it says something else.
//! - **Everything is bounded**: the channels, a page, an event, what a watch may be silent for, how many objects there are
//!   (`max_pods`; with more, the API server counts as lost), and what is kept of one. A receiver that is slow holds the
//!   watches back, and an API server that is left waiting too long ends them, which is a gap: they list anew.
//! - Strings that many pods share are held once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use spiffe::id::TrustDomain;
use spiffe::time::{Clock, Timestamp};
use tokio::sync::mpsc;
use tracing::warn;

use self::feed::Feed;
use self::intern::Interned;
use self::picture::{Node, Picture, Told};
use super::client::{Cluster, Watched};
use super::lookup;
use super::object::{Named, Pod};
use crate::view::pods::PodEvent;

mod doubt;
mod feed;
mod intern;
mod picture;
mod roster;

/// How many events may wait for the receiver.
const EVENTS: usize = 1024;
/// How many things that the watches of one cluster saw may wait to be put into its picture.
const TOLD: usize = 64;
/// How many nodes are looked up at once.
const LOOKUPS: usize = 16;
/// A watch that lasts for less than this has failed, whatever it brought.
const SHORT: Duration = Duration::from_secs(2);
/// How long to wait where there is nothing to wait for.
const LONG: Duration = Duration::from_secs(3600);

/// Watches `clusters` until the receiver is dropped: the work, which has to be run, and what it tells. The receiver never
/// ends while the work runs, also where there are no clusters.
pub fn watch(
    clusters: Vec<Arc<Cluster>>,
    trust_domain: TrustDomain,
    clock: Arc<dyn Clock>,
) -> (impl Future<Output = ()> + Send + 'static, mpsc::Receiver<PodEvent>) {
    let (to, events) = mpsc::channel(EVENTS);
    let work = async move {
        let each = clusters
            .into_iter()
            .map(|cluster| watch_one(cluster, trust_domain.clone(), Arc::clone(&clock), to.clone()));
        tokio::select! {
            () = to.closed() => {}
            _ = join_all(each) => to.closed().await,
        }
    };
    (work, events)
}

async fn watch_one(
    cluster: Arc<Cluster>,
    trust_domain: TrustDomain,
    clock: Arc<dyn Clock>,
    to: mpsc::Sender<PodEvent>,
) {
    let (tell, told) = mpsc::channel(TOLD);
    let picture = Picture::new(Arc::clone(cluster.name()), trust_domain);
    let feed =
        |path, of| Feed { cluster: Arc::clone(&cluster), clock: Arc::clone(&clock), tell: tell.clone(), path, of };
    let pods = feed("/api/v1/pods", Watched::Pods).run::<Pod, _>(picture::Seen::read, Told::Pods);
    let nodes = feed("/api/v1/nodes", Watched::Nodes).run::<Named, _>(Node::read, Told::Nodes);
    let namespaces =
        feed("/api/v1/namespaces", Watched::Namespaces).run::<Named, _>(picture::Namespace::read, Told::Namespaces);
    // One that ends has found that nobody listens.
    tokio::select! {
        () = pods => {}
        () = nodes => {}
        () = namespaces => {}
        () = paint(&cluster, picture, told, &*clock, to) => {}
    }
}

/// Puts what the watches saw into the picture, and tells what follows.
async fn paint(
    cluster: &Cluster,
    mut picture: Picture,
    mut told: mpsc::Receiver<Told>,
    clock: &dyn Clock,
    to: mpsc::Sender<PodEvent>,
) {
    let (mut to_ask, mut asking) = (VecDeque::new(), FuturesUnordered::new());
    loop {
        to_ask.extend(picture.questions(clock.now()));
        while asking.len() < LOOKUPS
            && let Some(name) = to_ask.pop_front()
        {
            asking.push(look_up(cluster, name, clock.now()));
        }
        let next_end = picture.next_end().unwrap_or_else(|| clock.now().plus(LONG));
        let events = tokio::select! {
            told = told.recv() => match told {
                Some(told) => picture.after(told, clock.now()),
                None => return,
            },
            Some((name, node, at)) = asking.next(), if !asking.is_empty() => picture.answer(&name, node, at, clock.now()),
            () = clock.sleep_until(next_end) => picture.pass(clock.now()),
        };
        cluster.set_known(picture.counts());
        for event in events {
            if to.send(event).await.is_err() {
                return;
            }
        }
    }
}

/// What the API server says at `at` of the node `name`; nothing, too, where it does not answer.
async fn look_up(cluster: &Cluster, name: Arc<str>, at: Timestamp) -> (Arc<str>, Option<Node>, Timestamp) {
    let found = lookup::node(cluster, &name).await.unwrap_or_else(|error| {
        warn!(cluster = %cluster.name(), node = %name, %error, "new pods of this node wait for word of it");
        None
    });
    (name, found.and_then(|node| Node::read(node, &mut Interned::default())), at)
}

/// Where a watch got to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Place {
    /// Nothing is known, or there is a gap: everything has to be listed.
    #[default]
    Nowhere,
    /// At this version.
    At(String),
}

/// Whether a watch that began at `began` and ended of itself at `now` has gone wrong. One of `length` that `brought` nothing
/// has, unless it lasted: it would have brought a bookmark shortly before its end. Any other has that ended at once: whoever
/// came back at once, each time, would do nothing else.
fn is_suspicious(brought: bool, began: Timestamp, now: Timestamp, length: Duration) -> bool {
    now.since(began) < if brought { SHORT } else { length / 2 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_that_ends_at_once_has_failed_whatever_it_brought() {
        let (began, length) = (Timestamp::from_unix(1_795_218_000), Duration::from_secs(60));
        let after = |seconds| began.plus(Duration::from_secs(seconds));
        for (brought, seconds, is_wrong) in [(true, 1, true), (true, 2, false), (false, 29, true), (false, 30, false)] {
            assert_eq!(is_suspicious(brought, began, after(seconds), length), is_wrong, "{brought} {seconds}");
        }
    }
}
