//! When a certificate is due for renewal.

use std::time::Duration;

use crate::time::Time;

/// The part of a renewal policy that decides when.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RenewalRule {
    /// Whether renewal happens by itself.
    pub auto_renew: bool,
    /// Share of the lifetime after which a certificate is due, in thousandths.
    pub renew_at_permille: i32,
    /// No earlier than so many days before the end, which matters for certificates of many months only.
    pub renewal_window_days: i32,
    /// How much earlier it may be, in hundredths of the time until then, so that not all are renewed at once.
    pub spread_percent: i32,
}

impl RenewalRule {
    /// The instant from which a certificate of this lifetime is due.
    ///
    /// Between the earliest instant that the rule allows and a tenth of what remains after the latest, every certificate
    /// has an instant of its own. Such instants come again and again, one renewal apart: whoever was renewed at his own is
    /// renewed at the next, and those that were issued in one night come to be renewed on different days. When none lies
    /// in between, one in between is taken that is nearer.
    ///
    /// `spread` (0 to 999) is a property of the certificate, so that the instant is the same whenever it is asked for.
    pub fn due_at(&self, not_before: Time, not_after: Time, spread: u16) -> Option<Time> {
        if !self.auto_renew {
            return None;
        }
        let by_share = not_after
            .since(not_before)
            .mul_f64(f64::from(self.renew_at_permille.clamp(0, 1000)) / 1000.0);
        let window = Duration::from_secs(86_400) * u32::try_from(self.renewal_window_days).unwrap_or(0);
        let not_before_window = |due: Time| match window.is_zero() {
            true => due,
            false => due.max(not_after - window),
        };
        let kept = 1.0 - f64::from(self.spread_percent.clamp(0, 100)) / 100.0;
        let earliest = not_before_window(not_before + by_share.mul_f64(kept));
        let due = not_before_window(not_before + by_share);
        let latest = due + not_after.since(due).mul_f64(0.1);
        let share = f64::from(spread.min(999)) / 1000.0;
        let own = own_instant(due.since(not_before), latest, share);
        let nearer = || earliest + latest.since(earliest).mul_f64(share);
        Some(own.filter(|own| *own >= earliest).unwrap_or_else(nearer))
    }
}

/// Of the instants that are this share of a period behind a whole number of periods, the last one that is not after `latest`.
fn own_instant(period: Duration, latest: Time, share: f64) -> Option<Time> {
    let period = period.as_secs_f64();
    let behind = (latest.unix() as f64 - period * share).rem_euclid(period);
    behind
        .is_finite()
        .then(|| Time::from_unix(latest.unix()) - Duration::from_secs_f64(behind))
}

/// A number from 0 to 999 that is always the same for the same id (FNV-1a).
pub fn spread_of(id: &str) -> u16 {
    let hash = id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash % 1000) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400;

    #[test]
    fn due_is_a_share_of_the_lifetime_but_not_before_the_window() {
        let rule = RenewalRule {
            auto_renew: true,
            renew_at_permille: 667,
            renewal_window_days: 30,
            spread_percent: 0,
        };
        // lifetime in seconds, due after so many seconds
        for (lifetime, due) in [
            (300, 200),
            (47 * DAY, 31 * DAY + 30_153),
            (90 * DAY, 60 * DAY + 2_592),
            (365 * DAY, 335 * DAY),
        ] {
            let at = rule.due_at(Time::from_unix(0), Time::from_unix(lifetime), 0).unwrap();
            assert_eq!(at.unix(), due, "{lifetime}");
        }
    }

    #[test]
    fn the_spread_stays_within_a_tenth_of_what_remains() {
        let rule = RenewalRule {
            auto_renew: true,
            renew_at_permille: 500,
            renewal_window_days: 0,
            spread_percent: 0,
        };
        let due = |spread| {
            rule.due_at(Time::from_unix(0), Time::from_unix(1000), spread)
                .unwrap()
                .unix()
        };
        assert_eq!((due(0), due(500), due(999)), (500, 525, 549));
    }

    /// Renewals of a day, of certificates issued in one night that are renewed for so many days, from one day on.
    fn load(rule: &RenewalRule, lifetime: i64, certificates: u32, until: i64) -> Vec<usize> {
        let mut days = vec![0; until as usize];
        for n in 0..certificates {
            let spread = spread_of(&format!("mc-{n}"));
            let mut from = Time::from_unix(1_800_000_000 + i64::from(n) % (DAY / 3));
            loop {
                let due = rule
                    .due_at(from, from + Duration::from_secs(lifetime as u64), spread)
                    .unwrap();
                let day = (due.unix() - 1_800_000_000) / DAY;
                let Some(load) = days.get_mut(day as usize) else { break };
                *load += 1;
                // A minute passes until it is issued, and it begins an hour before that.
                from = due + Duration::from_secs(60) - Duration::from_secs(3600);
            }
        }
        days
    }

    #[test]
    fn what_was_issued_in_one_night_is_renewed_evenly_after_one_cycle_when_the_whole_of_it_may_be_used() {
        let rule = RenewalRule {
            auto_renew: true,
            renew_at_permille: 667,
            renewal_window_days: 0,
            spread_percent: 100,
        };
        let days = load(&rule, 47 * DAY, 20_000, 32 + 4 * 32);
        let later = &days[32..];
        let (peak, mean) = (
            *later.iter().max().unwrap() as f64,
            later.iter().sum::<usize>() as f64 / later.len() as f64,
        );
        assert!(peak <= 1.2 * mean, "{peak} on one day, {mean} on a day in the middle");
        assert!(
            days[..32].iter().all(|load| *load as f64 <= 1.3 * mean),
            "the first cycle is one of spreading"
        );
    }

    #[test]
    fn without_a_spread_nothing_is_renewed_early_and_what_has_its_day_keeps_it() {
        let rule = RenewalRule {
            auto_renew: true,
            renew_at_permille: 667,
            renewal_window_days: 30,
            spread_percent: 0,
        };
        let days = load(&rule, 47 * DAY, 2_000, 33);
        assert!(days[..31].iter().all(|load| *load == 0), "{days:?}");
        assert_eq!(days[31..].iter().sum::<usize>(), 2_000);
        let early = RenewalRule {
            spread_percent: 10,
            ..rule
        };
        let (from, to) = (
            Time::from_unix(1_800_000_000),
            Time::from_unix(1_800_000_000 + 47 * DAY),
        );
        for spread in (0..1000).step_by(37) {
            let age = early.due_at(from, to, spread).unwrap().unix() - from.unix();
            let share = age as f64 / (47 * DAY) as f64;
            assert!((0.6..0.701).contains(&share), "{share}");
        }
    }

    #[test]
    fn without_auto_renewal_nothing_is_ever_due() {
        let rule = RenewalRule {
            auto_renew: false,
            renew_at_permille: 500,
            renewal_window_days: 30,
            spread_percent: 0,
        };
        assert_eq!(rule.due_at(Time::from_unix(0), Time::from_unix(1000), 0), None);
    }
}
