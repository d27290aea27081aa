//! What an API server may cost: each answer has a bound in time and one in bytes, whoever reads it.
//!
//! - **The headers** come within `request_timeout`.
//! - **An answer** is whole within `request_timeout` too, and no larger than [`MOST_BYTES`].
//! - **A watch** may be as large as it likes, event by event: none is larger than [`MOST_OF_EVENT`], and all of it ends
//!   [`LATE`] after the length that was asked for, whether something comes or nothing.
//! - What is exceeded breaks the body: memory is held for no more than that, and the connection is given up.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, stream};
use http::{Request, Response};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Body, Frame};
use spiffe::settings::write_duration;
use tokio::time::Instant;
use tower::BoxError;

/// The most bytes of one answer: of a list, of one of its pages.
pub(super) const MOST_BYTES: usize = 64 << 20;
/// The most bytes of one event of a watch: an API server stores no object over 1.5 MiB, and six times that is the longest way
/// to write one. Whoever may create pods may create such: a lower bound would let him end the watch of his whole cluster.
const MOST_OF_EVENT: usize = 10 << 20;
/// How much longer than was asked for a watch may last.
pub(super) const LATE: Duration = Duration::from_secs(5);

/// An API server has sent too much, or too late.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Exceeded {
    /// The headers, or the whole answer, did not come in time.
    #[error(
        "the API server of cluster {0} did not answer within {limit}: see how it is, or raise kubernetes.{0}.request_timeout",
        limit = write_duration(*.1)
    )]
    Time(Arc<str>, Duration),
    /// A watch goes on for longer than was asked for: the API server, or the way to it, hangs.
    #[error(
        "the API server of cluster {0} has not ended a watch for {limit}, longer than it was asked to: see how it is, and what is between",
        limit = write_duration(*.1)
    )]
    Watch(Arc<str>, Duration),
    /// An answer is too large.
    #[error(
        "the API server of cluster {0} sends an answer of more than {1} bytes: see what is so large there, or whether it is one"
    )]
    Bytes(Arc<str>, usize),
    /// An event of a watch is too large.
    #[error(
        "the API server of cluster {0} sends an event of more than {1} bytes, larger than any object can be: see whether it is one"
    )]
    Event(Arc<str>, usize),
}

impl Exceeded {
    /// The one that `error` or what is below it is.
    pub(super) fn below(error: &(dyn std::error::Error + 'static)) -> Option<Self> {
        let mut next = Some(error);
        for _ in 0..8 {
            let error = next?;
            if let Some(found) = error.downcast_ref::<Self>() {
                return Some(found.clone());
            }
            // What an io::Error was made of is not below it, but in it.
            let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            next = inner.map_or_else(|| error.source(), |inner| Some(inner));
        }
        None
    }
}

/// What the API server of one cluster may cost.
#[derive(Clone, Debug)]
pub(super) struct Bounds {
    pub(super) cluster: Arc<str>,
    pub(super) request_timeout: Duration,
    pub(super) watch_limit: Duration,
}

impl Bounds {
    /// The answer of `send` to `request`, within bounds.
    pub(super) async fn ask<Q, B, E, F>(
        self,
        request: Request<Q>,
        send: impl FnOnce(Request<Q>) -> F,
    ) -> Result<Response<impl Body<Data = Bytes, Error = BoxError> + Send>, BoxError>
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin,
        E: Into<BoxError>,
        F: Future<Output = Result<Response<B>, E>>,
    {
        let asks_to_watch =
            request.uri().query().is_some_and(|query| query.split('&').any(|part| part == "watch=true"));
        let began = Instant::now();
        let end = began + self.request_timeout;
        let late = Exceeded::Time(Arc::clone(&self.cluster), self.request_timeout);
        let answer = before(end, send(request)).await.ok_or_else(|| late.clone())?.map_err(Into::into)?;
        // An error is an answer, also to whoever wants to watch.
        let reading = if asks_to_watch && answer.status().is_success() {
            let limit = self.watch_limit;
            Reading {
                size: Size::Watch(0),
                end: began + limit,
                late: Exceeded::Watch(Arc::clone(&self.cluster), limit),
            }
        } else {
            Reading { size: Size::Answer(0), end, late }
        };
        Ok(answer.map(|body| StreamBody::new(read(body, reading, self.cluster))))
    }
}

/// A body that is being read.
struct Reading {
    size: Size,
    end: Instant,
    /// What to say when that has come.
    late: Exceeded,
}

/// How much has come.
#[derive(Clone, Copy, Debug)]
enum Size {
    /// Of an answer.
    Answer(usize),
    /// Of the event of a watch that has not ended yet.
    Watch(usize),
}

impl Size {
    /// With `data` after it; nothing is larger than it may be.
    fn with(self, data: &[u8], cluster: &Arc<str>) -> Result<Self, Exceeded> {
        match self {
            Self::Answer(before) if before + data.len() > MOST_BYTES => {
                Err(Exceeded::Bytes(Arc::clone(cluster), MOST_BYTES))
            }
            Self::Answer(before) => Ok(Self::Answer(before + data.len())),
            Self::Watch(before) => {
                let mut size = before;
                for (at, part) in data.split(|byte| *byte == b'\n').enumerate() {
                    size = part.len() + if at == 0 { size } else { 0 };
                    if size > MOST_OF_EVENT {
                        return Err(Exceeded::Event(Arc::clone(cluster), MOST_OF_EVENT));
                    }
                }
                Ok(Self::Watch(size))
            }
        }
    }
}

fn read<B>(body: B, reading: Reading, cluster: Arc<str>) -> impl Stream<Item = Result<Frame<Bytes>, BoxError>> + Send
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin,
{
    stream::try_unfold((body, reading, cluster), |(mut body, mut reading, cluster)| async move {
        let Some(next) = before(reading.end, body.frame()).await else { return Err(reading.late.into()) };
        let Some(frame) = next.transpose().map_err(Into::into)? else { return Ok(None) };
        if let Some(data) = frame.data_ref() {
            reading.size = reading.size.with(data, &cluster)?;
        }
        Ok(Some((frame, (body, reading, cluster))))
    })
}

/// What `work` comes to, if it does by `end`: of the network alone, whose time is the real one.
async fn before<T>(end: Instant, work: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout_at(end, work).await.ok()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::pin::pin;

    use futures_util::StreamExt as _;
    use http_body_util::Empty;

    use super::*;

    const LIST: &str = "https://a/api/v1/pods?limit=500";
    const WATCH: &str = "https://a/api/v1/pods?allowWatchBookmarks=true&watch=true";
    const LONG: Duration = Duration::from_secs(600);
    const SHORT: Duration = Duration::from_millis(50);

    /// What comes of `chunks` as the answer with this status to a request of `path`, which may take so long, a watch so long.
    async fn answer(
        path: &str,
        status: u16,
        (request_timeout, watch_limit): (Duration, Duration),
        chunks: impl Stream<Item = Vec<u8>> + Send,
    ) -> Result<usize, Exceeded> {
        let frames = chunks.map(|chunk| Ok::<_, Infallible>(Frame::data(Bytes::from(chunk))));
        let response = Response::builder().status(status).body(StreamBody::new(Box::pin(frames))).unwrap();
        let bounds = Bounds { cluster: "main".into(), request_timeout, watch_limit };
        let send = |_: Request<()>| std::future::ready(Ok::<_, Infallible>(response));
        let mut body = pin!(bounds.ask(Request::get(path).body(()).unwrap(), send).await.unwrap().into_body());
        let mut read = 0;
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => read += frame.into_data().unwrap().len(),
                Err(error) => return Err(error.downcast_ref::<Exceeded>().unwrap().clone()),
            }
        }
        Ok(read)
    }

    #[tokio::test]
    async fn an_answer_has_an_end_in_bytes_and_an_event_of_a_watch_has_one() {
        let times = (LONG, LONG);
        let many = |count: usize, last: u8| {
            let mut chunk = vec![b'x'; 1 << 20];
            chunk[1000] = last;
            stream::iter(std::iter::repeat_n(chunk, count))
        };
        assert_eq!(answer(LIST, 200, times, many(64, b'x')).await, Ok(64 << 20));
        assert_eq!(answer(LIST, 200, times, many(65, b'x')).await, Err(Exceeded::Bytes("main".into(), 64 << 20)));
        assert_eq!(answer(WATCH, 200, times, many(10, b'x')).await, Ok(10 << 20));
        let endless = answer(WATCH, 200, times, many(11, b'x')).await.unwrap_err();
        assert!(endless.to_string().contains("cluster main sends an event of more than 10485760 bytes"), "{endless}");
        // Events that are small, one after another, are as many as they like; not what comes with an error.
        assert_eq!(answer(WATCH, 200, times, many(70, b'\n')).await, Ok(70 << 20));
        assert_eq!(answer(WATCH, 403, times, many(70, b'\n')).await, Err(Exceeded::Bytes("main".into(), 64 << 20)));
    }

    #[tokio::test]
    async fn an_answer_and_a_watch_end_in_time_whether_something_comes_or_nothing() {
        let late = answer(LIST, 200, (SHORT, LONG), stream::pending()).await.unwrap_err();
        assert!(late.to_string().contains("raise kubernetes.main.request_timeout"), "{late}");
        assert_eq!(
            answer(WATCH, 200, (LONG, SHORT), stream::pending()).await,
            Err(Exceeded::Watch("main".into(), SHORT))
        );
        let dripping = stream::unfold((), |()| async {
            tokio::task::yield_now().await;
            Some((b"{}\n".to_vec(), ()))
        });
        assert_eq!(answer(WATCH, 200, (LONG, SHORT), dripping).await, Err(Exceeded::Watch("main".into(), SHORT)));

        // No headers come.
        let bounds = Bounds { cluster: "main".into(), request_timeout: SHORT, watch_limit: LONG };
        let silent = |_: Request<()>| std::future::pending::<Result<Response<Empty<Bytes>>, Infallible>>();
        let Err(error) = bounds.ask(Request::get(WATCH).body(()).unwrap(), silent).await else { panic!("no end") };
        // As kube and what reads lines of it hand it on.
        let error = ::kube::Error::ReadEvents(io::Error::other(error));
        assert_eq!(Exceeded::below(&error), Some(Exceeded::Time("main".into(), SHORT)));
    }
}
