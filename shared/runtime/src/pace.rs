//! How a connection moves, so that one that does not can be ended.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;
use std::{io, io::IoSlice};

use axum::body::Body;
use axum::http::Version;
use hyper::body::{Bytes, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

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

/// What happened on a connection, and when: milliseconds since it began, and 0 for not at all.
pub(crate) struct Pace {
    began: Instant,
    /// Requests that are not wholly answered.
    open: AtomicUsize,
    asked: AtomicBool,
    /// Frames of HTTP/2 arrive between requests as well, so they say nothing about heads.
    frames: AtomicBool,
    quiet_since: AtomicU64,
    head_since: AtomicU64,
    stalled_since: AtomicU64,
}

impl Pace {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            began: Instant::now(),
            open: AtomicUsize::new(0),
            asked: AtomicBool::new(false),
            frames: AtomicBool::new(false),
            quiet_since: AtomicU64::new(1),
            head_since: AtomicU64::new(1),
            stalled_since: AtomicU64::new(0),
        })
    }

    fn now(&self) -> u64 {
        1 + self.began.elapsed().as_millis() as u64
    }

    /// A request has a whole head; it is open until what is returned is dropped.
    pub(crate) fn asked(self: &Arc<Self>, version: Version) -> Open {
        self.open.fetch_add(1, Relaxed);
        self.asked.store(true, Relaxed);
        self.frames.store(version == Version::HTTP_2, Relaxed);
        self.head_since.store(0, Relaxed);
        Open(self.clone())
    }

    pub(crate) fn verdict(&self, limits: &Limits) -> Verdict {
        let now = self.now();
        let over = |since: &AtomicU64, limit: Duration| {
            let since = since.load(Relaxed);
            since != 0 && u128::from(now.saturating_sub(since)) >= limit.as_millis()
        };
        if over(&self.stalled_since, limits.idle_timeout) {
            return Verdict::Stuck;
        }
        if self.open.load(Relaxed) > 0 {
            return Verdict::Fine;
        }
        let counts = !self.frames.load(Relaxed) || !self.asked.load(Relaxed);
        match () {
            () if counts && over(&self.head_since, limits.header_timeout) => Verdict::Stuck,
            () if over(&self.quiet_since, limits.idle_timeout) => Verdict::Idle,
            () => Verdict::Fine,
        }
    }
}

/// A request that is not wholly answered.
pub(crate) struct Open(Arc<Pace>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.quiet_since.store(self.0.now(), Relaxed);
        self.0.open.fetch_sub(1, Relaxed);
    }
}

/// The body of an answer, which keeps its request open.
pub(crate) struct Answered {
    body: Body,
    _open: Open,
}

impl Answered {
    pub(crate) fn new(body: Body, open: Open) -> Self {
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
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A stream that tells its [`Pace`].
pub(crate) struct Paced<S>(pub(crate) S, pub(crate) Arc<Pace>);

impl<S> Paced<S> {
    fn wrote<T>(&self, written: Poll<T>) -> Poll<T> {
        let stalled = &self.1.stalled_since;
        match written {
            Poll::Ready(_) => stalled.store(0, Relaxed),
            Poll::Pending if stalled.load(Relaxed) == 0 => stalled.store(self.1.now(), Relaxed),
            Poll::Pending => {}
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.0).poll_read(cx, buf);
        let pace = &self.1;
        let first = buf.filled().len() > before && pace.open.load(Relaxed) == 0;
        if first && pace.head_since.load(Relaxed) == 0 {
            pace.head_since.store(pace.now(), Relaxed);
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
        let written = Pin::new(&mut self.0).poll_write_vectored(cx, bufs);
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
        header_timeout: Duration::from_secs(10),
        idle_timeout: Duration::from_secs(60),
    };

    async fn after(seconds: u64, pace: &Pace) -> Verdict {
        advance(Duration::from_secs(seconds)).await;
        pace.verdict(&LIMITS)
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_ten_seconds_an_idle_connection_sixty_and_an_open_request_all_it_needs() {
        let pace = Pace::new();
        assert_eq!(after(9, &pace).await, Verdict::Fine);
        assert_eq!(after(1, &pace).await, Verdict::Stuck);
        for version in [Version::HTTP_11, Version::HTTP_2] {
            let pace = Pace::new();
            let open = pace.asked(version);
            assert_eq!(after(500, &pace).await, Verdict::Fine);
            drop(open);
            assert_eq!(after(59, &pace).await, Verdict::Fine);
            assert_eq!(after(1, &pace).await, Verdict::Idle);
            drop(pace.asked(version));
            let mut octet = [0; 1];
            Paced(&b"G"[..], pace.clone()).read_exact(&mut octet).await.unwrap();
            let stuck = if version == Version::HTTP_2 {
                Verdict::Fine
            } else {
                Verdict::Stuck
            };
            assert_eq!(after(10, &pace).await, stuck, "{version:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_not_taken_is_not_kept_for_ever() {
        let pace = Pace::new();
        let _open = pace.asked(Version::HTTP_11);
        let (stream, _peer) = tokio::io::duplex(4);
        let mut stream = Paced(stream, pace.clone());
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(Pin::new(&mut stream).poll_write(&mut cx, b"1234").is_ready());
        assert!(Pin::new(&mut stream).poll_write(&mut cx, b"5").is_pending());
        assert_eq!(after(59, &pace).await, Verdict::Fine);
        assert!(Pin::new(&mut stream).poll_write(&mut cx, b"5").is_pending());
        assert_eq!(after(1, &pace).await, Verdict::Stuck);
    }
}
