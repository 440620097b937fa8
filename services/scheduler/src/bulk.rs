//! Bulk operations: certificates wait in rows, and every scheduler takes some.

use std::sync::Arc;

use certctl_store::bulk;
use futures_util::future::try_join_all;

use crate::Scheduler;

/// How many certificates are worked on side by side.
const LANES: usize = 8;

/// Does what waits, one certificate in each lane, and closes what is finished. Returns how many had their turn.
///
/// # Errors
/// When the database cannot be asked.
pub async fn round(scheduler: Arc<Scheduler>) -> anyhow::Result<u64> {
    let lanes = (0..LANES).map(|_| bulk::step(&scheduler.db, scheduler.now()));
    let done = try_join_all(lanes).await?.into_iter().filter(|done| *done).count() as u64;
    Ok(done + bulk::close(&scheduler.db, scheduler.now()).await?)
}
