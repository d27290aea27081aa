//! How long a connection is waited for, and how long it may last.
//!
//! - **Silence ends**: a peer that has not sent the whole preface of HTTP/2 (RFC 9113 section 3.4) in time is cut off.
//!   Only after it does the server's own keepalive look whether anybody is there.
//! - **A guest leaves**: a connection with an end is cut off at it, whatever goes on. Whoever has more to say comes again.
//! - Reading and writing fail alike: a peer that reads nothing cannot stay by it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use spiffe::time::{Clock, Timestamp};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The length of the preface of a client, in bytes.
const PREFACE: usize = 24;

/// When a connection ends by itself, once its preface is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Not at all.
    Never,
    /// After this time.
    After(Duration),
    /// At this moment.
    At(Timestamp),
}

/// A stream that fails with `TimedOut` by the rules above.
pub(super) struct Patient<S> {
    stream: S,
    clock: Arc<dyn Clock>,
    /// How many bytes of the preface have not come yet.
    preface: usize,
    end: End,
    limit: Option<BoxFuture<'static, ()>>,
}

impl<S> Patient<S> {
    /// Waits for the preface for `opening`; from then on until `end`.
    pub(super) fn new(stream: S, clock: Arc<dyn Clock>, opening: Duration, end: End) -> Self {
        let limit = limit(&clock, End::After(opening));
        Self { stream, clock, preface: PREFACE, end, limit }
    }

    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let Some(limit) = &mut self.limit else { return Ok(()) };
        match limit.as_mut().poll(context) {
            Poll::Pending => Ok(()),
            Poll::Ready(()) => {
                self.limit = Some(Box::pin(std::future::ready(())));
                let what = if self.preface > 0 { "no HTTP/2 preface in time" } else { "the connection's time is over" };
                Err(io::Error::new(io::ErrorKind::TimedOut, what))
            }
        }
    }
}

fn limit(clock: &Arc<dyn Clock>, end: End) -> Option<BoxFuture<'static, ()>> {
    let clock = Arc::clone(clock);
    match end {
        End::Never => None,
        End::After(duration) => Some(Box::pin(async move { clock.sleep(duration).await })),
        End::At(moment) => Some(Box::pin(async move { clock.sleep_until(moment).await })),
    }
}

impl<S> std::fmt::Debug for Patient<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Patient").field("preface", &self.preface).field("end", &self.end).finish_non_exhaustive()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check(context)?;
        let before = into.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(context, into);
        if this.preface > 0 && read.is_ready() {
            this.preface = this.preface.saturating_sub(into.filled().len().saturating_sub(before));
            if this.preface == 0 {
                this.limit = limit(&this.clock, this.end);
                // Its waker has to be known, although these bytes may be all that is read for long.
                this.check(context)?;
            }
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.check(context)?;
        Pin::new(&mut this.stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check(context)?;
        Pin::new(&mut this.stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check(context)?;
        Pin::new(&mut this.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use spiffe::time::Fake;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    use super::*;

    const OPENING: Duration = Duration::from_secs(10);
    const LIFE: End = End::After(Duration::from_secs(60));

    fn connection(end: End) -> (Fake, DuplexStream, Patient<DuplexStream>) {
        let clock = Fake::new(Timestamp::from_unix(1000));
        let (peer, ours) = tokio::io::duplex(64);
        let patient = Patient::new(ours, Arc::new(clock.clone()), OPENING, end);
        (clock, peer, patient)
    }

    fn look<T>(future: &mut (impl Future<Output = T> + Unpin)) -> Poll<T> {
        Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
    }

    /// What a read comes to when this time passes while it waits; `None`: it still waits.
    async fn read_while(clock: &Fake, patient: &mut Patient<DuplexStream>, seconds: u64) -> Option<io::ErrorKind> {
        let mut buffer = [0; 1];
        let mut reading = Box::pin(patient.read(&mut buffer));
        assert!(look(&mut reading).is_pending());
        clock.advance(Duration::from_secs(seconds));
        match look(&mut reading) {
            Poll::Pending => None,
            Poll::Ready(read) => Some(read.unwrap_err().kind()),
        }
    }

    #[tokio::test]
    async fn silence_ends() {
        let (clock, _peer, mut patient) = connection(End::Never);
        assert_eq!(read_while(&clock, &mut patient, 9).await, None);
        assert_eq!(read_while(&clock, &mut patient, 1).await, Some(io::ErrorKind::TimedOut));
        assert!(patient.write_all(b"late").await.is_err() && patient.shutdown().await.is_err());
    }

    #[tokio::test]
    async fn a_preface_that_drips_is_silence() {
        let (clock, mut peer, mut patient) = connection(End::Never);
        for byte in b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r".iter().take(9) {
            peer.write_u8(*byte).await.unwrap();
            patient.read_u8().await.unwrap();
            clock.advance(Duration::from_secs(1));
        }
        assert_eq!(read_while(&clock, &mut patient, 1).await, Some(io::ErrorKind::TimedOut));
    }

    #[tokio::test]
    async fn who_has_opened_stays_to_the_end_and_no_longer() {
        for (end, seconds) in [(LIFE, Some(60)), (End::At(Timestamp::from_unix(1090)), Some(90)), (End::Never, None)] {
            let (clock, mut peer, mut patient) = connection(end);
            peer.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
            patient.read_exact(&mut [0; PREFACE]).await.unwrap();
            let Some(seconds) = seconds else {
                assert_eq!(read_while(&clock, &mut patient, 1_000_000).await, None);
                continue;
            };
            assert_eq!(read_while(&clock, &mut patient, seconds - 1).await, None);
            // Whatever is said meanwhile.
            peer.write_all(b"more").await.unwrap();
            patient.read_exact(&mut [0; 4]).await.unwrap();
            assert_eq!(read_while(&clock, &mut patient, 1).await, Some(io::ErrorKind::TimedOut));
        }
    }

    #[tokio::test]
    async fn who_reads_nothing_stays_no_longer() {
        let (clock, mut peer, mut patient) = connection(LIFE);
        peer.write_all(&[0; PREFACE]).await.unwrap();
        patient.read_exact(&mut [0; PREFACE]).await.unwrap();
        let mut writing = Box::pin(patient.write_all(&[0; 1000]));
        assert!(look(&mut writing).is_pending());
        clock.advance(Duration::from_secs(60));
        assert!(look(&mut writing).is_ready());
    }
}
