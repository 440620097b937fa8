//! The owner of every task, and the end of a process in two stages.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::process;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::signal::unix::{self, SignalKind};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

/// The tasks of a process. Clones share them.
///
/// Stage one asks tasks to take no new work and finish what they have; stage two asks them to end now. Both are
/// tokens that tasks look at; a task that looks at neither is ended by the end of the process.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
    kill: CancellationToken,
}

impl Tasks {
    /// Creates an owner without tasks.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a task. A panic in it is logged and counted in `task_panics_total`, and ends only that task.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(async move {
            if let Err(panic) = caught(task).await {
                metrics::counter!("task_panics_total", "task" => name).increment(1);
                error!(task = name, "task {name} panicked: {panic}");
            }
        });
    }

    /// Stage one: take no new work. Anything that waits for work, such as a long poll, waits for this as well.
    pub fn token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Stage two: end now, leaving work to whoever finds it.
    pub fn kill_token(&self) -> CancellationToken {
        self.kill.clone()
    }

    /// Ends the tasks: stage one, up to `grace` of waiting, then stage two and a last moment.
    ///
    /// Returns whether all tasks ended within `grace`. A further signal ends the process at once.
    pub async fn drain(&self, grace: Duration) -> bool {
        tokio::select! {
            ended = self.end(grace) => ended,
            () = signal() => {
                warn!("a second signal came before the tasks had ended");
                process::exit(1)
            }
        }
    }

    async fn end(&self, grace: Duration) -> bool {
        const LAST_MOMENT: Duration = Duration::from_secs(2);
        self.stop.cancel();
        self.tracker.close();
        if timeout(grace, self.tracker.wait()).await.is_ok() {
            return true;
        }
        warn!(tasks = self.tracker.len(), "tasks did not end in {grace:?}");
        self.kill.cancel();
        if timeout(LAST_MOMENT, self.tracker.wait()).await.is_err() {
            warn!(tasks = self.tracker.len(), "tasks are abandoned");
        }
        false
    }
}

/// Waits for SIGTERM or SIGINT.
pub async fn signal() {
    let listen = |kind| unix::signal(kind).expect("the runtime listens to signals, and these two may be caught");
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate()), listen(SignalKind::interrupt()));
    let name = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    info!(signal = name, "received {name}");
}

/// Turns a panic of `future` into its message.
pub(crate) async fn caught<F: Future>(future: F) -> Result<F::Output, String> {
    // What a panicking future touched is dropped with it; what it shares is guarded by locks that tell of poison.
    AssertUnwindSafe(future)
        .catch_unwind()
        .await
        .map_err(|panic| message(&*panic))
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::time::Instant;

    use super::*;

    const GRACE: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn a_task_that_heeds_stage_one_ends_in_the_grace() {
        let tasks = Tasks::new();
        let stop = tasks.token();
        tasks.spawn("heeds", async move { stop.cancelled().await });
        assert!(tasks.drain(GRACE).await);
        assert!(!tasks.kill_token().is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_heeds_only_stage_two_ends_after_the_grace() {
        let tasks = Tasks::new();
        let kill = tasks.kill_token();
        tasks.spawn("late", async move { kill.cancelled().await });
        let start = Instant::now();
        assert!(!tasks.drain(GRACE).await);
        assert_eq!(start.elapsed().as_secs(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_heeds_nothing_is_abandoned_after_two_more_seconds() {
        let tasks = Tasks::new();
        tasks.spawn("deaf", std::future::pending());
        let start = Instant::now();
        assert!(!tasks.drain(GRACE).await);
        assert_eq!(start.elapsed().as_secs(), 12);
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_is_counted_and_leaves_the_other_tasks_alone() {
        crate::telemetry::metrics();
        let tasks = Tasks::new();
        let (stop, ended) = (tasks.token(), Arc::new(AtomicBool::new(false)));
        let other = ended.clone();
        tasks.spawn("panics_on_purpose", async { panic!("on purpose") });
        tasks.spawn("other", async move {
            stop.cancelled().await;
            other.store(true, Ordering::SeqCst);
        });
        assert!(tasks.drain(GRACE).await);
        assert!(ended.load(Ordering::SeqCst));
        let text = crate::telemetry::render();
        assert!(
            text.contains("task_panics_total{task=\"panics_on_purpose\"} 1"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn a_caught_panic_tells_its_message() {
        assert_eq!(caught(async { 7 }).await, Ok(7));
        assert_eq!(caught(async { panic!("plain") }).await, Err::<(), _>("plain".into()));
        assert_eq!(
            caught(async { panic!("number {}", 7) }).await,
            Err::<(), _>("number 7".into())
        );
    }
}
