//! Months of a fleet on virtual time: how fast they pass, and the first seed that shows something wrong.

use std::{hint::black_box, time::Instant};

use certctl_model::{
    renewal::{RenewalRule, spread_of},
    time::Time,
};
use certctl_sim::Fleet;
use serde_json::{Value, json};

use crate::{cli::Sim, load::round};

/// Runs the seeds one after the other: with faults, and without.
///
/// # Errors
/// The first thing that should never happen, with its seed.
pub(crate) fn run(args: &Sim) -> anyhow::Result<Value> {
    let (mut renewals, mut failures, mut expired, mut peak) = (0, 0, 0, 0_f64);
    let began = Instant::now();
    for seed in args.seed..args.seed + args.seeds {
        for faults in [true, false] {
            let fleet = Fleet {
                certificates: args.certificates,
                days: args.days,
                lifetime_days: 47,
                faults,
            };
            let report = certctl_sim::run(seed, &fleet).map_err(anyhow::Error::msg)?;
            renewals += report.renewals;
            failures += report.failures;
            expired += report.expired;
            if !faults {
                peak = peak.max(report.peak_over_mean);
            }
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let decisions = decisions(renewals);
    Ok(json!({
        "name": "sim",
        "simulated_days_per_second": round((2 * args.days) as f64 * args.seeds as f64 / seconds),
        "seed": args.seed,
        "seeds": args.seeds,
        "certificates": args.certificates,
        "days": args.days,
        "renewals": renewals,
        "failures": failures,
        "expired_while_their_issuer_was_away": expired,
        "worst_peak_over_mean": round(peak),
        "seconds": round(seconds),
        "ceilings": { "decisions_seconds": round(decisions) },
        "seconds_over_decisions": round(seconds / decisions.max(1e-9)),
    }))
}

/// How long it takes to decide as often when a certificate is due, and nothing else.
fn decisions(count: u64) -> f64 {
    let rule = RenewalRule {
        auto_renew: true,
        renew_at_permille: 667,
        renewal_window_days: 0,
        spread_percent: 100,
    };
    let spread = spread_of("mc-1");
    let began = Instant::now();
    for n in 0..count {
        let from = Time::from_unix(1_800_000_000 + n as i64);
        black_box(rule.due_at(from, Time::from_unix(from.unix() + 47 * 86_400), spread));
    }
    began.elapsed().as_secs_f64()
}
