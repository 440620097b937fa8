//! Months of a large fleet in milliseconds: the rules that decide when certificates are renewed, on virtual time.
//!
//! A fleet is issued in one night and renewed by [`RenewalRule`], by issuers that have a budget, fail now and then, and are
//! away for days. Everything follows from one seed. Not here: the database and the programs; the stories of the tests
//! run those, for smaller fleets.
#![warn(missing_docs)]

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

use certctl_model::{
    renewal::{RenewalRule, spread_of},
    time::Time,
};
use fastrand::Rng;

const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;
/// When every fleet is issued: 15 January 2027.
const BEGIN: i64 = 1_800_000_000 / DAY * DAY;
/// How far before its signature a certificate begins.
const BACKDATE: i64 = HOUR;
const ISSUERS: usize = 3;
/// As in a renewal policy, unless it says otherwise.
const TRIES: u8 = 3;

/// What is simulated.
#[derive(Clone, Copy, Debug)]
pub struct Fleet {
    /// Certificates.
    pub certificates: usize,
    /// For how many days.
    pub days: i64,
    /// How long each certificate lives, in days.
    pub lifetime_days: i64,
    /// Whether issuers fail and are away.
    pub faults: bool,
}

/// What became of a fleet.
#[derive(Clone, Debug)]
pub struct Report {
    /// Certificates that were issued again.
    pub renewals: u64,
    /// Requests that failed.
    pub failures: u64,
    /// Certificates that ended before they were issued again, because their issuer was away.
    pub expired: u64,
    /// The most renewals of a day after the first cycle, beside the mean.
    pub peak_over_mean: f64,
}

struct Certificate {
    issuer: usize,
    spread: u16,
    not_after: i64,
    failures: u8,
}

struct Issuer {
    per_hour: usize,
    /// From when to when it is away.
    away: Vec<(i64, i64)>,
    /// In a thousand.
    fails: u32,
    /// Who has the least time left goes first, as when jobs are claimed.
    waiting: BinaryHeap<Reverse<(i64, usize)>>,
}

impl Issuer {
    fn is_away(&self, at: i64) -> bool {
        self.away.iter().any(|(from, to)| (*from..*to).contains(&at))
    }

    fn was_away_between(&self, from: i64, to: i64) -> bool {
        self.away.iter().any(|(begin, end)| *begin < to && from < *end)
    }
}

/// Runs a fleet.
///
/// # Errors
/// What should never happen, and did: a certificate that ended although its issuer was there for the last third of its life,
/// or one that was lost. It says with which seed.
pub fn run(seed: u64, fleet: &Fleet) -> Result<Report, String> {
    let rule = RenewalRule {
        auto_renew: true,
        renew_at_permille: 667,
        renewal_window_days: 0,
        spread_percent: 100,
    };
    let lifetime = fleet.lifetime_days * DAY;
    let mut random = Rng::with_seed(seed);
    let mut issuers = issuers(&mut random, fleet);
    let hours = fleet.days * 24;
    // By the hour in which they are due, counted from the beginning.
    let mut due: Vec<Vec<usize>> = vec![vec![]; hours as usize + 1];
    let mut report = Report {
        renewals: 0,
        failures: 0,
        expired: 0,
        peak_over_mean: 0.0,
    };
    let mut by_day = vec![0_u64; fleet.days as usize];
    let plan = |due: &mut Vec<Vec<usize>>, n: usize, spread: u16, issued: i64| {
        let (from, to) = (Time::from_unix(issued - BACKDATE), Time::from_unix(issued + lifetime));
        let at = rule.due_at(from, to, spread).map_or(i64::MAX, Time::unix);
        // Never again in the hour that is just being done.
        let hour = ((at - BEGIN) + HOUR - 1)
            .div_euclid(HOUR)
            .max((issued - BEGIN) / HOUR + 1);
        if let Some(bucket) = usize::try_from(hour).ok().and_then(|hour| due.get_mut(hour)) {
            bucket.push(n);
        }
    };
    let mut certificates: Vec<Certificate> = (0..fleet.certificates)
        .map(|n| {
            let issued = BEGIN + random.i64(0..8 * HOUR);
            let spread = spread_of(&format!("mc-{seed}-{n}"));
            plan(&mut due, n, spread, issued);
            Certificate {
                issuer: n % ISSUERS,
                spread,
                not_after: issued + lifetime,
                failures: 0,
            }
        })
        .collect();
    for hour in 0..hours {
        let now = BEGIN + hour * HOUR;
        for n in std::mem::take(&mut due[hour as usize]) {
            let one = &certificates[n];
            issuers[one.issuer].waiting.push(Reverse((one.not_after, n)));
        }
        for issuer in issuers.iter_mut().filter(|issuer| !issuer.is_away(now)) {
            for _ in 0..issuer.per_hour {
                let Some(Reverse((_, n))) = issuer.waiting.pop() else {
                    break;
                };
                let one = &mut certificates[n];
                if random.u32(0..1000) < issuer.fails {
                    report.failures += 1;
                    // Tried again with pauses of up to a minute, and after three tries when the retry interval is over.
                    one.failures = (one.failures + 1) % TRIES;
                    due[hour as usize + 1].push(n);
                    continue;
                }
                if one.not_after <= now {
                    report.expired += 1;
                    blame(seed, issuer, one, lifetime, n)?;
                }
                one.failures = 0;
                one.not_after = now + lifetime;
                report.renewals += 1;
                by_day[(hour / 24) as usize] += 1;
                plan(&mut due, n, one.spread, now);
            }
        }
    }
    let end = BEGIN + hours * HOUR;
    for (n, one) in certificates.iter().enumerate().filter(|(_, one)| one.not_after <= end) {
        report.expired += 1;
        blame(seed, &issuers[one.issuer], one, lifetime, n)?;
    }
    let cycle = (fleet.lifetime_days * 667 / 1000 + 1) as usize;
    let later = by_day.get(cycle..).unwrap_or_default();
    let mean = later.iter().sum::<u64>() as f64 / later.len().max(1) as f64;
    report.peak_over_mean = later.iter().max().copied().unwrap_or(0) as f64 / mean.max(1.0);
    Ok(report)
}

fn issuers(random: &mut Rng, fleet: &Fleet) -> Vec<Issuer> {
    let mean = fleet.certificates as i64 * 1000 / (ISSUERS as i64 * fleet.lifetime_days * 667 * 24).max(1);
    let mut issuer = || {
        let away = |random: &mut Rng| {
            let from = BEGIN + random.i64(0..fleet.days * 24) * HOUR;
            (from, from + random.i64(1..10 * 24) * HOUR)
        };
        let outages = if fleet.faults { random.usize(0..4) } else { 0 };
        Issuer {
            // Twice of what it has to do, at least.
            per_hour: (mean * random.i64(20..40) / 10 + 2) as usize,
            away: (0..outages).map(|_| away(random)).collect(),
            fails: if fleet.faults { random.u32(0..200) } else { 0 },
            waiting: BinaryHeap::new(),
        }
    };
    (0..ISSUERS).map(|_| issuer()).collect()
}

fn blame(seed: u64, issuer: &Issuer, one: &Certificate, lifetime: i64, n: usize) -> Result<(), String> {
    let third = Duration::from_secs((lifetime / 3) as u64).as_secs() as i64;
    match issuer.was_away_between(one.not_after - third, one.not_after) {
        true => Ok(()),
        false => Err(format!(
            "seed {seed}: certificate {n} ended at {} although its issuer was there for the last third of its life; again: \
             script/bench sim {seed}",
            Time::from_unix(one.not_after)
        )),
    }
}
