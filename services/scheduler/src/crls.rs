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
use certctl_model::{connector::IssuerType, id::IssuerId};
use certctl_runtime::failpoint;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::{Scheduler, bell::Bell};

/// Asks the signer for a new CRL of every local issuer whose last one is missing, older than a third of its life, or
/// silent about a revocation. A disabled issuer issues nothing, but what it issued can still be revoked.
///
/// Returns nothing done, whatever it did: if one CRL did not settle the matter, another at once would not either. What
/// failed is tried again when [`Retry`] says.
///
/// # Errors
/// When the database cannot be asked. A signer that refuses one issuer does not keep the others waiting.
pub async fn refresh(scheduler: Arc<Scheduler>) -> anyhow::Result<u64> {
    let failed = publish_stale(&scheduler).await;
    scheduler.crl_retry.note(matches!(failed, Ok(0)));
    failed?;
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
    fn note(&self, all_well: bool) {
        if all_well {
            self.failures.store(0, Ordering::Relaxed);
            self.bell.set(None);
        } else {
            let before = self.failures.fetch_add(1, Ordering::Relaxed);
            self.bell.set(Some(Instant::now() + pause(before)));
        }
    }
}

/// Doubles with every failure before, up to 8 seconds.
fn pause(failures: u32) -> Duration {
    const BASE: Duration = Duration::from_millis(500);
    BASE * 2u32.pow(failures.min(4))
}

/// Returns how many could not be made.
async fn publish_stale(scheduler: &Scheduler) -> Result<u64, sqlx::Error> {
    let mut failed = 0;
    for issuer_id in stale(scheduler).await? {
        let request = CrlRequest {
            issuer_id: issuer_id.clone(),
        };
        match scheduler.signer.call::<PublishCrl>(NoParams, NoParams, request).await {
            Ok(crl) => {
                metrics::counter!("crls_published_total").increment(1);
                let (number, entries) = (crl.number, crl.entries);
                info!(issuer.id = %issuer_id, crl_number = number, entries, "CRL {number} of {issuer_id} is published");
                failpoint::hold("scheduler.crl_published").await;
            }
            Err(error) => {
                failed += 1;
                metrics::counter!("crl_failures_total").increment(1);
                warn!(issuer.id = %issuer_id, "the CRL of {issuer_id} could not be made: {error}");
            }
        }
    }
    Ok(failed)
}

async fn stale(scheduler: &Scheduler) -> Result<Vec<IssuerId>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT i.id
           FROM issuers i
           JOIN authorities a ON a.issuer_id = i.id
           LEFT JOIN LATERAL (SELECT this_update, next_update, covers FROM crls
                               WHERE issuer_id = i.id ORDER BY number DESC LIMIT 1) crl ON true
          WHERE i.type = $1
            AND (crl.this_update IS NULL
                 OR $2 > crl.this_update + (crl.next_update - crl.this_update) / 3
                 OR crl.covers < (SELECT count(*) FROM revocations r WHERE r.issuer_id = i.id))
          ORDER BY i.id",
    )
    .bind(IssuerType::Local)
    .bind(scheduler.now())
    .fetch_all(&scheduler.db)
    .await
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
