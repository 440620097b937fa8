//! A future beside one that moves often.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::AcqRel, Ordering::Acquire, Ordering::Release},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::task::AtomicWaker;

/// A future that is polled only when it was woken itself, whatever else its task was woken for. To poll it for nothing
/// costs no more than to look at a flag.
pub(crate) struct Rarely<F> {
    future: F,
    bell: Arc<Bell>,
    /// Who is told.
    task: Option<Waker>,
}

struct Bell {
    rang: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.rang.store(true, Release);
        self.task.wake();
    }
}

impl<F: Future + Unpin> Rarely<F> {
    pub(crate) fn new(future: F) -> Self {
        let bell = Bell {
            rang: AtomicBool::new(true),
            task: AtomicWaker::new(),
        };
        Self {
            future,
            bell: Arc::new(bell),
            task: None,
        }
    }
}

impl<F: Future + Unpin> Future for Rarely<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.get_mut();
        let told = this.task.as_ref().is_some_and(|task| task.will_wake(cx.waker()));
        if told && !this.bell.rang.load(Acquire) {
            return Poll::Pending;
        }
        // It is told once. Whoever rings from here on tells it again.
        this.bell.task.register(cx.waker());
        this.task = Some(cx.waker().clone());
        match this.bell.rang.swap(false, AcqRel) {
            true => Pin::new(&mut this.future).poll(&mut Context::from_waker(&this.bell.clone().into())),
            false => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, sync::atomic::AtomicUsize};

    use super::*;

    /// Counts how often it is woken.
    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, AcqRel);
        }
    }

    #[test]
    fn it_is_polled_when_it_was_woken_and_tells_the_task_that_asked_last() {
        let mut polled = 0;
        let mut rarely = Rarely::new(poll_fn(|_| {
            polled += 1;
            if polled < 3 { Poll::Pending } else { Poll::Ready(polled) }
        }));
        let [one, other] = [Arc::new(Woken::default()), Arc::new(Woken::default())];
        let woken = || [&one, &other].map(|task| task.0.load(Acquire));
        let mut poll = |task: &Arc<Woken>| {
            let waker = Waker::from(task.clone());
            let polled = Pin::new(&mut rarely).poll(&mut Context::from_waker(&waker));
            (polled, rarely.bell.clone())
        };
        let (polled, bell) = poll(&one);
        assert!(polled.is_pending());
        assert!(poll(&one).0.is_pending() && poll(&other).0.is_pending());
        bell.clone().wake();
        assert_eq!(woken(), [0, 1]);
        assert!(poll(&other).0.is_pending(), "the second time");
        bell.clone().wake();
        bell.wake();
        assert_eq!(woken(), [0, 2], "it is told once");
        assert_eq!(poll(&other).0, Poll::Ready(3), "all else was for nothing");
    }
}
