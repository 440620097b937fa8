//! Figures, as a table and as JSON.

use std::{fmt::Write as _, time::Duration};

use serde_json::{Map, Value, json};

/// One run: times since the request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// The agent's certification request was accepted.
    pub(crate) csr: Duration,
    /// The certificate was recorded.
    pub(crate) issued: Duration,
    /// The agent reported that it is in place.
    pub(crate) deployed: Duration,
    /// A TLS client saw it.
    pub(crate) served: Duration,
}

/// What was measured.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// The runs in their order.
    pub(crate) runs: Vec<Run>,
    /// Bare handshakes with the demo.
    pub(crate) handshakes: Vec<Duration>,
    /// Bare round trips of GET /health.
    pub(crate) round_trips: Vec<Duration>,
}

/// The middle, the slow end and the worst.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Spread {
    p50: f64,
    p95: f64,
    max: f64,
}

impl Spread {
    /// In milliseconds, by nearest rank; zeros of nothing.
    fn of(durations: impl IntoIterator<Item = Duration>) -> Self {
        let mut sorted: Vec<Duration> = durations.into_iter().collect();
        sorted.sort_unstable();
        let rank = |percent: usize| {
            let at = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
            sorted.get(at).map_or(0.0, |d| ms(*d))
        };
        Self {
            p50: rank(50),
            p95: rank(95),
            max: rank(100),
        }
    }

    fn json(self) -> Value {
        json!({ "p50": self.p50, "p95": self.p95, "max": self.max })
    }
}

/// A column: its name and what it takes of a run.
type Column = (&'static str, fn(&Run) -> Duration);

const COLUMNS: [Column; 4] = [
    ("csr", |r| r.csr),
    ("issued", |r| r.issued),
    ("deployed", |r| r.deployed),
    ("served", |r| r.served),
];

impl Report {
    fn spread(&self, of: fn(&Run) -> Duration) -> Spread {
        Spread::of(self.runs.iter().map(of))
    }

    /// The bare costs by name, to hold the whole against.
    fn baselines(&self) -> [(&'static str, Spread); 2] {
        [
            ("tls_handshake", Spread::of(self.handshakes.iter().copied())),
            ("health_round_trip", Spread::of(self.round_trips.iter().copied())),
        ]
    }

    /// How many times the median run is longer than a median of something bare.
    fn ratio(&self, bare: Spread) -> f64 {
        if bare.p50 > 0.0 {
            round(self.spread(|r| r.served).p50 / bare.p50)
        } else {
            0.0
        }
    }

    /// For programs; all times in milliseconds since the request.
    pub(crate) fn json(&self) -> Value {
        let row = |run: &Run| -> Map<String, Value> {
            COLUMNS
                .iter()
                .map(|(name, of)| (format!("{name}_ms"), json!(ms(of(run)))))
                .collect()
        };
        let summary: Map<String, Value> = COLUMNS
            .iter()
            .map(|(name, of)| (format!("{name}_ms"), self.spread(*of).json()))
            .collect();
        let bare = self
            .baselines()
            .map(|(name, spread)| (format!("{name}_ms"), spread.json()));
        let ratios = self
            .baselines()
            .map(|(name, spread)| (name.to_owned(), json!(self.ratio(spread))));
        json!({
            "name": "main-job",
            "served_p50_ms": self.spread(|r| r.served).p50,
            "runs": self.runs.iter().map(row).collect::<Vec<_>>(),
            "summary": summary,
            "bare": Map::from_iter(bare),
            "served_p50_over": Map::from_iter(ratios),
        })
    }

    /// For people.
    pub(crate) fn table(&self) -> String {
        let mut text = String::from("milliseconds since the request\n");
        let mut line = |name: &str, values: &[String]| {
            let cells: String = values.iter().map(|v| format!("{v:>10}")).collect();
            let _ = writeln!(text, "{name:<8}{cells}");
        };
        line("run", &COLUMNS.map(|(name, _)| name.to_owned()));
        for (number, run) in self.runs.iter().enumerate() {
            line(
                &(number + 1).to_string(),
                &COLUMNS.map(|(_, of)| format!("{:.0}", ms(of(run)))),
            );
        }
        let spreads = COLUMNS.map(|(_, of)| self.spread(of));
        for (name, pick) in [
            ("p50", (|s| s.p50) as fn(Spread) -> f64),
            ("p95", |s| s.p95),
            ("max", |s| s.max),
        ] {
            line(name, &spreads.map(|s| format!("{:.0}", pick(s))));
        }
        for (name, bare) in self.baselines() {
            let _ = writeln!(
                text,
                "bare {name}: p50 {:.2} ms, p95 {:.2}, max {:.2}; the median run is {:.0} of them",
                bare.p50,
                bare.p95,
                bare.max,
                self.ratio(bare),
            );
        }
        text
    }
}

fn ms(duration: Duration) -> f64 {
    round(duration.as_secs_f64() * 1000.0)
}

fn round(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let spread = |n: u64| Spread::of((1..=n).rev().map(Duration::from_millis));
        for (n, p50, p95, max) in [
            (0, 0.0, 0.0, 0.0),
            (1, 1.0, 1.0, 1.0),
            (2, 1.0, 2.0, 2.0),
            (20, 10.0, 19.0, 20.0),
            (100, 50.0, 95.0, 100.0),
        ] {
            assert_eq!(spread(n), Spread { p50, p95, max }, "{n}");
        }
    }

    #[test]
    fn the_table_and_the_json_have_the_same_figures() {
        let at = Duration::from_millis;
        let run = |served| Run {
            csr: at(100),
            issued: at(150),
            deployed: at(400),
            served: at(served),
        };
        let report = Report {
            runs: vec![run(390), run(410)],
            handshakes: vec![at(2)],
            round_trips: vec![at(1)],
        };
        let json = report.json();
        assert_eq!(
            json["summary"]["served_ms"],
            json!({ "p50": 390.0, "p95": 410.0, "max": 410.0 })
        );
        assert_eq!(
            json["served_p50_over"],
            json!({ "tls_handshake": 195.0, "health_round_trip": 390.0 })
        );
        let table = report.table();
        assert!(
            table.contains("p50            100       150       400       390\n"),
            "{table}"
        );
        assert!(table.contains("the median run is 195 of them"), "{table}");
    }
}
