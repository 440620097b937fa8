//! Totals of large lists, kept for a few seconds.

use std::{collections::HashMap, sync::Mutex, time::Duration};

use certctl_model::time::Time;

/// How long the total of more rows than are counted is kept.
const KEPT: Duration = Duration::from_secs(5);
/// How many totals are kept.
const MOST_KEPT: usize = 1_000;

/// The name of a list and its filter as text.
type Counted = (&'static str, String);

/// Totals of large lists, and when each was counted. They are kept for a few seconds; small ones are counted each time.
#[derive(Default)]
pub struct Totals(Mutex<HashMap<Counted, (Time, i64)>>);

impl Totals {
    pub(super) fn known(&self, key: &Counted, now: Time) -> Option<i64> {
        let kept = self.0.lock().expect("nobody panics with the lock");
        let (at, total) = *kept.get(key)?;
        (at <= now && now < at + KEPT).then_some(total)
    }

    pub(super) fn keep(&self, key: Counted, now: Time, total: i64) {
        let mut kept = self.0.lock().expect("nobody panics with the lock");
        if kept.len() >= MOST_KEPT {
            kept.retain(|_, (at, _)| *at <= now && now < *at + KEPT);
        }
        if kept.len() < MOST_KEPT {
            kept.insert(key, (now, total));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_of_large_lists_are_kept_for_a_while() {
        let (totals, now) = (Totals::default(), Time::from_unix(1_800_000_000));
        let key = ("certificate", "status=Active".to_owned());
        assert_eq!(totals.known(&key, now), None);
        totals.keep(key.clone(), now, 20_000);
        assert_eq!(totals.known(&key, now + KEPT / 2), Some(20_000));
        assert_eq!(totals.known(&key, now + KEPT), None);
        for n in 0..2 * MOST_KEPT {
            totals.keep(("job", n.to_string()), now, 20_000);
        }
        assert_eq!(totals.0.lock().unwrap().len(), MOST_KEPT);
        totals.keep(("job", "later".to_owned()), now + KEPT, 20_000);
        assert_eq!(totals.0.lock().unwrap().len(), 1);
    }
}
