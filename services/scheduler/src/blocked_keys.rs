//! Revokes what came to have a blocked key: recorded after it was blocked, because it was signed before.

use std::{sync::Arc, time::Duration};

use certctl_model::revocation::RevocationReason;
use certctl_store::revocations::{self, Grounds};

use crate::{Scheduler, journal};

/// How often is looked.
pub const EVERY: Duration = Duration::from_secs(30);
const MOST: i64 = 500;

/// Returns how many certificates were revoked.
///
/// # Errors
/// When the database cannot be asked.
pub async fn sweep(scheduler: Arc<Scheduler>) -> anyhow::Result<u64> {
    let found = revocations::with_blocked_keys(&scheduler.db, scheduler.now(), MOST).await?;
    if found.is_empty() {
        return Ok(0);
    }
    let grounds = Grounds {
        even_archived: true,
        ..RevocationReason::KeyCompromise.into()
    };
    let mut tx = scheduler.begin_as_leader().await?;
    let outcomes = revocations::revoke_all(&mut tx, &found, grounds).await?;
    let revoked = outcomes.iter().filter(|(_, outcome)| outcome.is_ok()).count() as u64;
    if revoked > 0 {
        tx.commit().await?;
        journal::write(scheduler).await?;
    }
    Ok(revoked)
}
