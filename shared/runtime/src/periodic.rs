//! Loops: work that is done at the start, at intervals, and at once when somebody says there is some.

use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::{BoxFuture, select_all};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, error, info_span};
use uuid::Uuid;

use crate::tasks::{Tasks, caught};

type Work = Box<dyn Fn() -> BoxFuture<'static, anyhow::Result<u64>> + Send + Sync>;
type Gate = Box<dyn Fn() -> BoxFuture<'static, bool> + Send + Sync>;
type Heard = Box<dyn Fn(&Run) + Send + Sync>;

/// What became of one run of a loop.
#[derive(Clone, Debug)]
pub struct Run {
    /// The loop.
    pub name: &'static str,
    /// How often it runs when nobody wakes it.
    pub every: Duration,
    /// `ok`, `error`, `panic`, `timeout`, or `skipped` by its gate.
    pub outcome: &'static str,
    /// What went wrong.
    pub error: Option<String>,
    /// How much was done.
    pub done: u64,
    /// How long it took.
    pub took: Duration,
    /// How long the loop rests now, unless it is woken.
    pub rests: Duration,
}

/// One loop: a name, an interval and the work.
///
/// A run returns how much it did. After a run that did something the next follows at once, until there is nothing left
/// to do; after one that did nothing or failed the loop waits for the interval (give or take a tenth, so that replicas
/// drift apart) or for a wake-up. A wake-up during a run causes another run; several cause one.
pub struct Periodic {
    name: &'static str,
    every: Duration,
    timeout: Duration,
    work: Work,
    gate: Option<Gate>,
    heard: Option<Heard>,
    wakes: Vec<watch::Receiver<u64>>,
}

impl Periodic {
    /// Creates a loop that runs at its start and then about `every` so often.
    pub fn new<F, R>(name: &'static str, every: Duration, run: F) -> Self
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = anyhow::Result<u64>> + Send + 'static,
    {
        const TIMEOUT: Duration = Duration::from_secs(5 * 60);
        let work: Work = Box::new(move || Box::pin(run()));
        Self {
            name,
            every,
            timeout: TIMEOUT,
            work,
            gate: None,
            heard: None,
            wakes: Vec::new(),
        }
    }

    /// Runs at once when the value of `wake` changes; may be called for several.
    pub fn woken_by(mut self, wake: watch::Receiver<u64>) -> Self {
        self.wakes.push(wake);
        self
    }

    /// Limits the time of one run, the gate included; 5 minutes unless told.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Asks before every run whether this process may do it, and skips the run if not.
    pub fn gate<F, G>(mut self, gate: F) -> Self
    where
        F: Fn() -> G + Send + Sync + 'static,
        G: Future<Output = bool> + Send + 'static,
    {
        self.gate = Some(Box::new(move || Box::pin(gate())));
        self
    }

    /// Tells somebody what became of each run.
    pub fn heard_by(mut self, heard: impl Fn(&Run) + Send + Sync + 'static) -> Self {
        self.heard = Some(Box::new(heard));
        self
    }

    /// Starts the loop. Stage one ends it after the current run, stage two during it.
    pub fn run_forever(self, tasks: &Tasks) {
        let (stop, kill) = (tasks.token(), tasks.kill_token());
        tasks.spawn(self.name, async move {
            tokio::select! {
                () = self.cycle(stop) => {}
                () = kill.cancelled() => {}
            }
        });
    }

    async fn cycle(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            for wake in &mut self.wakes {
                // Seen before the run looks, so that whatever comes during the run is a change.
                wake.mark_unchanged();
            }
            let mut run = self.run_once().await;
            let interval = jittered(self.every, RandomState::new().hash_one(self.name));
            if run.done == 0 {
                run.rests = interval;
            }
            if let Some(heard) = &self.heard {
                heard(&run);
            }
            if run.done > 0 {
                // Work that never waits must not keep a thread from others.
                tokio::task::yield_now().await;
                continue;
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = sleep(interval) => {}
                () = woken(&mut self.wakes) => {}
            }
        }
    }

    /// Runs once. Nothing is done, if the run was skipped or failed.
    async fn run_once(&self) -> Run {
        let (name, start) = (self.name, Instant::now());
        let run = caught(self.gated_run()).instrument(info_span!("loop", "loop" = name));
        let (outcome, done, error) = match timeout(self.timeout, run).await {
            Ok(Ok(Ok(Some(done)))) => ("ok", done, None),
            Ok(Ok(Ok(None))) => ("skipped", 0, None),
            Ok(Ok(Err(failure))) => ("error", 0, Some(format!("{failure:#}"))),
            Ok(Err(panic)) => ("panic", 0, Some(panic.to_string())),
            Err(_) => ("timeout", 0, Some(format!("it was ended after {:?}", self.timeout))),
        };
        if let Some(error) = &error {
            error!("loop" = name, outcome, "loop {name} failed: {error}");
        }
        let took = start.elapsed();
        metrics::counter!("loop_runs_total", "loop" => name, "outcome" => outcome).increment(1);
        metrics::histogram!("loop_duration_seconds", "loop" => name).record(took);
        if outcome == "ok" {
            metrics::gauge!("loop_last_success_timestamp", "loop" => name).set(unix_seconds());
            debug!("loop" = name, done, "loop {name} did {done}");
        }
        Run {
            name,
            every: self.every,
            outcome,
            error,
            done,
            took,
            rests: Duration::ZERO,
        }
    }

    /// `None` when the gate is closed.
    async fn gated_run(&self) -> anyhow::Result<Option<u64>> {
        match &self.gate {
            Some(gate) if !gate().await => Ok(None),
            _ => (self.work)().await.map(Some),
        }
    }
}

/// A name for this process that people can find it by, and that no other has: host, process id, and chance.
pub fn this_process() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = match host.trim() {
        "" => "host",
        host => host,
    };
    let chance = Uuid::new_v4().simple().to_string();
    format!("{host}/{}/{}", std::process::id(), &chance[..8])
}

/// Waits until one of `wakes` changes; for ever, if nobody can change them any more.
async fn woken(wakes: &mut Vec<watch::Receiver<u64>>) {
    while !wakes.is_empty() {
        let changes = wakes.iter_mut().map(|wake| Box::pin(wake.changed()));
        let (change, index, _) = select_all(changes).await;
        match change {
            Ok(()) => return,
            Err(_) => drop(wakes.swap_remove(index)),
        }
    }
    std::future::pending().await
}

/// Spreads `every` evenly over nine to eleven tenths of itself.
fn jittered(every: Duration, random: u64) -> Duration {
    every.mul_f64(0.9 + 0.2 * (random as f64 / u64::MAX as f64))
}

#[expect(
    clippy::disallowed_methods,
    reason = "a metric tells the time of this host, and no rule depends on it"
)]
fn unix_seconds() -> f64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
    use tokio::time::Instant;

    use super::*;
    use crate::telemetry;

    const EVERY: Duration = Duration::from_secs(60);

    /// A loop whose runs are announced and behave as `plan` says for the first, second, … run, and then do nothing.
    fn planned(name: &'static str, plan: &'static [&'static str]) -> (Periodic, UnboundedReceiver<usize>) {
        let (announce, runs) = unbounded_channel();
        let count = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let periodic = Periodic::new(name, EVERY, move || {
            let run = count.fetch_add(1, Ordering::SeqCst);
            announce.send(run).unwrap();
            async move {
                match plan.get(run) {
                    Some(&"more") => Ok(3),
                    Some(&"fail") => anyhow::bail!("on purpose"),
                    Some(&"panic") => panic!("on purpose"),
                    Some(&"hang") => std::future::pending().await,
                    _ => Ok(0),
                }
            }
        });
        (periodic, runs)
    }

    fn about_an_interval(elapsed: Duration) -> bool {
        (Duration::from_secs(54)..=Duration::from_secs(67)).contains(&elapsed)
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_runs_at_its_start_and_then_at_jittered_intervals() {
        let (periodic, mut runs) = planned("intervals", &[]);
        let tasks = Tasks::new();
        let start = Instant::now();
        periodic.run_forever(&tasks);
        runs.recv().await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO);
        for _ in 0..5 {
            let before = Instant::now();
            runs.recv().await.unwrap();
            assert!(about_an_interval(before.elapsed()), "{:?}", before.elapsed());
        }
        assert!(tasks.drain(EVERY).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_that_did_something_is_followed_at_once_until_one_does_nothing() {
        let (periodic, mut runs) = planned("drains", &["more", "more"]);
        let tasks = Tasks::new();
        let start = Instant::now();
        periodic.run_forever(&tasks);
        for _ in 0..3 {
            runs.recv().await.unwrap();
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
        runs.recv().await.unwrap();
        assert!(about_an_interval(start.elapsed()));
        assert!(tasks.drain(EVERY).await);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_panics_and_time_outs_are_counted_and_the_loop_goes_on_waiting_each_time() {
        telemetry::metrics();
        let (periodic, mut runs) = planned("fails", &["fail", "panic", "hang"]);
        let tasks = Tasks::new();
        periodic.timeout(Duration::from_secs(1)).run_forever(&tasks);
        runs.recv().await.unwrap();
        for _ in 0..4 {
            let before = Instant::now();
            runs.recv().await.unwrap();
            assert!(about_an_interval(before.elapsed()), "{:?}", before.elapsed());
        }
        assert!(tasks.drain(EVERY).await);
        let text = telemetry::render();
        for outcome in ["error", "panic", "timeout"] {
            let line = format!("loop_runs_total{{loop=\"fails\",outcome=\"{outcome}\"}} 1\n");
            assert!(text.contains(&line), "{line}{text}");
        }
        assert!(text.contains("loop_last_success_timestamp{loop=\"fails\"} 1"), "{text}");
        assert!(text.contains("loop_duration_seconds_count{loop=\"fails\"} 5"), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn any_wake_up_runs_the_loop_at_once_and_several_are_one() {
        let (first, second) = (watch::Sender::new(0), watch::Sender::new(0));
        let (periodic, mut runs) = planned("woken", &[]);
        let tasks = Tasks::new();
        periodic
            .woken_by(first.subscribe())
            .woken_by(second.subscribe())
            .run_forever(&tasks);
        runs.recv().await.unwrap();
        for sender in [&first, &second] {
            let before = Instant::now();
            sender.send_modify(|count| *count += 1);
            sender.send_modify(|count| *count += 1);
            runs.recv().await.unwrap();
            assert_eq!(before.elapsed(), Duration::ZERO);
        }
        let before = Instant::now();
        // A source of wake-ups that is gone leaves the other one and the interval.
        drop(first);
        runs.recv().await.unwrap();
        assert!(about_an_interval(before.elapsed()));
        second.send_replace(9);
        let before = Instant::now();
        runs.recv().await.unwrap();
        assert_eq!(before.elapsed(), Duration::ZERO);
        assert!(tasks.drain(EVERY).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wake_up_during_a_run_causes_another_run() {
        let wake = Arc::new(watch::Sender::new(0));
        let (announce, mut runs) = unbounded_channel();
        let (waker, first) = (wake.clone(), Arc::new(AtomicBool::new(true)));
        let periodic = Periodic::new("wakes_itself", EVERY, move || {
            announce.send(()).unwrap();
            if first.swap(false, Ordering::SeqCst) {
                waker.send_replace(1);
            }
            async { Ok(0) }
        });
        let tasks = Tasks::new();
        let start = Instant::now();
        periodic.woken_by(wake.subscribe()).run_forever(&tasks);
        runs.recv().await.unwrap();
        runs.recv().await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO);
        assert!(tasks.drain(EVERY).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_gate_skips_the_run() {
        let open = Arc::new(AtomicBool::new(false));
        let (wake, gate) = (watch::Sender::new(0), open.clone());
        let (asked, mut questions) = unbounded_channel();
        let (periodic, mut runs) = planned("gated", &[]);
        let tasks = Tasks::new();
        let gate = move || {
            asked.send(()).unwrap();
            std::future::ready(gate.load(Ordering::SeqCst))
        };
        periodic.woken_by(wake.subscribe()).gate(gate).run_forever(&tasks);
        questions.recv().await.unwrap();
        assert!(runs.try_recv().is_err());
        open.store(true, Ordering::SeqCst);
        wake.send_replace(1);
        runs.recv().await.unwrap();
        assert!(tasks.drain(EVERY).await);
    }

    #[tokio::test(start_paused = true)]
    async fn stage_one_finishes_the_current_run_and_stage_two_ends_it() {
        let tasks = Tasks::new();
        let (finished, stop) = (Arc::new(AtomicBool::new(false)), tasks.token());
        let (announce, mut runs) = unbounded_channel();
        let done = finished.clone();
        let periodic = Periodic::new("finishes", EVERY, move || {
            announce.send(()).unwrap();
            let (stop, done) = (stop.clone(), done.clone());
            async move {
                stop.cancelled().await;
                tokio::task::yield_now().await;
                done.store(true, Ordering::SeqCst);
                Ok(1)
            }
        });
        periodic.run_forever(&tasks);
        runs.recv().await.unwrap();
        assert!(tasks.drain(EVERY).await);
        assert!(finished.load(Ordering::SeqCst));
        assert!(runs.recv().await.is_none(), "there is no run after stage one");

        let tasks = Tasks::new();
        let (periodic, mut runs) = planned("hangs", &["hang"]);
        periodic.run_forever(&tasks);
        runs.recv().await.unwrap();
        let start = Instant::now();
        assert!(!tasks.drain(EVERY).await);
        assert_eq!(start.elapsed(), EVERY);
    }

    #[test]
    fn jitter_stays_within_a_tenth() {
        assert_eq!(jittered(EVERY, 0), Duration::from_secs(54));
        assert_eq!(jittered(EVERY, u64::MAX), Duration::from_secs(66));
    }
}
