//! Has revocation lists made before relying parties miss them.

use std::sync::Arc;

use certctl_contract::{
    query::NoParams,
    signer::{CrlRequest, PublishCrl},
};
use certctl_model::{connector::IssuerType, id::IssuerId};
use certctl_runtime::failpoint;
use tracing::{info, warn};

use crate::Scheduler;

/// Asks the signer for a new CRL of every local issuer whose last one is missing, older than a third of its life, or
/// silent about a revocation. A disabled issuer issues nothing, but what it issued can still be revoked.
///
/// Returns nothing done, whatever it did: if one CRL did not settle the matter, another at once would not either.
///
/// # Errors
/// When the database cannot be asked. A signer that refuses one issuer does not keep the others waiting.
pub async fn refresh(scheduler: Arc<Scheduler>) -> anyhow::Result<u64> {
    for issuer_id in stale(&scheduler).await? {
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
                metrics::counter!("crl_failures_total").increment(1);
                warn!(issuer.id = %issuer_id, "the CRL of {issuer_id} could not be made: {error}");
            }
        }
    }
    Ok(0)
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
