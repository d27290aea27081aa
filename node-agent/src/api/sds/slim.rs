//! Makes requests small before they take up room: an Envoy sends a list of its extensions with each of them, some 60 KB, and
//! tonic keeps room for the largest message of a stream as long as the stream lasts. That is most of what a stream would cost.
//!
//! - Each message is read and written again: what we do not know is not in it any more. Its own room is given back at once.
//! - What cannot be read (compressed, too large, malformed, cut off) is passed on as it is: it is refused behind here, in the
//!   words of gRPC.
//! - One message is held at a time, of [`MAX_BYTES`] at most. Of long ones that are not whole yet few are read at once, and of
//!   one user fewer: the others wait, and their connections with them.
//! - Whoever begins a message ends it soon, or his stream ends.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::Request;
use hyper::body::Frame;
use prost::Message;
use spiffe::proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use tokio::time::Sleep;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;

use crate::attestor::Peer;
use crate::attestor::turns::{Turn, Turns};

/// The largest request of a proxy: twice that of an Envoy.
pub const MAX_BYTES: usize = 128 << 10;
/// So much of a message may be held without a turn.
const SMALL_BYTES: usize = 8 << 10;
/// Longer messages that are read at the same time, in all and of one user.
const READING: usize = 256;
const READING_OF_ONE: usize = 64;
/// How long a message may take from its first byte, or its turn, to its last.
const PATIENCE: Duration = Duration::from_secs(10);
/// Before each message: whether it is compressed, and its length.
const HEAD_BYTES: usize = 5;

/// A service whose requests are made small.
#[derive(Clone)]
pub struct Slim<S> {
    inner: S,
    turns: Arc<Turns>,
}

impl<S> Slim<S> {
    /// Makes the requests of `inner` small.
    pub fn new(inner: S) -> Self {
        Self { inner, turns: Arc::new(Turns::new(READING, READING_OF_ONE)) }
    }
}

impl<S: NamedService> NamedService for Slim<S> {
    const NAME: &'static str = S::NAME;
}

impl<S: Service<Request<Body>>> Service<Request<Body>> for Slim<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> S::Future {
        let is_delta = request.uri().path().ends_with("/DeltaSecrets");
        let again = if is_delta { again::<DeltaDiscoveryRequest> } else { again::<DiscoveryRequest> };
        // Without a peer the request is refused further in.
        let uid = request.extensions().get::<Arc<Peer>>().map_or(u32::MAX, |peer| peer.uid());
        let turns = Arc::clone(&self.turns);
        self.inner.call(request.map(|body| Body::new(Messages::new(body, again, (turns, uid)))))
    }
}

/// `message` with what we know of it alone; `None`: it is none.
fn again<M: Message + Default>(message: &[u8]) -> Option<Vec<u8>> {
    M::decode(message).ok().map(|message| message.encode_to_vec())
}

/// A body of messages.
struct Messages<B> {
    body: B,
    again: fn(&[u8]) -> Option<Vec<u8>>,
    /// Not yet a whole message.
    held: BytesMut,
    /// From here on everything is passed on as it is.
    as_it_is: bool,
    turns: Arc<Turns>,
    uid: u32,
    turn: Asking,
    /// While something is held.
    deadline: Option<Pin<Box<Sleep>>>,
}

/// A turn at a long message.
enum Asking {
    Not,
    Waiting(Pin<Box<dyn Future<Output = Option<Turn>> + Send>>),
    Mine { _turn: Turn },
}

impl<B> Messages<B> {
    fn new(body: B, again: fn(&[u8]) -> Option<Vec<u8>>, (turns, uid): (Arc<Turns>, u32)) -> Self {
        Self { body, again, held: BytesMut::new(), as_it_is: false, turns, uid, turn: Asking::Not, deadline: None }
    }

    /// Waits until more of a message may be read; or for the end of patience with it.
    fn poll_may_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        if self.held.len() > SMALL_BYTES && matches!(self.turn, Asking::Not) {
            let (turns, uid) = (Arc::clone(&self.turns), self.uid);
            self.turn = Asking::Waiting(Box::pin(async move { turns.take(uid).await }));
            self.deadline = None;
        }
        if let Asking::Waiting(turn) = &mut self.turn {
            let turn = ready!(turn.as_mut().poll(cx)).ok_or_else(|| Status::unavailable("the agent is stopping"))?;
            self.turn = Asking::Mine { _turn: turn };
        }
        if self.held.is_empty() {
            return Poll::Ready(Ok(()));
        }
        #[expect(clippy::disallowed_methods, reason = "a time limit on what a local process sends")]
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(PATIENCE)));
        if deadline.as_mut().poll(cx).is_ready() {
            let text = format!("a request was begun and not ended within {} seconds", PATIENCE.as_secs());
            return Poll::Ready(Err(Status::deadline_exceeded(text)));
        }
        Poll::Ready(Ok(()))
    }

    /// What can be passed on of what is held.
    fn next(&mut self) -> Option<Bytes> {
        if !self.as_it_is {
            let [compressed, length @ ..] = *self.held.first_chunk::<HEAD_BYTES>()?;
            let length = u32::from_be_bytes(length) as usize;
            self.as_it_is = compressed != 0 || length > MAX_BYTES;
            if !self.as_it_is {
                return (self.held.len() >= HEAD_BYTES + length).then(|| self.message(length));
            }
        }
        (!self.held.is_empty()).then(|| std::mem::take(&mut self.held).freeze())
    }

    /// The first message of what is held, made small.
    fn message(&mut self, length: usize) -> Bytes {
        let whole = self.held.split_to(HEAD_BYTES + length);
        // What is left gets room of its own: that of the message is given back.
        self.held = BytesMut::from(&self.held[..]);
        let Some(small) = (self.again)(whole.get(HEAD_BYTES..).unwrap_or_default()) else { return whole.freeze() };
        let mut message = BytesMut::with_capacity(HEAD_BYTES + small.len());
        message.put_u8(0);
        // Not longer than it was, but for fields that were written in a shorter way than ours: far below 4 GiB.
        message.put_u32(u32::try_from(small.len()).unwrap_or_default());
        message.put_slice(&small);
        message.freeze()
    }
}

impl<B: hyper::body::Body<Data = Bytes, Error = Status> + Unpin> hyper::body::Body for Messages<B> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if let Some(bytes) = self.next() {
                (self.turn, self.deadline) = (Asking::Not, None);
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            if let Err(status) = ready!(self.poll_may_read(cx)) {
                return Poll::Ready(Some(Err(status)));
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.held.extend_from_slice(&data),
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                None if !self.held.is_empty() => self.as_it_is = true,
                end => return Poll::Ready(end),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, StreamBody};
    use proptest::prelude::*;
    use spiffe::proto::envoy::config::core::v3::Node;

    use super::*;

    fn framed(compressed: u8, message: &[u8]) -> Vec<u8> {
        [&[compressed], &u32::try_from(message.len()).unwrap().to_be_bytes()[..], message].concat()
    }

    fn turns() -> Arc<Turns> {
        Arc::new(Turns::new(2, 1))
    }

    /// What comes out when `sent` comes in pieces of `at_once` bytes.
    fn passed(sent: &[u8], at_once: usize) -> Vec<u8> {
        let pieces: Vec<Result<_, Status>> =
            sent.chunks(at_once).map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece)))).collect();
        let body = StreamBody::new(futures_util::stream::iter(pieces));
        let messages = Messages::new(body, again::<DiscoveryRequest>, (turns(), 0));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(messages.collect()).unwrap().to_bytes().to_vec()
    }

    fn request(name: &str) -> DiscoveryRequest {
        let node = Some(Node { id: "front".into(), ..Node::default() });
        DiscoveryRequest { node, resource_names: vec![name.into()], ..DiscoveryRequest::default() }
    }

    /// A field of `node` that we do not know, as long as that of an Envoy.
    fn extensions(bytes: usize) -> Vec<u8> {
        let mut unknown = Vec::new();
        prost::encoding::bytes::encode(9, &vec![b'x'; bytes], &mut unknown);
        let mut node = Vec::new();
        prost::encoding::bytes::encode(2, &unknown, &mut node);
        node
    }

    #[test]
    fn what_we_do_not_know_is_gone() {
        let large = [request("default").encode_to_vec(), extensions(60_000)].concat();
        let sent = [framed(0, &large), framed(0, &request("ROOTCA").encode_to_vec())].concat();
        let small = [request("default"), request("ROOTCA")].map(|request| framed(0, &request.encode_to_vec())).concat();
        for at_once in [1, 5, 16_384, sent.len()] {
            assert_eq!(passed(&sent, at_once), small, "in pieces of {at_once}");
        }
    }

    type Unended = Messages<StreamBody<futures_util::stream::Pending<Result<Frame<Bytes>, Status>>>>;

    /// All of a long message but its end.
    fn unended(turns: &Arc<Turns>, uid: u32) -> Unended {
        let body = StreamBody::new(futures_util::stream::pending());
        let mut messages = Messages::new(body, again::<DiscoveryRequest>, (Arc::clone(turns), uid));
        messages.held.extend_from_slice(&framed(0, &extensions(60_000))[..50_000]);
        messages
    }

    #[tokio::test]
    async fn whoever_begins_a_message_ends_it_soon_or_not_at_all() {
        let mut messages = unended(&turns(), 0);
        assert!(messages.poll_may_read(&mut Context::from_waker(std::task::Waker::noop())).is_ready());
        let deadline = messages.deadline.as_mut().unwrap().as_mut();
        deadline.reset(tokio::time::Instant::now());
        let refused = messages.frame().await.unwrap().unwrap_err();
        assert_eq!(refused.code(), tonic::Code::DeadlineExceeded);
        assert!(refused.message().contains("not ended within 10 seconds"), "{refused}");
    }

    #[tokio::test]
    async fn of_one_user_few_long_messages_are_read_at_once() {
        let turns = turns();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut first = unended(&turns, 7);
        assert!(first.poll_may_read(&mut cx).is_ready());
        let (mut second, mut others) = (unended(&turns, 7), unended(&turns, 8));
        assert!(second.poll_may_read(&mut cx).is_pending(), "it is its own user's turn");
        assert!(others.poll_may_read(&mut cx).is_ready());
        drop(first);
        assert!(second.poll_may_read(&mut cx).is_ready());
    }

    #[test]
    fn what_cannot_be_read_is_passed_on_as_it_is() {
        let good = framed(0, &request("default").encode_to_vec());
        let too_large = [&[0], &u32::MAX.to_be_bytes()[..], b"more"].concat();
        for bad in [framed(1, b"compressed"), too_large, framed(0, b"\xff\xff"), good[..7].to_vec(), vec![0]] {
            let sent = [good.clone(), bad].concat();
            assert_eq!(passed(&sent, 3), sent);
        }
    }

    proptest! {
        #[test]
        fn requests_come_through_whole(names in prop::collection::vec("[a-z]{0,9}", 0..5), more in 0..300_usize, at_once in 1..50_usize) {
            let requests: Vec<_> = names.iter().map(|name| request(name).encode_to_vec()).collect();
            let sent: Vec<u8> = requests.iter().flat_map(|it| framed(0, &[&it[..], &extensions(more)].concat())).collect();
            let expected: Vec<u8> = requests.iter().flat_map(|it| framed(0, it)).collect();
            prop_assert_eq!(passed(&sent, at_once), expected);
        }

        #[test]
        fn anything_at_all_comes_through(sent: Vec<u8>, at_once in 1..9_usize) {
            prop_assert_eq!(passed(&sent, at_once), passed(&sent, usize::MAX >> 1));
        }
    }
}
