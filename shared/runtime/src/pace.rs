//! How a connection moves, so that one that does not can be ended.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;
use std::{io, io::IoSlice};

use axum::body::Body;
use axum::http::Version;
use futures_util::future::Either;
use http_body_util::Full;
use hyper::body::{Bytes, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::places::millis;
use crate::serve::Limits;

/// What is to become of a connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It moves.
    Fine,
    /// Nobody has asked for anything in a while.
    Idle,
    /// The head of a request is overdue, or an answer is not taken.
    Stuck,
}

/// What happened on a connection. It counts, and looks at a clock only when a request is answered: [`Watch`] does
/// otherwise, now and then.
#[derive(Default)]
pub(crate) struct Pace {
    /// Requests that have a whole head, and those of them that are wholly answered.
    asked: AtomicU64,
    answered: AtomicU64,
    /// Frames of HTTP/2 arrive between requests as well, so they say nothing about heads.
    frames: AtomicBool,
    /// Heads that began and heads that ended: odd while one is under way.
    heads: AtomicU64,
    /// Times that the client did not take octets, and that it took them again: odd while it does not.
    stalls: AtomicU64,
    /// When the last request was wholly answered, or the connection began.
    quiet_at: AtomicU64,
}

impl Pace {
    pub(crate) fn new() -> Arc<Self> {
        // The first head is awaited from the beginning.
        Arc::new(Self {
            heads: AtomicU64::new(1),
            quiet_at: AtomicU64::new(millis()),
            ..Self::default()
        })
    }

    /// A request has a whole head; it is open until what is returned is dropped.
    pub(crate) fn asked(self: &Arc<Self>, version: Version) -> Open {
        self.asked.fetch_add(1, Relaxed);
        self.frames.store(version == Version::HTTP_2, Relaxed);
        set(&self.heads, false);
        Open(self.clone())
    }

    /// Whether some request is not wholly answered.
    fn is_open(&self) -> bool {
        self.answered.load(Relaxed) != self.asked.load(Relaxed)
    }
}

impl Pace {
    /// Since when no request is under way; nothing while one is.
    pub(crate) fn idle_since(&self) -> Option<u64> {
        (!self.is_open()).then(|| self.quiet_at.load(Relaxed))
    }
}

/// Makes a count odd or even, by going on by one if it is not.
fn set(count: &AtomicU64, odd: bool) {
    let now = count.load(Relaxed);
    if (now % 2 == 1) != odd {
        count.store(now + 1, Relaxed);
    }
}

/// Looks at a [`Pace`] from time to time. What it sees for the first time began at the latest then.
pub(crate) struct Watch {
    pace: Arc<Pace>,
    answered: Seen,
    heads: Seen,
    stalls: Seen,
}

struct Seen {
    count: u64,
    since: Instant,
}

impl Seen {
    fn for_how_long(&mut self, count: &AtomicU64) -> Duration {
        let (count, now) = (count.load(Relaxed), Instant::now());
        if count != self.count {
            *self = Self { count, since: now };
        }
        now - self.since
    }
}

impl Watch {
    pub(crate) fn new(pace: Arc<Pace>) -> Self {
        let since = Instant::now();
        let seen = |count: &AtomicU64| Seen {
            count: count.load(Relaxed),
            since,
        };
        Self {
            answered: seen(&pace.answered),
            heads: seen(&pace.heads),
            stalls: seen(&pace.stalls),
            pace,
        }
    }

    pub(crate) fn verdict(&mut self, limits: &Limits) -> Verdict {
        let pace = &self.pace;
        let quiet = self.answered.for_how_long(&pace.answered);
        let head = self.heads.for_how_long(&pace.heads);
        let stall = self.stalls.for_how_long(&pace.stalls);
        if self.stalls.count % 2 == 1 && stall >= limits.idle_timeout {
            return Verdict::Stuck;
        }
        if pace.is_open() {
            return Verdict::Fine;
        }
        let counts = !pace.frames.load(Relaxed) || pace.asked.load(Relaxed) == 0;
        match () {
            () if counts && self.heads.count % 2 == 1 && head >= limits.header_timeout => Verdict::Stuck,
            () if quiet >= limits.idle_timeout => Verdict::Idle,
            () => Verdict::Fine,
        }
    }
}

/// A request that is not wholly answered.
pub(crate) struct Open(Arc<Pace>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.quiet_at.store(millis(), Relaxed);
        self.0.answered.fetch_add(1, Relaxed);
    }
}

/// The body of an answer, which keeps its request open.
pub(crate) struct Answered {
    body: Either<Full<Bytes>, Body>,
    _open: Open,
}

impl Answered {
    pub(crate) fn new(body: Body, open: Open) -> Self {
        let body = Either::Right(body);
        Self { body, _open: open }
    }

    /// Octets that are there cost less than a body of any kind.
    pub(crate) fn whole(octets: Bytes, open: Open) -> Self {
        let body = Either::Left(Full::new(octets));
        Self { body, _open: open }
    }
}

impl hyper::body::Body for Answered {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        match &mut self.body {
            Either::Left(octets) => Pin::new(octets).poll_frame(cx).map_err(|never| match never {}),
            Either::Right(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.body {
            Either::Left(octets) => octets.is_end_stream(),
            Either::Right(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            Either::Left(octets) => octets.size_hint(),
            Either::Right(body) => body.size_hint(),
        }
    }
}

/// Octets in several pieces that are put together before they are written: the kernel takes one piece with less ado.
const SHORT: usize = 2048;

/// A stream that tells its [`Pace`].
pub(crate) struct Paced<S>(pub(crate) S, pub(crate) Arc<Pace>);

impl<S> Paced<S> {
    fn wrote<T>(&self, written: Poll<T>) -> Poll<T> {
        set(&self.1.stalls, written.is_pending());
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.0).poll_read(cx, buf);
        let pace = &self.1;
        if buf.filled().len() > before && !pace.is_open() {
            set(&pace.heads, true);
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.0).poll_write(cx, buf);
        self.wrote(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length: usize = bufs.iter().map(|buf| buf.len()).sum();
        let written = match bufs.len() > 1 && length <= SHORT {
            true => {
                let mut whole = [0; SHORT];
                let mut rest = &mut whole[..];
                for buf in bufs {
                    let (here, behind) = rest.split_at_mut(buf.len());
                    here.copy_from_slice(buf);
                    rest = behind;
                }
                Pin::new(&mut self.0).poll_write(cx, &whole[..length])
            }
            false => Pin::new(&mut self.0).poll_write_vectored(cx, bufs),
        };
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.0).poll_flush(cx);
        self.wrote(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::time::advance;

    use super::*;

    const LIMITS: Limits = Limits {
        connections: 1,
        share: 1,
        header_timeout: Duration::from_secs(10),
        idle_timeout: Duration::from_secs(60),
    };

    async fn after(seconds: u64, watch: &mut Watch) -> Verdict {
        advance(Duration::from_secs(seconds)).await;
        watch.verdict(&LIMITS)
    }

    fn begun() -> (Arc<Pace>, Watch) {
        let pace = Pace::new();
        (pace.clone(), Watch::new(pace))
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_ten_seconds_an_idle_connection_sixty_and_an_open_request_all_it_needs() {
        let (_pace, mut watch) = begun();
        assert_eq!(after(9, &mut watch).await, Verdict::Fine);
        assert_eq!(after(1, &mut watch).await, Verdict::Stuck);
        for version in [Version::HTTP_11, Version::HTTP_2] {
            let (pace, mut watch) = begun();
            let open = pace.asked(version);
            assert_eq!(after(500, &mut watch).await, Verdict::Fine);
            drop(open);
            assert_eq!(after(0, &mut watch).await, Verdict::Fine);
            assert_eq!(after(59, &mut watch).await, Verdict::Fine);
            assert_eq!(after(1, &mut watch).await, Verdict::Idle);
            drop(pace.asked(version));
            let mut octet = [0; 1];
            Paced(&b"G"[..], pace.clone()).read_exact(&mut octet).await.unwrap();
            assert_eq!(after(5, &mut watch).await, Verdict::Fine);
            let stuck = match version == Version::HTTP_2 {
                true => Verdict::Fine,
                false => Verdict::Stuck,
            };
            assert_eq!(after(10, &mut watch).await, stuck, "{version:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_not_taken_is_not_kept_for_ever() {
        let (pace, mut watch) = begun();
        let _open = pace.asked(Version::HTTP_11);
        let (stream, _peer) = tokio::io::duplex(4);
        let mut stream = Paced(stream, pace.clone());
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(Pin::new(&mut stream).poll_write(&mut cx, b"1234").is_ready());
        assert!(Pin::new(&mut stream).poll_write(&mut cx, b"5").is_pending());
        assert_eq!(after(5, &mut watch).await, Verdict::Fine);
        assert_eq!(after(59, &mut watch).await, Verdict::Fine);
        assert!(Pin::new(&mut stream).poll_write(&mut cx, b"5").is_pending());
        assert_eq!(after(1, &mut watch).await, Verdict::Stuck);
    }

    #[tokio::test]
    async fn pieces_are_written_in_their_order_whether_they_are_short_or_long() {
        for lengths in [[3, 4, 0], [100, SHORT - 100, 0], [100, SHORT, 1]] {
            let pieces: Vec<Vec<u8>> = lengths.iter().zip(b'a'..).map(|(n, octet)| vec![octet; *n]).collect();
            let slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
            let mut stream = Paced(Vec::new(), Pace::new());
            let mut cx = Context::from_waker(std::task::Waker::noop());
            let written = Pin::new(&mut stream).poll_write_vectored(&mut cx, &slices);
            assert!(matches!(written, Poll::Ready(Ok(n)) if n == lengths.iter().sum::<usize>()));
            assert!(stream.0 == pieces.concat(), "{lengths:?}");
        }
    }
}
