//! Driving an operation: at a constant rate, or as fast as it answers.
//!
//! At a constant rate every request has its instant, set before the first one is sent. A request that has to wait for a
//! free connection is late, and that counts: its latency begins at its instant. So a server that stops for a second is
//! seen by all who would have asked in it (no coordinated omission).

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use certctl_client::ClientError;
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

/// The longest latency that is told apart, in microseconds.
const LONGEST: u64 = 120_000_000;

/// What became of one request.
pub(crate) struct Done {
    /// Which operation it was.
    pub(crate) operation: &'static str,
    /// 200 for success; the status of a refusal; 0 for no answer.
    pub(crate) status: u16,
}

impl Done {
    pub(crate) fn of<T>(operation: &'static str, answer: Result<T, ClientError>) -> Self {
        let status = match &answer {
            Ok(_) => 200,
            Err(error) => error.status().unwrap_or(0),
        };
        Self { operation, status }
    }
}

/// Latencies and refusals of one operation.
pub(crate) struct Figures {
    latency: Histogram<u64>,
    refused: BTreeMap<u16, u64>,
}

impl Default for Figures {
    fn default() -> Self {
        Self {
            latency: Histogram::new_with_bounds(1, LONGEST, 3).expect("valid bounds"),
            refused: BTreeMap::new(),
        }
    }
}

impl Figures {
    pub(crate) fn note(&mut self, status: u16, latency: Duration) {
        match status {
            200 => self.latency.saturating_record(latency.as_micros() as u64),
            refusal => *self.refused.entry(refusal).or_default() += 1,
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.latency.add(&other.latency).expect("the same bounds");
        for (status, count) in &other.refused {
            *self.refused.entry(*status).or_default() += count;
        }
    }

    /// How many succeeded.
    pub(crate) fn succeeded(&self) -> u64 {
        self.latency.len()
    }

    /// How many did not.
    pub(crate) fn failed(&self) -> u64 {
        self.refused.values().sum()
    }

    /// How many were answered with this status, or not at all for 0.
    pub(crate) fn refused(&self, status: impl Fn(u16) -> bool) -> u64 {
        self.refused.iter().filter(|(s, _)| status(**s)).map(|(_, n)| n).sum()
    }

    /// A percentile, in milliseconds.
    pub(crate) fn percentile(&self, percent: f64) -> f64 {
        ms(self.latency.value_at_percentile(percent))
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "count": self.succeeded(),
            "p50_ms": self.percentile(50.0),
            "p90_ms": self.percentile(90.0),
            "p99_ms": self.percentile(99.0),
            "p999_ms": self.percentile(99.9),
            "max_ms": ms(self.latency.max()),
            "refused": self.refused.iter().map(|(s, n)| (s.to_string(), json!(n))).collect::<serde_json::Map<_, _>>(),
        })
    }
}

fn ms(micros: u64) -> f64 {
    micros as f64 / 1000.0
}

/// Three digits behind the point.
pub(crate) fn round(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

/// The figures of all operations.
#[derive(Default)]
pub(crate) struct Report {
    pub(crate) operations: BTreeMap<&'static str, Figures>,
    pub(crate) elapsed: Duration,
}

impl Report {
    pub(crate) fn note(&mut self, done: &Done, latency: Duration) {
        self.operations
            .entry(done.operation)
            .or_default()
            .note(done.status, latency);
    }

    fn merge(&mut self, other: Self) {
        for (operation, figures) in &other.operations {
            self.operations.entry(operation).or_default().add(figures);
        }
    }

    /// Everything together.
    pub(crate) fn whole(&self) -> Figures {
        let mut whole = Figures::default();
        self.operations.values().for_each(|figures| whole.add(figures));
        whole
    }

    /// Successes in a second.
    pub(crate) fn per_second(&self) -> f64 {
        round(self.whole().succeeded() as f64 / self.elapsed.as_secs_f64())
    }

    pub(crate) fn json(&self) -> Value {
        let operations = self
            .operations
            .iter()
            .map(|(name, figures)| ((*name).to_owned(), figures.json()));
        json!({
            "seconds": round(self.elapsed.as_secs_f64()),
            "per_second": self.per_second(),
            "operations": serde_json::Map::from_iter(operations),
        })
    }

    /// For people.
    pub(crate) fn table(&self) -> String {
        let mut text = format!(
            "{:<28}{:>9}{:>10}{:>10}{:>10}{:>10}  refused\n",
            "", "count", "p50 ms", "p90", "p99", "max"
        );
        for (name, f) in &self.operations {
            text += &format!(
                "{name:<28}{:>9}{:>10.2}{:>10.2}{:>10.2}{:>10.2}  {:?}\n",
                f.succeeded(),
                f.percentile(50.0),
                f.percentile(90.0),
                f.percentile(99.0),
                ms(f.latency.max()),
                f.refused,
            );
        }
        text + &format!(
            "{:.0} a second succeeded, for {:.1} s\n",
            self.per_second(),
            self.elapsed.as_secs_f64()
        )
    }
}

/// Sends `rate` requests a second for `length`, on so many connections; the n-th request is `work(n)`.
pub(crate) async fn at_rate<F>(
    rate: f64,
    length: Duration,
    connections: u32,
    work: impl Fn(u64) -> F + Clone + Send + 'static,
) -> Report
where
    F: Future<Output = Done> + Send,
{
    let (all, started) = ((rate * length.as_secs_f64()) as u64, Instant::now());
    gather(connections, move |next| {
        let work = work.clone();
        async move {
            let mut report = Report::default();
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= all {
                    return report;
                }
                let due = started + Duration::from_secs_f64(n as f64 / rate);
                // Timers wake up to a millisecond late, for which the server is not to blame: who was idle begins then.
                let begun = match Instant::now() < due {
                    true => {
                        sleep_until(due).await;
                        Instant::now()
                    }
                    false => due,
                };
                let done = work(n).await;
                report.note(&done, begun.elapsed());
            }
        }
    })
    .await
}

/// Sends `all` requests, or as many as can be in `length`, each connection the next one once it has its answer.
pub(crate) async fn closed<F>(
    all: u64,
    length: Duration,
    connections: u32,
    work: impl Fn(u64) -> F + Clone + Send + 'static,
) -> Report
where
    F: Future<Output = Done> + Send,
{
    let end = Instant::now() + length;
    gather(connections, move |next| {
        let work = work.clone();
        async move {
            let mut report = Report::default();
            loop {
                let (n, begun) = (next.fetch_add(1, Ordering::Relaxed), Instant::now());
                if n >= all || begun > end {
                    return report;
                }
                let done = work(n).await;
                report.note(&done, begun.elapsed());
            }
        }
    })
    .await
}

/// Lets so many workers share a count.
pub(crate) async fn gather<F>(connections: u32, worker: impl Fn(Arc<AtomicU64>) -> F) -> Report
where
    F: Future<Output = Report> + Send + 'static,
{
    let (started, next) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let mut workers = JoinSet::new();
    for _ in 0..connections {
        workers.spawn(worker(next.clone()));
    }
    let mut report = Report::default();
    while let Some(part) = workers.join_next().await {
        report.merge(part.expect("workers do not panic"));
    }
    report.elapsed = started.elapsed();
    report
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    fn fine() -> Done {
        Done {
            operation: "work",
            status: 200,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_of_the_server_is_felt_by_all_who_would_have_asked() {
        // Ten a second; the first takes a second, so that nine more are late by 0.9 to 0.1 s on the one connection.
        let report = at_rate(10.0, Duration::from_secs(2), 1, |n| async move {
            if n == 0 {
                sleep(Duration::from_secs(1)).await;
            }
            fine()
        })
        .await;
        let whole = report.whole();
        assert_eq!(whole.succeeded(), 20);
        let late = whole.latency.count_between(90_000, LONGEST);
        assert_eq!(late, 10, "{:?}", whole.json());
        assert!((990.0..1010.0).contains(&whole.percentile(100.0)));
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_are_counted_by_status_and_not_timed() {
        let report = closed(10, Duration::from_secs(60), 2, |n| async move {
            Done {
                operation: "work",
                status: if n % 2 == 0 { 200 } else { 429 },
            }
        })
        .await;
        let whole = report.whole();
        assert_eq!(
            (whole.succeeded(), whole.failed(), whole.refused(|s| s == 429)),
            (5, 5, 5)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_comes_in_time() {
        let report = closed(u64::MAX, Duration::from_secs(1), 3, |_| async {
            sleep(Duration::from_millis(100)).await;
            fine()
        })
        .await;
        assert!(report.elapsed < Duration::from_secs(2));
    }
}
