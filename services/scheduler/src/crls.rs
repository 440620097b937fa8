//! Has revocation lists made before relying parties miss them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use certctl_contract::{
    query::NoParams,
    signer::{CrlRequest, PublishCrl},
};
use certctl_model::notice::NoticeKind;
use certctl_runtime::failpoint;
use certctl_store::{
    crls::{self, Due, List, Scope, Standing},
    outbox,
};
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::{Scheduler, bell::Bell};

/// Lists of so many entries and more take seconds to make; they have a loop of their own, so that no other waits.
const LARGE: i64 = 500_000;
/// The largest takes about half a minute.
const CRL_TIMEOUT: Duration = Duration::from_secs(4 * 60);

/// Asks the signer for every list that is due, but for the large ones.
///
/// Returns nothing done, whatever it did: if one CRL did not settle the matter, another at once would not either. What
/// failed is tried again when [`Retry`] says, and what rests is made when it has rested.
///
/// # Errors
/// When the database cannot be asked. A signer that refuses one list does not keep the others waiting.
pub async fn refresh(scheduler: Arc<Scheduler>) -> anyhow::Result<u64> {
    round(&scheduler, &scheduler.crl_retry, |entries| entries < LARGE).await
}

/// The same for the large ones.
///
/// # Errors
/// As [`refresh`].
pub async fn refresh_large(scheduler: Arc<Scheduler>) -> anyhow::Result<u64> {
    round(&scheduler, &scheduler.large_crl_retry, |entries| entries >= LARGE).await
}

async fn round(scheduler: &Scheduler, retry: &Retry, ours: impl Fn(i64) -> bool) -> anyhow::Result<u64> {
    let made = publish_due(scheduler, ours).await;
    match &made {
        Ok(Made { failed: 0, next }) => retry.note(true, *next),
        Ok(Made { next, .. }) => retry.note(false, *next),
        Err(_) => retry.note(false, None),
    }
    made?;
    Ok(0)
}

/// When a CRL that could not be made is tried again: a revocation is waiting to be seen, so long before the next round.
#[derive(Default)]
pub struct Retry {
    pub(crate) bell: Bell,
    /// Rounds in a row in which something failed.
    failures: AtomicU32,
}

impl Retry {
    /// Rings when what failed is tried again, or when a list has rested if that is sooner.
    fn note(&self, all_well: bool, rested: Option<Duration>) {
        let again = match all_well {
            true => {
                self.failures.store(0, Ordering::Relaxed);
                None
            }
            false => Some(pause(self.failures.fetch_add(1, Ordering::Relaxed))),
        };
        let next = [again, rested].into_iter().flatten().min();
        self.bell.set(next.map(|wait| Instant::now() + wait));
    }
}

/// Doubles with every failure before, up to 8 seconds.
fn pause(failures: u32) -> Duration {
    const BASE: Duration = Duration::from_millis(500);
    BASE * 2u32.pow(failures.min(4))
}

struct Made {
    /// How many could not be made.
    failed: u64,
    /// How long until the next has rested.
    next: Option<Duration>,
}

async fn publish_due(scheduler: &Scheduler, ours: impl Fn(i64) -> bool) -> anyhow::Result<Made> {
    let mut made = Made { failed: 0, next: None };
    let entries = |standing: &Standing| standing.newest.map_or(0, |newest| newest.entries);
    // Twice, because a full CRL that is new wants a delta that builds upon it.
    for _ in 0..2 {
        let mut any = false;
        made.next = None;
        let standings = crls::standings(&scheduler.db).await?;
        for standing in standings.into_iter().filter(|standing| ours(entries(standing))) {
            let now = scheduler.now();
            match standing.due(now) {
                Due::Now => any |= publish(scheduler, standing.list, &mut made).await,
                Due::At(at) => made.next = [made.next, Some(at.since(now))].into_iter().flatten().min(),
                Due::Later => {}
            }
        }
        if !any || made.failed > 0 {
            break;
        }
    }
    Ok(made)
}

/// Returns whether it was made.
async fn publish(scheduler: &Scheduler, list: List, made: &mut Made) -> bool {
    let request = CrlRequest {
        issuer_id: list.issuer.clone(),
        shard: list.shard(),
        delta: list.scope == Scope::Delta,
    };
    let asked = scheduler
        .signer
        .call_with_timeout::<PublishCrl>(NoParams, NoParams, request, CRL_TIMEOUT);
    match asked.await {
        Ok(crl) => {
            metrics::counter!("crls_published_total").increment(1);
            let (issuer, number, entries) = (&list.issuer, crl.number, crl.entries);
            info!(issuer.id = %issuer, crl_number = number, entries, "{list} is published with number {number}");
            failpoint::hold("scheduler.crl_published").await;
            true
        }
        Err(error) => {
            made.failed += 1;
            metrics::counter!("crl_failures_total").increment(1);
            warn!(issuer.id = %list.issuer, "{list} could not be made: {error}");
            false
        }
    }
}

/// Looks how long each newest CRL lasts, and alarms long before one ends: a metric, a line in the log for each, and a
/// notification once for each that is late.
///
/// # Errors
/// When the database cannot be asked.
pub async fn watch(scheduler: Arc<Scheduler>) -> anyhow::Result<u64> {
    let now = scheduler.now();
    for standing in crls::standings(&scheduler.db).await? {
        let list = &standing.list;
        let left = standing
            .newest
            .map_or(0, |newest| newest.next_update.seconds_since(now));
        let labels = [
            ("issuer", list.issuer.to_string()),
            ("shard", list.shard().to_string()),
            ("delta", (list.scope == Scope::Delta).to_string()),
        ];
        metrics::gauge!("crl_seconds_left", &labels).set(left as f64);
        if !standing.is_late(now) {
            continue;
        }
        let until = match &standing.newest {
            Some(newest) => format!("the newest, number {}, ends at {}", newest.number, newest.next_update),
            None => "there is none".to_owned(),
        };
        error!(issuer.id = %list.issuer, "{list} was not made in time: {until}");
        // One that was never made is late from its first second on: the next look tells whether anything is wrong.
        let Some(newest) = &standing.newest else { continue };
        let mut tx = scheduler.begin_as_leader().await?;
        let news = outbox::PlatformNews {
            kind: NoticeKind::CrlLate,
            dedup: format!("{}:{}:{}", list.issuer, list.shard(), newest.number),
            subject: format!("{list} was not made in time"),
            message: format!(
                "{list} was not made in time: {until}. After that, nobody can tell what is revoked by it."
            ),
        };
        if outbox::announce_platform(&mut tx, &news).await? {
            let event = tx.event("crl_late_alert_sent", "issuer", &list.issuer);
            tx.note(event.with("crl_number", newest.number));
            tx.commit().await?;
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_with_every_failure_up_to_a_few_seconds() {
        for (failures, millis) in [(0, 500), (1, 1_000), (3, 4_000), (4, 8_000), (u32::MAX, 8_000)] {
            assert_eq!(pause(failures).as_millis(), millis, "{failures}");
        }
    }
}
