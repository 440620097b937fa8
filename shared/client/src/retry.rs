//! How long to wait before trying again.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
    time::Duration,
};

/// Waiting times that double up to a cap, each shortened at random by up to half, so that clients which failed together
/// do not come back together.
#[derive(Clone, Debug)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    full: Duration,
    seed: u64,
}

impl Backoff {
    /// Begins with about `base`; never waits longer than `cap`. Seeded at random.
    pub fn new(base: Duration, cap: Duration) -> Self {
        Self::seeded(base, cap, RandomState::new().build_hasher().finish())
    }

    /// The same with a given seed: equal seeds give equal times.
    pub fn seeded(base: Duration, cap: Duration, seed: u64) -> Self {
        Self {
            base,
            cap,
            full: base.min(cap),
            seed,
        }
    }

    /// How long to wait now: between half and all of the present step. The next step is twice as long.
    #[expect(
        clippy::should_implement_trait,
        reason = "it never ends, so an Option of an iterator would mislead"
    )]
    pub fn next(&mut self) -> Duration {
        let full = self.full;
        self.full = full.saturating_mul(2).min(self.cap);
        full.mul_f64(0.5 + 0.5 * self.fraction())
    }

    /// Begins anew: it worked.
    pub fn reset(&mut self) {
        self.full = self.base.min(self.cap);
    }

    /// From 0 to below 1 (SplitMix64).
    fn fraction(&mut self) -> f64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        (z >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_cap_and_begin_anew_after_a_success() {
        let (base, cap) = (Duration::from_secs(1), Duration::from_secs(10));
        let mut backoff = Backoff::seeded(base, cap, 7);
        for full in [1, 2, 4, 8, 10, 10] {
            let (least, most) = (Duration::from_millis(full * 500), Duration::from_secs(full));
            let wait = backoff.next();
            assert!(least <= wait && wait <= most, "{wait:?} is not about {full} s");
        }
        backoff.reset();
        assert!(backoff.next() <= base);
    }

    #[test]
    fn equal_seeds_wait_equally_and_different_ones_do_not() {
        let waits = |seed| {
            let mut backoff = Backoff::seeded(Duration::from_secs(1), Duration::from_secs(60), seed);
            [backoff.next(), backoff.next(), backoff.next()]
        };
        assert_eq!(waits(1), waits(1));
        assert_ne!(waits(1), waits(2));
    }

    #[test]
    fn a_cap_below_the_base_holds_and_long_times_do_not_overflow() {
        let mut short = Backoff::new(Duration::from_secs(5), Duration::from_secs(1));
        assert!(short.next() <= Duration::from_secs(1));
        let mut long = Backoff::new(Duration::from_secs(u64::MAX / 4), Duration::from_secs(u64::MAX / 2));
        for _ in 0..4 {
            long.next();
        }
    }
}
