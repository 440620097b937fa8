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
}

impl RenewalRule {
    /// The instant from which a certificate of this lifetime is due, spread over a tenth of what then remains.
    ///
    /// `spread` (0 to 999) is a property of the certificate, so that the instant is the same whenever it is asked for
    /// and certificates issued in one night are not renewed in one night.
    pub fn due_at(&self, not_before: Time, not_after: Time, spread: u16) -> Option<Time> {
        if !self.auto_renew {
            return None;
        }
        let lifetime = not_after.since(not_before);
        let by_share = not_before + lifetime.mul_f64(f64::from(self.renew_at_permille.clamp(0, 1000)) / 1000.0);
        let window = Duration::from_secs(86_400) * u32::try_from(self.renewal_window_days).unwrap_or(0);
        let due = if window.is_zero() {
            by_share
        } else {
            by_share.max(not_after - window)
        };
        Some(due + not_after.since(due).mul_f64(0.1 * f64::from(spread.min(999)) / 1000.0))
    }
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
        };
        let due = |spread| {
            rule.due_at(Time::from_unix(0), Time::from_unix(1000), spread)
                .unwrap()
                .unix()
        };
        assert_eq!((due(0), due(500), due(999)), (500, 525, 549));
    }

    #[test]
    fn without_auto_renewal_nothing_is_ever_due() {
        let rule = RenewalRule {
            auto_renew: false,
            renew_at_permille: 500,
            renewal_window_days: 30,
        };
        assert_eq!(rule.due_at(Time::from_unix(0), Time::from_unix(1000), 0), None);
    }
}
