//! Makes requests small before they take up room: an Envoy sends a list of its extensions with each of them, some 60 KB, and
//! tonic keeps room for the largest message of a stream as long as the stream lasts. That is most of what a stream would cost.
//!
//! - Each message is read and written again: what we do not know is not in it any more. Its own room is given back at once.
//! - What cannot be read (compressed, too large, malformed, cut off) is passed on as it is: it is refused behind here, in the
//!   words of gRPC.
//! - One message is held at a time, of [`MAX_BYTES`] at most.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::Request;
use hyper::body::Frame;
use prost::Message;
use spiffe::proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;

/// The largest request of a proxy.
pub const MAX_BYTES: usize = 256 << 10;
/// Before each message: whether it is compressed, and its length.
const HEAD_BYTES: usize = 5;

/// A service whose requests are made small.
#[derive(Clone, Debug)]
pub struct Slim<S>(pub S);

impl<S: NamedService> NamedService for Slim<S> {
    const NAME: &'static str = S::NAME;
}

impl<S: Service<Request<Body>>> Service<Request<Body>> for Slim<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> S::Future {
        let is_delta = request.uri().path().ends_with("/DeltaSecrets");
        let again = if is_delta { again::<DeltaDiscoveryRequest> } else { again::<DiscoveryRequest> };
        self.0.call(request.map(|body| Body::new(Messages::new(body, again))))
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
}

impl<B> Messages<B> {
    fn new(body: B, again: fn(&[u8]) -> Option<Vec<u8>>) -> Self {
        Self { body, again, held: BytesMut::new(), as_it_is: false }
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
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
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

    /// What comes out when `sent` comes in pieces of `at_once` bytes.
    fn passed(sent: &[u8], at_once: usize) -> Vec<u8> {
        let pieces: Vec<Result<_, Status>> =
            sent.chunks(at_once).map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece)))).collect();
        let body = StreamBody::new(futures_util::stream::iter(pieces));
        let messages = Messages::new(body, again::<DiscoveryRequest>);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
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
